//! Group commit: write-back puts of 4 KiB through `Shard::put`, 32 at a time, against one at a time.
//!
//! One at a time is group commit switched off by the same code: each put waits for a sync of its own. Both sides take turns,
//! round after round, on stores formatted anew; the figure is the median. Syncs are counted by the engine: those of commits,
//! and three for each checkpoint.

use std::cell::Cell;
use std::rc::Rc;

use forebay_shard::outcome::{Durability, PutDone};

use crate::Options;
use crate::measure::{Watch, median};
use crate::rig::{self, Blocks, MIB, RingShard, Scratch, StandIn};
use crate::table::{Bound, Table};

const BLOCK_BYTES: usize = 4096;
const DEPTH: usize = 32;
const ROUNDS: usize = 5;
/// Dirty blocks pile up, because the origin never answers: no round gets further.
const PUTS_MAX: u64 = 200_000;
const SLAB_BYTES: u64 = 2048 * MIB;

struct Round {
    puts_per_second: f64,
    syncs_per_put: f64,
    cpu_us_per_put: f64,
}

pub fn measure(options: &Options) -> Table {
    let mut alone = Vec::new();
    let mut grouped = Vec::new();
    for _ in 0..ROUNDS {
        alone.push(round(options, 1));
        grouped.push(round(options, DEPTH));
    }
    let rate = |rounds: &[Round]| median(rounds.iter().map(|round| round.puts_per_second));
    let syncs = |rounds: &[Round]| median(rounds.iter().map(|round| round.syncs_per_put));
    let cpu = |rounds: &[Round]| median(rounds.iter().map(|round| round.cpu_us_per_put));
    let mut table = Table::new(format!(
        "Group commit: 4 KiB write-back puts, medians of {ROUNDS} interleaved rounds of {} s",
        options.seconds
    ));
    table.add("acks per second, one at a time", rate(&alone), "/s", Bound::None);
    table.add(format!("acks per second, {DEPTH} at a time"), rate(&grouped), "/s", Bound::None);
    table.add("ratio", rate(&grouped) / rate(&alone), "×", Bound::AtLeast(5.0));
    table.add("fdatasyncs per ack, one at a time", syncs(&alone), "", Bound::None);
    table.add(format!("fdatasyncs per ack, {DEPTH} at a time"), syncs(&grouped), "", Bound::AtMost(1.0 / 16.0));
    table.add("CPU per put, one at a time", cpu(&alone), "µs", Bound::None);
    table.add(format!("CPU per put, {DEPTH} at a time"), cpu(&grouped), "µs", Bound::None);
    table
}

fn round(options: &Options, depth: usize) -> Round {
    let scratch = Scratch::new(&options.directory, "commit");
    rig::run(async {
        let disk = rig::disk(&scratch.path).await;
        let config = rig::config(64 * MIB, SLAB_BYTES / 2);
        let shard = rig::format(&disk, rig::geometry(SLAB_BYTES), config, StandIn::Silent).await;
        let blocks = Blocks::new("back", BLOCK_BYTES);
        let next = Rc::new(Cell::new(0));
        // The first region is opened and the first commits are made before the clock starts.
        put_until(&shard, &blocks, &next, depth, options.seconds / 10.0).await;
        let (before, first) = (shard.stats().store, next.get());
        let watch = Watch::start();
        put_until(&shard, &blocks, &next, depth, options.seconds).await;
        let (seconds, cpu_seconds) = (watch.seconds(), watch.cpu_seconds());
        let (after, puts) = (shard.stats().store, (next.get() - first) as f64);
        let syncs = after.syncs - before.syncs + 3 * (after.checkpoints - before.checkpoints);
        Round {
            puts_per_second: puts / seconds,
            syncs_per_put: syncs as f64 / puts,
            cpu_us_per_put: cpu_seconds * 1e6 / puts,
        }
    })
}

/// Keeps `depth` puts in flight for so long; every one of them is acknowledged when this returns.
async fn put_until(shard: &RingShard, blocks: &Rc<Blocks>, next: &Rc<Cell<u64>>, depth: usize, seconds: f64) {
    let watch = Rc::new(Watch::start());
    let putters: Vec<_> = (0..depth)
        .map(|_| {
            let (shard, blocks, next, watch) = (shard.clone(), Rc::clone(blocks), Rc::clone(next), Rc::clone(&watch));
            glommio::spawn_local(async move {
                while watch.seconds() < seconds && next.get() < PUTS_MAX {
                    let number = next.replace(next.get() + 1);
                    let done = shard.put(blocks.put(number, Durability::Disk)).await;
                    assert!(matches!(done, PutDone::Created(Durability::Disk)), "{done:?}");
                }
            })
        })
        .collect();
    for putter in putters {
        putter.await;
    }
}
