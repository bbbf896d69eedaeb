//! The healer: notices what never ends, probes a disk that is not well, and brings it back.
//!
//! One task per disk of a shard, begun by `Shard::open`. A probe writes bytes nobody could have foreseen into a file of its own,
//! syncs, and reads them back: a write that reports success and isn't there fails it. It also reads the slab. Before a disk
//! whose sync failed rises, its journal is begun anew (`Store::refound`); what nobody knew of until then is settled here.

use std::time::Duration;

use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError, OpenMode, Runtime};
use futures::future::{Either, select};

use super::{Event, HealthState};
use crate::dirty::Finished;
use crate::disks::OpenDisk;
use crate::origin::Origin;
use crate::shard::Shard;
use crate::store::{DirtyKind, slab_name};

/// What a probe writes and reads back.
const PROBE_BYTES: usize = 4 * SECTOR_BYTES;

/// Two files opened, a write, a sync, two reads: each may take as long as any operation may.
const PROBE_OPERATIONS: u32 = 6;

/// The name of a shard's probe file.
#[must_use]
pub fn probe_name(shard: u16) -> String {
    format!("shard-{shard:03}.health")
}

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// The healer's task; ends when the shard closes.
    pub(crate) async fn heal_forever(self, number: u16) {
        let disk = self.inner.disks.at(number);
        let (health, store) = (&disk.health, &disk.store);
        loop {
            let (changed, failed) = (health.listen(), store.listen_failed());
            if self.inner.stopping.get() {
                return;
            }
            if store.is_failed() && health.state() == HealthState::Ok {
                // A journal write failed: to the disk a write like any other, to the store as bad as a sync.
                health.saw(Event::SyncFailed);
                continue;
            }
            for _ in 0..health.take_stalled() {
                health.saw(Event::Stalled);
                store.suspend();
            }
            if health.is_probe_due() {
                self.probe(disk).await;
                continue;
            }
            match health.patience() {
                None => drop(select(changed, failed).await),
                Some(wait) => drop(select(select(changed, failed), Box::pin(self.inner.runtime.sleep(wait))).await),
            }
        }
    }

    async fn probe(&self, disk: &OpenDisk<D, R>) {
        let (health, runtime) = (&disk.health, &self.inner.runtime);
        let patience = Box::pin(runtime.sleep(health.stalled_after() * PROBE_OPERATIONS));
        let answer = match select(Box::pin(self.probe_once(&disk.device)), patience).await {
            Either::Left((Ok(took), _)) => Some(took),
            Either::Left((Err(error), _)) => {
                tracing::warn!(shard = self.inner.config.shard, disk = disk.number, %error, "a probe of the disk failed");
                None
            }
            Either::Right(_) => {
                tracing::warn!(
                    shard = self.inner.config.shard,
                    disk = disk.number,
                    "a probe of the disk has no answer"
                );
                None
            }
        };
        if health.probed(answer) && self.writes_again(disk).await {
            health.rise();
        }
    }

    /// How long its write or its sync took, whichever was slower: what is judged of other operations too.
    async fn probe_once(&self, disk: &D) -> Result<Duration, IoError> {
        let name = probe_name(self.inner.config.shard);
        let file = disk.open(&name, OpenMode::Replace(PROBE_BYTES as u64)).await?;
        let mut buf = disk.buffer(PROBE_BYTES).await;
        for word in buf.chunks_exact_mut(8) {
            word.copy_from_slice(&self.inner.runtime.random_u64().to_le_bytes());
        }
        let written = buf.to_vec();
        let began = self.inner.runtime.now();
        file.write(0, buf).await?;
        let written_at = self.inner.runtime.now();
        file.sync().await?;
        let took = written_at.since(began).max(self.inner.runtime.now().since(written_at));
        let read = file.read(0, PROBE_BYTES).await?;
        if read[..] != written[..] {
            let what = "a probe was written and synced, and other bytes are there";
            return Err(IoError::Corrupt { name, at: 0, what });
        }
        // Nor is a disk well whose slab can't be read.
        let slab = disk.open(&slab_name(self.inner.config.shard), OpenMode::Read).await?;
        slab.read(0, SECTOR_BYTES).await.map(|_| took)
    }

    /// Whether the store takes writes, after its journal was begun anew if that was needed.
    async fn writes_again(&self, disk: &OpenDisk<D, R>) -> bool {
        let (health, store) = (&disk.health, &disk.store);
        if !store.is_failed() {
            return true;
        }
        match store.refound().await {
            Ok(()) => {
                health.refounded();
                self.settle_doubt(disk);
                true
            }
            Err(error) => {
                tracing::warn!(shard = self.inner.config.shard, %error, "the journal could not be begun anew");
                false
            }
        }
    }

    /// No record in doubt can turn up on this disk any more: what is in memory is what is on it. A tombstone that the origin
    /// confirmed and that could not be retired durably is retired now.
    fn settle_doubt(&self, disk: &OpenDisk<D, R>) {
        let mut settled = Vec::new();
        self.inner.in_doubt.borrow_mut().retain(|identity, number| {
            let stays = *number != disk.number;
            if !stays {
                settled.push(*identity);
            }
            stays
        });
        // Not by the map's order: one seed is one run.
        settled.sort_unstable();
        for identity in settled {
            if let Some(record) = self.inner.dirty.record(identity)
                && record.kind == DirtyKind::Tombstone
                && disk.store.find(identity).is_none()
            {
                self.inner.dirty.settle(identity, record.generation, Finished::Done);
            }
        }
    }
}
