//! Reading the journal: from a checkpoint's point on, frame after frame of the chain ([`scan`]), or after a disaster every
//! frame of the ring that can be read by itself ([`scan_ring`]).
//!
//! Called by recovery before anything is applied, because three things must be known first: through which frame everything
//! is surely durable, the last epoch of each region, and whether frames are missing. A frame may be missing between others:
//! after a crash, because unsynced writes survive in any subset; or because it rotted. If a later frame calls it durable,
//! what was acknowledged is gone with it: [`Scanned::lost`], a disaster. Else it held fills and marks that nobody waited
//! for, and those behind it count. Never panics on what it reads.

use forebay_io::frame::{self, Chain, Claim, FrameKind, Reject};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{DiskFile, IoError, ReadBuf};
use std::collections::HashSet;
use std::ops::Deref;

use super::ahead::Ahead;
use super::journal::{Point, Ring};
use super::record::Record;
use crate::canary::{self, Canary};

/// One read, and how many are in flight.
const READ_BYTES: u64 = 1 << 20;
const READS_AHEAD: usize = 6;

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
    /// Frames that are there but damaged.
    pub torn: u64,
    /// Frames with bytes that are no record.
    pub malformed: u64,
    /// Frames that are missing between others and that nobody called durable.
    pub skipped: u64,
    /// Frames that are missing and were durable.
    pub lost: u64,
}

/// One frame of the journal.
pub struct ScannedFrame {
    /// Its number.
    pub sequence: u64,
    /// Its records; the index of each is its ordinal.
    pub records: Vec<Record>,
    /// It holds bytes that are no record.
    pub is_malformed: bool,
}

impl ScannedFrame {
    /// The records of a frame's payload, as far as they can be read.
    #[must_use]
    pub fn decode(sequence: u64, record_count: u32, mut payload: &[u8]) -> ScannedFrame {
        let mut frame = ScannedFrame { sequence, records: Vec::new(), is_malformed: false };
        for _ in 0..record_count {
            match Record::decode(&mut payload) {
                Ok(record) => frame.records.push(record),
                Err(_) => {
                    frame.is_malformed = true;
                    break;
                }
            }
        }
        frame
    }

    fn voids(&self) -> impl Iterator<Item = (u64, u32)> {
        self.records.iter().filter_map(|record| match record {
            Record::Void { sequence, ordinal } => Some((*sequence, *ordinal)),
            _ => None,
        })
    }
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
        torn: 0,
        malformed: 0,
        skipped: 0,
        lost: 0,
    };
    let mut window = Window::new(slab, ring, from.position);
    let mut missing: Vec<(u64, u64)> = Vec::new();
    let mut position = from.position;
    let mut is_torn = false;
    while position < from.position + ring.len_bytes {
        // Most of a ring is earlier laps, which need not be proven to be passed over.
        let is_stale = |claim: Claim| claim.sequence < scanned.end.chain.sequence;
        if position != scanned.end.position
            && window.claim(position).await?.is_none_or(is_stale)
            && !canary::is(Canary::StaleFrameAccepted)
        {
            position += SECTOR_BYTES as u64;
            continue;
        }
        let found = match window.frame(store_id, position).await? {
            Ok(found) if found.head.kind == FrameKind::Journal => found,
            reject => {
                is_torn |= position == scanned.end.position && matches!(reject, Err(Reject::Sum));
                position += SECTOR_BYTES as u64;
                continue;
            }
        };
        let mut chain = scanned.end.chain;
        let follows = chain.accept(FrameKind::Journal, &found).is_ok();
        // A frame of an earlier lap has a lower number. One that is the next and follows another is none of ours.
        let is_newer = found.head.sequence > scanned.end.chain.sequence;
        if !follows && !is_newer && !canary::is(Canary::StaleFrameAccepted) {
            position += SECTOR_BYTES as u64;
            continue;
        }
        if !follows {
            if is_newer {
                missing.push((scanned.end.chain.sequence, found.head.sequence - 1));
            }
            chain = Chain { sequence: found.head.sequence.saturating_add(1), previous_sum: found.sum };
        }
        scanned.torn += u64::from(std::mem::take(&mut is_torn));
        position += found.len_bytes() as u64;
        scanned.end = Point { position, chain };
        scanned.synced_through = scanned.synced_through.max(found.head.synced_through);
        let frame = ScannedFrame::decode(found.head.sequence, found.head.record_count, found.payload);
        scanned.malformed += u64::from(frame.is_malformed);
        scanned.voids.extend(frame.voids());
        scanned.frames.push(frame);
    }
    scanned.torn += u64::from(is_torn);
    for (first, last) in missing {
        let lost = (scanned.synced_through.min(last) + 1).saturating_sub(first);
        scanned.lost += lost;
        scanned.skipped += last + 1 - first - lost;
    }
    Ok(scanned)
}

/// Every frame of a ring that can be read by itself.
pub struct RingFrames {
    /// Ascending by number.
    pub frames: Vec<ScannedFrame>,
    /// From this frame to the last, none is missing that was durable. Above all numbers if nothing can be read.
    pub complete_from: u64,
    /// The last frame.
    pub last: u64,
    /// As in [`Scanned`].
    pub synced_through: u64,
    /// As in [`Scanned`].
    pub voids: HashSet<(u64, u32)>,
    /// Sectors where a frame begins that is damaged.
    pub torn: u64,
    /// As in [`Scanned`].
    pub malformed: u64,
}

/// Reads whatever the ring still holds, whether it follows anything or not.
///
/// # Errors
/// What the device said.
pub async fn scan_ring<F: DiskFile>(slab: &F, store_id: u64, ring: Ring) -> Result<RingFrames, IoError> {
    let mut read = RingFrames {
        frames: Vec::new(),
        complete_from: u64::MAX,
        last: 0,
        synced_through: 0,
        voids: HashSet::new(),
        torn: 0,
        malformed: 0,
    };
    let mut window = Window::new(slab, ring, 0);
    let mut position = 0;
    while position < ring.len_bytes {
        match window.frame(store_id, position).await? {
            Ok(found) if found.head.kind == FrameKind::Journal => {
                position += found.len_bytes() as u64;
                read.synced_through = read.synced_through.max(found.head.synced_through);
                let frame = ScannedFrame::decode(found.head.sequence, found.head.record_count, found.payload);
                read.malformed += u64::from(frame.is_malformed);
                read.voids.extend(frame.voids());
                read.frames.push(frame);
            }
            reject => {
                read.torn += u64::from(matches!(reject, Err(Reject::Sum)));
                position += SECTOR_BYTES as u64;
            }
        }
    }
    read.frames.sort_by_key(|frame| frame.sequence);
    for frame in read.frames.iter().rev() {
        // What is missing and was not durable held nothing that anybody waited for.
        let is_next = frame.sequence + 1 >= read.complete_from || frame.sequence >= read.synced_through;
        if read.complete_from != u64::MAX && !is_next {
            break;
        }
        read.last = read.last.max(frame.sequence);
        read.complete_from = frame.sequence;
    }
    Ok(read)
}

/// One lap of the ring, read in order: several reads in flight while frames are decoded.
struct Window<F> {
    reads: Reads<F>,
    /// The position of the first of `bytes`.
    at: u64,
    /// What was read and is not behind the walk.
    bytes: Held,
}

/// Bytes as they were read, or put together where a frame goes on in the next read.
enum Held {
    Read(ReadBuf),
    Gathered(Vec<u8>),
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Held::Read(bytes) => bytes,
            Held::Gathered(bytes) => bytes,
        }
    }
}

struct Reads<F> {
    slab: F,
    ring: Ring,
    /// Where the next read begins.
    next: u64,
    /// Where the lap ends.
    until: u64,
    in_flight: Ahead<Result<ReadBuf, IoError>>,
}

impl<F: DiskFile> Window<F> {
    fn new(slab: &F, ring: Ring, from: u64) -> Window<F> {
        let (slab, until) = (slab.clone(), from + ring.len_bytes);
        let reads = Reads { slab, ring, next: from, until, in_flight: Ahead::default() };
        Window { reads, at: from, bytes: Held::Gathered(Vec::new()) }
    }

    /// What the frame at `position` claims, if one begins there. Positions only grow, and never pass a frame's end.
    async fn claim(&mut self, position: u64) -> Result<Option<Claim>, IoError> {
        self.fill(position, SECTOR_BYTES as u64).await?;
        Ok(frame::claim(FrameKind::Journal, self.from(position)))
    }

    /// The frame that begins at `position`, if it ends inside the lap.
    async fn frame(&mut self, store_id: u64, position: u64) -> Result<Result<frame::Frame<'_>, Reject>, IoError> {
        let frame_bytes = self.claim(position).await?.map_or(0, |claim| claim.frame_bytes as u64);
        if position + frame_bytes <= self.reads.until {
            self.fill(position, frame_bytes).await?;
        }
        Ok(frame::decode(store_id, self.from(position)))
    }

    fn from(&self, position: u64) -> &[u8] {
        &self.bytes[(position - self.at) as usize..]
    }

    /// Makes sure that `len` bytes from `position` on are here; what is before them goes.
    async fn fill(&mut self, position: u64, len: u64) -> Result<(), IoError> {
        while self.at + (self.bytes.len() as u64) < position + len {
            let more = self.reads.next().await?;
            let left = self.from(position);
            self.bytes = if left.is_empty() {
                Held::Read(more)
            } else {
                let mut gathered = Vec::with_capacity(left.len() + more.len());
                gathered.extend_from_slice(left);
                gathered.extend_from_slice(&more);
                Held::Gathered(gathered)
            };
            self.at = position;
        }
        Ok(())
    }
}

impl<F: DiskFile> Reads<F> {
    async fn next(&mut self) -> Result<ReadBuf, IoError> {
        while self.in_flight.count() < READS_AHEAD && self.next < self.until {
            // One stretch each: the ring's end is a read's.
            let want = (self.until - self.next).min(READ_BYTES);
            let stretch = self.ring.stretches(self.next, want).next();
            let (at, len) = stretch.expect("the lap goes on, and so do its stretches");
            let slab = self.slab.clone();
            self.in_flight.begin(async move { slab.read(at, len).await }).await;
            self.next += len as u64;
        }
        self.in_flight.next().await.expect("nobody asks for more than the lap has")
    }
}
