//! Writing again after a failed sync, without a restart: the disk is told anew what is in memory.
//!
//! Called by the healer after good probes. A failed sync leaves in doubt, for ever, what was written since the last good
//! one; later syncs prove nothing about it. So nothing of that is believed: open regions are closed, clean entries that no
//! good sync covered are dropped, and both checkpoint slots say what is in memory, from a point of the journal behind
//! everything in doubt. Until both are synced no write is taken, so that whichever slot a recovery reads, it never reads
//! a frame in doubt (I11, I13). Dirty entries were published after a good sync each (I2): they stay.

use std::rc::Rc;
use std::time::Duration;

use forebay_io::{Disk, IoError, Runtime};

use super::block::Pinning;
use super::entry::{Entry, State as EntryIs};
use super::regions::{RegionState, StreamKind};
use super::slab_name;
use super::state::{Core, Life, State};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::Identity;

/// While the committer answers what was queued.
const QUEUE_WAIT: Duration = Duration::from_millis(1);
/// Entries looked at while the state is borrowed.
const SLICE_COUNT: usize = 1024;

impl<D: Disk, R: Runtime> Core<D, R> {
    /// Takes writes again. Nothing happens to a store that takes them.
    ///
    /// # Errors
    /// What the disk said: the store stays as it was. [`StoreError::Closing`] if it was closed meanwhile.
    pub async fn refound(self: &Rc<Self>) -> Result<(), StoreError> {
        // Every commit has ended, and with it every write of a payload: none may land after its region was reused.
        let _no_commits = loop {
            let between_commits = self.committing.lock().await;
            let (is_idle, life) = {
                let state = self.state.borrow();
                (state.queue.is_empty(), state.life)
            };
            match life {
                Life::Failed if is_idle => break between_commits,
                Life::Failed => {}
                Life::Running => return Ok(()),
                Life::Refounding | Life::Closing | Life::Stopped => return Err(StoreError::Closing),
            }
            drop(between_commits);
            self.signals.queue.notify(1);
            self.runtime.sleep(QUEUE_WAIT).await;
        };
        self.change(State::close_open_regions);
        self.drop_unsynced().await;
        let is_closed = self.change(|state| {
            if state.life == Life::Failed {
                state.life = Life::Refounding;
                state.journal.forget_doubt();
            }
            state.life != Life::Refounding
        });
        if is_closed {
            return Err(StoreError::Closing);
        }
        let founded = match canary::is(Canary::DoubtReturns) {
            true => Ok(()),
            false => self.two_checkpoints().await,
        };
        {
            let mut state = self.state.borrow_mut();
            if state.life != Life::Refounding {
                return Err(StoreError::Closing);
            }
            state.life = if founded.is_ok() { Life::Running } else { Life::Failed };
            state.stalled = false;
        }
        self.signals.notify_all();
        founded
    }

    async fn two_checkpoints(&self) -> Result<(), StoreError> {
        self.checkpoint().await?;
        self.checkpoint().await
    }

    /// Drops clean entries whose bytes no good sync covered: after a crash they might be torn, and no recovery would look.
    async fn drop_unsynced(&self) {
        let mut after: Option<Identity> = None;
        loop {
            let is_done = self.change(|state| {
                let slice = state.index.slice_after(after, SLICE_COUNT);
                after = slice.last().map(Entry::identity);
                for entry in &slice {
                    let is_unsynced = entry.place().is_some_and(|at| state.unsynced_regions.contains(&at.region));
                    // Pinned ones were at their place durably before they counted as pinned, or are not any more.
                    let is_policys = entry.state() == EntryIs::Clean && entry.pinning() == Pinning::Unpinned;
                    if is_unsynced && is_policys {
                        state.take_out(*entry);
                    }
                }
                slice.is_empty()
            });
            if is_done {
                break;
            }
            self.runtime.yield_now().await;
        }
        self.change(|state| state.unsynced_regions.clear());
    }

    /// The device does not answer: no write is taken any more, and whoever waits for one is told.
    pub fn suspend(&self) {
        self.state.borrow_mut().stalled = true;
        self.fail(&self.lost_write());
        self.signals.failed.notify(usize::MAX);
    }

    /// What became of a write that nobody will ever know the end of.
    pub fn lost_write(&self) -> IoError {
        let source = std::io::Error::other("the disk failed, or does not answer");
        IoError::Device { verb: "commit", name: slab_name(self.config.node.shard), at: 0, source }
    }
}

impl State {
    /// What was appended to an open region and not published is in doubt: it takes no more bytes. Without a footer, so that
    /// no list of records speaks of them.
    fn close_open_regions(&mut self) {
        for kind in StreamKind::ALL {
            let Some(mut open) = self.stream(kind).open.take() else { continue };
            assert!(open.seal_batch().is_none(), "every record was decided, and its batch written before");
            let region = self.regions.at_mut(open.region);
            assert_eq!(region.uncommitted, 0, "every record was decided");
            assert_eq!(region.state, RegionState::Open(kind), "I1: a stream appends to an open region");
            region.state = RegionState::Sealed;
        }
        // Its footer would have listed tombstones: a later one does.
        self.list_all_again();
    }
}
