//! What must hold after a restart, and at the end: each key is read and compared with what was promised.
//!
//! Called by `campaign`, with the store in reach or without. Where the node can't answer because it doesn't have the block
//! and the store is away, the bucket itself must: an acknowledged write is on the node or in the bucket. `in_the_bucket` is
//! the end of a campaign: everything flushed, and the bucket alone is right.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::bucket::Bucket;
use super::load::{Life, Read};
use super::node::Access;
use super::oracle::Found;

/// Reads at once.
const READERS: usize = 8;
/// How long a node that has just started may decline before that is a fault.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the disk says by itself before the node starts again: `forebay verify` finds no broken promise.
///
/// # Errors
/// It finds one, or can't look.
pub fn on_the_disk(disk: &Path) -> Result<(), String> {
    let output = Command::new(env!("CARGO_BIN_EXE_forebay")).arg("verify").arg(disk).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Struck before there was a directory, or before the node wrote its name into it.
    let is_nothing = ["holds no node", "No such file"].iter().any(|words| err.contains(words));
    match output.status.code() {
        Some(0) => Ok(()),
        Some(2) if is_nothing => Ok(()),
        code => Err(format!("verify before the restart: exit {code:?}\n{out}{err}")),
    }
}

/// Reads every key from the node.
pub async fn from_the_node(life: &Life<'_>, bucket: &Bucket, rng: &mut SmallRng) {
    let mut keys: Vec<usize> = (0..life.oracle.borrow().keys.len()).collect();
    keys.shuffle(rng);
    let seeds: Vec<u64> = keys.iter().map(|_| rng.random()).collect();
    futures::stream::iter(keys.into_iter().zip(seeds))
        .map(|(key, seed)| read_one(life, bucket, key, SmallRng::seed_from_u64(seed)))
        .buffer_unordered(READERS)
        .for_each(|()| async {})
        .await;
}

async fn read_one(life: &Life<'_>, bucket: &Bucket, key: usize, mut rng: SmallRng) {
    let began = Instant::now();
    loop {
        let moment = life.oracle.borrow().moment(key);
        let refused = match life.fetch(key, &mut rng).await {
            Read::Found(found) => return life.settle(key, moment, found, "after the restart"),
            Read::Wrong(what) => return life.fault(key, what),
            // `fetch` has made it a fault.
            Read::Broken(_) => return,
            Read::Refused(status, body) => format!("{status} {body}"),
        };
        if !bucket.gate.is_open() {
            return read_bucket(life, bucket, key, &format!("in the bucket; the node said {refused}")).await;
        }
        if began.elapsed() > PATIENCE {
            return life.fault(key, format!("NO ANSWER after {PATIENCE:?}: {refused}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until nothing is dirty and compares the bucket with what was promised, key by key.
pub async fn in_the_bucket(life: &Life<'_>, bucket: &Bucket) -> Result<(), String> {
    flushed(life.access).await?;
    let count = life.oracle.borrow().keys.len();
    futures::stream::iter(0..count)
        .map(|key| read_bucket(life, bucket, key, "in the bucket, everything flushed"))
        .buffer_unordered(READERS)
        .for_each(|()| async {})
        .await;
    Ok(())
}

async fn read_bucket(life: &Life<'_>, bucket: &Bucket, key: usize, how: &str) {
    let moment = life.oracle.borrow().moment(key);
    let (volume, name) = {
        let oracle = life.oracle.borrow();
        (oracle.keys[key].volume, oracle.keys[key].name.clone())
    };
    let stored = bucket.stored(volume, &name).await;
    let found = match &stored {
        None => Ok(Found::Absent),
        Some(body) => life.oracle.borrow().identify(key, body, None),
    };
    match found {
        Ok(found) => life.settle(key, moment, found, how),
        Err(what) => life.fault(key, format!("{what} {how}")),
    }
}

async fn flushed(access: &Access) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let status = access.status().await?;
        let dirty = &status["dirty"];
        if dirty["conflicts"] != 0 || dirty["lost"] != 0 {
            return Err(format!("dirty blocks in conflict or lost: {dirty}"));
        }
        if status["dirty_blocks"] == 0 {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("the node does not flush: {status:#}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
