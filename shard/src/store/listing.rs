//! Which tombstones the footers list. A tombstone has no place, so nothing but journal and checkpoint would hold it; the
//! footer of the region of the dirty stream that is open when it is acknowledged lists it too, and when that region is
//! reclaimed a later one does.
//!
//! Called by publish (a new tombstone, or one that recovery found), by commit (a region opened), by reclaim, and where a
//! footer could not be written or is gone. Upholds
//! promise 1 for deletes after a disaster: what is listed in a sealed footer comes back.

use std::rc::Rc;

use super::block::{DirtyKind, DirtyRecord};
use super::commit::encoded;
use super::record::Record;
use super::regions::StreamKind;
use super::state::State;

/// Records that are superseded leave the queue at the latest when it is this much longer than what is dirty.
const SLACK_COUNT: usize = 64;

impl State {
    /// Lists a tombstone in the open region of the dirty stream, or in the next.
    pub fn list(&mut self, record: Rc<DirtyRecord>) {
        self.unlisted.push_back(record);
        self.list_waiting();
        if self.unlisted.len() > 2 * self.dirty.len() + SLACK_COUNT {
            let dirty = &self.dirty;
            self.unlisted.retain(|record| dirty.holds(record));
        }
    }

    /// Lists what waits for a region, as far as there is room in the open one.
    pub fn list_waiting(&mut self) {
        let Some(open) = self.streams[StreamKind::Dirty as usize].open.as_mut() else { return };
        while let Some(record) = self.unlisted.front() {
            if self.dirty.holds(record) && !open.list(&encoded(&Record::Tombstone((**record).clone()))) {
                return;
            }
            self.unlisted.pop_front();
        }
    }

    /// A list is lost: every tombstone is listed once more.
    pub fn list_all_again(&mut self) {
        let is_tombstone = |record: &&Rc<DirtyRecord>| record.kind == DirtyKind::Tombstone;
        let mut tombstones: Vec<_> = self.dirty.values().filter(is_tombstone).map(Rc::clone).collect();
        tombstones.sort_unstable_by_key(|record| record.generation);
        tombstones.into_iter().for_each(|record| self.list(record));
    }

    /// A region is about to be reused: the tombstones of its footer are listed elsewhere, as far as they still count.
    pub fn list_again(&mut self, records: &[Record]) {
        for record in records {
            if let Record::Tombstone(listed) = record
                && let Some(current) = self.dirty.get(&listed.identity)
                && current.generation == listed.generation
            {
                let current = Rc::clone(current);
                self.list(current);
            }
        }
    }
}
