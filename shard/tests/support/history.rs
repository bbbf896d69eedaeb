//! What a key may hold, as its clients know it: the reference model of `model`.
//!
//! Each key is written by one client at a time and read by all. A write that was acknowledged leaves one possible state,
//! one whose outcome is unknown adds one. A read may return any state that was possible, or being written, at some
//! moment between its beginning and its end.

use std::collections::{BTreeMap, BTreeSet};

use forebay_shard::key::BlockKey;
use forebay_shard::outcome::{Condition, Declined, DeclinedReason, Durability, PutDone, Removed};

/// No block, or the block of this version.
pub type State = Option<u64>;

pub struct KeyHistory {
    pub key: BlockKey,
    pub possible: BTreeSet<State>,
    /// What a write in progress would make it.
    pending: Option<State>,
    /// For each read in progress what it may return.
    readers: BTreeMap<u64, BTreeSet<State>>,
    next_reader: u64,
    /// A write-back put was acknowledged while the origin may have other bytes: the flush will find a conflict.
    pub contested: bool,
    /// Somebody else stored version 0 at the origin, without our digest: there nobody can tell that the bytes are the
    /// same.
    foreign: bool,
    /// What happened, for whoever reads a failure.
    events: Vec<String>,
}

impl KeyHistory {
    pub fn new(key: BlockKey, state: State) -> KeyHistory {
        KeyHistory {
            key,
            possible: BTreeSet::from([state]),
            pending: None,
            readers: BTreeMap::new(),
            next_reader: 0,
            contested: false,
            foreign: false,
            events: Vec::new(),
        }
    }

    /// The origin has version 0 of the key, stored by somebody else.
    pub fn stored_by_others(key: BlockKey) -> KeyHistory {
        KeyHistory { foreign: true, ..KeyHistory::new(key, Some(0)) }
    }

    pub fn begin_read(&mut self) -> u64 {
        self.next_reader += 1;
        let allowed = self.possible.iter().copied().chain(self.pending).collect();
        self.readers.insert(self.next_reader, allowed);
        self.next_reader
    }

    /// Ends a read that returned `state`, or nothing that tells.
    pub fn end_read(&mut self, reader: u64, state: Option<State>) {
        let allowed = self.readers.remove(&reader).expect("a read ends once");
        if let Some(state) = state {
            self.note(format!("read {state:?}"));
            let events = self.events.join("\n");
            assert!(allowed.contains(&state), "{:?}: read {state:?}, allowed {allowed:?}\n{events}", self.key);
        }
    }

    pub fn note(&mut self, event: impl Into<String>) {
        self.events.push(event.into());
    }

    /// Forgets a read that was given up.
    pub fn drop_read(&mut self, reader: u64) {
        self.readers.remove(&reader);
    }

    pub fn begin_write(&mut self, state: State) {
        assert!(self.pending.is_none(), "one writer per key");
        self.pending = Some(state);
        self.note(format!("writing {state:?}"));
        for allowed in self.readers.values_mut() {
            allowed.insert(state);
        }
    }

    pub fn end_put(&mut self, version: u64, condition: &Condition, asked: Durability, done: &PutDone) {
        let state = self.pending.take().expect("a put was begun");
        let others = self.possible.iter().any(|state| state.is_some_and(|other| other != version));
        self.note(format!("put v{version} {condition:?} {asked:?}: {done:?}, possible {:?}", self.possible));
        let context = format!("{:?}\n{}", self.key, self.events.join("\n"));
        let through = &*self.key.volume == "through";
        match done {
            PutDone::Created(durability) => {
                assert!(*durability >= asked, "{context}");
                let fits = self.possible.contains(&None) || self.possible.contains(&state);
                assert!(fits || !through, "the origin has other bytes: {context}");
                self.contested |= (others || self.foreign) && *durability == Durability::Disk;
                self.possible = BTreeSet::from([state]);
            }
            PutDone::Unchanged(durability) => {
                assert!(*durability >= asked && self.possible.contains(&state), "{context}");
                self.possible = BTreeSet::from([state]);
            }
            PutDone::KeyExists => {
                assert!(others || self.contested || self.foreign, "{context}");
                if !self.contested && !self.foreign {
                    self.possible.retain(|possible| possible.is_some_and(|other| other != version));
                }
            }
            PutDone::PreconditionFailed => {
                let any = self.possible.iter().any(Option::is_some);
                assert!(*condition == Condition::Absent && (any || self.contested), "{context}");
            }
            PutDone::Declined(declined) if !may_turn_up(declined) => {}
            PutDone::Declined(_) | PutDone::Failed(_) => {
                self.possible.insert(state);
            }
        }
    }

    pub fn end_delete(&mut self, done: &Removed) {
        let state = self.pending.take().expect("a delete was begun");
        self.note(format!("delete: {done:?}, possible {:?}", self.possible));
        match done {
            Removed::Done(_) => {
                self.possible = BTreeSet::from([state]);
                self.contested = false;
                self.foreign = false;
            }
            Removed::Declined(declined) if !may_turn_up(declined) => {}
            Removed::Declined(_) | Removed::Failed(_) => {
                self.possible.insert(state);
            }
            Removed::Dirty => panic!("a delete is not a purge"),
        }
    }

    /// The machine crashed: whatever was being written may be there or not.
    pub fn crash(&mut self) {
        self.note("crash");
        self.possible.extend(self.pending.take());
        self.readers.clear();
    }
}

/// Whether a declined write may turn up after a restart.
fn may_turn_up(declined: &Declined) -> bool {
    declined.reason == DeclinedReason::DiskFault
}
