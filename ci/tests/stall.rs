//! The regression test of the heartbeat (GLOMMIO.md, trap 1): while a request is in flight, the executor never sleeps for
//! more than a few heartbeats.
//!
//! Four clients ask for 4 KiB over and over, the load at which glommio parks with runnable tasks most often. Beside the
//! server, on its processor, a control thread does nothing but sleep for a beat, again and again. While a request is in
//! flight, the server must have been given the processor about as often as the control, for its heart beats as fast, or
//! must have been busy or waiting for the processor. So a busy machine, which starves both, can't fail this test, and a
//! stall, in which the server alone sleeps, can't hide in it. A last run
//! without the heartbeat shows what it is for; chance rules it, so it only prints.

#[path = "net/wire.rs"]
mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay::proxy::executor::{self, ExecutorOptions, usable_cpus};
use forebay::proxy::heartbeat::BEAT;
use forebay::proxy::null::{NullOptions, NullServer};
use glommio::ExecutorJoinHandle;
use rustls::ClientConfig;
use wire::{Client, certificate, connect};

const CLIENTS: usize = 4;
const BODY_BYTES: usize = 4096;
const RUN: Duration = Duration::from_secs(3);
const RUNS: usize = 2;
/// A stall: the control slept this often during one request…
const CONTROL_BEATS_MIN: u64 = 8;
/// …the server was asleep for this long at least…
const ASLEEP_MIN: Duration = BEAT.saturating_mul(6);
/// …and the control slept this many times as often as the server was given the processor.
const CONTROL_BEATS_PER_TURN: u64 = 4;

/// What one run saw.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    requests: u64,
    control_beats: u64,
    stalls: u64,
    /// Beats of the control during the worst stall, and turns of the server meanwhile.
    worst: (u64, u64),
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
        assert!(seen.control_beats > 100, "the control did not run: {seen:?}");
        assert_eq!(seen.stalls, 0, "the server slept on a request: {seen:?}");
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
    let control = Control::start(cpu);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (trust, address, beats) = (Arc::clone(trust), server.address, Arc::clone(&control.beats));
            std::thread::spawn(move || client(trust, address, server_thread, &beats))
        })
        .collect();
    let seen =
        clients.into_iter().map(|client| client.join().expect("a client failed")).fold(Seen::default(), |all, one| {
            Seen {
                requests: all.requests + one.requests,
                control_beats: all.control_beats.max(one.control_beats),
                stalls: all.stalls + one.stalls,
                worst: all.worst.max(one.worst),
                longest_request: all.longest_request.max(one.longest_request),
            }
        });
    server.stop().expect("the server stops");
    control.stop();
    seen
}

/// A thread on the server's processor that sleeps for a beat, again and again.
struct Control {
    beats: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: ExecutorJoinHandle<()>,
}

impl Control {
    fn start(cpu: usize) -> Control {
        let (beats, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, until) = (Arc::clone(&beats), Arc::clone(&is_over));
        let thread = executor::start(&ExecutorOptions::new(cpu), move || async move {
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(BEAT);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Control { beats, is_over, thread: thread.expect("the control starts") }
    }

    fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the control ends");
    }
}

fn client(trust: Arc<ClientConfig>, address: SocketAddr, server_thread: u32, control_beats: &AtomicU64) -> Seen {
    let server = Turns::of(server_thread);
    let mut stream = connect(&trust, address);
    let mut answer = vec![0; 64 << 10];
    let mut seen = Seen::default();
    // The first request pays for the handshake.
    request(&mut stream, &mut answer);
    let end = Instant::now() + RUN;
    loop {
        let (before, beats_before, began) = (server.account(), control_beats.load(Ordering::Relaxed), Instant::now());
        if began >= end {
            return seen;
        }
        request(&mut stream, &mut answer);
        let beats = control_beats.load(Ordering::Relaxed) - beats_before;
        let (took, after) = (began.elapsed(), server.account());
        let turns = after.turns - before.turns;
        let asleep = took.saturating_sub(after.busy - before.busy);
        let is_stall = beats >= CONTROL_BEATS_MIN && beats > turns * CONTROL_BEATS_PER_TURN && asleep > ASLEEP_MIN;
        seen.requests += 1;
        seen.control_beats += beats;
        if is_stall {
            seen.stalls += 1;
            seen.worst = seen.worst.max((beats, turns));
        }
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
    /// How long it ran or waited for a processor.
    busy: Duration,
    /// How often it was given one.
    turns: u64,
}

/// Where the kernel keeps a thread's [`Account`].
struct Turns {
    schedstat: File,
}

impl Turns {
    fn of(thread: u32) -> Turns {
        let path = format!("/proc/self/task/{thread}/schedstat");
        Turns { schedstat: File::open(path).expect("the kernel keeps schedstat") }
    }

    fn account(&self) -> Account {
        let mut text = [0; 64];
        let bytes = self.schedstat.read_at(&mut text, 0).expect("schedstat is readable");
        let text = std::str::from_utf8(&text[..bytes]).expect("schedstat is text");
        let mut fields = text.split_ascii_whitespace().map(|field| field.parse::<u64>().expect("a number"));
        let mut next = || fields.next().expect("time run, time waited, turns");
        Account { busy: Duration::from_nanos(next() + next()), turns: next() }
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
