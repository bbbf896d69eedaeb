//! The model as a mounted file system: FUSE by the crate `fuser`, the mount system call, so root only.
//!
//! Used by `ci/powercut`. Nothing is cached by the kernel: files are opened for direct I/O, names and sizes are valid for
//! no time. A sync takes a while (seeded), as a device does, and so do some writes; a sync means what was done before it
//! began. After a cut each handle of before answers EIO for ever, so that a dying process can't touch what survived.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::media::{CutReport, FileId, Media, SyncPoint};

/// The kernel asks anew each time.
const TTL: Duration = Duration::ZERO;
/// Larger than anything a campaign allocates.
const FREE_BYTES: u64 = 64 << 30;
const BLOCK_BYTES: u64 = 4096;
/// How long a sync takes: mostly this at most, now and then the longer one.
const SYNC_TIMES: (Duration, Duration) = (Duration::from_millis(3), Duration::from_millis(20));
/// How long a write may take that is not done at once.
const WRITE_TIME: Duration = Duration::from_micros(1_500);
/// How long a dead process may keep its files open.
const CLOSED_BOUND: Duration = Duration::from_secs(10);
/// Modes of fallocate that only allocate: none, and the one that keeps the size.
const KEEP_SIZE: i32 = 1;

/// A mounted file system. Unmounts when dropped.
pub struct Mounted {
    shared: Arc<Shared>,
    directory: PathBuf,
    session: Option<BackgroundSession>,
    worker: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Work has been added, or the end has come.
    changed: Condvar,
}

struct State {
    media: Media,
    /// Counts the cuts: handles carry it.
    power: u64,
    handles: u64,
    /// Handles that are open.
    open: u64,
    rng: SmallRng,
    work: BinaryHeap<Reverse<Work>>,
    over: bool,
}

/// What the device is busy with.
struct Work {
    /// When it is done.
    at: Instant,
    power: u64,
    job: Job,
}

enum Job {
    Sync { point: SyncPoint, reply: ReplyEmpty },
    Write { file: FileId, at: usize, bytes: Vec<u8>, reply: ReplyWrite },
}

/// What the kernel talks to.
struct Service(Arc<Shared>);

impl Mounted {
    /// Mounts an empty file system at a directory.
    ///
    /// # Errors
    /// The kernel refuses: no rights, or no FUSE.
    pub fn new(directory: &Path, seed: u64) -> std::io::Result<Mounted> {
        let state = State {
            media: Media::default(),
            power: 0,
            handles: 0,
            open: 0,
            rng: SmallRng::seed_from_u64(seed),
            work: BinaryHeap::new(),
            over: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("cutfs".to_owned()), MountOption::NoAtime];
        let session = fuser::spawn_mount(Service(Arc::clone(&shared)), directory, &config)?;
        let working = Arc::clone(&shared);
        let worker = std::thread::spawn(move || working.work());
        Ok(Mounted { shared, directory: directory.to_owned(), session: Some(session), worker: Some(worker) })
    }

    /// Cuts the power. What survives is there at once, for handles opened from now on.
    pub fn cut(&self, seed: u64) -> CutReport {
        let mut state = self.shared.lock();
        state.power += 1;
        for Reverse(work) in std::mem::take(&mut state.work).into_sorted_vec().into_iter().rev() {
            match work.job {
                Job::Sync { reply, .. } => reply.error(Errno::EIO),
                Job::Write { file, at, bytes, reply } => {
                    // On its way: it may survive like one that is done.
                    state.media.write(file, at, &bytes);
                    reply.error(Errno::EIO);
                }
            }
        }
        state.media.cut(seed)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that was killed keeps its files until the kernel has wound up its rings, some moments after its end.
        let began = Instant::now();
        while self.shared.lock().open > 0 && began.elapsed() < CLOSED_BOUND {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("the file system of the campaign is busy ({error}): it goes when the last file is closed");
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.directory).status();
        }
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends each piece of work when its time has come.
    fn work(&self) {
        let mut state = self.lock();
        while !state.over {
            let now = Instant::now();
            let wait = match state.work.peek() {
                Some(Reverse(work)) if work.at <= now => {
                    let Reverse(work) = state.work.pop().expect("just seen");
                    assert_eq!(work.power, state.power, "a cut answers everything");
                    state.finish(work.job);
                    continue;
                }
                Some(Reverse(work)) => work.at - now,
                None => Duration::from_secs(1),
            };
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// A handle of now: the cut that it was opened after, in the upper half.
    fn handle(&mut self) -> FileHandle {
        self.handles += 1;
        self.open += 1;
        FileHandle(self.power << 32 | self.handles & 0xffff_ffff)
    }

    /// Work that takes up to `most`.
    fn begin(&mut self, most: Duration, job: Job) {
        let at = Instant::now() + most.mul_f64(self.rng.random());
        self.work.push(Reverse(Work { at, power: self.power, job }));
    }

    fn finish(&mut self, job: Job) {
        match job {
            Job::Sync { point, reply } => {
                self.media.sync_ends(point);
                reply.ok();
            }
            Job::Write { file, at, bytes, reply } => match self.media.write(file, at, &bytes) {
                Some(()) => reply.written(u32::try_from(bytes.len()).expect("a request's length is a u32")),
                None => reply.error(Errno::EIO),
            },
        }
    }

    fn is_stale(&self, handle: FileHandle) -> bool {
        handle.0 >> 32 != self.power
    }

    fn attributes(&self, file: FileId) -> Option<FileAttr> {
        self.media.size(file).map(|size| attributes(file, size as u64, FileType::RegularFile))
    }
}

impl PartialEq for Work {
    fn eq(&self, other: &Work) -> bool {
        self.at == other.at
    }
}

impl Eq for Work {}

impl PartialOrd for Work {
    fn partial_cmp(&self, other: &Work) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Work {
    fn cmp(&self, other: &Work) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// The root is 1, files follow.
fn number(file: FileId) -> INodeNo {
    INodeNo(file + 1)
}

fn file_of(number: INodeNo) -> FileId {
    number.0 - 1
}

fn attributes(file: FileId, size: u64, kind: FileType) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: number(file),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: if kind == FileType::Directory { 0o700 } else { 0o600 },
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("64-bit")
}

impl Filesystem for Service {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Several direct reads and writes of one file at once, as on a device. Older kernels do without.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.0.lock();
        match state.media.lookup(&name.to_string_lossy()).and_then(|file| state.attributes(file)) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino == INodeNo::ROOT {
            return reply.attr(&TTL, &attributes(0, 4096, FileType::Directory));
        }
        match self.0.lock().attributes(file_of(ino)) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.lock();
        if fh.is_some_and(|fh| state.is_stale(fh)) {
            return reply.error(Errno::EIO);
        }
        if let Some(size) = size {
            state.media.resize(file_of(ino), place(size));
        }
        match state.attributes(file_of(ino)) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut state = self.0.lock();
        let name = name.to_string_lossy();
        if state.media.lookup(&name).is_some() {
            return reply.error(Errno::EEXIST);
        }
        let file = state.media.create(&name);
        let attributes = state.attributes(file).expect("just made");
        reply.created(&TTL, &attributes, Generation(0), state.handle(), open_flags());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let mut state = self.0.lock();
        match state.attributes(file_of(ino)) {
            Some(_) => reply.opened(state.handle(), open_flags()),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let known = self.0.lock().media.unlink(&name.to_string_lossy());
        if known { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let known = self.0.lock().media.rename(&name.to_string_lossy(), &newname.to_string_lossy());
        if known { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.0.lock();
        match state.media.read(file_of(ino), place(offset), size as usize) {
            Some(bytes) if !state.is_stale(fh) => reply.data(bytes),
            _ => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        let file = file_of(ino);
        if state.is_stale(fh) || state.media.size(file).is_none() {
            return reply.error(Errno::EIO);
        }
        let job = Job::Write { file, at: place(offset), bytes: data.to_vec(), reply };
        if state.rng.random_ratio(1, 3) {
            // A sync that begins meanwhile does not mean it.
            state.begin(WRITE_TIME, job);
            self.0.changed.notify_all();
        } else {
            state.finish(job);
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.lock();
        let Some(size) = state.media.size(file_of(ino)).filter(|_| !state.is_stale(fh)) else {
            return reply.error(Errno::EIO);
        };
        match mode {
            KEEP_SIZE => reply.ok(),
            0 => {
                state.media.resize(file_of(ino), size.max(place(offset + len)));
                reply.ok();
            }
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        let Some(point) = state.media.sync_begins(file_of(ino)).filter(|_| !state.is_stale(fh)) else {
            return reply.error(Errno::EIO);
        };
        let most = if state.rng.random_ratio(1, 20) { SYNC_TIMES.1 } else { SYNC_TIMES.0 };
        state.begin(most, Job::Sync { point, reply });
        self.0.changed.notify_all();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let handle = self.0.lock().handle();
        reply.opened(handle, FopenFlags::empty());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        if state.is_stale(fh) {
            return reply.error(Errno::EIO);
        }
        state.media.sync_names();
        reply.ok();
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = self.0.lock();
        let dots = [(".", 0), ("..", 0)].into_iter().map(|(name, file)| (name, file, FileType::Directory));
        let files = state.media.names().map(|(name, file)| (name, file, FileType::RegularFile));
        for (index, (name, file, kind)) in dots.chain(files).enumerate().skip(place(offset)) {
            if reply.add(number(file), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().open -= 1;
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.lock().open -= 1;
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = FREE_BYTES / BLOCK_BYTES;
        let unit = u32::try_from(BLOCK_BYTES).expect("4096");
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, unit, 255, unit);
    }
}

fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}
