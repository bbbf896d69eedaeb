//! Crashes and damage on purpose: a power cut at every write of a short history, torn and rotten journals, slots and
//! superblocks, failed syncs and writes, a full store, reclaim of dirty regions under pins.
//! Each asserts what recovery counts as rejected, and that what was acknowledged is there (I3, I4, I11, I13).
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;
#[path = "store_support/model.rs"]
mod model;

use bench::{Bench, content, geometry};
use forebay_io::sim::{Faults, OneIn};
use forebay_shard::error::StoreError;
use forebay_shard::store::{Appended, Commit, EntryState, RecoveredBy, RejectedCounts, Validity};
use model::Model;

const JOURNAL_AT: u64 = 8192;

/// A short history with every kind of change, a checkpoint in the middle.
async fn history(store: &bench::Opened, model: &Model) {
    for n in 0..4 {
        assert!(model.lock(&format!("k{n}")));
        model.put(store, &format!("k{n}"), n, 700 + 3000 * n as usize).await;
    }
    assert!(model.lock("k1") && model.lock("k2"));
    model.delete(store, "k1").await;
    model.put(store, "k2", 20, 5000).await;
    model.flush(store, "k0");
    model.fill(store, "f", 30, 9000).await;
    store.store.checkpoint().await.unwrap();
    assert!(model.lock("k3"));
    model.put(store, "k3", 40, 100).await;
    model.flush(store, "k1");
    assert!(model.lock("f"));
    model.remove(store, "f").await;
    assert!(model.lock("k1"));
    model.put(store, "k1", 50, 2000).await;
    model.flush(store, "k2");
    store.store.checkpoint().await.unwrap();
    assert!(model.lock("k4"));
    model.put(store, "k4", 60, 4096).await;
}

#[test]
fn i11_i13_a_power_cut_at_any_write_loses_nothing_acknowledged() {
    let mut cuts = 0;
    for seed in 0..6 {
        for cut in 1.. {
            let bench = Bench::new(seed, geometry());
            let model = Model::default();
            bench.world.crash_at(bench.world.changes() + cut);
            let outcome = bench.world.run(async { history(&bench.open().await.unwrap(), &model).await });
            let is_over = outcome.is_ok();
            // Again during recovery, at each of its own writes.
            bench.world.crash();
            bench.world.crash_at(bench.world.changes() + cut % 7 + 1);
            let _ = bench.world.run(async { bench.open().await.unwrap() });
            bench.world.crash();
            bench.world.block_on(async {
                let store = bench.open().await.unwrap();
                store.store.check();
                model.judge(&store).await;
                assert!(model.lock("after"));
                assert!(model.put(&store, "after", 70, 3000).await, "a recovered store takes writes");
            });
            cuts += 1;
            if is_over {
                break;
            }
        }
    }
    assert!(cuts > 6 * 30, "{cuts} cuts are the whole history");
}

#[test]
fn a_damaged_newest_checkpoint_slot_is_replaced_by_the_one_before_and_the_journal() {
    for extra in 0..2 {
        let bench = Bench::new(extra, geometry());
        let model = Model::default();
        let slot = bench.run(async |store| {
            history(store, &model).await;
            for _ in 0..extra {
                store.store.checkpoint().await.unwrap();
            }
            // Format wrote number 0; number n lies in slot n mod 2.
            store.store.stats().checkpoints % 2
        });
        bench.world.flip_bit(&format!("shard-000.checkpoint-{slot}"), 4096 + 60, 2);
        bench.run(async |store| {
            assert_eq!(store.recovered.rejected.checkpoint_slots, 1, "slot {slot}");
            model.judge(store).await;
            // The next checkpoint repairs the damaged slot.
            store.store.checkpoint().await.unwrap();
        });
        bench.run(async |store| {
            assert_eq!(store.recovered.rejected.checkpoint_slots, 0);
            model.judge(store).await;
        });
    }
}

#[test]
fn two_damaged_slots_are_a_disaster_that_loses_nothing_dirty() {
    let bench = Bench::new(1, geometry());
    let model = Model::default();
    bench.run(async |store| history(store, &model).await);
    bench.world.flip_bit("shard-000.checkpoint-0", 50, 1);
    bench.world.flip_bit("shard-000.checkpoint-1", 50, 1);
    bench.run(async |store| {
        assert_eq!(store.recovered.by, RecoveredBy::Salvage);
        assert_eq!(store.recovered.rejected.checkpoint_slots, 2);
        model.judge(store).await;
    });
    bench.run(async |store| {
        assert_eq!(store.recovered.by, RecoveredBy::Journal, "once is enough");
        assert_eq!(store.recovered.rejected, RejectedCounts::default());
        model.judge(store).await;
    });
}

#[test]
fn either_copy_of_the_superblock_will_do_and_is_repaired() {
    for copy in 0..2u64 {
        let bench = Bench::new(copy, geometry());
        bench.run(async |store| store.put("k", content(1, 5000)).await.unwrap());
        bench.world.flip_bit(&forebay_shard::store::slab_name(0), copy * 4096 + 20, 3);
        for repaired in [1, 0] {
            bench.run(async |store| {
                assert_eq!(store.recovered.rejected.superblocks, repaired, "copy {copy}");
                assert_eq!(store.read("k").await, Some(content(1, 5000)));
            });
        }
    }
}

#[test]
fn a_torn_last_frame_ends_the_journal_and_a_rotten_durable_one_costs_what_it_held() {
    let slab = forebay_shard::store::slab_name(0);
    // Frame 1 opens the run, 2 opens a region, 3, 4 and 5 hold a put each.
    let frame_at = |number: u64| JOURNAL_AT + (number - 1) * 4096;
    for (damaged, is_last) in [(5, true), (4, false)] {
        let bench = Bench::new(damaged, geometry());
        bench.run(async |store| {
            for n in 0..3 {
                store.put(&format!("k{n}"), content(n, 3000)).await.unwrap();
            }
        });
        bench.world.flip_bit(&slab, frame_at(damaged) + 60, 1);
        if is_last {
            bench.run(async |store| {
                assert_eq!(store.recovered.rejected.torn_frames, 1);
                assert!(store.find("k1").is_some() && store.find("k2").is_none());
            });
        } else {
            bench.run(async |store| {
                assert_eq!((store.recovered.by, store.recovered.rejected.lost_frames), (RecoveredBy::Salvage, 1));
                assert_eq!(store.read("k0").await, Some(content(0, 3000)));
                assert_eq!(store.read("k2").await, Some(content(2, 3000)));
                assert_eq!(store.recovered.unsure, 1, "k0 may have been deleted by the frame that is gone");
                assert!(store.find("k1").is_none(), "its region was open: only its frame named it");
            });
        }
    }
}

#[test]
fn a_payload_in_doubt_that_does_not_verify_never_hides_an_older_block() {
    let slab = forebay_shard::store::slab_name(0);
    let bench = Bench::new(9, geometry());
    let region_at = bench.run(async |store| {
        store.put("k", content(1, 5000)).await.unwrap();
        store.put("k", content(2, 5000)).await.unwrap();
        let located = store.store.locate(store.identity("k")).unwrap();
        located.offset
    });
    bench.world.flip_bit(&slab, region_at + 100, 1);
    for life in 0..3 {
        bench.run(async |store| {
            assert_eq!(store.recovered.rejected.torn_payload, u64::from(life == 0));
            assert_eq!(store.read("k").await, Some(content(1, 5000)), "life {life}");
            store.put("other", content(life, 100)).await.unwrap();
        });
    }
}

#[test]
fn i3_a_failed_sync_acknowledges_nobody_and_ends_all_writes() {
    let bench = Bench::new(11, geometry());
    bench.run(async |store| {
        store.put("before", content(1, 3000)).await.unwrap();
        bench.world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
        let (a, b) = futures::join!(store.put("a", content(2, 3000)), store.delete("before"));
        assert!(matches!((a, b), (Err(StoreError::Disk(_)), Err(StoreError::Disk(_)))));
        bench.world.set_faults(Faults::default());
        assert!(matches!(store.put("b", content(3, 3000)).await, Err(StoreError::Failed)));
        assert!(matches!(store.store.checkpoint().await, Err(StoreError::Failed)));
        assert_eq!(store.read("before").await, Some(content(1, 3000)), "reads go on");
        store.store.close().await;
    });
    assert_eq!(bench.world.fired().sync_error, 1, "a failed sync is never tried again");
}

#[test]
fn a_failed_write_quarantines_its_region_and_the_store_goes_on_in_another() {
    let bench = Bench::new(12, geometry());
    bench.run(async |store| {
        store.put("good", content(1, 3000)).await.unwrap();
        let faults = Faults { write_error: OneIn::ALWAYS, ..Faults::default() };
        bench.world.set_faults(faults);
        assert!(matches!(store.put("bad", content(2, 3000)).await, Err(StoreError::NotWritten(_))));
        bench.world.set_faults(Faults::default());
        assert!(store.find("bad").is_none());
        assert_eq!(store.put("next", content(3, 3000)).await.unwrap(), Appended::Published);
        assert_eq!(store.store.stats().regions_quarantined, 1);
        assert_eq!(store.read("good").await, Some(content(1, 3000)), "what was good is served");
    });
}

#[test]
fn i4_a_store_full_of_dirty_blocks_declines_and_takes_writes_again_after_a_flush() {
    let bench = Bench::new(13, geometry());
    bench.run(async |store| {
        let mut names = Vec::new();
        let full = loop {
            let name = format!("k{}", names.len());
            match store.put(&name, content(names.len() as u64, 40_000)).await {
                Ok(_) => names.push(name),
                Err(error) => break error,
            }
            assert!(names.len() < 100, "2 MiB hold at most 50 blocks of 40 KB");
        };
        assert!(matches!(full, StoreError::Full), "{full}");
        assert!(names.len() > 20, "{} blocks", names.len());
        store.store.check();
        for name in &names {
            assert_eq!(store.state(name), Some(EntryState::Dirty), "I4: {name}");
        }
        for name in &names[..names.len() / 2] {
            store.store.flushed(store.identity(name), store.generation(name).unwrap());
        }
        for n in 0..10 {
            store.put(&format!("more{n}"), content(n, 40_000)).await.unwrap();
        }
        for (n, name) in names.iter().enumerate().skip(names.len() / 2) {
            assert_eq!(store.read(name).await, Some(content(n as u64, 40_000)), "I4: {name}");
        }
    });
}

#[test]
fn i4_i7_reclaim_moves_dirty_blocks_and_waits_for_pins() {
    let bench = Bench::new(14, geometry());
    bench.run(async |store| {
        for n in 0..3 {
            store.put(&format!("dirty{n}"), content(n, 9000)).await.unwrap();
        }
        store.fill("pinned", content(7, 30_000), Validity::default(), Commit::Durable).await.unwrap();
        let pinned = store.store.locate(store.identity("pinned")).unwrap();
        // Twenty times the store: everything clean is evicted many times over.
        for n in 0..800 {
            let (size, name) = (30_000 + (n as usize * 977) % 20_000, format!("fill{}", n % 50));
            if n % 3 == 0 {
                store.put(&name, content(n, size)).await.unwrap();
                store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
            } else {
                store.fill(&name, content(n, size), Validity::default(), Commit::Lazy).await.unwrap();
            }
        }
        let stats = store.store.stats();
        assert!(stats.reclaimed > 50 && stats.evicted > 500 && stats.relocated >= 3, "{stats:?}");
        assert!(store.find("pinned").is_none(), "it was evicted");
        assert_eq!(store.store.read(&pinned).await.unwrap(), content(7, 30_000), "I7: and is still readable");
        store.store.unpin(pinned.pin);
        store.store.check();
        for n in 0..3 {
            assert_eq!(store.read(&format!("dirty{n}")).await, Some(content(n, 9000)), "I4");
        }
    });
    bench.run(async |store| {
        for n in 0..3 {
            assert_eq!(store.state(&format!("dirty{n}")), Some(EntryState::Dirty));
            assert_eq!(store.read(&format!("dirty{n}")).await, Some(content(n, 9000)), "I11");
        }
    });
}

#[test]
fn i11_the_journal_wraps_many_times_and_checkpoints_keep_up() {
    let bench = Bench::new(15, geometry());
    bench.run(async |store| {
        for n in 0..400 {
            let name = format!("k{}", n % 7);
            store.put(&name, content(n, 600)).await.unwrap();
            store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
        }
        let stats = store.store.stats();
        // 400 frames of a sector are 25 times the ring.
        assert!(stats.checkpoints >= 25 && stats.journal_used_bytes <= geometry().journal_bytes, "{stats:?}");
    });
    bench.run(async |store| {
        for n in 393..400 {
            assert_eq!(store.read(&format!("k{}", n % 7)).await, Some(content(n, 600)));
        }
    });
}
