//! Reading the journal from a point: every frame of the chain, up to the first that is not its next.
//!
//! Called by recovery before anything is applied, because two things must be known first: through which frame everything
//! is surely durable, and the last epoch of each region. Never panics on what it reads.

use forebay_io::frame::{self, FrameKind, Reject};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{DiskFile, IoError};
use std::collections::HashSet;

use super::journal::{self, Point, Ring};
use super::record::Record;
use crate::canary::{self, Canary};

/// Bytes read ahead.
const WINDOW_BYTES: usize = 256 << 10;

/// What a journal holds.
pub struct Scanned {
    /// In order, the records that their codec accepts.
    pub frames: Vec<ScannedFrame>,
    /// Behind the last frame: where the writer goes on.
    pub end: Point,
    /// Frames up to this one are surely durable, payloads included.
    pub synced_through: u64,
    /// Records that an earlier recovery found torn.
    pub voids: HashSet<(u64, u32)>,
    /// A frame that is there but damaged ended the journal.
    pub is_torn: bool,
    /// Frames with bytes that are no record.
    pub malformed: u64,
}

/// One frame of the journal.
pub struct ScannedFrame {
    /// Its number.
    pub sequence: u64,
    /// Its records; the index of each is its ordinal.
    pub records: Vec<Record>,
}

/// Reads the journal from `from` on.
///
/// # Errors
/// What the device said.
pub async fn scan<F: DiskFile>(slab: &F, store_id: u64, ring: Ring, from: Point) -> Result<Scanned, IoError> {
    let mut scanned = Scanned {
        frames: Vec::new(),
        end: from,
        // Whatever lies before a checkpoint's point is durable.
        synced_through: from.chain.sequence.saturating_sub(1),
        voids: HashSet::new(),
        is_torn: false,
        malformed: 0,
    };
    let mut window = Window { at: from.position, bytes: Vec::new() };
    loop {
        let left = ring.len_bytes.saturating_sub(scanned.end.position - from.position);
        if left < SECTOR_BYTES as u64 {
            break;
        }
        window.fill(slab, ring, scanned.end.position, SECTOR_BYTES, left).await?;
        let mut found = frame::decode(store_id, window.from(scanned.end.position));
        if let Err(Reject::Longer { frame_bytes, .. }) = found
            && frame_bytes as u64 <= left
        {
            window.fill(slab, ring, scanned.end.position, frame_bytes, left).await?;
            found = frame::decode(store_id, window.from(scanned.end.position));
        }
        let found = match found {
            Ok(found) => found,
            Err(reject) => {
                scanned.is_torn = matches!(reject, Reject::Sum);
                break;
            }
        };
        // A frame of an earlier lap, or one that survived behind a torn frame.
        if scanned.end.chain.accept(FrameKind::Journal, &found).is_err() && !canary::is(Canary::StaleFrameAccepted) {
            break;
        }
        scanned.end.position += found.len_bytes() as u64;
        scanned.synced_through = scanned.synced_through.max(found.head.synced_through);
        scanned.take(found.head.sequence, found.head.record_count, found.payload);
    }
    refuse_damage(slab, store_id, ring, from, scanned.end, &mut window).await?;
    Ok(scanned)
}

/// A frame behind the end that calls the missing one durable proves that the journal rotted, and did not just end: what
/// was acknowledged would be lost silently. Frames of earlier laps are older, torn tails are called durable by nobody.
async fn refuse_damage<F: DiskFile>(
    slab: &F,
    store_id: u64,
    ring: Ring,
    from: Point,
    end: Point,
    window: &mut Window,
) -> Result<(), IoError> {
    let until = from.position + ring.len_bytes;
    let mut position = end.position;
    while position < until {
        let left = until - position;
        window.fill(slab, ring, position, SECTOR_BYTES, left).await?;
        let mut found = frame::decode(store_id, window.from(position));
        if let Err(Reject::Longer { frame_bytes, .. }) = found
            && frame_bytes as u64 <= left
        {
            window.fill(slab, ring, position, frame_bytes, left).await?;
            found = frame::decode(store_id, window.from(position));
        }
        if let Ok(frame) = found
            && frame.head.kind == FrameKind::Journal
            && frame.head.sequence > end.chain.sequence
            && frame.head.synced_through >= end.chain.sequence
        {
            let (name, at) = ("the journal".to_owned(), end.position % ring.len_bytes + ring.at);
            return Err(IoError::Corrupt { name, at, what: "a frame that was durable is damaged" });
        }
        position += SECTOR_BYTES as u64;
    }
    Ok(())
}

impl Scanned {
    fn take(&mut self, sequence: u64, record_count: u32, mut payload: &[u8]) {
        let mut records = Vec::new();
        for _ in 0..record_count {
            match Record::decode(&mut payload) {
                Ok(Record::Void { sequence, ordinal }) => {
                    self.voids.insert((sequence, ordinal));
                    records.push(Record::Void { sequence, ordinal });
                }
                Ok(record) => records.push(record),
                Err(_) => {
                    self.malformed += 1;
                    break;
                }
            }
        }
        self.frames.push(ScannedFrame { sequence, records });
    }
}

struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn from(&self, position: u64) -> &[u8] {
        &self.bytes[(position - self.at) as usize..]
    }

    /// Makes sure that `len` bytes from `position` on are here, reading ahead as far as `left` allows.
    async fn fill<F: DiskFile>(
        &mut self,
        slab: &F,
        ring: Ring,
        position: u64,
        len: usize,
        left: u64,
    ) -> Result<(), IoError> {
        let have = self.at + self.bytes.len() as u64;
        if position + len as u64 <= have {
            return Ok(());
        }
        let read_bytes = (left as usize).min(WINDOW_BYTES.max(len));
        self.bytes = journal::read(slab, ring, position, read_bytes).await?;
        self.at = position;
        Ok(())
    }
}
