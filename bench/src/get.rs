//! `forebay-bench get`: drives GETs at a server and reports what came back, how fast, and what it cost both sides.
//!
//! One thread per core named by `--core` (one unpinned thread without it); each runs a `load::Load`. What the server
//! used is read at the edges of the measured time only, so warm-up is in no figure.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::content::{Body, Contents};
use crate::cpu::Usage;
use crate::load::{Load, Pace, Plan, Tally, Waiting};
use crate::report::Report;
use crate::target::Target;
use crate::wire;

/// `forebay-bench get`
#[derive(Args, Clone)]
#[command(args_override_self = true)]
pub struct Get {
    #[command(flatten)]
    pub target: Target,
    /// Keep-alive connections, shared out among the cores
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Requests a second (open loop), or `closed`
    #[arg(long, default_value = "closed", value_parser = parse_pace)]
    pub rate: Pace,
    /// Measured time
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Time before that, in no figure; it lasts at least until each key has been asked for once
    #[arg(long, default_value_t = 1.0)]
    pub warmup_seconds: f64,
    /// Compare one response in so many byte by byte, beside the first of each key
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub sample_every: u64,
    /// The cores to run on, one thread each, e.g. `1` or `1,2`
    #[arg(long = "core", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// The server answers this one byte all over (the null server) instead of the keys' contents
    #[arg(long = "constant-byte", value_name = "BYTE", value_parser = parse_body, default_value = "seeded", hide_default_value = true)]
    pub body: Body,
    /// What to do between responses; default: poll on a core of our own (`--core`), else sleep
    #[arg(long)]
    pub waiting: Option<Waiting>,
    /// The server's process: its CPU time, with all its children, goes into the report
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Seed of the order of keys
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_pace(text: &str) -> Result<Pace, String> {
    if text == "closed" {
        return Ok(Pace::Closed);
    }
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(Pace::Open(rate)),
        _ => Err("write a positive number of requests a second, or `closed`".into()),
    }
}

fn parse_body(text: &str) -> Result<Body, String> {
    match (text, text.parse()) {
        ("seeded", _) => Ok(Body::Seeded),
        (_, Ok(byte)) => Ok(Body::Constant(byte)),
        _ => Err("write a byte as a number from 0 to 255".into()),
    }
}

impl Get {
    /// Runs and prints.
    ///
    /// # Errors
    /// What `measure` says.
    pub fn run(self) -> Result<()> {
        let report = self.measure()?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{report}");
        }
        report.all_good()
    }

    /// Runs the load and returns the figures.
    ///
    /// # Errors
    /// A failed connection or thread, a protocol error, a wrong byte.
    pub fn measure(&self) -> Result<Report> {
        let cores: Vec<Option<usize>> =
            if self.cores.is_empty() { vec![None] } else { self.cores.iter().copied().map(Some).collect() };
        ensure!(self.connections as usize >= cores.len(), "--connections: at least one for each --core");
        let plans = self.plans(&cores)?;
        // What the server had used at the begin and at the end, as the first thread sees them.
        let server_usage = Mutex::new(Vec::new());
        let tallies = std::thread::scope(|scope| {
            let threads: Vec<_> = plans
                .into_iter()
                .enumerate()
                .map(|(thread_index, plan)| {
                    let server_usage = &server_usage;
                    scope.spawn(move || {
                        Load::open(plan)?.run(|| {
                            if let (0, Some(pid)) = (thread_index, self.server_pid) {
                                let usage = Usage::of(pid);
                                server_usage.lock().unwrap_or_else(PoisonError::into_inner).push(usage);
                            }
                        })
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join().ok().context("a load thread panicked")?);
            joined.collect::<Result<Vec<Tally>>>()
        })?;
        let mut total = Tally::new()?;
        for tally in &tallies {
            total.add(tally)?;
        }
        let usage = server_usage.into_inner().unwrap_or_else(PoisonError::into_inner);
        let usage = match usage.into_iter().collect::<Result<Vec<Usage>>>()?.as_slice() {
            [before, after] => Some(after.since(*before)),
            _ => None,
        };
        Ok(Report::new(self, &total, cores.len(), usage))
    }

    /// One plan per core; connections and rate are shared out evenly.
    fn plans(&self, cores: &[Option<usize>]) -> Result<Vec<Plan>> {
        let tls = wire::client_config(&self.target.ca)?;
        let key_count = self.target.keys as usize;
        let requests = (0..key_count).map(|key| self.target.head("GET", key, None)).collect::<Result<Vec<_>>>()?;
        let requests = Arc::new(requests);
        let contents = Arc::new(Contents::new(self.body, key_count, usize::try_from(self.target.size)?));
        let pace = match self.rate {
            Pace::Closed => Pace::Closed,
            Pace::Open(rate) => Pace::Open(rate / cores.len() as f64),
        };
        let share = |index: usize| (self.connections as usize + cores.len() - 1 - index) / cores.len();
        let plans = cores.iter().enumerate().map(|(index, core)| Plan {
            target: self.target.target.clone(),
            tls: Arc::clone(&tls),
            requests: Arc::clone(&requests),
            contents: Arc::clone(&contents),
            body_bytes: self.target.size,
            connection_count: share(index),
            pace,
            warmup: Duration::from_secs_f64(self.warmup_seconds),
            measured: Duration::from_secs_f64(self.seconds),
            sample_every: self.sample_every,
            seed: self.seed + index as u64,
            core: *core,
            waiting: self.waiting.unwrap_or(if core.is_some() { Waiting::Poll } else { Waiting::Sleep }),
        });
        Ok(plans.collect())
    }
}
