//! PUT: known? allowed? room? then write-back (dirty, durable, acknowledged, flushed later) or write-through (the origin
//! first).
//!
//! Called by `src/proxy/dispatch` on the core that owns the key, with a complete body. Everything happens under the
//! key's lock. I3: nothing is acknowledged before it is as durable as the answer says; a device fault declines, or writes
//! through where the volume says so. I10: a write-back put first reserves its room.

use std::rc::Rc;

use bytes::Bytes;
use forebay_io::checksum::Digest;
use forebay_io::{Disk, Runtime};

use crate::budget::Reservation;
use crate::canary::{self, Canary};
use crate::config::{Access, DirtyFull, VolumeConfig, WriteMode};
use crate::dirty::{Finished, charge_bytes};
use crate::error::StoreError;
use crate::flush::Settled;
use crate::get::Known;
use crate::key::Identity;
use crate::origin::{Etag, Origin, OriginMeta, Store as OriginStore, Stored};
use crate::outcome::{Condition, DeclinedReason, Durability, Put, PutDone};
use crate::shard::Shard;
use crate::store::{
    Appended, BeforeStore, Certainty, Commit, DirtyKind, DirtyRecord, EntryState, NewBlock, NewKind, Validity,
};

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Stores a block. Once begun it runs to its end, whatever becomes of the caller.
    ///
    /// # Panics
    /// If the volume is not this node's or read-only, or the block is larger than its volume allows: the edge refuses
    /// those.
    pub async fn put(&self, put: Put) -> PutDone {
        let volume = self.volume(&put.key).expect("the edge refuses unknown volumes");
        assert_eq!(volume.access, Access::ReadWrite, "the edge refuses changes of read-only volumes");
        assert!(put.len_bytes <= volume.block_bytes_max, "the edge refuses blocks that are too large");
        let shard = self.clone();
        let done = self.run_to_end(async move { shard.put_in_turn(&put, &volume).await }).await;
        done.unwrap_or_else(|| PutDone::Declined(self.decline(DeclinedReason::Stopping)))
    }

    async fn put_in_turn(&self, put: &Put, volume: &VolumeConfig) -> PutDone {
        let identity = self.identity(&put.key);
        let Some(_turn) = self.inner.locks.lock(identity).await else {
            return PutDone::Declined(self.decline(DeclinedReason::QueueFull));
        };
        self.put_with_turn(put, identity, volume).await
    }

    /// Under the key's lock.
    pub(crate) async fn put_with_turn(&self, put: &Put, identity: Identity, volume: &VolumeConfig) -> PutDone {
        if self.inner.stopping.get() {
            return PutDone::Declined(self.decline(DeclinedReason::Stopping));
        }
        if self.is_in_doubt(identity) {
            return PutDone::Declined(self.decline(DeclinedReason::DiskFault));
        }
        if self.inner.dirty.record(identity).is_some_and(|record| record.certainty == Certainty::Unsure) {
            return PutDone::Declined(self.decline(DeclinedReason::Unsettled));
        }
        let done = self.put_locked(put, identity, volume).await;
        let counters = &self.inner.counters;
        match &done {
            PutDone::Created(_) => {
                counters.puts_created.one();
                counters.bytes_put.add(u64::from(put.len_bytes));
            }
            PutDone::Unchanged(_) => counters.puts_unchanged.one(),
            PutDone::KeyExists | PutDone::PreconditionFailed => counters.puts_refused.one(),
            PutDone::Failed(_) => counters.changes_failed.one(),
            PutDone::Declined(_) => {}
        }
        done
    }

    async fn put_locked(&self, put: &Put, identity: Identity, volume: &VolumeConfig) -> PutDone {
        let durability = match volume.write_mode {
            WriteMode::Through => Durability::Origin,
            WriteMode::Back => put.durability,
        };
        match self.known(&put.key, identity).await {
            // The device failed the read that would have told what is there.
            Err(_) => PutDone::Declined(self.decline(DeclinedReason::DiskFault)),
            // What a disk that is not here has under this key could neither be compared nor superseded.
            Ok(Known::Away) => PutDone::Declined(self.decline(DeclinedReason::DiskFault)),
            Ok(Known::Nothing) => match self.check_unknown(put).await {
                Some(done) => done,
                None => self.put_new(put, identity, volume, durability).await,
            },
            Ok(Known::Unread) => self.put_over_unread(put, identity, volume, durability).await,
            Ok(Known::Tombstone) => match put.condition {
                Condition::Matches(_) => PutDone::PreconditionFailed,
                Condition::Any | Condition::Absent => self.put_new(put, identity, volume, durability).await,
            },
            Ok(Known::Lost(record)) => self.put_over_lost(put, identity, volume, &record, durability).await,
            Ok(Known::Block { len_bytes, etag, state }) => {
                if !condition_holds(&put.condition, &etag) {
                    return PutDone::PreconditionFailed;
                }
                if len_bytes != put.len_bytes {
                    return PutDone::KeyExists;
                }
                match self.has_same_content(put, identity, &etag).await {
                    None => PutDone::Declined(self.decline(DeclinedReason::DiskFault)),
                    Some(false) => PutDone::KeyExists,
                    Some(true) => self.put_again(put, identity, state, durability).await,
                }
            }
        }
    }

    /// The disk is offline, and on it lies a clean block of this key that can't be compared. The origin settles what the key
    /// holds, and what is on the disk goes first, durably: should the origin not have it any more, it must not come back.
    async fn put_over_unread(
        &self,
        put: &Put,
        identity: Identity,
        volume: &VolumeConfig,
        durability: Durability,
    ) -> PutDone {
        if let Some(done) = self.check_unknown(put).await {
            return done;
        }
        if let Err(error) = self.remove_from_disk(identity).await {
            return PutDone::Declined(self.decline_for(&error));
        }
        self.put_new(put, identity, volume, durability).await
    }

    /// A key this shard knows nothing of. Without a condition the origin's answer to the conditional store will settle
    /// what the key holds; a condition has to be settled before. `None`: go on.
    async fn check_unknown(&self, put: &Put) -> Option<PutDone> {
        if put.condition == Condition::Any {
            return None;
        }
        match self.inner.origin.head(&put.key).await {
            Err(error) => Some(PutDone::Failed(error)),
            Ok(None) if matches!(put.condition, Condition::Matches(_)) => Some(PutDone::PreconditionFailed),
            Ok(None) => None,
            Ok(Some(meta)) if !condition_holds(&put.condition, &meta.etag) => Some(PutDone::PreconditionFailed),
            Ok(Some(meta)) if is_same(&meta, put) => Some(PutDone::Unchanged(Durability::Origin)),
            Ok(Some(_)) => Some(PutDone::KeyExists),
        }
    }

    /// Whether the block that is here has the bytes of this put. `None`: the device failed, or what was here rotted.
    async fn has_same_content(&self, put: &Put, identity: Identity, etag: &Etag) -> Option<bool> {
        if let Etag::Digest(digest) = etag {
            return Some(*digest == put.digest);
        }
        // Somebody else stored it at the origin: only its bytes tell.
        let in_memory = self.inner.memory.borrow_mut().look_up(identity).map(|(hit, _)| hit.body);
        let body = match in_memory {
            Some(body) => Some(body),
            None => self.read_verified(&put.key, identity).await.ok().flatten(),
        };
        body.map(|body| Digest::of(&body) == put.digest)
    }

    /// The bytes are here already.
    async fn put_again(&self, put: &Put, identity: Identity, state: EntryState, durability: Durability) -> PutDone {
        if state == EntryState::Clean {
            return PutDone::Unchanged(Durability::Origin);
        }
        // On a disk that is not well nothing is promised once more: the origin gets it now.
        if durability == Durability::Disk && self.admits_to_disk(identity) {
            return PutDone::Unchanged(Durability::Disk);
        }
        let Some(_lane) = self.inner.lanes.lock(identity).await else {
            return PutDone::Declined(self.decline(DeclinedReason::QueueFull));
        };
        // A flush may have been done while this waited for the lane.
        let Some(record) = self.inner.dirty.record(identity) else { return PutDone::Unchanged(Durability::Origin) };
        match self.store_dirty(&record, put.frames.clone()).await {
            Settled::Done => {
                self.flushed(&record);
                self.inner.dirty.settle(identity, record.generation, Finished::Done);
                PutDone::Unchanged(Durability::Origin)
            }
            Settled::Conflict => {
                self.inner.counters.conflicts.one();
                self.inner.dirty.settle(identity, record.generation, Finished::Conflict);
                PutDone::KeyExists
            }
            Settled::Failed(error) => PutDone::Failed(error),
        }
    }

    /// Its bytes rotted before the origin had them; a client that has them can bring them back, and nobody else.
    async fn put_over_lost(
        &self,
        put: &Put,
        identity: Identity,
        volume: &VolumeConfig,
        lost: &Rc<DirtyRecord>,
        durability: Durability,
    ) -> PutDone {
        let DirtyKind::Block { len_bytes, digest, .. } = lost.kind else { panic!("a tombstone has no bytes to lose") };
        if !condition_holds(&put.condition, &Etag::Digest(digest)) {
            return PutDone::PreconditionFailed;
        }
        if len_bytes != put.len_bytes || digest != put.digest {
            return PutDone::KeyExists;
        }
        match durability {
            Durability::Origin => self.put_through(put, identity).await,
            Durability::Disk => self.put_new(put, identity, volume, durability).await,
        }
    }

    async fn put_new(&self, put: &Put, identity: Identity, volume: &VolumeConfig, durability: Durability) -> PutDone {
        if durability == Durability::Origin {
            return self.put_through(put, identity).await;
        }
        if !self.admits_to_disk(identity) {
            self.inner.counters.written_through.one();
            return self.put_through_in_doubt(put, identity).await;
        }
        let declined = match self.put_back(put, identity).await {
            Ok(()) => return PutDone::Created(Durability::Disk),
            Err(declined) => declined,
        };
        match (volume.dirty_full, declined) {
            (_, DeclinedReason::Stopping) | (DirtyFull::Decline, _) => PutDone::Declined(self.decline(declined)),
            (DirtyFull::WriteThrough, _) => self.put_through_in_doubt(put, identity).await,
        }
    }

    /// Writes through what could not be made durable here.
    async fn put_through_in_doubt(&self, put: &Put, identity: Identity) -> PutDone {
        match self.put_through(put, identity).await {
            // The record that did not become durable may turn up at the next start, over what the origin has: to say that the
            // put was refused would be a promise.
            PutDone::KeyExists if self.is_in_doubt(identity) => {
                PutDone::Declined(self.decline(DeclinedReason::DiskFault))
            }
            done => done,
        }
    }

    /// Write-back: durable here, dirty, the origin later.
    async fn put_back(&self, put: &Put, identity: Identity) -> Result<(), DeclinedReason> {
        let before = self.inner.dirty.record(identity).map_or(BeforeStore::Nothing, |record| match record.kind {
            DirtyKind::Tombstone if canary::is(Canary::DeleteForgotten) => BeforeStore::Nothing,
            DirtyKind::Tombstone => BeforeStore::Delete,
            DirtyKind::Block { before, .. } => before,
        });
        let kind = DirtyKind::Block { len_bytes: put.len_bytes, digest: put.digest, before };
        let reservation = self.inner.dirty.reserve(&kind).ok_or(DeclinedReason::DirtyFull)?;
        // One disk's share of what may be dirty is a matter of chance; that reclaim can always move it, is not.
        let disk = self.disk(identity).map_err(|error| self.not_durable(identity, &error))?;
        let _coming = match self.inner.disks.count() {
            1 => None,
            _ => Some(disk.expect_dirty(put.len_bytes).ok_or(DeclinedReason::DirtyFull)?),
        };
        let record = self.new_record(put.key.clone(), identity, kind);
        self.write_dirty(record, put.frames.clone(), reservation).await
    }

    /// Makes a dirty block durable and publishes it. Under the key's lock.
    async fn write_dirty(
        &self,
        record: Rc<DirtyRecord>,
        frames: Vec<Bytes>,
        reservation: Reservation,
    ) -> Result<(), DeclinedReason> {
        let DirtyKind::Block { len_bytes, digest, .. } = record.kind else { panic!("a tombstone has no frames") };
        let identity = record.identity;
        let change = self.begin_change(identity, |counters| &counters.fills_raced_by_put);
        let block = NewBlock {
            key: record.key.clone(),
            identity,
            generation: record.generation,
            frames: frames.clone(),
            len_bytes,
            etag: Etag::Digest(digest),
            kind: NewKind::Dirty(Rc::clone(&record)),
        };
        let disk = self.disk(identity).map_err(|error| self.not_durable(identity, &error))?;
        match disk.store.append(block).await {
            Ok(Appended::Published) => {
                self.inner.dirty.insert(Rc::clone(&record), reservation);
                self.remember(identity, record.generation, &frames, Etag::Digest(digest));
                drop(change);
                Ok(())
            }
            Ok(Appended::Invalidated | Appended::Declined) => {
                panic!("I6: under the key's lock nothing newer can be published, and no put is declined")
            }
            Err(error) => Err(self.not_durable(identity, &error)),
        }
    }

    /// Writes a dirty block whose bytes rotted on disk once more, from bytes that were verified.
    pub(crate) async fn write_again(&self, rotten: &Rc<DirtyRecord>, frames: Vec<Bytes>) -> Result<(), DeclinedReason> {
        let identity = rotten.identity;
        let _turn = self.inner.locks.lock(identity).await.ok_or(DeclinedReason::QueueFull)?;
        if !self.inner.dirty.is_current(identity, rotten.generation) {
            return Ok(());
        }
        // Its bytes are counted already; for a moment they are counted twice, so that the budget is never exceeded
        // unseen. A full budget leaves the block where it is: in memory, and first in line for its flush.
        let reservation = self.inner.dirty.reserve(&rotten.kind).ok_or(DeclinedReason::DirtyFull)?;
        let record = self.new_record(rotten.key.clone(), identity, rotten.kind);
        self.write_dirty(record, frames, reservation).await
    }

    /// Write-through: the origin first, under the key's origin lane. A failed store publishes nothing. The slab's append
    /// follows the origin's answer rather than running beside it: an entry must not be published before, and a record
    /// that is appended but not published would take a second journal record to publish.
    async fn put_through(&self, put: &Put, identity: Identity) -> PutDone {
        let Some(_lane) = self.inner.lanes.lock(identity).await else {
            return PutDone::Declined(self.decline(DeclinedReason::QueueFull));
        };
        // A flush may have failed here while this waited for the lane. And what is dirty here could not be superseded durably
        // on a disk that takes no writes.
        let is_failed = || self.disk(identity).is_ok_and(|disk| disk.store.is_failed() || disk.is_offline());
        if self.inner.dirty.record(identity).is_some() && (self.is_in_doubt(identity) || is_failed()) {
            return PutDone::Declined(self.decline(DeclinedReason::DiskFault));
        }
        let change = self.begin_change(identity, |counters| &counters.fills_raced_by_put);
        let dirty = self.inner.dirty.record(identity);
        match self.store_through(put, dirty.as_deref()).await {
            Settled::Failed(error) => return PutDone::Failed(error),
            Settled::Conflict => return PutDone::KeyExists,
            Settled::Done => self.inner.counters.bytes_stored.add(u64::from(put.len_bytes)),
        }
        match dirty {
            None => {
                drop(change);
                self.keep_clean(&put.key, identity, put.frames.clone(), Etag::Digest(put.digest));
            }
            Some(record) => {
                // After a crash the older dirty record would be flushed and undo this put: it has to be superseded
                // durably before the acknowledgement.
                if let Err(error) = self.supersede(put, identity).await {
                    return PutDone::Declined(self.decline(self.not_durable(identity, &error)));
                }
                self.inner.dirty.settle(identity, record.generation, Finished::Done);
            }
        }
        PutDone::Created(Durability::Origin)
    }

    /// Sends a put to the origin, and before it the delete it has to follow. What is dirty here goes with this store: a
    /// tombstone not flushed yet, or the same bytes, lost to rot, which the origin may have been given before: they are not
    /// deleted there once more.
    async fn store_through(&self, put: &Put, dirty: Option<&DirtyRecord>) -> Settled {
        match dirty {
            Some(lost @ DirtyRecord { kind: DirtyKind::Block { .. }, .. }) => {
                return self.store_dirty(lost, put.frames.clone()).await;
            }
            Some(_) => {
                if let Err(error) = self.inner.origin.delete(&put.key).await {
                    return Settled::Failed(error);
                }
            }
            None => {}
        }
        let store = OriginStore { frames: put.frames.clone(), len_bytes: u64::from(put.len_bytes), digest: put.digest };
        match self.inner.origin.store(&put.key, store).await {
            Err(error) => Settled::Failed(error),
            Ok(Stored::Conflict(_)) => Settled::Conflict,
            Ok(Stored::Done) => Settled::Done,
        }
    }

    /// Publishes the block as clean, durably, over the dirty record that is there.
    async fn supersede(&self, put: &Put, identity: Identity) -> Result<(), StoreError> {
        let block = NewBlock {
            key: put.key.clone(),
            identity,
            generation: self.inner.disks.next_generation(),
            frames: put.frames.clone(),
            len_bytes: put.len_bytes,
            etag: Etag::Digest(put.digest),
            kind: NewKind::Clean { validity: Validity::default(), commit: Commit::Durable },
        };
        let appended = self.disk(identity)?.store.append(block).await?;
        assert_eq!(appended, Appended::Published, "I6: under the key's lock nothing newer can be published");
        Ok(())
    }

    pub(crate) fn new_record(&self, key: crate::key::BlockKey, identity: Identity, kind: DirtyKind) -> Rc<DirtyRecord> {
        assert!(charge_bytes(&kind) > 0);
        let generation = self.inner.disks.next_generation();
        let (since_unix_ms, certainty) = (self.inner.runtime.unix_ms(), Certainty::Sure);
        Rc::new(DirtyRecord { key, identity, generation, kind, since_unix_ms, certainty })
    }

    /// A record that an acknowledgement waited for did not become durable. After a fault of the journal nobody knows
    /// whether it will turn up at the next start, so the key takes no more changes until then.
    pub(crate) fn not_durable(&self, identity: Identity, error: &StoreError) -> DeclinedReason {
        if matches!(error, StoreError::Disk(_)) {
            self.doubt(identity);
        }
        tracing::error!(%error, "a record did not become durable");
        match error {
            StoreError::Full => DeclinedReason::DiskFull,
            StoreError::Closing => DeclinedReason::Stopping,
            StoreError::Disk(_)
            | StoreError::NotWritten(_)
            | StoreError::Failed
            | StoreError::Foreign { .. }
            | StoreError::Away => DeclinedReason::DiskFault,
        }
    }
}

fn condition_holds(condition: &Condition, etag: &Etag) -> bool {
    match condition {
        Condition::Any => true,
        Condition::Absent => false,
        Condition::Matches(etags) => etags.contains(etag),
    }
}

fn is_same(meta: &OriginMeta, put: &Put) -> bool {
    meta.len_bytes == u64::from(put.len_bytes) && meta.etag == Etag::Digest(put.digest)
}
