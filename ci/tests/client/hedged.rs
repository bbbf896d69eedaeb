//! Hedged reads against real members, one of which stops for a moment.
//!
//! Part of `client`. The tail is cut, few reads are asked twice, and only who has the block clean counts: not whoever has none of it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay::client::{Client, ClientError, Hedging, Settings};
use rustix::process::Signal;

use super::{Bench, block_on, check, content, key, put, read};
use crate::running::signal;

/// Shorter than a member may take before it is pinged.
const STOPPED: Duration = Duration::from_millis(450);
/// Well below it.
const CUT: Duration = Duration::from_millis(300);
/// Reads that are worth a percentile, and some hedges.
const LEARNING: u64 = 150;

/// Reads while a process does not run, which goes on by itself.
async fn read_while_stopped(client: &Client, pid: u32, number: u64) -> (Duration, Result<bytes::Bytes, ClientError>) {
    signal(pid, Signal::STOP);
    let continued = std::thread::spawn(move || {
        std::thread::sleep(STOPPED);
        signal(pid, Signal::CONT);
    });
    let began = Instant::now();
    let got = read(client, number).await;
    let took = began.elapsed();
    continued.join().unwrap();
    (took, got)
}

async fn warm(client: &Client) {
    for number in 0..LEARNING {
        check(client, number % 8).await;
    }
}

async fn open(bench: &Bench, mode: &str, hedge: Hedging) -> Client {
    let settings = Settings { hedge, ..bench.settings() };
    Client::open(settings, &bench.running.volume(mode).name).await.unwrap()
}

#[test]
fn a_slow_member_does_not_make_reads_slow_if_another_has_the_block() {
    let bench = Bench::new("2", "0");
    let volume = |mode: &str| bench.running.volume(mode).name.clone();
    let pid = |proxy: usize| bench.running.summary.proxies[proxy].pid;
    block_on(async {
        for mode in ["write-through", "write-back"] {
            let client = open(&bench, mode, Hedging::On).await;
            let plain = open(&bench, mode, Hedging::Off).await;
            for number in 0..8 {
                put(&client, number).await;
            }
            bench.running.wait_flushed().await;
            let first = bench.running.first_in_rank(&volume(mode), &key(0));
            // What only one member has, it alone can answer.
            warm(&client).await;
            let (took, got) = read_while_stopped(&client, pid(first), 0).await;
            assert_eq!(got, Ok(content(0)), "{mode}");
            let hedged = || client.counters().hedged_reads.load(Ordering::Relaxed);
            let won = || client.counters().hedges_won.load(Ordering::Relaxed);
            println!("{mode}: {took:?} where the other member has nothing; {} of {} hedges counted", won(), hedged());
            // By then it has fetched it, and has it as the store does.
            let path = format!("/v1/volumes/{}/blocks/plain/0", volume(mode));
            let url = format!("{}{path}", bench.running.urls(1 - first)[0]);
            let copied = bench.running.client.get(url).bearer_auth(&bench.running.summary.token).send().await.unwrap();
            assert_eq!(copied.bytes().await.unwrap(), content(0));
            let (mut slowest, won_before) = (Duration::ZERO, won());
            for _ in 0..3 {
                for number in 0..30 {
                    check(&client, number % 8).await;
                }
                let (took, got) = read_while_stopped(&client, pid(first), 0).await;
                assert_eq!(got, Ok(content(0)), "{mode}");
                slowest = slowest.max(took);
            }
            let (unhedged, got) = read_while_stopped(&plain, pid(first), 0).await;
            assert_eq!(got, Ok(content(0)));
            println!("{mode}: {slowest:?} at most with hedging, {unhedged:?} without");
            assert!(slowest < CUT && unhedged > CUT, "{mode}: {slowest:?}, {unhedged:?}");
            assert!(won() >= won_before + 3);
            let reads = LEARNING + 1 + 3 * 31;
            assert!(hedged() * 25 <= reads, "{} of {reads}", hedged());
            // Who has nothing is not believed, however long the other takes.
            for number in 0..30 {
                check(&client, 1 + number % 7).await;
            }
            client.delete(&key(0)).await.unwrap();
            let (_, got) = read_while_stopped(&client, pid(first), 0).await;
            assert_eq!(got, Err(ClientError::Absent), "{mode}");
        }
    });
}
