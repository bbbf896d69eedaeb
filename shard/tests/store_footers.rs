//! Footers that could not be written, and closes that come while something is being written to a region: what was listed is
//! listed elsewhere (promise 1, after a disaster), and nothing lands after a close (I1).
//! What damage to a footer that was written costs stands in `store_damage` and `store_unreadable`.
#![allow(clippy::unwrap_used)]

#[path = "store_support/bench.rs"]
mod bench;
#[path = "store_support/past.rs"]
mod past;

use std::ops::Range;
use std::time::Duration;

use bench::{Bench, Opened, content};
use forebay_io::Runtime;
use forebay_io::sim::{Faults, Latency, OneIn};
use forebay_shard::store::{RecoveredBy, slab_name};
use past::{JOURNAL_AT, JOURNAL_BYTES, REGION_BYTES, REGIONS, geometry};

/// Where the footer of the region of this block ends: its trailer, in which it does not count without.
fn trailer_of(store: &Opened, name: &str) -> Range<u64> {
    let located = store.store.locate(store.identity(name)).unwrap();
    store.store.unpin(located.pin);
    let regions_at = JOURNAL_AT + JOURNAL_BYTES;
    let end = regions_at + ((located.offset - regions_at) / REGION_BYTES + 1) * REGION_BYTES;
    end - 4096..end
}

/// Puts that fill regions and laps of the journal, all of them flushed.
async fn turn_over(store: &Opened, count: u64) {
    for n in 0..count {
        let name = format!("t{n}");
        store.put(&name, content(n, 5000)).await.unwrap();
        store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
    }
}

fn disaster(bench: &Bench) {
    let names = bench.world.file_names();
    let slots = names.iter().filter(|name| name.contains("checkpoint"));
    slots.for_each(|name| bench.world.flip_bit(name, 4096 + 60, 2));
}

#[test]
fn deletes_of_a_footer_that_could_not_be_written_are_listed_in_a_later_one() {
    for is_read_back in [false, true] {
        let bench = Bench::new(21, geometry());
        bench.run(async |store| {
            store.put("first", content(1, 3000)).await.unwrap();
            store.delete("d").await.unwrap();
            let fails_within = Some(trailer_of(store, "first"));
            let faults = Faults { write_error: OneIn::ALWAYS, fails_within, ..Faults::default() };
            bench.world.set_faults(if is_read_back { Faults::default() } else { faults });
            turn_over(store, 300).await;
            store.runtime.sleep(Duration::from_secs(10)).await;
            let attempts = bench.world.fired().write_error;
            assert_eq!(attempts, if is_read_back { 0 } else { 3 }, "a footer is tried again, not for ever");
            turn_over(store, 100).await;
            assert!(store.store.stats().journal_wraps > 1, "its frame is gone");
            store.store.close().await;
        });
        disaster(&bench);
        bench.run(async |store| {
            assert_eq!(store.recovered.by, RecoveredBy::Salvage);
            assert!(store.find("d").is_some(), "an acknowledged delete: {:?}", store.recovered);
        });
    }
}

#[test]
fn a_footer_that_fails_once_is_written_again() {
    let bench = Bench::new(22, geometry());
    bench.run(async |store| {
        store.put("first", content(1, 3000)).await.unwrap();
        let fails_within = Some(trailer_of(store, "first"));
        bench.world.set_faults(Faults { write_error: OneIn::ALWAYS, fails_within, ..Faults::default() });
        while bench.world.fired().write_error == 0 {
            turn_over(store, 1).await;
        }
        bench.world.set_faults(Faults::default());
        store.runtime.sleep(Duration::from_secs(2)).await;
        // A commit's sync covers footers, too.
        store.put("after", content(2, 3000)).await.unwrap();
    });
    // Nothing else names it any more.
    disaster(&bench);
    (0..JOURNAL_BYTES / 4096)
        .for_each(|sector| bench.world.flip_bit(&slab_name(0), JOURNAL_AT + sector * 4096 + 60, 1));
    bench.run(async |store| assert_eq!(store.read("first").await, Some(content(1, 3000)), "{:?}", store.recovered));
}

#[test]
fn a_footer_that_rotted_before_its_region_was_reclaimed_costs_no_delete() {
    let bench = Bench::new(23, geometry());
    bench.run(async |store| {
        store.put("first", content(1, 3000)).await.unwrap();
        store.delete("d").await.unwrap();
        let trailer = trailer_of(store, "first");
        store.store.flushed(store.identity("first"), store.generation("first").unwrap());
        turn_over(store, 60).await;
        bench.world.flip_bit(&slab_name(0), trailer.start + 60, 1);
        turn_over(store, 600).await;
        assert!(store.store.stats().footers_missing > 0 && store.store.stats().journal_wraps > 1);
        store.store.close().await;
    });
    disaster(&bench);
    bench.run(async |store| assert!(store.find("d").is_some(), "{:?}", store.recovered));
}

/// Closes, and asserts that nothing is written to the disk from then on.
async fn closes_for_good(bench: &Bench, store: &Opened) {
    store.store.close().await;
    let closed = bench.world.changes();
    store.runtime.sleep(Duration::from_secs(1_000)).await;
    assert_eq!(bench.world.changes(), closed, "something was begun after the close");
}

#[test]
fn i1_a_close_waits_for_the_footers_that_are_being_written() {
    let bench = Bench::new(24, geometry());
    let listed = bench.run(async |store| {
        turn_over(store, 3).await;
        store.put("first", content(1, 3000)).await.unwrap();
        // Footers take seconds, and their last sector is written behind all others.
        bench.world.set_latency(Latency { write_us: 900_000..1_000_000, ..Latency::default() });
        let trailer = trailer_of(store, "first");
        bench.world.set_faults(Faults { write_error: OneIn::ALWAYS, fails_within: Some(trailer), ..Faults::default() });
        let mut names = 0;
        while bench.world.fired().write_error == 0 && names < 100 {
            names += 1;
            store.put(&format!("n{names}"), content(names, 5000)).await.unwrap();
        }
        // The first attempt has failed, the second comes in a second.
        assert_eq!(bench.world.fired().write_error, 1);
        bench.world.set_faults(Faults::default());
        closes_for_good(&bench, store).await;
        names
    });
    disaster(&bench);
    (0..JOURNAL_BYTES / 4096)
        .for_each(|sector| bench.world.flip_bit(&slab_name(0), JOURNAL_AT + sector * 4096 + 60, 1));
    bench.run(async |store| {
        assert_eq!(store.read("first").await, Some(content(1, 3000)), "{:?}", store.recovered);
        assert_eq!(store.recovered.dirty.len() as u64, listed + 1, "every region has its footer");
    });
}

#[test]
fn i1_a_close_stops_the_prober_and_waits_for_its_last_write() {
    let mut interrupted = 0;
    for seed in 0..20 {
        let bench = Bench::new(30 + seed, geometry());
        bench.run(async |store| {
            store.put("first", content(1, 3000)).await.unwrap();
            bench.world.set_faults(Faults { write_error: OneIn::ALWAYS, ..Faults::default() });
            assert!(store.put("bad", content(2, 3000)).await.is_err());
            bench.world.set_faults(Faults::default());
            store.store.flushed(store.identity("first"), store.generation("first").unwrap());
            bench.world.set_latency(Latency { write_us: 500_000..600_000, ..Latency::default() });
            store.runtime.sleep(Duration::from_millis(1_000 + seed * 200)).await;
            let before = store.store.stats().regions_quarantined;
            closes_for_good(&bench, store).await;
            interrupted += u32::from(before == 1 && store.store.stats().regions_quarantined == 1);
        });
        bench.run(async |store| {
            assert_eq!(store.recovered.by, RecoveredBy::Journal);
            for n in 0..REGIONS * 20 {
                store.put(&format!("n{n}"), content(n, 5000)).await.unwrap();
                store.store.flushed(store.identity(&format!("n{n}")), store.generation(&format!("n{n}")).unwrap());
            }
            assert_eq!(store.read(&format!("n{}", REGIONS * 20 - 1)).await, Some(content(REGIONS * 20 - 1, 5000)));
        });
    }
    assert!(interrupted > 2, "{interrupted} closes came while the region was out of use");
}
