//! The checkpoint slots of one store at recovery: which are whole, and what can be read of one that is not.
//!
//! Called by `recover` and `salvage`. Beside the two slots that take turns there may be a third, which salvage writes: with
//! one of the two damaged it must not overwrite what they still hold. It is emptied when both are whole again.

use forebay_io::frame::{self, Frame, FrameKind, Reject};
use forebay_io::superblock::Superblock;
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError, OpenMode};

use super::checkpoint::{Header, SlotReader, slot_name};

/// The slot that only salvage writes.
pub const SALVAGE_SLOT: u64 = 2;
/// Bytes read at once while looking for frames.
const WINDOW_BYTES: usize = 1 << 20;

/// The slots whose header is good, newest first.
pub struct Slots<F> {
    /// To be read.
    pub readers: Vec<SlotReader<F>>,
    /// How many of the two are there and have no good header.
    pub damaged: u64,
    /// How many of the two are there.
    pub present: u64,
    /// The number of the third, if that is there and has a good header.
    pub third: Option<u64>,
}

/// Opens what there is.
///
/// # Errors
/// What the disk said.
pub async fn open<D: Disk>(disk: &D, superblock: &Superblock) -> Result<Slots<D::File>, IoError> {
    let mut slots = Slots { readers: Vec::new(), damaged: 0, present: 0, third: None };
    for slot in 0..=SALVAGE_SLOT {
        let file = match disk.open(&slot_name(superblock.shard, slot), OpenMode::Read).await {
            Err(IoError::Missing { .. }) => continue,
            Err(error) if error.is_unreadable() => {
                let count = u64::from(slot != SALVAGE_SLOT);
                (slots.present, slots.damaged) = (slots.present + count, slots.damaged + count);
                continue;
            }
            opened => opened?,
        };
        slots.present += u64::from(slot != SALVAGE_SLOT);
        match SlotReader::begin(file, superblock.store_id).await? {
            Some(reader) => {
                slots.third = (slot == SALVAGE_SLOT).then_some(reader.header.number).or(slots.third);
                slots.readers.push(reader);
            }
            None => slots.damaged += u64::from(slot != SALVAGE_SLOT),
        }
    }
    slots.readers.sort_by_key(|reader| std::cmp::Reverse(reader.header.number));
    Ok(slots)
}

/// What is known of a slot that may be damaged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loose {
    /// What it says about itself, at its beginning or its end.
    pub header: Option<Header>,
    /// What its end says, be it the end of an earlier checkpoint. The slab was synced before it was written, so all of the
    /// journal up to its point was durable.
    pub end: Option<Header>,
}

/// The number of the first frame of the journal that no end of a slot proves to have been durable.
///
/// # Errors
/// What the disk said.
pub async fn proven_before<D: Disk>(disk: &D, superblock: &Superblock) -> Result<u64, IoError> {
    let mut proven = 0;
    for slot in 0..SALVAGE_SLOT {
        let loose = read_loose(disk, superblock, slot, |_, _| {}).await?;
        proven = proven.max(loose.end.map_or(0, |end| end.from.chain.sequence));
    }
    Ok(proven)
}

/// Hands every frame of records that can be read by itself to `each`, with the slot's header if that can be read.
///
/// # Errors
/// What the disk said.
pub async fn read_loose<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    slot: u64,
    mut each: impl FnMut(Option<Header>, &Frame<'_>),
) -> Result<Loose, IoError> {
    let file = match disk.open(&slot_name(superblock.shard, slot), OpenMode::Read).await {
        Err(IoError::Missing { .. }) => return Ok(Loose::default()),
        Err(error) if error.is_unreadable() => return Ok(Loose::default()),
        opened => opened?,
    };
    let (mut loose, mut at) = (Loose::default(), 0);
    while at < file.len_bytes() {
        let mut want = WINDOW_BYTES;
        let (mut bytes, mut used) = (file.read(at, left(&file, at, want)).await?, 0);
        while used < bytes.len() {
            match frame::decode(superblock.store_id, &bytes[used..]) {
                Ok(found) => {
                    match found.head.kind {
                        FrameKind::CheckpointHeader => {
                            loose.header = loose.header.or_else(|| Header::decode(found.payload));
                        }
                        FrameKind::CheckpointEnd => {
                            let end = Header::decode(found.payload);
                            loose.header = loose.header.or(end);
                            loose.end = [loose.end, end].into_iter().flatten().max_by_key(|end| end.number);
                        }
                        FrameKind::CheckpointRecords => each(loose.header, &found),
                        FrameKind::Journal | FrameKind::Footer => {}
                    }
                    used += found.len_bytes();
                }
                Err(Reject::Longer { frame_bytes, .. }) if used > 0 || frame_bytes > want => {
                    // It goes on behind what was read: read again from its beginning.
                    (at, used, want) = (at + used as u64, 0, want.max(frame_bytes));
                    if left(&file, at, want) < frame_bytes {
                        (used, bytes) = (SECTOR_BYTES, file.read(at, SECTOR_BYTES).await?);
                    } else {
                        bytes = file.read(at, left(&file, at, want)).await?;
                    }
                }
                Err(_) => used += SECTOR_BYTES,
            }
        }
        at += used as u64;
    }
    Ok(loose)
}

fn left<F: DiskFile>(file: &F, at: u64, want: usize) -> usize {
    (file.len_bytes() - at).min(want as u64) as usize
}
