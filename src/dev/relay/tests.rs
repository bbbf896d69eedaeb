//! The relay against an echo on loopback.
//!
//! Run by `cargo test` with the library. What is asked of time has only lower bounds, so that a busy machine changes nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Instant;

use super::link::{Change, Condition, Traffic, parse_changes};
use super::*;

/// What waits for an answer longer than this has failed.
const BOUND: Duration = Duration::from_secs(20);

struct Rig {
    link: Arc<Link>,
    address: SocketAddr,
    _relay: Relay,
}

impl Rig {
    /// An echo behind a relay in `condition`.
    fn new(condition: Condition) -> Rig {
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = echo.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in echo.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut back = stream.try_clone().unwrap();
                    // However it ends: the test looks at its own side.
                    let _ = io::copy(&mut stream, &mut back);
                    let _ = back.shutdown(Shutdown::Write);
                });
            }
        });
        let link = Arc::new(Link::new(condition));
        // As `dev` does it: the same port on another loopback address.
        let address = SocketAddr::from(([127, 0, 0, 2], to.port()));
        let relay = Relay::start(vec![Path { listen: address, to, link: Arc::clone(&link) }]).unwrap();
        Rig { link, address, _relay: relay }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        stream
    }
}

/// Sends a byte and waits for it.
fn round_trip(stream: &mut TcpStream) -> Duration {
    let began = Instant::now();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    began.elapsed()
}

#[test]
fn everything_arrives_and_so_does_the_end() {
    let rig = Rig::new(Condition::default());
    let mut stream = rig.connect();
    let sent: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut writing = stream.try_clone().unwrap();
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || {
        writing.write_all(&bytes).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert!(got == sent);
}

#[test]
fn latency_is_added_to_a_round_trip_and_changes_on_an_open_connection() {
    let rig = Rig::new(Condition { latency: Duration::from_millis(30), ..Condition::default() });
    let mut stream = rig.connect();
    let far = round_trip(&mut stream);
    assert!(far >= Duration::from_millis(30), "{far:?}");
    rig.link.change(&[Change::Latency(Duration::ZERO)]);
    let near = (0..20).map(|_| round_trip(&mut stream)).min().unwrap();
    assert!(near < Duration::from_millis(30), "{near:?}");
}

#[test]
fn connections_share_a_groups_bandwidth() {
    let rig = Rig::new(Condition { bytes_per_second: Some(4 << 20), ..Condition::default() });
    let began = Instant::now();
    let talk = || {
        let mut stream = rig.connect();
        stream.write_all(&vec![1; 1 << 20]).unwrap();
        stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
    };
    std::thread::scope(|scope| [scope.spawn(talk), scope.spawn(talk)].map(|thread| thread.join().unwrap()));
    // 2 MiB at 4 MiB/s, each way at the same time.
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(480), "{took:?}");
}

#[test]
fn what_is_cut_off_arrives_when_the_link_is_up_again() {
    let rig = Rig::new(Condition::default());
    let mut stream = rig.connect();
    round_trip(&mut stream);
    rig.link.change(&[Change::Traffic(Traffic::Cut)]);
    stream.write_all(b"held").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    let nothing = stream.read(&mut [0; 8]).unwrap_err();
    assert!(matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{nothing}");
    rig.link.change(&[Change::Traffic(Traffic::Carried)]);
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let mut got = [0; 4];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"held");
}

#[test]
fn a_link_that_refuses_resets_old_and_new_connections_until_it_is_up() {
    let rig = Rig::new(Condition::default());
    let mut open = rig.connect();
    round_trip(&mut open);
    rig.link.change(&[Change::Traffic(Traffic::Refused)]);
    let reset = open.read(&mut [0; 8]).unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert!(rig.connect().read(&mut [0; 8]).is_err());
    rig.link.change(&[Change::Traffic(Traffic::Carried)]);
    round_trip(&mut rig.connect());
}

#[test]
fn a_proxy_that_is_gone_is_a_reset() {
    let rig = Rig::new(Condition::default());
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 3], gone.port()));
    let _relay = Relay::start(vec![Path { listen, to: gone, link: Arc::clone(&rig.link) }]).unwrap();
    let mut stream = TcpStream::connect(listen).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn changes_are_read_as_they_are_typed() {
    let changes = parse_changes("up, latency=20ms,bandwidth=10MiB").unwrap();
    let link = Link::new(Condition { traffic: Traffic::Cut, ..Condition::default() });
    link.change(&changes);
    assert_eq!(
        link.condition(),
        Condition { latency: Duration::from_millis(20), bytes_per_second: Some(10 << 20), traffic: Traffic::Carried }
    );
    assert_eq!(link.condition().to_string(), "up, latency 20ms, bandwidth 10MiB/s");
    for bad in ["", "down", "latency=", "latency=1h", "bandwidth=0", "colour=red", "up;cut"] {
        assert!(parse_changes(bad).is_err(), "{bad}");
    }
}
