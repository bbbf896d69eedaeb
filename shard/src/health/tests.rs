//! The machine against any history: it takes no other edges than those of the table in ARCHITECTURE.md, forgives what is
//! old, and comes back. Run with the unit tests; virtual time, no disk. What the states mean for requests is tested in
//! `tests/health.rs`.

use proptest::prelude::*;

use super::*;

/// What may happen between two looks.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Passes(u64),
    Saw(Event),
    Probed(Option<u64>),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..40_000u64).prop_map(Happening::Passes),
        6 => (0..3_000u64).prop_map(|ms| Happening::Saw(Event::Done(Duration::from_millis(ms)))),
        3 => Just(Happening::Saw(Event::Failed)),
        1 => Just(Happening::Saw(Event::SyncFailed)),
        2 => Just(Happening::Saw(Event::Rot)),
        1 => Just(Happening::Saw(Event::Stalled)),
        6 => prop::option::weighted(0.7, 0..1_500u64).prop_map(Happening::Probed),
    ]
}

struct Driven {
    health: Health,
    now: Nanos,
}

impl Driven {
    fn new() -> Driven {
        Driven { health: Health::new(HealthLimits::default()), now: Nanos(0) }
    }

    fn pass(&mut self, wait: Duration) {
        self.now = after(self.now, wait);
    }

    fn saw(&mut self, event: Event) -> Option<Step> {
        self.health.saw(self.now, event)
    }

    /// A probe if one is due, followed by the step up that it allows.
    fn probe(&mut self, took: Option<Duration>) -> Option<Step> {
        if self.health.next_probe().is_none_or(|due| due > self.now) {
            return None;
        }
        match self.health.probed(self.now, took) {
            Probed::Wait => None,
            Probed::Fell(step) => Some(step),
            Probed::MayRise => Some(self.health.rise(self.now)),
        }
    }

    fn happen(&mut self, happening: Happening) -> Option<Step> {
        match happening {
            Happening::Passes(ms) => {
                self.pass(Duration::from_millis(ms));
                None
            }
            Happening::Saw(event) => self.saw(event),
            Happening::Probed(took) => self.probe(took.map(Duration::from_millis)),
        }
    }

    /// Only good probes from now on, each when it is due.
    fn heal(&mut self, probes_max: u32) -> u32 {
        for probes in 0..probes_max {
            let Some(due) = self.health.next_probe() else { return probes };
            self.now = self.now.max(due);
            let _ = self.probe(Some(Duration::from_millis(1)));
        }
        probes_max
    }
}

proptest! {
    #[test]
    fn only_the_edges_of_the_table_are_taken(happenings in prop::collection::vec(happening(), 1..300)) {
        use HealthState::{Degraded, Offline, Ok};
        let mut driven = Driven::new();
        for happening in happenings {
            let before = driven.health.state();
            let step = driven.happen(happening);
            prop_assert_eq!(step.map_or(before, |step| step.to), driven.health.state());
            let Some(Step { from, to, reason }) = step else { continue };
            prop_assert_eq!(from, before);
            let is_in_table = match (from, to) {
                (Ok, Degraded) => matches!(reason, Reason::Errors | Reason::Rot | Reason::SyncFailed | Reason::Slow),
                (Degraded, Offline) => !matches!(reason, Reason::Slow | Reason::ProbesSucceeded),
                (Ok, Offline) => reason == Reason::Stalled,
                (Offline, Degraded) | (Degraded, Ok) => reason == Reason::ProbesSucceeded,
                _ => false,
            };
            prop_assert!(is_in_table, "{:?} → {:?} by {:?}", from, to, reason);
        }
    }

    #[test]
    fn whatever_happened_a_disk_that_is_well_again_comes_back(happenings in prop::collection::vec(happening(), 1..300)) {
        let mut driven = Driven::new();
        for happening in happenings {
            let _ = driven.happen(happening);
        }
        // Two steps up, each with the most probes that a relapse can ask for.
        let limits = HealthLimits::default();
        let probes_max = 2 * limits.probes_good * RELAPSE_FACTOR_MAX;
        let began = driven.now;
        let probes = driven.heal(probes_max + 1);
        prop_assert_eq!(driven.health.state(), HealthState::Ok);
        prop_assert!(probes <= probes_max);
        prop_assert!(driven.now.since(began) <= limits.probe_every_max + limits.probe_every * probes_max);
    }

    #[test]
    fn slowness_alone_never_takes_a_disk_offline(ms in prop::collection::vec(0..60_000u64, 1..400)) {
        let mut driven = Driven::new();
        for ms in ms {
            driven.pass(Duration::from_millis(ms / 10));
            let _ = driven.saw(Event::Done(Duration::from_millis(ms)));
            let _ = driven.probe(Some(Duration::from_millis(ms)));
            prop_assert_ne!(driven.health.state(), HealthState::Offline);
        }
    }

    #[test]
    fn errors_that_are_rare_enough_are_forgiven(gaps in prop::collection::vec(36_000..100_000u64, 1..200)) {
        // Never three in a window and the bucket that is still open: 70 s.
        let mut driven = Driven::new();
        for gap_ms in gaps {
            driven.pass(Duration::from_millis(gap_ms));
            prop_assert_eq!(driven.saw(Event::Failed), None);
        }
        prop_assert_eq!(driven.health.state(), HealthState::Ok);
    }

    #[test]
    fn an_error_between_two_probes_begins_the_count_anew(before in 1..3u32) {
        let mut driven = Driven::new();
        let _ = driven.saw(Event::Stalled);
        prop_assert_eq!(driven.heal(before), before);
        let _ = driven.saw(Event::Failed);
        prop_assert_eq!(driven.health.good_probes().0, 0);
        prop_assert_eq!(driven.heal(2), 2);
        prop_assert_eq!(driven.health.state(), HealthState::Offline);
        prop_assert_eq!(driven.heal(1), 1);
        prop_assert_eq!(driven.health.state(), HealthState::Degraded);
    }
}

#[test]
fn a_failed_sync_degrades_at_once_and_a_few_errors_do_too() {
    let mut driven = Driven::new();
    let step = driven.saw(Event::SyncFailed).expect("it degrades");
    assert_eq!((step.to, step.reason), (HealthState::Degraded, Reason::SyncFailed));
    let mut driven = Driven::new();
    assert_eq!((driven.saw(Event::Failed), driven.saw(Event::Rot)), (None, None));
    assert_eq!(driven.saw(Event::Failed).map(|step| step.to), Some(HealthState::Degraded));
    let fell = (0..20).find_map(|_| driven.saw(Event::Failed)).expect("it goes offline");
    assert_eq!((fell.to, driven.health.errors(driven.now)), (HealthState::Offline, 12));
}

#[test]
fn half_of_the_writes_slow_degrades_but_a_few_spikes_do_not() {
    let mut driven = Driven::new();
    let (fast, slow) = (Event::Done(Duration::from_millis(5)), Event::Done(Duration::from_secs(2)));
    for _ in 0..100 {
        assert_eq!((driven.saw(slow), driven.saw(fast), driven.saw(fast)).0, None);
    }
    let step = (0..400).find_map(|_| driven.saw(slow)).expect("more than half is slow by now");
    assert_eq!((step.to, step.reason), (HealthState::Degraded, Reason::Slow));
}

#[test]
fn a_relapse_needs_more_good_probes_and_a_long_time_well_forgets_it() {
    let mut driven = Driven::new();
    let mut needed = Vec::new();
    for _ in 0..6 {
        let _ = driven.saw(Event::SyncFailed);
        needed.push(driven.health.good_probes().1);
        assert!(driven.heal(100) < 100);
        driven.pass(Duration::from_secs(60));
    }
    assert_eq!(needed, [3, 6, 12, 24, 24, 24]);
    driven.pass(Duration::from_secs(3_600));
    let _ = driven.saw(Event::SyncFailed);
    assert_eq!(driven.health.good_probes().1, 3);
}

#[test]
fn an_offline_disk_is_probed_ever_less_often() {
    let mut driven = Driven::new();
    let _ = driven.saw(Event::Stalled);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let due = driven.health.next_probe().expect("it is offline");
        waits.push(due.since(driven.now).as_secs());
        driven.now = due;
        assert_eq!(driven.probe(None), None);
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
}

#[test]
fn failed_probes_take_a_degraded_disk_offline() {
    let mut driven = Driven::new();
    let _ = driven.saw(Event::SyncFailed);
    let mut steps = Vec::new();
    for _ in 0..3 {
        driven.now = driven.health.next_probe().expect("it is degraded");
        steps.extend(driven.probe(None));
    }
    let fell = Step { from: HealthState::Degraded, to: HealthState::Offline, reason: Reason::ProbesFailed };
    assert_eq!(steps, [fell]);
}
