//! The disks of the simulated machine as its edge keeps them: who belongs to the set, who is here at this start, and whether a
//! key may lie on another disk than its home.
//!
//! Made and changed by `operator` from the seed, read by `machine` when it opens the shard. Three runs in four have one disk, the
//! nameless one of the world, which never changes. The rules of the roster are those of the edge (`src/proxy/node_file`): a
//! change of the set unsettles it, a start that finds all disks and no stray settles it.

use std::num::NonZeroU32;

use forebay_io::sim::{SimDisk, SimWorld};
use forebay_shard::config::ShardConfig;
use forebay_shard::disks::{Seat, Seats, Strays};
use forebay_shard::key::Identity;
use forebay_shard::rendezvous::{DISK_SEED, score};

/// Why a disk that belongs to the machine is not here.
const NOT_MOUNTED: &str = "not mounted";

/// A disk that belongs to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Of one letter; empty: the only disk of its world.
    pub name: String,
    pub id: u128,
    pub weight: NonZeroU32,
    /// Whether the machine does not find it in this life.
    pub is_away: bool,
}

/// All disks of the machine, in the order in which its configuration names them.
#[derive(Debug, Clone)]
pub struct Rack {
    pub members: Vec<Member>,
    pub strays: Strays,
    /// Disks named so far, beside the nameless one.
    named_count: u8,
}

impl Member {
    /// What the names of its files begin with.
    pub fn prefix(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!("{}:", self.name) }
    }

    /// A handle on it for the world's present life.
    pub fn disk(&self, world: &SimWorld) -> SimDisk {
        if self.name.is_empty() { world.disk() } else { world.disk_named(&self.name) }
    }
}

impl Rack {
    /// One disk for the whole run.
    pub fn of_one() -> Rack {
        let only = Member { name: String::new(), id: 0, weight: NonZeroU32::MIN, is_away: false };
        Rack { members: vec![only], strays: Strays::None, named_count: 0 }
    }

    /// A machine whose disks have names, none yet.
    pub fn empty() -> Rack {
        Rack { members: Vec::new(), strays: Strays::None, named_count: 0 }
    }

    /// One more disk, of a name and an id that no other ever had. Returns it, to be formatted.
    pub fn add(&mut self, at: usize, weight: NonZeroU32) -> &Member {
        let name = char::from(b'a' + self.named_count % 26).to_string();
        let id = 0x5EA7_0000 + u128::from(self.named_count);
        self.named_count += 1;
        self.members.insert(at, Member { name, id, weight, is_away: false });
        &self.members[at]
    }

    /// Where a key belongs, by the function of PLACEMENT.md: the model's own word for it.
    pub fn home(&self, identity: Identity) -> u128 {
        let key = (identity.0 >> 64) as u64;
        let scored = self.members.iter().map(|member| (score(DISK_SEED, member.id, member.weight, key), member.id));
        scored.reduce(|best, next| if next.0 > best.0 { next } else { best }).expect("a machine has a disk").1
    }

    /// What the edge offers to the shard at a start.
    pub fn seats(&self, world: &SimWorld, config: &ShardConfig) -> Seats<SimDisk> {
        let seat = |member: &Member| Seat {
            id: member.id,
            weight: member.weight,
            sync: config.sync,
            write_bytes_per_day: config.disk_limits.write_bytes_per_day,
            disk: if member.is_away { Err(NOT_MOUNTED.to_owned()) } else { Ok(member.disk(world)) },
        };
        Seats { disks: self.members.iter().map(seat).collect(), strays: self.strays, written_back: Vec::new() }
    }

    /// Handles on the disks that are here, each at its place.
    pub fn disks(&self, world: &SimWorld) -> Vec<Option<SimDisk>> {
        self.members.iter().map(|member| (!member.is_away).then(|| member.disk(world))).collect()
    }
}
