//! Recovery: the newest complete checkpoint, then the journal behind it, then what both left in doubt; after a disaster
//! whatever can still be read.
//!
//! Called by `Store::open`. A disaster is a journal of which a durable frame is missing, or that no whole checkpoint leads
//! into. It is told apart from the ordinary end of a journal, because taking one for the other would either lose what was
//! acknowledged silently (I11, I13) or drop a warm cache for a torn tail. ARCHITECTURE.md, "After a disaster", says what is
//! promised then.

use forebay_io::superblock::Superblock;
use forebay_io::{Disk, IoError, Nanos, Runtime};

use super::checkpoint::SlotReader;
use super::commit::encoded;
use super::footer;
use super::record::Record;
use super::replay::{Replay, Replayed};
use super::salvage::salvage;
use super::slots::{self, Slots};
use super::state::State;
use super::{NodeIdentity, RecoveredBy, RecoveryWork, RejectedCounts};
use crate::error::StoreError;
use crate::key::Generation;

/// A state that was read back, and what must be done before it is used.
pub struct Loaded {
    /// Entries, regions, dirty records.
    pub state: State,
    /// Records that turned out torn, to be journaled.
    pub voids: Vec<Record>,
    /// The last frame that is in doubt no more once `voids` are journaled.
    pub settled_through: u64,
    /// How the store begins its run.
    pub beginning: Beginning,
    /// How it was read back.
    pub by: RecoveredBy,
    /// What was not taken.
    pub rejected: RejectedCounts,
    /// What it took.
    pub work: RecoveryWork,
}

/// What must be durable before a recovered store writes anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// The journal goes on.
    Continue,
    /// Frames of the journal are missing: both slots are written anew, so that nobody reads that stretch again.
    Checkpoint,
    /// After a disaster: as `Checkpoint`, and the journal is emptied, so that nobody takes its old frames for evidence again.
    /// The third slot is whole and stays until the others are.
    Rebuild,
    /// As `Rebuild`, but the third slot is written first, so that the others, whole or not, stay as they are until then.
    RebuildAside,
}

/// Reads back what the disk holds.
///
/// # Errors
/// What the device said.
pub async fn load<D: Disk, R: Runtime>(
    disk: &D,
    runtime: &R,
    slab: &D::File,
    superblock: &Superblock,
    node: &NodeIdentity,
) -> Result<Loaded, StoreError> {
    let Slots { readers, damaged, present, third } = slots::open(disk, superblock).await?;
    let mut work = RecoveryWork::default();
    let mut rejected = RejectedCounts { checkpoint_slots: damaged, ..RejectedCounts::default() };
    let mut beginning = Beginning::RebuildAside;
    let points: Vec<(u64, u64)> = readers.iter().map(|slot| (slot.header.number, slot.header.from.position)).collect();
    for reader in readers {
        // What the older slot needs of the journal stays, so that either can be recovered from in this run too.
        let before = points.iter().find(|(number, _)| number + 1 == reader.header.number).map(|(_, at)| *at);
        let began = runtime.now();
        let number = reader.header.number;
        let replay = Replay::begin(slab, superblock, node, reader.header.from, before).await?;
        work.journal_ms += since(runtime, began);
        let began = runtime.now();
        let whole = read_checkpoint(runtime, reader, replay).await?;
        work.checkpoint_ms += since(runtime, began);
        let Some(mut replay) = whole else {
            rejected.checkpoint_slots += 1;
            continue;
        };
        rejected.lost_frames = replay.lost_frames();
        let is_alone = rejected.checkpoint_slots > 0 || present < 2 && number > 0;
        let proven = if is_alone { slots::proven_before(disk, superblock).await? } else { 0 };
        let is_behind = is_alone
            && (replay.next_sequence() < proven || ends_early(slab, superblock, replay.next_sequence()).await?);
        if rejected.lost_frames > 0 || is_behind {
            if third == Some(number) {
                beginning = Beginning::Rebuild;
            }
            break;
        }
        let began = runtime.now();
        replay.was_durable(proven.saturating_sub(1));
        let Replayed { state, voids, settled_through, rejected: found, records } = replay.finish(runtime, slab).await?;
        work.replay_ms = since(runtime, began);
        work.records = records;
        let checkpoint_slots = rejected.checkpoint_slots;
        let rejected = RejectedCounts { checkpoint_slots, ..found };
        let has_gap = rejected.skipped_frames > 0 || third.is_some();
        let beginning = if has_gap { Beginning::Checkpoint } else { Beginning::Continue };
        return Ok(Loaded { state, voids, settled_through, beginning, by: RecoveredBy::Journal, rejected, work });
    }
    let began = runtime.now();
    let mut loaded = salvage(disk, runtime, slab, superblock, node).await?;
    loaded.rejected.checkpoint_slots = rejected.checkpoint_slots;
    loaded.rejected.lost_frames = loaded.rejected.lost_frames.max(rejected.lost_frames);
    loaded.beginning = beginning;
    loaded.work = RecoveryWork { salvage_ms: since(runtime, began), records: loaded.work.records, ..work };
    Ok(loaded)
}

/// The replay with the checkpoint applied, if that is whole.
async fn read_checkpoint<'a, F: forebay_io::DiskFile, R: Runtime>(
    runtime: &R,
    reader: SlotReader<F>,
    mut replay: Replay<'a>,
) -> Result<Option<Replay<'a>>, IoError> {
    replay.begin_checkpoint(reader.header.number, reader.header.next_generation);
    let is_whole = reader.read(runtime, |frame| replay.apply_payload(frame.payload, frame.head.record_count)).await?;
    Ok(is_whole.then_some(replay))
}

/// Whether a footer proves that the journal once went beyond `next_sequence`. Asked only where the newest slot may be the
/// damaged one: the journal that leads from the older one to it could be gone without a trace in the journal itself.
async fn ends_early<F: forebay_io::DiskFile>(
    slab: &F,
    superblock: &Superblock,
    next_sequence: u64,
) -> Result<bool, IoError> {
    for region in 1..=u64::from(superblock.region_count) {
        let region_end = superblock.regions_at() + region * superblock.region_bytes;
        let trailer = footer::read_trailer(slab, superblock.store_id, region_end).await?;
        if trailer.is_some_and(|trailer| trailer.note.durable >= next_sequence) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn since<R: Runtime>(runtime: &R, began: Nanos) -> u64 {
    u64::try_from(runtime.now().since(began).as_millis()).unwrap_or(u64::MAX)
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
