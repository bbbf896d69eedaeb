//! A whole node on a trace: memory tier and disk through the real shard, beside per-object S3-FIFO of as many bytes.
//!
//! Run by `forebay-bench replay --node`. The shard is the product's, without a socket: it runs on the simulated disk and clock
//! of `forebay-io`, against an origin that has every block. One request after the other; what a hit reads from disk is verified
//! and offered to the memory tier as the proxy does. The node's bytes are those of its regions, footers and free regions
//! included, and of its memory tier; journal and checkpoints are no place for blocks and count as written only.

use std::future::{Future, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use forebay_io::checksum::Digest;
use forebay_io::sim::{SimDisk, SimFile, SimRuntime, SimWorld};
use forebay_io::{Disk, OpenMode, Runtime};
use forebay_shard::config::{
    Access, DirtyFull, DiskLimits, Geometry, HealthLimits, ShardConfig, SyncMode, VolumeConfig, WriteMode,
};
use forebay_shard::key::{BlockKey, IdentityKey};
use forebay_shard::origin::{Etag, Fetched, Origin, OriginError, OriginErrorKind, OriginMeta, Store, Stored};
use forebay_shard::outcome::{Got, Located};
use forebay_shard::read::BlockReader;
use forebay_shard::shard::Shard;
use forebay_shard::stats::ShardStats;
use forebay_shard::store::{NodeIdentity, slab_name};
use futures::StreamExt;
use futures::channel::mpsc;

use super::policies::{Name, Tally};
use super::trace::{Request, Source};

/// The memory tier's part of the node's bytes: one in so many, as with 16 GiB of it before 1 TiB of disk.
const MEMORY_DIVISOR: u64 = 64;
/// Regions are as large as leaves about this many of them: a real disk has thousands, and a few dozen make steps of everything.
const REGIONS: u64 = 1024;
/// A region holds at least this many of the largest blocks, so that footers are a small part of it.
const BLOCKS_PER_REGION: u64 = 64;
/// And at most so many, as by default (64 MiB regions, a mean block of 64 KiB): free regions and those being filled are then a
/// small part of a disk.
const BLOCKS_PER_REGION_MAX: u64 = 1024;
/// The fewest regions that the policy has room in.
const REGIONS_MIN: u64 = 16;
/// Fills that may be on their way to the disk when the next request comes.
const FILLS_MAX: usize = 8;
const JOURNAL_BYTES: u64 = 64 << 20;
const VOLUME: &str = "trace";

type NodeShard = Shard<SimDisk, HasAll, SimRuntime>;

/// What a node and S3-FIFO of as many bytes came to.
pub struct Compared {
    /// The node.
    pub node: Tally,
    /// S3-FIFO.
    pub paper: Tally,
    /// The node's shape.
    pub shape: Shape,
    /// All that was written to the disk, journal and checkpoints included.
    pub written_bytes: u64,
}

/// How a node's bytes are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub memory_bytes: u64,
    pub region_bytes: u64,
    pub region_count: u32,
}

impl Shape {
    /// For `capacity_bytes` and blocks of at most `block_bytes_max`.
    ///
    /// # Errors
    /// They are too few for regions of such blocks.
    pub fn of(capacity_bytes: u64, block_bytes_max: u64) -> Result<Shape> {
        let disk_bytes = capacity_bytes - capacity_bytes / MEMORY_DIVISOR;
        let least = (BLOCKS_PER_REGION * block_bytes_max).next_power_of_two();
        let most = (BLOCKS_PER_REGION_MAX * block_bytes_max).next_power_of_two();
        let region_bytes = (disk_bytes / REGIONS).max(1).next_power_of_two().clamp(least, most);
        let region_count = disk_bytes / region_bytes;
        ensure!(
            region_count >= REGIONS_MIN,
            "a node of {capacity_bytes} bytes has no room for {REGIONS_MIN} regions of {region_bytes}: take more keys"
        );
        let region_count = u32::try_from(region_count).context("too many regions")?;
        Ok(Shape { memory_bytes: capacity_bytes - region_bytes * u64::from(region_count), region_bytes, region_count })
    }
}

/// Runs a trace through a node of `capacity_bytes` and through S3-FIFO.
///
/// # Errors
/// The trace can't be read, or the node is too small for its blocks.
pub fn compare(source: &mut Box<dyn Source>, capacity_bytes: u64, block_bytes_max: u32) -> Result<Compared> {
    let shape = Shape::of(capacity_bytes, u64::from(block_bytes_max))?;
    let node = Node::new(shape, block_bytes_max);
    let mut paper = Name::S3Fifo.start(capacity_bytes);
    let (mut batch, mut tally) = (Vec::new(), Tally::default());
    loop {
        source.read(&mut batch)?;
        if batch.is_empty() {
            break;
        }
        paper.replay(&batch);
        node.replay(&batch, &mut tally)?;
    }
    let ShardStats { written_bytes, store, .. } = node.shard.stats();
    node.shard.check();
    tally.admitted_bytes = store.appended_bytes - store.reinserted_bytes;
    tally.moved_bytes = store.reinserted_bytes;
    Ok(Compared { node: tally, paper: paper.tally(), shape, written_bytes })
}

struct Node {
    world: SimWorld,
    shard: NodeShard,
    slab: SimFile,
    volume: Arc<str>,
    origin: HasAll,
}

impl Node {
    fn new(shape: Shape, block_bytes_max: u32) -> Node {
        let world = SimWorld::new(1);
        let (disk, runtime) = (world.disk(), world.runtime());
        let identity =
            NodeIdentity { node: 1, shard: 0, shard_count: 1, identity_key: IdentityKey(*b"a trace's secret") };
        let Shape { region_bytes, region_count, .. } = shape;
        let geometry = Geometry { region_bytes, region_count, journal_bytes: JOURNAL_BYTES };
        let origin = HasAll { body: Bytes::from(vec![7; block_bytes_max as usize]) };
        let config = config(shape, block_bytes_max);
        let (shard, slab) = world.block_on(async {
            NodeShard::format(&disk, &runtime, geometry, &identity).await.expect("an empty disk has no faults");
            let opened = Shard::open(disk.clone(), origin.clone(), runtime, identity, config).await;
            let (shard, _) = opened.expect("what was formatted opens");
            let slab = disk.open(&slab_name(0), OpenMode::Read).await.expect("it was formatted");
            (shard, slab)
        });
        Node { world, shard, slab, volume: VOLUME.into(), origin }
    }

    fn replay(&self, batch: &[Request], tally: &mut Tally) -> Result<()> {
        self.world.block_on(async {
            for Request { id, bytes } in batch {
                let key = BlockKey::new(Arc::clone(&self.volume), format!("{bytes}/{id:x}"));
                tally.requests += 1;
                tally.served_bytes += u64::from(*bytes);
                if !self.ask(&key).await? {
                    tally.misses += 1;
                    tally.missed_bytes += u64::from(*bytes);
                }
            }
            Ok(())
        })
    }

    /// Whether the node had the block.
    async fn ask(&self, key: &BlockKey) -> Result<bool> {
        match self.shard.get(key).await {
            Got::Memory(_) => Ok(true),
            Got::Disk(located) => {
                self.read(key, located).await?;
                Ok(true)
            }
            Got::Fill(mut stream) => {
                while let Some(frame) = stream.frames.next().await {
                    frame.context("a fill failed")?;
                }
                self.let_disk_follow().await;
                Ok(false)
            }
            Got::Declined(declined) => bail!("{}: declined: {:?}", key.key, declined.reason),
            Got::Failed(error) => bail!("{}: {error}", key.key),
            Got::Absent | Got::Lost => bail!("{}: the node takes it for absent", key.key),
        }
    }

    /// An origin without a network is faster than any disk: the next request waits until few fills are on their way there.
    async fn let_disk_follow(&self) {
        while self.shard.fills_running() > FILLS_MAX {
            self.world.runtime().sleep(Duration::from_micros(50)).await;
        }
    }

    async fn read(&self, key: &BlockKey, located: Located) -> Result<()> {
        let (pin, generation, len_bytes) = (located.pin, located.generation, located.len_bytes as usize);
        let reader = BlockReader::new(self.slab.clone(), located);
        for index in 0..reader.piece_count() {
            reader.piece(index).await.with_context(|| format!("{}: a piece can't be read", key.key))?;
        }
        self.shard.unpin(pin);
        // The pieces were verified to be these bytes.
        let body = self.origin.body.slice(..len_bytes);
        let etag = Etag::Digest(Digest::of(&body));
        self.shard.offer_memory(key, generation, body, etag);
        Ok(())
    }
}

/// An origin that has every key of the form `length/name`.
#[derive(Clone)]
struct HasAll {
    body: Bytes,
}

impl Origin for HasAll {
    fn fetch(&self, key: &BlockKey) -> impl Future<Output = Result<Option<Fetched>, OriginError>> + 'static {
        let len_bytes = key.key.split_once('/').and_then(|(len_bytes, _)| len_bytes.parse().ok());
        let body = self.body.slice(..len_bytes.unwrap_or(0));
        let (mut sender, receiver) = mpsc::channel(1);
        let fetched = Fetched { len_bytes: body.len() as u64, etag: Etag::Digest(Digest::of(&body)), body: receiver };
        let sent = sender.try_send(Ok(body));
        ready(match sent {
            Ok(()) => Ok(Some(fetched)),
            Err(_) => Err(OriginError::new(OriginErrorKind::Protocol, "an empty channel takes one frame")),
        })
    }

    fn store(&self, _key: &BlockKey, _store: Store) -> impl Future<Output = Result<Stored, OriginError>> + 'static {
        ready(Ok(Stored::Done))
    }

    fn head(&self, _key: &BlockKey) -> impl Future<Output = Result<Option<OriginMeta>, OriginError>> + 'static {
        ready(Ok(None))
    }

    fn delete(&self, _key: &BlockKey) -> impl Future<Output = Result<(), OriginError>> + 'static {
        ready(Ok(()))
    }
}

fn config(shape: Shape, block_bytes_max: u32) -> ShardConfig {
    let slab_bytes = shape.region_bytes * u64::from(shape.region_count);
    let volume = VolumeConfig {
        name: VOLUME.into(),
        block_bytes_max,
        write_mode: WriteMode::Through,
        dirty_full: DirtyFull::Decline,
        access: Access::ReadWrite,
    };
    ShardConfig {
        shard: 0,
        volumes: vec![volume],
        memory_tier_bytes: shape.memory_bytes,
        fill_bytes_max: 1 << 30,
        dirty_bytes_max: slab_bytes / 4,
        sync: SyncMode::Always,
        flush_parallelism: 1,
        commit_delay: Duration::ZERO,
        fills_max: 4096,
        health: HealthLimits::default(),
        disk_limits: DiskLimits {
            ghosts_max: usize::try_from(slab_bytes / u64::from(block_bytes_max)).unwrap_or(usize::MAX),
            write_bytes_per_day: None,
        },
    }
}

/// How long something took, for `--timings`.
pub fn rate(requests: u64, begun: Instant) -> String {
    format!("{requests} requests through a node, {:.0} a second", requests as f64 / begun.elapsed().as_secs_f64())
}
