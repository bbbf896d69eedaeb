//! How far a transfer is: a line on stderr that is drawn over, if that is a terminal; else nothing.
//!
//! Used by `get` and `put`.

use std::io::{IsTerminal as _, Write as _};
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::client::Sent;

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
        if self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
            self.draw();
        }
    }

    /// Runs `putting` to its end, and shows meanwhile how much of its body is `sent`.
    ///
    /// # Errors
    /// Its own.
    pub async fn watch<T, E>(&mut self, sent: &Sent, putting: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut putting = pin!(putting);
        loop {
            let done = tokio::time::timeout(DRAW_EVERY, &mut putting).await;
            // Less than before, where an attempt is made again.
            self.done_bytes = sent.bytes();
            match done {
                Ok(done) => {
                    self.done_bytes = if done.is_ok() { self.total_bytes } else { self.done_bytes };
                    self.end();
                    return done;
                }
                Err(_) => self.draw(),
            }
        }
    }

    fn draw(&mut self) {
        self.drawn = Some(Instant::now());
        if self.is_shown {
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
