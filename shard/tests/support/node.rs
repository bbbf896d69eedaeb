//! One simulated node for the tests of the verbs: a world, an origin, a shard on both, and a reader that does what the
//! proxy does with an answer (pieces from a handle of its own, rot reported, whole blocks offered back). Used by `model`,
//! `races` and `fills`. It asserts I8 on everything it reads.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::checksum::{Digest, Digester};
use forebay_io::sim::{SimDisk, SimRuntime, SimWorld};
use forebay_io::{Disk, OpenMode};
use forebay_shard::config::{
    Access, DirtyFull, DiskLimits, Geometry, HealthLimits, ShardConfig, SyncMode, VolumeConfig, WriteMode,
};
use forebay_shard::key::{BlockKey, IdentityKey};
use forebay_shard::origin::{Etag, OriginError};
use forebay_shard::outcome::{Condition, Durability, Got, Located, Put};
use forebay_shard::read::{BlockReader, ReadError};
use forebay_shard::shard::{RecoveryReport, Shard};
use forebay_shard::sim_origin::SimOrigin;
use forebay_shard::store::{NodeIdentity, slab_name};
use futures::StreamExt;

pub type SimShard = Shard<SimDisk, SimOrigin<SimRuntime>, SimRuntime>;

/// Blocks of the tests are at most this large: twice what a fill holds back.
pub const BLOCK_BYTES_MAX: u32 = 32 << 10;

/// A machine with one shard and an origin that outlives it.
pub struct Node {
    pub world: SimWorld,
    pub origin: SimOrigin<SimRuntime>,
    pub config: ShardConfig,
    pub shard: SimShard,
}

impl Node {
    /// A formatted and opened node.
    pub fn new(seed: u64) -> Node {
        Node::with_config(seed, config())
    }

    pub fn with_config(seed: u64, config: ShardConfig) -> Node {
        let world = SimWorld::new(seed);
        let origin = SimOrigin::new(seed, world.runtime());
        let disk = world.disk();
        world
            .block_on(async { SimShard::format(&disk, &world.runtime(), geometry(), &identity()).await })
            .expect("format");
        let (shard, _) = open(&world, &origin, &config);
        Node { world, origin, config, shard }
    }

    /// After a crash: new handles, recovered from disk.
    pub fn reopen(&mut self) -> RecoveryReport {
        self.origin = self.origin.reconnect(self.world.runtime());
        let (shard, report) = open(&self.world, &self.origin, &self.config);
        self.shard = shard;
        report
    }

    pub fn crash(&mut self) -> RecoveryReport {
        self.world.crash();
        self.reopen()
    }

    /// Runs `act` with the shard to its end.
    pub fn run<T>(&self, act: impl AsyncFnOnce(SimShard) -> T) -> T {
        self.world.block_on(act(self.shard.clone()))
    }

    pub fn put(&self, key: &BlockKey, body: &Bytes) -> forebay_shard::outcome::PutDone {
        self.run(async |shard| shard.put(put(key, body, Durability::Disk)).await)
    }

    pub fn read(&self, key: &BlockKey) -> Answer {
        let disk = self.world.disk();
        self.run(async |shard| read(&shard, &disk, key).await)
    }

    /// Lets tasks run for this long.
    pub fn pass(&self, duration: Duration) {
        self.world.run_for(duration).expect("no crash was ordered");
    }
}

fn open(world: &SimWorld, origin: &SimOrigin<SimRuntime>, config: &ShardConfig) -> (SimShard, RecoveryReport) {
    let (disk, runtime) = (world.disk(), world.runtime());
    let opened = world.block_on(async { Shard::open(disk, origin.clone(), runtime, identity(), config.clone()).await });
    let (shard, report) = opened.expect("the shard opens");
    shard.check();
    (shard, report)
}

pub fn identity() -> NodeIdentity {
    NodeIdentity { node: 7, shard: 0, shard_count: 1, identity_key: IdentityKey([9; 16]) }
}

pub fn geometry() -> Geometry {
    Geometry { region_bytes: 256 << 10, region_count: 24, journal_bytes: 256 << 10 }
}

/// Three volumes: `back` declines when its dirty budget is full, `spill` then writes through, `through` always does.
pub fn config() -> ShardConfig {
    let volume = |name: &str, write_mode, dirty_full| VolumeConfig {
        name: name.into(),
        block_bytes_max: BLOCK_BYTES_MAX,
        write_mode,
        dirty_full,
        access: Access::ReadWrite,
    };
    ShardConfig {
        shard: 0,
        volumes: vec![
            volume("back", WriteMode::Back, DirtyFull::Decline),
            volume("spill", WriteMode::Back, DirtyFull::WriteThrough),
            volume("through", WriteMode::Through, DirtyFull::Decline),
        ],
        memory_tier_bytes: 256 << 10,
        fill_bytes_max: 1 << 20,
        dirty_bytes_max: 1 << 20,
        sync: SyncMode::Always,
        flush_parallelism: 4,
        commit_delay: Duration::ZERO,
        fills_max: 64,
        health: HealthLimits::default(),
        disk_limits: DiskLimits::default(),
    }
}

/// The same without a memory tier: every hit is read from disk.
pub fn config_without_memory() -> ShardConfig {
    ShardConfig { memory_tier_bytes: 0, ..config() }
}

pub fn key(volume: &str, name: &str) -> BlockKey {
    BlockKey::new(volume.into(), name)
}

/// `len` bytes that follow from `seed`.
pub fn body(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect::<Vec<u8>>().into()
}

pub fn put(key: &BlockKey, body: &Bytes, durability: Durability) -> Put {
    let half = body.len() / 2;
    Put {
        key: key.clone(),
        frames: vec![body.slice(..half), body.slice(half..)],
        len_bytes: u32::try_from(body.len()).expect("test blocks are small"),
        digest: Digest::of(body),
        condition: Condition::Any,
        durability,
    }
}

/// What a client would get.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Body(Bytes),
    Absent,
    Lost,
    Declined,
    Failed,
}

/// Reads a key as the proxy does: pieces from a handle of its own, rot repaired within the request, whole blocks
/// offered to the memory tier.
pub async fn read(shard: &SimShard, disk: &SimDisk, key: &BlockKey) -> Answer {
    for _ in 0..4 {
        match shard.get(key).await {
            Got::Memory(hit) => {
                assert_etag(&hit.etag, &hit.body);
                return Answer::Body(hit.body);
            }
            Got::Disk(located) => {
                let (generation, pin) = (located.generation, located.pin);
                let read = read_located(disk, located).await;
                shard.unpin(pin);
                match read {
                    Ok((body, etag)) => {
                        shard.offer_memory(key, generation, body.clone(), etag);
                        return Answer::Body(body);
                    }
                    Err(ReadError::Rot { .. }) => shard.report_rot(key, generation).await,
                    Err(ReadError::Disk(_)) => return Answer::Failed,
                }
            }
            Got::Fill(stream) => {
                let etag = stream.etag.clone();
                return match collect(stream.frames).await {
                    Ok(body) => {
                        assert_eq!(body.len() as u64, stream.len_bytes, "a stream that ends well is whole");
                        assert_etag(&etag, &body);
                        Answer::Body(body)
                    }
                    Err(_) => Answer::Failed,
                };
            }
            Got::Absent => return Answer::Absent,
            Got::Lost => return Answer::Lost,
            Got::Declined(_) => return Answer::Declined,
            Got::Failed(_) => return Answer::Failed,
        }
    }
    Answer::Failed
}

async fn read_located(disk: &SimDisk, located: Located) -> Result<(Bytes, Etag), ReadError> {
    let file = disk.open(&slab_name(located.shard), OpenMode::Read).await.map_err(ReadError::Disk)?;
    let known = located.etag.clone();
    let reader = BlockReader::new(file, located);
    let (mut body, mut digester) = (Vec::new(), Digester::default());
    for index in 0..reader.piece_count() {
        let piece = reader.piece(index).await?;
        digester.update(&piece);
        body.extend_from_slice(&piece);
    }
    let etag = Etag::Digest(digester.finish());
    let etag = match known {
        Some(known) => {
            assert_etag(&known, &body);
            known
        }
        None => etag,
    };
    Ok((Bytes::from(body), etag))
}

pub async fn collect(
    mut frames: futures::channel::mpsc::UnboundedReceiver<Result<Bytes, OriginError>>,
) -> Result<Bytes, OriginError> {
    let mut body = Vec::new();
    while let Some(frame) = frames.next().await {
        body.extend_from_slice(&frame?);
    }
    Ok(body.into())
}

fn assert_etag(etag: &Etag, body: &[u8]) {
    if let Etag::Digest(digest) = etag {
        assert_eq!(*digest, Digest::of(body), "I8: an ETag is the digest of the bytes it stands for");
    }
}

/// A task's result, to be looked at after the world has run.
pub type Slot<T> = Rc<std::cell::RefCell<Option<T>>>;

/// Runs `work` as a task of the world.
pub fn begin<T: 'static>(world: &SimWorld, work: impl Future<Output = T> + 'static) -> Slot<T> {
    use forebay_io::Runtime;
    let slot: Slot<T> = Rc::default();
    let filled = Rc::clone(&slot);
    world.runtime().spawn(async move {
        let value = work.await;
        filled.borrow_mut().replace(value);
    });
    slot
}
