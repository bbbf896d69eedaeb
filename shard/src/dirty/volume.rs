//! The dirty records of one volume: which may be flushed now, which wait, and whether its origin is reachable.
//!
//! Used by `dirty` alone. Each volume has its own, so that an origin that does not answer holds up nobody else: in an
//! outage one probe at a time is let through.

use std::collections::BTreeSet;

use forebay_io::Nanos;

use super::{Entry, Standing};
use crate::key::{Generation, Identity, IdentityMap};
use crate::store::DirtyRecord;

/// Since when a record is dirty, its generation, its identity: what records are ordered by.
pub(super) type Age = (u64, Generation, Identity);

#[derive(Default)]
pub(super) struct VolumeQueue {
    /// By [`turn_of`].
    pub(super) ready: BTreeSet<Age>,
    /// By the instant of the next try.
    pub(super) backoff: BTreeSet<(Nanos, Generation, Identity)>,
    pub(super) flushing_count: usize,
    /// All of its dirty records, those in conflict or lost included.
    pub(super) records: u64,
    pub(super) outage: Option<Outage>,
}

/// A volume's origin can't be reached.
pub(super) struct Outage {
    probes_failed: u32,
    next_probe: Nanos,
}

impl VolumeQueue {
    pub(super) fn probes_failed(&self) -> u32 {
        self.outage.as_ref().map_or(0, |outage| outage.probes_failed)
    }

    pub(super) fn probe_failed(&mut self, next_probe: Nanos) {
        self.outage = Some(Outage { probes_failed: self.probes_failed() + 1, next_probe });
    }

    pub(super) fn may_flush(&self, now: Nanos) -> bool {
        self.outage.as_ref().is_none_or(|outage| self.flushing_count == 0 && outage.next_probe <= now)
    }

    /// When time alone will give the flusher something to do.
    pub(super) fn next_event(&self) -> Option<Nanos> {
        let backoff = self.backoff.first().map(|(at, ..)| *at);
        match &self.outage {
            None => backoff,
            // The end of the flush in progress wakes the flusher.
            Some(_) if self.flushing_count > 0 => None,
            Some(outage) if !self.ready.is_empty() => Some(outage.next_probe),
            Some(outage) => backoff.map(|at| at.max(outage.next_probe)),
        }
    }

    pub(super) fn make_ready(&mut self, entry: &mut Entry) {
        self.dequeue(entry);
        entry.standing = Standing::Queued;
        self.ready.insert(turn_of(entry));
    }

    pub(super) fn retry_all(&mut self, entries: &mut IdentityMap<Entry>) {
        while let Some(&(_, _, identity)) = self.backoff.first() {
            self.make_ready(entries.get_mut(&identity).expect("a queued identity has its entry"));
        }
    }

    pub(super) fn dequeue(&mut self, entry: &Entry) {
        self.ready.remove(&turn_of(entry));
        if let Standing::Backoff(at) = entry.standing {
            self.backoff.remove(&(at, entry.record.generation, entry.record.identity));
        }
    }
}

pub(super) fn age_of(record: &DirtyRecord) -> Age {
    (record.since_unix_ms, record.generation, record.identity)
}

/// The place in the flusher's line: by age, and before all others what was chosen to go first.
pub(super) fn turn_of(entry: &Entry) -> Age {
    let (since_unix_ms, generation, identity) = age_of(&entry.record);
    (if entry.goes_first { 0 } else { since_unix_ms }, generation, identity)
}
