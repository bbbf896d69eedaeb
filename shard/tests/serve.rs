//! Volumes that come, and change, while a shard runs; and what is dirty of each, which tells when one has left.
//!
//! The edge refuses what it does not serve; a shard never forgets a volume, so that what was acknowledged finds its settings.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::time::Duration;

use bytes::Bytes;
use forebay_shard::config::{VolumeConfig, WriteMode};
use forebay_shard::outcome::{Durability, PutDone};
use forebay_shard::sim_origin::Link;
use node::{Answer, Node, body, config, key};

fn named(name: &str, write_mode: WriteMode) -> VolumeConfig {
    VolumeConfig { name: name.into(), write_mode, ..config().volumes[0].clone() }
}

fn dirty_of(node: &Node, volume: &str) -> u64 {
    node.shard.check();
    let stats = node.shard.stats();
    stats.dirty_by_volume.iter().find(|(name, _)| &**name == volume).map_or(0, |(_, records)| *records)
}

#[test]
fn a_volume_is_served_from_the_moment_it_is_told_and_with_what_was_told_last() {
    let node = Node::new(1);
    let (first, second): (Bytes, Bytes) = (body(1, 20_000), body(2, 20_000));
    node.shard.serve(&[named("late", WriteMode::Back)]);
    assert!(matches!(node.put(&key("late", "a"), &first), PutDone::Created(Durability::Disk)));
    node.shard.serve(&[named("late", WriteMode::Through)]);
    assert!(matches!(node.put(&key("late", "b"), &second), PutDone::Created(Durability::Origin)));
    assert_eq!(node.read(&key("late", "a")), Answer::Body(first));
    assert_eq!(node.read(&key("late", "b")), Answer::Body(second));
    node.pass(Duration::from_secs(5));
    assert_eq!(dirty_of(&node, "late"), 0, "what was dirty is flushed, whatever the volume is now");
    assert_eq!(node.shard.stats().dirty_records, 0);
}

#[test]
fn what_is_dirty_is_counted_for_its_volume() {
    let node = Node::new(2);
    node.shard.serve(&[named("late", WriteMode::Back)]);
    node.origin.set_link(Link::Down);
    for number in 0..3 {
        node.put(&key("late", &format!("{number}")), &body(number, 10_000));
    }
    // Again, deleted, and another volume's.
    node.put(&key("back", "x"), &body(9, 10_000));
    node.run(async |shard| shard.delete(&key("late", "0")).await);
    assert_eq!((dirty_of(&node, "late"), dirty_of(&node, "back"), dirty_of(&node, "spill")), (3, 1, 0));
    node.origin.set_link(Link::Up);
    node.pass(Duration::from_secs(600));
    assert_eq!((dirty_of(&node, "late"), dirty_of(&node, "back")), (0, 0));
}
