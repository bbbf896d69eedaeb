//! One disk's health in a running shard: the machine, its clock, the operations under way, the counts, the log lines.
//!
//! `watched` begins and ends operations here, the verbs report rot, `healer` waits for changes and brings probes. The verbs
//! ask [`Monitor::state`] before they go to the disk. One thread (I12), nothing is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use event_listener::{Event as Signal, EventListener};
use forebay_io::{IoError, Nanos, Runtime};

use super::{Event, Health, HealthLimits, HealthState, Probed, Reason, Step};

/// A disk's health at one moment. Plain data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthReport {
    /// Where it stands.
    pub state: HealthState,
    /// Why it took its last step; `None`: it never took one.
    pub reason: Option<Reason>,
    /// Since when it stands there: milliseconds since 1970; 0: since the shard was opened.
    pub since_unix_ms: u64,
    /// Errors that still count.
    pub errors: u64,
    /// Good probes in a row.
    pub probes_good: u64,
    /// Good probes in a row that the next step up needs.
    pub probes_needed: u64,
    /// Since the shard was opened.
    pub counts: HealthCounts,
}

impl HealthReport {
    /// Adds another disk's: the worse state stands for both.
    pub fn add(&mut self, other: &HealthReport) {
        if other.state > self.state {
            (self.state, self.reason, self.since_unix_ms) = (other.state, other.reason, other.since_unix_ms);
            (self.probes_good, self.probes_needed) = (other.probes_good, other.probes_needed);
        }
        self.errors += other.errors;
        self.counts.add(&other.counts);
    }
}

/// What happened to a disk since its shard was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthCounts {
    /// Operations that failed, syncs included.
    pub errors: u64,
    /// Of these, syncs.
    pub sync_errors: u64,
    /// Reads of other bytes than those that were written.
    pub rot: u64,
    /// Writes and syncs that were slow.
    pub slow: u64,
    /// Operations that did not end in time.
    pub stalls: u64,
    /// Probes that succeeded.
    pub probes_good: u64,
    /// Probes that failed.
    pub probes_bad: u64,
    /// Steps to degraded from ok.
    pub degraded: u64,
    /// Steps to offline.
    pub offline: u64,
    /// Steps up.
    pub returned: u64,
    /// Times that writes began anew after a failed sync.
    pub refounded: u64,
}

impl HealthCounts {
    fn add(&mut self, other: &HealthCounts) {
        for ((_, sum), (_, count)) in self.fields().into_iter().zip({ *other }.fields()) {
            *sum += *count;
        }
    }

    /// Every count with its name.
    #[must_use]
    pub fn named(mut self) -> Vec<(&'static str, u64)> {
        self.fields().into_iter().map(|(name, count)| (name, *count)).collect()
    }

    fn fields(&mut self) -> [(&'static str, &mut u64); 11] {
        [
            ("error", &mut self.errors),
            ("sync-error", &mut self.sync_errors),
            ("rot", &mut self.rot),
            ("slow", &mut self.slow),
            ("stall", &mut self.stalls),
            ("probe-good", &mut self.probes_good),
            ("probe-bad", &mut self.probes_bad),
            ("degraded", &mut self.degraded),
            ("offline", &mut self.offline),
            ("returned", &mut self.returned),
            ("refounded", &mut self.refounded),
        ]
    }
}

/// What an operation was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Its time is not judged: it includes the wait for the arena.
    Read,
    /// A write.
    Write,
    /// A sync.
    Sync,
    /// Making or opening a file.
    Open,
}

/// A disk's health.
pub(crate) struct Monitor<R: Runtime> {
    runtime: R,
    shard: u16,
    /// Which of the shard's disks: for the log.
    disk: u16,
    health: RefCell<Health>,
    /// When each operation under way began, in order of their beginning.
    pending: RefCell<BTreeMap<u64, Nanos>>,
    next_pending: Cell<u64>,
    /// Whether the healer waits for the first operation.
    asleep: Cell<bool>,
    changed: Signal,
    counts: Cell<HealthCounts>,
    last_step: Cell<(Option<Reason>, u64)>,
    written_bytes: Cell<u64>,
}

impl<R: Runtime> Monitor<R> {
    pub(crate) fn new(runtime: R, shard: u16, disk: u16, limits: HealthLimits) -> Rc<Monitor<R>> {
        Rc::new(Monitor {
            runtime,
            shard,
            disk,
            health: RefCell::new(Health::new(limits)),
            pending: RefCell::default(),
            next_pending: Cell::new(0),
            asleep: Cell::new(false),
            changed: Signal::new(),
            counts: Cell::default(),
            last_step: Cell::default(),
            written_bytes: Cell::new(0),
        })
    }

    /// A write of so many bytes begins.
    pub(crate) fn writes(&self, bytes: u64) {
        self.written_bytes.set(self.written_bytes.get() + bytes);
    }

    /// Bytes written since the shard was opened.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.get()
    }

    /// Where the disk stands.
    pub(crate) fn state(&self) -> HealthState {
        self.health.borrow().state()
    }

    /// Resolves at the next step, or when the healer has to look again.
    pub(crate) fn listen(&self) -> EventListener {
        self.changed.listen()
    }

    /// Lets the healer look again.
    pub(crate) fn notify(&self) {
        self.changed.notify(usize::MAX);
    }

    /// Something happened.
    pub(crate) fn saw(&self, event: Event) {
        let now = self.runtime.now();
        self.count(|counts| match event {
            Event::Done(_) => {}
            Event::Failed => counts.errors += 1,
            Event::SyncFailed => (counts.errors, counts.sync_errors) = (counts.errors + 1, counts.sync_errors + 1),
            Event::Rot => counts.rot += 1,
            Event::Stalled => counts.stalls += 1,
        });
        if let Event::Done(took) = event
            && took > self.health.borrow().limits().slow
        {
            self.count(|counts| counts.slow += 1);
        }
        let step = self.health.borrow_mut().saw(now, event);
        self.tell(step);
    }

    /// An operation begins.
    pub(crate) fn begin(self: &Rc<Self>, verb: Verb) -> Pending<R> {
        let number = self.next_pending.get();
        self.next_pending.set(number + 1);
        let began = self.runtime.now();
        self.pending.borrow_mut().insert(number, began);
        if self.asleep.replace(false) {
            self.notify();
        }
        Pending { monitor: Rc::clone(self), verb, number, began }
    }

    /// How long until something has to be looked at: the next probe, or an operation that may have stalled. `None`: the
    /// next operation will tell.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let health = self.health.borrow();
        let now = self.runtime.now();
        let probe = health.next_probe().map(|due| due.since(now));
        let oldest = self.pending.borrow().first_key_value().map(|(_, began)| *began);
        let stall = oldest.map(|began| health.limits().stalled.saturating_sub(now.since(began)));
        self.asleep.set(oldest.is_none());
        // A nanosecond more, so that what is due then has become due.
        [probe, stall].into_iter().flatten().min().map(|wait| wait + Duration::from_nanos(1))
    }

    /// Operations without an answer for too long are given up on: how many.
    pub(crate) fn take_stalled(&self) -> usize {
        let (now, stalled) = (self.runtime.now(), self.health.borrow().limits().stalled);
        let mut pending = self.pending.borrow_mut();
        let before = pending.len();
        pending.retain(|_, began| now.since(*began) <= stalled);
        before - pending.len()
    }

    /// How long an operation may take.
    pub(crate) fn stalled_after(&self) -> Duration {
        self.health.borrow().limits().stalled
    }

    /// Whether a probe is due.
    pub(crate) fn is_probe_due(&self) -> bool {
        self.health.borrow().next_probe().is_some_and(|due| due <= self.runtime.now())
    }

    /// A probe ended. True if a step up is allowed.
    pub(crate) fn probed(&self, took: Option<Duration>) -> bool {
        if self.state() == HealthState::Ok {
            return false;
        }
        self.count(|counts| match took {
            Some(_) => counts.probes_good += 1,
            None => counts.probes_bad += 1,
        });
        let probed = self.health.borrow_mut().probed(self.runtime.now(), took);
        if let Probed::Fell(step) = probed {
            self.tell(Some(step));
        }
        probed == Probed::MayRise
    }

    /// One step up, unless an error has come between.
    pub(crate) fn rise(&self) {
        let (good, needed) = self.health.borrow().good_probes();
        if good >= needed && self.state() != HealthState::Ok {
            let step = self.health.borrow_mut().rise(self.runtime.now());
            self.tell(Some(step));
        }
    }

    /// Writes began anew after a failed sync.
    pub(crate) fn refounded(&self) {
        self.count(|counts| counts.refounded += 1);
        tracing::info!(
            shard = self.shard,
            disk = self.disk,
            "the journal was begun anew: this disk takes writes again"
        );
    }

    /// For status and metrics.
    pub(crate) fn report(&self) -> HealthReport {
        let mut health = self.health.borrow_mut();
        let (reason, since_unix_ms) = self.last_step.get();
        let (good, needed) = health.good_probes();
        HealthReport {
            state: health.state(),
            reason,
            since_unix_ms,
            errors: u64::from(health.errors(self.runtime.now())),
            probes_good: u64::from(good),
            probes_needed: u64::from(needed),
            counts: self.counts.get(),
        }
    }

    fn count(&self, change: impl FnOnce(&mut HealthCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// Counts, logs and announces a step.
    fn tell(&self, step: Option<Step>) {
        let Some(Step { from, to, reason }) = step else { return };
        self.count(|counts| match to {
            HealthState::Offline => counts.offline += 1,
            _ if to < from => counts.returned += 1,
            _ => counts.degraded += 1,
        });
        self.last_step.set((Some(reason), self.runtime.unix_ms()));
        let (shard, disk, from, reason) = (self.shard, self.disk, from.name(), reason.name());
        match to {
            HealthState::Ok => tracing::info!(shard, disk, from, reason, "the disk is well again"),
            HealthState::Degraded => {
                tracing::warn!(shard, disk, from, reason, "the disk is degraded: no new blocks on it")
            }
            HealthState::Offline => {
                tracing::error!(shard, disk, from, reason, "the disk is offline: requests pass it by")
            }
        }
        self.notify();
    }
}

/// An operation under way. Dropped before its end, it tells nothing.
pub(crate) struct Pending<R: Runtime> {
    monitor: Rc<Monitor<R>>,
    verb: Verb,
    number: u64,
    began: Nanos,
}

impl<R: Runtime> Pending<R> {
    /// The operation ended.
    pub(crate) fn end<T>(self, outcome: &Result<T, IoError>) {
        let took = self.monitor.runtime.now().since(self.began);
        match (outcome, self.verb) {
            (Ok(_), Verb::Write | Verb::Sync) => self.monitor.saw(Event::Done(took)),
            (Ok(_), Verb::Read | Verb::Open) => {}
            (Err(_), Verb::Sync) => self.monitor.saw(Event::SyncFailed),
            (Err(error), _) if error.is_device_fault() || matches!(error, IoError::NoSpace { .. }) => {
                self.monitor.saw(Event::Failed);
            }
            (Err(_), _) => {}
        }
    }
}

impl<R: Runtime> Drop for Pending<R> {
    fn drop(&mut self) {
        self.monitor.pending.borrow_mut().remove(&self.number);
    }
}
