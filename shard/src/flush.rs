//! The flusher: dirty becomes clean, oldest first.
//!
//! One task per shard, begun by `Shard::open`, sends up to `flush_parallelism` records at once, each under its key's
//! origin lane, so that what the origin sees of a key is in the key's order. I9: only the generation that the origin
//! confirmed becomes clean. A block is verified before it is sent; rotten ones are lost, not sent. Failures back off
//! with full jitter (Brooker, "Exponential Backoff And Jitter"); while a volume's origin does not answer, one probe at
//! a time asks for it.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::checksum::Digest;
use forebay_io::{Disk, Nanos, Runtime};
use futures::channel::oneshot;
use futures::future::{Either, select};

use crate::canary::{self, Canary};
use crate::dirty::{Finished, Next, Standing};
use crate::error::StoreError;
use crate::origin::{Etag, Origin, OriginError, OriginErrorKind, OriginMeta, Store as OriginStore, Stored};
use crate::read::ReadError;
use crate::shard::Shard;
use crate::store::{BeforeStore, Certainty, DirtyKind, DirtyRecord};

/// The longest first wait after a failed flush; it doubles with each failure of the record.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// The longest wait of all.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// As [`RETRY_MAX`], between two probes of a volume in an outage: the link's return is noticed within this.
const PROBE_MAX: Duration = Duration::from_secs(15);
/// The shortest wait: jitter must not make a busy loop.
const RETRY_MIN: Duration = Duration::from_millis(10);

/// What [`Shard::flush_all`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// Records that the origin confirmed meanwhile.
    pub flushed: u64,
    /// Records that are dirty still: conflicts and lost ones included.
    pub remaining: u64,
    /// Of these, in conflict with what the origin has.
    pub conflicts: u64,
    /// Of these, rotten.
    pub lost: u64,
}

/// How sending a dirty record ended.
pub(crate) enum Settled {
    Done,
    Conflict,
    Failed(OriginError),
}

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Flushes everything now, whatever its backoff, until nothing that could be flushed is left or `deadline` has
    /// passed. For draining and stopping; work goes on meanwhile.
    pub async fn flush_all(&self, deadline: Duration) -> FlushReport {
        let inner = &self.inner;
        let until = after(inner.runtime.now(), deadline);
        let flushes_before = inner.counters.flushes.count();
        inner.dirty.hurry();
        loop {
            let changed = inner.dirty.listen();
            let now = inner.runtime.now();
            if !inner.dirty.has_work() || now >= until {
                break;
            }
            select(changed, Box::pin(inner.runtime.sleep(until.since(now)))).await;
        }
        let totals = inner.dirty.totals();
        FlushReport {
            flushed: inner.counters.flushes.count() - flushes_before,
            remaining: totals.records,
            conflicts: totals.conflicts,
            lost: totals.lost,
        }
    }

    /// The flusher's task; ends when the shard closes.
    pub(crate) async fn flush_forever(self) {
        let inner = &self.inner;
        loop {
            let changed = inner.dirty.listen();
            if inner.stopping.get() {
                return;
            }
            let mut next = Next::Idle;
            while inner.dirty.flushing_count() < inner.config.flush_parallelism {
                next = inner.dirty.next(inner.runtime.now());
                let Next::Flush(record) = next else { break };
                next = Next::Idle;
                self.spawn(self.clone().flush_one(record));
            }
            match next {
                Next::At(at) => {
                    let wait = at.since(inner.runtime.now());
                    select(changed, Box::pin(inner.runtime.sleep(wait))).await;
                }
                Next::Idle | Next::Flush(_) => changed.await,
            }
        }
    }

    async fn flush_one(self, record: Rc<DirtyRecord>) {
        let end = self.flush_in_turn(&record).await;
        if end != Finished::Superseded {
            self.count_race(&record);
        }
        match end {
            Finished::Done => self.inner.counters.flushes.one(),
            Finished::Conflict => {
                self.inner.counters.conflicts.one();
                tracing::error!(volume = %record.key.volume, key = %record.key.key, "a dirty block is in conflict: the origin has other bytes");
            }
            Finished::Retry(_) => self.inner.counters.flushes_failed.one(),
            Finished::Lost | Finished::Superseded => {}
        }
        self.inner.dirty.finished(&record, end);
    }

    fn count_race(&self, flushed: &DirtyRecord) {
        let counters = &self.inner.counters;
        match self.inner.dirty.record(flushed.identity) {
            Some(newer) if newer.generation > flushed.generation => match newer.kind {
                DirtyKind::Block { .. } => counters.flushes_raced_by_put.one(),
                DirtyKind::Tombstone => counters.flushes_raced_by_delete.one(),
            },
            Some(_) | None => {}
        }
    }

    async fn flush_in_turn(&self, record: &Rc<DirtyRecord>) -> Finished {
        let Some(_lane) = self.inner.lanes.lock(record.identity).await else { return self.retry_later(record) };
        let dirty = &self.inner.dirty;
        if !dirty.is_current(record.identity, record.generation)
            || dirty.standing(record.identity) != Some(Standing::Queued)
        {
            return Finished::Superseded;
        }
        match record.kind {
            // The origin may have been given a block since, whose record here is in doubt: if that turns up at the next
            // start, it must be there.
            DirtyKind::Tombstone if self.is_in_doubt(record.identity) => self.retry_later(record),
            DirtyKind::Tombstone => self.flush_tombstone(record).await,
            DirtyKind::Block { .. } => self.flush_block(record).await,
        }
    }

    async fn flush_tombstone(&self, record: &Rc<DirtyRecord>) -> Finished {
        let deleted = match record.certainty {
            Certainty::Sure => self.inner.origin.delete(&record.key).await.map(|()| None),
            // It may have been flushed before the disaster, and the key stored again since: it deletes nothing.
            Certainty::Unsure => self.inner.origin.head(&record.key).await,
        };
        match deleted {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.inner.dirty.reachable(&record.key.volume);
                return Finished::Conflict;
            }
            Err(error) => return self.failed(record, &error),
        }
        self.inner.dirty.reachable(&record.key.volume);
        match self.retire_tombstone(record).await {
            Ok(()) => Finished::Done,
            Err(error) => {
                tracing::warn!(%error, "a flushed tombstone could not be retired");
                self.retry_later(record)
            }
        }
    }

    async fn flush_block(&self, record: &Rc<DirtyRecord>) -> Finished {
        let body = match self.dirty_body(record).await {
            Some(body) => body,
            None if self.inner.dirty.is_current(record.identity, record.generation) => return self.retry_later(record),
            None => return Finished::Superseded,
        };
        let len_bytes = body.len() as u64;
        match self.store_dirty(record, vec![body]).await {
            Settled::Done => {
                self.inner.dirty.reachable(&record.key.volume);
                self.inner.counters.bytes_flushed.add(len_bytes);
                // I9: the store looks once more whether this is the current generation.
                self.flushed(record);
                Finished::Done
            }
            Settled::Conflict => {
                self.inner.dirty.reachable(&record.key.volume);
                Finished::Conflict
            }
            Settled::Failed(error) => self.failed(record, &error),
        }
    }

    /// Sends a dirty block's bytes, under its key's lane.
    pub(crate) async fn store_dirty(&self, record: &DirtyRecord, frames: Vec<Bytes>) -> Settled {
        let DirtyKind::Block { len_bytes, digest, before } = record.kind else { panic!("a tombstone is not stored") };
        let meant = OriginMeta { len_bytes: u64::from(len_bytes), etag: Etag::Digest(digest) };
        if record.certainty == Certainty::Unsure {
            // It may have been flushed, and deleted since: what the origin has counts.
            match self.inner.origin.head(&record.key).await {
                Ok(Some(found)) if found == meant => return Settled::Done,
                Ok(Some(_)) => return Settled::Conflict,
                Ok(None) => {}
                Err(error) => return Settled::Failed(error),
            }
        } else if before == BeforeStore::Delete {
            match self.delete_before_store(record, &meant).await {
                Ok(Before::Gone) => {}
                Ok(Before::SameBytes) => return Settled::Done,
                Err(error) => return Settled::Failed(error),
            }
        }
        if canary::is(Canary::UnconditionalStore) {
            let _ = self.inner.origin.delete(&record.key).await;
        }
        let store = OriginStore { frames, len_bytes: u64::from(len_bytes), digest };
        match self.inner.origin.store(&record.key, store).await {
            Ok(Stored::Done) => Settled::Done,
            Ok(Stored::Conflict(found)) if found == meant => Settled::Done,
            Ok(Stored::Conflict(_)) if canary::is(Canary::ConflictTakenForSuccess) => Settled::Done,
            Ok(Stored::Conflict(_)) => Settled::Conflict,
            Err(error) if canary::is(Canary::UnknownOutcomeSuccess) && error.kind == OriginErrorKind::Unavailable => {
                Settled::Done
            }
            Err(error) => Settled::Failed(error),
        }
    }

    /// Flushes the delete that this put superseded. Once is enough: what appears at the origin after it is not ours to
    /// delete. After a restart nobody knows whether it was sent, so what the origin has is looked at first.
    async fn delete_before_store(&self, record: &DirtyRecord, meant: &OriginMeta) -> Result<Before, OriginError> {
        if self.inner.dirty.delete_was_sent(record.identity, record.generation) {
            return Ok(Before::Gone);
        }
        if let Some(found) = self.inner.origin.head(&record.key).await? {
            if found == *meant {
                return Ok(Before::SameBytes);
            }
            self.inner.origin.delete(&record.key).await?;
        }
        self.inner.dirty.mark_delete_sent(record.identity, record.generation);
        Ok(Before::Gone)
    }

    /// The origin has confirmed a delete: the tombstone goes, durably. Lazily would not do: after a crash it would be
    /// flushed again, and delete what was stored under the key since.
    pub(crate) async fn retire_tombstone(&self, record: &DirtyRecord) -> Result<(), StoreError> {
        // The same disk for both: without the tombstone another may be asked for the key.
        let store = &self.disk(record.identity)?.store;
        store.flushed(record.identity, record.generation);
        if canary::is(Canary::TombstoneRetiredLazily) {
            return Ok(());
        }
        let retired = store.remove(record.identity, record.generation).await;
        if retired.is_err() {
            // After a restart the tombstone may be there or not: nothing that needs it, or its absence, may be promised.
            self.doubt(record.identity);
        }
        retired
    }

    /// The origin confirmed this very record: it is clean where it lies.
    pub(crate) fn flushed(&self, record: &DirtyRecord) {
        if let Ok(disk) = self.disk(record.identity) {
            disk.store.flushed(record.identity, record.generation);
        }
    }

    /// The verified bytes of a dirty block: from memory if they are there, else from disk. `None`: not now.
    async fn dirty_body(&self, record: &Rc<DirtyRecord>) -> Option<Bytes> {
        let DirtyKind::Block { digest, .. } = record.kind else { panic!("a tombstone has no bytes") };
        let in_memory = self.inner.memory.borrow().peek(record.identity);
        if let Some((hit, generation)) = in_memory
            && generation == record.generation
        {
            assert_eq!(Digest::of(&hit.body), digest, "I8: the memory tier holds verified bytes");
            return Some(hit.body);
        }
        let body = match self.read_for_flush(record).await? {
            Ok(body) => body?,
            Err(error) => {
                tracing::warn!(%error, "a dirty block could not be read for its flush");
                return None;
            }
        };
        // A newer put of the key may have been read instead.
        (Digest::of(&body) == digest).then_some(body)
    }

    /// As [`Shard::read_verified`], but one of several disks that is offline gets one read at a time, and is not waited for
    /// beyond the time of any operation: its records must not hold the places of the others' in the flusher.
    async fn read_for_flush(&self, record: &DirtyRecord) -> Option<Result<Option<Bytes>, ReadError>> {
        let (identity, key) = (record.identity, record.key.clone());
        let disk = self.disk(identity).ok()?;
        if self.inner.disks.count() == 1 {
            return Some(self.read_verified(&key, identity).await);
        }
        let is_trial = disk.is_offline();
        if is_trial && disk.is_tried.replace(true) {
            return None;
        }
        let patience = Box::pin(self.inner.runtime.sleep(disk.health.stalled_after()));
        let (sender, receiver) = oneshot::channel();
        let shard = self.clone();
        // Not counted as running: a read that has no answer must not hold up a close. It keeps its pin until it ends.
        self.inner.runtime.spawn(async move { drop(sender.send(shard.read_verified(&key, identity).await)) });
        let read = match select(receiver, patience).await {
            Either::Left((read, _)) => read.ok(),
            Either::Right(_) => None,
        };
        if is_trial {
            disk.is_tried.set(false);
        }
        read
    }

    /// The origin failed a flush.
    fn failed(&self, record: &DirtyRecord, error: &OriginError) -> Finished {
        tracing::warn!(volume = %record.key.volume, key = %record.key.key, %error, "a flush failed");
        let dirty = &self.inner.dirty;
        let not_before = error.retry_after.unwrap_or(Duration::ZERO);
        if concerns_the_volume(error.kind) {
            let wait = self.jitter(dirty.probes_failed(&record.key.volume), PROBE_MAX).max(not_before.min(RETRY_MAX));
            dirty.unreachable(&record.key.volume, after(self.inner.runtime.now(), wait));
        } else {
            dirty.reachable(&record.key.volume);
        }
        let wait = self.jitter(dirty.failures(record.identity), RETRY_MAX).max(not_before.min(RETRY_MAX));
        Finished::Retry(after(self.inner.runtime.now(), wait))
    }

    fn retry_later(&self, record: &DirtyRecord) -> Finished {
        let wait = self.jitter(self.inner.dirty.failures(record.identity), RETRY_MAX);
        Finished::Retry(after(self.inner.runtime.now(), wait))
    }

    /// A random time between [`RETRY_MIN`] and the first wait doubled `failures` times, `max` at most.
    fn jitter(&self, failures: u32, max: Duration) -> Duration {
        let ceiling = RETRY_FIRST.saturating_mul(1 << failures.min(16)).min(max);
        let ceiling_us = u64::try_from(ceiling.as_micros()).expect("a minute in microseconds is a u64");
        Duration::from_micros(self.inner.runtime.random_u64() % ceiling_us).max(RETRY_MIN)
    }
}

enum Before {
    Gone,
    SameBytes,
}

/// Whether the next record of the volume would fail alike.
fn concerns_the_volume(kind: OriginErrorKind) -> bool {
    match kind {
        OriginErrorKind::Unreachable
        | OriginErrorKind::Timeout
        | OriginErrorKind::Unavailable
        | OriginErrorKind::Denied
        | OriginErrorKind::NoBucket => true,
        OriginErrorKind::Corrupt | OriginErrorKind::TooLarge | OriginErrorKind::Busy | OriginErrorKind::Protocol => {
            false
        }
    }
}

fn after(now: Nanos, wait: Duration) -> Nanos {
    Nanos(now.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
}
