//! Proves that index, regions, dirty records and extensions agree: walks everything, finds breaches of I1, I4, I7, I9's
//! account and I10's.
//!
//! Called by `Store::check` (tests and simulated steps; too costly for production), which asserts, and by `inspect::verify`
//! for the state of a stopped node, which reports.

use super::block::Pinning;
use super::entry::{Entry, Proof, State as EntryIs};
use super::regions::{RegionState, footprint};
use super::state::State;
use crate::key::Identity;

/// Entries looked at in one go.
const SLICE_COUNT: usize = 4096;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Whose entry, if it is about one.
    pub identity: Option<Identity>,
    /// The invariant, and what breaks it.
    pub what: String,
}

impl Fault {
    fn of(entry: &Entry, what: impl Into<String>) -> Fault {
        Fault { identity: Some(entry.identity()), what: what.into() }
    }

    fn any(what: impl Into<String>) -> Fault {
        Fault { identity: None, what: what.into() }
    }
}

impl State {
    /// Asserts everything that must hold between two steps.
    ///
    /// # Panics
    /// If anything does not.
    pub fn check(&self, region_bytes: u64) {
        let faults = self.faults(region_bytes);
        assert!(faults.is_empty(), "I1, I4, I7, I9, I10: {faults:?}");
        let mut blocks = self.index.slice_after(None, usize::MAX);
        blocks.retain(|entry| entry.place().is_some());
        blocks.sort_unstable_by_key(Entry::place);
        let overlaps = overlaps(&blocks);
        assert!(overlaps.is_empty(), "I1: no two live records share bytes: {overlaps:?}");
    }

    /// Everything that is wrong, but for overlaps.
    #[must_use]
    pub fn faults(&self, region_bytes: u64) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut tally = Tally { live: vec![(0, 0, 0); self.regions.count() as usize], ..Tally::default() };
        let mut after: Option<Identity> = None;
        loop {
            let slice = self.index.slice_after(after, SLICE_COUNT);
            let Some(last) = slice.last() else { break };
            for entry in &slice {
                if after.is_some_and(|before| entry.identity() <= before) {
                    faults.push(Fault::of(entry, "the index is sorted and unique"));
                }
                self.check_entry(entry, region_bytes, &mut tally, &mut faults);
                after = Some(entry.identity());
            }
            assert_eq!(after, Some(last.identity()), "a walk goes on behind the last entry");
        }
        self.check_tally(&tally, &mut faults);
        self.check_regions(&tally, &mut faults);
        faults
    }

    fn check_entry(&self, entry: &Entry, region_bytes: u64, tally: &mut Tally, faults: &mut Vec<Fault>) {
        tally.entries += 1;
        if entry.pinning() == Pinning::Pinned {
            tally.pinned.0 += 1;
            tally.pinned.1 += footprint(entry.len_bytes());
        }
        tally.extended += usize::from(matches!(entry.proof(), Proof::Extension(_)));
        if entry.generation().0 >= self.next_generation {
            faults.push(Fault::of(entry, "generations only grow: this one was not given out yet"));
        }
        if let Some(at) = entry.place() {
            let end = at.offset() + footprint(entry.len_bytes());
            match tally.live.get_mut(at.region as usize) {
                Some((count, dirty_bytes, pinned_bytes)) if end <= region_bytes => {
                    *count += 1;
                    match (entry.state(), entry.pinning()) {
                        (EntryIs::Dirty, _) => *dirty_bytes += footprint(entry.len_bytes()),
                        (_, Pinning::Pinned) => *pinned_bytes += footprint(entry.len_bytes()),
                        _ => {}
                    }
                }
                _ => faults.push(Fault::of(entry, "I1: a record lies inside its region")),
            }
        }
        if entry.state() == EntryIs::Clean {
            return;
        }
        tally.dirty_count += 1;
        let Some(record) = self.dirty.get(&entry.identity()) else {
            faults.push(Fault::of(entry, "I4: what is dirty is known to be"));
            return;
        };
        tally.dirty_bytes += u64::from(record.len_bytes());
        if record.generation != entry.generation() {
            faults.push(Fault::of(entry, "I9: the dirty record is that of the entry"));
        }
        if record.len_bytes() != entry.len_bytes() {
            faults.push(Fault::of(entry, "the dirty record describes its block"));
        }
    }

    fn check_tally(&self, tally: &Tally, faults: &mut Vec<Fault>) {
        if tally.entries != self.index.count() {
            faults.push(Fault::any("the index counts its entries"));
        }
        if self.dirty.len() != tally.dirty_count {
            faults.push(Fault::any("I4: every dirty record has its entry"));
        }
        if self.dirty_bytes != tally.dirty_bytes {
            faults.push(Fault::any("I10: dirty bytes are what dirty blocks have"));
        }
        if tally.pinned != (self.pinned_count, self.pinned_bytes) {
            faults.push(Fault::any("I14: pinned blocks and their bytes are counted"));
        }
        if tally.extended != self.extensions.count() {
            faults.push(Fault::any("every extension belongs to one entry"));
        }
    }

    fn check_regions(&self, tally: &Tally, faults: &mut Vec<Fault>) {
        for ((number, region), live) in self.regions.iter().zip(&tally.live) {
            if *live != (region.live, region.dirty_bytes, region.pinned_bytes) {
                faults.push(Fault::any(format!("the account of region {number} is not {live:?}: {region:?}")));
            }
            let is_free = matches!(region.state, RegionState::Free | RegionState::Opening);
            if is_free && !region.holds_nothing() {
                faults.push(Fault::any(format!("I1, I7: region {number} is free and holds something: {region:?}")));
            }
        }
        for stream in self.streams.iter().filter_map(|stream| stream.open.as_ref()) {
            let region = self.regions.at(stream.region);
            if !matches!(region.state, RegionState::Open(_)) || region.epoch != stream.epoch {
                faults.push(Fault::any(format!("I1: a stream's region {} is open in its epoch", stream.region)));
            }
        }
    }
}

/// What a walk counts.
#[derive(Default)]
struct Tally {
    entries: u64,
    extended: usize,
    dirty_count: usize,
    dirty_bytes: u64,
    /// Blocks and bytes.
    pinned: (u64, u64),
    /// For each region how many entries point there, what its dirty ones occupy, and what its clean pinned ones do.
    live: Vec<(u32, u64, u64)>,
}

/// Entries (blocks, sorted by place) that share bytes with the one before them (I1).
#[must_use]
pub fn overlaps(blocks: &[Entry]) -> Vec<Fault> {
    let ends = |entry: &Entry| entry.place().map(|at| (at.region, at.offset() + footprint(entry.len_bytes())));
    let begins = |entry: &Entry| entry.place().map(|at| (at.region, at.offset()));
    let pairs = blocks.windows(2).filter(|pair| match (ends(&pair[0]), begins(&pair[1])) {
        (Some((region, end)), Some((next_region, begin))) => region == next_region && begin < end,
        _ => false,
    });
    pairs.map(|pair| Fault::of(&pair[1], format!("I1: {:?} shares bytes with {:?}", pair[1], pair[0]))).collect()
}
