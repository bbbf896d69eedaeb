//! Whether a member is worth a request: a circuit breaker, pure. Time is given.
//!
//! Called before and after each request by the client's `member` and by `origin/peers`. After several failures in a row, or one that a ping confirmed, the circuit opens and the member
//! is passed by without a try; after a pause one request at a time may try it (half open): success closes, failure opens for twice as long.
//! A member whose answers have been slow for long is treated the same, once.
//!
//! Invariant: an open circuit lets at most one request through per pause.

use std::time::Duration;

/// Bounds of a breaker.
#[derive(Debug, Clone, Copy)]
pub struct BreakerSettings {
    /// So many failures in a row open it.
    pub failures_max: u32,
    /// An answer is slow if its head takes longer.
    pub slow: Duration,
    /// So many slow answers in a row open it.
    pub slow_max: u32,
    /// The first pause.
    pub pause: Duration,
    /// The longest.
    pub pause_max: Duration,
}

impl Default for BreakerSettings {
    fn default() -> BreakerSettings {
        BreakerSettings {
            failures_max: 3,
            slow: Duration::from_secs(5),
            slow_max: 8,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(10),
        }
    }
}

/// What a request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Go.
    Granted,
    /// Pass the member by.
    Refused,
}

/// Whether an outcome changed the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It did not.
    None,
    /// It is open now.
    Opened,
    /// It is closed now.
    Closed,
}

/// One member's circuit.
#[derive(Debug)]
pub struct Breaker {
    settings: BreakerSettings,
    failures: u32,
    slow: u32,
    /// When open: until when nobody tries, and for how long that was.
    open: Option<(Duration, Duration)>,
}

impl Breaker {
    /// Closed.
    #[must_use]
    pub fn new(settings: BreakerSettings) -> Breaker {
        Breaker { settings, failures: 0, slow: 0, open: None }
    }

    /// Whether a request may try the member at `now`.
    pub fn leave(&mut self, now: Duration) -> Leave {
        match &mut self.open {
            None => Leave::Granted,
            Some((until, _)) if now < *until => Leave::Refused,
            Some((until, pause)) => {
                // This one tries; others wait for what comes of it, or for another pause.
                *until = now + *pause;
                Leave::Granted
            }
        }
    }

    /// Whether the member is passed by at the moment.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// An answer's head came after `took`.
    pub fn succeeded(&mut self, took: Duration, now: Duration) -> Change {
        self.failures = 0;
        self.slow = if took > self.settings.slow { self.slow + 1 } else { 0 };
        if self.open.is_none() && self.slow >= self.settings.slow_max {
            return self.trip(now);
        }
        match self.open.take() {
            Some(_) => Change::Closed,
            None => Change::None,
        }
    }

    /// No answer.
    pub fn failed(&mut self, now: Duration) -> Change {
        self.failures += 1;
        if self.open.is_some() || self.failures >= self.settings.failures_max { self.trip(now) } else { Change::None }
    }

    /// No answer, and none to a ping either.
    pub fn died(&mut self, now: Duration) -> Change {
        self.failures = self.failures.max(self.settings.failures_max);
        self.trip(now)
    }

    fn trip(&mut self, now: Duration) -> Change {
        self.slow = 0;
        let change = if self.open.is_some() { Change::None } else { Change::Opened };
        let pause = match self.open {
            Some((_, pause)) => (pause * 2).min(self.settings.pause_max),
            None => self.settings.pause,
        };
        self.open = Some((now + pause, pause));
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn breaker() -> (Breaker, BreakerSettings) {
        let settings = BreakerSettings::default();
        (Breaker::new(settings), settings)
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let (mut breaker, settings) = breaker();
        for _ in 0..10 {
            for _ in 1..settings.failures_max {
                assert_eq!(breaker.failed(Duration::ZERO), Change::None);
            }
            assert_eq!(breaker.succeeded(MS, Duration::ZERO), Change::None);
        }
        for _ in 1..settings.failures_max {
            breaker.failed(Duration::ZERO);
        }
        assert_eq!(breaker.leave(Duration::ZERO), Leave::Granted);
        assert_eq!(breaker.failed(Duration::ZERO), Change::Opened);
        assert_eq!(breaker.leave(Duration::ZERO), Leave::Refused);
    }

    #[test]
    fn half_open_lets_one_through_each_pause_and_pauses_grow() {
        let (mut breaker, settings) = breaker();
        assert_eq!(breaker.died(Duration::ZERO), Change::Opened);
        let (mut now, mut pause) = (Duration::ZERO, settings.pause);
        for _ in 0..10 {
            assert_eq!(breaker.leave(now + pause - MS), Leave::Refused);
            now += pause;
            assert_eq!((breaker.leave(now), breaker.leave(now)), (Leave::Granted, Leave::Refused));
            assert_eq!(breaker.failed(now), Change::None, "open it was");
            pause = (pause * 2).min(settings.pause_max);
        }
        assert_eq!(pause, settings.pause_max);
        now += pause;
        assert_eq!(breaker.leave(now), Leave::Granted);
        assert_eq!(breaker.succeeded(MS, now), Change::Closed);
        assert_eq!((breaker.leave(now), breaker.leave(now)), (Leave::Granted, Leave::Granted));
        assert_eq!(breaker.failed(now), Change::None, "failures are counted anew");
    }

    #[test]
    fn a_try_that_says_nothing_is_followed_by_another() {
        let (mut breaker, settings) = breaker();
        breaker.died(Duration::ZERO);
        assert_eq!(breaker.leave(settings.pause), Leave::Granted);
        assert_eq!(breaker.leave(settings.pause * 2 - MS), Leave::Refused);
        assert_eq!(breaker.leave(settings.pause * 2), Leave::Granted, "whoever tried may be gone");
    }

    #[test]
    fn slowness_opens_it() {
        let (mut breaker, settings) = breaker();
        let slow = settings.slow + MS;
        for _ in 1..settings.slow_max {
            assert_eq!(breaker.succeeded(slow, Duration::ZERO), Change::None);
        }
        assert_eq!(breaker.succeeded(slow, Duration::ZERO), Change::Opened);
    }
}
