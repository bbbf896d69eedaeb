//! Reclaim: whole regions become free again, ahead of need.
//!
//! One task. It takes the oldest sealed region of the queue whose turn it is (see `regions`), evicts its clean entries but for
//! those that the policy keeps (`keep`), appends its dirty and its pinned ones again with the same generation, and leaves the
//! region to free itself when no entry and no reader is left. Upholds I4 and I14 (dirty and pinned blocks are moved, never
//! evicted) and I7. The eviction itself is not journaled: the `RegionOpen` that reuses the region, durable
//! behind everything that emptied it, invalidates whatever recovery would still find there.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::{Disk, Runtime};
use futures::future::{join_all, select};

use super::block::{Appended, Pinning};
use super::entry::{Entry, Place, State as EntryIs};
use super::footer;
use super::place::Draft;
use super::publish::PutMode;
use super::record::Record;
use super::regions::{Epoch, RegionState, StreamKind, footprint};
use super::state::{Core, Life, State};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::Generation;
use crate::read::ReadError;

/// Identities looked up while the state is borrowed.
const SLICE_COUNT: usize = 256;
/// Dirty blocks moved at once: few enough to leave the device to the requests, enough to share a commit.
const MOVES_MAX: usize = 64;
const MOVE_BYTES_MAX: u64 = 16 << 20;
/// After a region could not be reclaimed.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How the reclaim of one region went.
enum Reclaimed {
    /// It is free, or will be with its last pin.
    Emptied,
    /// Its dirty blocks found no place now; it is sealed again.
    Postponed,
    /// A dirty block in it can't be read: it is quarantined, nothing in it is lost by us.
    Rotten,
}

impl<D: Disk, R: Runtime> Core<D, R> {
    /// The reclaimer's task: ends when the store closes.
    pub async fn run_reclaimer(self: Rc<Self>) {
        loop {
            let changed = self.signals.reclaim.listen();
            let candidate = {
                let state = self.state.borrow();
                if matches!(state.life, Life::Closing | Life::Stopped) {
                    return;
                }
                // With one free region only relocation may open it, whatever still waits for its pins.
                let is_starved = state.regions.count_in(RegionState::Free) <= 1;
                let is_needed =
                    state.life == Life::Running && (is_starved || state.regions_to_come() < self.free_target());
                is_needed.then(|| state.regions.reclaim_candidate(self.superblock.region_bytes)).flatten()
            };
            let Some(region) = candidate else {
                changed.await;
                continue;
            };
            match self.reclaim(region).await {
                Reclaimed::Emptied | Reclaimed::Rotten => {}
                Reclaimed::Postponed => {
                    let pause = std::pin::pin!(self.runtime.sleep(RETRY_AFTER));
                    select(changed, pause).await;
                }
            }
        }
    }

    async fn reclaim(self: &Rc<Self>, region: u32) -> Reclaimed {
        let (epoch, is_unreadable) = self.change(|state| {
            let at = state.regions.at_mut(region);
            assert!(at.state == RegionState::Sealed && at.uncommitted == 0, "I1: only a decided region is reclaimed");
            at.state = RegionState::Reclaiming;
            (at.epoch, at.is_footer_unreadable)
        });
        let region_at = self.region_at(region);
        let region_end = region_at + self.superblock.region_bytes;
        let listed = match is_unreadable {
            true => Ok(None),
            false => footer::read(&self.slab, self.superblock.store_id, region_at, region_end).await,
        };
        let (mut staying, mut used) = match listed {
            Ok(Some(footer)) if footer.epoch == epoch => {
                self.change(|state| state.list_again(&footer.records));
                self.evict_unused(region, epoch, &footer.records).await
            }
            _ => {
                self.change(|state| {
                    state.regions.at_mut(region).is_footer_unreadable |= listed.is_err();
                    state.counters.footers_missing += 1;
                    state.list_all_again();
                });
                (self.evict_scanning(region, epoch).await, Vec::new())
            }
        };
        let moved_bytes = staying.iter().map(|entry| footprint(entry.len_bytes())).sum();
        let has_dirty = staying.iter().any(|entry| entry.state() == EntryIs::Dirty);
        self.change(|state| state.counters.reclaimed_dirty += u64::from(has_dirty));
        loop {
            for wave in waves(std::mem::take(&mut staying)) {
                match self.move_all(region, epoch, wave).await {
                    Ok(()) => {}
                    Err(reclaimed) => return reclaimed,
                }
            }
            self.keep_used(region, epoch, std::mem::take(&mut used), moved_bytes).await;
            self.change(|state| state.settle(region));
            let (live, pins) = {
                let state = self.state.borrow();
                (state.regions.at(region).live, state.regions.at(region).pins)
            };
            if live == 0 || !self.state.borrow().is_reclaiming(region, epoch) {
                self.change(|state| state.counters.reclaims_pinned += u64::from(pins > 0));
                return Reclaimed::Emptied;
            }
            // A footer that misses entries, or blocks that were flushed, pinned or unpinned meanwhile.
            staying = self.evict_scanning(region, epoch).await;
            self.runtime.yield_now().await;
        }
    }

    /// Evicts of the clean entries among those a footer lists what was not used, returns those that have to stay (dirty, pinned)
    /// and the used ones.
    async fn evict_unused(&self, region: u32, epoch: Epoch, listed: &[Record]) -> (Vec<Entry>, Vec<Entry>) {
        let (mut staying, mut used) = (Vec::new(), Vec::new());
        for slice in listed.chunks(SLICE_COUNT) {
            // A key written twice is listed twice: each is looked up when its turn comes.
            self.change(|state| {
                for record in slice {
                    let Record::Put(put) = record else { continue };
                    let current = state.index.find(put.identity);
                    match current.filter(|entry| is_clean_in(entry, region) && state.is_kept(entry)) {
                        Some(entry) => used.push(entry),
                        None => state.evict_among(current.as_slice(), region, epoch, &mut staying),
                    }
                }
            });
            self.runtime.yield_now().await;
        }
        for entries in [&mut staying, &mut used] {
            entries.sort_unstable_by_key(Entry::identity);
            entries.dedup_by_key(|entry| entry.identity());
        }
        (staying, used)
    }

    /// The same without a footer: by walking the index.
    pub async fn evict_scanning(&self, region: u32, epoch: Epoch) -> Vec<Entry> {
        let (mut staying, mut after) = (Vec::new(), None);
        loop {
            let is_done = self.change(|state| {
                let slice = state.index.slice_after(after, SLICE_COUNT * 4);
                after = slice.last().map(Entry::identity);
                state.evict_among(&slice, region, epoch, &mut staying);
                slice.is_empty()
                    || !state.may_empty(region, epoch)
                    || state.regions.at(region).live as usize == staying.len()
            });
            if is_done {
                return staying;
            }
            self.runtime.yield_now().await;
        }
    }

    async fn move_all(self: &Rc<Self>, region: u32, epoch: Epoch, wave: Vec<Entry>) -> Result<(), Reclaimed> {
        let moves = wave.into_iter().map(async |entry| match entry.state() {
            EntryIs::Clean => self.move_pinned(entry).await,
            EntryIs::Dirty | EntryIs::Tombstone => self.move_dirty(entry).await,
        });
        let mut worst = Ok(());
        for moved in join_all(moves).await {
            match moved {
                Ok(()) => {}
                Err(Stuck::Unreadable(error)) => {
                    tracing::error!(shard = self.superblock.shard, region, %error, "a dirty block can't be read");
                    if self.state.borrow().may_empty(region, epoch) {
                        self.mark_quarantined(region);
                    }
                    worst = Err(Reclaimed::Rotten);
                }
                Err(Stuck::NoPlace(_)) if worst.is_ok() => {
                    self.change(|state| state.leave(region, epoch, RegionState::Sealed));
                    worst = Err(Reclaimed::Postponed);
                }
                Err(Stuck::NoPlace(_)) => {}
            }
        }
        worst
    }

    /// Appends a dirty block again. Nothing happens if it was flushed or superseded meanwhile.
    async fn move_dirty(self: &Rc<Self>, entry: Entry) -> Result<(), Stuck> {
        let from = entry.place().expect("a block has a place");
        let Some(put) = self.state.borrow().dirty_at(&entry, from) else {
            self.change(|state| state.count_overtaken(&entry));
            return Ok(());
        };
        let Record::Put(put) = put else { return Ok(()) };
        let located = self.locate_entry(&entry);
        let content = self.read_whole(&located).await;
        self.change(|state| state.unpin(located.pin.region));
        let content = match content {
            Ok(content) => content,
            // Superseded and rotten is of no interest any more.
            Err(_) if self.state.borrow().dirty_at(&entry, from).is_none() => {
                self.change(|state| state.count_overtaken(&entry));
                return Ok(());
            }
            Err(error) => return Err(Stuck::Unreadable(error)),
        };
        assert_eq!(content.len(), put.len_bytes as usize, "what was verified has its length");
        let frames: Vec<Bytes> = vec![content];
        let draft = Draft { put, frames, mode: PutMode::Relocation { from }, stream: StreamKind::Dirty };
        let decided = self.place(draft).await.map_err(Stuck::NoPlace)?;
        match decided.await {
            Ok(Ok(Appended::Published)) => self.change(|state| state.counters.relocated += 1),
            Ok(Ok(Appended::Invalidated | Appended::Declined)) => self.change(|state| state.count_overtaken(&entry)),
            Ok(Err(error)) => return Err(Stuck::NoPlace(error)),
            Err(_) => return Err(Stuck::NoPlace(StoreError::Closing)),
        }
        Ok(())
    }
}

/// Why a block that has to be moved stays where it is.
pub enum Stuck {
    /// It is dirty, and nobody else has its bytes.
    Unreadable(ReadError),
    /// There is no room, or the store takes no writes.
    NoPlace(#[allow(dead_code)] StoreError),
}

impl State {
    /// Regions that are free or only wait for a pin.
    fn regions_to_come(&self) -> u32 {
        let comes = |state, live| state == RegionState::Free || (state == RegionState::Reclaiming && live == 0);
        self.regions.iter().filter(|(_, region)| comes(region.state, region.live)).count() as u32
    }

    /// Whether the region is still the one whose reclaim began. Its last entries may go by themselves while the
    /// reclaimer waits; it is then free, and soon somebody else's.
    pub fn is_reclaiming(&self, region: u32, epoch: Epoch) -> bool {
        let at = self.regions.at(region);
        at.state == RegionState::Reclaiming && at.epoch == epoch
    }

    /// Whether its clean entries may go: reclaim is at work on it, or the prober on a quarantined one.
    fn may_empty(&self, region: u32, epoch: Epoch) -> bool {
        let at = self.regions.at(region);
        matches!(at.state, RegionState::Reclaiming | RegionState::Quarantined) && at.epoch == epoch
    }

    /// Gives up the reclaim of a region (I1: only if it still is under this reclaim).
    fn leave(&mut self, region: u32, epoch: Epoch, next: RegionState) {
        if self.is_reclaiming(region, epoch) {
            self.regions.at_mut(region).state = next;
        }
    }

    fn evict_among(&mut self, entries: &[Entry], region: u32, epoch: Epoch, staying: &mut Vec<Entry>) {
        if !self.may_empty(region, epoch) {
            return;
        }
        for entry in entries.iter().filter(|entry| entry.place().is_some_and(|at| at.region == region)) {
            match entry.state() {
                EntryIs::Clean if entry.pinning() == Pinning::Unpinned => self.evict(*entry),
                EntryIs::Clean if canary::is(Canary::EvictPinned) => self.take_out(*entry),
                EntryIs::Dirty if canary::is(Canary::EvictDirty) => self.take_out(*entry),
                EntryIs::Clean | EntryIs::Dirty => staying.push(*entry),
                EntryIs::Tombstone => unreachable!("a tombstone has no place"),
            }
        }
    }

    /// Counts by what a block was overtaken that was to be moved.
    fn count_overtaken(&mut self, entry: &Entry) {
        let counters = &mut self.counters;
        match self.index.find(entry.identity()) {
            Some(current) if current.state() == EntryIs::Tombstone => counters.relocations_deleted += 1,
            Some(current) if current.generation() > entry.generation() => counters.relocations_overwritten += 1,
            // A tombstone that was flushed meanwhile leaves nothing behind, as a flush and an eviction do.
            Some(_) | None => counters.relocations_flushed += 1,
        }
    }

    /// The record of a dirty block if it still is this one at this place.
    fn dirty_at(&self, entry: &Entry, from: Place) -> Option<Record> {
        let current = self.index.find(entry.identity())?;
        let same: (Generation, Option<Place>) = (entry.generation(), Some(from));
        let is_same = (current.generation(), current.place()) == same && current.state() == EntryIs::Dirty;
        is_same.then(|| self.record_of(&current))
    }
}

fn is_clean_in(entry: &Entry, region: u32) -> bool {
    entry.state() == EntryIs::Clean && entry.place().is_some_and(|at| at.region == region)
}

/// Cuts the work so that only so many blocks and bytes are in memory at once.
pub fn waves(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut waves: Vec<Vec<Entry>> = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += u64::from(entry.len_bytes());
        match waves.last_mut() {
            Some(wave) if wave.len() < MOVES_MAX && bytes <= MOVE_BYTES_MAX => wave.push(entry),
            _ => {
                bytes = u64::from(entry.len_bytes());
                waves.push(vec![entry]);
            }
        }
    }
    waves
}
