//! Everything a running store remembers, and the core that its tasks share.
//!
//! `Store`, committer, reclaimer and checkpointer borrow [`State`] for short stretches, never across an await. One
//! thread (I12), so no locks. Upholds nothing by itself: `publish` is the only file that changes entries.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use super::append::Stream;
use super::block::DirtyRecord;
use super::commit::Item;
use super::dirty_table::DirtyTable;
use super::extension::Extensions;
use super::gone::Gone;
use super::index::Index;
use super::journal::Journal;
use super::regions::{RegionTable, StreamKind};
use super::{StoreConfig, StoreStats, slab_name};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::Generation;
use crate::policy::disk::DiskPolicy;
use event_listener::Event;
use forebay_io::superblock::Superblock;
use forebay_io::{Disk, DiskFile, IoError, Runtime};

/// The mutable part of a store.
pub struct State {
    /// Identity → entry.
    pub index: Index,
    /// What few entries need.
    pub extensions: Extensions,
    /// What a flush needs of each dirty entry; exactly the identities whose entry is dirty or a tombstone.
    pub dirty: DirtyTable,
    /// Tombstones that no footer lists yet.
    pub unlisted: VecDeque<Rc<DirtyRecord>>,
    /// Content bytes of all dirty blocks (I10).
    pub dirty_bytes: u64,
    /// What pinned blocks occupy, dirty ones included.
    pub pinned_bytes: u64,
    /// How many there are.
    pub pinned_count: u64,
    /// The regions.
    pub regions: RegionTable,
    /// By the number of their kind.
    pub streams: [Stream; StreamKind::ALL.len()],
    /// What the next groups will commit, in order.
    pub queue: VecDeque<Item>,
    /// The ring.
    pub journal: Journal,
    /// The number of the last complete checkpoint.
    pub checkpoint_number: u64,
    /// The next number of the sequence.
    pub next_generation: u64,
    /// What left the index with nothing in its place.
    pub gone: Gone,
    /// Whether writes are taken.
    pub life: Life,
    /// The disk does not answer: whoever waits for a commit is told so.
    pub stalled: bool,
    /// Regions with clean entries whose bytes no sync covered yet.
    pub unsynced_regions: BTreeSet<u32>,
    /// Whether the prober is at a region.
    pub probing: bool,
    /// Whether a region became free since the waiters were told.
    pub freed: bool,
    /// Which clean blocks stay.
    pub policy: DiskPolicy,
    /// Appends that wait for a region, and that nothing may delay.
    pub waiting: u32,
    /// What can't be computed when it is asked for.
    pub counters: StoreStats,
}

/// Whether a store takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It does.
    Running,
    /// It is closing: what is queued is still committed.
    Closing,
    /// The committer has ended.
    Stopped,
    /// A sync or a journal write failed: nothing is written until the journal was begun anew.
    Failed,
    /// It is being begun anew: checkpoints are written, nothing else is.
    Refounding,
}

/// What all clones and tasks of one store share.
pub struct Core<D: Disk, R: Runtime> {
    /// Where slab and checkpoint slots are.
    pub disk: D,
    /// Time and tasks.
    pub runtime: R,
    /// The slab.
    pub slab: D::File,
    /// Geometry and store id.
    pub superblock: Superblock,
    /// How it behaves.
    pub config: StoreConfig,
    /// Everything else.
    pub state: RefCell<State>,
    /// Who waits for what.
    pub signals: Signals,
    /// Held while a checkpoint is written.
    pub checkpointing: async_lock::Mutex<()>,
    /// Held during a commit.
    pub committing: async_lock::Mutex<()>,
    /// Held during a sync of the slab.
    pub syncing: async_lock::Mutex<()>,
}

/// One event for each thing that somebody waits for. Waiters listen first and look at the state then.
#[derive(Default)]
pub struct Signals {
    /// The committer: something is queued, or the store closes.
    pub queue: Event,
    /// Appends: a region was opened or freed.
    pub regions: Event,
    /// The reclaimer: free regions are few, or one may have become reclaimable.
    pub reclaim: Event,
    /// The checkpointer: a checkpoint is due.
    pub checkpoint: Event,
    /// The committer: a checkpoint freed journal space.
    pub journal: Event,
    /// The prober: a region was quarantined, or emptied in quarantine.
    pub quarantine: Event,
    /// `close`: the committer has ended.
    pub stopped: Event,
    /// `close`: a footer was written, or not, or the prober let go of a region.
    pub settled: Event,
    /// The healer, and whoever waits for a commit: the store takes no more writes.
    pub failed: Event,
}

impl Signals {
    /// Lets everybody look again.
    pub fn notify_all(&self) {
        let Signals { queue, regions, reclaim, checkpoint, journal, quarantine, stopped, settled, failed } = self;
        for event in [queue, regions, reclaim, checkpoint, journal, quarantine, stopped, settled, failed] {
            event.notify(usize::MAX);
        }
    }
}

impl State {
    /// The stream of `kind`.
    pub fn stream(&mut self, kind: StreamKind) -> &mut Stream {
        &mut self.streams[kind as usize]
    }

    /// Whether a new write may be queued.
    ///
    /// # Errors
    /// Why not.
    pub fn writable(&self) -> Result<(), StoreError> {
        match self.life {
            Life::Running => Ok(()),
            Life::Closing | Life::Stopped => Err(StoreError::Closing),
            Life::Failed | Life::Refounding => Err(StoreError::Failed),
        }
    }
}

impl<D: Disk, R: Runtime> Core<D, R> {
    /// Changes the state and tells waiting appends if that freed a region.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.borrow_mut();
        let result = change(&mut state);
        let freed = std::mem::take(&mut state.freed);
        drop(state);
        if freed {
            self.signals.regions.notify(usize::MAX);
        }
        result
    }

    /// Where region `number` begins in the slab.
    pub fn region_at(&self, number: u32) -> u64 {
        assert!(number < self.superblock.region_count, "region {number} of {}", self.superblock.region_count);
        self.superblock.regions_at() + u64::from(number) * self.superblock.region_bytes
    }

    /// Syncs the slab; a failure is final. One at a time: if a sync fails, what was written before it is in doubt for ever,
    /// and another sync that ran beside it and succeeded would prove nothing.
    ///
    /// # Errors
    /// What the device said, now or to an earlier sync.
    pub async fn sync_slab(&self) -> Result<(), IoError> {
        let _one_at_a_time = self.syncing.lock().await;
        if self.state.borrow().life == Life::Failed {
            let (name, source) = (slab_name(self.config.node.shard), std::io::Error::other("an earlier sync failed"));
            return Err(IoError::Device { verb: "sync", name, at: 0, source });
        }
        let mut synced = self.slab.sync().await;
        if synced.is_err() && canary::is(Canary::SyncFailureRetried) {
            synced = self.slab.sync().await;
        }
        if let Err(error) = &synced {
            self.fail(error);
        }
        synced
    }

    /// A sync or a journal write failed: what it covered is in doubt for ever, so nothing is written any more.
    pub fn fail(&self, error: &IoError) {
        {
            let mut state = self.state.borrow_mut();
            if matches!(state.life, Life::Failed | Life::Stopped) {
                return;
            }
            state.life = Life::Failed;
        }
        tracing::error!(shard = self.superblock.shard, %error, "the disk failed; this store takes no more writes");
        self.signals.notify_all();
    }

    /// How many regions the reclaimer keeps free: two for each stream, fewer in a very small store.
    pub fn free_target(&self) -> u32 {
        (self.superblock.region_count / 4).clamp(2, 4)
    }
}

/// A dirty put that waits for its place. If the wait is given up, it is decided: it will never be published.
pub struct Undecided<D: Disk, R: Runtime> {
    core: Rc<Core<D, R>>,
    generation: Generation,
    is_queued: bool,
}

impl<D: Disk, R: Runtime> Undecided<D, R> {
    /// It begins to wait.
    pub fn begin(core: &Rc<Core<D, R>>, generation: Generation) -> Self {
        core.state.borrow_mut().dirty.begin(generation);
        Undecided { core: Rc::clone(core), generation, is_queued: false }
    }

    /// It has its place, and its commit will decide it.
    pub fn queued(mut self) {
        self.is_queued = true;
    }
}

impl<D: Disk, R: Runtime> Drop for Undecided<D, R> {
    fn drop(&mut self) {
        if !self.is_queued {
            self.core.state.borrow_mut().dirty.decided(self.generation);
        }
    }
}

/// The same error once more, for the next waiter.
pub fn repeated(error: &IoError) -> IoError {
    match error {
        IoError::Missing { name } => IoError::Missing { name: name.clone() },
        IoError::Exists { name } => IoError::Exists { name: name.clone() },
        IoError::NoSpace { name, bytes } => IoError::NoSpace { name: name.clone(), bytes: *bytes },
        IoError::NoDirectIo { name } => IoError::NoDirectIo { name: name.clone() },
        IoError::Short { name, at, want, got } => {
            IoError::Short { name: name.clone(), at: *at, want: *want, got: *got }
        }
        IoError::Device { verb, name, at, source } => {
            let source = std::io::Error::new(source.kind(), source.to_string());
            IoError::Device { verb, name: name.clone(), at: *at, source }
        }
        IoError::Corrupt { name, at, what } => IoError::Corrupt { name: name.clone(), at: *at, what },
    }
}
