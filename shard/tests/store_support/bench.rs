//! A store on a simulated machine with tiny constants, and the verbs as the tests speak them.
//! Included by the `store_*` tests; keeps no state between them. Every life ends with a power cut, unless a test closes
//! the store itself.
#![allow(dead_code, clippy::unwrap_used)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::Runtime;
use forebay_io::checksum::Digest;
use forebay_io::sim::{SimDisk, SimRuntime, SimWorld};
use forebay_shard::config::{DiskLimits, Geometry, SyncMode};
use forebay_shard::error::StoreError;
use forebay_shard::key::{BlockKey, Generation, Identity, IdentityKey};
use forebay_shard::origin::Etag;
use forebay_shard::store::{
    Appended, BeforeStore, Certainty, Commit, DirtyKind, DirtyRecord, EntryState, Found, NewBlock, NewKind,
    NodeIdentity, Recovered, Store, StoreConfig, Validity,
};

/// The real store on the simulated machine.
pub type SimStore = Store<SimDisk, SimRuntime>;

/// 8 regions of 256 KiB and the smallest journal.
pub fn geometry() -> Geometry {
    Geometry { region_bytes: 256 << 10, region_count: 8, journal_bytes: 64 << 10 }
}

/// Regions for blocks of several pieces.
pub fn large_geometry() -> Geometry {
    Geometry { region_bytes: 16 << 20, region_count: 6, journal_bytes: 1 << 20 }
}

/// The owner.
pub fn node() -> NodeIdentity {
    NodeIdentity { node: 0xF0EB, shard: 0, shard_count: 1, identity_key: IdentityKey([9; 16]) }
}

/// Reproducible bytes that differ by seed.
pub fn content(seed: u64, size: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let bytes = (0..size.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    bytes.take(size).collect::<Vec<u8>>().into()
}

/// A formatted disk in a simulated world.
pub struct Bench {
    /// The world.
    pub world: SimWorld,
    geometry: Geometry,
    /// Whether commits sync.
    pub sync: SyncMode,
    /// How long they gather.
    pub commit_delay: Duration,
}

impl Bench {
    /// A world of this seed with a formatted disk.
    pub fn new(seed: u64, geometry: Geometry) -> Bench {
        let bench =
            Bench { world: SimWorld::new(seed), geometry, sync: SyncMode::Always, commit_delay: Duration::ZERO };
        bench.format().unwrap();
        bench
    }

    /// Formats the disk.
    pub fn format(&self) -> Result<(), StoreError> {
        let (disk, runtime) = (self.world.disk(), self.world.runtime());
        self.world.block_on(SimStore::format(&disk, &runtime, self.geometry, &node()))
    }

    /// Opens and closes as somebody else.
    pub fn open_as(&self, node: NodeIdentity) -> Result<(), StoreError> {
        let config =
            StoreConfig { node, sync: self.sync, commit_delay: Duration::ZERO, disk_limits: DiskLimits::default() };
        let (disk, runtime) = (self.world.disk(), self.world.runtime());
        self.world.block_on(async { SimStore::open(disk, runtime, config).await.map(|_| ()) })
    }

    /// Opens the store.
    pub async fn open(&self) -> Result<Opened, StoreError> {
        let (sync, commit_delay, disk_limits) = (self.sync, self.commit_delay, DiskLimits::default());
        let config = StoreConfig { node: node(), sync, commit_delay, disk_limits };
        let runtime = self.world.runtime();
        let (store, recovered) = SimStore::open(self.world.disk(), runtime.clone(), config).await?;
        Ok(Opened { store, recovered: Rc::new(recovered), runtime, peeked: Rc::default() })
    }

    /// Opens the store and runs `test` on it; the machine then loses its power without a close.
    pub fn run<T>(&self, test: impl AsyncFnOnce(&Opened) -> T) -> T {
        let result = self.world.block_on(async {
            let opened = self.open().await.unwrap();
            let result = test(&opened).await;
            opened.store.check();
            result
        });
        self.world.crash();
        result
    }
}

/// An open store and what its recovery found.
#[derive(Clone)]
pub struct Opened {
    /// The store.
    pub store: SimStore,
    /// What recovery found.
    pub recovered: Rc<Recovered>,
    /// Time and tasks of the present life.
    pub runtime: SimRuntime,
    peeked: Rc<Cell<Option<Generation>>>,
}

impl Opened {
    /// The generation that the next put, fill or delete here will have.
    pub fn peek_generation(&self) -> u64 {
        let generation = self.store.next_generation();
        assert!(self.peeked.replace(Some(generation)).is_none(), "a peek is followed by its verb");
        generation.0
    }

    fn draw(&self) -> Generation {
        self.peeked.take().unwrap_or_else(|| self.store.next_generation())
    }

    /// The key's full name.
    pub fn key(&self, name: &str) -> BlockKey {
        BlockKey::new("demo-back".into(), name)
    }

    /// The key's identity.
    pub fn identity(&self, name: &str) -> Identity {
        self.store.identity(&self.key(name))
    }

    /// What the index knows.
    pub fn find(&self, name: &str) -> Option<Found> {
        self.store.find(self.identity(name))
    }

    /// Its generation.
    pub fn generation(&self, name: &str) -> Option<Generation> {
        self.find(name).map(|found| match found {
            Found::Block { generation, .. } | Found::Tombstone { generation } => generation,
        })
    }

    /// Clean or dirty.
    pub fn state(&self, name: &str) -> Option<EntryState> {
        match self.find(name)? {
            Found::Block { state, .. } => Some(state),
            Found::Tombstone { .. } => None,
        }
    }

    /// A write-back put.
    pub async fn put(&self, name: &str, content: Bytes) -> Result<Appended, StoreError> {
        self.put_after(name, content, BeforeStore::Nothing).await
    }

    /// A write-back put with what its flush does first.
    pub async fn put_after(&self, name: &str, content: Bytes, before: BeforeStore) -> Result<Appended, StoreError> {
        let (key, identity, generation) = (self.key(name), self.identity(name), self.draw());
        let (len_bytes, digest) = (content.len() as u32, Digest::of(&content));
        let kind = DirtyKind::Block { len_bytes, digest, before };
        let since_unix_ms = self.runtime.unix_ms();
        let certainty = Certainty::Sure;
        let record = Rc::new(DirtyRecord { key: key.clone(), identity, generation, kind, since_unix_ms, certainty });
        let frames = frames(&content);
        let (etag, kind) = (Etag::Digest(digest), NewKind::Dirty(record));
        self.store.append(NewBlock { key, identity, generation, frames, len_bytes, etag, kind }).await
    }

    /// A fill, or with `Commit::Durable` a put that the origin confirmed. The generation is drawn at the call.
    pub fn fill(
        &self,
        name: &str,
        content: Bytes,
        validity: Validity,
        commit: Commit,
    ) -> impl Future<Output = Result<Appended, StoreError>> + 'static {
        let (key, identity, generation) = (self.key(name), self.identity(name), self.draw());
        let etag = if content.len().is_multiple_of(2) {
            Etag::Digest(Digest::of(&content))
        } else {
            Etag::Origin("not-ours".into())
        };
        let len_bytes = content.len() as u32;
        let kind = NewKind::Clean { validity, commit };
        let block = NewBlock { key, identity, generation, frames: frames(&content), len_bytes, etag, kind };
        let store = self.store.clone();
        async move { store.append(block).await }
    }

    /// A write-back delete.
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let (key, identity, generation) = (self.key(name), self.identity(name), self.draw());
        let since_unix_ms = self.runtime.unix_ms();
        let (kind, certainty) = (DirtyKind::Tombstone, Certainty::Sure);
        self.store.tombstone(Rc::new(DirtyRecord { key, identity, generation, kind, since_unix_ms, certainty })).await
    }

    /// The verified content; `None` if there is no block or it does not verify.
    pub async fn read(&self, name: &str) -> Option<Bytes> {
        let located = self.store.locate(self.identity(name))?;
        let content = self.store.read(&located).await;
        self.store.unpin(located.pin);
        content.ok()
    }
}

fn frames(content: &Bytes) -> Vec<Bytes> {
    (0..content.len()).step_by(16 << 10).map(|at| content.slice(at..content.len().min(at + (16 << 10)))).collect()
}
