//! The load generator against a small TLS server that can misbehave in chosen ways.
//!
//! The binary is run as users run it. What it must never do: call a wrong answer right, or hide a stall.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

type Tls = BufReader<StreamOwned<ServerConnection, TcpStream>>;

/// What the server does with a request; gets the stored bytes of the key and how many requests came before.
type Answer = fn(&mut Tls, &[u8], usize);

struct Server {
    folder: TempDir,
    port: u16,
}

impl Server {
    /// Starts a server for `size` blocks; its threads end with the test process.
    fn start(size: &str, answer: Answer) -> Self {
        let folder = TempDir::new().unwrap();
        let keys = folder.path().join("keys");
        let filled = bench(&["fill", "--dir", keys.to_str().unwrap(), "--size", size, "--keys", "8"]);
        assert!(filled.status.success(), "{filled:?}");
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        fs::write(folder.path().join("ca.pem"), own.cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (config, keys) = (Arc::clone(&config), keys.clone());
                std::thread::spawn(move || serve(socket, config, &keys, answer));
            }
        });
        Self { folder, port }
    }

    fn get(&self, size: &str, more: &[&str]) -> Output {
        let target = format!("https://127.0.0.1:{}", self.port);
        let ca = self.folder.path().join("ca.pem");
        let mut arguments = vec!["get", "--target", &target, "--ca", ca.to_str().unwrap(), "--size", size];
        arguments.extend(["--keys", "8", "--connections", "3", "--path-template", "/bench-{key}", "--json"]);
        arguments.extend(["--warmup-seconds", "0.2", "--seconds", "0.5", "--sample-every", "10"]);
        arguments.extend(more);
        bench(&arguments)
    }
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay-bench")).args(arguments).output().unwrap()
}

/// One connection: answers requests until the client goes away.
fn serve(socket: TcpStream, config: Arc<ServerConfig>, keys: &Path, answer: Answer) {
    socket.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config).unwrap(), socket));
    for count in 0.. {
        let mut first = String::new();
        if stream.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
        }
        let name = first.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        answer(&mut stream, &fs::read(keys.join(name)).unwrap(), count);
    }
}

/// Writes without caring whether the client is still there: it leaves when it has seen enough.
fn send(out: &mut Tls, bytes: &[u8]) {
    let out = out.get_mut();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

fn head(body: &[u8]) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Filler: abc\r\n\r\n", body.len()).into_bytes()
}

/// Head and body in one piece, so that they share the first record.
fn together(out: &mut Tls, body: &[u8], _count: usize) {
    send(out, &[head(body).as_slice(), body].concat());
}

/// The head in records of its own, cut in the middle.
fn apart(out: &mut Tls, body: &[u8], _count: usize) {
    let head = head(body);
    send(out, &head[..20]);
    send(out, &head[20..]);
    send(out, body);
}

fn decline(out: &mut Tls) {
    send(out, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\ntry later");
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "a run that had to fail: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn good_responses_are_counted_and_a_sample_is_verified() {
    for (size, answer) in [("4KiB", together as Answer), ("4KiB", apart), ("300KiB", together), ("300001", apart)] {
        let report = json(&Server::start(size, answer).get(size, &[]));
        let responses = report["responses"].as_u64().unwrap();
        let bytes = report["size_bytes"].as_u64().unwrap();
        assert!(responses > 10, "{report}");
        let verified = report["verified"].as_u64().unwrap();
        assert!(verified >= 8 && verified < responses, "the first of each key and one in ten: {report}");
        let expected = report["requests_per_second"].as_f64().unwrap() * bytes as f64 / f64::from(1 << 20);
        assert!((report["mib_per_second"].as_f64().unwrap() / expected - 1.0).abs() < 1e-6, "{report}");
    }
}

#[test]
fn one_wrong_byte_fails_the_run() {
    let server = Server::start("100KiB", |out, body, count| {
        let mut body = body.to_vec();
        body[70_000] ^= 1;
        together(out, &body, count);
    });
    let complaint = complaint(&server.get("100KiB", &[]));
    assert!(complaint.contains("WRONG BYTES") && complaint.contains("70000"), "{complaint}");
}

#[test]
fn another_keys_bytes_fail_the_run() {
    let server = Server::start("4KiB", |out, body, count| {
        let other = [&body[64..], &body[..64]].concat();
        together(out, &other, count);
    });
    assert!(complaint(&server.get("4KiB", &[])).contains("WRONG BYTES"));
}

#[test]
fn lengths_and_encodings_that_cannot_be_counted_fail_clearly() {
    let chunked = Server::start("4KiB", |out, _, _| {
        send(out, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n");
    });
    assert!(complaint(&chunked.get("4KiB", &[])).contains("Content-Length"));
    let short = Server::start("4KiB", |out, body, count| together(out, &body[1..], count));
    assert!(complaint(&short.get("4KiB", &[])).contains("4096 bytes expected"));
    let long = Server::start("100KiB", |out, body, _| send(out, &[&head(body), body, b"x"].concat()));
    assert!(complaint(&long.get("100KiB", &[])).contains("longer than its Content-Length"));
    let closing = Server::start("4KiB", |out, body, count| {
        together(out, body, count);
        out.get_mut().conn.send_close_notify();
        send(out, b"");
    });
    assert!(complaint(&closing.get("4KiB", &[])).contains("closed the connection"));
}

#[test]
fn a_status_that_is_no_success_is_counted_and_fails_the_run() {
    let server =
        Server::start("4KiB", |out, _, _| send(out, b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n"));
    let output = server.get("4KiB", &[]);
    assert!(complaint(&output).contains("404"));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["bad"].as_u64().unwrap() > 0);
}

#[test]
fn a_busy_server_is_asked_again_in_the_first_pass_only() {
    let at_first =
        Server::start("4KiB", |out, body, count| if count < 2 { decline(out) } else { together(out, body, count) });
    let report = json(&at_first.get("4KiB", &[]));
    assert_eq!(report["declined"], 6, "two of each of three connections: {report}");
    assert!(report["verified"].as_u64().unwrap() >= 8, "{report}");
    let later =
        Server::start("4KiB", |out, body, count| if count > 20 { decline(out) } else { together(out, body, count) });
    assert!(complaint(&later.get("4KiB", &[])).contains("503: try later"));
}

#[test]
fn a_key_update_is_refused_clearly() {
    let server = Server::start("4KiB", |out, body, count| {
        if count == 5 {
            out.get_mut().conn.refresh_traffic_keys().unwrap();
        }
        together(out, body, count);
    });
    assert!(complaint(&server.get("4KiB", &[])).contains("updates its keys"));
}

#[test]
fn an_unknown_authority_is_refused() {
    let server = Server::start("4KiB", together);
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    fs::write(server.folder.path().join("ca.pem"), other.cert.pem()).unwrap();
    assert!(complaint(&server.get("4KiB", &[])).contains("handshake"));
}

/// A server that stops once for 300 ms: at 200 requests a second some 60 become due meanwhile, and an open loop must
/// charge all of them with their wait, though only one request ever stood at the server.
#[test]
fn an_open_loop_charges_a_stall_to_all_it_delayed() {
    let server = Server::start("4KiB", |out, body, count| {
        if count == 30 {
            std::thread::sleep(Duration::from_millis(300));
        }
        together(out, body, count);
    });
    let report =
        json(&server.get("4KiB", &["--rate", "200", "--seconds", "2", "--warmup-seconds", "0", "--connections", "1"]));
    assert!(report["requests_per_second"].as_f64().unwrap() > 150.0, "{report}");
    assert!(report["max_us"].as_f64().unwrap() > 250_000.0, "{report}");
    // 60 of 400 requests were due during the stall: more than one in ten waited.
    assert!(report["p90_us"].as_f64().unwrap() > 10_000.0, "the stall is hidden: {report}");
}

#[test]
fn puts_arrive_whole_and_a_busy_server_is_asked_again() {
    // The test server has read the head only; the body follows on the same stream.
    let server = Server::start("100KiB", |out, body, count| {
        let mut got = vec![0; body.len()];
        out.read_exact(&mut got).unwrap();
        assert_eq!(got, body);
        let status = if count == 2 { "503 Service Unavailable" } else { "201 Created" };
        send(out, format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
    });
    let target = format!("https://127.0.0.1:{}", server.port);
    let ca = server.folder.path().join("ca.pem");
    let output = bench(&[
        "put",
        "--target",
        &target,
        "--ca",
        ca.to_str().unwrap(),
        "--size",
        "100KiB",
        "--keys",
        "8",
        "--path-template",
        "/bench-{key}",
    ]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("put 8 keys of 100 KiB"));
}
