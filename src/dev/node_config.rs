//! Writes each proxy's `forebay.toml`: what a person would write, and nothing that is the default.
//!
//! Called by `dev.rs` before the proxies start. A test reads every file back through `config`, so the two can't drift.
//! The file holds the keys of the built-in S3 server, so it is its owner's alone.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ca::TLS_NAME;
use super::layout::{Layout, ProxyFiles, Secrecy, write_whole};
use super::plan::ProxyPlan;

/// How long a stopping proxy may flush; what is left then is flushed after the next start.
pub const DRAIN_SECONDS: u64 = 20;

/// The name of the one store.
pub const STORE: &str = "origin";

/// A key whose tokens are good.
#[derive(Debug, Clone, Serialize)]
pub struct PublicKey {
    /// The `kid` of what it signed.
    pub id: String,
    /// 32 bytes in base64url.
    pub key: String,
}

/// The bucket behind the proxies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The service's URL.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub name: String,
    /// The keys of the built-in server. An existing bucket's are looked up by each proxy in the usual places and never
    /// written down here.
    pub keys: Option<(String, String)>,
}

/// A volume that the proxies serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Put before each key in the bucket.
    pub prefix: String,
    /// What a write means.
    pub mode: Mode,
}

/// What a write to a volume means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Acknowledged when on this node's disk.
    WriteBack,
    /// Acknowledged when in the bucket.
    WriteThrough,
    /// Refused.
    ReadOnly,
}

impl Mode {
    /// As `dev.json` and the printed table say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::WriteBack => "write-back",
            Mode::WriteThrough => "write-through",
            Mode::ReadOnly => "read-only",
        }
    }
}

/// Writes the configuration of one proxy.
///
/// # Errors
/// If the file can't be written.
pub fn write(
    layout: &Layout,
    proxy: &ProxyPlan,
    files: &ProxyFiles,
    bucket: &Bucket,
    volumes: &[Volume],
    key: &PublicKey,
) -> anyhow::Result<()> {
    let written = Written {
        node: node(layout, proxy, files),
        disk: vec![Disk { path: &files.disk, capacity: mebibytes(proxy.disk_bytes) }],
        store: vec![store(bucket)],
        volume: volumes.iter().map(volume).collect(),
        auth: Auth { public_keys: vec![key] },
    };
    let text = format!(
        "# Written by `forebay dev` at each start: changes made here are lost.\n\n{}",
        toml::to_string(&written)?
    );
    write_whole(&files.config, text.as_bytes(), Secrecy::Secret)
}

#[derive(Serialize)]
struct Written<'a> {
    node: Node<'a>,
    disk: Vec<Disk<'a>>,
    store: Vec<Store<'a>>,
    volume: Vec<WrittenVolume<'a>>,
    auth: Auth<'a>,
}

#[derive(Serialize)]
struct Node<'a> {
    name: String,
    listen: String,
    shard_port_base: u16,
    shards: u16,
    cores: &'a [usize],
    memory: String,
    tls_certificate: PathBuf,
    tls_key: PathBuf,
    tls_name: &'a str,
    ports_file: &'a Path,
    drain_deadline: String,
}

#[derive(Serialize)]
struct Disk<'a> {
    path: &'a Path,
    capacity: String,
}

#[derive(Serialize)]
struct Store<'a> {
    name: &'a str,
    endpoint: &'a str,
    region: &'a str,
    bucket: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<Credentials<'a>>,
}

#[derive(Serialize)]
struct Credentials<'a> {
    access_key: &'a str,
    secret_key: &'a str,
}

#[derive(Serialize)]
struct WrittenVolume<'a> {
    name: &'a str,
    store: &'a str,
    prefix: &'a str,
    write: &'a str,
    read_only: bool,
}

#[derive(Serialize)]
struct Auth<'a> {
    public_keys: Vec<&'a PublicKey>,
}

fn node<'a>(layout: &Layout, proxy: &'a ProxyPlan, files: &'a ProxyFiles) -> Node<'a> {
    Node {
        name: proxy.name(),
        listen: proxy.listen.to_string(),
        shard_port_base: proxy.shard_port_base,
        shards: proxy.shards,
        cores: &proxy.cores,
        memory: mebibytes(proxy.memory_bytes),
        tls_certificate: layout.server_certificate(),
        tls_key: layout.server_key(),
        tls_name: TLS_NAME,
        ports_file: &files.ports,
        drain_deadline: format!("{DRAIN_SECONDS}s"),
    }
}

fn store(bucket: &Bucket) -> Store<'_> {
    let credentials = bucket.keys.as_ref().map(|(access_key, secret_key)| Credentials { access_key, secret_key });
    Store { name: STORE, endpoint: &bucket.endpoint, region: &bucket.region, bucket: &bucket.name, credentials }
}

fn volume(volume: &Volume) -> WrittenVolume<'_> {
    let write = match volume.mode {
        Mode::WriteBack => "back",
        Mode::WriteThrough | Mode::ReadOnly => "through",
    };
    WrittenVolume {
        name: &volume.name,
        store: STORE,
        prefix: &volume.prefix,
        write,
        read_only: volume.mode == Mode::ReadOnly,
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{}MiB", bytes >> 20)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};
    use crate::dev::{ca, demo_volumes, plan::Plan};

    #[test]
    fn what_is_written_is_a_valid_configuration() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        ca::prepare(&layout).unwrap();
        let mut volumes = demo_volumes("a/");
        volumes.push(Volume { name: "read".to_owned(), prefix: String::new(), mode: Mode::ReadOnly });
        let pem = crate::token::generate_key().unwrap();
        let key = crate::token::SigningKey::from_pem(&pem).unwrap();
        let key = PublicKey { id: key.id().to_owned(), key: key.public().to_owned() };
        let bucket = Bucket {
            endpoint: "http://127.0.0.1:7400".to_owned(),
            region: "eu-west-1".to_owned(),
            name: "forebay-dev".to_owned(),
            keys: Some(("access".to_owned(), "secret".to_owned())),
        };
        for proxy in Plan::draw(&layout, 1, 1, 0).unwrap().proxies {
            let files = layout.proxy(proxy.index).unwrap();
            write(&layout, &proxy, &files, &bucket, &volumes, &key).unwrap();
            let config = load(&files.config, Overrides::default()).unwrap();
            assert_eq!(config.effective.node.listen, proxy.listen);
            assert_eq!(config.effective.volume.len(), 3);
            let unknown = Bucket { keys: None, ..bucket.clone() };
            write(&layout, &proxy, &files, &unknown, &volumes, &key).unwrap();
            load(&files.config, Overrides::default()).unwrap();
        }
    }
}
