//! How far a transfer is: a line on stderr that is drawn over, if that is a terminal; else nothing.
//!
//! Used by `get` and `put`.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

const BAR_COLUMNS: u64 = 30;
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// A bar.
pub struct Progress {
    what: &'static str,
    total_bytes: u64,
    done_bytes: u64,
    began: Instant,
    drawn: Option<Instant>,
    is_shown: bool,
}

impl Progress {
    /// Of a transfer of `total_bytes`.
    pub fn new(what: &'static str, total_bytes: u64) -> Progress {
        let is_shown = std::io::stderr().is_terminal();
        Progress { what, total_bytes, done_bytes: 0, began: Instant::now(), drawn: None, is_shown }
    }

    /// So many more.
    pub fn add(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        if self.is_shown && self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
            self.drawn = Some(Instant::now());
            eprint!("\r{}", self.line());
            let _ = std::io::stderr().flush();
        }
    }

    /// It is done.
    pub fn end(&mut self) {
        if self.is_shown {
            eprintln!("\r{}", self.line());
        }
    }

    fn line(&self) -> String {
        let filled = (BAR_COLUMNS * self.done_bytes).checked_div(self.total_bytes).unwrap_or(BAR_COLUMNS);
        let bar: String = (0..BAR_COLUMNS).map(|column| if column < filled { '#' } else { '.' }).collect();
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        let rate = mib(self.done_bytes) / self.began.elapsed().as_secs_f64().max(1e-6);
        format!(
            "{} [{bar}] {:.1} of {:.1} MiB, {rate:.0} MiB/s ",
            self.what,
            mib(self.done_bytes),
            mib(self.total_bytes)
        )
    }
}
