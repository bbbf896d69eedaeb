//! The disks of a shard, each with a store of its own: which of them a key is on, and what is known of each.
//!
//! Used by every verb through [`DiskSet::of`]; `disks/open` makes a set, `disks/settle` brings home what lies elsewhere. The
//! invariant that everything rests on: **at most one disk has an entry of a key**. A key's *home* is drawn by weighted
//! rendezvous hashing over the disks that the node has, whether they are well or not. What is dirty or pinned on another disk,
//! because the set has changed, is a *stray*: its key stays with that disk until it was flushed and unpinned and is gone there durably. So no disk
//! ever hides what another one has (I13), and no disk needs another to recover. Generations come from one sequence.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

use forebay_io::{Disk, Runtime};

use crate::canary::{self, Canary};
use crate::config::{ShardConfig, SyncMode};
use crate::health::{HealthCounts, HealthReport, HealthState, Monitor, Reason, WatchedDisk};
use crate::key::{BlockKey, Generation, Identity, IdentityKey, IdentityMap};
use crate::outcome::{Located, Pin};
use crate::rendezvous::{DISK_SEED, score};
use crate::store::{Found, Store, StoreStats};

mod open;
mod settle;

/// One disk of a node, as the edge offers it to a shard.
pub struct Seat<D> {
    /// Drawn when the disk was formatted and kept for life, wherever it is mounted.
    pub id: u128,
    /// Its share of the keys, relative to the others': its capacity.
    pub weight: NonZeroU32,
    /// Whether an acknowledgement waits for this disk's fdatasync.
    pub sync: SyncMode,
    /// What this shard may write to it in a day, in bytes; `None`: as much as it likes.
    pub write_bytes_per_day: Option<u64>,
    /// The disk, or why it is not here.
    pub disk: Result<D, String>,
}

/// All disks that a node has, those that are not here included.
pub struct Seats<D> {
    /// In the order in which status names them.
    pub disks: Vec<Seat<D>>,
    /// Whether a key may lie on another disk than its home.
    pub strays: Strays,
    /// Volumes that were ever written back: what they hold may be dirty on a disk that is not here.
    pub written_back: Vec<Arc<str>>,
}

/// Whether a key may lie on another disk than its home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strays {
    /// Since all disks were last seen together, without one, the set has not changed.
    None,
    /// The set has changed, or was not seen whole since.
    Possible,
}

impl<D> Seats<D> {
    /// A node with one disk.
    #[must_use]
    pub fn one(disk: D, config: &ShardConfig) -> Seats<D> {
        let write_bytes_per_day = config.disk_limits.write_bytes_per_day;
        let seat = Seat { id: 0, weight: NonZeroU32::MIN, sync: config.sync, write_bytes_per_day, disk: Ok(disk) };
        Seats { disks: vec![seat], strays: Strays::None, written_back: Vec::new() }
    }
}

/// The disks of a shard.
pub(crate) struct DiskSet<D: Disk, R: Runtime> {
    places: Vec<Place<D, R>>,
    possible: Strays,
    /// The disk of each key that is dirty, or pinned, on another than its home.
    strays: RefCell<IdentityMap<u16>>,
    next_generation: Cell<u64>,
    identity_key: IdentityKey,
    written_back: RefCell<Vec<Arc<str>>>,
}

/// A disk's place in the set.
struct Place<D: Disk, R: Runtime> {
    id: u128,
    weight: NonZeroU32,
    /// `Err`: why it is not here.
    disk: Result<OpenDisk<D, R>, String>,
}

/// A disk that was opened. It may be degraded or offline.
pub(crate) struct OpenDisk<D: Disk, R: Runtime> {
    /// Its place in the set.
    pub(crate) number: u16,
    pub(crate) device: D,
    pub(crate) store: Store<WatchedDisk<D, R>, R>,
    pub(crate) health: Rc<Monitor<R>>,
    /// Dirty puts that are on their way to it.
    coming_bytes: Rc<Cell<u64>>,
    /// Whether a flush tries to read from it although it is offline.
    pub(crate) is_tried: Cell<bool>,
}

/// One disk of a shard at one moment. Sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Why it was not opened; `None`: it was.
    pub away: Option<String>,
    /// Its health.
    pub health: HealthReport,
    /// Whether it takes no writes now, after a failed sync.
    pub writes_stopped: bool,
    /// Written to it since the shard was opened, journal, checkpoints and footers included.
    pub written_bytes: u64,
    /// Keys that are here and belong to another disk, until they are flushed and unpinned.
    pub strays: u64,
    /// Its store's figures.
    pub store: StoreStats,
}

impl<D: Disk, R: Runtime> DiskSet<D, R> {
    /// The disk that a key is on, or would go to. `None`: it may lie on a disk that is not here.
    pub(crate) fn of(&self, identity: Identity) -> Option<&OpenDisk<D, R>> {
        if let [only] = &self.places[..] {
            return only.disk.as_ref().ok();
        }
        if let Some(number) = self.strays.borrow().get(&identity)
            && !canary::is(Canary::StrayOverlooked)
        {
            return self.places[usize::from(*number)].disk.as_ref().ok();
        }
        let home = self.places[self.home(identity)].disk.as_ref().ok();
        let is_sure = self.possible == Strays::None || self.is_whole() || canary::is(Canary::MissingDiskOverlooked);
        if home.is_some() && is_sure {
            return home;
        }
        // No other disk has an entry where one has: that one is the key's, wherever the key belongs.
        self.open().find(|disk| disk.store.find(identity).is_some())
    }

    /// Which place a key belongs to.
    fn home(&self, identity: Identity) -> usize {
        let key = (identity.0 >> 64) as u64;
        let scores = self.places.iter().map(|place| score(DISK_SEED, place.id, place.weight, key));
        let best = scores.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.expect("a shard has a disk").0
    }

    fn is_whole(&self) -> bool {
        self.places.iter().all(|place| place.disk.is_ok())
    }

    /// Whether from now on, and after a restart with the same disks, every key is known to be at home.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_whole() && self.strays.borrow().is_empty()
    }

    /// How many disks there are, those that are not here included.
    pub(crate) fn count(&self) -> usize {
        self.places.len()
    }

    /// The disks that are here.
    pub(crate) fn open(&self) -> impl Iterator<Item = &OpenDisk<D, R>> {
        self.places.iter().filter_map(|place| place.disk.as_ref().ok())
    }

    /// An open disk by its number.
    pub(crate) fn at(&self, number: u16) -> &OpenDisk<D, R> {
        self.places[usize::from(number)].disk.as_ref().expect("only an open disk gives its number out")
    }

    /// What is known about a key, without touching a disk.
    pub(crate) fn find(&self, identity: Identity) -> Option<Found> {
        self.of(identity)?.store.find(identity)
    }

    pub(crate) fn identity(&self, key: &BlockKey) -> Identity {
        self.identity_key.identity(key)
    }

    /// Whether blocks of this volume may be dirty on a disk that is not here, whatever the volume is now.
    pub(crate) fn was_written_back(&self, volume: &str) -> bool {
        self.written_back.borrow().iter().any(|name| &**name == volume)
    }

    /// Blocks of this volume may be dirty from now on, whatever it is made later.
    pub(crate) fn write_back(&self, volume: &Arc<str>) {
        if !self.was_written_back(volume) {
            self.written_back.borrow_mut().push(Arc::clone(volume));
        }
    }

    /// The next number of the shard's one sequence. Every disk learns of it, so that none draws it again after a restart.
    pub(crate) fn next_generation(&self) -> Generation {
        let next = self.next_generation.get();
        self.next_generation.set(next + 1);
        self.open().for_each(|disk| disk.store.raise_generation(next + 1));
        Generation(next)
    }

    /// One report for each disk, in order.
    pub(crate) fn stats(&self) -> Vec<DiskStats> {
        let mut stats: Vec<DiskStats> = self.places.iter().map(Place::stats).collect();
        for number in self.strays.borrow().values() {
            stats[usize::from(*number)].strays += 1;
        }
        stats
    }

    /// The stores' own invariants, and that at most one disk has an entry of a key.
    pub(crate) fn check(&self) {
        self.open().for_each(|disk| disk.store.check());
        if self.count() == 1 {
            return;
        }
        for disk in self.open() {
            disk.store.visit(|identity| {
                let holders = self.open().filter(|other| other.store.find(identity).is_some()).count();
                assert_eq!(holders, 1, "I13: at most one disk has an entry of a key");
                let of = self.of(identity).map(|of| of.number);
                assert_eq!(of, Some(disk.number), "I13: a key is looked for where its entry is");
            });
        }
    }
}

impl<D: Disk, R: Runtime> Place<D, R> {
    fn stats(&self) -> DiskStats {
        match &self.disk {
            Ok(disk) => DiskStats {
                away: None,
                health: disk.health.report(),
                writes_stopped: disk.store.is_failed(),
                written_bytes: disk.health.written_bytes(),
                strays: 0,
                store: disk.store.stats(),
            },
            Err(why) => {
                let counts = HealthCounts { offline: 1, ..HealthCounts::default() };
                let (state, reason) = (HealthState::Offline, Some(Reason::NotOpened));
                let health = HealthReport { state, reason, counts, ..HealthReport::default() };
                DiskStats { away: Some(why.clone()), health, writes_stopped: true, ..DiskStats::default() }
            }
        }
    }
}

impl<D: Disk, R: Runtime> OpenDisk<D, R> {
    /// Whether blocks that need not be on the disk are put there.
    pub(crate) fn admits(&self) -> bool {
        self.health.state() == HealthState::Ok && !self.store.is_failed()
    }

    /// Whether requests pass it by.
    pub(crate) fn is_offline(&self) -> bool {
        self.health.state() == HealthState::Offline
    }

    /// As [`Store::locate`].
    pub(crate) fn locate(&self, identity: Identity) -> Option<Located> {
        let located = self.store.locate(identity)?;
        let pin = Pin { disk: self.number, ..located.pin };
        Some(Located { pin, ..located })
    }

    /// Announces a dirty put of `len_bytes`. `None`: more than half of the regions would be dirty, and reclaim could not always
    /// move what is (I10).
    pub(crate) fn expect_dirty(&self, len_bytes: u32) -> Option<Coming> {
        let coming_bytes = self.coming_bytes.get() + u64::from(len_bytes);
        if self.store.dirty_bytes() + coming_bytes > self.store.regions_bytes() / 2 {
            return None;
        }
        self.coming_bytes.set(coming_bytes);
        Some(Coming { of: Rc::clone(&self.coming_bytes), len_bytes })
    }
}

/// A dirty put that is on its way to a disk.
pub(crate) struct Coming {
    of: Rc<Cell<u64>>,
    len_bytes: u32,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.of.set(self.of.get() - u64::from(self.len_bytes));
    }
}
