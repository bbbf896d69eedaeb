//! What a set of disks asks of one store beside the verbs: to give up entries that belong elsewhere, and to keep the shard's
//! one sequence.
//!
//! Called by `disks` when a shard opens and its set of disks has changed. What is given up is gone durably when this
//! returns: both checkpoints are written anew, so that whichever slot a later recovery reads, it never finds those records
//! again (I13). A dirty entry goes only if a newer one of its key lies on another disk (I4); a pinned one likewise (I14).

use forebay_io::{Disk, Runtime};

use super::commit::Item;
use super::entry::{Entry, State as EntryIs};
use super::record::Record;
use super::{Pinning, Store};
use crate::error::StoreError;
use crate::key::{Generation, Identity};

/// Entries looked at while the state is borrowed.
const SLICE_COUNT: usize = 1024;

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stays.
    Keep,
    /// Its key is another disk's: what the origin has goes, what is dirty or pinned stays and is told.
    Stray,
    /// A newer entry of its key lies on another disk: it goes, dirty or not.
    Stale,
}

/// What [`Store::sift`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sifted {
    /// Clean entries given up because they belong elsewhere.
    pub(crate) moved: u64,
    /// Entries given up because a newer one of their key lies elsewhere.
    pub(crate) stale: u64,
    /// Dirty and pinned entries that belong elsewhere, and stay until they were flushed and unpinned.
    pub(crate) strays: Vec<Identity>,
}

/// Whether an entry that belongs elsewhere must not go yet: it is dirty (I4) or pinned (I14).
fn stays(entry: &Entry) -> bool {
    entry.state() != EntryIs::Clean || entry.pinning() == Pinning::Pinned
}

impl<D: Disk, R: Runtime> Store<D, R> {
    /// Judges every entry, gives up what is to go, durably.
    ///
    /// # Errors
    /// What the disk said: what was given up in memory may be found again by the next recovery.
    pub(crate) async fn sift(&self, judge: impl Fn(Identity, Generation) -> Verdict) -> Result<Sifted, StoreError> {
        let mut sifted = Sifted::default();
        let mut after: Option<Identity> = None;
        loop {
            let slice = self.core.state.borrow().index.slice_after(after, SLICE_COUNT);
            let Some(last) = slice.last() else { break };
            after = Some(last.identity());
            for entry in &slice {
                // Not while the state is borrowed: the judge asks the other stores, and may ask this one.
                match judge(entry.identity(), entry.generation()) {
                    Verdict::Keep => {}
                    Verdict::Stray if stays(entry) => sifted.strays.push(entry.identity()),
                    Verdict::Stray => sifted.moved += u64::from(self.give_up(entry)),
                    Verdict::Stale => sifted.stale += u64::from(self.give_up(entry)),
                }
            }
            self.core.runtime.yield_now().await;
        }
        if sifted.moved + sifted.stale > 0 {
            self.core.checkpoint().await?;
            self.core.checkpoint().await?;
        }
        Ok(sifted)
    }

    /// Takes an entry out, if it is still that one.
    fn give_up(&self, entry: &Entry) -> bool {
        let (identity, generation) = (entry.identity(), entry.generation());
        let was_dirty = self.core.change(|state| state.mark_flushed(identity, generation));
        if was_dirty {
            // Footers name it as dirty: after a disaster this mark settles it.
            self.core.queue(Item::applied(&Record::Flushed { identity, generation }));
        }
        let was_there = self.core.change(|state| {
            let is_current = state.index.find(identity).is_some_and(|current| current.generation() == generation);
            is_current && state.publish_remove(identity, generation)
        });
        was_dirty || was_there
    }

    /// The next number that [`Store::next_generation`] would draw.
    pub(crate) fn upcoming_generation(&self) -> u64 {
        self.core.state.borrow().next_generation
    }

    /// Numbers below `to` were drawn for other disks of the shard: they are not drawn again.
    pub(crate) fn raise_generation(&self, to: u64) {
        let mut state = self.core.state.borrow_mut();
        state.next_generation = state.next_generation.max(to);
    }

    /// Which put or delete of a key is dirty here.
    pub(crate) fn dirty_generation(&self, identity: Identity) -> Option<Generation> {
        self.core.state.borrow().dirty.get(&identity).map(|record| record.generation)
    }

    /// What all regions hold, in bytes.
    pub(crate) fn regions_bytes(&self) -> u64 {
        u64::from(self.core.superblock.region_count) * self.core.superblock.region_bytes
    }

    /// Calls `visit` with every entry's identity. Walks everything: for checks.
    pub(crate) fn visit(&self, mut visit: impl FnMut(Identity)) {
        let mut after: Option<Identity> = None;
        loop {
            let slice = self.core.state.borrow().index.slice_after(after, SLICE_COUNT);
            let Some(last) = slice.last() else { return };
            after = Some(last.identity());
            slice.iter().for_each(|entry| visit(entry.identity()));
        }
    }
}
