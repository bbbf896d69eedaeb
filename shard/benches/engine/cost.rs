//! What the engine itself costs: CPU of a memory hit, of a 256 KiB disk hit beside its read and its checksum, and the rate
//! of the checksum.
//!
//! A disk hit is what the proxy does: `Shard::get`, the piece read and verified on this ring, the pin given back. Beside it
//! runs the same number of bare reads of the same places, each followed by the digest of its bytes; the difference is the
//! engine's. Both take turns, eight at a time, and the figure is the median of the differences.

use std::cell::Cell;
use std::rc::Rc;

use forebay_io::checksum::Digest;
use forebay_io::ring::RingFile;
use forebay_io::{Disk, DiskFile, OpenMode};
use forebay_shard::outcome::{Durability, Got, Located, PutDone};
use forebay_shard::read::BlockReader;
use forebay_shard::store::slab_name;

use crate::Options;
use crate::measure::{Watch, median};
use crate::rig::{self, Blocks, MIB, RingShard, Scratch, StandIn};
use crate::table::{Bound, Table};

const SMALL_BYTES: usize = 4096;
const LARGE_BYTES: usize = 256 << 10;
/// Reads in flight.
const DEPTH: usize = 8;
const ROUNDS: usize = 9;

pub fn measure(options: &Options) -> Table {
    let mut table = Table::new(format!(
        "Engine cost: CPU of the executor's thread, medians of {ROUNDS} rounds of up to {} s",
        options.seconds
    ));
    memory_hits(options, &mut table);
    disk_hits(options, &mut table);
    checksums(options, &mut table);
    table
}

/// 10,000 blocks of 4 KiB in the memory tier, asked for in an order that no prefetcher knows.
fn memory_hits(options: &Options, table: &mut Table) {
    const BLOCKS: u64 = 10_000;
    let scratch = Scratch::new(&options.directory, "memory");
    let rounds: Vec<f64> = rig::run(async {
        let disk = rig::disk(&scratch.path).await;
        let shard = rig::format(&disk, rig::geometry(0), rig::config(128 * MIB, 256 * MIB), StandIn::Confirms).await;
        fill(&shard, &Blocks::new("through", SMALL_BYTES), BLOCKS).await;
        let blocks = Blocks::new("through", SMALL_BYTES);
        let keys: Vec<_> = (0..BLOCKS).map(|number| blocks.key(number * 7919 % BLOCKS)).collect();
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let (watch, mut gets) = (Watch::start(), 0);
            while watch.seconds() < options.seconds / 4.0 {
                for key in &keys {
                    let got = shard.get(key).await;
                    assert!(matches!(&got, Got::Memory(hit) if hit.body.len() == SMALL_BYTES), "it is in memory");
                }
                gets += BLOCKS;
            }
            rounds.push(watch.cpu_seconds() * 1e6 / gets as f64);
        }
        rounds
    });
    table.add("memory hit (4 KiB, 10,000 keys)", median(rounds), "µs", Bound::AtMost(3.0));
}

fn disk_hits(options: &Options, table: &mut Table) {
    let blocks_count = ((options.seconds * 1024.0) as u64).clamp(64, 2048);
    let scratch = Scratch::new(&options.directory, "disk");
    let (mut hits, mut reads, mut engine) = (Vec::new(), Vec::new(), Vec::new());
    rig::run(async {
        let disk = rig::disk(&scratch.path).await;
        // No memory tier: every hit is one of the disk.
        let geometry = rig::geometry(blocks_count * LARGE_BYTES as u64 + 512 * MIB);
        let shard = rig::format(&disk, geometry, rig::config(0, 256 * MIB), StandIn::Confirms).await;
        let blocks = Blocks::new("through", LARGE_BYTES);
        fill(&shard, &blocks, blocks_count).await;
        let slab = disk.open(&slab_name(0), OpenMode::Read).await.expect("the shard made it");
        let places: Rc<Vec<Located>> = Rc::new(locate_all(&shard, &blocks, blocks_count).await);
        for _ in 0..ROUNDS {
            let bare = bare_reads(&slab, &places, Then::Nothing).await;
            let with_digest = bare_reads(&slab, &places, Then::Digest).await;
            let hit = verified_hits(&shard, &slab, &blocks, blocks_count).await;
            reads.push((bare, with_digest - bare));
            hits.push(hit);
            engine.push(hit - with_digest);
        }
    });
    table.add("256 KiB disk hit, whole", median(hits), "µs", Bound::None);
    table.add("of it the bare read", median(reads.iter().map(|(bare, _)| *bare)), "µs", Bound::None);
    table.add("of it the checksum", median(reads.iter().map(|(_, digest)| *digest)), "µs", Bound::None);
    table.add("of it the engine", median(engine), "µs", Bound::AtMost(8.0));
}

#[derive(Clone, Copy)]
enum Then {
    Nothing,
    Digest,
}

/// CPU of one read in µs.
async fn bare_reads(slab: &RingFile, places: &Rc<Vec<Located>>, then: Then) -> f64 {
    let (slab, places) = (slab.clone(), Rc::clone(places));
    let count = places.len() as u64;
    cpu_of_each(count, move |number| {
        let (slab, places) = (slab.clone(), Rc::clone(&places));
        async move {
            let read = slab.read(places[number as usize].offset, LARGE_BYTES).await.expect("the disk reads");
            if matches!(then, Then::Digest) {
                std::hint::black_box(Digest::of(&read));
            }
        }
    })
    .await
}

/// CPU of one verified hit in µs.
async fn verified_hits(shard: &RingShard, slab: &RingFile, blocks: &Rc<Blocks>, count: u64) -> f64 {
    let (shard, slab) = (shard.clone(), slab.clone());
    let keys: Rc<Vec<_>> = Rc::new((0..count).map(|number| blocks.key(number)).collect());
    cpu_of_each(count, move |number| {
        let (shard, slab, keys) = (shard.clone(), slab.clone(), Rc::clone(&keys));
        async move {
            let Got::Disk(located) = shard.get(&keys[number as usize]).await else { panic!("it is on disk") };
            let pin = located.pin;
            let piece = BlockReader::new(slab, located).piece(0).await.expect("it verifies");
            assert_eq!(piece.len(), LARGE_BYTES);
            shard.unpin(pin);
        }
    })
    .await
}

/// Runs `act` for every number, [`DEPTH`] at a time; CPU of each in µs.
async fn cpu_of_each<F: Future<Output = ()> + 'static>(count: u64, act: impl Fn(u64) -> F + 'static) -> f64 {
    let (act, next) = (Rc::new(act), Rc::new(Cell::new(0)));
    let watch = Watch::start();
    let workers: Vec<_> = (0..DEPTH)
        .map(|_| {
            let (act, next) = (Rc::clone(&act), Rc::clone(&next));
            glommio::spawn_local(async move {
                while next.get() < count {
                    let number: u64 = next.replace(next.get() + 1);
                    // Far apart, as hits are.
                    act(number * 997 % count).await;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await;
    }
    watch.cpu_seconds() * 1e6 / count as f64
}

async fn locate_all(shard: &RingShard, blocks: &Blocks, count: u64) -> Vec<Located> {
    let mut places = Vec::new();
    for number in 0..count {
        let Got::Disk(located) = shard.get(&blocks.key(number)).await else { panic!("block {number} is on disk") };
        shard.unpin(located.pin);
        places.push(located);
    }
    places
}

/// Stores clean blocks and waits until they are published.
async fn fill(shard: &RingShard, blocks: &Blocks, count: u64) {
    for number in 0..count {
        rig::until_room(shard).await;
        let done = shard.put(blocks.put(number, Durability::Origin)).await;
        assert!(matches!(done, PutDone::Created(Durability::Origin)), "{done:?}");
    }
    rig::until_appended(shard, count).await;
}

fn checksums(options: &Options, table: &mut Table) {
    let mut buffer = vec![0u8; 512 << 20];
    buffer.iter_mut().step_by(64).enumerate().for_each(|(index, byte)| *byte = index as u8);
    let warm = median((0..ROUNDS).map(|_| digest_rate(options, buffer[..LARGE_BYTES].chunks(LARGE_BYTES).cycle())));
    let cold = median((0..ROUNDS).map(|_| digest_rate(options, buffer.chunks(1 << 20).cycle())));
    let bare = median((0..ROUNDS).map(|_| rate(options, buffer.chunks(1 << 20).cycle(), sum)));
    table.add("checksum, 256 KiB in the processor's cache", warm, "GB/s", Bound::AtLeast(10.0));
    table.add("checksum, 1 MiB from memory", cold, "GB/s", Bound::AtLeast(10.0));
    table.add("a plain sum of the same memory", bare, "GB/s", Bound::None);
}

fn digest_rate<'a>(options: &Options, pieces: impl Iterator<Item = &'a [u8]>) -> f64 {
    rate(options, pieces, Digest::of)
}

/// What reading costs when next to nothing is done with it.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    words.fold(0, u64::wrapping_add)
}

/// GB per second of CPU.
fn rate<'a, T>(options: &Options, pieces: impl Iterator<Item = &'a [u8]>, of: impl Fn(&[u8]) -> T) -> f64 {
    let (watch, mut bytes) = (Watch::start(), 0);
    for piece in pieces {
        std::hint::black_box(of(std::hint::black_box(piece)));
        bytes += piece.len();
        if watch.seconds() > options.seconds / 8.0 {
            break;
        }
    }
    bytes as f64 / 1e9 / watch.cpu_seconds()
}
