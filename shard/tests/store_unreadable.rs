//! Sectors that answer EIO when a store is opened: in every structure, alone and together. Each is taken for damage, counted,
//! and costs what lay on it; a disk that is bad as a whole is left alone (I11).
//! What bit rot costs stands in `store_damage`.
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;
#[path = "store_support/past.rs"]
mod past;

use bench::{Bench, content};
use forebay_io::sim::{Faults, OneIn};
use forebay_shard::config::Geometry;
use forebay_shard::store::{EntryState, RecoveredBy, slab_name};
use past::{Ending, JOURNAL_AT, JOURNAL_BYTES, REGION_BYTES, REGIONS, geometry, missing, used};

fn break_slot(bench: &Bench, slot: u64, at: u64) {
    bench.world.break_sector(&format!("shard-000.checkpoint-{slot}"), at);
}

fn break_journal(bench: &Bench, sectors: impl Iterator<Item = u64>) {
    sectors.for_each(|sector| bench.world.break_sector(&slab_name(0), JOURNAL_AT + sector * 4096));
}

#[test]
fn a_bad_sector_in_a_slot_costs_that_slot() {
    for ending in [Ending::Close, Ending::PowerCut] {
        for (slot, at) in [(0, 0), (1, 0), (0, 4096), (1, 4096)] {
            let (bench, acknowledged) = used(slot + at, ending);
            break_slot(&bench, slot, at);
            bench.run(async |store| {
                let rejected = store.recovered.rejected;
                assert_eq!(store.recovered.by, RecoveredBy::Journal, "{ending:?}, slot {slot} at {at}");
                assert_eq!(missing(store, &acknowledged).await, 0, "{rejected:?}");
                assert_eq!(store.recovered.dirty.len(), acknowledged.len(), "{rejected:?}");
                // The older slot's records are not read while the newer is whole.
                assert_eq!(rejected.checkpoint_slots, rejected.unreadable_sectors, "{ending:?}, slot {slot} at {at}");
                assert!(at > 0 || rejected.unreadable_sectors == 1, "both headers are read: {rejected:?}");
                store.store.checkpoint().await.unwrap();
                store.store.checkpoint().await.unwrap();
            });
            bench.run(async |store| {
                assert_eq!(store.recovered.rejected.unreadable_sectors, 0, "the slots were written anew");
                assert_eq!(missing(store, &acknowledged).await, 0);
            });
        }
    }
}

#[test]
fn bad_sectors_in_both_slots_are_a_disaster_that_loses_nothing() {
    for ending in [Ending::Close, Ending::PowerCut] {
        let (bench, acknowledged) = used(1, ending);
        (0..2).for_each(|slot| break_slot(&bench, slot, 4096));
        bench.run(async |store| {
            let rejected = store.recovered.rejected;
            assert_eq!((store.recovered.by, rejected.checkpoint_slots), (RecoveredBy::Salvage, 2));
            assert_eq!(missing(store, &acknowledged).await, 0, "{ending:?}: {rejected:?}");
            assert_eq!((store.recovered.unsure, store.recovered.dirty.len()), (0, acknowledged.len()));
        });
        bench.run(async |store| assert_eq!(store.recovered.by, RecoveredBy::Journal, "{:?}", store.recovered));
    }
}

#[test]
fn a_bad_sector_of_the_journal_costs_at_most_the_record_on_it() {
    let (mut disasters, mut losses) = (0, 0);
    for sector in 0..JOURNAL_BYTES / 4096 {
        let (bench, acknowledged) = used(3, Ending::PowerCut);
        break_journal(&bench, sector..sector + 1);
        bench.run(async |store| {
            let lost = missing(store, &acknowledged).await;
            let counts = store.recovered.rejected;
            assert!(counts.unreadable_sectors >= 1 && lost <= 1, "sector {sector}: {lost} lost, {counts:?}");
            losses += lost;
            disasters += u32::from(store.recovered.by == RecoveredBy::Salvage);
        });
        bench
            .run(async |store| assert_eq!(store.recovered.by, RecoveredBy::Journal, "sector {sector}: once is enough"));
    }
    assert!(disasters > 5, "{disasters}: the test reaches frames that count");
    assert!(losses < 5, "{losses}: nearly all of what lay there stands in slots and footers too");
}

#[test]
fn bad_sectors_in_footers_and_superblocks_cost_nothing_while_the_rest_is_whole() {
    for copy in 0..2 {
        let (bench, acknowledged) = used(4 + copy, Ending::PowerCut);
        bench.world.break_sector(&slab_name(0), copy * 4096);
        let regions_at = JOURNAL_AT + JOURNAL_BYTES;
        for region in 1..=REGIONS {
            bench.world.break_sector(&slab_name(0), regions_at + region * REGION_BYTES - 1);
        }
        bench.run(async |store| {
            let rejected = store.recovered.rejected;
            assert_eq!((store.recovered.by, rejected.superblocks), (RecoveredBy::Journal, 1), "{rejected:?}");
            assert_eq!(missing(store, &acknowledged).await, 0);
            // Reclaim walks the index where a footer can't be read.
            for n in 0..300 {
                let name = format!("k{}", n + 1000);
                store.put(&name, content(n, 5000)).await.unwrap();
                store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
            }
            assert!(store.store.stats().footers_missing > 0);
        });
        bench.run(async |store| assert_eq!(store.recovered.rejected.superblocks, 0, "it was written anew"));
    }
}

#[test]
fn unreadable_slots_journal_and_footers_together_leave_what_can_be_read() {
    let (bench, acknowledged) = used(5, Ending::PowerCut);
    (0..2).for_each(|slot| break_slot(&bench, slot, 0));
    break_journal(&bench, 20..40);
    bench.world.break_sector(&slab_name(0), JOURNAL_AT + JOURNAL_BYTES + 3 * REGION_BYTES - 1);
    let dirty = bench.run(async |store| {
        let counts = store.recovered.rejected;
        assert!(store.recovered.by == RecoveredBy::Salvage && counts.unreadable_sectors >= 23, "{counts:?}");
        let lost = missing(store, &acknowledged).await;
        assert!(lost < acknowledged.len() / 2, "{lost} of {} lost: {counts:?}", acknowledged.len());
        store.recovered.dirty.len()
    });
    bench.run(async |store| {
        assert_eq!((store.recovered.by, store.recovered.dirty.len()), (RecoveredBy::Journal, dirty));
    });
}

#[test]
fn a_payload_in_doubt_that_cannot_be_read_counts_as_torn() {
    let bench = Bench::new(9, geometry());
    let offset = bench.run(async |store| {
        store.put("k", content(1, 5000)).await.unwrap();
        store.put("other", content(2, 5000)).await.unwrap();
        store.store.locate(store.identity("other")).unwrap().offset
    });
    bench.world.break_sector(&slab_name(0), offset);
    bench.run(async |store| {
        let counts = store.recovered.rejected;
        assert_eq!((counts.torn_payload, counts.unreadable_sectors), (1, 1), "{counts:?}");
        assert_eq!((store.state("k"), store.state("other")), (Some(EntryState::Dirty), None));
        assert_eq!(store.read("k").await, Some(content(1, 5000)));
    });
}

#[test]
fn a_disk_that_reads_nothing_is_not_taken_for_a_damaged_one() {
    let (bench, acknowledged) = used(7, Ending::PowerCut);
    let begun = bench.world.changes();
    bench.world.set_faults(Faults { read_error: OneIn::ALWAYS, ..Faults::default() });
    assert!(bench.world.run(async { bench.open().await.is_err() }).unwrap());
    bench.world.crash();
    bench.world.set_faults(Faults::default());
    assert_eq!(bench.world.changes(), begun, "nothing was written");
    bench.run(async |store| assert_eq!(missing(store, &acknowledged).await, 0));
}

#[test]
fn a_disk_with_very_many_bad_sectors_is_not_opened_nor_written() {
    let bench = Bench::new(8, Geometry { journal_bytes: 2 << 20, ..geometry() });
    bench.run(async |store| assert!(store.put("k", content(1, 5000)).await.is_ok()));
    let begun = bench.world.changes();
    break_journal(&bench, 1..400);
    assert!(bench.world.run(async { bench.open().await.is_err() }).unwrap());
    assert_eq!(bench.world.changes(), begun, "nothing was written");
}

#[test]
fn reads_that_fail_now_and_then_cost_nothing() {
    let mut failed = 0;
    for seed in 0..20 {
        let (bench, acknowledged) = used(seed, Ending::PowerCut);
        bench.world.set_faults(Faults { read_error: OneIn(5), ..Faults::default() });
        bench.run(async |store| {
            bench.world.set_faults(Faults::default());
            let counts = store.recovered.rejected;
            assert_eq!((counts.unreadable_sectors, store.recovered.by), (0, RecoveredBy::Journal), "{counts:?}");
            assert_eq!(missing(store, &acknowledged).await, 0, "seed {seed}");
        });
        failed += bench.world.fired().read_error;
    }
    assert!(failed > 20, "{failed} reads failed");
}

#[test]
fn footers_of_which_a_read_fails_are_read_again_before_they_count_as_damaged() {
    let mut failed = 0;
    for seed in 0..12 {
        let mut salvaged = |faults: Faults| {
            let (bench, acknowledged) = used(seed, Ending::Close);
            // Neither slots nor journal name anything any more.
            (0..2).for_each(|slot| bench.world.flip_bit(&format!("shard-000.checkpoint-{slot}"), 4096 + 60, 2));
            (0..JOURNAL_BYTES / 4096)
                .for_each(|sector| bench.world.flip_bit(&slab_name(0), JOURNAL_AT + sector * 4096 + 60, 1));
            bench.world.set_faults(faults);
            let found = bench.run(async |store| {
                bench.world.set_faults(Faults::default());
                let rejected = store.recovered.rejected;
                assert_eq!(store.recovered.by, RecoveredBy::Salvage);
                assert_eq!(rejected.unreadable_sectors, 0, "{rejected:?}");
                (store.recovered.dirty.len(), rejected.footers, missing(store, &acknowledged).await)
            });
            failed += bench.world.fired().read_error;
            found
        };
        let (calm, stumbling) =
            (salvaged(Faults::default()), salvaged(Faults { read_error: OneIn(5), ..Faults::default() }));
        assert!(calm.0 > 0 && calm == stumbling, "seed {seed}: {calm:?}, {stumbling:?}");
    }
    assert!(failed > 60, "{failed} reads failed");
}
