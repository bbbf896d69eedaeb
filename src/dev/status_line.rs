//! The live line of `forebay dev`: hits, misses, dirty, throughput of all proxies together.
//!
//! Called by `dev.rs` once a second. On a terminal the line is drawn over itself; elsewhere nothing is printed, so
//! that a log or a pipe holds only what happened.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use super::probe::Figures;

/// Clears the line that the cursor is on.
const CLEAR: &str = "\r\x1b[2K";

/// Draws on stdout.
#[derive(Debug)]
pub struct StatusLine {
    terminal: Terminal,
    before: Option<(Instant, Figures)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terminal {
    /// Stdout is one; something may be drawn on the current line.
    Yes,
    /// Stdout is a file or a pipe.
    No,
}

impl StatusLine {
    /// Looks whether stdout is a terminal.
    #[must_use]
    pub fn new() -> StatusLine {
        StatusLine {
            terminal: if std::io::stdout().is_terminal() { Terminal::Yes } else { Terminal::No },
            before: None,
        }
    }

    /// Whether there is anybody to draw for.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.terminal == Terminal::Yes
    }

    /// Draws the sum of what the proxies told; `alive` of `count` did.
    pub fn draw(&mut self, now: Figures, alive: usize, count: usize) {
        if !self.wanted() {
            return;
        }
        let at = Instant::now();
        let bytes_per_second = match self.before {
            // A proxy that was started again counts from zero.
            Some((then, before)) => rate(now.payload_bytes.saturating_sub(before.payload_bytes), at - then),
            None => 0.0,
        };
        self.before = Some((at, now));
        print(&format!("{CLEAR}{}", text(now, bytes_per_second, alive, count)));
    }

    /// Prints a line that stays.
    pub fn say(&self, line: &str) {
        match self.terminal {
            Terminal::Yes => print(&format!("{CLEAR}{line}\n")),
            Terminal::No => print(&format!("{line}\n")),
        }
    }
}

impl Default for StatusLine {
    fn default() -> StatusLine {
        StatusLine::new()
    }
}

/// Stdout may be closed, or a pipe that nobody reads any more: the proxies run on.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn text(figures: Figures, bytes_per_second: f64, alive: usize, count: usize) -> String {
    let Figures { hits, misses, dirty_blocks, dirty_bytes, .. } = figures;
    let megabytes = bytes_per_second / 1e6;
    let dirty_mebibytes = dirty_bytes.div_ceil(1 << 20);
    let proxies = if alive == count { String::new() } else { format!(" · {alive} of {count} proxies answer") };
    format!(
        "hits {hits} · misses {misses} · dirty {dirty_blocks} ({dirty_mebibytes} MiB) · {megabytes:.1} MB/s{proxies}"
    )
}

#[allow(clippy::cast_precision_loss)]
fn rate(bytes: u64, during: std::time::Duration) -> f64 {
    bytes as f64 / during.as_secs_f64().max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_line_says_what_counts() {
        let figures = Figures { hits: 3, misses: 2, dirty_blocks: 1, dirty_bytes: 5, payload_bytes: 9 };
        assert_eq!(text(figures, 2_500_000.0, 2, 2), "hits 3 · misses 2 · dirty 1 (1 MiB) · 2.5 MB/s");
        assert!(text(figures, 0.0, 1, 2).ends_with("1 of 2 proxies answer"));
        assert!((rate(1_000, Duration::from_millis(500)) - 2_000.0).abs() < 1e-6);
    }
}
