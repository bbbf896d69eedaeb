//! The comparison's tables in markdown.
//!
//! A figure is the median of all rounds, with the smallest and the largest in brackets. Called by `compare`.

use std::fmt::Write as _;
use std::fs;

use super::{Case, Row, Source};
use crate::peers::Peer;
use crate::report::Report;
use crate::units::show_size;

/// Below this size requests count, above it bytes do.
const SMALL_BYTES: u64 = 64 << 10;

/// What was measured, with what, on what.
pub fn preamble(versions: &[(Peer, String)], rounds: u32, seconds: f64, connections: u32) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = cpu.lines().filter(|line| line.starts_with("model name")).collect();
    let model = models.first().and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut text = format!(
        "Machine: {model}, {} cores, Linux {}. Medians of {rounds} rounds of {seconds} s, smallest and largest in \
         brackets; {connections} keep-alive connections, closed loop, TLS 1.3 AES-128-GCM, HTTP/1.1.\n\n",
        models.len(),
        kernel.trim(),
    );
    for (peer, version) in versions {
        let _ = writeln!(text, "- {}: {version}", peer.name());
    }
    text.push('\n');
    text
}

/// One line about one run.
pub fn brief(report: &Report) -> String {
    format!(
        "{:>8.0} req/s {:>8.1} MiB/s  {:>8.2} µs/req {:>6.3} CPU s/GiB  p99 {:>7.0} µs  generator {:>3.0} %",
        report.requests_per_second,
        report.mib_per_second,
        report.server_cpu_us_per_request.unwrap_or(f64::NAN),
        report.server_cpu_s_per_gib.unwrap_or(f64::NAN),
        report.p99_us,
        report.own_cpu_share * 100.0
    )
}

/// The table of one case.
pub fn section(case: &Case, rows: &[Row]) -> String {
    let from = match case.source {
        Source::Memory => "from memory",
        Source::Disk => "from disk, direct I/O",
    };
    let is_small = case.size < SMALL_BYTES;
    let (rate, cost) = if is_small { ("requests/s", "CPU µs/request") } else { ("MiB/s", "CPU s/GiB") };
    let mut text = format!("### {} {from} ({} keys)\n\n", show_size(case.size), case.keys);
    let _ = writeln!(
        text,
        "| | {rate} | × nginx | of the ceiling | {cost} | p50 µs | p99 µs | from device | generator's core |"
    );
    text.push_str("|---|---|---|---|---|---|---|---|---|\n");
    let speed = |report: &Report| if is_small { report.requests_per_second } else { report.mib_per_second };
    let median_speed = |peer: Peer| {
        let row = rows.iter().find(|row| row.peer == peer)?;
        Some(Spread::of(&row.reports, speed).median)
    };
    for row in rows {
        let speeds = Spread::of(&row.reports, speed);
        let costs = Spread::of(&row.reports, |report| {
            let cost = if is_small { report.server_cpu_us_per_request } else { report.server_cpu_s_per_gib };
            cost.unwrap_or(f64::NAN)
        });
        let p50 = Spread::of(&row.reports, |report| report.p50_us).median;
        let p99 = Spread::of(&row.reports, |report| report.p99_us).median;
        let own = Spread::of(&row.reports, |report| report.own_cpu_share).median * 100.0;
        let device =
            Spread::of(&row.reports, |report| report.server_device_read_share.unwrap_or(f64::NAN)).median * 100.0;
        let against = |peer| median_speed(peer).map(|other| speeds.median / other);
        let nginx = against(Peer::Nginx).map_or("–".into(), |ratio| format!("{ratio:.2}"));
        let ceiling = against(Peer::Null).map_or("–".into(), |ratio| format!("{:.0} %", ratio * 100.0));
        let _ = writeln!(
            text,
            "| {} | {} | {nginx} | {ceiling} | {} | {p50:.0} | {p99:.0} | {device:.0} % | {own:.0} % |",
            row.peer.name(),
            speeds.show(0),
            costs.show(if is_small { 2 } else { 3 }),
        );
    }
    text.push('\n');
    text
}

/// The median and the extremes of a figure.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(reports: &[Report], figure: impl Fn(&Report) -> f64) -> Self {
        let mut figures: Vec<f64> = reports.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
        let last = figures.len().saturating_sub(1);
        Self { median: f64::midpoint(at(last / 2), at(figures.len() / 2)), least: at(0), most: at(last) }
    }

    fn show(&self, decimals: usize) -> String {
        format!("**{:.decimals$}** ({:.decimals$}–{:.decimals$})", self.median, self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_those_of_the_middle() {
        let figures = |values: &[f64]| {
            let reports: Vec<Report> = values.iter().map(|&p50_us| Report { p50_us, ..Report::default() }).collect();
            let spread = Spread::of(&reports, |report| report.p50_us);
            (spread.median, spread.least, spread.most)
        };
        assert_eq!(figures(&[5.0, 1.0, 3.0]), (3.0, 1.0, 5.0));
        assert_eq!(figures(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
    }
}
