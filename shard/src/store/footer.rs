//! A region's footer: the table of its records, written at its end when it is sealed, read when it is reclaimed and after
//! a disaster.
//!
//! ```text
//!  ├ payloads … ┼ (unused) ┼ footer frame 1 ┼ … ┼ footer frame n ┼ trailer: one sector ┤ region's end
//!  trailer's payload:  bytes of all footer frames 8 │ dirty lines 8 │ note: sequence 8 │ durable 8 │ next generation 8 │ below 8 │ dirty generations 8 × n (bit 63: unsure)
//! ```
//! The frames chain from the region's epoch, so a footer of an earlier epoch never passes. They hold the puts of the region
//! and, in regions of the dirty stream, tombstones that were acknowledged meanwhile: those have no place of their own. The
//! trailer is the chain's last frame. While checkpoint and journal are whole a footer is a help, not the truth: whoever
//! reads it asks the index about every identity, and scans the index where a footer is missing or damaged.

use forebay_io::frame::{self, Chain, FRAME_HEADER_BYTES, FrameKind, frame_bytes};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError};

use super::record::{Record, is_dirty_line};
use super::regions::Epoch;
use crate::key::Generation;

/// So many dirty generations fit into a trailer beside its fixed fields, which keeps it one sector.
pub const NOTED_MAX: usize = (SECTOR_BYTES - FRAME_HEADER_BYTES - NOTE_FIXED_BYTES) / 8;
const NOTE_FIXED_BYTES: usize = 48;
/// Marks a noted generation as unsure; generations are far smaller.
const IS_UNSURE: u64 = 1 << 63;

/// What was dirty when a region was sealed. Whatever has a generation below `below` and is not listed was confirmed by the
/// origin or superseded by then, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyNote {
    /// The last journal frame whose records were published.
    pub sequence: u64,
    /// The last journal frame that was surely durable: a journal that ends before it is damaged, not cut off.
    pub durable: u64,
    /// The sequence of generations was at this number.
    pub next_generation: Generation,
    /// The bound.
    pub below: Generation,
    /// Ascending, all of them below the bound.
    pub dirty: Vec<Generation>,
    /// Those of them that were unsure: an earlier disaster may hide what settled them.
    pub unsure: Vec<Generation>,
}

impl DirtyNote {
    /// Whether what this generation wrote was surely not dirty any more.
    #[must_use]
    pub fn settles(&self, generation: Generation) -> bool {
        generation < self.below && !self.names(generation)
    }

    /// Whether what this generation wrote was surely dirty.
    #[must_use]
    pub fn names(&self, generation: Generation) -> bool {
        self.dirty.binary_search(&generation).is_ok()
    }

    /// Whether what this generation wrote was dirty, and unsure.
    #[must_use]
    pub fn is_unsure(&self, generation: Generation) -> bool {
        self.unsure.binary_search(&generation).is_ok()
    }
}

/// A footer's last frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trailer {
    /// Bytes of the footer frames before it.
    pub frames_bytes: u64,
    /// How many of the records are dirty puts or tombstones.
    pub dirty_count: u64,
    /// What was dirty.
    pub note: DirtyNote,
    /// The sum of the frame before it, or the epoch if there is none.
    previous_sum: u64,
    sequence: u64,
}

/// A footer that was read and is whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Footer {
    /// The epoch of the region that it describes.
    pub epoch: Epoch,
    /// Puts of the region and tombstones, in the order in which they were appended.
    pub records: Vec<Record>,
    /// What was dirty.
    pub note: DirtyNote,
}

impl Trailer {
    fn encode(frames_bytes: u64, dirty_count: u64, note: &DirtyNote) -> Vec<u8> {
        assert!(note.dirty.len() <= NOTED_MAX && note.dirty.is_sorted(), "a note fits into its sector");
        let fixed = [frames_bytes, dirty_count, note.sequence, note.durable, note.next_generation.0, note.below.0];
        let marked = |generation: &Generation| generation.0 | if note.is_unsure(*generation) { IS_UNSURE } else { 0 };
        let fields = fixed.into_iter().chain(note.dirty.iter().map(marked));
        fields.flat_map(u64::to_le_bytes).collect()
    }

    /// The trailer in a sector; `None` for anything else.
    #[must_use]
    pub fn decode(store_id: u64, sector: &[u8]) -> Option<Trailer> {
        let frame = frame::decode(store_id, sector).ok().filter(|frame| frame.head.kind == FrameKind::Footer)?;
        let (fields, rest) = frame.payload.as_chunks::<8>();
        let mut fields = fields.iter().map(|field| u64::from_le_bytes(*field));
        let frames_bytes = fields.next().filter(|bytes| bytes.is_multiple_of(SECTOR_BYTES as u64))?;
        let dirty_count = fields.next()?;
        let (sequence, durable) = (fields.next()?, fields.next()?);
        let (next_generation, below) = (Generation(fields.next()?), Generation(fields.next()?));
        let (mut dirty, mut unsure) = (Vec::new(), Vec::new());
        for field in fields {
            let generation = Generation(field & !IS_UNSURE);
            dirty.push(generation);
            unsure.extend((field & IS_UNSURE != 0).then_some(generation));
        }
        let is_possible = rest.is_empty()
            && frame.head.record_count == 0
            && next_generation.0 < 1 << 48
            && dirty.is_sorted()
            && dirty.last().is_none_or(|newest| *newest < below);
        let note = DirtyNote { sequence, durable, next_generation, below, dirty, unsure };
        let (previous_sum, sequence) = (frame.head.previous_sum, frame.head.sequence);
        is_possible.then_some(Trailer { frames_bytes, dirty_count, note, previous_sum, sequence })
    }
}

/// A footer frame's payload, at most.
const PAYLOAD_BYTES_MAX: usize = (256 << 10) - FRAME_HEADER_BYTES;
const TRAILER_BYTES: u64 = SECTOR_BYTES as u64;

/// Gathers a region's table while it is open.
#[derive(Default)]
pub struct FooterBuilder {
    payloads: Vec<Payload>,
    dirty_count: u64,
}

#[derive(Default)]
struct Payload {
    bytes: Vec<u8>,
    record_count: u32,
}

impl FooterBuilder {
    /// Adds an encoded record.
    pub fn push(&mut self, line: &[u8]) {
        assert!(line.len() <= PAYLOAD_BYTES_MAX, "a record is far smaller than a frame");
        if self.payloads.last().is_none_or(|last| last.bytes.len() + line.len() > PAYLOAD_BYTES_MAX) {
            self.payloads.push(Payload::default());
        }
        self.dirty_count += u64::from(is_dirty_line(line));
        if let Some(last) = self.payloads.last_mut() {
            last.bytes.extend_from_slice(line);
            last.record_count += 1;
        }
    }

    /// What it lists.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for payload in &self.payloads {
            let mut bytes = &payload.bytes[..];
            records.extend((0..payload.record_count).map_while(|_| Record::decode(&mut bytes).ok()));
        }
        records
    }

    /// How long the footer would be with one more record of `line_bytes`, trailer included, at most.
    #[must_use]
    pub fn bytes_with(&self, line_bytes: usize) -> u64 {
        let Some((last, full)) = self.payloads.split_last() else {
            return frame_bytes(line_bytes) as u64 + TRAILER_BYTES;
        };
        let full_bytes: usize = full.iter().map(|payload| frame_bytes(payload.bytes.len())).sum();
        let last_bytes = if last.bytes.len() + line_bytes <= PAYLOAD_BYTES_MAX {
            frame_bytes(last.bytes.len() + line_bytes)
        } else {
            frame_bytes(last.bytes.len()) + frame_bytes(line_bytes)
        };
        (full_bytes + last_bytes) as u64 + TRAILER_BYTES
    }

    /// Writes the footer so that it ends at `region_end`, an offset in the slab.
    ///
    /// # Errors
    /// What the device said; the region is whole without a footer.
    pub async fn write<D: Disk>(
        &self,
        disk: &D,
        slab: &D::File,
        store_id: u64,
        epoch: Epoch,
        region_end: u64,
        note: &DirtyNote,
    ) -> Result<(), IoError> {
        let frames_bytes: u64 = self.payloads.iter().map(|payload| frame_bytes(payload.bytes.len()) as u64).sum();
        let mut at = region_end - TRAILER_BYTES - frames_bytes;
        let mut chain = chain_of(epoch);
        for payload in &self.payloads {
            let mut buf = disk.buffer(frame_bytes(payload.bytes.len())).await;
            let head = chain.head(FrameKind::Footer, payload.record_count, 0);
            chain.push(frame::encode(store_id, head, &payload.bytes, &mut buf));
            let len = buf.len() as u64;
            slab.write(at, buf).await?;
            at += len;
        }
        assert_eq!(at, region_end - TRAILER_BYTES, "I1: a footer ends where it was placed");
        let mut buf = disk.buffer(SECTOR_BYTES).await;
        let payload = Trailer::encode(frames_bytes, self.dirty_count, note);
        frame::encode(store_id, chain.head(FrameKind::Footer, 0, 0), &payload, &mut buf);
        slab.write(at, buf).await
    }
}

/// The trailer of the region that ends at `region_end`; `None` if there is no good one.
///
/// # Errors
/// What the device said.
pub async fn read_trailer<F: DiskFile>(slab: &F, store_id: u64, region_end: u64) -> Result<Option<Trailer>, IoError> {
    let sector = slab.read(region_end - TRAILER_BYTES, SECTOR_BYTES).await?;
    Ok(Trailer::decode(store_id, &sector))
}

/// The footer of the region between `region_at` and `region_end`, of whatever epoch; `None` if it has no whole one.
///
/// # Errors
/// What the device said.
pub async fn read<F: DiskFile>(
    slab: &F,
    store_id: u64,
    region_at: u64,
    region_end: u64,
) -> Result<Option<Footer>, IoError> {
    let trailer_at = region_end - TRAILER_BYTES;
    let Some(trailer) = read_trailer(slab, store_id, region_end).await? else { return Ok(None) };
    if trailer.frames_bytes > trailer_at - region_at {
        return Ok(None);
    }
    let mut reading = Reading { epoch: None, chain: Chain::BEGIN, records: Vec::new() };
    let mut at = trailer_at - trailer.frames_bytes;
    while at < trailer_at {
        let ahead = (trailer_at - at).min(frame_bytes(PAYLOAD_BYTES_MAX) as u64) as usize;
        let bytes = slab.read(at, ahead).await?;
        match reading.take(store_id, &bytes) {
            Some(len_bytes) => at += len_bytes as u64,
            None => return Ok(None),
        }
    }
    let epoch = reading.epoch.or_else(|| epoch_of(trailer.previous_sum));
    let first = epoch.map_or(Chain::BEGIN, chain_of);
    let end = if reading.records.is_empty() { first } else { reading.chain };
    let is_whole = (trailer.sequence, trailer.previous_sum) == (end.sequence, end.previous_sum);
    let (records, note) = (reading.records, trailer.note);
    Ok(epoch.filter(|_| is_whole).map(|epoch| Footer { epoch, records, note }))
}

/// The frames of a footer as far as they were read.
struct Reading {
    epoch: Option<Epoch>,
    chain: Chain,
    records: Vec<Record>,
}

impl Reading {
    /// Takes the next frame and returns its length; `None` if it is not the next.
    fn take(&mut self, store_id: u64, bytes: &[u8]) -> Option<usize> {
        let found = frame::decode(store_id, bytes).ok()?;
        if self.epoch.is_none() {
            let epoch = epoch_of(found.head.previous_sum)?;
            (self.epoch, self.chain) = (Some(epoch), chain_of(epoch));
        }
        self.chain.accept(FrameKind::Footer, &found).ok()?;
        let mut payload = found.payload;
        for _ in 0..found.head.record_count {
            let record = Record::decode(&mut payload).ok()?;
            let is_listed = match &record {
                Record::Put(put) => Some(put.epoch) == self.epoch,
                Record::Tombstone(_) => true,
                _ => false,
            };
            self.records.push(is_listed.then_some(record)?);
        }
        Some(found.len_bytes())
    }
}

fn epoch_of(previous_sum: u64) -> Option<Epoch> {
    u32::try_from(previous_sum).ok().map(Epoch)
}

/// Where the frames of a footer of `epoch` begin.
#[must_use]
pub fn chain_of(epoch: Epoch) -> Chain {
    Chain { sequence: 1, previous_sum: u64::from(epoch.0) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use forebay_io::OpenMode;
    use forebay_io::sim::SimWorld;

    use super::super::entry::Place;
    use super::super::record::PutRecord;
    use super::*;
    use crate::key::Identity;
    use crate::outcome::PieceSums;
    use crate::store::Pinning;

    const REGION_AT: u64 = 8192;
    const REGION_END: u64 = REGION_AT + (1 << 20);

    fn line(identity: u128) -> Vec<u8> {
        let mut bytes = Vec::new();
        let put = PutRecord {
            identity: Identity(identity),
            generation: Generation(1),
            at: Place { region: 0, place: 0 },
            epoch: Epoch(4),
            len_bytes: 1,
            sums: PieceSums::One(0),
            etag: None,
            dirty: None,
            pinning: Pinning::Unpinned,
        };
        Record::Put(put).encode(&mut bytes);
        bytes
    }

    fn note(dirty: &[u64]) -> DirtyNote {
        let dirty: Vec<Generation> = dirty.iter().copied().map(Generation).collect();
        let unsure = dirty.iter().copied().filter(|generation| generation.0 == 800).collect();
        let (next_generation, below) = (Generation(1000), Generation(900));
        DirtyNote { sequence: 9, durable: 8, next_generation, below, dirty, unsure }
    }

    #[test]
    fn a_footer_is_read_back_and_never_damaged() {
        let world = SimWorld::new(3);
        let disk = world.disk();
        world.block_on(async {
            let slab = disk.open("s", OpenMode::Create(2 << 20)).await.unwrap();
            let mut builder = FooterBuilder::default();
            let mut bound = 0;
            for identity in 0..9_000 {
                bound = builder.bytes_with(line(identity).len());
                builder.push(&line(identity));
            }
            assert!(builder.payloads.len() > 1);
            assert_eq!(bound, builder.payloads.iter().map(|p| frame_bytes(p.bytes.len()) as u64).sum::<u64>() + 4096);
            builder.write(&disk, &slab, 5, Epoch(4), REGION_END, &note(&[3, 800])).await.unwrap();
            let footer = read(&slab, 5, REGION_AT, REGION_END).await.unwrap().unwrap();
            assert_eq!((footer.epoch, footer.records.len(), footer.note), (Epoch(4), 9_000, note(&[3, 800])));
            let identities = (0..9_000).map(Identity);
            assert!(
                footer
                    .records
                    .iter()
                    .zip(identities)
                    .all(|(record, identity)| matches!(record, Record::Put(put) if put.identity == identity))
            );
            assert_eq!(read(&slab, 6, REGION_AT, REGION_END).await.unwrap(), None, "of another store");
            world.flip_bit("s", REGION_END - 300_000, 3);
            assert_eq!(read(&slab, 5, REGION_AT, REGION_END).await.unwrap(), None);
        });
    }

    #[test]
    fn an_empty_footer_still_has_its_epoch_and_its_note() {
        let world = SimWorld::new(4);
        let disk = world.disk();
        world.block_on(async {
            let slab = disk.open("s", OpenMode::Create(2 << 20)).await.unwrap();
            let full: Vec<u64> = (0..NOTED_MAX as u64).collect();
            FooterBuilder::default().write(&disk, &slab, 5, Epoch(8), REGION_END, &note(&full)).await.unwrap();
            let footer = read(&slab, 5, REGION_AT, REGION_END).await.unwrap().unwrap();
            assert_eq!((footer.epoch, footer.records.len()), (Epoch(8), 0));
            assert!(footer.note.names(Generation(3)) && !footer.note.settles(Generation(3)));
            assert!(footer.note.settles(Generation(899)) && !footer.note.settles(Generation(900)));
            world.flip_bit("s", REGION_END - 4096 + 70, 3);
            assert_eq!(read_trailer(&slab, 5, REGION_END).await.unwrap(), None);
        });
    }
}
