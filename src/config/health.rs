//! `[health]` checked: limits by which a disk is judged, in ranges in which the machine of `shard/src/health` makes sense.
//!
//! Part of `Config::check`. The defaults are those of [`HealthLimits`], so that there is one place for them; each is
//! described at its key in `raw.rs`.

use std::time::Duration;

use forebay_shard::config::HealthLimits;

use crate::config::checked::ConfigError;
use crate::config::raw::RawHealth;
use crate::config::units::{Size, Time};

const COUNT_MAX: u32 = 1_000_000;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(86_400);

/// Checks `[health]`.
///
/// # Errors
/// The first mistake found.
pub fn check_health(raw: &RawHealth) -> Result<HealthLimits, ConfigError> {
    let wrong = |key: &str, what: String| ConfigError::new(format!("health.{key}"), what);
    for (key, count) in [
        ("errors_degraded", raw.errors_degraded),
        ("errors_offline", raw.errors_offline),
        ("slow_ops_min", raw.slow_ops_min),
        ("probes_bad", raw.probes_bad),
        ("probes_good", raw.probes_good),
    ] {
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(wrong(key, format!("{count} is out of range: set 1 to {COUNT_MAX}")));
        }
    }
    for (key, time) in [
        ("window", raw.window),
        ("slow", raw.slow),
        ("stalled", raw.stalled),
        ("probe_every", raw.probe_every),
        ("probe_every_max", raw.probe_every_max),
        ("relapse", raw.relapse),
    ] {
        if !(SHORTEST..=LONGEST).contains(&time.0) {
            return Err(wrong(key, format!("{time} is out of range: set {} to {}", Time(SHORTEST), Time(LONGEST))));
        }
    }
    let Size::Percent(slow_percent) = raw.slow_share else {
        return Err(wrong("slow_share", "write a share such as \"50%\"".to_owned()));
    };
    if raw.errors_offline <= raw.errors_degraded {
        let what = format!("{} is not more than errors_degraded ({})", raw.errors_offline, raw.errors_degraded);
        return Err(wrong("errors_offline", format!("{what}: set more")));
    }
    if raw.stalled.0 <= raw.slow.0 {
        let what = format!("{} is not longer than slow ({}): set more", raw.stalled, raw.slow);
        return Err(wrong("stalled", what));
    }
    if raw.probe_every_max.0 < raw.probe_every.0 {
        let what = format!("{} is shorter than probe_every ({}): set more", raw.probe_every_max, raw.probe_every);
        return Err(wrong("probe_every_max", what));
    }
    Ok(HealthLimits {
        window: raw.window.0,
        errors_degraded: raw.errors_degraded,
        errors_offline: raw.errors_offline,
        slow: raw.slow.0,
        slow_percent: u32::from(slow_percent),
        slow_ops_min: raw.slow_ops_min,
        stalled: raw.stalled.0,
        probe_every: raw.probe_every.0,
        probe_every_max: raw.probe_every_max.0,
        probes_bad: raw.probes_bad,
        probes_good: raw.probes_good,
        relapse: raw.relapse.0,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_the_machine_s_own_default() {
        assert_eq!(check_health(&RawHealth::default()), Ok(HealthLimits::default()));
        let text = toml::to_string(&RawHealth::default()).unwrap();
        assert_eq!(check_health(&toml::from_str(&text).unwrap()), Ok(HealthLimits::default()), "{text}");
    }

    #[test]
    fn what_is_set_is_taken() {
        let text = "window = \"5m\"\nerrors_degraded = 2\nerrors_offline = 4\nslow = \"200ms\"\nslow_share = \"25%\"\n\
                    slow_ops_min = 8\nstalled = \"3s\"\nprobe_every = \"1s\"\nprobe_every_max = \"30s\"\nprobes_bad = 5\n\
                    probes_good = 6\nrelapse = \"1h\"\n";
        let wanted = HealthLimits {
            window: Duration::from_secs(300),
            errors_degraded: 2,
            errors_offline: 4,
            slow: Duration::from_millis(200),
            slow_percent: 25,
            slow_ops_min: 8,
            stalled: Duration::from_secs(3),
            probe_every: Duration::from_secs(1),
            probe_every_max: Duration::from_secs(30),
            probes_bad: 5,
            probes_good: 6,
            relapse: Duration::from_secs(3600),
        };
        assert_eq!(check_health(&toml::from_str(text).unwrap()), Ok(wanted));
    }
}
