//! Quarantine: regions out of use because a write failed or a dirty block rotted there, and their way back.
//!
//! A quarantined region keeps its good records served. That it is quarantined is journaled and stands in checkpoints, so a
//! restart does not forget it. The prober, one task, empties such a region of what is clean, makes durable that it is empty
//! (by a new epoch: nobody journals an eviction, and a recovery would find the records again, over bytes that are gone: I1),
//! rewrites it from end to end and reads it back; if both succeed it is free again, and the `RegionOpen` of its next use
//! ends the quarantine durably. A region that holds a rotten dirty block never comes back before that block is dealt with
//! (I4), nor one to which something is still being written.

use std::rc::Rc;
use std::time::Duration;

use forebay_io::{Disk, DiskFile, IoError, Runtime};
use futures::future::{Either, select};

use super::commit::{Change, Item};
use super::entry::State as EntryIs;
use super::footer;
use super::record::Record;
use super::regions::RegionState;
use super::state::{Core, Life};
use crate::canary::{self, Canary};

/// Between two rounds over all quarantined regions.
pub const PROBE_EVERY: Duration = Duration::from_secs(300);
/// A probe writes and reads so much at once.
const PROBE_BYTES: u64 = 1 << 20;
/// After a region was quarantined: until its other writes and its footer are through.
const SETTLE: Duration = Duration::from_secs(1);

impl<D: Disk, R: Runtime> Core<D, R> {
    /// Takes a region out of use, now and after a restart.
    pub fn mark_quarantined(&self, region: u32) {
        let epoch = self.change(|state| {
            let at = state.regions.at_mut(region);
            let earlier = std::mem::replace(&mut at.state, RegionState::Quarantined);
            (earlier != RegionState::Quarantined).then_some(at.epoch)
        });
        if let Some(epoch) = epoch {
            self.queue(Item::applied(&Record::Quarantined { region, epoch }));
            self.signals.quarantine.notify(1);
        }
    }

    /// The prober's task: ends when the store closes. It sleeps for ever while nothing is quarantined.
    pub async fn run_prober(self: Rc<Self>) {
        loop {
            let changed = self.signals.quarantine.listen();
            let (life, quarantined) = {
                let state = self.state.borrow();
                (state.life, state.regions.count_in(RegionState::Quarantined))
            };
            if matches!(life, Life::Closing | Life::Stopped) {
                return;
            }
            if quarantined == 0 || life != Life::Running {
                changed.await;
                self.runtime.sleep(SETTLE).await;
            } else {
                let pause = std::pin::pin!(self.runtime.sleep(PROBE_EVERY));
                if let Either::Left(_) = select(changed, pause).await {
                    self.runtime.sleep(SETTLE).await;
                }
            }
            for region in 0..self.superblock.region_count {
                self.state.borrow_mut().probing = true;
                self.probe(region).await;
                self.state.borrow_mut().probing = false;
                self.signals.settled.notify(usize::MAX);
            }
        }
    }

    /// Empties a quarantined region of what is clean; frees it if it is empty and takes bytes again.
    async fn probe(self: &Rc<Self>, region: u32) {
        let candidate = {
            let state = self.state.borrow();
            let at = state.regions.at(region);
            let is_idle = at.dirty_bytes == 0 && at.uncommitted == 0 && !at.is_footer_due;
            (at.state == RegionState::Quarantined && is_idle && state.life == Life::Running).then_some(at.epoch)
        };
        let Some(epoch) = candidate else { return };
        // What is pinned goes on to another region; what finds no place now stays, and the region with it.
        for entry in self.evict_scanning(region, epoch).await {
            if entry.state() == EntryIs::Clean && self.move_pinned(entry).await.is_err() {
                return;
            }
        }
        let region_at = self.region_at(region);
        let region_end = region_at + self.superblock.region_bytes;
        // The deletes in its footer go on to a later one, as at a reclaim.
        if let Ok(Some(footer)) = footer::read(&self.slab, self.superblock.store_id, region_at, region_end).await
            && footer.epoch == epoch
        {
            self.change(|state| state.list_again(&footer.records));
        }
        if !self.state.borrow().regions.at(region).holds_nothing() || !self.declare_empty(region).await {
            return;
        }
        match self.rewrite_region(region).await {
            Ok(Rewritten::Same) => {
                tracing::info!(shard = self.superblock.shard, region, "a quarantined region takes bytes again");
                self.change(|state| {
                    state.regions.at_mut(region).state = RegionState::Free;
                    state.freed = true;
                });
            }
            Ok(Rewritten::GivenUp) => {}
            Ok(Rewritten::Differs) => {
                tracing::warn!(shard = self.superblock.shard, region, "a quarantined region reads back other bytes");
            }
            Err(error) => tracing::warn!(shard = self.superblock.shard, region, %error, "a probe failed"),
        }
    }

    /// Gives an empty quarantined region a new epoch, durably. False if the store takes no more writes.
    async fn declare_empty(&self, region: u32) -> bool {
        if self.state.borrow().writable().is_err() {
            return false;
        }
        let epoch = self.change(|state| state.regions.draw_epoch());
        if canary::is(Canary::ProbeForgetsEpoch) {
            return true;
        }
        let record = Record::Quarantined { region, epoch };
        let (item, decided) = Item::awaited(&record, Change::Emptied { region, epoch });
        self.queue(item);
        matches!(decided.await, Ok(Ok(_)))
    }

    /// Fills a region with a pattern and reads it back, unless the store closes meanwhile: `close` waits for what is being
    /// written, and for no more.
    async fn rewrite_region(&self, region: u32) -> Result<Rewritten, IoError> {
        let is_over = || matches!(self.state.borrow().life, Life::Closing | Life::Stopped);
        let salt = self.runtime.random_u64();
        let region_at = self.region_at(region);
        let region_bytes = self.superblock.region_bytes;
        for at in (0..region_bytes).step_by(PROBE_BYTES as usize) {
            if is_over() {
                return Ok(Rewritten::GivenUp);
            }
            let mut buf = self.disk.buffer(PROBE_BYTES.min(region_bytes - at) as usize).await;
            fill(&mut buf, salt ^ at);
            self.slab.write(region_at + at, buf).await?;
        }
        for at in (0..region_bytes).step_by(PROBE_BYTES as usize) {
            if is_over() {
                return Ok(Rewritten::GivenUp);
            }
            let read = self.slab.read(region_at + at, PROBE_BYTES.min(region_bytes - at) as usize).await?;
            let mut expected = vec![0; read.len()];
            fill(&mut expected, salt ^ at);
            if read[..] != expected[..] {
                return Ok(Rewritten::Differs);
            }
            self.runtime.yield_now().await;
        }
        Ok(Rewritten::Same)
    }
}

/// What became of a region under probe.
enum Rewritten {
    /// It reads back as it was written.
    Same,
    /// It does not.
    Differs,
    /// The store closes.
    GivenUp,
}

/// Words that differ from place to place, so that a misdirected write is seen.
fn fill(buf: &mut [u8], seed: u64) {
    for (index, word) in (0u64..).zip(buf.chunks_mut(8)) {
        let value = (seed ^ index).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}
