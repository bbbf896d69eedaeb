//! Fills under simulation: one fetch per cold key, streaming, abandoned leaders, budgets, and every way in which a body
//! can be wrong. Each test runs the real shard and store in `SimWorld`, with the origin in memory: I5, I6, I8 and the
//! budgets of fills.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::time::Duration;

use forebay_io::Runtime;
use forebay_shard::config::ShardConfig;
use forebay_shard::fill::HELD_BACK_BYTES;
use forebay_shard::origin::{Etag, OriginErrorKind};
use forebay_shard::outcome::{DeclinedReason, FillRole, Got, Headed, MetaSource};
use forebay_shard::sim_origin::{Link, OriginFaults};
use futures::StreamExt;
use futures::future::join_all;
use node::{Answer, BLOCK_BYTES_MAX, Node, begin, body, collect, config, key, read};

#[test]
fn i5_a_herd_on_a_cold_key_is_one_fetch() {
    for seed in 0..20 {
        let node = Node::new(seed);
        let (key, bytes) = (key("through", "herd"), body(seed, 30_000));
        node.origin.insert(&key, bytes.clone(), None);
        let disk = node.world.disk();
        let answers = node.run(async |shard| join_all((0..64).map(|_| read(&shard, &disk, &key))).await);
        assert!(answers.iter().all(|answer| *answer == Answer::Body(bytes.clone())));
        assert_eq!(node.origin.counts().fetches, 1, "seed {seed}");
        assert_eq!(node.read(&key), Answer::Body(bytes));
        assert_eq!(node.origin.counts().fetches, 1, "it is a hit now");
        let counts = node.shard.stats().counts;
        assert_eq!((counts.misses, counts.collapsed + counts.hits_memory + counts.hits_disk), (1, 64));
        node.shard.check();
    }
}

#[test]
fn i5_without_a_memory_tier_a_herd_is_one_fetch_until_the_disk_has_it() {
    let node = Node::with_config(3, node::config_without_memory());
    let (key, bytes) = (key("through", "herd"), body(3, 20_000));
    node.origin.insert(&key, bytes.clone(), None);
    // Readers come all the time while it is fetched, appended and published.
    for _ in 0..400 {
        let disk = node.world.disk();
        let (shard, key, bytes) = (node.shard.clone(), key.clone(), bytes.clone());
        begin(&node.world, async move { assert_eq!(read(&shard, &disk, &key).await, Answer::Body(bytes)) });
        node.pass(Duration::from_micros(200));
    }
    node.pass(Duration::from_secs(1));
    let counts = node.shard.stats().counts;
    assert_eq!(node.origin.counts().fetches, 1);
    assert!(counts.collapsed > 10 && counts.hits_disk > 10, "both kinds were met: {counts:?}");
}

#[test]
fn bytes_stream_while_the_fetch_goes_on_and_the_last_are_held_back() {
    let node = Node::new(1);
    node.origin.set_frame_bytes_max(1_000);
    let (key, bytes) = (key("through", "slow"), body(1, BLOCK_BYTES_MAX as usize));
    node.origin.insert(&key, bytes.clone(), None);
    let mut early = 0;
    node.run(async |shard| {
        let Got::Fill(mut stream) = shard.get(&key).await else { panic!("a miss fills") };
        assert_eq!((stream.role, stream.len_bytes), (FillRole::Began, u64::from(BLOCK_BYTES_MAX)));
        // A late joiner gets what has come already.
        let first = stream.frames.next().await.unwrap().unwrap();
        let Got::Fill(joined) = shard.get(&key).await else { panic!("a second request joins") };
        assert_eq!(joined.role, FillRole::Joined);
        let mut got = first.to_vec();
        while shard.stats().counts.bytes_fetched < u64::from(BLOCK_BYTES_MAX) {
            early = got.len();
            let Some(frame) = stream.frames.next().await else { break };
            got.extend_from_slice(&frame.unwrap());
        }
        while let Some(frame) = stream.frames.next().await {
            got.extend_from_slice(&frame.unwrap());
        }
        assert_eq!(got, bytes);
        assert_eq!(collect(joined.frames).await.unwrap(), bytes);
    });
    assert!(early > 0 && early as u64 <= u64::from(BLOCK_BYTES_MAX) - HELD_BACK_BYTES, "{early}");
}

#[test]
fn i8_no_wrong_body_ever_ends_well() {
    let faults = [
        OriginFaults { wrong_bytes: 1, ..OriginFaults::default() },
        OriginFaults { wrong_length: 1, ..OriginFaults::default() },
        OriginFaults { reset: 1, ..OriginFaults::default() },
        OriginFaults { fetch_error: 1, ..OriginFaults::default() },
    ];
    for (seed, faults) in (0..40).flat_map(|seed| faults.map(|faults| (seed, faults))) {
        let node = Node::new(seed);
        let len = [1, 100, 16_384, 16_385, 32_000][seed as usize % 5];
        let (key, bytes) = (key("through", "bad"), body(seed, len));
        node.origin.insert(&key, bytes.clone(), None);
        node.origin.set_faults(faults);
        let disk = node.world.disk();
        let answers = node.run(async |shard| join_all((0..5).map(|_| read(&shard, &disk, &key))).await);
        assert!(answers.iter().all(|answer| *answer == Answer::Failed), "seed {seed} {faults:?}: {answers:?}");
        assert_eq!(node.origin.counts().fetches, 1, "one outcome for all who waited");
        node.shard.check();
        // Nothing was kept, and the key is not poisoned.
        node.origin.set_faults(OriginFaults::default());
        assert_eq!(node.read(&key), Answer::Body(bytes), "seed {seed}");
        assert_eq!(node.origin.counts().fetches, 2);
    }
}

#[test]
fn a_fill_goes_on_while_anyone_waits() {
    let node = Node::new(1);
    node.origin.set_frame_bytes_max(1_000);
    let (key, bytes) = (key("through", "handover"), body(1, 30_000));
    node.origin.insert(&key, bytes.clone(), None);
    node.run(async |shard| {
        let Got::Fill(leader) = shard.get(&key).await else { panic!("a miss fills") };
        let Got::Fill(follower) = shard.get(&key).await else { panic!("a second request joins") };
        drop(leader);
        assert_eq!(collect(follower.frames).await.unwrap(), bytes);
    });
    assert_eq!(node.origin.counts().fetches, 1);
}

#[test]
fn a_fill_nobody_waits_for_is_cancelled_unless_half_of_it_is_there() {
    let node = Node::new(1);
    node.origin.set_frame_bytes_max(1_000);
    let keys: Vec<_> = ["early", "late"].iter().map(|name| key("through", name)).collect();
    keys.iter().for_each(|key| node.origin.insert(key, body(1, 32_000), None));
    let runtime = node.world.runtime();
    node.run(async |shard| {
        let Got::Fill(stream) = shard.get(&keys[0]).await else { panic!("a miss fills") };
        drop(stream);
        runtime.sleep(Duration::from_secs(1)).await;
        let Got::Fill(stream) = shard.get(&keys[1]).await else { panic!("a miss fills") };
        let fetched_before = shard.stats().counts.bytes_fetched;
        while shard.stats().counts.bytes_fetched - fetched_before <= 17_000 {
            runtime.sleep(Duration::from_micros(100)).await;
        }
        drop(stream);
    });
    node.pass(Duration::from_secs(2));
    let stats = node.shard.stats();
    assert_eq!((stats.counts.fills_abandoned, stats.counts.fills_published), (1, 1), "{stats:?}");
    assert_eq!((stats.fills, stats.fill_bytes), (0, 0), "both gave back what they held");
    assert_eq!(node.read(&keys[1]), Answer::Body(body(1, 32_000)));
    assert_eq!(node.origin.counts().fetches, 2, "the late one is a hit");
    assert!(node.origin.counts().fetches_cancelled >= 1);
}

#[test]
fn a_request_that_goes_away_before_the_headers_cancels_its_fetch() {
    let node = Node::new(1);
    let key = key("through", "gone");
    node.origin.insert(&key, body(1, 32_000), None);
    node.run(async |shard| {
        let pause = shard.get(&key);
        assert!(futures::future::FutureExt::now_or_never(pause).is_none());
    });
    node.pass(Duration::from_secs(1));
    let stats = node.shard.stats();
    assert_eq!((stats.counts.fills_abandoned, stats.fills, stats.counts.bytes_fetched), (1, 0, 0));
}

#[test]
fn fills_beyond_the_budget_are_declined_before_anything_is_asked() {
    for config in [
        ShardConfig { fill_bytes_max: 4 * u64::from(BLOCK_BYTES_MAX), ..config() },
        ShardConfig { fills_max: 4, ..config() },
    ] {
        let node = Node::with_config(1, config);
        let keys: Vec<_> = (0..10).map(|n| key("through", &format!("k{n}"))).collect();
        keys.iter().for_each(|key| node.origin.insert(key, body(1, 100), None));
        let disk = node.world.disk();
        let answers = node.run(async |shard| join_all(keys.iter().map(|key| read(&shard, &disk, key))).await);
        assert_eq!(answers.iter().filter(|answer| **answer == Answer::Declined).count(), 6);
        assert_eq!(node.origin.counts().fetches, 4);
        assert_eq!(node.shard.stats().declined[&DeclinedReason::FillsFull], 6);
        // Declined is not for ever.
        assert_eq!(node.read(&keys[9]), Answer::Body(body(1, 100)));
    }
}

#[test]
fn a_block_larger_than_its_volume_allows_fails() {
    let node = Node::new(1);
    let key = key("through", "large");
    node.origin.insert(&key, body(1, BLOCK_BYTES_MAX as usize + 1), None);
    node.run(async |shard| match shard.get(&key).await {
        Got::Failed(error) => assert_eq!(error.kind, OriginErrorKind::TooLarge),
        _ => panic!("it must fail"),
    });
    assert_eq!(node.shard.stats().fill_bytes, 0);
}

#[test]
fn empty_blocks_and_blocks_of_others_are_blocks() {
    for node in [Node::new(1), Node::with_config(1, node::config_without_memory())] {
        let (empty, foreign) = (key("through", "empty"), key("through", "foreign"));
        node.origin.insert(&empty, body(1, 0), None);
        node.origin.insert(&foreign, body(2, 5_000), Some("abc-1"));
        for _ in 0..3 {
            assert_eq!(node.read(&empty), Answer::Body(body(1, 0)));
            assert_eq!(node.read(&foreign), Answer::Body(body(2, 5_000)));
            node.pass(Duration::from_millis(100));
        }
        let headed = node.run(async |shard| shard.head(&foreign).await);
        let Headed::Found(meta) = headed else { panic!("{headed:?}") };
        assert_eq!((meta.len_bytes, meta.etag), (5_000, Etag::Origin("abc-1".into())));
        assert_eq!((node.origin.counts().fetches, node.origin.counts().heads), (2, 0));
    }
}

#[test]
fn a_head_of_a_cold_key_asks_and_fills_nothing() {
    let node = Node::new(1);
    let (there, absent) = (key("through", "there"), key("through", "absent"));
    node.origin.insert(&there, body(1, 5_000), None);
    let headed = node.run(async |shard| shard.head(&there).await);
    let Headed::Found(meta) = headed else { panic!("{headed:?}") };
    assert_eq!((meta.len_bytes, meta.source), (5_000, MetaSource::Origin));
    assert!(matches!(node.run(async |shard| shard.head(&absent).await), Headed::Absent));
    assert_eq!(node.read(&absent), Answer::Absent);
    assert_eq!((node.origin.counts().heads, node.origin.counts().fetches), (2, 1));
    node.origin.set_link(Link::Down);
    assert!(matches!(node.run(async |shard| shard.head(&there).await), Headed::Failed(_)));
    assert_eq!(node.read(&there), Answer::Failed);
}
