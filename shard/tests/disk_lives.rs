//! Many lives of one shard whose disks come and go, at random: I11 and I13 and promise 3 against a plain map of what was
//! acknowledged. Between two lives the power is cut; a disk may be away, a new one may come, an empty one may be taken out.
//!
//! Run with all tests; `FOREBAY_SEEDS=N` for more. A seed is one history, replayed exactly.
#![allow(clippy::unwrap_used)]

#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;
#[path = "support/rack.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod rack;

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_shard::disks::Strays;
use forebay_shard::outcome::{DeclinedReason, PutDone, Removed};
use forebay_shard::sim_origin::Link;
use node::body;
use rack::{Answer, Rack, numbered};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const KEYS: u64 = 24;
const LIVES: u32 = 14;
const OPS: u32 = 60;

/// The rack, the disks it has, and what was acknowledged.
struct Lives {
    rack: Rack,
    rng: SmallRng,
    disks: Vec<&'static str>,
    unused: Vec<&'static str>,
    strays: Strays,
    /// The version that each key has.
    model: BTreeMap<u64, Option<u64>>,
    versions: u64,
    is_whole: bool,
    link: Link,
}

impl Lives {
    fn new(seed: u64) -> Lives {
        let rack = Rack::new(&["a", "b"]);
        let rng = SmallRng::seed_from_u64(seed);
        let (disks, unused) = (vec!["a", "b"], vec!["c", "d", "e", "f"]);
        let model = (0..KEYS).map(|n| (n, None)).collect();
        Lives { rack, rng, disks, unused, strays: Strays::None, model, versions: 0, is_whole: true, link: Link::Down }
    }

    /// The next life: which disks the machine has, and which of them it finds.
    fn begin(&mut self) {
        if self.disks.len() < 3 && !self.unused.is_empty() && self.rng.random_range(0..4) == 0 {
            let new = self.unused.remove(0);
            self.rack.format(new);
            let at = self.rng.random_range(0..=self.disks.len());
            self.disks.insert(at, new);
            self.strays = Strays::Possible;
        }
        let away = (self.disks.len() > 1 && self.rng.random_range(0..4) == 0)
            .then(|| self.rng.random_range(0..self.disks.len()));
        self.is_whole = away.is_none();
        let names: Vec<String> = (0..)
            .zip(&self.disks)
            .map(|(at, name)| if away == Some(at) { format!("!{name}") } else { (*name).to_owned() })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.link = if self.rng.random_range(0..3) == 0 { Link::Up } else { Link::Down };
        self.rack.origin.set_link(self.link);
        self.rack.open(&names, self.strays);
        if self.rack.shard().is_settled() {
            self.strays = Strays::None;
        }
    }

    fn act(&mut self) {
        let n = self.rng.random_range(0..KEYS);
        match self.rng.random_range(0..10) {
            0..3 => self.get(n),
            3..7 => {
                if self.delete(n) {
                    self.put(n);
                }
            }
            7..9 => drop(self.delete(n)),
            _ => self.rack.pass(Duration::from_millis(self.rng.random_range(0..2_000))),
        }
    }

    fn get(&mut self, n: u64) {
        let allowed = self.model[&n];
        match (self.rack.get(&numbered(n)), allowed) {
            (Answer::Body(bytes, _) | Answer::Filled(bytes), Some(version)) => {
                assert!(bytes == version_body(version), "key {n} has other bytes than those of version {version}");
            }
            (Answer::Absent, None) => {}
            (Answer::Declined(DeclinedReason::DiskFault), _) if !self.is_whole => {}
            (Answer::Failed, _) if self.link == Link::Down => {}
            (answer, allowed) => panic!("key {n}: {}, acknowledged was {allowed:?}", answer.word()),
        }
    }

    fn put(&mut self, n: u64) {
        self.versions += 1;
        match self.rack.put(&numbered(n), &version_body(self.versions)) {
            PutDone::Created(_) => drop(self.model.insert(n, Some(self.versions))),
            PutDone::Declined(declined) if declined.reason == DeclinedReason::DiskFault && !self.is_whole => {}
            done => panic!("key {n}: {done:?}"),
        }
    }

    fn delete(&mut self, n: u64) -> bool {
        match self.rack.delete(&numbered(n)) {
            Removed::Done(_) => {
                self.model.insert(n, None);
                true
            }
            Removed::Declined(declined) if declined.reason == DeclinedReason::DiskFault && !self.is_whole => false,
            removed => panic!("key {n}: {removed:?}"),
        }
    }

    /// Takes a disk out that holds nothing dirty.
    fn take_out(&mut self) {
        if self.disks.len() < 2 || !self.is_whole || self.link == Link::Down || self.rng.random_range(0..2) == 0 {
            return;
        }
        self.rack.flush();
        let stats = self.rack.shard().stats();
        let at = self.rng.random_range(0..self.disks.len());
        assert_eq!(stats.disks[at].store.dirty_entries, 0);
        // What is journaled lazily may be dirty again after the cut: a node that stops in order writes it down.
        let shard = self.rack.shard().clone();
        self.rack.world.block_on(async { shard.close().await });
        self.disks.remove(at);
        self.strays = Strays::Possible;
    }

    fn end(&mut self) {
        self.rack.origin.set_link(Link::Up);
        self.link = Link::Up;
        let names = self.disks.clone();
        self.rack.open(&names, Strays::Possible);
        self.is_whole = true;
        (0..KEYS).for_each(|n| self.get(n));
        self.rack.flush();
        self.rack.pass(Duration::from_secs(60));
        assert!(self.rack.shard().is_settled());
        for (n, version) in &self.model {
            let expected = version.map(version_body);
            assert!(self.rack.origin.body(&numbered(*n)) == expected, "key {n} at the origin, version {version:?}");
        }
        (0..KEYS).for_each(|n| self.get(n));
    }
}

fn version_body(version: u64) -> bytes::Bytes {
    body(version, 300 + (version as usize * 211) % 9_000)
}

#[test]
fn i13_whatever_disks_come_and_go_no_key_is_older_than_what_was_acknowledged() {
    let seeds = std::env::var("FOREBAY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    for seed in 0..seeds {
        let ran = std::panic::catch_unwind(|| {
            let mut lives = Lives::new(seed);
            for _ in 0..LIVES {
                lives.begin();
                (0..OPS).for_each(|_| lives.act());
                (0..KEYS).for_each(|n| lives.get(n));
                lives.rack.shard().check();
                lives.take_out();
            }
            lives.end();
        });
        if let Err(panic) = ran {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
