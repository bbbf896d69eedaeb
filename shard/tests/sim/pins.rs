//! What clients know of pins: for each key whether it is surely pinned, surely not, or nobody can tell.
//!
//! A pin that was acknowledged while nothing else was said of the key holds from then on: over reclaim, flushes, puts,
//! crashes and recoveries, until a purge, a delete or an unpin begins (I14). An acknowledged unpin, purge or delete ends it for
//! good. Judged by `run` after every slice and every recovery on an honest disk; one that fails or lies loses pins with its bytes.

use forebay_shard::outcome::{PinDone, Removed, UnpinDone};
use forebay_shard::store::Pinning;

use super::history;
use super::plan::DiskMode;

/// One key.
#[derive(Default)]
pub struct PinModel {
    known: Option<Pinning>,
    /// Pins, unpins, purges and deletes under way.
    running: u32,
    /// How many of them ever began.
    begun: u64,
}

/// Something that changes a pin, under way.
#[derive(Clone, Copy)]
pub struct Change {
    begun: u64,
    was_alone: bool,
    before: Option<Pinning>,
}

impl PinModel {
    pub fn begin(&mut self) -> Change {
        let before = self.known.take();
        let was_alone = self.running == 0;
        (self.running, self.begun) = (self.running + 1, self.begun + 1);
        Change { begun: self.begun, was_alone, before }
    }

    /// It ended: it left the key so, if it was alone; `None` if nobody can tell.
    fn end(&mut self, change: Change, left: Option<Pinning>) {
        self.running -= 1;
        if change.was_alone && self.begun == change.begun {
            self.known = left;
        }
    }

    /// It ended and changed nothing.
    fn end_unchanged(&mut self, change: Change) {
        self.end(change, change.before);
    }

    /// Its pin was refused, which never happens to a key that is pinned.
    fn end_refused(&mut self, index: usize, change: Change) {
        let is_sure = change.was_alone && self.begun == change.begun && change.before == Some(Pinning::Pinned);
        if is_sure {
            history::violation(index, "I14: the pin of a pinned block was refused");
        }
        self.end(change, None);
    }

    /// A pin had this answer, on a disk that keeps its contract or not.
    pub fn end_pin(&mut self, index: usize, change: Change, done: &PinDone, mode: DiskMode) {
        match done {
            PinDone::Done => self.end(change, Some(Pinning::Pinned)),
            PinDone::Full { .. } | PinDone::Absent if mode == DiskMode::Honest => self.end_refused(index, change),
            _ => self.end(change, None),
        }
    }

    /// An unpin had this answer.
    pub fn end_unpin(&mut self, change: Change, done: &UnpinDone) {
        self.end(change, matches!(done, UnpinDone::Done).then_some(Pinning::Unpinned));
    }

    /// A purge or a delete had this answer.
    pub fn end_removal(&mut self, change: Change, removed: &Removed) {
        match removed {
            Removed::Done(_) => self.end(change, Some(Pinning::Unpinned)),
            Removed::Dirty => self.end_unchanged(change),
            Removed::Declined(_) | Removed::Failed(_) => self.end(change, None),
        }
    }

    /// Its disk was taken away, and its bytes with it.
    pub fn forget(&mut self) {
        self.known = None;
    }

    /// The machine crashed: what was under way has happened or not.
    pub fn crash(&mut self) {
        self.running = 0;
    }

    /// Compares what is known with what the shard says.
    pub fn judge(&self, index: usize, found: Pinning) {
        if self.known.is_some_and(|known| known != found) {
            history::violation(index, &format!("I14: the key is {found:?}, its clients know it as {:?}", self.known));
        }
    }
}
