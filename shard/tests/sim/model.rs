//! The reference model: for each key the states it may be in, as its clients know it.
//!
//! A write that was acknowledged leaves one possible state and those of writes that ran beside it; one whose outcome is
//! unknown adds one. A read may return any state that was possible, or being written, at some moment between its
//! beginning and its end. After a recovery the key is in exactly one state, which must have been possible; from then on
//! nothing else may turn up.

use std::fmt;

use forebay_shard::outcome::{Condition, DeclinedReason, Durability, PutDone, Removed};

use super::history;

/// No block, or the block of this version.
pub type State = Option<u8>;

/// A set of states.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct States(u16);

impl States {
    pub fn one(state: State) -> States {
        States(1 << state.map_or(0, |version| version + 1))
    }

    pub fn contains(self, state: State) -> bool {
        self.0 & States::one(state).0 != 0
    }

    pub fn with(self, other: States) -> States {
        States(self.0 | other.0)
    }

    fn without(self, state: State) -> States {
        States(self.0 & !States::one(state).0)
    }

    /// For the history.
    pub fn bits(self) -> u64 {
        u64::from(self.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn has_block(self) -> bool {
        !self.without(None).is_empty()
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states = (0..16).filter(|bit| self.0 & 1 << bit != 0);
        f.debug_set().entries(states.map(|bit: u8| bit.checked_sub(1))).finish()
    }
}

struct Write {
    id: u32,
    state: State,
    /// What ran beside it.
    beside: States,
    /// What the key could be when it began.
    before: States,
}

/// What is known of one key.
pub struct KeyModel {
    index: usize,
    possible: States,
    writes: Vec<Write>,
    /// For each read in progress what it may return.
    reads: Vec<(u32, States)>,
    next_id: u32,
    /// Puts whose client went away: they may take effect at any time until the next recovery.
    adrift: States,
    /// The origin may hold other bytes than what was acknowledged here: the flush will find a conflict.
    pub contested: bool,
    /// Version 0 lies at the origin, stored by somebody else, and nobody here has deleted the key since.
    pub is_others: bool,
    /// Somebody else stored version 0 at the origin, without our digest: nobody can tell there that bytes are the same.
    foreign: bool,
}

impl KeyModel {
    pub fn new(index: usize, state: State) -> KeyModel {
        KeyModel {
            index,
            possible: States::one(state),
            writes: Vec::new(),
            reads: Vec::new(),
            next_id: 0,
            adrift: States::default(),
            contested: false,
            is_others: state.is_some(),
            foreign: false,
        }
    }

    /// The origin has version 0 of the key, stored by somebody else.
    pub fn stored_by_others(index: usize) -> KeyModel {
        KeyModel { foreign: true, ..KeyModel::new(index, Some(0)) }
    }

    /// Everything the key may be now, writes in progress included.
    pub fn allowed(&self) -> States {
        self.writes.iter().fold(self.possible.with(self.adrift), |states, write| states.with(States::one(write.state)))
    }

    /// Whether nobody writes it and no given-up put may still be on its way.
    pub fn is_quiet(&self) -> bool {
        self.writes.is_empty() && self.adrift.is_empty()
    }

    /// Somebody else stores version 0 at the origin, where there was nothing.
    pub fn others_store(&mut self, is_foreign: bool) {
        let here = if is_foreign { self.possible } else { self.possible.without(Some(0)) };
        self.contested |= here.has_block();
        self.possible = self.possible.with(States::one(Some(0)));
        self.foreign |= is_foreign;
        self.reads.iter_mut().for_each(|(_, allowed)| *allowed = allowed.with(States::one(Some(0))));
    }

    pub fn begin_read(&mut self) -> u32 {
        self.next_id += 1;
        self.reads.push((self.next_id, self.allowed()));
        self.next_id
    }

    /// Ends a read that showed one of `states`, or nothing if there are none.
    pub fn end_read(&mut self, id: u32, states: States) {
        let at = self.reads.iter().position(|(known, _)| *known == id).expect("a read ends once");
        let (_, allowed) = self.reads.swap_remove(at);
        if !states.is_empty() && allowed.0 & states.0 == 0 {
            history::violation(self.index, &format!("I8, I11: read {states:?}, allowed {allowed:?}"));
        }
    }

    pub fn begin_write(&mut self, state: State) -> u32 {
        self.next_id += 1;
        let (id, own) = (self.next_id, States::one(state));
        self.is_others &= state.is_some();
        let beside = self.writes.iter().fold(self.adrift, |states, write| states.with(States::one(write.state)));
        self.writes.iter_mut().for_each(|write| write.beside = write.beside.with(own));
        self.reads.iter_mut().for_each(|(_, allowed)| *allowed = allowed.with(own));
        self.writes.push(Write { id, state, beside, before: self.possible });
        id
    }

    fn take_write(&mut self, id: u32) -> Write {
        let at = self.writes.iter().position(|write| write.id == id).expect("a write ends once");
        self.writes.swap_remove(at)
    }

    /// Its client went away; the put goes on.
    pub fn abandon_write(&mut self, id: u32) {
        let write = self.take_write(id);
        let before = self.possible.with(write.before).with(write.beside);
        self.contested |= before.without(write.state).has_block() || self.foreign;
        self.adrift = self.adrift.with(States::one(write.state));
    }

    /// The state that a put or delete was acknowledged for, if that is the only one the key can be in now.
    fn acknowledge(&mut self, write: &Write) -> Option<State> {
        self.possible = States::one(write.state).with(write.beside);
        write.beside.is_empty().then_some(write.state)
    }

    fn require(&self, holds: bool, words: &str, done: &dyn fmt::Debug) {
        if !holds {
            let possible = self.possible;
            history::violation(self.index, &format!("{words}: answered {done:?}, possible {possible:?}"));
        }
    }

    /// Ends a put; the state that it left for sure, if it did.
    pub fn end_put(
        &mut self,
        id: u32,
        through: bool,
        condition: &Condition,
        asked: Durability,
        done: &PutDone,
    ) -> Option<State> {
        let write = self.take_write(id);
        let is_alone = write.beside.is_empty();
        let before = self.possible.with(write.before).with(write.beside);
        let has_others = before.without(write.state).has_block();
        match done {
            PutDone::Created(durability) => {
                self.require(*durability >= asked, "less durable than asked", done);
                let fits = before.contains(None) || before.contains(write.state) || self.contested;
                self.require(fits || !through, "the origin has other bytes", done);
                self.contested |= (has_others || self.foreign) && *durability == Durability::Disk;
                self.acknowledge(&write)
            }
            PutDone::Unchanged(durability) => {
                self.require(*durability >= asked, "less durable than asked", done);
                self.require(before.contains(write.state), "unchanged, but it was never there", done);
                self.acknowledge(&write)
            }
            PutDone::KeyExists => {
                self.require(has_others || self.contested || self.foreign, "nothing else has the key", done);
                if is_alone && !self.contested && !self.foreign {
                    self.possible = self.possible.without(None).without(write.state);
                }
                None
            }
            PutDone::PreconditionFailed => {
                let may_fail = match condition {
                    Condition::Any => false,
                    Condition::Absent => before.has_block() || self.contested,
                    // A condition names the ETag of the put's own version.
                    Condition::Matches(_) => !before.without(write.state).is_empty() || self.contested || self.foreign,
                };
                self.require(may_fail, "the condition holds", done);
                None
            }
            PutDone::Declined(declined) if declined.reason != DeclinedReason::DiskFault => None,
            // It may be there, or turn up after a restart.
            PutDone::Declined(_) | PutDone::Failed(_) => {
                self.possible = self.possible.with(States::one(write.state));
                None
            }
        }
    }

    /// Ends a delete; `Some` if the key is surely gone.
    pub fn end_delete(&mut self, id: u32, done: &Removed) -> Option<State> {
        let write = self.take_write(id);
        match done {
            Removed::Done(_) => {
                if write.beside.is_empty() {
                    self.contested = false;
                    self.foreign = false;
                }
                self.acknowledge(&write)
            }
            Removed::Declined(declined) if declined.reason != DeclinedReason::DiskFault => None,
            Removed::Declined(_) | Removed::Failed(_) => {
                self.possible = self.possible.with(States::one(None));
                None
            }
            Removed::Dirty => history::violation(self.index, "a delete is not a purge"),
        }
    }

    /// The machine crashed: whatever was being written may be there or not.
    pub fn crash(&mut self) {
        self.possible = self.allowed();
        self.adrift = States::default();
        self.writes.clear();
        self.reads.clear();
    }

    /// What the key turned out to be after a recovery, and what the origin holds if it does not have that yet.
    pub fn recovered(&mut self, state: State, dirty_over: Option<State>) {
        if !self.possible.contains(state) {
            let possible = self.possible;
            history::violation(self.index, &format!("I3, I11, I13: recovered as {state:?}, possible {possible:?}"));
        }
        self.possible = States::one(state);
        let is_stored = state.is_some();
        self.contested =
            is_stored && dirty_over.is_some_and(|there| there.is_some() && (there != state || self.foreign));
    }

    /// After a recovery nobody can tell what the key is: it may lie on a disk that is not here. It stays what it could be.
    pub fn out_of_sight(&mut self, at_origin: State) {
        let here = if self.foreign { self.possible } else { self.possible.without(at_origin) };
        self.contested |= at_origin.is_some() && here.has_block();
    }

    /// The disk that it may have been dirty on was given up for good: what the origin has may be all there is, and what somebody
    /// else stored there has outlived a delete of it.
    pub fn give_up(&mut self, at_origin: State, is_foreign: bool) {
        self.possible = self.possible.with(States::one(at_origin));
        self.foreign |= is_foreign;
    }
}
