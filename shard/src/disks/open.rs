//! Opening the disks of a shard, each for itself, and then, where the set has changed, putting in order what they hold.
//!
//! Called by `Shard::open_on`. A disk that can't be opened is away: the others serve. Two rules put in order what lies where,
//! each durable on every disk before the next begins: of two entries of a key the one of the older generation goes, clean,
//! dirty or tombstone; then clean entries go that are not at home. What is dirty or pinned and not at home stays, as a stray.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt::Write;
use std::rc::Rc;

use forebay_io::{Disk, Runtime};
use futures::future::join_all;

use super::{DiskSet, OpenDisk, Place, Seat, Seats, Strays};
use crate::canary::{self, Canary};
use crate::config::{DiskLimits, ShardConfig};
use crate::error::StoreError;
use crate::health::{Monitor, WatchedDisk};
use crate::key::{Generation, Identity, IdentityMap};
use crate::store::{DirtyRecord, EntryState, Found, NodeIdentity, Recovered, Sifted, Store, StoreConfig, Verdict};

impl<D: Disk, R: Runtime> DiskSet<D, R> {
    /// Opens every disk that is here, side by side.
    ///
    /// # Errors
    /// Of the first disk, if none can be opened.
    pub(crate) async fn open_all(
        seats: Seats<D>,
        runtime: &R,
        node: &NodeIdentity,
        config: &ShardConfig,
    ) -> Result<(DiskSet<D, R>, Vec<Recovered>), StoreError> {
        assert!((1..=usize::from(u16::MAX)).contains(&seats.disks.len()), "a shard has a disk");
        let ghosts_max = config.disk_limits.ghosts_max / seats.disks.len();
        let opening = (0..).zip(seats.disks).map(|(number, seat)| {
            let disk_limits = DiskLimits { ghosts_max, write_bytes_per_day: seat.write_bytes_per_day };
            let (node, sync) = (node.clone(), seat.sync);
            let store_config = StoreConfig { node, sync, commit_delay: config.commit_delay, disk_limits };
            open_seat(number, seat, runtime, config, store_config)
        });
        let mut places = Vec::new();
        let (mut recovered, mut first_error) = (Vec::new(), None);
        for (place, outcome) in join_all(opening).await {
            match outcome {
                Ok(found) => recovered.push(found),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
            places.push(place);
        }
        if recovered.is_empty() {
            return Err(first_error.expect("a disk that was not opened has a reason"));
        }
        let set = DiskSet {
            places,
            possible: seats.strays,
            strays: RefCell::default(),
            next_generation: Cell::new(0),
            identity_key: node.identity_key,
            written_back: RefCell::new(seats.written_back),
        };
        let mut set = set;
        if set.is_misplaced(&recovered) {
            set.possible = Strays::Possible;
        }
        let set = match set.possible {
            Strays::None => set,
            Strays::Possible => set.put_in_order(config.shard).await,
        };
        let Some(next) = set.open().map(|disk| disk.store.upcoming_generation()).max() else {
            // Those that were opened could not be put in order; why, was logged.
            return Err(first_error.unwrap_or(StoreError::Failed));
        };
        set.next_generation.set(next);
        for found in &mut recovered {
            found.dirty.retain(|record| set.is_dirty_still(record));
        }
        Ok((set, recovered))
    }

    /// Whether something dirty is not where it would be looked for, whatever was said about strays.
    fn is_misplaced(&self, recovered: &[Recovered]) -> bool {
        let found = self.open().zip(recovered);
        let is_home = |number: u16, identity| self.home(identity) == usize::from(number);
        self.count() > 1
            && found.into_iter().any(|(disk, found)| found.dirty.iter().any(|r| !is_home(disk.number, r.identity)))
    }

    /// Whether a recovered record survived the putting in order.
    fn is_dirty_still(&self, record: &DirtyRecord) -> bool {
        self.possible == Strays::None
            || self.open().any(|disk| disk.store.dirty_generation(record.identity) == Some(record.generation))
    }

    async fn put_in_order(mut self, shard: u16) -> Self {
        let mut lost = Vec::new();
        for disk in self.open() {
            let judged = disk.store.sift(|identity, generation| self.stale(disk.number, identity, generation)).await;
            self.ordered(shard, disk, judged, &mut lost);
        }
        self.give_up(&mut lost).await;
        let mut strays = IdentityMap::default();
        for disk in self.open() {
            let judged = disk.store.sift(|identity, _| self.stray(disk.number, identity)).await;
            let found = self.ordered(shard, disk, judged, &mut lost);
            strays.extend(found.into_iter().map(|identity| (identity, disk.number)));
        }
        strays.retain(|_, number| !lost.iter().any(|(away, _)| away == number));
        self.give_up(&mut lost).await;
        self.strays = RefCell::new(strays);
        self
    }

    /// Whether another disk has a newer entry of this key. Of two copies of one the first disk's counts.
    fn stale(&self, number: u16, identity: Identity, generation: Generation) -> Verdict {
        let is_newer = |other: &OpenDisk<D, R>| {
            let there = other.store.find(identity).map(|found| found.generation());
            there.is_some_and(|there| (there, number) > (generation, other.number))
        };
        match self.open().filter(|other| other.number != number).any(is_newer) {
            true => Verdict::Stale,
            false => Verdict::Keep,
        }
    }

    /// Whether a key belongs to another disk that is here. To one that is away it can't go.
    fn stray(&self, number: u16, identity: Identity) -> Verdict {
        let home = self.home(identity);
        let found = || self.at(number).store.find(identity);
        let is_clean = || matches!(found(), Some(Found::Block { state: EntryState::Clean, .. }));
        let is_left_behind = || canary::is(Canary::MovedCopyKept) && is_clean();
        match home != usize::from(number) && self.places[home].disk.is_ok() && !is_left_behind() {
            true => Verdict::Stray,
            false => Verdict::Keep,
        }
    }

    fn ordered(
        &self,
        shard: u16,
        disk: &OpenDisk<D, R>,
        judged: Result<Sifted, StoreError>,
        lost: &mut Vec<(u16, String)>,
    ) -> Vec<Identity> {
        match judged {
            Ok(Sifted { moved, stale, strays }) => {
                let (number, kept) = (disk.number, strays.len());
                if moved + stale > 0 || kept > 0 {
                    tracing::info!(shard, disk = number, moved, stale, strays = kept, "the set of disks has changed");
                }
                strays
            }
            Err(error) => {
                lost.push((disk.number, chain(&error)));
                Vec::new()
            }
        }
    }

    /// Does without disks on which nothing could be put in order.
    async fn give_up(&mut self, lost: &mut Vec<(u16, String)>) {
        for (number, why) in lost.drain(..) {
            tracing::error!(disk = number, why, "a disk could not be put in order: the others serve");
            if let Ok(disk) = std::mem::replace(&mut self.places[usize::from(number)].disk, Err(why)) {
                disk.store.close().await;
            }
        }
    }
}

async fn open_seat<D: Disk, R: Runtime>(
    number: u16,
    seat: Seat<D>,
    runtime: &R,
    config: &ShardConfig,
    store_config: StoreConfig,
) -> (Place<D, R>, Result<Recovered, StoreError>) {
    let Seat { id, weight, disk, .. } = seat;
    let place = |disk| Place { id, weight, disk };
    let device = match disk {
        Ok(device) => device,
        Err(why) => {
            let error = StoreError::Foreign { what: why.clone() };
            return (place(Err(why)), Err(error));
        }
    };
    let health = Monitor::new(runtime.clone(), config.shard, number, config.health.clone());
    let watched = WatchedDisk::new(device.clone(), Rc::clone(&health));
    match Store::open(watched, runtime.clone(), store_config).await {
        Ok((store, recovered)) => {
            let disk =
                OpenDisk { number, device, store, health, coming_bytes: Rc::default(), is_tried: Cell::new(false) };
            (place(Ok(disk)), Ok(recovered))
        }
        Err(error) => {
            let why = chain(&error);
            tracing::error!(shard = config.shard, disk = number, why, "a disk can't be opened");
            (place(Err(why)), Err(error))
        }
    }
}

/// An error and what caused it, in one line.
fn chain(error: &StoreError) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        write!(line, ": {cause}").expect("a string takes everything");
        source = cause.source();
    }
    line
}
