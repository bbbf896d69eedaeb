//! FIFO, LRU and CLOCK: one queue each, and what a hit does to it.
//!
//! Started by `policies` for comparison; nothing of Forebay runs on them. CLOCK is the queue with one bit of use: what was
//! used since it was queued is queued again (Corbató, "A paging experiment with the Multics system", 1968).

use forebay_shard::policy::queues::Queues;

use super::Policy;

/// First in, first out: a hit changes nothing.
pub struct Fifo(One);
/// Least recently used: a hit makes a block the newest.
pub struct Lru(One);
/// Second chance: a hit sets a bit that the eviction spends.
pub struct Clock(One);

struct One {
    capacity_bytes: u64,
    queue: Queues<u64, (), 1>,
    moved_bytes: u64,
}

impl One {
    fn new(capacity_bytes: u64) -> One {
        One { capacity_bytes, queue: Queues::default(), moved_bytes: 0 }
    }

    fn is_full_for(&self, bytes: u32) -> bool {
        self.queue.bytes() + u64::from(bytes) > self.capacity_bytes
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        while self.is_full_for(bytes) {
            let oldest = self.queue.oldest(0).expect("what fits the capacity fits the empty cache");
            self.queue.remove(oldest);
        }
        self.queue.push(0, id, (), bytes);
    }
}

impl Fifo {
    pub fn new(capacity_bytes: u64) -> Fifo {
        Fifo(One::new(capacity_bytes))
    }
}

impl Policy for Fifo {
    fn is_hit(&mut self, id: u64) -> bool {
        self.0.queue.find(id).is_some()
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        self.0.admit(id, bytes);
    }

    fn moved_bytes(&self) -> u64 {
        0
    }
}

impl Lru {
    pub fn new(capacity_bytes: u64) -> Lru {
        Lru(One::new(capacity_bytes))
    }
}

impl Policy for Lru {
    fn is_hit(&mut self, id: u64) -> bool {
        let found = self.0.queue.find(id);
        if let Some(slot) = found {
            self.0.queue.requeue(slot, 0);
        }
        found.is_some()
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        self.0.admit(id, bytes);
    }

    fn moved_bytes(&self) -> u64 {
        0
    }
}

impl Clock {
    pub fn new(capacity_bytes: u64) -> Clock {
        Clock(One::new(capacity_bytes))
    }
}

impl Policy for Clock {
    fn is_hit(&mut self, id: u64) -> bool {
        let found = self.0.queue.find(id);
        if let Some(slot) = found {
            *self.0.queue.mark(slot) = 1;
        }
        found.is_some()
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        let One { capacity_bytes, queue, moved_bytes } = &mut self.0;
        while queue.bytes() + u64::from(bytes) > *capacity_bytes {
            let oldest = queue.oldest(0).expect("what fits the capacity fits the empty cache");
            if std::mem::take(queue.mark(oldest)) == 0 {
                queue.remove(oldest);
            } else {
                *moved_bytes += u64::from(queue.bytes_of(oldest));
                queue.requeue(oldest, 0);
            }
        }
        queue.push(0, id, (), bytes);
    }

    fn moved_bytes(&self) -> u64 {
        self.0.moved_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::misses;
    use super::*;

    #[test]
    fn small_histories_by_hand() {
        // Room for three. FIFO: 1 goes for 4 although it was just used, then 2 for 1.
        let history = [1, 2, 3, 1, 4, 1, 2];
        assert_eq!(misses(Fifo::new(3), &history), [1, 2, 3, 4, 1, 2]);
        // LRU: 4 takes the place of 2, 2 that of 3.
        assert_eq!(misses(Lru::new(3), &history), [1, 2, 3, 4, 2]);
        // CLOCK: 1 was used and is queued again (behind 3), so 4 takes the place of 2, 2 that of 3.
        assert_eq!(misses(Clock::new(3), &history), [1, 2, 3, 4, 2]);
        // CLOCK gives one more round, not two, where LRU keeps what was used last: 1 is used once and pays with the first 4.
        assert_eq!(misses(Clock::new(2), &[1, 2, 1, 3, 4, 1]), [1, 2, 3, 4, 1]);
    }
}
