//! Pin and unpin, under simulation: what is pinned stays on disk, over scans, flushes and crashes, until it is unpinned,
//! purged or deleted (I14); what is not there is fetched; and there is a bound that leaves reclaim its room.
//!
//! Each test runs the real shard and store in `SimWorld`.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::time::Duration;

use bytes::Bytes;
use forebay_shard::config::{DiskLimits, ShardConfig};
use forebay_shard::key::BlockKey;
use forebay_shard::outcome::{Durability, Got, PinDone, PutDone, Removed, UnpinDone};
use forebay_shard::store::Pinning;
use node::{Answer, Node, body, config_without_memory, geometry, key};

const BLOCK_BYTES: usize = 16 << 10;
/// The slab holds about 360 of them.
const SLAB_BLOCKS: u64 = 24 * 15;

fn subject(name: &str, number: u64) -> (BlockKey, Bytes) {
    (key("back", &format!("{name}/{number}")), body(number * 2 + name.len() as u64, BLOCK_BYTES))
}

fn stock(node: &Node, name: &str, count: u64) {
    (0..count).for_each(|number| {
        let (key, bytes) = subject(name, number);
        node.origin.insert(&key, bytes, None);
    });
}

fn pin(node: &Node, key: &BlockKey) -> PinDone {
    node.run(async |shard| shard.pin(key).await)
}

fn unpin(node: &Node, key: &BlockKey) {
    assert!(matches!(node.run(async |shard| shard.unpin_block(key).await), UnpinDone::Done));
}

fn is_on_disk(node: &Node, key: &BlockKey) -> bool {
    match node.run(async |shard| shard.get(key).await) {
        Got::Disk(located) => {
            node.shard.unpin(located.pin);
            true
        }
        _ => false,
    }
}

/// Reads so much else that the disk turns over several times.
fn scan(node: &Node, from: u64, count: u64) {
    for number in from..from + count {
        let (key, bytes) = subject("scan", number);
        assert_eq!(node.read(&key), Answer::Body(bytes));
        while node.shard.fills_running() > 0 {
            node.pass(Duration::from_micros(200));
        }
    }
    node.shard.check();
}

#[test]
fn i14_pinned_blocks_outlive_scans_and_crashes_unused() {
    let mut node = Node::with_config(1, config_without_memory());
    stock(&node, "pin", 60);
    stock(&node, "scan", 8 * SLAB_BLOCKS);
    let blocks: Vec<BlockKey> = (0..60).map(|number| subject("pin", number).0).collect();
    for (number, key) in (0..).zip(&blocks) {
        assert!(matches!(pin(&node, key), PinDone::Done));
        // Regions full of what is pinned would never be reclaimed.
        scan(&node, number * 4, 4);
    }
    for life in 0..4 {
        scan(&node, life * 2 * SLAB_BLOCKS, 2 * SLAB_BLOCKS);
        let stats = node.shard.stats();
        assert_eq!((stats.store.pinned_entries, stats.store.pinned_bytes), (60, 60 * BLOCK_BYTES as u64));
        // After a restart all that was found counts as kept, and a scan reclaims what is new.
        assert!((stats.store.pinned_moved >= 60 || life > 0) && stats.store.pins_lost == 0, "{:?}", stats.store);
        assert_eq!(stats.counts.appends_failed, 0);
        node.crash();
        for key in &blocks {
            assert_eq!(node.shard.pinning(key), Pinning::Pinned);
            assert!(is_on_disk(&node, key), "{key:?} in life {life}");
        }
    }
}

#[test]
fn what_is_unpinned_is_the_policys_again_also_after_a_crash() {
    let mut node = Node::with_config(2, config_without_memory());
    stock(&node, "pin", 3);
    stock(&node, "scan", 3 * SLAB_BLOCKS);
    let blocks: Vec<BlockKey> = (0..3).map(|number| subject("pin", number).0).collect();
    blocks.iter().for_each(|key| assert!(matches!(pin(&node, key), PinDone::Done)));
    unpin(&node, &blocks[0]);
    // Neither a pin nor a block is needed for it.
    unpin(&node, &key("back", "nobody/ever"));
    scan(&node, 0, 3 * SLAB_BLOCKS);
    let there: Vec<bool> = blocks[..2].iter().map(|key| is_on_disk(&node, key)).collect();
    assert_eq!(there, [false, true]);
    unpin(&node, &blocks[1]);
    node.crash();
    let pinned: Vec<Pinning> = blocks.iter().map(|key| node.shard.pinning(key)).collect();
    assert_eq!(pinned, [Pinning::Unpinned, Pinning::Unpinned, Pinning::Pinned]);
}

#[test]
fn a_pin_fetches_what_is_not_there_once() {
    let node = Node::with_config(3, config_without_memory());
    let (key, bytes) = subject("pin", 0);
    assert!(matches!(pin(&node, &key), PinDone::Absent));
    node.origin.insert(&key, bytes.clone(), None);
    assert!(matches!(pin(&node, &key), PinDone::Done));
    assert!(matches!(pin(&node, &key), PinDone::Done));
    assert_eq!(node.shard.stats().counts.misses, 2, "one GET told that it was not there, one brought it");
    assert_eq!(node.read(&key), Answer::Body(bytes));
    assert_eq!(node.shard.stats().store.pinned_entries, 1);
}

#[test]
fn a_pin_is_put_on_disk_whatever_the_write_budget_and_the_memory_tier_say() {
    // An hour's worth is two blocks.
    let limits = DiskLimits { ghosts_max: 64, write_bytes_per_day: Some(48 * BLOCK_BYTES as u64) };
    let config = ShardConfig { disk_limits: limits, memory_tier_bytes: 1 << 20, ..config_without_memory() };
    let mut node = Node::with_config(4, config);
    stock(&node, "pin", 8);
    for number in 0..8 {
        let (key, bytes) = subject("pin", number);
        if number % 2 == 0 {
            assert_eq!(node.read(&key), Answer::Body(bytes));
        }
        assert!(matches!(pin(&node, &key), PinDone::Done), "{number}");
    }
    assert!(node.shard.stats().store.fills_declined > 0);
    node.crash();
    (0..8).for_each(|number| assert!(is_on_disk(&node, &subject("pin", number).0), "{number}"));
}

#[test]
fn a_purge_and_a_delete_take_the_pin_with_them_and_a_flush_does_not() {
    let mut node = Node::with_config(5, config_without_memory());
    node.origin.set_link(forebay_shard::sim_origin::Link::Down);
    let (dirty, bytes) = subject("dirty", 0);
    assert!(matches!(node.put(&dirty, &bytes), PutDone::Created(Durability::Disk)));
    assert!(matches!(pin(&node, &dirty), PinDone::Done));
    // A purge never drops a dirty block, pinned or not.
    assert!(matches!(node.run(async |shard| shard.purge(&dirty).await), Removed::Dirty));
    assert_eq!(node.shard.pinning(&dirty), Pinning::Pinned);
    node.origin.set_link(forebay_shard::sim_origin::Link::Up);
    node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await);
    assert_eq!(node.shard.pinning(&dirty), Pinning::Pinned);
    // A flushed mark waits for no sync of its own.
    node.run(async |shard| drop(shard.purge(&key("back", "scratch")).await));
    node.crash();
    assert_eq!((node.shard.pinning(&dirty), node.shard.stats().dirty_records), (Pinning::Pinned, 0));
    assert!(matches!(node.run(async |shard| shard.purge(&dirty).await), Removed::Done(_)));
    assert_eq!(node.read(&dirty), Answer::Body(bytes.clone()));
    assert_eq!(node.shard.pinning(&dirty), Pinning::Unpinned, "what came back is not pinned");
    assert!(matches!(pin(&node, &dirty), PinDone::Done));
    assert!(matches!(node.run(async |shard| shard.delete(&dirty).await), Removed::Done(_)));
    assert!(matches!(pin(&node, &dirty), PinDone::Absent));
    assert!(matches!(node.put(&dirty, &bytes), PutDone::Created(_)));
    node.crash();
    assert_eq!((node.shard.pinning(&dirty), node.shard.stats().store.pinned_bytes), (Pinning::Unpinned, 0));
}

#[test]
fn the_bound_refuses_more_and_leaves_reclaim_its_room() {
    let node = Node::with_config(6, config_without_memory());
    stock(&node, "pin", SLAB_BLOCKS);
    stock(&node, "scan", 4 * SLAB_BLOCKS);
    let mut pinned = 0;
    let refused = loop {
        match pin(&node, &subject("pin", pinned).0) {
            PinDone::Done => pinned += 1,
            refused => break refused,
        }
    };
    let PinDone::Full { pinned_bytes, bytes_max } = refused else { panic!("{refused:?}") };
    assert_eq!(pinned_bytes, pinned * BLOCK_BYTES as u64);
    assert!(bytes_max - pinned_bytes < BLOCK_BYTES as u64 && bytes_max < 24 * geometry().region_bytes / 4);
    // What is pinned already may be pinned again; and room for one is room for one.
    assert!(matches!(pin(&node, &subject("pin", 0).0), PinDone::Done));
    unpin(&node, &subject("pin", 0).0);
    assert!(matches!(pin(&node, &subject("pin", pinned).0), PinDone::Done));
    // As much dirty as may be, beside it: puts and fills still find their room.
    node.origin.set_link(forebay_shard::sim_origin::Link::Down);
    let dirty = (0..60).filter(|number| {
        let (key, bytes) = subject("dirty", *number);
        matches!(node.put(&key, &bytes), PutDone::Created(Durability::Disk))
    });
    assert!(dirty.count() > 40);
    node.origin.set_link(forebay_shard::sim_origin::Link::Up);
    scan(&node, 0, 4 * SLAB_BLOCKS);
    let stats = node.shard.stats();
    assert_eq!((stats.counts.appends_failed, stats.store.pinned_entries), (0, pinned), "{stats:?}");
}

#[test]
fn a_pinned_block_that_rots_is_repaired_and_counted() {
    let node = Node::with_config(7, config_without_memory());
    let (key, bytes) = subject("pin", 0);
    node.origin.insert(&key, bytes.clone(), None);
    assert!(matches!(pin(&node, &key), PinDone::Done));
    let Got::Disk(located) = node.run(async |shard| shard.get(&key).await) else { panic!("it is on disk") };
    node.shard.unpin(located.pin);
    node.world.flip_bit("shard-000.slab", located.offset + 1_000, 3);
    assert_eq!(node.read(&key), Answer::Body(bytes));
    node.shard.check();
    let stats = node.shard.stats().store;
    assert_eq!((stats.pins_lost, stats.pinned_entries, stats.pinned_bytes), (1, 0, 0));
}
