//! What a node serves at one moment: its volumes, whose tokens open them, and which blocks are its own.
//!
//! Made by `boot` from the configuration, or by `following` from what the admin says; each core's handler has the last one and looks into
//! nothing else. Plain `Send` data, handed over whole: a request sees one moment.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_shard::config::VolumeConfig;
use forebay_shard::outcome::Durability;

use crate::placement::{KeyHash, Member, MemberId};
use crate::resource::Revision;
use crate::routing::Holders;
use crate::token::PublicKeys;

/// What a node serves.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// The volumes.
    pub volumes: Vec<ServedVolume>,
    /// Volumes that others serve and this node does not, and why.
    pub refused: BTreeMap<String, String>,
    /// The keys whose tokens are good; `None`: as configured.
    pub keys: Option<Arc<PublicKeys>>,
    /// Whose blocks are refused; `None`: nobody's.
    pub strict: Option<Own>,
    /// Among how many members of this node's group the reads of a hot block may be spread; fewer than two: no leases are given.
    pub lease_members: u16,
    /// The placement of its group's keys that the whole node goes by.
    pub agreed: Agreed,
}

/// The placement that every core of a node goes by: a core may be ahead of the others, and what another member is told must hold for all.
#[derive(Debug, Clone, Default)]
pub struct Agreed(Arc<AtomicU64>);

impl Agreed {
    /// Its revision; 0: none.
    #[must_use]
    pub fn placed(&self) -> Revision {
        self.0.load(Ordering::Acquire)
    }

    /// From now on every core goes by this one.
    pub fn set(&self, placed: Revision) {
        self.0.store(placed, Ordering::Release);
    }
}

/// One volume.
#[derive(Debug, Clone)]
pub struct ServedVolume {
    /// As shards know it, but for its access.
    pub settings: VolumeConfig,
    /// What a put is promised that asks for nothing.
    pub durability: Durability,
    /// Who may hold dirty blocks of it beside this node; `None`: nobody.
    pub home: Option<Arc<Home>>,
    /// Ids of tokens that do not open it any more.
    pub revoked: HashSet<String>,
}

/// The group that holds what is dirty of a write-back volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// All of its members.
    pub members: Vec<HomeMember>,
    /// Those that writes go to.
    pub up: Vec<Member>,
    /// This node, if it is one of them.
    pub own: Option<MemberId>,
    /// Who may hold which key; `None`: the admin does not tell, so any may hold any.
    pub holders: Option<Holders>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HomeMember {
    /// For ranking.
    pub id: MemberId,
    /// For people.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// The name its certificate is verified against.
    pub tls_name: String,
    /// Whether it was ever given keys.
    pub may_hold: bool,
}

/// The members that blocks are dealt to, and which of them this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// In no order.
    pub members: Vec<Member>,
    /// Their names.
    pub names: Vec<String>,
    /// This node's position; `None`: it is not among them.
    pub at: Option<usize>,
}

impl ServedVolume {
    /// A volume of a node without an admin.
    #[must_use]
    pub fn configured(settings: VolumeConfig) -> ServedVolume {
        ServedVolume { settings, durability: Durability::Disk, home: None, revoked: HashSet::new() }
    }
}

impl Served {
    /// What a node without an admin serves, for good.
    #[must_use]
    pub fn configured(volumes: impl IntoIterator<Item = VolumeConfig>) -> Served {
        Served { volumes: volumes.into_iter().map(ServedVolume::configured).collect(), ..Served::default() }
    }
}

impl Own {
    /// Whose the block is, if it is another's than this node's.
    ///
    /// # Errors
    /// That member's name; `None` if there is no member that blocks are dealt to.
    pub fn check(&self, volume: &str, key: &str) -> Result<(), Option<&str>> {
        match KeyHash::of(volume, key).first(&self.members) {
            Some(first) if Some(first) == self.at => Ok(()),
            first => Err(first.map(|first| self.names[first].as_str())),
        }
    }
}
