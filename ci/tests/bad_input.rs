//! What bad input gets: a clear 4xx problem (RFC 9457), and nothing is lost, published or left hanging.
//!
//! Speaks HTTP/1.1 byte by byte over TLS to the real binary, because no client library sends such things. Run by
//! `cargo test --test bad_input` as part of `ci/test`. Each test ends with a proxy that serves as before.

#![allow(clippy::unwrap_used)]

mod running;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use forebay::cli::token::claims;
use forebay::token::{Claims, Right, SigningKey, generate_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use running::{BOUND, Directory, Running};

const BACK: &str = "demo-back";
const THROUGH: &str = "demo-through";
const BLOCK_BYTES_MAX: usize = 4 << 20;

/// A connection that sends what it is told.
struct Raw {
    stream: StreamOwned<ClientConnection, TcpStream>,
    read: Vec<u8>,
}

/// An answer, as it came.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// The node under test, and how to trust it.
struct Node {
    running: Running,
    address: SocketAddr,
    trust: Arc<ClientConfig>,
}

impl Node {
    fn start(directory: &Directory) -> Node {
        let running = Running::start(directory);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&running.summary.ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut trust = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        trust.alpn_protocols = vec![b"http/1.1".to_vec()];
        let address = running.summary.proxies[0].url.strip_prefix("https://").unwrap().parse().unwrap();
        Node { running, address, trust: Arc::new(trust) }
    }

    fn connect(&self) -> Raw {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(BOUND)).unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(Arc::clone(&self.trust), name).unwrap();
        Raw { stream: StreamOwned::new(tls, socket), read: Vec::new() }
    }

    /// The head of a request with this run's token.
    fn head(&self, method: &str, path: &str, headers: &str) -> String {
        let token = &self.running.summary.token;
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n{headers}\r\n")
    }

    /// One request on a connection of its own.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut request = self.head(method, path, headers).into_bytes();
        request.extend_from_slice(body);
        self.exchange(&request, method)
    }

    fn exchange(&self, request: &[u8], method: &str) -> Answer {
        let mut raw = self.connect();
        raw.send(request);
        raw.answer(method).expect("an answer, not a closed connection")
    }

    /// A well-formed put.
    fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.ask("PUT", path, &format!("content-length: {}\r\n", body.len()), body)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"")
    }

    /// Nothing was published, and the proxy serves as before.
    fn nothing_there(&self, path: &str) {
        assert_eq!(self.get(path).status, 404, "{path}");
        let other = block(BACK, "a-good-one");
        assert!(matches!(self.put(&other, b"good").status, 200 | 201 | 204));
        assert_eq!(self.get(&other).body, b"good");
    }
}

impl Raw {
    /// The peer may have closed meanwhile: what it said is still to be read.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    /// The next answer; `None` if the connection ends before one.
    fn answer(&mut self, method: &str) -> Option<Answer> {
        let head_bytes = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more()?;
        };
        let head = String::from_utf8(self.read.drain(..head_bytes).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let mut answer = Answer { status, headers: lines.map(header).collect(), body: Vec::new() };
        let has_body = method != "HEAD" && status != 204 && status != 304;
        let length: usize = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        while has_body && self.read.len() < length {
            self.read_more().expect("the whole body");
        }
        if has_body {
            answer.body = self.read.drain(..length).collect();
        }
        Some(answer)
    }

    fn read_more(&mut self) -> Option<()> {
        let mut buffer = [0; 16 << 10];
        let count = match self.stream.read(&mut buffer) {
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("neither an answer nor an end within {BOUND:?}")
            }
            // A reset, or an end without close_notify.
            Err(_) => 0,
        };
        self.read.extend_from_slice(&buffer[..count]);
        (count > 0).then_some(())
    }

    /// Nothing more may come: what followed a refused head was no second request.
    fn must_be_closed(&mut self) {
        while self.read_more().is_some() {}
        assert!(self.read.is_empty(), "a second answer: {}", String::from_utf8_lossy(&self.read));
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A problem document of this type.
    fn must_be(&self, status: u16, slug: &str) {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{slug}: {body}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{body}");
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["type"], format!("urn:forebay:problem:{slug}"), "{problem}");
        assert_eq!(problem["status"], status);
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
    }
}

fn block(volume: &str, key: &str) -> String {
    format!("/v1/volumes/{volume}/blocks/{key}")
}

#[test]
fn two_servers_could_not_read_a_request_differently() {
    let directory = Directory::new();
    let node = Node::start(&directory);
    let path = block(BACK, "smuggled");
    let token = format!("authorization: Bearer {}", node.running.summary.token);
    let hidden = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{token}\r\n\r\n");
    let put = format!("PUT {path} HTTP/1.1\r\nhost: localhost\r\n{token}\r\n");
    let cases = [
        (
            "length and encoding",
            format!("{put}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
            400,
        ),
        (
            "encoding and length",
            format!("{put}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n{hidden}"),
            400,
        ),
        ("two lengths", format!("{put}content-length: 0\r\ncontent-length: 5\r\n\r\nhello{hidden}"), 400),
        ("two equal lengths", format!("{put}content-length: 5\r\ncontent-length: 5\r\n\r\nhello{hidden}"), 400),
        ("a list of lengths", format!("{put}content-length: 5, 5\r\n\r\nhello{hidden}"), 400),
        ("a signed length", format!("{put}content-length: +5\r\n\r\nhello{hidden}"), 400),
        ("a hexadecimal length", format!("{put}content-length: 0x5\r\n\r\nhello{hidden}"), 400),
        ("a length too large", format!("{put}content-length: 99999999999999999999\r\n\r\nhello{hidden}"), 400),
        ("bare line feeds", format!("{}content-length: 5\n\nhello{hidden}", put.replace("\r\n", "\n")), 400),
        ("one bare line feed", format!("{put}x-a: b\ncontent-length: 5\r\n\r\nhello{hidden}"), 400),
        ("a folded header", format!("{put}x-a: b\r\n c: d\r\ncontent-length: 5\r\n\r\nhello{hidden}"), 400),
        ("encoding alone", format!("{put}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{hidden}"), 411),
    ];
    for (what, request, status) in cases {
        let mut raw = node.connect();
        raw.send(request.as_bytes());
        let answer = raw.answer("PUT").unwrap_or_else(|| panic!("{what}: closed without an answer"));
        assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
        raw.must_be_closed();
        node.nothing_there(&path);
    }
}

#[test]
fn floods_and_dawdlers_are_cut_off() {
    let directory = Directory::new();
    let node = Node::start(&directory);
    let path = block(BACK, "flood");
    let many: String = (0..1_000).map(|n| format!("x-{n}: y\r\n")).collect();
    node.ask("GET", &path, &many, b"").must_be(431, "head-too-large");
    node.ask("GET", &path, &format!("x-long: {}\r\n", "y".repeat(1 << 20)), b"").must_be(431, "head-too-large");
    node.ask("GET", &block(BACK, &"k".repeat(1 << 20)), "", b"").must_be(431, "head-too-large");

    // Three dawdlers at once: one sends its head a byte at a time, one never ends it, one stops inside its body.
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bytes that trickle in don't put the deadline off: it is counted from the first, not from the last.
            let mut raw = node.connect();
            let head = node.head("GET", &path, &many);
            for byte in head.as_bytes().iter().take(80) {
                raw.send(&[*byte]);
                std::thread::sleep(Duration::from_millis(100));
            }
            raw.answer("GET").expect("told why").must_be(408, "request-timeout");
            assert!(began.elapsed() < Duration::from_secs(17), "{:?}", began.elapsed());
            raw.must_be_closed();
        });
        scope.spawn(|| {
            let mut raw = node.connect();
            raw.send(b"GET / HTTP/1.1\r\n");
            raw.answer("GET").expect("told why").must_be(408, "request-timeout");
            raw.must_be_closed();
        });
        scope.spawn(|| {
            let mut raw = node.connect();
            raw.send(node.head("PUT", &path, "content-length: 1000\r\n").as_bytes());
            raw.send(&[7; 500]);
            if let Some(answer) = raw.answer("PUT") {
                assert_eq!(answer.status, 408, "{answer:?}");
            }
            raw.must_be_closed();
        });
    });
    assert!(began.elapsed() < BOUND, "the deadlines are shorter than the client's patience");
    node.nothing_there(&path);
}

#[test]
fn a_body_that_is_not_what_was_announced_publishes_nothing() {
    let directory = Directory::new();
    let node = Node::start(&directory);
    for volume in [BACK, THROUGH] {
        let path = block(volume, "truncated");
        for (announced, sent) in [(1_000usize, 0usize), (1_000, 999), (BLOCK_BYTES_MAX, BLOCK_BYTES_MAX / 2)] {
            let mut raw = node.connect();
            raw.send(node.head("PUT", &path, &format!("content-length: {announced}\r\n")).as_bytes());
            raw.send(&vec![7; sent]);
            drop(raw);
            node.nothing_there(&path);
        }

        let path = block(volume, "digest");
        let wrong = format!("content-length: 5\r\ncontent-digest: sha-256=:{}:\r\n", BASE64.encode([0; 32]));
        node.ask("PUT", &path, &wrong, b"hello").must_be(400, "digest-mismatch");
        let unreadable = "content-length: 5\r\ncontent-digest: sha-256=hello\r\n";
        node.ask("PUT", &path, unreadable, b"hello").must_be(400, "bad-digest");
        node.nothing_there(&path);
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"hello");
        let right = format!("content-length: 5\r\ncontent-digest: sha-256=:{}:\r\n", BASE64.encode(sum));
        assert_eq!(node.ask("PUT", &path, &right, b"hello").status, 201);
        assert_eq!(node.get(&path).body, b"hello");

        let path = block(volume, "oversized");
        let length = format!("content-length: {}\r\n", BLOCK_BYTES_MAX + 1);
        node.ask("PUT", &path, &length, b"").must_be(413, "block-too-large");
        node.ask("PUT", &path, "", b"").must_be(411, "length-required");
        node.nothing_there(&path);
    }
}

#[test]
fn keys_ranges_and_methods_are_checked() {
    let directory = Directory::new();
    let node = Node::start(&directory);
    for bad in ["", "a%", "a%2", "a%zz", "%ff%fe", &"k".repeat(1_025), &"%61".repeat(1_025)] {
        node.get(&block(BACK, bad)).must_be(400, "bad-key");
        node.put(&block(BACK, bad), b"x").must_be(400, "bad-key");
    }
    // Bytes like any other: these are four different keys.
    let keys = ["a/../b", "b", "a/%2e%2e/b", "../../etc/passwd", "a//b"];
    for (index, key) in keys.iter().enumerate() {
        let known = *key == "a/%2e%2e/b";
        let content = format!("content {}", if known { 0 } else { index });
        let expected = if known { 200 } else { 201 };
        assert_eq!(node.put(&block(BACK, key), content.as_bytes()).status, expected, "{key}");
        assert_eq!(node.get(&block(BACK, key)).body, content.as_bytes(), "{key}");
    }
    let longest = "k".repeat(1_000);
    assert_eq!(node.put(&block(BACK, &longest), b"x").status, 201);

    let path = block(BACK, "ranges");
    assert_eq!(node.put(&path, b"0123456789").status, 201);
    for bad in ["bytes=10-", "bytes=100-200", "bytes=-0"] {
        let answer = node.ask("GET", &path, &format!("range: {bad}\r\n"), b"");
        answer.must_be(416, "bad-range");
        assert_eq!(answer.header("content-range"), Some("bytes */10"), "{bad}");
    }
    let part = node.ask("GET", &path, "range: bytes=3-5\r\n", b"");
    assert_eq!((part.status, part.body.as_slice()), (206, &b"345"[..]));
    assert_eq!(part.header("content-range"), Some("bytes 3-5/10"));

    for method in ["POST", "PATCH", "OPTIONS", "BREW"] {
        let answer = node.ask(method, &path, "content-length: 0\r\n", b"");
        answer.must_be(405, "method-not-allowed");
        let allowed = answer.header("allow").unwrap();
        assert!(["GET", "HEAD", "PUT", "DELETE"].iter().all(|method| allowed.contains(method)), "{allowed}");
    }
    assert_eq!(node.ask("PUT", "/v1/status", "content-length: 0\r\n", b"").status, 405);
    node.get("/v2/anything").must_be(404, "no-such-path");
    let unknown = node.get(&block("no-such-volume", "x"));
    assert!(matches!(unknown.status, 403 | 404), "{unknown:?}");

    assert_eq!(node.put(&path, b"0123456789").status, 200, "the same bytes again");
    node.put(&path, b"other").must_be(409, "key-exists");
    assert_eq!(node.get(&path).body, b"0123456789");
}

#[test]
fn tokens_open_what_they_name_and_nothing_else() {
    let directory = Directory::new();
    let node = Node::start(&directory);
    let path = block(BACK, "secret");
    assert_eq!(node.put(&path, b"secret").status, 201);

    let ours = node.running.signing_key();
    let other = SigningKey::from_pem(&generate_key().unwrap()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let good = |volume: &str, right| claims(&[volume.to_owned()], right, "a test", now, 600);
    let issue = |key: &SigningKey, claims: &Claims| key.issue(claims).unwrap();
    let with = |method: &str, authorization: &str, body: &[u8]| {
        let length = format!("content-length: {}", body.len());
        let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{authorization}{length}\r\n\r\n");
        node.exchange(&[request.as_bytes(), body].concat(), method)
    };
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\n");

    let expired = Claims { exp: now - 60, iat: now - 120, nbf: now - 120, ..good(BACK, Right::ReadWrite) };
    let early = Claims { nbf: now + 600, ..good(BACK, Right::ReadWrite) };
    let mut forged = issue(&ours, &good(BACK, Right::ReadWrite));
    let last = if forged.pop() == Some('A') { 'B' } else { 'A' };
    // The last character of a signature has spare bits; the one before it has none.
    forged.pop();
    forged.extend([last, last]);
    let unauthorized = [
        ("none", String::new()),
        ("another scheme", "authorization: Basic eDp5\r\n".to_owned()),
        ("nonsense", bearer("nonsense")),
        ("unsigned", bearer("eyJhbGciOiJub25lIn0.e30.")),
        ("of another key", bearer(&issue(&other, &good(BACK, Right::ReadWrite)))),
        ("expired", bearer(&issue(&ours, &expired))),
        ("not valid yet", bearer(&issue(&ours, &early))),
        ("forged", bearer(&forged)),
    ];
    for (what, authorization) in &unauthorized {
        for (method, body) in [("GET", &b""[..]), ("PUT", b"other"), ("DELETE", b"")] {
            let answer = with(method, authorization, body);
            assert_eq!(answer.status, 401, "{what}: {}", String::from_utf8_lossy(&answer.body));
            answer.must_be(401, "unauthorized");
            assert!(
                answer.header("www-authenticate").is_some_and(|challenge| challenge.starts_with("Bearer")),
                "{what}"
            );
        }
    }
    let elsewhere = bearer(&issue(&ours, &good(THROUGH, Right::ReadWrite)));
    let read_only = bearer(&issue(&ours, &good(BACK, Right::Read)));
    with("GET", &elsewhere, b"").must_be(403, "forbidden");
    with("PUT", &read_only, b"other").must_be(403, "forbidden");
    with("DELETE", &read_only, b"").must_be(403, "forbidden");
    assert_eq!(with("GET", &read_only, b"").body, b"secret", "nothing of all that happened");
}
