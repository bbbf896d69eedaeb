//! The network floor against clients that are slow, rude or wrong, over real TLS connections.
//!
//! The null server runs the proxy's own listener, so what holds here holds there: deadlines, smuggling shapes, the cap on
//! connections, truncation, both protocols, and the orderly stop.

#[path = "net/wire.rs"]
mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::proxy::deadline::Deadlines;
use forebay::proxy::executor::usable_cpus;
use forebay::proxy::null::{NullOptions, NullServer};
use rustls::ClientConfig;
use wire::{Client, certificate, connect};

/// Short enough for a test, long enough for a busy machine to keep them.
const PATIENCE: Duration = Duration::from_secs(2);

struct Rig {
    directory: tempfile::TempDir,
    trust: Arc<ClientConfig>,
}

impl Rig {
    fn new() -> Rig {
        let directory = tempfile::tempdir().expect("a directory");
        let trust = certificate(directory.path());
        Rig { directory, trust }
    }

    fn start(&self, change: impl FnOnce(&mut NullOptions)) -> NullServer {
        let path = |name: &str| Path::new(self.directory.path()).join(name);
        let mut options = NullOptions::new(path("cert.pem"), path("key.pem"), usable_cpus()[0]);
        change(&mut options);
        NullServer::start(options).expect("the server starts")
    }

    /// A connection whose handshake is done.
    fn connect(&self, address: SocketAddr) -> Client {
        let mut client = connect(&self.trust, address);
        client.flush().expect("a client");
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock).expect("the handshake succeeds");
        }
        client
    }
}

/// Everything until the server ends the connection, and whether it said goodbye.
fn read_to_end(client: &mut Client) -> (String, bool) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match client.read(&mut buffer) {
            Ok(0) => return (String::from_utf8_lossy(&bytes).into_owned(), true),
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server never ended it"),
            Err(_) => return (String::from_utf8_lossy(&bytes).into_owned(), false),
        }
    }
}

/// The answer to a request that is sent as it is, on a connection of its own.
fn answer(rig: &Rig, address: SocketAddr, request: &[u8]) -> String {
    let mut client = rig.connect(address);
    // The server may refuse before it has read everything.
    let _ = client.write_all(request);
    read_to_end(&mut client).0
}

#[test]
fn what_two_servers_could_read_differently_is_refused_with_a_problem() {
    let rig = Rig::new();
    let server = rig.start(|_| {});
    let flood = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: bbbbbbbbbbbbbbbbbbbbbbbb\r\n".repeat(100_000));
    for (status, request) in [
        ("400", "GET / HTTP/1.1\nhost: x\n\n"),
        ("400", "PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na"),
        ("400", "PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("411", "PUT /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("431", flood.as_str()),
    ] {
        let answered = answer(&rig, server.address, request.as_bytes());
        let what = &request[..request.len().min(80)];
        assert!(answered.starts_with(&format!("HTTP/1.1 {status} ")), "{what:?}: {answered:?}");
        assert!(answered.contains("application/problem+json"), "{what:?}: {answered:?}");
        assert_eq!(answered.matches("HTTP/1.1").count(), 1, "one answer, then the end: {answered:?}");
    }
    let garbage = answer(&rig, server.address, b"\x01\x02\x03 nonsense\r\n\r\n");
    assert!(garbage.starts_with("HTTP/1.1 400 ") && garbage.contains("bad-framing"), "{garbage:?}");
    server.stop().expect("it stops");
}

#[test]
fn clients_that_keep_the_server_waiting_are_let_go() {
    let rig = Rig::new();
    let server = rig.start(|options| {
        options.deadlines = Deadlines {
            handshake: PATIENCE,
            header: PATIENCE,
            idle: PATIENCE,
            body: PATIENCE,
            whole_body: PATIENCE * 30,
            reader: PATIENCE,
            window_bytes_min: 64 << 10,
        };
    });
    let began = Instant::now();
    let mut silent = TcpStream::connect(server.address).expect("it connects");
    silent.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let mut idle = rig.connect(server.address);
    let mut slow_head = rig.connect(server.address);
    slow_head.write_all(b"GET / HTT").expect("it is sent");
    let mut slow_body = rig.connect(server.address);
    slow_body.write_all(b"PUT /x HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").expect("it is sent");
    let mut slow_reader = rig.connect(server.address);
    slow_reader.write_all(b"GET /67108864 HTTP/1.1\r\nhost: x\r\n\r\n").expect("it is sent");
    let mut busy = rig.connect(server.address);
    let busy = std::thread::spawn(move || {
        while began.elapsed() < PATIENCE * 2 {
            get(&mut busy, 4096);
        }
    });

    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(began.elapsed() >= PATIENCE, "nobody is let go early");
    assert_eq!(read_to_end(&mut idle).0, "");
    assert!(read_to_end(&mut slow_head).0.starts_with("HTTP/1.1 408 "));
    assert!(!read_to_end(&mut slow_body).0.contains("201"));
    busy.join().expect("who keeps nobody waiting is not let go");
    let (body, said_goodbye) = read_to_end(&mut slow_reader);
    assert!(body.len() < 67_108_864 && !said_goodbye, "a body that is cut off has no good end");
    server.stop().expect("it stops");
}

/// One polite request; panics unless exactly `bytes` arrive.
fn get(client: &mut Client, bytes: usize) {
    client.write_all(format!("GET /{bytes} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).expect("it is sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = client.read(&mut buffer).expect("the answer arrives");
        assert!(read > 0, "the server hung up");
        answer.extend_from_slice(&buffer[..read]);
        if let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n")
            && answer.len() >= head + 4 + bytes
        {
            assert_eq!(answer.len(), head + 4 + bytes);
            return;
        }
    }
}

#[test]
fn connections_beyond_the_cap_are_closed_at_once_and_places_become_free() {
    let rig = Rig::new();
    let server = rig.start(|options| options.connections_max = 2);
    let mut first = rig.connect(server.address);
    let mut second = rig.connect(server.address);
    get(&mut first, 10);
    get(&mut second, 10);
    let mut third = TcpStream::connect(server.address).expect("the kernel accepts it");
    third.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    assert!(matches!(third.read(&mut [0]), Ok(0) | Err(_)), "nothing is said on it");
    drop(first);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let mut again = connect(&rig.trust, server.address);
        if again.write_all(b"GET /10 HTTP/1.1\r\nhost: x\r\n\r\n").is_ok()
            && again.read(&mut [0; 64]).is_ok_and(|n| n > 0)
        {
            break;
        }
        assert!(Instant::now() < until, "a place becomes free when a connection ends");
    }
    get(&mut second, 100_000);
    server.stop().expect("it stops");
}

#[test]
fn bodies_of_all_sizes_arrive_whole_also_pipelined() {
    let rig = Rig::new();
    let server = rig.start(|_| {});
    let mut client = rig.connect(server.address);
    for bytes in [0, 1, 16_383, 16_384, 16_385, 49_152, 262_144, 294_912, 294_913, 4_194_304, 16_777_216] {
        get(&mut client, bytes);
    }
    let both = "GET /5 HTTP/1.1\r\nhost: x\r\n\r\nGET /6 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    client.write_all(both.as_bytes()).expect("it is sent");
    let (answers, said_goodbye) = read_to_end(&mut client);
    assert!(answers.contains("\r\n\r\nfffffHTTP/1.1 200") && answers.ends_with("\r\n\r\nffffff"), "{answers:?}");
    assert!(said_goodbye, "an orderly end says so");
    server.stop().expect("it stops");
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_takes_nothing_new() {
    let rig = Rig::new();
    let server = rig.start(|_| {});
    let address = server.address;
    let mut idle = rig.connect(address);
    get(&mut idle, 10);
    let mut client = rig.connect(address);
    client.write_all(b"GET /33554432 HTTP/1.1\r\nhost: x\r\n\r\n").expect("it is sent");
    let mut first = [0; 4096];
    let begun = client.read(&mut first).expect("the answer begins");
    let stopping = std::thread::spawn(move || server.stop());
    let (rest, said_goodbye) = read_to_end(&mut client);
    assert!(said_goodbye && begun + rest.len() > 33_554_432, "the answer in flight arrives whole");
    assert!(read_to_end(&mut idle).1, "an idle connection is told");
    stopping.join().expect("it does not panic").expect("it stops");
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
}
