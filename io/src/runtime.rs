//! The port to time, tasks and randomness. One thread, no atomics: tasks are `!Send` and run on the caller's core.
//!
//! Implemented on glommio by `ring::RingRuntime` and, with virtual time and a seed, by `sim::SimRuntime`.

use std::future::Future;
use std::time::Duration;

/// Nanoseconds of a monotonic clock whose zero is arbitrary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The time from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What a shard needs of the world beside its disk and its origin.
pub trait Runtime: Clone + 'static {
    /// Runs `task` to its end on this core; nobody waits for it.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    /// The monotonic clock.
    fn now(&self) -> Nanos;
    /// Milliseconds since 1970, for ages that must survive a restart.
    fn unix_ms(&self) -> u64;
    /// Resolves after `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;
    /// Lets other tasks of this core run if their turn has come; for long loops.
    fn yield_now(&self) -> impl Future<Output = ()> + 'static;
    /// A random number; reproducible under the simulator.
    fn random_u64(&self) -> u64;
}
