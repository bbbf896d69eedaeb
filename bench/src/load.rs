//! The load loop: one thread, its connections, one epoll set, closed or open loop.
//!
//! *Closed*: each connection sends its next request when the last response is complete. *Open*: requests are due at
//! fixed times whatever the server does; one that finds no idle connection waits, and its latency counts from the time
//! it was due, so a stalled server cannot hide behind the requests that it prevented (no coordinated omission).
//! The warm-up asks for each key once, in order, again where a server that is filling itself is busy (503), then at random. Called by `get`, once per core.

use std::collections::VecDeque;
use std::io::Read;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustls::ClientConfig;
use url::Url;

use crate::content::Contents;
use crate::cpu;
use crate::response::{Expected, ResponseReader};
use crate::wire::{self, Link, Sealer};

/// One receive takes at most this much: large enough for several records, small enough for a core's L2 cache.
const RECEIVE_BYTES: usize = 256 << 10;
/// How long the requests still under way at the end may take.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Nothing at all from any connection for this long: the server hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a server that declined is left alone.
const DECLINED_PAUSE: Duration = Duration::from_millis(5);
/// The first pass over the keys may take so long.
const FIRST_PASS_MAX: Duration = Duration::from_secs(600);

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As fast as responses come back.
    Closed,
    /// So many a second, due at fixed times.
    Open(f64),
}

/// What a thread does while there is nothing to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Waiting {
    /// It looks again at once. A server's send then wakes nobody, so that its cost is its own: waking a sleeping core of a
    /// virtual machine costs the server some 7 µs per response. Takes a whole core.
    Poll,
    /// It sleeps until something comes, as most clients do.
    Sleep,
}

/// What one thread is to do.
pub struct Plan {
    pub target: Url,
    pub tls: Arc<ClientConfig>,
    /// One whole request per key.
    pub requests: Arc<Vec<Vec<u8>>>,
    pub contents: Arc<Contents>,
    pub body_bytes: u64,
    pub connection_count: usize,
    pub pace: Pace,
    pub warmup: Duration,
    pub measured: Duration,
    /// One response in so many is decrypted in full and compared, beside the first of each key.
    pub sample_every: u64,
    pub seed: u64,
    /// The core to run on.
    pub core: Option<usize>,
    pub waiting: Waiting,
}

/// What one thread saw in the measured time.
pub struct Tally {
    /// Latencies in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Responses completed, good and bad.
    pub responses: u64,
    pub body_bytes: u64,
    /// Responses with another status than 200 or 206 (warm-up included), the last such status and what came with it.
    pub bad: u64,
    pub bad_status: u16,
    pub bad_words: String,
    /// Times the first pass was told to come again (503).
    pub declined: u64,
    /// Responses compared byte by byte (warm-up included).
    pub verified: u64,
    /// How long the measured time really was, and how long this thread was at work in it: its CPU time, less the turns of
    /// a polling thread that found nothing.
    pub elapsed: Duration,
    pub own_cpu: Duration,
    /// Requests sent per connection attempt that ended with the connection; always 0 or the run fails.
    pub unanswered: u64,
}

/// A request under way.
struct Asked {
    key_index: usize,
    /// Whether it belongs to the first pass over the keys.
    pass: Pass,
    due: Instant,
    sampled: bool,
}

/// Why a key was chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    First,
    Random,
}

struct Lane {
    socket: TcpStream,
    sealer: Sealer,
    reader: ResponseReader,
    record: Vec<u8>,
    sent_bytes: usize,
    asked: Option<Asked>,
}

enum Phase {
    Warmup,
    Measured { since: Instant, own_cpu: Duration },
    Drain { since: Instant },
}

/// A thread's load: its connections and what they have counted.
pub struct Load {
    plan: Plan,
    epoll: OwnedFd,
    lanes: Vec<Lane>,
    idle: Vec<usize>,
    /// Open loop: when the next request is due, and the due times nobody was free for.
    next_due: Instant,
    backlog: VecDeque<Instant>,
    sent: u64,
    /// The first pass: the next key, the keys to ask for again, and how many have not been answered yet.
    next_key: usize,
    declined: VecDeque<usize>,
    unseen: usize,
    /// Nothing is sent before this moment.
    resume_at: Instant,
    keys: SmallRng,
    phase: Phase,
    /// Time spent in turns that found nothing, while polling.
    vain: Duration,
    tally: Tally,
}

impl Load {
    /// Pins the thread and opens its connections.
    ///
    /// # Errors
    /// No such core, or a connection that fails.
    pub fn open(plan: Plan) -> Result<Self> {
        if let Some(core) = plan.core {
            cpu::pin_thread(core)?;
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut lanes = Vec::with_capacity(plan.connection_count);
        for index in 0..plan.connection_count {
            let Link { socket, sealer, opener } = wire::establish(&plan.target, &plan.tls)?;
            socket.set_nonblocking(true)?;
            epoll::add(&epoll, &socket, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            let reader = ResponseReader::new(opener);
            lanes.push(Lane { socket, sealer, reader, record: Vec::new(), sent_bytes: 0, asked: None });
        }
        Ok(Self {
            epoll,
            idle: (0..lanes.len()).collect(),
            lanes,
            next_due: Instant::now(),
            backlog: VecDeque::new(),
            sent: 0,
            next_key: 0,
            declined: VecDeque::new(),
            resume_at: Instant::now(),
            unseen: plan.requests.len(),
            keys: SmallRng::seed_from_u64(plan.seed),
            phase: Phase::Warmup,
            vain: Duration::ZERO,
            tally: Tally::new()?,
            plan,
        })
    }

    /// Runs warm-up and measurement, calling `edge` at the begin and the end of the measured time.
    ///
    /// # Errors
    /// The first protocol error, wrong byte or closed connection ends the run.
    pub fn run(mut self, mut edge: impl FnMut()) -> Result<Tally> {
        let start = Instant::now();
        self.next_due = start;
        let mut last_progress = start;
        let mut events = Vec::with_capacity(self.lanes.len());
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let now = Instant::now();
            ensure!(self.unseen == 0 || now < start + FIRST_PASS_MAX, "the first pass over the keys took over 10 min");
            if self.turn(now, start, &mut edge) {
                return Ok(self.tally);
            }
            self.send_due(now)?;
            events.clear();
            let timeout = Timespec::try_from(self.patience(now)).context("timeout")?;
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(0) if last_progress.elapsed() > SILENCE_MAX => bail!("the server has been silent for 30 s"),
                Ok(0) if self.plan.waiting == Waiting::Poll => {
                    self.vain += now.elapsed();
                    continue;
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => last_progress = now,
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let index = event.data.u64() as usize;
                let flags = event.flags;
                if flags.contains(epoll::EventFlags::OUT) {
                    self.flush(index)?;
                }
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    self.receive(index, &mut buffer)?;
                }
            }
        }
    }

    /// Moves on to the next phase when its time has come; true when all is over.
    fn turn(&mut self, now: Instant, start: Instant, edge: &mut impl FnMut()) -> bool {
        match self.phase {
            Phase::Warmup if now >= start + self.plan.warmup && self.unseen == 0 => {
                self.vain = Duration::ZERO;
                self.phase = Phase::Measured { since: now, own_cpu: cpu::thread_time() };
                edge();
            }
            Phase::Measured { since, own_cpu } if now >= since + self.plan.measured => {
                self.tally.elapsed = now - since;
                self.tally.own_cpu = cpu::thread_time().saturating_sub(own_cpu).saturating_sub(self.vain);
                self.phase = Phase::Drain { since };
                edge();
            }
            Phase::Drain { since } => {
                let nothing_left = self.backlog.is_empty() && self.idle.len() == self.lanes.len();
                if nothing_left || now >= since + self.plan.measured + DRAIN_TIME {
                    self.tally.unanswered = (self.backlog.len() + self.lanes.len() - self.idle.len()) as u64;
                    return true;
                }
            }
            _ => {}
        }
        false
    }

    /// How long to wait for a response at most.
    fn patience(&self, now: Instant) -> Duration {
        if self.plan.waiting == Waiting::Poll {
            return Duration::ZERO;
        }
        match (self.plan.pace, &self.phase) {
            (Pace::Open(_), Phase::Warmup | Phase::Measured { .. }) => self.next_due.saturating_duration_since(now),
            _ => Duration::from_millis(20),
        }
    }

    /// Sends what is due to connections that are idle.
    fn send_due(&mut self, now: Instant) -> Result<()> {
        if now < self.resume_at {
            return Ok(());
        }
        let stopping = matches!(self.phase, Phase::Drain { .. });
        match self.plan.pace {
            Pace::Closed if stopping => {}
            Pace::Closed => {
                while let Some(index) = self.idle.pop() {
                    self.ask(index, now)?;
                }
            }
            Pace::Open(rate) => {
                while !stopping && self.next_due <= now {
                    self.backlog.push_back(self.next_due);
                    self.next_due += Duration::from_secs_f64(1.0 / rate);
                }
                while !self.backlog.is_empty()
                    && let Some(index) = self.idle.pop()
                {
                    if let Some(due) = self.backlog.pop_front() {
                        self.ask(index, due)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The next key: of the first pass as long as it lasts, then a random one.
    fn choose_key(&mut self) -> (usize, Pass) {
        let key_count = self.plan.requests.len();
        if let Some(key_index) = self.declined.pop_front() {
            return (key_index, Pass::First);
        }
        if self.next_key < key_count {
            self.next_key += 1;
            return (self.next_key - 1, Pass::First);
        }
        (self.keys.random_range(0..key_count), Pass::Random)
    }

    /// Sends one request.
    fn ask(&mut self, index: usize, due: Instant) -> Result<()> {
        let (key_index, pass) = self.choose_key();
        self.sent += 1;
        let sampled = pass == Pass::First || self.sent.is_multiple_of(self.plan.sample_every);
        let lane = &mut self.lanes[index];
        lane.sealer.seal(&self.plan.requests[key_index], &mut lane.record)?;
        lane.sent_bytes = 0;
        lane.asked = Some(Asked { key_index, pass, due, sampled });
        lane.reader.begin();
        self.flush(index)
    }

    /// Sends the rest of a request; waits for room in the socket only if there is none.
    fn flush(&mut self, index: usize) -> Result<()> {
        let lane = &mut self.lanes[index];
        let was_partial = lane.sent_bytes > 0;
        lane.sent_bytes = wire::send_some(&mut lane.socket, &lane.record, lane.sent_bytes)?;
        let is_partial = lane.sent_bytes < lane.record.len();
        if was_partial || is_partial {
            let out = if is_partial { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &lane.socket, data, epoll::EventFlags::IN | out)?;
        }
        Ok(())
    }

    /// Takes what one socket has; on a complete response the closed loop sends the next request at once.
    fn receive(&mut self, index: usize, buffer: &mut [u8]) -> Result<()> {
        let lane = &mut self.lanes[index];
        let count = match lane.socket.read(buffer) {
            Ok(0) => bail!("the server closed the connection"),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("receiving"),
        };
        let sample = lane.asked.as_ref().filter(|asked| asked.sampled);
        let sample = sample.map(|asked| self.plan.contents.block(asked.key_index));
        let expected = Expected { body_bytes: self.plan.body_bytes, sample };
        let Some(complete) = lane.reader.feed(&mut buffer[..count], expected)? else { return Ok(()) };
        let asked = lane.asked.take().context("a response to no request")?;
        let now = Instant::now();
        self.idle.push(index);
        self.judge(index, &asked, complete.status, now);
        if let Phase::Measured { since, .. } = self.phase {
            self.tally.responses += 1;
            self.tally.body_bytes += complete.body_bytes;
            self.note_latency(asked.due, since, now)?;
        } else if let Phase::Drain { since } = self.phase {
            self.note_latency(asked.due, since, now)?;
        }
        self.send_due(now)
    }

    /// Takes note of a response's status; a key that was declined in the first pass is asked for again.
    fn judge(&mut self, index: usize, asked: &Asked, status: u16, now: Instant) {
        let is_good = matches!(status, 200 | 206);
        let is_first = asked.pass == Pass::First;
        self.tally.verified += u64::from(asked.sampled && is_good);
        if is_first && status == 503 {
            self.tally.declined += 1;
            self.declined.push_back(asked.key_index);
            self.resume_at = now + DECLINED_PAUSE;
            return;
        }
        self.unseen -= usize::from(is_first);
        if !is_good {
            self.tally.bad += 1;
            self.tally.bad_status = status;
            self.tally.bad_words = self.lanes[index].reader.complaint().trim().to_owned();
        }
    }

    /// Records a latency if its request was due in the measured time.
    fn note_latency(&mut self, due: Instant, since: Instant, now: Instant) -> Result<()> {
        if due >= since {
            let nanoseconds = u64::try_from((now - due).as_nanos()).unwrap_or(u64::MAX).max(1);
            self.tally.latencies.record(nanoseconds)?;
        }
        Ok(())
    }
}

impl Tally {
    /// An empty tally.
    ///
    /// # Errors
    /// Never in practice: three significant digits are a valid precision.
    pub fn new() -> Result<Self> {
        Ok(Self {
            latencies: Histogram::new(3)?,
            responses: 0,
            body_bytes: 0,
            bad: 0,
            bad_status: 0,
            bad_words: String::new(),
            declined: 0,
            verified: 0,
            elapsed: Duration::ZERO,
            own_cpu: Duration::ZERO,
            unanswered: 0,
        })
    }

    /// Adds another thread's counts; the times are those of the slower thread and the sum of both CPUs.
    ///
    /// # Errors
    /// Never in practice: both histograms have the same precision.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.latencies.add(&other.latencies)?;
        self.responses += other.responses;
        self.body_bytes += other.body_bytes;
        self.bad += other.bad;
        if other.bad > 0 {
            self.bad_status = other.bad_status;
            self.bad_words.clone_from(&other.bad_words);
        }
        self.declined += other.declined;
        self.verified += other.verified;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.own_cpu += other.own_cpu;
        self.unanswered += other.unanswered;
        Ok(())
    }
}
