//! One run: lives of one machine, each with clients at work and an end (a power cut anywhere, a clean close, a disk that
//! failed), a recovery that is judged, and at last everything well again and all of it at the origin.
//!
//! Called by `campaign` and `tests/sim.rs`. After each slice of a life `Shard::check` runs and the truth of every key is
//! compared with the model. Violations panic; `campaign` turns them into a report.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use forebay_io::Runtime;
use forebay_io::sim::{Crashed, Faults, SimWorld};
use forebay_shard::dirty::Standing;
use forebay_shard::disks::Strays;
use forebay_shard::health::HealthState;
use forebay_shard::sim_origin::{Link, OriginFaults};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::client::{Client, Shared, StrayCounts};
use super::coverage::Coverage;
use super::history::{self, DIRECTOR, NO_KEY};
use super::machine::{Machine, SLAB};
use super::model::KeyModel;
use super::operator::Operator;
use super::plan::{DiskMode, Plan, draw_origin_faults};
use super::rack::Rack;
use super::reader::{Answer, Reader};
use super::truth::Truth;

mod disks;

use self::disks::{is_whole, strays};

/// A verb that takes longer, in virtual time, never ends.
const VERB_MAX: Duration = Duration::from_secs(600);

/// What a run without a violation was.
pub struct Ran {
    /// Verbs begun.
    pub ops: u64,
    /// Over all that happened.
    pub digest: u128,
    pub coverage: Coverage,
}

/// Runs one seed to its end, at least `steps` verbs.
///
/// # Panics
/// On a violation.
pub fn run(world: SimWorld, seed: u64, steps: u64) -> Ran {
    history::begin();
    let mut rng = SmallRng::seed_from_u64(seed);
    let plan = Plan::draw(&mut rng);
    let mut operator = Operator::draw(seed);
    let rack = operator.as_mut().map_or_else(Rack::of_one, Operator::first_rack);
    let machine = Machine::new(world, seed, plan.geometry, plan.config.clone(), rack);
    machine.world.set_latency(plan.latency.clone());
    machine.origin.set_latency_us(plan.origin_latency_us.clone());
    machine.origin.set_frame_bytes_max(plan.frame_bytes_max);
    let models = stock_origin(&machine, &plan, &mut rng);
    let pins = plan.universe.subjects.iter().map(|_| RefCell::default()).collect();
    let busy_since = RefCell::new(vec![None; plan.clients]);
    let (quota, ops, strays) = (Cell::new(0), Cell::new(0), StrayCounts::default());
    let shared = Shared { plan, models, pins, quota, ops, strays, busy_since };
    let mut director = Director {
        machine,
        shared: Rc::new(shared),
        rng,
        broken: SmallRng::seed_from_u64(seed ^ 0xB04E),
        operator,
        strays_met: 0,
        beside_offline: None,
        coverage: Coverage::default(),
        slot_damaged: false,
        closed: false,
    };
    let disk = match director.shared.plan.disk {
        DiskMode::Honest => "the disk is honest",
        DiskMode::Failing => "the disk fails",
        DiskMode::Lying => "the disk lies",
    };
    director.note(disk, seed);
    director.reopen();
    while director.shared.ops.get() < steps {
        director.live(steps);
    }
    director.settle();
    let Director { machine, shared, mut coverage, .. } = director;
    coverage.add_faults(&machine.world.fired(), &machine.origin.fired());
    history::note(machine.world.runtime().now(), DIRECTOR, NO_KEY, "changes of the disk", machine.world.changes());
    Ran { ops: shared.ops.get(), digest: history::digest(), coverage }
}

/// What the origin holds before anybody begins.
fn stock_origin(machine: &Machine, plan: &Plan, rng: &mut SmallRng) -> Vec<RefCell<KeyModel>> {
    let universe = &plan.universe;
    let models = universe.subjects.iter().enumerate().map(|(index, subject)| {
        let is_filler = index >= universe.written;
        let body = subject.versions[0].body.clone();
        RefCell::new(match rng.random_range(0..6) {
            0 => {
                machine.origin.insert(&subject.key, body, Some("by-others"));
                KeyModel::stored_by_others(index)
            }
            choice if choice == 1 || is_filler => {
                machine.origin.insert(&subject.key, body, None);
                KeyModel::new(index, Some(0))
            }
            _ => KeyModel::new(index, None),
        })
    });
    models.collect()
}

struct Director {
    machine: Machine,
    shared: Rc<Shared>,
    rng: SmallRng,
    /// What breaks, drawn apart.
    broken: SmallRng,
    /// Who looks after several disks; `None`: there is one.
    operator: Option<Operator>,
    /// Strays that this life began with.
    strays_met: u64,
    /// While a disk is offline with dirty blocks: another that is well, and what was written to it.
    beside_offline: Option<(usize, u64)>,
    coverage: Coverage,
    /// One checkpoint slot may be damaged in a run: with both damaged the store may refuse to open.
    slot_damaged: bool,
    /// Both slots are whole after a clean close; after a power cut one of them may be torn already.
    closed: bool,
}

/// How the work of a life ended.
enum End {
    /// All clients are done.
    Rest,
    /// The power failed.
    Cut,
}

impl Director {
    fn note(&self, what: &'static str, number: u64) {
        history::note(self.machine.world.runtime().now(), DIRECTOR, NO_KEY, what, number);
    }

    /// One life, or one more stretch of it, from recovery to its end and the next recovery.
    fn live(&mut self, steps: u64) {
        let left = steps - self.shared.ops.get();
        self.shared.quota.set(self.shared.plan.draw_quota(&mut self.rng).min(left.max(1)));
        let faults = self.shared.plan.draw_disk_faults(&mut self.rng);
        self.set_faults(faults);
        if self.shared.plan.disk != DiskMode::Lying && self.rng.random_range(0..2) == 0 {
            let change = self.machine.world.changes() + self.shared.plan.draw_crash(&mut self.rng);
            self.machine.world.crash_at(change);
        }
        self.note("a life begins", self.shared.quota.get());
        match self.work() {
            End::Cut => {
                self.count_strays_cut_off();
                self.end_life();
            }
            End::Rest => match self.rng.random_range(0..4) {
                // The same life goes on, with other faults.
                0 => return,
                1 => {
                    let shard = self.machine.shard().clone();
                    if self.machine.world.run(async move { shard.close().await }).is_ok() {
                        self.note("closed", 0);
                        self.closed = true;
                        self.coverage.one("clean close and open");
                    }
                    self.end_life();
                }
                _ => {
                    self.clear_doubt();
                    self.end_life();
                }
            },
        }
        if let Some(operator) = &mut self.operator {
            operator.work(&mut self.machine, &self.shared, &mut self.coverage);
        }
        self.reopen();
    }

    /// From now on these faults strike: of several disks one, or all.
    fn set_faults(&mut self, faults: Faults) {
        let faults = match &mut self.operator {
            Some(operator) => operator.aim(faults, &self.machine.rack),
            None => faults,
        };
        self.machine.world.set_faults(faults);
    }

    /// Lets the clients work until they are done or the power fails.
    fn work(&mut self) -> End {
        for number in 0..self.shared.plan.clients {
            let (world, machine) = (&self.machine.world, &self.machine);
            self.shared.busy_since.borrow_mut()[number] = Some(world.runtime().now());
            let client = Client {
                shared: Rc::clone(&self.shared),
                shard: machine.shard().clone(),
                rack: machine.rack.clone(),
                disks: machine.disks(),
                origin: machine.origin.clone(),
                runtime: world.runtime(),
                rng: SmallRng::seed_from_u64(self.rng.random()),
                number,
            };
            world.runtime().spawn(client.run());
        }
        while self.shared.busy_since.borrow().iter().any(Option::is_some) {
            if self.rng.random_range(0..6) == 0 {
                self.machine.origin.set_faults(draw_origin_faults(&mut self.rng));
                let is_up = self.rng.random_range(0..100) < self.shared.plan.link_up_percent;
                self.machine.origin.set_link(if is_up { Link::Up } else { Link::Down });
            }
            if self.shared.plan.disk == DiskMode::Failing && self.rng.random_range(0..8) == 0 {
                let spell = self.shared.plan.draw_spell(&mut self.rng);
                self.set_faults(spell);
            }
            let slice = Duration::from_micros(self.rng.random_range(0..40_000));
            if let Err(Crashed) = self.machine.world.run_for(slice) {
                return End::Cut;
            }
            self.check();
            self.watch_disks();
        }
        End::Rest
    }

    /// After each slice: the engine's own invariants, and what every key is.
    fn check(&self) {
        self.machine.shard().check();
        let truth = Truth::of(&self.machine, &self.shared.plan.universe);
        for index in 0..self.shared.plan.universe.written {
            let (state, allowed) = (truth.state(index), self.shared.models[index].borrow().allowed());
            if !truth.is_hidden(index) && !allowed.contains(state) {
                history::violation(index, &format!("I3: the key is {state:?}, allowed {allowed:?}"));
            }
            // On a disk that fails a delete in doubt may turn up later.
            let is_others = self.shared.models[index].borrow().is_others && self.shared.plan.disk == DiskMode::Honest;
            if is_others && truth.at_origin(index) != Some(0) {
                history::violation(index, "P8: what somebody else stored was overwritten, and nobody deleted it");
            }
        }
        self.judge_pins();
        let stats = self.machine.shard().stats();
        let (pinned_bytes, most) = (stats.store.pinned_bytes, stats.store.pinned_bytes_max);
        assert!(pinned_bytes <= most, "I14: {pinned_bytes} bytes are pinned, at most {most} may be");
        // What recovery found is more if flushed marks were lost; a delete that superseded nothing may owe its record.
        let recovered = stats.recovery.dirty_bytes + (stats.recovery.dirty_blocks + stats.recovery.tombstones) * 512;
        let most = stats.dirty_bytes_max.max(recovered) + self.shared.plan.clients as u64 * 512;
        assert!(stats.dirty_bytes <= most, "I10: {} dirty bytes, at most {most} are allowed", stats.dirty_bytes);
        let now = self.machine.world.runtime().now();
        for (number, since) in self.shared.busy_since.borrow().iter().enumerate() {
            let is_stuck = since.is_some_and(|since| now.since(since) > VERB_MAX);
            assert!(!is_stuck, "a verb of client {number} has not ended after {VERB_MAX:?}");
        }
    }

    /// What was pinned is on disk. Another disk than an honest one takes pins with their bytes.
    fn judge_pins(&self) {
        if self.shared.plan.disk == DiskMode::Honest {
            for (index, model) in self.shared.pins.iter().enumerate() {
                let key = self.shared.plan.universe.key(index);
                if self.machine.seat_of(key).is_some() {
                    model.borrow().judge(index, self.machine.shard().pinning(key));
                }
            }
        }
    }

    /// On a disk that lies: two commits, so that nothing the clients were told is in doubt when the power fails.
    fn clear_doubt(&mut self) {
        if self.shared.plan.disk != DiskMode::Lying {
            return;
        }
        self.machine.world.set_faults(Faults::default());
        for at in 0..self.machine.rack.members.len() {
            let shard = self.machine.shard().clone();
            let Some(scratch) = self.machine.scratch_key(at) else { continue };
            let cleared = self.machine.world.run(async move {
                shard.purge(&scratch).await;
                shard.purge(&scratch).await;
            });
            assert!(cleared.is_ok(), "no crash is ordered on a disk that lies");
        }
    }

    /// The power is off.
    fn end_life(&mut self) {
        let stats = self.machine.shard().stats();
        self.coverage.add_life(&stats);
        self.coverage.add_disks(&stats, &self.shared.strays);
        self.coverage.some("disks: a stray went home", self.strays_met.saturating_sub(strays(&stats)));
        if let Some(operator) = &mut self.operator {
            operator.note_places(&self.machine, &self.shared);
        }
        self.note("the power fails", self.machine.world.changes());
        self.machine.crash();
        self.machine.world.set_faults(Faults::default());
        self.shared.models.iter().for_each(|model| model.borrow_mut().crash());
        self.shared.pins.iter().for_each(|model| model.borrow_mut().crash());
        self.shared.busy_since.borrow_mut().iter_mut().for_each(|since| *since = None);
        if self.shared.plan.disk == DiskMode::Lying && self.rng.random_range(0..2) == 0 {
            self.damage();
        } else if self.shared.plan.disk != DiskMode::Honest && self.broken.random_range(0..3) == 0 {
            self.break_sector();
        }
        self.closed = false;
    }

    /// Makes a sector unreadable where the store must stand it: recovery reads it, and everything on it stands elsewhere too.
    fn break_sector(&mut self) {
        let regions = self.shared.plan.region_bytes_in_slab();
        let (journal, region_bytes) = (8_192..regions.start, self.shared.plan.geometry.region_bytes);
        let is_whole = self.closed && self.shared.plan.disk == DiskMode::Lying;
        let (slab, slots) = self.files_of_a_disk();
        let (name, at) = match self.broken.random_range(0..4) {
            0 => (slab, self.broken.random_range(0..8_192)),
            1 if is_whole && !self.slot_damaged => {
                self.slot_damaged = true;
                (slots[self.broken.random_range(0..slots.len())].clone(), self.broken.random_range(0..8_192))
            }
            // Behind a close the checkpoint says it all.
            2 if is_whole => (slab, self.broken.random_range(journal)),
            _ => {
                let region = self.broken.random_range(1..=u64::from(self.shared.plan.geometry.region_count));
                (slab, regions.start + region * region_bytes - 1)
            }
        };
        self.note("a sector breaks", at);
        self.machine.world.break_sector(&name, at);
    }

    /// Flips one bit where the store must stand it without losing anything but what it hit.
    fn damage(&mut self) {
        let regions = self.shared.plan.region_bytes_in_slab();
        let bit = self.rng.random_range(0..8);
        let (slab, slots) = self.files_of_a_disk();
        let (name, at) = match self.rng.random_range(0..3) {
            0 => (slab, self.rng.random_range(0..8_192)),
            1 if self.closed && !self.slot_damaged => {
                self.slot_damaged = true;
                (slots[self.rng.random_range(0..slots.len())].clone(), self.rng.random_range(0..8_192))
            }
            _ => (slab, self.rng.random_range(regions)),
        };
        self.note("a bit flips", at);
        self.machine.world.flip_bit(&name, at, bit);
    }

    /// The slab of a disk that is here, and its other files.
    fn files_of_a_disk(&mut self) -> (String, Vec<String>) {
        let prefix = self.operator.as_mut().map_or_else(String::new, |it| it.pick_prefix(&self.machine.rack));
        let slab = format!("{prefix}{SLAB}");
        let names = self.machine.world.file_names().into_iter();
        let slots = names.filter(|name| name.starts_with(&prefix) && *name != slab).collect();
        (slab, slots)
    }

    /// Recovers, maybe through further crashes and failing reads, and judges what is there.
    fn reopen(&mut self) {
        loop {
            let is_lying = self.shared.plan.disk == DiskMode::Lying;
            // No order is left over from the life before.
            self.machine.world.crash_at(u64::MAX);
            if !is_lying && self.rng.random_range(0..4) == 0 {
                let broken = self.machine.verify(self.shared.plan.disk);
                assert!(broken.is_empty(), "verify finds broken what must be whole: {broken:?}");
                self.coverage.one("a stopped disk verified");
            }
            if !is_lying && self.rng.random_range(0..3) == 0 {
                let drawn = self.rng.random_range(0..12);
                let later = self.operator.as_mut().map_or(drawn, Operator::draw_crash);
                self.machine.world.crash_at(self.machine.world.changes() + later);
            }
            let is_failing = self.shared.plan.disk == DiskMode::Failing && self.rng.random_range(0..3) == 0;
            if is_failing {
                let faults = self.shared.plan.draw_disk_faults(&mut self.rng);
                self.machine.world.set_faults(match &mut self.operator {
                    Some(operator) => operator.aim_at_start(faults, &self.machine.rack),
                    None => faults,
                });
            }
            let opened = self.machine.open();
            self.machine.world.set_faults(Faults::default());
            match opened {
                Ok(Ok(report)) => {
                    self.coverage.add_recovery(&report);
                    self.note("recovered", report.entries);
                    self.see_disks();
                    return self.judge();
                }
                Ok(Err(error)) => {
                    assert!(is_failing, "the store refuses to open: {error:?}");
                    self.note("the disk failed during recovery", 0);
                    self.machine.crash();
                }
                Err(Crashed) => {
                    self.coverage.one("crash in recovery");
                    if self.machine.rack.strays == Strays::Possible {
                        self.coverage.one("disks: crash in recovery after the set has changed");
                    }
                    self.note("the power fails during recovery", 0);
                }
            }
        }
    }

    /// After a recovery every key is in one state, which must have been possible.
    fn judge(&mut self) {
        self.machine.shard().check();
        self.judge_pins();
        let truth = Truth::of(&self.machine, &self.shared.plan.universe);
        for index in 0..self.shared.plan.universe.written {
            let version = truth.state(index).map_or(0, |version| u64::from(version) + 1);
            let what = match truth.dirty_over(index) {
                Some(_) => "recovered, dirty, as version (0: absent, 1: version 0, …)",
                None => "recovered, as at the origin, as version (0: absent, 1: version 0, …)",
            };
            if truth.is_hidden(index) {
                self.shared.models[index].borrow_mut().out_of_sight(truth.at_origin(index));
                continue;
            }
            history::note(self.machine.world.runtime().now(), DIRECTOR, index, what, version);
            self.shared.models[index].borrow_mut().recovered(truth.state(index), truth.dirty_over(index));
        }
    }

    /// The disk is well again: it comes back by itself, and everything can be written. True, unless regions were lost to it.
    fn heal(&mut self) -> bool {
        for _ in 0..10_000 {
            let stats = self.machine.shard().stats();
            if stats.health.state == HealthState::Ok && !stats.writes_stopped {
                self.note("the disk is well again", stats.health.counts.returned);
                return stats.store.regions_quarantined == 0;
            }
            let passed = self.machine.world.run_for(Duration::from_millis(50));
            assert!(passed.is_ok(), "no crash is ordered any more");
            self.check();
        }
        panic!("a disk without faults has not come back: {:?}", self.machine.shard().stats().health);
    }

    /// With everything well again all of it reaches the origin, and everybody agrees.
    fn settle(&mut self) {
        self.machine.world.crash_at(u64::MAX);
        self.machine.world.set_faults(Faults::default());
        self.machine.origin.set_faults(OriginFaults::default());
        self.machine.origin.set_link(Link::Up);
        let has_failed = self.shared.plan.disk == DiskMode::Failing;
        let is_whole = is_whole(&self.machine);
        let is_cured = has_failed && self.rng.random() && is_whole && self.heal();
        if !is_whole || self.machine.shard().stats().store.regions_quarantined > 0 || has_failed && !is_cured {
            self.clear_doubt();
            self.end_life();
            self.reopen_whole();
            self.machine.world.crash_at(u64::MAX);
        }
        let shard = self.machine.shard().clone();
        let report = self.machine.world.block_on(async move { shard.flush_all(Duration::from_secs(3_600)).await });
        self.check();
        assert_eq!(report.remaining, report.conflicts + report.lost, "everything is flushed: {report:?}");
        for item in self.machine.shard().dirty_items(usize::MAX) {
            let index = self.shared.plan.universe.index(&item.key);
            if item.standing == Standing::Conflict && !self.shared.models[index].borrow().contested {
                history::violation(index, "a conflict, but nobody else ever stored anything");
            }
        }
        assert!(report.lost == 0 || self.shared.plan.disk == DiskMode::Lying, "nothing rots: {report:?}");
        self.bring_home();
        self.read_everything();
        self.coverage.add_life(&self.machine.shard().stats());
    }

    fn read_everything(&self) {
        let universe = &self.shared.plan.universe;
        let truth = Truth::of(&self.machine, universe);
        for index in 0..universe.written {
            let allowed = self.shared.models[index].borrow().allowed();
            let is_contested = self.shared.models[index].borrow().contested;
            let shard = self.machine.shard().clone();
            let answer = self.machine.world.block_on(async {
                let reader = Reader::new(shard, self.machine.disks(), self.shared.plan.disk).await;
                // Appends and fills that nobody waits for may still take their budgets.
                for _ in 0..60 {
                    match reader.read(universe, index).await {
                        Answer::Nothing => self.machine.world.runtime().sleep(Duration::from_secs(1)).await,
                        answer => return answer,
                    }
                }
                Answer::Nothing
            });
            match answer {
                Answer::Shows(states) if allowed.with(states) == allowed => {}
                Answer::Lost if self.shared.plan.disk == DiskMode::Lying => continue,
                answer => history::violation(index, &format!("at the end: {answer:?}, allowed {allowed:?}")),
            }
            if !is_contested && truth.dirty_over(index).is_none() && !allowed.contains(truth.at_origin(index)) {
                history::violation(index, &format!("at the end the origin has {:?}", truth.at_origin(index)));
            }
        }
    }
}
