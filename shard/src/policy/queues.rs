//! A table of what is held, threaded on a few first-in-first-out queues: what every policy here stands on.
//!
//! Called by `s3fifo` and by the policies that `forebay-bench replay` compares it with. All slots lie in one vector
//! without holes and are linked by number, so an entry costs its slot and 6 to 12 bytes of table, and no allocation. A
//! removal moves the last slot into the hole: slot numbers hold until the next removal only.

use hashbrown::HashTable;

use super::PolicyKey;

/// No slot.
const NONE: u32 = u32::MAX;
/// A vector grows by this share of itself: doubling would leave half of a large one unused.
const GROWTH_DIVISOR: usize = 8;
/// Below this many slots nothing is given back.
const KEPT_SLOTS: usize = 1024;

/// Entries by key, each in one of `N` queues.
pub struct Queues<K, V, const N: usize> {
    table: HashTable<u32>,
    slots: Vec<Slot<K, V>>,
    queues: [Queue; N],
}

struct Slot<K, V> {
    key: K,
    value: V,
    bytes: u32,
    older: u32,
    newer: u32,
    queue: u8,
    mark: u8,
}

#[derive(Clone, Copy)]
struct Queue {
    oldest: u32,
    newest: u32,
    count: u32,
    bytes: u64,
}

/// What was taken out.
pub struct Removed<K, V> {
    /// Its key.
    pub key: K,
    /// What was kept for it.
    pub value: V,
    /// What it counted for.
    pub bytes: u32,
    /// The slot that now has the number of the one removed, by its number before.
    pub moved: Option<u32>,
}

impl<K: PolicyKey, V, const N: usize> Default for Queues<K, V, N> {
    fn default() -> Self {
        let empty = Queue { oldest: NONE, newest: NONE, count: 0, bytes: 0 };
        Queues { table: HashTable::new(), slots: Vec::new(), queues: [empty; N] }
    }
}

impl<K: PolicyKey, V, const N: usize> Queues<K, V, N> {
    /// The slot of `key`.
    #[must_use]
    pub fn find(&self, key: K) -> Option<u32> {
        self.table.find(key.spread(), |slot| self.slots[*slot as usize].key == key).copied()
    }

    /// Adds a key that is not there, as the newest of `queue`, with mark 0.
    ///
    /// # Panics
    /// If there are 2^32 − 1 entries already.
    pub fn push(&mut self, queue: usize, key: K, value: V, bytes: u32) {
        debug_assert!(self.find(key).is_none(), "a key is in exactly one queue");
        let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 entries fit in memory");
        assert!(slot < NONE, "a slot's number is none of the reserved ones");
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(self.slots.len() / GROWTH_DIVISOR + 16);
        }
        self.slots.push(Slot { key, value, bytes, older: NONE, newer: NONE, queue: queue as u8, mark: 0 });
        let slots = &self.slots;
        self.table.insert_unique(key.spread(), slot, |slot| slots[*slot as usize].key.spread());
        self.link(slot, queue);
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: u32) -> Removed<K, V> {
        self.unlink(slot);
        let last = (self.slots.len() - 1) as u32;
        self.forget(self.slots[slot as usize].key, slot);
        if last != slot {
            let spread = self.slots[last as usize].key.spread();
            *self.table.find_mut(spread, |at| *at == last).expect("every slot is in the table") = slot;
            let (older, newer, queue) = {
                let moved = &self.slots[last as usize];
                (moved.older, moved.newer, usize::from(moved.queue))
            };
            self.set_newer(older, slot, queue);
            self.set_older(newer, slot, queue);
        }
        let removed = self.slots.swap_remove(slot as usize);
        self.give_back();
        Removed { key: removed.key, value: removed.value, bytes: removed.bytes, moved: (last != slot).then_some(last) }
    }

    /// Makes a slot the newest of `queue`, whichever it is in.
    pub fn requeue(&mut self, slot: u32, queue: usize) {
        self.unlink(slot);
        self.link(slot, queue);
    }

    /// The oldest slot of a queue.
    #[must_use]
    pub fn oldest(&self, queue: usize) -> Option<u32> {
        some(self.queues[queue].oldest)
    }

    /// The next newer slot of the same queue.
    #[must_use]
    pub fn newer(&self, slot: u32) -> Option<u32> {
        some(self.slots[slot as usize].newer)
    }

    /// What is kept in a slot.
    #[must_use]
    pub fn value(&self, slot: u32) -> &V {
        &self.slots[slot as usize].value
    }

    /// What a slot counts for, in bytes.
    #[must_use]
    pub fn bytes_of(&self, slot: u32) -> u32 {
        self.slots[slot as usize].bytes
    }

    /// The key of a slot.
    #[must_use]
    pub fn key(&self, slot: u32) -> K {
        self.slots[slot as usize].key
    }

    /// The policy's own note on a slot.
    pub fn mark(&mut self, slot: u32) -> &mut u8 {
        &mut self.slots[slot as usize].mark
    }

    /// The queue a slot is in.
    #[must_use]
    pub fn queue_of(&self, slot: u32) -> usize {
        usize::from(self.slots[slot as usize].queue)
    }

    /// Bytes in a queue.
    #[must_use]
    pub fn queue_bytes(&self, queue: usize) -> u64 {
        self.queues[queue].bytes
    }

    /// Bytes in all queues.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.queues.iter().map(|queue| queue.bytes).sum()
    }

    /// Entries in all queues.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Every entry: key, value, bytes.
    pub fn iter(&self) -> impl Iterator<Item = (K, &V, u32)> + '_ {
        self.slots.iter().map(|slot| (slot.key, &slot.value, slot.bytes))
    }

    /// What the slots and the table take in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot<K, V>>() + self.table.allocation_size()
    }

    /// Walks everything and compares what is known twice.
    ///
    /// # Panics
    /// If table, links and sums disagree.
    pub fn check(&self) {
        assert_eq!(self.table.len(), self.slots.len(), "every slot is in the table");
        for (number, queue) in self.queues.iter().enumerate() {
            let (mut at, mut older, mut count, mut bytes) = (queue.oldest, NONE, 0, 0);
            while let Some(slot) = self.slots.get(at as usize) {
                assert_eq!((usize::from(slot.queue), slot.older), (number, older), "a key is in exactly one queue");
                assert_eq!(self.find(slot.key), Some(at));
                (older, at, count, bytes) = (at, slot.newer, count + 1, bytes + u64::from(slot.bytes));
            }
            assert_eq!((queue.newest, queue.count, queue.bytes), (older, count, bytes));
        }
        assert_eq!(self.queues.iter().map(|queue| queue.count as usize).sum::<usize>(), self.slots.len());
    }

    fn forget(&mut self, key: K, slot: u32) {
        match self.table.find_entry(key.spread(), |at| *at == slot) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => unreachable!("every slot is in the table"),
        }
    }

    fn link(&mut self, slot: u32, queue: usize) {
        let newest = std::mem::replace(&mut self.queues[queue].newest, slot);
        let at = &mut self.slots[slot as usize];
        (at.older, at.newer, at.queue) = (newest, NONE, queue as u8);
        let bytes = u64::from(at.bytes);
        match self.slots.get_mut(newest as usize) {
            Some(newest) => newest.newer = slot,
            None => self.queues[queue].oldest = slot,
        }
        self.queues[queue].count += 1;
        self.queues[queue].bytes += bytes;
    }

    fn unlink(&mut self, slot: u32) {
        let at = &self.slots[slot as usize];
        let (older, newer, queue, bytes) = (at.older, at.newer, usize::from(at.queue), u64::from(at.bytes));
        self.set_newer(older, newer, queue);
        self.set_older(newer, older, queue);
        self.queues[queue].count -= 1;
        self.queues[queue].bytes -= bytes;
    }

    fn set_newer(&mut self, slot: u32, newer: u32, queue: usize) {
        match self.slots.get_mut(slot as usize) {
            Some(at) => at.newer = newer,
            None => self.queues[queue].oldest = newer,
        }
    }

    fn set_older(&mut self, slot: u32, older: u32, queue: usize) {
        match self.slots.get_mut(slot as usize) {
            Some(at) => at.older = older,
            None => self.queues[queue].newest = older,
        }
    }

    /// Small blocks that made room for few large ones must not leave their slots behind.
    fn give_back(&mut self) {
        let count = self.slots.len();
        if self.slots.capacity() > KEPT_SLOTS && count < self.slots.capacity() / 4 {
            self.slots.shrink_to(count * 2);
            let slots = &self.slots;
            self.table.shrink_to(count * 2, |slot| slots[*slot as usize].key.spread());
        }
    }
}

fn some(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_without_a_value_takes_24_bytes_and_its_place_in_the_table() {
        assert_eq!(size_of::<Slot<u64, ()>>(), 24);
        let mut queues: Queues<u64, (), 1> = Queues::default();
        for key in 0..1_000_000 {
            queues.push(0, key, (), 1);
        }
        let per_entry = queues.memory_bytes() as f64 / queues.count() as f64;
        assert!(per_entry <= 24.0 * 1.125 + 12.0, "{per_entry} bytes per entry");
        while queues.count() > 10 {
            queues.remove(queues.oldest(0).expect("entries are left"));
        }
        assert!(queues.memory_bytes() < 64 << 10, "{} bytes for ten entries", queues.memory_bytes());
    }

    proptest! {
        #[test]
        fn it_does_what_plain_queues_do(steps in prop::collection::vec((0u8..4, 0u64..24, 0usize..3, 0u32..100), 1..400)) {
            let mut queues: Queues<u64, u32, 3> = Queues::default();
            let mut model: [Vec<(u64, u32)>; 3] = Default::default();
            for (verb, key, queue, bytes) in steps {
                match (verb, queues.find(key)) {
                    (0 | 1, None) => {
                        queues.push(queue, key, bytes, bytes);
                        model[queue].push((key, bytes));
                    }
                    (0, Some(slot)) => {
                        let removed = queues.remove(slot);
                        prop_assert_eq!((removed.key, removed.value), (key, removed.bytes));
                        model.iter_mut().for_each(|queue| queue.retain(|(other, _)| *other != key));
                    }
                    (1, Some(slot)) => {
                        let bytes = queues.bytes_of(slot);
                        queues.requeue(slot, queue);
                        model.iter_mut().for_each(|queue| queue.retain(|(other, _)| *other != key));
                        model[queue].push((key, bytes));
                    }
                    (2, _) => {
                        let oldest = queues.oldest(queue).map(|slot| queues.remove(slot).key);
                        let expected = (!model[queue].is_empty()).then(|| model[queue].remove(0).0);
                        prop_assert_eq!(oldest, expected);
                    }
                    (_, found) => {
                        prop_assert_eq!(found.map(|slot| *queues.value(slot)),
                            model.iter().flatten().find(|(other, _)| *other == key).map(|(_, bytes)| *bytes));
                    }
                }
                queues.check();
                for (number, expected) in model.iter().enumerate() {
                    let mut at = queues.oldest(number);
                    let walked: Vec<u64> = std::iter::from_fn(|| {
                        let slot = at?;
                        at = queues.newer(slot);
                        Some(queues.key(slot))
                    }).collect();
                    prop_assert_eq!(walked, expected.iter().map(|(key, _)| *key).collect::<Vec<_>>());
                }
            }
        }
    }
}
