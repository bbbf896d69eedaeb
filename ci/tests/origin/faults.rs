//! Against stores that misbehave, played by `raw_server`.
//!
//! No short body ever ends well, no silence lasts, retries keep to their budget, and every refusal names its fix.

use std::time::{Duration, Instant, SystemTime};

use forebay::origin::{CredentialSource, StoreSettings};
use forebay_shard::origin::{Etag, Origin, OriginError, OriginErrorKind};

use crate::raw_server::{After, RawServer, Request, error, http};
use crate::rig::{content, fetch, key, pool, settings, wait};

/// What a fetch of `k` gives when every request is answered by `answer`, in one attempt.
fn fetched(
    answer: impl Fn(&Request) -> (Vec<u8>, After) + Send + Sync + 'static,
) -> Result<Option<(Etag, Vec<u8>)>, OriginError> {
    fetched_with(once, answer)
}

fn fetched_with(
    settings: fn(&str) -> StoreSettings,
    answer: impl Fn(&Request) -> (Vec<u8>, After) + Send + Sync + 'static,
) -> Result<Option<(Etag, Vec<u8>)>, OriginError> {
    let server = RawServer::start(move |_, request| answer(request));
    let pool = pool(settings(&server.endpoint));
    let outcome = fetch(&pool.handle(), "k");
    assert_eq!(server.requests(), 1);
    outcome
}

/// One attempt, with deadlines that a busy machine keeps.
fn once(endpoint: &str) -> StoreSettings {
    let mut settings = settings(endpoint);
    settings.retry.attempts_max = 1;
    settings
}

/// Short deadlines, for stores that keep none.
fn impatient(endpoint: &str) -> StoreSettings {
    let mut settings = once(endpoint);
    settings.read_timeout = Duration::from_millis(300);
    settings.connect_timeout = Duration::from_millis(300);
    settings
}

fn whole(headers: &[(&str, &str)], bytes: usize, part: usize) -> Vec<u8> {
    let mut all = vec![("etag", "\"e\"")];
    all.extend_from_slice(headers);
    let length = bytes.to_string();
    all.push(("content-length", &length));
    http("200 OK", &all, &content(bytes)[..part])
}

#[test]
fn a_body_that_breaks_off_is_an_error_never_an_end() {
    let ok = fetched(|_| (whole(&[], 500_000, 500_000), After::Close)).unwrap().unwrap();
    assert_eq!(ok, (Etag::Origin("e".into()), content(500_000)));
    let error = fetched(|_| (whole(&[], 500_000, 499_999), After::Close)).unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Unreachable, "{error}");
    let error = fetched(|_| (whole(&[], 500_000, 200_000), After::Reset)).unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Unreachable, "{error}");
    let began = Instant::now();
    let error = fetched_with(impatient, |_| (whole(&[], 500_000, 200_000), After::Stall)).unwrap_err();
    assert_eq!(error.kind, OriginErrorKind::Timeout, "{error}");
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_body_is_compared_with_the_stores_own_checksum() {
    // CRC-32C of "123456789" is e3069283 (RFC 3720's check value).
    let answer = |crc: &'static str| {
        move |_: &Request| {
            let headers = [("etag", "\"e\""), ("x-amz-checksum-crc32c", crc)];
            (http("200 OK", &headers, b"123456789"), After::Keep)
        }
    };
    assert_eq!(fetched(answer("4waSgw==")).unwrap().unwrap().1, b"123456789");
    let error = fetched(answer("4waSgQ==")).unwrap_err();
    assert!(error.kind == OriginErrorKind::Corrupt && error.detail.contains("CRC-32C"), "{error}");
    // A composite checksum of a multipart upload says nothing about the whole.
    assert!(fetched(answer("4waSgQ==-3")).unwrap().is_some());
}

#[test]
fn an_answer_without_length_or_etag_is_refused() {
    let no_length = b"HTTP/1.1 200 OK\r\netag: \"e\"\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    let error = fetched(|_| (no_length.to_vec(), After::Keep)).unwrap_err();
    assert!(error.kind == OriginErrorKind::Protocol && error.detail.contains("Content-Length"), "{error}");
    let error = fetched(|_| (http("200 OK", &[], b"x"), After::Keep)).unwrap_err();
    assert!(error.kind == OriginErrorKind::Protocol && error.detail.contains("ETag"), "{error}");
}

#[test]
fn only_the_stores_own_word_makes_an_object_absent() {
    assert!(fetched(|_| (error("404 Not Found", "NoSuchKey", "no", &[]), After::Keep)).unwrap().is_none());
    let error_of = |answer: Vec<u8>| fetched(move |_| (answer.clone(), After::Keep)).unwrap_err();
    assert_eq!(error_of(error("404 Not Found", "NoSuchBucket", "no", &[])).kind, OriginErrorKind::NoBucket);
    let other = error_of(http("404 Not Found", &[("content-type", "text/html")], b"<html>nginx</html>"));
    assert!(other.kind == OriginErrorKind::Protocol && other.detail.contains("S3 endpoint"), "{other}");
}

#[test]
fn a_dark_endpoint_is_named() {
    // A port that was free a moment ago.
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pool = pool(once(&format!("http://{addr}")));
    let error = fetch(&pool.handle(), "k").unwrap_err();
    assert!(error.kind == OriginErrorKind::Unreachable && error.detail.contains("refused the connection"), "{error}");
    assert!(error.detail.contains(&addr.to_string()), "{error}");
}

#[test]
fn a_host_that_does_not_exist_is_named() {
    let pool = pool(impatient("http://no-such-host.invalid"));
    let error = fetch(&pool.handle(), "k").unwrap_err();
    let named = error.detail.contains("can't be found") || error.kind == OriginErrorKind::Timeout;
    assert!(named && error.detail.contains("no-such-host.invalid"), "{error}");
}

#[test]
fn silence_has_an_end_before_the_first_byte_too() {
    let error = fetched_with(impatient, |_| (Vec::new(), After::Stall)).unwrap_err();
    assert!(error.kind == OriginErrorKind::Timeout && error.detail.contains("said nothing"), "{error}");
}

#[test]
fn refusals_are_explained() {
    let explained = |answer: Vec<u8>| fetched(move |_| (answer.clone(), After::Keep)).unwrap_err();
    let forbidden = "403 Forbidden";

    let ahead = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3_600));
    let error_ = explained(error(forbidden, "RequestTimeTooSkewed", "too far", &[("date", &ahead)]));
    let seconds = |off: u64| error_.detail.contains(&format!("{} s behind", 3_600 - off));
    assert!(error_.kind == OriginErrorKind::Denied && (0..20).any(seconds), "{error_}");
    let behind = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(1_800));
    let error_ = explained(error(forbidden, "AccessDenied", "Request is not valid yet", &[("date", &behind)]));
    assert!(error_.detail.contains("s ahead of the store's"), "{error_}");

    let region = [("x-amz-bucket-region", "eu-central-1")];
    for status in ["301 Moved Permanently", "400 Bad Request"] {
        let error_ = explained(error(status, "PermanentRedirect", "elsewhere", &region));
        assert!(error_.kind == OriginErrorKind::Denied, "{error_}");
        assert!(error_.detail.contains("is in `eu-central-1`, the store's `region` says `us-east-1`"), "{error_}");
    }
    let error_ = explained(error(forbidden, "AccessDenied", "Access Denied", &[]));
    assert!(error_.detail.contains("s3:GetObject") && error_.detail.contains("`blocks`"), "{error_}");
    let error_ = explained(error("418 I'm a teapot", "Teapot", "short\r\nand stout", &[]));
    assert!(error_.kind == OriginErrorKind::Protocol && error_.detail.contains("418 Teapot short"), "{error_}");
    assert!(!error_.detail.contains(['\r', '\n']), "{error_}");
}

#[test]
fn an_overloaded_store_is_asked_again_and_its_wish_is_passed_on() {
    let server = RawServer::start(|request, _| match request {
        0 | 1 => (error("503 Slow Down", "SlowDown", "slow", &[]), After::Keep),
        _ => (whole(&[], 3, 3), After::Keep),
    });
    let pool_ = pool(settings(&server.endpoint));
    assert!(fetch(&pool_.handle(), "k").unwrap().is_some());
    let stats = &pool_.handle().stats()[0];
    assert_eq!((server.requests(), stats.retries), (3, 2), "{stats:?}");

    let server = RawServer::start(|_, _| (error("503 Busy", "SlowDown", "s", &[("retry-after", "120")]), After::Keep));
    let pool_ = pool(settings(&server.endpoint));
    let error = fetch(&pool_.handle(), "k").unwrap_err();
    assert_eq!((error.kind, error.retry_after), (OriginErrorKind::Unavailable, Some(Duration::from_secs(120))));
    assert_eq!(server.requests(), 1, "a pause longer than the request's deadline is not taken");
}

#[test]
fn retries_have_a_budget() {
    let server = RawServer::start(|_, _| (error("503 Slow Down", "SlowDown", "slow", &[]), After::Keep));
    let mut settings = settings(&server.endpoint);
    settings.retry.budget_max = 2;
    let pool = pool(settings);
    for _ in 0..20 {
        assert_eq!(wait(pool.handle().head(&key("k"))).unwrap_err().kind, OriginErrorKind::Unavailable);
    }
    // Twenty requests earn two retries, the reserve is two.
    assert!((22..=24).contains(&server.requests()), "{}", server.requests());
}

#[test]
fn expired_keys_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let write = |file: &std::path::Path, access_key: &str| {
        let text = format!("[default]\naws_access_key_id={access_key}\naws_secret_access_key=s\n");
        std::fs::write(file, text).unwrap();
    };
    write(&file, "AKOLD");
    let rewritten = file.clone();
    let server = RawServer::start(move |_, request| {
        if request.line.contains("X-Amz-Credential=AKNEW") {
            return (whole(&[], 3, 3), After::Keep);
        }
        write(&rewritten, "AKNEW");
        (error("400 Bad Request", "ExpiredToken", "expired", &[]), After::Keep)
    });
    let mut settings = settings(&server.endpoint);
    settings.credentials = CredentialSource::File { path: Some(file), profile: None };
    let pool = pool(settings);
    assert!(fetch(&pool.handle(), "k").unwrap().is_some());
    assert_eq!(server.requests(), 2);
}
