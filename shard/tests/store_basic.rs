//! The store's verbs on a simulated disk, one behaviour each: what is published, what a reopen brings back, what a pin,
//! a newer generation and a cleared validity prevent.
//! Each test opens a fresh disk of its own.
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;

use bench::{Bench, content, geometry, large_geometry, node};
use forebay_shard::store::{Appended, BeforeStore, Commit, EntryState, Found, Validity};

#[test]
fn i2_a_put_is_found_read_and_there_after_a_crash() {
    let bench = Bench::new(1, geometry());
    bench.run(async |store| {
        for (n, size) in [0usize, 1, 511, 512, 4095, 4096, 5000, 70_000].into_iter().enumerate() {
            let done = store.put(&format!("k{n}"), content(n as u64, size)).await.unwrap();
            assert_eq!(done, Appended::Published);
        }
    });
    bench.world.crash();
    bench.run(async |store| {
        for (n, size) in [0usize, 1, 511, 512, 4095, 4096, 5000, 70_000].into_iter().enumerate() {
            assert_eq!(store.read(&format!("k{n}")).await, Some(content(n as u64, size)));
        }
        store.store.check();
    });
}

#[test]
fn a_block_of_several_pieces_is_verified_piece_by_piece() {
    let bench = Bench::new(2, large_geometry());
    let big = content(7, (2 << 20) + 12_345);
    bench.run(async |store| {
        store.put("big", big.clone()).await.unwrap();
        assert_eq!(store.read("big").await.as_ref(), Some(&big));
    });
    bench.world.crash();
    bench.run(async |store| {
        assert_eq!(store.read("big").await.as_ref(), Some(&big));
        let found = store.find("big").unwrap();
        assert!(matches!(found, Found::Block { etag: Some(_), state: EntryState::Dirty, .. }), "{found:?}");
    });
}

#[test]
fn i6_a_fill_whose_validity_was_cleared_is_never_published() {
    let bench = Bench::new(3, geometry());
    bench.run(async |store| {
        let validity = Validity::default();
        let fill = store.fill("k", content(1, 3000), validity.clone(), Commit::Lazy);
        validity.clear();
        assert_eq!(fill.await.unwrap(), Appended::Invalidated);
        assert!(store.find("k").is_none());
    });
    bench.run(async |store| assert!(store.find("k").is_none()));
}

/// Seed 2022712 found it: recovery took such a block for overtaken, and a pin that it had was gone.
#[test]
fn i13_a_fill_is_not_published_after_a_newer_one_that_is_gone_again() {
    let bench = Bench::new(15, geometry());
    bench.run(async |store| {
        let older = store.fill("k", content(1, 3000), Validity::default(), Commit::Lazy);
        store.fill("k", content(1, 3000), Validity::default(), Commit::Durable).await.unwrap();
        store.store.remove(store.identity("k"), store.generation("k").unwrap()).await.unwrap();
        assert_eq!(older.await.unwrap(), Appended::Invalidated);
        let next = store.fill("k", content(1, 3000), Validity::default(), Commit::Lazy).await;
        assert_eq!(next.unwrap(), Appended::Published);
    });
}

#[test]
fn i4_a_fill_never_replaces_a_dirty_block() {
    let bench = Bench::new(4, geometry());
    bench.run(async |store| {
        store.put("k", content(1, 3000)).await.unwrap();
        let filled = store.fill("k", content(2, 3000), Validity::default(), Commit::Lazy).await.unwrap();
        assert_eq!(filled, Appended::Invalidated);
        assert_eq!(store.read("k").await, Some(content(1, 3000)));
    });
}

#[test]
fn i9_only_the_confirmed_generation_becomes_clean() {
    let bench = Bench::new(5, geometry());
    bench.run(async |store| {
        store.put("k", content(1, 100)).await.unwrap();
        let first = store.generation("k").unwrap();
        store.put("k", content(2, 100)).await.unwrap();
        store.store.flushed(store.identity("k"), first);
        assert_eq!(store.state("k"), Some(EntryState::Dirty));
        assert_eq!(store.store.dirty_bytes(), 100);
        let second = store.generation("k").unwrap();
        store.store.flushed(store.identity("k"), second);
        assert_eq!(store.state("k"), Some(EntryState::Clean));
        assert_eq!(store.store.dirty_bytes(), 0);
    });
}

#[test]
fn a_tombstone_stays_until_it_is_flushed_and_a_put_over_it_deletes_first() {
    let bench = Bench::new(6, geometry());
    bench.run(async |store| {
        store.put("k", content(1, 100)).await.unwrap();
        store.delete("k").await.unwrap();
        store.delete("other").await.unwrap();
        assert!(matches!(store.find("k"), Some(Found::Tombstone { .. })));
    });
    bench.world.crash();
    let dirty =
        bench.run(async |store| store.recovered.dirty.iter().map(|r| r.key.key.to_string()).collect::<Vec<_>>());
    assert_eq!(dirty, ["k", "other"]);
    bench.run(async |store| {
        store.put_after("k", content(2, 100), BeforeStore::Delete).await.unwrap();
        let generation = store.generation("other").unwrap();
        store.store.flushed(store.identity("other"), generation);
        assert!(store.find("other").is_none());
        store.store.close().await;
    });
    bench.run(async |store| {
        assert!(store.find("other").is_none());
        assert_eq!(store.recovered.dirty.len(), 1);
        assert_eq!(store.read("k").await, Some(content(2, 100)));
    });
}

#[test]
fn removed_blocks_stay_removed() {
    let bench = Bench::new(7, geometry());
    bench.run(async |store| {
        store.fill("k", content(1, 100), Validity::default(), Commit::Durable).await.unwrap();
        let generation = store.generation("k").unwrap();
        store.store.remove(store.identity("k"), generation).await.unwrap();
        assert!(store.find("k").is_none());
        store.put("dirty", content(2, 100)).await.unwrap();
        store.store.remove(store.identity("dirty"), store.generation("dirty").unwrap()).await.unwrap();
        assert!(store.find("dirty").is_some(), "I4");
    });
    bench.world.crash();
    bench.run(async |store| {
        assert!(store.find("k").is_none());
        assert!(store.find("dirty").is_some());
    });
}

#[test]
fn a_formatted_disk_is_never_formatted_again_nor_opened_by_another_node() {
    let bench = Bench::new(8, geometry());
    bench.run(async |store| store.put("k", content(1, 100)).await.unwrap());
    assert!(bench.format().is_err());
    let mut other = node();
    other.node += 1;
    assert!(bench.open_as(other).is_err());
    let mut fewer = node();
    fewer.shard_count += 1;
    assert!(bench.open_as(fewer).is_err());
}
