//! A disk that goes bad and comes back, one way at a time: what requests get meanwhile, and that nothing written past it is
//! forgotten. I3, I11, I13 and promises 1, 3 and 7; the simulator meets all of these at random. Run with all tests, in virtual
//! time.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::time::Duration;

use forebay_io::Runtime;
use forebay_io::sim::{Faults, Latency, OneIn};
use forebay_shard::health::{HealthState, Reason};
use forebay_shard::outcome::{DeclinedReason, Durability, Got, Headed, PutDone, Removed};
use forebay_shard::sim_origin::Link;
use node::{Answer, Node, body, config, config_without_memory, key, put};

/// Everything fails that can.
fn broken() -> Faults {
    Faults {
        read_error: OneIn::ALWAYS,
        write_error: OneIn::ALWAYS,
        sync_error: OneIn::ALWAYS,
        no_space: OneIn::ALWAYS,
        ..Faults::default()
    }
}

fn unreadable() -> Faults {
    Faults { read_error: OneIn::ALWAYS, only: "slab".into(), ..Faults::default() }
}

/// A node without a memory tier and with a clean and a dirty block on its disk: `c` in a write-through volume, and `d`,
/// which was deleted and stored anew while the origin, which has the older bytes still, could not be told.
fn stocked() -> Node {
    let node = Node::with_config(1, config_without_memory());
    let (clean, dirty) = (key("through", "c"), key("back", "d"));
    assert!(matches!(node.put(&clean, &body(1, 9_000)), PutDone::Created(Durability::Origin)));
    node.origin.insert(&dirty, body(2, 5_000), None);
    assert_eq!(node.read(&dirty), Answer::Body(body(2, 5_000)));
    node.pass(Duration::from_secs(1));
    node.origin.set_link(Link::Down);
    assert!(matches!(node.run(async |shard| shard.delete(&dirty).await), Removed::Done(Durability::Disk)));
    assert!(matches!(node.put(&dirty, &body(3, 6_000)), PutDone::Created(Durability::Disk)));
    node
}

fn state(node: &Node) -> HealthState {
    node.shard.stats().health.state
}

/// Reports reads that failed, as readers do, until the disk is offline.
fn go_offline(node: &Node) {
    node.world.set_faults(unreadable());
    let dirty = key("back", "d");
    for _ in 0..config().health.errors_offline {
        node.run(async |shard| {
            let Got::Disk(located) = shard.get(&dirty).await else { panic!("it is on disk, which is not offline yet") };
            shard.unpin(located.pin);
            shard.report_rot(&dirty, located.generation).await;
        });
    }
    let health = node.shard.stats().health;
    assert_eq!((health.state, health.reason), (HealthState::Offline, Some(Reason::Errors)), "{health:?}");
}

/// With a disk that is well the node is, within the time that the limits promise.
fn come_back(node: &Node) {
    node.world.set_faults(Faults::default());
    for _ in 0..400 {
        if state(node) == HealthState::Ok && !node.shard.stats().writes_stopped {
            node.shard.check();
            return;
        }
        node.pass(Duration::from_secs(1));
    }
    panic!("it has not come back: {:?}", node.shard.stats().health);
}

fn is_disk_fault<T: std::fmt::Debug>(declined: &T) -> bool {
    format!("{declined:?}").contains("DiskFault")
}

#[test]
fn p3_a_dirty_block_on_an_offline_disk_is_withheld_and_never_replaced_by_what_the_origin_has() {
    let node = stocked();
    go_offline(&node);
    let dirty = key("back", "d");
    for link in [Link::Down, Link::Up] {
        node.origin.set_link(link);
        node.run(async |shard| match shard.get(&dirty).await {
            Got::Declined(declined) => assert_eq!(declined.reason, DeclinedReason::DiskFault),
            _ => panic!("only a refusal is right"),
        });
        node.origin.set_link(Link::Down);
    }
    let stats = node.shard.stats();
    assert_eq!((stats.dirty_records, node.shard.dirty_items(9).len()), (1, 1), "what is dirty stays listed");
    let headed = node.run(async |shard| shard.head(&dirty).await);
    assert!(matches!(headed, Headed::Found(meta) if meta.len_bytes == 6_000), "its record is in memory");
    come_back(&node);
    assert_eq!(node.read(&dirty), Answer::Body(body(3, 6_000)));
    node.origin.set_link(Link::Up);
    let report = node.run(async |shard| shard.flush_all(Duration::from_secs(600)).await);
    assert_eq!(report.remaining, 0);
    assert_eq!(node.origin.body(&dirty), Some(body(3, 6_000)));
}

#[test]
fn p7_an_offline_disk_is_passed_by_for_what_the_origin_has() {
    let node = stocked();
    go_offline(&node);
    node.origin.set_link(Link::Up);
    let clean = key("through", "c");
    assert_eq!(node.read(&clean), Answer::Body(body(1, 9_000)));
    let headed = node.run(async |shard| shard.head(&clean).await);
    assert!(matches!(headed, Headed::Found(meta) if meta.len_bytes == 9_000));
    assert!(matches!(node.put(&key("through", "new"), &body(4, 700)), PutDone::Created(Durability::Origin)));
    assert!(matches!(node.put(&key("back", "new"), &body(5, 700)), PutDone::Created(Durability::Origin)));
    assert_eq!(node.origin.body(&key("back", "new")), Some(body(5, 700)));
    let stats = node.shard.stats();
    assert!(stats.counts.passed_by > 0 && stats.counts.written_through == 1 && stats.counts.not_admitted > 0);
    // The same bytes once more are compared by the origin, and so are others.
    assert!(matches!(node.put(&clean, &body(1, 9_000)), PutDone::Created(_) | PutDone::Unchanged(_)));
    assert!(matches!(node.put(&clean, &body(6, 9_000)), PutDone::KeyExists));
    come_back(&node);
    assert_eq!(node.read(&clean), Answer::Body(body(1, 9_000)));
}

#[test]
fn i13_what_was_deleted_past_an_offline_disk_does_not_come_back_with_it_nor_with_the_next_start() {
    for crashes in [false, true] {
        let mut node = stocked();
        go_offline(&node);
        node.origin.set_link(Link::Up);
        let clean = key("through", "c");
        let removed = node.run(async |shard| shard.delete(&clean).await);
        assert!(matches!(removed, Removed::Done(Durability::Origin)), "the journal takes it: {removed:?}");
        node.world.set_faults(Faults::default());
        if crashes {
            node.crash();
        } else {
            come_back(&node);
        }
        assert_eq!(node.read(&clean), Answer::Absent, "crashed: {crashes}");
    }
}

#[test]
fn i3_a_failed_sync_degrades_and_after_its_return_the_disk_is_told_everything_anew() {
    for crashes in [false, true] {
        let mut node = stocked();
        let (clean, dirty, refused) = (key("through", "c"), key("back", "d"), key("back", "refused"));
        node.world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
        let done = node.put(&refused, &body(7, 3_000));
        assert!(is_disk_fault(&done), "{done:?}");
        let health = node.shard.stats().health;
        assert_eq!((health.state, health.reason), (HealthState::Degraded, Some(Reason::SyncFailed)));
        assert_eq!(node.read(&dirty), Answer::Body(body(3, 6_000)), "a degraded disk is read");
        let removed = node.run(async |shard| shard.delete(&clean).await);
        assert!(is_disk_fault(&removed), "nothing would keep it from coming back: {removed:?}");
        let done = node.put(&key("back", "later"), &body(8, 300));
        assert!(matches!(done, PutDone::Failed(_)), "written through, and the link is down: {done:?}");
        come_back(&node);
        assert_eq!(node.shard.stats().health.counts.refounded, 1);
        // The key in doubt is in doubt no more, and its record never turns up again.
        assert!(matches!(node.put(&refused, &body(9, 3_000)), PutDone::Created(Durability::Disk)));
        assert!(matches!(node.run(async |shard| shard.delete(&refused).await), Removed::Done(Durability::Disk)));
        for n in 0..50 {
            let done = node.put(&key("back", &format!("after-{n}")), &body(200 + n, 2_000));
            assert!(matches!(done, PutDone::Created(Durability::Disk)));
        }
        if crashes {
            node.crash();
        }
        assert_eq!(node.read(&refused), Answer::Absent, "crashed: {crashes}");
        assert_eq!(node.read(&dirty), Answer::Body(body(3, 6_000)));
        for n in 0..50 {
            assert_eq!(node.read(&key("back", &format!("after-{n}"))), Answer::Body(body(200 + n, 2_000)));
        }
    }
}

#[test]
fn p7_a_disk_that_does_not_answer_fails_its_puts_and_takes_them_again_when_it_does() {
    let node = stocked();
    let patience = config().health.stalled;
    node.world.set_latency(Latency { spike_us: 40_000_000..40_000_001, ..Latency::default() });
    node.world.set_faults(Faults { latency_spike: OneIn::ALWAYS, ..Faults::default() });
    let began = node.world.runtime().now();
    let done = node.put(&key("back", "hung"), &body(7, 3_000));
    assert!(is_disk_fault(&done), "{done:?}");
    let waited = node.world.runtime().now().since(began);
    assert!(waited <= patience + Duration::from_secs(1), "{waited:?}");
    assert_eq!(node.shard.stats().health.reason, Some(Reason::Stalled));
    assert_eq!(state(&node), HealthState::Offline);
    come_back(&node);
    assert!(matches!(node.put(&key("back", "hung"), &body(8, 3_000)), PutDone::Created(Durability::Disk)));
    assert_eq!(node.read(&key("back", "hung")), Answer::Body(body(8, 3_000)));
}

#[test]
fn p7_a_full_file_system_keeps_nobody_waiting() {
    let node = stocked();
    node.origin.set_link(Link::Up);
    // Checkpoints find no space, so that the journal fills up.
    node.world.set_faults(Faults { no_space: OneIn::ALWAYS, ..Faults::default() });
    let mut through = 0;
    for n in 0..200 {
        let began = node.world.runtime().now();
        match node.put(&key("spill", &format!("k{n}")), &body(n, 300)) {
            PutDone::Created(Durability::Disk) => {}
            PutDone::Created(Durability::Origin) => through += 1,
            other => panic!("put {n}: {other:?}"),
        }
        assert!(node.world.runtime().now().since(began) < Duration::from_secs(30), "put {n}");
    }
    assert!(through > 0 && state(&node) != HealthState::Ok, "{:?}", node.shard.stats().health);
    come_back(&node);
    assert!(matches!(node.put(&key("spill", "well"), &body(999, 300)), PutDone::Created(Durability::Disk)));
}

#[test]
fn p7_a_disk_whose_writes_are_not_there_does_not_come_back() {
    let node = stocked();
    node.world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
    let _ = node.put(&key("back", "x"), &body(7, 300));
    node.world.set_faults(Faults { lost_write: OneIn::ALWAYS, ..Faults::default() });
    node.pass(Duration::from_secs(600));
    let health = node.shard.stats().health;
    assert_eq!((health.state, health.counts.probes_good), (HealthState::Offline, 0), "{health:?}");
    come_back(&node);
}

#[test]
fn a_node_whose_disk_is_bad_can_be_closed() {
    let node = stocked();
    node.world.set_faults(broken());
    let _ = node.put(&key("back", "x"), &body(7, 300));
    node.run(async |shard| shard.close().await);
    let done = node.run(async |shard| shard.put(put(&key("back", "y"), &body(8, 300), Durability::Disk)).await);
    assert!(matches!(done, PutDone::Declined(_)));
}
