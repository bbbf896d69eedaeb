//! One simulated machine: a world, a shard in it, an origin that outlives it.
//!
//! Used by `run` and `exhaust`: format, open, crash. A machine is in one life at a time; handles of an earlier one are
//! dead.

use forebay_io::sim::{Crashed, SimDisk, SimRuntime, SimWorld};
use forebay_shard::config::{Geometry, ShardConfig};
use forebay_shard::error::StoreError;
use forebay_shard::key::IdentityKey;
use forebay_shard::shard::{RecoveryReport, Shard};
use forebay_shard::sim_origin::SimOrigin;
use forebay_shard::store::NodeIdentity;
use forebay_shard::store::inspect::report::{Cost, Part};
use forebay_shard::store::inspect::verify::verify;

use super::plan::DiskMode;

/// The real shard on the simulated machine.
pub type SimShard = Shard<SimDisk, SimOrigin<SimRuntime>, SimRuntime>;

/// The slab's file name.
pub const SLAB: &str = "shard-000.slab";

/// A machine with one shard and an origin.
pub struct Machine {
    pub world: SimWorld,
    pub origin: SimOrigin<SimRuntime>,
    config: ShardConfig,
    shard: Option<SimShard>,
}

fn identity() -> NodeIdentity {
    NodeIdentity { node: 7, shard: 0, shard_count: 1, identity_key: IdentityKey([9; 16]) }
}

impl Machine {
    /// A formatted machine, not opened.
    pub fn new(world: SimWorld, seed: u64, geometry: Geometry, config: ShardConfig) -> Machine {
        let origin = SimOrigin::new(seed, world.runtime());
        let disk = world.disk();
        world
            .block_on(async { SimShard::format(&disk, &world.runtime(), geometry, &identity()).await })
            .expect("no faults are set yet");
        Machine { world, origin, config, shard: None }
    }

    /// The open shard.
    pub fn shard(&self) -> &SimShard {
        self.shard.as_ref().expect("it was opened")
    }

    /// Opens the shard in the world's present life.
    ///
    /// # Errors
    /// [`Crashed`] if an ordered crash struck; inside, what the store said.
    pub fn open(&mut self) -> Result<Result<RecoveryReport, StoreError>, Crashed> {
        self.shard = None;
        self.origin = self.origin.reconnect(self.world.runtime());
        let (disk, origin, runtime) = (self.world.disk(), self.origin.clone(), self.world.runtime());
        let config = self.config.clone();
        let opened = self.world.run(async { Shard::open(disk, origin, runtime, identity(), config).await })?;
        Ok(opened.map(|(shard, report)| {
            self.shard = Some(shard);
            report
        }))
    }

    /// What `verify` says of the stopped machine's disk: the acknowledged data that it takes for lost, and on an honest disk every
    /// block whose bytes are not its own. It walks journal and checkpoint by code of its own, and must agree with recovery.
    pub fn verify(&self, disk_mode: DiskMode) -> Vec<String> {
        let (disk, runtime) = (self.world.disk(), self.world.runtime());
        let report = self.world.block_on(verify(disk, &runtime, 0, Some(&identity()), &mut |_| {}));
        let is_bad = |part: Part, cost: Cost| match (disk_mode, part) {
            (DiskMode::Honest, Part::Records) => cost >= Cost::Cache,
            _ => cost == Cost::Data,
        };
        let findings = report.parts.iter().flat_map(|part| part.findings.iter().map(|finding| (part.part, finding)));
        findings
            .filter(|(part, finding)| is_bad(*part, finding.cost))
            .map(|(_, finding)| finding.what.clone())
            .collect()
    }

    /// Cuts the power.
    pub fn crash(&mut self) {
        self.shard = None;
        self.world.crash();
    }
}
