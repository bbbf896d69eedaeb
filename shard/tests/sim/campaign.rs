//! Many runs: seeds dealt to threads, violations caught and told, coverage summed.
//!
//! Used by the program (`program.rs`) and by `tests/sim.rs`. One run stays on one thread; a violation is a panic, which
//! is caught here and becomes a [`Violation`] with the history of the key concerned.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use forebay_io::sim::SimWorld;

use super::coverage::Coverage;
use super::history;
use super::run::{Ran, run};

/// A promise that was broken.
pub struct Violation {
    pub seed: u64,
    /// One line.
    pub words: String,
    /// What led to it.
    pub history: String,
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From now on panics of runs are kept for their report, not printed.
pub fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let words = info.payload_as_str().unwrap_or("a panic without words");
        let place = info.location().map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
        PANIC.with_borrow_mut(|panic| *panic = format!("{words}{place}"));
    }));
}

/// The words of this thread's last panic, in one line.
pub fn last_panic() -> String {
    PANIC.with_borrow(|panic| panic.replace('\n', " "))
}

/// Runs one seed.
///
/// # Errors
/// The violation that it found.
pub fn run_seed(seed: u64, steps: u64) -> Result<Ran, Violation> {
    let world = SimWorld::new(seed);
    let for_run = world.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| run(for_run, seed, steps)));
    let outcome = outcome.map_err(|_| Violation { seed, words: last_panic(), history: history::tell() });
    // What a violation leaves behind may not even be fit to be dropped.
    drop(catch_unwind(AssertUnwindSafe(|| drop(world))));
    outcome
}

/// What a campaign has done so far, readable by the thread that shows it.
#[derive(Default)]
pub struct Progress {
    pub seeds: AtomicU64,
    pub ops: AtomicU64,
    pub violations: AtomicU64,
}

/// What to run.
pub struct Campaign {
    /// The first seed and the one behind the last.
    pub seeds: std::ops::Range<u64>,
    pub steps: u64,
    pub jobs: usize,
    pub on_violation: OnViolation,
}

/// Whether to look further after a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnViolation {
    Stop,
    GoOn,
}

impl Campaign {
    /// Deals the seeds to threads until they are used up, `stop` is set, or a violation ends it. Each violation is told
    /// to `told` as it is found.
    pub fn run(&self, progress: &Progress, stop: &AtomicBool, told: impl Fn(&Violation) + Sync) -> Coverage {
        let (next, total) = (AtomicU64::new(self.seeds.start), Mutex::new(Coverage::default()));
        let work = || {
            let mut coverage = Coverage::default();
            while !stop.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= self.seeds.end {
                    break;
                }
                match run_seed(seed, self.steps) {
                    Ok(ran) => {
                        coverage.add(&ran.coverage);
                        progress.ops.fetch_add(ran.ops, Ordering::Relaxed);
                    }
                    Err(violation) => {
                        progress.violations.fetch_add(1, Ordering::Relaxed);
                        told(&violation);
                        if self.on_violation == OnViolation::Stop {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
                progress.seeds.fetch_add(1, Ordering::Relaxed);
            }
            total.lock().unwrap_or_else(PoisonError::into_inner).add(&coverage);
        };
        std::thread::scope(|scope| (0..self.jobs).for_each(|_| drop(scope.spawn(work))));
        total.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
