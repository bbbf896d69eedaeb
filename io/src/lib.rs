//! Forebay's disk floor: bytes to and from slab files by direct I/O and io_uring.
//!
//! This crate knows files, sectors, buffers, checksums and the framing of records. It knows no keys, no cache,
//! no HTTP. Everything above is generic over [`Disk`] and [`Runtime`], which exist twice: on the real ring
//! ([`ring`]) and in the simulator ([`sim`]). One contract suite (`tests/contract.rs`) runs on both. [`plain`] reads the
//! files of a stopped node without a ring.

mod arena;
pub mod buffer;
pub mod checksum;
pub mod disk;
pub mod error;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod plain;
pub mod ring;
pub mod runtime;
pub mod sim;
pub mod superblock;
pub mod units;

pub use buffer::{ReadBuf, WriteBuf};
pub use disk::{Disk, DiskFile, OpenMode};
pub use error::IoError;
pub use runtime::{Nanos, Runtime};
