//! A plain map of what the store was told and what it promised, and the rule by which a recovered store is judged:
//! I11 (acknowledged puts and deletes are there, fills may be) and I13 (nothing older than the newest acknowledged).
//! Included by `store_crash`.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use forebay_shard::store::{Appended, BeforeStore, Commit, EntryState, Found, Validity};

use crate::bench::{Opened, content};

/// What an operation was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A write-back put.
    Dirty,
    /// A fill or a confirmed put.
    Clean,
    /// A write-back delete.
    Tombstone,
    /// A removal of what is clean.
    Remove,
}

#[derive(Debug, Clone)]
struct Issued {
    kind: Kind,
    content: Bytes,
}

/// What is known about one key.
#[derive(Debug, Default)]
pub struct KeyModel {
    issued: BTreeMap<u64, Issued>,
    acked: Option<(u64, Kind)>,
    flushed: HashSet<u64>,
    busy: bool,
    fills: Vec<Validity>,
}

/// What is known about all keys.
#[derive(Debug, Default)]
pub struct Model {
    keys: RefCell<BTreeMap<String, KeyModel>>,
}

impl Model {
    fn with<T>(&self, name: &str, change: impl FnOnce(&mut KeyModel) -> T) -> T {
        change(self.keys.borrow_mut().entry(name.to_string()).or_default())
    }

    /// Takes the key's lock, as the verbs do; false if somebody has it.
    pub fn lock(&self, name: &str) -> bool {
        self.with(name, |key| !std::mem::replace(&mut key.busy, true))
    }

    fn unlock(&self, name: &str) {
        self.with(name, |key| key.busy = false);
    }

    fn issue(&self, name: &str, generation: u64, kind: Kind, content: Bytes) {
        self.with(name, |key| {
            if kind != Kind::Clean {
                key.fills.drain(..).for_each(|validity| validity.clear());
            }
            assert!(
                key.issued.insert(generation, Issued { kind, content }).is_none(),
                "a generation is given out once"
            );
        });
    }

    fn ack(&self, name: &str, generation: u64, kind: Kind) {
        self.with(name, |key| {
            if key.acked.is_none_or(|(newest, _)| newest <= generation) {
                key.acked = Some((generation, kind));
            }
        });
    }

    /// A write-back put under the key's lock. The next generation is the one that the store gives out next.
    pub async fn put(&self, store: &Opened, name: &str, seed: u64, size: usize) -> bool {
        let bytes = content(seed, size);
        let before = match store.find(name) {
            Some(Found::Tombstone { .. }) => BeforeStore::Delete,
            _ => BeforeStore::Nothing,
        };
        let generation = store.peek_generation();
        self.issue(name, generation, Kind::Dirty, bytes.clone());
        let done = store.put_after(name, bytes, before).await;
        if let Ok(appended) = &done {
            assert_eq!(*appended, Appended::Published, "nothing newer can be there under the key's lock");
            self.ack(name, generation, Kind::Dirty);
            assert_eq!(
                store.generation(name).map(|g| g.0),
                Some(generation),
                "I2: {name} is published when acknowledged"
            );
        }
        self.unlock(name);
        done.is_ok()
    }

    /// A write-back delete under the key's lock.
    pub async fn delete(&self, store: &Opened, name: &str) -> bool {
        let generation = store.peek_generation();
        self.issue(name, generation, Kind::Tombstone, Bytes::new());
        let done = store.delete(name).await;
        if done.is_ok() {
            self.ack(name, generation, Kind::Tombstone);
            let is_flushed = self.with(name, |key| key.flushed.contains(&generation));
            let is_there = matches!(store.find(name), Some(Found::Tombstone { .. }));
            assert!(is_there || is_flushed, "I2: {name} is deleted when acknowledged");
        }
        self.unlock(name);
        done.is_ok()
    }

    /// A purge under the key's lock.
    pub async fn remove(&self, store: &Opened, name: &str) -> bool {
        let generation = store.store.next_generation();
        self.issue(name, generation.0, Kind::Remove, Bytes::new());
        let was_dirty = matches!(store.state(name), Some(EntryState::Dirty))
            || matches!(store.find(name), Some(Found::Tombstone { .. }));
        let done = store.store.remove(store.identity(name), generation).await;
        if done.is_ok() && !was_dirty {
            self.ack(name, generation.0, Kind::Remove);
            assert!(store.find(name).is_none(), "{name} is removed");
        }
        self.unlock(name);
        done.is_ok()
    }

    /// A confirmed put under the key's lock, only over what is not dirty.
    pub async fn confirmed(&self, store: &Opened, name: &str, seed: u64, size: usize) -> bool {
        let bytes = content(seed, size);
        let generation = store.peek_generation();
        self.issue(name, generation, Kind::Clean, bytes.clone());
        self.with(name, |key| key.fills.drain(..).for_each(|validity| validity.clear()));
        let done = store.fill(name, bytes, Validity::default(), Commit::Durable).await;
        if let Ok(appended) = &done {
            assert_eq!(*appended, Appended::Published);
            self.ack(name, generation, Kind::Clean);
        }
        self.unlock(name);
        done.is_ok()
    }

    /// A fill; needs no lock, but none begins while somebody has it, as in `Shard`.
    pub async fn fill(&self, store: &Opened, name: &str, seed: u64, size: usize) -> bool {
        if self.with(name, |key| key.busy) {
            return true;
        }
        let bytes = content(seed, size);
        let generation = store.peek_generation();
        self.issue(name, generation, Kind::Clean, bytes.clone());
        let validity = Validity::default();
        self.with(name, |key| key.fills.push(validity.clone()));
        let done = store.fill(name, bytes, validity.clone(), Commit::Lazy).await;
        if done.as_ref().is_ok_and(|appended| *appended == Appended::Published) {
            assert!(store.generation(name).is_none_or(|g| g.0 >= generation), "published and not replaced by older");
        }
        done.is_ok()
    }

    /// The origin confirms what is dirty, if it is.
    pub fn flush(&self, store: &Opened, name: &str) {
        let is_dirty = match store.find(name) {
            Some(Found::Block { state, .. }) => state == EntryState::Dirty,
            Some(Found::Tombstone { .. }) => true,
            None => false,
        };
        if let (true, Some(generation)) = (is_dirty, store.generation(name)) {
            self.with(name, |key| key.flushed.insert(generation.0));
            store.store.flushed(store.identity(name), generation);
        }
    }

    /// Reads a block while its region may be reclaimed: the bytes are those of the generation located (I7, I8).
    pub async fn read(&self, store: &Opened, name: &str, pause: impl Future<Output = ()>) {
        let Some(located) = store.store.locate(store.identity(name)) else { return };
        pause.await;
        let bytes = store.store.read(&located).await.unwrap_or_else(|error| panic!("I7: {name}: {error}"));
        let expected =
            self.with(name, |key| key.issued.get(&located.generation.0).map(|issued| issued.content.clone()));
        assert_eq!(Some(bytes), expected, "I8: the bytes of {name}");
        store.store.unpin(located.pin);
    }

    /// Judges a store after recovery and makes what it found the new base: nothing that is not there may come later.
    pub async fn judge(&self, store: &Opened) {
        let names: Vec<String> = self.keys.borrow().keys().cloned().collect();
        // All at once, before the first await: the reclaimer may evict what is clean from then on.
        let found: Vec<_> = names.iter().map(|name| (name, store.find(name), store.generation(name))).collect();
        for (name, found, generation) in found {
            let kept = self.with(name, |key| key.judge(name, found.as_ref(), generation.map(|g| g.0)));
            if let (Some(expected), Some(Found::Block { .. })) = (&kept, &found) {
                let bytes = store.read(name).await;
                let is_evicted = bytes.is_none() && store.find(name).is_none();
                assert!(is_evicted || bytes.as_ref() == Some(expected), "I8, I11: the bytes of {name} after recovery");
            }
        }
        let listed: Vec<u64> = store.recovered.dirty.iter().map(|record| record.generation.0).collect();
        assert!(listed.is_sorted(), "dirty records come in order of age");
    }
}

impl KeyModel {
    fn judge(&mut self, name: &str, found: Option<&Found>, generation: Option<u64>) -> Option<Bytes> {
        let key = format!("{name}: found {found:?}, acknowledged {:?}, issued {:?}", self.acked, self.kinds());
        let kept = match (found, generation) {
            (Some(found), Some(generation)) => {
                let issued = self.issued.get(&generation).unwrap_or_else(|| panic!("never written: {key}")).clone();
                assert!(self.acked.is_none_or(|(newest, _)| newest <= generation), "I13: {key}");
                let is_flushed = self.flushed.contains(&generation);
                let is_right = match (found, issued.kind) {
                    (Found::Tombstone { .. }, Kind::Tombstone) => true,
                    (Found::Block { state: EntryState::Clean, .. }, Kind::Clean) => true,
                    (Found::Block { state: EntryState::Clean, .. }, Kind::Dirty) => is_flushed,
                    (Found::Block { state: EntryState::Dirty, .. }, Kind::Dirty) => true,
                    _ => false,
                };
                assert!(is_right, "I9, I11: {key}");
                Some((generation, issued))
            }
            _ => {
                let may_be_gone = match self.acked {
                    None | Some((_, Kind::Clean | Kind::Remove)) => true,
                    Some((generation, Kind::Dirty | Kind::Tombstone)) => self.flushed.contains(&generation),
                };
                assert!(may_be_gone, "I3, I4, I11: lost {key}");
                None
            }
        };
        let (acked, flushed) = (self.acked, std::mem::take(&mut self.flushed));
        *self = KeyModel::default();
        match kept {
            Some((generation, issued)) => {
                self.acked = Some((generation, issued.kind));
                if matches!(found, Some(Found::Block { state: EntryState::Clean, .. })) {
                    self.acked = Some((generation, Kind::Clean));
                }
                self.issued.insert(generation, issued.clone());
                if flushed.contains(&generation) {
                    self.flushed.insert(generation);
                }
                Some(issued.content)
            }
            None => {
                self.acked = acked.map(|(generation, _)| (generation, Kind::Remove));
                None
            }
        }
    }

    fn kinds(&self) -> Vec<(u64, Kind)> {
        self.issued.iter().map(|(generation, issued)| (*generation, issued.kind)).collect()
    }
}
