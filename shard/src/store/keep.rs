//! What stays on disk: which queue a new block goes to, and the re-insertion of used clean blocks, and of pinned ones whatever
//! their use, when their region is reclaimed.
//!
//! Called by `Store::append` and by `reclaim`; the decisions are those of `policy::disk`. A re-insertion is a relocation of a
//! clean block: the same generation at another place, published only if nothing happened to the key meanwhile (I6), and
//! journaled only if no removal of it stands before it in the same frame. It delays nobody: it is given up as soon as an append
//! waits for a region, and then, as whenever it fails, the block is evicted. At most three quarters of a region are written
//! again, so each reclaim frees the rest. None of this delay or limit holds for a pinned block: it is moved as dirty ones are
//! (I14), and its record is durable before its old place counts as empty.

use std::rc::Rc;

use forebay_io::{Disk, Runtime};
use futures::future::join_all;

use super::block::{Appended, NewKind, Pinning};
use super::commit::Item;
use super::entry::{Entry, State as EntryIs};
use super::place::Draft;
use super::publish::PutMode;
use super::reclaim::{Stuck, waves};
use super::record::{PutRecord, Record};
use super::regions::{Epoch, RegionState, StreamKind, footprint};
use super::state::{Core, Life, State};
use crate::error::StoreError;
use crate::key::{Generation, Identity};
use crate::policy::PolicyKey;
use crate::policy::disk::{Admission, Class, Fate, fate, kept_bytes_max};

/// A store with fewer regions can't spare one for a third stream: what is kept goes where new blocks go.
const KEPT_STREAM_REGIONS_MIN: u32 = 12;

impl<D: Disk, R: Runtime> Core<D, R> {
    /// The stream of a new block; `None` if the policy declines it.
    pub fn stream_for(&self, kind: &NewKind, identity: Identity, len_bytes: u32) -> Option<StreamKind> {
        match kind {
            NewKind::Dirty(_) => Some(StreamKind::Dirty),
            NewKind::Clean { .. } => Some(StreamKind::Clean),
            NewKind::Fetched { .. } => {
                let (now_ns, bytes) = (self.runtime.now().0, footprint(len_bytes));
                let admission = {
                    let state = &mut *self.state.borrow_mut();
                    state.policy.admit(identity.spread(), bytes, state.index.count(), now_ns)
                };
                let mut state = self.state.borrow_mut();
                match admission {
                    Admission::To(Class::New) => Some(StreamKind::Clean),
                    Admission::To(Class::Kept) => {
                        state.counters.ghost_hits += 1;
                        Some(self.kept_stream())
                    }
                    Admission::Declined => {
                        state.counters.fills_declined += 1;
                        None
                    }
                }
            }
        }
    }

    fn kept_stream(&self) -> StreamKind {
        let is_large = self.superblock.region_count >= KEPT_STREAM_REGIONS_MIN;
        if is_large { StreamKind::Kept } else { StreamKind::Clean }
    }

    /// Writes used clean blocks of a region under reclaim again, the most used first, as far as the policy allows beside the
    /// `moved_bytes` that had to be moved; evicts the others.
    pub async fn keep_used(self: &Rc<Self>, region: u32, epoch: Epoch, mut used: Vec<Entry>, moved_bytes: u64) {
        used.sort_unstable_by_key(|entry| (std::cmp::Reverse(entry.uses()), entry.identity()));
        let mut left = kept_bytes_max(self.superblock.region_bytes).saturating_sub(moved_bytes);
        let (kept, rest): (Vec<Entry>, Vec<Entry>) = used.into_iter().partition(|entry| {
            let bytes = footprint(entry.len_bytes());
            let fits = bytes <= left;
            left -= if fits { bytes } else { 0 };
            fits
        });
        self.change(|state| state.evict_used(&rest, region, epoch));
        for wave in waves(kept) {
            let bytes = wave.iter().map(|entry| footprint(entry.len_bytes())).sum();
            let now_ns = self.runtime.now().0;
            if self.change(|state| state.may_keep(region, epoch, bytes, now_ns)) {
                join_all(wave.iter().map(|entry| self.reinsert(*entry))).await;
            }
            // Whatever is still there found no place, or could not be read.
            self.change(|state| state.evict_used(&wave, region, epoch));
        }
    }

    /// Appends a pinned clean block again, whatever its use. Nothing happens if it was unpinned, dropped or superseded meanwhile.
    /// One that can't be read goes, durably: the origin has it.
    ///
    /// # Errors
    /// [`Stuck::NoPlace`].
    pub async fn move_pinned(self: &Rc<Self>, entry: Entry) -> Result<(), Stuck> {
        let from = entry.place().expect("a block has a place");
        if self.change(|state| state.pinned_at(&entry)).is_none() {
            return Ok(());
        }
        let located = self.locate_entry(&entry);
        let content = self.read_whole(&located).await;
        self.change(|state| state.unpin(located.pin.region));
        let Some(put) = self.change(|state| state.pinned_at(&entry)) else { return Ok(()) };
        let content = match content {
            Ok(content) => content,
            Err(error) => {
                tracing::warn!(shard = self.superblock.shard, %error, "a pinned block is dropped: it can't be read");
                self.forget(entry.identity(), entry.generation());
                return Ok(());
            }
        };
        assert_eq!(content.len(), put.len_bytes as usize, "what was verified has its length");
        let mode = PutMode::Reinsertion { from };
        let draft = Draft { put, frames: vec![content], mode, stream: self.stream_of_pinned(entry.len_bytes()) };
        let decided = self.place(draft).await.map_err(Stuck::NoPlace)?;
        match decided.await {
            Ok(Ok(Appended::Published)) => self.change(|state| state.counters.pinned_moved += 1),
            // Unpinned, dropped or superseded.
            Ok(Ok(Appended::Invalidated | Appended::Declined)) => {}
            Ok(Err(error)) => return Err(Stuck::NoPlace(error)),
            Err(_) => return Err(Stuck::NoPlace(StoreError::Closing)),
        }
        Ok(())
    }

    /// Where a pinned block is moved to: to what is kept, unless only relocation may open another region for it.
    fn stream_of_pinned(&self, len_bytes: u32) -> StreamKind {
        let kept = self.kept_stream();
        let mut state = self.state.borrow_mut();
        let is_spare = state.regions.count_in(RegionState::Free) > 1;
        let has_room = state.stream(kept).open.as_ref().is_some_and(|open| open.has_room(len_bytes));
        if has_room || is_spare { kept } else { StreamKind::Dirty }
    }

    /// Drops a clean entry of this very generation at once: its bytes are gone. Journaled with a later commit.
    pub fn forget(&self, identity: Identity, generation: Generation) {
        let is_dropped = self.change(|state| {
            let current = state.index.find(identity).filter(|entry| entry.generation() == generation);
            let is_pinned = state.pinning_of(identity) == Pinning::Pinned;
            let is_dropped = current.is_some() && state.publish_remove(identity, generation);
            state.counters.pins_lost += u64::from(is_dropped && is_pinned);
            is_dropped
        });
        if is_dropped {
            self.queue(Item::applied(&Record::Remove { identity, up_to: generation }));
        }
    }

    async fn reinsert(self: &Rc<Self>, entry: Entry) {
        if self.change(|state| state.clean_at(&entry)).is_none() {
            return;
        }
        let located = self.locate_entry(&entry);
        let content = self.read_whole(&located).await;
        self.change(|state| state.unpin(located.pin.region));
        let Some(put) = self.change(|state| state.clean_at(&entry)) else { return };
        let content = match content {
            Ok(content) => content,
            Err(error) => {
                tracing::warn!(shard = self.superblock.shard, %error, "a clean block can't be kept: it can't be read");
                return;
            }
        };
        assert_eq!(content.len(), put.len_bytes as usize, "what was verified has its length");
        let from = entry.place().expect("a block has a place");
        let (len_bytes, mode) = (put.len_bytes, PutMode::Reinsertion { from });
        let draft = Draft { put, frames: vec![content], mode, stream: self.kept_stream() };
        let Ok(Some(decided)) = self.place_if_idle(draft).await else { return };
        let Ok(Ok(appended)) = decided.await else { return };
        self.change(|state| match appended {
            Appended::Published => {
                state.counters.reinserted += 1;
                state.counters.reinserted_bytes += u64::from(len_bytes);
            }
            Appended::Invalidated | Appended::Declined => drop(state.clean_at(&entry)),
        });
    }
}

impl State {
    /// Whether the policy keeps a clean block when its region is reclaimed. What is pinned is not its affair.
    pub fn is_kept(&self, entry: &Entry) -> bool {
        let class = entry.place().map(|at| self.regions.at(at.region).class);
        let is_used = class.is_some_and(|class| fate(class, entry.uses()) != Fate::Goes);
        is_used && entry.pinning() == Pinning::Unpinned
    }

    /// Whether `bytes` of a region may be written again: nobody waits for room, and the policy affords it.
    fn may_keep(&mut self, region: u32, epoch: Epoch, bytes: u64, now_ns: u64) -> bool {
        let is_idle = self.waiting == 0 && self.life == Life::Running;
        is_idle && self.is_reclaiming(region, epoch) && self.policy.affords(bytes, now_ns)
    }

    /// The record of a clean block if it still is this one at this place; else counts by what it was overtaken.
    fn clean_at(&mut self, entry: &Entry) -> Option<PutRecord> {
        let at = entry.place()?;
        let current = self.index.find(entry.identity());
        match current {
            Some(current) if current.is_clean_at(entry.generation(), at) => match self.record_of(&current) {
                Record::Put(put) => return Some(put),
                _ => unreachable!("a block's record is a put"),
            },
            Some(current) if current.state() != EntryIs::Tombstone && current.generation() > entry.generation() => {
                self.counters.reinsertions_overwritten += 1;
            }
            _ => self.counters.reinsertions_deleted += 1,
        }
        None
    }

    /// The record of a clean block that is to be moved because it is pinned, if it still is this one, and pinned.
    fn pinned_at(&self, entry: &Entry) -> Option<PutRecord> {
        let at = entry.place()?;
        let current = self.index.find(entry.identity())?;
        let is_it = current.is_clean_at(entry.generation(), at) && current.pinning() == Pinning::Pinned;
        match is_it.then(|| self.record_of(&current))? {
            Record::Put(put) => Some(put),
            _ => unreachable!("a block's record is a put"),
        }
    }

    /// Evicts what is still there of these, and was not pinned meanwhile.
    fn evict_used(&mut self, entries: &[Entry], region: u32, epoch: Epoch) {
        for entry in entries {
            let Some(at) = entry.place() else { continue };
            let is_it = |current: &Entry| current.is_clean_at(entry.generation(), at);
            let current = self.index.find(entry.identity()).filter(is_it);
            if let Some(current) = current.filter(|current| current.pinning() == Pinning::Unpinned)
                && self.is_reclaiming(region, epoch)
            {
                self.evict(current);
                self.counters.reinsertions_forgone += 1;
            }
        }
    }
}
