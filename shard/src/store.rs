//! The durable log of one disk, as one shard sees it: append, find, remove, flushed, recover.
//!
//! Called by the verbs through [`Store`]; runs on one thread and in the simulator. Upholds I1 (places), I2 and I3
//! (publish and acknowledge after durability), I4 (dirty is never evicted), I7 (pins), I9 (flushed marks), I11 and I13
//! (recovery). The files below: `record` codec, `entry` and `index` in memory, `regions`, `append`, `commit`,
//! `journal`, `checkpoint`, `recover`, `reclaim`.

use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::{Disk, Runtime};

use crate::config::{Geometry, SyncMode};
use crate::error::StoreError;
use crate::key::{BlockKey, Generation, Identity, IdentityKey};
use crate::outcome::{Located, Pin};
use crate::read::ReadError;

mod block;

pub use block::{
    Appended, BeforeStore, Commit, DirtyKind, DirtyRecord, EntryState, Found, NewBlock, NewKind, Validity,
};

/// Who this store belongs to.
#[derive(Clone)]
pub struct NodeIdentity {
    /// The node, drawn at format.
    pub node: u128,
    /// Which of its shards.
    pub shard: u16,
    /// How many it has.
    pub shard_count: u16,
    /// The secret of its identities.
    pub identity_key: IdentityKey,
}

/// How a store behaves; its geometry comes from the superblock.
#[derive(Clone)]
pub struct StoreConfig {
    /// Who must own the disk.
    pub node: NodeIdentity,
    /// Whether an acknowledgement waits for fdatasync.
    pub sync: SyncMode,
    /// How long the committer gathers; zero: as soon as the previous commit is done.
    pub commit_delay: Duration,
}

/// What recovery found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Everything the origin has not confirmed, in order of generation.
    pub dirty: Vec<Rc<DirtyRecord>>,
    /// Entries in the index, tombstones included.
    pub entries: u64,
    /// What was not taken, by reason.
    pub rejected: RejectedCounts,
}

/// Records and frames that recovery did not take, by reason.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RejectedCounts {
    /// Their region was opened again later.
    pub stale_epoch: u64,
    /// Not synced before the crash, and their bytes do not verify.
    pub torn_payload: u64,
    /// A frame that is there but damaged ends the journal.
    pub torn_frames: u64,
    /// A record that its codec refuses inside a good frame.
    pub malformed: u64,
    /// Checkpoint slots that are incomplete or damaged.
    pub checkpoint_slots: u64,
    /// Copies of the superblock that are damaged.
    pub superblocks: u64,
}

/// Figures for status and metrics. All sizes are bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// Blocks and tombstones in the index.
    pub entries: u64,
    /// What the index and its extensions take in memory.
    pub index_bytes: u64,
    /// Content of dirty blocks.
    pub dirty_bytes: u64,
    /// Dirty blocks and tombstones.
    pub dirty_entries: u64,
    /// Regions ready to be opened.
    pub regions_free: u64,
    /// Regions full of records.
    pub regions_sealed: u64,
    /// Regions that a failed write or a rotten dirty block took out of use.
    pub regions_quarantined: u64,
    /// Journal bytes that no checkpoint covers yet.
    pub journal_used_bytes: u64,
    /// Groups committed.
    pub commits: u64,
    /// Syncs of the slab.
    pub syncs: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Regions reclaimed.
    pub reclaimed: u64,
    /// Clean blocks that reclaim evicted.
    pub evicted: u64,
    /// Dirty blocks that reclaim moved.
    pub relocated: u64,
    /// Payload bytes appended.
    pub appended_bytes: u64,
}

/// The name of a shard's slab file.
#[must_use]
pub fn slab_name(shard: u16) -> String {
    format!("shard-{shard:03}.slab")
}

/// The store of one shard on one disk. Cheap to clone; all clones are one store.
pub struct Store<D: Disk, R: Runtime> {
    inner: Rc<(PhantomData<D>, PhantomData<R>)>,
}

impl<D: Disk, R: Runtime> Clone for Store<D, R> {
    fn clone(&self) -> Self {
        Store { inner: Rc::clone(&self.inner) }
    }
}

impl<D: Disk, R: Runtime> Store<D, R> {
    /// Makes the files of an empty store.
    ///
    /// # Errors
    /// `IoError::Exists` where there is one already: it is never overwritten.
    pub async fn format(_disk: &D, _geometry: Geometry, _node: &NodeIdentity) -> Result<(), StoreError> {
        Err(StoreError::Closing)
    }

    /// Recovers the store and starts its committer, reclaimer and checkpointer.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] if the disk belongs to somebody else, else what the disk said.
    pub async fn open(_disk: D, _runtime: R, _config: StoreConfig) -> Result<(Store<D, R>, Recovered), StoreError> {
        Err(StoreError::Closing)
    }

    /// The identity of `key` on this node.
    #[must_use]
    pub fn identity(&self, _key: &BlockKey) -> Identity {
        Identity(0)
    }

    /// The next number of this shard's one sequence.
    #[must_use]
    pub fn next_generation(&self) -> Generation {
        Generation(0)
    }

    /// What is known about `identity`, without touching the disk.
    #[must_use]
    pub fn find(&self, _identity: Identity) -> Option<Found> {
        None
    }

    /// Where the block of `identity` lies, its region pinned (I7) until [`Store::unpin`], its entry marked as used.
    /// `None` if there is no entry or only a tombstone.
    #[must_use]
    pub fn locate(&self, _identity: Identity) -> Option<Located> {
        None
    }

    /// Gives back what [`Store::locate`] pinned; exactly once.
    pub fn unpin(&self, _pin: Pin) {}

    /// Appends a block. Resolves when it is published; for dirty blocks and `Commit::Durable` that is after the sync.
    ///
    /// # Errors
    /// [`StoreError::Full`] if no region became free in time, [`StoreError::Disk`] if a write of this block or the
    /// sync failed (nothing is published), [`StoreError::Failed`] and [`StoreError::Closing`].
    pub async fn append(&self, _block: NewBlock) -> Result<Appended, StoreError> {
        Err(StoreError::Closing)
    }

    /// Makes a delete durable, then publishes it: the key answers as absent and is dirty.
    ///
    /// # Errors
    /// As [`Store::append`], but for `Full`.
    pub async fn tombstone(&self, _record: Rc<DirtyRecord>) -> Result<(), StoreError> {
        Err(StoreError::Closing)
    }

    /// Drops a clean entry of at most this generation, durably, whatever was queued before it included. A dirty entry
    /// stays (I4). Journaled even if there is no entry, because a fill of the key may be in the journal already.
    ///
    /// # Errors
    /// As [`Store::tombstone`].
    pub async fn remove(&self, _identity: Identity, _up_to: Generation) -> Result<(), StoreError> {
        Err(StoreError::Closing)
    }

    /// Drops a clean entry of this very generation at once: its bytes rotted. Journaled with a later commit.
    pub fn forget(&self, _identity: Identity, _generation: Generation) {}

    /// The origin confirmed this generation: a dirty block becomes clean, a tombstone goes; if it is not current any
    /// more, nothing happens (I9). Journaled with a later commit.
    pub fn flushed(&self, _identity: Identity, _generation: Generation) {}

    /// Reads a located block whole, verified. It stays pinned.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, _located: &Located) -> Result<Bytes, ReadError> {
        Err(ReadError::Rot { piece_index: 0 })
    }

    /// Content bytes of dirty blocks (I10).
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        0
    }

    /// Figures for status and metrics.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats::default()
    }

    /// Asserts I1, I4, I7 and that regions and entries agree. Walks everything: for tests and after simulated steps.
    pub fn check(&self) {}

    /// Writes a checkpoint now.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        Err(StoreError::Closing)
    }

    /// Commits what is pending, writes a checkpoint, stops the tasks. Later writes fail with [`StoreError::Closing`].
    pub async fn close(&self) {}
}
