//! The group committer: one task, one commit in flight, the next group gathers meanwhile.
//!
//! Order in one commit: payloads written, one journal frame written, one sync, publish, answer. Upholds I2 and I3 (nobody
//! is told and nothing is published before that), I6 (a fill's validity is looked at before its record is journaled and
//! again at publish) and, with `publish`, that an older generation never replaces a newer one.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use forebay_io::frame::frame_bytes;
use forebay_io::{Disk, DiskFile, IoError, Runtime};
use futures::channel::oneshot;
use futures::future::{Either, select};
use std::collections::HashSet;

use super::append::{Batch, OpenRegion};
use super::block::{Appended, DirtyRecord, Pinning};
use super::entry::State as EntryIs;
use super::journal;
use super::publish::PutMode;
use super::record::{PutRecord, Record};
use super::regions::{Epoch, StreamKind};
use super::state::{Core, Life, State, repeated};
use crate::canary::{self, Canary};
use crate::config::SyncMode;
use crate::error::StoreError;
use crate::key::{Generation, Identity};

/// A sync is due when frames that are not durable yet name this many payload bytes: recovery would read them all.
const IN_DOUBT_BYTES_MAX: u64 = 64 << 20;
/// After so long without work a synced frame is called durable by one of its own.
const CLAIM_AFTER: Duration = Duration::from_millis(100);

/// How a commit ended for one item.
pub type Decided = Result<Appended, StoreError>;

/// One record on its way to the journal.
pub struct Item {
    /// The record.
    pub encoded: Vec<u8>,
    /// What publishing it means.
    pub change: Change,
    /// Who waits. Whether somebody does also says whether the group must be synced, except for fills.
    pub answer: Option<oneshot::Sender<Decided>>,
}

/// What publishing a record means.
pub enum Change {
    /// A block.
    Put {
        /// Where it is.
        put: PutRecord,
        /// How it is published.
        mode: PutMode,
        /// Its bytes.
        batch: Rc<Batch>,
    },
    /// A delete.
    Tombstone(Rc<DirtyRecord>),
    /// Clean entries up to this generation go.
    Remove {
        /// Whose.
        identity: Identity,
        /// The newest that goes.
        up_to: Generation,
    },
    /// It was applied when it was queued.
    Applied,
    /// It was, and somebody waits until it is durable.
    Awaited,
    /// A region opens.
    RegionOpen {
        /// Which.
        region: u32,
        /// Its new epoch.
        epoch: Epoch,
        /// For whom.
        stream: StreamKind,
    },
    /// A quarantined region was emptied.
    Emptied {
        /// Which.
        region: u32,
        /// Its new epoch.
        epoch: Epoch,
    },
}

impl Item {
    /// An item and the receiver of its answer.
    pub fn awaited(record: &Record, change: Change) -> (Item, oneshot::Receiver<Decided>) {
        let (answer, decided) = oneshot::channel();
        (Item { encoded: encoded(record), change, answer: Some(answer) }, decided)
    }

    /// An item for which nobody waits: it was applied already.
    pub fn applied(record: &Record) -> Item {
        Item { encoded: encoded(record), change: Change::Applied, answer: None }
    }

    fn needs_sync(&self) -> bool {
        match &self.change {
            Change::Put { mode: PutMode::Fill(_), .. } | Change::Applied => false,
            // Its old place is given up as soon as this is published: that a pinned block is at the new one must be durable then.
            Change::Put { mode: PutMode::Reinsertion { .. }, put, .. } => put.pinning == Pinning::Pinned,
            _ => true,
        }
    }
}

/// The record's bytes.
pub fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    record.encode(&mut bytes);
    bytes
}

impl<D: Disk, R: Runtime> Core<D, R> {
    /// Queues an item for the next commit.
    pub fn queue(&self, item: Item) {
        self.state.borrow_mut().queue.push_back(item);
        self.signals.queue.notify(1);
    }

    /// The committer's task: ends when the store closes and the queue is empty.
    pub async fn run_committer(self: Rc<Self>) {
        loop {
            let listener = self.signals.queue.listen();
            let (is_idle, life) = {
                let state = self.state.borrow();
                (state.queue.is_empty(), state.life)
            };
            if !is_idle {
                drop(listener);
                if life == Life::Running && !self.config.commit_delay.is_zero() {
                    self.runtime.sleep(self.config.commit_delay).await;
                }
                let _commit = self.committing.lock().await;
                let group = self.change(State::take_group);
                self.commit(group).await;
            } else if matches!(life, Life::Closing | Life::Stopped) {
                break;
            } else if life == Life::Running && self.state.borrow().journal.has_unclaimed() {
                let pause = pin!(self.runtime.sleep(CLAIM_AFTER));
                if let Either::Right(_) = select(listener, pause).await {
                    let _commit = self.committing.lock().await;
                    self.claim().await;
                }
            } else {
                listener.await;
            }
        }
        self.state.borrow_mut().life = Life::Stopped;
        self.signals.notify_all();
    }

    async fn commit(self: &Rc<Self>, group: Vec<Item>) {
        let group = self.payloads_written(group).await;
        if group.is_empty() {
            return;
        }
        let payload_bytes_max = group.iter().map(|item| item.encoded.len()).sum();
        self.wait_for_journal(payload_bytes_max).await;
        if matches!(self.state.borrow().life, Life::Failed | Life::Stopped) {
            return self.decide_all(group, || StoreError::Failed);
        }
        let (group, payload) = self.change(|state| state.compose(group));
        if group.is_empty() {
            return;
        }
        let needs_sync = group.iter().any(Item::needs_sync);
        match self.journaled(&payload, group.len() as u32, needs_sync).await {
            // Another sync failed beside this commit: nothing is published that may be in doubt.
            Ok(()) if matches!(self.state.borrow().life, Life::Failed | Life::Stopped) => {
                self.decide_all(group, || StoreError::Disk(self.lost_write()));
            }
            Ok(()) => self.publish(group),
            Err(error) => {
                self.fail(&error);
                self.decide_all(group, || StoreError::Disk(repeated(&error)));
            }
        }
    }

    /// Launches what the group still gathers and waits for all of its payloads; what could not be written is answered.
    async fn payloads_written(self: &Rc<Self>, group: Vec<Item>) -> Vec<Item> {
        let has_puts = group.iter().any(|item| matches!(item.change, Change::Put { .. }));
        if has_puts {
            let launches = self.change(|state| {
                let open = state.streams.iter_mut().filter_map(|stream| stream.open.as_mut());
                open.filter_map(OpenRegion::seal_batch).collect::<Vec<_>>()
            });
            launches.into_iter().for_each(|launch| self.launch(launch));
        }
        let mut written = Vec::with_capacity(group.len());
        for item in group {
            let outcome = match &item.change {
                Change::Put { batch, .. } if !canary::is(Canary::PublishBeforeWrite) => batch.written().await,
                _ => Ok(()),
            };
            match outcome {
                Ok(()) => written.push(item),
                Err(error) => self.change(|state| state.decide(item, Err(StoreError::NotWritten(repeated(&error))))),
            }
        }
        written
    }

    /// Waits until a frame with this payload fits; only a checkpoint makes room.
    async fn wait_for_journal(&self, payload_bytes: usize) {
        loop {
            let freed = self.signals.journal.listen();
            {
                let state = self.state.borrow();
                if state.journal.fits(payload_bytes) || matches!(state.life, Life::Failed | Life::Stopped) {
                    break;
                }
            }
            self.signals.checkpoint.notify(1);
            freed.await;
        }
    }

    /// Writes the frame and syncs, if anybody waits for that or too much is in doubt.
    async fn journaled(&self, payload: &[u8], record_count: u32, needs_sync: bool) -> Result<(), IoError> {
        let mut frame = self.disk.buffer(frame_bytes(payload.len())).await;
        let (ring, at, is_checkpoint_due) = {
            let mut state = self.state.borrow_mut();
            let laps_before = state.journal.laps();
            let at = state.journal.append(self.superblock.store_id, payload, record_count, &mut frame);
            state.counters.commits += u64::from(record_count > 0);
            state.counters.journal_wraps += state.journal.laps() - laps_before;
            (state.journal.ring, at, state.journal.is_checkpoint_due())
        };
        if is_checkpoint_due {
            self.signals.checkpoint.notify(1);
        }
        journal::write(&self.disk, &self.slab, ring, at.position, frame).await?;
        let is_due = needs_sync || self.state.borrow().journal.in_doubt_bytes > IN_DOUBT_BYTES_MAX;
        if canary::is(Canary::AckBeforeSync) {
            drop(self.slab.sync());
        } else if is_due && self.config.sync == SyncMode::Always {
            self.sync_slab().await?;
            let mut state = self.state.borrow_mut();
            state.journal.synced_through = at.chain.sequence;
            state.journal.in_doubt_bytes = 0;
            state.unsynced_regions.clear();
            state.counters.syncs += 1;
        }
        Ok(())
    }

    /// Writes an empty frame that calls the last synced one durable. Without it the last commit before a pause would stay
    /// in doubt: if its payload rotted, recovery would take it for torn and bring older bytes back (promise 3).
    async fn claim(&self) {
        if self.state.borrow().life != Life::Running {
            return;
        }
        if !self.state.borrow().journal.fits(0) {
            // A checkpoint settles it as well.
            self.signals.checkpoint.notify(1);
            return;
        }
        match self.journaled(&[], 0, false).await {
            Ok(()) => self.change(|state| state.journal.published = state.journal.head),
            Err(error) => self.fail(&error),
        }
    }

    fn publish(&self, group: Vec<Item>) {
        self.change(|state| {
            for item in group {
                state.publish(item, self.superblock.region_bytes);
            }
            state.journal.published = state.journal.head;
        });
        self.signals.regions.notify(usize::MAX);
    }

    fn decide_all(&self, group: Vec<Item>, error: impl Fn() -> StoreError) {
        self.change(|state| group.into_iter().for_each(|item| state.decide(item, Err(error()))));
        self.signals.regions.notify(usize::MAX);
    }
}

impl State {
    /// Takes the items of the next frame off the queue: at least one, at most what one frame holds.
    fn take_group(&mut self) -> Vec<Item> {
        let payload_bytes_max = self.journal.payload_bytes_max();
        let mut payload_bytes = 0;
        let fitting = self.queue.iter().take_while(|item| {
            payload_bytes += item.encoded.len();
            payload_bytes <= payload_bytes_max
        });
        let count = fitting.count();
        assert!(count > 0, "the longest record fits into a frame");
        self.queue.drain(..count).collect()
    }

    /// Drops what may not be published any more (I6) and joins the rest into one payload.
    fn compose(&mut self, group: Vec<Item>) -> (Vec<Item>, Vec<u8>) {
        let mut kept = Vec::with_capacity(group.len());
        let mut payload = Vec::new();
        let mut dirty_here: HashSet<Identity> = HashSet::new();
        let mut removed_here: HashSet<Identity> = HashSet::new();
        for item in group {
            let is_admitted = match &item.change {
                Change::Put { put, mode, .. } => {
                    let is_over_dirty = matches!(mode, PutMode::Fill(_)) && dirty_here.contains(&put.identity);
                    let moves_clean = matches!(mode, PutMode::Relocation { .. })
                        && self.index.find(put.identity).is_none_or(|entry| entry.state() != EntryIs::Dirty);
                    // Behind a removal that is not published yet recovery would bring it back (I6).
                    let is_removed =
                        matches!(mode, PutMode::Reinsertion { .. }) && removed_here.contains(&put.identity);
                    !is_over_dirty && !moves_clean && !is_removed && self.admits(put.identity, put.generation, mode)
                }
                _ => true,
            };
            if !is_admitted {
                self.decide(item, Ok(Appended::Invalidated));
                continue;
            }
            match &item.change {
                Change::Put { put, mode, .. } => {
                    self.journal.in_doubt_bytes += u64::from(put.len_bytes);
                    if matches!(mode, PutMode::Dirty(_)) {
                        dirty_here.insert(put.identity);
                    }
                }
                Change::Tombstone(record) => {
                    dirty_here.insert(record.identity);
                }
                Change::Remove { identity, .. } => {
                    removed_here.insert(*identity);
                }
                _ => {}
            }
            payload.extend_from_slice(&item.encoded);
            kept.push(item);
        }
        (kept, payload)
    }

    fn publish(&mut self, item: Item, region_bytes: u64) {
        let appended = match &item.change {
            Change::Put { put, mode, .. } => {
                let is_published = self.publish_put(put, mode);
                if is_published && matches!(mode, PutMode::Fill(_) | PutMode::Reinsertion { .. }) {
                    self.unsynced_regions.insert(put.at.region);
                }
                let is_clean = matches!(mode, PutMode::Fill(_) | PutMode::Confirmed(_) | PutMode::Reinsertion { .. });
                if !is_published && is_clean {
                    // It is in the journal; if nothing newer follows there, recovery must not bring it back (I6).
                    let record = Record::Remove { identity: put.identity, up_to: put.generation };
                    self.queue.push_back(Item::applied(&record));
                }
                is_published
            }
            Change::Tombstone(record) => self.publish_tombstone(Rc::clone(record)),
            Change::Remove { identity, up_to } => self.publish_remove(*identity, *up_to),
            Change::Applied | Change::Awaited => true,
            Change::RegionOpen { region, epoch, stream } => {
                self.open_region(*region, *epoch, *stream, region_bytes);
                true
            }
            Change::Emptied { region, epoch } => {
                self.regions.emptied(*region, *epoch);
                true
            }
        };
        self.decide(item, Ok(if appended { Appended::Published } else { Appended::Invalidated }));
    }

    /// From now on the stream appends to this region.
    pub fn open_region(&mut self, region: u32, epoch: Epoch, stream: StreamKind, region_bytes: u64) {
        self.regions.opened(region, epoch, stream);
        let open = OpenRegion::new(region, epoch, region_bytes);
        let stream = self.stream(stream);
        assert!(stream.open.is_none() && stream.opening, "a stream has one open region");
        *stream = super::append::Stream { open: Some(open), opening: false };
        self.list_waiting();
    }

    /// Answers whoever waits and settles the region's account of undecided records.
    fn decide(&mut self, item: Item, decided: Decided) {
        match item.change {
            Change::Put { put, mode, .. } => {
                if matches!(mode, PutMode::Dirty(_)) {
                    self.dirty.decided(put.generation);
                }
                self.decided(put.at.region);
            }
            Change::Tombstone(record) => self.dirty.decided(record.generation),
            Change::RegionOpen { region, stream, .. } if decided.is_err() => {
                self.regions.not_opened(region);
                self.stream(stream).opening = false;
            }
            _ => {}
        }
        if let Some(answer) = item.answer {
            // A waiter that went away does not undo its commit.
            let _ = answer.send(decided);
        }
    }
}
