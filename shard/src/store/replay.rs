//! Rebuilding the state from a checkpoint and the journal behind it.
//!
//! Called by `recover`. The journal is scanned first, because a record counts only in the last epoch of its region. Records
//! are applied in journal order by the rules of publish, so applying one again changes nothing. In doubt are frames that
//! were not surely synced: their payloads are read and verified, torn ones dropped (I11: they were never acknowledged) and,
//! before the store opens, declared void, so that no later recovery believes them because their frame is older than a synced
//! one. A record whose region was reused still hides older ones of its key (I13).

use std::rc::Rc;

use forebay_io::superblock::Superblock;
use forebay_io::{DiskFile, IoError, Runtime};
use std::collections::{HashMap, HashSet};

use super::doubt::{self, Doubtful, RecordAt};
use super::gone::Gone;
use super::journal::{Journal, Point, Ring};
use super::publish::PutMode;
use super::record::{PlainPut, PutRecord, Record};
use super::regions::{Epoch, RegionTable, footprint};
use super::scan::{Scanned, ScannedFrame, scan};
use super::state::{Life, State};
use super::{NodeIdentity, RejectedCounts, StoreStats};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::{Generation, Identity, IdentityMap};
use crate::policy::disk::DiskPolicy;
use crate::read::{BlockReader, ReadError};

/// A state that was read back, and what must be journaled before it is used.
pub struct Replayed {
    /// Entries, regions, dirty records; the journal stands behind its last good frame.
    pub state: State,
    /// Records that turned out torn.
    pub voids: Vec<Record>,
    /// The last frame that is in doubt no more once `voids` are journaled.
    pub settled_through: u64,
    /// What was not taken.
    pub rejected: RejectedCounts,
    /// Records applied or refused.
    pub records: u64,
}

/// A state under reconstruction.
pub struct Replay<'a> {
    superblock: &'a Superblock,
    node: &'a NodeIdentity,
    state: State,
    scanned: Scanned,
    /// The newest generation of identities whose newest record lies in a region that was reused.
    stale: IdentityMap<Generation>,
    voids: Vec<Record>,
    rejected: RejectedCounts,
    quarantined: HashMap<u32, Epoch>,
    records: u64,
}

impl<'a> Replay<'a> {
    /// Scans the journal from a checkpoint's point on; the checkpoint before it, if it is there, begins at `covered_before`.
    ///
    /// # Errors
    /// What the device said.
    pub async fn begin<F: DiskFile>(
        slab: &F,
        superblock: &'a Superblock,
        node: &'a NodeIdentity,
        from: Point,
        covered_before: Option<u64>,
    ) -> Result<Replay<'a>, IoError> {
        let ring = Ring::of(superblock);
        let scanned = scan(slab, superblock.store_id, ring, from).await?;
        let journal = Journal::new(ring, scanned.end, from.position, covered_before, scanned.synced_through);
        let state = empty_state(superblock.region_count, journal);
        let rejected = RejectedCounts {
            torn_frames: scanned.torn,
            skipped_frames: scanned.skipped,
            lost_frames: scanned.lost,
            malformed: scanned.malformed,
            ..RejectedCounts::default()
        };
        let (stale, voids, quarantined) = (IdentityMap::default(), Vec::new(), HashMap::new());
        let mut replay = Replay { superblock, node, state, scanned, stale, voids, rejected, quarantined, records: 0 };
        if !canary::is(Canary::EpochsLearnedLate) {
            replay.learn_epochs();
        }
        Ok(replay)
    }

    /// The last epoch of each region as far as the journal tells; the checkpoint begins with the others.
    fn learn_epochs(&mut self) {
        for record in self.scanned.frames.iter().flat_map(|frame| &frame.records) {
            let (region, epoch, class) = match record {
                Record::RegionOpen { region, epoch, stream } => (*region, *epoch, Some(stream.class())),
                Record::Quarantined { region, epoch } => (*region, *epoch, None),
                // Its `RegionOpen` may be among frames that were skipped.
                Record::Put(put) => (put.at.region, put.epoch, None),
                _ => continue,
            };
            match class {
                _ if region >= self.superblock.region_count => {}
                Some(class) => self.state.regions.recover_opening(region, epoch, class),
                None => self.state.regions.recover_epoch(region, epoch),
            }
        }
    }

    /// Durable frames that are missing.
    #[must_use]
    pub fn lost_frames(&self) -> u64 {
        self.scanned.lost
    }

    /// The journal was durable through this frame, as a damaged checkpoint tells: what was put before is in no doubt, and
    /// lost if it rotted.
    pub fn was_durable(&mut self, through: u64) {
        self.scanned.synced_through = self.scanned.synced_through.max(through);
    }

    /// The number of the frame that will be written next.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.scanned.end.chain.sequence
    }

    /// The checkpoint's own figures.
    pub fn begin_checkpoint(&mut self, number: u64, next_generation: Generation) {
        self.state.checkpoint_number = number;
        self.saw(next_generation, 0);
    }

    /// Applies a frame of the checkpoint.
    pub fn apply_payload(&mut self, mut payload: &[u8], record_count: u32) {
        for _ in 0..record_count {
            if self.apply_plain(&mut payload) {
                continue;
            }
            match Record::decode(&mut payload) {
                Ok(record) => self.apply(record),
                Err(_) => {
                    self.rejected.malformed += 1;
                    return;
                }
            }
        }
    }

    /// The short way for nearly all records of a large checkpoint. False if the next one has to go the long way.
    fn apply_plain(&mut self, payload: &mut &[u8]) -> bool {
        let mut rest = *payload;
        let Some(put) = PlainPut::decode(&mut rest).filter(|_| self.stale.is_empty()) else { return false };
        let fits = put.at.region < self.superblock.region_count
            && put.at.offset() + footprint(put.len_bytes) <= self.superblock.region_bytes;
        if !fits || self.state.regions.at(put.at.region).epoch != put.epoch || !self.state.enter_in_order(&put) {
            return false;
        }
        self.saw(put.generation, 1);
        self.records += 1;
        *payload = rest;
        true
    }

    /// Applies the journal, verifying what is in doubt, and settles the regions.
    ///
    /// # Errors
    /// What the device said.
    pub async fn finish<F: DiskFile, R: Runtime>(mut self, runtime: &R, slab: &F) -> Result<Replayed, StoreError> {
        let frames = std::mem::take(&mut self.scanned.frames);
        let torn = self.torn_in(&frames, runtime, slab).await?;
        for frame in frames {
            for (ordinal, record) in (0u32..).zip(frame.records) {
                if let Record::Put(put) = &record {
                    // Generations of dropped records are not given out again either.
                    self.saw(put.generation, 1);
                    if self.scanned.voids.contains(&(frame.sequence, ordinal)) {
                        continue;
                    }
                    if torn.contains(&(frame.sequence, ordinal)) {
                        self.rejected.torn_payload += 1;
                        self.voids.push(Record::Void { sequence: frame.sequence, ordinal });
                        continue;
                    }
                }
                self.apply(record);
            }
            runtime.yield_now().await;
        }
        self.state.regions.settle_recovered(&self.quarantined);
        self.rejected.stale_epoch += self.stale.len() as u64;
        self.state.freed = false;
        self.state.counters = StoreStats::default();
        let settled_through = self.state.journal.head.chain.sequence - 1;
        let Replay { state, voids, rejected, records, .. } = self;
        Ok(Replayed { state, voids, settled_through, rejected, records })
    }

    /// The puts of unsynced frames whose payload is not there; only those that would count are looked at.
    async fn torn_in<F: DiskFile, R: Runtime>(
        &self,
        frames: &[ScannedFrame],
        runtime: &R,
        slab: &F,
    ) -> Result<HashSet<RecordAt>, IoError> {
        if canary::is(Canary::TornPayloadAccepted) {
            return Ok(HashSet::new());
        }
        let mut doubtful = Vec::new();
        for frame in frames.iter().filter(|frame| frame.sequence > self.scanned.synced_through) {
            for (ordinal, record) in (0u32..).zip(&frame.records) {
                let at = (frame.sequence, ordinal);
                if let Record::Put(put) = record
                    && self.is_current(put)
                    && !self.scanned.voids.contains(&at)
                {
                    doubtful.push(Doubtful { at, put });
                }
            }
        }
        doubt::torn(slab, runtime, self.superblock, &doubtful).await
    }

    fn apply(&mut self, record: Record) {
        self.records += 1;
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
            Record::Pin { identity, up_to, pinning } => {
                self.saw(up_to, 1);
                self.state.set_pinning(identity, up_to, pinning);
            }
            Record::RegionOpen { region, epoch, stream } if region < self.superblock.region_count => {
                self.state.regions.recover_opening(region, epoch, stream.class());
            }
            Record::Quarantined { region, epoch } if region < self.superblock.region_count => {
                self.state.regions.recover_epoch(region, epoch);
                let known = self.quarantined.entry(region).or_insert(epoch);
                *known = epoch.max(*known);
            }
            Record::RegionOpen { .. } | Record::Quarantined { .. } => self.rejected.malformed += 1,
            Record::Opened { next_generation, .. } => self.saw(next_generation, 0),
            Record::Void { .. } => {}
        }
    }

    fn apply_put(&mut self, put: &PutRecord) {
        self.saw(put.generation, 1);
        if !self.is_possible(put) {
            self.rejected.malformed += 1;
        } else if self.stale.is_empty() && self.is_current(put) {
            self.state.publish_put(put, &PutMode::Replay);
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
        is_possible(put, self.superblock, self.node)
    }

    fn saw(&mut self, generation: Generation, used: u64) {
        let used = if canary::is(Canary::GenerationReused) { 0 } else { used };
        self.state.next_generation = self.state.next_generation.max(generation.0 + used);
    }
}

/// A state without entries.
#[must_use]
pub fn empty_state(region_count: u32, journal: Journal) -> State {
    State {
        index: Default::default(),
        extensions: Default::default(),
        dirty: Default::default(),
        unlisted: Default::default(),
        dirty_bytes: 0,
        pinned_bytes: 0,
        pinned_count: 0,
        regions: RegionTable::new(region_count),
        streams: Default::default(),
        queue: Default::default(),
        journal,
        checkpoint_number: 0,
        next_generation: 1,
        gone: Gone::default(),
        life: Life::Running,
        stalled: false,
        unsynced_regions: Default::default(),
        probing: false,
        freed: false,
        policy: DiskPolicy::default(),
        waiting: 0,
        counters: StoreStats::default(),
    }
}

/// Whether a put that was read can be one of this store: it lies inside a region, and its names agree.
#[must_use]
pub fn is_possible(put: &PutRecord, superblock: &Superblock, node: &NodeIdentity) -> bool {
    let fits = put.at.offset() + footprint(put.len_bytes) <= superblock.region_bytes;
    let is_named = put.dirty.as_ref().is_none_or(|dirty| {
        node.identity_key.identity(&dirty.key) == put.identity && dirty.generation == put.generation
    });
    put.at.region < superblock.region_count && fits && is_named
}

/// Reads and verifies a payload that may be torn or gone.
///
/// # Errors
/// What the device said.
pub async fn is_intact<F: DiskFile>(slab: &F, superblock: &Superblock, put: &PutRecord) -> Result<bool, IoError> {
    let reader = BlockReader::new(slab.clone(), doubt::located(superblock, put));
    for index in 0..reader.piece_count() {
        match reader.piece(index).await {
            Ok(_) => {}
            Err(ReadError::Rot { .. }) => return Ok(false),
            Err(ReadError::Disk(error)) => return Err(error),
        }
    }
    Ok(true)
}
