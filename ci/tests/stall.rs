//! The regression test of the heartbeat (GLOMMIO.md, trap 1): while a request is in flight, the executor never sleeps for
//! more than a few heartbeats.
//!
//! Four clients ask for 4 KiB over and over, the load at which glommio parks with runnable tasks most often. Each asks the
//! kernel how long the server's thread and its own ran or waited for a processor during the request, and how often the
//! server's was woken. What is left of the request's time, both were *asleep*. On a busy machine that alone proves nothing
//! (the packet may wait for the kernel's own thread); but a server whose heart beats is woken every beat meanwhile, and one
//! that stalls is not. So what counts is the longest sleep at a stretch, at least: asleep ÷ (times woken + 1). A second
//! run without the heartbeat shows what it is for; chance rules it, so it only prints.

#[path = "net/wire.rs"]
mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::proxy::executor::usable_cpus;
use forebay::proxy::heartbeat::BEAT;
use forebay::proxy::null::{NullOptions, NullServer};
use rustls::ClientConfig;
use wire::{Client, certificate, connect};

const CLIENTS: usize = 4;
const BODY_BYTES: usize = 4096;
const RUN: Duration = Duration::from_secs(3);
const RUNS: usize = 2;
/// A beat may come late by the length of one turn and the kernel's timer slack; without a beat a stall lasts until some
/// other timer, 25 to 100 ms.
const STRETCH_MAX: Duration = BEAT.saturating_mul(6);

/// What one run saw.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    requests: u64,
    stalls: u64,
    longest_stretch: Duration,
    longest_asleep: Duration,
    longest_request: Duration,
}

#[test]
fn the_executor_never_sleeps_on_a_request() {
    let directory = tempfile::tempdir().expect("a directory");
    let trust = certificate(directory.path());
    for run in 0..RUNS {
        let seen = drive(directory.path(), &trust, BEAT);
        println!("with the heartbeat, run {run}: {seen:?}");
        assert!(seen.requests > 1_000, "too few requests to tell anything: {seen:?}");
        assert_eq!(seen.stalls, 0, "nobody worked on a request for more than {STRETCH_MAX:?}: {seen:?}");
    }
    println!("without the heartbeat: {:?}", drive(directory.path(), &trust, Duration::ZERO));
}

/// One server, four clients, [`RUN`] long.
fn drive(directory: &Path, trust: &Arc<ClientConfig>, beat: Duration) -> Seen {
    let cpu = usable_cpus()[0];
    let mut options = NullOptions::new(directory.join("cert.pem"), directory.join("key.pem"), cpu);
    options.body_bytes = BODY_BYTES;
    options.beat = beat;
    let server = NullServer::start(options).expect("the server starts");
    let server_thread = thread_named("forebay-null");
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (trust, address) = (Arc::clone(trust), server.address);
            std::thread::spawn(move || client(trust, address, server_thread))
        })
        .collect();
    let seen =
        clients.into_iter().map(|client| client.join().expect("a client failed")).fold(Seen::default(), |all, one| {
            Seen {
                requests: all.requests + one.requests,
                stalls: all.stalls + one.stalls,
                longest_stretch: all.longest_stretch.max(one.longest_stretch),
                longest_asleep: all.longest_asleep.max(one.longest_asleep),
                longest_request: all.longest_request.max(one.longest_request),
            }
        });
    server.stop().expect("the server stops");
    seen
}

fn client(trust: Arc<ClientConfig>, address: SocketAddr, server_thread: u32) -> Seen {
    let server_clock = ThreadClock::of(&format!("/proc/self/task/{server_thread}/schedstat"));
    let own_clock = ThreadClock::of("/proc/thread-self/schedstat");
    let mut stream = connect(&trust, address);
    let mut answer = vec![0; 64 << 10];
    let mut seen = Seen::default();
    // The first request pays for the handshake.
    request(&mut stream, &mut answer);
    let end = Instant::now() + RUN;
    loop {
        let (server_before, own_before, began) = (server_clock.read(), own_clock.read(), Instant::now());
        if began >= end {
            return seen;
        }
        request(&mut stream, &mut answer);
        let took = began.elapsed();
        let (server, own) = (server_clock.read(), own_clock.read());
        let busy = (server.busy - server_before.busy) + (own.busy - own_before.busy);
        let asleep = took.saturating_sub(busy);
        let stretch = asleep / (server.woken - server_before.woken + 1);
        seen.requests += 1;
        seen.stalls += u64::from(stretch > STRETCH_MAX);
        seen.longest_stretch = seen.longest_stretch.max(stretch);
        seen.longest_asleep = seen.longest_asleep.max(asleep);
        seen.longest_request = seen.longest_request.max(took);
    }
}

fn request(stream: &mut Client, answer: &mut [u8]) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("the request is sent");
    let mut filled = 0;
    loop {
        let read = stream.read(&mut answer[filled..]).expect("the answer arrives");
        assert!(read > 0, "the server hung up");
        filled += read;
        if let Some(head) = answer[..filled].windows(4).position(|window| window == b"\r\n\r\n")
            && filled >= head + 4 + BODY_BYTES
        {
            return;
        }
    }
}

/// What a thread did so far, by the kernel's account.
#[derive(Clone, Copy)]
struct Account {
    /// Ran, or waited for a processor.
    busy: Duration,
    /// How often it was given a processor.
    woken: u32,
}

/// Where the kernel keeps a thread's [`Account`].
struct ThreadClock {
    schedstat: File,
}

impl ThreadClock {
    fn of(path: &str) -> ThreadClock {
        ThreadClock { schedstat: File::open(path).expect("the kernel keeps schedstat") }
    }

    fn read(&self) -> Account {
        let mut text = [0; 64];
        let bytes = self.schedstat.read_at(&mut text, 0).expect("schedstat is readable");
        let text = std::str::from_utf8(&text[..bytes]).expect("schedstat is text");
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse::<u64>().expect("a number"));
        let mut next = || fields.next().expect("time run, time waited, times given a processor");
        let busy = Duration::from_nanos(next() + next());
        Account { busy, woken: u32::try_from(next()).expect("a short test") }
    }
}

fn thread_named(name: &str) -> u32 {
    for task in std::fs::read_dir("/proc/self/task").expect("a process has threads").flatten() {
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if comm.starts_with(name) {
            return task.file_name().to_string_lossy().parse().expect("a thread's number");
        }
    }
    panic!("no thread is called {name}");
}
