//! Owns everything of one shard and opens and closes it. The public verbs are in the files of their names (`get`, `put`,
//! `remove`, `fill`, `flush`); no algorithm is here.
//!
//! Called by `src/proxy`: one executor holds each shard, so nothing here is `Send` (I12). Verbs take `&self` and may run
//! side by side; those that change a key take turns by its lock and, once begun, run to their end even when the caller
//! goes away, so that no half-made change is left behind.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_listener::Event;
use forebay_io::{Disk, Runtime};
use futures::channel::oneshot;
use futures::future::join_all;

use crate::canary::{self, Canary};
use crate::config::{Geometry, ShardConfig, VolumeConfig, WriteMode};
use crate::dirty::DirtyQueue;
use crate::disks::{DiskSet, OpenDisk, Seats};
use crate::error::StoreError;
use crate::fill::{ChangeGuard, FillTable};
use crate::key::{BlockKey, Identity, IdentityMap};
use crate::keylock::KeyLocks;
use crate::memory::MemoryTier;
use crate::origin::Origin;
use crate::outcome::{Declined, DeclinedReason};
use crate::stats::{Count, Counters};
use crate::store::{DirtyKind, NodeIdentity, Recovered, RecoveredBy, RecoveryWork, RejectedCounts, Store};

/// One core's part of the block keyspace. Cheap to clone; all clones are one shard.
pub struct Shard<D: Disk, O: Origin, R: Runtime> {
    pub(crate) inner: Rc<Inner<D, O, R>>,
}

pub(crate) struct Inner<D: Disk, O: Origin, R: Runtime> {
    /// A store for each.
    pub(crate) disks: DiskSet<D, R>,
    pub(crate) origin: O,
    pub(crate) runtime: R,
    pub(crate) config: ShardConfig,
    pub(crate) memory: RefCell<MemoryTier>,
    pub(crate) fills: FillTable,
    pub(crate) dirty: DirtyQueue,
    /// Order the verbs of a key.
    pub(crate) locks: KeyLocks,
    /// Order what is sent to the origin for a key. Taken after the key's lock, never before.
    pub(crate) lanes: KeyLocks,
    pub(crate) counters: Counters,
    pub(crate) recovery: RecoveryReport,
    /// Keys with a record that failed to become durable but may turn up after a restart: whatever else were acknowledged
    /// for them could be undone by it, so nothing is. Few: the store refuses all writes after such a fault, and when it
    /// takes them again nothing can turn up any more. With the disk that the record may turn up on.
    pub(crate) in_doubt: RefCell<IdentityMap<u16>>,
    pub(crate) stopping: Cell<bool>,
    /// Grows only: a request that was let in finds its volume, and what is dirty its settings.
    volumes: RefCell<BTreeMap<Arc<str>, VolumeConfig>>,
    /// Changes and background appends that have begun and not ended.
    running: Cell<usize>,
    pub(crate) ended: Event,
    /// Each change that has begun and not ended holds one; replaced to wait for those of before ([`Shard::changes_ended`]).
    pub(crate) changes: RefCell<Rc<()>>,
    /// Changes under way that were taken because something of their key was dirty.
    pub(crate) over_dirty: Cell<u64>,
}

/// What recovery found. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Entries in the index, tombstones included.
    pub entries: u64,
    /// Blocks the origin has not confirmed.
    pub dirty_blocks: u64,
    /// Their content.
    pub dirty_bytes: u64,
    /// Deletes the origin has not confirmed.
    pub tombstones: u64,
    /// Of these, those of which nobody knows whether they are the newest of their key.
    pub unsure: u64,
    /// Regions that are out of use.
    pub quarantined: u64,
    /// Stores that were salvaged: checkpoint or journal were damaged, and only what is dirty came back.
    pub salvaged: u64,
    /// What was not taken, by reason.
    pub rejected: RejectedCounts,
    /// What it took.
    pub work: RecoveryWork,
}

impl<D: Disk, O: Origin, R: Runtime> Clone for Shard<D, O, R> {
    fn clone(&self) -> Self {
        Shard { inner: Rc::clone(&self.inner) }
    }
}

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Makes the files of an empty shard. The runtime draws the store's id and dates it.
    ///
    /// # Errors
    /// As [`Store::format`]: what is there is never overwritten.
    pub async fn format(disk: &D, runtime: &R, geometry: Geometry, node: &NodeIdentity) -> Result<(), StoreError> {
        Store::<D, R>::format(disk, runtime, geometry, node).await
    }

    /// Recovers the shard from its one disk and starts its flusher. Dirty blocks are known when this returns.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open(
        disk: D,
        origin: O,
        runtime: R,
        node: NodeIdentity,
        config: ShardConfig,
    ) -> Result<(Shard<D, O, R>, RecoveryReport), StoreError> {
        let seats = Seats::one(disk, &config);
        Shard::open_on(seats, origin, runtime, node, config).await
    }

    /// As [`Shard::open`], from several disks. One that can't be opened is shown as away: its keys are passed by, those that
    /// may be dirty there are declined.
    ///
    /// # Errors
    /// As [`Store::open`], if none of them can be opened.
    pub async fn open_on(
        seats: Seats<D>,
        origin: O,
        runtime: R,
        node: NodeIdentity,
        config: ShardConfig,
    ) -> Result<(Shard<D, O, R>, RecoveryReport), StoreError> {
        assert_eq!(node.shard, config.shard, "the configuration is this shard's");
        assert!(config.flush_parallelism > 0 && config.fills_max > 0, "limits were validated at the edge");
        let (disks, recovered) = DiskSet::open_all(seats, &runtime, &node, &config).await?;
        let dirty = DirtyQueue::new(config.dirty_bytes_max);
        let mut recovery = RecoveryReport::default();
        for found in recovered {
            recovery.adopt(found, &dirty);
        }
        let volumes: BTreeMap<_, _> =
            config.volumes.iter().map(|volume| (Arc::clone(&volume.name), volume.clone())).collect();
        let shard = Shard {
            inner: Rc::new(Inner {
                disks,
                origin,
                runtime,
                memory: RefCell::new(MemoryTier::new(config.memory_tier_bytes)),
                fills: FillTable::new(config.fill_bytes_max, config.fills_max),
                dirty,
                locks: KeyLocks::default(),
                lanes: KeyLocks::default(),
                counters: Counters::default(),
                recovery,
                in_doubt: RefCell::default(),
                stopping: Cell::new(false),
                volumes: RefCell::new(volumes),
                running: Cell::new(0),
                ended: Event::new(),
                changes: RefCell::default(),
                over_dirty: Cell::new(0),
                config,
            }),
        };
        shard.spawn(shard.clone().flush_forever());
        for disk in shard.inner.disks.open() {
            // Not counted as running: a probe that has no answer must not hold up a close.
            shard.inner.runtime.spawn(shard.clone().heal_forever(disk.number));
        }
        if !shard.inner.disks.is_settled() {
            shard.inner.runtime.spawn(shard.clone().settle_forever());
        }
        Ok((shard, recovery))
    }

    /// Whether after a restart with the same disks every key will be known to be on its own disk.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.inner.disks.is_settled()
    }

    /// Takes no more changes, waits for those that have begun, commits, writes a checkpoint, stops the tasks. What is
    /// dirty stays dirty and is flushed after the next start; call [`Shard::flush_all`] before to leave nothing.
    pub async fn close(&self) {
        self.inner.stopping.set(true);
        self.inner.dirty.notify();
        self.inner.disks.open().for_each(|disk| disk.health.notify());
        while self.inner.running.get() > 0 {
            let ended = self.inner.ended.listen();
            if self.inner.running.get() > 0 {
                ended.await;
            }
        }
        join_all(self.inner.disks.open().map(|disk| disk.store.close())).await;
    }

    /// The identity of `key` on this node.
    #[must_use]
    pub fn identity(&self, key: &BlockKey) -> Identity {
        self.inner.disks.identity(key)
    }

    /// Serves these volumes from now on too, or with these settings: for requests that come later. None is ever taken away; the edge
    /// stops asking for it.
    pub fn serve(&self, volumes: &[VolumeConfig]) {
        let mut served = self.inner.volumes.borrow_mut();
        for volume in volumes {
            if volume.write_mode == WriteMode::Back {
                self.inner.disks.write_back(&volume.name);
            }
            served.insert(Arc::clone(&volume.name), volume.clone());
        }
    }

    pub(crate) fn volume(&self, key: &BlockKey) -> Option<VolumeConfig> {
        self.inner.volumes.borrow().get(&key.volume).cloned()
    }

    /// Begins a change of a key: what the memory tier holds of it goes, its fills are not published (I6), until the
    /// guard is dropped and once more then. `races` counts those that met a fill.
    pub(crate) fn begin_change(&self, identity: Identity, races: fn(&Counters) -> &Count) -> ChangeGuard {
        if !canary::is(Canary::MemorySurvivesDelete) {
            self.inner.memory.borrow_mut().remove(identity);
        }
        if self.inner.fills.is_filling(identity) {
            races(&self.inner.counters).one();
        }
        self.inner.fills.begin_change(identity)
    }

    /// Runs `work` to its end, whatever becomes of the caller. `None` if the executor stopped before.
    pub(crate) async fn run_to_end<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let change = Rc::clone(&self.inner.changes.borrow());
        self.spawn(async move {
            let done = work.await;
            drop(change);
            // The caller may have gone away.
            drop(sender.send(done));
        });
        receiver.await.ok()
    }

    /// Runs `task` on this core; [`Shard::close`] waits for it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let running = Running::begin(Rc::clone(&self.inner));
        self.inner.runtime.spawn(async move {
            let _running = running;
            task.await;
        });
    }

    /// The disk that a key is on, or would go to.
    ///
    /// # Errors
    /// [`StoreError::Away`]: it may lie on a disk that is not here.
    pub(crate) fn disk(&self, identity: Identity) -> Result<&OpenDisk<D, R>, StoreError> {
        self.inner.disks.of(identity).ok_or(StoreError::Away)
    }

    /// Which of the [`Seats`] has the disk that a key is on, or would go to. `None`: it may lie on a disk that is not here.
    #[must_use]
    pub fn seat_of(&self, key: &BlockKey) -> Option<u16> {
        self.inner.disks.of(self.identity(key)).map(|disk| disk.number)
    }

    /// Whether blocks of this key that need not be on disk are put there.
    pub(crate) fn admits_to_disk(&self, identity: Identity) -> bool {
        self.disk(identity).is_ok_and(OpenDisk::admits)
    }

    /// Whether requests for this key pass its disk by.
    pub(crate) fn is_disk_offline(&self, identity: Identity) -> bool {
        self.disk(identity).is_ok_and(OpenDisk::is_offline)
    }

    /// Whether a key that may lie on a disk that is not here may be dirty there: the origin may have something older then.
    pub(crate) fn may_be_dirty_elsewhere(&self, key: &BlockKey) -> bool {
        let is_back = self.volume(key).is_some_and(|volume| volume.write_mode == WriteMode::Back);
        is_back || self.inner.disks.was_written_back(&key.volume)
    }

    /// A record of this key may turn up after a restart, or not.
    pub(crate) fn doubt(&self, identity: Identity) {
        // Without a disk to be settled with: until the next start.
        let number = self.disk(identity).map_or(u16::MAX, |disk| disk.number);
        self.inner.in_doubt.borrow_mut().insert(identity, number);
    }

    pub(crate) fn is_in_doubt(&self, identity: Identity) -> bool {
        self.inner.in_doubt.borrow().contains_key(&identity)
    }

    pub(crate) fn decline(&self, reason: DeclinedReason) -> Declined {
        self.inner.counters.declined(reason);
        let retry_after = match reason {
            DeclinedReason::QueueFull | DeclinedReason::FillsFull => Duration::from_secs(1),
            DeclinedReason::DirtyFull | DeclinedReason::DiskFull | DeclinedReason::Stopping => Duration::from_secs(5),
            DeclinedReason::Unsettled => Duration::from_secs(2),
            DeclinedReason::DiskFault => Duration::from_secs(30),
        };
        Declined { reason, retry_after }
    }

    /// The reason for which a failed store operation declines its request.
    pub(crate) fn decline_for(&self, error: &StoreError) -> Declined {
        self.decline(match error {
            StoreError::Full => DeclinedReason::DiskFull,
            StoreError::Closing => DeclinedReason::Stopping,
            StoreError::Disk(_)
            | StoreError::NotWritten(_)
            | StoreError::Failed
            | StoreError::Foreign { .. }
            | StoreError::Away => DeclinedReason::DiskFault,
        })
    }
}

impl RecoveryReport {
    /// Counts what one disk's recovery found, and queues what is dirty.
    fn adopt(&mut self, found: Recovered, dirty: &DirtyQueue) {
        let mut one = RecoveryReport {
            entries: found.entries,
            unsure: found.unsure,
            quarantined: found.quarantined,
            salvaged: u64::from(found.by == RecoveredBy::Salvage),
            rejected: found.rejected,
            work: found.work,
            ..RecoveryReport::default()
        };
        for record in found.dirty {
            match record.kind {
                DirtyKind::Block { len_bytes, .. } => {
                    one.dirty_blocks += 1;
                    one.dirty_bytes += u64::from(len_bytes);
                }
                DirtyKind::Tombstone => one.tombstones += 1,
            }
            dirty.adopt(record);
        }
        self.add(&one);
    }
}

/// Counts one running task.
struct Running<D: Disk, O: Origin, R: Runtime>(Rc<Inner<D, O, R>>);

impl<D: Disk, O: Origin, R: Runtime> Running<D, O, R> {
    fn begin(inner: Rc<Inner<D, O, R>>) -> Self {
        inner.running.set(inner.running.get() + 1);
        Running(inner)
    }
}

impl<D: Disk, O: Origin, R: Runtime> Drop for Running<D, O, R> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.ended.notify(usize::MAX);
    }
}
