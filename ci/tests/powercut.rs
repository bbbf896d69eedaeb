//! Power cuts under the real proxy: its slabs lie on a file system of ours that loses what was not synced.
//!
//! `ci/powercut [--cuts N] [--seed S] [--canary NAME]` runs it, as root; `ci/test` its short form, and without rights only
//! the proof of the model. Load and oracle are those of `ci/crash`. A fifth of the strikes leave the power on, so that a cut
//! also meets what the recovery before it found unsynced. `--canary` sets `FOREBAY_CANARY` and wants a violation.

#![allow(clippy::unwrap_used)]

mod cutfs;
mod ordeal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cutfs::mount::Mounted;
use ordeal::campaign::{self, Striker};
use ordeal::flags;
use ordeal::node::Node;
use rand::Rng;
use rand::rngs::SmallRng;

/// The short form's.
const CUTS: u64 = 6;

#[derive(Default)]
struct Cut {
    mounted: Option<Mounted>,
}

impl Striker for Cut {
    fn names(&self) -> (&'static str, &'static str) {
        ("powercut", "cuts")
    }

    fn begin(&mut self, directory: &Path, seed: u64) -> PathBuf {
        let disk = directory.join("disk");
        fs::create_dir_all(&disk).unwrap();
        self.mounted = Some(Mounted::new(&disk, seed).unwrap());
        disk
    }

    fn strike(&mut self, node: &Node, rng: &mut SmallRng) -> String {
        // Killed first: it must not live to see the errors of a device that is gone. What it was acknowledged until the
        // cut, it was acknowledged with the power on.
        node.kill();
        if rng.random_ratio(1, 5) {
            return "kill -9, the power stays on".to_owned();
        }
        let seed = rng.random();
        let report = self.mounted.as_ref().unwrap().cut(seed);
        format!("power cut: {report:?}")
    }

    fn recover(&mut self) {}

    fn end(&mut self, keep_in: Option<&Path>) {
        if let Some(directory) = keep_in {
            copy(&directory.join("disk"), &directory.join("disk-kept")).unwrap();
        }
        self.mounted = None;
    }
}

fn main() -> ExitCode {
    let Some(flags) = flags::read("powercut", "--cuts") else { return ExitCode::SUCCESS };
    cutfs::proof::run();
    println!("powercut: what is synced survives, what is not may be dropped, torn, or survive out of order");
    if let Err(why) = can_mount() {
        let fix = "run it as root on a kernel with FUSE (/dev/fuse)";
        println!("powercut: no campaign: the file system can't be mounted ({why}); {fix}");
        // The short form has done what can be done without rights.
        return if flags.strikes.is_some() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    }
    campaign::run(&mut Cut::default(), &flags, CUTS)
}

fn can_mount() -> std::io::Result<()> {
    let directory = tempfile::tempdir()?;
    let mounted = Mounted::new(directory.path(), 0)?;
    cutfs::proof::run_mounted(&mounted, directory.path()).unwrap();
    drop(mounted);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
