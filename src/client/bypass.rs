//! Straight to the store, with the client's own credentials: for reads, and where the volume says so for writes, when no proxy answers; and for lists.
//!
//! Called by `read`, `write` and the commands. Names and signatures are the proxies' own (`src/origin`). A block is fetched whole and compared with our digest
//! (or the store's checksum) before a byte of it is given out. Every write carries `If-None-Match: *`, and one whose outcome is not known is settled by a HEAD.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode_str;
use reqwest::{Client, Response};
use serde::Deserialize;
use tokio::time::timeout;
use twox_hash::XxHash3_128;

use super::error::ClientError;
use crate::follow::https::{certificates, words};
use crate::origin::sign::{SignedHeader, Signer, Verb};
use crate::origin::{AddressStyle, CredentialSource, NameStyle, StoreSettings, object_name};
use crate::resource::KeyNames;
use crate::routing::Routing;

/// Our digest of the content, as user metadata.
const DIGEST_HEADER: &str = "x-amz-meta-forebay-digest";
const CRC32C_HEADER: &str = "x-amz-checksum-crc32c";
/// For a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence of the store.
const SILENCE_MAX: Duration = Duration::from_secs(15);
const SMALL_BODY_BYTES_MAX: usize = 4 << 20;
const LIST_COUNT_MAX: u32 = 1_000;

/// The volume's place in its store.
pub struct Bypass {
    http: Client,
    signer: Signer,
    names: NameStyle,
    prefix: String,
    block_bytes_max: u64,
    conditional_put: bool,
    absence: Absence,
}

/// How it is learned that there is no such object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    /// By a 404.
    Told,
    /// By a list, after a 403.
    Listed,
}

/// A block of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// As a proxy would tell it.
    pub etag: String,
    /// How long it is.
    pub len_bytes: u64,
}

/// What became of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It is there now.
    Created,
    /// The same bytes were there.
    Unchanged,
    /// Others are there.
    Exists,
}

/// One object of a list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// Its key in the volume.
    pub key: String,
    /// How long it is.
    pub bytes: u64,
    /// When it was stored, as the store writes it.
    pub modified: String,
}

impl Bypass {
    /// The store of `routing`, with `credentials`.
    ///
    /// # Errors
    /// Why it can't be used, with the fix: no credentials, mostly.
    pub fn new(routing: &Routing, credentials: CredentialSource, ca: Option<&Path>) -> Result<Bypass, String> {
        let store = &routing.store;
        let mut settings = StoreSettings::new(&store.name, &store.endpoint, &store.region, &store.bucket, credentials);
        settings.style = if store.path_style { AddressStyle::Path } else { AddressStyle::VirtualHost };
        let signer = Signer::new(&settings).map_err(|error| error.to_string())?;
        let mut builder = Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT);
        if let Some(ca) = ca {
            builder = builder.tls_certs_merge(certificates(ca).map_err(|error| error.to_string())?);
        } else if store.endpoint.starts_with("http://") {
            // No TLS will be spoken: then a machine without system certificates must do.
            builder = builder.tls_certs_only([]);
        }
        let is_loopback = ["//127.", "//localhost", "//[::1]"].iter().any(|host| store.endpoint.contains(host));
        if is_loopback {
            builder = builder.no_proxy();
        }
        let names = match store.names {
            KeyNames::Plain => NameStyle::Plain,
            KeyNames::Portable => NameStyle::Portable,
        };
        Ok(Bypass {
            http: builder.build().map_err(|error| error.to_string())?,
            signer,
            names,
            prefix: routing.volume.prefix.clone(),
            block_bytes_max: u64::from(routing.volume.block_size),
            conditional_put: store.conditional_put,
            absence: Absence::Told,
        })
    }

    /// The same for credentials that may list under the volume's prefix only: to them, a store that follows IAM answers 403 for what is not there.
    #[must_use]
    pub fn with_absence_listed(self) -> Bypass {
        Bypass { absence: Absence::Listed, ..self }
    }

    /// The whole block, compared with its digest; `None`: the store has none.
    ///
    /// # Errors
    /// The store can't be asked, or its bytes are not the block's.
    pub async fn get(&self, key: &str) -> Result<Option<(Stored, Bytes)>, ClientError> {
        let headers = vec![("x-amz-checksum-mode", "ENABLED".to_owned())];
        let Some(mut answer) = self.present(self.send(Verb::Get, key, headers, None).await?, Verb::Get, key).await?
        else {
            return Ok(None);
        };
        let stored = stored(answer.headers())?;
        if stored.len_bytes > self.block_bytes_max {
            return Err(ClientError::Unavailable("what the store holds is larger than a block".to_owned()));
        }
        let crc32c = crc32c_of(answer.headers());
        let body = body_of(&mut answer, usize::try_from(stored.len_bytes).unwrap_or(usize::MAX)).await?;
        verify(key, &stored, crc32c, &body)?;
        Ok(Some((stored, body)))
    }

    /// What the store has of a block.
    ///
    /// # Errors
    /// The store can't be asked.
    pub async fn head(&self, key: &str) -> Result<Option<Stored>, ClientError> {
        let answer = self.send(Verb::Head, key, Vec::new(), None).await?;
        self.present(answer, Verb::Head, key).await?.map(|answer| stored(answer.headers())).transpose()
    }

    /// Stores a block if there is none.
    ///
    /// # Errors
    /// The store can't be asked, or can't be trusted with conditions.
    pub async fn put(&self, key: &str, body: &Bytes) -> Result<StoreOutcome, ClientError> {
        if !self.conditional_put {
            let words = "the store has no atomic conditional PUT: a bypassed write could overwrite another";
            return Err(ClientError::Unavailable(words.to_owned()));
        }
        let digest = format!("{:032x}", XxHash3_128::oneshot(body));
        let crc = u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, body)).expect("a CRC-32C has 32 bits");
        let headers = vec![
            ("if-none-match", "*".to_owned()),
            (CRC32C_HEADER, STANDARD.encode(crc.to_be_bytes())),
            (DIGEST_HEADER, digest.clone()),
        ];
        let sent = self.send(Verb::Put, key, headers, Some(body.clone())).await;
        let in_doubt = match sent {
            Ok(answer) if answer.status().is_success() => return Ok(StoreOutcome::Created),
            Ok(answer) if matches!(answer.status().as_u16(), 409 | 412 | 500..=599) => self.refused(answer).await,
            Ok(answer) => return Err(self.refused(answer).await),
            Err(error) => error,
        };
        match self.head(key).await? {
            Some(there) if there.etag == digest && there.len_bytes == body.len() as u64 => Ok(StoreOutcome::Unchanged),
            Some(_) => Ok(StoreOutcome::Exists),
            None => Err(in_doubt),
        }
    }

    /// Deletes a block; that there was none is success.
    ///
    /// # Errors
    /// The store can't be asked.
    pub async fn delete(&self, key: &str) -> Result<(), ClientError> {
        let answer = self.send(Verb::Delete, key, Vec::new(), None).await?;
        self.present(answer, Verb::Delete, key).await.map(drop)
    }

    /// At most 1,000 objects whose keys begin with `prefix`, and where the next list goes on.
    ///
    /// # Errors
    /// The store can't be asked.
    pub async fn list(
        &self,
        prefix: &str,
        continuation: Option<&str>,
    ) -> Result<(Vec<Listed>, Option<String>), ClientError> {
        let list = self.listed(&format!("{}{prefix}", self.prefix), LIST_COUNT_MAX, continuation).await?;
        let listed = list.contents.into_iter().filter_map(|item| {
            let key = item.key.strip_prefix(&self.prefix)?.to_owned();
            Some(Listed { key, bytes: item.size, modified: item.last_modified })
        });
        let next = list.next_continuation_token.filter(|_| list.is_truncated);
        Ok((listed.collect(), next))
    }

    /// Objects whose names begin with `prefix`, the names decoded.
    async fn listed(
        &self,
        prefix: &str,
        count_max: u32,
        continuation: Option<&str>,
    ) -> Result<ListDocument, ClientError> {
        let url = self.signer.list_url(prefix, count_max, continuation);
        let mut answer = self.answer(self.http.get(url)).await?;
        if !answer.status().is_success() {
            return Err(self.refused(answer).await);
        }
        let body = body_of(&mut answer, SMALL_BODY_BYTES_MAX).await?;
        let text = String::from_utf8_lossy(&body);
        let mut list: ListDocument = quick_xml::de::from_str(&text)
            .map_err(|error| ClientError::Unavailable(format!("the store's list makes no sense: {error}")))?;
        // Not every store knows that keys are to be encoded.
        if list.encoding_type.as_deref() == Some("url") {
            for item in &mut list.contents {
                item.key = percent_decode_str(&item.key.replace('+', " ")).decode_utf8_lossy().into_owned();
            }
        }
        Ok(list)
    }

    async fn send(
        &self,
        verb: Verb,
        key: &str,
        headers: Vec<SignedHeader>,
        body: Option<Bytes>,
    ) -> Result<Response, ClientError> {
        let name = self.name(key)?;
        let url = self.signer.url(verb, &name, &headers);
        let mut request = self.http.request(verb.method(), url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        self.answer(request).await
    }

    fn name(&self, key: &str) -> Result<String, ClientError> {
        let name =
            object_name(self.names, &self.prefix, key).map_err(|error| ClientError::BadKey(error.to_string()))?;
        if name.is_empty() { Err(ClientError::BadKey("the key is empty".to_owned())) } else { Ok(name) }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Response, ClientError> {
        let fail = |words: String| ClientError::Unavailable(format!("the store: {words}"));
        match timeout(CONNECT_TIMEOUT + SILENCE_MAX, request.send()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(fail(words(&error.without_url()))),
            Err(_) => Err(fail(format!("no answer within {:?}", CONNECT_TIMEOUT + SILENCE_MAX))),
        }
    }

    /// What an answer without success means. Keys that expired are read again, for the next request.
    async fn refused(&self, mut answer: Response) -> ClientError {
        let status = answer.status();
        let code = code_of(&body_of(&mut answer, SMALL_BODY_BYTES_MAX).await.unwrap_or_default());
        let words = format!("the store answers {status} {code}");
        let words = words.trim_end();
        if matches!(code.as_str(), "ExpiredToken" | "TokenRefreshRequired") && self.signer.reload() {
            return ClientError::Unavailable(format!("{words}: the credentials were read again"));
        }
        match status.as_u16() {
            401 | 403 => ClientError::Refused(format!(
                "{words}: check this client's own credentials ({})",
                self.signer.key_hint()
            )),
            _ => ClientError::Unavailable(words.to_owned()),
        }
    }

    /// `None` if the store says that there is no such object, and not that there is no such bucket.
    async fn present(&self, answer: Response, verb: Verb, key: &str) -> Result<Option<Response>, ClientError> {
        if answer.status().is_success() {
            return Ok(Some(answer));
        }
        let is_reading = matches!(verb, Verb::Get | Verb::Head);
        if answer.status() == StatusCode::FORBIDDEN && self.absence == Absence::Listed && is_reading {
            let name = self.name(key)?;
            if let Ok(list) = self.listed(&name, 1, None).await
                && list.says_absent(&name)
            {
                return Ok(None);
            }
        }
        if answer.status() != StatusCode::NOT_FOUND {
            return Err(self.refused(answer).await);
        }
        let mut answer = answer;
        let body = body_of(&mut answer, SMALL_BODY_BYTES_MAX).await.unwrap_or_default();
        let code = code_of(&body);
        // The answer to a HEAD has no body to tell.
        if verb == Verb::Head || matches!(code.as_str(), "NoSuchKey" | "NotFound") {
            return Ok(None);
        }
        Err(ClientError::Unavailable(format!("the store answers 404 {code}: are endpoint and bucket right?")))
    }
}

/// What a GET or HEAD of the store says.
fn stored(headers: &HeaderMap) -> Result<Stored, ClientError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let broken = |what: &str| ClientError::Unavailable(format!("the store sends an object without {what}"));
    let len_bytes = text("content-length").and_then(|length| length.parse().ok()).ok_or_else(|| broken("a length"))?;
    let etag = match text(DIGEST_HEADER).filter(|digest| super::answer::digest_of(digest).is_some()) {
        Some(digest) => digest.to_owned(),
        None => {
            let etag = text("etag").ok_or_else(|| broken("an ETag"))?;
            format!("o-{}", etag.trim_start_matches("W/").trim_matches('"'))
        }
    };
    Ok(Stored { etag, len_bytes })
}

/// Nothing is given out that does not match what is known of it.
fn verify(key: &str, stored: &Stored, crc32c: Option<u32>, body: &Bytes) -> Result<(), ClientError> {
    let corrupt = |what: &str| Err(ClientError::Corrupt(format!("{key} in the store: {what}")));
    if body.len() as u64 != stored.len_bytes {
        return corrupt("another length than announced");
    }
    if let Some(digest) = super::answer::digest_of(&stored.etag)
        && XxHash3_128::oneshot(body) != digest
    {
        return corrupt("other bytes than were stored");
    }
    if let Some(crc32c) = crc32c
        && checksum(CrcAlgorithm::Crc32Iscsi, body) != u64::from(crc32c)
    {
        return corrupt("other bytes than the store's CRC-32C says");
    }
    Ok(())
}

/// The checksum of the whole object; a composite one (`…-3`, of a multipart upload) is none.
fn crc32c_of(headers: &HeaderMap) -> Option<u32> {
    let decoded = STANDARD.decode(headers.get(CRC32C_HEADER)?.to_str().ok()?).ok()?;
    Some(u32::from_be_bytes(decoded.try_into().ok()?))
}

async fn body_of(answer: &mut Response, bytes_max: usize) -> Result<Bytes, ClientError> {
    let fail = |words: String| ClientError::Unavailable(format!("the store: {words}"));
    let mut body = Vec::with_capacity(bytes_max.min(1 << 20));
    loop {
        match timeout(SILENCE_MAX, answer.chunk()).await {
            Ok(Ok(Some(bytes))) if body.len() + bytes.len() <= bytes_max => body.extend_from_slice(&bytes),
            Ok(Ok(Some(_))) => return Err(fail("a body that is longer than announced".to_owned())),
            Ok(Ok(None)) => return Ok(body.into()),
            Ok(Err(error)) => return Err(fail(words(&error.without_url()))),
            Err(_) => return Err(fail(format!("silent for {SILENCE_MAX:?}"))),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ErrorDocument {
    code: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListDocument {
    #[serde(default)]
    contents: Vec<ListItem>,
    #[serde(default)]
    encoding_type: Option<String>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_continuation_token: Option<String>,
}

impl ListDocument {
    /// Whether a list of what begins with `name` proves that there is nothing of this very name. A name comes before all that begin with it, so one entry decides;
    /// an empty part of a list that goes on, and an entry that was not asked for (a name that lost its blanks, a store that lists in another way), prove nothing.
    fn says_absent(&self, name: &str) -> bool {
        match self.contents.first() {
            Some(first) => first.key.len() > name.len() && first.key.starts_with(name),
            None => !self.is_truncated,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListItem {
    key: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    last_modified: String,
}

fn code_of(body: &[u8]) -> String {
    quick_xml::de::from_str::<ErrorDocument>(&String::from_utf8_lossy(body)).unwrap_or_default().code
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_match_is_not_given_out() {
        let body = Bytes::from_static(b"some bytes");
        let etag = format!("{:032x}", XxHash3_128::oneshot(&body));
        let right = Stored { etag, len_bytes: 10 };
        let crc = u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, &body)).unwrap();
        assert!(verify("k", &right, Some(crc), &body).is_ok());
        let foreign = Stored { etag: "o-abc".to_owned(), len_bytes: 10 };
        assert!(verify("k", &foreign, None, &body).is_ok());
        let other = Bytes::from_static(b"some bytez");
        for (stored, crc, body) in
            [(&right, None, &other), (&foreign, Some(crc), &other), (&right, Some(crc), &body.slice(1..))]
        {
            assert!(matches!(verify("k", stored, crc, body), Err(ClientError::Corrupt(_))));
        }
    }

    #[test]
    fn a_list_is_read_as_stores_write_it() {
        let text = "<?xml version=\"1.0\"?><ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated>\
                    <NextContinuationToken>t</NextContinuationToken><Contents><Key>p/a%20b</Key><LastModified>2026</LastModified>\
                    <Size>7</Size></Contents><Contents><Key>p/c</Key><Size>0</Size></Contents></ListBucketResult>";
        let list: ListDocument = quick_xml::de::from_str(text).unwrap();
        assert_eq!((list.contents.len(), list.contents[0].size, list.is_truncated), (2, 7, true));
        assert_eq!(list.next_continuation_token.as_deref(), Some("t"));
        assert_eq!(code_of(b"<Error><Code>NoSuchKey</Code><Message>m</Message></Error>"), "NoSuchKey");
        assert_eq!(code_of(b"nonsense"), "");
    }

    #[test]
    fn a_list_of_one_name_says_absent_only_if_it_is_certain() {
        let says_absent = |inside: &str| {
            let text = format!("<ListBucketResult>{inside}</ListBucketResult>");
            quick_xml::de::from_str::<ListDocument>(&text).unwrap().says_absent("v/a ")
        };
        let entry = |key: &str| format!("<IsTruncated>true</IsTruncated><Contents><Key>{key}</Key></Contents>");
        assert!(says_absent("<IsTruncated>false</IsTruncated>") && says_absent(&entry("v/a b")));
        assert!(!says_absent("<IsTruncated>true</IsTruncated>"), "the list goes on");
        for present in ["v/a ", "v/a", "v/"] {
            assert!(!says_absent(&entry(present)), "{present:?}");
        }
    }
}
