//! Named interleavings under simulation: what a put, delete or purge does to a fill (I6), a flush to an overwrite (I9),
//! the dirty budget (I10), an outage and its end, conflicts, rot, conditions and durability asked for. Virtual time
//! places each test in the middle of a fetch, a store or a commit.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::time::Duration;

use forebay_io::Runtime;
use forebay_io::checksum::Digest;
use forebay_io::sim::{Faults, OneIn};
use forebay_shard::config::ShardConfig;
use forebay_shard::dirty::Standing;
use forebay_shard::origin::Etag;
use forebay_shard::outcome::{Condition, DeclinedReason, Durability, Got, Headed, Put, PutDone, Removed};
use forebay_shard::sim_origin::{Link, OriginFaults};
use futures::future::{FutureExt, join, join_all};
use node::{Answer, Node, begin, body, collect, config, config_without_memory, key, put, read};

/// Without jitter in the origin's time, so that a test can place itself in the middle of a fetch or a store.
fn steady(config: ShardConfig) -> Node {
    let node = Node::with_config(1, config);
    node.origin.set_latency_us(10_000..10_000);
    node
}

fn condition(put: Put, condition: Condition) -> Put {
    Put { condition, ..put }
}

/// Implemented twice for what is `Send`, so that naming it for such a type does not compile.
trait StaysOnItsCore<A> {
    fn holds() {}
}
impl<T: ?Sized> StaysOnItsCore<()> for T {}
impl<T: ?Sized + Send> StaysOnItsCore<u8> for T {}

#[test]
fn i12_a_shard_can_not_be_sent_to_another_core() {
    // This fails to compile, rather than to run, if a shard ever becomes `Send`.
    <node::SimShard as StaysOnItsCore<_>>::holds();
}

#[test]
fn i6_a_delete_a_put_and_a_purge_each_outrun_the_fill_that_began_before() {
    for act in ["delete", "purge", "delete and put"] {
        for config in [config(), config_without_memory()] {
            let node = steady(config);
            let (key, old, new) = (key("back", "k"), body(1, 20_000), body(2, 3_000));
            node.origin.insert(&key, old.clone(), None);
            let fetches = node.run(async |shard| {
                let Got::Fill(stream) = shard.get(&key).await else { panic!("a miss fills") };
                match act {
                    "purge" => assert!(matches!(shard.purge(&key).await, Removed::Done(_))),
                    _ => assert!(matches!(shard.delete(&key).await, Removed::Done(Durability::Disk))),
                }
                if act == "delete and put" {
                    let done = shard.put(put(&key, &new, Durability::Disk)).await;
                    assert!(matches!(done, PutDone::Created(Durability::Disk)), "{done:?}");
                }
                // Who asked before still gets what was there then.
                assert_eq!(collect(stream.frames).await.unwrap(), old);
                node.origin.counts().fetches
            });
            assert_eq!(fetches, 1);
            node.shard.check();
            assert_eq!(node.shard.stats().counts.fills_published, 0);
            match act {
                "delete" => assert_eq!(node.read(&key), Answer::Absent),
                "purge" => assert_eq!(node.read(&key), Answer::Body(old)),
                _ => assert_eq!(node.read(&key), Answer::Body(new)),
            }
            if act == "delete and put" {
                assert_eq!(node.origin.counts().fetches, 1, "what was put is here");
            }
        }
    }
}

#[test]
fn i6_a_fill_that_begins_during_a_write_through_delete_is_not_kept() {
    let node = steady(config());
    let (key, old) = (key("through", "k"), body(1, 20_000));
    node.origin.insert(&key, old.clone(), None);
    let disk = node.world.disk();
    node.run(async |shard| {
        // The fetch finds the block just before the delete takes effect there, and ends after the delete is done.
        let reader = async {
            node.world.runtime().sleep(Duration::from_micros(100)).await;
            read(&shard, &disk, &key).await
        };
        let (removed, answer) = join(shard.delete(&key), reader).await;
        assert!(matches!(removed, Removed::Done(Durability::Origin)));
        assert!(matches!(answer, Answer::Body(_) | Answer::Absent));
    });
    node.pass(Duration::from_secs(1));
    assert_eq!(node.read(&key), Answer::Absent);
    assert_eq!(node.shard.stats().counts.fills_published, 0);
}

#[test]
fn a_write_back_put_is_acknowledged_without_the_origin_and_flushed_later() {
    let node = Node::new(1);
    node.origin.set_link(Link::Down);
    let (key, bytes) = (key("back", "k"), body(1, 20_000));
    assert!(matches!(node.put(&key, &bytes), PutDone::Created(Durability::Disk)));
    assert!(matches!(node.put(&key, &bytes), PutDone::Unchanged(Durability::Disk)));
    assert!(matches!(node.put(&key, &body(2, 20_000)), PutDone::KeyExists));
    assert!(matches!(node.put(&key, &body(2, 7)), PutDone::KeyExists));
    assert_eq!(node.read(&key), Answer::Body(bytes.clone()));
    assert!(node.shard.stats().dirty_bytes >= 20_000);
    node.origin.set_link(Link::Up);
    let report = node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await);
    assert_eq!((report.flushed, report.remaining), (1, 0));
    assert_eq!(node.origin.body(&key), Some(bytes.clone()));
    assert_eq!(node.shard.stats().dirty_bytes, 0);
    assert!(matches!(node.put(&key, &bytes), PutDone::Unchanged(Durability::Origin)));
    node.shard.check();
}

#[test]
fn a_put_goes_on_when_its_client_goes_away() {
    let node = Node::new(1);
    let (key, bytes) = (key("back", "k"), body(1, 20_000));
    node.run(async |shard| {
        let begun = shard.put(put(&key, &bytes, Durability::Disk));
        assert!(begun.now_or_never().is_none());
    });
    node.pass(Duration::from_secs(5));
    assert_eq!(node.origin.body(&key), Some(bytes.clone()));
    assert_eq!(node.read(&key), Answer::Body(bytes));
    node.shard.check();
}

#[test]
fn i9_a_flush_of_what_was_deleted_meanwhile_marks_nothing_clean() {
    let node = steady(config());
    let (key, bytes) = (key("back", "k"), body(1, 20_000));
    node.run(async |shard| {
        shard.put(put(&key, &bytes, Durability::Disk)).await;
        // Its flush has begun, and takes 20 ms.
        node.world.runtime().sleep(Duration::from_millis(5)).await;
        assert_eq!(node.origin.counts().stores, 1);
        assert!(matches!(shard.delete(&key).await, Removed::Done(Durability::Disk)));
        shard.check();
    });
    assert_eq!(node.read(&key), Answer::Absent);
    let report = node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await);
    assert_eq!(report.remaining, 0);
    assert_eq!(node.origin.body(&key), None, "the delete followed the store");
    assert_eq!(node.read(&key), Answer::Absent);
    node.shard.check();
}

#[test]
fn a_put_over_an_unflushed_delete_deletes_first() {
    let node = steady(config());
    let (key, old, new) = (key("back", "k"), body(1, 20_000), body(2, 10_000));
    node.origin.insert(&key, old, None);
    node.origin.set_link(Link::Down);
    node.run(async |shard| {
        assert!(matches!(shard.delete(&key).await, Removed::Done(Durability::Disk)));
        assert!(matches!(shard.delete(&key).await, Removed::Done(Durability::Disk)), "idempotent");
        assert!(matches!(shard.purge(&key).await, Removed::Dirty));
        assert!(matches!(shard.put(put(&key, &new, Durability::Disk)).await, PutDone::Created(Durability::Disk)));
        node.origin.set_link(Link::Up);
        let report = shard.flush_all(Duration::from_secs(60)).await;
        assert_eq!((report.remaining, report.conflicts), (0, 0));
    });
    assert_eq!(node.origin.body(&key), Some(new.clone()));
    assert_eq!(node.read(&key), Answer::Body(new));
    node.shard.check();
}

#[test]
fn a_retried_flush_never_deletes_what_somebody_else_stored_after_the_first_try() {
    let node = steady(config());
    let (key, new, other) = (key("back", "k"), body(2, 10_000), body(3, 10));
    node.origin.insert(&key, body(1, 20), None);
    node.origin.set_link(Link::Down);
    node.run(async |shard| {
        shard.delete(&key).await;
        shard.put(put(&key, &new, Durability::Disk)).await;
        // The delete before the store gets through, the store does not, and somebody else stores then.
        node.origin.set_faults(OriginFaults { store_error: 1, ..OriginFaults::default() });
        node.origin.set_link(Link::Up);
        let stores = node.origin.counts().stores;
        while node.origin.counts().stores == stores || shard.stats().flushing > 0 {
            node.world.runtime().sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(node.origin.body(&key), None);
        node.origin.insert(&key, other.clone(), None);
        node.origin.set_faults(OriginFaults::default());
        let report = shard.flush_all(Duration::from_secs(60)).await;
        assert_eq!((report.remaining, report.conflicts), (1, 1));
    });
    assert_eq!(node.origin.body(&key), Some(other));
}

#[test]
fn i10_a_full_dirty_budget_declines_or_writes_through_and_deletes_still_work() {
    let node = Node::with_config(1, ShardConfig { dirty_bytes_max: 50_000, ..config() });
    node.origin.set_link(Link::Down);
    let first = key("back", "first");
    assert!(matches!(node.put(&first, &body(1, 30_000)), PutDone::Created(Durability::Disk)));
    let PutDone::Declined(declined) = node.put(&key("back", "second"), &body(2, 30_000)) else { panic!("it is full") };
    assert_eq!(declined.reason, DeclinedReason::DirtyFull);
    assert!(declined.retry_after > Duration::ZERO);
    assert!(matches!(node.put(&key("spill", "third"), &body(3, 30_000)), PutDone::Failed(_)), "the origin is away");
    node.origin.set_link(Link::Up);
    assert!(matches!(node.put(&key("spill", "third"), &body(3, 30_000)), PutDone::Created(Durability::Origin)));
    assert_eq!(node.origin.body(&key("spill", "third")), Some(body(3, 30_000)));
    assert!(node.shard.stats().dirty_bytes <= 50_000);
    node.origin.set_link(Link::Down);
    let removed = node.run(async |shard| shard.delete(&first).await);
    assert!(matches!(removed, Removed::Done(Durability::Disk)), "a delete makes room");
    assert!(matches!(node.put(&key("back", "second"), &body(2, 30_000)), PutDone::Created(Durability::Disk)));
    node.shard.check();
}

#[test]
fn i10_many_tombstones_are_bounded_too() {
    let node = Node::with_config(1, ShardConfig { dirty_bytes_max: 5_000, ..config() });
    node.origin.set_link(Link::Down);
    let keys: Vec<_> = (0..20).map(|n| key("back", &format!("k{n}"))).collect();
    let removed = node.run(async |shard| join_all(keys.iter().map(|key| shard.delete(key))).await);
    let done = removed.iter().filter(|removed| matches!(removed, Removed::Done(_))).count();
    assert_eq!(done, 9, "nine times 512 bytes");
    node.origin.set_link(Link::Up);
    assert_eq!(node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await).remaining, 0);
    assert_eq!(node.shard.stats().dirty_bytes, 0);
}

#[test]
fn an_outage_is_probed_gently_and_ends_by_itself() {
    let node = Node::new(1);
    node.origin.set_link(Link::Down);
    let keys: Vec<_> = (0..30).map(|n| key("back", &format!("k{n}"))).collect();
    for key in &keys {
        assert!(matches!(node.put(key, &body(1, 1_000)), PutDone::Created(Durability::Disk)));
    }
    node.pass(Duration::from_secs(10));
    let stores = node.origin.counts().stores;
    node.pass(Duration::from_secs(600));
    let probes = node.origin.counts().stores - stores;
    assert!((30..200).contains(&probes), "{probes} stores in ten minutes: one probe every 7.5 s or so");
    node.origin.set_link(Link::Up);
    // No more than the longest wait between two probes, and some milliseconds for each block.
    node.pass(Duration::from_secs(20));
    assert_eq!(node.shard.stats().dirty_records, 0, "{:?}", node.shard.dirty_items(1));
    assert!(keys.iter().all(|key| node.origin.body(key).is_some()));
}

#[test]
fn flushes_run_side_by_side_within_their_bound() {
    let node = steady(config());
    let keys: Vec<_> = (0..40).map(|n| key("back", &format!("k{n}"))).collect();
    node.run(async |shard| {
        join_all(keys.iter().map(|key| shard.put(put(key, &body(1, 1_000), Durability::Disk)))).await;
        assert_eq!(shard.flush_all(Duration::from_secs(60)).await.remaining, 0);
    });
    assert_eq!(node.origin.counts().changes_at_once_max, 4);
    assert_eq!(node.origin.counts().stores, 40);
}

#[test]
fn a_conflict_keeps_both_and_blocks_nothing() {
    let node = Node::new(1);
    let (contested, other) = (key("back", "contested"), key("back", "other"));
    node.origin.insert(&contested, body(9, 50), None);
    assert!(matches!(node.put(&contested, &body(1, 1_000)), PutDone::Created(Durability::Disk)));
    assert!(matches!(node.put(&other, &body(2, 1_000)), PutDone::Created(Durability::Disk)));
    let report = node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await);
    assert_eq!((report.flushed, report.remaining, report.conflicts), (1, 1, 1));
    assert_eq!(node.origin.body(&contested), Some(body(9, 50)));
    assert_eq!(node.origin.body(&other), Some(body(2, 1_000)));
    assert_eq!(node.read(&contested), Answer::Body(body(1, 1_000)), "what was acknowledged here is served here");
    let items = node.shard.dirty_items(10);
    assert_eq!((items.len(), items[0].standing), (1, Standing::Conflict));
    let stores = node.origin.counts().stores;
    node.pass(Duration::from_secs(600));
    assert_eq!(node.origin.counts().stores, stores, "it is not tried again");
    // The operator's way out: delete the key, put again.
    assert!(matches!(node.run(async |shard| shard.delete(&contested).await), Removed::Done(_)));
    assert_eq!(node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await).remaining, 0);
    node.shard.check();
}

#[test]
fn write_through_acknowledges_only_what_the_origin_has() {
    let node = Node::new(1);
    let (k, taken) = (key("through", "k"), key("through", "taken"));
    node.origin.insert(&taken, body(9, 50), None);
    assert!(matches!(node.put(&taken, &body(1, 1_000)), PutDone::KeyExists));
    assert!(matches!(node.put(&taken, &body(9, 50)), PutDone::Created(Durability::Origin)));
    node.origin.set_faults(OriginFaults { store_error: 1, ..OriginFaults::default() });
    assert!(matches!(node.put(&k, &body(1, 1_000)), PutDone::Failed(_)));
    assert_eq!(node.read(&k), Answer::Absent, "a failed store publishes nothing");
    node.origin.set_faults(OriginFaults::default());
    assert!(matches!(node.put(&k, &body(1, 1_000)), PutDone::Created(Durability::Origin)));
    assert_eq!(node.read(&k), Answer::Body(body(1, 1_000)));
    node.pass(Duration::from_secs(1));
    assert!(matches!(node.put(&k, &body(1, 1_000)), PutDone::Unchanged(Durability::Origin)));
    assert!(matches!(node.put(&k, &body(2, 1_000)), PutDone::KeyExists));
    assert!(matches!(node.run(async |shard| shard.delete(&k).await), Removed::Done(Durability::Origin)));
    assert_eq!((node.read(&k), node.origin.body(&k)), (Answer::Absent, None));
    assert_eq!(node.origin.counts().fetches, 2, "each of the absent ones");
    assert_eq!(node.shard.stats().dirty_records, 0);
}

#[test]
fn a_client_that_asks_for_the_origin_never_gets_less() {
    let node = Node::new(1);
    let (fresh, dirty, deleted) = (key("back", "fresh"), key("back", "dirty"), key("back", "deleted"));
    node.origin.insert(&deleted, body(8, 10), None);
    node.origin.set_faults(OriginFaults { store_error: 1, delete_error: 1, ..OriginFaults::default() });
    node.put(&dirty, &body(2, 1_000));
    assert!(matches!(node.run(async |shard| shard.delete(&deleted).await), Removed::Done(Durability::Disk)));
    let ask = |key, seed| node.run(async |shard| shard.put(put(key, &body(seed, 1_000), Durability::Origin)).await);
    for (key, seed) in [(&fresh, 1), (&dirty, 2), (&deleted, 3)] {
        assert!(matches!(ask(key, seed), PutDone::Failed(_)));
    }
    assert_eq!(node.read(&dirty), Answer::Body(body(2, 1_000)), "what was acknowledged stays");
    assert_eq!(node.read(&deleted), Answer::Absent, "so does a delete");
    node.origin.set_faults(OriginFaults::default());
    assert!(matches!(ask(&fresh, 1), PutDone::Created(Durability::Origin)));
    assert!(matches!(ask(&dirty, 2), PutDone::Unchanged(Durability::Origin)));
    assert!(matches!(ask(&deleted, 3), PutDone::Created(Durability::Origin)));
    for (key, seed) in [(&fresh, 1), (&dirty, 2), (&deleted, 3)] {
        assert_eq!(node.origin.body(key), Some(body(seed, 1_000)));
        assert_eq!(node.read(key), Answer::Body(body(seed, 1_000)));
    }
    node.pass(Duration::from_secs(100));
    assert_eq!(node.shard.stats().dirty_records, 0);
    assert_eq!(node.origin.body(&deleted), Some(body(3, 1_000)), "the old tombstone is not flushed any more");
    node.shard.check();
}

#[test]
fn conditions_hold_or_nothing_is_stored() {
    for (volume, durability) in [("back", Durability::Disk), ("through", Durability::Origin)] {
        let node = Node::new(1);
        let (k, foreign) = (key(volume, "k"), key(volume, "foreign"));
        node.origin.insert(&foreign, body(5, 100), Some("e-1"));
        let ask = |key, bytes, c: Condition| {
            node.run(async |shard| shard.put(condition(put(key, bytes, Durability::Disk), c)).await)
        };
        let (one, two) = (body(1, 100), body(2, 100));
        let tag = |bytes: &[u8]| vec![Etag::Digest(Digest::of(bytes))];
        assert!(matches!(ask(&k, &one, Condition::Matches(tag(&one))), PutDone::PreconditionFailed));
        assert!(matches!(ask(&k, &one, Condition::Absent), PutDone::Created(d) if d == durability));
        assert!(matches!(ask(&k, &one, Condition::Absent), PutDone::PreconditionFailed));
        assert!(matches!(ask(&k, &one, Condition::Matches(tag(&two))), PutDone::PreconditionFailed));
        assert!(matches!(ask(&k, &one, Condition::Matches(tag(&one))), PutDone::Unchanged(_)));
        assert!(matches!(ask(&k, &two, Condition::Matches(tag(&one))), PutDone::KeyExists));
        // Not known here, but at the origin: a condition is settled by asking it.
        assert!(matches!(ask(&foreign, &two, Condition::Absent), PutDone::PreconditionFailed));
        let matching = Condition::Matches(vec![Etag::Origin("e-1".into())]);
        assert!(matches!(ask(&foreign, &two, matching), PutDone::KeyExists));
        node.origin.set_link(Link::Down);
        assert!(matches!(ask(&key(volume, "new"), &two, Condition::Absent), PutDone::Failed(_)));
        assert!(matches!(node.run(async |shard| shard.head(&k).await), Headed::Found(_)));
    }
}

#[test]
fn the_same_bytes_are_known_again_even_where_somebody_else_stored_them() {
    for config in [config(), config_without_memory()] {
        let node = Node::with_config(1, config);
        let foreign = key("back", "foreign");
        node.origin.insert(&foreign, body(5, 1_000), Some("e-1"));
        assert_eq!(node.read(&foreign), Answer::Body(body(5, 1_000)));
        node.pass(Duration::from_secs(1));
        assert!(matches!(node.put(&foreign, &body(5, 1_000)), PutDone::Unchanged(Durability::Origin)));
        assert!(matches!(node.put(&foreign, &body(6, 1_000)), PutDone::KeyExists));
    }
}

#[test]
fn rot_in_a_clean_block_is_repaired_within_the_request() {
    let node = Node::with_config(1, config_without_memory());
    let (k, bytes) = (key("through", "k"), body(1, 20_000));
    node.origin.insert(&k, bytes.clone(), None);
    assert_eq!(node.read(&k), Answer::Body(bytes.clone()));
    node.pass(Duration::from_secs(1));
    node.world.set_faults(Faults { bit_flip: OneIn::ALWAYS, ..Faults::default() });
    let disk = node.world.disk();
    let answer = node.run(async |shard| {
        let (answer, ()) = join(read(&shard, &disk, &k), async {
            node.world.runtime().sleep(Duration::from_millis(1)).await;
            node.world.set_faults(Faults::default());
        })
        .await;
        answer
    });
    assert_eq!(answer, Answer::Body(bytes));
    let counts = node.shard.stats().counts;
    assert_eq!((counts.rot, counts.lost, counts.misses), (1, 0, 2), "{counts:?}");
}

#[test]
fn a_dirty_block_that_rots_is_lost_and_listed_never_served_or_uploaded() {
    let node = Node::with_config(1, config_without_memory());
    let (k, bytes) = (key("back", "k"), body(1, 20_000));
    node.origin.set_link(Link::Down);
    node.put(&k, &bytes);
    // Older bytes at the origin must not take its place.
    node.origin.insert(&k, body(7, 10), None);
    node.world.set_faults(Faults { bit_flip: OneIn::ALWAYS, ..Faults::default() });
    assert_eq!(node.read(&k), Answer::Lost);
    node.world.set_faults(Faults::default());
    assert_eq!(node.read(&k), Answer::Lost);
    assert!(matches!(node.run(async |shard| shard.head(&k).await), Headed::Lost));
    assert!(matches!(node.run(async |shard| shard.purge(&k).await), Removed::Dirty));
    assert!(matches!(node.put(&k, &body(2, 20_000)), PutDone::KeyExists));
    node.origin.remove(&k);
    node.origin.set_link(Link::Up);
    let report = node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await);
    assert_eq!((report.flushed, report.remaining, report.lost), (0, 1, 1));
    assert_eq!(node.origin.body(&k), None);
    assert_eq!(node.shard.dirty_items(9)[0].standing, Standing::Lost);
    // Whoever has the bytes can bring them back.
    assert!(matches!(node.put(&k, &bytes), PutDone::Created(Durability::Disk)));
    assert_eq!(node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await).remaining, 0);
    assert_eq!(node.origin.body(&k), Some(bytes));
    node.shard.check();
}

#[test]
fn a_failed_disk_declines_or_writes_through_but_never_lies() {
    let node = Node::new(1);
    node.world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
    let PutDone::Declined(declined) = node.put(&key("back", "k"), &body(1, 1_000)) else { panic!("it must decline") };
    assert_eq!(declined.reason, DeclinedReason::DiskFault);
    assert!(matches!(node.put(&key("spill", "k"), &body(2, 1_000)), PutDone::Created(Durability::Origin)));
    assert!(matches!(node.put(&key("through", "k"), &body(3, 1_000)), PutDone::Created(Durability::Origin)));
    assert_eq!(node.origin.body(&key("spill", "k")), Some(body(2, 1_000)));
    assert_eq!(node.read(&key("spill", "k")), Answer::Body(body(2, 1_000)));
    let removed = node.run(async |shard| shard.delete(&key("through", "k")).await);
    assert!(!matches!(removed, Removed::Done(_)), "the entry might come back after a restart: {removed:?}");
    // The other keys of the node go on being served.
    node.origin.insert(&key("back", "other"), body(4, 1_000), None);
    assert_eq!(node.read(&key("back", "other")), Answer::Body(body(4, 1_000)));
}

#[test]
fn puts_of_one_key_take_turns_and_one_wins() {
    let node = Node::new(1);
    let k = key("back", "k");
    let done = node.run(async |shard| {
        join_all((0..10).map(|seed| shard.put(put(&k, &body(seed, 1_000), Durability::Disk)))).await
    });
    assert_eq!(done.iter().filter(|done| matches!(done, PutDone::Created(_))).count(), 1);
    assert_eq!(done.iter().filter(|done| matches!(done, PutDone::KeyExists)).count(), 9);
}

#[test]
fn closing_waits_for_what_has_begun_and_declines_the_rest() {
    let mut node = steady(config());
    let (k, late) = (key("back", "k"), key("back", "late"));
    node.origin.set_link(Link::Down);
    let shard = node.shard.clone();
    let begun = {
        let (shard, k) = (shard.clone(), k.clone());
        begin(&node.world, async move { shard.put(put(&k, &body(1, 1_000), Durability::Disk)).await })
    };
    node.run(async |shard| {
        node.world.runtime().yield_now().await;
        shard.close().await;
        let declined = shard.put(put(&late, &body(2, 1_000), Durability::Disk)).await;
        assert!(matches!(declined, PutDone::Declined(d) if d.reason == DeclinedReason::Stopping));
    });
    let begun = begun.borrow_mut().take().unwrap();
    let report = node.crash();
    match begun {
        PutDone::Created(Durability::Disk) => {
            assert_eq!(report.dirty_blocks, 1);
            assert_eq!(node.read(&k), Answer::Body(body(1, 1_000)));
        }
        PutDone::Declined(_) => assert_eq!(report.dirty_blocks, 0),
        other => panic!("{other:?}"),
    }
    node.origin.set_link(Link::Up);
    node.run(async |shard| shard.flush_all(Duration::from_secs(60)).await);
    assert_eq!(node.shard.stats().dirty_records, 0);
}
