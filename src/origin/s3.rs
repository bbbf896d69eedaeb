//! One attempt of one request to a store: sign, send, judge the answer. The only file that knows reqwest.
//!
//! Called by `fetch`, `store` and `check`, which add retries and meaning. Each attempt has deadlines: on the
//! connection, on the first byte of the answer, and on progress of a body, in both directions.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use forebay_io::checksum::Digest;
use forebay_shard::origin::{Etag, OriginError, OriginErrorKind, OriginMeta, Store};
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use reqwest::{Client, Response};

use super::fault::{Effect, Fault, Refusal, broken, silent, transport};
use super::retry::RetryBudget;
use super::settings::StoreSettings;
use super::sign::{SignedHeader, Signer, SignerError, Verb};
use super::stats::Counters;

/// Our digest of the content, as user metadata.
const DIGEST_HEADER: &str = "x-amz-meta-forebay-digest";
/// The store's checksum of the content, big-endian in base64.
const CRC32C_HEADER: &str = "x-amz-checksum-crc32c";
/// An error document is cut here.
const ERROR_BODY_BYTES_MAX: usize = 16 << 10;

/// Why a store can't be used at all; each names the key to fix.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Endpoint or credentials.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The `ca` file.
    #[error("`ca = \"{path}\"`: {reason}")]
    Ca {
        /// As configured.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The TLS part of the HTTP client.
    #[error("the HTTP client can't be set up: {0}")]
    Http(String),
}

/// What all threads share about one store.
pub struct StoreShared {
    /// As configured.
    pub settings: StoreSettings,
    /// Signs.
    pub signer: Signer,
    /// Bounds retries.
    pub budget: RetryBudget,
    /// Counts.
    pub counters: Arc<Counters>,
}

/// The connections of one thread to one store.
pub struct S3Client {
    http: Client,
    /// What all threads share.
    pub store: Arc<StoreShared>,
}

/// A GET whose headers are known.
pub struct Got {
    /// The rest.
    pub response: Response,
    /// Length and ETag.
    pub meta: OriginMeta,
    /// The store's own checksum of the whole, if it sent one.
    pub crc32c: Option<u32>,
}

impl S3Client {
    /// A client with connections of its own.
    ///
    /// # Errors
    /// [`ClientError`]: the `ca` file, or no TLS roots on this machine.
    pub fn new(store: Arc<StoreShared>) -> Result<S3Client, ClientError> {
        let settings = &store.settings;
        let mut builder = Client::builder()
            .http1_only()
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(concat!("forebay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(settings.concurrency);
        if let Some(path) = &settings.ca {
            let ca_error = |reason: String| ClientError::Ca { path: path.display().to_string(), reason };
            let pem = std::fs::read(path).map_err(|error| ca_error(error.to_string()))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| ca_error(error.to_string()))?;
            builder = builder.tls_certs_merge(certificates);
        } else if settings.endpoint.starts_with("http://") {
            // No TLS will be spoken: then a machine without system certificates must do.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&settings.endpoint) {
            // HTTP_PROXY is for the world outside.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| ClientError::Http(error.to_string()))?;
        Ok(S3Client { http, store })
    }

    /// The store's settings.
    pub fn settings(&self) -> &StoreSettings {
        &self.store.settings
    }

    /// Begins a GET; `None`: there is no such object.
    pub async fn get(&self, name: &str) -> Result<Option<Got>, Fault> {
        let headers = vec![("x-amz-checksum-mode", "ENABLED".to_owned())];
        let answer = self.send(Verb::Get, name, headers, None).await?;
        let Some(response) = self.present(Verb::Get, answer).await? else { return Ok(None) };
        let meta = self.meta(response.headers()).map_err(certain)?;
        let crc32c = crc32c_of(response.headers());
        Ok(Some(Got { response, meta, crc32c }))
    }

    /// Asks about an object; `None`: there is none.
    pub async fn head(&self, name: &str) -> Result<Option<OriginMeta>, Fault> {
        let answer = self.send(Verb::Head, name, Vec::new(), None).await?;
        let Some(response) = self.present(Verb::Head, answer).await? else { return Ok(None) };
        self.meta(response.headers()).map(Some).map_err(certain)
    }

    /// Stores if nothing is there. A failed condition is a fault with [`Effect::ConditionFailed`].
    pub async fn put(&self, name: &str, store: &Store) -> Result<(), Fault> {
        let mut crc = Crc::new(CrcAlgorithm::Crc32Iscsi);
        store.frames.iter().for_each(|frame| crc.update(frame));
        let crc32c = u32::try_from(crc.finalize()).expect("a CRC-32C has 32 bits");
        let headers = vec![
            ("if-none-match", "*".to_owned()),
            (CRC32C_HEADER, STANDARD.encode(crc32c.to_be_bytes())),
            (DIGEST_HEADER, store.digest.to_hex()),
        ];
        let answer = self.send(Verb::Put, name, headers, Some(store)).await?;
        if answer.status().is_success() { Ok(()) } else { Err(self.refused(Verb::Put, answer).await.1) }
    }

    /// Deletes; that nothing was there is success.
    pub async fn delete(&self, name: &str) -> Result<(), Fault> {
        let answer = self.send(Verb::Delete, name, Vec::new(), None).await?;
        self.present(Verb::Delete, answer).await.map(drop)
    }

    /// Lists at most one key of `prefix`: credentials, region, clock and bucket are right if this succeeds.
    pub async fn list(&self, prefix: &str) -> Result<(), Fault> {
        let answer = self.send(Verb::List, prefix, Vec::new(), None).await?;
        if answer.status().is_success() { Ok(()) } else { Err(self.refused(Verb::List, answer).await.1) }
    }

    async fn send(
        &self,
        verb: Verb,
        name: &str,
        headers: Vec<SignedHeader>,
        store: Option<&Store>,
    ) -> Result<Response, Fault> {
        let settings = self.settings();
        let url = self.store.signer.url(verb, name, &headers);
        let mut request = self.http.request(verb.method(), url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let sent = Arc::new(AtomicU64::new(0));
        if let Some(store) = store {
            let body = FramesBody::new(store, Arc::clone(&sent));
            request = request.header(header::CONTENT_LENGTH, store.len_bytes).body(reqwest::Body::wrap(body));
        }
        self.store.counters.requested(verb);
        let mut answer = std::pin::pin!(request.send());
        let mut sent_before = 0;
        let mut limit = settings.connect_timeout + settings.read_timeout;
        loop {
            match tokio::time::timeout(limit, &mut answer).await {
                Ok(answer) => return answer.map_err(|error| transport(error, settings)),
                Err(_) => {
                    let sent_now = sent.load(Ordering::Relaxed);
                    if sent_now == sent_before {
                        return Err(silent(settings, limit));
                    }
                    (sent_before, limit) = (sent_now, settings.read_timeout);
                }
            }
        }
    }

    /// The successful answer, or `None` if the store says that there is no such object.
    async fn present(&self, verb: Verb, answer: Response) -> Result<Option<Response>, Fault> {
        if answer.status().is_success() {
            return Ok(Some(answer));
        }
        let (is_absent, fault) = self.refused(verb, answer).await;
        if is_absent { Ok(None) } else { Err(fault) }
    }

    /// What an answer without success says: whether the object is absent, and else the fault.
    async fn refused(&self, verb: Verb, mut answer: Response) -> (bool, Fault) {
        let mut body = Vec::new();
        while body.len() < ERROR_BODY_BYTES_MAX {
            // An error document that does not come is an error all the same: the status says enough.
            match tokio::time::timeout(self.settings().read_timeout, answer.chunk()).await {
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
                _ => break,
            }
        }
        body.truncate(ERROR_BODY_BYTES_MAX);
        let body = String::from_utf8_lossy(&body);
        let refusal = Refusal { verb, status: answer.status(), headers: answer.headers(), body: &body };
        (refusal.is_absent(), refusal.fault(self.settings(), &self.store.signer))
    }

    fn meta(&self, headers: &HeaderMap) -> Result<OriginMeta, OriginError> {
        let protocol = |words: &str| broken(OriginErrorKind::Protocol, self.settings(), words);
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let len_bytes = text("content-length")
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| protocol("an object without a Content-Length"))?;
        let etag = match text(DIGEST_HEADER).and_then(Digest::from_hex) {
            Some(digest) => Etag::Digest(digest),
            None => {
                let etag = text("etag").ok_or_else(|| protocol("an object without an ETag"))?;
                Etag::Origin(etag.trim_start_matches("W/").trim_matches('"').into())
            }
        };
        Ok(OriginMeta { len_bytes, etag })
    }
}

fn certain(error: OriginError) -> Fault {
    Fault { error, effect: Effect::None }
}

/// The checksum of the whole object; a composite one (`…-3`, of a multipart upload) is none.
fn crc32c_of(headers: &HeaderMap) -> Option<u32> {
    let decoded = STANDARD.decode(headers.get(CRC32C_HEADER)?.to_str().ok()?).ok()?;
    Some(u32::from_be_bytes(decoded.try_into().ok()?))
}

fn is_loopback(endpoint: &str) -> bool {
    let host = url::Url::parse(endpoint).ok().and_then(|url| url.host().map(|host| host.to_owned()));
    match host {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(addr)) => addr.is_loopback(),
        Some(url::Host::Ipv6(addr)) => addr.is_loopback(),
        None => false,
    }
}

/// The body of a PUT: frames that are there already, their exact length, and how far the store has taken them.
struct FramesBody {
    frames: VecDeque<Bytes>,
    left_bytes: u64,
    sent: Arc<AtomicU64>,
}

impl FramesBody {
    fn new(store: &Store, sent: Arc<AtomicU64>) -> FramesBody {
        let frames: VecDeque<Bytes> = store.frames.iter().filter(|frame| !frame.is_empty()).cloned().collect();
        let left_bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        assert_eq!(left_bytes, store.len_bytes, "a store's frames add up to its length");
        FramesBody { frames, left_bytes, sent }
    }
}

/// A frame is sent in parts of this size, so that progress shows.
const PART_BYTES: usize = 256 << 10;

impl Body for FramesBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(front) = self.frames.front_mut() else { return Poll::Ready(None) };
        let part = front.split_to(front.len().min(PART_BYTES));
        if front.is_empty() {
            self.frames.pop_front();
        }
        self.left_bytes -= part.len() as u64;
        self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}
