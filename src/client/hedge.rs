//! When a read that takes long is worth asking a second member for: pure. Time is given.
//!
//! Used by `race`. For each class of reads the running 98th percentile of the time to an answer is kept; a read that takes longer (and longer than
//! [`DELAY_MIN`]) may be asked elsewhere too, if the budget allows it. Source of the idea: Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013.
//!
//! Invariant: of any number of reads at most one in 25 was hedged.

use std::ops::Range;
use std::time::Duration;

use http::Method;

/// Nothing is hedged sooner.
pub const DELAY_MIN: Duration = Duration::from_millis(10);
/// A percentile of fewer samples says nothing.
const SAMPLES_MIN: u32 = 100;
/// At so many all counts are halved: what was long ago matters less and less.
const SAMPLES_MAX: u32 = 2_000;
/// What a read earns of a hedge, in hundredths; what one costs; what can be saved up.
const EARNED: u32 = 4;
const COST: u32 = 100;
const SAVED_MAX: u32 = 10 * COST;
/// The first bucket ends here; each is a fourth of an octave, so the last ends at 37 s.
const FIRST_BUCKET_US: f64 = 256.0;
const BUCKETS: usize = 70;
/// A part that is not larger is a class of its own.
const SMALL_PART_BYTES: u64 = 64 << 10;

/// Reads that take about as long as each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Of its head only.
    Head,
    /// Of a small part.
    Part,
    /// Of more.
    Whole,
}

impl Class {
    /// Of a request.
    #[must_use]
    pub fn of(method: &Method, range: Option<&Range<u64>>) -> Class {
        match range {
            _ if *method == Method::HEAD => Class::Head,
            Some(range) if range.end.saturating_sub(range.start) <= SMALL_PART_BYTES => Class::Part,
            _ => Class::Whole,
        }
    }
}

/// What is known of past reads, and how many may be hedged.
#[derive(Debug)]
pub struct Hedges {
    classes: [Latencies; 3],
    saved: u32,
}

impl Default for Hedges {
    fn default() -> Hedges {
        Hedges { classes: [Latencies::new(), Latencies::new(), Latencies::new()], saved: 0 }
    }
}

impl Hedges {
    /// A read begins: after how long a second member may be asked; `None`: too little is known.
    pub fn begin(&mut self, class: Class) -> Option<Duration> {
        self.saved = (self.saved + EARNED).min(SAVED_MAX);
        self.classes[class as usize].percentile(98).map(|percentile| percentile.max(DELAY_MIN))
    }

    /// Takes one hedge out of the budget, if there is one.
    pub fn spend(&mut self) -> bool {
        let left = self.saved.checked_sub(COST);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }

    /// A read was answered by the member that was asked first; or, if another one was faster, had not been after so long.
    pub fn took(&mut self, class: Class, took: Duration) {
        self.classes[class as usize].add(took);
    }
}

/// A histogram that forgets.
#[derive(Debug)]
struct Latencies {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Latencies {
    fn new() -> Latencies {
        Latencies { counts: [0; BUCKETS], total: 0 }
    }

    fn add(&mut self, took: Duration) {
        if self.total >= SAMPLES_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        // At most 70 of them, and never negative.
        let bucket = (took.as_secs_f64() * 1e6 / FIRST_BUCKET_US).log2() * 4.0;
        let bucket = if bucket > 0.0 { (bucket.ceil() as usize).min(BUCKETS - 1) } else { 0 };
        self.counts[bucket] += 1;
        self.total += 1;
    }

    /// The end of the bucket below which `percent` of the samples are.
    fn percentile(&self, percent: u32) -> Option<Duration> {
        if self.total < SAMPLES_MIN {
            return None;
        }
        let wanted = (self.total * percent).div_ceil(100);
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= wanted
        })?;
        Some(Duration::from_secs_f64(FIRST_BUCKET_US * (bucket as f64 / 4.0).exp2() / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_read_is_hedged_after_the_98th_percentile_of_its_class() {
        let mut hedges = Hedges::default();
        for number in 0..1_000u32 {
            assert_eq!(hedges.begin(Class::Whole).is_some(), number >= SAMPLES_MIN);
            hedges.took(Class::Whole, MS * (1 + number % 100));
        }
        let delay = hedges.begin(Class::Whole).unwrap_or_default();
        assert!((MS * 98..MS * 98 * 5 / 4).contains(&delay), "a bucket is a fifth wide: {delay:?}");
        assert_eq!(hedges.begin(Class::Head), None, "another class");
        for _ in 0..10_000 {
            hedges.took(Class::Whole, MS);
        }
        assert_eq!(hedges.begin(Class::Whole), Some(DELAY_MIN), "what was long ago is forgotten");
    }

    #[test]
    fn the_slowest_and_the_fastest_have_a_bucket() {
        let mut hedges = Hedges::default();
        for _ in 0..SAMPLES_MIN {
            hedges.took(Class::Part, Duration::ZERO);
            hedges.took(Class::Head, Duration::from_secs(100_000));
        }
        assert_eq!(hedges.begin(Class::Part), Some(DELAY_MIN));
        assert!(hedges.begin(Class::Head) > Some(Duration::from_secs(30)));
    }

    #[test]
    fn classes_are_told_by_what_is_asked_for() {
        let of = |method, range: Option<Range<u64>>| Class::of(&method, range.as_ref());
        assert_eq!(of(Method::HEAD, None), Class::Head);
        assert_eq!(of(Method::GET, None), Class::Whole);
        assert_eq!((of(Method::GET, Some(5..10)), of(Method::GET, Some(5..u64::MAX))), (Class::Part, Class::Whole));
    }

    proptest! {
        /// Whenever a hedge is wanted: at most one in 25 reads, from the first on.
        #[test]
        fn at_most_one_read_in_25_is_hedged(wanted in prop::collection::vec(any::<bool>(), 1..2_000)) {
            let (mut hedges, mut hedged) = (Hedges::default(), 0);
            for (number, wanted) in (1..).zip(wanted) {
                hedges.begin(Class::Whole);
                hedged += u32::from(wanted && hedges.spend());
                prop_assert!(hedged * 25 <= number, "{hedged} of {number}");
            }
        }
    }
}
