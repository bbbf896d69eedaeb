//! The contract of `disk` and `runtime`, run on the ring (a real file system, one executor per test) and on the
//! simulator (several seeds per test). What holds here is what everything above may rely on; what only one of the two
//! can do is tested where it lives.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use forebay_io::ring::{ArenaConfig, RingDisk, RingRuntime};
use forebay_io::sim::SimWorld;
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError, OpenMode, Runtime, WriteBuf};
use futures::FutureExt;
use futures::future::join_all;

const FILE: &str = "a.slab";
const FILE_BYTES: u64 = 16 << 20;
const ARENA: ArenaConfig = ArenaConfig { bytes: 16 << 20 };
const SECTOR: u64 = SECTOR_BYTES as u64;

/// Runs the body on a fresh disk of the ring.
fn on_ring<F: Future<Output = ()>>(body: impl FnOnce(RingDisk, RingRuntime) -> F) {
    // Under the target directory: /tmp may have no direct I/O.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .io_memory(ARENA.io_memory_bytes())
        .make()
        .unwrap();
    executor.run(async {
        let disk = RingDisk::open(directory.path(), ARENA).await.unwrap();
        body(disk, RingRuntime::new(1)).await;
    });
}

/// Runs the body on fresh simulated worlds.
fn on_sim<F: Future<Output = ()>>(body: impl Fn(forebay_io::sim::SimDisk, forebay_io::sim::SimRuntime) -> F) {
    for seed in 0..8 {
        let world = SimWorld::new(seed);
        world.set_arena_bytes(ARENA.bytes);
        world.block_on(body(world.disk(), world.runtime()));
    }
}

/// One test on both.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod ring { $(#[test] fn $name() { super::on_ring(|disk, runtime| super::$name(disk, runtime)); })* }
        mod sim { $(#[test] fn $name() { super::on_sim(|disk, runtime| super::$name(disk, runtime)); })* }
    };
}

contract!(
    reads_are_exact,
    misaligned_calls_panic,
    errors_are_told_apart,
    a_read_past_the_end_is_short,
    a_dropped_write_still_lands,
    a_dropped_read_gives_its_room_back,
    neighbours_of_a_write_are_undisturbed,
    modes_open_what_they_say,
    names_and_bytes_are_synced,
    the_arena_bounds_buffers,
    a_slice_keeps_its_room,
    heap_buffers_are_written_too,
    time_and_tasks_go_on,
);

/// Bytes that tell where they belong.
fn pattern(at: u64, len: usize) -> Vec<u8> {
    (at..at + len as u64).map(|position| (position.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect()
}

async fn write_pattern<D: Disk>(disk: &D, file: &D::File, at: u64, len: usize) {
    let mut buf = disk.buffer(len).await;
    assert!(buf.iter().all(|&byte| byte == 0), "a buffer is zeroed");
    buf.copy_from_slice(&pattern(at, len));
    file.write(at, buf).await.unwrap();
}

async fn panics(operation: impl Future) -> bool {
    AssertUnwindSafe(operation).catch_unwind().await.is_err()
}

/// Polls a condition, for at most ten seconds.
async fn eventually<R: Runtime, F: Future<Output = bool>>(runtime: &R, condition: impl Fn() -> F) {
    let begin = runtime.now();
    while !condition().await {
        assert!(runtime.now().since(begin) < Duration::from_secs(10), "it never happened");
        runtime.sleep(Duration::from_millis(1)).await;
    }
}

async fn reads_are_exact<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(FILE_BYTES)).await.unwrap();
    let lengths = [SECTOR_BYTES, 3 * SECTOR_BYTES, 256 << 10, 4 << 20, (4 << 20) + SECTOR_BYTES];
    let mut at = 0;
    for len in lengths {
        write_pattern(&disk, &file, at, len).await;
        at += len as u64;
    }
    at = 0;
    for len in lengths {
        assert!(*file.read(at, len).await.unwrap() == pattern(at, len)[..], "{len} bytes at {at}");
        at += len as u64;
    }
    assert!(*file.read(SECTOR, 1 << 20).await.unwrap() == pattern(SECTOR, 1 << 20)[..], "across writes");
}

async fn misaligned_calls_panic<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(8 * SECTOR)).await.unwrap();
    let read_only = disk.open(FILE, OpenMode::Read).await.unwrap();
    assert!(panics(file.read(512, SECTOR_BYTES)).await);
    assert!(panics(file.read(0, 512)).await);
    assert!(panics(file.read(0, 0)).await);
    assert!(panics(disk.buffer(SECTOR_BYTES + 512)).await);
    assert!(panics(disk.buffer(0)).await);
    for (file, at) in [(&file, 512), (&file, 8 * SECTOR), (&read_only, 0)] {
        let buf = disk.buffer(SECTOR_BYTES).await;
        assert!(panics(async { file.write(at, buf).await }).await);
    }
    assert!(file.read(0, SECTOR_BYTES).await.is_ok(), "a panic harms nobody else");
}

async fn errors_are_told_apart<D: Disk, R: Runtime>(disk: D, _: R) {
    for mode in [OpenMode::Read, OpenMode::ReadWrite] {
        let missing = disk.open(FILE, mode).await.err().unwrap();
        assert!(matches!(&missing, IoError::Missing { name } if name == FILE), "{missing:?}");
    }
    disk.open(FILE, OpenMode::Create(SECTOR)).await.unwrap();
    let exists = disk.open(FILE, OpenMode::Create(SECTOR)).await.err().unwrap();
    assert!(matches!(&exists, IoError::Exists { name } if name == FILE), "{exists:?}");
    let full = disk.open("b.slab", OpenMode::Create(1 << 50)).await.err().unwrap();
    assert!(matches!(&full, IoError::NoSpace { name, bytes } if name == "b.slab" && *bytes == 1 << 50), "{full:?}");
    let nothing = disk.open("b.slab", OpenMode::Read).await.err().unwrap();
    assert!(matches!(nothing, IoError::Missing { .. }), "what found no space left nothing behind");
    assert!([missing_is_ours(), exists, full].iter().all(|error| !error.is_device_fault()));
}

fn missing_is_ours() -> IoError {
    IoError::Missing { name: FILE.to_owned() }
}

async fn a_read_past_the_end_is_short<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(2 * SECTOR)).await.unwrap();
    let straddling = file.read(SECTOR, 2 * SECTOR_BYTES).await.unwrap_err();
    assert!(
        matches!(straddling, IoError::Short { at, want, got, .. } if (at, want, got) == (SECTOR, 8192, 4096)),
        "{straddling:?}"
    );
    let beyond = file.read(4 * SECTOR, SECTOR_BYTES).await.unwrap_err();
    assert!(matches!(beyond, IoError::Short { got: 0, .. }), "{beyond:?}");
    assert!(beyond.is_device_fault());
}

async fn a_dropped_write_still_lands<D: Disk, R: Runtime>(disk: D, runtime: R) {
    let file = disk.open(FILE, OpenMode::Create(FILE_BYTES)).await.unwrap();
    let lens = [SECTOR_BYTES, 1 << 20, 64 << 10];
    for (slot, len) in lens.into_iter().enumerate() {
        let at = slot as u64 * (2 << 20);
        let mut buf = disk.buffer(len).await;
        buf.copy_from_slice(&pattern(at, len));
        let mut write = Box::pin(file.write(at, buf));
        if slot > 0 {
            // Once polled, and once never polled at all.
            let _ = (&mut write).now_or_never();
        }
        drop(write);
    }
    for (slot, len) in lens.into_iter().enumerate() {
        let at = slot as u64 * (2 << 20);
        let file = &file;
        eventually(&runtime, || async move { *file.read(at, len).await.unwrap() == pattern(at, len)[..] }).await;
    }
}

async fn a_dropped_read_gives_its_room_back<D: Disk, R: Runtime>(disk: D, runtime: R) {
    let file = disk.open(FILE, OpenMode::Create(FILE_BYTES)).await.unwrap();
    write_pattern(&disk, &file, 0, 1 << 20).await;
    for round in 0..20 {
        let mut reads: Vec<_> = (0..8).map(|_| Box::pin(file.read(0, 1 << 20))).collect();
        for read in &mut reads {
            assert!(read.now_or_never().is_none_or(|outcome| outcome.is_ok()));
        }
        if round % 2 == 0 {
            runtime.yield_now().await;
        }
        drop(reads);
        assert!(*file.read(0, 1 << 20).await.unwrap() == pattern(0, 1 << 20)[..], "after {round} rounds");
    }
    assert!(disk.buffer(ARENA.bytes).now_or_never().is_some(), "all of the arena is free");
}

async fn neighbours_of_a_write_are_undisturbed<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(64 * SECTOR)).await.unwrap();
    write_pattern(&disk, &file, 0, 64 * SECTOR_BYTES).await;
    for round in 0..8 {
        let file = &file;
        let writes = (0..64).filter(|sector| sector % 2 == 1).map(|sector| write_pattern_once(&disk, file, sector));
        let reads = (0..64).filter(|sector| sector % 2 == 0).map(|sector| async move {
            let (at, read) = (sector * SECTOR, file.read(sector * SECTOR, SECTOR_BYTES).await.unwrap());
            assert!(*read == pattern(at, SECTOR_BYTES)[..], "sector {sector} in round {round}");
        });
        futures::join!(join_all(writes), join_all(reads));
    }
    assert!(*file.read(0, 64 * SECTOR_BYTES).await.unwrap() == pattern(0, 64 * SECTOR_BYTES)[..]);
}

async fn write_pattern_once<D: Disk>(disk: &D, file: &D::File, sector: u64) {
    write_pattern(disk, file, sector * SECTOR, SECTOR_BYTES).await;
}

async fn modes_open_what_they_say<D: Disk, R: Runtime>(disk: D, _: R) {
    let created = disk.open(FILE, OpenMode::Create(8 * SECTOR)).await.unwrap();
    assert_eq!(created.len_bytes(), 8 * SECTOR, "preallocated");
    write_pattern(&disk, &created, SECTOR, SECTOR_BYTES).await;
    for mode in [OpenMode::Read, OpenMode::ReadWrite] {
        let again = disk.open(FILE, mode).await.unwrap();
        assert_eq!(again.len_bytes(), 8 * SECTOR);
        assert!(*again.read(SECTOR, SECTOR_BYTES).await.unwrap() == pattern(SECTOR, SECTOR_BYTES)[..]);
    }
    let reader = disk.open(FILE, OpenMode::Read).await.unwrap();
    write_pattern(&disk, &created, 2 * SECTOR, SECTOR_BYTES).await;
    assert!(
        *reader.read(2 * SECTOR, SECTOR_BYTES).await.unwrap() == pattern(2 * SECTOR, SECTOR_BYTES)[..],
        "one handle sees what another wrote"
    );
    let replaced = disk.open(FILE, OpenMode::Replace(4 * SECTOR)).await.unwrap();
    assert_eq!(replaced.len_bytes(), 4 * SECTOR);
    assert!(*replaced.read(SECTOR, SECTOR_BYTES).await.unwrap() != pattern(SECTOR, SECTOR_BYTES)[..]);
    let new = disk.open("new", OpenMode::Replace(SECTOR)).await.unwrap();
    assert_eq!(new.len_bytes(), SECTOR, "replacing nothing creates");
}

async fn names_and_bytes_are_synced<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(8 * SECTOR)).await.unwrap();
    disk.sync_names().await.unwrap();
    write_pattern(&disk, &file, 0, SECTOR_BYTES).await;
    file.sync().await.unwrap();
    drop(file.sync());
    let (first, second) = futures::join!(file.sync(), file.sync());
    assert!(first.is_ok() && second.is_ok());
}

async fn the_arena_bounds_buffers<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(FILE_BYTES)).await.unwrap();
    let half = ARENA.bytes / 2;
    let (first, second) = (disk.buffer(half).await, disk.buffer(half).await);
    let mut third = Box::pin(disk.buffer(SECTOR_BYTES));
    let mut read = Box::pin(file.read(0, SECTOR_BYTES));
    assert!((&mut third).now_or_never().is_none() && (&mut read).now_or_never().is_none(), "the arena is full");
    drop(first);
    let (third, read) = futures::join!(third, read);
    assert_eq!((third.len(), read.unwrap().len(), second.len()), (SECTOR_BYTES, SECTOR_BYTES, half));
    drop((third, second));
    disk.buffer(ARENA.bytes).await;
}

async fn a_slice_keeps_its_room<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(FILE_BYTES)).await.unwrap();
    write_pattern(&disk, &file, 0, 1 << 20).await;
    let whole = file.read(0, 1 << 20).await.unwrap();
    let slice = whole.slice(SECTOR_BYTES..SECTOR_BYTES + 100).clone();
    drop(whole);
    assert!(disk.buffer(ARENA.bytes).now_or_never().is_none(), "100 bytes hold all of it");
    assert!(*slice == pattern(SECTOR, 100)[..]);
    drop(slice);
    assert!(disk.buffer(ARENA.bytes).now_or_never().is_some());
}

async fn heap_buffers_are_written_too<D: Disk, R: Runtime>(disk: D, _: R) {
    let file = disk.open(FILE, OpenMode::Create(8 * SECTOR)).await.unwrap();
    let mut buf = WriteBuf::on_heap(2 * SECTOR_BYTES);
    buf.copy_from_slice(&pattern(SECTOR, 2 * SECTOR_BYTES));
    file.write(SECTOR, buf).await.unwrap();
    assert!(*file.read(SECTOR, 2 * SECTOR_BYTES).await.unwrap() == pattern(SECTOR, 2 * SECTOR_BYTES)[..]);
    let mut buf = disk.buffer(SECTOR_BYTES).await;
    buf[..3].copy_from_slice(b"abc");
    let frozen = buf.freeze();
    assert_eq!((&frozen[..4], frozen.len()), (&b"abc\0"[..], SECTOR_BYTES));
}

async fn time_and_tasks_go_on<D: Disk, R: Runtime>(_: D, runtime: R) {
    let (begin, wall_begin) = (runtime.now(), runtime.unix_ms());
    assert!(wall_begin > 1_700_000_000_000, "{wall_begin} ms is before 2023");
    let done = Rc::new(Cell::new(0));
    for _ in 0..10 {
        let (task_runtime, done) = (runtime.clone(), Rc::clone(&done));
        runtime.spawn(async move {
            task_runtime.yield_now().await;
            task_runtime.sleep(Duration::from_millis(2)).await;
            done.set(done.get() + 1);
        });
    }
    let done = &done;
    eventually(&runtime, || async { done.get() == 10 }).await;
    assert!(runtime.now().since(begin) >= Duration::from_millis(2));
    assert!(runtime.unix_ms() > wall_begin);
    assert_ne!(runtime.random_u64(), runtime.random_u64());
}
