//! What one core counts about requests, and the snapshot of it that a scrape adds up.
//!
//! Counted without atomics by `handler` and `body` on the core itself; a scrape asks each core for its [`Snapshot`]
//! (plain `Send` data). Latencies end when the answer's head is ready: for GET the time to the first byte, for PUT and
//! DELETE the time to the acknowledgement. Histograms are allocated once, at start.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::problem::Problem;
use crate::token::Refusal;

/// How a request ended, for latencies: one histogram each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// GET from the memory tier.
    HitMemory,
    /// GET from the disk.
    HitDisk,
    /// GET that began a fill.
    Miss,
    /// GET that joined a fill.
    Collapsed,
    /// GET or HEAD of a block that is not there.
    Absent,
    /// HEAD of a block that is.
    Head,
    /// PUT acknowledged.
    Put,
    /// DELETE acknowledged.
    Delete,
    /// Purge done.
    Purge,
    /// Pin acknowledged.
    Pin,
    /// Unpin acknowledged.
    Unpin,
    /// Everything that is not about a block: ping, topology, status, metrics, health.
    Other,
    /// 4xx other than a block that is not there.
    Refused,
    /// 5xx.
    Failed,
}

impl Outcome {
    /// All of them, in order of their numbers.
    pub const ALL: [Outcome; 14] = [
        Outcome::HitMemory,
        Outcome::HitDisk,
        Outcome::Miss,
        Outcome::Collapsed,
        Outcome::Absent,
        Outcome::Head,
        Outcome::Put,
        Outcome::Delete,
        Outcome::Purge,
        Outcome::Pin,
        Outcome::Unpin,
        Outcome::Other,
        Outcome::Refused,
        Outcome::Failed,
    ];

    /// Its label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Outcome::HitMemory => "hit-memory",
            Outcome::HitDisk => "hit-disk",
            Outcome::Miss => "miss",
            Outcome::Collapsed => "collapsed",
            Outcome::Absent => "absent",
            Outcome::Head => "head",
            Outcome::Put => "put",
            Outcome::Delete => "delete",
            Outcome::Purge => "purge",
            Outcome::Pin => "pin",
            Outcome::Unpin => "unpin",
            Outcome::Other => "other",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        }
    }
}

/// Why tokens are refused, in order of their numbers.
pub const REFUSALS: [(Refusal, &str); 9] = [
    (Refusal::Missing, "missing"),
    (Refusal::Malformed, "malformed"),
    (Refusal::UnknownKey, "unknown-key"),
    (Refusal::BadSignature, "bad-signature"),
    (Refusal::Expired, "expired"),
    (Refusal::NotYetValid, "not-yet-valid"),
    (Refusal::WrongVolume, "wrong-volume"),
    (Refusal::ReadOnly, "read-only"),
    (Refusal::Revoked, "revoked"),
];

/// Latencies in microseconds up to a minute, with two significant digits: 3 % at worst, about 11 KiB each.
const LATENCY_US_MAX: u64 = 60_000_000;
const LATENCY_DIGITS: u8 = 2;

/// A core's counters.
pub struct CoreMetrics {
    latencies: [RefCell<Histogram<u64>>; Outcome::ALL.len()],
    latency_sums_us: [Cell<u64>; Outcome::ALL.len()],
    problems: [Cell<u64>; Problem::ALL.len()],
    refusals: [Cell<u64>; REFUSALS.len()],
    bytes_sent: Cell<u64>,
    bytes_received: Cell<u64>,
    bodies_broken: Cell<u64>,
    bodies_repaired: Cell<u64>,
    hops: Cell<u64>,
    leases: Cell<u64>,
    in_flight: Cell<u64>,
    put_bytes_held: Cell<u64>,
}

impl Default for CoreMetrics {
    fn default() -> CoreMetrics {
        CoreMetrics {
            latencies: std::array::from_fn(|_| RefCell::new(new_histogram())),
            latency_sums_us: std::array::from_fn(|_| Cell::new(0)),
            problems: std::array::from_fn(|_| Cell::new(0)),
            refusals: std::array::from_fn(|_| Cell::new(0)),
            bytes_sent: Cell::new(0),
            bytes_received: Cell::new(0),
            bodies_broken: Cell::new(0),
            bodies_repaired: Cell::new(0),
            hops: Cell::new(0),
            leases: Cell::new(0),
            in_flight: Cell::new(0),
            put_bytes_held: Cell::new(0),
        }
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).expect("the bounds are constants that fit")
}

impl CoreMetrics {
    /// A request ended.
    pub fn ended(&self, outcome: Outcome, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).clamp(1, LATENCY_US_MAX);
        self.latencies[outcome as usize].borrow_mut().saturating_record(us);
        add(&self.latency_sums_us[outcome as usize], us);
    }

    /// A request was answered with a problem.
    pub fn problem(&self, problem: Problem) {
        add(&self.problems[problem as usize], 1);
    }

    /// A token was refused.
    pub fn refusal(&self, refusal: Refusal) {
        let index = REFUSALS.iter().position(|(known, _)| *known == refusal).expect("every refusal is in the list");
        add(&self.refusals[index], 1);
    }

    /// Body bytes handed to the connection.
    pub fn sent(&self, bytes: u64) {
        add(&self.bytes_sent, bytes);
    }

    /// Body bytes taken from the connection.
    pub fn received(&self, bytes: u64) {
        add(&self.bytes_received, bytes);
    }

    /// A body could not be sent to its end.
    pub fn body_broke(&self) {
        add(&self.bodies_broken, 1);
    }

    /// A block rotted on disk and was repaired within its request.
    pub fn body_repaired(&self) {
        add(&self.bodies_repaired, 1);
    }

    /// A request crossed to another core.
    pub fn hopped(&self) {
        add(&self.hops, 1);
    }

    /// An answer carried a lease of a hot block.
    pub fn leased(&self) {
        add(&self.leases, 1);
    }

    /// A request began (`1`) or was answered.
    pub fn began(&self) {
        add(&self.in_flight, 1);
    }

    /// A request that began has its answer, or was given up.
    pub fn answered(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    /// What bodies of puts hold on this core now.
    pub fn set_put_bytes_held(&self, bytes: u64) {
        self.put_bytes_held.set(bytes);
    }

    /// Everything, at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counted = |cells: &[Cell<u64>]| cells.iter().map(Cell::get).collect();
        Snapshot {
            latencies: self.latencies.iter().map(|histogram| Some(histogram.borrow().clone())).collect(),
            latency_sums_us: counted(&self.latency_sums_us),
            problems: counted(&self.problems),
            refusals: counted(&self.refusals),
            bytes_sent: self.bytes_sent.get(),
            bytes_received: self.bytes_received.get(),
            bodies_broken: self.bodies_broken.get(),
            bodies_repaired: self.bodies_repaired.get(),
            hops: self.hops.get(),
            leases: self.leases.get(),
            in_flight: self.in_flight.get(),
            put_bytes_held: self.put_bytes_held.get(),
        }
    }
}

fn add(cell: &Cell<u64>, count: u64) {
    cell.set(cell.get() + count);
}

/// A core's counters at one moment; several add up.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    latencies: Vec<Option<Histogram<u64>>>,
    latency_sums_us: Vec<u64>,
    problems: Vec<u64>,
    refusals: Vec<u64>,
    /// Body bytes handed to connections.
    pub bytes_sent: u64,
    /// Body bytes taken from connections.
    pub bytes_received: u64,
    /// Bodies that could not be sent to their end.
    pub bodies_broken: u64,
    /// Blocks that rotted on disk and were repaired within their request.
    pub bodies_repaired: u64,
    /// Requests that crossed to another core.
    pub hops: u64,
    /// Answers that carried a lease of a hot block.
    pub leases: u64,
    /// Requests without an answer yet.
    pub in_flight: u64,
    /// What bodies of puts hold in memory.
    pub put_bytes_held: u64,
}

/// The upper bounds of the published buckets in microseconds: 1, 2.5 and 5 of each decade that matters.
const BUCKETS_US: [u64; 20] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

impl Snapshot {
    /// Adds another core's.
    pub fn add(&mut self, other: &Snapshot) {
        self.latencies.resize(self.latencies.len().max(other.latencies.len()), None);
        for (sum, histogram) in self.latencies.iter_mut().zip(&other.latencies) {
            match (sum, histogram) {
                (Some(sum), Some(histogram)) => sum.add(histogram).expect("all histograms have the same bounds"),
                (sum, Some(histogram)) => *sum = Some(histogram.clone()),
                (_, None) => {}
            }
        }
        add_each(&mut self.latency_sums_us, &other.latency_sums_us);
        add_each(&mut self.problems, &other.problems);
        add_each(&mut self.refusals, &other.refusals);
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.bodies_broken += other.bodies_broken;
        self.bodies_repaired += other.bodies_repaired;
        self.hops += other.hops;
        self.leases += other.leases;
        self.in_flight += other.in_flight;
        self.put_bytes_held += other.put_bytes_held;
    }

    /// How many requests ended so.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.latency(outcome).map_or(0, Histogram::len)
    }

    /// The latency below which `quantile` (0 to 1) of those requests stayed, in microseconds; 0 if there were none.
    #[must_use]
    pub fn quantile_us(&self, outcome: Outcome, quantile: f64) -> u64 {
        self.latency(outcome).map_or(0, |histogram| histogram.value_at_quantile(quantile))
    }

    /// The sum of their latencies in seconds.
    #[must_use]
    pub fn sum_seconds(&self, outcome: Outcome) -> f64 {
        self.latency_sums_us.get(outcome as usize).map_or(0.0, |us| *us as f64 / 1e6)
    }

    /// Buckets for OpenMetrics: upper bound in seconds, and how many lie between the bound before and this one.
    #[must_use]
    pub fn buckets(&self, outcome: Outcome) -> Vec<(f64, u64)> {
        let histogram = self.latency(outcome);
        let mut below = 0;
        let bounded = BUCKETS_US.iter().map(|bound_us| {
            let count = histogram.map_or(0, |histogram| histogram.count_between(0, *bound_us));
            let here = count.saturating_sub(below);
            below = below.max(count);
            (*bound_us as f64 / 1e6, here)
        });
        let mut buckets: Vec<_> = bounded.collect();
        buckets.push((f64::INFINITY, self.count(outcome).saturating_sub(below)));
        buckets
    }

    /// How many answers were this problem.
    #[must_use]
    pub fn problems(&self, problem: Problem) -> u64 {
        self.problems.get(problem as usize).copied().unwrap_or(0)
    }

    /// Refused tokens by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS.iter().enumerate().map(|(index, (_, label))| (*label, self.refusals.get(index).copied().unwrap_or(0)))
    }

    fn latency(&self, outcome: Outcome) -> Option<&Histogram<u64>> {
        self.latencies.get(outcome as usize).and_then(Option::as_ref)
    }
}

fn add_each(sums: &mut Vec<u64>, others: &[u64]) {
    sums.resize(sums.len().max(others.len()), 0);
    sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_numbered_as_they_are_listed() {
        Outcome::ALL.iter().enumerate().for_each(|(index, outcome)| assert_eq!(*outcome as usize, index));
    }

    #[test]
    fn snapshots_of_cores_add_up() {
        let (one, other) = (CoreMetrics::default(), CoreMetrics::default());
        one.ended(Outcome::Put, Duration::from_micros(80));
        one.ended(Outcome::Put, Duration::from_secs(3_600));
        other.ended(Outcome::Put, Duration::from_millis(3));
        other.problem(Problem::KeyExists);
        other.refusal(Refusal::Expired);
        one.sent(5);
        other.sent(6);
        let mut sum = Snapshot::default();
        sum.add(&one.snapshot());
        sum.add(&other.snapshot());
        assert_eq!((sum.count(Outcome::Put), sum.count(Outcome::Miss), sum.bytes_sent), (3, 0, 11));
        assert_eq!((sum.problems(Problem::KeyExists), sum.problems(Problem::Internal)), (1, 0));
        assert_eq!(sum.refusals().find(|(_, count)| *count > 0), Some(("expired", 1)));
        let buckets = sum.buckets(Outcome::Put);
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 3);
        assert!(buckets.contains(&(0.0001, 1)) && buckets.contains(&(0.005, 1)));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
        assert!((79..=81).contains(&sum.quantile_us(Outcome::Put, 0.01)));
    }
}
