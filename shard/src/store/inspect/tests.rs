//! Breaches that no flipped bit can make, because sums and chains catch those first: the state that recovery computed is
//! changed under the hands of `verify`, as a bug of recovery would, and each invariant is named.
//! What flipped bits do is tested on whole stores in `tests/store_inspect.rs`.

#![allow(clippy::unwrap_used)]

use std::rc::Rc;
use std::time::Duration;

use forebay_io::Runtime;
use forebay_io::checksum::Digest;
use forebay_io::sim::{SimDisk, SimWorld};

use super::super::block::{BeforeStore, Certainty, DirtyKind, DirtyRecord, NewBlock, NewKind};
use super::super::check::overlaps;
use super::super::entry::{Place, Proof};
use super::super::{Store, StoreConfig};
use super::report::Cost;
use super::*;
use crate::config::{DiskLimits, Geometry, SyncMode};
use crate::key::{BlockKey, Generation, Identity};
use crate::origin::Etag;

const GEOMETRY: Geometry = Geometry { region_bytes: 256 << 10, region_count: 8, journal_bytes: 64 << 10 };

fn owner() -> NodeIdentity {
    NodeIdentity { node: 1, shard: 0, shard_count: 1, identity_key: IdentityKey([3; 16]) }
}

/// Eight dirty blocks, their records in the journal.
fn example() -> SimWorld {
    let world = SimWorld::new(4);
    world.block_on(async {
        let (disk, runtime) = (world.disk(), world.runtime());
        Store::format(&disk, &runtime, GEOMETRY, &owner()).await.unwrap();
        let config = StoreConfig {
            node: owner(),
            sync: SyncMode::Always,
            commit_delay: Duration::ZERO,
            disk_limits: DiskLimits::default(),
        };
        let (store, _) = Store::open(disk, runtime.clone(), config).await.unwrap();
        for n in 0..8u8 {
            let (key, content) = (BlockKey::new("v".into(), format!("k{n}")), vec![n; 1500]);
            let (identity, generation, digest) = (store.identity(&key), store.next_generation(), Digest::of(&content));
            let kind = DirtyKind::Block { len_bytes: 1500, digest, before: BeforeStore::Nothing };
            let (since_unix_ms, certainty) = (runtime.unix_ms(), Certainty::Sure);
            let dirty = DirtyRecord { key: key.clone(), identity, generation, kind, since_unix_ms, certainty };
            let (etag, kind) = (Etag::Digest(digest), NewKind::Dirty(Rc::new(dirty)));
            let frames = vec![content.into()];
            store.append(NewBlock { key, identity, generation, frames, len_bytes: 1500, etag, kind }).await.unwrap();
        }
    });
    world.crash();
    world
}

/// What the index's part says after `break_it`.
fn index_faults(break_it: impl FnOnce(&mut super::super::state::State)) -> Vec<String> {
    let world = example();
    world.block_on(async {
        let inspector: Inspector<SimDisk> = Inspector::open(world.disk(), 0).await.unwrap();
        let slots = inspector.slots().await.unwrap();
        let mut recovery = inspector.recover(&world.runtime()).await.unwrap();
        break_it(&mut recovery.loaded.state);
        let part = inspector.judge_index(&slots, &recovery, "slab").await;
        assert!(part.findings.iter().all(|finding| finding.cost == Cost::Data));
        part.findings.into_iter().map(|finding| finding.what).collect()
    })
}

#[track_caller]
fn expect(faults: &[String], words: &str) {
    assert!(faults.iter().any(|fault| fault.contains(words)), "{words:?} is not among {faults:?}");
}

fn first(state: &super::super::state::State) -> Entry {
    state.index.slice_after(None, 1)[0]
}

#[test]
fn what_recovery_made_passes() {
    assert_eq!(index_faults(|_| {}), Vec::<String>::new());
}

#[test]
fn i11_a_lost_acknowledged_put_is_named() {
    expect(&index_faults(|state| state.take_out(first(state))), "I11: generation");
}

#[test]
fn i13_an_older_entry_is_named() {
    let faults = index_faults(|state| {
        let entry = first(state);
        let (at, older) = (entry.place().unwrap(), Generation(0));
        state.index.insert(Entry::block(entry.identity(), older, at, 1500, entry.proof(), EntryIs::Dirty));
    });
    expect(&faults, "I13:");
    expect(&faults, "I9: the dirty record is that of the entry");
}

#[test]
fn i9_a_dirty_block_that_passes_for_clean_is_named() {
    let faults = index_faults(|state| {
        let entry = first(state);
        assert!(state.mark_flushed(entry.identity(), entry.generation()));
    });
    expect(&faults, "I9: generation");
}

#[test]
fn i1_two_regions_of_one_epoch_are_named() {
    let faults = index_faults(|state| {
        let epoch = state.regions.at(first(state).place().unwrap().region).epoch;
        state.regions.at_mut(7).epoch = epoch;
    });
    expect(&faults, "have the same epoch");
}

#[test]
fn accounts_that_do_not_add_up_are_named() {
    expect(&index_faults(|state| state.dirty_bytes += 1), "I10:");
    expect(
        &index_faults(|state| state.regions.at_mut(first(state).place().unwrap().region).live += 1),
        "the account of",
    );
    let extension = index_faults(|state| {
        let sums = crate::outcome::PieceSums::Many(vec![1, 2].into());
        state.extensions.add(sums, None);
    });
    expect(&extension, "every extension belongs to one entry");
    expect(&index_faults(|state| state.next_generation = 2), "generations only grow");
}

#[test]
fn i1_blocks_that_share_bytes_are_named() {
    let block = |identity, place| {
        let at = Place { region: 2, place };
        Entry::block(Identity(identity), Generation(1), at, 1500, Proof::Sum(0), EntryIs::Clean)
    };
    assert!(overlaps(&[block(1, 0), block(2, 3)]).is_empty());
    let found = overlaps(&[block(1, 0), block(2, 2)]);
    assert!(found.len() == 1 && found[0].identity == Some(Identity(2)), "{found:?}");
}
