//! What the other members of a group ask of this shard: only what it knows by itself, never the origin.
//!
//! Called by `src/proxy/dispatch`. A question takes its turn after all changes of its key that began before, so that "nothing here" is
//! the last word about them; a write is taken only over what is dirty here, in the same turn. [`Shard::count_dirty`] tells what is left of
//! what a change of the members took from this one, and makes the flusher begin with it.

use std::rc::Rc;

use forebay_io::{Disk, Runtime};

use crate::key::{BlockKey, Generation, Identity};
use crate::origin::Origin;
use crate::outcome::{DeclinedReason, Got, Headed, Put, PutDone, Removed};
use crate::shard::{Inner, Shard};

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Where the bytes of `key` are; `None`: there is nothing here of it. Begins and joins no fill.
    pub async fn look_here(&self, key: &BlockKey) -> Option<Got> {
        let identity = self.identity(key);
        let Some(_turn) = self.inner.locks.lock(identity).await else {
            return Some(Got::Declined(self.decline(DeclinedReason::QueueFull)));
        };
        if self.is_in_doubt(identity) {
            return Some(Got::Declined(self.decline(DeclinedReason::DiskFault)));
        }
        self.held(key, identity)
    }

    /// Length and ETag of `key`; `None`: there is nothing here of it.
    pub async fn head_here(&self, key: &BlockKey) -> Option<Headed> {
        self.inner.counters.heads.one();
        let identity = self.identity(key);
        let Some(_turn) = self.inner.locks.lock(identity).await else {
            return Some(Headed::Declined(self.decline(DeclinedReason::QueueFull)));
        };
        if self.is_in_doubt(identity) {
            return Some(Headed::Declined(self.decline(DeclinedReason::DiskFault)));
        }
        self.held_meta(key, identity).await
    }

    /// As [`Shard::put`], if something of the key is dirty here: whoever has that decides about the key. `None`: nothing is, and
    /// nothing was done.
    ///
    /// # Panics
    /// As [`Shard::put`].
    pub async fn put_over_dirty(&self, put: Put) -> Option<PutDone> {
        let volume = self.volume(&put.key).expect("the edge refuses unknown volumes");
        assert!(put.len_bytes <= volume.block_bytes_max, "the edge refuses blocks that are too large");
        let shard = self.clone();
        let work = async move {
            let identity = shard.identity(&put.key);
            let Some(_turn) = shard.inner.locks.lock(identity).await else {
                return Some(PutDone::Declined(shard.decline(DeclinedReason::QueueFull)));
            };
            let _taken = OverDirty::begin(Rc::clone(&shard.inner));
            if !shard.is_dirty(identity) {
                // What was flushed must not come back dirty after a crash, for whoever asks takes the key now.
                let fault = || PutDone::Declined(shard.decline(DeclinedReason::DiskFault));
                return (!shard.is_all_durable().await).then(fault);
            }
            Some(shard.put_with_turn(&put, identity, &volume).await)
        };
        let done = self.run_to_end(work).await;
        done.unwrap_or_else(|| Some(PutDone::Declined(self.decline(DeclinedReason::Stopping))))
    }

    /// As [`Shard::delete`], if something of the key is dirty here. `None`: nothing is, and nothing was done.
    ///
    /// # Panics
    /// As [`Shard::delete`].
    pub async fn delete_over_dirty(&self, key: &BlockKey) -> Option<Removed> {
        let volume = self.volume(key).expect("the edge refuses unknown volumes");
        let (shard, key) = (self.clone(), key.clone());
        let work = async move {
            let identity = shard.identity(&key);
            let Some(_turn) = shard.inner.locks.lock(identity).await else {
                return Some(shard.removal_declined(DeclinedReason::QueueFull));
            };
            let _taken = OverDirty::begin(Rc::clone(&shard.inner));
            if !shard.is_dirty(identity) {
                let fault = || shard.removal_declined(DeclinedReason::DiskFault);
                return (!shard.is_all_durable().await).then(fault);
            }
            Some(shard.delete_with_turn(&key, volume.write_mode, volume.dirty_full).await)
        };
        let removed = self.run_to_end(work).await;
        removed.unwrap_or_else(|| Some(self.removal_declined(DeclinedReason::Stopping)))
    }

    /// Resolves when every put and delete that has begun by now has ended, whether its client still waits or not.
    pub async fn changes_ended(&self) {
        let of_before = Rc::downgrade(&self.inner.changes.replace(Rc::default()));
        while of_before.strong_count() > 0 {
            let ended = self.inner.ended.listen();
            if of_before.strong_count() > 0 {
                ended.await;
            }
        }
    }

    /// How many dirty records are `chosen`; the flusher takes these first from now on. What may be dirty and can't be known counts: keys
    /// whose record may turn up after a restart, a disk that is not here. If it is none, none will be from now on, unless a put or delete is
    /// taken that is not over something dirty; nor after a restart: what says that they were flushed is durable then.
    pub async fn count_dirty(&self, chosen: impl Fn(&BlockKey) -> bool) -> u64 {
        const SLICE: usize = 1_024;
        let inner = &self.inner;
        let (mut count, mut after) = (0, None);
        loop {
            let (found, last) = inner.dirty.choose_first(after, SLICE, &chosen);
            count += found;
            let Some(last) = last else { break };
            after = Some(last);
            inner.runtime.yield_now().await;
        }
        // In the same step as the last look: the flush of what a change was taken over may have ended before its own record is queued.
        let away = inner.disks.count() - inner.disks.open().count();
        count += inner.over_dirty.get() + (away + inner.in_doubt.borrow().len()) as u64;
        // Marks of flushes wait for no sync: without this a crash could bring the records back.
        if count == 0 && !self.is_all_durable().await {
            count = 1;
        }
        count
    }

    /// Waits until all that was journaled is durable; whether it is.
    async fn is_all_durable(&self) -> bool {
        for disk in self.inner.disks.open() {
            // It removes nothing, for generations begin at one; and it is awaited behind whatever was queued.
            if disk.store.remove(Identity(0), Generation(0)).await.is_err() {
                return false;
            }
        }
        true
    }

    fn is_dirty(&self, identity: Identity) -> bool {
        self.inner.dirty.record(identity).is_some() || self.is_in_doubt(identity)
    }
}

/// Counts a change that may leave something dirty of a key that is another member's.
struct OverDirty<D: Disk, O: Origin, R: Runtime>(Rc<Inner<D, O, R>>);

impl<D: Disk, O: Origin, R: Runtime> OverDirty<D, O, R> {
    fn begin(inner: Rc<Inner<D, O, R>>) -> Self {
        inner.over_dirty.set(inner.over_dirty.get() + 1);
        OverDirty(inner)
    }
}

impl<D: Disk, O: Origin, R: Runtime> Drop for OverDirty<D, O, R> {
    fn drop(&mut self) {
        self.0.over_dirty.set(self.0.over_dirty.get() - 1);
    }
}
