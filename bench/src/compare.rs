//! `forebay-bench compare`: one run of all peers, interleaved, the server on one core and the generator on another.
//!
//! For each case every peer is started empty, filled by asking for each key once, and left running idle; then the peers
//! are measured in turn, round after round, so that a drift of the machine meets all of them. The CPU that the idle ones use
//! meanwhile is watched. Medians with their spread go to stdout as markdown and into the marked part of a results file.

mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cpu::Usage;
use crate::get::Get;
use crate::load::{Pace, Waiting};
use crate::peers::{Lab, Peer, Running};
use crate::report::Report;
use crate::results;

/// The share of a core that idle peers may use without a remark.
const IDLE_SHARE_MAX: f64 = 0.02;
/// Connections that fill a cache (sleeping between responses, to leave the core to the origin): few enough for the least memory a proxy accepts to hold their blocks on the way.
const FILLING_CONNECTIONS: u32 = 4;

/// `forebay-bench compare`
#[derive(Args)]
pub struct Compare {
    /// How often each peer is measured in each case
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measured time of each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Keep-alive connections
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// The servers' core
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The generator's core
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// Who takes part
    #[arg(long, value_delimiter = ',', default_value = "null,forebay,nginx,cachey")]
    peers: Vec<Peer>,
    /// Only these cases (memory-4k, memory-256k, memory-4m, disk-4k, disk-256k, disk-4m)
    #[arg(long, value_delimiter = ',', value_name = "CASE")]
    cases: Vec<String>,
    /// Where caches and files go; some 6 GiB on a real disk
    #[arg(long, default_value = "target/compare")]
    work_dir: PathBuf,
    /// The proxy's binary; default: `forebay` beside this program
    #[arg(long, value_name = "FILE")]
    forebay: Option<PathBuf>,
    /// Replace the marked part of this file by the results, e.g. bench/RESULTS.md
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// Where a case's bytes are when they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the cache's memory (nginx: the page cache).
    Memory,
    /// On its disk, read by direct I/O.
    Disk,
}

/// One set of keys to ask for.
pub struct Case {
    pub name: &'static str,
    /// The folder of its files at the origin.
    pub bucket: String,
    pub source: Source,
    pub size: u64,
    pub keys: u32,
}

/// A peer's reports in a case.
pub struct Row {
    pub peer: Peer,
    pub reports: Vec<Report>,
}

/// Memory cases: 64 keys each. Disk cases: sets far larger than the 20 MiB that Forebay's memory tier has there.
fn cases() -> Vec<Case> {
    let case = |name, bucket: &str, source, size, keys| Case { name, bucket: bucket.into(), source, size, keys };
    vec![
        case("memory-4k", "memory4k", Source::Memory, 4 << 10, 64),
        case("memory-256k", "memory256k", Source::Memory, 256 << 10, 64),
        case("memory-4m", "memory4m", Source::Memory, 4 << 20, 64),
        case("disk-4k", "disk4k", Source::Disk, 4 << 10, 131_072),
        case("disk-256k", "disk256k", Source::Disk, 256 << 10, 4096),
        case("disk-4m", "disk4m", Source::Disk, 4 << 20, 384),
    ]
}

impl Compare {
    /// Runs everything and prints the tables.
    ///
    /// # Errors
    /// A peer that is missing or fails, a wrong byte, an unknown case.
    pub fn run(self) -> Result<()> {
        let mut chosen = cases();
        for name in &self.cases {
            ensure!(chosen.iter().any(|case| case.name == name), "--cases {name}: no such case");
        }
        chosen.retain(|case| self.cases.is_empty() || self.cases.iter().any(|name| name == case.name));
        ensure!(self.core != self.server_core, "--core: the generator needs a core of its own");
        let forebay = match &self.forebay {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("forebay"),
        };
        let lab = Lab::open(self.work_dir.clone(), self.server_core, self.core, forebay)?;
        let versions = self.peers.iter().map(|peer| Ok((*peer, peer.version(&lab)?))).collect::<Result<Vec<_>>>()?;
        let mut text = table::preamble(&versions, self.rounds, self.seconds, self.connections);
        for case in &chosen {
            let rows = self.measure_case(&lab, case)?;
            let section = table::section(case, &rows);
            println!("{section}");
            text.push_str(&section);
        }
        if let Some(file) = &self.write {
            results::write_marked(file, "compare", &text)?;
            eprintln!("written to {}", file.display());
        }
        Ok(())
    }

    /// All rounds of one case.
    fn measure_case(&self, lab: &Lab, case: &Case) -> Result<Vec<Row>> {
        lab.fill_origin(case)?;
        let mut servers = Vec::new();
        for peer in self.peers.iter().filter(|peer| peer.joins(case)) {
            eprintln!("{}: starting and filling {}", case.name, peer.name());
            let server = peer.start(lab, case)?;
            let filling = self.measure(&server, FILLING_CONNECTIONS, Waiting::Sleep, 0.1);
            let declined = filling.with_context(|| format!("filling {}", peer.name()))?.declined;
            if declined > 0 {
                eprintln!("  remark: while filling it was told {declined} times to come again");
            }
            servers.push((Row { peer: *peer, reports: Vec::new() }, server));
        }
        for round in 1..=self.rounds {
            for index in 0..servers.len() {
                let before = idle_time(&servers, index)?;
                let (row, server) = &mut servers[index];
                let report = self
                    .measure(server, self.connections, Waiting::Poll, self.seconds)
                    .with_context(|| row.peer.name().to_owned())?;
                eprintln!("{} round {round}: {:<12}{}", case.name, row.peer.name(), table::brief(&report));
                row.reports.push(report);
                let idle = (idle_time(&servers, index)? - before).as_secs_f64() / self.seconds;
                if idle > IDLE_SHARE_MAX {
                    eprintln!("  remark: the idle peers used {:.0} % of the core meanwhile", idle * 100.0);
                }
            }
        }
        let rows = servers.into_iter().map(|(row, _)| row).collect();
        // Several cases together would take more than a benchmark may; of one that failed, all stays for a look.
        lab.clear(case)?;
        Ok(rows)
    }

    fn measure(&self, server: &Running, connections: u32, waiting: Waiting, seconds: f64) -> Result<Report> {
        let get = Get {
            target: server.target.clone(),
            connections,
            rate: Pace::Closed,
            seconds,
            warmup_seconds: 0.5,
            sample_every: 1000,
            cores: vec![self.core],
            waiting: Some(waiting),
            body: server.body,
            server_pid: Some(server.pid()),
            seed: 1,
            json: false,
        };
        let report = get.measure()?;
        report.all_good()?;
        Ok(report)
    }
}

/// CPU time of all servers but one.
fn idle_time(servers: &[(Row, Running)], busy: usize) -> Result<Duration> {
    let others = servers.iter().enumerate().filter(|(index, _)| *index != busy);
    others.map(|(_, (_, server))| Ok(Usage::of(server.pid())?.time)).sum()
}
