//! Everything the origin has not confirmed yet: a queue in order of age per volume, with backoff, outages and the two
//! ways in which a record leaves the queue without being flushed (a conflict at the origin, lost to rot).
//!
//! Filled by `put`, `remove` and recovery, emptied by `flush`. Upholds I10 (each record holds a reservation of the
//! dirty budget) and the flusher's order: oldest first, never two flushes of a key at once, one probe at a time while
//! a volume's origin is unreachable.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use event_listener::{Event, EventListener};
use forebay_io::Nanos;

use self::volume::{Age, VolumeQueue, age_of, turn_of};
use crate::budget::{Budget, Reservation};
use crate::canary::{self, Canary};
use crate::key::{BlockKey, Generation, Identity, IdentityMap};
use crate::store::{Certainty, DirtyKind, DirtyRecord, EntryState};

mod volume;

/// What a dirty record costs beside its content: key, record, queue slots. Bounds the number of tombstones.
pub(crate) const RECORD_BYTES: u64 = 512;

/// The bytes a dirty record takes from the budget.
pub(crate) fn charge_bytes(kind: &DirtyKind) -> u64 {
    match kind {
        DirtyKind::Block { len_bytes, .. } => u64::from(*len_bytes) + RECORD_BYTES,
        DirtyKind::Tombstone => RECORD_BYTES,
    }
}

/// All dirty records of a shard.
pub(crate) struct DirtyQueue {
    budget: Rc<Budget>,
    queues: RefCell<Queues>,
    changed: Event,
}

#[derive(Default)]
struct Queues {
    entries: IdentityMap<Entry>,
    /// All entries.
    by_age: BTreeSet<Age>,
    /// Entries that stand so.
    conflicts: u64,
    lost: u64,
    volumes: BTreeMap<Arc<str>, VolumeQueue>,
}

struct Entry {
    record: Rc<DirtyRecord>,
    reservation: Reservation,
    standing: Standing,
    /// The generation that a flush has in hand; after a superseding put or delete not the record's.
    flushing: Option<Generation>,
    /// Failed flushes in a row.
    failures: u32,
    /// The delete that this put superseded has been sent.
    delete_sent: bool,
    /// It goes before older ones.
    goes_first: bool,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Waits for its turn or is being flushed.
    Queued,
    /// Failed; not before this instant.
    Backoff(Nanos),
    /// The origin has other bytes under this key: kept here, served from here, not tried again until restart.
    Conflict,
    /// The bytes rotted before the origin had them: kept, never uploaded, never served.
    Lost,
}

/// Why a key with a dirty record is not read.
pub(crate) enum Withheld {
    /// It was deleted, and that the origin knows of it is not durable here.
    Deleted,
    /// As [`Standing::Lost`].
    Lost,
    /// It came back from a disaster, and the origin was not asked yet whether it is the newest.
    Unsure,
}

/// What the flusher does next.
pub(crate) enum Next {
    /// Flush this record, then call [`DirtyQueue::finished`].
    Flush(Rc<DirtyRecord>),
    /// Nothing before this instant.
    At(Nanos),
    /// Nothing until the queue changes.
    Idle,
}

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The origin confirmed it.
    Done,
    /// As [`Standing::Conflict`].
    Conflict,
    /// As [`Standing::Lost`].
    Lost,
    /// Try again at this instant.
    Retry(Nanos),
    /// A newer record took its place before anything was sent.
    Superseded,
}

/// Totals of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DirtyTotals {
    pub(crate) records: u64,
    pub(crate) conflicts: u64,
    pub(crate) lost: u64,
    pub(crate) flushing: u64,
    pub(crate) oldest_since_unix_ms: Option<u64>,
}

/// One dirty record, for lists. Plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyItem {
    /// Its name.
    pub key: BlockKey,
    /// A block or a tombstone.
    pub kind: DirtyKind,
    /// Milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Where it stands.
    pub standing: Standing,
    /// Whether it is surely the newest of its key.
    pub certainty: Certainty,
}

impl DirtyQueue {
    pub(crate) fn new(max_bytes: u64) -> DirtyQueue {
        DirtyQueue { budget: Budget::new(max_bytes), queues: RefCell::default(), changed: Event::new() }
    }

    /// Takes room for a record to come, or nothing if the budget is full.
    pub(crate) fn reserve(&self, kind: &DirtyKind) -> Option<Reservation> {
        if canary::is(Canary::BudgetIgnored) {
            return Some(self.budget.adopt(charge_bytes(kind)));
        }
        self.budget.reserve(charge_bytes(kind))
    }

    pub(crate) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    /// Takes over what recovery found, whatever the budget says now.
    pub(crate) fn adopt(&self, record: Rc<DirtyRecord>) {
        let reservation = self.budget.adopt(charge_bytes(&record.kind));
        self.insert(record, reservation);
    }

    /// Queues a record that is durable and published. It takes the place of an older one of the same key; a flush that
    /// has the older one in hand ends first.
    pub(crate) fn insert(&self, record: Rc<DirtyRecord>, reservation: Reservation) {
        assert_eq!(reservation.bytes(), charge_bytes(&record.kind), "I10: a dirty record is paid for");
        {
            let queues = &mut *self.queues.borrow_mut();
            let identity = record.identity;
            let older = queues.take(identity);
            let volume = queues.volumes.entry(Arc::clone(&record.key.volume)).or_default();
            let mut flushing = None;
            if let Some(older) = older {
                assert!(older.record.generation < record.generation, "generations of a key only grow");
                volume.dequeue(&older);
                flushing = older.flushing;
            }
            let standing = Standing::Queued;
            let (failures, delete_sent, goes_first) = (0, false, false);
            let entry = Entry { record, reservation, standing, flushing, failures, delete_sent, goes_first };
            if entry.flushing.is_none() {
                volume.ready.insert(turn_of(&entry));
            }
            volume.records += 1;
            queues.by_age.insert(age_of(&entry.record));
            queues.entries.insert(identity, entry);
        }
        self.changed.notify(usize::MAX);
    }

    /// Queues a durable tombstone. Where it supersedes a dirty record it takes over that one's room and needs none of
    /// its own.
    pub(crate) fn insert_tombstone(&self, record: Rc<DirtyRecord>, reservation: Option<Reservation>) {
        let mut reservation = reservation.or_else(|| self.take_reservation(record.identity));
        // What was to be superseded may have been flushed meanwhile; a tombstone's few bytes are then owed.
        let mut reservation = reservation.take().unwrap_or_else(|| self.budget.adopt(charge_bytes(&record.kind)));
        reservation.shrink_to(charge_bytes(&record.kind));
        self.insert(record, reservation);
    }

    fn take_reservation(&self, identity: Identity) -> Option<Reservation> {
        let mut queues = self.queues.borrow_mut();
        let entry = queues.entries.get_mut(&identity)?;
        Some(std::mem::replace(&mut entry.reservation, self.budget.adopt(0)))
    }

    /// The current dirty record of a key.
    pub(crate) fn record(&self, identity: Identity) -> Option<Rc<DirtyRecord>> {
        self.queues.borrow().entries.get(&identity).map(|entry| Rc::clone(&entry.record))
    }

    /// Whether the origin has what is here of a key.
    pub(crate) fn state(&self, identity: Identity) -> EntryState {
        match self.queues.borrow().entries.contains_key(&identity) {
            true => EntryState::Dirty,
            false => EntryState::Clean,
        }
    }

    /// Where the current dirty record of a key stands.
    pub(crate) fn standing(&self, identity: Identity) -> Option<Standing> {
        self.queues.borrow().entries.get(&identity).map(|entry| entry.standing)
    }

    /// Whether a key must not be read, whatever the index or the origin has.
    pub(crate) fn withheld(&self, identity: Identity) -> Option<Withheld> {
        let queues = self.queues.borrow();
        let entry = queues.entries.get(&identity)?;
        match (&entry.record.kind, entry.standing) {
            (DirtyKind::Tombstone, _) | (_, Standing::Queued | Standing::Backoff(_) | Standing::Conflict)
                if entry.record.certainty == Certainty::Unsure =>
            {
                Some(Withheld::Unsure)
            }
            (DirtyKind::Tombstone, _) => Some(Withheld::Deleted),
            (DirtyKind::Block { .. }, Standing::Lost) => Some(Withheld::Lost),
            (DirtyKind::Block { .. }, _) => None,
        }
    }

    /// Whether `generation` is what is dirty under `identity`.
    pub(crate) fn is_current(&self, identity: Identity, generation: Generation) -> bool {
        self.queues.borrow().entries.get(&identity).is_some_and(|entry| entry.record.generation == generation)
    }

    /// The oldest record that may be flushed now. Volumes take turns by the age of their oldest.
    pub(crate) fn next(&self, now: Nanos) -> Next {
        let queues = &mut *self.queues.borrow_mut();
        queues.wake_backoff(now);
        let oldest = queues
            .volumes
            .values()
            .filter(|volume| volume.may_flush(now))
            .filter_map(|volume| volume.ready.first().copied())
            .min();
        if let Some(age) = oldest {
            let entry = queues.entries.get_mut(&age.2).expect("a queued identity has its entry");
            assert!(entry.flushing.is_none(), "never two flushes of a key at once");
            entry.flushing = Some(entry.record.generation);
            let volume = queues.volumes.get_mut(&entry.record.key.volume).expect("a record's volume has its queue");
            volume.ready.remove(&age);
            volume.flushing_count += 1;
            return Next::Flush(Rc::clone(&entry.record));
        }
        match queues.volumes.values().filter_map(VolumeQueue::next_event).min() {
            Some(at) => Next::At(at),
            None => Next::Idle,
        }
    }

    /// Ends the flush that [`DirtyQueue::next`] began.
    pub(crate) fn finished(&self, record: &DirtyRecord, end: Finished) {
        {
            let queues = &mut *self.queues.borrow_mut();
            let volume = queues.volumes.get_mut(&record.key.volume).expect("a record's volume has its queue");
            volume.flushing_count -= 1;
            if let Some(entry) = queues.entries.get_mut(&record.identity)
                && entry.flushing == Some(record.generation)
            {
                entry.flushing = None;
                let is_current = entry.record.generation == record.generation;
                if entry.standing == Standing::Lost && is_current && end == Finished::Done {
                    // It rotted on disk after it was read for this flush: the origin has it, so it is not lost.
                    queues.end(record.identity, end);
                } else if matches!(entry.standing, Standing::Conflict | Standing::Lost) {
                    // A synchronous store met the conflict while this flush waited for the key's lane.
                } else if is_current {
                    match end {
                        Finished::Done | Finished::Conflict | Finished::Lost => queues.end(record.identity, end),
                        Finished::Retry(at) => {
                            entry.failures += 1;
                            entry.standing = Standing::Backoff(at);
                            volume.backoff.insert((at, record.generation, record.identity));
                        }
                        Finished::Superseded => drop(volume.ready.insert(turn_of(entry))),
                    }
                } else {
                    volume.ready.insert(turn_of(entry));
                }
            }
        }
        self.changed.notify(usize::MAX);
    }

    /// Settles a record outside of the flusher (under the key's origin lane): confirmed by a synchronous store, found
    /// in conflict or lost. Nothing happens if it is not current any more.
    pub(crate) fn settle(&self, identity: Identity, generation: Generation, end: Finished) {
        {
            let queues = &mut *self.queues.borrow_mut();
            let Some(entry) = queues.entries.get_mut(&identity) else { return };
            if entry.record.generation != generation {
                return;
            }
            let volume = queues.volumes.get_mut(&entry.record.key.volume).expect("a record's volume has its queue");
            volume.dequeue(entry);
            queues.end(identity, end);
        }
        self.changed.notify(usize::MAX);
    }

    /// Failed flushes in a row of this record.
    pub(crate) fn failures(&self, identity: Identity) -> u32 {
        self.queues.borrow().entries.get(&identity).map_or(0, |entry| entry.failures)
    }

    /// Whether the delete that goes before this record's store has been sent.
    pub(crate) fn delete_was_sent(&self, identity: Identity, generation: Generation) -> bool {
        let queues = self.queues.borrow();
        queues.entries.get(&identity).is_some_and(|entry| entry.record.generation == generation && entry.delete_sent)
    }

    /// The delete that goes before this record's store has been sent.
    pub(crate) fn mark_delete_sent(&self, identity: Identity, generation: Generation) {
        if let Some(entry) = self.queues.borrow_mut().entries.get_mut(&identity)
            && entry.record.generation == generation
        {
            entry.delete_sent = true;
        }
    }

    /// Whether a flush of the key is in progress.
    pub(crate) fn is_flushing(&self, identity: Identity) -> bool {
        self.queues.borrow().entries.get(&identity).is_some_and(|entry| entry.flushing.is_some())
    }

    /// Flushes in progress.
    pub(crate) fn flushing_count(&self) -> usize {
        self.queues.borrow().volumes.values().map(|volume| volume.flushing_count).sum()
    }

    /// Failed probes in a row of a volume in an outage.
    pub(crate) fn probes_failed(&self, volume: &str) -> u32 {
        let queues = self.queues.borrow();
        queues.volumes.get(volume).map_or(0, VolumeQueue::probes_failed)
    }

    /// The volume's origin did not answer: from now on one probe at a time.
    pub(crate) fn unreachable(&self, volume: &str, next_probe: Nanos) {
        let mut queues = self.queues.borrow_mut();
        let Some(volume) = queues.volumes.get_mut(volume) else { return };
        volume.probe_failed(next_probe);
    }

    /// The volume's origin answered: what waited because of the outage is tried at once.
    pub(crate) fn reachable(&self, volume: &str) {
        let was_out = {
            let queues = &mut *self.queues.borrow_mut();
            let Some(volume) = queues.volumes.get_mut(volume) else { return };
            let was_out = volume.outage.take().is_some();
            if was_out {
                volume.retry_all(&mut queues.entries);
            }
            was_out
        };
        if was_out {
            self.changed.notify(usize::MAX);
        }
    }

    /// Tries everything now, whatever its backoff: a drain has begun.
    pub(crate) fn hurry(&self) {
        {
            let queues = &mut *self.queues.borrow_mut();
            for volume in queues.volumes.values_mut() {
                volume.outage = None;
                volume.retry_all(&mut queues.entries);
            }
        }
        self.changed.notify(usize::MAX);
    }

    /// Of up to `max` records behind `after`, oldest first: how many are `chosen`, which go first from now on; and where to go on, if
    /// there may be more.
    pub(crate) fn choose_first(
        &self,
        after: Option<Age>,
        max: usize,
        chosen: &impl Fn(&BlockKey) -> bool,
    ) -> (u64, Option<Age>) {
        let queues = &mut *self.queues.borrow_mut();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ages: Vec<Age> = queues.by_age.range((from, Bound::Unbounded)).take(max).copied().collect();
        let mut count = 0;
        for (.., identity) in &ages {
            let entry = queues.entries.get_mut(identity).expect("a queued identity has its entry");
            if !chosen(&entry.record.key) {
                continue;
            }
            count += 1;
            let volume = queues.volumes.get_mut(&entry.record.key.volume).expect("a record's volume has its queue");
            let is_ready = volume.ready.remove(&turn_of(entry));
            entry.goes_first = true;
            if is_ready {
                volume.ready.insert(turn_of(entry));
            }
        }
        (count, ages.last().copied().filter(|_| ages.len() == max))
    }

    /// Whether something is left that a flush could settle.
    pub(crate) fn has_work(&self) -> bool {
        let queues = self.queues.borrow();
        queues.volumes.values().any(|v| !v.ready.is_empty() || !v.backoff.is_empty() || v.flushing_count > 0)
    }

    /// Resolves at the next change of the queue.
    pub(crate) fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    /// Wakes whoever listens.
    pub(crate) fn notify(&self) {
        self.changed.notify(usize::MAX);
    }

    pub(crate) fn totals(&self) -> DirtyTotals {
        let queues = self.queues.borrow();
        DirtyTotals {
            records: queues.entries.len() as u64,
            conflicts: queues.conflicts,
            lost: queues.lost,
            flushing: queues.volumes.values().map(|volume| volume.flushing_count as u64).sum(),
            oldest_since_unix_ms: queues.by_age.first().map(|(since_unix_ms, ..)| *since_unix_ms),
        }
    }

    /// How many records each volume has, of those that have any.
    pub(crate) fn by_volume(&self) -> Vec<(Arc<str>, u64)> {
        let queues = self.queues.borrow();
        let counted = queues.volumes.iter().filter(|(_, volume)| volume.records > 0);
        counted.map(|(name, volume)| (Arc::clone(name), volume.records)).collect()
    }

    /// Up to `max` records, oldest first.
    pub(crate) fn list(&self, max: usize) -> Vec<DirtyItem> {
        let queues = self.queues.borrow();
        queues.by_age.iter().take(max).map(|(.., identity)| queues.entries[identity].item()).collect()
    }

    /// Every dirty record; for `check`.
    pub(crate) fn records(&self) -> Vec<Rc<DirtyRecord>> {
        self.queues.borrow().entries.values().map(|entry| Rc::clone(&entry.record)).collect()
    }

    /// I10, and that the queues and the entries agree.
    pub(crate) fn check(&self) {
        self.budget.check();
        let queues = self.queues.borrow();
        let held: u64 = queues.entries.values().map(|entry| entry.reservation.bytes()).sum();
        assert!(held <= self.budget.used_bytes(), "I10: every dirty record is paid for");
        let standing = |standing| queues.entries.values().filter(|entry| entry.standing == standing).count() as u64;
        assert_eq!((standing(Standing::Conflict), standing(Standing::Lost)), (queues.conflicts, queues.lost));
        assert_eq!(queues.entries.len(), queues.by_age.len());
        let of_volumes: u64 = queues.volumes.values().map(|volume| volume.records).sum();
        assert_eq!(of_volumes, queues.entries.len() as u64, "each record is counted for its volume");
        for (identity, entry) in &queues.entries {
            assert!(queues.by_age.contains(&age_of(&entry.record)));
            let volume = &queues.volumes[&entry.record.key.volume];
            assert_eq!(*identity, entry.record.identity);
            let ready = volume.ready.contains(&turn_of(entry));
            let waits = match entry.standing {
                Standing::Backoff(at) => volume.backoff.contains(&(at, entry.record.generation, *identity)),
                _ => false,
            };
            let places = usize::from(ready) + usize::from(waits) + usize::from(entry.flushing.is_some());
            let settled = matches!(entry.standing, Standing::Conflict | Standing::Lost);
            assert!(places == 1 || settled && places == 0, "a dirty record is in one place: {:?}", entry.standing);
        }
    }
}

impl Entry {
    fn item(&self) -> DirtyItem {
        DirtyItem {
            key: self.record.key.clone(),
            kind: self.record.kind,
            since_unix_ms: self.record.since_unix_ms,
            standing: self.standing,
            certainty: self.record.certainty,
        }
    }
}

impl Queues {
    fn take(&mut self, identity: Identity) -> Option<Entry> {
        let entry = self.entries.remove(&identity)?;
        self.by_age.remove(&age_of(&entry.record));
        self.volume_of(&entry.record).records -= 1;
        self.conflicts -= u64::from(entry.standing == Standing::Conflict);
        self.lost -= u64::from(entry.standing == Standing::Lost);
        Some(entry)
    }

    /// Ends a record's time in the queue, for good or for bad.
    fn end(&mut self, identity: Identity, end: Finished) {
        let Some(entry) = self.take(identity) else { return };
        let standing = match end {
            Finished::Done => return,
            Finished::Conflict => Standing::Conflict,
            Finished::Lost => Standing::Lost,
            Finished::Retry(_) | Finished::Superseded => unreachable!("only a flush is tried again"),
        };
        self.conflicts += u64::from(standing == Standing::Conflict);
        self.lost += u64::from(standing == Standing::Lost);
        self.by_age.insert(age_of(&entry.record));
        self.volume_of(&entry.record).records += 1;
        self.entries.insert(identity, Entry { standing, ..entry });
    }

    fn volume_of(&mut self, record: &DirtyRecord) -> &mut VolumeQueue {
        self.volumes.get_mut(&record.key.volume).expect("a record's volume has its queue")
    }

    /// Moves what has waited long enough to its place by age.
    fn wake_backoff(&mut self, now: Nanos) {
        for volume in self.volumes.values_mut() {
            while let Some(&(at, _, identity)) = volume.backoff.first().filter(|(at, ..)| *at <= now) {
                let entry = self.entries.get_mut(&identity).expect("a queued identity has its entry");
                assert_eq!(entry.standing, Standing::Backoff(at));
                volume.make_ready(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests;
