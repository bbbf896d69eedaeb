//! A disk whose every operation is measured: what the store reads, writes and syncs tells of the disk's health.
//!
//! `Shard::open` wraps the disk it is given; the store knows nothing of it. The contract of the port stays as it is: a write
//! begins at the call, and dropping its future cancels nothing.

use std::future::Future;
use std::rc::Rc;

use forebay_io::{Disk, DiskFile, IoError, OpenMode, ReadBuf, Runtime, WriteBuf};

use super::monitor::{Monitor, Verb};

/// A disk and who watches it.
pub(crate) struct WatchedDisk<D, R: Runtime> {
    disk: D,
    monitor: Rc<Monitor<R>>,
}

impl<D, R: Runtime> WatchedDisk<D, R> {
    pub(crate) fn new(disk: D, monitor: Rc<Monitor<R>>) -> WatchedDisk<D, R> {
        WatchedDisk { disk, monitor }
    }
}

impl<D: Clone, R: Runtime> Clone for WatchedDisk<D, R> {
    fn clone(&self) -> Self {
        WatchedDisk { disk: self.disk.clone(), monitor: Rc::clone(&self.monitor) }
    }
}

impl<D: Disk, R: Runtime> Disk for WatchedDisk<D, R> {
    type File = WatchedFile<D::File, R>;

    async fn open(&self, name: &str, mode: OpenMode) -> Result<Self::File, IoError> {
        let pending = self.monitor.begin(Verb::Open);
        let opened = self.disk.open(name, mode).await;
        pending.end(&opened);
        Ok(WatchedFile { file: opened?, monitor: Rc::clone(&self.monitor) })
    }

    async fn sync_names(&self) -> Result<(), IoError> {
        let pending = self.monitor.begin(Verb::Open);
        let synced = self.disk.sync_names().await;
        pending.end(&synced);
        synced
    }

    async fn buffer(&self, len: usize) -> WriteBuf {
        self.disk.buffer(len).await
    }
}

/// A file of a [`WatchedDisk`].
pub(crate) struct WatchedFile<F, R: Runtime> {
    file: F,
    monitor: Rc<Monitor<R>>,
}

impl<F: Clone, R: Runtime> Clone for WatchedFile<F, R> {
    fn clone(&self) -> Self {
        WatchedFile { file: self.file.clone(), monitor: Rc::clone(&self.monitor) }
    }
}

impl<F: DiskFile, R: Runtime> DiskFile for WatchedFile<F, R> {
    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    async fn read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        let pending = self.monitor.begin(Verb::Read);
        let read = self.file.read(at, len).await;
        pending.end(&read);
        read
    }

    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static {
        let pending = self.monitor.begin(Verb::Write);
        self.monitor.writes(buf.len() as u64);
        let writing = self.file.write(at, buf);
        async move {
            let written = writing.await;
            pending.end(&written);
            written
        }
    }

    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        let pending = self.monitor.begin(Verb::Sync);
        let syncing = self.file.sync();
        async move {
            let synced = syncing.await;
            pending.end(&synced);
            synced
        }
    }
}
