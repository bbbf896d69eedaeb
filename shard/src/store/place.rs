//! Finding a place for a record: reserve in the stream's open region, seal it when it is full, open the next.
//!
//! Called by `Store::append` and by relocation. Upholds I1: a region takes its first byte only after its `RegionOpen` is
//! durable, and after a failed write never again. A caller waits for a free region, but not for ever.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::{Disk, IoError, Runtime};
use futures::channel::oneshot;
use futures::future::{Either, select};

use super::append::{Launch, OpenRegion};
use super::commit::{Change, Decided, Item, encoded};
use super::entry::Place;
use super::footer::DirtyNote;
use super::journal::Journal;
use super::publish::PutMode;
use super::record::{PutRecord, Record};
use super::regions::{RegionState, StreamKind, footprint};
use super::state::{Core, Life, State};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::Generation;

/// How long an append waits for a free region before it is declined.
pub const FULL_WAIT: Duration = Duration::from_secs(2);
/// How long it waits in all, if its region is only being opened: the record of that stands behind everything that was queued
/// before, and a full journal stands still until a checkpoint is written. That says nothing about room on the disk.
const OPENING_WAIT: Duration = Duration::from_secs(30);

/// How often a footer is written, at most, and the pause in between.
const FOOTER_ATTEMPTS: u32 = 3;
const FOOTER_RETRY: Duration = Duration::from_secs(1);

/// A record without a place.
pub struct Draft {
    /// Everything but place and epoch, which are filled in.
    pub put: PutRecord,
    /// The content.
    pub frames: Vec<Bytes>,
    /// How it will be published.
    pub mode: PutMode,
    /// Where it goes.
    pub stream: StreamKind,
}

impl Draft {
    /// Free regions that must remain after this draft opened one: the last is for relocation, which makes more.
    fn spared(&self) -> u32 {
        match self.mode {
            PutMode::Relocation { .. } => 0,
            // A pinned block that found no place where what is kept goes: it moves as dirty ones do.
            PutMode::Reinsertion { .. } if self.stream == StreamKind::Dirty => 0,
            _ => 1,
        }
    }
}

/// What an attempt to place a draft came to.
enum Attempt {
    Placed(oneshot::Receiver<Decided>, Option<Launch>),
    /// No region is open; the one that was, if so, is full.
    NoRegion(Option<OpenRegion>),
}

impl<D: Disk, R: Runtime> Core<D, R> {
    /// Reserves a place for `draft` and queues its record. The receiver tells how its commit ended.
    ///
    /// # Errors
    /// [`StoreError::Full`] after [`FULL_WAIT`] without a free region, or a longer wait for one that is being opened; `Failed` and
    /// `Closing`.
    pub async fn place(self: &Rc<Self>, mut draft: Draft) -> Result<oneshot::Receiver<Decided>, StoreError> {
        let kind = draft.stream;
        let began = self.runtime.now();
        let mut patience = pin!(self.runtime.sleep(FULL_WAIT));
        let mut waiting = None;
        loop {
            let changed = self.signals.regions.listen();
            let now_ns = self.runtime.now().0;
            match self.change(|state| state.attempt(&mut draft, self.superblock.region_bytes, now_ns))? {
                Attempt::Placed(decided, launch) => {
                    if let Some(launch) = launch {
                        self.launch(launch);
                    }
                    self.signals.queue.notify(1);
                    return Ok(decided);
                }
                Attempt::NoRegion(full) => {
                    if let Some(full) = full {
                        self.seal(full);
                    }
                    self.want_region(kind, draft.spared());
                    if self.state.borrow_mut().stream(kind).opening {
                        waiting = None;
                    } else if waiting.is_none() {
                        waiting = Some(Waiting::begin(self));
                    }
                }
            }
            if let Either::Right(_) = select(changed, patience.as_mut()).await {
                let is_opening = self.state.borrow_mut().stream(kind).opening;
                if !is_opening || self.runtime.now().since(began) >= OPENING_WAIT {
                    return Err(StoreError::Full);
                }
                patience.set(self.runtime.sleep(FULL_WAIT));
            }
        }
    }

    /// As [`Core::place`], for what need not be written: `None` as soon as that would make anybody wait.
    ///
    /// # Errors
    /// `Failed` and `Closing`.
    pub async fn place_if_idle(
        self: &Rc<Self>,
        mut draft: Draft,
    ) -> Result<Option<oneshot::Receiver<Decided>>, StoreError> {
        loop {
            let changed = self.signals.regions.listen();
            if self.state.borrow().waiting > 0 {
                return Ok(None);
            }
            let now_ns = self.runtime.now().0;
            match self.change(|state| state.attempt(&mut draft, self.superblock.region_bytes, now_ns))? {
                Attempt::Placed(decided, launch) => {
                    if let Some(launch) = launch {
                        self.launch(launch);
                    }
                    self.signals.queue.notify(1);
                    return Ok(Some(decided));
                }
                Attempt::NoRegion(full) => {
                    if let Some(full) = full {
                        self.seal(full);
                    }
                    self.want_region(draft.stream, draft.spared());
                    if !self.state.borrow_mut().stream(draft.stream).opening {
                        return Ok(None);
                    }
                }
            }
            changed.await;
        }
    }

    /// Writes a batch in a task of its own: whoever waits for it may go away.
    pub fn launch(self: &Rc<Self>, launch: Launch) {
        let core = Rc::clone(self);
        self.runtime.spawn(async move {
            let written = launch.write(&core.disk, &core.slab, core.region_at(launch.region)).await;
            let outcome = written.map_err(Rc::new);
            if let Err(error) = &outcome {
                core.quarantine(launch.region, error);
            }
            launch.batch.resolve(outcome);
        });
    }

    /// Takes a region out of use after a failed write. Good records in it are still served.
    fn quarantine(self: &Rc<Self>, region: u32, error: &Rc<IoError>) {
        tracing::error!(shard = self.superblock.shard, region, %error, "a write failed; the region is quarantined");
        self.mark_quarantined(region);
        let open = self.change(|state| {
            let stream = state.streams.iter_mut().find(|stream| is_open(stream.open.as_ref(), region))?;
            state.regions.at_mut(region).is_footer_due = true;
            stream.open.take()
        });
        if let Some(mut open) = open {
            if let Some(launch) = open.seal_batch() {
                launch.batch.resolve(Err(Rc::clone(error)));
            }
            // What was acknowledged there, deletes above all, is listed like anything else (promise 1, after a disaster).
            self.seal(open);
        }
        self.signals.regions.notify(usize::MAX);
    }

    /// Opens the next region of a stream unless that is under way, and lets the reclaimer look whether it has work.
    fn want_region(self: &Rc<Self>, kind: StreamKind, spared: u32) {
        let target = self.free_target();
        let taken = self.change(|state| {
            let free = state.regions.count_in(RegionState::Free);
            if free <= target {
                self.signals.reclaim.notify(1);
            }
            let stream = state.stream(kind);
            if stream.opening || stream.open.is_some() || free <= spared {
                return None;
            }
            stream.opening = true;
            state.regions.take_free()
        });
        if let Some((region, epoch)) = taken {
            // Nobody waits for the answer: publishing opens the region and tells the appends.
            let record = Record::RegionOpen { region, epoch, stream: kind };
            if canary::is(Canary::RegionReusedEarly) {
                self.change(|state| state.open_region(region, epoch, kind, self.superblock.region_bytes));
                self.signals.regions.notify(usize::MAX);
                return self.queue(Item::applied(&record));
            }
            let change = Change::RegionOpen { region, epoch, stream: kind };
            self.queue(Item { encoded: encoded(&record), change, answer: None });
        }
    }

    /// Launches the last batch of a full region and writes its footer behind it.
    fn seal(self: &Rc<Self>, mut full: OpenRegion) {
        if let Some(launch) = full.seal_batch() {
            self.launch(launch);
        }
        let core = Rc::clone(self);
        self.runtime.spawn(async move { core.seal_written(full).await });
    }

    /// Writes the footer of a region whose last batch is on its way; the region is sealed then. Where that fails for good,
    /// the deletes that it lists are listed in a later one.
    pub async fn seal_written(&self, full: OpenRegion) {
        let mut attempts = 0;
        while let Err(error) = self.write_footer(&full).await {
            attempts += 1;
            let is_over = attempts == FOOTER_ATTEMPTS || self.state.borrow().life != Life::Running;
            tracing::warn!(region = full.region, %error, attempts, is_over, "a footer was not written");
            if is_over {
                // Reclaim will walk the index; a disaster would find no put of this region.
                self.change(|state| state.list_again(&full.footer.records()));
                break;
            }
            self.runtime.sleep(FOOTER_RETRY).await;
        }
        let mut state = self.state.borrow_mut();
        let region = state.regions.at_mut(full.region);
        assert_eq!(region.epoch, full.epoch, "I1: a region is not reused while it is being sealed");
        region.is_footer_due = false;
        if region.state == RegionState::Sealing {
            region.state = RegionState::Sealed;
        }
        self.signals.reclaim.notify(1);
        self.signals.settled.notify(usize::MAX);
    }

    async fn write_footer(&self, full: &OpenRegion) -> Result<(), IoError> {
        let region_end = self.region_at(full.region) + self.superblock.region_bytes;
        let store_id = self.superblock.store_id;
        let note = self.state.borrow().note();
        full.footer.write(&self.disk, &self.slab, store_id, full.epoch, region_end, &note).await
    }
}

impl State {
    fn attempt(&mut self, draft: &mut Draft, region_bytes: u64, now_ns: u64) -> Result<Attempt, StoreError> {
        self.writable()?;
        let len_bytes = draft.put.len_bytes;
        assert!(u64::from(len_bytes) <= region_bytes / 2, "a region holds several blocks, so one block fits into it");
        let kind = draft.stream;
        // What is said of it later follows in the journal.
        let pinning = self.pinning_of(draft.put.identity);
        let Some(open) = self.stream(kind).open.as_mut() else { return Ok(Attempt::NoRegion(None)) };
        let offset = open.next_offset(len_bytes);
        if offset >= region_bytes {
            return Ok(Attempt::NoRegion(self.take_full(kind)));
        }
        draft.put.at = Place::new(open.region, offset);
        draft.put.epoch = open.epoch;
        draft.put.pinning = pinning;
        let record = Record::Put(draft.put.clone());
        let line = encoded(&record);
        // A `Bytes` clone shares the content.
        let Some(batch) = open.reserve(offset, len_bytes, draft.frames.clone(), &line) else {
            return Ok(Attempt::NoRegion(self.take_full(kind)));
        };
        let launch = if open.is_batch_full() { open.seal_batch() } else { None };
        let region = self.regions.at_mut(draft.put.at.region);
        assert_eq!(region.state, RegionState::Open(kind), "I1: only an open region takes bytes");
        region.uncommitted += 1;
        self.counters.appended_bytes += u64::from(len_bytes);
        self.policy.wrote(footprint(len_bytes), now_ns);
        let change = Change::Put { put: draft.put.clone(), mode: draft.mode.clone(), batch };
        let (answer, decided) = oneshot::channel();
        self.queue.push_back(Item { encoded: line, change, answer: Some(answer) });
        Ok(Attempt::Placed(decided, launch))
    }

    /// What is dirty now, for a footer.
    fn note(&self) -> DirtyNote {
        let Journal { published, synced_through, .. } = &self.journal;
        self.dirty.note(published.chain.sequence - 1, *synced_through, Generation(self.next_generation))
    }

    /// Takes the open region of a stream, to be sealed.
    pub fn take_full(&mut self, kind: StreamKind) -> Option<OpenRegion> {
        let full = self.stream(kind).open.take()?;
        let region = self.regions.at_mut(full.region);
        (region.state, region.is_footer_due) = (RegionState::Sealing, true);
        Some(full)
    }
}

/// An append that waits for a region, counted: nothing that need not be written takes one meanwhile.
struct Waiting<D: Disk, R: Runtime>(Rc<Core<D, R>>);

impl<D: Disk, R: Runtime> Waiting<D, R> {
    fn begin(core: &Rc<Core<D, R>>) -> Self {
        core.state.borrow_mut().waiting += 1;
        // Who waits for a region to write again what need not be gives up.
        core.signals.regions.notify(usize::MAX);
        Waiting(Rc::clone(core))
    }
}

impl<D: Disk, R: Runtime> Drop for Waiting<D, R> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().waiting -= 1;
    }
}

fn is_open(open: Option<&OpenRegion>, region: u32) -> bool {
    open.is_some_and(|open| open.region == region)
}
