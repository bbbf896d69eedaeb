//! Small crash workloads, all of them: every sequence of a few verbs over two keys, the power cut at every change of the
//! disk, every combination of kept, dropped and torn for the last unsynced writes.
//!
//! Random runs find what needs many steps; this proves that nothing small was overlooked. Called by `program` and, with
//! shorter sequences, by `tests/sim.rs`. After each cut the machine recovers, is judged by the same model as random runs,
//! reads both keys and flushes everything.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use forebay_io::Runtime;
use forebay_io::sim::{Crashed, Latency, SimWorld, Survival};
use forebay_shard::config::{
    Access, DirtyFull, DiskLimits, Geometry, HealthLimits, ShardConfig, SyncMode, VolumeConfig, WriteMode,
};
use forebay_shard::key::BlockKey;
use forebay_shard::outcome::{Condition, Durability, PinDone, Put};

use super::campaign::last_panic;
use super::history;
use super::machine::{Machine, SimShard};
use super::model::KeyModel;
use super::pins::PinModel;
use super::plan::DiskMode;
use super::rack::Rack;
use super::reader::{Answer, Reader};
use super::truth::Truth;
use super::universe::{Subject, Universe, content};

/// So many of the last unsynced writes take every fate; earlier ones are kept.
const SURVIVORS_MAX: usize = 4;
/// How long a workload runs on after its last verb: the flusher's time.
const REST: Duration = Duration::from_millis(20);

/// One step of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Put(usize, u8),
    Delete(usize),
    Get(usize),
    Purge(usize),
    Pin(usize),
    Unpin(usize),
    Flush,
}

impl Verb {
    fn key(self) -> Option<usize> {
        match self {
            Verb::Put(key, _) | Verb::Delete(key) | Verb::Get(key) | Verb::Purge(key) => Some(key),
            Verb::Pin(key) | Verb::Unpin(key) => Some(key),
            Verb::Flush => None,
        }
    }

    fn all() -> Vec<Verb> {
        let of_key = |key| {
            let changes = [Verb::Put(key, 1), Verb::Put(key, 2), Verb::Delete(key), Verb::Purge(key)];
            changes.into_iter().chain([Verb::Get(key), Verb::Pin(key), Verb::Unpin(key)])
        };
        (0..2).flat_map(of_key).chain([Verb::Flush]).collect()
    }
}

/// One workload and one way for it to end.
#[derive(Debug, Clone)]
struct Case {
    verbs: Vec<Verb>,
    /// The volume of the second key; the first is in `back`. The origin holds version 0 of the second.
    second: &'static str,
    /// The power is cut at the beginning of this change after the opening; `None`: at the end.
    cut: Option<u64>,
    survival: Vec<Survival>,
}

/// What was run.
#[derive(Default)]
pub struct Counts {
    workloads: AtomicU64,
    cuts: AtomicU64,
    cases: AtomicU64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} workloads, cut at {} changes, {} ways to survive",
            count(&self.workloads),
            count(&self.cuts),
            count(&self.cases)
        )
    }
}

/// Runs every workload of up to `len` verbs.
///
/// # Errors
/// The first violation, in words.
pub fn exhaust(len: usize, jobs: usize) -> Result<Counts, String> {
    let workloads = workloads(len);
    let (counts, next, failed) = (Counts::default(), AtomicUsize::new(0), AtomicBool::new(false));
    let violation = Mutex::new(None);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some(case) = workloads.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            counts.workloads.fetch_add(1, Ordering::Relaxed);
            if let Err(words) = exhaust_one(case, &counts) {
                failed.store(true, Ordering::Relaxed);
                violation.lock().unwrap_or_else(PoisonError::into_inner).replace(words);
            }
        }
    };
    std::thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work))));
    match violation.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(words) => Err(words),
        None => Ok(counts),
    }
}

/// Both keys in a write-back volume, where either may be called the first; and the second in a write-through volume.
fn workloads(len: usize) -> Vec<Case> {
    let (mut all, mut longest) = (Vec::new(), vec![Vec::new()]);
    for _ in 0..len {
        longest = longest
            .iter()
            .flat_map(|verbs: &Vec<Verb>| {
                Verb::all().into_iter().map(|verb| verbs.iter().copied().chain([verb]).collect::<Vec<_>>())
            })
            .collect();
        all.extend_from_slice(&longest);
    }
    let case = |verbs: &Vec<Verb>, second| Case { verbs: verbs.clone(), second, cut: None, survival: Vec::new() };
    let back = all.iter().map(|verbs| case(verbs, "back"));
    let through = all.iter().filter(|verbs| verbs.iter().any(|verb| verb.key() == Some(1)));
    back.chain(through.map(|verbs| case(verbs, "through"))).collect()
}

/// One workload, cut off everywhere.
fn exhaust_one(workload: &Case, counts: &Counts) -> Result<(), String> {
    let whole = try_case(workload)?;
    for cut in (0..whole.changes).map(Some).chain([None]) {
        counts.cuts.fetch_add(1, Ordering::Relaxed);
        let mut case = Case { cut, ..workload.clone() };
        let doubts = try_case(&case)?.doubts.min(SURVIVORS_MAX);
        counts.cases.fetch_add(1, Ordering::Relaxed);
        // The first combination, everything kept, was just run.
        for number in 1..3usize.pow(doubts as u32) {
            case.survival = survival(number, doubts);
            try_case(&case)?;
            counts.cases.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn survival(number: usize, count: usize) -> Vec<Survival> {
    let fate = |digit| [Survival::Kept, Survival::Dropped, Survival::Torn][number / 3usize.pow(digit) % 3];
    (0..count as u32).map(fate).collect()
}

fn try_case(case: &Case) -> Result<Seen, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run_case(case)));
    outcome.map_err(|_| format!("in {case:?}: {}\n{}", last_panic(), history::tell()))
}

/// What a case showed.
struct Seen {
    /// Changes of the disk after the opening.
    changes: u64,
    /// Decisions that the cut could take.
    doubts: usize,
}

struct Bench {
    machine: Machine,
    universe: Universe,
    models: Vec<RefCell<KeyModel>>,
    pins: Vec<RefCell<PinModel>>,
}

fn run_case(case: &Case) -> Seen {
    history::begin();
    let mut bench = Bench::new(case);
    bench.machine.open().expect("no crash is ordered").expect("a new store opens");
    let first = bench.machine.world.changes();
    if let Some(cut) = case.cut {
        bench.machine.world.crash_at(first + cut);
    }
    bench.machine.world.set_survivors(case.survival.clone());
    let shard = bench.machine.shard().clone();
    let world = bench.machine.world.clone();
    let done = world.run(async {
        for verb in &case.verbs {
            bench.act(&shard, *verb).await;
        }
        world.runtime().sleep(REST).await;
    });
    let changes = world.changes() - first;
    drop(shard);
    if done.is_ok() {
        bench.machine.crash();
    }
    let doubts = bench.machine.world.doubts();
    bench.recover();
    Seen { changes, doubts }
}

impl Bench {
    fn new(case: &Case) -> Bench {
        let world = SimWorld::new(1);
        world.set_latency(Latency { read_us: 10..11, write_us: 10..11, sync_us: 20..21, spike_us: 0..1 });
        let subject = |volume: &str, number: u64| Subject {
            key: BlockKey::new(volume.into(), format!("key/{number}")),
            // One sector; two, so that it can be torn; a small one.
            versions: [(0, 3_000), (1, 6_000), (2, 600)].map(|(v, len)| content(number * 10 + v + 1, len)).into(),
        };
        let universe = Universe::new(vec![subject("back", 0), subject(case.second, 1)], 2);
        let geometry = Geometry { region_bytes: 64 << 10, region_count: 6, journal_bytes: 64 << 10 };
        let machine = Machine::new(world, 1, geometry, config(), Rack::of_one());
        machine.origin.set_latency_us(100..101);
        machine.origin.insert(universe.key(1), universe.version(1, 0).body.clone(), None);
        let models = vec![RefCell::new(KeyModel::new(0, None)), RefCell::new(KeyModel::new(1, Some(0)))];
        Bench { machine, universe, models, pins: vec![RefCell::default(), RefCell::default()] }
    }

    async fn act(&self, shard: &SimShard, verb: Verb) {
        let now = || self.machine.world.runtime().now();
        match verb {
            Verb::Put(index, version) => {
                let put = self.put_of(index, version);
                let id = self.models[index].borrow_mut().begin_write(Some(version));
                history::note(now(), 0, index, "put", u64::from(version));
                let through = &*put.key.volume == "through";
                let done = shard.put(put).await;
                history::note(now(), 0, index, "put answered", u64::from(version));
                let mut model = self.models[index].borrow_mut();
                model.end_put(id, through, &Condition::Any, Durability::Disk, &done);
            }
            Verb::Delete(index) => {
                let id = self.models[index].borrow_mut().begin_write(None);
                let change = self.pins[index].borrow_mut().begin();
                history::note(now(), 0, index, "delete", 0);
                let done = shard.delete(self.universe.key(index)).await;
                history::note(now(), 0, index, "delete answered", 0);
                self.pins[index].borrow_mut().end_removal(change, &done);
                self.models[index].borrow_mut().end_delete(id, &done);
            }
            Verb::Get(index) => self.read(shard, index).await,
            Verb::Purge(index) => {
                let change = self.pins[index].borrow_mut().begin();
                let done = shard.purge(self.universe.key(index)).await;
                history::note(now(), 0, index, "purge answered", 0);
                self.pins[index].borrow_mut().end_removal(change, &done);
            }
            Verb::Pin(index) => {
                let change = self.pins[index].borrow_mut().begin();
                history::note(now(), 0, index, "pin", 0);
                let done = shard.pin(self.universe.key(index)).await;
                history::note(now(), 0, index, "pin answered", u64::from(matches!(done, PinDone::Done)));
                self.pins[index].borrow_mut().end_pin(index, change, &done, DiskMode::Honest);
            }
            Verb::Unpin(index) => {
                let change = self.pins[index].borrow_mut().begin();
                let done = shard.unpin_block(self.universe.key(index)).await;
                history::note(now(), 0, index, "unpin answered", 0);
                self.pins[index].borrow_mut().end_unpin(change, &done);
            }
            Verb::Flush => drop(shard.flush_all(Duration::from_secs(1)).await),
        }
    }

    fn put_of(&self, index: usize, version: u8) -> Put {
        let content = self.universe.version(index, version);
        Put {
            key: self.universe.key(index).clone(),
            frames: vec![content.body.clone()],
            len_bytes: u32::try_from(content.body.len()).expect("blocks are small"),
            digest: content.digest,
            condition: Condition::Any,
            durability: Durability::Disk,
        }
    }

    async fn read(&self, shard: &SimShard, index: usize) {
        let reader = Reader::new(shard.clone(), self.machine.disks(), DiskMode::Honest).await;
        let id = self.models[index].borrow_mut().begin_read();
        match reader.read(&self.universe, index).await {
            Answer::Shows(states) => {
                history::note(self.machine.world.runtime().now(), 0, index, "read (version bits)", states.bits());
                self.models[index].borrow_mut().end_read(id, states);
            }
            Answer::Lost | Answer::Nothing => history::violation(index, "nothing fails here"),
        }
    }

    /// Recovers and judges: what was acknowledged is there, is read, and reaches the origin.
    fn recover(&mut self) {
        history::note(self.machine.world.runtime().now(), 0, history::NO_KEY, "the power failed", 0);
        self.models.iter().for_each(|model| model.borrow_mut().crash());
        self.pins.iter().for_each(|pin| pin.borrow_mut().crash());
        self.machine.open().expect("no crash is ordered").unwrap_or_else(|error| panic!("refuses to open: {error}"));
        self.judge();
        let shard = self.machine.shard().clone();
        let done: Result<(), Crashed> = self.machine.world.run(async {
            for index in 0..2 {
                self.read(&shard, index).await;
            }
            let report = shard.flush_all(Duration::from_secs(60)).await;
            assert_eq!(report.remaining, report.conflicts, "everything is flushed");
        });
        done.expect("no crash is ordered");
        self.judge();
    }

    fn judge(&self) {
        self.machine.shard().check();
        let truth = Truth::of(&self.machine, &self.universe);
        for (index, model) in self.models.iter().enumerate() {
            model.borrow_mut().recovered(truth.state(index), truth.dirty_over(index));
            let found = self.machine.shard().pinning(self.universe.key(index));
            self.pins[index].borrow().judge(index, found);
        }
    }
}

fn config() -> ShardConfig {
    let volume = |name: &str, write_mode| VolumeConfig {
        name: name.into(),
        block_bytes_max: 8 << 10,
        write_mode,
        dirty_full: DirtyFull::Decline,
        access: Access::ReadWrite,
    };
    ShardConfig {
        shard: 0,
        volumes: vec![volume("back", WriteMode::Back), volume("through", WriteMode::Through)],
        memory_tier_bytes: 0,
        fill_bytes_max: 64 << 10,
        dirty_bytes_max: 128 << 10,
        sync: SyncMode::Always,
        flush_parallelism: 2,
        commit_delay: Duration::ZERO,
        fills_max: 4,
        health: HealthLimits::default(),
        disk_limits: DiskLimits::default(),
    }
}
