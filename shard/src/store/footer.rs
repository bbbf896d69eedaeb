//! A region's footer: the table of its records, written at its end when it is sealed, read when it is reclaimed.
//!
//! ```text
//!  ├ payloads … ┼ (unused) ┼ footer frame 1 ┼ … ┼ footer frame n ┼ trailer: one sector ┤ region's end
//! ```
//! The frames chain from the region's epoch, so a footer of an earlier epoch never passes. The trailer is the chain's
//! last frame; its payload says how many bytes before it the first one starts. A footer is a help, not the truth: whoever
//! reads it asks the index about every identity, and scans the index where a footer is missing or damaged.

use forebay_io::frame::{self, Chain, FRAME_HEADER_BYTES, FrameKind, frame_bytes};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError};

use super::record::Record;
use super::regions::Epoch;
use crate::key::Identity;

/// A footer frame's payload, at most.
const PAYLOAD_BYTES_MAX: usize = (256 << 10) - FRAME_HEADER_BYTES;
const TRAILER_BYTES: u64 = SECTOR_BYTES as u64;

/// Gathers a region's table while it is open.
#[derive(Default)]
pub struct FooterBuilder {
    payloads: Vec<Payload>,
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
        if let Some(last) = self.payloads.last_mut() {
            last.bytes.extend_from_slice(line);
            last.record_count += 1;
        }
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
        frame::encode(store_id, chain.head(FrameKind::Footer, 0, 0), &frames_bytes.to_le_bytes(), &mut buf);
        slab.write(at, buf).await
    }
}

/// Whose records the region of `epoch` between `region_at` and `region_end` holds; `None` if it has no good footer.
pub async fn read<F: DiskFile>(
    slab: &F,
    store_id: u64,
    epoch: Epoch,
    region_at: u64,
    region_end: u64,
) -> Option<Vec<Identity>> {
    let trailer_at = region_end - TRAILER_BYTES;
    let trailer_bytes = slab.read(trailer_at, SECTOR_BYTES).await.ok()?;
    let trailer = frame::decode(store_id, &trailer_bytes).ok()?;
    let frames_bytes = u64::from_le_bytes(trailer.payload.try_into().ok()?);
    if !frames_bytes.is_multiple_of(SECTOR_BYTES as u64) || frames_bytes > trailer_at - region_at {
        return None;
    }
    let mut chain = chain_of(epoch);
    let mut identities = Vec::new();
    let mut at = trailer_at - frames_bytes;
    while at < trailer_at {
        let ahead = (trailer_at - at).min(frame_bytes(PAYLOAD_BYTES_MAX) as u64) as usize;
        let bytes = slab.read(at, ahead).await.ok()?;
        let footer = frame::decode(store_id, &bytes).ok()?;
        chain.accept(FrameKind::Footer, &footer).ok()?;
        let mut payload = footer.payload;
        for _ in 0..footer.head.record_count {
            let Ok(Record::Put(put)) = Record::decode(&mut payload) else { return None };
            identities.push(put.identity);
        }
        at += footer.len_bytes() as u64;
    }
    chain.accept(FrameKind::Footer, &trailer).ok()?;
    Some(identities)
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
    use crate::key::Generation;
    use crate::outcome::PieceSums;

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
        };
        Record::Put(put).encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_footer_is_read_back_in_its_epoch_only_and_never_damaged() {
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
            builder.write(&disk, &slab, 5, Epoch(4), REGION_END).await.unwrap();
            let expected: Vec<Identity> = (0..9_000).map(Identity).collect();
            assert_eq!(read(&slab, 5, Epoch(4), REGION_AT, REGION_END).await, Some(expected));
            assert_eq!(read(&slab, 5, Epoch(5), REGION_AT, REGION_END).await, None);
            assert_eq!(read(&slab, 6, Epoch(4), REGION_AT, REGION_END).await, None);
            world.flip_bit("s", REGION_END - 300_000, 3);
            assert_eq!(read(&slab, 5, Epoch(4), REGION_AT, REGION_END).await, None);
        });
    }
}
