//! Ctrl-C, SIGTERM and a closed terminal ask `forebay dev` to stop; asked twice, it stops at once.
//!
//! Called by `dev.rs` and by whatever waits there, all on one thread. Signal handlers only raise a flag; everybody
//! else polls. There is one per process.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a stop was asked for.
#[derive(Debug, Default)]
pub struct Stop {
    raised: Arc<AtomicBool>,
    count: Cell<usize>,
}

impl Stop {
    /// From now on signals raise a flag rather than end the process.
    ///
    /// # Errors
    /// If a handler can't be installed.
    pub fn on_signals() -> anyhow::Result<Stop> {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop.raised))
                .context("signal handlers can't be installed")?;
        }
        Ok(stop)
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.count() > 0
    }

    /// Whether it was asked for again, more urgently.
    #[must_use]
    pub fn urgent(&self) -> bool {
        self.count() > 1
    }

    fn count(&self) -> usize {
        if self.raised.swap(false, Ordering::Relaxed) {
            self.count.set(self.count.get() + 1);
        }
        self.count.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_twice_is_urgent() {
        let stop = Stop::default();
        assert!(!stop.asked());
        stop.raised.store(true, Ordering::Relaxed);
        assert!(stop.asked() && !stop.urgent());
        stop.raised.store(true, Ordering::Relaxed);
        assert!(stop.urgent());
    }
}
