//! Disaster recovery: both checkpoint slots or the journal are damaged, and the disk comes back all the same.
//!
//! Called by `recover` only. Reads everything that can be read by itself (journal frames, frames of checkpoint slots, region
//! footers), weighs it in `evidence`, and rebuilds a state of dirty records alone: clean entries are dropped, the origin has
//! them. Overwrites nothing: `open` does, once the new state is durable. Sequence, generations and epochs go on with a
//! margin, so that no number that went unread is given out again (I13).

use std::rc::Rc;

use forebay_io::frame::Chain;
use forebay_io::superblock::Superblock;
use forebay_io::{Disk, DiskFile, IoError, Runtime};

use super::block::{Certainty, DirtyRecord};
use super::evidence::{Evidence, Seen, Trace, Version};
use super::footer::{self, DirtyNote, Trailer};
use super::journal::{Journal, Point, Ring};
use super::publish::PutMode;
use super::record::{PutRecord, Record};
use super::recover::{Beginning, Loaded};
use super::replay::{empty_state, is_intact};
use super::scan::{RingFrames, ScannedFrame, scan_ring};
use super::slots::{self, SALVAGE_SLOT};
use super::state::State;
use super::{NodeIdentity, RecoveredBy, RecoveryWork, RejectedCounts};
use crate::error::StoreError;

/// Frames, generations and epochs that may have gone unread: far more than a journal holds.
const UNREAD_FRAMES: u64 = 1 << 24;
const UNREAD_GENERATIONS: u64 = 1 << 24;
const UNREAD_EPOCHS: u32 = 1 << 16;

/// Rebuilds what can be had.
///
/// # Errors
/// What the device said.
pub async fn salvage<D: Disk, R: Runtime>(
    disk: &D,
    runtime: &R,
    slab: &D::File,
    superblock: &Superblock,
    node: &NodeIdentity,
) -> Result<Loaded, StoreError> {
    tracing::error!(
        shard = superblock.shard,
        "checkpoint or journal are damaged; recovering what is dirty from footers"
    );
    let ring = scan_ring(slab, superblock.store_id, Ring::of(superblock)).await?;
    let trailers = read_trailers(slab, superblock).await?;
    let note = newest_note(&trailers).cloned();
    let mut rejected = RejectedCounts { torn_frames: ring.torn, ..RejectedCounts::default() };
    let last = ring.last.max(note.as_ref().map_or(0, |note| note.sequence));
    let proven = slots::proven_before(disk, superblock).await?.saturating_sub(1);
    let bytes_max = evidence_bytes_max(superblock);
    let mut evidence = Evidence::new(superblock, node, note, (ring.complete_from, ring.last), proven, bytes_max);
    gather_ring(&mut evidence, &ring);
    let slots = gather_slots(disk, &mut evidence).await?;
    rejected.footers = gather_footers(slab, superblock, &mut evidence, &trailers).await?;
    settle(disk, superblock, &mut evidence, &ring, &mut rejected).await?;

    let sequence = last.max(slots.sequence) + UNREAD_FRAMES;
    let head = Point { position: 0, chain: Chain { sequence, previous_sum: runtime.random_u64() } };
    let mut state =
        empty_state(superblock.region_count, Journal::new(Ring::of(superblock), head, 0, None, sequence - 1));
    state.checkpoint_number = slots.number + 1;
    state.next_generation = evidence.next_generation.max(slots.next_generation).0 + UNREAD_GENERATIONS;
    evidence.epochs.iter().for_each(|(region, epoch)| state.regions.recover_epoch(*region, *epoch));
    state.regions.skip_epochs(UNREAD_EPOCHS);
    loop {
        for (_, versions) in evidence.versions() {
            publish_newest(&mut state, slab, superblock, versions, &mut rejected).await?;
            runtime.yield_now().await;
        }
        if !evidence.next_slice() {
            break;
        }
        gather_ring(&mut evidence, &ring);
        gather_slots(disk, &mut evidence).await?;
        gather_footers(slab, superblock, &mut evidence, &trailers).await?;
        settle(disk, superblock, &mut evidence, &ring, &mut rejected).await?;
    }
    rejected.dirty_unfound = evidence.unfound_count();
    rejected.malformed += ring.malformed + evidence.malformed;
    state.regions.settle_recovered(&evidence.quarantined);
    let work = RecoveryWork { records: evidence.records, ..RecoveryWork::default() };
    let (by, beginning) = (RecoveredBy::Salvage, Beginning::RebuildAside);
    Ok(Loaded { state, voids: Vec::new(), settled_through: sequence - 1, beginning, by, rejected, work })
}

/// How much of the evidence is weighed at once: 64 MiB, some 200,000 records, and less for a small slab.
fn evidence_bytes_max(superblock: &Superblock) -> usize {
    usize::try_from(superblock.slab_bytes() / 64).unwrap_or(usize::MAX).clamp(16 << 10, 64 << 20)
}

async fn read_trailers<F: DiskFile>(slab: &F, superblock: &Superblock) -> Result<Vec<Option<Trailer>>, IoError> {
    let mut trailers = Vec::with_capacity(superblock.region_count as usize);
    for region in 0..superblock.region_count {
        let (_, region_end) = bounds(superblock, region);
        trailers.push(footer::read_trailer(slab, superblock.store_id, region_end).await?);
    }
    Ok(trailers)
}

fn newest_note(trailers: &[Option<Trailer>]) -> Option<&DirtyNote> {
    trailers.iter().flatten().map(|trailer| &trailer.note).max_by_key(|note| note.sequence)
}

/// The journal's frames. What was not surely synced is in doubt, as in any recovery.
fn gather_ring(evidence: &mut Evidence<'_>, ring: &RingFrames) {
    for frame in &ring.frames {
        let seen = Seen { at: Some(frame.sequence), is_durable: frame.sequence <= ring.synced_through };
        for (ordinal, record) in (0u32..).zip(&frame.records) {
            if !ring.voids.contains(&(frame.sequence, ordinal)) {
                evidence.gather(record, seen);
            }
        }
    }
}

/// The highest figures of any slot.
struct SlotFigures {
    number: u64,
    sequence: u64,
    next_generation: crate::key::Generation,
}

/// What is left of the slots, whole or not. A checkpoint holds what was published when it began, and later.
async fn gather_slots<D: Disk>(disk: &D, evidence: &mut Evidence<'_>) -> Result<SlotFigures, IoError> {
    let mut figures = SlotFigures { number: 0, sequence: 0, next_generation: crate::key::Generation(0) };
    let superblock = evidence.superblock();
    for slot in 0..=SALVAGE_SLOT {
        let header = slots::read_loose(disk, superblock, slot, |header, found| {
            let at = header.map(|header| header.from.chain.sequence.saturating_sub(1));
            let frame = ScannedFrame::decode(found.head.sequence, found.head.record_count, found.payload);
            evidence.malformed += u64::from(frame.is_malformed && evidence.is_first());
            // Everything a checkpoint names was synced with it.
            let is_durable = header.is_some();
            frame.records.iter().for_each(|record| evidence.gather(record, Seen { at, is_durable }));
        });
        if let Some(header) = header.await?.header {
            figures.number = figures.number.max(header.number);
            figures.sequence = figures.sequence.max(header.from.chain.sequence);
            figures.next_generation = figures.next_generation.max(header.next_generation);
        }
    }
    Ok(figures)
}

/// The footers that list something dirty. Returns how many regions that were used have none that is whole.
async fn gather_footers<F: DiskFile>(
    slab: &F,
    superblock: &Superblock,
    evidence: &mut Evidence<'_>,
    trailers: &[Option<Trailer>],
) -> Result<u64, IoError> {
    let mut missing = 0;
    for (region, trailer) in (0u32..).zip(trailers) {
        let lists_dirty = match trailer {
            Some(trailer) => trailer.dirty_count > 0,
            None => {
                missing += u64::from(evidence.epochs.contains_key(&region));
                false
            }
        };
        if !lists_dirty {
            continue;
        }
        let (region_at, region_end) = bounds(superblock, region);
        match footer::read(slab, superblock.store_id, region_at, region_end).await? {
            // A footer alone does not tell whether its puts were ever acknowledged.
            Some(footer) => {
                let seen = Seen { at: None, is_durable: false };
                footer.records.iter().for_each(|record| evidence.gather(record, seen));
            }
            None => missing += 1,
        }
    }
    Ok(missing)
}

/// The second pass: what the origin has, of the keys that came up in the first.
async fn settle<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    evidence: &mut Evidence<'_>,
    ring: &RingFrames,
    rejected: &mut RejectedCounts,
) -> Result<(), IoError> {
    let is_clean = |record: &&Record| matches!(record, Record::Put(put) if put.dirty.is_none());
    let mut clean_most = 0;
    for slot in 0..=SALVAGE_SLOT {
        // In one slot every key stands once.
        let mut clean = 0;
        slots::read_loose(disk, superblock, slot, |_, found| {
            let frame = ScannedFrame::decode(found.head.sequence, found.head.record_count, found.payload);
            clean += frame.records.iter().filter(is_clean).count() as u64;
            frame.records.iter().for_each(|record| evidence.settle(record));
        })
        .await?;
        clean_most = clean_most.max(clean);
    }
    let records = || ring.frames.iter().flat_map(|frame| &frame.records);
    records().for_each(|record| evidence.settle(record));
    rejected.clean_dropped = clean_most.max(records().filter(is_clean).count() as u64);
    Ok(())
}

/// Publishes the newest version of a key, as far as it is one. An older version is taken only where the newer one was never
/// acknowledged.
async fn publish_newest<F: DiskFile>(
    state: &mut State,
    slab: &F,
    superblock: &Superblock,
    versions: Vec<Version>,
    rejected: &mut RejectedCounts,
) -> Result<(), IoError> {
    let mut follows_doubt = false;
    for version in versions {
        let certainty = if follows_doubt { Certainty::Unsure } else { version.certainty };
        if let Some(Trace::Tombstone(record, seen)) = version.traces.first() {
            // A frame that was not synced may name a delete that was never acknowledged; its outcome is open, as of any.
            let _ = seen;
            let certainty = weaker(record.certainty, certainty);
            state.publish_tombstone(Rc::new(DirtyRecord { certainty, ..(**record).clone() }));
            return Ok(());
        }
        match place_of(state, slab, superblock, &version).await? {
            Some(mut put) => {
                if let Some(dirty) = &mut put.dirty {
                    dirty.certainty = weaker(dirty.certainty, certainty);
                }
                state.publish_put(&put, &PutMode::Replay);
                return Ok(());
            }
            None => rejected.candidates += 1,
        }
        if version.was_dirty {
            // It was acknowledged, and is gone or was settled: what is older must not stand in for it.
            return Ok(());
        }
        follows_doubt = version.traces.iter().all(|trace| trace.seen().at.is_none());
    }
    Ok(())
}

/// The put of a version whose bytes verify, in the latest opening of a region that holds them. If none does and it was
/// surely written, the latest that was not reused: it rotted, and is to be listed as lost.
async fn place_of<F: DiskFile>(
    state: &State,
    slab: &F,
    superblock: &Superblock,
    version: &Version,
) -> Result<Option<PutRecord>, IoError> {
    let mut rotten = None;
    for trace in &version.traces {
        let Trace::Put(put, _) = trace else { continue };
        if state.regions.at(put.at.region).epoch != put.epoch {
            continue;
        }
        if is_intact(slab, superblock, put).await? {
            return Ok(Some((**put).clone()));
        }
        rotten = rotten.or(version.was_dirty.then_some(put));
    }
    Ok(rotten.map(|put| (**put).clone()))
}

fn weaker(one: Certainty, other: Certainty) -> Certainty {
    if one == Certainty::Unsure { one } else { other }
}

/// Where a region begins and ends in the slab.
fn bounds(superblock: &Superblock, region: u32) -> (u64, u64) {
    let region_at = superblock.regions_at() + u64::from(region) * superblock.region_bytes;
    (region_at, region_at + superblock.region_bytes)
}
