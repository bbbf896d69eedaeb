//! What a crash left in doubt: which of the payloads that unsynced journal frames name are torn.
//!
//! Called by `replay`, before it applies the journal. A burst of fills leaves thousands of small blocks in doubt, which lie
//! beside each other: they are read by stretches of a region, in order, several in flight, and proven by the one reader of
//! blocks. Upholds I11: what is torn was never acknowledged. Memory is bounded by the stretches in flight.

use std::collections::HashSet;

use forebay_io::superblock::Superblock;
use forebay_io::units::{PIECE_BYTES, SECTOR_BYTES};
use forebay_io::{DiskFile, IoError, ReadBuf, Runtime};
use futures::stream::{StreamExt, iter};

use super::record::PutRecord;
use crate::outcome::{EntryState, Located, Pin};
use crate::read::{BlockReader, PieceSpan, ReadError};

/// One read, at most, unless a piece does not end on a sector.
const STRETCH_BYTES: u64 = PIECE_BYTES as u64;
/// Bytes that are read along rather than asked for apart.
const GAP_BYTES_MAX: u64 = 64 << 10;
/// Stretches in flight.
const READS_AHEAD: usize = 4;

/// Where a record stands in the journal: the number of its frame, and its own in the frame.
pub type RecordAt = (u64, u32);

/// A put whose payload may be torn.
pub struct Doubtful<'a> {
    /// Which record.
    pub at: RecordAt,
    /// What it says.
    pub put: &'a PutRecord,
}

/// A piece to be read. The reader borrows nothing, so that reads can be in flight.
struct Piece {
    span: PieceSpan,
    doubtful: usize,
    index: usize,
}

/// Sectors that are read at once, and the pieces on them, by their place in the list of all.
struct Stretch {
    first: u64,
    end: u64,
    pieces: std::ops::Range<usize>,
}

/// The records among `doubtful` of which at least one piece is not what it should be.
///
/// # Errors
/// What the device said about a sector of one of them.
pub async fn torn<F: DiskFile, R: Runtime>(
    slab: &F,
    runtime: &R,
    superblock: &Superblock,
    doubtful: &[Doubtful<'_>],
) -> Result<HashSet<RecordAt>, IoError> {
    let reader = |number: usize| BlockReader::new(slab.clone(), located(superblock, doubtful[number].put));
    let mut pieces = Vec::with_capacity(doubtful.len());
    for number in 0..doubtful.len() {
        let reader = reader(number);
        let all = (0..reader.piece_count()).map(|index| Piece { span: reader.span(index), doubtful: number, index });
        pieces.extend(all);
    }
    pieces.sort_unstable_by_key(|piece| piece.span.first);
    let mut torn = HashSet::new();
    let mut reads = iter(stretches(&pieces))
        .map(|stretch| async move {
            let read = slab.read(stretch.first, (stretch.end - stretch.first) as usize).await;
            (stretch, read)
        })
        .buffered(READS_AHEAD);
    while let Some((stretch, read)) = reads.next().await {
        for piece in &pieces[stretch.pieces.clone()] {
            let reader = reader(piece.doubtful);
            let proven = match &read {
                Ok(bytes) => reader.prove(piece.index, sectors(bytes, &stretch, piece.span)),
                // A bad sector costs what lies on it, not what lies beside it.
                Err(_) => reader.piece(piece.index).await,
            };
            match proven {
                Ok(_) => {}
                Err(ReadError::Rot { .. }) => {
                    torn.insert(doubtful[piece.doubtful].at);
                }
                Err(ReadError::Disk(error)) => return Err(error),
            }
        }
        runtime.yield_now().await;
    }
    Ok(torn)
}

/// Joins pieces, sorted by place, that lie near each other. Those without bytes come with any.
fn stretches(pieces: &[Piece]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for (number, Piece { span, .. }) in pieces.iter().enumerate() {
        let end = span.first + span.read_bytes as u64;
        match stretches.last_mut() {
            Some(last) if span.first <= last.end + GAP_BYTES_MAX && end.max(last.end) - last.first <= STRETCH_BYTES => {
                (last.end, last.pieces.end) = (last.end.max(end), number + 1);
            }
            _ => stretches.push(Stretch { first: span.first, end, pieces: number..number + 1 }),
        }
    }
    // A stretch of nothing but empty blocks: a read has at least one sector.
    stretches.iter_mut().for_each(|stretch| stretch.end = stretch.end.max(stretch.first + SECTOR_BYTES as u64));
    stretches
}

fn sectors(bytes: &ReadBuf, stretch: &Stretch, span: PieceSpan) -> ReadBuf {
    let start = (span.first - stretch.first) as usize;
    bytes.slice(start..start + span.read_bytes)
}

/// Where a put lies, for its reader. Nobody else reads while a store is being recovered, so its pin is no claim.
#[must_use]
pub fn located(superblock: &Superblock, put: &PutRecord) -> Located {
    let region = put.at.region;
    let region_at = superblock.regions_at() + u64::from(region) * superblock.region_bytes;
    Located {
        shard: u16::try_from(superblock.shard).expect("the owner was checked: its number is a u16"),
        offset: region_at + put.at.offset(),
        len_bytes: put.len_bytes,
        identity: put.identity,
        generation: put.generation,
        sums: put.sums.clone(),
        etag: None,
        // Its reader asks for bytes only.
        state: EntryState::Clean,
        pin: Pin { disk: 0, region },
    }
}
