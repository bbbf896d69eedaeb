//! Proves that index, regions, dirty records and extensions agree: walks everything, asserts I1, I4, I7, I9's account and
//! I10's.
//!
//! Called by `Store::check`: for tests and after simulated steps; too costly for production.

use super::entry::{Entry, Proof, State as EntryIs};
use super::regions::{RegionState, footprint};
use super::state::State;

impl State {
    /// Asserts everything that must hold between two steps.
    ///
    /// # Panics
    /// If anything does not.
    pub fn check(&self, region_bytes: u64) {
        let entries = self.index.slice_after(None, usize::MAX);
        assert_eq!(entries.len() as u64, self.index.count(), "the index counts its entries");
        assert!(entries.is_sorted_by(|a, b| a.identity() < b.identity()), "the index is sorted and unique");
        self.check_regions(&entries, region_bytes);
        self.check_dirty(&entries);
        let extended = entries.iter().filter(|entry| matches!(entry.proof(), Proof::Extension(_))).count();
        assert_eq!(extended, self.extensions.count(), "every extension belongs to one entry");
        for entry in &entries {
            assert!(entry.generation().0 < self.next_generation, "generations only grow");
        }
    }

    fn check_regions(&self, entries: &[Entry], region_bytes: u64) {
        let mut live = vec![(0u32, 0u64); self.regions.count() as usize];
        let mut ranges = Vec::new();
        for entry in entries {
            let Some(at) = entry.place() else { continue };
            let end = at.offset() + footprint(entry.len_bytes());
            assert!(end <= region_bytes, "I1: a record lies inside its region");
            ranges.push((at.region, at.offset(), end));
            let (count, dirty_bytes) = &mut live[at.region as usize];
            *count += 1;
            *dirty_bytes += if entry.state() == EntryIs::Dirty { footprint(entry.len_bytes()) } else { 0 };
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1, "I1: two live records share bytes: {pair:?}");
        }
        for (number, region) in self.regions.iter() {
            assert_eq!(live[number as usize], (region.live, region.dirty_bytes), "the account of region {number}");
            if matches!(region.state, RegionState::Free | RegionState::Opening) {
                assert!(region.live == 0 && region.pins == 0 && region.uncommitted == 0, "I1, I7: {number} is free");
            }
        }
        for stream in self.streams.iter().filter_map(|stream| stream.open.as_ref()) {
            let region = self.regions.at(stream.region);
            assert!(matches!(region.state, RegionState::Open(_)) && region.epoch == stream.epoch, "I1: an open region");
        }
    }

    fn check_dirty(&self, entries: &[Entry]) {
        let mut dirty_bytes = 0;
        let mut dirty_count = 0;
        for entry in entries.iter().filter(|entry| entry.state() != EntryIs::Clean) {
            let record = self.dirty.get(&entry.identity());
            let record = record.expect("I4: what is dirty is known to be");
            assert_eq!(record.generation, entry.generation(), "I9: the dirty record is that of the entry");
            assert_eq!(record.len_bytes(), entry.len_bytes(), "the dirty record describes its block");
            dirty_bytes += u64::from(record.len_bytes());
            dirty_count += 1;
        }
        assert_eq!(self.dirty.len(), dirty_count, "I4: every dirty record has its entry");
        assert_eq!(self.dirty_bytes, dirty_bytes, "I10: dirty bytes are what dirty blocks have");
    }
}
