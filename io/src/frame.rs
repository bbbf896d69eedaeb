//! Frames: the one framing of the journal, of checkpoints and of region footers. A frame is whole sectors: a header, a
//! payload of records (which only the shard can read), and zeros to the sector's end. Called by the shard's store.
//!
//! ```text
//!  0       4       8         12        16         24            32            40           48      48 + payload_bytes
//!  ├ magic ┼ kind  ┼ payload ┼ record  ┼ sequence ┼ previous    ┼ synced      ┼ sum of      ┼ payload ┼ zeros to the
//!  │ FBF1  │       │ _bytes  │ _count  │          │ frame's sum │ _through    │ header+load │         │ sector's end
//! ```
//!
//! All numbers are little-endian. What is needed to reject a stray sector comes first; the sum comes last, so that it
//! covers two stretches without a gap: the 40 bytes before it and the payload after it. It is seeded by the store's
//! id: frames of another store, or of this file before it was formatted anew, never pass.
//! Invariants: decoding never panics, whatever the bytes; a [`Chain`] accepts a frame only if it is the one that was
//! written after the last it accepted.

use std::mem::{offset_of, size_of};

use twox_hash::XxHash3_64;

use crate::buffer::assert_whole_sectors;
use crate::units::{SECTOR_BYTES, sectors_up};

/// The bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = size_of::<Layout>();
/// No frame is longer: 64 Ki records of 256 bytes.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// The longest payload of a frame.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_HEADER_BYTES;

const MAGIC: u32 = u32::from_le_bytes(*b"FBF1");
const SUM_AT: usize = offset_of!(Layout, sum);

/// The header as it lies on disk; only its offsets are used.
#[repr(C)]
#[allow(dead_code)]
struct Layout {
    magic: u32,
    kind: u32,
    payload_bytes: u32,
    record_count: u32,
    sequence: u64,
    previous_sum: u64,
    synced_through: u64,
    sum: u64,
}

const _: () = assert!(size_of::<Layout>() == 48 && SUM_AT + 8 == FRAME_HEADER_BYTES);
const _: () = assert!(FRAME_BYTES_MAX.is_multiple_of(SECTOR_BYTES));

/// What a frame is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// One group commit.
    Journal,
    /// The first frame of a checkpoint.
    CheckpointHeader,
    /// Records of a checkpoint.
    CheckpointRecords,
    /// The last frame of a checkpoint; without it there is none.
    CheckpointEnd,
    /// The table of a sealed region's records.
    Footer,
}

impl FrameKind {
    const ALL: [FrameKind; 5] = [
        FrameKind::Journal,
        FrameKind::CheckpointHeader,
        FrameKind::CheckpointRecords,
        FrameKind::CheckpointEnd,
        FrameKind::Footer,
    ];

    const fn code(self) -> u32 {
        match self {
            FrameKind::Journal => 1,
            FrameKind::CheckpointHeader => 2,
            FrameKind::CheckpointRecords => 3,
            FrameKind::CheckpointEnd => 4,
            FrameKind::Footer => 5,
        }
    }
}

/// What a frame says about itself, beside its payload's length and its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// What it is part of.
    pub kind: FrameKind,
    /// How many records the payload holds.
    pub record_count: u32,
    /// Its number in its chain.
    pub sequence: u64,
    /// The sum of the frame before it in its chain.
    pub previous_sum: u64,
    /// Journal: the sequence of the last frame that was surely durable when this one was written.
    pub synced_through: u64,
}

/// A frame that was decoded and whose sum was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it says about itself.
    pub head: FrameHead,
    /// Its own sum, which its successor names.
    pub sum: u64,
    /// The records.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Its length on disk, in bytes: whole sectors.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        frame_bytes(self.payload.len())
    }
}

/// Why bytes are not the frame that was looked for. For the end of a journal any of these is ordinary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// Fewer bytes than a header.
    #[error("{got} bytes are too few for a frame")]
    Truncated {
        /** Bytes given. */
        got: usize,
    },
    /// No frame begins here.
    #[error("not a frame")]
    Magic,
    /// A kind this version does not know.
    #[error("unknown frame kind {kind}")]
    Kind {
        /** The code found. */
        kind: u32,
    },
    /// It claims more than any frame may have.
    #[error("a payload of {payload_bytes} bytes is longer than any")]
    Length {
        /** The claim. */
        payload_bytes: u32,
    },
    /// It claims more bytes than were given: read that many and decode again.
    #[error("the frame is {frame_bytes} bytes long, {got} were given")]
    Longer {
        /** The whole frame's length, in bytes. */
        frame_bytes: usize,
        /** Bytes given. */
        got: usize,
    },
    /// Torn, rotten, or of another store.
    #[error("the frame's sum is wrong")]
    Sum,
    /// A frame of another kind than the chain's.
    #[error("a frame of kind {got:?} where {want:?} was expected")]
    OtherKind {
        /** The chain's. */
        want: FrameKind,
        /** The frame's. */
        got: FrameKind,
    },
    /// A stale frame: of an earlier lap, or one that survived behind a torn frame.
    #[error("frame {got} where {want} was expected")]
    Sequence {
        /** The next in the chain. */
        want: u64,
        /** The frame's. */
        got: u64,
    },
    /// The right number, but after another predecessor.
    #[error("the frame follows another frame than the last one")]
    Previous,
}

/// The length on disk of a frame with this payload: whole sectors.
#[must_use]
pub const fn frame_bytes(payload_bytes: usize) -> usize {
    sectors_up((FRAME_HEADER_BYTES + payload_bytes) as u64) as usize
}

/// Writes the frame of `head` and `payload` into `into` and returns its sum. The rest of `into` is zeroed.
///
/// # Panics
/// If `into` is not exactly [`frame_bytes`] long or the payload is longer than [`FRAME_PAYLOAD_BYTES_MAX`].
pub fn encode(store_id: u64, head: FrameHead, payload: &[u8], into: &mut [u8]) -> u64 {
    assert_eq!(into.len(), frame_bytes(payload.len()), "a frame fills its buffer");
    into[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload.len()].copy_from_slice(payload);
    seal(store_id, head, payload.len(), into)
}

/// As [`encode`], for a payload that stands in `frame` already, from [`FRAME_HEADER_BYTES`] on.
///
/// # Panics
/// As [`encode`].
pub fn seal(store_id: u64, head: FrameHead, payload_bytes: usize, frame: &mut [u8]) -> u64 {
    assert!(payload_bytes <= FRAME_PAYLOAD_BYTES_MAX, "a payload of {payload_bytes} bytes is longer than any");
    assert_whole_sectors(frame.len());
    assert_eq!(frame.len(), frame_bytes(payload_bytes), "a frame fills its buffer");
    let (header, rest) = frame.split_at_mut(FRAME_HEADER_BYTES);
    let (payload, padding) = rest.split_at_mut(payload_bytes);
    padding.fill(0);
    let length = u32::try_from(payload_bytes).expect("at most FRAME_PAYLOAD_BYTES_MAX, checked above");
    put(header, offset_of!(Layout, magic), MAGIC.to_le_bytes());
    put(header, offset_of!(Layout, kind), head.kind.code().to_le_bytes());
    put(header, offset_of!(Layout, payload_bytes), length.to_le_bytes());
    put(header, offset_of!(Layout, record_count), head.record_count.to_le_bytes());
    put(header, offset_of!(Layout, sequence), head.sequence.to_le_bytes());
    put(header, offset_of!(Layout, previous_sum), head.previous_sum.to_le_bytes());
    put(header, offset_of!(Layout, synced_through), head.synced_through.to_le_bytes());
    let sum = sum_of(store_id, &header[..SUM_AT], payload);
    put(header, SUM_AT, sum.to_le_bytes());
    sum
}

/// The frame at the beginning of `bytes`, which may be longer. Never panics.
///
/// # Errors
/// The first reason why it is none. [`Reject::Longer`] asks for more bytes.
pub fn decode(store_id: u64, bytes: &[u8]) -> Result<Frame<'_>, Reject> {
    let Some((header, rest)) = bytes.split_at_checked(FRAME_HEADER_BYTES) else {
        return Err(Reject::Truncated { got: bytes.len() });
    };
    if u32_at(header, offset_of!(Layout, magic)) != MAGIC {
        return Err(Reject::Magic);
    }
    let code = u32_at(header, offset_of!(Layout, kind));
    let Some(kind) = FrameKind::ALL.into_iter().find(|kind| kind.code() == code) else {
        return Err(Reject::Kind { kind: code });
    };
    let payload_bytes = u32_at(header, offset_of!(Layout, payload_bytes));
    if payload_bytes as usize > FRAME_PAYLOAD_BYTES_MAX {
        return Err(Reject::Length { payload_bytes });
    }
    let Some(payload) = rest.get(..payload_bytes as usize) else {
        return Err(Reject::Longer { frame_bytes: frame_bytes(payload_bytes as usize), got: bytes.len() });
    };
    let sum = u64_at(header, SUM_AT);
    if sum != sum_of(store_id, &header[..SUM_AT], payload) {
        return Err(Reject::Sum);
    }
    let head = FrameHead {
        kind,
        record_count: u32_at(header, offset_of!(Layout, record_count)),
        sequence: u64_at(header, offset_of!(Layout, sequence)),
        previous_sum: u64_at(header, offset_of!(Layout, previous_sum)),
        synced_through: u64_at(header, offset_of!(Layout, synced_through)),
    };
    Ok(Frame { head, sum, payload })
}

/// What the head of a frame says, unproven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its length on disk, in bytes: whole sectors.
    pub frame_bytes: usize,
    /// Its number in its chain.
    pub sequence: u64,
}

/// What the head of the frame of `kind` at the beginning of `bytes` says, without its sum, which costs a pass over all of
/// it: for whoever asks whether to read it at all. `None` if no such head stands there.
#[must_use]
pub fn claim(kind: FrameKind, bytes: &[u8]) -> Option<Claim> {
    let header = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
    let payload_bytes = u32_at(header, offset_of!(Layout, payload_bytes)) as usize;
    let is_claimed = u32_at(header, offset_of!(Layout, magic)) == MAGIC
        && u32_at(header, offset_of!(Layout, kind)) == kind.code()
        && payload_bytes <= FRAME_PAYLOAD_BYTES_MAX;
    let sequence = u64_at(header, offset_of!(Layout, sequence));
    is_claimed.then(|| Claim { frame_bytes: frame_bytes(payload_bytes), sequence })
}

/// A place in a chain of frames, for whoever writes the next frame and whoever looks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// The number of the next frame.
    pub sequence: u64,
    /// The sum of the last one; zero before the first.
    pub previous_sum: u64,
}

impl Chain {
    /// The beginning of a chain: its first frame is number 1.
    pub const BEGIN: Chain = Chain { sequence: 1, previous_sum: 0 };

    /// The head of the next frame.
    #[must_use]
    pub const fn head(&self, kind: FrameKind, record_count: u32, synced_through: u64) -> FrameHead {
        FrameHead { kind, record_count, sequence: self.sequence, previous_sum: self.previous_sum, synced_through }
    }

    /// The next frame has been written with this sum.
    pub fn push(&mut self, sum: u64) {
        *self = Chain { sequence: self.sequence + 1, previous_sum: sum };
    }

    /// Goes on over `frame` if it is the next one of this chain.
    ///
    /// # Errors
    /// Why it is not; the chain stays where it is.
    pub fn accept(&mut self, want: FrameKind, frame: &Frame<'_>) -> Result<(), Reject> {
        let head = frame.head;
        if head.kind != want {
            return Err(Reject::OtherKind { want, got: head.kind });
        }
        if head.sequence != self.sequence {
            return Err(Reject::Sequence { want: self.sequence, got: head.sequence });
        }
        if head.previous_sum != self.previous_sum {
            return Err(Reject::Previous);
        }
        // The number came from a disk, so it may be the largest there is.
        *self = Chain { sequence: self.sequence.saturating_add(1), previous_sum: frame.sum };
        Ok(())
    }
}

/// How much bytes that are no good frame look like the next one of a chain. For whoever explains damage; nothing is ever
/// accepted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// Something else lies there.
    Other,
    /// All but the predecessor agrees: a frame that was written there earlier, or this one with that field damaged.
    OtherPredecessor,
    /// The head is the next frame's but for one field. A disk writes 512 bytes whole, so it was not torn: it has rotted.
    DamagedHead,
    /// The head is the next frame's: what follows is torn or has rotted.
    WholeHead,
}

impl Chain {
    /// How much `bytes` look like the next frame.
    #[must_use]
    pub fn likeness(&self, want: FrameKind, bytes: &[u8]) -> Likeness {
        let Some(header) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else { return Likeness::Other };
        let agreeing = [
            u32_at(header, offset_of!(Layout, magic)) == MAGIC,
            u32_at(header, offset_of!(Layout, kind)) == want.code(),
            u64_at(header, offset_of!(Layout, sequence)) == self.sequence,
        ];
        let follows = u64_at(header, offset_of!(Layout, previous_sum)) == self.previous_sum;
        match agreeing.into_iter().filter(|agrees| *agrees).count() {
            3 if follows => Likeness::WholeHead,
            3 => Likeness::OtherPredecessor,
            2 if follows => Likeness::DamagedHead,
            _ => Likeness::Other,
        }
    }
}

/// The longest frame that [`is_one_byte_off`] tries to mend.
pub const MENDABLE_BYTES_MAX: usize = 8 << 10;

/// What a disk writes whole or not at all.
const TEAR_BYTES: usize = 512;

/// Whether some one byte of the first 512 of `bytes`, changed back, makes the next frame of `chain` at their beginning: then
/// that was written whole and has rotted, and is not the remains of a write that was cut off. Further in nothing is proven
/// so: where the write was torn, what lay there before may by chance differ in one byte. For whoever explains damage;
/// nothing is ever mended by it.
#[must_use]
pub fn is_one_byte_off(store_id: u64, chain: Chain, want: FrameKind, bytes: &[u8]) -> bool {
    let mut tried = bytes[..bytes.len().min(MENDABLE_BYTES_MAX)].to_vec();
    let Some(header) = tried.first_chunk::<FRAME_HEADER_BYTES>() else { return false };
    // Behind what it claims to hold nothing counts; should the claim be the damage, it lies in the header.
    let claimed_bytes = u32_at(header, offset_of!(Layout, payload_bytes)) as usize;
    let end = FRAME_HEADER_BYTES.saturating_add(claimed_bytes);
    let end = if end <= tried.len() { end.min(TEAR_BYTES) } else { FRAME_HEADER_BYTES };
    (0..end).any(|at| {
        let found = tried[at];
        let mends = (1..=u8::MAX).any(|change| {
            tried[at] = found ^ change;
            decode(store_id, &tried).is_ok_and(|frame| { chain }.accept(want, &frame).is_ok())
        });
        tried[at] = found;
        mends
    })
}

fn sum_of(store_id: u64, before: &[u8], payload: &[u8]) -> u64 {
    let mut hasher = XxHash3_64::with_seed(store_id);
    std::hash::Hasher::write(&mut hasher, before);
    std::hash::Hasher::write(&mut hasher, payload);
    std::hash::Hasher::finish(&hasher)
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

fn u32_at(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes inside a header"))
}

fn u64_at(header: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes inside a header"))
}

#[cfg(test)]
mod tests;
