//! A shard on the real ring, for measurements: scratch directory, executor, configuration, blocks, and an origin that is none.
//!
//! Used by `commit`, `restart` and `cost`. The executor runs with the proxy's figures (preempt timer, spin, ring depth)
//! and its remedy for trap 1 of ARCHITECTURE.md. Invariant: the scratch directory goes when its owner does, also by a
//! panic; only a kill leaves it, and its name says whose it was.

use std::future::{Future, pending, ready};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::checksum::Digest;
use forebay_io::ring::{ArenaConfig, RingDisk, RingRuntime};
use forebay_shard::config::{
    Access, DirtyFull, DiskLimits, Geometry, HealthLimits, ShardConfig, SyncMode, VolumeConfig, WriteMode,
};
use forebay_shard::key::{BlockKey, IdentityKey};
use forebay_shard::origin::{Fetched, Origin, OriginError, OriginMeta, Store, Stored};
use forebay_shard::outcome::{Condition, Durability, Put};
use forebay_shard::shard::{RecoveryReport, Shard};
use forebay_shard::store::NodeIdentity;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

pub type RingShard = Shard<RingDisk, StandIn, RingRuntime>;

pub const ARENA: ArenaConfig = ArenaConfig { bytes: 64 << 20 };
pub const MIB: u64 = 1 << 20;

/// A directory of its own, removed when dropped.
pub struct Scratch {
    pub path: PathBuf,
}

impl Scratch {
    pub fn new(under: &Path, name: &str) -> Scratch {
        let path = under.join(format!("engine-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the scratch directory can be made; --directory names another place");
        Scratch { path }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("left behind: {} ({error})", self.path.display());
        }
    }
}

/// Runs `body` on an executor of this thread, with the proxy's figures. What is still running when it ends is dropped.
pub fn run<T>(body: impl Future<Output = T>) -> T {
    let builder = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .io_memory(ARENA.io_memory_bytes())
        .ring_depth(1024)
        .preempt_timer(Duration::from_micros(500))
        .spin_before_park(Duration::from_micros(20));
    let executor = builder.make().expect("io_uring and locked memory are there");
    executor.run(async {
        // Trap 1: a parked executor wakes for its timers; several, because those of tasks left runnable are spent.
        for every_ms in [1, 3, 11, 47, 211] {
            glommio::spawn_local(wake_every(Duration::from_millis(every_ms))).detach();
        }
        body.await
    })
}

async fn wake_every(every: Duration) {
    loop {
        glommio::timer::Timer::new(every).await;
    }
}

/// An origin without a network: it confirms every store at once, or none ever. It has no blocks.
#[derive(Clone, Copy)]
pub enum StandIn {
    Confirms,
    Silent,
}

impl Origin for StandIn {
    fn fetch(&self, _key: &BlockKey) -> impl Future<Output = Result<Option<Fetched>, OriginError>> + 'static {
        ready(Ok(None))
    }

    fn store(&self, _key: &BlockKey, _store: Store) -> impl Future<Output = Result<Stored, OriginError>> + 'static {
        let origin = *self;
        async move {
            match origin {
                StandIn::Confirms => Ok(Stored::Done),
                StandIn::Silent => pending().await,
            }
        }
    }

    fn head(&self, _key: &BlockKey) -> impl Future<Output = Result<Option<OriginMeta>, OriginError>> + 'static {
        ready(Ok(None))
    }

    fn delete(&self, _key: &BlockKey) -> impl Future<Output = Result<(), OriginError>> + 'static {
        ready(Ok(()))
    }
}

pub fn identity() -> NodeIdentity {
    NodeIdentity { node: 7, shard: 0, shard_count: 1, identity_key: IdentityKey([9; 16]) }
}

/// One volume of each kind, `back` and `through`, and the proxy's defaults for what does not matter here.
pub fn config(memory_tier_bytes: u64, dirty_bytes_max: u64) -> ShardConfig {
    let volume = |name: &str, write_mode| VolumeConfig {
        name: name.into(),
        block_bytes_max: 4 << 20,
        write_mode,
        dirty_full: DirtyFull::Decline,
        access: Access::ReadWrite,
    };
    ShardConfig {
        shard: 0,
        volumes: vec![volume("back", WriteMode::Back), volume("through", WriteMode::Through)],
        memory_tier_bytes,
        fill_bytes_max: 64 * MIB,
        dirty_bytes_max,
        sync: SyncMode::Always,
        flush_parallelism: 1,
        commit_delay: Duration::ZERO,
        fills_max: 4096,
        health: HealthLimits::default(),
        disk_limits: DiskLimits::default(),
    }
}

/// A slab of about `bytes`, with the journal that the proxy would give it.
pub fn geometry(bytes: u64) -> Geometry {
    let journal_bytes = (bytes / 64).clamp(4 * MIB, 256 * MIB) / MIB * MIB;
    let region_count = u32::try_from((bytes / (64 * MIB)).max(8)).expect("a slab of the real disk");
    Geometry { region_bytes: 64 * MIB, region_count, journal_bytes }
}

/// The ring's disk at `path`; the first disk operation of an executor.
pub async fn disk(path: &Path) -> RingDisk {
    RingDisk::open(path, ARENA).await.expect("the directory allows direct I/O; --directory names another place")
}

/// A shard of an empty slab.
pub async fn format(disk: &RingDisk, geometry: Geometry, config: ShardConfig, origin: StandIn) -> RingShard {
    RingShard::format(disk, &RingRuntime::new(1), geometry, &identity()).await.expect("there is room for the slab");
    open(disk, config, origin).await.0
}

pub async fn open(disk: &RingDisk, config: ShardConfig, origin: StandIn) -> (RingShard, RecoveryReport) {
    let opened = RingShard::open(disk.clone(), origin, RingRuntime::new(2), identity(), config).await;
    opened.expect("what was written by this program opens")
}

/// Blocks of one size: block n has always the same bytes, and any two differ.
pub struct Blocks {
    random: Bytes,
    len: usize,
    volume: std::sync::Arc<str>,
}

impl Blocks {
    pub fn new(volume: &str, len: usize) -> Rc<Blocks> {
        let mut random = vec![0; len + (1 << 20)];
        SmallRng::seed_from_u64(3).fill_bytes(&mut random);
        Rc::new(Blocks { random: random.into(), len, volume: volume.into() })
    }

    pub fn key(&self, number: u64) -> BlockKey {
        BlockKey::new(std::sync::Arc::clone(&self.volume), format!("blocks/{number:012}"))
    }

    /// Its number, then bytes of a random pool from an offset of its own.
    pub fn content(&self, number: u64) -> Bytes {
        let at = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as usize;
        let mut content = Vec::with_capacity(self.len);
        content.extend_from_slice(&number.to_le_bytes());
        content.extend_from_slice(&self.random[at..at + self.len - 8]);
        content.into()
    }

    pub fn put(&self, number: u64, durability: Durability) -> Put {
        let content = self.content(number);
        Put {
            key: self.key(number),
            digest: Digest::of(&content),
            frames: vec![content],
            len_bytes: u32::try_from(self.len).expect("a block is small"),
            condition: Condition::Any,
            durability,
        }
    }
}

/// Waits until what is on its way to the disk leaves room for more: a shard with a full budget drops clean appends.
pub async fn until_room(shard: &RingShard) {
    while shard.stats().fill_bytes > 32 * MIB {
        glommio::timer::Timer::new(Duration::from_micros(200)).await;
    }
}

/// Waits until `count` blocks are in the index.
///
/// # Panics
/// If some were dropped on their way, or after a minute without any.
pub async fn until_appended(shard: &RingShard, count: u64) {
    let mut quiet = 0;
    while shard.stats().store.entries < count {
        let before = shard.stats().store.entries;
        glommio::timer::Timer::new(Duration::from_millis(10)).await;
        assert_eq!(shard.stats().counts.appends_failed, 0, "every block was appended");
        quiet = if shard.stats().store.entries > before { 0 } else { quiet + 1 };
        assert!(quiet < 6_000, "{before} of {count} blocks were appended, and no more");
    }
}
