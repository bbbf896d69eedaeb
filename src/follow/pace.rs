//! When the admin is asked next, and how: the follower's pace, pure. Time and chance are given.
//!
//! Long polls as long as they work. A long poll that fails is followed by a plain look, so that news are late by one failure at most. If looks
//! work and long polls don't (something on the way cuts them), a look each refresh period, and now and then a long poll that is no longer
//! than that period. If nothing works, looks after pauses that double, with full jitter, until one succeeds.
//!
//! Invariant: whenever looks work, two of them begin at most a refresh period apart, or a long poll is under way.

use std::time::Duration;

/// How the admin is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// For what there is now.
    Look,
    /// For the next change, for at most so long.
    Wait(Duration),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer, after so long.
    Answered(Duration),
    /// No answer in time, or none at all.
    Failed,
    /// An answer that can't be used: a refused token, a signature that is not trusted.
    Refused,
}

/// Bounds of the pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaceSettings {
    /// The length of a long poll.
    pub wait: Duration,
    /// How often to look where long polls don't work.
    pub refresh: Duration,
    /// The longest pause while the admin can't be reached.
    pub pause_max: Duration,
    /// The longest pause while the admin refuses.
    pub refused_pause_max: Duration,
}

impl Default for PaceSettings {
    fn default() -> PaceSettings {
        PaceSettings {
            wait: Duration::from_secs(30),
            refresh: Duration::from_secs(10),
            pause_max: Duration::from_secs(5),
            refused_pause_max: Duration::from_secs(30),
        }
    }
}

/// The first pause after a failure is random below this; each further bound is twice as long.
const PAUSE_BASE: Duration = Duration::from_millis(100);
/// Between two answers that came at once: a server that never waits is not asked in a busy loop.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// So many long polls cut in a row, with looks that worked between them, and long polls count as impossible.
const CUTS_MAX: u32 = 2;
/// After so many looks a long poll is tried again.
const LOOKS_UNTIL_TRIAL: u32 = 6;

/// Where the pace stands.
#[derive(Debug, Clone)]
pub struct Pace {
    settings: PaceSettings,
    next: Ask,
    failures: u32,
    cuts: u32,
    looks_left: u32,
}

impl Pace {
    /// Begins with a look.
    #[must_use]
    pub fn new(settings: PaceSettings) -> Pace {
        Pace { settings, next: Ask::Look, failures: 0, cuts: 0, looks_left: 0 }
    }

    /// How to ask now.
    #[must_use]
    pub fn ask(&self) -> Ask {
        self.next
    }

    /// Takes what came of [`Pace::ask`]; the pause until the next. `chance` is uniform in 0..1.
    pub fn after(&mut self, outcome: Outcome, chance: f64) -> Duration {
        let asked = self.next;
        match (asked, outcome) {
            (Ask::Wait(wait), Outcome::Answered(took)) => {
                self.failures = 0;
                self.cuts = 0;
                self.next = Ask::Wait(self.settings.wait);
                // An answer that came at once and brought nothing is paced by whoever calls it refused; one with news is welcome.
                if took < wait / 100 { PAUSE_MIN } else { Duration::ZERO }
            }
            (Ask::Wait(_), Outcome::Failed) => {
                self.cuts += 1;
                self.looks_left = LOOKS_UNTIL_TRIAL;
                self.next = Ask::Look;
                PAUSE_BASE.mul_f64(chance)
            }
            (Ask::Look, Outcome::Answered(_)) => {
                self.failures = 0;
                if self.cuts < CUTS_MAX {
                    self.next = Ask::Wait(self.settings.wait);
                    return Duration::ZERO;
                }
                self.looks_left = self.looks_left.saturating_sub(1);
                self.next = if self.looks_left == 0 { Ask::Wait(self.settings.refresh / 2) } else { Ask::Look };
                self.settings.refresh.mul_f64(0.75 + chance / 4.0)
            }
            (Ask::Look, Outcome::Failed) => {
                // Nothing works: that says nothing about long polls.
                self.cuts = 0;
                self.pause(self.settings.pause_max, chance)
            }
            (_, Outcome::Refused) => {
                self.next = Ask::Look;
                self.pause(self.settings.refused_pause_max, chance)
            }
        }
    }

    fn pause(&mut self, pause_max: Duration, chance: f64) -> Duration {
        let bound = PAUSE_BASE.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(pause_max);
        self.failures = self.failures.saturating_add(1);
        // Never nothing: thousands of followers of one admin ask apart from each other, and none in a busy loop.
        bound.mul_f64(0.1 + 0.9 * chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: PaceSettings = PaceSettings {
        wait: Duration::from_secs(30),
        refresh: Duration::from_secs(10),
        pause_max: Duration::from_secs(5),
        refused_pause_max: Duration::from_secs(30),
    };
    const WAIT: Ask = Ask::Wait(Duration::from_secs(30));
    const LATE: Outcome = Outcome::Answered(Duration::from_secs(30));

    #[test]
    fn long_polls_follow_each_other() {
        let mut pace = Pace::new(SETTINGS);
        assert_eq!(pace.ask(), Ask::Look);
        assert_eq!(pace.after(LATE, 0.5), Duration::ZERO);
        for _ in 0..3 {
            assert_eq!(pace.ask(), WAIT);
            assert_eq!(pace.after(LATE, 0.5), Duration::ZERO);
        }
        assert_eq!(pace.after(Outcome::Answered(Duration::ZERO), 0.5), PAUSE_MIN, "a server that never waits");
    }

    #[test]
    fn an_admin_that_was_away_is_waited_for_again_at_once() {
        let mut pace = Pace::new(SETTINGS);
        pace.after(LATE, 0.5);
        assert!(pace.after(Outcome::Failed, 1.0) <= PAUSE_BASE);
        assert_eq!(pace.ask(), Ask::Look);
        let pauses: Vec<_> = (0..12).map(|_| pace.after(Outcome::Failed, 1.0)).collect();
        assert!(pauses.is_sorted() && pauses[0] == PAUSE_BASE && pauses[11] == SETTINGS.pause_max, "{pauses:?}");
        assert_eq!(pace.after(LATE, 0.5), Duration::ZERO);
        assert_eq!(pace.ask(), WAIT);
    }

    #[test]
    fn where_long_polls_are_cut_looks_take_their_place() {
        let mut pace = Pace::new(SETTINGS);
        pace.after(LATE, 0.5);
        pace.after(Outcome::Failed, 0.5);
        pace.after(LATE, 0.5);
        assert_eq!(pace.ask(), WAIT, "once is no proof");
        pace.after(Outcome::Failed, 0.5);
        let mut looks = 0;
        while pace.ask() == Ask::Look {
            let pause = pace.after(LATE, 1.0);
            assert!(pause <= SETTINGS.refresh && pause >= SETTINGS.refresh / 2, "{pause:?}");
            looks += 1;
        }
        assert_eq!((looks, pace.ask()), (LOOKS_UNTIL_TRIAL, Ask::Wait(SETTINGS.refresh / 2)));
        pace.after(Outcome::Failed, 0.5);
        pace.after(LATE, 0.5);
        assert_eq!(pace.ask(), Ask::Look, "still cut");
        while pace.ask() == Ask::Look {
            pace.after(LATE, 1.0);
        }
        pace.after(LATE, 0.5);
        assert_eq!(pace.ask(), WAIT, "cut no more");
    }

    proptest! {
        /// Whatever happens, no pause is longer than the settings say, and a failure is never followed by none at all.
        #[test]
        fn pauses_are_bounded(outcomes in prop::collection::vec((0u8..3, 0.0f64..1.0), 1..200)) {
            let mut pace = Pace::new(SETTINGS);
            for (outcome, chance) in outcomes {
                let asked = pace.ask();
                let outcome = [LATE, Outcome::Failed, Outcome::Refused][usize::from(outcome)];
                let pause = pace.after(outcome, chance);
                prop_assert!(pause <= SETTINGS.refused_pause_max);
                match outcome {
                    Outcome::Answered(_) => prop_assert!(pause <= SETTINGS.refresh),
                    Outcome::Failed => prop_assert!(pause <= SETTINGS.pause_max),
                    Outcome::Refused => prop_assert!(pause >= PAUSE_BASE / 10),
                }
                if outcome != LATE {
                    prop_assert_eq!(pace.ask(), Ask::Look, "after {:?}", asked);
                }
            }
        }
    }
}
