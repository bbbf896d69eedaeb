//! Looking into the store of a stopped node: what each structure on its disk says, and what is wrong with it.
//!
//! Called by `forebay inspect` and `forebay verify` through a disk that only reads, and by tests. The index is computed by
//! the one recovery there is (`recover`), so nothing here is a second opinion about what counts; the walks below look at
//! the structures one by one and say where each ends and why. Nothing is written, whatever is found; damage is a value.
//! `slots` checkpoints, `journal` the ring, `footers` and `regions` the payload's side, `names` keys, `verify` all of it.

use std::rc::Rc;

use forebay_io::superblock::{SUPERBLOCK_BYTES, SUPERBLOCKS_BYTES, Superblock, SuperblockReject};
use forebay_io::{Disk, DiskFile, IoError, OpenMode, Runtime};

use super::block::DirtyRecord;
use super::entry::{Entry, State as EntryIs};
use super::record::Record;
use super::recover::{self, Loaded};
use super::{NodeIdentity, RejectedCounts, open, slab_name};
use crate::error::StoreError;
use crate::key::IdentityKey;

pub mod footers;
pub mod journal;
pub mod names;
pub mod regions;
pub mod report;
pub mod slots;
pub mod verify;
mod verify_records;
mod window;

/// Entries looked at in one go.
const SLICE_COUNT: usize = 4096;

/// The two copies of a slab's superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblocks {
    /// The slab's file name.
    pub name: String,
    /// How long the file is.
    pub slab_bytes: u64,
    /// First and second copy, or why each is none.
    pub copies: [Result<Superblock, SuperblockReject>; 2],
}

impl Superblocks {
    /// Reads the superblocks of shard number `shard`.
    ///
    /// # Errors
    /// `IoError::Missing` if there is no slab, or what the device said.
    pub async fn read<D: Disk>(disk: &D, shard: u16) -> Result<Superblocks, IoError> {
        let name = slab_name(shard);
        let slab = disk.open(&name, OpenMode::Read).await?;
        let slab_bytes = slab.len_bytes();
        let copies = if slab_bytes < SUPERBLOCKS_BYTES as u64 {
            [Err(SuperblockReject::NotForebay); 2]
        } else {
            let bytes = slab.read(0, SUPERBLOCKS_BYTES).await?;
            [Superblock::decode(&bytes), Superblock::decode(&bytes[SUPERBLOCK_BYTES..])]
        };
        Ok(Superblocks { name, slab_bytes, copies })
    }

    /// The copy that counts: the first good one.
    #[must_use]
    pub fn good(&self) -> Option<&Superblock> {
        self.copies.iter().find_map(|copy| copy.as_ref().ok())
    }
}

/// The slab and the slots of one shard, open for reading.
pub struct Inspector<D: Disk> {
    disk: D,
    slab: D::File,
    superblock: Superblock,
    owner: NodeIdentity,
}

/// How many records there are of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordCounts {
    /// Blocks that the origin has.
    pub clean_puts: u64,
    /// Blocks that it did not have yet.
    pub dirty_puts: u64,
    /// Deletes that it did not know yet.
    pub tombstones: u64,
    /// Marks that it confirmed something.
    pub flushed: u64,
    /// Clean entries dropped.
    pub removes: u64,
    /// Blocks pinned and unpinned.
    pub pins: u64,
    /// Regions opened.
    pub region_opens: u64,
    /// Starts of the store.
    pub starts: u64,
    /// Records that a recovery declared torn.
    pub voids: u64,
    /// Regions taken out of use.
    pub quarantines: u64,
    /// Bytes that are no record.
    pub malformed: u64,
}

impl RecordCounts {
    fn count(&mut self, record: &Record) {
        let counter = match record {
            Record::Put(put) if put.dirty.is_some() => &mut self.dirty_puts,
            Record::Put(_) => &mut self.clean_puts,
            Record::Tombstone(_) => &mut self.tombstones,
            Record::Flushed { .. } => &mut self.flushed,
            Record::Remove { .. } => &mut self.removes,
            Record::Pin { .. } => &mut self.pins,
            Record::RegionOpen { .. } => &mut self.region_opens,
            Record::Opened { .. } => &mut self.starts,
            Record::Void { .. } => &mut self.voids,
            Record::Quarantined { .. } => &mut self.quarantines,
        };
        *counter += 1;
    }

    /// All that are records.
    #[must_use]
    pub fn total(&self) -> u64 {
        let RecordCounts { clean_puts, dirty_puts, tombstones, flushed, removes, region_opens, .. } = self;
        let RecordCounts { pins, starts, voids, quarantines, .. } = self;
        clean_puts + dirty_puts + tombstones + flushed + removes + pins + region_opens + starts + voids + quarantines
    }
}

/// The state that recovery computes, held for questions.
pub struct Recovery {
    loaded: Loaded,
}

/// The index in figures. Sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IndexSummary {
    /// Blocks and tombstones.
    pub entries: u64,
    /// Blocks that the origin has.
    pub clean: u64,
    /// Blocks that it does not have yet.
    pub dirty: u64,
    /// Deletes that it does not know yet.
    pub tombstones: u64,
    /// Content of clean blocks.
    pub clean_bytes: u64,
    /// Content of dirty blocks.
    pub dirty_bytes: u64,
    /// Entries with an extension.
    pub extensions: u64,
    /// Memory of index and extensions.
    pub memory_bytes: u64,
    /// The next number of the shard's sequence.
    pub next_generation: u64,
    /// The checkpoint that recovery began with.
    pub checkpoint: u64,
    /// Records in doubt whose bytes are torn: never acknowledged, dropped.
    pub torn: u64,
    /// When the oldest dirty entry became dirty: milliseconds since 1970.
    pub oldest_dirty_unix_ms: Option<u64>,
}

impl<D: Disk> Inspector<D> {
    /// Opens the slab of shard number `shard`, whoever it belongs to.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] if no copy of the superblock is good or this Forebay can't use what it describes, else
    /// what the device said.
    pub async fn open(disk: D, shard: u16) -> Result<Inspector<D>, StoreError> {
        let superblocks = Superblocks::read(&disk, shard).await?;
        let name = slab_name(shard);
        let Some(superblock) = superblocks.good().copied() else {
            let [first, second] =
                superblocks.copies.map(|copy| copy.map_or_else(|why| why.to_string(), |_| String::new()));
            let what = format!("{name}: no copy of the superblock is good (first: {first}; second: {second})");
            return Err(StoreError::Foreign { what });
        };
        let owner = NodeIdentity {
            node: superblock.node_id,
            shard,
            // A count beyond the type's range is no count of ours, and refused by the check that follows.
            shard_count: u16::try_from(superblock.shard_count).unwrap_or(0),
            identity_key: IdentityKey(superblock.identity_key),
        };
        open::check_owner(&superblock, &owner, &name)?;
        let slab = disk.open(&name, OpenMode::Read).await?;
        Ok(Inspector { disk, slab, superblock, owner })
    }

    /// What the slab says about itself.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Which shard it is.
    #[must_use]
    pub fn shard(&self) -> u16 {
        self.owner.shard
    }

    /// Who it belongs to, as it says itself.
    #[must_use]
    pub fn owner(&self) -> &NodeIdentity {
        &self.owner
    }

    /// What the next start of the node would begin with.
    ///
    /// # Errors
    /// Why it would not start.
    pub async fn recover<R: Runtime>(&self, runtime: &R) -> Result<Recovery, StoreError> {
        let loaded = recover::load(&self.disk, runtime, &self.slab, &self.superblock, &self.owner).await?;
        Ok(Recovery { loaded })
    }

    /// Where region `number` begins in the slab.
    fn region_at(&self, number: u32) -> u64 {
        self.superblock.regions_at() + u64::from(number) * self.superblock.region_bytes
    }
}

impl Recovery {
    /// The index in figures.
    #[must_use]
    pub fn summary(&self) -> IndexSummary {
        let state = &self.loaded.state;
        let mut summary = IndexSummary {
            entries: state.index.count(),
            dirty_bytes: state.dirty_bytes,
            extensions: state.extensions.count() as u64,
            memory_bytes: state.index.memory_bytes() + state.extensions.memory_bytes(),
            next_generation: state.next_generation,
            checkpoint: state.checkpoint_number,
            torn: self.loaded.voids.len() as u64,
            oldest_dirty_unix_ms: state.dirty.values().map(|record| record.since_unix_ms).min(),
            ..IndexSummary::default()
        };
        self.each_entry(|entry| match entry.state() {
            EntryIs::Clean => {
                summary.clean += 1;
                summary.clean_bytes += u64::from(entry.len_bytes());
            }
            EntryIs::Dirty => summary.dirty += 1,
            EntryIs::Tombstone => summary.tombstones += 1,
        });
        summary
    }

    /// What recovery did not take, by reason.
    #[must_use]
    pub fn rejected(&self) -> RejectedCounts {
        self.loaded.rejected
    }

    /// Everything that the origin has not confirmed, the oldest first.
    #[must_use]
    pub fn dirty(&self) -> Vec<Rc<DirtyRecord>> {
        let mut dirty: Vec<_> = self.loaded.state.dirty.values().map(Rc::clone).collect();
        dirty.sort_unstable_by_key(|record| record.generation);
        dirty
    }

    /// Shows every entry, in order of identity.
    fn each_entry(&self, mut show: impl FnMut(&Entry)) {
        let mut after = None;
        loop {
            let slice = self.loaded.state.index.slice_after(after, SLICE_COUNT);
            let Some(last) = slice.last() else { return };
            after = Some(last.identity());
            slice.iter().for_each(&mut show);
        }
    }
}

#[cfg(test)]
mod tests;
