//! Stores whose outcome is unknown: settled by HEAD, repeated only under the condition (promise 8 in ARCHITECTURE.md).
//!
//! The store is played by `raw_server`, which checks that every PUT carries `If-None-Match: *`.
//! What counts is the outcome and the order of the requests.

use forebay_io::checksum::Digest;
use forebay_shard::origin::{Etag, Origin, OriginError, OriginErrorKind, OriginMeta, Stored};
use std::sync::{Arc, Mutex};

use crate::raw_server::{After, RawServer, error, http};
use crate::rig::{key, pool, settings, store_of, wait};

const CONTENT: &[u8] = b"what is stored";

/// Stores [`CONTENT`]; the first PUT is answered by `put`, later ones by 200, and HEAD by the object that `there`
/// says. Gives the outcome and the methods in their order.
fn stored(put: (Vec<u8>, After), there: Option<&'static [u8]>) -> (Result<Stored, OriginError>, Vec<String>) {
    let methods = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&methods);
    let server = RawServer::start(move |_, request| {
        let method = request.line.split(' ').next().unwrap().to_owned();
        let mut seen = seen.lock().unwrap();
        let first_put = method == "PUT" && !seen.contains(&method);
        seen.push(method.clone());
        match method.as_str() {
            "PUT" => {
                assert_eq!(request.header("if-none-match"), Some("*"), "a store without its condition");
                assert_eq!(request.body, CONTENT);
                if first_put { put.clone() } else { (http("200 OK", &[], b""), After::Keep) }
            }
            _ => (head(there), After::Keep),
        }
    });
    let pool = pool(settings(&server.endpoint));
    let outcome = wait(pool.handle().store(&key("k"), store_of(CONTENT)));
    let methods = methods.lock().unwrap().clone();
    (outcome, methods)
}

fn head(there: Option<&[u8]>) -> Vec<u8> {
    let Some(there) = there else { return http("404 Not Found", &[("content-length", "0")], b"") };
    let (digest, length) = (Digest::of(there).to_hex(), there.len().to_string());
    let headers = [("etag", "\"e\""), ("x-amz-meta-forebay-digest", digest.as_str()), ("content-length", &length)];
    http("200 OK", &headers, b"")
}

fn unknown_outcomes() -> [(Vec<u8>, After); 4] {
    [
        (Vec::new(), After::Reset),
        (Vec::new(), After::Close),
        (error("500 Internal Server Error", "InternalError", "oops", &[]), After::Keep),
        (b"HTTP/1.1 200 OK\r\ncontent-le".to_vec(), After::Close),
    ]
}

#[test]
fn a_lost_answer_is_done_if_our_bytes_are_there() {
    for put in unknown_outcomes() {
        let (outcome, methods) = stored(put, Some(CONTENT));
        assert_eq!(outcome.unwrap(), Stored::Done);
        assert_eq!(methods, ["PUT", "HEAD"]);
    }
}

#[test]
fn a_lost_answer_is_a_conflict_if_other_bytes_are_there() {
    let other = OriginMeta { len_bytes: 5, etag: Etag::Digest(Digest::of(b"other")) };
    for put in unknown_outcomes() {
        let (outcome, methods) = stored(put, Some(b"other"));
        assert_eq!(outcome.unwrap(), Stored::Conflict(other.clone()));
        assert_eq!(methods, ["PUT", "HEAD"]);
    }
}

#[test]
fn a_lost_answer_is_repeated_if_nothing_is_there() {
    for put in unknown_outcomes() {
        let (outcome, methods) = stored(put, None);
        assert_eq!(outcome.unwrap(), Stored::Done);
        assert_eq!(methods, ["PUT", "HEAD", "PUT"]);
    }
}

#[test]
fn a_conflicting_create_is_settled_like_a_failed_condition() {
    let conflict = || (error("409 Conflict", "ConditionalRequestConflict", "racing", &[]), After::Keep);
    assert_eq!(stored(conflict(), Some(CONTENT)).0.unwrap(), Stored::Done);
    assert!(matches!(stored(conflict(), Some(b"other")).0.unwrap(), Stored::Conflict(_)));
    let (outcome, methods) = stored(conflict(), None);
    assert_eq!((outcome.unwrap(), methods.join(" ").as_str()), (Stored::Done, "PUT HEAD PUT"));
}

#[test]
fn an_overloaded_store_is_asked_again_without_settling() {
    let slow = (error("503 Slow Down", "SlowDown", "slow", &[]), After::Keep);
    let (outcome, methods) = stored(slow, None);
    assert_eq!((outcome.unwrap(), methods.join(" ").as_str()), (Stored::Done, "PUT PUT"));
}

#[test]
fn a_refused_store_is_not_repeated() {
    let (outcome, methods) = stored((error("403 Forbidden", "AccessDenied", "no", &[]), After::Keep), None);
    let error_ = outcome.unwrap_err();
    assert!(error_.kind == OriginErrorKind::Denied && error_.detail.contains("s3:PutObject"), "{error_}");
    assert_eq!(methods, ["PUT"]);
    let (outcome, _) = stored((error("400 Bad Request", "BadDigest", "no", &[]), After::Keep), None);
    assert_eq!(outcome.unwrap_err().kind, OriginErrorKind::Corrupt);
}
