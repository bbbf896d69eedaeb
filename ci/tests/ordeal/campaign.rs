//! The campaign: load, strike, restart, verify, again and again; at the end of each life the bucket is compared.
//!
//! Run by the main functions of `crash` and `powercut`, which differ in how a node is struck. A life is one directory of
//! one shape; its node is struck many times, a quarter of them while it starts, the first of all perhaps while it formats.
//! The store is out of reach in a part of the time: else everything would be in the bucket before the node dies.

use std::cell::RefCell;
use std::fs;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::bucket::Bucket;
use super::flags::Flags;
use super::load::{Ledger, Life};
use super::node::{Access, Node, Shape};
use super::oracle::Oracle;
use super::verify;

const CLIENTS: usize = 8;
/// Strikes of one directory.
const STRIKES_PER_LIFE: u64 = 25;
/// The longest load between two strikes.
const LOAD_MS_MAX: u64 = 900;
const LINE_PERIOD: Duration = Duration::from_secs(10);

/// How a node meets its end.
pub trait Striker {
    /// The campaign's name and what it calls a strike.
    fn names(&self) -> (&'static str, &'static str);
    /// Makes the place for the disk of a new life.
    fn begin(&mut self, directory: &Path, seed: u64) -> PathBuf;
    /// Ends the node at this very moment. Says how.
    fn strike(&mut self, node: &Node, rng: &mut SmallRng) -> String;
    /// The process is gone: whatever it needs for its next start comes back.
    fn recover(&mut self);
    /// The life is over. With a directory: its disk is wanted there for a look.
    fn end(&mut self, keep_in: Option<&Path>);
}

/// What is asked for.
struct Plan {
    strikes: u64,
    seed: u64,
    /// Set in the node's environment.
    environment: Vec<(String, String)>,
}

/// Everything that runs.
struct Campaign<'a, S> {
    striker: &'a mut S,
    plan: &'a Plan,
    rng: SmallRng,
    ledger: Rc<Ledger>,
    strikes: u64,
    in_start: u64,
    outages: u64,
    lives: u64,
    /// Disks read by `forebay verify` after a strike.
    verified: u64,
    rotten: u64,
    began: Instant,
    spoke: Instant,
    /// How long a start took last.
    start_ms: u64,
}

/// Strikes as often as asked for (else as often as the short form does), or until something is wrong, and says how it
/// went. With a canary it is the other way round: something has to be wrong.
pub fn run<S: Striker>(striker: &mut S, flags: &Flags, short: u64) -> ExitCode {
    let environment = flags.canary.iter().map(|name| ("FOREBAY_CANARY".to_owned(), name.clone())).collect();
    let plan = Plan { strikes: flags.strikes.unwrap_or(short), seed: flags.seed, environment };
    if flags.canary.is_some() && !knows_canary(&plan) {
        return ExitCode::from(2);
    }
    let mut campaign = Campaign {
        striker,
        plan: &plan,
        rng: SmallRng::seed_from_u64(plan.seed),
        ledger: Rc::default(),
        strikes: 0,
        in_start: 0,
        outages: 0,
        lives: 0,
        verified: 0,
        rotten: 0,
        began: Instant::now(),
        spoke: Instant::now(),
        start_ms: 150,
    };
    let kept = campaign.live_on();
    if std::io::stdout().is_terminal() {
        println!();
    }
    let faults = campaign.ledger.faults.borrow().clone();
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    let (name, strikes) = (campaign.striker.names().0, campaign.strikes);
    println!("{}", campaign.line());
    match (&flags.canary, kept) {
        (None, None) => ExitCode::SUCCESS,
        (None, Some(kept)) => {
            println!("{name}: seed {}; left for a look: {}", plan.seed, kept.display());
            ExitCode::FAILURE
        }
        (Some(canary), None) => {
            println!("{name}: canary {canary} NOT caught in {strikes} strikes, seed {}", plan.seed);
            ExitCode::FAILURE
        }
        (Some(canary), Some(kept)) => {
            fs::remove_dir_all(kept).unwrap();
            println!("{name}: canary {canary} caught after {strikes} strikes, seed {}", plan.seed);
            ExitCode::SUCCESS
        }
    }
}

/// Whether the binary was built with canaries and has this one. Else nothing would be found, or the wrong thing.
fn knows_canary(plan: &Plan) -> bool {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
    let output = command.arg("--version").envs(plan.environment.iter().cloned()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let knows = output.status.success() && said.contains("canary");
    if !knows {
        eprintln!("this build has no such canary (it needs --features canaries): {said}");
    }
    knows
}

impl<S: Striker> Campaign<'_, S> {
    /// One life after the other. Returns the directory of the one that went wrong, if one did.
    fn live_on(&mut self) -> Option<PathBuf> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        while self.strikes < self.plan.strikes {
            let name = format!("{}-{}-{}", self.striker.names().0, std::process::id(), self.lives);
            let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).unwrap();
            runtime.block_on(self.live(&directory));
            self.lives += 1;
            if !self.ledger.faults.borrow().is_empty() {
                return Some(directory);
            }
            fs::remove_dir_all(&directory).unwrap();
        }
        None
    }

    /// One directory, from its format to the comparison of its bucket.
    async fn live(&mut self, directory: &Path) {
        let seed = self.rng.random();
        let shape = shape(&mut self.rng);
        let bucket = Bucket::start(directory);
        let disk = self.striker.begin(directory, seed);
        let mut node = Node::new(directory, &disk, &shape, bucket.gate.addr, &self.plan.environment);
        let oracle = RefCell::new(Oracle::new(seed, shape.keys_per_volume, shape.block_bytes_max));
        let goal = self.plan.strikes.min(self.strikes + STRIKES_PER_LIFE);
        node.spawn();
        let lived = self.strike_until(goal, &mut node, &bucket, &oracle).await;
        let ended = match lived {
            Ok(()) => self.last_look(&mut node, &bucket, &oracle).await,
            Err(what) => Err(what),
        };
        if let Err(what) = ended {
            self.ledger.faults.borrow_mut().push(what);
        }
        if !self.ledger.faults.borrow().is_empty() {
            let about = format!("life {} of seed {}: {shape:?}\n", self.lives, self.plan.seed);
            self.ledger.faults.borrow_mut().insert(0, about);
        }
        drop(node);
        let is_wanted = !self.ledger.faults.borrow().is_empty() && self.plan.environment.is_empty();
        self.striker.end(is_wanted.then_some(directory));
    }

    async fn strike_until(
        &mut self,
        goal: u64,
        node: &mut Node,
        bucket: &Bucket,
        oracle: &RefCell<Oracle>,
    ) -> Result<(), String> {
        while self.strikes < goal {
            if self.rng.random_ratio(1, 4) {
                let wait = self.rng.random_range(0..self.start_ms * 3 / 2);
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let how = self.striker.strike(node, &mut self.rng);
                self.in_start += 1;
                self.struck(&how, node, bucket, oracle).await?;
                continue;
            }
            let began = Instant::now();
            let access = node.ready().await?;
            self.start_ms = u64::try_from(began.elapsed().as_millis()).unwrap().clamp(20, 2000);
            let how = self.serve(node, &access, bucket, oracle).await?;
            self.struck(&how, node, bucket, oracle).await?;
        }
        Ok(())
    }

    /// Verifies, loads, strikes.
    async fn serve(
        &mut self,
        node: &Node,
        access: &Access,
        bucket: &Bucket,
        oracle: &RefCell<Oracle>,
    ) -> Result<String, String> {
        if self.rng.random_ratio(1, 2) {
            bucket.open().await;
        }
        let ledger = Rc::clone(&self.ledger);
        let life = Life::new(oracle, access, &ledger);
        let mut rng = SmallRng::seed_from_u64(self.rng.random());
        verify::from_the_node(&life, bucket, &mut rng).await;
        self.check()?;
        let status = access.status().await?;
        let counted = |name: &str| -> u64 {
            let shards = status["shards"].as_array().into_iter().flatten();
            shards.filter_map(|shard| shard["counts"][name].as_u64()).sum()
        };
        self.rotten += counted("rot") + counted("lost") + counted("repaired");
        if counted("lost") > 0 || counted("conflicts") > 0 {
            return Err(format!("dirty blocks lost or in conflict: {status:#}"));
        }
        let load = Duration::from_millis(self.rng.random_range(10..LOAD_MS_MAX));
        let outage = self.rng.random_ratio(1, 2).then(|| load.mul_f64(self.rng.random::<f64>()));
        let reopen = self.rng.random_ratio(1, 3);
        // Asking takes time, which shall not always go before a strike.
        let sampled = self.rng.random_ratio(1, 2);
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| self.rng.random()).collect();
        let mut striking = SmallRng::seed_from_u64(self.rng.random());
        let clients = join_all(seeds.into_iter().map(|seed| life.client(seed, &bucket.gate)));
        let striker = &mut *self.striker;
        let end = async {
            if reopen {
                bucket.open().await;
            }
            if let Some(after) = outage {
                tokio::time::sleep(after).await;
                bucket.gate.shut();
                tokio::time::sleep(load - after).await;
            } else {
                tokio::time::sleep(load).await;
            }
            if sampled {
                for (event, count) in access.events().await {
                    *ledger.tally.borrow_mut().events.entry(event).or_default() += count;
                }
            }
            life.over.set(true);
            let how = striker.strike(node, &mut striking);
            let is_gone = node.gone().await;
            life.gone.send_replace(true);
            is_gone.map(|()| how)
        };
        let (_, how) = join(clients, end).await;
        self.outages += u64::from(outage.is_some());
        self.check()?;
        how
    }

    /// After a strike: everything that went on comes to its end, then the node starts again.
    async fn struck(
        &mut self,
        how: &str,
        node: &mut Node,
        bucket: &Bucket,
        oracle: &RefCell<Oracle>,
    ) -> Result<(), String> {
        node.wait_killed()?;
        self.striker.recover();
        bucket.quiet().await;
        self.strikes += 1;
        oracle.borrow_mut().restarted(&format!("strike {}: {how}", self.strikes));
        if self.rng.random_ratio(1, 4) {
            node.verify()?;
            self.verified += 1;
        }
        self.speak();
        verify::on_the_disk(&node.disk)?;
        node.spawn();
        Ok(())
    }

    /// The end of a life: nothing is dirty, and the bucket alone is right.
    async fn last_look(&mut self, node: &mut Node, bucket: &Bucket, oracle: &RefCell<Oracle>) -> Result<(), String> {
        bucket.open().await;
        let access = node.ready().await?;
        let ledger = Rc::clone(&self.ledger);
        let life = Life::new(oracle, &access, &ledger);
        let mut rng = SmallRng::seed_from_u64(self.plan.seed);
        verify::from_the_node(&life, bucket, &mut rng).await;
        verify::in_the_bucket(&life, bucket).await?;
        self.check()?;
        drop(access);
        node.stop().await?;
        node.verify()
    }

    /// The faults found so far end the life.
    fn check(&self) -> Result<(), String> {
        let faults = self.ledger.faults.borrow().len();
        if faults == 0 { Ok(()) } else { Err(format!("{faults} faults")) }
    }

    fn line(&self) -> String {
        let (name, strikes) = self.striker.names();
        let tally = self.ledger.tally.borrow();
        let list = |pairs: Vec<(String, u64)>| {
            pairs.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let errors = list(tally.errors.iter().map(|(status, count)| (status.to_string(), *count)).collect());
        let events = list(tally.events.iter().map(|(event, count)| (event.clone(), *count)).collect());
        format!(
            "{name}: {strikes} {}/{} ({} while starting), {} lives, {} outages, acknowledged puts {} deletes {} purges {} (slowest {:?}), reads \
             judged {}, cut off {}, errors ({errors}), in half of the runs ({events}), disks verified {}, rotten {}, violations {}, {:.0} s",
            self.strikes,
            self.plan.strikes,
            self.in_start,
            self.lives,
            self.outages,
            tally.puts,
            tally.deletes,
            tally.purges,
            tally.slowest,
            tally.gets,
            tally.cut_off,
            self.verified,
            self.rotten,
            self.ledger.faults.borrow().len(),
            self.began.elapsed().as_secs_f64()
        )
    }

    /// The status line: drawn over on a terminal, now and then elsewhere.
    fn speak(&mut self) {
        if std::io::stdout().is_terminal() {
            print!("\r\x1b[2K{}", self.line());
            let _ = std::io::stdout().flush();
        } else if self.spoke.elapsed() > LINE_PERIOD {
            println!("{}", self.line());
            self.spoke = Instant::now();
        }
    }
}

/// Tiny, so that regions are reclaimed all the time; or with large blocks of several requests to the disk.
fn shape(rng: &mut SmallRng) -> Shape {
    const KIB: u64 = 1 << 10;
    let (block, count) = [(64 * KIB, 100), (64 * KIB, 60), (256 * KIB, 40), (1024 * KIB, 30)][rng.random_range(0..4)];
    let region_bytes = 8 * block;
    let shards = [1, 1, 2, 3][rng.random_range(0..4)];
    let regions = rng.random_range(7..=9u64);
    // The journal's 4 MiB and a sixteenth for checkpoints (a record for each 4 KiB) beside the regions.
    let share = (regions * region_bytes + (4 << 20) + (256 << 10)) * 16 / 15;
    Shape {
        block_bytes_max: usize::try_from(block).unwrap(),
        region_bytes,
        capacity_bytes: (share * u64::from(shards)).next_multiple_of(1 << 20),
        shards,
        // At most an executor a shard.
        cores: rng.random_range(1..=usize::from(shards).min(2)),
        keys_per_volume: count * usize::from(shards) + 60,
    }
}
