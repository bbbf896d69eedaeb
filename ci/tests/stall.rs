//! The regression test of the heartbeat (ARCHITECTURE.md, trap 1): while a request is in flight, the executor never sleeps
//! through its heartbeats.
//!
//! Four clients ask for 4 KiB over and over, the load at which glommio parks with runnable tasks most often. Beside the
//! server, on its processor, a witness wakes once a beat and asks the kernel what the server's thread does. Found asleep at
//! several beats in a row, without having been given the processor in between, it slept through its heartbeats: a stall.
//! A server that waits for the processor is not asleep, and a witness that does not get one sees nothing, so a busy machine
//! can't fail this test. A last run with a slow heartbeat shows what it is for; chance rules it, so it only prints.

#[path = "net/wire.rs"]
mod wire;

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use forebay::proxy::executor::{self, Executor, ExecutorOptions, usable_cpus};
use forebay::proxy::heartbeat::BEAT;
use forebay::proxy::null::{NullOptions, NullServer};
use rustls::ClientConfig;
use wire::{Client, certificate, connect};

const SERVER_THREAD: &str = "forebay-null";
const CLIENTS: usize = 4;
const BODY_BYTES: usize = 4096;
const RUN: Duration = Duration::from_secs(3);
const RUNS: usize = 2;
/// Beats in a row that the server may be found asleep at: two looks of the witness may fall into one beat, and a park that
/// the first rung did not end is ended by the second. With a slow heartbeat a stall lasts for as long as its beat.
const ASLEEP_BEATS_MAX: u32 = 6;
/// A heartbeat that is as good as none.
const SLOW_BEAT: Duration = Duration::from_millis(100);

/// What one run saw.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    requests: u64,
    longest_request: Duration,
}

/// What the witness of one run saw.
#[derive(Debug, Default, Clone, Copy)]
struct Witnessed {
    beats: u32,
    stalls: u32,
    longest_asleep_beats: u32,
}

#[test]
fn the_executor_never_sleeps_on_a_request() {
    let directory = tempfile::tempdir().expect("a directory");
    let trust = certificate(directory.path());
    for run in 0..RUNS {
        let (seen, witnessed) = drive(directory.path(), &trust, BEAT);
        println!("with the heartbeat, run {run}: {seen:?} {witnessed:?}");
        assert!(seen.requests > 100 && witnessed.beats > 100, "too little to tell anything: {seen:?} {witnessed:?}");
        assert_eq!(witnessed.stalls, 0, "the server slept on a request: {seen:?} {witnessed:?}");
    }
    println!("with a slow heartbeat: {:?}", drive(directory.path(), &trust, SLOW_BEAT));
}

/// One server, four clients, [`RUN`] long.
fn drive(directory: &Path, trust: &Arc<ClientConfig>, beat: Duration) -> (Seen, Witnessed) {
    let cpu = usable_cpus()[0];
    let mut options = NullOptions::new(directory.join("cert.pem"), directory.join("key.pem"), cpu);
    options.body_bytes = BODY_BYTES;
    options.beat = beat;
    // One of an earlier run may not be quite gone.
    let earlier = threads_named(SERVER_THREAD);
    let server = NullServer::start(options).expect("the server starts");
    let threads = threads_named(SERVER_THREAD);
    let server_thread = *threads.iter().find(|thread| !earlier.contains(thread)).expect("the server has a thread");
    let in_flight = Arc::new(AtomicU32::new(0));
    let witness = Witness::start(cpu, server_thread, Arc::clone(&in_flight));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (trust, address, in_flight) = (Arc::clone(trust), server.address, Arc::clone(&in_flight));
            std::thread::spawn(move || client(trust, address, &in_flight))
        })
        .collect();
    let seen = clients.into_iter().map(|client| client.join().expect("a client failed"));
    let seen = seen.fold(Seen::default(), |all, one| Seen {
        requests: all.requests + one.requests,
        longest_request: all.longest_request.max(one.longest_request),
    });
    let witnessed = witness.stop();
    server.stop().expect("the server stops");
    (seen, witnessed)
}

fn client(trust: Arc<ClientConfig>, address: SocketAddr, in_flight: &AtomicU32) -> Seen {
    let mut stream = connect(&trust, address);
    let mut answer = vec![0; 64 << 10];
    let mut seen = Seen::default();
    // The first request pays for the handshake.
    request(&mut stream, &mut answer);
    let end = Instant::now() + RUN;
    while Instant::now() < end {
        let began = Instant::now();
        in_flight.fetch_add(1, Ordering::Relaxed);
        request(&mut stream, &mut answer);
        in_flight.fetch_sub(1, Ordering::Relaxed);
        seen.requests += 1;
        seen.longest_request = seen.longest_request.max(began.elapsed());
    }
    seen
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

/// A thread on the server's processor that looks at the server once a beat.
struct Witness {
    is_over: Arc<AtomicBool>,
    thread: Executor<Witnessed>,
}

impl Witness {
    fn start(cpu: usize, server_thread: u32, in_flight: Arc<AtomicU32>) -> Witness {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = executor::start(&ExecutorOptions::new(cpu), move |_| async move {
            let server = Watched::of(server_thread);
            let mut witnessed = Witnessed::default();
            let (mut asleep_beats, mut turns_before) = (0, server.turns());
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(BEAT);
                let (is_asleep, turns) = (server.is_asleep(), server.turns());
                let is_owing = in_flight.load(Ordering::Relaxed) > 0;
                asleep_beats = if is_asleep && is_owing && turns == turns_before { asleep_beats + 1 } else { 0 };
                turns_before = turns;
                witnessed.beats += 1;
                witnessed.stalls += u32::from(asleep_beats == ASLEEP_BEATS_MAX + 1);
                witnessed.longest_asleep_beats = witnessed.longest_asleep_beats.max(asleep_beats);
            }
            witnessed
        });
        Witness { is_over, thread: thread.expect("the witness starts") }
    }

    fn stop(self) -> Witnessed {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the witness ends")
    }
}

/// A thread, by the kernel's account.
struct Watched {
    schedstat: File,
    stat: File,
}

impl Watched {
    fn of(thread: u32) -> Watched {
        let open = |name| File::open(format!("/proc/self/task/{thread}/{name}")).expect("the kernel keeps account");
        Watched { schedstat: open("schedstat"), stat: open("stat") }
    }

    /// How often it was given a processor.
    fn turns(&self) -> u64 {
        let text = read(&self.schedstat);
        text.split_ascii_whitespace().nth(2).and_then(|turns| turns.parse().ok()).expect("time run, time waited, turns")
    }

    /// Neither running nor waiting for a processor.
    fn is_asleep(&self) -> bool {
        let text = read(&self.stat);
        // The name stands in parentheses and may hold anything; the state follows it.
        text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }
}

fn read(file: &File) -> String {
    let mut text = [0; 512];
    let bytes = file.read_at(&mut text, 0).expect("the kernel tells");
    String::from_utf8_lossy(&text[..bytes]).into_owned()
}

/// The threads whose names begin with `name`, oldest first: an executor's own comes before its helpers, which inherit the
/// name.
fn threads_named(name: &str) -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("a process has threads").flatten();
    let named =
        tasks.filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    let mut numbers: Vec<u32> =
        named.map(|task| task.file_name().to_string_lossy().parse().expect("a thread's number")).collect();
    numbers.sort_unstable();
    numbers
}
