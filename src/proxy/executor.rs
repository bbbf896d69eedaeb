//! One pinned glommio executor per core: threads, their placement and the figures they run with.
//!
//! Called by `boot` (one per configured core) and by `null`. Everything of a core (shards, listeners, connections) runs
//! on its executor's one thread (I12). The defaults and their reasons are in ARCHITECTURE.md: the preempt timer is the wake
//! latency of a busy core (trap 2), and the arena must be large enough never to overflow (trap 4).

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow};
use glommio::{LocalExecutorBuilder, Placement};
use tracing::warn;

use super::first_beat;
use super::heartbeat::{BEAT, Heartbeat};

/// How often a busy executor looks at its ring for messages from other threads and timers. Half as long costs 6 % of the
/// CPU at 256 KiB.
pub const PREEMPT: Duration = Duration::from_millis(1);

/// How long an executor looks for work before it sleeps in the kernel: 20 µs cost an idle node next to nothing and save
/// a wake-up on the round trip to another core.
pub const SPIN_BEFORE_PARK: Duration = Duration::from_micros(20);

/// The arena of an executor that does no disk I/O; glommio refuses less than 512 KiB or so.
pub const IO_MEMORY_BYTES_MIN: usize = 1 << 20;

/// What one executor runs with.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// The thread's name.
    pub name: String,
    /// The processor it is pinned to.
    pub cpu: usize,
    /// The registered arena of disk buffers in bytes.
    pub io_memory_bytes: usize,
    /// Entries of each ring: a power of two.
    pub ring_depth: usize,
    /// See [`PREEMPT`].
    pub preempt: Duration,
    /// See [`SPIN_BEFORE_PARK`].
    pub spin_before_park: Duration,
    /// See [`BEAT`].
    pub beat: Duration,
}

impl ExecutorOptions {
    /// The usual figures for `cpu`, with the smallest arena.
    #[must_use]
    pub fn new(cpu: usize) -> ExecutorOptions {
        ExecutorOptions {
            name: format!("forebay-{cpu}"),
            cpu,
            io_memory_bytes: IO_MEMORY_BYTES_MIN,
            ring_depth: 1024,
            preempt: PREEMPT,
            spin_before_park: SPIN_BEFORE_PARK,
            beat: BEAT,
        }
    }

    fn builder(&self, placement: Placement) -> LocalExecutorBuilder {
        LocalExecutorBuilder::new(placement)
            .io_memory(self.io_memory_bytes.max(IO_MEMORY_BYTES_MIN))
            .ring_depth(self.ring_depth)
            .preempt_timer(self.preempt)
            .spin_before_park(self.spin_before_park)
    }
}

/// The thread of an executor. Dropping it does not stop the executor.
#[derive(Debug)]
pub struct Executor<T> {
    thread: JoinHandle<anyhow::Result<T>>,
}

impl<T> Executor<T> {
    /// Waits until its future is done.
    ///
    /// # Errors
    /// The executor could not be made, or it panicked.
    pub fn join(self) -> anyhow::Result<T> {
        let name = self.thread.thread().name().unwrap_or_default().to_owned();
        self.thread.join().map_err(|_| anyhow!("the executor {name} panicked"))?
    }
}

/// Starts a thread with an executor that runs the future `main` makes there, given the heartbeat that keeps it awake. If the
/// processor is not this process's to use, the thread runs unpinned and says so. Returns when the heart has begun to beat.
///
/// # Errors
/// The kernel refused the ring or the arena (io_uring disabled, memlock too small).
pub fn start<G, F, T>(options: &ExecutorOptions, main: G) -> anyhow::Result<Executor<T>>
where
    G: FnOnce(Rc<Heartbeat>) -> F + Send + 'static,
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let placement = if may_use(options.cpu) {
        Placement::Fixed(options.cpu)
    } else {
        warn!(cpu = options.cpu, "this process may not run on the processor: its executor runs unpinned");
        Placement::Unbound
    };
    let has_begun = Arc::new(AtomicBool::new(false));
    let (begins, own_options) = (Arc::clone(&has_begun), options.clone());
    // A thread of our own, because glommio's does not tell which it is, and `first_beat` must know.
    let thread = thread::Builder::new().name(options.name.clone()).spawn(move || {
        let executor = own_options.builder(placement).make().map_err(|error| anyhow!("{error}"));
        let executor = executor.with_context(|| format!("starting the executor of processor {}", own_options.cpu))?;
        Ok(executor.run(async move { main(Heartbeat::start(own_options.beat, begins)).await }))
    });
    let executor = Executor { thread: thread.context("starting a thread")? };
    first_beat::until_first_beat(&executor.thread, &has_begun)?;
    if has_begun.load(Ordering::Acquire) {
        return Ok(executor);
    }
    executor.join()?;
    Err(anyhow!("the executor of processor {} ended before it began", options.cpu))
}

/// The processors that this process may run on, in order.
#[must_use]
pub fn usable_cpus() -> Vec<usize> {
    let listed = std::fs::read_to_string("/proc/thread-self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        parse_cpu_list(line.trim())
    });
    listed.unwrap_or_else(|| (0..thread::available_parallelism().map_or(1, usize::from)).collect())
}

/// The kernel's list format: `0-3,8`.
fn parse_cpu_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

fn may_use(cpu: usize) -> bool {
    usable_cpus().contains(&cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_runs_on_its_processor() {
        let cpu = *usable_cpus().last().expect("a process runs somewhere");
        let ran_on =
            start(&ExecutorOptions::new(cpu), |_| async { usable_cpus() }).expect("it starts").join().expect("it ends");
        assert_eq!(ran_on, vec![cpu]);
    }

    #[test]
    fn a_processor_that_is_not_there_leaves_the_executor_unpinned() {
        let ran_on = start(&ExecutorOptions::new(1_000), |_| async { usable_cpus() })
            .expect("it starts")
            .join()
            .expect("it ends");
        assert_eq!(ran_on, usable_cpus());
    }

    #[test]
    fn the_kernels_list_format_is_understood() {
        assert_eq!(parse_cpu_list("0-2,5,7-7"), Some(vec![0, 1, 2, 5, 7]));
        assert_eq!(parse_cpu_list(""), None);
        assert_eq!(parse_cpu_list("a-b"), None);
    }
}
