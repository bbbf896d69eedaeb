//! What other members of a group ask of a shard: only what is here, in turn with what changes it; writes over what is dirty and over nothing else;
//! what is left of others' keys, flushed first and not forgotten by a crash.
//!
//! The same among real processes is `ci/tests/routing/moving.rs`.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::time::Duration;

use forebay_io::Runtime;
use forebay_shard::key::BlockKey;
use forebay_shard::outcome::{Durability, Got, Headed, MetaSource, PutDone, Removed};
use forebay_shard::sim_origin::Link;
use futures::future::FutureExt;
use node::{Answer, Node, body, config, key, put};

#[test]
fn a_question_is_answered_without_the_origin() {
    let node = Node::new(1);
    let (stored, dirty, deleted) = (key("back", "stored"), key("back", "dirty"), key("back", "deleted"));
    node.origin.insert(&stored, body(1, 3_000), None);
    node.origin.insert(&deleted, body(2, 3_000), None);
    node.origin.set_link(Link::Down);
    node.run(async |shard| {
        assert!(matches!(shard.put(put(&dirty, &body(3, 3_000), Durability::Disk)).await, PutDone::Created(_)));
        assert!(matches!(shard.delete(&deleted).await, Removed::Done(_)));
        let stores = node.origin.counts();
        assert!(shard.look_here(&stored).await.is_none() && shard.head_here(&stored).await.is_none());
        assert!(matches!(shard.look_here(&deleted).await, Some(Got::Absent)));
        assert!(matches!(shard.head_here(&deleted).await, Some(Headed::Absent)));
        assert!(matches!(shard.look_here(&dirty).await, Some(Got::Memory(hit)) if hit.body == body(3, 3_000)));
        let Some(Headed::Found(meta)) = shard.head_here(&dirty).await else { panic!("it is here") };
        assert_eq!(meta.source, MetaSource::Dirty);
        assert_eq!((stores.fetches, stores.heads), (node.origin.counts().fetches, node.origin.counts().heads));
    });
    // Nor is a fill joined.
    node.origin.set_link(Link::Up);
    node.run(async |shard| {
        let Got::Fill(_stream) = shard.get(&stored).await else { panic!("a miss fills") };
        assert!(shard.look_here(&stored).await.is_none());
    });
}

#[test]
fn changes_that_began_before_have_ended_whether_their_clients_wait_or_not() {
    for seed in 0..20 {
        let node = Node::new(seed);
        let key = key("back", "k");
        node.run(async |shard| {
            let begun = shard.put(put(&key, &body(1, 3_000), Durability::Disk)).now_or_never();
            assert!(begun.is_none(), "its commit takes time, and its client is gone");
            shard.changes_ended().await;
            let got = shard.look_here(&key).await;
            assert!(matches!(got, Some(Got::Memory(_) | Got::Disk(_))), "seed {seed}");
        });
    }
}

#[test]
fn whoever_holds_a_key_dirty_decides_about_it_and_nobody_else_does() {
    let node = Node::new(1);
    node.origin.set_link(Link::Down);
    let (held, other) = (key("back", "held"), key("back", "other"));
    node.run(async |shard| {
        let over =
            async |key: &BlockKey, seed| shard.put_over_dirty(put(key, &body(seed, 3_000), Durability::Disk)).await;
        shard.put(put(&held, &body(1, 3_000), Durability::Disk)).await;
        assert!(matches!(over(&held, 1).await, Some(PutDone::Unchanged(Durability::Disk))));
        assert!(matches!(over(&held, 2).await, Some(PutDone::KeyExists)));
        assert!(matches!(shard.delete_over_dirty(&held).await, Some(Removed::Done(_))));
        assert!(matches!(over(&held, 2).await, Some(PutDone::Created(Durability::Disk))));
        assert!(over(&other, 1).await.is_none() && shard.delete_over_dirty(&other).await.is_none());
        assert!(shard.look_here(&other).await.is_none(), "nothing was done");
    });
    assert_eq!(node.read(&held), Answer::Body(body(2, 3_000)));
    node.origin.set_link(Link::Up);
    assert_eq!(node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await).remaining, 0);
    assert_eq!(node.origin.body(&held), Some(body(2, 3_000)));
    node.run(async |shard| {
        let over = shard.put_over_dirty(put(&held, &body(2, 3_000), Durability::Disk)).await;
        assert!(over.is_none(), "it is clean");
    });
    node.shard.check();
}

#[test]
fn what_is_left_of_others_keys_is_counted_and_flushed_first() {
    let node = Node::with_config(1, forebay_shard::config::ShardConfig { flush_parallelism: 1, ..config() });
    node.origin.set_link(Link::Down);
    let keys: Vec<BlockKey> = (0..1_500).map(|n| key("back", &format!("k{n}"))).collect();
    let is_others = |key: &BlockKey| key.key.ends_with('7');
    node.run(async |shard| {
        for key in &keys {
            assert!(matches!(shard.delete(key).await, Removed::Done(_)));
        }
        assert_eq!(shard.count_dirty(is_others).await, 150);
        shard.check();
    });
    node.origin.set_link(Link::Up);
    node.run(async |shard| {
        while shard.count_dirty(is_others).await > 0 {
            node.world.runtime().sleep(Duration::from_millis(1)).await;
        }
        let left = shard.stats().dirty_records;
        assert!((1_200..=1_350).contains(&left), "the others had to wait: {left}");
    });
    node.shard.check();
}

#[test]
fn nothing_left_stays_so_after_a_crash() {
    for seed in 0..20 {
        let mut node = Node::new(seed);
        let key = key("back", "k");
        node.run(async |shard| {
            shard.put(put(&key, &body(1, 3_000), Durability::Disk)).await;
            while shard.count_dirty(|_| true).await > 0 {
                node.world.runtime().sleep(Duration::from_millis(1)).await;
            }
        });
        node.crash();
        assert_eq!(node.shard.stats().dirty_records, 0, "seed {seed}: the mark of its flush was not durable");
    }
}
