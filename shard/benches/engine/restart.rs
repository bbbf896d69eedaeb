//! Restart: how soon a store of many small blocks answers, how soon its index is whole, and what memory that takes.
//!
//! The real writer writes them (write-through puts, so that they are clean), then the store is left without being closed, as
//! by a kill; it is opened, closed, and opened once more. Each opening is a process of its own, whose clock starts with
//! `main`; beside it, the device reads the same bytes of checkpoint and journal by itself, in order, 1 MiB a read, four
//! in flight, with O_DIRECT.

use std::cell::Cell;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::time::Instant;

use forebay_io::ring::RingDisk;
use forebay_io::superblock::Superblock;
use forebay_io::{Disk, DiskFile, OpenMode};
use forebay_shard::outcome::{Durability, Got, PutDone};
use forebay_shard::read::BlockReader;
use forebay_shard::store::inspect::{Inspector, slots};
use forebay_shard::store::slab_name;

use crate::Options;
use crate::measure::{Watch, status_mib};
use crate::rig::{self, Blocks, MIB, RingShard, Scratch, StandIn};
use crate::table::{Bound, Table};

const BLOCK_BYTES: usize = 1024;
/// Puts in flight.
const DEPTH: usize = 64;
const MEMORY_TIER_BYTES: u64 = 16 * MIB;
/// Blocks read back and compared after each opening.
const SAMPLES: u64 = 1_000;
/// One bare read, and how many are in flight.
const SPAN_READ_BYTES: u64 = 1 << 20;
const SPAN_READS: usize = 4;

pub fn measure(options: &Options) -> Table {
    let scratch = Scratch::new(&options.directory, "restart");
    let mut table = write(options, &scratch.path);
    for (name, end) in [("after a kill", "--close"), ("after a close", "--leave")] {
        let device = rig::run(device_reads(&scratch.path));
        let child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["open", "--blocks", &options.blocks.to_string(), "--store"])
            .arg(&scratch.path)
            .arg(end)
            .output()
            .expect("this program can be started once more");
        let said = String::from_utf8_lossy(&child.stdout);
        eprint!("{}", String::from_utf8_lossy(&child.stderr));
        assert!(child.status.success(), "the opening {name} failed:\n{said}");
        let figure = |name: &str| -> f64 {
            let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is missing in:\n{said}"))
        };
        let mut part = Table::new(format!("Restart {name}: {} blocks of 1 KiB", options.blocks));
        part.add("checkpoint to read", device.checkpoint_bytes / MIB as f64, "MiB", Bound::None);
        part.add("journal (the ring) to read", device.journal_bytes / MIB as f64, "MiB", Bound::None);
        part.add("the device's own time for both", device.seconds, "s", Bound::None);
        part.add("first hit after start", figure("first_hit"), "s", Bound::AtMost(1.0));
        part.add("index complete after start", figure("complete"), "s", Bound::AtMost(1.5 * device.seconds));
        part.add("CPU until then", figure("cpu"), "s", Bound::None);
        part.add("resident beside memory tier and arena", figure("resident"), "MiB", Bound::AtMost(600.0));
        part.add("most ever resident, beside the same", figure("resident_most"), "MiB", Bound::AtMost(600.0));
        part.add("index, bytes per block", figure("index_bytes"), "", Bound::AtMost(48.0));
        table.append(part);
    }
    table
}

/// Stores all blocks, waits until they are in the index, and leaves without closing.
fn write(options: &Options, path: &Path) -> Table {
    let count = options.blocks;
    let mut table = Table::new(format!("Writing {count} blocks of 1 KiB: write-through puts, {DEPTH} at a time"));
    rig::run(async {
        let disk = rig::disk(path).await;
        // Room for payload, what commits pad to whole sectors, footers, and the regions that are kept free.
        let slab_bytes = count * BLOCK_BYTES as u64 * 116 / 100 + 512 * MIB;
        let config = rig::config(MEMORY_TIER_BYTES, 256 * MIB);
        let shard = rig::format(&disk, rig::geometry(slab_bytes), config, StandIn::Confirms).await;
        let (blocks, next) = (Blocks::new("through", BLOCK_BYTES), Rc::new(Cell::new(0)));
        let watch = Watch::start();
        let putters: Vec<_> = (0..DEPTH)
            .map(|_| glommio::spawn_local(put_all(shard.clone(), Rc::clone(&blocks), Rc::clone(&next), count)))
            .collect();
        for putter in putters {
            putter.await;
        }
        rig::until_appended(&shard, count).await;
        let store = shard.stats().store;
        assert_eq!((store.entries, store.evicted), (count, 0), "the slab holds all of them");
        table.add("blocks per second", count as f64 / watch.seconds(), "/s", Bound::None);
        table.add("CPU per block", watch.cpu_seconds() * 1e6 / count as f64, "µs", Bound::None);
        table.add("checkpoints meanwhile", store.checkpoints as f64, "", Bound::None);
    });
    let on_disk: u64 = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| entry?.metadata().map(|file| file.len())).sum())
        .expect("the directory was just written");
    let gib = on_disk as f64 / (1u64 << 30) as f64;
    table.add("on disk, slab and checkpoints", gib, "GiB", Bound::AtMost(14.0));
    table
}

async fn put_all(shard: RingShard, blocks: Rc<Blocks>, next: Rc<Cell<u64>>, count: u64) {
    while next.get() < count {
        let number = next.replace(next.get() + 1);
        if number.is_multiple_of(256) {
            rig::until_room(&shard).await;
        }
        let done = shard.put(blocks.put(number, Durability::Origin)).await;
        assert!(matches!(done, PutDone::Created(Durability::Origin)), "{done:?}");
    }
}

/// What recovery has to read, and how long the device needs for it alone.
struct DeviceReads {
    checkpoint_bytes: f64,
    journal_bytes: f64,
    seconds: f64,
}

async fn device_reads(path: &Path) -> DeviceReads {
    let disk = rig::disk(path).await;
    let inspector = Inspector::open(disk.clone(), 0).await.expect("the store is whole");
    let both = inspector.slots().await.expect("the disk reads");
    let slot = slots::current(&both).expect("a checkpoint is whole");
    // All of the ring: recovery looks behind the journal's end too, lest it take rot for an end.
    let (ring_at, ring_bytes) = (Superblock::JOURNAL_AT, inspector.superblock().journal_bytes);
    let spans = [(slot.name.clone(), 0, slot.used_bytes), (slab_name(0), ring_at, ring_bytes)];
    let mut seconds = f64::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        for (name, at, bytes) in &spans {
            read_span(&disk, name, *at, *bytes).await;
        }
        seconds = seconds.min(began.elapsed().as_secs_f64());
    }
    DeviceReads { checkpoint_bytes: slot.used_bytes as f64, journal_bytes: ring_bytes as f64, seconds }
}

async fn read_span(disk: &RingDisk, name: &str, at: u64, bytes: u64) {
    let file = disk.open(name, OpenMode::Read).await.expect("it was there");
    let next = Rc::new(Cell::new(at));
    let readers: Vec<_> = (0..SPAN_READS)
        .map(|_| {
            let (file, next) = (file.clone(), Rc::clone(&next));
            glommio::spawn_local(async move {
                while next.get() < at + bytes {
                    let from = next.get();
                    let len = SPAN_READ_BYTES.min(at + bytes - from);
                    next.set(from + len);
                    file.read(from, len as usize).await.expect("the disk reads");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await;
    }
}

/// One opening, in a process of its own; figures go to stdout, one a line.
pub fn open(options: &Options) -> ExitCode {
    let (began, watch) = (Instant::now(), Watch::start());
    let path = options.store.as_deref().expect("`open` is started by `restart`, with --store");
    rig::run(async {
        let disk = rig::disk(path).await;
        let before_mib = status_mib("VmRSS");
        let config = rig::config(MEMORY_TIER_BYTES, 256 * MIB);
        let (shard, report) = rig::open(&disk, config, StandIn::Confirms).await;
        let complete = began.elapsed().as_secs_f64();
        let cpu = watch.cpu_seconds();
        let blocks = Blocks::new("through", BLOCK_BYTES);
        let slab = disk.open(&slab_name(0), OpenMode::Read).await.expect("the shard has it open");
        check_block(&shard, &slab, &blocks, options.blocks / 2).await;
        let first_hit = began.elapsed().as_secs_f64();
        assert_eq!(report.entries, options.blocks, "every block is known: {report:?}");
        // The arena is registered, so resident from the start, and counted in `before`.
        let base_mib = before_mib.min(rig::ARENA.io_memory_bytes() as f64 / MIB as f64);
        println!("complete={complete}\nfirst_hit={first_hit}\ncpu={cpu}");
        println!("resident={}\nresident_most={}", status_mib("VmRSS") - base_mib, status_mib("VmHWM") - base_mib);
        let store = shard.stats().store;
        println!("index_bytes={}", store.index_bytes as f64 / store.entries as f64);
        eprintln!("{report:?}");
        for sample in 0..SAMPLES.min(options.blocks) {
            check_block(&shard, &slab, &blocks, sample * 7919 % options.blocks).await;
        }
        if options.ends == Ends::Closed {
            shard.close().await;
        }
    });
    ExitCode::SUCCESS
}

/// Reads a block as the proxy does and compares every byte.
async fn check_block<F: DiskFile>(shard: &RingShard, slab: &F, blocks: &Blocks, number: u64) {
    let Got::Disk(located) = shard.get(&blocks.key(number)).await else { panic!("block {number} is on disk") };
    let pin = located.pin;
    let piece = BlockReader::new(slab.clone(), located).piece(0).await.expect("it verifies");
    assert!(piece[..] == blocks.content(number)[..], "block {number} has its bytes");
    shard.unpin(pin);
}

/// How an opened store is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    Closed,
    Left,
}
