//! What a key truly is, as the engine's own lists and the origin say without being disturbed: the dirty record if there
//! is one, else what the origin holds. A clean block may only repeat it.
//!
//! Called by `run` after every step and after every recovery: promise 1 for all keys at once, without a read that would
//! change anything.

use forebay_io::sim::SimRuntime;
use forebay_shard::dirty::DirtyItem;
use forebay_shard::key::BlockKey;
use forebay_shard::sim_origin::SimOrigin;
use forebay_shard::store::DirtyKind;

use super::history;
use super::machine::Machine;
use super::model::State;
use super::universe::Universe;

/// What the engine lists as dirty, and what the origin has.
pub struct Truth {
    dirty: Vec<Option<State>>,
    origin: Vec<State>,
    /// Whether it may be dirty on a disk that is not here.
    hidden: Vec<bool>,
}

impl Truth {
    /// Looks at everything that is written.
    pub fn of(machine: &Machine, universe: &Universe) -> Truth {
        let mut dirty = vec![None; universe.subjects.len()];
        for DirtyItem { key, kind, .. } in machine.shard().dirty_items(usize::MAX) {
            let index = universe.index(&key);
            let state = match kind {
                DirtyKind::Tombstone => None,
                DirtyKind::Block { digest, .. } => match universe.recognise_digest(index, digest) {
                    Some(version) => Some(version),
                    None => history::violation(index, "I8: dirty bytes that nobody ever put under this key"),
                },
            };
            assert!(dirty[index].replace(state).is_none(), "a key has one dirty record");
        }
        let origin = (0..universe.written).map(|index| origin_state(&machine.origin, universe, index)).collect();
        let is_hidden = |key: &BlockKey| &*key.volume != "through" && machine.seat_of(key).is_none();
        let hidden = (0..universe.written).map(|index| is_hidden(universe.key(index))).collect();
        Truth { dirty, origin, hidden }
    }

    /// Whether nobody can tell what the key is: it may be dirty on a disk that is not here. What is written through never is.
    pub fn is_hidden(&self, index: usize) -> bool {
        self.hidden[index]
    }

    /// What the key is.
    pub fn state(&self, index: usize) -> State {
        self.dirty[index].unwrap_or(self.origin[index])
    }

    /// What the origin has of a key whose newest put or delete it does not have yet.
    pub fn dirty_over(&self, index: usize) -> Option<State> {
        self.dirty[index].map(|_| self.origin[index])
    }

    /// What the origin has.
    pub fn at_origin(&self, index: usize) -> State {
        self.origin[index]
    }
}

/// What the origin has under one key.
pub fn origin_state(origin: &SimOrigin<SimRuntime>, universe: &Universe, index: usize) -> State {
    let meta = origin.meta(universe.key(index))?;
    match universe.recognise_meta(index, &meta) {
        Some(version) => Some(version),
        None => history::violation(index, "I8: the origin was given bytes that nobody ever put under this key"),
    }
}
