//! `Shard::check`: the invariants that cost too much to assert in passing. Called by tests after simulated steps.
//!
//! Asserts I5 and I6 (the fill table), I9 (what is queued as dirty is what the index holds as dirty), I10 (budgets), the
//! memory tier's agreement with the index, and the store's own (I1, I4, I7).

use forebay_io::{Disk, Runtime};

use crate::origin::Origin;
use crate::shard::Shard;
use crate::store::{DirtyKind, EntryState, Found};

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Panics if an invariant does not hold. Walks everything.
    pub fn check(&self) {
        let inner = &self.inner;
        inner.disks.check();
        inner.fills.check();
        inner.dirty.check();
        inner.memory.borrow().check();
        for record in inner.dirty.records() {
            // A change, or a flush under its lane, may stand between its two halves.
            if inner.fills.is_changing(record.identity) || inner.lanes.is_locked(record.identity) {
                continue;
            }
            let found = inner.disks.find(record.identity);
            let agrees = match (&record.kind, &found) {
                (DirtyKind::Tombstone, Some(Found::Tombstone { generation })) => *generation == record.generation,
                (
                    DirtyKind::Block { len_bytes, .. },
                    Some(Found::Block { generation, len_bytes: found, state, .. }),
                ) => *generation == record.generation && len_bytes == found && *state == EntryState::Dirty,
                // The origin confirmed it, but its end did not become durable: it is kept, so that after a restart nobody
                // is surprised by it.
                (DirtyKind::Tombstone, None) => inner.dirty.failures(record.identity) > 0,
                _ => false,
            };
            assert!(agrees, "I9: queued as dirty is dirty in the index: {record:?}, {found:?}");
        }
        for (identity, generation) in inner.memory.borrow().identities() {
            if inner.fills.is_changing(identity) {
                continue;
            }
            match inner.disks.find(identity) {
                Some(Found::Tombstone { .. }) => panic!("a deleted block is in the memory tier"),
                Some(Found::Block { generation: on_disk, state: EntryState::Dirty, .. }) => {
                    assert_eq!(generation, on_disk, "the memory tier holds what the newest put stored");
                }
                Some(Found::Block { .. }) | None => {}
            }
        }
    }
}
