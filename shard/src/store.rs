//! The durable log of one disk, as one shard sees it: append, find, remove, flushed, recover.
//!
//! Called by the verbs through [`Store`]; runs on one thread and in the simulator. Upholds I1 (places), I2 and I3
//! (publish and acknowledge after durability), I4 (dirty is never evicted), I7 (pins), I9 (flushed marks), I11 and I13
//! (recovery). The files below: `record` codec, `entry` and `index` in memory, `regions`, `append`, `commit`,
//! `journal`, `checkpoint`, `recover`, `reclaim`, `keep`, `pinning`.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use event_listener::EventListener;
use forebay_io::checksum::{Digester, SumKey, piece_sum};
use forebay_io::units::{PIECE_BYTES, piece_count};
use forebay_io::{Disk, Runtime};
use futures::channel::oneshot;
use futures::future::{Either, select};

use self::commit::{Change, Decided, Item};
use self::entry::Place;
use self::place::Draft;
use self::publish::PutMode;
use self::record::{PutRecord, Record};
use self::regions::Epoch;
use self::state::{Core, Life, Undecided};
use crate::canary::{self, Canary};
use crate::config::{DiskLimits, Geometry, SyncMode};
use crate::error::StoreError;
use crate::key::{BlockKey, Generation, Identity, IdentityKey};
use crate::origin::Etag;
use crate::outcome::{Located, PieceSums, Pin};
use crate::read::ReadError;

mod ahead;
mod append;
mod block;
mod check;
mod checkpoint;
mod commit;
mod dirty_table;
mod doubt;
mod entry;
mod evidence;
mod extension;
mod footer;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gone;
mod index;
pub mod inspect;
mod journal;
mod keep;
mod listing;
mod lookup;
mod open;
mod patient;
mod pinning;
mod place;
mod probe;
mod publish;
mod reclaim;
mod record;
mod recover;
mod refound;
mod regions;
mod replay;
mod report;
mod salvage;
mod scan;
mod sift;
mod slots;
mod state;

pub use block::{
    Appended, BeforeStore, Certainty, Commit, DirtyKind, DirtyRecord, EntryState, Found, NewBlock, NewKind, PinOutcome,
    Pinning, Validity,
};

pub use report::{RecoveredBy, RecoveryWork, RejectedCounts};
pub(crate) use sift::{Sifted, Verdict};

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
    /// What the policy may remember and write.
    pub disk_limits: DiskLimits,
}

/// What recovery found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Everything the origin has not confirmed, in order of generation.
    pub dirty: Vec<Rc<DirtyRecord>>,
    /// Entries in the index, tombstones included.
    pub entries: u64,
    /// Dirty records of which nobody knows whether they are the newest of their key.
    pub unsure: u64,
    /// Regions that are out of use.
    pub quarantined: u64,
    /// How it was read back.
    pub by: RecoveredBy,
    /// What was not taken, by reason.
    pub rejected: RejectedCounts,
    /// What it took.
    pub work: RecoveryWork,
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
    /// What pinned blocks occupy.
    pub pinned_bytes: u64,
    /// What they may occupy.
    pub pinned_bytes_max: u64,
    /// Pinned blocks.
    pub pinned_entries: u64,
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
    /// Regions whose reclaim found dirty blocks.
    pub reclaimed_dirty: u64,
    /// Regions whose reclaim found no good footer.
    pub footers_missing: u64,
    /// Relocations overtaken by a newer put.
    pub relocations_overwritten: u64,
    /// Relocations overtaken by a delete.
    pub relocations_deleted: u64,
    /// Relocations overtaken by a flush.
    pub relocations_flushed: u64,
    /// Regions that waited for a reader's pin before they were free.
    pub reclaims_pinned: u64,
    /// Times the journal began again at its ring's start.
    pub journal_wraps: u64,
    /// Clean blocks that reclaim wrote again because they had been used.
    pub reinserted: u64,
    /// Their payload.
    pub reinserted_bytes: u64,
    /// Used blocks that reclaim evicted all the same: more than a region may keep, or an append waited for room.
    pub reinsertions_forgone: u64,
    /// Re-insertions overtaken by a newer put or fill.
    pub reinsertions_overwritten: u64,
    /// Re-insertions overtaken by a delete or a purge.
    pub reinsertions_deleted: u64,
    /// Pinned blocks that reclaim moved.
    pub pinned_moved: u64,
    /// Pinned blocks that were dropped because their bytes could not be read any more.
    pub pins_lost: u64,
    /// Fills of blocks that had gone from disk not long before.
    pub ghost_hits: u64,
    /// Fills that the write budget kept from disk.
    pub fills_declined: u64,
    /// What the ghosts take in memory.
    pub ghost_bytes: u64,
}

/// The name of a shard's slab file.
#[must_use]
pub fn slab_name(shard: u16) -> String {
    format!("shard-{shard:03}.slab")
}

/// The store of one shard on one disk. Cheap to clone; all clones are one store.
pub struct Store<D: Disk, R: Runtime> {
    core: Rc<Core<D, R>>,
}

impl<D: Disk, R: Runtime> Clone for Store<D, R> {
    fn clone(&self) -> Self {
        Store { core: Rc::clone(&self.core) }
    }
}

impl<D: Disk, R: Runtime> Store<D, R> {
    /// Makes the files of an empty store.
    ///
    /// # Errors
    /// `IoError::Exists` where there is one already: it is never overwritten.
    ///
    /// # Panics
    /// If the geometry is impossible; `Geometry` is validated at the edge.
    pub async fn format(disk: &D, runtime: &R, geometry: Geometry, node: &NodeIdentity) -> Result<(), StoreError> {
        open::format(disk, runtime, geometry, node).await
    }

    /// Recovers the store and starts its committer, reclaimer and checkpointer.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] if the disk belongs to somebody else, else what the disk said.
    pub async fn open(disk: D, runtime: R, config: StoreConfig) -> Result<(Store<D, R>, Recovered), StoreError> {
        let (core, recovered) = open::open(disk, runtime, config).await?;
        Ok((Store { core }, recovered))
    }

    /// The identity of `key` on this node.
    #[must_use]
    pub fn identity(&self, key: &BlockKey) -> Identity {
        self.core.config.node.identity_key.identity(key)
    }

    /// The next number of this shard's one sequence.
    #[must_use]
    pub fn next_generation(&self) -> Generation {
        let mut state = self.core.state.borrow_mut();
        state.next_generation += 1;
        Generation(state.next_generation - 1)
    }

    /// What is known about `identity`, without touching the disk.
    #[must_use]
    pub fn find(&self, identity: Identity) -> Option<Found> {
        self.core.state.borrow().found(identity)
    }

    /// Where the block of `identity` lies, its region pinned (I7) until [`Store::unpin`]. `None` if there is no entry or only
    /// a tombstone. No use of it: [`Store::count_use`] says that a client asked.
    #[must_use]
    pub fn locate(&self, identity: Identity) -> Option<Located> {
        let entry = self.core.state.borrow().index.find(identity).filter(|entry| entry.place().is_some())?;
        Some(self.core.locate_entry(&entry))
    }

    /// A client asked for this block, wherever it was answered from: what is used stays on disk.
    pub fn count_use(&self, identity: Identity) {
        let mut state = self.core.state.borrow_mut();
        if let Some(entry) = state.index.find(identity) {
            state.count_use(entry);
        }
    }

    /// Gives back what [`Store::locate`] pinned; exactly once.
    pub fn unpin(&self, pin: Pin) {
        self.core.change(|state| state.unpin(pin.region));
    }

    /// Appends a block. Resolves when it is published; for dirty blocks and `Commit::Durable` that is after the sync.
    /// Dropping the future does not undo what was queued.
    ///
    /// # Errors
    /// [`StoreError::Full`] if no region became free in time, [`StoreError::NotWritten`] if the device did not take the
    /// block, [`StoreError::Disk`] if the journal's write or the sync failed: nothing is published, but the record may turn
    /// up after a restart; [`StoreError::Failed`] and [`StoreError::Closing`].
    ///
    /// # Panics
    /// If the block contradicts itself: frames and length, record and block.
    pub async fn append(&self, block: NewBlock) -> Result<Appended, StoreError> {
        let frames_bytes: usize = block.frames.iter().map(Bytes::len).sum();
        assert_eq!(frames_bytes, block.len_bytes as usize, "the frames are the content");
        let (mode, dirty) = match &block.kind {
            NewKind::Fetched { validity } | NewKind::Clean { validity, commit: Commit::Lazy } => {
                (PutMode::Fill(validity.clone()), None)
            }
            NewKind::Clean { validity, commit: Commit::Durable } => (PutMode::Confirmed(validity.clone()), None),
            NewKind::Dirty(record) => {
                assert_eq!(record.identity, block.identity, "the record is that of the block");
                assert_eq!((record.generation, record.len_bytes()), (block.generation, block.len_bytes));
                (PutMode::Dirty(Rc::clone(record)), Some(Box::new((**record).clone())))
            }
        };
        let put = PutRecord {
            identity: block.identity,
            generation: block.generation,
            at: Place { region: 0, place: 0 },
            epoch: Epoch(0),
            len_bytes: block.len_bytes,
            sums: sums_of(&block),
            etag: Some(block.etag),
            dirty,
            // Filled in with the place.
            pinning: Pinning::Unpinned,
        };
        self.core.state.borrow().writable()?;
        if !self.core.state.borrow().admits(put.identity, put.generation, &mode) {
            return Ok(Appended::Invalidated);
        }
        let Some(stream) = self.core.stream_for(&block.kind, block.identity, block.len_bytes) else {
            return Ok(Appended::Declined);
        };
        // No footer's note speaks of this generation until it is decided.
        let undecided = matches!(mode, PutMode::Dirty(_)).then(|| Undecided::begin(&self.core, block.generation));
        let decided = self.core.place(Draft { put, frames: block.frames, mode, stream }).await?;
        undecided.into_iter().for_each(Undecided::queued);
        self.decision(decided).await
    }

    /// Makes a delete durable, then publishes it: the key answers as absent and is dirty.
    ///
    /// # Errors
    /// As [`Store::append`], but for `Full`.
    pub async fn tombstone(&self, record: Rc<DirtyRecord>) -> Result<(), StoreError> {
        assert_eq!(record.kind, DirtyKind::Tombstone, "a block is appended");
        self.core.state.borrow().writable()?;
        let (item, decided) =
            Item::awaited(&Record::Tombstone((*record).clone()), Change::Tombstone(Rc::clone(&record)));
        self.core.state.borrow_mut().dirty.begin(record.generation);
        self.core.queue(item);
        if canary::is(Canary::DeleteAckedEarly) {
            return Ok(());
        }
        self.decision(decided).await.map(|_| ())
    }

    /// Drops a clean entry of at most this generation, durably, whatever was queued before it included. A dirty entry
    /// stays (I4). Journaled even if there is no entry, because a fill of the key may be in the journal already.
    ///
    /// # Errors
    /// As [`Store::tombstone`].
    pub async fn remove(&self, identity: Identity, up_to: Generation) -> Result<(), StoreError> {
        self.core.state.borrow().writable()?;
        if canary::is(Canary::RemoveNotJournaled) && self.find(identity).is_none() {
            return Ok(());
        }
        let (item, decided) = Item::awaited(&Record::Remove { identity, up_to }, Change::Remove { identity, up_to });
        self.core.queue(item);
        self.decision(decided).await.map(|_| ())
    }

    /// Waits for a commit, but not for a disk that does not answer: whether the record is there is in doubt then.
    async fn decision(&self, mut decided: oneshot::Receiver<Decided>) -> Decided {
        loop {
            let failed = self.core.signals.failed.listen();
            if self.core.state.borrow().stalled {
                let ended = decided.try_recv().ok().flatten();
                return ended.unwrap_or_else(|| Err(StoreError::Disk(self.core.lost_write())));
            }
            match select(decided, failed).await {
                Either::Left((decided, _)) => return decided.unwrap_or(Err(StoreError::Closing)),
                Either::Right((_, waiting)) => decided = waiting,
            }
        }
    }

    /// Whether an earlier sync failed, or a write of the journal: no writes are taken until [`Store::refound`].
    #[must_use]
    pub fn is_failed(&self) -> bool {
        matches!(self.core.state.borrow().life, Life::Failed | Life::Refounding)
    }

    /// Resolves when the store stops or begins to take writes.
    pub(crate) fn listen_failed(&self) -> EventListener {
        self.core.signals.failed.listen()
    }

    /// The disk does not answer: takes no more writes, and answers those who wait for one.
    pub fn suspend(&self) {
        self.core.suspend();
    }

    /// Takes writes again after a failed sync: both checkpoints are written anew, nothing in doubt is believed. Reads go
    /// on meanwhile.
    ///
    /// # Errors
    /// What the disk said: the store takes no writes still.
    pub async fn refound(&self) -> Result<(), StoreError> {
        self.core.refound().await
    }

    /// Drops a clean entry of this very generation at once: its bytes rotted. Journaled with a later commit.
    pub fn forget(&self, identity: Identity, generation: Generation) {
        self.core.forget(identity, generation);
    }

    /// The origin confirmed this generation: a dirty block becomes clean, a tombstone goes; if it is not current any
    /// more, nothing happens (I9). Journaled with a later commit.
    pub fn flushed(&self, identity: Identity, generation: Generation) {
        let newest = || self.core.state.borrow().index.find(identity).map(|entry| entry.generation());
        let generation = if canary::is(Canary::FlushMarksNewer) { newest().unwrap_or(generation) } else { generation };
        if self.core.change(|state| state.mark_flushed(identity, generation)) {
            self.core.queue(Item::applied(&Record::Flushed { identity, generation }));
            self.core.signals.reclaim.notify(1);
        }
    }

    /// Reads a located block whole, verified. It stays pinned.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, located: &Located) -> Result<Bytes, ReadError> {
        self.core.read_whole(located).await
    }

    /// Content bytes of dirty blocks (I10).
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        self.core.state.borrow().dirty_bytes
    }

    /// Figures for status and metrics.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let pinned_bytes_max = self.core.pinned_bytes_max();
        StoreStats { pinned_bytes_max, ..self.core.state.borrow().stats() }
    }

    /// Asserts I1, I4, I7, I10 and that regions and entries agree. Walks everything: for tests and simulated steps.
    pub fn check(&self) {
        self.core.state.borrow().check(self.core.superblock.region_bytes);
    }

    /// Writes a checkpoint now.
    ///
    /// # Errors
    /// What the disk said; the earlier checkpoint and the journal still count.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        self.core.checkpoint().await
    }

    /// Commits what is pending, writes a checkpoint, stops the tasks. Later writes fail with [`StoreError::Closing`].
    pub async fn close(&self) {
        self.core.close().await;
    }
}

/// The sums of a block. One piece's sum follows from the digest that its bytes were received with; larger blocks are
/// hashed once more, piece by piece.
fn sums_of(block: &NewBlock) -> PieceSums {
    let key = SumKey { identity: block.identity.0, generation: block.generation.0 };
    let count = piece_count(u64::from(block.len_bytes));
    if let (1, Etag::Digest(digest)) = (count, &block.etag) {
        return PieceSums::One(piece_sum(key, 0, block.len_bytes as usize, *digest));
    }
    let mut sums = Vec::with_capacity(count);
    let (mut digester, mut piece_bytes) = (Digester::default(), 0);
    for frame in &block.frames {
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PIECE_BYTES - piece_bytes));
            digester.update(now);
            piece_bytes += now.len();
            rest = later;
            if piece_bytes == PIECE_BYTES {
                sums.push(piece_sum(key, sums.len(), piece_bytes, digester.finish()));
                (digester, piece_bytes) = (Digester::default(), 0);
            }
        }
    }
    if sums.len() < count {
        sums.push(piece_sum(key, sums.len(), piece_bytes, digester.finish()));
    }
    assert_eq!(sums.len(), count, "one sum per piece");
    if let [sum] = sums[..] { PieceSums::One(sum) } else { PieceSums::Many(sums.into()) }
}
