//! Questions to the store: what is there, where it lies, its bytes, its figures.
//!
//! Called by `Store` and by relocation. Upholds I7 (what is located is pinned) and I8 (what is read was verified).

use bytes::{Bytes, BytesMut};
use forebay_io::units::PIECE_BYTES;
use forebay_io::{Disk, Runtime};

use super::StoreStats;
use super::block::{DirtyKind, EntryState, Found};
use super::entry::{Entry, State as EntryIs};
use super::regions::RegionState;
use super::state::{Core, State};
use crate::key::Identity;
use crate::origin::Etag;
use crate::outcome::{Located, Pin};
use crate::read::{BlockReader, ReadError};

impl State {
    /// What the index knows.
    pub fn found(&self, identity: Identity) -> Option<Found> {
        let entry = self.index.find(identity)?;
        let generation = entry.generation();
        let state = match entry.state() {
            EntryIs::Tombstone => return Some(Found::Tombstone { generation }),
            EntryIs::Clean => EntryState::Clean,
            EntryIs::Dirty => EntryState::Dirty,
        };
        Some(Found::Block { generation, len_bytes: entry.len_bytes(), state, etag: self.etag_of(&entry) })
    }

    fn etag_of(&self, entry: &Entry) -> Option<Etag> {
        let (_, etag) = self.extensions.resolve(entry.proof());
        let dirty = || match self.dirty.get(&entry.identity())?.kind {
            DirtyKind::Block { digest, .. } => Some(Etag::Digest(digest)),
            DirtyKind::Tombstone => None,
        };
        etag.or_else(dirty)
    }

    /// Figures for status and metrics.
    pub fn stats(&self) -> StoreStats {
        let count = |state| u64::from(self.regions.count_in(state));
        StoreStats {
            entries: self.index.count(),
            index_bytes: self.index.memory_bytes() + self.extensions.memory_bytes(),
            dirty_bytes: self.dirty_bytes,
            dirty_entries: self.dirty.len() as u64,
            pinned_bytes: self.pinned_bytes,
            pinned_entries: self.pinned_count,
            regions_free: count(RegionState::Free),
            regions_sealed: count(RegionState::Sealed),
            regions_quarantined: count(RegionState::Quarantined),
            journal_used_bytes: self.journal.used_bytes(),
            ghost_bytes: self.policy.memory_bytes() as u64,
            ..self.counters
        }
    }
}

impl<D: Disk, R: Runtime> Core<D, R> {
    /// Where a block lies, pinned (I7).
    ///
    /// # Panics
    /// If `entry` is not that of a block that is there now.
    pub fn locate_entry(&self, entry: &Entry) -> Located {
        let at = entry.place().expect("only blocks are located");
        self.change(|state| {
            state.regions.pin(at.region);
            let (sums, _) = state.extensions.resolve(entry.proof());
            Located {
                shard: self.config.node.shard,
                offset: self.region_at(at.region) + at.offset(),
                len_bytes: entry.len_bytes(),
                identity: entry.identity(),
                generation: entry.generation(),
                sums,
                etag: state.etag_of(entry),
                state: if entry.state() == EntryIs::Dirty { EntryState::Dirty } else { EntryState::Clean },
                pin: Pin { disk: 0, region: at.region },
            }
        })
    }

    /// Reads and verifies every piece (I8).
    pub async fn read_whole(&self, located: &Located) -> Result<Bytes, ReadError> {
        let reader = BlockReader::new(self.slab.clone(), located.clone());
        let mut content = BytesMut::with_capacity(located.len_bytes as usize);
        for index in 0..reader.piece_count() {
            let piece = reader.piece(index).await?;
            assert_eq!(content.len(), index * PIECE_BYTES, "pieces are read in order");
            content.extend_from_slice(&piece);
        }
        Ok(content.freeze())
    }
}
