//! The journal: a ring of frames between superblock and regions, and its writer.
//!
//! Written by the committer only, one frame at a time; read by recovery. Positions are bytes ever written; modulo the
//! ring's size they are places. A frame may lie across the ring's end. Space is given back only by a checkpoint that is
//! synced ([`Journal::cover`]), so what recovery needs is never overwritten (I11).

use forebay_io::frame::{self, Chain, FRAME_HEADER_BYTES, FrameKind, frame_bytes};
use forebay_io::superblock::Superblock;
use forebay_io::units::{SECTOR_BYTES, piece_count};
use forebay_io::{Disk, DiskFile, IoError, WriteBuf};

use super::entry::LEN_BYTES_MAX;
use super::record::RECORD_BYTES_MAX;

/// The smallest ring: eight frames of two sectors, so that the longest record always fits.
pub const JOURNAL_BYTES_MIN: u64 = 64 << 10;
/// No frame of the journal is longer, nor longer than an eighth of the ring.
const FRAME_BYTES_MAX: u64 = 1 << 20;
/// The sums of the longest block: 32 pieces.
const SUMS_BYTES_MAX: usize = 8 * piece_count(LEN_BYTES_MAX as u64);

// The longest record fits into a frame of the smallest ring.
const _: () = assert!(
    RECORD_BYTES_MAX + SUMS_BYTES_MAX + FRAME_HEADER_BYTES
        <= JOURNAL_BYTES_MIN as usize / 8 / SECTOR_BYTES * SECTOR_BYTES
);

/// A place in the journal between two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Bytes of all frames before it, ever.
    pub position: u64,
    /// What the next frame must follow.
    pub chain: Chain,
}

impl Point {
    /// Where an empty journal begins.
    pub const BEGIN: Point = Point { position: 0, chain: Chain::BEGIN };
}

/// Where the ring lies.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// Offset in the slab.
    pub at: u64,
    /// Length in bytes: whole sectors.
    pub len_bytes: u64,
}

impl Ring {
    /// The ring of a slab.
    #[must_use]
    pub fn of(superblock: &Superblock) -> Ring {
        Ring { at: Superblock::JOURNAL_AT, len_bytes: superblock.journal_bytes }
    }

    /// The stretches of the slab that hold `bytes` from `position` on: offset and length, one or two of them.
    pub fn stretches(&self, position: u64, bytes: u64) -> impl Iterator<Item = (u64, usize)> {
        assert!(bytes <= self.len_bytes, "no frame is longer than the ring");
        let from = position % self.len_bytes;
        let first = bytes.min(self.len_bytes - from);
        let parts = [(self.at + from, first as usize), (self.at, (bytes - first) as usize)];
        parts.into_iter().filter(|(_, len)| *len > 0)
    }
}

/// The writer's side of the ring.
pub struct Journal {
    /// Where it lies.
    pub ring: Ring,
    /// Where the next frame goes.
    pub head: Point,
    /// Behind the last frame whose records are published: where a checkpoint may begin.
    pub published: Point,
    /// The last frame that is surely durable.
    pub synced_through: u64,
    /// What the last frame that was written called durable.
    claimed_through: u64,
    /// Payload bytes named by frames that are not.
    pub in_doubt_bytes: u64,
    /// The point of the newest checkpoint.
    covered_until: u64,
    /// The point of the one before it: should the newest slot be damaged, recovery begins here.
    free_from: u64,
}

impl Journal {
    /// A journal whose records up to `head` are published; the newest checkpoint covers what is before `covered_until`,
    /// the one before it, if it is there, what is before `covered_before`.
    #[must_use]
    pub fn new(
        ring: Ring,
        head: Point,
        covered_until: u64,
        covered_before: Option<u64>,
        synced_through: u64,
    ) -> Journal {
        assert!(head.position - covered_until <= ring.len_bytes, "the journal is never longer than its ring");
        // Where the older checkpoint's journal has been written over, it is of no use any more.
        let before = covered_before.filter(|before| head.position.saturating_sub(*before) <= ring.len_bytes);
        let (published, free_from) = (head, before.unwrap_or(covered_until).min(covered_until));
        let claimed_through = synced_through;
        Journal { ring, head, published, synced_through, claimed_through, in_doubt_bytes: 0, covered_until, free_from }
    }

    /// Whether a frame is durable and no later one says so.
    #[must_use]
    pub fn has_unclaimed(&self) -> bool {
        self.synced_through > self.claimed_through
    }

    /// The longest payload of one frame.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        let frame_bytes_max = (self.ring.len_bytes / 8).min(FRAME_BYTES_MAX) as usize;
        frame_bytes_max / SECTOR_BYTES * SECTOR_BYTES - FRAME_HEADER_BYTES
    }

    /// How often the ring was filled.
    #[must_use]
    pub fn laps(&self) -> u64 {
        self.head.position / self.ring.len_bytes
    }

    /// Bytes that may not be overwritten: what is behind the last checkpoint but one.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.head.position - self.free_from
    }

    /// Whether a frame with this payload fits without overwriting what is needed.
    #[must_use]
    pub fn fits(&self, payload_bytes: usize) -> bool {
        self.used_bytes() + frame_bytes(payload_bytes) as u64 <= self.ring.len_bytes
    }

    /// Whether it is time for a checkpoint: a third of the ring is behind the last one, or the next frame might not fit.
    #[must_use]
    pub fn is_checkpoint_due(&self) -> bool {
        self.head.position - self.covered_until > self.ring.len_bytes / 3 || !self.fits(self.payload_bytes_max())
    }

    /// A synced checkpoint covers everything before `point`. Space is given back up to the point of the one before it, so
    /// that each of the two slots can be recovered from.
    pub fn cover(&mut self, point: Point) {
        assert!(point.position >= self.covered_until && point.position <= self.published.position, "I11: only forward");
        self.free_from = self.covered_until;
        self.covered_until = point.position;
    }

    /// Whatever was written behind the last good sync will never be read again: both checkpoint slots are going to begin
    /// here.
    pub fn forget_doubt(&mut self) {
        self.published = self.head;
        self.in_doubt_bytes = 0;
    }

    /// Appends a frame: the head moves on at once, the returned writes put it on the device.
    pub fn append(&mut self, store_id: u64, payload: &[u8], record_count: u32, frame: &mut [u8]) -> Point {
        assert!(self.fits(payload.len()), "I11: the journal never overwrites what recovery needs");
        let at = self.head;
        let head = self.head.chain.head(FrameKind::Journal, record_count, self.synced_through);
        let sum = frame::encode(store_id, head, payload, frame);
        self.claimed_through = self.synced_through;
        self.head.chain.push(sum);
        self.head.position += frame.len() as u64;
        at
    }
}

/// Writes a frame that was appended at `position`.
///
/// # Errors
/// What the device said: the journal ends before this frame for ever.
pub async fn write<D: Disk>(
    disk: &D,
    slab: &D::File,
    ring: Ring,
    position: u64,
    frame: WriteBuf,
) -> Result<(), IoError> {
    let stretches: Vec<(u64, usize)> = ring.stretches(position, frame.len() as u64).collect();
    if let [(at, _)] = stretches[..] {
        return slab.write(at, frame).await;
    }
    let mut done = 0;
    for (at, len) in stretches {
        let mut part = disk.buffer(len).await;
        part.copy_from_slice(&frame[done..done + len]);
        slab.write(at, part).await?;
        done += len;
    }
    Ok(())
}

/// Reads `len` bytes at `position`, across the ring's end if need be.
///
/// # Errors
/// What the device said.
pub async fn read<F: DiskFile>(slab: &F, ring: Ring, position: u64, len: usize) -> Result<Vec<u8>, IoError> {
    let mut bytes = Vec::with_capacity(len);
    for (at, len) in ring.stretches(position, len as u64) {
        bytes.extend_from_slice(&slab.read(at, len).await?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_may_lie_across_the_end_of_the_ring() {
        let ring = Ring { at: 8192, len_bytes: 65_536 };
        let stretches = |position, bytes| ring.stretches(position, bytes).collect::<Vec<_>>();
        assert_eq!(stretches(0, 8192), [(8192, 8192)]);
        assert_eq!(stretches(65_536 * 3 + 57_344, 8192), [(65_536, 8192)]);
        assert_eq!(stretches(61_440, 8192), [(69_632, 4096), (8192, 4096)]);
    }

    #[test]
    fn i11_a_full_journal_takes_nothing_until_a_checkpoint_frees_it() {
        let ring = Ring { at: 8192, len_bytes: JOURNAL_BYTES_MIN };
        let mut journal = Journal::new(ring, Point::BEGIN, 0, None, 0);
        let mut frame = vec![0; 8192];
        for _ in 0..8 {
            assert!(journal.fits(5000));
            journal.append(1, &[0; 5000], 1, &mut frame);
        }
        assert!(!journal.fits(0) && journal.is_checkpoint_due());
        journal.published = journal.head;
        journal.cover(journal.published);
        assert!(!journal.fits(0) && journal.is_checkpoint_due(), "the slot before is still whole");
        journal.cover(journal.published);
        assert!(journal.fits(journal.payload_bytes_max()) && journal.used_bytes() == 0);
    }
}
