//! [`Disk`] and [`Runtime`] for looking into a stopped node: plain reads on the calling thread, no ring, no executor.
//!
//! Used by `forebay inspect` and `forebay verify`, which must work where io_uring is forbidden and while the node is down.
//! Invariants: nothing is ever written, created or synced; a read hands out exactly the bytes asked for or an error, and
//! comes from the device (O_DIRECT) wherever the file system can, so that a stale copy in memory never hides rot.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::future::{Future, pending, ready};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::OFlags;

use crate::buffer::{Heap, Memory, ReadBuf, Writable, WriteBuf};
use crate::disk::{Disk, DiskFile, OpenMode, assert_readable, assert_writable};
use crate::error::IoError;
use crate::runtime::{Nanos, Runtime};

/// One directory, for reading only.
#[derive(Debug, Clone)]
pub struct PlainDisk {
    path: Rc<Path>,
}

/// A file of a [`PlainDisk`].
#[derive(Clone)]
pub struct PlainFile(Rc<Open>);

struct Open {
    file: File,
    name: String,
    len_bytes: u64,
}

impl PlainDisk {
    /// The directory at `path`. Nothing is opened yet.
    #[must_use]
    pub fn new(path: &Path) -> PlainDisk {
        PlainDisk { path: path.into() }
    }
}

impl Disk for PlainDisk {
    type File = PlainFile;

    async fn open(&self, name: &str, mode: OpenMode) -> Result<PlainFile, IoError> {
        assert_eq!(mode, OpenMode::Read, "this disk is for reading only");
        let opened = open_for_reading(&self.path.join(name)).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (len_bytes, file) = opened.map_err(|error| match error.kind() {
            ErrorKind::NotFound => IoError::Missing { name: name.to_owned() },
            _ => IoError::Device { verb: "open", name: name.to_owned(), at: 0, source: error },
        })?;
        Ok(PlainFile(Rc::new(Open { file, name: name.to_owned(), len_bytes })))
    }

    async fn sync_names(&self) -> Result<(), IoError> {
        // No name was created, so every one is as durable as it was.
        Ok(())
    }

    async fn buffer(&self, len: usize) -> WriteBuf {
        WriteBuf::on_heap(len)
    }
}

impl DiskFile for PlainFile {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    async fn read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        assert_readable(at, len);
        let Open { file, name, .. } = &*self.0;
        let mut heap = Heap::zeroed(len);
        let mut got = 0;
        while got < len {
            match file.read_at(&mut heap.as_mut_slice()[got..], at + got as u64) {
                Ok(0) => return Err(IoError::Short { name: name.clone(), at, want: len, got }),
                Ok(more) => got += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    // A file that was cut in the middle of a sector ends there for direct I/O.
                    if at + got as u64 >= self.0.len_bytes {
                        return Err(IoError::Short { name: name.clone(), at, want: len, got });
                    }
                    return Err(IoError::Device { verb: "read", name: name.clone(), at: at + got as u64, source });
                }
            }
        }
        Ok(ReadBuf::new(Memory::Writable(Writable::Heap(heap)), None))
    }

    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static {
        // By the contract of the port a write through a read-only handle is a caller's bug and panics here.
        assert_writable(OpenMode::Read, at, buf.len(), self.0.len_bytes);
        pending()
    }

    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        // Nothing was written through this handle.
        ready(Ok(()))
    }
}

/// With O_DIRECT, or without it on a file system that has none: bytes can be looked at anywhere.
fn open_for_reading(path: &PathBuf) -> Result<File, Error> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).expect("a flag of open(2) fits an int");
    match OpenOptions::new().read(true).custom_flags(direct).open(path) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => File::open(path),
        opened => opened,
    }
}

/// Time and randomness for one future on the calling thread; see [`PlainRuntime::run`].
#[derive(Clone)]
pub struct PlainRuntime {
    began: Instant,
    random: Rc<RefCell<SmallRng>>,
}

impl Default for PlainRuntime {
    fn default() -> Self {
        PlainRuntime { began: Instant::now(), random: Rc::new(RefCell::new(SmallRng::from_os_rng())) }
    }
}

impl PlainRuntime {
    /// Runs `future` to its end on this thread.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        futures::executor::block_on(future)
    }
}

impl Runtime for PlainRuntime {
    /// # Panics
    /// Always: whoever only reads starts no task, and here nobody would run it.
    fn spawn(&self, _task: impl Future<Output = ()> + 'static) {
        panic!("nothing that only reads starts a task");
    }

    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.began.elapsed().as_nanos()).expect("585 years fit"))
    }

    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).expect("585 million years fit")
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        futures::future::lazy(move |_| std::thread::sleep(duration))
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        ready(())
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().random()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::units::SECTOR_BYTES;

    #[test]
    fn a_read_is_exactly_the_bytes_asked_for_or_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3 * SECTOR_BYTES + 100).map(|n| (n % 251) as u8).collect();
        std::fs::write(directory.path().join("slab"), &content).unwrap();
        let disk = PlainDisk::new(directory.path());
        PlainRuntime::default().run(async {
            let file = disk.open("slab", OpenMode::Read).await.unwrap();
            assert_eq!(file.len_bytes(), content.len() as u64);
            let two = file.read(SECTOR_BYTES as u64, 2 * SECTOR_BYTES).await.unwrap();
            assert_eq!(&*two, &content[SECTOR_BYTES..3 * SECTOR_BYTES]);
            let short = file.read(3 * SECTOR_BYTES as u64, SECTOR_BYTES).await;
            assert!(matches!(short, Err(IoError::Short { want: SECTOR_BYTES, .. })), "{short:?}");
            let missing = disk.open("other", OpenMode::Read).await;
            assert!(matches!(missing, Err(IoError::Missing { .. })));
        });
    }

    #[test]
    #[should_panic(expected = "read-only handle")]
    fn it_never_writes() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("slab"), [0; SECTOR_BYTES]).unwrap();
        let disk = PlainDisk::new(directory.path());
        let written = PlainRuntime::default().run(async {
            let file = disk.open("slab", OpenMode::Read).await.unwrap();
            file.write(0, disk.buffer(SECTOR_BYTES).await).await
        });
        assert!(written.is_err());
    }
}
