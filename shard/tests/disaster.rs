//! What the verbs make of records that came back from a damaged disk unsure: they are withheld until the origin was asked,
//! and nothing at the origin is overwritten or deleted for them (promises 1, 3 and 8). And what rotted stays lost across
//! restarts. The store's side stands in `store_damage.rs`.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code)]
mod node;

use std::time::Duration;

use forebay_io::sim::{Faults, OneIn};
use forebay_shard::dirty::Standing;
use forebay_shard::outcome::{DeclinedReason, Durability, Got, Headed, PutDone, Removed};
use forebay_shard::sim_origin::Link;
use forebay_shard::store::{Certainty, slab_name};
use node::{Answer, Node, body, config_without_memory, key};

const FLUSHES: Duration = Duration::from_secs(120);

/// Puts `a`, `b`, `c` and deletes `d`, then loses a durable frame behind all of them: nobody knows what it held.
fn unsure_node() -> Node {
    let mut node = Node::with_config(1, config_without_memory());
    node.origin.set_link(Link::Down);
    for (n, name) in (0..).zip(["a", "b", "c"]) {
        node.put(&key("back", name), &body(n, 6_000));
    }
    let deleted = node.run(async |shard| shard.delete(&key("back", "d")).await);
    assert!(matches!(deleted, Removed::Done(Durability::Disk)));
    node.put(&key("back", "gone"), &body(8, 6_000));
    node.put(&key("back", "last"), &body(9, 6_000));
    // Frame 1 opens the run, 2 the region; a, b, c, d, gone and last have one each.
    node.world.crash();
    node.world.flip_bit(&slab_name(0), 8192 + 6 * 4096 + 60, 1);
    let report = node.reopen();
    assert_eq!((report.salvaged, report.rejected.lost_frames), (1, 1), "{report:?}");
    assert_eq!((report.dirty_blocks, report.tombstones, report.unsure), (4, 1, 4), "only `last` is sure");
    node
}

fn is_withheld(node: &Node, name: &str) -> bool {
    let k = key("back", name);
    let got = node.run(async |shard| match shard.get(&k).await {
        Got::Declined(declined) => declined.reason == DeclinedReason::Unsettled,
        Got::Disk(located) => {
            shard.unpin(located.pin);
            false
        }
        _ => false,
    });
    let head = node.run(async |shard| shard.head(&k).await);
    let put = node.put(&k, &body(1, 6_000));
    let unsettled = |declined: &forebay_shard::outcome::Declined| declined.reason == DeclinedReason::Unsettled;
    got && matches!(&head, Headed::Declined(declined) if unsettled(declined))
        && matches!(&put, PutDone::Declined(declined) if unsettled(declined))
}

#[test]
fn unsure_blocks_are_withheld_until_the_origin_was_asked() {
    let node = unsure_node();
    for name in ["a", "b", "c", "d"] {
        assert!(is_withheld(&node, name), "{name}");
    }
    assert!(matches!(node.read(&key("back", "last")), Answer::Body(bytes) if bytes == body(9, 6_000)));
    assert!(node.shard.dirty_items(9).iter().filter(|item| item.certainty == Certainty::Unsure).count() == 4);
    // `a` was flushed before, `b` has other bytes, of `c` the origin knows nothing, `d` was stored again.
    node.origin.insert(&key("back", "a"), body(0, 6_000), None);
    node.origin.insert(&key("back", "b"), body(77, 500), None);
    node.origin.insert(&key("back", "d"), body(78, 500), None);
    node.origin.set_link(Link::Up);
    node.run(async |shard| shard.flush_all(FLUSHES).await);
    assert!(matches!(node.read(&key("back", "c")), Answer::Body(bytes) if bytes == body(2, 6_000)));
    assert_eq!(node.origin.body(&key("back", "c")), Some(body(2, 6_000)), "what was acknowledged is stored");
    assert_eq!(node.origin.body(&key("back", "b")), Some(body(77, 500)), "what is there is not overwritten");
    assert_eq!(node.origin.body(&key("back", "d")), Some(body(78, 500)), "nor deleted");
    assert!(is_withheld(&node, "b") && is_withheld(&node, "d"));
    let conflicts = node.shard.dirty_items(9).iter().filter(|item| item.standing == Standing::Conflict).count();
    assert!(conflicts >= 2, "kept and listed: {:?}", node.shard.dirty_items(9));
    node.shard.check();
}

#[test]
fn a_delete_by_a_client_ends_an_unsure_record() {
    let mut node = unsure_node();
    node.origin.insert(&key("back", "d"), body(78, 500), None);
    for name in ["b", "d"] {
        let deleted = node.run(async |shard| shard.delete(&key("back", name)).await);
        assert!(matches!(deleted, Removed::Done(Durability::Disk)), "{name}");
        assert!(matches!(node.read(&key("back", name)), Answer::Absent), "{name}");
    }
    node.crash();
    assert!(matches!(node.read(&key("back", "d")), Answer::Absent));
    assert!(is_withheld(&node, "a"), "still unsure after another restart");
    node.origin.set_link(Link::Up);
    node.run(async |shard| shard.flush_all(FLUSHES).await);
    assert_eq!(node.origin.body(&key("back", "d")), None, "this delete was sure");
    assert_eq!(node.origin.body(&key("back", "b")), None);
}

#[test]
fn a_lost_block_stays_lost_across_restarts_and_is_never_uploaded() {
    let mut node = Node::with_config(2, config_without_memory());
    let k = key("back", "k");
    node.origin.set_link(Link::Down);
    node.put(&k, &body(1, 20_000));
    node.pass(Duration::from_secs(1));
    node.origin.insert(&k, body(7, 10), None);
    node.world.set_faults(Faults { bit_flip: OneIn::ALWAYS, ..Faults::default() });
    assert!(matches!(node.read(&k), Answer::Lost));
    node.world.set_faults(Faults::default());
    for _ in 0..2 {
        let report = node.crash();
        assert_eq!((report.dirty_blocks, report.rejected.torn_payload), (1, 0), "it is listed, not taken for torn");
        node.origin.remove(&k);
        node.origin.set_link(Link::Up);
        let report = node.run(async |shard| shard.flush_all(FLUSHES).await);
        assert_eq!((report.flushed, report.remaining, report.lost), (0, 1, 1));
        assert_eq!(node.origin.body(&k), None, "never uploaded");
        assert!(matches!(node.read(&k), Answer::Lost));
        assert_eq!(node.shard.dirty_items(9)[0].standing, Standing::Lost);
        node.origin.set_link(Link::Down);
    }
}
