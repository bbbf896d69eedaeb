//! Pin and unpin: a block stays on disk until it is unpinned, purged or deleted.
//!
//! Called by `src/proxy/dispatch` on the core that owns the key, under the key's lock. A pin of a block that is not on disk
//! brings it there first: from the memory tier, or by a fill, of which there is at most one (I5). It is acknowledged when it is
//! durable, and holds over restarts (I14); beyond the disk's share for pinned bytes it is refused, because what may never be
//! evicted must leave reclaim something to reclaim. A purge of a pinned block, and a delete, take the pin with them.

use bytes::Bytes;
use forebay_io::{Disk, Runtime};
use futures::StreamExt;

use crate::disks::OpenDisk;
use crate::key::{BlockKey, Identity};
use crate::origin::{Etag, Origin};
use crate::outcome::{DeclinedReason, FillStream, Got, PinDone, UnpinDone};
use crate::shard::Shard;
use crate::store::{Appended, Commit, Found, NewBlock, NewKind, PinOutcome, Pinning};

/// A block that was brought to disk may be gone before it is pinned, if the disk turns over that fast: it is brought again.
const TRIES: usize = 3;

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Pins the block of `key`, fetching it if it is not on disk. Once begun it runs to its end.
    pub async fn pin(&self, key: &BlockKey) -> PinDone {
        let (shard, key) = (self.clone(), key.clone());
        let work = async move {
            let done = shard.pin_in_turn(&key).await;
            match &done {
                PinDone::Done => shard.inner.counters.pins.one(),
                PinDone::Full { .. } => shard.inner.counters.pins_refused.one(),
                PinDone::Absent | PinDone::Lost | PinDone::Declined(_) | PinDone::Failed(_) => {}
            }
            done
        };
        self.run_to_end(work).await.unwrap_or_else(|| self.pin_declined(DeclinedReason::Stopping))
    }

    /// Takes a pin back. Idempotent: that there is no pin, or no block, is no error.
    pub async fn unpin_block(&self, key: &BlockKey) -> UnpinDone {
        let (shard, key) = (self.clone(), key.clone());
        let done = self.run_to_end(async move { shard.unpin_in_turn(&key).await }).await;
        done.unwrap_or_else(|| UnpinDone::Declined(self.decline(DeclinedReason::Stopping)))
    }

    /// Whether the block of `key` is pinned.
    #[must_use]
    pub fn pinning(&self, key: &BlockKey) -> Pinning {
        let identity = self.identity(key);
        self.disk(identity).map_or(Pinning::Unpinned, |disk| disk.store.pinning(identity))
    }

    async fn pin_in_turn(&self, key: &BlockKey) -> PinDone {
        let identity = self.identity(key);
        let Some(_turn) = self.inner.locks.lock(identity).await else {
            return self.pin_declined(DeclinedReason::QueueFull);
        };
        if self.inner.stopping.get() {
            return self.pin_declined(DeclinedReason::Stopping);
        }
        for _ in 0..TRIES {
            let disk = match self.disk(identity) {
                Ok(disk) if !disk.is_offline() => disk,
                _ => return self.pin_declined(DeclinedReason::DiskFault),
            };
            match disk.store.pin(identity, self.inner.disks.next_generation()).await {
                Ok(PinOutcome::Pinned) => return PinDone::Done,
                Ok(PinOutcome::Full) => {
                    let stats = disk.store.stats();
                    return PinDone::Full { pinned_bytes: stats.pinned_bytes, bytes_max: stats.pinned_bytes_max };
                }
                Ok(PinOutcome::Missing) => {
                    if let Err(done) = self.bring_to_disk(key, identity).await {
                        return done;
                    }
                }
                Err(error) => return PinDone::Declined(self.decline_for(&error)),
            }
        }
        self.pin_declined(DeclinedReason::DiskFull)
    }

    async fn unpin_in_turn(&self, key: &BlockKey) -> UnpinDone {
        let identity = self.identity(key);
        let Some(_turn) = self.inner.locks.lock(identity).await else {
            return UnpinDone::Declined(self.decline(DeclinedReason::QueueFull));
        };
        let generation = self.inner.disks.next_generation();
        let said = match self.disk(identity) {
            Ok(disk) => disk.store.unpin_block(identity, generation).await,
            Err(error) => Err(error),
        };
        match said {
            Ok(()) => {
                self.inner.counters.unpins.one();
                UnpinDone::Done
            }
            Err(error) => UnpinDone::Declined(self.decline_for(&error)),
        }
    }

    /// Brings a block to disk that is not there. Under the key's lock, so nothing but fills touches the key meanwhile.
    async fn bring_to_disk(&self, key: &BlockKey, identity: Identity) -> Result<(), PinDone> {
        if !self.disk(identity).is_ok_and(OpenDisk::admits) {
            return Err(self.pin_declined(DeclinedReason::DiskFault));
        }
        match self.get(key).await {
            Got::Memory(hit) => self.append_for_pin(key, identity, vec![hit.body], hit.etag).await,
            Got::Disk(located) => {
                self.unpin(located.pin);
                Ok(())
            }
            Got::Fill(stream) => {
                self.inner.counters.pins_filled.one();
                self.take_fill(key, identity, stream).await
            }
            Got::Absent => Err(PinDone::Absent),
            Got::Lost => Err(PinDone::Lost),
            Got::Declined(declined) => Err(PinDone::Declined(declined)),
            Got::Failed(error) => Err(PinDone::Failed(error)),
        }
    }

    /// Takes a fill to its end. Where the policy kept its block from disk, the pin puts it there.
    async fn take_fill(&self, key: &BlockKey, identity: Identity, mut stream: FillStream) -> Result<(), PinDone> {
        let Some(_room) = self.inner.fills.budget().reserve(stream.len_bytes) else {
            return Err(self.pin_declined(DeclinedReason::FillsFull));
        };
        let mut frames = Vec::new();
        while let Some(frame) = stream.frames.next().await {
            frames.push(frame.map_err(PinDone::Failed)?);
        }
        self.inner.fills.ended(identity).await;
        match self.inner.disks.find(identity) {
            Some(Found::Block { .. }) => Ok(()),
            Some(Found::Tombstone { .. }) | None => self.append_for_pin(key, identity, frames, stream.etag).await,
        }
    }

    /// Appends a block whatever the policy says: it will be pinned.
    async fn append_for_pin(
        &self,
        key: &BlockKey,
        identity: Identity,
        frames: Vec<Bytes>,
        etag: Etag,
    ) -> Result<(), PinDone> {
        let len_bytes: usize = frames.iter().map(Bytes::len).sum();
        let validity = self.inner.fills.validity(identity);
        let block = NewBlock {
            key: key.clone(),
            identity,
            generation: self.inner.disks.next_generation(),
            frames,
            len_bytes: u32::try_from(len_bytes).expect("a block's length was compared with its volume's maximum"),
            etag,
            kind: NewKind::Clean { validity: validity.clone(), commit: Commit::Lazy },
        };
        let appended = match self.disk(identity) {
            Ok(disk) => disk.store.append(block).await,
            Err(error) => Err(error),
        };
        self.inner.fills.end_validity(identity, &validity);
        match appended {
            // Another one is there, or it is looked for once more.
            Ok(Appended::Published | Appended::Invalidated | Appended::Declined) => Ok(()),
            Err(error) => Err(PinDone::Declined(self.decline_for(&error))),
        }
    }

    fn pin_declined(&self, reason: DeclinedReason) -> PinDone {
        PinDone::Declined(self.decline(reason))
    }
}
