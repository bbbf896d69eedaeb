//! Reading ahead: large sequential reads under a reader that asks for small ones.
//!
//! Used by every walk of `inspect`. As a [`DiskFile`] it stands between a file and the one reader of blocks
//! (`read::BlockReader`), which thus verifies thousands of small records per read. Memory is bounded by one window. Where
//! a large read fails, only what was asked for is read, so that one bad sector costs no more than what lies on it.

use std::cell::RefCell;
use std::future::{Future, ready};
use std::rc::Rc;

use forebay_io::frame::{self, Chain, FrameKind, Likeness, MENDABLE_BYTES_MAX, Reject};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{DiskFile, IoError, ReadBuf, WriteBuf};

use super::super::journal::{self, Ring};

/// One read, at most, unless a single frame or piece is longer.
const WINDOW_BYTES: u64 = 4 << 20;
const SECTOR: u64 = SECTOR_BYTES as u64;

/// What lies where a frame should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remains {
    /// No such frame was ever written there.
    Nothing,
    /// It was written, and cut off, or it has rotted.
    TornOrRotten,
    /// It was written whole and has rotted.
    Rotten,
}

/// A stretch of a file (or of the journal's ring, by position) that is read in order.
#[derive(Clone)]
pub struct Window<F> {
    file: F,
    ring: Option<Ring>,
    until: u64,
    held: Rc<RefCell<Held>>,
}

#[derive(Default)]
struct Held {
    at: u64,
    bytes: Option<ReadBuf>,
    /// A large read failed: before this offset nothing is read ahead.
    careful_until: u64,
}

impl<F: DiskFile> Window<F> {
    /// The file up to its last whole sector.
    pub fn of_file(file: F) -> Window<F> {
        let until = file.len_bytes() / SECTOR * SECTOR;
        Window::until(file, until)
    }

    /// The file up to `until`, which is on a sector.
    pub fn until(file: F, until: u64) -> Window<F> {
        Window { file, ring: None, until, held: Rc::default() }
    }

    /// One lap of the ring that begins at position `from`.
    pub fn of_ring(slab: F, ring: Ring, from: u64) -> Window<F> {
        Window { file: slab, ring: Some(ring), until: from + ring.len_bytes, held: Rc::default() }
    }

    /// The sector at `at`; `None` behind the end.
    pub async fn sector_at(&self, at: u64) -> Result<Option<ReadBuf>, IoError> {
        if at + SECTOR > self.until { Ok(None) } else { self.ahead(at, SECTOR_BYTES).await.map(Some) }
    }

    /// What lies at `at`: as many bytes as the frame there claims to have, as far as they exist, at least a sector.
    /// `None` behind the end.
    pub async fn frame_at(&self, store_id: u64, at: u64) -> Result<Option<ReadBuf>, IoError> {
        let Some(sector) = self.sector_at(at).await? else { return Ok(None) };
        match frame::decode(store_id, &sector) {
            Err(Reject::Longer { frame_bytes, .. }) if at + frame_bytes as u64 <= self.until => {
                self.ahead(at, frame_bytes).await.map(Some)
            }
            _ => Ok(Some(sector)),
        }
    }

    /// What the bytes at `at` are, which are no good frame where the next of `chain` should be. Rot is told where a head
    /// is damaged, or one byte of its first 512; else it may have been cut off while it was written.
    pub async fn remains(&self, store_id: u64, at: u64, chain: Chain, want: FrameKind) -> Result<Remains, IoError> {
        let len = self.until.saturating_sub(at).min(MENDABLE_BYTES_MAX as u64) as usize;
        if len == 0 {
            return Ok(Remains::Nothing);
        }
        let bytes = self.ahead(at, len).await?;
        Ok(match chain.likeness(want, &bytes) {
            Likeness::Other => Remains::Nothing,
            Likeness::DamagedHead => Remains::Rotten,
            _ if frame::is_one_byte_off(store_id, chain, want, &bytes) => Remains::Rotten,
            Likeness::WholeHead => Remains::TornOrRotten,
            Likeness::OtherPredecessor => Remains::Nothing,
        })
    }

    async fn ahead(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        let end = at + len as u64;
        let careful = {
            let held = self.held.borrow();
            if let Some(bytes) =
                held.bytes.as_ref().filter(|bytes| held.at <= at && end <= held.at + bytes.len() as u64)
            {
                let start = (at - held.at) as usize;
                return Ok(bytes.slice(start..start + len));
            }
            at < held.careful_until
        };
        // The window goes before the next one comes, so that only one is in memory.
        self.held.borrow_mut().bytes = None;
        let large_bytes = WINDOW_BYTES.max(len as u64).min(self.until.max(end) - at);
        let first_bytes = if careful { len } else { large_bytes as usize };
        let bytes = match self.device_read(at, first_bytes).await {
            Err(_) if first_bytes > len => {
                self.held.borrow_mut().careful_until = at + large_bytes;
                self.device_read(at, len).await?
            }
            read => read?,
        };
        let mut held = self.held.borrow_mut();
        held.at = at;
        let asked = bytes.slice(0..len);
        held.bytes = Some(bytes);
        Ok(asked)
    }

    async fn device_read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        match self.ring {
            None => self.file.read(at, len).await,
            Some(ring) => journal::read(&self.file, ring, at, len).await.map(|bytes| ReadBuf::copy_of(&bytes)),
        }
    }
}

impl<F: DiskFile> DiskFile for Window<F> {
    fn len_bytes(&self) -> u64 {
        self.until
    }

    async fn read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        self.ahead(at, len).await
    }

    /// # Panics
    /// Always, by the contract of the port: this handle is read-only.
    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static {
        // The file below was opened for reading and panics.
        self.file.write(at, buf)
    }

    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        // Nothing was written through this handle.
        ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use forebay_io::sim::SimWorld;
    use forebay_io::{Disk, OpenMode};

    use super::*;

    /// A file of 3,000 sectors, each holding its number.
    async fn numbered(world: &SimWorld) -> forebay_io::sim::SimFile {
        let disk = world.disk();
        let file = disk.open("s", OpenMode::Create(3000 * SECTOR)).await.unwrap();
        let mut all = disk.buffer(3000 * SECTOR_BYTES).await;
        all.chunks_exact_mut(SECTOR_BYTES)
            .zip(0u32..)
            .for_each(|(sector, n)| sector[..4].copy_from_slice(&n.to_le_bytes()));
        file.write(0, all).await.unwrap();
        file
    }

    fn number(sector: &ReadBuf) -> u32 {
        u32::from_le_bytes(sector[..4].try_into().unwrap())
    }

    #[test]
    fn every_sector_is_itself_whatever_the_order() {
        let world = SimWorld::new(1);
        world.block_on(async {
            let window = Window::of_file(numbered(&world).await);
            for n in [0, 1, 2, 1023, 1024, 2999, 2998, 5, 1500] {
                let sector = window.sector_at(u64::from(n) * SECTOR).await.unwrap().unwrap();
                assert_eq!((sector.len(), number(&sector)), (SECTOR_BYTES, n));
            }
            assert!(window.sector_at(3000 * SECTOR).await.unwrap().is_none());
        });
    }

    #[test]
    fn what_can_not_be_read_costs_only_itself() {
        let world = SimWorld::new(2);
        world.block_on(async {
            // A window that believes in more than there is: every large read near the end fails.
            let window = Window::until(numbered(&world).await, 3600 * SECTOR);
            for n in 2900..3000 {
                let sector = window.sector_at(u64::from(n) * SECTOR).await.unwrap().unwrap();
                assert_eq!(number(&sector), n);
            }
            assert!(matches!(window.sector_at(3000 * SECTOR).await, Err(IoError::Short { .. })));
            assert_eq!(number(&window.sector_at(2999 * SECTOR).await.unwrap().unwrap()), 2999);
        });
    }

    #[test]
    fn a_ring_is_read_on_across_its_end() {
        let world = SimWorld::new(3);
        world.block_on(async {
            let ring = Ring { at: 100 * SECTOR, len_bytes: 50 * SECTOR };
            let from = 50 * SECTOR * 7 + 40 * SECTOR;
            let window = Window::of_ring(numbered(&world).await, ring, from);
            let places = [0, 9, 10, 49].map(|step| from + step * SECTOR);
            let mut found = Vec::new();
            for at in places {
                found.push(number(&window.sector_at(at).await.unwrap().unwrap()));
            }
            assert_eq!(found, [140, 149, 100, 139]);
            assert!(window.sector_at(from + 50 * SECTOR).await.unwrap().is_none(), "one lap");
        });
    }
}
