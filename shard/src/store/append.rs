//! The two append streams: where the next record goes, and the batches of bytes on their way to the device.
//!
//! Used by `Store::append` and by relocation (reserve), by the committer (seal, wait). Reserving a place is synchronous;
//! the bytes stay with their frames until the batch is launched, so a batch is one exact aligned buffer, not a large one
//! that is zeroed for every small commit. Upholds I1: a place is reserved once, in an open region; a sealed batch ends on
//! a sector, so acknowledged bytes are never written again.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use event_listener::Event;
use forebay_io::units::{SECTOR_BYTES, sectors_up};
use forebay_io::{Disk, DiskFile, IoError};
use futures::future::join_all;

use super::footer::FooterBuilder;
use super::record::RECORD_BYTES_MAX;
use super::regions::{Epoch, footprint, place_after};

/// A batch this large is launched without waiting for its commit.
pub const BATCH_BYTES_MAX: u64 = 1 << 20;
/// A batch is written in buffers of this size.
const WRITE_BYTES_MAX: u64 = 1 << 20;

/// Bytes that are written together. Every record in it holds it until its commit is decided.
#[derive(Default)]
pub struct Batch {
    outcome: RefCell<Option<Result<(), Rc<IoError>>>>,
    done: Event,
}

impl Batch {
    /// Waits until the device has accepted the bytes.
    ///
    /// # Errors
    /// What the device said: every record of the batch fails.
    pub async fn written(&self) -> Result<(), Rc<IoError>> {
        loop {
            let done = self.done.listen();
            if let Some(outcome) = self.outcome.borrow().as_ref() {
                return outcome.clone();
            }
            done.await;
        }
    }

    /// Tells everybody how the write went.
    pub fn resolve(&self, outcome: Result<(), Rc<IoError>>) {
        let earlier = self.outcome.borrow_mut().replace(outcome);
        assert!(earlier.is_none(), "a batch is written once");
        self.done.notify(usize::MAX);
    }
}

/// A batch that takes no more records: to be written now.
pub struct Launch {
    /// The region.
    pub region: u32,
    /// Where in the region it starts: on a sector.
    pub start: u64,
    /// Where it ends: on a sector.
    pub end: u64,
    /// Offsets in the region and the bytes there, ascending.
    pub parts: Vec<(u64, Vec<Bytes>)>,
    /// Whom to tell.
    pub batch: Rc<Batch>,
}

/// One stream: at most one open region.
#[derive(Default)]
pub struct Stream {
    /// The region being appended to.
    pub open: Option<OpenRegion>,
    /// Whether the next one is being opened.
    pub opening: bool,
}

/// A region being appended to.
pub struct OpenRegion {
    /// Its number.
    pub region: u32,
    /// Its epoch.
    pub epoch: Epoch,
    /// What its footer will say.
    pub footer: FooterBuilder,
    region_bytes: u64,
    cursor: u64,
    gathering: Option<Gathering>,
}

struct Gathering {
    start: u64,
    parts: Vec<(u64, Vec<Bytes>)>,
    batch: Rc<Batch>,
}

impl OpenRegion {
    /// An empty region whose `RegionOpen` is durable.
    #[must_use]
    pub fn new(region: u32, epoch: Epoch, region_bytes: u64) -> OpenRegion {
        OpenRegion { region, epoch, footer: FooterBuilder::default(), region_bytes, cursor: 0, gathering: None }
    }

    /// The offset at which a record of `len_bytes` would go.
    #[must_use]
    pub fn next_offset(&self, len_bytes: u32) -> u64 {
        place_after(self.cursor, len_bytes)
    }

    /// Whether a record of `len_bytes` with one piece would still fit, roughly: its footer line is not known yet.
    #[must_use]
    pub fn has_room(&self, len_bytes: u32) -> bool {
        let end = self.next_offset(len_bytes) + footprint(len_bytes);
        sectors_up(end) + self.footer.bytes_with(RECORD_BYTES_MAX) <= self.region_bytes
    }

    /// Reserves `offset` (from [`OpenRegion::next_offset`]) for these bytes; `None` if the record, or its footer line,
    /// does not fit any more.
    pub fn reserve(&mut self, offset: u64, len_bytes: u32, frames: Vec<Bytes>, line: &[u8]) -> Option<Rc<Batch>> {
        assert_eq!(offset, self.next_offset(len_bytes), "I1: a place is reserved where it was computed");
        let end = offset + footprint(len_bytes);
        if sectors_up(end) + self.footer.bytes_with(line.len()) > self.region_bytes {
            return None;
        }
        self.footer.push(line);
        self.cursor = end;
        let gathering = self.gathering.get_or_insert_with(|| {
            assert!(offset.is_multiple_of(SECTOR_BYTES as u64), "I1: a batch starts on a sector");
            Gathering { start: offset, parts: Vec::new(), batch: Rc::default() }
        });
        gathering.parts.push((offset, frames));
        Some(Rc::clone(&gathering.batch))
    }

    /// Adds a line for a record that has no place in the region: a tombstone. False if there is no room for it: an eighth
    /// of a region is as much as lines without bytes may take.
    pub fn list(&mut self, line: &[u8]) -> bool {
        let footer_bytes = self.footer.bytes_with(line.len());
        if footer_bytes > self.region_bytes / 8 || sectors_up(self.cursor) + footer_bytes > self.region_bytes {
            return false;
        }
        self.footer.push(line);
        true
    }

    /// Whether the batch being gathered is large enough to be launched.
    #[must_use]
    pub fn is_batch_full(&self) -> bool {
        self.gathering.as_ref().is_some_and(|gathering| self.cursor - gathering.start >= BATCH_BYTES_MAX)
    }

    /// Closes the batch being gathered; the next record starts on a fresh sector.
    pub fn seal_batch(&mut self) -> Option<Launch> {
        let Gathering { start, parts, batch } = self.gathering.take()?;
        self.cursor = sectors_up(self.cursor);
        assert!(self.cursor <= self.region_bytes, "I1: a batch ends inside its region");
        Some(Launch { region: self.region, start, end: self.cursor, parts, batch })
    }
}

impl Launch {
    /// Writes the batch at `region_at`, the region's offset in the slab, in buffers of at most 1 MiB. When it returns, no
    /// write is under way any more, whether one failed or not (I1).
    ///
    /// # Errors
    /// The first that failed.
    pub async fn write<D: Disk>(&self, disk: &D, slab: &D::File, region_at: u64) -> Result<(), IoError> {
        let starts = (self.start..self.end).step_by(WRITE_BYTES_MAX as usize);
        let writes = starts.map(|start| async move {
            let end = self.end.min(start + WRITE_BYTES_MAX);
            let mut buf = disk.buffer((end - start) as usize).await;
            self.copy(start, end, &mut buf);
            slab.write(region_at + start, buf).await
        });
        join_all(writes).await.into_iter().collect()
    }

    /// Copies what lies in `start..end` of the region.
    fn copy(&self, start: u64, end: u64, into: &mut [u8]) {
        let first = self.parts.partition_point(|(offset, _)| *offset < start).saturating_sub(1);
        for (offset, frames) in self.parts[first..].iter().take_while(|(offset, _)| *offset < end) {
            let mut at = *offset;
            for frame in frames {
                let frame_end = at + frame.len() as u64;
                let (from, to) = (at.max(start), frame_end.min(end));
                if from < to {
                    let source = &frame[(from - at) as usize..(to - at) as usize];
                    into[(from - start) as usize..(to - start) as usize].copy_from_slice(source);
                }
                at = frame_end;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use forebay_io::sim::{Faults, Latency, OneIn, SimWorld};
    use forebay_io::{Disk, OpenMode, Runtime};

    use super::*;

    fn open() -> OpenRegion {
        OpenRegion::new(0, Epoch(1), 8 << 20)
    }

    fn push(region: &mut OpenRegion, content: &[u8], frame_bytes: usize) -> (u64, Rc<Batch>) {
        let frames = content.chunks(frame_bytes).map(Bytes::copy_from_slice).collect();
        let offset = region.next_offset(content.len() as u32);
        (offset, region.reserve(offset, content.len() as u32, frames, b"line").unwrap())
    }

    #[test]
    fn a_launched_batch_holds_every_record_at_its_place() {
        let world = SimWorld::new(1);
        let disk = world.disk();
        world.block_on(async {
            let slab = disk.open("s", OpenMode::Create(16 << 20)).await.unwrap();
            let mut region = open();
            let sizes = [1usize, 600, 4096, 700_000, 0, 3_000_001, 511, 5000];
            let contents: Vec<Vec<u8>> = (1..).zip(sizes).map(|(n, size)| vec![n; size]).collect();
            let offsets: Vec<u64> = contents.iter().map(|content| push(&mut region, content, 1000).0).collect();
            let launch = region.seal_batch().unwrap();
            assert_eq!(launch.start, 0);
            launch.write(&disk, &slab, 1 << 20).await.unwrap();
            let bytes = slab.read(1 << 20, launch.end as usize).await.unwrap();
            for (content, offset) in contents.iter().zip(offsets) {
                assert!(bytes[offset as usize..offset as usize + content.len()] == content[..], "at {offset}");
            }
        });
    }

    #[test]
    fn i1_a_batch_that_failed_writes_nothing_afterwards() {
        let mut failed = 0;
        for seed in 0..40 {
            let world = SimWorld::new(seed);
            let disk = world.disk();
            world.set_latency(Latency { write_us: 10..20_000, ..Latency::default() });
            failed += world.block_on(async {
                let slab = disk.open("s", OpenMode::Create(8 << 20)).await.unwrap();
                let mut region = open();
                push(&mut region, &vec![1; 3 << 20], 1 << 20);
                world.set_faults(Faults { write_error: OneIn(3), ..Faults::default() });
                let written = region.seal_batch().unwrap().write(&disk, &slab, 0).await;
                world.set_faults(Faults::default());
                for at in (0..3 << 20).step_by(1 << 20) {
                    slab.write(at, disk.buffer(1 << 20).await).await.unwrap();
                }
                world.runtime().sleep(Duration::from_secs(1)).await;
                let bytes = slab.read(0, 3 << 20).await.unwrap();
                assert!(bytes.iter().all(|byte| *byte == 0), "seed {seed}: a write landed late");
                u32::from(written.is_err())
            });
        }
        assert!(failed > 10, "{failed} batches failed");
    }

    #[test]
    fn i1_a_sealed_batch_ends_on_a_sector_and_the_next_starts_there() {
        let mut region = open();
        let (_, first) = push(&mut region, &[1; 100], 100);
        let (second_offset, second) = push(&mut region, &[2; 100], 100);
        assert!(second_offset == 512 && Rc::ptr_eq(&first, &second));
        assert_eq!(region.seal_batch().unwrap().end, 4096);
        assert!(region.seal_batch().is_none());
        let (third_offset, third) = push(&mut region, &[3; 100], 100);
        assert!(third_offset == 4096 && !Rc::ptr_eq(&first, &third));
    }

    #[test]
    fn a_region_keeps_room_for_its_footer() {
        let mut region = OpenRegion::new(0, Epoch(1), 64 << 10);
        let mut records = 0;
        loop {
            let offset = region.next_offset(4096);
            if region.reserve(offset, 4096, vec![Bytes::from_static(&[0; 4096])], &[0; 900]).is_none() {
                break;
            }
            records += 1;
        }
        // 12 × 4 KiB + a footer of 12 × 900 bytes (3 sectors) + its trailer (1) fill 64 KiB.
        assert_eq!(records, 12);
    }
}
