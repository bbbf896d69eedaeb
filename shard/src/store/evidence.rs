//! What a damaged disk still tells of its dirty records, gathered and weighed. Pure: reads nothing.
//!
//! Called by `salvage`. Every readable frame of journal, checkpoints and footers is evidence: that a generation of a key was
//! dirty at some moment, or that the origin had confirmed it. Moments are numbers of journal frames. Upholds promise 1 (what
//! is readable comes back), and that nothing older than the newest readable version of a key does. What is the newest
//! readable version, and yet may have been settled by frames that are gone, is [`Certainty::Unsure`]. Memory is bounded: if
//! there is more than fits, keys are weighed slice by slice of their identities, with a pass over everything for each.

use forebay_io::superblock::Superblock;
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use super::NodeIdentity;
use super::block::{Certainty, DirtyRecord, Pinning};
use super::footer::DirtyNote;
use super::record::{PutRecord, Record};
use super::regions::Epoch;
use super::replay::is_possible;
use crate::key::{Generation, Identity};

/// A trace without its key: entry of the table, vector, box of the put, box of the dirty record, counts of the two names.
const TRACE_BYTES: usize = 96 + size_of::<Trace>() + size_of::<PutRecord>() + size_of::<DirtyRecord>() + 64;

/// When and how surely a record was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// It was dirty when this frame was the last; `None`: at a time unknown.
    pub at: Option<u64>,
    /// Its payload was on stable storage: it was not in doubt.
    pub is_durable: bool,
}

/// One dirty record as something on disk names it.
#[derive(Debug, Clone)]
pub enum Trace {
    /// A put at a place.
    Put(Box<PutRecord>, Seen),
    /// A delete.
    Tombstone(Box<DirtyRecord>, Seen),
}

impl Trace {
    /// Which put or delete it is.
    #[must_use]
    pub fn generation(&self) -> Generation {
        match self {
            Trace::Put(put, _) => put.generation,
            Trace::Tombstone(record, _) => record.generation,
        }
    }

    /// What it takes in memory, at most: itself with its box, its key, its share of the table.
    fn bytes(&self) -> usize {
        let record = match self {
            Trace::Put(put, _) => put.dirty.as_deref(),
            Trace::Tombstone(record, _) => Some(&**record),
        };
        let key_bytes = record.map_or(0, |record| record.key.key.len() + record.key.volume.len());
        TRACE_BYTES + key_bytes
    }

    /// How it was seen.
    #[must_use]
    pub fn seen(&self) -> Seen {
        match self {
            Trace::Put(_, seen) | Trace::Tombstone(_, seen) => *seen,
        }
    }

    /// The same record as `other` names it: unsure if either is.
    fn weaken(&mut self, other: &Trace) {
        let is_unsure = match other {
            Trace::Put(put, _) => put.dirty.as_ref().is_some_and(|dirty| dirty.certainty == Certainty::Unsure),
            Trace::Tombstone(record, _) => record.certainty == Certainty::Unsure,
        };
        let record = match self {
            Trace::Put(put, _) => put.dirty.as_deref_mut(),
            Trace::Tombstone(record, _) => Some(&mut **record),
        };
        if let Some(record) = record.filter(|_| is_unsure) {
            record.certainty = Certainty::Unsure;
        }
    }

    /// The epoch of its region; a tombstone lies nowhere.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        match self {
            Trace::Put(put, _) => put.epoch,
            Trace::Tombstone(..) => Epoch(0),
        }
    }
}

/// All traces of one generation of a key, those of the latest opening of a region first.
pub struct Version {
    /// Which.
    pub generation: Generation,
    /// At least one.
    pub traces: Vec<Trace>,
    /// Whether nothing that can't be read may have settled it.
    pub certainty: Certainty,
    /// Whether it was surely dirty once: acknowledged, or about to be.
    pub was_dirty: bool,
}

/// Everything gathered.
pub struct Evidence<'a> {
    superblock: &'a Superblock,
    node: &'a NodeIdentity,
    /// The newest note of any footer.
    note: Option<DirtyNote>,
    /// From this frame on everything that was durable can be read.
    complete_from: u64,
    traces: HashMap<Identity, Vec<Trace>>,
    /// What they take in memory, by `Trace::bytes`.
    held_bytes: usize,
    /// What they may.
    bytes_max: usize,
    /// The most that they ever took.
    held_bytes_most: usize,
    /// The identities whose turn it is; the others' traces are not kept.
    slice: RangeInclusive<u128>,
    /// Whether everything was looked at once: figures are complete, and not counted again.
    is_counted: bool,
    /// The newest generation of a key that the origin has, for keys with traces.
    settled: HashMap<Identity, Generation>,
    /// Generations that the note names and that were seen at all.
    generations: HashSet<Generation>,
    /// Openings of regions.
    pub epochs: HashMap<u32, Epoch>,
    /// Quarantined regions and the epoch in which they were.
    pub quarantined: HashMap<u32, Epoch>,
    /// Above every generation that was seen.
    pub next_generation: Generation,
    /// Records that can't be this store's.
    pub malformed: u64,
    /// Records looked at.
    pub records: u64,
}

impl<'a> Evidence<'a> {
    /// Nothing gathered yet; `complete_from` as in [`super::scan::RingFrames`], `last` the last frame that can be read,
    /// `proven` the last one that a slot proves to have been durable.
    #[must_use]
    pub fn new(
        superblock: &'a Superblock,
        node: &'a NodeIdentity,
        note: Option<DirtyNote>,
        (complete_from, last): (u64, u64),
        proven: u64,
        bytes_max: usize,
    ) -> Evidence<'a> {
        // A frame behind the last readable one that was durable, by a note or a slot: frames are missing there.
        let is_cut = proven > last || note.as_ref().is_some_and(|note| note.durable > last);
        Evidence {
            superblock,
            node,
            complete_from: if is_cut { u64::MAX } else { complete_from },
            next_generation: note.as_ref().map_or(Generation(1), |note| note.next_generation),
            note,
            traces: HashMap::new(),
            held_bytes: 0,
            bytes_max,
            held_bytes_most: 0,
            slice: 0..=u128::MAX,
            is_counted: false,
            settled: HashMap::new(),
            generations: HashSet::new(),
            epochs: HashMap::new(),
            quarantined: HashMap::new(),
            malformed: 0,
            records: 0,
        }
    }

    /// The store's superblock.
    #[must_use]
    pub fn superblock(&self) -> &'a Superblock {
        self.superblock
    }

    /// The first pass over a record: what is dirty, and which epochs and generations there were.
    pub fn gather(&mut self, record: &Record, seen: Seen) {
        let first = u64::from(!self.is_counted);
        self.records += first;
        match record {
            Record::Put(put) if !is_possible(put, self.superblock, self.node) => self.malformed += first,
            Record::Put(put) => {
                self.opened(put.at.region, put.epoch);
                self.saw(put.generation);
                if put.dirty.is_some() && !self.is_noted_settled(put.generation) {
                    self.found(put.generation);
                    // Of a pin taken back since nothing would be known: after a disaster none holds.
                    let put = PutRecord { pinning: Pinning::Unpinned, ..put.clone() };
                    self.add(put.identity, Trace::Put(Box::new(put), seen));
                }
            }
            Record::Tombstone(record) if self.node.identity_key.identity(&record.key) != record.identity => {
                self.malformed += first;
            }
            Record::Tombstone(record) => {
                self.saw(record.generation);
                if !self.is_noted_settled(record.generation) {
                    self.found(record.generation);
                    self.add(record.identity, Trace::Tombstone(Box::new(record.clone()), seen));
                }
            }
            Record::RegionOpen { region, epoch, .. } if *region < self.superblock.region_count => {
                self.opened(*region, *epoch);
            }
            Record::Quarantined { region, epoch } if *region < self.superblock.region_count => {
                self.opened(*region, *epoch);
                let known = self.quarantined.entry(*region).or_insert(*epoch);
                *known = (*epoch).max(*known);
            }
            Record::RegionOpen { .. } | Record::Quarantined { .. } => self.malformed += first,
            Record::Flushed { generation, .. } => {
                self.found(*generation);
                self.saw(*generation);
            }
            Record::Remove { up_to, .. } | Record::Pin { up_to, .. } => self.saw(*up_to),
            Record::Opened { next_generation, .. } => self.next_generation = self.next_generation.max(*next_generation),
            Record::Void { .. } => {}
        }
    }

    /// The second pass: what the origin had confirmed, of keys that have traces. A clean put proves it of everything older
    /// of its key: no fill and no confirmed put is published over a dirty record. A `Remove` proves nothing (I4).
    pub fn settle(&mut self, record: &Record) {
        let (identity, generation) = match record {
            Record::Put(put) if put.dirty.is_none() => (put.identity, put.generation),
            Record::Flushed { identity, generation } => (*identity, *generation),
            _ => return,
        };
        if self.traces.contains_key(&identity) {
            let settled = self.settled.entry(identity).or_insert(generation);
            *settled = generation.max(*settled);
        }
    }

    /// The keys of this slice with traces and their versions, newest first; in order of identity, so that a seed replays.
    pub fn versions(&mut self) -> Vec<(Identity, Vec<Version>)> {
        let mut keys: Vec<(Identity, Vec<Trace>)> = std::mem::take(&mut self.traces).into_iter().collect();
        keys.sort_unstable_by_key(|(identity, _)| *identity);
        keys.into_iter().map(|(identity, traces)| (identity, self.versions_of(identity, traces))).collect()
    }

    /// Goes on to the next slice: everything is to be gathered and settled once more. False if this was the last.
    pub fn next_slice(&mut self) -> bool {
        (self.is_counted, self.held_bytes) = (true, 0);
        self.traces.clear();
        self.settled.clear();
        let next = self.slice.end().checked_add(1);
        if let Some(first) = next {
            self.slice = first..=u128::MAX;
        }
        next.is_some()
    }

    /// Whether this is the first pass.
    #[must_use]
    pub fn is_first(&self) -> bool {
        !self.is_counted
    }

    fn versions_of(&self, identity: Identity, mut traces: Vec<Trace>) -> Vec<Version> {
        let settled = self.settled.get(&identity);
        traces.retain(|trace| settled.is_none_or(|settled| trace.generation() > *settled));
        traces.sort_by_key(|trace| std::cmp::Reverse((trace.generation(), trace.epoch())));
        let mut versions: Vec<Version> = Vec::new();
        for trace in traces {
            match versions.last_mut() {
                Some(version) if version.generation == trace.generation() => version.traces.push(trace),
                _ => versions.push(Version {
                    generation: trace.generation(),
                    traces: vec![trace],
                    certainty: Certainty::Unsure,
                    was_dirty: false,
                }),
            }
        }
        versions.iter_mut().for_each(|version| self.weigh(version));
        versions
    }

    fn weigh(&self, version: &mut Version) {
        let note = self.note.as_ref().filter(|note| note.names(version.generation));
        let seen = version.traces.iter().filter_map(|trace| trace.seen().at).chain(note.map(|note| note.sequence));
        // What an earlier disaster left unsure, no later frame makes sure.
        let was_unsure = note.is_some_and(|note| note.is_unsure(version.generation));
        let is_sure = seen.max().is_some_and(|at| at.saturating_add(1) >= self.complete_from) && !was_unsure;
        version.certainty = if is_sure { Certainty::Sure } else { Certainty::Unsure };
        version.was_dirty = note.is_some() || version.traces.iter().any(|trace| trace.seen().is_durable);
    }

    /// How many generations were dirty when that was last noted and left no record at all.
    #[must_use]
    pub fn unfound_count(&self) -> u64 {
        let noted = self.note.iter().flat_map(|note| &note.dirty);
        noted.filter(|generation| !self.generations.contains(generation)).count() as u64
    }

    fn is_noted_settled(&self, generation: Generation) -> bool {
        self.note.as_ref().is_some_and(|note| note.settles(generation))
    }

    fn found(&mut self, generation: Generation) {
        if self.note.as_ref().is_some_and(|note| note.names(generation)) {
            self.generations.insert(generation);
        }
    }

    fn add(&mut self, identity: Identity, trace: Trace) {
        if !self.slice.contains(&identity.0) {
            return;
        }
        let bytes = trace.bytes();
        let traces = self.traces.entry(identity).or_default();
        let same =
            traces.iter_mut().find(|known| (known.generation(), known.epoch()) == (trace.generation(), trace.epoch()));
        match same {
            // The same record, seen again.
            Some(known) => {
                known.weaken(&trace);
                let (Trace::Put(_, seen) | Trace::Tombstone(_, seen)) = known;
                seen.at = seen.at.max(trace.seen().at);
                seen.is_durable |= trace.seen().is_durable;
            }
            None => {
                traces.push(trace);
                self.held_bytes += bytes;
            }
        }
        self.shrink();
        self.held_bytes_most = self.held_bytes_most.max(self.held_bytes);
    }

    /// Leaves the upper half of the slice to a later pass, as often as it takes. Identities are hashes: a half is half.
    fn shrink(&mut self) {
        while self.held_bytes > self.bytes_max && self.traces.len() > 1 {
            let (first, last) = self.slice.clone().into_inner();
            let middle = first + (last - first) / 2;
            self.slice = first..=middle;
            self.traces.retain(|identity, _| identity.0 <= middle);
            self.held_bytes = self.traces.values().flatten().map(Trace::bytes).sum();
        }
    }

    fn opened(&mut self, region: u32, epoch: Epoch) {
        let known = self.epochs.entry(region).or_insert(epoch);
        *known = epoch.max(*known);
    }

    fn saw(&mut self, generation: Generation) {
        self.next_generation = self.next_generation.max(Generation(generation.0 + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::DirtyKind;
    use super::*;
    use crate::key::{BlockKey, IdentityKey};

    const SUPERBLOCK: Superblock = Superblock {
        node_id: 1,
        store_id: 2,
        shard: 0,
        shard_count: 1,
        identity_key: [7; 16],
        region_bytes: 1 << 20,
        region_count: 8,
        journal_bytes: 1 << 20,
        created_unix_ms: 0,
    };

    fn tombstone(node: &NodeIdentity, number: u64, generation: u64) -> Record {
        let key = BlockKey::new("v".into(), format!("a/key/of/some/length/{number}"));
        let identity = node.identity_key.identity(&key);
        let (generation, kind, certainty) = (Generation(generation), DirtyKind::Tombstone, Certainty::Sure);
        Record::Tombstone(DirtyRecord { key, identity, generation, kind, since_unix_ms: 0, certainty })
    }

    /// Keys with the generations of their versions, how many passes it took, and the most that was held.
    fn weighed(bytes_max: usize) -> (Vec<(Identity, Vec<u64>)>, u32, usize) {
        let node = NodeIdentity { node: 1, shard: 0, shard_count: 1, identity_key: IdentityKey([7; 16]) };
        let mut evidence = Evidence::new(&SUPERBLOCK, &node, None, (1, 10), 0, bytes_max);
        let (mut weighed, mut passes) = (Vec::new(), 0);
        loop {
            passes += 1;
            // Every third key has an older version, and every fifth was settled.
            for number in 0..3_000 {
                let seen = Seen { at: Some(5), is_durable: true };
                evidence.gather(&tombstone(&node, number, 10_000 + number), seen);
                if number % 3 == 0 {
                    evidence.gather(&tombstone(&node, number, 1 + number), seen);
                }
            }
            for number in (0..3_000).step_by(5) {
                let Record::Tombstone(record) = tombstone(&node, number, 10_000 + number) else { unreachable!() };
                evidence.settle(&Record::Flushed { identity: record.identity, generation: record.generation });
            }
            let versions = evidence.versions().into_iter();
            weighed.extend(versions.map(|(identity, versions)| {
                (identity, versions.into_iter().map(|version| version.generation.0).collect())
            }));
            if !evidence.next_slice() {
                break;
            }
        }
        assert_eq!(evidence.records, 4_000, "what is counted is counted once");
        (weighed, passes, evidence.held_bytes_most)
    }

    #[test]
    fn what_does_not_fit_into_memory_is_weighed_in_several_passes_to_the_same_end() {
        let (at_once, passes, most) = weighed(64 << 20);
        assert!(passes == 1 && at_once.len() == 3_000);
        assert_eq!(at_once.iter().filter(|(_, versions)| versions.is_empty()).count(), 600);
        for bytes_max in [most / 3, most / 40, 4 << 10] {
            let (sliced, passes, held) = weighed(bytes_max);
            assert!(held <= bytes_max, "{held} bytes of {bytes_max} were held");
            assert!(passes as usize >= most / bytes_max, "{passes} passes");
            assert!(sliced == at_once, "{passes} passes tell something else");
        }
    }
}
