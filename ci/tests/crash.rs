//! kill -9 of the real proxy under mixed load, again and again: every acknowledged put and delete holds.
//!
//! `ci/crash [--kills N] [--seed S] [--canary NAME]` runs it; `ci/test` its short form. A quarter of the kills come while the node starts.
//! A violation prints the key's history and keeps the directory.

#![allow(clippy::unwrap_used)]

mod ordeal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ordeal::campaign::{self, Striker};
use ordeal::flags;
use ordeal::node::Node;
use rand::rngs::SmallRng;

/// The short form's.
const KILLS: u64 = 6;

/// SIGKILL, and nothing else: what was written is on the disk.
struct Kill;

impl Striker for Kill {
    fn names(&self) -> (&'static str, &'static str) {
        ("crash", "kills")
    }

    fn begin(&mut self, directory: &Path, _seed: u64) -> PathBuf {
        directory.join("disk")
    }

    fn strike(&mut self, node: &Node, _rng: &mut SmallRng) -> String {
        node.kill();
        "kill -9".to_owned()
    }

    fn recover(&mut self) {}

    fn end(&mut self, _keep_in: Option<&Path>) {}
}

fn main() -> ExitCode {
    let Some(flags) = flags::read("crash", "--kills") else { return ExitCode::SUCCESS };
    campaign::run(&mut Kill, &flags, KILLS)
}
