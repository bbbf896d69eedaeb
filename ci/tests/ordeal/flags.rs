//! The command line of a campaign.
//!
//! Read by the main functions of `crash` and `powercut`. `cargo test` runs them without arguments (the short form), with a
//! filter that may name another test, or with the flags of its own harness: those change nothing here.

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Flags {
    /// How often the node is struck; `None`: the short form.
    pub strikes: Option<u64>,
    pub seed: u64,
    /// The bug that must be found.
    pub canary: Option<String>,
}

/// Reads the arguments; `count` is the name of the flag that says how often. `None`: this test is not meant.
pub fn read(test: &str, count: &str) -> Option<Flags> {
    let mut flags = Flags { strikes: None, seed: 1, canary: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| usage(test, count, &format!("{argument} needs a value")));
        let number = |text: String| {
            text.parse().unwrap_or_else(|_| usage(test, count, &format!("{argument}: {text:?} is no number")))
        };
        match argument.as_str() {
            flag if flag == count => flags.strikes = Some(number(value())),
            "--seed" => flags.seed = number(value()),
            "--canary" => flags.canary = Some(value()),
            "--list" => return None,
            // The harness's own.
            "--nocapture" | "--no-capture" | "--quiet" | "-q" | "--exact" | "--include-ignored" | "--show-output" => {}
            "--test-threads" | "--skip" | "--format" | "--color" | "-Z" => drop(value()),
            flag if flag.starts_with("--test-threads=") || flag.starts_with("--color=") => {}
            flag if flag.starts_with('-') => usage(test, count, &format!("{flag} is unknown")),
            filter if test.contains(filter) => {}
            _ => return None,
        }
    }
    Some(flags)
}

fn usage(test: &str, count: &str, problem: &str) -> ! {
    eprintln!("ci/{test}: {problem}; usage: ci/{test} [{count} N] [--seed S] [--canary NAME]");
    std::process::exit(2)
}
