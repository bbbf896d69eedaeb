//! A disk with a past: puts, deletes, overwrites and flushes through several laps of the journal, how it ended, and what must
//! come back of it.
//! Included by the `store_*` tests that damage it afterwards; keeps no state between them.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::Runtime;
use forebay_shard::config::Geometry;
use forebay_shard::store::{Certainty, Commit, EntryState, Found, Validity};

use super::bench::{Bench, Opened, content};

pub const JOURNAL_AT: u64 = 8192;
pub const JOURNAL_BYTES: u64 = 256 << 10;
pub const REGION_BYTES: u64 = 128 << 10;
pub const REGIONS: u64 = 16;

/// Regions that fill faster than the journal laps, as with any real figures.
pub fn geometry() -> Geometry {
    Geometry { region_bytes: REGION_BYTES, region_count: REGIONS as u32, journal_bytes: JOURNAL_BYTES }
}

/// What was acknowledged and not flushed: a block's content, or `None` for a delete.
pub type Acknowledged = BTreeMap<String, Option<Bytes>>;

/// Puts, deletes, overwrites and flushes through several laps of the journal, one record to a frame.
pub async fn history(store: &Opened) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    for n in 0..150u64 {
        let name = format!("k{n}");
        store.put(&name, content(n, 5000)).await.unwrap();
        acknowledged.insert(name.clone(), Some(content(n, 5000)));
        if n % 10 == 3 {
            store.delete(&name).await.unwrap();
            acknowledged.insert(name, None);
        } else if n % 5 != 0 {
            store.store.flushed(store.identity(&name), store.generation(&name).unwrap());
            acknowledged.remove(&name);
        }
        if n % 10 == 9 {
            // Deleted and stored again: two versions are on the disk.
            let name = format!("k{}", n - 9);
            store.delete(&name).await.unwrap();
            store.put(&name, content(1000 + n, 3000)).await.unwrap();
            acknowledged.insert(name, Some(content(1000 + n, 3000)));
        }
        if n % 4 == 0 {
            let filled = store.fill(&format!("f{n}"), content(n, 2000), Validity::default(), Commit::Lazy);
            filled.await.unwrap();
        }
    }
    acknowledged
}

/// How many acknowledged records are missing. Asserts that what is there is right.
pub async fn missing(store: &Opened, acknowledged: &Acknowledged) -> usize {
    let mut missing = 0;
    for n in 0..150 {
        let name = format!("k{n}");
        let unsure = store
            .recovered
            .dirty
            .iter()
            .any(|record| record.identity == store.identity(&name) && record.certainty == Certainty::Unsure);
        match (acknowledged.get(&name), store.find(&name)) {
            (Some(Some(newest)), Some(Found::Block { state, .. })) => {
                assert_eq!(state, EntryState::Dirty, "{name}");
                assert!(
                    store.read(&name).await.as_ref() == Some(newest) || unsure,
                    "{name} is not the newest, and sure"
                );
            }
            (Some(None), Some(Found::Tombstone { .. })) => {}
            (Some(_), Some(_)) => assert!(unsure, "{name}: another version than the newest is taken for it"),
            (Some(_), None) => missing += 1,
            // Flushed: clean, or gone, or asked for.
            (None, Some(Found::Block { state: EntryState::Dirty, .. })) => {
                assert!(unsure, "{name} was flushed, and is surely dirty");
            }
            (None, Some(Found::Tombstone { .. })) => assert!(unsure, "{name} was never deleted"),
            (None, _) => {}
        }
    }
    missing
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Close,
    PowerCut,
}

/// A disk with a history behind it.
pub fn used(seed: u64, ending: Ending) -> (Bench, Acknowledged) {
    let bench = Bench::new(seed, geometry());
    let acknowledged = bench.run(async |store| {
        let acknowledged = history(store).await;
        // Until the journal calls its last frame durable.
        store.runtime.sleep(Duration::from_millis(300)).await;
        assert!(store.store.stats().journal_wraps > 1, "old records are in no frame any more");
        if ending == Ending::Close {
            store.store.close().await;
        }
        acknowledged
    });
    (bench, acknowledged)
}
