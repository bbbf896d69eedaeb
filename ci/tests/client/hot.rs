//! Leases of hot blocks against real members: the reads of one key spread over its group.
//!
//! Part of `client`. Not while the block is dirty, for the others don't have it; and what a lease has made is gone with the block.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use forebay::client::{Client, ClientError, Via};

use super::{Bench, block_on, check, content, key, put, read};
use crate::running::BOUND;

/// More than two of the windows in which members count.
const WINDOWS: Duration = Duration::from_millis(2_500);
const NUMBER: u64 = 7;

/// Reads the block again and again, and who answered the last 150 reads.
async fn readers(
    client: &Client,
    until: impl Fn(&BTreeMap<String, usize>) -> bool,
    bound: Duration,
) -> BTreeMap<String, usize> {
    let deadline = Instant::now() + bound;
    loop {
        let mut counts = BTreeMap::new();
        for _ in 0..150 {
            let block = client.get(&key(NUMBER), None).await.unwrap();
            let Via::Member { member, .. } = block.meta.via.clone() else { panic!("from the store") };
            *counts.entry(member).or_default() += 1;
            assert_eq!(block.bytes().await.unwrap(), content(NUMBER));
        }
        if until(&counts) || Instant::now() > deadline {
            return counts;
        }
    }
}

async fn leases(bench: &Bench) -> u64 {
    let mut sum = 0;
    for proxy in 0..bench.running.summary.proxies.len() {
        sum += bench.running.status(proxy).await["requests"]["leases"].as_u64().unwrap();
    }
    sum
}

#[test]
fn the_reads_of_a_hot_block_are_spread_once_it_is_clean() {
    let mut bench = Bench::new("3", "0");
    block_on(async {
        for mode in ["write-back", "write-through"] {
            let client = bench.open(mode).await;
            if mode == "write-back" {
                bench.outage(true);
                let holder = put(&client, NUMBER).await;
                let counts = readers(&client, |_| false, WINDOWS).await;
                assert_eq!(counts, BTreeMap::from([(holder, 150)]), "the others don't have it");
                assert_eq!(leases(&bench).await, 0);
                bench.outage(false);
                bench.running.wait_flushed().await;
            } else {
                put(&client, NUMBER).await;
            }
            let before = leases(&bench).await;
            let is_spread =
                |counts: &BTreeMap<String, usize>| counts.len() == 3 && counts.values().all(|count| *count > 15);
            let counts = readers(&client, is_spread, BOUND).await;
            assert!(is_spread(&counts), "{mode}: {counts:?}");
            let given = leases(&bench).await - before;
            println!("{mode}: of 150 reads {counts:?}, {given} leases");
            assert!(given > 0);
            // Copies that the lease has made go with the block.
            client.delete(&key(NUMBER)).await.unwrap();
            for _ in 0..30 {
                assert_eq!(read(&client, NUMBER).await, Err(ClientError::Absent), "{mode}");
            }
            put(&client, NUMBER).await;
            check(&client, NUMBER).await;
        }
    });
}
