//! How far a verification is: a bar on a terminal, else a plain line now and then.
//!
//! Used by `verify`, on stderr, so that the verdict on stdout stays clean. The rate is that of the shard so far. Lines tell
//! of blocks only: what comes before them takes no time worth a line.

use std::io::{IsTerminal, Stderr, Write};
use std::time::{Duration, Instant};

use forebay_shard::store::inspect::report::Part;
use forebay_shard::store::inspect::verify::Progress;

use super::super::inspect::figures::bytes;

const BAR_COLUMNS: usize = 30;
/// Between two drawings of the bar.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows progress as it is told.
pub struct Meter<W = Stderr> {
    out: W,
    style: Style,
    shard_count: usize,
    done_count: usize,
    /// When the first block of this shard was read.
    began: Option<Instant>,
    shown: Option<(Instant, Part)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Lines,
}

impl Meter {
    /// A bar if stderr is a terminal, else lines.
    #[must_use]
    pub fn on_stderr(shard_count: usize) -> Meter {
        let style = if std::io::stderr().is_terminal() { Style::Bar } else { Style::Lines };
        Meter { out: std::io::stderr(), style, shard_count, done_count: 0, began: None, shown: None }
    }
}

impl<W: Write> Meter<W> {
    /// Notes that shard number `shard` is at `at`. Whoever can't read it misses nothing else.
    pub fn show(&mut self, shard: u16, at: Progress) {
        let now = Instant::now();
        if at.part == Part::Records && self.began.is_none() {
            self.began = Some(now);
        }
        let every = if self.style == Style::Bar { DRAW_EVERY } else { LINE_EVERY };
        let is_new = self.shown.is_none_or(|(_, part)| part != at.part);
        let is_end = at.part == Part::Records && at.done_bytes == at.total_bytes;
        if self.style == Style::Lines && at.part != Part::Records {
            return;
        }
        if !is_new && !is_end && self.shown.is_some_and(|(shown, _)| now.duration_since(shown) < every) {
            return;
        }
        self.shown = Some((now, at.part));
        let elapsed = self.began.map_or(Duration::ZERO, |began| now.duration_since(began));
        let words = words(at, elapsed);
        let place = format!("shard {shard} ({} of {})", self.done_count + 1, self.shard_count);
        // Progress is a courtesy: a closed stderr must not end the verification.
        let _ = match self.style {
            Style::Bar => write!(self.out, "\r\x1b[K{place} {} {words}", bar(at)).and_then(|()| self.out.flush()),
            Style::Lines => writeln!(self.out, "{place}: {words}"),
        };
    }

    /// The shard's verification ended.
    pub fn shard_done(&mut self) {
        self.done_count += 1;
        (self.began, self.shown) = (None, None);
        if self.style == Style::Bar {
            let _ = write!(self.out, "\r\x1b[K").and_then(|()| self.out.flush());
        }
    }
}

fn words(at: Progress, elapsed: Duration) -> String {
    let Progress { part, done_bytes, total_bytes } = at;
    let name = match part {
        Part::Superblock => return "superblock".into(),
        Part::Checkpoints => return "checkpoints".into(),
        Part::Journal => return "journal".into(),
        Part::Index => return "index".into(),
        Part::Footers => return "footers".into(),
        Part::Records => "records",
    };
    let percent = (done_bytes * 100).checked_div(total_bytes).unwrap_or(100);
    let progress = format!("{name} {percent} %, {} of {}", bytes(done_bytes), bytes(total_bytes));
    let seconds = elapsed.as_secs_f64();
    if done_bytes == 0 || seconds < 0.001 {
        return progress;
    }
    let rate = done_bytes as f64 / seconds;
    let left = Duration::from_secs_f64((total_bytes - done_bytes) as f64 / rate);
    format!("{progress}, {}/s, {} left", bytes(rate as u64), clock(left))
}

fn clock(left: Duration) -> String {
    let seconds = left.as_secs();
    if seconds >= 3600 {
        format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    } else {
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }
}

fn bar(at: Progress) -> String {
    let full = (at.done_bytes as usize * BAR_COLUMNS).checked_div(at.total_bytes as usize).unwrap_or(0);
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR_COLUMNS - full))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(done_bytes: u64) -> Progress {
        Progress { part: Part::Records, done_bytes, total_bytes: 8 << 30 }
    }

    #[test]
    fn bytes_rate_and_time_left_are_told() {
        let words = words(at(2 << 30), Duration::from_secs(2));
        assert_eq!(words, "records 25 %, 2 GiB of 8 GiB, 1 GiB/s, 0:06 left");
        assert_eq!(clock(Duration::from_secs(3_725)), "1:02:05");
        assert_eq!(bar(at(4 << 30)), "[###############...............]");
    }

    #[test]
    fn an_empty_store_divides_by_nothing() {
        let empty = Progress { part: Part::Records, done_bytes: 0, total_bytes: 0 };
        assert_eq!(words(empty, Duration::ZERO), "records 100 %, 0 B of 0 B");
        assert_eq!(bar(empty), format!("[{}]", ".".repeat(BAR_COLUMNS)));
    }

    #[test]
    fn without_a_terminal_lines_are_few_and_plain() {
        let mut meter =
            Meter { out: Vec::new(), style: Style::Lines, shard_count: 2, done_count: 0, began: None, shown: None };
        (0..=8).for_each(|gib| meter.show(3, at(gib << 30)));
        meter.shard_done();
        meter.show(4, at(0));
        let shown = String::from_utf8(meter.out).unwrap();
        assert_eq!(shown.lines().count(), 3, "begin, end, and the next shard: {shown}");
        assert!(shown.starts_with("shard 3 (1 of 2): records 0 %") && shown.contains("shard 4 (2 of 2)"), "{shown}");
        assert!(!shown.contains('\r') && !shown.contains('\x1b'));
    }
}
