//! Recovery: the newest complete checkpoint, then the journal behind it, then what both left in doubt.
//!
//! Called by `Store::open`. The journal is read first, because a record counts only in the last epoch of its region.
//! Records are applied in journal order by the rules of publish, so applying one again changes nothing. In doubt are
//! frames that were not surely synced: their payloads are read and verified, torn ones dropped (I11: they were never
//! acknowledged) and, before the store opens, declared void in the journal, so that no later recovery believes them
//! because their frame is older than a synced one. A record whose region was reused still hides older ones of its key (I13).

use std::rc::Rc;

use forebay_io::superblock::Superblock;
use forebay_io::{Disk, DiskFile, IoError, OpenMode, Runtime};
use std::collections::HashMap;

use super::checkpoint::{SlotReader, slot_name};
use super::commit::encoded;
use super::entry::Place;
use super::journal::{Journal, Point, Ring};
use super::publish::PutMode;
use super::record::{PutRecord, Record};
use super::regions::{RegionState, RegionTable, footprint};
use super::scan::{Scanned, scan};
use super::state::{Life, State};
use super::{NodeIdentity, RejectedCounts, StoreStats};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::{Generation, Identity};
use crate::outcome::{Located, Pin};
use crate::read::BlockReader;

/// A state that was read back, and what must be journaled before it is used.
pub struct Loaded {
    /// Entries, regions, dirty records; the journal stands behind its last good frame.
    pub state: State,
    /// Records that turned out torn.
    pub voids: Vec<Record>,
    /// The last frame that is in doubt no more once `voids` are journaled.
    pub settled_through: u64,
    /// What was not taken.
    pub rejected: RejectedCounts,
}

/// Reads back what the disk holds.
///
/// # Errors
/// What the device said; [`IoError::Corrupt`] if no checkpoint is whole.
pub async fn load<D: Disk, R: Runtime>(
    disk: &D,
    runtime: &R,
    slab: &D::File,
    superblock: &Superblock,
    node: &NodeIdentity,
) -> Result<Loaded, StoreError> {
    let mut rejected = RejectedCounts::default();
    let mut slots = Vec::new();
    for slot in 0..2 {
        match disk.open(&slot_name(superblock.shard, slot), OpenMode::Read).await {
            Err(IoError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(file) => match SlotReader::begin(file, superblock.store_id).await? {
                Some(reader) => slots.push(reader),
                None => rejected.checkpoint_slots += 1,
            },
        }
    }
    slots.sort_by_key(|reader| std::cmp::Reverse(reader.header.number));
    let points: Vec<(u64, u64)> = slots.iter().map(|slot| (slot.header.number, slot.header.from.position)).collect();
    for reader in slots {
        // What the older slot needs of the journal stays, so that either can be recovered from in this run too.
        let before =
            points.iter().find(|(number, _)| number + 1 == reader.header.number).map(|(_, position)| *position);
        let begun = Replay::begin(slab, superblock, node, reader.header.from, before).await;
        let mut replay = match begun {
            Ok(replay) => replay,
            // A slot that was never finished may name a point of a journal that a power cut took back: what follows there
            // is none of its business.
            Err(error) => {
                if !matches!(error, IoError::Corrupt { .. }) || reader.read(|_| {}).await? {
                    return Err(error.into());
                }
                rejected.checkpoint_slots += 1;
                continue;
            }
        };
        replay.state.checkpoint_number = reader.header.number;
        replay.saw(reader.header.next_generation, 0);
        let is_whole = reader.read(|frame| replay.apply_payload(frame.payload, frame.head.record_count)).await?;
        if !is_whole {
            rejected.checkpoint_slots += 1;
            continue;
        }
        let checkpoint_slots = rejected.checkpoint_slots;
        let mut loaded = replay.finish(runtime, slab).await?;
        loaded.rejected.checkpoint_slots = checkpoint_slots;
        return Ok(loaded);
    }
    let what = "neither checkpoint slot holds a whole checkpoint";
    Err(IoError::Corrupt { name: slot_name(superblock.shard, 0), at: 0, what }.into())
}

struct Replay<'a> {
    superblock: &'a Superblock,
    node: &'a NodeIdentity,
    state: State,
    scanned: Scanned,
    /// The newest generation of identities whose newest record lies in a region that was reused.
    stale: HashMap<Identity, Generation>,
    voids: Vec<Record>,
    rejected: RejectedCounts,
}

impl<'a> Replay<'a> {
    async fn begin<F: DiskFile>(
        slab: &F,
        superblock: &'a Superblock,
        node: &'a NodeIdentity,
        from: Point,
        covered_before: Option<u64>,
    ) -> Result<Replay<'a>, IoError> {
        let ring = Ring { at: Superblock::JOURNAL_AT, len_bytes: superblock.journal_bytes };
        let scanned = scan(slab, superblock.store_id, ring, from).await?;
        let journal = Journal::new(ring, scanned.end, from.position, covered_before, scanned.synced_through);
        let state = State {
            index: Default::default(),
            extensions: Default::default(),
            dirty: HashMap::new(),
            dirty_bytes: 0,
            regions: RegionTable::new(superblock.region_count),
            streams: Default::default(),
            queue: Default::default(),
            journal,
            checkpoint_number: 0,
            next_generation: 1,
            life: Life::Running,
            freed: false,
            counters: StoreStats::default(),
        };
        let rejected = RejectedCounts {
            torn_frames: u64::from(scanned.is_torn),
            malformed: scanned.malformed,
            ..RejectedCounts::default()
        };
        let (stale, voids) = (HashMap::new(), Vec::new());
        let mut replay = Replay { superblock, node, state, scanned, stale, voids, rejected };
        if !canary::is(Canary::EpochsLearnedLate) {
            replay.learn_epochs();
        }
        Ok(replay)
    }

    /// The last epoch of each region as far as the journal tells; the checkpoint begins with the others.
    fn learn_epochs(&mut self) {
        for record in self.scanned.frames.iter().flat_map(|frame| &frame.records) {
            if let Record::RegionOpen { region, epoch, .. } = record
                && *region < self.superblock.region_count
            {
                self.state.regions.recover_epoch(*region, *epoch);
            }
        }
    }

    fn apply_payload(&mut self, mut payload: &[u8], record_count: u32) {
        for _ in 0..record_count {
            match Record::decode(&mut payload) {
                Ok(record) => self.apply(record),
                Err(_) => {
                    self.rejected.malformed += 1;
                    return;
                }
            }
        }
    }

    /// Applies the journal, verifying what is in doubt, and settles the regions.
    async fn finish<F: DiskFile, R: Runtime>(mut self, runtime: &R, slab: &F) -> Result<Loaded, StoreError> {
        let frames = std::mem::take(&mut self.scanned.frames);
        for frame in frames {
            let in_doubt = frame.sequence > self.scanned.synced_through;
            for (ordinal, record) in (0u32..).zip(frame.records) {
                if let Record::Put(put) = &record {
                    // Generations of dropped records are not given out again either.
                    self.saw(put.generation, 1);
                    if self.scanned.voids.contains(&(frame.sequence, ordinal)) {
                        continue;
                    }
                    let in_doubt = in_doubt && !canary::is(Canary::TornPayloadAccepted);
                    if in_doubt && self.is_current(put) && !self.is_intact(put, slab).await? {
                        self.rejected.torn_payload += 1;
                        self.voids.push(Record::Void { sequence: frame.sequence, ordinal });
                        continue;
                    }
                }
                self.apply(record);
            }
            runtime.yield_now().await;
        }
        for number in 0..self.state.regions.count() {
            let region = self.state.regions.at_mut(number);
            region.state = if region.live > 0 { RegionState::Sealed } else { RegionState::Free };
        }
        self.rejected.stale_epoch += self.stale.len() as u64;
        self.state.freed = false;
        self.state.counters = StoreStats::default();
        let settled_through = self.state.journal.head.chain.sequence - 1;
        Ok(Loaded { state: self.state, voids: self.voids, settled_through, rejected: self.rejected })
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Put(put) => self.apply_put(&put),
            Record::Tombstone(record) => {
                self.saw(record.generation, 1);
                if self.hides(record.identity, record.generation) {
                    return;
                }
                self.stale.remove(&record.identity);
                if self.node.identity_key.identity(&record.key) == record.identity {
                    self.state.publish_tombstone(Rc::new(record));
                } else {
                    self.rejected.malformed += 1;
                }
            }
            Record::Flushed { identity, generation } => {
                self.state.mark_flushed(identity, generation);
            }
            Record::Remove { identity, up_to } => {
                self.saw(up_to, 1);
                self.state.publish_remove(identity, up_to);
            }
            Record::RegionOpen { region, epoch, .. } => {
                if region < self.superblock.region_count {
                    self.state.regions.recover_epoch(region, epoch);
                } else {
                    self.rejected.malformed += 1;
                }
            }
            Record::Opened { next_generation, .. } => self.saw(next_generation, 0),
            Record::Void { .. } => {}
        }
    }

    fn apply_put(&mut self, put: &PutRecord) {
        self.saw(put.generation, 1);
        if !self.is_possible(put) {
            self.rejected.malformed += 1;
        } else if self.hides(put.identity, put.generation) {
            self.rejected.outlived += u64::from(self.is_current(put));
        } else if self.is_current(put) {
            self.stale.remove(&put.identity);
            self.state.publish_put(put, &PutMode::Replay);
        } else if !canary::is(Canary::StaleRecordRevives) {
            // Its bytes are gone. It was evicted, or a newer record follows; older ones of its key are gone either way.
            let current = self.state.index.find(put.identity);
            match current {
                Some(entry) if entry.generation() > put.generation => {}
                Some(entry) => {
                    self.rejected.outlived += 1;
                    self.state.take_out(entry);
                    self.stale.insert(put.identity, put.generation);
                }
                None => {
                    self.stale.insert(put.identity, put.generation);
                }
            }
        }
    }

    /// Whether a record of a reused region is newer (I13).
    fn hides(&self, identity: Identity, generation: Generation) -> bool {
        self.stale.get(&identity).is_some_and(|newest| *newest > generation)
    }

    fn is_current(&self, put: &PutRecord) -> bool {
        self.is_possible(put) && self.state.regions.at(put.at.region).epoch == put.epoch
    }

    fn is_possible(&self, put: &PutRecord) -> bool {
        let fits = put.at.offset() + footprint(put.len_bytes) <= self.superblock.region_bytes;
        let is_named = put.dirty.as_ref().is_none_or(|dirty| {
            self.node.identity_key.identity(&dirty.key) == put.identity && dirty.generation == put.generation
        });
        put.at.region < self.superblock.region_count && fits && is_named
    }

    /// Reads and verifies a payload that may be torn.
    async fn is_intact<F: DiskFile>(&self, put: &PutRecord, slab: &F) -> Result<bool, IoError> {
        let Place { region, .. } = put.at;
        let region_at = self.superblock.regions_at() + u64::from(region) * self.superblock.region_bytes;
        let located = Located {
            shard: self.node.shard,
            offset: region_at + put.at.offset(),
            len_bytes: put.len_bytes,
            identity: put.identity,
            generation: put.generation,
            sums: put.sums.clone(),
            etag: None,
            pin: Pin { region },
        };
        let reader = BlockReader::new(slab.clone(), located);
        for index in 0..reader.piece_count() {
            match reader.piece(index).await {
                Ok(_) => {}
                Err(crate::read::ReadError::Rot { .. }) => return Ok(false),
                Err(crate::read::ReadError::Disk(error)) => return Err(error),
            }
        }
        Ok(true)
    }

    fn saw(&mut self, generation: Generation, used: u64) {
        let used = if canary::is(Canary::GenerationReused) { 0 } else { used };
        self.state.next_generation = self.state.next_generation.max(generation.0 + used);
    }
}

/// The payloads of the frames that open a new run: the nonce that makes them unlike any earlier frame, and the voids.
pub fn opening_payloads(state: &State, voids: &[Record], nonce: u64) -> Vec<(Vec<u8>, u32)> {
    let opened = Record::Opened { nonce, next_generation: Generation(state.next_generation) };
    let mut payloads: Vec<(Vec<u8>, u32)> = vec![(encoded(&opened), 1)];
    for void in voids {
        let bytes = encoded(void);
        match payloads.last_mut() {
            Some((payload, count)) if payload.len() + bytes.len() <= state.journal.payload_bytes_max() => {
                payload.extend_from_slice(&bytes);
                *count += 1;
            }
            _ => payloads.push((bytes, 1)),
        }
    }
    payloads
}
