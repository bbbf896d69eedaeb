//! The development S3 server itself, asked as any client would: conditions, checksums, listings, signatures.
//!
//! Requests are signed by rusty-s3 and sent over a plain socket, so nothing of the origin pool takes part.
//! These are the layer's own promises, on which the other tests stand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use forebay::dev::s3_server::S3Server;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use url::Url;

use crate::rig::{ACCESS_KEY, BUCKET, SECRET_KEY};

struct Client {
    server: S3Server,
    bucket: Bucket,
    credentials: Credentials,
    _root: tempfile::TempDir,
}

impl Client {
    fn new() -> Client {
        let root = tempfile::tempdir().unwrap();
        let server =
            S3Server::start(root.path(), "127.0.0.1:0".parse().unwrap(), ACCESS_KEY, SECRET_KEY, BUCKET).unwrap();
        let endpoint: Url = server.endpoint().parse().unwrap();
        let bucket = Bucket::new(endpoint, UrlStyle::Path, BUCKET, "us-east-1").unwrap();
        Client { server, bucket, credentials: Credentials::new(ACCESS_KEY, SECRET_KEY), _root: root }
    }

    fn put(&self, key: &str, headers: &[(&'static str, &str)], body: &str) -> (u16, String) {
        self.send("PUT", &self.signed(self.bucket.put_object(Some(&self.credentials), key), headers), headers, body)
    }

    fn get(&self, key: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
        self.send("GET", &self.signed(self.bucket.get_object(Some(&self.credentials), key), headers), headers, "")
    }

    fn head(&self, key: &str, headers: &[(&'static str, &str)]) -> (u16, String) {
        self.send("HEAD", &self.signed(self.bucket.head_object(Some(&self.credentials), key), headers), headers, "")
    }

    fn list(&self, query: &[(&'static str, &'static str)]) -> String {
        let mut list = self.bucket.get_object(Some(&self.credentials), "");
        query.iter().for_each(|(name, value)| list.query_mut().insert(*name, *value));
        let (status, answer) = self.send("GET", &list.sign(Duration::from_secs(60)), &[], "");
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn signed<'a>(&self, mut action: impl S3Action<'a>, headers: &[(&'static str, &str)]) -> Url {
        headers.iter().for_each(|(name, value)| action.headers_mut().insert(*name, (*value).to_owned()));
        action.sign(Duration::from_secs(60))
    }

    /// The status and all of the answer.
    fn send(&self, method: &str, url: &Url, headers: &[(&'static str, &str)], body: &str) -> (u16, String) {
        let mut request = format!("{method} {}?{} HTTP/1.1\r\n", url.path(), url.query().unwrap_or(""));
        request += &format!("host: {}\r\nconnection: close\r\ncontent-length: {}\r\n", self.server.addr(), body.len());
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        let mut stream = TcpStream::connect(self.server.addr()).unwrap();
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }
}

#[test]
fn reads_and_writes_honour_their_conditions() {
    let client = Client::new();
    // MD5 of "one".
    let etag = "\"f97c5d29941bfb1b2fdab0874906ab82\"";
    assert_eq!(client.put("k", &[("if-match", etag)], "one").0, 412, "nothing is there to match");
    assert_eq!(client.put("k", &[("if-none-match", "*")], "one").0, 200);
    assert_eq!(client.put("k", &[("if-none-match", "*")], "two").0, 412);
    for read in [Client::get, Client::head] {
        assert_eq!(read(&client, "k", &[("if-none-match", etag)]).0, 304);
        assert_eq!(read(&client, "k", &[("if-none-match", "\"other\"")]).0, 200);
        assert_eq!(read(&client, "k", &[("if-match", "\"other\"")]).0, 412);
        assert_eq!(read(&client, "k", &[("if-match", etag)]).0, 200);
    }
    assert_eq!(client.put("k", &[("if-match", "\"other\"")], "two").0, 412);
    assert!(client.get("k", &[]).1.ends_with("\r\n\r\none"));
    assert_eq!(client.put("k", &[("if-match", etag)], "two").0, 200);
    assert!(client.get("k", &[]).1.ends_with("\r\n\r\ntwo"));
}

#[test]
fn a_damaged_upload_leaves_what_was_there() {
    let client = Client::new();
    // CRC-32C of "123456789".
    let sum = [("x-amz-checksum-crc32c", "4waSgw=="), ("x-amz-meta-m", "1")];
    assert_eq!(client.put("k", &sum, "123456789").0, 200);
    let (status, answer) = client.put("k", &sum, "damaged!!");
    assert!(status == 400 && answer.contains("BadDigest"), "{answer}");
    let (_, answer) = client.get("k", &[]);
    assert!(answer.ends_with("\r\n\r\n123456789") && answer.contains("x-amz-meta-m: 1"), "{answer}");
}

#[test]
fn a_listing_names_keys_not_files() {
    let client = Client::new();
    let long = "l".repeat(700);
    for key in ["a", "a/b", "a//b", "a/c", "\u{1}&<", long.as_str()] {
        assert_eq!(client.put(key, &[], "x").0, 200);
    }
    let listed = client.list(&[("list-type", "2"), ("encoding-type", "url")]);
    for key in ["a", "a/b", "a//b", "a/c", "%01%26%3C", long.as_str()] {
        assert!(listed.contains(&format!("<Key>{key}</Key>")), "{key}: {listed}");
    }
    let listed = client.list(&[("list-type", "2"), ("prefix", "a"), ("delimiter", "/")]);
    assert!(listed.contains("<Prefix>a/</Prefix>") && listed.matches("<Key>").count() == 1, "{listed}");
}

#[test]
fn only_signed_requests_are_served_and_all_are_logged() {
    let client = Client::new();
    let url = client.bucket.object_url("k");
    assert_eq!(client.send("GET", &url, &[], "").0, 403);
    let signed = client.signed(client.bucket.get_object(Some(&client.credentials), "k"), &[]);
    let other: Url = signed.as_str().replace("/k?", "/other?").parse().unwrap();
    assert_eq!(client.send("GET", &other, &[], "").0, 403, "a signature is good for one key");
    assert_eq!(client.put("k", &[], "12345").0, 200);
    let log = client.server.access_log().entries();
    let seen: Vec<_> =
        log.iter().map(|entry| (entry.method.as_str(), entry.key.as_str(), entry.status.as_u16())).collect();
    assert_eq!(seen, [("GET", "k", 403), ("GET", "other", 403), ("PUT", "k", 200)]);
    assert_eq!((log[2].bytes, log[2].bucket.as_str()), (5, BUCKET));
}
