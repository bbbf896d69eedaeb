//! The operator of a machine with several disks: what he does to them between two lives, and which of them breaks.
//!
//! In one run of four; drawn apart, so that the others' histories don't depend on it. He adds a disk, takes one out that holds
//! nothing dirty (as the edge finds out: by reading it), gives one up with all that was dirty there, or changes their weights and
//! their order; a disk may be missing at a start. Called by `run`; what he gives up the models are told, and nothing else.

use std::num::NonZeroU32;

use forebay_io::sim::{Faults, OneIn};
use forebay_shard::disks::Strays;
use forebay_shard::origin::Etag;
use forebay_shard::store::inspect::Inspector;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::client::Shared;
use super::coverage::Coverage;
use super::machine::Machine;
use super::plan::DiskMode;
use super::rack::{Member, Rack};
use super::truth::origin_state;

/// How often in a run a disk is given up with what it holds.
const LOSSES_MAX: u32 = 2;

/// What the seed has decided about a machine with several disks.
pub struct Operator {
    rng: SmallRng,
    losses: u32,
    /// The disk that each key was on when the last life ended; `None`: nobody can tell.
    places: Vec<Option<u128>>,
    /// The disks that were open in the last life.
    open: Vec<u128>,
    /// The disk that was missing then.
    was_missing: Option<u128>,
}

impl Operator {
    /// Who looks after this seed's machine; `None`: it has one disk.
    pub fn draw(seed: u64) -> Option<Operator> {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x0D15_C500);
        let is_needed = rng.random_range(0..4) == 0;
        is_needed.then_some(Operator { rng, losses: 0, places: Vec::new(), open: Vec::new(), was_missing: None })
    }

    /// What the machine begins with.
    pub fn first_rack(&mut self) -> Rack {
        let mut rack = Rack::empty();
        for at in 0..self.rng.random_range(1..3) {
            rack.add(at, self.weight());
        }
        rack
    }

    fn weight(&mut self) -> NonZeroU32 {
        NonZeroU32::new([16, 16, 24, 48][self.rng.random_range(0..4)]).expect("these are not 0")
    }

    /// The faults of one disk, or of all.
    pub fn aim(&mut self, faults: Faults, rack: &Rack) -> Faults {
        let at = self.rng.random_range(0..rack.members.len() + 1);
        Faults { only: rack.members.get(at).map_or_else(String::new, |member| member.prefix()), ..faults }
    }

    /// As [`Operator::aim`], while the disks are opened: now and then one of them can't be read at all.
    pub fn aim_at_start(&mut self, faults: Faults, rack: &Rack) -> Faults {
        let faults = match self.rng.random_range(0..3) {
            0 => Faults { read_error: OneIn::ALWAYS, ..Faults::default() },
            _ => faults,
        };
        self.aim(faults, rack)
    }

    /// Which of the disks something happens to after a life: the beginning of its files' names. One that was open, which has
    /// mended what was damaged before.
    pub fn pick_prefix(&mut self, rack: &Rack) -> String {
        let open: Vec<&Member> = rack.members.iter().filter(|member| self.open.contains(&member.id)).collect();
        open[self.rng.random_range(0..open.len())].prefix()
    }

    /// After how many changes of the disks the power fails while they are opened.
    pub fn draw_crash(&mut self) -> u64 {
        self.rng.random_range(0..60)
    }

    /// A life ends: where each key is.
    pub fn note_places(&mut self, machine: &Machine, shared: &Shared) {
        let subjects = &shared.plan.universe.subjects;
        self.places = subjects.iter().map(|subject| machine.seat_of(&subject.key)).collect();
        let stats = machine.shard().stats();
        let with_disks = machine.rack.members.iter().zip(&stats.disks);
        self.open = with_disks.filter(|(_, disk)| disk.away.is_none()).map(|(member, _)| member.id).collect();
        self.was_missing = machine.rack.members.iter().find(|member| member.is_away).map(|member| member.id);
    }

    /// Between two lives. The power is off.
    pub fn work(&mut self, machine: &mut Machine, shared: &Shared, coverage: &mut Coverage) {
        machine.rack.members.iter_mut().for_each(|member| member.is_away = false);
        match machine.rack.members.len() {
            1 if self.rng.random_range(0..3) == 0 => self.add(machine, coverage),
            1 => {}
            _ => match self.rng.random_range(0..14) {
                0 if self.losses < LOSSES_MAX => self.give_up(machine, shared, coverage),
                0..3 => self.take_out(machine, shared, coverage),
                3..5 => self.reweigh(machine),
                _ => {}
            },
        }
        let rack = &mut machine.rack;
        if rack.members.len() > 1 {
            if self.rng.random_range(0..4) == 0 {
                rack.members.swap(0, 1);
            }
            // On a disk that lies, doubt is cleared by commits, and to one that is not here there are none.
            if shared.plan.disk != DiskMode::Lying && self.rng.random_range(0..5) == 0 {
                rack.members[self.rng.random_range(0..2)].is_away = true;
            }
        }
    }

    /// The shard was opened. Whether the disk that was missing is back.
    pub fn is_back(&mut self, rack: &Rack) -> Option<usize> {
        let was_missing = self.was_missing.take()?;
        rack.members.iter().position(|member| member.id == was_missing && !member.is_away)
    }

    fn add(&mut self, machine: &mut Machine, coverage: &mut Coverage) {
        let (at, weight) = (self.rng.random_range(0..=machine.rack.members.len()), self.weight());
        let member = machine.rack.add(at, weight).clone();
        machine.format(&member);
        machine.rack.strays = Strays::Possible;
        coverage.one("disks: one added");
    }

    /// The disk is lost, or its owner has had enough of it: what was dirty on it is the origin's older state now.
    fn give_up(&mut self, machine: &mut Machine, shared: &Shared, coverage: &mut Coverage) {
        self.losses += 1;
        let at = self.rng.random_range(0..machine.rack.members.len());
        let lost = machine.rack.members.remove(at);
        machine.world.lose_disk(&lost.name);
        let universe = &shared.plan.universe;
        for (index, place) in self.places.iter().enumerate() {
            if place.is_none_or(|id| id == lost.id) {
                shared.pins[index].borrow_mut().forget();
                if index < universe.written {
                    let there = machine.origin.meta(universe.key(index));
                    let is_foreign = there.is_some_and(|meta| matches!(meta.etag, Etag::Origin(_)));
                    let state = origin_state(&machine.origin, universe, index);
                    shared.models[index].borrow_mut().give_up(state, is_foreign);
                }
            }
        }
        machine.rack.strays = Strays::Possible;
        coverage.one("disks: one given up with what was dirty there");
        if self.rng.random() {
            self.add(machine, coverage);
        }
    }

    /// As the edge does it: a disk on which nothing is dirty may go. The models are told of nothing but its pins.
    fn take_out(&mut self, machine: &mut Machine, shared: &Shared, coverage: &mut Coverage) {
        let at = self.rng.random_range(0..machine.rack.members.len());
        let member = machine.rack.members[at].clone();
        let (disk, runtime) = (member.disk(&machine.world), machine.world.runtime());
        let dirty = machine.world.block_on(async {
            let recovery = Inspector::open(disk, 0).await?.recover(&runtime).await?;
            let summary = recovery.summary();
            Ok::<u64, forebay_shard::error::StoreError>(summary.dirty + summary.tombstones)
        });
        if !matches!(dirty, Ok(0)) {
            coverage.one("disks: one not taken out, it holds dirty blocks");
            return;
        }
        machine.rack.members.remove(at);
        machine.world.lose_disk(&member.name);
        for (place, pin) in self.places.iter().zip(&shared.pins) {
            if place.is_none_or(|id| id == member.id) {
                pin.borrow_mut().forget();
            }
        }
        machine.rack.strays = Strays::Possible;
        coverage.one("disks: one taken out");
        if self.rng.random() {
            self.add(machine, coverage);
        }
    }

    fn reweigh(&mut self, machine: &mut Machine) {
        let at = self.rng.random_range(0..machine.rack.members.len());
        machine.rack.members[at].weight = self.weight();
        machine.rack.strays = Strays::Possible;
    }
}
