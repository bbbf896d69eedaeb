//! The port to one disk, and its written contract.
//!
//! Offsets and lengths are multiples of [`SECTOR_BYTES`]; anything else is a bug of the caller and panics before it
//! reaches the device, as does a write through a read-only handle or past the end. What each verb promises stands at the
//! verb; `tests/contract.rs` holds the ring and the simulator to it. Called by the store and by `shard`'s reader.

use std::future::Future;

use crate::buffer::{ReadBuf, WriteBuf, assert_whole_sectors};
use crate::error::IoError;
use crate::units::SECTOR_BYTES;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist; only reads are allowed. What another core uses to read a pinned record.
    Read,
    /// It must exist.
    ReadWrite,
    /// Created, preallocated to this many bytes (a multiple of a sector); it must not exist.
    Create(u64),
    /// Created or truncated, then preallocated to this many bytes: a checkpoint slot.
    Replace(u64),
}

/// One directory on one file system, opened by one core.
pub trait Disk: Clone + 'static {
    /// A file of this disk.
    type File: DiskFile;
    /// Opens `name` (a plain file name) for direct I/O.
    ///
    /// # Errors
    /// [`IoError::Missing`] if it is not there, [`IoError::Exists`] for `Create` of an existing one,
    /// [`IoError::NoSpace`] if it can't be preallocated, [`IoError::NoDirectIo`] if the file system has none.
    fn open(&self, name: &str, mode: OpenMode) -> impl Future<Output = Result<Self::File, IoError>>;
    /// Makes created names durable (fsync of the directory).
    fn sync_names(&self) -> impl Future<Output = Result<(), IoError>>;
    /// A buffer of `len` bytes (whole sectors) for a write, zeroed; waits until the arena has room for it.
    fn buffer(&self, len: usize) -> impl Future<Output = WriteBuf>;
}

/// A preallocated file, read and written by whole sectors.
pub trait DiskFile: Clone + 'static {
    /// Its size in bytes.
    fn len_bytes(&self) -> u64;
    /// Reads exactly `len` bytes at `at`; waits until the arena has room. A short transfer is retried for the rest or
    /// reported, never passed on. Bytes never written read as anything; so does a range that is being written.
    fn read(&self, at: u64, len: usize) -> impl Future<Output = Result<ReadBuf, IoError>>;
    /// Writes the whole buffer at `at`; resolves when the device has accepted it, which may still be volatile: until it
    /// is synced, a crash may leave it there, missing, or torn at any 512-byte boundary. It begins at the call, not at
    /// the first poll. Dropping the future neither cancels the write nor frees its buffer: it may land later, whole.
    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static;
    /// fdatasync, begun at the call: resolves when every write of this file that had resolved before is on stable
    /// storage. If it fails, those writes are in doubt for ever: a later success proves nothing about them.
    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static;
}

/// Stops a read that breaks the contract before it reaches a device.
pub(crate) fn assert_readable(at: u64, len: usize) {
    assert!(at.is_multiple_of(SECTOR_BYTES as u64), "an offset of {at} is not on a sector");
    assert_whole_sectors(len);
}

/// Stops a write that breaks the contract before it reaches a device: also one through a read-only handle, or past
/// the end that was preallocated.
pub(crate) fn assert_writable(mode: OpenMode, at: u64, len: usize, len_bytes: u64) {
    assert_readable(at, len);
    assert!(mode != OpenMode::Read, "a write through a read-only handle");
    assert!(at + len as u64 <= len_bytes, "a write of {len} bytes at {at} of {len_bytes}");
}
