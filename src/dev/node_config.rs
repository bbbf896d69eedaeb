//! Writes each proxy's `forebay.toml`: what a person would write, and nothing that is the default.
//!
//! Called by `dev.rs` before the proxies start. A test reads every file back through `config`, so the two can't drift.
//! No secret is in it: volumes, stores and keys come from the admin, credentials and tokens are named by their files.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ca::TLS_NAME;
use super::layout::{Layout, ProxyFiles, Secrecy, write_whole};
use super::plan::ProxyPlan;

/// How long a stopping proxy may flush; what is left then is flushed after the next start.
pub const DRAIN_SECONDS: u64 = 20;

/// The name of the one store.
pub const STORE: &str = "origin";

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

/// Writes the configuration of one proxy, which follows the admin at `admin_url`.
///
/// # Errors
/// If the file can't be written.
pub fn write(layout: &Layout, proxy: &ProxyPlan, files: &ProxyFiles, admin_url: &str) -> anyhow::Result<()> {
    let written = Written {
        node: node(layout, proxy, files),
        disk: vec![Disk { path: &files.disk, capacity: mebibytes(proxy.disk_bytes) }],
        admin: Admin {
            url: admin_url,
            ca: layout.ca_certificate(),
            group: proxy.group,
            member: proxy.name(),
            token_file: layout.proxy_token(proxy.group),
            directory: &files.known,
        },
    };
    let text = format!(
        "# Written by `forebay dev` at each start: changes made here are lost.\n\n{}",
        toml::to_string(&written)?
    );
    write_whole(&files.config, text.as_bytes(), Secrecy::Public)
}

#[derive(Serialize)]
struct Written<'a> {
    node: Node<'a>,
    disk: Vec<Disk<'a>>,
    admin: Admin<'a>,
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
struct Admin<'a> {
    url: &'a str,
    ca: PathBuf,
    group: &'a str,
    member: String,
    token_file: PathBuf,
    directory: &'a Path,
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

fn mebibytes(bytes: u64) -> String {
    format!("{}MiB", bytes >> 20)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};
    use crate::dev::{ca, plan::Plan};

    #[test]
    fn what_is_written_is_a_valid_configuration() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        ca::prepare(&layout).unwrap();
        for group in ["near", "far"] {
            write_whole(&layout.proxy_token(group), b"token", Secrecy::Secret).unwrap();
        }
        for proxy in Plan::draw(&layout, 1, 1, 0).unwrap().proxies {
            let files = layout.proxy(proxy.index).unwrap();
            write(&layout, &proxy, &files, "https://127.0.0.1:7401").unwrap();
            let config = load(&files.config, Overrides::default()).unwrap();
            assert_eq!(config.effective.node.listen, proxy.listen);
            assert_eq!(config.effective.admin.unwrap().group, proxy.group);
        }
    }
}
