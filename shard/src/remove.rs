//! DELETE and purge.
//!
//! Called by `src/proxy/dispatch` on the core that owns the key, under the key's lock. A delete is for the cache and the
//! origin: in a write-back volume it is acknowledged as a durable tombstone and flushed in the key's order, in a
//! write-through volume when the origin confirmed it. A purge is for the cache alone and never drops what the origin does
//! not have (I4). After either, no fill that began before is published (I6).

use forebay_io::{Disk, Runtime};

use crate::canary::{self, Canary};
use crate::config::{Access, DirtyFull, WriteMode};
use crate::dirty::Finished;
use crate::error::StoreError;
use crate::key::{BlockKey, Identity};
use crate::origin::Origin;
use crate::outcome::{DeclinedReason, Durability, Removed};
use crate::shard::Shard;
use crate::store::{Certainty, DirtyKind, DirtyRecord};

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Deletes `key` here and at the origin; idempotent. Once begun it runs to its end.
    ///
    /// # Panics
    /// If the volume is not this node's or read-only: the edge refuses those.
    pub async fn delete(&self, key: &BlockKey) -> Removed {
        let volume = self.volume(key).expect("the edge refuses unknown volumes");
        assert_eq!(volume.access, Access::ReadWrite, "the edge refuses changes of read-only volumes");
        let (mode, dirty_full) = (volume.write_mode, volume.dirty_full);
        let (shard, key) = (self.clone(), key.clone());
        let work = async move {
            let identity = shard.identity(&key);
            let Some(_turn) = shard.inner.locks.lock(identity).await else {
                return shard.removal_declined(DeclinedReason::QueueFull);
            };
            shard.delete_with_turn(&key, mode, dirty_full).await
        };
        self.run_to_end(work).await.unwrap_or_else(|| self.removal_declined(DeclinedReason::Stopping))
    }

    /// Drops `key` from this cache if the origin has it. Durable: it does not come back after a restart, except by a
    /// later fill.
    pub async fn purge(&self, key: &BlockKey) -> Removed {
        let (shard, key) = (self.clone(), key.clone());
        let purged = self.run_to_end(async move { shard.purge_in_turn(&key).await }).await;
        purged.unwrap_or_else(|| self.removal_declined(DeclinedReason::Stopping))
    }

    /// Under the key's lock.
    pub(crate) async fn delete_with_turn(&self, key: &BlockKey, mode: WriteMode, dirty_full: DirtyFull) -> Removed {
        let removed = self.delete_locked(key, self.identity(key), mode, dirty_full).await;
        match &removed {
            Removed::Done(_) => self.inner.counters.deletes.one(),
            Removed::Failed(_) => self.inner.counters.changes_failed.one(),
            Removed::Dirty | Removed::Declined(_) => {}
        }
        removed
    }

    async fn delete_locked(
        &self,
        key: &BlockKey,
        identity: Identity,
        mode: WriteMode,
        dirty_full: DirtyFull,
    ) -> Removed {
        if self.inner.stopping.get() {
            return self.removal_declined(DeclinedReason::Stopping);
        }
        // Nothing could keep what a disk that is not here has from coming back with it.
        if self.is_in_doubt(identity) || self.disk(identity).is_err() {
            return self.removal_declined(DeclinedReason::DiskFault);
        }
        let is_dirty = self.inner.dirty.record(identity).is_some();
        if mode == WriteMode::Through {
            return match is_dirty {
                // After a crash the dirty record would be flushed and undo the delete: a tombstone supersedes it first.
                true => match self.delete_back(key, identity).await {
                    Ok(()) => self.flush_tombstone_now(key, identity).await,
                    Err(reason) => self.removal_declined(reason),
                },
                false => self.delete_through(key, identity).await,
            };
        }
        match self.delete_back(key, identity).await {
            Ok(()) => Removed::Done(Durability::Disk),
            Err(DeclinedReason::DirtyFull) if dirty_full == DirtyFull::WriteThrough => {
                assert!(!is_dirty, "a delete takes over the room of the dirty record it supersedes");
                self.delete_through(key, identity).await
            }
            // With a device that takes no writes nothing could keep the entry from coming back after a restart.
            Err(reason) => self.removal_declined(reason),
        }
    }

    /// A durable tombstone, flushed later.
    async fn delete_back(&self, key: &BlockKey, identity: Identity) -> Result<(), DeclinedReason> {
        let older = self.inner.dirty.record(identity);
        // A delete that is on its way to the origin may have taken effect there already, before somebody else stored what
        // this one is to delete: that one does not stand for this one. Nor does one that came back from a disaster unsure:
        // it deletes nothing by itself.
        let stands = |record: &DirtyRecord| record.kind == DirtyKind::Tombstone && record.certainty == Certainty::Sure;
        if older.as_deref().is_some_and(stands) && !self.inner.dirty.is_flushing(identity) {
            return Ok(());
        }
        let reservation = match older {
            Some(_) => None,
            None => Some(self.inner.dirty.reserve(&DirtyKind::Tombstone).ok_or(DeclinedReason::DirtyFull)?),
        };
        let _change = self.begin_change(identity, |counters| &counters.fills_raced_by_delete);
        let record = self.new_record(key.clone(), identity, DirtyKind::Tombstone);
        let tombstoned = match self.disk(identity) {
            Ok(disk) => disk.store.tombstone(record.clone()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = tombstoned {
            return Err(self.not_durable(identity, &error));
        }
        self.inner.dirty.insert_tombstone(record, reservation);
        Ok(())
    }

    /// Gone durably here, then at the origin.
    async fn delete_through(&self, key: &BlockKey, identity: Identity) -> Removed {
        let Some(_lane) = self.inner.lanes.lock(identity).await else {
            return self.removal_declined(DeclinedReason::QueueFull);
        };
        let _change = self.begin_change(identity, |counters| &counters.fills_raced_by_delete);
        // Here first: if the origin's answer never comes, what it has is the truth, and nothing here contradicts it.
        if !(canary::is(Canary::OfflineForgetsInvalidations) && self.is_disk_offline(identity))
            && let Err(error) = self.remove_from_disk(identity).await
        {
            return Removed::Declined(self.decline_for(&error));
        }
        match self.inner.origin.delete(key).await {
            Ok(()) => Removed::Done(Durability::Origin),
            Err(error) => Removed::Failed(error),
        }
    }

    /// Sends the key's tombstone to the origin at once.
    async fn flush_tombstone_now(&self, key: &BlockKey, identity: Identity) -> Removed {
        let Some(_lane) = self.inner.lanes.lock(identity).await else {
            return self.removal_declined(DeclinedReason::QueueFull);
        };
        // A flush may have been done while this waited for the lane.
        let Some(record) = self.inner.dirty.record(identity) else { return Removed::Done(Durability::Origin) };
        if let Err(error) = self.inner.origin.delete(key).await {
            return Removed::Failed(error);
        }
        match self.retire_tombstone(&record).await {
            Ok(()) => {
                self.inner.dirty.settle(identity, record.generation, Finished::Done);
                Removed::Done(Durability::Origin)
            }
            Err(error) => Removed::Declined(self.decline_for(&error)),
        }
    }

    async fn purge_in_turn(&self, key: &BlockKey) -> Removed {
        let identity = self.identity(key);
        let Some(_turn) = self.inner.locks.lock(identity).await else {
            return self.removal_declined(DeclinedReason::QueueFull);
        };
        if self.inner.dirty.record(identity).is_some() && !canary::is(Canary::PurgeDropsDirty) {
            return Removed::Dirty;
        }
        let _change = self.begin_change(identity, |counters| &counters.fills_raced_by_purge);
        match self.remove_from_disk(identity).await {
            Ok(()) => {
                self.inner.counters.purges.one();
                Removed::Done(Durability::Disk)
            }
            Err(error) => Removed::Declined(self.decline_for(&error)),
        }
    }

    /// Drops what is clean of a key, durably, whatever was queued before included.
    pub(crate) async fn remove_from_disk(&self, identity: Identity) -> Result<(), StoreError> {
        let generation = self.inner.disks.next_generation();
        self.disk(identity)?.store.remove(identity, generation).await
    }

    pub(crate) fn removal_declined(&self, reason: DeclinedReason) -> Removed {
        Removed::Declined(self.decline(reason))
    }
}
