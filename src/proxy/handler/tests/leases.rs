//! Leases of hot blocks: given for clean blocks of a group with several members, and for nothing else.
//!
//! Part of the handler's tests. The windows in which a handler counts are real seconds: reads go on until a lease comes, within a bound.

use super::*;
use crate::lease::Lease;
use crate::proxy::respond::{FOREBAY_LEASE, FOREBAY_SPREAD};

/// More than two windows.
const BOUND: std::time::Duration = std::time::Duration::from_millis(2_500);

impl Bench {
    fn serve_group(&mut self, lease_members: u16) {
        let all = self.handler.served.borrow().all.as_ref().clone();
        self.handler.serve(&Arc::new(Served { lease_members, ..all }));
    }

    /// The first lease that reads of `key` are answered with, or none within the bound.
    fn lease(&self, key: &str, headers: &[(&str, &str)]) -> Option<Lease> {
        let began = Instant::now();
        while began.elapsed() < BOUND {
            let answer = self.get(key, headers);
            assert_eq!(answer.status, StatusCode::OK);
            if let Some(lease) = answer.headers.get(FOREBAY_LEASE) {
                return Some(Lease::parse(lease.to_str().unwrap()).unwrap());
            }
        }
        None
    }
}

#[test]
fn a_hot_clean_block_is_leased_to_at_most_the_members_there_are() {
    let mut bench = Bench::new();
    bench.serve_group(3);
    let etag = Etag::Digest(Digest::of(&content(100)));
    bench.place("hot", Place::Memory(content(100).into(), etag));
    let disk = bench.place_on_disk("hot-on-disk", &content(5_000), 0);
    assert_eq!(disk.state, EntryState::Clean);
    // A client may say what it likes.
    for (key, spread) in [("hot", "1"), ("hot", "65535"), ("hot", "nonsense"), ("hot-on-disk", "1")] {
        let lease = bench.lease(key, &[(FOREBAY_SPREAD.as_str(), spread)]).unwrap();
        assert!((2..=3).contains(&lease.members), "{lease}");
    }
    assert!(bench.metrics.snapshot().leases >= 4);
    let answer = bench.get("hot", &[(crate::origin::FOREBAY_PEER.as_str(), "1")]);
    assert!(!answer.headers.contains_key(FOREBAY_LEASE), "another member's question is no client's read");
}

#[test]
fn dirty_blocks_and_lone_members_are_not_leased() {
    let mut bench = Bench::new();
    let etag = Etag::Digest(Digest::of(&content(100)));
    bench.place("hot", Place::Memory(content(100).into(), etag));
    let disk = Located { state: EntryState::Dirty, ..bench.place_on_disk("hot-on-disk", &content(5_000), 0) };
    bench.place("hot-on-disk", Place::Disk(disk));
    assert_eq!(bench.lease("hot", &[]), None, "there is nobody else");
    bench.serve_group(3);
    bench.shelf.is_dirty.set(true);
    assert_eq!(bench.lease("hot", &[]), None, "the others don't have it");
    assert_eq!(bench.lease("hot-on-disk", &[]), None, "the others don't have it");
    assert_eq!(bench.metrics.snapshot().leases, 0);
    bench.shelf.is_dirty.set(false);
    assert!(bench.lease("hot", &[]).is_some(), "it was flushed");
}
