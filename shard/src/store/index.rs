//! The index in memory: identity → entry, at most 48 bytes a block with its empty slots.
//!
//! Read by every lookup, written by publish, walked by checkpoint, reclaim and check. The identity is a keyed hash, so
//! its order is as good as random: the table keeps entries *sorted* by it (ordered linear probing, Amble and Knuth 1974).
//! The home slot is proportional to the identity, a probe stops at the first larger one, and a walk is simply "the next
//! entries above this identity": stable while the table changes and grows. Each of the segments (by the identity's top
//! bits) grows by itself and by a twelfth, so that no step copies more than one segment and at most every seventh slot
//! is empty at scale (15/16 full before a step, 15/16 × 12/13 = 87 % after it).

use super::entry::Entry;
use crate::key::Identity;

/// Segments are chosen by this many top bits of the identity.
const SEGMENT_BITS: u32 = 10;
/// A segment grows when more than this part of its slots is taken, in sixteenths: 15/16.
const LOAD_MAX_16TH: usize = 15;
/// Slots behind the last home slot, for the cluster that ends there.
const TAIL_SLOTS_MAX: usize = 128;
const HOME_SLOTS_MIN: usize = 8;
/// A step adds one slot for this many.
const GROWTH_DIVISOR: usize = 12;

/// The index of one store.
pub struct Index {
    segments: Vec<Segment>,
    count: u64,
}

/// What an insertion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The identity had no entry.
    New,
    /// It had this one.
    Replaced(Entry),
}

impl Default for Index {
    fn default() -> Self {
        Index { segments: (0..1 << SEGMENT_BITS).map(|_| Segment::default()).collect(), count: 0 }
    }
}

impl Index {
    /// The entry of `identity`.
    #[must_use]
    pub fn find(&self, identity: Identity) -> Option<Entry> {
        let segment = &self.segments[segment_of(identity)];
        segment.search(identity).ok().map(|slot| segment.slots[slot])
    }

    /// Puts `entry` in place of what its identity had.
    pub fn insert(&mut self, entry: Entry) -> Inserted {
        assert!(!entry.is_empty(), "an empty slot is not an entry");
        let number = segment_of(entry.identity());
        if self.segments[number].home_slots == 0 && number > 0 {
            // Recovery inserts in order: a segment begins when the one before it is complete, and is as large but for
            // chance (three sigma at 10,000 entries), so it need not grow step by step.
            let expected = self.segments[number - 1].count;
            self.segments[number].grow(expected * 16 / LOAD_MAX_16TH + expected / 32 + HOME_SLOTS_MIN);
        }
        let inserted = self.segments[number].insert(entry);
        self.count += u64::from(inserted == Inserted::New);
        inserted
    }

    /// Whether `identity` is above all others of its segment, so that it surely has no entry. Recovery reads checkpoints in
    /// order of identity, and asks this for every block.
    #[must_use]
    pub fn is_above_all(&self, identity: Identity) -> bool {
        self.segments[segment_of(identity)].is_above_all(identity)
    }

    /// Puts `entry` behind all others of its segment, without a search; false if it does not belong there.
    pub fn append(&mut self, entry: Entry) -> bool {
        let number = segment_of(entry.identity());
        if !self.segments[number].is_above_all(entry.identity()) {
            return false;
        }
        let is_placed = self.segments[number].append(entry);
        if is_placed {
            self.count += 1;
            return true;
        }
        self.insert(entry) == Inserted::New
    }

    /// Takes the entry of `identity` out.
    pub fn remove(&mut self, identity: Identity) -> Option<Entry> {
        let removed = self.segments[segment_of(identity)].remove(identity);
        self.count -= u64::from(removed.is_some());
        removed
    }

    /// How many entries there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Memory of all slots, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| (segment.slots.len() * size_of::<Entry>()) as u64).sum()
    }

    /// Up to `count_max` entries with an identity above `after`, in order; all if `after` is `None`. Empty at the end.
    /// Entries that stay in the index during a walk are seen exactly once, whatever else is inserted or removed.
    #[must_use]
    pub fn slice_after(&self, after: Option<Identity>, count_max: usize) -> Vec<Entry> {
        let mut slice = Vec::with_capacity(count_max.min(self.count as usize));
        let first_segment = after.map_or(0, segment_of);
        for number in first_segment..self.segments.len() {
            let segment = &self.segments[number];
            let first_slot = match after {
                Some(identity) if number == first_segment => segment.slot_above(identity),
                _ => 0,
            };
            for entry in segment.slots[first_slot..].iter().filter(|entry| !entry.is_empty()) {
                if slice.len() == count_max {
                    return slice;
                }
                slice.push(*entry);
            }
        }
        slice
    }
}

/// Sorted slots: `home_slots` homes and a tail.
#[derive(Default)]
struct Segment {
    slots: Box<[Entry]>,
    home_slots: usize,
    count: usize,
    /// Behind the last slot that is taken.
    end: usize,
}

impl Segment {
    /// `Ok(slot)` of the entry, or `Err(slot)` where it belongs.
    fn search(&self, identity: Identity) -> Result<usize, usize> {
        let mut slot = self.home(identity);
        while let Some(entry) = self.slots.get(slot) {
            if entry.is_empty() || entry.identity() > identity {
                return Err(slot);
            }
            if entry.identity() == identity {
                return Ok(slot);
            }
            slot += 1;
        }
        Err(slot)
    }

    fn slot_above(&self, identity: Identity) -> usize {
        match self.search(identity) {
            Ok(slot) => slot + 1,
            Err(slot) => slot,
        }
    }

    /// Whether `identity` is above all that are here: recovery inserts in order, and need not search.
    fn is_above_all(&self, identity: Identity) -> bool {
        self.end == 0 || self.slots[self.end - 1].identity() < identity
    }

    fn insert(&mut self, entry: Entry) -> Inserted {
        let mut slot = if self.is_above_all(entry.identity()) {
            self.home(entry.identity()).max(self.end)
        } else {
            match self.search(entry.identity()) {
                Ok(slot) => return Inserted::Replaced(std::mem::replace(&mut self.slots[slot], entry)),
                Err(slot) => slot,
            }
        };
        let mut is_full = self.count >= self.home_slots * LOAD_MAX_16TH / 16;
        while is_full || !self.place(slot, entry) {
            self.grow(self.home_slots + (self.home_slots / GROWTH_DIVISOR).max(HOME_SLOTS_MIN));
            slot = self.search(entry.identity()).expect_err("growing makes no entry");
            is_full = false;
        }
        self.count += 1;
        Inserted::New
    }

    /// As `insert` of an entry above all others, while there is room for it where it belongs.
    fn append(&mut self, entry: Entry) -> bool {
        let slot = self.home(entry.identity()).max(self.end);
        if self.count >= self.home_slots * LOAD_MAX_16TH / 16 || slot >= self.slots.len() {
            return false;
        }
        self.slots[slot] = entry;
        self.end = slot + 1;
        self.count += 1;
        true
    }

    /// Shifts the rest of the cluster from `slot` on up by one and places the entry; false if the tail has no room.
    fn place(&mut self, slot: usize, entry: Entry) -> bool {
        let Some(free) = self.slots[slot..].iter().position(Entry::is_empty) else { return false };
        self.slots.copy_within(slot..slot + free, slot + 1);
        self.slots[slot] = entry;
        self.end = self.end.max(slot + free + 1);
        true
    }

    fn remove(&mut self, identity: Identity) -> Option<Entry> {
        let mut slot = self.search(identity).ok()?;
        let removed = self.slots[slot];
        // Entries that do not stand at their home move down, so that no hole ends a probe too early.
        while let Some(next) = self.slots.get(slot + 1).copied() {
            if next.is_empty() || self.home(next.identity()) == slot + 1 {
                break;
            }
            self.slots[slot] = next;
            slot += 1;
        }
        self.slots[slot] = Entry::default();
        while self.end > 0 && self.slots[self.end - 1].is_empty() {
            self.end -= 1;
        }
        self.count -= 1;
        Some(removed)
    }

    fn grow(&mut self, home_slots: usize) {
        let mut home_slots = home_slots;
        'larger: loop {
            let mut larger = Segment {
                slots: vec![Entry::default(); home_slots + tail_slots(home_slots)].into_boxed_slice(),
                home_slots,
                count: self.count,
                end: 0,
            };
            for entry in self.slots.iter().filter(|entry| !entry.is_empty()) {
                let slot = larger.home(entry.identity()).max(larger.end);
                let Some(free) = larger.slots.get_mut(slot) else {
                    home_slots += home_slots / GROWTH_DIVISOR + 1;
                    continue 'larger;
                };
                *free = *entry;
                larger.end = slot + 1;
            }
            *self = larger;
            return;
        }
    }

    fn home(&self, identity: Identity) -> usize {
        // The bits below the segment's, as a fraction of one, times the slots (Lemire's fast range).
        let fraction = ((identity.0 >> 64) as u64).wrapping_shl(SEGMENT_BITS);
        ((u128::from(fraction) * self.home_slots as u128) >> 64) as usize
    }
}

fn tail_slots(home_slots: usize) -> usize {
    (8 + home_slots / 64).min(TAIL_SLOTS_MAX)
}

fn segment_of(identity: Identity) -> usize {
    (identity.0 >> (128 - SEGMENT_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::entry::{Place, Proof, State};
    use super::*;
    use crate::key::Generation;

    fn entry(identity: u128, generation: u64) -> Entry {
        let at = Place { region: 1, place: 2 };
        Entry::block(Identity(identity), Generation(generation), at, 3, Proof::Sum(4), State::Clean)
    }

    fn walk(index: &Index, slice_count: usize) -> Vec<Entry> {
        let mut seen: Vec<Entry> = Vec::new();
        loop {
            let slice = index.slice_after(seen.last().map(Entry::identity), slice_count);
            if slice.is_empty() {
                return seen;
            }
            assert!(slice.len() <= slice_count);
            seen.extend(slice);
        }
    }

    /// Identities crowded into few homes, random ones, and both ends.
    fn identity(random: &mut SmallRng) -> u128 {
        match random.random_range(0..4) {
            0 => random.random::<u128>() >> 118,
            1 => u128::MAX - (random.random::<u128>() >> 120),
            2 => (random.random::<u128>() >> 122) << 118,
            _ => random.random(),
        }
    }

    #[test]
    fn it_does_what_a_sorted_map_does() {
        for seed in 0..40 {
            let mut random = SmallRng::seed_from_u64(seed);
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            for generation in 0..3_000 {
                let identity = identity(&mut random);
                if random.random_range(0..5) < 3 {
                    let new = entry(identity, generation);
                    let expected = model.insert(identity, new).map_or(Inserted::New, Inserted::Replaced);
                    assert_eq!(index.insert(new), expected, "seed {seed}");
                } else {
                    let known = model.keys().nth(random.random_range(0..=model.len())).copied().unwrap_or(identity);
                    assert_eq!(index.remove(Identity(known)), model.remove(&known), "seed {seed}");
                }
                assert_eq!(index.find(Identity(identity)), model.get(&identity).copied(), "seed {seed}");
                let is_last = model.range(identity..).all(|(other, _)| other >> 118 != identity >> 118);
                assert_eq!(index.is_above_all(Identity(identity)), is_last, "seed {seed}");
                assert_eq!(index.count(), model.len() as u64, "seed {seed}");
            }
            assert_eq!(walk(&index, 7), model.into_values().collect::<Vec<_>>(), "seed {seed}");
        }
    }

    #[test]
    fn in_order_or_not_the_same_entries_are_found() {
        let mut random = SmallRng::seed_from_u64(6);
        let mut identities: Vec<u128> = (0..50_000).map(|_| random.random()).collect();
        identities.extend((0..64).map(|crowded| crowded << 60));
        identities.sort_unstable();
        identities.dedup();
        let mut index = Index::default();
        for &identity in &identities {
            assert!(index.is_above_all(Identity(identity)));
            assert_eq!(index.insert(entry(identity, 1)), Inserted::New);
        }
        assert_eq!(index.insert(entry(identities[7], 2)), Inserted::Replaced(entry(identities[7], 1)));
        assert!(identities.iter().all(|identity| index.find(Identity(*identity)).is_some()));
        assert_eq!(walk(&index, 99).iter().map(|entry| entry.identity().0).collect::<Vec<_>>(), identities);
    }

    #[test]
    fn a_walk_sees_what_stays_exactly_once_while_the_table_grows() {
        let mut random = SmallRng::seed_from_u64(5);
        let mut index = Index::default();
        let stays: Vec<u128> = (0..2_000).map(|_| random.random()).collect();
        stays.iter().for_each(|&identity| assert_eq!(index.insert(entry(identity, 1)), Inserted::New));
        let (mut seen, mut after) = (Vec::new(), None);
        let mut comes_and_goes = Vec::new();
        loop {
            let slice = index.slice_after(after, 50);
            let Some(last) = slice.last() else { break };
            after = Some(last.identity());
            seen.extend(slice.iter().filter(|entry| entry.generation() == Generation(1)).map(|e| e.identity().0));
            for _ in 0..300 {
                let identity = random.random();
                index.insert(entry(identity, 2));
                comes_and_goes.push(identity);
            }
            for _ in 0..100 {
                let victim = comes_and_goes.swap_remove(random.random_range(0..comes_and_goes.len()));
                assert!(index.remove(Identity(victim)).is_some());
            }
        }
        let mut expected = stays;
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_block_takes_at_most_48_bytes_at_scale() {
        let mut random = SmallRng::seed_from_u64(9);
        let mut index = Index::default();
        let mut worst = 0;
        for count in 1..=1_500_000u64 {
            index.insert(entry(random.random(), 1));
            if count >= 1_000_000 && count.is_multiple_of(20_000) {
                worst = worst.max(index.memory_bytes() * 100 / count);
            }
        }
        assert!(worst <= 4_800, "{}.{:02} bytes per block", worst / 100, worst % 100);
    }
}
