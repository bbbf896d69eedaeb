//! Buffers of the disk floor. [`ReadBuf`] and [`WriteBuf`] hide where the bytes lie: in the ring's registered arena or
//! on an aligned heap. Every file that reads or writes a slab handles them; only `ring` and `sim` make them.
//!
//! Invariants: a buffer is owned by the request until the kernel has answered; its share of the arena is
//! given back only after its memory is; the bytes of a [`ReadBuf`] never change. Neither type is `Send`.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

use bytes::Buf;

use crate::arena::Room;
use crate::ring::{RingRead, RingWrite};
use crate::units::SECTOR_BYTES;

/// Bytes read from a disk. Not `Send` (it may lie in this core's arena); cheap to clone and to slice. All clones and
/// slices share one piece of the arena, which is free again when the last of them is dropped: keep none for long.
///
/// As a [`Buf`] it is its own cursor: `advance` narrows the view, so it can be the `Data` of an HTTP body.
#[derive(Clone)]
pub struct ReadBuf {
    held: Rc<Held>,
    start: usize,
    end: usize,
}

impl ReadBuf {
    /// A copy of `bytes` on the heap; for tests and for bytes that did not come from a disk.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> ReadBuf {
        let mut heap = Heap::zeroed(bytes.len());
        heap.as_mut_slice().copy_from_slice(bytes);
        ReadBuf::new(Memory::Writable(Writable::Heap(heap)), None)
    }

    /// The bytes `range` of this view, sharing its memory.
    ///
    /// # Panics
    /// If `range` is not inside this view.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> ReadBuf {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} bytes", self.len());
        ReadBuf { held: Rc::clone(&self.held), start: self.start + range.start, end: self.start + range.end }
    }

    pub(crate) fn new(memory: Memory, room: Option<Room>) -> ReadBuf {
        let end = memory.as_slice().len();
        ReadBuf { held: Rc::new(Held { memory, _room: room }), start: 0, end }
    }
}

impl Deref for ReadBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.held.memory.as_slice()[self.start..self.end]
    }
}

impl AsRef<[u8]> for ReadBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Buf for ReadBuf {
    fn remaining(&self) -> usize {
        self.end - self.start
    }

    fn chunk(&self) -> &[u8] {
        self
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "advance by {count} in {} bytes", self.remaining());
        self.start += count;
    }
}

impl fmt::Debug for ReadBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadBuf({} bytes)", self.len())
    }
}

/// An aligned buffer of whole sectors for one write, zeroed. Made by [`Disk::buffer`](crate::disk::Disk::buffer).
/// Fields drop in this order: first the memory, then the room for it.
pub struct WriteBuf {
    memory: Writable,
    room: Option<Room>,
}

impl WriteBuf {
    /// A buffer of `len` bytes on the aligned heap, outside of any arena; the ring copies it once more when it is
    /// written.
    ///
    /// # Panics
    /// If `len` is zero or not whole sectors.
    #[must_use]
    pub fn on_heap(len: usize) -> WriteBuf {
        assert_whole_sectors(len);
        WriteBuf::new(Writable::Heap(Heap::zeroed(len)), None)
    }

    /// The same memory, from now on read-only and shareable.
    #[must_use]
    pub fn freeze(self) -> ReadBuf {
        ReadBuf::new(Memory::Writable(self.memory), self.room)
    }

    pub(crate) fn new(memory: Writable, room: Option<Room>) -> WriteBuf {
        WriteBuf { memory, room }
    }

    /// For who writes it: the room must outlive the memory.
    pub(crate) fn into_parts(self) -> (Writable, Option<Room>) {
        (self.memory, self.room)
    }
}

impl Deref for WriteBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_slice()
    }
}

impl DerefMut for WriteBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut_slice()
    }
}

impl fmt::Debug for WriteBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteBuf({} bytes)", self.len())
    }
}

/// What views share: memory and its share of the arena. Fields drop in this order: first the memory, then the room for it.
struct Held {
    memory: Memory,
    _room: Option<Room>,
}

/// Where the bytes of a [`ReadBuf`] lie.
pub(crate) enum Memory {
    Writable(Writable),
    RingRead(RingRead),
}

impl Memory {
    fn as_slice(&self) -> &[u8] {
        match self {
            Memory::Writable(memory) => memory.as_slice(),
            Memory::RingRead(read) => read.as_slice(),
        }
    }
}

/// Where the bytes of a [`WriteBuf`] lie.
pub(crate) enum Writable {
    Heap(Heap),
    Ring(RingWrite),
}

impl Writable {
    fn as_slice(&self) -> &[u8] {
        match self {
            Writable::Heap(heap) => heap.as_slice(),
            Writable::Ring(memory) => memory.as_slice(),
        }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Writable::Heap(heap) => heap.as_mut_slice(),
            Writable::Ring(memory) => memory.as_mut_slice(),
        }
    }
}

/// Heap bytes that start on a sector boundary, as direct I/O demands: over-allocated by less than a sector.
pub(crate) struct Heap {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Heap {
    pub(crate) fn zeroed(len: usize) -> Heap {
        let bytes = vec![0; len + SECTOR_BYTES - 1];
        let start = bytes.as_ptr().align_offset(SECTOR_BYTES);
        assert!(start < SECTOR_BYTES, "a byte pointer can be aligned within one sector");
        Heap { bytes, start, len }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Stops a caller that asks for anything but whole sectors, before it reaches a device.
pub(crate) fn assert_whole_sectors(len: usize) {
    assert!(len > 0 && len.is_multiple_of(SECTOR_BYTES), "{len} bytes are not whole sectors");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_buffers_are_aligned_and_zeroed() {
        for sectors in [1, 2, 5, 64] {
            let buf = WriteBuf::on_heap(sectors * SECTOR_BYTES);
            assert!(buf.as_ptr().cast::<[u8; SECTOR_BYTES]>().addr().is_multiple_of(SECTOR_BYTES));
            assert!(buf.len() == sectors * SECTOR_BYTES && buf.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    #[should_panic(expected = "not whole sectors")]
    fn write_buffers_are_whole_sectors() {
        let _ = WriteBuf::on_heap(SECTOR_BYTES + 512);
    }

    #[test]
    fn slices_share_memory_and_advance_on_their_own() {
        let whole = ReadBuf::copy_of(b"forebay");
        let mut tail = whole.slice(4..7);
        let inner = tail.slice(1..3);
        tail.advance(2);
        assert_eq!((&*whole, &*tail, &*inner), (&b"forebay"[..], &b"y"[..], &b"ay"[..]));
        assert_eq!(whole.slice(4..4).remaining(), 0);
        assert_eq!(inner.as_ptr(), whole[5..].as_ptr());
    }

    #[test]
    #[should_panic(expected = "of 3 bytes")]
    fn a_slice_stays_inside_its_view() {
        let _ = ReadBuf::copy_of(b"forebay").slice(0..3).slice(0..4);
    }

    #[test]
    fn a_frozen_buffer_keeps_its_bytes() {
        let mut buf = WriteBuf::on_heap(SECTOR_BYTES);
        buf[..3].copy_from_slice(b"abc");
        assert_eq!(&buf.freeze()[..4], b"abc\0");
    }
}
