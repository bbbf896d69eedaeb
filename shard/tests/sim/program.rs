//! The program behind `ci/sim`: replays a seed, or runs ranges of seeds on all cores, with a status line and a table of
//! what was reached. Results go to stdout, the status to stderr. Exit 0: no violation; 1: a violation, or with
//! `--coverage` a state that was never reached; 2: usage.
#![allow(missing_docs, unreachable_pub)]

#[path = "simulator.rs"]
mod simulator;

use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use simulator::campaign::{Campaign, OnViolation, Progress, Violation, keep_panics_quiet, run_seed};
use simulator::exhaust;

const USAGE: &str = "\
ci/sim [SEED] [--steps N] [--seeds A..B] [--hours H] [--jobs N] [--keep-going] [--coverage] [--exhaust LEN]
  SEED          replays one run and prints the digest of its history: the same seed gives the same digest
  --steps N     verbs in each run, at least (default 2000)
  --seeds A..B  runs these seeds; A.. with --hours runs on from A
  --hours H     runs seeds until H hours have passed (decimals allowed)
  --jobs N      threads (default: the machine's cores)
  --keep-going  tells each violation in one line and goes on
  --coverage    prints how often each fault and rare state was met; one never met is a failure
  --events N    tells the last N events of a violation (default 60)
  --exhaust LEN runs every workload of up to LEN verbs over two keys, cut off at every change, with every subset of the
                last unsynced writes surviving";

struct Options {
    seed: Option<u64>,
    seeds: Option<Range<u64>>,
    steps: u64,
    hours: Option<f64>,
    jobs: usize,
    on_violation: OnViolation,
    coverage: bool,
    events: usize,
    exhaust: Option<usize>,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut options = Options {
        seed: None,
        seeds: None,
        steps: 2_000,
        hours: None,
        jobs,
        on_violation: OnViolation::Stop,
        coverage: false,
        events: 60,
        exhaust: None,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--steps" => options.steps = number(&value()?)?,
            "--seeds" => options.seeds = Some(range(&value()?)?),
            "--hours" => options.hours = Some(value()?.parse().map_err(|_| "--hours takes a number".to_owned())?),
            "--jobs" => options.jobs = number(&value()?)?.max(1) as usize,
            "--events" => options.events = number(&value()?)? as usize,
            "--exhaust" => options.exhaust = Some(number(&value()?)? as usize),
            "--keep-going" => options.on_violation = OnViolation::GoOn,
            "--coverage" => options.coverage = true,
            "--help" | "-h" => return Err(String::new()),
            seed => options.seed = Some(number(seed)?),
        }
    }
    Ok(options)
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("{text} is not a number"))
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or(format!("{text} is not a range such as 0..1000"))?;
    Ok(number(from)?..if to.is_empty() { u64::MAX } else { number(to)? })
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    keep_panics_quiet();
    if let Some(len) = options.exhaust {
        return exhaust_all(len, options.jobs);
    }
    if let (Some(seed), None, None) = (options.seed, &options.seeds, options.hours) {
        return replay(seed, &options);
    }
    campaign(&options)
}

fn replay(seed: u64, options: &Options) -> ExitCode {
    match run_seed(seed, options.steps) {
        Ok(ran) => {
            if options.coverage {
                print!("{}", ran.coverage.table());
            }
            println!("seed {seed}: {} ops, no violation, digest {:032x}", ran.ops, ran.digest);
            ExitCode::SUCCESS
        }
        Err(violation) => {
            tell(&violation, options);
            ExitCode::FAILURE
        }
    }
}

fn tell(violation: &Violation, options: &Options) {
    let Violation { seed, words, history } = violation;
    println!("violation seed={seed} {words}\nreplay with: ci/sim {seed} --steps {}", options.steps);
    let lines: Vec<&str> = history.lines().collect();
    let told = lines.len().saturating_sub(options.events).max(1);
    lines.first().into_iter().chain(&lines[told..]).for_each(|line| println!("{line}"));
}

fn campaign(options: &Options) -> ExitCode {
    // Without a range: from the given seed on, or from the clock's, so that each night runs other seeds.
    let from = options.seed.unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs() << 24)
    });
    let default = match options.hours {
        Some(_) => from..u64::MAX,
        None => from..from + 1_000,
    };
    let seeds = options.seeds.clone().unwrap_or(default);
    let campaign =
        Campaign { seeds: seeds.clone(), steps: options.steps, jobs: options.jobs, on_violation: options.on_violation };
    let (progress, stop, done) = (Progress::default(), AtomicBool::new(false), AtomicBool::new(false));
    let begun = Instant::now();
    let coverage = std::thread::scope(|scope| {
        scope.spawn(|| watch(options, &progress, &stop, &done, begun));
        let coverage = campaign.run(&progress, &stop, |violation| match options.on_violation {
            OnViolation::Stop => tell(violation, options),
            OnViolation::GoOn => println!("violation seed={} {}", violation.seed, violation.words),
        });
        done.store(true, Ordering::Relaxed);
        coverage
    });
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    let missing = if options.coverage { coverage.missing() } else { Vec::new() };
    if options.coverage {
        print!("{}", coverage.table());
        missing.iter().for_each(|name| println!("never reached: {name}"));
    }
    println!("{} from seed {}", line(&progress, begun), seeds.start);
    let failed = progress.violations.load(Ordering::Relaxed) > 0 || !missing.is_empty();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn line(progress: &Progress, begun: Instant) -> String {
    let (seeds, ops) = (progress.seeds.load(Ordering::Relaxed), progress.ops.load(Ordering::Relaxed));
    let (violations, seconds) = (progress.violations.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
    let rate = ops as f64 / seconds.max(0.001);
    format!("{seeds} seeds, {ops} ops, {rate:.0} ops/s, {violations} violations, {seconds:.0} s")
}

/// Shows the status once a second, and ends the campaign when its hours are over.
fn watch(options: &Options, progress: &Progress, stop: &AtomicBool, done: &AtomicBool, begun: Instant) {
    let is_terminal = std::io::stderr().is_terminal();
    let mut shown = Instant::now();
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        if options.hours.is_some_and(|hours| begun.elapsed().as_secs_f64() >= hours * 3_600.0) {
            stop.store(true, Ordering::Relaxed);
        }
        // A log gets a line a minute, a terminal one line that changes.
        let pause = if is_terminal { Duration::from_secs(1) } else { Duration::from_secs(60) };
        if shown.elapsed() >= pause {
            shown = Instant::now();
            let (start, end) = if is_terminal { ("\r", "  ") } else { ("", "\n") };
            eprint!("{start}{}{end}", line(progress, begun));
            drop(std::io::stderr().flush());
        }
    }
}

fn exhaust_all(len: usize, jobs: usize) -> ExitCode {
    let begun = Instant::now();
    match exhaust::exhaust(len, jobs) {
        Ok(counts) => {
            println!("{counts}, no violation, {:.0} s", begun.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(words) => {
            println!("violation {words}");
            ExitCode::FAILURE
        }
    }
}
