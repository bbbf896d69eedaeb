//! Damage on purpose, one structure after the other and in every combination: checkpoint slots, journal, superblock copies,
//! footers. Each asserts what comes back, what is counted, and that nothing older than the newest readable version of a key
//! is taken for the newest (promise 3, I11, I13). What the verbs make of it stands in `disaster.rs`.
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;
#[path = "store_support/past.rs"]
mod past;

use std::time::Duration;

use bench::{Bench, Opened, content, node};
use forebay_io::sim::{Faults, OneIn};
use forebay_io::{Disk, DiskFile, OpenMode, Runtime};
use forebay_shard::error::StoreError;
use forebay_shard::store::{
    Certainty, Commit, EntryState, NodeIdentity, RecoveredBy, RejectedCounts, Validity, slab_name,
};
use past::{Ending, JOURNAL_AT, JOURNAL_BYTES, REGION_BYTES, REGIONS, geometry, missing, used};

fn damage_slot(bench: &Bench, slot: u64) {
    bench.world.flip_bit(&format!("shard-000.checkpoint-{slot}"), 4096 + 60, 2);
}

fn damage_journal(bench: &Bench, sectors: impl Iterator<Item = u64>) {
    sectors.for_each(|sector| bench.world.flip_bit(&slab_name(0), JOURNAL_AT + sector * 4096 + 60, 1));
}

fn damage_footer(bench: &Bench, region: u64) {
    let end = JOURNAL_AT + JOURNAL_BYTES + (region + 1) * REGION_BYTES;
    bench.world.flip_bit(&slab_name(0), end - 4096 + 60, 1);
}

#[test]
fn both_slots_gone_lose_nothing_and_are_sure_of_everything() {
    for ending in [Ending::Close, Ending::PowerCut] {
        for seed in 0..8 {
            let (bench, acknowledged) = used(seed, ending);
            damage_slot(&bench, 0);
            damage_slot(&bench, 1);
            bench.run(async |store| {
                assert_eq!(store.recovered.by, RecoveredBy::Salvage);
                assert_eq!(store.recovered.rejected.checkpoint_slots, 2);
                assert_eq!(missing(store, &acknowledged).await, 0, "seed {seed}, {ending:?}: {:?}", store.recovered);
                assert_eq!(store.recovered.unsure, 0, "the journal tells the rest");
                assert_eq!(store.recovered.dirty.len(), acknowledged.len(), "nothing flushed comes back");
                store.put("after", content(1, 100)).await.unwrap();
            });
            bench.run(async |store| {
                assert_eq!(store.recovered.by, RecoveredBy::Journal);
                assert_eq!(store.recovered.rejected, RejectedCounts::default());
                assert_eq!(missing(store, &acknowledged).await, 0);
                assert!(store.find("after").is_some());
            });
        }
    }
}

#[test]
fn every_combination_of_damage_opens_and_takes_nothing_older_for_the_newest() {
    for mask in 0..128u32 {
        let ending = if mask % 3 == 0 { Ending::Close } else { Ending::PowerCut };
        let (bench, acknowledged) = used(u64::from(mask), ending);
        let hit = |bit: u32| mask & (1 << bit) != 0;
        (0..2).filter(|slot| hit(*slot)).for_each(|slot| damage_slot(&bench, u64::from(slot)));
        if hit(2) {
            damage_journal(&bench, 0..1);
        }
        if hit(3) {
            damage_journal(&bench, 20..40);
        }
        if hit(4) {
            damage_journal(&bench, 63..64);
        }
        if hit(5) {
            bench.world.flip_bit(&slab_name(0), 4096 + 30, 1);
        }
        if hit(6) {
            (0..REGIONS).step_by(2).for_each(|region| damage_footer(&bench, region));
        }
        let (dirty, by, lost) = bench.run(async |store| {
            let Opened { recovered, .. } = store;
            let lost = missing(store, &acknowledged).await;
            assert_eq!(recovered.rejected.superblocks, u64::from(hit(5)), "{mask:07b}");
            let journal_hit = hit(2) || hit(3) || hit(4);
            let slots_and_footers_hit = hit(6) && hit(0) && hit(1);
            if !journal_hit && !slots_and_footers_hit {
                assert_eq!(lost, 0, "{mask:07b}: {recovered:?}");
            }
            let counts = recovered.rejected;
            assert!(
                lost == 0 || counts.lost_frames + counts.torn_frames + counts.footers > 0,
                "{mask:07b}: {counts:?}"
            );
            (recovered.dirty.len(), recovered.by, lost)
        });
        if hit(0) && hit(1) {
            assert_eq!(by, RecoveredBy::Salvage, "{mask:07b}");
        }
        bench.run(async |store| {
            assert_eq!(store.recovered.by, RecoveredBy::Journal, "{mask:07b}: once is enough");
            assert_eq!(store.recovered.dirty.len(), dirty, "{mask:07b}: nothing more is lost later");
            assert_eq!(missing(store, &acknowledged).await, lost, "{mask:07b}");
        });
    }
}

#[test]
fn one_damaged_sector_of_the_journal_costs_at_most_the_record_in_it() {
    let mut disasters = 0;
    for sector in 0..JOURNAL_BYTES / 4096 {
        let (bench, acknowledged) = used(3, Ending::PowerCut);
        damage_journal(&bench, sector..sector + 1);
        bench.run(async |store| {
            let lost = missing(store, &acknowledged).await;
            let counts = store.recovered.rejected;
            assert!(lost <= 1, "sector {sector}: {lost} lost, {counts:?}");
            assert!(lost == 0 || counts.lost_frames + counts.torn_frames > 0, "sector {sector}: {counts:?}");
            disasters += u32::from(store.recovered.by == RecoveredBy::Salvage);
        });
    }
    assert!(disasters > 5, "{disasters}: the test reaches frames that count");
}

#[test]
fn a_slot_damaged_behind_its_header_still_tells_how_far_the_journal_went() {
    let mut disasters = 0;
    for sector in 0..8 {
        let bench = Bench::new(1, bench::large_geometry());
        let number = bench.run(async |store| {
            store.put("k", content(1, 5000)).await.unwrap();
            store.store.checkpoint().await.unwrap();
            store.put("k", content(2, 5000)).await.unwrap();
            // The power fails before a later frame of the journal could call that put durable.
            store.store.checkpoint().await.unwrap();
            store.store.stats().checkpoints
        });
        damage_slot(&bench, number % 2);
        damage_journal(&bench, sector..sector + 1);
        bench.run(async |store| {
            let dirty = store.recovered.dirty.iter().find(|record| record.identity == store.identity("k"));
            let is_sure = dirty.is_some_and(|record| record.certainty == Certainty::Sure);
            let is_older = store.read("k").await == Some(content(1, 5000));
            assert!(!(is_sure && is_older), "sector {sector}: an older version for the newest, {:?}", store.recovered);
            disasters += u32::from(store.recovered.by == RecoveredBy::Salvage);
        });
    }
    assert!(disasters > 0, "the test reaches the frame of the put");
}

#[test]
fn a_damaged_slot_still_tells_which_payloads_were_durable() {
    let bench = Bench::new(1, bench::large_geometry());
    let (number, offset) = bench.run(async |store| {
        store.put("k", content(1, 5000)).await.unwrap();
        store.store.checkpoint().await.unwrap();
        store.put("k", content(2, 5000)).await.unwrap();
        store.store.checkpoint().await.unwrap();
        let located = store.store.locate(store.identity("k")).unwrap();
        store.store.unpin(located.pin);
        (store.store.stats().checkpoints, located.offset)
    });
    damage_slot(&bench, number % 2);
    bench.world.flip_bit(&slab_name(0), offset + 100, 1);
    bench.run(async |store| {
        assert_eq!(store.recovered.rejected.checkpoint_slots, 1);
        assert_eq!(store.recovered.rejected.torn_payload, 0, "it was acknowledged, and has rotted");
        assert_eq!((store.recovered.dirty.len(), store.read("k").await), (1, None), "lost, and not older");
    });
}

#[test]
fn a_journal_gone_altogether_leaves_what_slots_and_footers_name() {
    for ending in [Ending::Close, Ending::PowerCut] {
        let (bench, acknowledged) = used(5, ending);
        damage_journal(&bench, 0..JOURNAL_BYTES / 4096);
        bench.run(async |store| {
            let lost = missing(store, &acknowledged).await;
            // After a close the newest checkpoint says it all, and nobody can tell that a journal behind it was ever there.
            assert!(ending == Ending::PowerCut || lost == 0, "{lost} lost, {:?}", store.recovered.rejected);
            assert!(lost < 40, "{lost} of {} lost", acknowledged.len());
        });
    }
}

#[test]
fn i11_a_power_cut_at_any_write_of_a_salvage_loses_nothing_more() {
    for cut in 1.. {
        let (bench, acknowledged) = used(6, Ending::Close);
        damage_slot(&bench, 0);
        damage_slot(&bench, 1);
        bench.world.crash_at(bench.world.changes() + cut);
        let is_over = bench.world.run(async { bench.open().await.unwrap() }).is_ok();
        bench.world.crash();
        bench.run(async |store| {
            assert_eq!(missing(store, &acknowledged).await, 0, "cut {cut}: {:?}", store.recovered);
            assert_eq!((store.recovered.dirty.len(), store.recovered.unsure), (acknowledged.len(), 0), "cut {cut}");
        });
        bench.run(async |store| {
            assert_eq!(missing(store, &acknowledged).await, 0, "cut {cut}");
            assert_eq!(store.recovered.by, RecoveredBy::Journal);
        });
        if is_over {
            assert!(cut > 20, "{cut} changes are a whole salvage");
            break;
        }
    }
}

#[test]
fn what_rots_after_its_commit_was_called_durable_is_lost_and_never_replaced_by_older_bytes() {
    let bench = Bench::new(9, geometry());
    let offset = bench.run(async |store| {
        store.put("k", content(1, 5000)).await.unwrap();
        store.put("k", content(2, 5000)).await.unwrap();
        store.runtime.sleep(Duration::from_millis(300)).await;
        store.store.locate(store.identity("k")).unwrap().offset
    });
    bench.world.flip_bit(&slab_name(0), offset + 100, 1);
    for _ in 0..3 {
        bench.run(async |store| {
            assert_eq!(store.state("k"), Some(EntryState::Dirty), "it is listed");
            assert_eq!(store.read("k").await, None, "and neither it nor what was there before is served");
        });
    }
}

#[test]
fn quarantine_survives_a_restart_and_a_checkpoint_and_ends_with_a_probe() {
    let bench = Bench::new(12, geometry());
    bench.run(async |store| {
        store.put("good", content(1, 3000)).await.unwrap();
        bench.world.set_faults(Faults { write_error: OneIn::ALWAYS, ..Faults::default() });
        assert!(store.put("bad", content(2, 3000)).await.is_err());
        bench.world.set_faults(Faults::default());
        store.put("next", content(3, 3000)).await.unwrap();
    });
    for life in 0..3 {
        bench.run(async |store| {
            assert_eq!((store.recovered.quarantined, store.store.stats().regions_quarantined), (1, 1), "life {life}");
            assert_eq!(store.read("good").await, Some(content(1, 3000)), "what was good is served");
            if life == 1 {
                store.store.checkpoint().await.unwrap();
                store.store.checkpoint().await.unwrap();
            }
        });
    }
    bench.run(async |store| {
        store.runtime.sleep(Duration::from_secs(400)).await;
        assert_eq!(store.store.stats().regions_quarantined, 1, "a dirty block lies there");
        store.store.flushed(store.identity("good"), store.generation("good").unwrap());
        store.runtime.sleep(Duration::from_secs(400)).await;
        assert_eq!(store.store.stats().regions_quarantined, 0, "the probe succeeded");
        for n in 0..200 {
            let filled = store.fill(&format!("f{n}"), content(n, 9000), Validity::default(), Commit::Lazy);
            filled.await.unwrap();
        }
        store.put("last", content(4, 100)).await.unwrap();
    });
    bench.run(async |store| assert_eq!(store.recovered.quarantined, 0, "its next opening ended it durably"));
}

fn refused(bench: &Bench, node: NodeIdentity) -> String {
    match bench.open_as(node) {
        Err(error @ StoreError::Foreign { .. }) => error.to_string(),
        other => panic!("a foreign slab is refused, not {other:?}"),
    }
}

#[test]
fn a_foreign_slab_is_refused_by_one_line_that_names_it_and_the_fix() {
    let bench = Bench::new(1, geometry());
    bench.run(async |store| assert!(store.put("k", content(1, 100)).await.is_ok()));
    let other = refused(&bench, NodeIdentity { node: 1, ..node() });
    assert!(other.contains("shard-000.slab belongs to another node; give"), "{other}");
    let other = refused(&bench, NodeIdentity { shard_count: 3, ..node() });
    assert!(other.contains("shard-000.slab is shard 0 of 1") && other.contains("fixed at format"), "{other}");
    for copy in 0..2 {
        bench.world.flip_bit(&slab_name(0), copy * 4096 + 8, 3);
    }
    let version = refused(&bench, node());
    assert!(version.contains("shard-000.slab: slab format 10") && version.contains("drain and format"), "{version}");
    assert!(!version.contains('\n'));
}

#[test]
fn a_truncated_slab_is_refused_and_left_as_it_is() {
    let bench = Bench::new(2, geometry());
    bench.run(async |store| assert!(store.put("k", content(1, 100)).await.is_ok()));
    bench.world.block_on(async {
        let disk = bench.world.disk();
        let superblocks = disk.open(&slab_name(0), OpenMode::Read).await.unwrap().read(0, 8192).await.unwrap();
        let cut = disk.open(&slab_name(0), OpenMode::Replace(1 << 20)).await.unwrap();
        let mut buf = disk.buffer(8192).await;
        buf.copy_from_slice(&superblocks);
        cut.write(0, buf).await.unwrap();
        cut.sync().await.unwrap();
    });
    let cut = refused(&bench, node());
    assert!(cut.contains("shard-000.slab is shorter") && cut.contains("restore it or format"), "{cut}");
}

/// A put and a delete that stand in the checkpoint slots only, and in the footer of no region: theirs is still open. One of
/// the slots is gone, and the last frame that counts.
fn in_one_slot_only(slot: u64) -> Bench {
    let bench = Bench::new(6, geometry());
    let last = bench.run(async |store| {
        store.put("p", content(1, 5000)).await.unwrap();
        store.delete("d").await.unwrap();
        for n in 0..150 {
            let filled = store.fill(&format!("f{n}"), content(n, 6000), Validity::default(), Commit::Durable);
            filled.await.unwrap();
        }
        store.runtime.sleep(Duration::from_millis(300)).await;
        assert!(store.store.stats().journal_wraps > 1);
        // One record to a frame of one sector; the first opened the run, an empty one calls the last durable.
        store.store.stats().commits % (JOURNAL_BYTES / 4096)
    });
    bench.world.flip_bit(&format!("shard-000.checkpoint-{slot}"), 60, 2);
    damage_slot(&bench, slot);
    damage_journal(&bench, last - 1..last);
    bench
}

#[test]
fn i11_a_power_cut_in_a_salvage_leaves_the_one_whole_slot_alone() {
    for slot in 0..2 {
        for cut in 1.. {
            let bench = in_one_slot_only(slot);
            bench.world.crash_at(bench.world.changes() + cut);
            let is_over = bench.world.run(async { bench.open().await.unwrap().recovered.by }).ok();
            bench.world.crash();
            bench.run(async |store| {
                assert_eq!(store.read("p").await, Some(content(1, 5000)), "slot {slot}, cut {cut}");
                assert!(store.find("d").is_some(), "slot {slot}, cut {cut}: {:?}", store.recovered);
            });
            if let Some(by) = is_over {
                assert_eq!(by, RecoveredBy::Salvage, "slot {slot}");
                assert!(cut > 10, "{cut} changes are a whole salvage");
                break;
            }
        }
    }
}

#[test]
fn i11_a_power_cut_in_a_salvage_loses_nothing_that_a_damaged_slot_still_held() {
    for (slot, sectors) in (0..2u64).flat_map(|slot| [(slot, 0..64), (slot, 20..40), (slot, 40..60)]) {
        let damaged = || {
            let (bench, acknowledged) = used(6, Ending::PowerCut);
            bench.world.flip_bit(&format!("shard-000.checkpoint-{slot}"), 60, 2);
            damage_journal(&bench, sectors.clone());
            (bench, acknowledged)
        };
        let (uncut, acknowledged) = damaged();
        let lost = uncut.run(async |store| missing(store, &acknowledged).await);
        for cut in 1.. {
            let (bench, acknowledged) = damaged();
            bench.world.crash_at(bench.world.changes() + cut);
            let is_over = bench.world.run(async { bench.open().await.unwrap() }).is_ok();
            bench.world.crash();
            bench.run(async |store| {
                let missing = missing(store, &acknowledged).await;
                assert_eq!(missing, lost, "slot {slot}, {sectors:?}, cut {cut}: {:?}", store.recovered);
            });
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn what_is_unsure_stays_so_through_a_second_disaster() {
    let bench = Bench::new(14, geometry());
    bench.run(async |store| {
        store.put("k", content(1, 5000)).await.unwrap();
        store.delete("d").await.unwrap();
        for n in 0..25 {
            store.put(&format!("o{n}"), content(n, 5000)).await.unwrap();
        }
        store.runtime.sleep(Duration::from_millis(300)).await;
    });
    let certainty = |store: &Opened, name: &str| {
        let of = |record: &&std::rc::Rc<_>| -> bool { record_identity(record) == store.identity(name) };
        store.recovered.dirty.iter().find(of).map(|record| record.certainty)
    };
    // A frame behind both: it may have flushed either, and stored `d` again.
    damage_journal(&bench, 24..25);
    bench.run(async |store| {
        assert_eq!(store.recovered.rejected.lost_frames, 1, "{:?}", store.recovered.rejected);
        assert_eq!(["k", "d"].map(|name| certainty(store, name)), [Some(Certainty::Unsure); 2]);
        store.put("new", content(9, 100)).await.unwrap();
        store.store.close().await;
    });
    damage_slot(&bench, 0);
    damage_slot(&bench, 1);
    bench.run(async |store| {
        assert_eq!(store.recovered.by, RecoveredBy::Salvage);
        assert_eq!(["k", "d"].map(|name| certainty(store, name)), [Some(Certainty::Unsure); 2]);
        assert_eq!(certainty(store, "new"), Some(Certainty::Sure));
    });
}

fn record_identity(record: &forebay_shard::store::DirtyRecord) -> forebay_shard::key::Identity {
    record.identity
}

#[test]
fn a_region_that_stays_bad_is_probed_at_the_prober_s_pace() {
    let bench = Bench::new(15, geometry());
    bench.run(async |store| {
        store.put("first", content(1, 3000)).await.unwrap();
        let at = store.store.locate(store.identity("first")).unwrap();
        store.store.unpin(at.pin);
        store.store.flushed(store.identity("first"), store.generation("first").unwrap());
        bench.world.set_faults(Faults { write_error: OneIn::ALWAYS, ..Faults::default() });
        assert!(store.put("bad", content(2, 3000)).await.is_err());
        let region_at = at.offset - (at.offset - JOURNAL_AT - JOURNAL_BYTES) % REGION_BYTES;
        let lies_within = Some(region_at..region_at + REGION_BYTES);
        bench.world.set_faults(Faults { lost_write: OneIn::ALWAYS, lies_within, ..Faults::default() });
        for n in 0..300 {
            let name = format!("k{n}");
            store.put(&name, content(n, 9000)).await.unwrap();
            store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
        }
        store.runtime.sleep(Duration::from_secs(10)).await;
        let probes = bench.world.fired().lost_write;
        // Two of them are its footer's.
        assert!((2..=4).contains(&probes), "{probes} writes within seconds");
        store.runtime.sleep(Duration::from_secs(3000)).await;
        let probes = bench.world.fired().lost_write - probes;
        assert!((9..=11).contains(&probes), "{probes} probes in ten times five minutes");
        assert_eq!(store.store.stats().regions_quarantined, 1);
    });
}

#[test]
fn a_quarantined_region_lists_its_deletes_and_puts_in_its_footer_too() {
    for probed in [false, true] {
        let bench = Bench::new(16, geometry());
        bench.run(async |store| {
            store.put("old", content(1, 3000)).await.unwrap();
            store.delete("d").await.unwrap();
            bench.world.set_faults(Faults { write_error: OneIn::ALWAYS, ..Faults::default() });
            assert!(store.put("bad", content(2, 3000)).await.is_err());
            bench.world.set_faults(Faults::default());
            if probed {
                store.store.flushed(store.identity("old"), store.generation("old").unwrap());
                store.runtime.sleep(Duration::from_secs(400)).await;
                assert_eq!(store.store.stats().regions_quarantined, 0);
            }
            for n in 0..300 {
                let name = format!("k{n}");
                store.put(&name, content(n, 5000)).await.unwrap();
                store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
            }
            assert!(store.store.stats().journal_wraps > 1);
            store.store.close().await;
        });
        damage_slot(&bench, 0);
        damage_slot(&bench, 1);
        bench.run(async |store| {
            assert!(store.find("d").is_some(), "probed {probed}: an acknowledged delete: {:?}", store.recovered);
            assert!(probed || store.read("old").await == Some(content(1, 3000)), "{:?}", store.recovered);
        });
    }
}
