//! [`Disk`] and [`Runtime`](crate::Runtime) on glommio's io_uring, and the proxy's sockets. Everything here belongs to
//! the executor it was made on.
//!
//! Invariants: the first file an executor opens is the probe file, because glommio decides by it whether the device is
//! polled, and decides wrongly by an empty one; without direct I/O nothing opens; buffers in flight never exceed the
//! arena the caller has sized.

mod file;
mod memory;
mod runtime;
mod socket;

use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use glommio::io::{Directory, DmaFile, OpenOptions};

pub use self::file::RingFile;
pub use self::runtime::RingRuntime;
pub use self::socket::{Listener, Socket};

use self::file::io_error;
pub(crate) use self::memory::{RingRead, RingWrite};
use crate::arena::Arena;
use crate::buffer::{Writable, WriteBuf, assert_whole_sectors};
use crate::disk::{Disk, OpenMode};
use crate::error::IoError;
use crate::units::SECTOR_BYTES;

const PROBE_NAME: &str = ".forebay-probe";
/// Cached blocks are nobody else's business.
const FILE_MODE: u32 = 0o600;
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// The kernel itself tries for 30 ms each time.
const PROBE_OPENS_MAX: u32 = 20;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;

/// How much memory buffers in flight may take on one executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaConfig {
    /// The bound, in bytes; each buffer counts as the next power of two. At least twice the largest transfer.
    pub bytes: usize,
}

impl ArenaConfig {
    /// What the executor's builder must be given as `io_memory` so that this arena fits beside the allocator's own
    /// tables: 257 MiB hold 64 buffers of 4 MiB, 256 hold 63.
    #[must_use]
    pub const fn io_memory_bytes(self) -> usize {
        self.bytes + self.bytes / 64 + (1 << 20)
    }
}

/// One directory, opened by one executor for direct I/O.
#[derive(Clone)]
pub struct RingDisk(Rc<Dir>);

struct Dir {
    path: PathBuf,
    arena: Arena,
    /// Kept open: what glommio learned from it holds for its device.
    _probe: DmaFile,
}

impl RingDisk {
    /// Opens the directory at `path`, which must exist. Must be the first disk operation of the executor.
    ///
    /// # Errors
    /// [`IoError::Missing`], [`IoError::NoDirectIo`], [`IoError::NoSpace`], or what the kernel says.
    pub async fn open(path: &Path, arena: ArenaConfig) -> Result<RingDisk, IoError> {
        RingDisk::open_with(path, Arena::new(arena.bytes)).await
    }

    /// Opens another directory for the same executor; both share its arena.
    ///
    /// # Errors
    /// As [`RingDisk::open`].
    pub async fn beside(&self, path: &Path) -> Result<RingDisk, IoError> {
        RingDisk::open_with(path, self.0.arena.clone()).await
    }

    async fn open_with(path: &Path, arena: Arena) -> Result<RingDisk, IoError> {
        let name = path.display().to_string();
        let path = fs::canonicalize(path).map_err(|error| explain(error, "open", &name, 0))?;
        let kind = rustix::fs::statfs(&path).map_err(|errno| explain(errno.into(), "open", &name, 0))?.f_type;
        if matches!(kind, TMPFS_MAGIC | RAMFS_MAGIC) {
            return Err(IoError::NoDirectIo { name });
        }
        let probe_path = path.join(PROBE_NAME);
        write_probe(&probe_path).map_err(|error| explain(error, "write", PROBE_NAME, SECTOR_BYTES as u64))?;
        let probe = open_probe(&probe_path).await.map_err(|error| explain(error, "open", PROBE_NAME, 0))?;
        if probe.alignment() > SECTOR_BYTES as u64 {
            return Err(IoError::NoDirectIo { name });
        }
        Ok(RingDisk(Rc::new(Dir { path, arena, _probe: probe })))
    }
}

impl Disk for RingDisk {
    type File = RingFile;

    async fn open(&self, name: &str, mode: OpenMode) -> Result<RingFile, IoError> {
        assert!(!name.is_empty() && !name.contains('/'), "{name:?} is not a plain file name");
        let mut options = OpenOptions::new();
        options.read(true).mode(FILE_MODE);
        let preallocate = match mode {
            OpenMode::Read => None,
            OpenMode::ReadWrite => {
                options.write(true);
                None
            }
            OpenMode::Create(bytes) => {
                options.write(true).create_new(true);
                Some(bytes)
            }
            OpenMode::Replace(bytes) => {
                options.write(true).create(true).truncate(true);
                Some(bytes)
            }
        };
        let file = options.dma_open(self.0.path.join(name)).await;
        let file = file.map_err(|error| explain(io_error(error), "open", name, 0))?;
        if let Some(bytes) = preallocate
            && let Err(error) = self.0.preallocate(&file, name, bytes).await
        {
            // Half a slab must not be found by the next start; if it can't be removed, that start says so.
            let _ = file.remove().await;
            return Err(error);
        }
        let len_bytes = file.file_size().await.map_err(|error| explain(io_error(error), "open", name, 0))?;
        Ok(RingFile::new(file, name, mode, len_bytes, self.0.arena.clone()))
    }

    async fn sync_names(&self) -> Result<(), IoError> {
        let told = |error| explain(io_error(error), "sync", ".", 0);
        let directory = Directory::open(&self.0.path).await.map_err(told)?;
        directory.sync().await.map_err(told)?;
        directory.close().await.map_err(told)
    }

    async fn buffer(&self, len: usize) -> WriteBuf {
        assert_whole_sectors(len);
        let room = self.0.arena.room(len).await;
        WriteBuf::new(Writable::Ring(RingWrite::zeroed(len)), Some(room))
    }
}

impl Dir {
    /// Asks for the free space first: ext4 would fill the disk before it finds that there is too little.
    async fn preallocate(&self, file: &DmaFile, name: &str, bytes: u64) -> Result<(), IoError> {
        let free = rustix::fs::statvfs(&self.path).map_err(|errno| explain(errno.into(), "allocate", name, bytes))?;
        if free.f_bavail.saturating_mul(free.f_frsize) < bytes {
            return Err(IoError::NoSpace { name: name.to_owned(), bytes });
        }
        file.pre_allocate(bytes, false).await.map_err(|error| explain(io_error(error), "allocate", name, bytes))
    }
}

/// A sector of zeros, written and synced. Several executors may do it at once: they write the same.
fn write_probe(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    file.write_all(&[0; SECTOR_BYTES])?;
    file.sync_all()
}

/// To open it takes a worker of the ring, the executor's first. If the kernel can make none in several attempts (a signal is
/// in the way, no process ids, no memory), it cancels the operation, which glommio calls a timeout. Nothing was done, so
/// it can be done again; a full machine is no reason not to start.
async fn open_probe(path: &Path) -> io::Result<DmaFile> {
    let mut opens = 1;
    loop {
        match DmaFile::open(path).await.map_err(io_error) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && opens < PROBE_OPENS_MAX => opens += 1,
            outcome => return outcome,
        }
    }
}

/// What a failed opening means. EINVAL is how a file system refuses O_DIRECT.
fn explain(error: io::Error, verb: &'static str, name: &str, bytes: u64) -> IoError {
    let name = name.to_owned();
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => IoError::Missing { name },
        (io::ErrorKind::AlreadyExists, _) => IoError::Exists { name },
        (_, Some(ENOSPC)) => IoError::NoSpace { name, bytes },
        (_, Some(EINVAL)) if verb == "open" => IoError::NoDirectIo { name },
        _ => IoError::Device { verb, name, at: 0, source: error },
    }
}
