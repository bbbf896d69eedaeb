//! The health of one disk: `ok → degraded → offline` and back, by errors, latency and probes.
//!
//! This file is the machine alone: no clock, no I/O, no task. It is told what happened and when ([`Health::saw`],
//! [`Health::probed`]) and answers with the step it took, if it took one. `monitor` feeds it, `watched` measures every
//! operation of the store, `healer` probes. Hysteresis: a step down needs several errors in a window (a failed sync, one), a
//! step up needs several good probes in a row and never skips `degraded`, and a disk that falls again soon after its return
//! needs more of them. Slowness alone never takes a disk offline: overload must not be taken for a bad disk.

use std::time::Duration;

use forebay_io::Nanos;

mod healer;
mod monitor;
mod watched;
mod window;

pub use self::healer::probe_name;
pub(crate) use self::monitor::Monitor;
pub use self::monitor::{HealthCounts, HealthReport};
pub(crate) use self::watched::WatchedDisk;
use self::window::Window;

#[cfg(test)]
mod tests;

/// How much is too much. Made by the edge; [`HealthLimits::default`] says what a node uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthLimits {
    /// Errors and slow operations count for this long.
    pub window: Duration,
    /// So many errors in a window degrade a disk.
    pub errors_degraded: u32,
    /// So many take it offline.
    pub errors_offline: u32,
    /// A write or sync that takes longer is slow.
    pub slow: Duration,
    /// A disk is degraded if this share of a window's writes and syncs was slow, in percent.
    pub slow_percent: u32,
    /// But not before there were so many of them.
    pub slow_ops_min: u32,
    /// An operation without an answer for so long takes the disk offline.
    pub stalled: Duration,
    /// From one probe to the next.
    pub probe_every: Duration,
    /// After failed probes of an offline disk that doubles, up to this.
    pub probe_every_max: Duration,
    /// So many failed probes in a row take a degraded disk offline.
    pub probes_bad: u32,
    /// So many good ones in a row bring a disk one step up.
    pub probes_good: u32,
    /// A fall within this time after a step up doubles the good probes needed for the next, up to
    /// [`RELAPSE_FACTOR_MAX`] times.
    pub relapse: Duration,
}

/// See [`HealthLimits::relapse`].
pub const RELAPSE_FACTOR_MAX: u32 = 8;

impl Default for HealthLimits {
    fn default() -> HealthLimits {
        HealthLimits {
            window: Duration::from_secs(60),
            errors_degraded: 3,
            errors_offline: 12,
            slow: Duration::from_secs(1),
            slow_percent: 50,
            slow_ops_min: 16,
            stalled: Duration::from_secs(15),
            probe_every: Duration::from_secs(2),
            probe_every_max: Duration::from_secs(60),
            probes_bad: 3,
            probes_good: 3,
            relapse: Duration::from_secs(600),
        }
    }
}

/// Where a disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum HealthState {
    /// Everything goes to it.
    #[default]
    Ok,
    /// It is read, and written only for what must not be forgotten: no new blocks.
    Degraded,
    /// Requests pass it by.
    Offline,
}

impl HealthState {
    /// For status, metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            HealthState::Ok => "ok",
            HealthState::Degraded => "degraded",
            HealthState::Offline => "offline",
        }
    }
}

/// Why a disk took its last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Too many operations failed.
    Errors,
    /// A sync or a write of the journal failed.
    SyncFailed,
    /// Too often it read other bytes than those that were written.
    Rot,
    /// Too many operations were slow.
    Slow,
    /// An operation did not end.
    Stalled,
    /// Probes failed.
    ProbesFailed,
    /// Probes succeeded.
    ProbesSucceeded,
    /// It could not be opened when the node started.
    NotOpened,
}

impl Reason {
    /// For status and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Errors => "errors",
            Reason::SyncFailed => "sync-failed",
            Reason::Rot => "rot",
            Reason::Slow => "slow",
            Reason::Stalled => "stalled",
            Reason::ProbesFailed => "probes-failed",
            Reason::ProbesSucceeded => "probes-succeeded",
            Reason::NotOpened => "not-opened",
        }
    }
}

/// Something that happened on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A write or sync ended well after this long.
    Done(Duration),
    /// An operation failed.
    Failed,
    /// A sync failed, or a write of the journal: writes have to begin anew.
    SyncFailed,
    /// Other bytes were read than those that were written, or a write is not there.
    Rot,
    /// An operation has had no answer for longer than [`HealthLimits::stalled`].
    Stalled,
}

/// One step of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where the disk stood.
    pub from: HealthState,
    /// Where it stands.
    pub to: HealthState,
    /// Why.
    pub reason: Reason,
}

/// What a probe means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// Too few of them yet, or it was not good.
    Wait,
    /// The disk took a step down.
    Fell(Step),
    /// Enough good ones in a row: call [`Health::rise`] when the store is ready for it.
    MayRise,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Health {
    limits: HealthLimits,
    state: HealthState,
    window: Window,
    /// Good probes since the last error, and bad ones since the last good one.
    good_in_a_row: u32,
    bad_in_a_row: u32,
    /// When the last step up was, and by how much more the next one needs.
    rose_at: Option<Nanos>,
    relapse_factor: u32,
    last_probe: Option<Nanos>,
}

impl Health {
    /// A disk that nothing is known against.
    #[must_use]
    pub fn new(limits: HealthLimits) -> Health {
        assert!(limits.errors_degraded > 0 && limits.errors_degraded < limits.errors_offline, "{limits:?}");
        assert!(limits.probes_good > 0 && limits.probes_bad > 0 && !limits.probe_every.is_zero(), "{limits:?}");
        Health {
            window: Window::new(limits.window),
            limits,
            state: HealthState::Ok,
            good_in_a_row: 0,
            bad_in_a_row: 0,
            rose_at: None,
            relapse_factor: 1,
            last_probe: None,
        }
    }

    /// Where the disk stands.
    #[must_use]
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// The limits it goes by.
    #[must_use]
    pub fn limits(&self) -> &HealthLimits {
        &self.limits
    }

    /// Errors that still count.
    #[must_use]
    pub fn errors(&mut self, now: Nanos) -> u32 {
        self.window.at(now).errors
    }

    /// Good probes in a row, and how many the next step up needs.
    #[must_use]
    pub fn good_probes(&self) -> (u32, u32) {
        (self.good_in_a_row, self.probes_needed())
    }

    /// Takes note of an event; the step that followed from it.
    pub fn saw(&mut self, now: Nanos, event: Event) -> Option<Step> {
        let tally = match event {
            Event::Done(took) => {
                if took > self.limits.slow {
                    self.window.slow(now);
                }
                self.window.done(now)
            }
            Event::Failed | Event::SyncFailed | Event::Rot | Event::Stalled => {
                self.good_in_a_row = 0;
                self.window.error(now)
            }
        };
        let errors_step = match tally.errors {
            errors if errors >= self.limits.errors_offline => HealthState::Offline,
            errors if errors >= self.limits.errors_degraded => HealthState::Degraded,
            _ => HealthState::Ok,
        };
        let is_slow = tally.done >= self.limits.slow_ops_min
            && u64::from(tally.slow) * 100 >= u64::from(tally.done) * u64::from(self.limits.slow_percent);
        let (worse, reason) = match event {
            Event::Done(_) if is_slow => (HealthState::Degraded, Reason::Slow),
            Event::Done(_) => (HealthState::Ok, Reason::Slow),
            Event::Failed => (errors_step, Reason::Errors),
            Event::Rot => (errors_step, Reason::Rot),
            Event::SyncFailed => (errors_step.max(HealthState::Degraded), Reason::SyncFailed),
            Event::Stalled => (HealthState::Offline, Reason::Stalled),
        };
        self.fall(now, worse, reason)
    }

    /// When the next probe is due; `None` while the disk is well.
    #[must_use]
    pub fn next_probe(&self) -> Option<Nanos> {
        let last = self.last_probe?;
        let doublings = match self.state {
            HealthState::Ok => return None,
            HealthState::Degraded => 0,
            HealthState::Offline => self.bad_in_a_row.min(16),
        };
        let every = self.limits.probe_every.saturating_mul(1 << doublings);
        Some(after(last, every.min(self.limits.probe_every_max.max(self.limits.probe_every))))
    }

    /// Takes note of a probe: how long it took, or that it failed.
    pub fn probed(&mut self, now: Nanos, took: Option<Duration>) -> Probed {
        assert_ne!(self.state, HealthState::Ok, "a disk that is well is not probed");
        self.last_probe = Some(now);
        let Some(took) = took else {
            self.good_in_a_row = 0;
            self.bad_in_a_row = self.bad_in_a_row.saturating_add(1);
            let is_enough = self.bad_in_a_row >= self.limits.probes_bad;
            let worse = if is_enough { HealthState::Offline } else { self.state };
            return self.fall(now, worse, Reason::ProbesFailed).map_or(Probed::Wait, Probed::Fell);
        };
        self.bad_in_a_row = 0;
        // A slow one proves that the disk answers, not that it is well.
        self.good_in_a_row = if took > self.limits.slow { 0 } else { self.good_in_a_row + 1 };
        if self.good_in_a_row >= self.probes_needed() { Probed::MayRise } else { Probed::Wait }
    }

    /// One step up, after [`Probed::MayRise`]. What counted against the disk is forgotten.
    ///
    /// # Panics
    /// Without enough good probes in a row.
    pub fn rise(&mut self, now: Nanos) -> Step {
        assert!(self.good_in_a_row >= self.probes_needed(), "a disk rises after enough good probes");
        let from = self.state;
        self.state = match from {
            HealthState::Offline => HealthState::Degraded,
            HealthState::Degraded => HealthState::Ok,
            HealthState::Ok => panic!("a disk that is well can't rise"),
        };
        self.good_in_a_row = 0;
        self.window = Window::new(self.limits.window);
        self.rose_at = Some(now);
        Step { from, to: self.state, reason: Reason::ProbesSucceeded }
    }

    fn probes_needed(&self) -> u32 {
        self.limits.probes_good * self.relapse_factor
    }

    /// Goes down to `worse`, if that is down.
    fn fall(&mut self, now: Nanos, worse: HealthState, reason: Reason) -> Option<Step> {
        if worse <= self.state {
            return None;
        }
        let from = self.state;
        let is_relapse = self.rose_at.is_some_and(|at| now.since(at) <= self.limits.relapse);
        if from == HealthState::Ok || is_relapse {
            self.relapse_factor = if is_relapse { (self.relapse_factor * 2).min(RELAPSE_FACTOR_MAX) } else { 1 };
            // One return is counted once.
            self.rose_at = None;
        }
        self.state = worse;
        self.good_in_a_row = 0;
        self.bad_in_a_row = 0;
        self.last_probe = Some(now);
        Some(Step { from, to: worse, reason })
    }
}

fn after(at: Nanos, wait: Duration) -> Nanos {
    Nanos(at.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
}
