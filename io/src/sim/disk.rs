//! The simulated disk: files in memory that outlive a crash, operations that take virtual time, faults by their odds.
//!
//! Called through the ports [`Disk`] and [`DiskFile`]. A write or sync begins when it is called, not when it is first
//! polled, and runs as a task of its own, so that dropping its future does not cancel it: as on the ring. Operations of
//! handles from before a crash never resolve.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;
use rand::Rng;
use rand::rngs::SmallRng;

use super::World;
use super::faults::{Faults, Fired, Latency, OneIn, Survival};
use super::media::Media;
use crate::buffer::{Heap, Memory, ReadBuf, Writable, WriteBuf};
use crate::disk::{Disk, DiskFile, OpenMode, assert_readable, assert_writable};
use crate::error::IoError;
use crate::units::SECTOR_BYTES;

/// No file can be longer.
const CAPACITY_BYTES: u64 = 1 << 40;

/// Ends the name of a disk in the names of its files.
pub(super) const DISK_END: char = ':';

/// A disk of a [`SimWorld`](super::SimWorld), as one core has opened it.
#[derive(Clone)]
pub struct SimDisk {
    pub(super) world: Rc<World>,
    pub(super) life: u64,
    /// Before the names of its files: nothing on the first disk of a world.
    pub(super) prefix: Rc<str>,
}

/// An open file of a [`SimDisk`].
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    name: Rc<str>,
    mode: OpenMode,
    len_bytes: u64,
}

/// What is under the handles: it survives crashes.
pub(super) struct Platter {
    pub(super) files: BTreeMap<String, Media>,
    pub(super) faults: Faults,
    pub(super) fired: Fired,
    pub(super) latency: Latency,
    pub(super) rng: SmallRng,
    /// Writes, syncs and creations begun since the world began.
    pub(super) changes: u64,
    /// The change at whose beginning the power is cut.
    pub(super) crash_at: Option<u64>,
    /// What the next crash leaves, if a test has said it.
    pub(super) survivors: Option<Vec<Survival>>,
    /// How many decisions the last crash could take.
    pub(super) doubts: usize,
}

impl Platter {
    fn strikes(&mut self, name: &str, odds: fn(&Faults) -> OneIn, count: fn(&mut Fired) -> &mut u64) -> bool {
        let strikes = name.contains(&self.faults.only) && odds(&self.faults).strikes(&mut self.rng);
        *count(&mut self.fired) += u64::from(strikes);
        strikes
    }

    fn media(&mut self, name: &str) -> &mut Media {
        self.files.get_mut(name).expect("a file once opened is never removed while its handles live")
    }
}

impl SimDisk {
    /// Rots one bit of a file, for as long as it is not overwritten.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip_bit(&self, name: &str, at: u64, bit: u8) {
        let name = &*format!("{}{name}", self.prefix);
        let mut platter = self.platter().borrow_mut();
        platter.files.get_mut(name).expect("the test names a file that exists").flip_bit(at, bit);
    }

    /// Makes the sector at `at` unreadable until it is written again.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn break_sector(&self, name: &str, at: u64) {
        let mut platter = self.platter().borrow_mut();
        platter.files.get_mut(name).expect("the test names a file that exists").break_sector(at);
    }

    fn platter(&self) -> &RefCell<Platter> {
        &self.world.platter
    }

    /// Whether this handle is of the world's present life and the power is on.
    fn is_live(&self) -> bool {
        self.life == self.world.life.get() && !self.world.executor.cut.get()
    }

    /// Counts a change; cuts the power if it is the one that was ordered.
    fn count_change(&self) {
        let mut platter = self.platter().borrow_mut();
        if platter.crash_at == Some(platter.changes) {
            platter.crash_at = None;
            self.world.executor.cut.set(true);
        }
        platter.changes += 1;
    }

    async fn take_time(&self, name: &str, range: fn(&Latency) -> std::ops::Range<u64>) {
        let micros = {
            let mut platter = self.platter().borrow_mut();
            let is_spike = platter.strikes(name, |faults| faults.latency_spike, |fired| &mut fired.latency_spike);
            let range = if is_spike { platter.latency.spike_us.clone() } else { range(&platter.latency) };
            if range.is_empty() { range.start } else { platter.rng.random_range(range) }
        };
        self.world.executor.sleep(Duration::from_micros(micros)).await;
    }

    /// Runs `operation` to its end whatever becomes of the answer's future.
    fn detach<T: 'static>(&self, operation: impl Future<Output = T> + 'static) -> impl Future<Output = T> + 'static {
        let (answer, answered) = oneshot::channel();
        if self.life == self.world.life.get() {
            self.world.executor.spawn(async move {
                // The asker may have gone away.
                let _ = answer.send(operation.await);
            });
        }
        async move {
            match answered.await {
                Ok(output) => output,
                // Its task was dropped by a crash.
                Err(oneshot::Canceled) => pending().await,
            }
        }
    }

    fn create(&self, name: &str, bytes: u64) -> Result<(), IoError> {
        self.count_change();
        let mut platter = self.platter().borrow_mut();
        if bytes > CAPACITY_BYTES || platter.strikes(name, |faults| faults.no_space, |fired| &mut fired.no_space) {
            return Err(IoError::NoSpace { name: name.to_owned(), bytes });
        }
        let noise = platter.rng.random();
        let before = platter.files.remove(name);
        platter.files.insert(name.to_owned(), Media::new(bytes, noise, before));
        Ok(())
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn open(&self, name: &str, mode: OpenMode) -> Result<SimFile, IoError> {
        if !self.is_live() {
            return pending().await;
        }
        let name = &*format!("{}{name}", self.prefix);
        self.take_time(name, |latency| latency.read_us.clone()).await;
        let exists = self.platter().borrow().files.contains_key(name);
        match mode {
            OpenMode::Read | OpenMode::ReadWrite if !exists => {
                return Err(IoError::Missing { name: name.to_owned() });
            }
            OpenMode::Create(_) if exists => return Err(IoError::Exists { name: name.to_owned() }),
            OpenMode::Read | OpenMode::ReadWrite => {}
            OpenMode::Create(bytes) | OpenMode::Replace(bytes) => self.create(name, bytes)?,
        }
        let len_bytes = self.platter().borrow_mut().media(name).len_bytes;
        Ok(SimFile { disk: self.clone(), name: name.into(), mode, len_bytes })
    }

    async fn sync_names(&self) -> Result<(), IoError> {
        if !self.is_live() {
            return pending().await;
        }
        self.count_change();
        let own = |name: &&String| name.starts_with(&*self.prefix) && name.contains(DISK_END) != self.prefix.is_empty();
        let covered: Vec<String> = self.platter().borrow().files.keys().filter(own).cloned().collect();
        self.take_time(&self.prefix, |latency| latency.sync_us.clone()).await;
        let mut platter = self.platter().borrow_mut();
        if platter.strikes(&self.prefix, |faults| faults.sync_error, |fired| &mut fired.sync_error) {
            return Err(device("sync", ".", 0));
        }
        covered.iter().for_each(|name| platter.media(name).name_stable = true);
        Ok(())
    }

    async fn buffer(&self, len: usize) -> WriteBuf {
        crate::buffer::assert_whole_sectors(len);
        let room = self.world.arena().room(len).await;
        WriteBuf::new(Writable::Heap(Heap::zeroed(len)), Some(room))
    }
}

impl DiskFile for SimFile {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn read(&self, at: u64, len: usize) -> Result<ReadBuf, IoError> {
        assert_readable(at, len);
        if !self.disk.is_live() {
            return pending().await;
        }
        let room = self.disk.world.arena().room(len).await;
        self.disk.take_time(&self.name, |latency| latency.read_us.clone()).await;
        let mut platter = self.disk.platter().borrow_mut();
        if platter.strikes(&self.name, |faults| faults.read_error, |fired| &mut fired.read_error) {
            return Err(device("read", &self.name, at));
        }
        if platter.media(&self.name).is_broken(at, len) {
            platter.fired.broken_sector += 1;
            return Err(device("read", &self.name, at));
        }
        let there = platter.media(&self.name).len_bytes.saturating_sub(at);
        if there < len as u64 {
            let got = usize::try_from(there).expect("less than len, which is a usize");
            return Err(IoError::Short { name: self.name.to_string(), at, want: len, got });
        }
        if platter.faults.may_lie_at(at)
            && platter.strikes(&self.name, |faults| faults.bit_flip, |fired| &mut fired.bit_flip)
        {
            let (byte, bit) = (at + platter.rng.random_range(0..len as u64), platter.rng.random());
            platter.media(&self.name).flip_bit(byte, bit);
        }
        let mut heap = Heap::zeroed(len);
        platter.media(&self.name).read(at, heap.as_mut_slice());
        Ok(ReadBuf::new(Memory::Writable(Writable::Heap(heap)), Some(room)))
    }

    fn write(&self, at: u64, buf: WriteBuf) -> impl Future<Output = Result<(), IoError>> + 'static {
        assert_writable(self.mode, at, buf.len(), self.len_bytes);
        let file = self.clone();
        let begun = self.disk.is_live().then(|| {
            let write = self.disk.platter().borrow_mut().media(&self.name).begin(at, &buf);
            self.disk.count_change();
            write
        });
        self.disk.detach(async move {
            let Some(write) = begun else { return pending().await };
            file.disk.take_time(&file.name, |latency| latency.write_us.clone()).await;
            let mut platter = file.disk.platter().borrow_mut();
            let platter = &mut *platter;
            let name = &*file.name;
            let may_fail = platter.faults.may_fail_at(at);
            if may_fail && platter.strikes(name, |faults| faults.write_error, |fired| &mut fired.write_error) {
                let media = platter.files.get_mut(name).expect("a file once opened is never removed");
                media.fail(write, &mut platter.rng);
                return Err(device("write", name, at));
            }
            let may_lie = platter.faults.may_lie_at(at);
            if may_lie && platter.strikes(name, |faults| faults.lost_write, |fired| &mut fired.lost_write) {
                platter.media(name).lose(write);
            } else if may_lie
                && platter.strikes(name, |faults| faults.misdirected_write, |fired| &mut fired.misdirected_write)
            {
                let whole = 0..file.len_bytes;
                let within = platter.faults.lies_within.as_ref().unwrap_or(&whole);
                let first = within.start / SECTOR_BYTES as u64;
                let last = (within.end.min(file.len_bytes) - buf.len() as u64) / SECTOR_BYTES as u64;
                let sector = platter.rng.random_range(first..=last);
                platter.media(name).accept_elsewhere(write, sector);
            } else {
                platter.media(name).accept(write);
            }
            Ok(())
        })
    }

    fn sync(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        let file = self.clone();
        let begun = self.disk.is_live().then(|| {
            self.disk.count_change();
            self.disk.platter().borrow_mut().media(&self.name).sync_mark()
        });
        self.disk.detach(async move {
            let Some(mark) = begun else { return pending().await };
            file.disk.take_time(&file.name, |latency| latency.sync_us.clone()).await;
            let mut platter = file.disk.platter().borrow_mut();
            if platter.strikes(&file.name, |faults| faults.sync_error, |fired| &mut fired.sync_error) {
                platter.media(&file.name).doubt(mark);
                return Err(device("sync", &file.name, 0));
            }
            platter.media(&file.name).harden(mark);
            Ok(())
        })
    }
}

fn device(verb: &'static str, name: &str, at: u64) -> IoError {
    const EIO: i32 = 5;
    IoError::Device { verb, name: name.to_owned(), at, source: io::Error::from_raw_os_error(EIO) }
}
