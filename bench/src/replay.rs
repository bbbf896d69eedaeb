//! `forebay-bench replay`: a trace, recorded or generated, through the policies of the papers and Forebay's own.
//!
//! Forebay's is the code of the memory tier (`forebay_shard::policy`), not a copy of it. Policies see names and sizes
//! only; nothing is stored. A trace is read in batches, once (twice if a capacity is a share of its footprint), so memory
//! is that of the policies and, for a share, of the set of names.

mod generate;
mod node;
mod policies;
mod suite;
mod table;

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::generate::Generator;
use self::policies::{Name, Replayed};
use self::table::{Cell, NodeCell};
use crate::results;
use crate::units::{parse_size, show_size};
use forebay_bench::trace::{self, Format, Request, Source};

/// `forebay-bench replay`
#[derive(Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["trace", "generate", "committed"]))]
pub struct Replay {
    /// A recorded trace: libCacheSim's oracleGeneral, or CSV (time,id,size or named columns)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// What the trace is; told from its beginning by default
    #[arg(long, value_enum, requires = "trace")]
    format: Option<Format>,
    /// A trace made on the spot, the same for the same words: zipf:0.9, zipf-scan:0.9, epochs:8 or loop:1.2, then any of
    /// ,keys=1000000,requests=10000000,size=4KiB (or 1KiB-1MiB),scan=20%,seed=1
    #[arg(long, value_name = "SPEC")]
    generate: Vec<Generator>,
    /// The generated traces whose table stands in bench/RESULTS.md
    #[arg(long)]
    committed: bool,
    /// Bytes the cache may hold, or a share of the trace's footprint (each name once)
    #[arg(long, value_delimiter = ',', default_value = "1%,5%,20%,50%", value_name = "BYTES|PERCENT%")]
    capacity: Vec<Capacity>,
    /// Who takes part
    #[arg(long, value_delimiter = ',', default_value = "fifo,lru,clock,sieve,s3-fifo,forebay")]
    policies: Vec<Name>,
    /// Run a whole node, memory and disk through the real shard, beside S3-FIFO of as many bytes
    #[arg(long, conflicts_with_all = ["trace", "policies"])]
    node: bool,
    /// Replace the marked part of this file by the results, e.g. bench/RESULTS.md
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Say on stderr how long each trace took
    #[arg(long)]
    timings: bool,
}

/// How large a cache is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Capacity {
    /// In bytes.
    Bytes(u64),
    /// As a share of the footprint, 0 to 1.
    Share(f64),
}

impl std::str::FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Capacity, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return match parse_size(text)? {
                0 => Err(format!("`{text}`: a cache holds at least one byte")),
                bytes => Ok(Capacity::Bytes(bytes)),
            };
        };
        match percent.trim().parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Capacity::Share(percent / 100.0)),
            _ => Err(format!("`{text}`: write a share of the footprint as 1% to 100%")),
        }
    }
}

impl Capacity {
    /// Of a footprint of `whole_bytes`.
    fn bytes(self, whole_bytes: u64) -> u64 {
        match self {
            Capacity::Bytes(bytes) => bytes,
            Capacity::Share(share) => ((whole_bytes as f64 * share) as u64).max(1),
        }
    }
}

impl std::fmt::Display for Capacity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Capacity::Bytes(bytes) => out.write_str(&show_size(*bytes)),
            Capacity::Share(share) => write!(out, "{} %", share * 100.0),
        }
    }
}

impl Replay {
    /// Replays and prints the tables.
    ///
    /// # Errors
    /// The trace can't be read or is none, with the place and what was expected there.
    pub fn run(self) -> Result<()> {
        if self.node {
            return self.run_node();
        }
        let cells = match (&self.trace, self.committed) {
            (Some(file), _) => {
                let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
                self.cells(&name, || trace::open(file, self.format))?
            }
            (None, is_committed) => {
                let generators = if is_committed { suite::generators() } else { self.generate.clone() };
                let mut cells = Vec::new();
                for generator in &generators {
                    cells.extend(self.generated(generator)?);
                }
                cells
            }
        };
        let text = table::render(&cells);
        print!("{text}");
        match &self.write {
            Some(file) => results::write_marked(file, "replay", &text),
            None => Ok(()),
        }
    }

    fn run_node(&self) -> Result<()> {
        let generators = if self.committed { suite::generators() } else { self.generate.clone() };
        let mut cells = Vec::new();
        for generator in &generators {
            let whole_bytes = match generator.depends_on_capacity() {
                true => generator.nominal_bytes(),
                false => footprint_bytes(&mut generator.start(0))?,
            };
            for capacity in &self.capacity {
                let begun = Instant::now();
                let capacity_bytes = capacity.bytes(whole_bytes);
                let mut source = generator.start(capacity_bytes);
                let name = generator.to_string();
                let compared = node::compare(&mut source, capacity_bytes, generator.largest())
                    .with_context(|| format!("{name} at {capacity}"))?;
                if self.timings {
                    eprintln!("{name} at {capacity}: {}", node::rate(compared.node.requests, begun));
                }
                cells.push(NodeCell { trace: name, capacity: *capacity, capacity_bytes, compared });
            }
        }
        let text = table::render_node(&cells);
        print!("{text}");
        match &self.write {
            Some(file) => results::write_marked(file, "replay-node", &text),
            None => Ok(()),
        }
    }

    fn generated(&self, generator: &Generator) -> Result<Vec<Cell>> {
        let mut cells = Vec::new();
        if !generator.depends_on_capacity() {
            return self.cells(&generator.to_string(), || Ok(generator.start(0)));
        }
        for capacity in &self.capacity {
            let capacity_bytes = match capacity {
                Capacity::Bytes(bytes) => *bytes,
                Capacity::Share(share) => (generator.nominal_bytes() as f64 * share) as u64,
            };
            let mut source = generator.start(capacity_bytes);
            cells.extend(self.replay(&generator.to_string(), &mut source, &[(*capacity, capacity_bytes)])?);
        }
        Ok(cells)
    }

    /// All capacities of one trace, which `open` begins anew.
    fn cells(&self, name: &str, mut open: impl FnMut() -> Result<Box<dyn Source>>) -> Result<Vec<Cell>> {
        let is_relative = self.capacity.iter().any(|capacity| matches!(capacity, Capacity::Share(_)));
        let footprint_bytes = if is_relative { footprint_bytes(&mut open()?)? } else { 0 };
        let sized: Vec<_> = self.capacity.iter().map(|capacity| (*capacity, capacity.bytes(footprint_bytes))).collect();
        self.replay(name, &mut open()?, &sized)
    }

    fn replay(&self, name: &str, source: &mut Box<dyn Source>, sized: &[(Capacity, u64)]) -> Result<Vec<Cell>> {
        let begun = Instant::now();
        let mut runs: Vec<(usize, Name, Box<dyn Replayed>)> = Vec::new();
        for (at, (_, capacity_bytes)) in sized.iter().enumerate() {
            runs.extend(self.policies.iter().map(|policy| (at, *policy, policy.start(*capacity_bytes))));
        }
        let (mut batch, mut requests) = (Vec::new(), 0u64);
        loop {
            source.read(&mut batch).with_context(|| name.to_owned())?;
            if batch.is_empty() {
                break;
            }
            requests += batch.len() as u64;
            runs.iter_mut().for_each(|(_, _, run)| run.replay(&batch));
        }
        ensure!(requests > 0, "{name}: no requests in it");
        if self.timings {
            let rate = requests as f64 * runs.len() as f64 / begun.elapsed().as_secs_f64() / 1e6;
            eprintln!("{name}: {requests} requests × {} runs, {rate:.1} million a second", runs.len());
        }
        let mut cells: Vec<Cell> = sized
            .iter()
            .map(|(capacity, bytes)| Cell {
                trace: name.to_owned(),
                requests,
                capacity: *capacity,
                capacity_bytes: *bytes,
                results: Vec::new(),
            })
            .collect();
        runs.iter().for_each(|(at, policy, run)| cells[*at].results.push((*policy, run.tally())));
        Ok(cells)
    }
}

/// The sizes of all names, each by its first request.
fn footprint_bytes(source: &mut Box<dyn Source>) -> Result<u64> {
    let mut seen: HashSet<u64, BuildHasherDefault<Mixed>> = HashSet::default();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    loop {
        source.read(&mut batch)?;
        if batch.is_empty() {
            return Ok(bytes);
        }
        for Request { id, bytes: size } in &batch {
            if seen.insert(*id) {
                bytes += u64::from(*size);
            }
        }
    }
}

/// Mixes a name's bits; names are no secret here.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn write_u64(&mut self, id: u64) {
        self.0 = forebay_shard::policy::PolicyKey::spread(id);
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only names are hashed");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
