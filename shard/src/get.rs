//! GET and HEAD: memory tier, else index, else a fill; and what a reader gives back (pins, bytes, rot).
//!
//! Called by `src/proxy/dispatch` on the core that owns the key. Nothing here takes the key's lock. A disk hit is an
//! answer *where*, pinned (I7): the asking core reads it through `read::BlockReader`, then calls [`Shard::unpin`]
//! and, if it read the whole block, may offer the bytes to the memory tier.

use std::rc::Rc;

use bytes::Bytes;
use forebay_io::checksum::Digest;
use forebay_io::{Disk, Runtime};

use crate::canary::{self, Canary};
use crate::dirty::{Finished, Standing, Withheld};
use crate::health::Event;
use crate::key::{BlockKey, Generation, Identity};
use crate::memory::contiguous;
use crate::origin::{Etag, Origin};
use crate::outcome::{BlockMeta, DeclinedReason, Got, Headed, MetaSource, Pin};
use crate::policy::s3fifo::News;
use crate::read::ReadError;
use crate::shard::Shard;
use crate::store::{DirtyKind, DirtyRecord, EntryState, Found};

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Where the bytes of `key` are. A miss begins or joins a fill and resolves when the origin's headers are there.
    pub async fn get(&self, key: &BlockKey) -> Got {
        let identity = self.identity(key);
        match self.held(key, identity) {
            Some(got) => got,
            None => self.fill(key, identity).await,
        }
    }

    /// What is known of `key` without the origin; `None`: nothing, the origin's answer counts.
    pub(crate) fn held(&self, key: &BlockKey, identity: Identity) -> Option<Got> {
        let counters = &self.inner.counters;
        let in_memory = self.inner.memory.borrow_mut().look_up(identity);
        if let Some((mut hit, is_news)) = in_memory {
            hit.state = self.inner.dirty.state(identity);
            // Else its copy on disk would go as unused while it is hot here.
            if is_news == News::Yes
                && let Ok(disk) = self.disk(identity)
            {
                disk.store.count_use(identity);
            }
            counters.hits_memory.one();
            counters.bytes_hit_memory.add(hit.body.len() as u64);
            return Some(Got::Memory(hit));
        }
        match self.inner.dirty.withheld(identity) {
            Some(Withheld::Deleted) => {
                counters.absent.one();
                return Some(Got::Absent);
            }
            Some(Withheld::Lost) => return Some(Got::Lost),
            Some(Withheld::Unsure) => return Some(Got::Declined(self.decline(DeclinedReason::Unsettled))),
            None => {}
        }
        let Ok(disk) = self.disk(identity) else { return self.pass_a_missing_disk_by(key) };
        if disk.is_offline() {
            return self.pass_the_disk_by(identity);
        }
        if let Some(located) = disk.locate(identity) {
            disk.store.count_use(identity);
            counters.hits_disk.one();
            counters.bytes_hit_disk.add(u64::from(located.len_bytes));
            return Some(Got::Disk(located));
        }
        if disk.store.find(identity).is_some() {
            counters.absent.one();
            return Some(Got::Absent);
        }
        None
    }

    /// The disk is offline: the origin answers, but never for a key that is dirty here, of which it may have something
    /// older, or nothing (promise 3).
    fn pass_the_disk_by(&self, identity: Identity) -> Option<Got> {
        let counters = &self.inner.counters;
        let is_dirty = match self.inner.disks.find(identity) {
            Some(Found::Tombstone { .. }) => {
                counters.absent.one();
                return Some(Got::Absent);
            }
            Some(Found::Block { state, .. }) => state == EntryState::Dirty,
            None => false,
        };
        if is_dirty && !canary::is(Canary::OfflineServesOrigin) {
            counters.withheld.one();
            return Some(Got::Declined(self.decline(DeclinedReason::DiskFault)));
        }
        counters.passed_by.one();
        None
    }

    /// The disk is not here, and with it the knowledge of what is dirty on it: anything may be, in a volume that is written
    /// back.
    fn pass_a_missing_disk_by(&self, key: &BlockKey) -> Option<Got> {
        let counters = &self.inner.counters;
        if self.may_be_dirty_elsewhere(key) && !canary::is(Canary::OfflineServesOrigin) {
            counters.withheld.one();
            return Some(Got::Declined(self.decline(DeclinedReason::DiskFault)));
        }
        counters.passed_by.one();
        None
    }

    /// Gives back what a [`Got::Disk`] pinned; exactly once.
    pub fn unpin(&self, pin: Pin) {
        self.inner.disks.at(pin.disk).store.unpin(pin);
    }

    /// Offers a block that was read whole from disk and verified (I8) to the memory tier. `body` is an allocation of
    /// its own. Ignored if the entry is not this generation any more.
    pub fn offer_memory(&self, key: &BlockKey, generation: Generation, body: Bytes, etag: Etag) {
        let identity = self.identity(key);
        if self.inner.fills.is_changing(identity) {
            return;
        }
        if let Some(Found::Block { generation: current, len_bytes, .. }) = self.inner.disks.find(identity)
            && current == generation
            && len_bytes as usize == body.len()
        {
            self.inner.memory.borrow_mut().insert(identity, generation, body, etag);
        }
    }

    /// A reader found that the bytes on disk are not those of the record, or could not read them. A clean entry is dropped, so that the next
    /// [`Shard::get`] of the same request repairs it from the origin. A dirty one is read once more; if it is rotten
    /// indeed, it is written again from the memory tier where that has it, else it is lost: kept, listed, neither
    /// served nor uploaded nor replaced by older bytes.
    pub async fn report_rot(&self, key: &BlockKey, generation: Generation) {
        let identity = self.identity(key);
        let Ok(disk) = self.disk(identity) else { return };
        match disk.store.find(identity) {
            Some(Found::Block { generation: current, state, .. }) if current == generation => match state {
                EntryState::Clean => {
                    disk.health.saw(Event::Rot);
                    self.drop_rotten(key, identity, generation);
                }
                // This read reports what it finds.
                EntryState::Dirty => drop(self.read_verified(key, identity).await),
            },
            _ => {}
        }
    }

    /// Length and ETag of `key`. Never begins a fill.
    pub async fn head(&self, key: &BlockKey) -> Headed {
        self.inner.counters.heads.one();
        let identity = self.identity(key);
        match self.held_meta(key, identity).await {
            Some(headed) => headed,
            None => self.head_origin(key, identity).await,
        }
    }

    /// As [`Shard::held`], of length and ETag.
    pub(crate) async fn held_meta(&self, key: &BlockKey, identity: Identity) -> Option<Headed> {
        if matches!(self.inner.dirty.withheld(identity), Some(Withheld::Unsure)) {
            return Some(Headed::Declined(self.decline(DeclinedReason::Unsettled)));
        }
        match self.known(key, identity).await {
            Ok(Known::Block { len_bytes, etag, state }) => {
                let source = if state == EntryState::Dirty { MetaSource::Dirty } else { MetaSource::Cache };
                Some(Headed::Found(BlockMeta { len_bytes: u64::from(len_bytes), etag, source }))
            }
            Ok(Known::Tombstone) => Some(Headed::Absent),
            Ok(Known::Lost(_)) => Some(Headed::Lost),
            // Only clean blocks are read to be known, and a disk that fails is no reason to fail what the origin knows.
            Ok(Known::Nothing) | Err(_) => None,
            Ok(Known::Away) if self.may_be_dirty_elsewhere(key) => {
                self.inner.counters.withheld.one();
                Some(Headed::Declined(self.decline(DeclinedReason::DiskFault)))
            }
            Ok(Known::Unread | Known::Away) => {
                self.inner.counters.passed_by.one();
                None
            }
        }
    }

    async fn head_origin(&self, key: &BlockKey, identity: Identity) -> Headed {
        if let Some((len_bytes, etag)) = self.inner.fills.meta(identity) {
            return Headed::Found(BlockMeta { len_bytes, etag, source: MetaSource::Cache });
        }
        match self.inner.origin.head(key).await {
            Ok(Some(meta)) => {
                Headed::Found(BlockMeta { len_bytes: meta.len_bytes, etag: meta.etag, source: MetaSource::Origin })
            }
            Ok(None) => {
                self.inner.counters.absent.one();
                Headed::Absent
            }
            Err(error) => Headed::Failed(error),
        }
    }

    /// What this shard knows of a key, its ETag included. Reads a clean block of one piece, because only its bytes
    /// tell its digest.
    ///
    /// # Errors
    /// The device failed that read.
    pub(crate) async fn known(&self, key: &BlockKey, identity: Identity) -> Result<Known, ReadError> {
        if let Some(record) = self.inner.dirty.record(identity) {
            return Ok(match record.kind {
                DirtyKind::Tombstone => Known::Tombstone,
                _ if self.inner.dirty.standing(identity) == Some(Standing::Lost) => Known::Lost(record),
                DirtyKind::Block { len_bytes, digest, .. } => {
                    Known::Block { len_bytes, etag: Etag::Digest(digest), state: EntryState::Dirty }
                }
            });
        }
        if let Some((hit, _)) = self.inner.memory.borrow_mut().look_up(identity) {
            let len_bytes = u32::try_from(hit.body.len()).expect("a block's length is a u32");
            return Ok(Known::Block { len_bytes, etag: hit.etag, state: EntryState::Clean });
        }
        let Ok(disk) = self.disk(identity) else { return Ok(Known::Away) };
        match disk.store.find(identity) {
            None => Ok(Known::Nothing),
            Some(Found::Tombstone { .. }) => Ok(Known::Tombstone),
            Some(Found::Block { len_bytes, state, etag: Some(etag), .. }) => {
                Ok(Known::Block { len_bytes, etag, state })
            }
            Some(Found::Block { etag: None, .. }) if disk.is_offline() => Ok(Known::Unread),
            Some(Found::Block { len_bytes, state, etag: None, .. }) => match self.read_verified(key, identity).await? {
                Some(body) => Ok(Known::Block { len_bytes, etag: Etag::Digest(Digest::of(&body)), state }),
                None => Ok(Known::Nothing),
            },
        }
    }

    /// The whole content of what is stored under a key, verified (I8); from memory if it is there. `None`: nothing is
    /// stored, or it rotted, which has been dealt with.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) async fn read_verified(&self, key: &BlockKey, identity: Identity) -> Result<Option<Bytes>, ReadError> {
        let Ok(disk) = self.disk(identity) else { return Ok(None) };
        let Some(located) = disk.locate(identity) else { return Ok(None) };
        let read = disk.store.read(&located).await;
        disk.store.unpin(located.pin);
        match read {
            Ok(body) => Ok(Some(body)),
            Err(ReadError::Rot { piece_index }) => {
                tracing::error!(volume = %key.volume, key = %key.key, piece_index, "a block rotted on disk");
                disk.health.saw(Event::Rot);
                self.drop_rotten(key, identity, located.generation);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Deals with a record that was read and is rotten.
    fn drop_rotten(&self, key: &BlockKey, identity: Identity, generation: Generation) {
        let inner = &self.inner;
        match inner.dirty.record(identity) {
            Some(record) if record.generation == generation => {
                if let Some((hit, _)) = inner.memory.borrow().peek(identity) {
                    // Whole and right in memory: write it again before it is evicted there.
                    self.spawn(self.clone().rewrite(record, hit.body));
                    return;
                }
                inner.counters.lost.one();
                tracing::error!(volume = %key.volume, key = %key.key, "a dirty block is lost: it rotted before the flush");
                inner.dirty.settle(identity, generation, Finished::Lost);
            }
            // A newer record took its place while the rotten one was read.
            _ if !self.is_clean(identity, generation) => {}
            _ => {
                inner.counters.rot.one();
                if let Ok(disk) = self.disk(identity) {
                    disk.store.forget(identity, generation);
                }
            }
        }
    }

    fn is_clean(&self, identity: Identity, current: Generation) -> bool {
        matches!(self.inner.disks.find(identity), Some(Found::Block { generation, state: EntryState::Clean, .. })
            if generation == current)
    }

    async fn rewrite(self, record: Rc<DirtyRecord>, body: Bytes) {
        if self.write_again(&record, vec![body]).await.is_ok() {
            self.inner.counters.repaired.one();
        }
    }

    /// Puts a block that has just been stored or fetched into the memory tier, if it may hold it.
    pub(crate) fn remember(&self, identity: Identity, generation: Generation, frames: &[Bytes], etag: Etag) {
        let len_bytes: usize = frames.iter().map(Bytes::len).sum();
        let mut memory = self.inner.memory.borrow_mut();
        if memory.admits(len_bytes as u64) {
            memory.insert(identity, generation, contiguous(frames, len_bytes), etag);
        }
    }
}

/// What a shard knows of a key.
pub(crate) enum Known {
    /// Nothing: the origin may have it.
    Nothing,
    /// It was deleted; the origin does not know yet.
    Tombstone,
    /// It is here, clean, on a disk that is offline: only its bytes would tell its ETag.
    Unread,
    /// It may lie on a disk that is not here.
    Away,
    /// It is here.
    Block { len_bytes: u32, etag: Etag, state: EntryState },
    /// It was here, dirty, and rotted.
    Lost(Rc<DirtyRecord>),
}
