//! kill -9 of a member, of a group, of the admin, of everything but the store, each while clients put and read: what was acknowledged is
//! read with its bytes, or is `owner-unreachable` as long as its sole holder is dead; never "absent", never older.
//!
//! `ci/outage [--rounds N] [--seed S]` strikes each of them N times; `ci/test` once. A strike at a moment at which nothing was dirty
//! proves nothing and fails: some of the blocks acknowledged by the dead must be missing in the bucket as long as they are dead. Clients are
//! the library's, with credentials of their own for the bucket; of the two volumes one is write-back with `bypass = reads`, whose writes may
//! fail while a holder is dead, the other write-through with `bypass = always`, whose writes never may.

#![allow(clippy::unwrap_used)]

mod background;
#[path = "outage/deployment.rs"]
mod deployment;
#[path = "ordeal/flags.rs"]
mod flags;
#[path = "outage/load.rs"]
mod load;
mod running;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use background::Background;
use deployment::{DEADLINE, Deployment, Distance};
use load::{Load, Scene, Volume, Writes};

/// How long the struck stay dead: an operation's deadline, and some more.
const DEAD_FOR: Duration = Duration::from_secs(9);
/// After which everything must be had again.
const RETURN_BOUND: Duration = Duration::from_secs(60);
/// As many blocks are dirty at the struck before they are struck.
const DIRTY_MIN: u64 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    Member,
    Group,
    Admin,
    AllButTheStore,
}

const STRIKES: [Strike; 4] = [Strike::Member, Strike::Group, Strike::Admin, Strike::AllButTheStore];

struct Ordeal {
    deployment: Deployment,
    volumes: Vec<Arc<Volume>>,
    scene: Arc<Scene>,
    load: Load,
    background: Background,
}

impl Ordeal {
    fn begin(seed: u64) -> Ordeal {
        let (deployment, background) = (Deployment::start(), Background::start());
        let mut volumes = Vec::new();
        for (mode, writes, seed) in
            [("write-back", Writes::MayFail, seed * 2), ("write-through", Writes::NeverFail, seed * 2 + 1)]
        {
            let client = background.handle.block_on(deployment.open(mode));
            volumes.push(Arc::new(Volume::new(mode, client, writes, deployment.bucket(mode), DEADLINE, seed)));
        }
        let scene = Arc::new(Scene::default());
        let load = Load::start(&background.handle, &volumes, &scene);
        Ordeal { deployment, volumes, scene, load, background }
    }

    /// Whom a strike kills: proxies, and whether the admin too.
    fn victims(&self, strike: Strike, round: u64) -> (Vec<(usize, String)>, bool) {
        let (near, far) = (self.deployment.members("near"), self.deployment.members("far"));
        match strike {
            Strike::Member => (vec![near[round as usize % near.len()].clone()], false),
            Strike::Group => (near, false),
            Strike::Admin => (Vec::new(), true),
            Strike::AllButTheStore => ([near, far].concat(), true),
        }
    }

    fn strike(&mut self, strike: Strike, round: u64) {
        let (victims, admin) = self.victims(strike, round);
        let (proxies, names): (Vec<usize>, Vec<String>) = victims.into_iter().unzip();
        let holders: Vec<usize> = match strike {
            Strike::Admin => self.deployment.members("near").into_iter().map(|(proxy, _)| proxy).collect(),
            _ => proxies.clone(),
        };
        self.deployment.move_the_store(Distance::Far);
        let dirty = self.wait_dirty(&holders);
        let before = self.scene.counts.all();
        self.scene.set_dead(&names);
        self.deployment.kill(&proxies, admin);
        let (struck, opened) = (Instant::now(), self.open_again(strike));
        while struck.elapsed() < DEAD_FOR {
            self.load.check(&self.background.handle);
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(opened);
        let orphans = self.background.handle.block_on(self.volumes[0].orphans(&names));
        let [acked, refused, right, from_store, unreachable] = {
            let after = self.scene.counts.all();
            [0, 1, 2, 3, 4].map(|at| after[at] - before[at])
        };
        self.deployment.restart(&proxies, admin);
        self.deployment.move_the_store(Distance::Near);
        let returned = Instant::now();
        for volume in &self.volumes {
            self.background.handle.block_on(volume.verify(RETURN_BOUND));
        }
        self.load.check(&self.background.handle);
        self.scene.set_dead(&[]);
        let blocks: usize = self.volumes.iter().map(|volume| volume.count()).sum();
        println!(
            "{strike:?}: killed with {dirty} blocks dirty, {orphans} of them nowhere else; dead for {DEAD_FOR:?}: reads {right} right ({from_store} from the store), \
             {unreachable} owner-unreachable; writes {acked} acknowledged, {refused} refused; all {blocks} right {:.1?} after the return",
            returned.elapsed()
        );
        assert!(right > 0 && acked > 0, "the load stood still");
        assert!(
            orphans > 0 || strike == Strike::Admin,
            "nothing was dirty at those that were killed: this proves nothing"
        );
        match strike {
            Strike::Admin => assert_eq!((refused, unreachable), (0, 0), "the admin is on nobody's way"),
            Strike::AllButTheStore => assert!(from_store > 0, "nobody went to the store"),
            Strike::Member | Strike::Group => {}
        }
    }

    /// A client that starts while the admin is dead has the routing on its disk.
    fn open_again(&self, strike: Strike) -> Option<forebay::client::Client> {
        let opens = matches!(strike, Strike::Admin | Strike::AllButTheStore);
        opens.then(|| self.background.handle.block_on(self.deployment.open("write-back")))
    }

    fn wait_dirty(&mut self, holders: &[usize]) -> u64 {
        let began = Instant::now();
        loop {
            self.load.check(&self.background.handle);
            let dirty = self.background.handle.block_on(self.deployment.dirty(holders));
            if dirty >= DIRTY_MIN {
                return dirty;
            }
            assert!(began.elapsed() < RETURN_BOUND, "only {dirty} blocks are dirty: a strike now would prove nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn main() -> ExitCode {
    let Some(flags) = flags::read("outage", "--rounds") else { return ExitCode::SUCCESS };
    let began = Instant::now();
    for round in 0..flags.strikes.unwrap_or(1) {
        let mut ordeal = Ordeal::begin(flags.seed + round);
        for strike in STRIKES {
            ordeal.strike(strike, round);
        }
        let Ordeal { load, background, .. } = ordeal;
        load.end(&background.handle);
    }
    println!("outage: seed {}, {:.0?}, no violation", flags.seed, began.elapsed());
    ExitCode::SUCCESS
}
