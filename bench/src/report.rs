//! The figures of one run, for people and for machines.
//!
//! Made by `get` from what the load threads counted; `compare` reads the same struct. A figure that was not measured is
//! absent, never zero.

use std::fmt;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::cpu::Usage;
use crate::get::Get;
use crate::load::{Pace, Tally};
use crate::units::show_size;

/// Bytes in a GiB, as a divisor.
const GIB: f64 = (1u64 << 30) as f64;

/// What a run of `get` found. Times are in microseconds unless the name says otherwise.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    pub target: String,
    pub size_bytes: u64,
    pub keys: u32,
    pub connections: u32,
    /// `closed`, or the requests a second asked for.
    pub rate: String,
    pub seconds: f64,
    pub responses: u64,
    pub requests_per_second: f64,
    pub mib_per_second: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Responses compared byte by byte; all were right, or the run would have failed.
    pub verified: u64,
    /// Times the first pass over the keys was told to come again (503).
    pub declined: u64,
    /// Responses that were no success, the status of the last one and the words that came with it.
    pub bad: u64,
    pub bad_status: u16,
    pub bad_words: String,
    pub unanswered: u64,
    /// This generator's share of its core or cores (1 = all of them) without vain polls, and its cost per request.
    pub own_cpu_share: f64,
    pub own_cpu_us_per_request: f64,
    /// The server's cores in use, and its costs; absent without `--server-pid`.
    pub server_cpu_cores: Option<f64>,
    pub server_cpu_us_per_request: Option<f64>,
    pub server_cpu_s_per_gib: Option<f64>,
    /// Bytes the server had read from devices, over bytes of bodies: 0 from memory or the page cache, 1 from disk.
    pub server_device_read_share: Option<f64>,
}

impl Report {
    /// Works the figures out.
    pub fn new(get: &Get, tally: &Tally, thread_count: usize, usage: Option<Usage>) -> Self {
        let seconds = tally.elapsed.as_secs_f64();
        let responses = tally.responses.max(1) as f64;
        let bytes = (tally.body_bytes.max(1)) as f64;
        let at = |quantile| tally.latencies.value_at_quantile(quantile) as f64 / 1e3;
        let server = usage.map(|usage| usage.time.as_secs_f64());
        Self {
            target: get.target.target.to_string(),
            size_bytes: get.target.size,
            keys: get.target.keys,
            connections: get.connections,
            rate: match get.rate {
                Pace::Closed => "closed".into(),
                Pace::Open(rate) => rate.to_string(),
            },
            seconds,
            responses: tally.responses,
            requests_per_second: tally.responses as f64 / seconds,
            mib_per_second: tally.body_bytes as f64 / seconds / f64::from(1 << 20),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: tally.latencies.max() as f64 / 1e3,
            verified: tally.verified,
            declined: tally.declined,
            bad: tally.bad,
            bad_status: tally.bad_status,
            bad_words: tally.bad_words.clone(),
            unanswered: tally.unanswered,
            own_cpu_share: tally.own_cpu.as_secs_f64() / seconds / thread_count as f64,
            own_cpu_us_per_request: tally.own_cpu.as_secs_f64() * 1e6 / responses,
            server_cpu_cores: server.map(|time| time / seconds),
            server_cpu_us_per_request: server.map(|time| time * 1e6 / responses),
            server_cpu_s_per_gib: server.map(|time| time * GIB / bytes),
            server_device_read_share: usage.map(|usage| usage.device_read_bytes as f64 / bytes),
        }
    }
}

impl Report {
    /// Fails unless every response was a success.
    ///
    /// # Errors
    /// Some were not, or did not come at all.
    pub fn all_good(&self) -> Result<()> {
        let Self { bad, bad_status, bad_words, .. } = self;
        ensure!(*bad == 0, "{bad} responses were no success; the last had status {bad_status}: {bad_words}");
        ensure!(self.unanswered == 0, "{} requests had no answer 10 s after the end", self.unanswered);
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = show_size(self.size_bytes);
        writeln!(
            out,
            "{} · {size} · {} keys · {} connections · {}",
            self.target, self.keys, self.connections, self.rate
        )?;
        writeln!(out, "  requests  {:>12.0} /s   {:>10.1} MiB/s", self.requests_per_second, self.mib_per_second)?;
        writeln!(
            out,
            "  latency   p50 {:.0} µs · p90 {:.0} · p99 {:.0} · p99.9 {:.0} · max {:.0}",
            self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us
        )?;
        writeln!(out, "  verified  {} of {} responses byte by byte", self.verified, self.responses)?;
        writeln!(
            out,
            "  generator {:.0} % of its core, {:.2} µs a request",
            self.own_cpu_share * 100.0,
            self.own_cpu_us_per_request
        )?;
        if let (Some(cores), Some(us), Some(gib)) =
            (self.server_cpu_cores, self.server_cpu_us_per_request, self.server_cpu_s_per_gib)
        {
            writeln!(out, "  server    {cores:.2} cores, {us:.2} µs a request, {gib:.3} CPU s a GiB")?;
        }
        Ok(())
    }
}
