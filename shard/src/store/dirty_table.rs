//! The dirty records of one store: by identity for the verbs, by generation for the notes that footers carry.
//!
//! Changed by `publish` only (records) and by append and commit (what is undecided). A [`DirtyNote`] says exactly which
//! generations below a bound are dirty, so that after a disaster a footer's long list of puts, most of them flushed since,
//! is not taken for work to be done again. Upholds I4's account and, with `salvage`, promise 1.

use std::collections::hash_map::Values;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::block::{Certainty, DirtyRecord};
use super::footer::{DirtyNote, NOTED_MAX};
use crate::key::{Generation, Identity};

/// What a flush needs of each dirty entry; exactly the identities whose entry is dirty or a tombstone.
#[derive(Default)]
pub struct DirtyTable {
    by_identity: HashMap<Identity, Rc<DirtyRecord>>,
    generations: BTreeMap<Generation, Certainty>,
    /// Puts and deletes that were begun and are neither published nor dropped.
    undecided: BTreeSet<Generation>,
}

impl DirtyTable {
    /// The dirty record of `identity`.
    #[must_use]
    pub fn get(&self, identity: &Identity) -> Option<&Rc<DirtyRecord>> {
        self.by_identity.get(identity)
    }

    /// Adds the record of an identity that has none.
    pub fn insert(&mut self, identity: Identity, record: Rc<DirtyRecord>) {
        let same = self.generations.insert(record.generation, record.certainty);
        assert!(same.is_none(), "a generation is given out once");
        let earlier = self.by_identity.insert(identity, record);
        assert!(earlier.is_none(), "I4: what is superseded is taken out first");
    }

    /// Takes the record of `identity` out.
    pub fn remove(&mut self, identity: &Identity) -> Option<Rc<DirtyRecord>> {
        let record = self.by_identity.remove(identity)?;
        self.generations.remove(&record.generation);
        Some(record)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_identity.len()
    }

    /// All of them, in no order.
    pub fn values(&self) -> Values<'_, Identity, Rc<DirtyRecord>> {
        self.by_identity.values()
    }

    /// Whether this very record is still dirty.
    #[must_use]
    pub fn holds(&self, record: &DirtyRecord) -> bool {
        self.get(&record.identity).is_some_and(|current| current.generation == record.generation)
    }

    /// A put or delete of this generation has begun: no note speaks of it or of anything newer until it is decided.
    pub fn begin(&mut self, generation: Generation) {
        self.undecided.insert(generation);
    }

    /// It was published or dropped.
    pub fn decided(&mut self, generation: Generation) {
        self.undecided.remove(&generation);
    }

    /// What is dirty now; frame `sequence` is the last one whose records are published, `durable` the last that is surely so.
    #[must_use]
    pub fn note(&self, sequence: u64, durable: u64, next_generation: Generation) -> DirtyNote {
        let horizon = self.undecided.first().copied().unwrap_or(next_generation).min(next_generation);
        let noted = || self.generations.range(..horizon);
        let below = noted().nth(NOTED_MAX).map_or(horizon, |(generation, _)| *generation);
        let dirty = noted().take(NOTED_MAX).map(|(generation, _)| *generation).collect();
        let unsure = noted().take(NOTED_MAX).filter(|(_, certainty)| **certainty == Certainty::Unsure);
        let unsure = unsure.map(|(generation, _)| *generation).collect();
        DirtyNote { sequence, durable, next_generation, below, dirty, unsure }
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::DirtyKind;
    use super::*;
    use crate::key::BlockKey;

    fn record(generation: u64) -> Rc<DirtyRecord> {
        let key = BlockKey::new("v".into(), format!("k{generation}"));
        let (identity, generation) = (Identity(generation.into()), Generation(generation));
        let (kind, certainty) = (DirtyKind::Tombstone, Certainty::Sure);
        Rc::new(DirtyRecord { key, identity, generation, kind, since_unix_ms: 0, certainty })
    }

    fn table(count: u64) -> DirtyTable {
        let mut table = DirtyTable::default();
        (0..count).map(|n| record(n * 2)).for_each(|record| table.insert(record.identity, record));
        table
    }

    #[test]
    fn a_note_names_everything_dirty_below_its_bound() {
        let mut table = table(5);
        table.remove(&Identity(4));
        let note = table.note(7, 6, Generation(100));
        assert_eq!((note.sequence, note.below), (7, Generation(100)));
        assert_eq!(note.dirty, [0, 2, 6, 8].map(Generation));
    }

    #[test]
    fn a_note_says_nothing_of_what_is_undecided_or_newer() {
        let mut table = table(5);
        table.begin(Generation(7));
        assert_eq!(table.note(1, 1, Generation(100)).below, Generation(7));
        table.decided(Generation(7));
        assert_eq!(table.note(1, 1, Generation(100)).below, Generation(100));
    }

    #[test]
    fn a_note_of_very_many_stops_where_its_list_is_full() {
        let note = table(NOTED_MAX as u64 + 10).note(1, 1, Generation(1 << 20));
        assert_eq!(note.dirty.len(), NOTED_MAX);
        assert_eq!(note.below, Generation(2 * NOTED_MAX as u64));
    }
}
