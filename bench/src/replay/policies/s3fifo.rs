//! S3-FIFO as in its paper: a small queue for what is new, a main queue for what came back, a ghost of what went.
//!
//! Algorithm 1 of Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction" (SOSP '23): 10 % small,
//! 90 % main, two bits of frequency, a ghost as large as main; over bytes. The node's own policy differs in main only.

use forebay_shard::policy::PolicyKey;
use forebay_shard::policy::ghost::Ghost;
use forebay_shard::policy::queues::Queues;

use super::Policy;

const SMALL: usize = 0;
const MAIN: usize = 1;
/// The small queue's part of the capacity: one in ten.
const SMALL_DIVISOR: u64 = 10;
/// Two bits of frequency.
const USES_MAX: u8 = 3;

/// S3-FIFO over bytes.
pub struct S3Fifo {
    capacity_bytes: u64,
    queues: Queues<u64, (), 2>,
    ghost: Ghost,
    moved_bytes: u64,
}

impl S3Fifo {
    pub fn new(capacity_bytes: u64) -> S3Fifo {
        let main_bytes = capacity_bytes - capacity_bytes / SMALL_DIVISOR;
        S3Fifo { capacity_bytes, queues: Queues::default(), ghost: Ghost::new(main_bytes), moved_bytes: 0 }
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

impl Policy for S3Fifo {
    fn is_hit(&mut self, id: u64) -> bool {
        let Some(slot) = self.queues.find(id) else { return false };
        let uses = self.queues.mark(slot);
        *uses = (*uses + 1).min(USES_MAX);
        true
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        while self.queues.bytes() + u64::from(bytes) > self.capacity_bytes {
            self.evict();
        }
        let queue = if self.ghost.take(id.spread()) { MAIN } else { SMALL };
        self.queues.push(queue, id, (), bytes);
    }

    fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::misses;
    use super::*;

    #[test]
    fn a_small_history_by_hand() {
        // Room for 10: small's part is 1. 1 is used twice and moves on, 2 once and goes, for 11; its ghost brings it back.
        let warm: Vec<u64> = (1..=10).chain([1, 1, 2, 11, 2]).collect();
        assert_eq!(misses(S3Fifo::new(10), &warm), (1..=11).chain([2]).collect::<Vec<_>>());
        // Then all come back through the ghost, until main holds 1 to 10, and small nothing.
        let full = [&warm[..], &(12..=18).chain(3..=10).collect::<Vec<_>>()].concat();
        // 19 costs 1, which has no use left; 2 is used, so 18 costs 3 and 20 costs 4.
        let paid = [&full[..], &[19, 1, 2, 18, 20, 2, 5, 3]].concat();
        assert_eq!(misses(S3Fifo::new(10), &paid)[27..], [19, 1, 18, 20, 3]);
    }
}
