//! SIEVE: one queue in order of arrival, and a hand that evicts what was not visited since it passed.
//!
//! As in Zhang, Yang, Yue, Vigfusson, Rashmi, "SIEVE is simpler than LRU" (NSDI '24), Algorithm 1: a hit sets the visited
//! bit; the hand goes from the oldest to the newest, clears bits, evicts the first without one, and stays there.

use forebay_shard::policy::queues::Queues;

use super::Policy;

/// SIEVE over bytes.
pub struct Sieve {
    capacity_bytes: u64,
    queue: Queues<u64, (), 1>,
    /// The next to be looked at; none: the oldest.
    hand: Option<u32>,
}

impl Sieve {
    pub fn new(capacity_bytes: u64) -> Sieve {
        Sieve { capacity_bytes, queue: Queues::default(), hand: None }
    }

    fn evict(&mut self) {
        loop {
            let slot = self.hand.or_else(|| self.queue.oldest(0)).expect("what fits fits the empty cache");
            self.hand = self.queue.newer(slot);
            if std::mem::take(self.queue.mark(slot)) == 0 {
                let removed = self.queue.remove(slot);
                // The hand's slot may be the one that moved into the hole.
                if self.hand.is_some() && self.hand == removed.moved {
                    self.hand = Some(slot);
                }
                return;
            }
        }
    }
}

impl Policy for Sieve {
    fn is_hit(&mut self, id: u64) -> bool {
        let found = self.queue.find(id);
        if let Some(slot) = found {
            *self.queue.mark(slot) = 1;
        }
        found.is_some()
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        while self.queue.bytes() + u64::from(bytes) > self.capacity_bytes {
            self.evict();
        }
        self.queue.push(0, id, (), bytes);
    }

    fn moved_bytes(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::misses;
    use super::*;

    #[test]
    fn small_histories_by_hand() {
        // The figure of the paper, room for seven: A, B and G visited; the hand goes from A over B to C, which goes for H; A and B
        // keep their place. Then D is visited and I takes the place of E.
        let (a, b, c, d, e, f, g, h, i) = (1, 2, 3, 4, 5, 6, 7, 8, 9);
        let history = [a, b, c, d, e, f, g, a, b, g, h, d, i, a, b, d, g, h, i];
        assert_eq!(misses(Sieve::new(7), &history), [a, b, c, d, e, f, g, h, i]);
        // … and of C and E only C is looked for again: it takes the place of F, where the hand stands.
        assert_eq!(misses(Sieve::new(7), &[&history[..], &[c, e]].concat())[9..], [c, e]);
        // A hand at the newest end begins again at the oldest: 1 goes for 3, 2 for 1.
        assert_eq!(misses(Sieve::new(2), &[1, 2, 1, 2, 3, 1, 3]), [1, 2, 3, 1]);
    }
}
