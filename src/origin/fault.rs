//! What a store's refusal means: the kind of error, whether the request may have taken effect, and the fix in words.
//!
//! Called by `s3` for every answer that is no success and for every failure of the transport. The words end up in
//! logs, status and problem details: they name keys of the configuration, never secrets or signed URLs.

use std::error::Error;
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_shard::origin::{OriginError, OriginErrorKind};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;

use super::settings::StoreSettings;
use super::sign::{Signer, Verb};

/// A clock that is off by more is named as the reason of a refusal.
const SKEW_NAMED: Duration = Duration::from_secs(300);

/// The store's own words are cut here.
const MESSAGE_CHARS_MAX: usize = 200;

/// Whether a failed request may have taken effect at the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Certainly not, or so that a conditional retry finds out.
    None,
    /// Its condition failed: something is there.
    ConditionFailed,
    /// The keys expired: nothing happened, new keys may help.
    Expired,
    /// Nobody knows: it was sent and not answered.
    Unknown,
}

/// A failed attempt.
#[derive(Debug)]
pub struct Fault {
    /// What the asker gets if this was the last attempt.
    pub error: OriginError,
    /// For stores: what must be settled first.
    pub effect: Effect,
}

/// An answer that is no success.
pub struct Refusal<'a> {
    /// What was asked.
    pub verb: Verb,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, perhaps cut; empty for HEAD.
    pub body: &'a str,
}

/// The `<Error>` document.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ErrorBody {
    code: String,
    message: String,
    region: Option<String>,
    endpoint: Option<String>,
}

impl Refusal<'_> {
    /// Whether the store says that there is no such object (and not that there is no such bucket).
    pub fn is_absent(&self) -> bool {
        if self.status != StatusCode::NOT_FOUND {
            return false;
        }
        // The answer to a HEAD has no body to tell; the check at start has seen the bucket.
        self.verb == Verb::Head || matches!(self.document().code.as_str(), "NoSuchKey" | "NotFound")
    }

    /// What it means.
    pub fn fault(&self, settings: &StoreSettings, signer: &Signer) -> Fault {
        let document = self.document();
        let (kind, mut detail) = self.explain(&document, settings, signer);
        let effect = match (self.status.as_u16(), document.code.as_str()) {
            (412, _) | (409, "ConditionalRequestConflict") => Effect::ConditionFailed,
            (_, "ExpiredToken" | "TokenRefreshRequired") => Effect::Expired,
            (500 | 502 | 504, _) => Effect::Unknown,
            _ => Effect::None,
        };
        let _ = write!(detail, " [store `{}`: {}", settings.name, self.status.as_u16());
        for words in [&document.code, &document.message].into_iter().filter(|words| !words.is_empty()) {
            let _ = write!(detail, " {}", printable(words));
        }
        detail.push(']');
        let mut error = OriginError::new(kind, detail);
        error.retry_after = retry_after(self.headers);
        Fault { error, effect }
    }

    fn document(&self) -> ErrorBody {
        quick_xml::de::from_str(self.body).unwrap_or_default()
    }

    fn explain(&self, document: &ErrorBody, settings: &StoreSettings, signer: &Signer) -> (OriginErrorKind, String) {
        use OriginErrorKind::{Corrupt, Denied, NoBucket, Protocol, Timeout, TooLarge, Unavailable};
        let StoreSettings { bucket, endpoint, .. } = settings;
        let keys = signer.key_hint();
        if let Some(detail) = self.wrong_region(document, settings) {
            return (Denied, detail);
        }
        if let Some(detail) = self.wrong_clock(document) {
            return (Denied, detail);
        }
        match (self.status.as_u16(), document.code.as_str()) {
            (_, "SignatureDoesNotMatch") => (
                Denied,
                format!("the secret key that goes with access key {keys} is wrong: check the store's `credentials`"),
            ),
            (_, "InvalidAccessKeyId" | "NotSignedUp") => {
                (Denied, format!("the service does not know access key {keys}: check the store's `credentials`"))
            }
            (_, "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken") => {
                (Denied, format!("the session token of access key {keys} expired: renew the store's `credentials`"))
            }
            (_, "NoSuchBucket") => (
                NoBucket,
                format!("there is no bucket `{bucket}` at {endpoint}: create it or correct the store's `bucket`"),
            ),
            (401 | 403, _) => (
                Denied,
                format!(
                    "access key {keys} may not do this in bucket `{bucket}`: allow s3:{} (and s3:ListBucket: without it \
                     a missing object looks forbidden)",
                    action(self.verb)
                ),
            ),
            (409 | 412, _) => (Unavailable, "another request for the same key is under way".to_owned()),
            (404, _) => (Protocol, format!("404 without S3's words: is {endpoint} an S3 endpoint?")),
            (400, "RequestTimeout") => (Timeout, "the store got the body too slowly".to_owned()),
            (400, "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch") => {
                (Corrupt, "the store received other bytes than were sent".to_owned())
            }
            (413, _) | (_, "EntityTooLarge") => (TooLarge, "too large for the store".to_owned()),
            (501, _) => (Protocol, "the store does not know conditional stores or another feature".to_owned()),
            (429 | 500..=599, _) => (Unavailable, "the store is overloaded or failing".to_owned()),
            _ => (Protocol, "an answer that was not expected".to_owned()),
        }
    }

    fn wrong_region(&self, document: &ErrorBody, settings: &StoreSettings) -> Option<String> {
        let redirected = self.status.is_redirection();
        let refused = matches!(
            document.code.as_str(),
            "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError" | "IllegalLocationConstraintException"
        );
        let told = self.headers.get("x-amz-bucket-region").and_then(|value| value.to_str().ok());
        let region = told
            .or(document.region.as_deref())
            .or_else(|| document.message.split("expecting '").nth(1)?.split('\'').next())
            .map(printable)
            .filter(|region| *region != settings.region);
        match (region, &document.endpoint) {
            (Some(region), _) if redirected || refused || self.status == StatusCode::BAD_REQUEST => Some(format!(
                "wrong region: the bucket `{}` is in `{region}`, the store's `region` says `{}`",
                settings.bucket, settings.region
            )),
            (_, Some(endpoint)) if redirected => Some(format!(
                "the bucket `{}` lives at {}: set the store's `endpoint` to it",
                settings.bucket,
                printable(endpoint)
            )),
            _ if redirected => {
                Some(format!("{} redirects elsewhere: correct the store's `endpoint` or `region`", settings.endpoint))
            }
            _ => None,
        }
    }

    fn wrong_clock(&self, document: &ErrorBody) -> Option<String> {
        let refused = document.code == "RequestTimeTooSkewed" || document.message.contains("has expired");
        let denied = matches!(self.status.as_u16(), 400 | 401 | 403);
        let date = self.headers.get(header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let skew = date.map(|theirs| match theirs.duration_since(SystemTime::now()) {
            Ok(behind) => (behind, "behind"),
            Err(ahead) => (ahead.duration(), "ahead of"),
        });
        match skew {
            Some((skew, side)) if denied && (refused || skew > SKEW_NAMED) => Some(format!(
                "this machine's clock is {} s {side} the store's: set it by NTP (S3 takes at most 900 s)",
                skew.as_secs()
            )),
            None if refused => {
                Some("this machine's clock is more than 900 s off the store's: set it by NTP".to_owned())
            }
            _ => None,
        }
    }
}

/// A failure before there was an answer.
pub fn transport(error: reqwest::Error, settings: &StoreSettings) -> Fault {
    use OriginErrorKind::{Timeout, Unreachable};
    let sent = !error.is_connect();
    let error = error.without_url();
    let endpoint = &settings.endpoint;
    let words = chain(&error);
    let refused = io_kind(&error) == Some(io::ErrorKind::ConnectionRefused);
    let (kind, detail) = if error.is_timeout() {
        (Timeout, format!("no connection to {endpoint} within {:?}: is it reachable?", settings.connect_timeout))
    } else if refused {
        (Unreachable, format!("{endpoint} refused the connection: is `endpoint` right and the service running?"))
    } else if words.contains("dns error") {
        (Unreachable, format!("the host of {endpoint} can't be found: correct the store's `endpoint` ({words})"))
    } else if words.contains("certificate") {
        (
            Unreachable,
            format!("{endpoint} is not trusted ({words}): set the store's `ca` to the PEM file of its authority"),
        )
    } else {
        (Unreachable, format!("{endpoint}: {words}"))
    };
    let detail = format!("{detail} [store `{}`]", settings.name);
    Fault { error: OriginError::new(kind, detail), effect: if sent { Effect::Unknown } else { Effect::None } }
}

/// The store said nothing for too long.
pub fn silent(settings: &StoreSettings, waited: Duration) -> Fault {
    let detail = format!("{} said nothing for {waited:?} [store `{}`]", settings.endpoint, settings.name);
    Fault { error: OriginError::new(OriginErrorKind::Timeout, detail), effect: Effect::Unknown }
}

/// An answer that breaks the protocol.
pub fn broken(kind: OriginErrorKind, settings: &StoreSettings, words: &str) -> OriginError {
    OriginError::new(kind, Arc::from(format!("{words} [store `{}`]", settings.name)))
}

fn action(verb: Verb) -> &'static str {
    match verb {
        Verb::Get | Verb::Head => "GetObject",
        Verb::Put => "PutObject",
        Verb::Delete => "DeleteObject",
        Verb::List => "ListBucket",
    }
}

/// Seconds only: the date form of Retry-After is not used by object stores.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn printable(words: &str) -> String {
    words.chars().take(MESSAGE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(words, ": {error}");
        source = error.source();
    }
    printable(&words)
}

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}
