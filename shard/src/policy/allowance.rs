//! How much may be written to a disk: so many bytes a day, as a bucket of tokens.
//!
//! Used by `disk`. What is written is charged whether it was asked about or not: dirty blocks and puts that the origin has
//! are never declined, so the bucket may be in debt, and then what need not be written is declined until it is paid. Whole
//! numbers only, so that the same calls give the same answers; no clock: the caller says what time it is.

/// Nanoseconds of a day: a byte costs so many units, and each nanosecond brings as many as bytes are allowed a day.
const DAY_NS: i128 = 86_400 * 1_000_000_000;
/// What was not used is kept for so long: a twenty-fourth of a day.
const KEPT_NS: i128 = DAY_NS / 24;

/// Tokens for writing.
pub struct Allowance {
    bytes_per_day: u64,
    /// Bytes × [`DAY_NS`].
    units: i128,
    /// When it was last filled up, in nanoseconds of the caller's clock.
    at_ns: u64,
}

impl Allowance {
    /// Full at `now_ns`.
    #[must_use]
    pub fn new(bytes_per_day: u64, now_ns: u64) -> Allowance {
        Allowance { bytes_per_day, units: most(bytes_per_day), at_ns: now_ns }
    }

    /// `bytes` are written.
    pub fn charge(&mut self, bytes: u64, now_ns: u64) {
        self.fill_up(now_ns);
        self.units -= i128::from(bytes) * DAY_NS;
    }

    /// What may be written now, in bytes.
    pub fn left_bytes(&mut self, now_ns: u64) -> u64 {
        self.fill_up(now_ns);
        u64::try_from(self.units / DAY_NS).unwrap_or(0)
    }

    /// Whether more than half of what can be saved up is there: enough to spend some on what may never be asked for again.
    pub fn is_ample(&mut self, now_ns: u64) -> bool {
        self.fill_up(now_ns);
        self.units > most(self.bytes_per_day) / 2
    }

    fn fill_up(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.at_ns);
        self.at_ns = self.at_ns.max(now_ns);
        let earned = i128::from(passed) * i128::from(self.bytes_per_day);
        self.units = (self.units + earned).min(most(self.bytes_per_day));
    }
}

fn most(bytes_per_day: u64) -> i128 {
    i128::from(bytes_per_day) * KEPT_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_NS: u64 = 3_600_000_000_000;

    #[test]
    fn an_hour_is_kept_and_a_day_brings_a_days_worth() {
        let mut allowance = Allowance::new(2_400, 7);
        assert_eq!((allowance.left_bytes(7), allowance.is_ample(7)), (100, true));
        allowance.charge(60, 7);
        assert_eq!((allowance.left_bytes(7), allowance.is_ample(7)), (40, false));
        // Asked often or seldom, no token is lost.
        let mut now = 7;
        (0..3_600).for_each(|_| {
            now += HOUR_NS / 3_600 / 10;
            let _ = allowance.left_bytes(now);
        });
        assert_eq!(allowance.left_bytes(now), 50);
        assert_eq!(allowance.left_bytes(now + 24 * HOUR_NS), 100);
    }

    #[test]
    fn what_must_be_written_makes_a_debt_that_is_paid() {
        let mut allowance = Allowance::new(2_400, 0);
        allowance.charge(300, 0);
        assert_eq!(allowance.left_bytes(HOUR_NS), 0);
        assert_eq!(allowance.left_bytes(2 * HOUR_NS), 0);
        assert_eq!(allowance.left_bytes(3 * HOUR_NS), 100);
        // A clock that stands still, or goes back, brings nothing.
        allowance.charge(100, 2 * HOUR_NS);
        assert_eq!(allowance.left_bytes(HOUR_NS), 0);
    }
}
