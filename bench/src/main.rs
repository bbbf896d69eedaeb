//! `forebay-bench`: load, loading of keys, comparisons with other caches, and traces through cache policies.
//!
//! Drives servers through their public protocol only, nginx and cachey with the same code as Forebay. Results go to
//! stdout, remarks to stderr; exit 0 ok, 1 failed, 2 wrong usage.

mod compare;
mod content;
mod cpu;
mod get;
mod load;
mod peers;
mod put;
mod random;
mod replay;
mod report;
mod response;
mod results;
mod simulate;
mod target;
mod units;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load generator and comparisons for Forebay.
#[derive(Parser)]
#[command(name = "forebay-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure GETs: closed or open loop, latency percentiles, CPU of both sides
    Get(get::Get),
    /// PUT the benchmark's keys through a server
    Put(put::Put),
    /// Write the benchmark's keys as files (an nginx document root, the folder of an S3 server)
    Fill(put::Fill),
    /// Measure Forebay, nginx, cachey and the null server in one run, interleaved
    Compare(compare::Compare),
    /// Run a trace through cache policies: misses and bytes written, Forebay's beside those of the papers
    Replay(replay::Replay),
    /// Simulate groups too large to own: placement, bounded load, hot-block leases, members that come and go
    Simulate(simulate::Simulate),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Get(get) => get.run(),
        Command::Put(put) => put.run(),
        Command::Fill(fill) => fill.run(),
        Command::Compare(compare) => compare.run(),
        Command::Replay(replay) => replay.run(),
        Command::Simulate(simulate) => simulate.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
