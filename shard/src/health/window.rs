//! What happened in the last while, in a fixed number of buckets.
//!
//! Used by `Health`. An event counts for at least one window and at most one window and a bucket; time that goes back, which
//! a monotonic clock does not, would only keep the newest bucket open.

use std::time::Duration;

use forebay_io::Nanos;

const BUCKETS: usize = 6;

/// Counts of one stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Operations that failed.
    pub(super) errors: u32,
    /// Writes and syncs that ended well.
    pub(super) done: u32,
    /// Of these, slow ones.
    pub(super) slow: u32,
}

/// The last buckets: one more than make a window, because the newest is still open.
#[derive(Debug, Clone)]
pub(super) struct Window {
    bucket_ns: u64,
    newest: u64,
    buckets: [Tally; BUCKETS + 1],
}

impl Window {
    pub(super) fn new(window: Duration) -> Window {
        let bucket_ns = u64::try_from(window.as_nanos() / BUCKETS as u128).unwrap_or(u64::MAX).max(1);
        Window { bucket_ns, newest: 0, buckets: Default::default() }
    }

    /// Everything that still counts.
    pub(super) fn at(&mut self, now: Nanos) -> Tally {
        self.bucket(now);
        self.buckets.iter().fold(Tally::default(), |sum, bucket| Tally {
            errors: sum.errors.saturating_add(bucket.errors),
            done: sum.done.saturating_add(bucket.done),
            slow: sum.slow.saturating_add(bucket.slow),
        })
    }

    pub(super) fn error(&mut self, now: Nanos) -> Tally {
        let bucket = self.bucket(now);
        bucket.errors = bucket.errors.saturating_add(1);
        self.at(now)
    }

    /// Each operation that ended well is told here; a slow one to [`Window::slow`] before.
    pub(super) fn done(&mut self, now: Nanos) -> Tally {
        let bucket = self.bucket(now);
        bucket.done = bucket.done.saturating_add(1);
        self.at(now)
    }

    pub(super) fn slow(&mut self, now: Nanos) {
        let bucket = self.bucket(now);
        bucket.slow = bucket.slow.saturating_add(1);
    }

    /// The bucket of `now`, everything too old emptied.
    fn bucket(&mut self, now: Nanos) -> &mut Tally {
        let number = (now.0 / self.bucket_ns).max(self.newest);
        let count = self.buckets.len() as u64;
        let passed = (number - self.newest).min(count);
        for stale in 0..passed {
            self.buckets[((number - stale) % count) as usize] = Tally::default();
        }
        self.newest = number;
        &mut self.buckets[(number % count) as usize]
    }
}
