//! The engine's figures, without a network: group commit, restart, CPU per hit, each beside the bound it has to keep.
//!
//! `ci/engine-figures` builds and runs it; `cargo test` runs its short form (`smoke`), so that it can't rot. The real shard on
//! the real ring, in a directory of the real disk that is removed afterwards; the origin is a stand-in that answers at once
//! or never. Tables go to stdout. Exit 0: every bound is kept, or `--lenient`; 1: one is not; 2: usage.
#![allow(missing_docs, unreachable_pub)]

#[path = "engine/commit.rs"]
mod commit;
#[path = "engine/cost.rs"]
mod cost;
#[path = "engine/measure.rs"]
mod measure;
#[path = "engine/restart.rs"]
mod restart;
#[path = "engine/rig.rs"]
mod rig;
#[path = "engine/table.rs"]
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use table::Table;

/// As in the product: glibc's malloc trims and keeps.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
ci/engine-figures COMMAND [--lenient] [--directory DIR] [--blocks N] [--seconds N]
  commit     write-back puts of 4 KiB: group commit at depth 32 against one put at a time
  restart    a store of --blocks blocks of 1 KiB (default 10,000,000, some 13 GiB), opened after a kill and after a close
  cost       CPU of a memory hit and of a 256 KiB disk hit, and the rate of the checksum
  smoke      all of it, tiny: what the test runs
  --lenient  exit 0 whatever the figures
  --directory DIR  where the scratch directory is made (default: target/)
  --seconds N      how long each round measures (default 2)";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    command: String,
    is_lenient: bool,
    /// Where the scratch directory is made.
    pub directory: PathBuf,
    /// Of `restart`.
    pub blocks: u64,
    /// Of each round of `commit` and `cost`.
    pub seconds: f64,
    /// Where `open` finds its store, and how it leaves it.
    pub store: Option<PathBuf>,
    pub ends: restart::Ends,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}{}{USAGE}", if problem.is_empty() { "" } else { "\n" });
            return ExitCode::from(2);
        }
    };
    let table = match options.command.as_str() {
        "commit" => commit::measure(&options),
        "restart" => restart::measure(&options),
        "cost" => cost::measure(&options),
        // The process that `restart` starts for each opening, so that nothing of the writing is left in its memory.
        "open" => return restart::open(&options),
        _ => smoke(&options),
    };
    print!("{table}");
    if table.is_kept() || options.is_lenient { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything, in seconds. The figures mean nothing; that they come about is the test.
fn smoke(options: &Options) -> Table {
    let tiny = Options { blocks: 5_000, seconds: 0.05, ..options.clone() };
    let mut table = commit::measure(&tiny);
    table.append(cost::measure(&tiny));
    table.append(restart::measure(&tiny));
    table
}

/// Without a command: the short form. Also understands what `cargo test` gives every test; `None`: another one is meant.
fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        command: String::new(),
        is_lenient: false,
        directory: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        blocks: 10_000_000,
        seconds: 2.0,
        store: None,
        ends: restart::Ends::Left,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |text: String| text.replace('_', "").parse::<f64>().map_err(|_| format!("{text} is no number"));
        match argument.as_str() {
            "commit" | "restart" | "cost" | "smoke" | "open" => options.command = argument,
            "--lenient" => options.is_lenient = true,
            "--directory" => options.directory = value()?.into(),
            "--blocks" => options.blocks = number(value()?)? as u64,
            "--seconds" => options.seconds = number(value()?)?,
            "--store" => options.store = Some(value()?.into()),
            "--close" => options.ends = restart::Ends::Closed,
            "--leave" => options.ends = restart::Ends::Left,
            "--list" => return Ok(None),
            "--help" | "-h" => return Err(String::new()),
            // The test harness's own.
            "--nocapture" | "--no-capture" | "--quiet" | "-q" | "--exact" | "--include-ignored" | "--show-output" => {}
            "--test-threads" | "--skip" | "--format" | "--color" | "-Z" => drop(value()?),
            flag if flag.starts_with("--test-threads=") || flag.starts_with("--color=") => {}
            flag if flag.starts_with('-') => return Err(format!("{flag} is unknown")),
            filter if "engine".contains(filter) => {}
            _ => return Ok(None),
        }
    }
    if options.command.is_empty() || options.command == "smoke" {
        (options.command, options.is_lenient) = ("smoke".to_owned(), true);
    }
    Ok(Some(options))
}
