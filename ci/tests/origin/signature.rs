//! What is signed, checked by a verifier of our own, written from AWS's specification ("Authenticating Requests: Using
//! Query Parameters"): the signature, that nothing of weight is left out of it, and that the body is what is signed.
//! Neither rusty-s3 nor s3s takes part in the check.

use std::sync::{Arc, Mutex};

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use forebay_io::checksum::Digest;
use forebay_shard::origin::Origin;

use crate::raw_server::{After, RawServer, Request, http};
use crate::rig::{SECRET_KEY, content, fetch, key, pool, settings, store_of, wait};

/// One request of each verb, with a session token.
fn requests() -> Vec<Request> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = Arc::clone(&seen);
    let server = RawServer::start(move |_, request| {
        let copy = Request { line: request.line.clone(), headers: request.headers.clone(), body: request.body.clone() };
        requests.lock().unwrap().push(copy);
        (http("200 OK", &[("etag", "\"e\"")], b""), After::Keep)
    });
    let mut settings = settings(&server.endpoint);
    if let forebay::origin::CredentialSource::Keys(keys) = &mut settings.credentials {
        keys.session_token = Some("token/+=".into());
    }
    let pool = pool(settings);
    let handle = pool.handle();
    wait(handle.store(&key("a b/ü+%"), store_of(&content(300_000)))).unwrap();
    fetch(&handle, "a//b").unwrap();
    wait(handle.head(&key("k?x=y"))).unwrap();
    wait(handle.delete(&key("k"))).unwrap();
    wait(handle.check_store("v")).unwrap();
    drop(pool);
    std::mem::take(&mut *seen.lock().unwrap())
}

#[test]
fn every_request_is_signed_with_all_that_matters() {
    let requests = requests();
    assert_eq!(requests.len(), 5);
    for request in &requests {
        let (path, pairs) = target(request);
        let value = |name: &str| &pairs.iter().find(|(key, _)| key == name).unwrap().1;
        let signed: Vec<String> = decode(value("X-Amz-SignedHeaders")).split(';').map(str::to_owned).collect();
        for (name, _) in &request.headers {
            let weighty = name.starts_with("x-amz-") || name.starts_with("if-") || name == "host";
            assert!(!weighty || signed.contains(name), "{name} is not signed in {}", request.line);
        }
        let canonical = canonical_request(request, &path, &pairs, &signed);
        assert_eq!(&signature(&canonical, value("X-Amz-Date"), SECRET_KEY), value("X-Amz-Signature"), "{canonical}");
        assert_ne!(&signature(&canonical, value("X-Amz-Date"), "other"), value("X-Amz-Signature"));
        assert_eq!(decode(value("X-Amz-Security-Token")), "token/+=");
        assert!(!request.line.contains(SECRET_KEY));
    }
}

#[test]
fn the_body_of_a_store_is_what_its_signed_headers_say() {
    let requests = requests();
    let put = requests.iter().find(|request| request.line.starts_with("PUT ")).unwrap();
    assert!(put.line.starts_with("PUT /blocks/p/a%20b/%C3%BC%2B%25?"), "{}", put.line);
    assert_eq!(put.body, content(300_000));
    let crc = base64::engine::general_purpose::STANDARD.encode(crc32c(&put.body).to_be_bytes());
    assert_eq!(put.header("x-amz-checksum-crc32c"), Some(crc.as_str()));
    assert_eq!(put.header("x-amz-meta-forebay-digest"), Some(Digest::of(&put.body).to_hex().as_str()));
    assert_eq!((put.header("if-none-match"), put.header("content-length")), (Some("*"), Some("300000")));
    assert_eq!(put.header("transfer-encoding"), None);
}

/// The path and the query's pairs, as they were sent.
fn target(request: &Request) -> (String, Vec<(String, String)>) {
    let target = request.line.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap();
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap();
    (path.to_owned(), query.split('&').map(pair).collect())
}

fn canonical_request(request: &Request, path: &str, pairs: &[(String, String)], signed: &[String]) -> String {
    let mut pairs: Vec<String> =
        pairs.iter().filter(|(key, _)| key != "X-Amz-Signature").map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    let header = |name: &String| format!("{name}:{}\n", request.header(name).unwrap());
    let method = request.line.split(' ').next().unwrap();
    let headers: String = signed.iter().map(header).collect();
    format!("{method}\n{path}\n{}\n{headers}\n{}\nUNSIGNED-PAYLOAD", pairs.join("&"), signed.join(";"))
}

fn signature(canonical: &str, date: &str, secret: &str) -> String {
    let day = &date[..8];
    let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{day}/us-east-1/s3/aws4_request\n{hash}");
    let step = |secret: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes()).as_ref().to_vec()
    };
    let mut derived = format!("AWS4{secret}").into_bytes();
    for text in [day, "us-east-1", "s3", "aws4_request", &to_sign] {
        derived = step(&derived, text);
    }
    hex(&derived)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

/// CRC-32C bit by bit (Castagnoli, reflected polynomial 0x82f63b78).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
