//! What a member's answer means, from its status and problem type; and the parts of its head. Pure.
//!
//! Called by `read` and `write`. The rule for reads: an answer that another member may not give is no answer (go on), one about the request itself is final,
//! and a 404 is "absent" only if it says so of the block. Nothing is concluded from a body that was not understood.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use std::time::Duration;

use super::error::ClientError;
use crate::problem::TYPE_PREFIX;

/// A problem document, as far as clients match on it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Said {
    /// `urn:forebay:problem:…`
    #[serde(rename = "type")]
    kind: String,
    title: String,
    detail: String,
}

impl Said {
    /// From a body that may be anything.
    #[must_use]
    pub fn of(body: &Bytes) -> Said {
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// The end of its type; empty if it has none.
    #[must_use]
    pub fn slug(&self) -> &str {
        self.kind.strip_prefix(TYPE_PREFIX).unwrap_or_default()
    }

    /// For people.
    #[must_use]
    pub fn words(&self, status: StatusCode) -> String {
        match (self.title.as_str(), self.detail.as_str()) {
            ("", _) => status.to_string(),
            (title, "") => format!("{title} ({status})"),
            (title, detail) => format!("{title}: {detail} ({status})"),
        }
    }
}

/// What an answer without success means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// This member has no such block, and neither has the store.
    Absent,
    /// This member can't answer now; another may, or this one later.
    Elsewhere(String),
    /// Nobody will say otherwise.
    Final(ClientError),
}

/// What `status` with `said` means for a GET or HEAD.
#[must_use]
pub fn of_read(status: StatusCode, said: &Said) -> Meaning {
    let words = said.words(status);
    match (status.as_u16(), said.slug()) {
        (404, "no-such-block") => Meaning::Absent,
        // A member that does not know the volume yet, or that is none: whatever it says, it does not say that there is no such block.
        (404, _) => Meaning::Elsewhere(words),
        (412, _) => Meaning::Final(ClientError::PreconditionFailed),
        (416, _) => Meaning::Final(ClientError::BadRange(words)),
        // It was acknowledged and is lost: older bytes, or none, must not take its place.
        (_, "block-lost") => Meaning::Final(ClientError::Lost(words)),
        // Too much to do, or of another opinion about whose block it is.
        (421 | 429, _) => Meaning::Elsewhere(words),
        (400..=499, _) => Meaning::Final(ClientError::Refused(words)),
        _ => Meaning::Elsewhere(words),
    }
}

/// What `status` with `said` means for a PUT or DELETE.
#[must_use]
pub fn of_write(status: StatusCode, said: &Said) -> Meaning {
    let words = said.words(status);
    match (status.as_u16(), said.slug()) {
        (409, "key-exists") => Meaning::Final(ClientError::KeyExists),
        (412, _) => Meaning::Final(ClientError::PreconditionFailed),
        (404 | 408 | 421 | 429, _) => Meaning::Elsewhere(words),
        // The body was torn on its way: the same again may arrive.
        (400, "digest-mismatch" | "body-incomplete") => Meaning::Elsewhere(words),
        (400..=499, _) => Meaning::Final(ClientError::Refused(words)),
        _ => Meaning::Elsewhere(words),
    }
}

/// What identifies the bytes of a block, without quotes: 32 hexadecimal digits of the xxh3-128, or `o-` and the store's ETag.
#[must_use]
pub fn etag(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(ETAG)?.to_str().ok()?;
    Some(text.strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// The digest that an ETag is, if it is one.
#[must_use]
pub fn digest_of(etag: &str) -> Option<u128> {
    let is_digest = etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if is_digest { u128::from_str_radix(etag, 16).ok() } else { None }
}

/// The length of the body that follows.
#[must_use]
pub fn body_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// First byte, and length of the whole, of a 206.
#[must_use]
pub fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, whole.parse().ok()?))
}

/// How long to stay away, at most so long.
#[must_use]
pub fn retry_after(headers: &HeaderMap, at_most: Duration) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(at_most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(slug: &str) -> Said {
        Said::of(&Bytes::from(format!(r#"{{"type":"{TYPE_PREFIX}{slug}","title":"t","status":1,"detail":"d"}}"#)))
    }

    #[test]
    fn only_the_block_itself_is_absent() {
        let not_found = StatusCode::NOT_FOUND;
        assert_eq!(of_read(not_found, &said("no-such-block")), Meaning::Absent);
        for other in
            [said("unknown-volume"), said("no-such-path"), Said::default(), Said::of(&Bytes::from_static(b"<html>"))]
        {
            assert!(matches!(of_read(not_found, &other), Meaning::Elsewhere(_)), "{other:?}");
        }
    }

    #[test]
    fn overload_and_failure_send_a_read_on_and_loss_does_not() {
        for problem in crate::problem::Problem::ALL {
            let meaning = of_read(problem.status(), &said(problem.slug()));
            match problem.slug() {
                "no-such-block" => assert_eq!(meaning, Meaning::Absent),
                "block-lost" => assert!(matches!(meaning, Meaning::Final(ClientError::Lost(_)))),
                _ if problem.status().is_server_error() => {
                    assert!(matches!(meaning, Meaning::Elsewhere(_)), "{problem:?}")
                }
                _ => assert!(meaning != Meaning::Absent, "{problem:?}"),
            }
        }
        for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::MISDIRECTED_REQUEST] {
            assert!(matches!(of_read(status, &Said::default()), Meaning::Elsewhere(_)));
            assert!(matches!(of_write(status, &Said::default()), Meaning::Elsewhere(_)));
        }
        assert!(matches!(of_read(StatusCode::FORBIDDEN, &said("forbidden")), Meaning::Final(ClientError::Refused(_))));
        assert_eq!(of_write(StatusCode::CONFLICT, &said("key-exists")), Meaning::Final(ClientError::KeyExists));
        assert!(matches!(of_write(StatusCode::SERVICE_UNAVAILABLE, &said("dirty-full")), Meaning::Elsewhere(_)));
    }

    #[test]
    fn heads_are_read_as_they_are_written() {
        let headers: HeaderMap = [
            (ETAG, "\"0123456789abcdef0123456789abcdef\""),
            (CONTENT_LENGTH, "3"),
            (CONTENT_RANGE, "bytes 2-4/10"),
            (RETRY_AFTER, "7"),
        ]
        .into_iter()
        .map(|(name, value)| (name, http::HeaderValue::from_static(value)))
        .collect();
        let tag = etag(&headers);
        assert_eq!(tag.as_deref().and_then(digest_of), Some(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
        assert_eq!((body_bytes(&headers), content_range(&headers)), (Some(3), Some((2, 10))));
        assert_eq!(retry_after(&headers, Duration::from_secs(2)), Some(Duration::from_secs(2)));
        assert_eq!((digest_of("o-abc"), digest_of("0123456789ABCDEF0123456789ABCDEF")), (None, None));
    }
}
