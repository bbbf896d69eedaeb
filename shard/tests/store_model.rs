//! Random puts, fills, deletes, removals, flushes and reads by several workers, with reclaim and checkpoints running, cut
//! off at random writes, reopened and judged against plain maps (I11, I13). `FOREBAY_SEED=n` replays one seed.
//! `FOREBAY_SEEDS=n` searches among the first n.
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;
#[path = "store_support/model.rs"]
mod model;

use std::time::Duration;

use bench::{Bench, Opened};
use forebay_io::Runtime;
use forebay_io::sim::{Faults, OneIn};
use forebay_shard::config::{Geometry, SyncMode};
use forebay_shard::store::EntryState;
use futures::future::join_all;
use model::Model;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const WORKERS: u64 = 5;

/// How much is dirty: little of a few keys, or as much as the budget allows, so that reclaim has to move it.
#[derive(Clone, Copy)]
struct Load {
    keys: u32,
    dirty_bytes_max: u64,
    flush_one_in: u32,
}

const LIGHT: Load = Load { keys: 14, dirty_bytes_max: 300 << 10, flush_one_in: 1 };
const HEAVY: Load = Load { keys: 60, dirty_bytes_max: 500 << 10, flush_one_in: 8 };

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("FOREBAY_SEED") {
        Ok(seed) => vec![seed.parse().expect("FOREBAY_SEED is a number")],
        Err(_) => {
            // For a long search: FOREBAY_SEEDS=100000.
            let count = std::env::var("FOREBAY_SEEDS").map_or(count, |count| count.parse().expect("a number"));
            (0..count).collect()
        }
    }
}

fn small() -> Geometry {
    Geometry { region_bytes: 128 << 10, region_count: 10, journal_bytes: 64 << 10 }
}

fn size(random: &mut SmallRng) -> usize {
    match random.random_range(0..10) {
        0 => random.random_range(0..2),
        1..5 => random.random_range(1..4096),
        5..9 => random.random_range(4096..20_000),
        _ => random.random_range(20_000..50_000),
    }
}

/// One worker: random verbs until it has done its share or the store takes no more.
async fn work(store: Opened, model: &Model, load: Load, seed: u64, steps: u32) {
    let random = &mut SmallRng::seed_from_u64(seed);
    for step in 0..steps {
        let name = format!("k{}", random.random_range(0..load.keys));
        let (content_seed, size) = (random.random(), size(random));
        let pause = store.runtime.sleep(Duration::from_micros(random.random_range(0..900)));
        let is_over_budget = store.store.dirty_bytes() > load.dirty_bytes_max;
        let goes_on = match random.random_range(0..100) {
            0..35 if !is_over_budget && model.lock(&name) => model.put(&store, &name, content_seed, size).await,
            35..45 if model.lock(&name) => model.delete(&store, &name).await,
            45..50 if model.lock(&name) => model.remove(&store, &name).await,
            50..55 if store.state(&name) == Some(EntryState::Clean) && model.lock(&name) => {
                model.confirmed(&store, &name, content_seed, size).await
            }
            55..75 => model.fill(&store, &name, content_seed, size).await,
            75..85 => {
                if random.random_range(0..load.flush_one_in) == 0 {
                    model.flush(&store, &name);
                }
                true
            }
            85..88 => {
                pause.await;
                true
            }
            88..89 => store.store.checkpoint().await.is_ok(),
            _ => {
                model.read(&store, &name, pause).await;
                true
            }
        };
        if is_over_budget {
            (0..load.keys).step_by(3).for_each(|key| model.flush(&store, &format!("k{key}")));
        }
        if step.is_multiple_of(8) {
            store.store.check();
        }
        if !goes_on && store.store.stats().regions_free > 0 {
            return;
        }
    }
}

struct Ran {
    reclaimed: u64,
    relocated: u64,
    checkpoints: u64,
    torn_payloads: u64,
    torn_frames: u64,
}

/// Several lives of one disk.
fn run(seed: u64, faults: &Faults, sync: SyncMode) -> Ran {
    let random = &mut SmallRng::seed_from_u64(seed ^ 0x5EED);
    let mut bench = Bench::new(seed, small());
    bench.sync = sync;
    let model = Model::default();
    let load = if seed.is_multiple_of(2) { LIGHT } else { HEAVY };
    let mut ran = Ran { reclaimed: 0, relocated: 0, checkpoints: 0, torn_payloads: 0, torn_frames: 0 };
    for life in 0..6 {
        bench.world.set_faults(Faults::default());
        let first_change = bench.world.changes();
        if random.random_range(0..4) > 0 {
            bench.world.crash_at(first_change + random.random_range(1..260));
        }
        let worker_seed = seed * 1000 + life * 10;
        let steps = random.random_range(5..60);
        let closes = random.random_range(0..4) == 0;
        let outcome = bench.world.run(async {
            let store = bench.open().await.unwrap();
            store.store.check();
            model.judge(&store).await;
            bench.world.set_faults(faults.clone());
            join_all((0..WORKERS).map(|n| work(store.clone(), &model, load, worker_seed + n, steps))).await;
            store.store.check();
            if closes {
                store.store.close().await;
                store.store.check();
            }
            (store.store.stats(), store.recovered.rejected)
        });
        match outcome {
            Ok((stats, rejected)) => {
                ran.reclaimed += stats.reclaimed;
                ran.relocated += stats.relocated;
                ran.checkpoints += stats.checkpoints;
                ran.torn_payloads += rejected.torn_payload;
                ran.torn_frames += rejected.torn_frames;
                bench.world.crash();
            }
            // The power went during recovery or work; the next life judges.
            Err(_crashed) => {}
        }
    }
    bench.world.set_faults(Faults::default());
    bench.world.block_on(async { model.judge(&bench.open().await.unwrap()).await });
    ran
}

#[test]
fn i11_i13_a_recovered_store_is_what_was_acknowledged() {
    let mut total = Ran { reclaimed: 0, relocated: 0, checkpoints: 0, torn_payloads: 0, torn_frames: 0 };
    for seed in seeds(240) {
        println!("seed {seed}");
        let ran = run(seed, &Faults::default(), SyncMode::Always);
        total.reclaimed += ran.reclaimed;
        total.relocated += ran.relocated;
        total.checkpoints += ran.checkpoints;
        total.torn_payloads += ran.torn_payloads;
        total.torn_frames += ran.torn_frames;
    }
    let Ran { reclaimed, relocated, checkpoints, torn_payloads, torn_frames } = total;
    println!("{reclaimed} reclaimed, {relocated} relocated, {checkpoints} checkpoints");
    println!("{torn_payloads} torn payloads, {torn_frames} torn frames");
    if std::env::var("FOREBAY_SEED").is_err() {
        assert!(reclaimed > 100 && relocated > 100 && checkpoints > 100, "the test reaches reclaim and checkpoints");
        assert!(torn_payloads > 0, "the test reaches torn writes");
    }
}

#[test]
fn i3_nothing_acknowledged_is_lost_when_writes_and_syncs_fail() {
    for seed in seeds(120) {
        println!("seed {seed}");
        let faults = Faults { write_error: OneIn(60), sync_error: OneIn(80), ..Faults::default() };
        run(seed + 10_000, &faults, SyncMode::Always);
    }
}
