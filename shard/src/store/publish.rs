//! The only code that changes entries: publish, flushed, forget, evict, move; and the accounts that go with each
//! (who lives in which region, dirty bytes, extensions).
//!
//! Called by the committer after the sync, by `Store::flushed` and `forget`, by reclaim, and by recovery. Upholds I2
//! (callers publish only what is on the device), I4, I9, I14, and that no older generation ever replaces a newer one (I13).

use std::rc::Rc;

use super::block::{DirtyRecord, Pinning, Validity};
use super::entry::{Entry, Place, Proof, State as EntryIs};
use super::record::{PlainPut, PutRecord};
use super::regions::{RegionState, footprint};
use super::state::State;
use crate::canary::{self, Canary};
use crate::key::{Generation, Identity};
use crate::policy::PolicyKey;
use crate::policy::disk::{Class, Fate, USES_MAX, fate};

/// How a put is published.
#[derive(Clone)]
pub enum PutMode {
    /// A fill: only while valid, never over a dirty entry.
    Fill(Validity),
    /// A put that the origin has.
    Confirmed(Validity),
    /// A put that the origin does not have yet.
    Dirty(Rc<DirtyRecord>),
    /// The same dirty block at another place.
    Relocation {
        /// Where it was when it was read.
        from: Place,
    },
    /// The same clean block at another place, because it was used.
    Reinsertion {
        /// Where it was when it was read.
        from: Place,
    },
    /// Recovery: as the record says, over anything that is not newer.
    Replay,
}

impl State {
    /// Whether a put of `identity` and `generation` may be published now.
    pub fn admits(&self, identity: Identity, generation: Generation, mode: &PutMode) -> bool {
        let current = self.index.find(identity);
        let is_newest = current.is_none_or(|entry| entry.generation() < generation);
        match mode {
            PutMode::Fill(validity) => {
                (validity.holds() || canary::is(Canary::StaleFillOnDisk))
                    && is_newest
                    && !self.gone.hides(identity, generation)
                    && current.is_none_or(|entry| entry.state() == EntryIs::Clean)
            }
            PutMode::Confirmed(validity) => validity.holds() && is_newest,
            PutMode::Dirty(_) => is_newest,
            PutMode::Relocation { .. } if canary::is(Canary::RelocationOverNewer) => current.is_some(),
            PutMode::Relocation { from } => {
                current.is_some_and(|entry| entry.generation() == generation && entry.place() == Some(*from))
            }
            PutMode::Reinsertion { .. } if canary::is(Canary::ReinsertionOverNewer) => current.is_some(),
            PutMode::Reinsertion { .. } if current.is_none() => canary::is(Canary::ReinsertionAfterRemoval),
            PutMode::Reinsertion { from } => current.is_some_and(|entry| entry.is_clean_at(generation, *from)),
            PutMode::Replay => current.is_none_or(|entry| entry.generation() <= generation),
        }
    }

    /// Makes `put` the entry of its identity, unless that is not admitted any more. Its bytes are on the device (I2).
    pub fn publish_put(&mut self, put: &PutRecord, mode: &PutMode) -> bool {
        let region = self.regions.at(put.at.region);
        assert_eq!(region.epoch, put.epoch, "I1: a record is published in the epoch it was written in");
        if matches!(mode, PutMode::Replay) && put.dirty.is_none() && self.index.is_above_all(put.identity) {
            self.add(put, EntryIs::Clean, self.uses_found(put.at), put.pinning);
            return true;
        }
        if !self.admits(put.identity, put.generation, mode) {
            return false;
        }
        let current = self.index.find(put.identity);
        let (state, dirty) = match mode {
            PutMode::Fill(_) | PutMode::Confirmed(_) | PutMode::Reinsertion { .. } => (EntryIs::Clean, None),
            PutMode::Dirty(record) => (EntryIs::Dirty, Some(Rc::clone(record))),
            PutMode::Replay => match &put.dirty {
                Some(record) => (EntryIs::Dirty, Some(Rc::new((**record).clone()))),
                None => (EntryIs::Clean, None),
            },
            // It may have been flushed since its record was journaled; the mark follows in the journal.
            PutMode::Relocation { .. } => {
                let state = current.map(|entry| entry.state()).expect("admitted only if the entry is there");
                (state, self.dirty.get(&put.identity).cloned())
            }
        };
        assert_eq!(state == EntryIs::Dirty, dirty.is_some(), "I4: what is dirty is known to be");
        let uses = self.uses_left(current, mode, put.at);
        // What was said of the block of this key outlasts its place and its generation (I14).
        let block = current.filter(|entry| entry.place().is_some());
        let pinning = block.map_or(put.pinning, |entry| entry.pinning());
        if let Some(current) = current {
            assert!(current.generation() <= put.generation, "I13: no older generation replaces a newer one");
            self.release(current);
        }
        self.add(put, state, uses, pinning);
        let region = self.regions.at_mut(put.at.region);
        if let Some(record) = dirty {
            region.dirty_bytes += footprint(put.len_bytes);
            self.dirty_bytes += u64::from(put.len_bytes);
            assert_eq!(record.len_bytes(), put.len_bytes, "a dirty record describes its block");
            self.dirty.insert(put.identity, record);
        }
        true
    }

    /// The uses that a block keeps which is written at another place: what the policy leaves it of those that were counted
    /// until now.
    fn uses_left(&self, current: Option<Entry>, mode: &PutMode, at: Place) -> u8 {
        let Some(current) = current else {
            return if matches!(mode, PutMode::Replay) { self.uses_found(at) } else { 0 };
        };
        match mode {
            PutMode::Relocation { .. } => current.uses(),
            PutMode::Reinsertion { from } => match fate(self.regions.at(from.region).class, current.uses()) {
                Fate::Stays { uses } => uses,
                Fate::Goes => 0,
            },
            PutMode::Fill(_) | PutMode::Confirmed(_) | PutMode::Dirty(_) => 0,
            PutMode::Replay => self.uses_found(at),
        }
    }

    /// The uses of a block that recovery finds: nobody knows how many there were, so one more is to keep it in either queue.
    fn uses_found(&self, at: Place) -> u8 {
        u8::from(self.regions.at(at.region).class == Class::New)
    }

    /// Enters a clean block that recovery read in order of identity, if it is above all that its part of the index holds:
    /// then nothing is there to be compared or replaced.
    pub fn enter_in_order(&mut self, put: &PlainPut) -> bool {
        let epoch = self.regions.at(put.at.region).epoch;
        assert_eq!(epoch, put.epoch, "I1: a record is published in the epoch it was written in");
        let proof = Proof::Sum(put.sum);
        let entry = Entry::block(put.identity, put.generation, put.at, put.len_bytes, proof, EntryIs::Clean);
        let is_entered = self.index.append(entry.with_uses(self.uses_found(put.at)));
        self.regions.at_mut(put.at.region).live += u32::from(is_entered);
        is_entered
    }

    /// Enters a block in index and region.
    fn add(&mut self, put: &PutRecord, state: EntryIs, uses: u8, pinning: Pinning) {
        let proof = self.extensions.add(put.sums.clone(), put.etag.clone());
        let entry = Entry::block(put.identity, put.generation, put.at, put.len_bytes, proof, state);
        let entry = entry.with_uses(uses).with_pinning(pinning);
        self.index.insert(entry);
        self.enter_pinned(entry);
        self.regions.at_mut(put.at.region).live += 1;
    }

    /// Makes a delete the entry of its identity, unless a newer generation is there.
    pub fn publish_tombstone(&mut self, record: Rc<DirtyRecord>) -> bool {
        let current = self.index.find(record.identity);
        if current.is_some_and(|entry| entry.generation() > record.generation) {
            return false;
        }
        if let Some(current) = current {
            self.release(current);
        }
        self.index.insert(Entry::tombstone(record.identity, record.generation));
        self.dirty.insert(record.identity, Rc::clone(&record));
        self.list(record);
        true
    }

    /// Drops a clean entry of at most `up_to`. A dirty one stays (I4).
    pub fn publish_remove(&mut self, identity: Identity, up_to: Generation) -> bool {
        let current = self.index.find(identity);
        let is_purged = |is: EntryIs| is == EntryIs::Clean || canary::is(Canary::PurgeDropsDirty);
        let goes = current.filter(|entry| is_purged(entry.state()) && entry.generation() <= up_to);
        goes.is_some_and(|entry| {
            self.take_out(entry);
            true
        })
    }

    /// The origin confirmed this generation: dirty becomes clean, a tombstone goes. False if it is not current (I9).
    pub fn mark_flushed(&mut self, identity: Identity, generation: Generation) -> bool {
        let current = self.index.find(identity);
        let Some(entry) = current.filter(|entry| entry.generation() == generation) else { return false };
        match entry.state() {
            EntryIs::Clean => false,
            EntryIs::Tombstone => {
                self.take_out(entry);
                true
            }
            EntryIs::Dirty => {
                let record = self.dirty.remove(&identity).expect("I4: what is dirty is known to be");
                assert_eq!(record.generation, generation, "I9: only the confirmed generation becomes clean");
                let place = entry.place().expect("a block has a place");
                self.regions.at_mut(place.region).dirty_bytes -= footprint(entry.len_bytes());
                self.dirty_bytes -= u64::from(entry.len_bytes());
                let clean = entry.with_state(EntryIs::Clean);
                self.leave_pinned(entry);
                self.index.insert(clean);
                self.enter_pinned(clean);
                true
            }
        }
    }

    /// A client asked for a block that is here.
    pub fn count_use(&mut self, entry: Entry) {
        if entry.place().is_some() && entry.uses() < USES_MAX {
            self.index.insert(entry.with_uses(entry.uses() + 1));
        }
    }

    /// Drops a clean entry to free its region. The epoch of the region, not a record, makes that durable.
    pub fn evict(&mut self, entry: Entry) {
        assert_eq!(entry.state(), EntryIs::Clean, "I4: a dirty entry is never evicted");
        assert_eq!(entry.pinning(), Pinning::Unpinned, "I14: a pinned block is not evicted");
        let class = entry.place().map_or(Class::New, |at| self.regions.at(at.region).class);
        self.take_out(entry);
        self.policy.evicted(entry.identity().spread(), class, self.index.count());
        self.counters.evicted += 1;
    }

    /// Removes the present entry of an identity and settles its accounts; recovery also drops superseded ones so.
    pub fn take_out(&mut self, entry: Entry) {
        let removed = self.index.remove(entry.identity());
        if entry.place().is_some() {
            self.gone.note(entry.identity(), entry.generation());
        }
        assert_eq!(removed.map(|entry| entry.generation()), Some(entry.generation()), "the present entry is removed");
        self.release(entry);
    }

    /// Settles the accounts of an entry that is being replaced or was removed.
    fn release(&mut self, entry: Entry) {
        let was_dirty = match entry.state() {
            EntryIs::Clean => false,
            EntryIs::Dirty | EntryIs::Tombstone => {
                let record = self.dirty.remove(&entry.identity()).expect("I4: what is dirty is known to be");
                self.dirty_bytes -= u64::from(record.len_bytes());
                true
            }
        };
        let Some(place) = entry.place() else { return };
        self.extensions.release(entry.proof());
        self.leave_pinned(entry);
        let region = self.regions.at_mut(place.region);
        region.live = region.live.checked_sub(1).expect("I1: every entry is counted in its region");
        if was_dirty {
            region.dirty_bytes -= footprint(entry.len_bytes());
        }
        self.settle(place.region);
    }

    /// Pins the block of a key, or takes that back, if it is of this generation at most. False if there is none.
    pub fn set_pinning(&mut self, identity: Identity, up_to: Generation, pinning: Pinning) -> bool {
        let current = self.index.find(identity);
        let Some(entry) = current.filter(|entry| entry.place().is_some() && entry.generation() <= up_to) else {
            return false;
        };
        let entered = entry.with_pinning(pinning);
        self.leave_pinned(entry);
        self.index.insert(entered);
        self.enter_pinned(entered);
        true
    }

    /// Whether the block of a key is pinned.
    pub fn pinning_of(&self, identity: Identity) -> Pinning {
        let block = self.index.find(identity).filter(|entry| entry.place().is_some());
        block.map_or(Pinning::Unpinned, |entry| entry.pinning())
    }

    /// Counts an entry that is in the index from now on.
    fn enter_pinned(&mut self, entry: Entry) {
        if entry.pinning() == Pinning::Pinned {
            let bytes = footprint(entry.len_bytes());
            (self.pinned_count, self.pinned_bytes) = (self.pinned_count + 1, self.pinned_bytes + bytes);
            if let (EntryIs::Clean, Some(place)) = (entry.state(), entry.place()) {
                self.regions.at_mut(place.region).pinned_bytes += bytes;
            }
        }
    }

    /// The inverse.
    fn leave_pinned(&mut self, entry: Entry) {
        if entry.pinning() == Pinning::Pinned {
            let bytes = footprint(entry.len_bytes());
            (self.pinned_count, self.pinned_bytes) = (self.pinned_count - 1, self.pinned_bytes - bytes);
            if let (EntryIs::Clean, Some(place)) = (entry.state(), entry.place()) {
                self.regions.at_mut(place.region).pinned_bytes -= bytes;
            }
        }
    }

    /// The region may have become free.
    pub fn settle(&mut self, region: u32) {
        if self.regions.free_if_empty(region) {
            self.note_freed();
        }
    }

    /// A pin is given back (I7).
    pub fn unpin(&mut self, region: u32) {
        if self.regions.unpin(region) {
            self.note_freed();
        }
    }

    /// A record's commit is decided: its region may be reclaimed as far as this record goes.
    pub fn decided(&mut self, region: u32) {
        let at = self.regions.at_mut(region);
        at.uncommitted = at.uncommitted.checked_sub(1).expect("each record is decided once");
        assert_ne!(at.state, RegionState::Free, "I1: a region with undecided records is not free");
        self.settle(region);
    }

    fn note_freed(&mut self) {
        self.freed = true;
        self.counters.reclaimed += 1;
    }
}
