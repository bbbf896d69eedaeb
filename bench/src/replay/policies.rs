//! The policies by name, and what each is asked: one request, hit or not, and what it let in.
//!
//! Started by `replay` for each capacity. FIFO, LRU, CLOCK, SIEVE and S3-FIFO are those of the papers; `forebay` is what
//! the memory tier of a node runs. All stand on the same queues, so differences are differences of policy.

use clap::ValueEnum;
use forebay_shard::policy::s3fifo::S3Fifo as NodePolicy;

use self::classic::{Clock, Fifo, Lru};
use self::regions::Regions;
use self::s3fifo::S3Fifo;
use self::sieve::Sieve;
use super::trace::Request;

mod classic;
mod regions;
mod s3fifo;
mod sieve;

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// First in, first out
    Fifo,
    /// Least recently used
    Lru,
    /// Second chance: a queue with one bit of use (Corbató)
    Clock,
    /// SIEVE (NSDI '24)
    Sieve,
    /// S3-FIFO as in its paper (SOSP '23)
    S3Fifo,
    /// What Forebay's memory tier does
    Forebay,
    /// What Forebay's disk does, region by region
    ForebayDisk,
}

impl Name {
    /// As tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Name::Fifo => "FIFO",
            Name::Lru => "LRU",
            Name::Clock => "CLOCK",
            Name::Sieve => "SIEVE",
            Name::S3Fifo => "S3-FIFO",
            Name::Forebay => "Forebay",
            Name::ForebayDisk => "Forebay's disk",
        }
    }

    /// Whether it is one of the five that Forebay is compared with.
    pub fn is_of_the_papers(self) -> bool {
        !matches!(self, Name::Forebay | Name::ForebayDisk)
    }

    /// An empty cache of it.
    pub fn start(self, capacity_bytes: u64) -> Box<dyn Replayed> {
        match self {
            Name::Fifo => Run::boxed(capacity_bytes, Fifo::new(capacity_bytes)),
            Name::Lru => Run::boxed(capacity_bytes, Lru::new(capacity_bytes)),
            Name::Clock => Run::boxed(capacity_bytes, Clock::new(capacity_bytes)),
            Name::Sieve => Run::boxed(capacity_bytes, Sieve::new(capacity_bytes)),
            Name::S3Fifo => Run::boxed(capacity_bytes, S3Fifo::new(capacity_bytes)),
            Name::Forebay => Run::boxed(capacity_bytes, OfTheNode(NodePolicy::new(capacity_bytes))),
            Name::ForebayDisk => Run::boxed(capacity_bytes, Regions::new(capacity_bytes)),
        }
    }
}

/// Decides what a cache of so many bytes holds.
pub trait Policy {
    /// Whether `id` is held; counts as a use.
    fn is_hit(&mut self, id: u64) -> bool;
    /// Takes in what was not held. `bytes` fit into the capacity.
    fn admit(&mut self, id: u64, bytes: u32);
    /// Bytes queued again rather than evicted: a queue that is a log on disk writes them anew.
    fn moved_bytes(&self) -> u64;
}

/// A policy at work on a trace.
pub trait Replayed {
    /// Takes the next requests.
    fn replay(&mut self, batch: &[Request]);
    /// What they came to.
    fn tally(&self) -> Tally;
}

/// Counts of one run. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub requests: u64,
    pub misses: u64,
    pub served_bytes: u64,
    pub missed_bytes: u64,
    pub admitted_bytes: u64,
    pub moved_bytes: u64,
}

struct Run<P> {
    capacity_bytes: u64,
    policy: P,
    tally: Tally,
}

impl<P: Policy + 'static> Run<P> {
    fn boxed(capacity_bytes: u64, policy: P) -> Box<dyn Replayed> {
        Box::new(Run { capacity_bytes, policy, tally: Tally::default() })
    }
}

impl<P: Policy> Replayed for Run<P> {
    fn replay(&mut self, batch: &[Request]) {
        for &Request { id, bytes } in batch {
            let size = u64::from(bytes);
            self.tally.served_bytes += size;
            if self.policy.is_hit(id) {
                continue;
            }
            self.tally.misses += 1;
            self.tally.missed_bytes += size;
            if size <= self.capacity_bytes {
                self.policy.admit(id, bytes);
                self.tally.admitted_bytes += size;
            }
        }
        self.tally.requests += batch.len() as u64;
    }

    fn tally(&self) -> Tally {
        Tally { moved_bytes: self.policy.moved_bytes(), ..self.tally }
    }
}

/// The memory tier's own.
struct OfTheNode(NodePolicy<u64, ()>);

impl Policy for OfTheNode {
    fn is_hit(&mut self, id: u64) -> bool {
        self.0.use_of(id).is_some()
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        self.0.insert(id, (), bytes);
    }

    fn moved_bytes(&self) -> u64 {
        self.0.moved_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What of a history of blocks of one byte is missed.
    pub fn misses(mut policy: impl Policy, history: &[u64]) -> Vec<u64> {
        let mut missed = Vec::new();
        for &id in history {
            if !policy.is_hit(id) {
                policy.admit(id, 1);
                missed.push(id);
            }
        }
        missed
    }

    proptest! {
        #[test]
        fn every_policy_misses_each_key_first_and_nothing_that_fits_twice(
            history in prop::collection::vec((0u64..40, 1u32..20), 1..500),
        ) {
            let sized: Vec<Request> = history.iter().map(|(id, bytes)| Request { id: *id, bytes: *bytes }).collect();
            let distinct = history.iter().map(|(id, _)| id).collect::<std::collections::BTreeSet<_>>().len() as u64;
            for name in Name::value_variants() {
                let mut ample = name.start(20 * 40);
                ample.replay(&sized);
                prop_assert_eq!(ample.tally().misses, distinct, "{:?}", name);
                let mut scarce = name.start(30);
                scarce.replay(&sized);
                let tally = scarce.tally();
                prop_assert!(tally.misses >= distinct && tally.admitted_bytes == tally.missed_bytes);
            }
        }
    }
}
