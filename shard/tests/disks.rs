//! Several disks in a shard: each its own failure domain, and no key ever older on one than on another. I3, I4, I11, I13 and
//! promises 1, 3 and 7 when disks are added, taken away, fail, go missing and come back with what they had.
//!
//! Run with all tests, in virtual time. Keys are many and few are asked for by name, so that both disks have their share.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;
#[path = "support/rack.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod rack;

use std::time::Duration;

use forebay_io::sim::{Faults, Latency, OneIn};
use forebay_shard::disks::Strays;
use forebay_shard::health::{HealthState, Reason};
use forebay_shard::key::BlockKey;
use forebay_shard::outcome::{DeclinedReason, Durability, Headed, PinDone, PutDone, Removed, UnpinDone};
use forebay_shard::sim_origin::Link;
use forebay_shard::store::Pinning;
use node::{body, key};
use rack::{Answer, Rack, content, count, numbered};

const KEYS: u64 = 40;

const SETTLING: Duration = Duration::from_secs(60);

#[test]
fn i11_every_disk_recovers_its_own_share_and_adding_one_moves_only_its_share() {
    let mut rack = Rack::new(&["a", "b", "c"]);
    rack.open(&["a", "b"], Strays::None);
    rack.put_all(0..KEYS);
    let before = rack.places(0..KEYS);
    assert!(count(&before, 0) >= 10 && count(&before, 1) >= 10, "{before:?}");
    rack.open(&["a", "b"], Strays::None);
    assert_eq!(rack.places(0..KEYS), before, "after a power cut each is where it was");
    assert!(rack.shard().is_settled());
    // One more disk: what is dirty is found where it lies, and goes home when the origin has it.
    rack.open(&["a", "b", "c"], Strays::Possible);
    assert_eq!(rack.places(0..KEYS), before);
    let strays: u64 = rack.shard().stats().disks.iter().map(|disk| disk.strays).sum();
    assert!((4..=24).contains(&strays) && !rack.shard().is_settled(), "{strays}");
    rack.flush();
    rack.pass(SETTLING);
    assert!(rack.shard().is_settled());
    let kept =
        (0..KEYS).filter(|n| matches!(rack.get(&numbered(*n)), Answer::Body(_, disk) if disk == before[*n as usize]));
    assert_eq!(kept.count() as u64, KEYS - strays, "only the share of the new disk has moved");
    rack.pass(SETTLING);
    let after = rack.places(0..KEYS);
    assert_eq!(count(&after, 2) as u64, strays);
    assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == 2));
    // A power cut may take fills that no sync covered, and nothing else.
    rack.open(&["a", "b", "c"], Strays::None);
    for n in 0..KEYS {
        match rack.get(&numbered(n)) {
            Answer::Body(bytes, disk) => assert!(bytes == content(n) && disk == after[n as usize]),
            Answer::Filled(bytes) => assert!(bytes == content(n) && after[n as usize] == 2),
            other => panic!("{n}: {other:?}"),
        }
    }
}

#[test]
fn i13_a_put_or_delete_over_a_stray_supersedes_it_whatever_the_power_does() {
    let mut rack = Rack::new(&["a", "b"]);
    rack.open(&["a"], Strays::None);
    rack.put_all(0..KEYS);
    rack.open(&["a", "b"], Strays::Possible);
    for n in 0..KEYS {
        assert!(matches!(rack.delete(&numbered(n)), Removed::Done(Durability::Disk)));
        if n % 2 == 0 {
            assert!(matches!(rack.put(&numbered(n), &body(900 + n, 500)), PutDone::Created(Durability::Disk)));
        }
    }
    let expect = |rack: &Rack| {
        for n in 0..KEYS {
            match rack.get(&numbered(n)) {
                Answer::Body(bytes, _) if n % 2 == 0 => assert_eq!(bytes, body(900 + n, 500)),
                Answer::Filled(bytes) if n % 2 == 0 => assert_eq!(bytes, body(900 + n, 500)),
                Answer::Absent if n % 2 == 1 => {}
                other => panic!("{n}: {other:?}"),
            }
        }
    };
    expect(&rack);
    rack.open(&["a", "b"], Strays::Possible);
    expect(&rack);
    rack.flush();
    expect(&rack);
    // The settler is cut off anywhere.
    for ms in [1, 30, 250, 400, 2_000] {
        rack.pass(Duration::from_millis(ms));
        rack.open(&["a", "b"], Strays::Possible);
        expect(&rack);
    }
    rack.pass(SETTLING);
    rack.open(&["a", "b"], Strays::None);
    expect(&rack);
    assert!(rack.shard().is_settled());
    // What had to go from the first disk is gone from it for good.
    rack.origin.set_link(Link::Down);
    rack.open(&["a"], Strays::None);
    let left = (0..KEYS).filter(|n| matches!(rack.get(&numbered(*n)), Answer::Body(..))).count();
    assert!(left < 20, "{left} of 20 are on the first disk still");
}

#[test]
fn i14_what_is_pinned_stays_where_it_lies_when_the_set_changes_until_it_is_unpinned() {
    for is_flushed in [false, true] {
        let mut rack = Rack::new(&["a", "b"]);
        rack.open(&["a"], Strays::None);
        rack.put_all(0..KEYS);
        let pins: Vec<BlockKey> = (0..KEYS).filter(|n| n % 4 < 3).map(numbered).collect();
        for pin in &pins {
            let shard = rack.shard().clone();
            assert!(matches!(rack.world.block_on(async { shard.pin(pin).await }), PinDone::Done));
        }
        // Clean when the set changes, or dirty then and flushed after.
        if is_flushed {
            rack.flush();
        }
        let are_pinned = |rack: &Rack| {
            let pinned = pins.iter().filter(|pin| rack.shard().pinning(pin) == Pinning::Pinned);
            assert_eq!(pinned.count(), pins.len());
            assert!(pins.iter().all(|pin| matches!(rack.get(pin), Answer::Body(_, 0))), "they are where they were");
        };
        rack.open(&["a", "b"], Strays::Possible);
        are_pinned(&rack);
        rack.flush();
        rack.pass(SETTLING);
        are_pinned(&rack);
        assert!(!rack.shard().is_settled());
        rack.open(&["a", "b"], Strays::Possible);
        are_pinned(&rack);
        for pin in &pins {
            let shard = rack.shard().clone();
            assert!(matches!(rack.world.block_on(async { shard.unpin_block(pin).await }), UnpinDone::Done));
        }
        rack.pass(SETTLING);
        assert!(rack.shard().is_settled(), "what nobody pins any more goes home");
        assert!((0..KEYS).all(
            |n| matches!(rack.get(&numbered(n)), Answer::Body(bytes, _) | Answer::Filled(bytes) if bytes == content(n))
        ));
    }
}

/// Two disks with an entry of one key each, as nothing but a mistake outside of the node can leave them.
fn torn_apart(newer: impl Fn(&Rack, &BlockKey)) -> Rack {
    let mut rack = Rack::new(&["a", "b"]);
    rack.open(&["a"], Strays::None);
    rack.put_all(0..KEYS);
    rack.open(&["b"], Strays::None);
    // Later numbers than the first disk ever drew.
    let other = key("back", "other");
    for n in 0..3 * KEYS {
        rack.put(&other, &body(n, 10));
        rack.delete(&other);
    }
    (0..KEYS).for_each(|n| newer(&rack, &numbered(n)));
    rack
}

#[test]
fn i13_of_two_entries_of_a_key_the_newer_counts_and_the_older_is_gone_for_good() {
    let put_newer = |rack: &Rack, key: &BlockKey| {
        assert!(matches!(rack.put(key, &body(5, 700)), PutDone::Created(Durability::Disk)));
    };
    let delete = |rack: &Rack, key: &BlockKey| {
        assert!(matches!(rack.delete(key), Removed::Done(Durability::Disk)));
    };
    for strays in [Strays::Possible, Strays::None] {
        let mut rack = torn_apart(put_newer);
        rack.open(&["a", "b"], strays);
        for n in 0..KEYS {
            assert_eq!(rack.get(&numbered(n)), Answer::Body(body(5, 700), 1), "{n}");
        }
        rack.open(&["a"], Strays::None);
        assert!((0..KEYS).all(|n| !matches!(rack.get(&numbered(n)), Answer::Body(..))), "the older are gone durably");
        let mut rack = torn_apart(delete);
        rack.open(&["b", "a"], strays);
        assert!((0..KEYS).all(|n| rack.get(&numbered(n)) == Answer::Absent));
        rack.open(&["a"], Strays::None);
        assert_eq!(rack.shard().stats().dirty_records, 0);
    }
    // A newer clean one: the origin has what counts.
    let mut rack = torn_apart(put_newer);
    rack.flush();
    rack.open(&["a", "b"], Strays::Possible);
    rack.pass(SETTLING);
    for n in 0..KEYS {
        match rack.get(&numbered(n)) {
            Answer::Body(bytes, _) | Answer::Filled(bytes) => assert_eq!(bytes, body(5, 700), "{n}"),
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(rack.shard().stats().dirty_records, 0);
}

#[test]
fn p3_what_may_be_dirty_on_a_missing_disk_is_neither_absent_nor_the_origins() {
    let mut rack = Rack::new(&["a", "b"]);
    rack.open(&["a", "b"], Strays::None);
    rack.put_all(0..KEYS);
    let before = rack.places(0..KEYS);
    rack.open(&["a", "!b"], Strays::None);
    rack.origin.set_link(Link::Up);
    let stats = rack.shard().stats();
    assert_eq!(stats.disks[1].away.as_deref(), Some("not mounted"));
    assert_eq!(
        (stats.disks[1].health.state, stats.disks[1].health.reason),
        (HealthState::Offline, Some(Reason::NotOpened))
    );
    for n in 0..KEYS {
        let k = numbered(n);
        match before[n as usize] {
            0 => assert!(matches!(rack.get(&k), Answer::Body(bytes, 0) if bytes == content(n))),
            _ => {
                // Something older may be at the origin.
                rack.origin.insert(&k, body(77, 50), None);
                assert_eq!(rack.get(&k), Answer::Declined(DeclinedReason::DiskFault));
                let shard = rack.shard().clone();
                assert!(matches!(rack.world.block_on(async { shard.head(&k).await }), Headed::Declined(_)));
                assert!(matches!(rack.put(&k, &content(n)), PutDone::Declined(_)));
                assert!(matches!(rack.delete(&k), Removed::Declined(_)));
                assert!(matches!(rack.world.block_on(async { shard.purge(&k).await }), Removed::Declined(_)));
                rack.origin.remove(&k);
            }
        }
    }
    // A volume that is never written back can't be dirty there: its share is passed by.
    let through: Vec<BlockKey> = (0..KEYS).map(|n| key("through", &format!("t{n}"))).collect();
    through.iter().for_each(|k| rack.origin.insert(k, body(3, 100), None));
    for _ in 0..2 {
        let filled = through.iter().map(|k| rack.get(k));
        assert!(
            filled.into_iter().all(
                |answer| matches!(&answer, Answer::Filled(bytes) | Answer::Body(bytes, 0) if *bytes == body(3, 100))
            )
        );
        rack.pass(Duration::from_secs(1));
    }
    let on_disk = through.iter().filter(|k| matches!(rack.get(k), Answer::Body(..))).count();
    assert!((10..=30).contains(&on_disk), "{on_disk}");
    // New blocks of its own share are taken as ever.
    let taken = (KEYS..2 * KEYS)
        .filter(|n| matches!(rack.put(&numbered(*n), &content(*n)), PutDone::Created(Durability::Disk)));
    assert!(taken.count() >= 10);
    // It comes back with all it had.
    rack.open(&["a", "b"], Strays::None);
    assert_eq!(rack.places(0..KEYS), before);
    rack.flush();
    assert!((0..KEYS).all(|n| rack.origin.body(&numbered(n)) == Some(content(n))));
}

#[test]
fn a_set_that_changed_while_a_disk_is_missing_answers_for_no_key_that_may_be_there() {
    let mut rack = Rack::new(&["a", "b", "c"]);
    rack.open(&["a", "b"], Strays::None);
    rack.put_all(0..KEYS);
    let before = rack.places(0..KEYS);
    // A third disk is new, the second is missing: what the third would get may lie on the second.
    rack.open(&["a", "!b", "c"], Strays::Possible);
    for n in 0..KEYS {
        match (before[n as usize], rack.get(&numbered(n))) {
            (0, Answer::Body(bytes, 0)) => assert_eq!(bytes, content(n)),
            (1, answer) => assert_eq!(answer, Answer::Declined(DeclinedReason::DiskFault)),
            (_, answer) => panic!("{n}: {answer:?}"),
        }
    }
    assert!(matches!(rack.put(&key("back", "new"), &body(1, 10)), PutDone::Declined(_)));
    rack.flush();
    rack.pass(SETTLING);
    rack.open(&["a", "b", "c"], Strays::Possible);
    rack.flush();
    rack.pass(SETTLING);
    assert!(rack.shard().is_settled());
    for n in 0..KEYS {
        assert!(
            matches!(rack.get(&numbered(n)), Answer::Body(bytes, _) | Answer::Filled(bytes) if bytes == content(n))
        );
    }
}

#[test]
fn p7_a_disk_that_fails_costs_its_own_part_only() {
    let mut rack = Rack::new(&["a", "b"]);
    rack.open(&["a", "b"], Strays::None);
    rack.put_all(0..KEYS);
    let before = rack.places(0..KEYS);
    let all = OneIn::ALWAYS;
    let broken = Faults {
        only: "b:".into(),
        read_error: all,
        write_error: all,
        sync_error: all,
        no_space: all,
        ..Faults::default()
    };
    rack.world.set_faults(broken);
    // Its first put is what notices; with the origin away nothing can be written through.
    for n in KEYS..3 * KEYS {
        rack.put(&numbered(n), &content(n));
    }
    rack.pass(Duration::from_secs(120));
    assert_eq!(rack.states(), [HealthState::Ok, HealthState::Offline]);
    assert_eq!(
        rack.shard().dirty_items(1_000).iter().filter(|item| before_on(&before, &item.key) == Some(1)).count(),
        count(&before, 1),
        "what is dirty there stays listed"
    );
    for n in 0..KEYS {
        match (before[n as usize], rack.get(&numbered(n))) {
            (0, Answer::Body(bytes, 0)) => assert_eq!(bytes, content(n)),
            (1, answer) => assert_eq!(answer, Answer::Declined(DeclinedReason::DiskFault)),
            (_, answer) => panic!("{n}: {answer:?}"),
        }
    }
    let acknowledged = (5 * KEYS..6 * KEYS)
        .filter(|n| matches!(rack.put(&numbered(*n), &content(*n)), PutDone::Created(Durability::Disk)));
    assert!(acknowledged.count() >= 10, "the other disk takes its part");
    rack.world.set_faults(Faults::default());
    rack.pass(Duration::from_secs(600));
    assert_eq!(rack.states(), [HealthState::Ok, HealthState::Ok]);
    assert_eq!(rack.places(0..KEYS), before);
    rack.flush();
    assert!((0..KEYS).all(|n| rack.origin.body(&numbered(n)) == Some(content(n))));
}

fn before_on(before: &[u16], key: &BlockKey) -> Option<u16> {
    let number: usize = key.key.strip_prefix('k')?.parse().ok()?;
    before.get(number).copied()
}

#[test]
fn a_disk_that_can_t_be_opened_is_away_and_one_alone_keeps_the_shard_from_opening() {
    let mut rack = Rack::new(&["a", "b"]);
    rack.open(&["a", "b"], Strays::None);
    rack.put_all(0..KEYS);
    let before = rack.places(0..KEYS);
    // Its slab is gone.
    rack.world.crash();
    rack.world.rename_disk("b", "z");
    rack.open(&["a", "b"], Strays::None);
    assert!(
        rack.shard().stats().disks[1]
            .away
            .as_deref()
            .is_some_and(|why| why.contains("missing") || why.contains("slab"))
    );
    let there = (0..KEYS).filter(|n| matches!(rack.get(&numbered(*n)), Answer::Body(..))).count();
    assert_eq!(there, count(&before, 0));
    assert!(rack.try_open(&["b"], Strays::None).is_err());
    rack.world.crash();
    rack.world.rename_disk("z", "b");
    rack.open(&["a", "b"], Strays::None);
    assert_eq!(rack.places(0..KEYS), before);
    // Given up for good: its place is taken by an empty one, and what it had is asked of the origin.
    rack.world.crash();
    rack.world.lose_disk("b");
    rack.format("b");
    rack.origin.set_link(Link::Up);
    rack.open(&["a", "b"], Strays::Possible);
    assert!(
        (0..KEYS).all(|n| matches!(
            (before[n as usize], rack.get(&numbered(n))),
            (0, Answer::Body(..)) | (1, Answer::Absent)
        ))
    );
}

#[test]
fn p7_a_disk_that_does_not_answer_holds_up_no_flush_of_the_others() {
    let mut rack = Rack::new(&["a", "b"]);
    rack.open(&["a", "b"], Strays::None);
    rack.put_all(0..KEYS);
    let before = rack.places(0..KEYS);
    // No operation on it ends within hours.
    let hours = 20_000_000_000..20_000_000_001;
    rack.world.set_latency(Latency { spike_us: hours, ..Latency::default() });
    rack.world.set_faults(Faults { only: "b:".into(), latency_spike: OneIn::ALWAYS, ..Faults::default() });
    rack.origin.set_link(Link::Up);
    rack.world.run_for(Duration::from_secs(900)).unwrap();
    assert_eq!(rack.states(), [HealthState::Ok, HealthState::Offline]);
    for n in 0..KEYS {
        let is_flushed = rack.origin.body(&numbered(n)).is_some();
        assert!(is_flushed || before[n as usize] == 1, "{n}: on a disk that is well, and not flushed");
    }
}
