//! `inspect` and `verify` on stores that the real writer made: a sound store passes, after a close as after a power cut, and
//! one flipped bit in any kind of structure is named with its place and its cost.
//! Each damage test repairs the bit again and sees the store pass, so that it is the bit that was found.
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;

use bench::{Bench, content, geometry, large_geometry, node};
use forebay_io::sim::SimDisk;
use forebay_shard::config::Geometry;
use forebay_shard::store::inspect::journal::{JournalEnd, Spare};
use forebay_shard::store::inspect::names::Names;
use forebay_shard::store::inspect::regions::{RecordIs, RecordLine, RegionIs, RegionView, Stream};
use forebay_shard::store::inspect::report::{Cost, Finding, Part, Report};
use forebay_shard::store::inspect::slots::{Slot, SlotState, current};
use forebay_shard::store::inspect::verify::verify;
use forebay_shard::store::inspect::{IndexSummary, Inspector, Superblocks};
use forebay_shard::store::{Commit, Validity, slab_name};
use futures::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const KIB: usize = 1 << 10;
const JOURNAL_BYTES: u64 = 1 << 20;

fn verified(bench: &Bench) -> Report {
    let (disk, runtime) = (bench.world.disk(), bench.world.runtime());
    bench.world.block_on(verify(disk, &runtime, 0, Some(&node()), &mut |_| {}))
}

fn inspect<T>(bench: &Bench, look: impl AsyncFnOnce(Inspector<SimDisk>) -> T) -> T {
    bench.world.block_on(async { look(Inspector::open(bench.world.disk(), 0).await.unwrap()).await })
}

/// What every look begins with: the slots, regions, records and figures of the one shard.
struct View {
    slots: [Slot; 2],
    regions: Vec<RegionView>,
    records: Vec<RecordLine>,
    tombstones: Vec<RecordLine>,
    summary: IndexSummary,
}

fn view(bench: &Bench) -> View {
    let runtime = bench.world.runtime();
    inspect(bench, async |inspector| {
        let slots = inspector.slots().await.unwrap();
        let recovery = inspector.recover(&runtime).await.unwrap();
        let regions = inspector.regions(&slots, &recovery).await.unwrap();
        let mut names: Names = inspector.names(&slots, &recovery).await.unwrap();
        let mut records = Vec::new();
        for batch in recovery.batches(0..regions.len() as u32, 20) {
            records.extend(inspector.records(&recovery, &mut names, batch).await.unwrap());
        }
        let tombstones = inspector.tombstones(&recovery, &names);
        View { slots, regions, records, tombstones, summary: recovery.summary() }
    })
}

/// A journal that is never full by itself, so that checkpoints are where a test puts them.
fn roomy_geometry() -> Geometry {
    Geometry { journal_bytes: JOURNAL_BYTES, ..geometry() }
}

/// Clean and dirty blocks, a tombstone, a sealed region of each stream, two checkpoints, and a journal behind the newer.
fn example(seed: u64) -> Bench {
    let bench = Bench::new(seed, roomy_geometry());
    bench.run(async |store| {
        for n in 0..40 {
            let filled = store.fill(&format!("clean-{n}"), content(n, 8 * KIB), Validity::default(), Commit::Durable);
            filled.await.unwrap();
        }
        for n in 0..40 {
            store.put(&format!("dirty-{n}"), content(100 + n, 8 * KIB)).await.unwrap();
        }
        store.store.checkpoint().await.unwrap();
        store.delete("clean-3").await.unwrap();
        store.put("between", content(7, 3 * KIB)).await.unwrap();
        store.store.flushed(store.identity("dirty-0"), store.generation("dirty-0").unwrap());
        store.store.checkpoint().await.unwrap();
        for n in 0..6 {
            store.put(&format!("late-{n}"), content(200 + n, 1000)).await.unwrap();
        }
    });
    bench
}

/// Flips a bit, looks, flips it back.
fn with_damage(bench: &Bench, file: &str, at: u64) -> Report {
    bench.world.flip_bit(file, at, 2);
    let report = verified(bench);
    bench.world.flip_bit(file, at, 2);
    assert!(verified(bench).is_good(), "the bit is back: {:#?}", verified(bench));
    report
}

/// The first fault of a report that has one.
fn fault(report: &Report) -> (Part, Finding) {
    assert!(!report.is_good());
    let (part, finding) = report.first_fault().unwrap();
    (part, finding.clone())
}

fn expect_fault(report: &Report, part: Part, cost: Cost, file: &str) -> Finding {
    let (found, finding) = fault(report);
    assert_eq!((found, finding.cost, &*finding.file), (part, cost, file), "{finding:?}");
    finding
}

#[test]
fn what_is_there_is_shown() {
    let bench = example(1);
    let view = view(&bench);
    assert_eq!(view.summary.entries, 39 + 40 + 1 + 1 + 6);
    assert_eq!((view.summary.clean, view.summary.dirty, view.summary.tombstones), (40, 46, 1));
    assert_eq!(view.summary.dirty_bytes, (39 * 8 + 3) * KIB as u64 + 6000);
    assert_eq!(view.records.len(), 86);
    let late = view.records.iter().find(|record| record.key.as_ref().is_some_and(|key| &*key.key == "late-5")).unwrap();
    assert_eq!((late.state, late.len_bytes, late.pieces), (RecordIs::Dirty, 1000, 1));
    let flushed = view.records.iter().find(|record| record.key.as_ref().is_some_and(|key| &*key.key == "dirty-0"));
    assert_eq!(flushed.unwrap().state, RecordIs::Clean, "its footer still knows its key");
    assert_eq!(view.tombstones[0].key.as_ref().map(|key| key.key.to_string()), Some("clean-3".into()));
    let sealed = |stream| view.regions.iter().any(|r| r.state == RegionIs::Sealed && r.stream == Some(stream));
    assert!(sealed(Stream::Clean) && sealed(Stream::Dirty), "{:#?}", view.regions);
    assert!(view.regions.iter().any(|region| region.state == RegionIs::Unsealed), "two were open at the power cut");
    let live: u64 = view.regions.iter().map(|region| region.live).sum();
    assert_eq!(live, 86);
    assert_eq!(current(&view.slots).unwrap().header.unwrap().number, 2);
    let (journal, spare) = inspect(&bench, async |inspector| {
        (inspector.journal(&view.slots).await.unwrap(), inspector.spare(&view.slots).await.unwrap())
    });
    assert_eq!(spare, Spare::Reaches);
    assert_eq!(journal.records.dirty_puts, 6);
    assert!(matches!(journal.end, JournalEnd::Nothing { .. }), "{:?}", journal.end);
}

#[test]
fn i11_i13_every_store_that_the_writer_left_passes_and_is_shown_as_it_reopens() {
    for seed in 0..60 {
        let bench = Bench::new(seed, geometry());
        for life in 0..3 {
            let closes = (seed + life) % 3 == 0;
            bench.run(async |store| {
                let mut random = SmallRng::seed_from_u64(seed * 10 + life);
                for step in 0..random.random_range(5..120u64) {
                    let name = format!("k{}", random.random_range(0..25));
                    let bytes = content(seed * 1000 + step, random.random_range(0..20 * KIB));
                    match random.random_range(0..12) {
                        0..5 => drop(store.put(&name, bytes).await),
                        5..8 => drop(store.fill(&name, bytes, Validity::default(), Commit::Lazy).await),
                        8 => drop(store.delete(&name).await),
                        9 => {
                            let newest = store.store.next_generation();
                            store.store.remove(store.identity(&name), newest).await.unwrap();
                        }
                        10 if random.random_range(0..8) == 0 => store.store.checkpoint().await.unwrap(),
                        _ => {
                            if let Some(generation) = store.generation(&name) {
                                store.store.flushed(store.identity(&name), generation);
                            }
                        }
                    }
                }
                if closes {
                    store.store.close().await;
                }
            });
            let report = verified(&bench);
            assert!(report.is_good(), "seed {seed}, life {life}: {report:#?}");
            assert_eq!(report.parts.len(), 6, "every part is looked at");
            let shown = view(&bench).summary;
            let (entries, dirty) = bench.run(async |store| (store.recovered.entries, store.recovered.dirty.len()));
            assert_eq!((shown.entries, shown.dirty + shown.tombstones), (entries, dirty as u64), "seed {seed}");
        }
    }
}

/// Puts, deletes and fills, several at once, until the power goes.
async fn work_until_the_end(bench: &Bench, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let Ok(store) = bench.open().await else { return };
    for round in 0..60 {
        let puts: Vec<_> = (0..random.random_range(1..8))
            .map(|n| (format!("k{}", random.random_range(0..30)), random.random_range(0..9 * KIB), n))
            .map(|(name, size, n)| {
                let store = store.clone();
                async move {
                    let bytes = content(seed ^ (round << 8) ^ n, size);
                    match n % 4 {
                        3 => drop(store.fill(&name, bytes, Validity::default(), Commit::Lazy).await),
                        2 if size < 500 => drop(store.delete(&name).await),
                        _ => drop(store.put(&name, bytes).await),
                    }
                }
            })
            .collect();
        join_all(puts).await;
        for name in (0..30).map(|n| format!("k{n}")).filter(|_| random.random_ratio(1, 6)) {
            if let Some(generation) = store.generation(&name) {
                store.store.flushed(store.identity(&name), generation);
            }
        }
    }
}

#[test]
fn i11_no_power_cut_passes_for_damage() {
    let mut torn = 0;
    for seed in 0..150 {
        let bench = Bench::new(seed, geometry());
        for life in 0..4 {
            let mut random = SmallRng::seed_from_u64(seed * 7 + life);
            bench.world.crash_at(bench.world.changes() + random.random_range(1..400));
            let _ = bench.world.run(work_until_the_end(&bench, seed * 100 + life));
            bench.world.crash();
            let report = verified(&bench);
            assert!(report.is_good(), "seed {seed}, life {life}: {report:#?}");
            torn += report.parts.iter().map(|part| part.counts[Cost::Note as usize]).sum::<u64>();
        }
    }
    assert!(torn > 20, "cuts in the middle of something leave notes: {torn}");
}

#[test]
fn a_damaged_superblock_is_named_and_two_are_the_end() {
    let (bench, slab) = (example(2), slab_name(0));
    for (copy, at) in [(0, 40), (4096, 4096 + 8)] {
        let finding = expect_fault(&with_damage(&bench, &slab, at), Part::Superblock, Cost::Spare, &slab);
        assert_eq!(finding.offset, Some(copy));
    }
    bench.world.flip_bit(&slab, 40, 2);
    bench.world.flip_bit(&slab, 4096 + 40, 2);
    expect_fault(&verified(&bench), Part::Superblock, Cost::Data, &slab);
    let superblocks = bench.world.block_on(Superblocks::read(&bench.world.disk(), 0)).unwrap();
    assert!(superblocks.good().is_none());
}

#[test]
fn a_store_of_another_node_is_named() {
    let bench = example(3);
    let mut other = node();
    other.node += 1;
    let (disk, runtime) = (bench.world.disk(), bench.world.runtime());
    let report = bench.world.block_on(verify(disk, &runtime, 0, Some(&other), &mut |_| {}));
    let finding = expect_fault(&report, Part::Superblock, Cost::Data, &slab_name(0));
    assert!(finding.what.contains("another node"), "{finding:?}");
}

#[test]
fn a_damaged_checkpoint_is_named_whichever_frame_it_is_and_two_are_the_end() {
    let bench = example(4);
    let slots = view(&bench).slots;
    for slot in &slots {
        assert_eq!(slot.state, SlotState::Whole);
        let end = slot.used_bytes - 4096;
        // Header: magic, number; records: head, payload; end: magic, kind, number, payload.
        for at in [0, 16, 50, 4096, 4096 + 30, 4096 + 200, end, end + 4, end + 16, end + 60] {
            let report = with_damage(&bench, &slot.name, at);
            let finding = expect_fault(&report, Part::Checkpoints, Cost::Spare, &slot.name);
            assert_eq!(finding.offset, Some(at / 4096 * 4096).filter(|_| at != 4096 + 200).or(Some(4096)));
        }
    }
    slots.iter().for_each(|slot| bench.world.flip_bit(&slot.name, 4096 + 100, 0));
    let (part, finding) = fault(&verified(&bench));
    assert_eq!((part, finding.cost), (Part::Checkpoints, Cost::Data));
}

#[test]
fn a_checkpoint_that_was_cut_off_is_no_fault() {
    let bench = Bench::new(5, geometry());
    bench.run(async |store| {
        for n in 0..30 {
            store.put(&format!("k{n}"), content(n, 2000)).await.unwrap();
        }
        store.store.checkpoint().await.unwrap();
    });
    // Changes of a checkpoint: create, header, records, sync of the slab, sync of the slot, end, sync, names.
    let begins = bench.world.changes();
    for change in 0..14 {
        bench.world.crash_at(begins + change);
        let _ = bench.world.run(async {
            let store = bench.open().await.unwrap();
            store.store.checkpoint().await.unwrap();
        });
        bench.world.crash();
        let report = verified(&bench);
        assert!(report.is_good(), "cut at change {change}: {report:#?}");
    }
}

#[test]
fn a_damaged_frame_of_the_journal_is_named_if_anybody_knows_that_it_was_durable() {
    let (bench, slab) = (example(6), slab_name(0));
    let slots = view(&bench).slots;
    let journal = inspect(&bench, async |inspector| inspector.journal(&slots).await.unwrap());
    let [.., before, last] = &journal.frames[..] else { panic!("six puts make frames") };
    let earlier = &journal.frames[1];
    for at in [earlier.offset, earlier.offset + 20, earlier.offset + 100] {
        let finding = expect_fault(&with_damage(&bench, &slab, at), Part::Journal, Cost::Data, &slab);
        assert_eq!(finding.offset, Some(earlier.offset));
        assert!(finding.what.contains(&format!("frame {} is damaged", earlier.sequence)), "{finding:?}");
    }
    assert!(last.synced_through >= before.sequence, "the last frame says that the one before was durable");
    expect_fault(&with_damage(&bench, &slab, before.offset + 100), Part::Journal, Cost::Data, &slab);
    // Nobody calls the last frame durable, but its head can't be torn, and one byte is no torn write.
    for at in [last.offset + 17, last.offset + 100] {
        expect_fault(&with_damage(&bench, &slab, at), Part::Journal, Cost::Data, &slab);
    }
    // A part that never arrived is ordinary after a power cut.
    for byte in 60..200 {
        bench.world.flip_bit(&slab, last.offset + byte, 5);
    }
    let report = verified(&bench);
    assert!(report.is_good(), "{report:#?}");
    let notes = &report.parts[2].findings;
    assert!(notes[0].what.contains("torn") && notes[0].offset == Some(last.offset), "{notes:?}");
}

#[test]
fn a_damaged_frame_that_only_the_older_checkpoint_needs_costs_nothing() {
    let (bench, slab) = (example(7), slab_name(0));
    let slots = view(&bench).slots;
    let older = slots.iter().filter_map(|slot| slot.header).min_by_key(|header| header.number).unwrap();
    let offset = 8192 + older.position % JOURNAL_BYTES;
    let finding = expect_fault(&with_damage(&bench, &slab, offset + 70), Part::Journal, Cost::Spare, &slab);
    assert_eq!(finding.offset, Some(offset));
}

#[test]
fn a_damaged_footer_is_named_and_costs_nothing() {
    let (bench, slab) = (example(8), slab_name(0));
    let sealed: Vec<_> = view(&bench).regions.into_iter().filter(|region| region.state == RegionIs::Sealed).collect();
    assert!(sealed.len() >= 2);
    for region in sealed {
        let end = 8192 + JOURNAL_BYTES + u64::from(region.number + 1) * (256 << 10);
        // Some 30 lines take a sector.
        let (trailer, first) = (end - 4096, end - 8192);
        for (at, place) in [(trailer, trailer), (trailer + 16, trailer), (trailer + 50, trailer), (first, first)] {
            let finding = expect_fault(&with_damage(&bench, &slab, at), Part::Footers, Cost::Spare, &slab);
            assert_eq!(finding.offset, Some(place), "{finding:?}");
        }
        for at in [first + 24, first + 100] {
            let finding = expect_fault(&with_damage(&bench, &slab, at), Part::Footers, Cost::Spare, &slab);
            assert_eq!(finding.offset, Some(first), "{finding:?}");
        }
    }
}

#[test]
fn i8_a_rotten_block_is_named_with_its_key_and_its_cost() {
    let (bench, slab) = (example(9), slab_name(0));
    // Nobody says of the last put that it was durable: rotten, it passes for one that was cut off.
    let is_in_doubt = |record: &RecordLine| record.key.as_ref().is_some_and(|key| &*key.key == "late-5");
    let records: Vec<_> = view(&bench).records.into_iter().filter(|record| !is_in_doubt(record)).collect();
    for (state, cost) in [(RecordIs::Clean, Cost::Cache), (RecordIs::Dirty, Cost::Data)] {
        for record in records.iter().filter(|record| record.state == state).step_by(9) {
            let last = record.offset.unwrap() + u64::from(record.len_bytes) - 1;
            let finding = expect_fault(&with_damage(&bench, &slab, last), Part::Records, cost, &slab);
            assert_eq!((finding.offset, finding.identity), (record.offset, Some(record.identity)));
            assert_eq!(finding.key, record.key);
            assert!(finding.key.is_some() || state == RecordIs::Clean, "a dirty block has a name");
        }
    }
}

#[test]
fn the_rotten_piece_of_a_large_block_is_named() {
    let bench = Bench::new(10, large_geometry());
    bench.run(async |store| {
        store.put("big", content(1, (2 << 20) + 5000)).await.unwrap();
        let filled = store.fill("clean", content(2, (1 << 20) + 2), Validity::default(), Commit::Durable);
        filled.await.unwrap();
        store.put("after", content(3, 100)).await.unwrap();
        store.store.close().await;
    });
    let records = view(&bench).records;
    assert_eq!(records.iter().map(|record| record.pieces).sum::<u32>(), 3 + 2 + 1);
    let big = records.iter().find(|record| record.pieces == 3).unwrap();
    for piece in 0..3 {
        let at = big.offset.unwrap() + (piece << 20);
        let finding =
            expect_fault(&with_damage(&bench, &slab_name(0), at + 4999), Part::Records, Cost::Data, &slab_name(0));
        assert_eq!(finding.offset, Some(at));
        assert!(finding.what.starts_with(&format!("piece {} of 3", piece + 1)), "{finding:?}");
        assert_eq!(finding.key.map(|key| key.key.to_string()), Some("big".into()));
    }
    assert_eq!(verified(&bench).proven_bytes, (2 << 20) + 5000 + (1 << 20) + 2 + 100);
}
