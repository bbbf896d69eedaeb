//! Files of the ring: the one place that interprets a completion, a short transfer and an errno.
//!
//! Invariants: a read hands out exactly the bytes asked for or an error; a write runs as a task of its own from the
//! call on, so that dropping its future neither cancels it nor frees its buffer (the kernel may still be reading it);
//! room in the arena is given back only after the buffer.

use std::future::Future;
use std::io;
use std::rc::Rc;

use futures::channel::oneshot;
use glommio::GlommioError;
use glommio::io::DmaFile;

use super::memory::{RingRead, RingWrite};
use crate::arena::Arena;
use crate::buffer::{Heap, Memory, ReadBuf, Writable, WriteBuf};
use crate::disk::{DiskFile, OpenMode, assert_readable, assert_writable};
use crate::error::IoError;
use crate::units::{SECTOR_BYTES, sectors_down};

/// Interrupted attempts of one transfer before it counts as failed.
const AGAIN_MAX: u32 = 64;

const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const ENOSPC: i32 = 28;

/// A file of a [`RingDisk`](super::RingDisk), open for direct I/O on this core's ring.
#[derive(Clone)]
pub struct RingFile(Rc<Open>);

struct Open {
    file: DmaFile,
    name: String,
    mode: OpenMode,
    len_bytes: u64,
    arena: Arena,
}

/// What a completion means for a transfer.
#[derive(Debug)]
enum Verdict {
    /// All of it was transferred.
    Whole,
    /// So many whole sectors were; the rest must be asked for.
    Part(usize),
    /// Nothing was, and nothing is wrong.
    Again,
    /// Less than a sector was: the file ends here.
    End,
    Failed(io::Error),
}

impl Verdict {
    fn of(completion: io::Result<usize>, want: usize) -> Verdict {
        match completion {
            Ok(got) if got >= want => Verdict::Whole,
            Ok(got) => match got - got % SECTOR_BYTES {
                0 => Verdict::End,
                sectors => Verdict::Part(sectors),
            },
            Err(error) if matches!(error.raw_os_error(), Some(EINTR | EAGAIN)) => Verdict::Again,
            Err(error) => Verdict::Failed(error),
        }
    }
}

impl RingFile {
    pub(super) fn new(file: DmaFile, name: &str, mode: OpenMode, len_bytes: u64, arena: Arena) -> RingFile {
        RingFile(Rc::new(Open { file, name: name.to_owned(), mode, len_bytes, arena }))
    }
}

impl DiskFile for RingFile {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    async fn read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        assert_readable(at, len);
        let room = self.0.arena.room(len).await;
        let first = match self.0.read_some(at, len).await? {
            Some(read) if read.as_slice().len() >= len => return Ok(ReadBuf::new(Memory::RingRead(read), Some(room))),
            first => first,
        };
        // Rare: the rest is asked for piece by piece and gathered on the heap.
        let mut heap = Heap::zeroed(len);
        let mut got = 0;
        let mut next = first;
        while let Some(read) = next {
            let sectors = whole_sectors(read.as_slice().len());
            heap.as_mut_slice()[got..got + sectors].copy_from_slice(&read.as_slice()[..sectors]);
            got += sectors;
            if got == len {
                return Ok(ReadBuf::new(Memory::Writable(Writable::Heap(heap)), Some(room)));
            }
            drop(read);
            next = self.0.read_some(at + got as u64, len - got).await?;
        }
        Err(IoError::Short { name: self.0.name.clone(), at, want: len, got })
    }

    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static {
        assert_writable(self.0.mode, at, buf.len(), self.0.len_bytes);
        let open = Rc::clone(&self.0);
        detach(Rc::clone(&self.0), "write", at, async move {
            let (memory, room) = buf.into_parts();
            let (memory, room) = match memory {
                Writable::Ring(memory) => (memory, room),
                Writable::Heap(heap) => {
                    let room = open.arena.room(heap.as_slice().len()).await;
                    (RingWrite::copy_of(heap.as_slice()), Some(room))
                }
            };
            let outcome = open.write_whole(at, memory).await;
            drop(room);
            outcome
        })
    }

    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        let open = Rc::clone(&self.0);
        // Not retried, whatever the errno: a second success would prove nothing about the writes of the first.
        detach(Rc::clone(&self.0), "sync", 0, async move {
            open.file.fdatasync().await.map_err(|error| open.device("sync", 0, io_error(error)))
        })
    }
}

impl Open {
    /// At least one whole sector at `at`, `None` at the end of the file.
    async fn read_some(&self, at: u64, len: usize) -> Result<Option<RingRead>, IoError> {
        for _ in 0..AGAIN_MAX {
            let (completion, read) = match self.file.read_at_aligned(at, len).await {
                Ok(result) => (Ok(result.len()), Some(RingRead(result))),
                Err(error) => (Err(io_error(error)), None),
            };
            match Verdict::of(completion, len) {
                Verdict::Whole | Verdict::Part(_) => return Ok(read),
                Verdict::End => return Ok(None),
                Verdict::Again => glommio::yield_if_needed().await,
                Verdict::Failed(error) => return Err(self.device("read", at, error)),
            }
        }
        Err(self.device("read", at, io::Error::from_raw_os_error(EAGAIN)))
    }

    /// Writes all of `memory`, and gives it back to the arena.
    async fn write_whole(&self, at: u64, memory: RingWrite) -> Result<(), IoError> {
        let want = memory.as_slice().len();
        let mut rest = memory.seal();
        let mut done = 0;
        for _ in 0..AGAIN_MAX {
            let completion = self.file.write_rc_at(Rc::clone(&rest), at + done as u64).await.map_err(io_error);
            match Verdict::of(completion, rest.len()) {
                Verdict::Whole => return Ok(()),
                Verdict::Part(sectors) => {
                    rest = RingWrite::copy_of(&rest.as_bytes()[sectors..]).seal();
                    done += sectors;
                }
                Verdict::Again => glommio::yield_if_needed().await,
                Verdict::End => return Err(IoError::Short { name: self.name.clone(), at, want, got: done }),
                Verdict::Failed(error) if error.raw_os_error() == Some(ENOSPC) => {
                    return Err(IoError::NoSpace { name: self.name.clone(), bytes: want as u64 });
                }
                Verdict::Failed(error) => return Err(self.device("write", at, error)),
            }
        }
        Err(self.device("write", at, io::Error::from_raw_os_error(EAGAIN)))
    }

    fn device(&self, verb: &'static str, at: u64, source: io::Error) -> IoError {
        IoError::Device { verb, name: self.name.clone(), at, source }
    }
}

/// Runs `operation` to its end on this core, whatever becomes of the future returned.
fn detach(
    open: Rc<Open>,
    verb: &'static str,
    at: u64,
    operation: impl Future<Output = Result<(), IoError>> + 'static,
) -> impl Future<Output = Result<(), IoError>> + 'static {
    let (answer, answered) = oneshot::channel();
    glommio::spawn_local(async move {
        // The asker may have gone away.
        let _ = answer.send(operation.await);
    })
    .detach();
    async move {
        match answered.await {
            Ok(outcome) => outcome,
            Err(oneshot::Canceled) => Err(open.device(verb, at, io::Error::other("the executor ended first"))),
        }
    }
}

fn whole_sectors(bytes: usize) -> usize {
    usize::try_from(sectors_down(bytes as u64)).expect("rounded down from a usize")
}

/// glommio's error as the kernel's: its own conversion drops the errno.
pub(super) fn io_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(code: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(code))
    }

    #[test]
    fn completions_are_told_apart() {
        assert!(matches!(Verdict::of(Ok(8192), 8192), Verdict::Whole));
        assert!(matches!(Verdict::of(Ok(8191), 8192), Verdict::Part(4096)), "half a sector is asked for again");
        assert!(matches!(Verdict::of(Ok(4096), 8192), Verdict::Part(4096)));
        assert!(matches!(Verdict::of(Ok(4095), 8192), Verdict::End));
        assert!(matches!(Verdict::of(Ok(0), 8192), Verdict::End));
        assert!(matches!(Verdict::of(errno(EINTR), 8192), Verdict::Again));
        assert!(matches!(Verdict::of(errno(EAGAIN), 8192), Verdict::Again));
        assert!(matches!(Verdict::of(errno(5), 8192), Verdict::Failed(_)));
    }

    #[test]
    fn the_errno_survives_glommio() {
        let enhanced =
            GlommioError::EnhancedIoError { source: io::Error::from_raw_os_error(28), op: "", path: None, fd: None };
        assert_eq!(io_error(enhanced).raw_os_error(), Some(ENOSPC));
        assert_eq!(io_error(GlommioError::IoError(io::Error::from_raw_os_error(24))).raw_os_error(), Some(24));
    }
}
