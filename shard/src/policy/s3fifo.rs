//! S3-FIFO over bytes with SIEVE's hand: a small queue for what is new, a main queue for what came back, a ghost of what went.
//!
//! Queues and ghost are those of Algorithm 1 of Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache
//! eviction" (SOSP '23): 10 % small, 90 % main, a ghost as large as main. Within main nothing is queued again: the hand of
//! Zhang et al., "SIEVE is simpler than LRU" (NSDI '24) passes over what was used since its last round, so that what came
//! back first keeps its place while others come and go under the hand; on training epochs that is worth ten points, and
//! nowhere does it cost half of one (bench/RESULTS.md). Sizes are bytes, so a queue is full by what lies in it. Amortised
//! O(1): the hand passes a block only in exchange for a use. Invariants: the bytes held never exceed the capacity; a key is
//! in exactly one queue; the ghost is within its bound.

use super::PolicyKey;
use super::ghost::Ghost;
use super::queues::{Queues, Removed};

const SMALL: usize = 0;
const MAIN: usize = 1;
/// The small queue's part of the capacity: one in ten.
const SMALL_DIVISOR: u64 = 10;
/// A block in small that was used as often as this moves on: once may be the rest of the same reading.
const USES_TO_STAY: u8 = 2;
/// Uses are counted up to this, then again from [`USES_TO_STAY`] on: what stays for long is news once a round.
const USES_MAX: u8 = 16;

/// What is held, by key.
pub struct S3Fifo<K, V> {
    capacity_bytes: u64,
    queues: Queues<K, V, 2>,
    ghost: Ghost,
    /// What is looked at next in main; none: its oldest.
    hand: Option<u32>,
    moved_bytes: u64,
}

/// Whether a use is worth telling whoever holds the same block elsewhere: the first ones are, then one of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It is.
    Yes,
    /// One like it was told not long ago.
    No,
}

impl<K: PolicyKey, V> S3Fifo<K, V> {
    /// Holds at most `capacity_bytes`.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        let main_bytes = capacity_bytes - capacity_bytes / SMALL_DIVISOR;
        S3Fifo { capacity_bytes, queues: Queues::default(), ghost: Ghost::new(main_bytes), hand: None, moved_bytes: 0 }
    }

    /// What is held for `key`; counts as a use of it, and says whether that is news.
    pub fn use_of(&mut self, key: K) -> Option<(&V, News)> {
        let slot = self.queues.find(key)?;
        let uses = self.queues.mark(slot);
        *uses = if *uses < USES_MAX { *uses + 1 } else { USES_TO_STAY };
        let news = if *uses <= USES_TO_STAY { News::Yes } else { News::No };
        Some((self.queues.value(slot), news))
    }

    /// What is held for `key`, without a use.
    #[must_use]
    pub fn peek(&self, key: K) -> Option<&V> {
        self.queues.find(key).map(|slot| self.queues.value(slot))
    }

    /// Takes a block in, in place of what is held for its key; others are evicted for it.
    ///
    /// # Panics
    /// If `bytes` are more than the capacity.
    pub fn insert(&mut self, key: K, value: V, bytes: u32) {
        assert!(u64::from(bytes) <= self.capacity_bytes, "what can't be held is not offered");
        drop(self.remove(key));
        while self.queues.bytes() + u64::from(bytes) > self.capacity_bytes {
            self.evict();
        }
        let queue = if self.ghost.take(key.spread()) { MAIN } else { SMALL };
        self.queues.push(queue, key, value, bytes);
        assert!(self.queues.bytes() <= self.capacity_bytes, "the bytes held never exceed the capacity");
    }

    /// Takes a block out by request: that is no eviction, nothing remembers it.
    pub fn remove(&mut self, key: K) -> Option<V> {
        let slot = self.queues.find(key)?;
        Some(self.take_out(slot).value)
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.queues.bytes()
    }

    /// Blocks held.
    #[must_use]
    pub fn count(&self) -> usize {
        self.queues.count()
    }

    /// Bytes that moved on to main, so far: what queues that are logs on a disk would have to write again.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }

    /// Every block held: key, value, bytes.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V, u32)> + '_ {
        self.queues.iter()
    }

    /// What the policy takes in memory itself: slots, table, ghost.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.queues.memory_bytes() + self.ghost.memory_bytes()
    }

    /// # Panics
    /// If an invariant does not hold.
    pub fn check(&self) {
        self.queues.check();
        self.ghost.check();
        assert!(self.hand.is_none_or(|slot| self.queues.queue_of(slot) == MAIN), "the hand is in main");
        assert!(self.queues.bytes() <= self.capacity_bytes, "the bytes held never exceed the capacity");
    }

    fn small_bytes(&self) -> u64 {
        self.capacity_bytes / SMALL_DIVISOR
    }

    fn evict(&mut self) {
        // A large block may find main empty and small below its part.
        let is_small_due = self.queues.queue_bytes(SMALL) >= self.small_bytes() || self.queues.oldest(MAIN).is_none();
        if is_small_due && self.queues.oldest(SMALL).is_some() {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    /// Evicts the oldest of small that was not used again, moves on to main what was.
    fn evict_small(&mut self) {
        while let Some(slot) = self.queues.oldest(SMALL) {
            if std::mem::take(self.queues.mark(slot)) < USES_TO_STAY {
                let gone = self.take_out(slot);
                self.ghost.insert(gone.key.spread(), gone.bytes);
                return;
            }
            self.moved_bytes += u64::from(self.queues.bytes_of(slot));
            self.queues.requeue(slot, MAIN);
            while self.queues.queue_bytes(MAIN) > self.capacity_bytes - self.small_bytes() {
                self.evict_main();
            }
        }
    }

    /// Evicts the next block under the hand that was not used since the hand's last round.
    fn evict_main(&mut self) {
        while let Some(slot) = self.hand.or_else(|| self.queues.oldest(MAIN)) {
            if std::mem::take(self.queues.mark(slot)) == 0 {
                self.take_out(slot);
                return;
            }
            self.hand = self.queues.newer(slot);
        }
    }

    /// Takes a slot out; the hand goes on to the next, and with a slot that changes its number.
    fn take_out(&mut self, slot: u32) -> Removed<K, V> {
        if self.hand == Some(slot) {
            self.hand = self.queues.newer(slot);
        }
        let removed = self.queues.remove(slot);
        if self.hand.is_some() && self.hand == removed.moved {
            self.hand = Some(slot);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Blocks of one byte; returns whether it was held.
    fn ask(cache: &mut S3Fifo<u64, ()>, key: u64) -> bool {
        let is_hit = cache.use_of(key).is_some();
        if !is_hit {
            cache.insert(key, (), 1);
        }
        cache.check();
        is_hit
    }

    /// The keys of a queue, oldest first.
    fn queue(cache: &S3Fifo<u64, ()>, number: usize) -> Vec<u64> {
        let mut at = cache.queues.oldest(number);
        std::iter::from_fn(|| {
            let slot = at?;
            at = cache.queues.newer(slot);
            Some(cache.queues.key(slot))
        })
        .collect()
    }

    #[test]
    fn a_small_history_by_hand() {
        // Room for 10: small's part is 1, main's 9, the ghost's 9.
        let mut cache = S3Fifo::new(10);
        (1..=10).for_each(|key| assert!(!ask(&mut cache, key)));
        assert!(ask(&mut cache, 1) && ask(&mut cache, 1) && ask(&mut cache, 2));
        // 1 was used twice and moves on; 2 only once, and goes.
        ask(&mut cache, 11);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), (vec![1], (3..=11).collect()));
        // Its ghost brings 2 back into main, in the place of 3.
        ask(&mut cache, 2);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), (vec![1, 2], (4..=11).collect()));
        // So it goes with all that come back, until small is empty and main holds everything.
        (12..=18).for_each(|key| assert!(!ask(&mut cache, key)));
        (3..=10).for_each(|key| assert!(!ask(&mut cache, key)));
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), ((1..=10).collect(), vec![]));
        // Then main pays: the hand begins at 1, which was not used since it is there. It leaves no ghost.
        ask(&mut cache, 19);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), ((2..=10).collect(), vec![19]));
        ask(&mut cache, 1);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), ((2..=10).collect(), vec![1]));
        // 2 is used: the hand passes over it, and 3 goes. 2 keeps its place, and pays nothing for it.
        assert!(ask(&mut cache, 2));
        ask(&mut cache, 18);
        ask(&mut cache, 20);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), (vec![2, 4, 5, 6, 7, 8, 9, 10, 18], vec![20]));
        // From there the hand goes on: 4 and 5 go before 2 is looked at again.
        ask(&mut cache, 1);
        ask(&mut cache, 21);
        ask(&mut cache, 20);
        ask(&mut cache, 22);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), (vec![2, 6, 7, 8, 9, 10, 18, 1, 20], vec![22]));
        // Only 1 has moved on from small; what its ghost brings back is written once, as anything new.
        assert_eq!(cache.moved_bytes(), 1);
    }

    #[test]
    fn the_hand_goes_on_when_its_block_is_taken_out() {
        let mut cache = S3Fifo::new(10);
        for key in (0..30).map(|request| request % 10) {
            ask(&mut cache, key);
        }
        // All were used twice: they move on to main, and the hand begins with the oldest.
        ask(&mut cache, 10);
        let main = queue(&cache, MAIN);
        let under = cache.queues.key(cache.hand.or_else(|| cache.queues.oldest(MAIN)).expect("main is not empty"));
        assert!(cache.remove(under).is_some());
        cache.check();
        for key in main.into_iter().filter(|key| *key != under) {
            assert!(cache.remove(key).is_some());
            cache.check();
        }
        assert!(cache.queues.oldest(MAIN).is_none() && cache.hand.is_none());
    }

    #[test]
    fn a_scan_takes_small_and_leaves_main() {
        let mut cache = S3Fifo::new(100);
        // Twenty keys three times each, then pushed through small by others: they are in main.
        for request in 0..60 {
            ask(&mut cache, request % 20);
        }
        for key in 100..200 {
            ask(&mut cache, key);
        }
        (1_000..100_000).for_each(|key| assert!(!ask(&mut cache, key)));
        (0..20).for_each(|key| assert!(ask(&mut cache, key), "{key} survives the scan"));
    }

    #[test]
    fn a_large_block_finds_room_wherever_it_is() {
        let mut cache = S3Fifo::new(100);
        (0..9).for_each(|key| cache.insert(key, (), 1));
        cache.insert(9, (), 95);
        assert!(cache.peek(9).is_some());
        cache.insert(10, (), 100);
        assert_eq!((cache.count(), cache.bytes()), (1, 100));
        cache.check();
    }

    proptest! {
        #[test]
        fn bytes_stay_within_and_what_is_held_is_what_was_given(
            capacity in 20u64..400,
            steps in prop::collection::vec((0u8..8, 0u64..60, 0u32..20), 1..600),
        ) {
            let mut cache: S3Fifo<u64, usize> = S3Fifo::new(capacity);
            let mut latest: BTreeMap<u64, usize> = BTreeMap::new();
            for (number, (verb, key, bytes)) in steps.into_iter().enumerate() {
                match verb {
                    0 => {
                        prop_assert_eq!(cache.remove(key), latest.remove(&key));
                    }
                    1..=4 => {
                        cache.insert(key, number, bytes);
                        latest.insert(key, number);
                        prop_assert_eq!(cache.peek(key), Some(&number), "what came last is there");
                    }
                    _ => {
                        let used = cache.use_of(key).map(|(value, _)| *value);
                        prop_assert_eq!(used, cache.peek(key).copied());
                    }
                }
                cache.check();
                // Only evictions may take away; what is held is the latest.
                latest.retain(|key, _| cache.peek(*key).is_some());
                let held: BTreeMap<u64, usize> = cache.iter().map(|(key, value, _)| (key, *value)).collect();
                prop_assert_eq!(&held, &latest);
                prop_assert!(cache.bytes() <= capacity);
            }
        }
    }
}
