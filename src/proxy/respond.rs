//! From outcomes to answers: the one map to status, headers and log level.
//!
//! Called by `handler`. A [`Failure`] is any answer that is a problem (RFC 9457); successes are built here too, so that
//! every header Forebay sends is named in this file. Header values that never change are made once.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use forebay_shard::origin::{Etag, OriginError, OriginErrorKind};
use forebay_shard::outcome::{Declined, DeclinedReason, Durability, FillRole};
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tracing::Level;

use crate::lease::{LEASE_HEADER, SPREAD_HEADER};
use crate::problem::{Problem, TYPE_PREFIX};
use crate::proxy::conditions::etag_value;
use crate::proxy::request::BadKey;
use crate::token::Refusal;

/// `Cache-Status` (RFC 9211).
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// How many cores a request crossed.
pub const FOREBAY_HOPS: HeaderName = HeaderName::from_static("forebay-hops");
/// What an acknowledgement promises.
pub const FOREBAY_DURABILITY: HeaderName = HeaderName::from_static("forebay-durability");
/// A lease of a hot block, and among how many members a client that has one chose.
pub const FOREBAY_LEASE: HeaderName = HeaderName::from_static(LEASE_HEADER);
/// As [`FOREBAY_LEASE`].
pub const FOREBAY_SPREAD: HeaderName = HeaderName::from_static(SPREAD_HEADER);
/// A request's id, also in the logs.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What took how long inside the node.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Room for every header of a block's answer, so that the table is allocated once.
const HEADERS: usize = 14;

/// Where a block's answer came from, for `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The memory tier.
    Memory,
    /// The disk.
    Disk,
    /// A HEAD that this node could answer alone.
    Cache,
    /// A block that the origin does not have yet: clients ask for it before they believe that there is none, and prefer no other member's.
    Dirty,
    /// A fill.
    Fill(FillRole),
    /// The origin was asked and nothing was stored.
    Origin,
    /// The origin, and the member that may know better gave no answer.
    Unasked,
    /// Another member, which alone has it.
    Member,
}

impl Source {
    fn cache_status(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Source::Memory => "forebay; hit; detail=memory",
            Source::Disk => "forebay; hit; detail=disk",
            Source::Cache => "forebay; hit",
            Source::Dirty => "forebay; hit; detail=dirty",
            Source::Fill(FillRole::Began) => "forebay; fwd=miss; stored",
            Source::Fill(FillRole::Joined) => "forebay; fwd=miss; collapsed",
            Source::Origin => "forebay; fwd=miss",
            Source::Unasked => "forebay; fwd=miss; detail=holder-unasked",
            Source::Member => "forebay; fwd=miss; detail=member",
        })
    }
}

/// An answer that is a problem.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong, for machines.
    pub problem: Problem,
    /// What is wrong this time, for people. No secrets.
    pub detail: Cow<'static, str>,
    retry_after: Option<Duration>,
    header: Option<(HeaderName, HeaderValue)>,
    /// Why a token was refused.
    pub refusal: Option<Refusal>,
}

impl Failure {
    /// A problem with its explanation.
    pub fn new(problem: Problem, detail: impl Into<Cow<'static, str>>) -> Failure {
        Failure { problem, detail: detail.into(), retry_after: None, header: None, refusal: None }
    }

    /// The path takes other methods.
    #[must_use]
    pub fn method(allowed: &'static str) -> Failure {
        let header = Some((ALLOW, HeaderValue::from_static(allowed)));
        Failure { header, ..Failure::new(Problem::MethodNotAllowed, format!("it takes {allowed}")) }
    }

    /// The range is not inside a block of `len_bytes`.
    #[must_use]
    pub fn range(len_bytes: u64) -> Failure {
        let value = HeaderValue::from_str(&format!("bytes */{len_bytes}")).expect("digits are visible ASCII");
        let detail = format!("the block has {len_bytes} bytes");
        Failure { header: Some((CONTENT_RANGE, value)), ..Failure::new(Problem::BadRange, detail) }
    }

    /// The same, to be tried again after `pause`.
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Failure {
        Failure { retry_after: Some(pause), ..self }
    }

    /// How loud this is in the logs: clients' mistakes are quiet, ours are not.
    #[must_use]
    pub fn level(&self) -> Level {
        match self.problem {
            Problem::Internal | Problem::BlockLost | Problem::DiskFault | Problem::OriginCorrupt => Level::ERROR,
            // Probes ask until it is; that is no news.
            Problem::NotReady => Level::DEBUG,
            problem if problem.status() == StatusCode::SERVICE_UNAVAILABLE => Level::INFO,
            problem if problem.status().is_server_error() => Level::WARN,
            _ => Level::DEBUG,
        }
    }

    /// Headers and body of the answer.
    #[must_use]
    pub fn into_response(self, request_id: &str) -> Response<Bytes> {
        let status = self.problem.status();
        let body = serde_json::json!({
            "type": format!("{TYPE_PREFIX}{}", self.problem.slug()),
            "title": self.problem.title(),
            "status": status.as_u16(),
            "detail": self.detail,
            "instance": format!("urn:forebay:request:{request_id}"),
        });
        let mut response = response(status, Bytes::from(body.to_string()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(pause) = self.retry_after {
            // Whole seconds, rounded up: too early is declined again.
            let seconds = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        response
    }
}

impl From<BadKey> for Failure {
    fn from(bad: BadKey) -> Failure {
        Failure::new(Problem::BadKey, bad.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let (problem, challenge) = match refusal {
            // RFC 6750, section 3.1: no error code where there was no token.
            Refusal::Missing => (Problem::Unauthorized, "Bearer realm=\"forebay\""),
            Refusal::WrongVolume | Refusal::ReadOnly => {
                (Problem::Forbidden, "Bearer realm=\"forebay\", error=\"insufficient_scope\"")
            }
            Refusal::Malformed
            | Refusal::UnknownKey
            | Refusal::BadSignature
            | Refusal::Expired
            | Refusal::Revoked
            | Refusal::NotYetValid => (Problem::Unauthorized, "Bearer realm=\"forebay\", error=\"invalid_token\""),
        };
        let header = Some((WWW_AUTHENTICATE, HeaderValue::from_static(challenge)));
        Failure { header, refusal: Some(refusal), ..Failure::new(problem, refusal.to_string()) }
    }
}

impl From<Declined> for Failure {
    fn from(declined: Declined) -> Failure {
        let problem = match declined.reason {
            DeclinedReason::DirtyFull => Problem::DirtyFull,
            DeclinedReason::DiskFull => Problem::DiskFull,
            DeclinedReason::FillsFull => Problem::FillsFull,
            DeclinedReason::DiskFault => Problem::DiskFault,
            DeclinedReason::QueueFull => Problem::QueueFull,
            DeclinedReason::Stopping => Problem::Stopping,
            DeclinedReason::Unsettled => Problem::BlockUnsettled,
        };
        Failure::new(problem, "nothing was done: try again later").retry_after(declined.retry_after)
    }
}

impl From<OriginError> for Failure {
    fn from(error: OriginError) -> Failure {
        // How long it takes until another try has a chance, where the origin did not say.
        let (problem, seconds) = match error.kind {
            OriginErrorKind::Unreachable => (Problem::OriginUnreachable, 5),
            OriginErrorKind::Timeout => (Problem::OriginTimeout, 5),
            OriginErrorKind::Unavailable => (Problem::OriginUnavailable, 5),
            OriginErrorKind::Denied => (Problem::OriginDenied, 30),
            OriginErrorKind::NoBucket => (Problem::OriginNoBucket, 60),
            OriginErrorKind::Corrupt => (Problem::OriginCorrupt, 30),
            OriginErrorKind::TooLarge => (Problem::OriginTooLarge, 60),
            OriginErrorKind::Busy => (Problem::OriginBusy, 1),
            OriginErrorKind::Protocol => (Problem::OriginProtocol, 30),
        };
        let pause = error.retry_after.unwrap_or(Duration::from_secs(seconds));
        Failure::new(problem, error.detail.to_string()).retry_after(pause)
    }
}

/// An answer with room for its headers.
pub fn response<B>(status: StatusCode, body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().reserve(HEADERS);
    response
}

/// What a GET or HEAD answers: all of a block, a part of it, or nothing new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockHead {
    /// The block's ETag.
    pub etag: Etag,
    /// The block's length in bytes.
    pub len_bytes: u64,
    /// Where it came from.
    pub source: Source,
}

/// The head of a GET's answer: 200, or 206 for `part`.
pub fn block_response<B>(head: &BlockHead, part: Option<&Range<u64>>, body: B) -> Response<B> {
    let status = if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = response(status, body);
    let headers = response.headers_mut();
    if let Some(part) = part {
        let value = format!("bytes {}-{}/{}", part.start, part.end - 1, head.len_bytes);
        headers.insert(CONTENT_RANGE, HeaderValue::from_str(&value).expect("digits are visible ASCII"));
    }
    let body_bytes = part.map_or(head.len_bytes, |part| part.end - part.start);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body_bytes));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ETAG, etag_value(&head.etag));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_STATUS, head.source.cache_status());
    response
}

/// The client has this block already.
pub fn not_modified<B>(head: &BlockHead, body: B) -> Response<B> {
    let mut response = response(StatusCode::NOT_MODIFIED, body);
    response.headers_mut().insert(ETAG, etag_value(&head.etag));
    response.headers_mut().insert(CACHE_STATUS, head.source.cache_status());
    response
}

/// What an acknowledgement promises, as a header.
#[must_use]
pub fn durability_value(durability: Durability) -> HeaderValue {
    HeaderValue::from_static(match durability {
        Durability::Disk => "disk",
        Durability::Origin => "origin",
    })
}

/// `Server-Timing`: the time inside the node until the answer's head was ready.
#[must_use]
pub fn server_timing(took: Duration) -> HeaderValue {
    let mut text = ShortText::default();
    write!(text, "node;dur={}.{:03}", took.as_millis(), took.as_micros() % 1_000).expect("it fits");
    text.value()
}

/// Header text that is put together without the heap.
pub struct ShortText {
    bytes: [u8; 48],
    len: usize,
}

impl Default for ShortText {
    fn default() -> ShortText {
        ShortText { bytes: [0; 48], len: 0 }
    }
}

impl ShortText {
    /// As a header's value.
    ///
    /// # Panics
    /// If something else than visible ASCII was written.
    #[must_use]
    pub fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.bytes[..self.len]).expect("only visible ASCII is written")
    }
}

impl std::fmt::Write for ShortText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_carries_its_type_and_what_the_status_demands() {
        let declined = Declined { reason: DeclinedReason::DirtyFull, retry_after: Duration::from_millis(1_200) };
        let response = Failure::from(declined).into_response("id");
        assert_eq!(
            (response.status(), &response.headers()[RETRY_AFTER]),
            (StatusCode::SERVICE_UNAVAILABLE, &HeaderValue::from(2))
        );
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!((&body["type"], &body["status"]), (&"urn:forebay:problem:dirty-full".into(), &503.into()));
        assert_eq!(Failure::method("GET").into_response("id").headers()[ALLOW], "GET");
        assert_eq!(Failure::range(7).into_response("id").headers()[CONTENT_RANGE], "bytes */7");
        let unauthorized = Failure::from(Refusal::Expired).into_response("id");
        assert_eq!(unauthorized.status(), StatusCode::UNAUTHORIZED);
        assert!(unauthorized.headers()[WWW_AUTHENTICATE].to_str().unwrap().contains("invalid_token"));
        assert_eq!(Failure::from(Refusal::ReadOnly).into_response("id").status(), StatusCode::FORBIDDEN);
        let late = Failure::from(OriginError::new(OriginErrorKind::Timeout, "no answer")).into_response("id");
        assert_eq!((late.status(), &late.headers()[RETRY_AFTER]), (StatusCode::GATEWAY_TIMEOUT, &HeaderValue::from(5)));
    }

    #[test]
    fn a_part_says_which() {
        let head = BlockHead { etag: Etag::Origin("x".into()), len_bytes: 10, source: Source::Memory };
        let part = block_response(&head, Some(&(2..5)), ());
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(
            (&part.headers()[CONTENT_RANGE], &part.headers()[CONTENT_LENGTH]),
            (&"bytes 2-4/10".parse().unwrap(), &"3".parse().unwrap())
        );
        assert_eq!(block_response(&head, None, ()).headers()[CACHE_STATUS], "forebay; hit; detail=memory");
        assert_eq!(server_timing(Duration::from_micros(12_034)), "node;dur=12.034");
        let longest = server_timing(Duration::from_secs(u64::MAX / 1_000));
        assert!(longest.to_str().unwrap().starts_with("node;dur="));
    }
}
