//! When to try again: exponential pauses with full jitter, and a budget that keeps retries from becoming a storm.
//!
//! The budget is a token bucket shared by all requests of a store: each first attempt earns a tenth of a token, each
//! retry costs one. So a store that fails everything sees at most 10 % more requests, plus a small reserve.
//! Source of full jitter: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::sync::atomic::{AtomicU32, Ordering};
#[cfg(any(test, feature = "server"))]
use std::time::Duration;

#[cfg(any(test, feature = "server"))]
use rand::rngs::SmallRng;
#[cfg(any(test, feature = "server"))]
use rand::{Rng, SeedableRng};

use super::settings::RetrySettings;

/// Tenths of a retry: a request earns one, a retry costs ten.
const RETRY_COST: u32 = 10;

/// The retry budget of one store.
#[derive(Debug)]
pub struct RetryBudget {
    tenths: AtomicU32,
    tenths_max: u32,
}

impl RetryBudget {
    /// A full budget.
    #[must_use]
    pub fn new(settings: &RetrySettings) -> RetryBudget {
        let tenths_max = settings.budget_max.saturating_mul(RETRY_COST);
        RetryBudget { tenths: AtomicU32::new(tenths_max), tenths_max }
    }

    /// A request begins.
    pub fn earn(&self) {
        let more = |tenths: u32| (tenths < self.tenths_max).then(|| tenths + 1);
        // Full already: nothing to add.
        let _ = self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Takes one retry out of the budget, if there is one.
    #[must_use]
    pub fn spend(&self) -> bool {
        let less = |tenths: u32| tenths.checked_sub(RETRY_COST);
        self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// The pause before retry number `retry` (0-based): random below base × 2^retry, at least what the store asked for.
#[cfg(any(test, feature = "server"))]
#[must_use]
pub fn pause(settings: &RetrySettings, retry: u32, retry_after: Option<Duration>) -> Duration {
    let bound = settings.pause_base.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX)).min(settings.pause_max);
    let jittered = bound.mul_f64(SmallRng::from_os_rng().random::<f64>());
    jittered.max(retry_after.unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_tenth_of_requests_after_the_reserve() {
        let budget = RetryBudget::new(&RetrySettings { budget_max: 3, ..RetrySettings::default() });
        let spent = (0..1_000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        let spent = spent.count();
        assert!((100..=103).contains(&spent), "{spent}");
    }

    #[test]
    fn pauses_grow_are_jittered_and_bounded() {
        let settings = RetrySettings::default();
        for retry in 0..40 {
            let bound = settings.pause_base.saturating_mul(1 << retry.min(20)).min(settings.pause_max);
            let pauses: Vec<_> = (0..50).map(|_| pause(&settings, retry, None)).collect();
            assert!(pauses.iter().all(|pause| *pause <= bound), "{retry}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{retry}");
        }
        assert_eq!(pause(&settings, 0, Some(Duration::from_secs(9))), Duration::from_secs(9));
    }
}
