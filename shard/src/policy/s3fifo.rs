//! S3-FIFO over bytes: a small queue for what is new, a main queue for what came back, a ghost of what went.
//!
//! The algorithm is Algorithm 1 of Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction"
//! (SOSP '23): 10 % small, 90 % main, two bits of frequency, a ghost as large as main. Sizes are bytes, so a queue is
//! full by what lies in it. Amortised O(1): a block moves only in exchange for a use that was counted before.
//! Invariants: the bytes held never exceed the capacity; a key is in exactly one queue; the ghost is within its bound.

use super::PolicyKey;
use super::ghost::Ghost;
use super::queues::Queues;

const SMALL: usize = 0;
const MAIN: usize = 1;
/// The small queue's part of the capacity: one in ten.
const SMALL_DIVISOR: u64 = 10;
/// Two bits of frequency.
const USES_MAX: u8 = 3;

/// What is held, by key.
pub struct S3Fifo<K, V> {
    capacity_bytes: u64,
    queues: Queues<K, V, 2>,
    ghost: Ghost,
    moved_bytes: u64,
}

/// Whether a use was counted, or there were as many already as are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It was.
    Yes,
    /// There were.
    No,
}

impl<K: PolicyKey, V> S3Fifo<K, V> {
    /// Holds at most `capacity_bytes`.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        let main_bytes = capacity_bytes - capacity_bytes / SMALL_DIVISOR;
        S3Fifo { capacity_bytes, queues: Queues::default(), ghost: Ghost::new(main_bytes), moved_bytes: 0 }
    }

    /// What is held for `key`; counts as a use of it, and says whether the count changed.
    pub fn use_of(&mut self, key: K) -> Option<(&V, News)> {
        let slot = self.queues.find(key)?;
        let uses = self.queues.mark(slot);
        let news = if *uses < USES_MAX { News::Yes } else { News::No };
        *uses = (*uses + 1).min(USES_MAX);
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
        Some(self.queues.remove(slot).value)
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

    /// Bytes that were queued again instead of evicted, so far: what a queue that is a log on disk would have to write.
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
            if *self.queues.mark(slot) <= 1 {
                let gone = self.queues.remove(slot);
                self.ghost.insert(gone.key.spread(), gone.bytes);
                return;
            }
            self.requeue(slot, 0);
            while self.queues.queue_bytes(MAIN) > self.capacity_bytes - self.small_bytes() {
                self.evict_main();
            }
        }
    }

    /// Evicts the oldest of main without a use; those before it pay one use for another round.
    fn evict_main(&mut self) {
        while let Some(slot) = self.queues.oldest(MAIN) {
            let uses = *self.queues.mark(slot);
            if uses == 0 {
                self.queues.remove(slot);
                return;
            }
            self.requeue(slot, uses - 1);
        }
    }

    fn requeue(&mut self, slot: u32, uses: u8) {
        *self.queues.mark(slot) = uses;
        self.moved_bytes += u64::from(self.queues.bytes_of(slot));
        self.queues.requeue(slot, MAIN);
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
        // Then main pays: 1 has no use left from before. It leaves no ghost.
        ask(&mut cache, 19);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), ((2..=10).collect(), vec![19]));
        ask(&mut cache, 1);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), ((2..=10).collect(), vec![1]));
        // 2 is used and queued again when its turn comes; 3 goes.
        assert!(ask(&mut cache, 2));
        ask(&mut cache, 18);
        ask(&mut cache, 20);
        assert_eq!((queue(&cache, MAIN), queue(&cache, SMALL)), (vec![4, 5, 6, 7, 8, 9, 10, 18, 2], vec![20]));
        assert_eq!(cache.moved_bytes(), 2);
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
