//! What a run sees of several disks: which are here, what lies on another disk than its home, what goes on while one is offline.
//!
//! The director's part that a run with one disk has no use for; called by `run`. At the end all disks are here and every key is
//! at home, but for what is dirty or pinned where it lies.

use std::time::Duration;

use forebay_shard::disks::{DiskStats, Strays};
use forebay_shard::health::HealthState;
use forebay_shard::stats::ShardStats;
use forebay_shard::store::Pinning;

use super::super::history;
use super::super::machine::Machine;
use super::Director;

/// How long the settler may take, in virtual time, once nothing is dirty any more.
const SETTLING: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Keys on another disk than their home, as the shard knows them.
pub(super) fn strays(stats: &ShardStats) -> u64 {
    stats.disks.iter().map(|disk| disk.strays).sum()
}

/// Whether the shard has opened all its disks.
pub(super) fn is_whole(machine: &Machine) -> bool {
    machine.shard().stats().disks.iter().all(|disk| disk.away.is_none())
}

impl Director {
    /// The shard was opened: what it found, and what its edge notes about the set.
    pub(super) fn see_disks(&mut self) {
        let Some(operator) = &mut self.operator else { return };
        if self.machine.shard().is_settled() {
            self.machine.rack.strays = Strays::None;
        }
        let (stats, rack) = (self.machine.shard().stats(), &self.machine.rack);
        let is_back = operator.is_back(rack).map(|at| &stats.disks[at]);
        let is_back_dirty = is_back.is_some_and(|disk| disk.away.is_none() && disk.store.dirty_entries > 0);
        let at_work = stats.disks.iter().filter(|disk| disk.away.is_none()).count();
        let missing = rack.members.iter().filter(|member| member.is_away).count();
        self.strays_met = strays(&stats);
        self.beside_offline = None;
        for (name, count) in [
            ("disks: two at work", u64::from(at_work == 2)),
            ("disks: one missing at a start", missing as u64),
            ("disks: one that could not be opened", (rack.members.len() - missing - at_work) as u64),
            ("disks: a missing one is back with dirty blocks", u64::from(is_back_dirty)),
            ("disks: strays met at a start", self.strays_met),
        ] {
            self.coverage.some(name, count);
        }
        self.note("disks at work", at_work as u64);
        self.note("strays", self.strays_met);
    }

    /// The power has failed in the middle of work.
    pub(super) fn count_strays_cut_off(&mut self) {
        let left = strays(&self.machine.shard().stats());
        self.coverage.some("disks: power cut while strays are left", u64::from(left > 0));
    }

    /// After each slice: whether one disk takes writes while another is offline with what is dirty on it.
    pub(super) fn watch_disks(&mut self) {
        if self.machine.rack.members.len() < 2 {
            return;
        }
        let disks = self.machine.shard().stats().disks;
        let is_state = |disk: &DiskStats, state| disk.away.is_none() && disk.health.state == state;
        let is_ill = |disk: &DiskStats| is_state(disk, HealthState::Offline) && disk.store.dirty_entries > 0;
        let well = (0..2).find(|at| is_ill(&disks[1 - at]) && is_state(&disks[*at], HealthState::Ok));
        let beside = well.map(|at| (at, disks[at].written_bytes));
        if let (Some((at, before)), Some((still, now))) = (self.beside_offline, beside)
            && at == still
            && now > before
        {
            self.coverage.one("disks: one offline with dirty blocks, the other takes writes");
        }
        self.beside_offline = beside;
    }

    /// As `reopen`, with all disks here.
    pub(super) fn reopen_whole(&mut self) {
        self.machine.rack.members.iter_mut().for_each(|member| member.is_away = false);
        self.reopen();
        while !is_whole(&self.machine) {
            // One of them failed while it was opened.
            self.end_life();
            self.reopen();
        }
    }

    /// With everything flushed every key goes home by itself, but for what is dirty or pinned where it lies.
    pub(super) fn bring_home(&mut self) {
        let mut passed = Duration::ZERO;
        while !self.machine.shard().is_settled() && passed < SETTLING {
            assert!(self.machine.world.run_for(LOOK_EVERY).is_ok(), "no crash is ordered any more");
            passed += LOOK_EVERY;
            self.check();
        }
        let (shard, universe) = (self.machine.shard(), &self.shared.plan.universe);
        let dirty: Vec<_> = shard.dirty_items(usize::MAX).into_iter().map(|item| item.key).collect();
        for (index, subject) in universe.subjects.iter().enumerate() {
            let home = self.machine.rack.home(shard.identity(&subject.key));
            let may_stay = dirty.contains(&subject.key) || shard.pinning(&subject.key) == Pinning::Pinned;
            if self.machine.seat_of(&subject.key) != Some(home) && !may_stay {
                history::violation(index, "I13: nothing is dirty, all disks are here, and the key is not at home");
            }
        }
    }
}
