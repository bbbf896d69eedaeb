//! What the tests of the origin pool stand on: a pool before a real S3 server or before a raw socket.
//!
//! Answers are awaited on threads that know no tokio, as a shard's core would, and every wait is bounded.
//! Servers use free ports and folders of their own, and go with their rig.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::dev::s3_server::{AccessEntry, S3Server};
use forebay::origin::{CredentialSource, Keys, OriginHandle, OriginPool, RetrySettings, StoreSettings, VolumeSettings};
use forebay_io::checksum::Digest;
use forebay_shard::key::BlockKey;
use forebay_shard::origin::{Etag, Fetched, Origin, OriginError, Store};
use futures::StreamExt;
use tempfile::TempDir;

pub const ACCESS_KEY: &str = "AKTEST";
pub const SECRET_KEY: &str = "a secret / with + signs";
pub const BUCKET: &str = "blocks";
pub const BLOCK_BYTES_MAX: u32 = 8 << 20;

/// A pool in front of a real S3 server: ours, or the one that `ci/seaweedfs` names in the environment.
pub struct Rig {
    pub handle: OriginHandle,
    /// Ours, with its log.
    pub server: Option<S3Server>,
    /// What volume `v` puts before its keys.
    pub prefix: String,
    _pool: OriginPool,
    _root: TempDir,
}

/// Whether the tests run against a server that is not ours: it may differ as `ci/s3-differences.md` says.
pub fn external() -> bool {
    std::env::var_os("FOREBAY_S3_ENDPOINT").is_some()
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(|_| {})
    }

    /// A rig whose store settings `change` has touched.
    pub fn with(change: impl FnOnce(&mut StoreSettings)) -> Rig {
        let root = tempfile::tempdir().unwrap();
        let (server, endpoint) = match std::env::var("FOREBAY_S3_ENDPOINT") {
            Ok(endpoint) => (None, endpoint),
            Err(_) => {
                let addr = "127.0.0.1:0".parse().unwrap();
                let server = S3Server::start(root.path(), addr, ACCESS_KEY, SECRET_KEY, BUCKET).unwrap();
                let endpoint = server.endpoint();
                (Some(server), endpoint)
            }
        };
        // A shared bucket: each rig keeps to itself.
        let prefix =
            if server.is_some() { "p/".to_owned() } else { format!("{}/", root.path().file_name().unwrap().display()) };
        let mut settings = settings(&endpoint);
        if server.is_none() {
            settings.bucket = std::env::var("FOREBAY_S3_BUCKET").unwrap();
            settings.credentials = CredentialSource::Environment;
            // Racing creates wait in turn there.
            (settings.read_timeout, settings.deadline) = (Duration::from_secs(25), Duration::from_secs(50));
        }
        change(&mut settings);
        let pool = pool_below(settings, &prefix);
        Rig { handle: pool.handle(), server, prefix, _pool: pool, _root: root }
    }

    /// The logged requests about the object `prefix + name`, if the server is ours.
    pub fn requests(&self, method: &str, name: &str) -> Option<Vec<AccessEntry>> {
        let entries = self.server.as_ref()?.access_log().entries();
        let name = format!("{}{name}", self.prefix);
        Some(entries.into_iter().filter(|entry| entry.method == method && entry.key == name).collect())
    }
}

/// Settings with short deadlines.
pub fn settings(endpoint: &str) -> StoreSettings {
    let keys = Keys { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), session_token: None };
    StoreSettings {
        connect_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_secs(5),
        deadline: Duration::from_secs(20),
        retry: RetrySettings { pause_base: Duration::from_millis(5), ..RetrySettings::default() },
        ..StoreSettings::new("s", endpoint, "us-east-1", BUCKET, CredentialSource::Keys(keys))
    }
}

/// A pool of two threads with the volume `v` below `p/`.
pub fn pool(settings: StoreSettings) -> OriginPool {
    pool_below(settings, "p/")
}

fn pool_below(settings: StoreSettings, prefix: &str) -> OriginPool {
    let volume = VolumeSettings {
        name: "v".into(),
        store: settings.name.clone(),
        prefix: prefix.into(),
        block_bytes_max: BLOCK_BYTES_MAX,
    };
    OriginPool::start(vec![settings], &[volume], 2).unwrap()
}

pub fn key(key: &str) -> BlockKey {
    BlockKey::new("v".into(), key)
}

/// Content that is the same for the same length.
pub fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 31 % 251) as u8).collect()
}

/// A store of `content` in frames of 100,000 bytes.
pub fn store_of(content: &[u8]) -> Store {
    Store {
        frames: content.chunks(100_000).map(Bytes::copy_from_slice).collect(),
        len_bytes: content.len() as u64,
        digest: Digest::of(content),
    }
}

/// Waits for `future` on this thread, which is no tokio thread: as a shard would. Bounded, lest a bug hang the suite.
pub fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(futures::executor::block_on(future)));
    receiver.recv_timeout(Duration::from_secs(60)).expect("an answer within a minute")
}

/// Fetches and reads to the end.
pub fn fetch(handle: &OriginHandle, name: &str) -> Result<Option<(Etag, Vec<u8>)>, OriginError> {
    let handle = handle.clone();
    let key = key(name);
    // The future itself need not be Send: it is made and polled on the waiting thread.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        sender.send(futures::executor::block_on(async { read(handle.fetch(&key).await?).await }))
    });
    receiver.recv_timeout(Duration::from_secs(60)).expect("an answer within a minute")
}

/// Reads a fetch to its end; checks the announced length.
pub async fn read(fetched: Option<Fetched>) -> Result<Option<(Etag, Vec<u8>)>, OriginError> {
    let Some(mut fetched) = fetched else { return Ok(None) };
    let mut content = Vec::new();
    while let Some(bytes) = fetched.body.next().await {
        content.extend_from_slice(&bytes?);
    }
    assert_eq!(content.len() as u64, fetched.len_bytes, "a good end after another length");
    Ok(Some((fetched.etag, content)))
}

/// Polls until `condition` holds; fails after ten seconds.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
