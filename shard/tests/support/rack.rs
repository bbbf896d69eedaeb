//! A simulated machine whose shard has several disks, each called by one letter: they can be away, lost, renamed, and the set
//! can change between two lives.
//!
//! Used by `disks` and `disk_lives`. Blocks are numbered and their bytes follow from the number, so that nothing is kept to
//! compare with. Opening is always a new life: the power is cut first, and `Shard::check` runs after.

use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::sim::{SimDisk, SimRuntime, SimWorld};
use forebay_io::{Disk, OpenMode};
use forebay_shard::config::{ShardConfig, SyncMode};
use forebay_shard::disks::{Seat, Seats, Strays};
use forebay_shard::error::StoreError;
use forebay_shard::health::HealthState;
use forebay_shard::key::BlockKey;
use forebay_shard::outcome::{DeclinedReason, Durability, Got, PutDone, Removed};
use forebay_shard::read::BlockReader;
use forebay_shard::shard::Shard;
use forebay_shard::sim_origin::{Link, SimOrigin};
use forebay_shard::store::slab_name;

use super::node::{SimShard, body, collect, config_without_memory, geometry, identity, key, put};

/// A machine whose shard may have several disks, each called by one letter.
pub struct Rack {
    pub world: SimWorld,
    pub origin: SimOrigin<SimRuntime>,
    config: ShardConfig,
    /// The disks of the present life, in order.
    disks: Vec<SimDisk>,
    shard: Option<SimShard>,
}

impl Rack {
    /// With these disks formatted, not opened. The origin can't be reached.
    pub fn new(names: &[&str]) -> Rack {
        let world = SimWorld::new(7);
        let origin = SimOrigin::new(7, world.runtime());
        origin.set_link(Link::Down);
        let rack = Rack { world, origin, config: config_without_memory(), disks: Vec::new(), shard: None };
        names.iter().for_each(|name| rack.format(name));
        rack
    }

    pub fn format(&self, name: &str) {
        let (disk, runtime) = (self.world.disk_named(name), self.world.runtime());
        self.world.block_on(async { SimShard::format(&disk, &runtime, geometry(), &identity()).await }).unwrap();
    }

    /// Opens the shard on these disks, in a new life of the machine. `!` before a name: it is away.
    pub fn open(&mut self, names: &[&str], strays: Strays) {
        self.try_open(names, strays).unwrap();
    }

    pub fn try_open(&mut self, names: &[&str], strays: Strays) -> Result<(), StoreError> {
        self.shard = None;
        self.world.crash();
        let runtime = self.world.runtime();
        self.origin = self.origin.reconnect(runtime.clone());
        self.disks = names.iter().map(|name| self.world.disk_named(name.trim_start_matches('!'))).collect();
        let seat = |(name, disk): (&&str, &SimDisk)| Seat {
            id: u128::from(name.trim_start_matches('!').as_bytes()[0]),
            weight: NonZeroU32::new(24).unwrap(),
            sync: SyncMode::Always,
            write_bytes_per_day: None,
            disk: if name.starts_with('!') { Err("not mounted".to_owned()) } else { Ok(disk.clone()) },
        };
        let disks = names.iter().zip(&self.disks).map(seat).collect();
        let seats = Seats { disks, strays, written_back: Vec::new() };
        let (origin, config) = (self.origin.clone(), self.config.clone());
        let opened = self.world.block_on(async { Shard::open_on(seats, origin, runtime, identity(), config).await });
        let (shard, _) = opened?;
        shard.check();
        self.shard = Some(shard);
        Ok(())
    }

    pub fn shard(&self) -> &SimShard {
        self.shard.as_ref().expect("it was opened")
    }

    pub fn put(&self, key: &BlockKey, body: &Bytes) -> PutDone {
        let shard = self.shard().clone();
        self.world.block_on(async { shard.put(put(key, body, Durability::Disk)).await })
    }

    pub fn put_all(&self, numbers: std::ops::Range<u64>) {
        for n in numbers {
            let done = self.put(&numbered(n), &content(n));
            assert!(matches!(done, PutDone::Created(Durability::Disk)), "{n}: {done:?}");
        }
    }

    pub fn delete(&self, key: &BlockKey) -> Removed {
        let shard = self.shard().clone();
        self.world.block_on(async { shard.delete(key).await })
    }

    pub fn get(&self, key: &BlockKey) -> Answer {
        let shard = self.shard().clone();
        self.world.block_on(async {
            match shard.get(key).await {
                Got::Disk(located) => {
                    let (pin, number) = (located.pin, located.pin.disk);
                    let file = self.disks[usize::from(number)].open(&slab_name(0), OpenMode::Read).await.unwrap();
                    let read = BlockReader::new(file, located).piece(0).await;
                    shard.unpin(pin);
                    read.map_or(Answer::Unread, |piece| Answer::Body(Bytes::copy_from_slice(&piece), number))
                }
                Got::Memory(hit) => Answer::Filled(hit.body),
                Got::Fill(stream) => collect(stream.frames).await.map_or(Answer::Failed, Answer::Filled),
                Got::Absent => Answer::Absent,
                Got::Declined(declined) => Answer::Declined(declined.reason),
                Got::Lost => Answer::Lost,
                Got::Failed(_) => Answer::Failed,
            }
        })
    }

    /// The disk that each of the numbered keys is on; panics if one is not there as it was put.
    pub fn places(&self, numbers: std::ops::Range<u64>) -> Vec<u16> {
        let place = |n| match self.get(&numbered(n)) {
            Answer::Body(bytes, number) if bytes == content(n) => number,
            other => panic!("{n}: {other:?}"),
        };
        numbers.map(place).collect()
    }

    pub fn flush(&self) {
        self.origin.set_link(Link::Up);
        let shard = self.shard().clone();
        let report = self.world.block_on(async { shard.flush_all(Duration::from_secs(600)).await });
        assert_eq!((report.remaining, report.conflicts, report.lost), (0, 0, 0));
    }

    pub fn pass(&self, duration: Duration) {
        self.world.run_for(duration).unwrap();
        self.shard().check();
    }

    pub fn states(&self) -> Vec<HealthState> {
        self.shard().stats().disks.iter().map(|disk| disk.health.state).collect()
    }
}

#[derive(Debug, PartialEq)]
pub enum Answer {
    /// From this disk.
    Body(Bytes, u16),
    /// From the origin or from memory.
    Filled(Bytes),
    Absent,
    Declined(DeclinedReason),
    Lost,
    Unread,
    Failed,
}

impl Answer {
    /// Without the bytes.
    pub fn word(&self) -> &'static str {
        match self {
            Answer::Body(..) => "a block from disk",
            Answer::Filled(_) => "a block from the origin",
            Answer::Absent => "absent",
            Answer::Declined(_) => "declined",
            Answer::Lost => "lost",
            Answer::Unread => "unreadable",
            Answer::Failed => "failed",
        }
    }
}

pub fn numbered(n: u64) -> BlockKey {
    key("back", &format!("k{n}"))
}

pub fn content(n: u64) -> Bytes {
    body(n + 1, 3_000)
}

pub fn count(places: &[u16], disk: u16) -> usize {
    places.iter().filter(|place| **place == disk).count()
}
