//! Random verbs from several clients at once, crashes, an unreliable origin and an unreliable disk, against a reference
//! model of what each key may hold: acknowledged puts and deletes hold at their level, and nothing else is ever read.
//! Every seed is one run, replayable: `FOREBAY_SEED=n cargo test --test model`.
#![allow(clippy::unwrap_used)]

#[path = "support/history.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod history;
#[path = "support/node.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod node;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::Runtime;
use forebay_io::checksum::Digest;
use forebay_io::sim::{Faults, OneIn, SimDisk, SimRuntime};
use forebay_shard::config::ShardConfig;
use forebay_shard::origin::Etag;
use forebay_shard::outcome::{Condition, Durability, Headed, Put, Removed};
use forebay_shard::sim_origin::{Link, OriginFaults};
use forebay_shard::stats::Counts;
use futures::future::{Either, select};
use history::{KeyHistory, State};
use node::{Answer, Node, SimShard, body, config, key, put, read};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const KEYS: usize = 12;
const CLIENTS: usize = 6;
const VERSIONS: u64 = 3;

/// What all clients share and what outlives crashes.
struct Shared {
    keys: Vec<RefCell<KeyHistory>>,
    versions: HashMap<Digest, (usize, u64)>,
    stop: Cell<bool>,
    running: Cell<usize>,
    rot: bool,
}

fn content(index: usize, version: u64) -> Bytes {
    let lens = [0, 1, 700, 4_096, 9_000, 17_000, 32_768];
    body(index as u64 * 100 + version, lens[(index + version as usize) % lens.len()].max(usize::from(version > 0) * 3))
}

impl Shared {
    fn new(node: &Node, rng: &mut SmallRng, rot: bool) -> Rc<Shared> {
        let mut versions = HashMap::new();
        let keys = (0..KEYS).map(|index| {
            versions.extend((0..VERSIONS).map(|version| (Digest::of(&content(index, version)), (index, version))));
            let key = key(["back", "spill", "through"][index % 3], &format!("key/{index}"));
            let history = match rng.random_range(0..6) {
                0 => {
                    node.origin.insert(&key, content(index, 0), None);
                    KeyHistory::new(key, Some(0))
                }
                1 => {
                    node.origin.insert(&key, content(index, 0), Some("by-others"));
                    KeyHistory::stored_by_others(key)
                }
                _ => KeyHistory::new(key, None),
            };
            RefCell::new(history)
        });
        let keys = keys.collect();
        Rc::new(Shared { keys, versions, stop: Cell::new(false), running: Cell::new(0), rot })
    }

    /// What an answer tells about a key.
    fn state(&self, index: usize, answer: &Answer) -> Option<State> {
        match answer {
            Answer::Body(bytes) => {
                let known = self.versions.get(&Digest::of(bytes));
                let (of_key, version) =
                    *known.unwrap_or_else(|| panic!("I8: wrong bytes of key {index}: {} bytes", bytes.len()));
                // Blocks of three bytes or less may be alike.
                assert!(of_key == index || bytes.len() <= 3, "I8: the bytes of key {of_key} for key {index}");
                Some(Some(if of_key == index { version } else { self.version_of(index, bytes) }))
            }
            Answer::Absent => Some(None),
            Answer::Lost => {
                assert!(self.rot, "nothing rots on this disk");
                None
            }
            Answer::Declined | Answer::Failed => None,
        }
    }

    fn version_of(&self, index: usize, bytes: &Bytes) -> u64 {
        (0..VERSIONS).find(|version| content(index, *version) == *bytes).expect("I8: the bytes of another key")
    }
}

/// One client: random verbs on random keys until it is told to stop.
struct Client {
    shared: Rc<Shared>,
    shard: SimShard,
    disk: SimDisk,
    runtime: SimRuntime,
    rng: SmallRng,
    number: usize,
}

impl Client {
    async fn run(mut self) {
        self.shared.running.set(self.shared.running.get() + 1);
        while !self.shared.stop.get() {
            let index = self.rng.random_range(0..KEYS);
            match self.rng.random_range(0..100) {
                0..45 => self.read(index).await,
                45..52 => self.give_up_a_read(index).await,
                52..57 => self.head(index).await,
                57..62 => self.purge(index).await,
                62..85 => self.put(self.own(index)).await,
                _ => self.delete(self.own(index)).await,
            }
            if self.rng.random_range(0..3) == 0 {
                self.runtime.sleep(Duration::from_micros(self.rng.random_range(0..20_000))).await;
            }
        }
        self.shared.running.set(self.shared.running.get() - 1);
    }

    /// A key that this client alone writes.
    fn own(&self, index: usize) -> usize {
        index / CLIENTS * CLIENTS + self.number
    }

    fn key(&self, index: usize) -> forebay_shard::key::BlockKey {
        self.shared.keys[index].borrow().key.clone()
    }

    async fn read(&mut self, index: usize) {
        let reader = self.shared.keys[index].borrow_mut().begin_read();
        let answer = read(&self.shard, &self.disk, &self.key(index)).await;
        self.shared.keys[index].borrow_mut().end_read(reader, self.shared.state(index, &answer));
    }

    async fn give_up_a_read(&mut self, index: usize) {
        let reader = self.shared.keys[index].borrow_mut().begin_read();
        let key = self.key(index);
        let patience = self.runtime.sleep(Duration::from_micros(self.rng.random_range(0..20_000)));
        // What `get` pins is the reader's to unpin, so only the wait for the answer is given up.
        match select(Box::pin(self.shard.get(&key)), Box::pin(patience)).await {
            Either::Left((forebay_shard::outcome::Got::Disk(located), _)) => self.shard.unpin(located.pin),
            Either::Left(_) | Either::Right(_) => {}
        }
        self.shared.keys[index].borrow_mut().drop_read(reader);
    }

    async fn head(&mut self, index: usize) {
        let reader = self.shared.keys[index].borrow_mut().begin_read();
        let state = match self.shard.head(&self.key(index)).await {
            Headed::Found(meta) => match meta.etag {
                Etag::Digest(digest) => (0..VERSIONS).find(|v| Digest::of(&content(index, *v)) == digest).map(Some),
                Etag::Origin(_) => Some(Some(0)),
            },
            Headed::Absent => Some(None),
            Headed::Lost | Headed::Declined(_) | Headed::Failed(_) => None,
        };
        self.shared.keys[index].borrow_mut().end_read(reader, state);
    }

    async fn purge(&mut self, index: usize) {
        let removed = self.shard.purge(&self.key(index)).await;
        self.shared.keys[index].borrow_mut().note(format!("purge: {removed:?}"));
        assert!(!matches!(removed, Removed::Failed(_)), "a purge asks nobody");
    }

    async fn put(&mut self, index: usize) {
        let version = self.rng.random_range(0..VERSIONS);
        let asked = if self.rng.random_range(0..4) == 0 { Durability::Origin } else { Durability::Disk };
        let condition = if self.rng.random_range(0..5) == 0 { Condition::Absent } else { Condition::Any };
        let key = self.key(index);
        self.shared.keys[index].borrow_mut().begin_write(Some(version));
        let put = Put { condition: condition.clone(), ..put(&key, &content(index, version), asked) };
        let done = self.shard.put(put).await;
        self.shared.keys[index].borrow_mut().end_put(version, &condition, asked, &done);
    }

    async fn delete(&mut self, index: usize) {
        let key = self.key(index);
        self.shared.keys[index].borrow_mut().begin_write(None);
        let removed = self.shard.delete(&key).await;
        self.shared.keys[index].borrow_mut().end_delete(&removed);
    }
}

fn begin_clients(node: &Node, shared: &Rc<Shared>, rng: &mut SmallRng) {
    shared.stop.set(false);
    shared.running.set(0);
    for number in 0..CLIENTS {
        let client = Client {
            shared: Rc::clone(shared),
            shard: node.shard.clone(),
            disk: node.world.disk(),
            runtime: node.world.runtime(),
            rng: SmallRng::seed_from_u64(rng.random()),
            number,
        };
        node.world.runtime().spawn(client.run());
    }
}

fn random_origin_faults(rng: &mut SmallRng) -> OriginFaults {
    let mut odds = || if rng.random_range(0..3) == 0 { rng.random_range(3..20) } else { 0 };
    OriginFaults {
        fetch_error: odds(),
        reset: odds(),
        wrong_length: odds(),
        wrong_bytes: odds(),
        store_error: odds(),
        store_unknown: odds(),
        head_error: odds(),
        delete_error: odds(),
        delete_unknown: odds(),
    }
}

/// One phase of work: clients run while the origin comes and goes.
fn work(node: &Node, shared: &Rc<Shared>, rng: &mut SmallRng) {
    begin_clients(node, shared, rng);
    node.origin.set_faults(random_origin_faults(rng));
    for _ in 0..rng.random_range(2..8) {
        node.origin.set_link(if rng.random_range(0..4) > 0 { Link::Up } else { Link::Down });
        node.pass(Duration::from_micros(rng.random_range(0..150_000)));
        node.shard.check();
    }
}

/// Lets the clients end what they have begun.
fn rest(node: &Node, shared: &Rc<Shared>) {
    shared.stop.set(true);
    for _ in 0..1_000 {
        if shared.running.get() == 0 {
            return;
        }
        node.pass(Duration::from_millis(10));
    }
    panic!("a verb has not ended after ten seconds");
}

/// With everything well again all of it reaches the origin, and everybody agrees.
fn settle(node: &Node, shared: &Shared) {
    node.world.set_faults(Faults::default());
    node.origin.set_faults(OriginFaults::default());
    node.origin.set_link(Link::Up);
    let report = node.run(async |shard| shard.flush_all(Duration::from_secs(600)).await);
    node.shard.check();
    let contested = shared.keys.iter().filter(|key| key.borrow().contested).count() as u64;
    assert_eq!(report.remaining, report.conflicts + report.lost, "{report:?} {:?}", node.shard.dirty_items(20));
    assert!(report.conflicts <= contested, "{report:?}, contested {contested}");
    for (index, history) in shared.keys.iter().enumerate() {
        let history = history.borrow();
        let answer = node.read(&history.key);
        let state = shared.state(index, &answer);
        if shared.rot && state.is_none() {
            continue;
        }
        let state = state.unwrap_or_else(|| panic!("{:?}: {answer:?}", history.key));
        assert!(history.possible.contains(&state), "{:?}: {state:?} of {:?}", history.key, history.possible);
        if !history.contested && !shared.rot {
            let at_origin = node.origin.body(&history.key).map(|bytes| shared.version_of(index, &bytes));
            assert!(history.possible.contains(&at_origin), "{:?}: origin has {at_origin:?}", history.key);
        }
    }
}

struct Run {
    counts: Counts,
    faults: u64,
}

fn run(seed: u64, disk_faults: Faults) -> Run {
    let mut rng = SmallRng::seed_from_u64(seed);
    let config = ShardConfig {
        memory_tier_bytes: [0, 40_000, 1 << 20][rng.random_range(0..3)],
        dirty_bytes_max: [20_000, 60_000, 1 << 20][rng.random_range(0..3)],
        fills_max: [2, 64][rng.random_range(0..2)],
        ..config()
    };
    let mut node = Node::with_config(seed, config);
    let shared = Shared::new(&node, &mut rng, disk_faults.bit_flip != OneIn::NEVER);
    let mut counts = Counts::default();
    for _ in 0..rng.random_range(1..4) {
        node.world.set_faults(disk_faults.clone());
        work(&node, &shared, &mut rng);
        node.world.set_faults(Faults::default());
        counts.add(&node.shard.stats().counts);
        if shared.rot {
            rest(&node, &shared);
            break;
        }
        node.crash();
        shared.keys.iter().for_each(|key| key.borrow_mut().crash());
        node.shard.check();
    }
    if !shared.rot {
        work(&node, &shared, &mut rng);
    }
    rest(&node, &shared);
    counts.add(&node.shard.stats().counts);
    settle(&node, &shared);
    Run { counts, faults: node.origin.counts().faults }
}

fn run_all(seeds: std::ops::Range<u64>, disk_faults: &Faults) -> Run {
    let mut total = Run { counts: Counts::default(), faults: 0 };
    let replay = std::env::var("FOREBAY_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in replay.map_or(seeds, |seed: u64| seed..seed + 1) {
        let outcome = std::panic::catch_unwind(|| run(seed, disk_faults.clone()));
        let run = outcome.unwrap_or_else(|panic| {
            eprintln!("replay with FOREBAY_SEED={seed}");
            std::panic::resume_unwind(panic)
        });
        total.counts.add(&run.counts);
        total.faults += run.faults;
    }
    total
}

#[test]
fn i3_i8_i11_acknowledged_verbs_hold_through_crashes_and_an_unreliable_origin() {
    let total = run_all(0..300, &Faults::default());
    let c = total.counts;
    let seen = [
        c.hits_memory,
        c.hits_disk,
        c.misses,
        c.collapsed,
        c.absent,
        c.fills_published,
        c.fills_invalidated,
        c.fills_failed,
        c.fills_abandoned,
        c.puts_created,
        c.puts_unchanged,
        c.puts_refused,
        c.changes_failed,
        c.deletes,
        c.purges,
        c.flushes,
        c.flushes_failed,
        c.conflicts,
        total.faults,
    ];
    assert!(seen.iter().all(|count| *count > 50), "the runs met everything: {c:?}");
    assert_eq!((c.lost, c.rot), (0, 0), "nothing rots on these disks");
}

#[test]
fn i3_a_disk_that_fails_writes_and_syncs_loses_nothing_that_was_acknowledged() {
    let faults = Faults { write_error: OneIn(150), sync_error: OneIn(150), read_error: OneIn(60), ..Faults::default() };
    let total = run_all(1_000..1_400, &faults);
    assert!(total.counts.puts_created > 500 && total.counts.flushes > 100, "{:?}", total.counts);
}

#[test]
fn i8_a_disk_that_rots_serves_no_wrong_byte_and_uploads_none() {
    let faults = Faults { bit_flip: OneIn(40), ..Faults::default() };
    let total = run_all(2_000..2_100, &faults);
    assert!(total.counts.rot > 20 && total.counts.lost > 5, "{:?}", total.counts);
}
