//! One simulated machine: a world, a shard on one or several disks in it, an origin that outlives it.
//!
//! Used by `run` and `exhaust`: format, open, crash. A machine is in one life at a time; handles of an earlier one are
//! dead.

use forebay_io::sim::{Crashed, SimDisk, SimRuntime, SimWorld};
use forebay_shard::config::{Geometry, ShardConfig};
use forebay_shard::error::StoreError;
use forebay_shard::key::{BlockKey, IdentityKey};
use forebay_shard::shard::{RecoveryReport, Shard};
use forebay_shard::sim_origin::SimOrigin;
use forebay_shard::store::NodeIdentity;
use forebay_shard::store::inspect::report::{Cost, Part};
use forebay_shard::store::inspect::verify::verify;

use super::plan::DiskMode;
use super::rack::{Member, Rack};

/// The real shard on the simulated machine.
pub type SimShard = Shard<SimDisk, SimOrigin<SimRuntime>, SimRuntime>;

/// The slab's file name.
pub const SLAB: &str = "shard-000.slab";

/// A machine with one shard and an origin.
pub struct Machine {
    pub world: SimWorld,
    pub origin: SimOrigin<SimRuntime>,
    /// Its disks. Changed between two lives.
    pub rack: Rack,
    geometry: Geometry,
    config: ShardConfig,
    shard: Option<SimShard>,
}

fn identity() -> NodeIdentity {
    NodeIdentity { node: 7, shard: 0, shard_count: 1, identity_key: IdentityKey([9; 16]) }
}

impl Machine {
    /// A formatted machine, not opened.
    pub fn new(world: SimWorld, seed: u64, geometry: Geometry, config: ShardConfig, rack: Rack) -> Machine {
        let origin = SimOrigin::new(seed, world.runtime());
        let machine = Machine { world, origin, rack, geometry, config, shard: None };
        machine.rack.members.iter().for_each(|member| machine.format(member));
        machine
    }

    /// Makes the shard's files on an empty disk. Without faults.
    pub fn format(&self, member: &Member) {
        let (disk, runtime) = (member.disk(&self.world), self.world.runtime());
        self.world
            .block_on(async { SimShard::format(&disk, &runtime, self.geometry, &identity()).await })
            .expect("no faults are set, and the disk is empty");
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
        let (origin, runtime, config) = (self.origin.clone(), self.world.runtime(), self.config.clone());
        let seats = self.rack.seats(&self.world, &config);
        let opened = self.world.run(async { Shard::open_on(seats, origin, runtime, identity(), config).await })?;
        Ok(opened.map(|(shard, report)| {
            self.shard = Some(shard);
            report
        }))
    }

    /// The disks that are here, each at its place.
    pub fn disks(&self) -> Vec<Option<SimDisk>> {
        self.rack.disks(&self.world)
    }

    /// The id of the disk that a key is on, or would go to; `None`: it may lie on one that is not here.
    pub fn seat_of(&self, key: &BlockKey) -> Option<u128> {
        self.shard().seat_of(key).map(|number| self.rack.members[usize::from(number)].id)
    }

    /// A key that no client uses, on the disk at `at`; `None`: no key can be said to be there.
    pub fn scratch_key(&self, at: usize) -> Option<BlockKey> {
        let named = |number: u32| match number {
            0 => BlockKey::new("back".into(), "scratch"),
            _ => BlockKey::new("back".into(), format!("scratch/{number}")),
        };
        (0..64).map(named).find(|key| self.shard().seat_of(key).map(usize::from) == Some(at))
    }

    /// What `verify` says of the stopped machine's disks: the acknowledged data that it takes for lost, and on an honest disk every
    /// block whose bytes are not its own. It walks journal and checkpoint by code of its own, and must agree with recovery.
    pub fn verify(&self, disk_mode: DiskMode) -> Vec<String> {
        let disks = self.rack.members.iter().map(|member| member.disk(&self.world));
        disks.flat_map(|disk| self.verify_disk(disk, disk_mode)).collect()
    }

    fn verify_disk(&self, disk: SimDisk, disk_mode: DiskMode) -> Vec<String> {
        let runtime = self.world.runtime();
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
