//! Reads of recovery that outlive a bad sector: what the device can't read, however often it is asked, reads as zeros.
//!
//! `open` hands the disk to `recover` through this; nothing else reads so. Zeros are no frame, no superblock and no payload
//! that verifies, so whatever reads them takes them for the damage that they are, and it costs what it hit (I11). A bad
//! sector is told from a bad disk, of which no recovery may make damage, since what follows overwrites: beside a bad sector
//! the device still reads one that it could read before, and there are few of them. Else the error is passed on, nothing has
//! been written, and the next opening tries again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError, OpenMode, ReadBuf, Runtime, WriteBuf};

/// A sector is asked for so often more, with a pause before each that doubles: 62 ms in all.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(2);
/// With more of them (1 MiB) it is the disk that is bad: 16 s are as long as anybody should wait for that verdict.
const UNREADABLE_MAX: usize = 256;

/// A disk whose files are read patiently. Writes and all else are the disk's own.
#[derive(Clone)]
pub struct PatientDisk<D: Disk, R> {
    disk: D,
    patience: Rc<Patience<D::File, R>>,
}

/// A file of it.
#[derive(Clone)]
pub struct PatientFile<F, R> {
    name: Rc<str>,
    file: F,
    patience: Rc<Patience<F, R>>,
}

/// What all files of one opening share.
struct Patience<F, R> {
    runtime: R,
    /// File and offset of each bad sector.
    unreadable: RefCell<BTreeSet<(Rc<str>, u64)>>,
    /// A sector that the device could read.
    witness: RefCell<Option<(F, u64)>>,
}

impl<D: Disk, R: Runtime> PatientDisk<D, R> {
    /// `disk`, read patiently.
    #[must_use]
    pub fn new(disk: D, runtime: R) -> Self {
        let patience = Patience { runtime, unreadable: RefCell::default(), witness: RefCell::new(None) };
        PatientDisk { disk, patience: Rc::new(patience) }
    }

    /// An open file of this disk.
    pub fn file(&self, name: &str, file: D::File) -> PatientFile<D::File, R> {
        PatientFile { name: name.into(), file, patience: Rc::clone(&self.patience) }
    }

    /// The sectors that were taken for unreadable so far.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.patience.unreadable.borrow().len() as u64
    }
}

impl<D: Disk, R: Runtime> Disk for PatientDisk<D, R> {
    type File = PatientFile<D::File, R>;

    async fn open(&self, name: &str, mode: OpenMode) -> Result<Self::File, IoError> {
        Ok(self.file(name, self.disk.open(name, mode).await?))
    }

    async fn sync_names(&self) -> Result<(), IoError> {
        self.disk.sync_names().await
    }

    async fn buffer(&self, len: usize) -> WriteBuf {
        self.disk.buffer(len).await
    }
}

impl<F: DiskFile, R: Runtime> DiskFile for PatientFile<F, R> {
    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    async fn read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        match self.file.read(at, len).await {
            Err(error) if error.is_unreadable() => self.read_around(at, len, error).await,
            read => read,
        }
    }

    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static {
        self.file.write(at, buf)
    }

    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        self.file.sync()
    }
}

impl<F: DiskFile, R: Runtime> PatientFile<F, R> {
    /// Finds a sector, the first of this file or the second, by which a bad sector is told from a bad disk.
    ///
    /// # Errors
    /// What the device said, if it reads neither.
    pub async fn bear_witness(&self) -> Result<(), IoError> {
        let mut attempt = 0;
        loop {
            let first = self.file.read(0, SECTOR_BYTES).await;
            let at = if first.is_ok() { 0 } else { SECTOR_BYTES as u64 };
            match self.file.read(at, SECTOR_BYTES).await {
                Ok(_) => {
                    self.patience.witness.replace(Some((self.file.clone(), at)));
                    return Ok(());
                }
                Err(error) if attempt == ATTEMPTS || !error.is_unreadable() => return Err(error),
                Err(_) => self.patience.runtime.sleep(PAUSE * (1 << attempt)).await,
            }
            attempt += 1;
        }
    }

    /// What can be read of a stretch that can't be read as a whole: halves of halves, down to the bad sectors.
    async fn read_around(&self, at: u64, len: usize, error: IoError) -> Result<ReadBuf, IoError> {
        let mut buf = WriteBuf::on_heap(len);
        let mut failed = vec![(0, len, error)];
        while let Some((from, len, error)) = failed.pop() {
            if len == SECTOR_BYTES {
                if let Some(sector) = self.read_sector(at + from as u64, error).await? {
                    buf[from..from + len].copy_from_slice(&sector);
                }
                continue;
            }
            let first = len / SECTOR_BYTES / 2 * SECTOR_BYTES;
            for (from, len) in [(from, first), (from + first, len - first)] {
                match self.file.read(at + from as u64, len).await {
                    Ok(read) => buf[from..from + len].copy_from_slice(&read),
                    Err(error) if error.is_unreadable() => failed.push((from, len, error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(buf.freeze())
    }

    /// A sector of which a read failed; `None` if it is bad, and the disk is not.
    async fn read_sector(&self, at: u64, mut error: IoError) -> Result<Option<ReadBuf>, IoError> {
        let sector = (Rc::clone(&self.name), at);
        if self.patience.unreadable.borrow().contains(&sector) {
            return Ok(None);
        }
        for attempt in 0..ATTEMPTS {
            self.patience.runtime.sleep(PAUSE * (1 << attempt)).await;
            match self.file.read(at, SECTOR_BYTES).await {
                Ok(read) => return Ok(Some(read)),
                Err(again) if again.is_unreadable() => error = again,
                Err(other) => return Err(other),
            }
        }
        let witness = self.patience.witness.borrow().clone();
        let Some((file, witness_at)) = witness else { return Err(error) };
        file.read(witness_at, SECTOR_BYTES).await?;
        if self.patience.unreadable.borrow().len() == UNREADABLE_MAX {
            return Err(error);
        }
        self.patience.unreadable.borrow_mut().insert(sector);
        tracing::error!(%error, "a sector can't be read; what lay on it is taken for damaged");
        Ok(None)
    }
}
