//! What went lately: hashes of evicted keys, as many as their bytes fit into a bound, oldest forgotten first.
//!
//! Used by `s3fifo`: a key that comes back while its ghost is there was evicted too early. Holds 32 bits of a key's hash
//! and its size, 8 bytes and 6 to 12 of table. Two keys of one hash are taken for each other once in 2^32 ÷ count
//! questions; a wrong answer only puts a new block into the main queue.

use std::collections::VecDeque;

use hashbrown::HashTable;

/// Ghosts by hash, in order of their eviction.
pub struct Ghost {
    bytes_max: u64,
    bytes: u64,
    /// Numbers of items in `line`, counted from `first` (they wrap).
    table: HashTable<u32>,
    line: VecDeque<Item>,
    /// The number of the front of `line`.
    first: u32,
}

#[derive(Clone, Copy)]
struct Item {
    hash: u32,
    /// `None` once its key came back.
    bytes: Option<std::num::NonZeroU32>,
}

impl Ghost {
    /// Remembers keys whose sizes add up to at most `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: u64) -> Ghost {
        Ghost { bytes_max, bytes: 0, table: HashTable::new(), line: VecDeque::new(), first: 0 }
    }

    /// Remembers a key of `bytes` (an empty one counts for 1).
    pub fn insert(&mut self, spread: u64, bytes: u32) {
        self.take(spread);
        let size = std::num::NonZeroU32::new(bytes).unwrap_or(std::num::NonZeroU32::MIN);
        let hash = fold(spread);
        let number = self.first.wrapping_add(self.line.len() as u32);
        if self.line.len() == self.line.capacity() {
            self.line.reserve_exact(self.line.len() / 8 + 16);
        }
        self.line.push_back(Item { hash, bytes: Some(size) });
        let (line, first) = (&self.line, self.first);
        self.table.insert_unique(place(hash), number, |number| place(line[number.wrapping_sub(first) as usize].hash));
        self.bytes += u64::from(size.get());
        while self.bytes > self.bytes_max {
            self.drop_oldest();
        }
    }

    /// Whether a key is remembered; it is forgotten by being asked for.
    pub fn take(&mut self, spread: u64) -> bool {
        let hash = fold(spread);
        let (line, first) = (&self.line, self.first);
        let found = self.table.find_entry(place(hash), |number| line[number.wrapping_sub(first) as usize].hash == hash);
        let Ok(entry) = found else { return false };
        let (number, _) = entry.remove();
        let size = self.line[number.wrapping_sub(first) as usize].bytes.take().expect("what is in the table lives");
        self.bytes -= u64::from(size.get());
        if self.line.len() > 2 * self.table.len() + 64 {
            self.close_ranks();
        }
        true
    }

    /// Sizes of what is remembered.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many are remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// What it takes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.line.capacity() * size_of::<Item>() + self.table.allocation_size()
    }

    /// # Panics
    /// If table and line disagree or a bound is passed.
    pub fn check(&self) {
        let living = self.line.iter().filter_map(|item| item.bytes);
        assert_eq!(self.bytes, living.clone().map(|bytes| u64::from(bytes.get())).sum::<u64>());
        assert_eq!(self.table.len(), living.count());
        assert!(self.bytes <= self.bytes_max, "the ghost stays within its bound");
        assert!(self.line.len() <= 2 * self.table.len() + 65, "holes are closed");
    }

    fn drop_oldest(&mut self) {
        let item = self.line.pop_front().expect("bytes that are remembered belong to items");
        let number = self.first;
        self.first = self.first.wrapping_add(1);
        if let Some(size) = item.bytes {
            self.bytes -= u64::from(size.get());
            match self.table.find_entry(place(item.hash), |at| *at == number) {
                Ok(entry) => drop(entry.remove()),
                Err(_) => unreachable!("what lives is in the table"),
            }
        }
    }

    /// Drops the items of keys that came back. At most every second item is one, so each pays for its own removal.
    fn close_ranks(&mut self) {
        self.line.retain(|item| item.bytes.is_some());
        self.line.shrink_to(self.line.len() * 2);
        self.table.clear();
        let line = &self.line;
        let first = self.first;
        for (index, item) in line.iter().enumerate() {
            let number = first.wrapping_add(index as u32);
            self.table.insert_unique(place(item.hash), number, |number| {
                place(line[number.wrapping_sub(first) as usize].hash)
            });
        }
    }
}

/// Bits of a key's hash that its place in a table of keys does not depend on alone.
fn fold(spread: u64) -> u32 {
    (spread ^ spread >> 32) as u32
}

fn place(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::PolicyKey;
    use super::*;

    #[test]
    fn a_ghost_takes_8_bytes_and_its_place_in_the_table() {
        assert_eq!(size_of::<Item>(), 8);
        let mut ghost = Ghost::new(1_000_000);
        (0..3_000_000u64).for_each(|key| ghost.insert(key.spread(), 1));
        assert_eq!(ghost.count(), 1_000_000);
        let per_ghost = ghost.memory_bytes() as f64 / 1e6;
        assert!(per_ghost <= 8.0 * 1.125 + 12.0, "{per_ghost} bytes per ghost");
        ghost.check();
    }

    proptest! {
        #[test]
        fn it_remembers_the_latest_within_its_bytes(
            bytes_max in 0u64..300,
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u32..60), 1..300),
        ) {
            let mut ghost = Ghost::new(bytes_max);
            let mut model: Vec<(u64, u64)> = Vec::new();
            for (goes, key, bytes) in steps {
                let known = model.iter().position(|(other, _)| *other == key);
                if let Some(at) = known {
                    model.remove(at);
                }
                if goes {
                    ghost.insert(key.spread(), bytes);
                    model.push((key, u64::from(bytes.max(1))));
                    while model.iter().map(|(_, bytes)| bytes).sum::<u64>() > bytes_max {
                        model.remove(0);
                    }
                } else {
                    prop_assert_eq!(ghost.take(key.spread()), known.is_some());
                }
                ghost.check();
                prop_assert_eq!(ghost.count(), model.len());
            }
        }
    }
}
