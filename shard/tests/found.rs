//! What the simulator found, each as a small history of its own: bugs that took several rare things at once.
//!
//! Run with all tests; virtual time places each in the middle of what raced. I1, I3, I11 and promise 8 under the faults
//! that broke them once.
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;
#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::time::Duration;

use bench::{Bench, content};
use forebay_io::Runtime;
use forebay_io::sim::{Faults, Latency, OneIn, Survival};
use forebay_shard::config::Geometry;
use forebay_shard::key::BlockKey;
use forebay_shard::outcome::{DeclinedReason, Durability, Got, PutDone, Removed};
use forebay_shard::sim_origin::{Link, OriginFaults};
use forebay_shard::store::{Appended, Commit, Validity, slab_name};
use futures::future::{join, join_all};
use node::{Answer, Node, body, config, config_without_memory, key, put};

/// Regions are open for clean and for dirty records, so that the next record's commit is the one that fails.
fn open_regions(node: &Node) {
    let filled = key("through", "filled");
    node.origin.insert(&filled, body(9, 100), None);
    assert_eq!(node.read(&filled), Answer::Body(body(9, 100)));
    assert!(matches!(node.put(&key("back", "put"), &body(8, 100)), PutDone::Created(_)));
    node.pass(Duration::from_secs(10));
}

/// Without jitter in the origin's time: a delete takes effect after 10 ms and is answered after 20.
fn steady() -> Node {
    let node = Node::with_config(1, config());
    node.origin.set_latency_us(10_000..10_000);
    node
}

fn is_disk_fault(done: &PutDone) -> bool {
    matches!(done, PutDone::Declined(declined) if declined.reason == DeclinedReason::DiskFault)
}

#[test]
fn a_delete_is_not_covered_by_an_older_one_that_has_taken_effect_already() {
    let node = steady();
    let k = key("back", "k");
    node.origin.insert(&k, body(1, 100), None);
    node.run(async |shard| {
        assert!(matches!(shard.delete(&k).await, Removed::Done(Durability::Disk)));
        while node.origin.body(&k).is_some() {
            node.world.runtime().sleep(Duration::from_millis(1)).await;
        }
        // The answer is on its way. Somebody else stores, and that is what the next delete is for.
        assert_eq!(shard.stats().dirty_records, 1);
        node.origin.insert(&k, body(2, 200), None);
        assert!(matches!(shard.delete(&k).await, Removed::Done(Durability::Disk)));
        assert_eq!(shard.flush_all(Duration::from_secs(60)).await.remaining, 0);
    });
    assert_eq!(node.origin.body(&k), None, "what was acknowledged as deleted is gone");
    assert_eq!(node.read(&k), Answer::Absent);
    node.shard.check();
}

#[test]
fn i11_a_clean_record_in_doubt_that_turns_up_is_at_the_origin() {
    let mut node = steady();
    let k = key("back", "k");
    open_regions(&node);
    node.origin.set_link(Link::Down);
    assert!(matches!(node.run(async |shard| shard.delete(&k).await), Removed::Done(Durability::Disk)));
    // Its flush has failed a few times and waits.
    node.pass(Duration::from_secs(5));
    let stores = node.origin.counts().stores;
    node.origin.set_link(Link::Up);
    node.world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
    let done = node.run(async |shard| shard.put(put(&k, &body(1, 3_000), Durability::Origin)).await);
    assert!(is_disk_fault(&done), "the origin has it, but not durably so here: {done:?}");
    assert_eq!(node.origin.counts().stores, stores + 1);
    node.world.set_faults(Faults::default());
    // Time for the tombstone's flush, which would take it away from there.
    node.pass(Duration::from_secs(120));
    node.world.set_survivors(Vec::new());
    node.crash();
    let answer = node.origin.body(&k).map_or(Answer::Absent, Answer::Body);
    assert_eq!(node.read(&k), answer, "a clean block is what the origin has");
}

#[test]
fn i3_a_put_in_doubt_is_never_refused_for_good() {
    let mut node = steady();
    let k = key("spill", "k");
    open_regions(&node);
    node.origin.insert(&k, body(1, 100), None);
    node.world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
    let done = node.put(&k, &body(2, 3_000));
    assert!(is_disk_fault(&done), "its record may turn up: {done:?}");
    node.world.set_faults(Faults::default());
    node.world.set_survivors(Vec::new());
    assert_eq!(node.crash().dirty_blocks, 1, "and it does");
}

#[test]
fn i1_a_reclaim_that_gives_up_leaves_a_region_alone_that_is_free_by_then() {
    let geometry = Geometry { region_bytes: 128 << 10, region_count: 10, journal_bytes: 1 << 20 };
    let mut bench = Bench::new(1, geometry);
    bench.commit_delay = Duration::from_millis(50);
    let world = bench.world.clone();
    bench.run(async |store| {
        store.put("rotten", content(1, 9_000)).await.unwrap();
        store.put("sound", content(2, 9_000)).await.unwrap();
        let located = store.store.locate(store.identity("rotten")).unwrap();
        store.store.unpin(located.pin);
        world.flip_bit(&slab_name(0), located.offset + 100, 1);
        let fill_up = async {
            for n in 0..60 {
                let name = format!("k{n}");
                store.put(&name, content(n, 40_000)).await.unwrap();
                store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
            }
        };
        // The sound one waits for its commit; meanwhile the rotten one is deleted, and the region is empty.
        let delete = async {
            while store.store.stats().reclaimed_dirty == 0 {
                store.runtime.sleep(Duration::from_millis(1)).await;
            }
            store.delete("rotten").await.unwrap();
        };
        join(fill_up, delete).await;
        let stats = store.store.stats();
        assert!(stats.reclaimed_dirty > 0 && stats.relocated > 0, "{stats:?}");
        assert_eq!(stats.regions_quarantined, 0, "{stats:?}");
        store.store.check();
        assert_eq!(store.read("sound").await, Some(content(2, 9_000)));
    });
}

#[test]
fn i11_an_unfinished_checkpoint_of_a_journal_that_was_taken_back_keeps_nobody_from_opening() {
    let mut cuts = 0;
    for cut in 0..8 {
        for number in 0..81usize {
            let fate = |digit| [Survival::Kept, Survival::Dropped, Survival::Torn][number / 3usize.pow(digit) % 3];
            // Nothing but the test writes a checkpoint.
            let bench = Bench::new(1, Geometry { journal_bytes: 1 << 20, ..bench::geometry() });
            let crashed = bench.world.run(async {
                let store = bench.open().await.unwrap();
                store.put("kept", content(1, 3_000)).await.unwrap();
                // Its frame waits for no sync: the power cut may take it back, and with it the point of the checkpoint.
                store.fill("lazy", content(2, 3_000), Validity::default(), Commit::Lazy).await.unwrap();
                bench.world.crash_at(bench.world.changes() + cut);
                bench.world.set_survivors((0..4).map(fate).collect());
                store.store.checkpoint().await
            });
            cuts += u32::from(crashed.is_err());
            bench.world.crash();
            bench.run(async |store| {
                for n in 0..3 {
                    store.put(&format!("later{n}"), content(10 + n, 3_000)).await.unwrap();
                }
            });
            bench.run(async |store| {
                assert_eq!(store.read("kept").await, Some(content(1, 3_000)), "cut {cut}, {number}");
                for n in 0..3 {
                    assert_eq!(
                        store.read(&format!("later{n}")).await,
                        Some(content(10 + n, 3_000)),
                        "cut {cut}, {number}"
                    );
                }
            });
        }
    }
    assert!(cuts > 400, "{cuts} cuts are all of a checkpoint");
}

#[test]
fn i1_what_was_evicted_from_a_quarantined_region_does_not_come_back_over_the_bytes_of_a_probe() {
    let bench = Bench::new(1, bench::geometry());
    bench.run(async |store| {
        store.put("flushed", content(1, 9_000)).await.unwrap();
        store.store.flushed(store.identity("flushed"), store.generation("flushed").unwrap());
        bench.world.set_faults(Faults { write_error: OneIn::ALWAYS, ..Faults::default() });
        assert!(store.put("failed", content(2, 9_000)).await.is_err());
        bench.world.set_faults(Faults::default());
        assert_eq!(store.store.stats().regions_quarantined, 1);
        for _ in 0..400 {
            store.runtime.sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(store.store.stats().regions_quarantined, 0, "the probe rewrote the region");
    });
    // Nobody has opened the region since: the journal still tells of a block in it.
    bench.run(async |store| {
        assert_eq!(store.store.locate(store.identity("flushed")).map(|located| located.offset), None);
        assert_eq!(store.recovered.entries, 0);
        store.put("next", content(3, 9_000)).await.unwrap();
        assert_eq!(store.read("next").await, Some(content(3, 9_000)));
    });
}

#[test]
fn an_append_waits_for_a_region_that_is_being_opened_however_long_the_queue_before_it() {
    let bench = Bench::new(1, bench::geometry());
    // Each write and sync takes 0.8 s: a commit of what is queued and one of the opening take longer than a full disk is
    // waited for.
    bench.world.set_latency(Latency { write_us: 800_000..800_000, sync_us: 800_000..800_000, ..Latency::default() });
    bench.run(async |store| {
        let names: Vec<String> = (0..150).map(|n| format!("f{n}")).collect();
        let fills =
            (0..).zip(&names).map(|(n, name)| store.fill(name, content(n, 4_000), Validity::default(), Commit::Lazy));
        for filled in join_all(fills).await {
            assert!(matches!(filled, Ok(Appended::Published)), "there is room for all: {filled:?}");
        }
        assert_eq!(store.store.stats().evicted, 0);
    });
}

/// A bit of the block's bytes on disk flips.
fn rot(node: &Node, key: &BlockKey) {
    let located = node.run(async |shard| match shard.get(key).await {
        Got::Disk(located) => {
            shard.unpin(located.pin);
            located
        }
        _ => panic!("it is on disk"),
    });
    node.world.flip_bit(&slab_name(0), located.offset + 100, 1);
}

#[test]
fn a_block_that_rots_while_its_flush_is_on_the_way_is_not_lost() {
    let node = Node::with_config(1, config_without_memory());
    node.origin.set_latency_us(10_000..10_000);
    let k = key("back", "k");
    node.run(async |shard| {
        let done = shard.put(put(&k, &body(1, 3_000), Durability::Disk)).await;
        assert!(matches!(done, PutDone::Created(_)));
        // Read for its flush, and on its way.
        node.world.runtime().sleep(Duration::from_millis(5)).await;
    });
    assert_eq!((node.shard.stats().flushing, node.origin.body(&k)), (1, None));
    rot(&node, &k);
    assert!(!matches!(node.read(&k), Answer::Body(_)), "it rotted");
    node.pass(Duration::from_secs(1));
    let stats = node.shard.stats();
    assert_eq!(node.origin.body(&k), Some(body(1, 3_000)));
    assert_eq!((stats.counts.lost, stats.dirty_records, stats.lost_held), (1, 0, 0), "the origin has it after all");
    node.shard.check();
    assert_eq!(node.read(&k), Answer::Body(body(1, 3_000)));
}

#[test]
fn a_put_over_a_lost_block_deletes_nothing_that_the_origin_was_given() {
    let mut node = Node::with_config(1, config_without_memory());
    let k = key("back", "k");
    node.origin.insert(&k, body(1, 100), None);
    node.origin.set_link(Link::Down);
    node.run(async |shard| {
        assert!(matches!(shard.delete(&k).await, Removed::Done(Durability::Disk)));
        assert!(matches!(shard.put(put(&k, &body(2, 3_000), Durability::Disk)).await, PutDone::Created(_)));
    });
    rot(&node, &k);
    node.pass(Duration::from_secs(5));
    // The delete went out, the store had its effect, and nobody here was told.
    node.origin.insert(&k, body(2, 3_000), None);
    assert_eq!(node.read(&k), Answer::Lost);
    node.origin.set_link(Link::Up);
    node.origin.set_faults(OriginFaults { store_error: 1, ..OriginFaults::default() });
    let deletes = node.origin.counts().deletes;
    let done = node.run(async |shard| shard.put(put(&k, &body(2, 3_000), Durability::Origin)).await);
    assert!(matches!(done, PutDone::Created(Durability::Origin)), "{done:?}");
    assert_eq!(node.origin.counts().deletes, deletes, "what is there is what is put");
    node.crash();
    assert_eq!(node.read(&k), Answer::Body(body(2, 3_000)));
}

#[test]
fn a_block_that_the_disk_did_not_take_leaves_its_key_in_no_doubt() {
    let node = steady();
    let k = key("back", "k");
    open_regions(&node);
    node.origin.insert(&k, body(1, 100), None);
    node.origin.set_link(Link::Down);
    assert!(matches!(node.run(async |shard| shard.delete(&k).await), Removed::Done(Durability::Disk)));
    node.world.set_faults(Faults { write_error: OneIn::ALWAYS, ..Faults::default() });
    assert!(is_disk_fault(&node.put(&k, &body(2, 3_000))));
    node.world.set_faults(Faults::default());
    node.origin.set_link(Link::Up);
    // Not even the disk has to come back from anything but an error: nothing was journaled.
    node.pass(Duration::from_secs(120));
    let stats = node.shard.stats();
    assert_eq!((stats.dirty_records, stats.health.counts.refounded), (0, 0), "the delete is flushed");
    assert_eq!(node.origin.body(&k), None);
    assert!(matches!(node.put(&k, &body(2, 3_000)), PutDone::Created(_)), "and the key takes changes");
    node.shard.check();
}
