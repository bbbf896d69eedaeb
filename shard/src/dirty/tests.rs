//! The order in which dirty records are flushed, without a flusher: by age, never twice at once, gently in an outage;
//! what becomes of superseded and of settled records (I9), and what each of them takes from the budget (I10). Time is
//! a number here.
#![allow(clippy::unwrap_used)]

use forebay_io::checksum::Digest;

use super::*;
use crate::store::{BeforeStore, Certainty};

fn record(volume: &str, name: u128, generation: u64, since_unix_ms: u64) -> Rc<DirtyRecord> {
    let kind = DirtyKind::Block { len_bytes: 100, digest: Digest(name), before: BeforeStore::Nothing };
    let key = BlockKey::new(volume.into(), format!("k{name}"));
    let (identity, generation) = (Identity(name), Generation(generation));
    Rc::new(DirtyRecord { key, identity, generation, kind, since_unix_ms, certainty: Certainty::Sure })
}

fn insert(queue: &DirtyQueue, record: &Rc<DirtyRecord>) {
    queue.insert(Rc::clone(record), queue.reserve(&record.kind).unwrap());
    queue.check();
}

fn flush(queue: &DirtyQueue, now: u64) -> Option<Rc<DirtyRecord>> {
    match queue.next(Nanos(now)) {
        Next::Flush(record) => Some(record),
        Next::At(_) | Next::Idle => None,
    }
}

#[test]
fn the_oldest_goes_first_across_volumes_and_failures_wait() {
    let queue = DirtyQueue::new(1 << 20);
    for (volume, name, since) in [("a", 1, 30), ("b", 2, 10), ("a", 3, 20)] {
        insert(&queue, &record(volume, name, name as u64, since));
    }
    let first = flush(&queue, 0).unwrap();
    assert_eq!(first.identity, Identity(2));
    queue.finished(&first, Finished::Retry(Nanos(1_000)));
    assert_eq!(flush(&queue, 0).unwrap().identity, Identity(3));
    assert_eq!(flush(&queue, 0).unwrap().identity, Identity(1));
    assert!(matches!(queue.next(Nanos(0)), Next::At(Nanos(1_000))));
    assert_eq!(flush(&queue, 1_000).unwrap().identity, Identity(2));
    queue.check();
}

#[test]
fn i9_a_superseded_flush_settles_nothing_and_the_newer_record_follows_it() {
    let queue = DirtyQueue::new(1 << 20);
    let (old, new) = (record("a", 1, 1, 10), record("a", 1, 2, 20));
    insert(&queue, &old);
    let in_hand = flush(&queue, 0).unwrap();
    insert(&queue, &new);
    assert!(flush(&queue, 0).is_none(), "never two flushes of a key at once");
    queue.finished(&in_hand, Finished::Done);
    queue.check();
    assert_eq!(flush(&queue, 0).unwrap().generation, Generation(2));
    queue.finished(&new, Finished::Done);
    assert_eq!((queue.budget().used_bytes(), queue.has_work()), (0, false));
}

#[test]
fn an_outage_lets_one_probe_through_at_a_time_and_its_end_lets_all() {
    let queue = DirtyQueue::new(1 << 20);
    (1..=5).for_each(|name| insert(&queue, &record("a", name, name as u64, name as u64)));
    insert(&queue, &record("b", 9, 9, 9));
    let probe = flush(&queue, 0).unwrap();
    queue.unreachable("a", Nanos(500));
    queue.finished(&probe, Finished::Retry(Nanos(900)));
    assert_eq!(flush(&queue, 0).unwrap().identity, Identity(9), "another volume goes on");
    assert!(matches!(queue.next(Nanos(0)), Next::At(Nanos(500))));
    let probe = flush(&queue, 500).unwrap();
    assert_eq!(probe.identity, Identity(2), "probes take turns");
    assert!(matches!(queue.next(Nanos(500)), Next::Idle));
    queue.reachable("a");
    queue.finished(&probe, Finished::Done);
    let rest: Vec<u128> = std::iter::from_fn(|| flush(&queue, 500)).map(|record| record.identity.0).collect();
    assert_eq!(rest, [1, 3, 4, 5]);
    queue.check();
}

#[test]
fn conflicts_are_kept_and_block_nothing() {
    let queue = DirtyQueue::new(1 << 20);
    insert(&queue, &record("a", 1, 1, 1));
    insert(&queue, &record("a", 2, 2, 2));
    let first = flush(&queue, 0).unwrap();
    queue.finished(&first, Finished::Conflict);
    assert_eq!(flush(&queue, 0).unwrap().identity, Identity(2));
    assert_eq!(
        queue.totals(),
        DirtyTotals { records: 2, conflicts: 1, lost: 0, flushing: 1, oldest_since_unix_ms: Some(1) }
    );
    assert_eq!(queue.list(9)[0].standing, Standing::Conflict);
    queue.check();
}

#[test]
fn i10_a_delete_takes_over_the_room_of_what_it_deletes() {
    let queue = DirtyQueue::new(100 + RECORD_BYTES);
    let block = record("a", 1, 1, 1);
    insert(&queue, &block);
    assert!(queue.reserve(&DirtyKind::Tombstone).is_none());
    let tombstone = DirtyRecord { kind: DirtyKind::Tombstone, generation: Generation(2), ..(*block).clone() };
    queue.insert_tombstone(Rc::new(tombstone), None);
    queue.check();
    assert_eq!(queue.budget().used_bytes(), RECORD_BYTES);
}
