//! Whose disk a directory is: the node's identity, drawn once, and the lock that keeps a second process away.
//!
//! Called by `boot`, before anything else touches the disk. `node.json` names the node, the secret of its identities and
//! the number of shards. It says `formatting` until every shard's files are there and durable, so that a format that was cut
//! off is begun anew (nothing was acknowledged in it), while a missing slab of a formatted node is never made up for by an
//! empty one. `set` puts the directories of several disks together; `stopped` is the same directory seen by the commands that look into it, or make it anew, while no proxy runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use forebay_shard::key::IdentityKey;
use forebay_shard::store::{NodeIdentity, slab_name};
use serde::{Deserialize, Serialize};

mod roster;
mod set;
mod stopped;

use self::roster::Roster;
pub use self::set::{NodeSet, OtherCapacity, SetDisk};
pub use self::stopped::{Hold, StoppedNode};

const NAME: &str = "node.json";
const FORMAT: u32 = 1;

/// A directory that this process alone uses.
pub struct NodeDisk {
    path: PathBuf,
    written: Written,
    /// Held: the kernel lets go of the lock when the process ends, however it ends.
    _lock: File,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    node: String,
    identity_key: String,
    shards: u16,
    state: State,
    /// This disk's id. A disk formatted by an early version has its node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<String>,
    /// All disks of the node, this one among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    roster: Option<Roster>,
}

/// How far the format has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Formatting,
    Formatted,
}

impl NodeDisk {
    /// Claims the directory at `path` for a node of `shards` shards; creates it and draws an identity if there is none.
    ///
    /// # Errors
    /// Another process has it, it belongs to a node of another shape, or it holds slabs that nobody's `node.json` explains.
    pub fn claim(path: &Path, shards: u16) -> anyhow::Result<NodeDisk> {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
        let lock = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        if let Err(error) = lock.try_lock() {
            bail!(
                "{} is in use by another proxy, or being verified ({error}): stop that one, or set another disk.path",
                path.display()
            );
        }
        let written = match fs::read(path.join(NAME)) {
            Ok(bytes) => read(path, shards, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => draw(path, shards)?,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.join(NAME).display())),
        };
        let disk = NodeDisk { path: path.to_owned(), written, _lock: lock };
        if disk.needs_format() {
            disk.write().context("writing the node's identity")?;
            remove_shards(path).with_context(|| format!("clearing {} for its format", path.display()))?;
        }
        Ok(disk)
    }

    /// Whether the shards' files have to be made.
    #[must_use]
    pub fn needs_format(&self) -> bool {
        self.written.state == State::Formatting
    }

    /// Every shard's files are there and durable.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn formatted(&mut self) -> anyhow::Result<()> {
        self.written.state = State::Formatted;
        self.write().context("writing the node's identity")
    }

    /// The node's id.
    #[must_use]
    pub fn node_id(&self) -> u128 {
        self.written.node_id()
    }

    /// Who shard number `shard` belongs to.
    #[must_use]
    pub fn identity(&self, shard: u16) -> NodeIdentity {
        self.written.identity(shard)
    }

    /// Moved into place whole and synced, so that no reader and no crash sees half a file.
    fn write(&self) -> io::Result<()> {
        let new = self.path.join(format!("{NAME}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&self.written)?)?;
        file.sync_all()?;
        fs::rename(&new, self.path.join(NAME))?;
        File::open(&self.path)?.sync_all()
    }
}

impl Written {
    fn node_id(&self) -> u128 {
        u128::from_str_radix(&self.node, 16).expect("checked when it was read or drawn")
    }

    fn identity(&self, shard: u16) -> NodeIdentity {
        assert!(shard < self.shards, "shards are numbered from 0");
        let key = u128::from_str_radix(&self.identity_key, 16).expect("checked when it was read or drawn");
        NodeIdentity {
            node: self.node_id(),
            shard,
            shard_count: self.shards,
            identity_key: IdentityKey(key.to_be_bytes()),
        }
    }
}

fn parse(path: &Path, bytes: &[u8]) -> anyhow::Result<Written> {
    let file = path.join(NAME);
    let written: Written = serde_json::from_slice(bytes).with_context(|| format!("{} is damaged", file.display()))?;
    let is_hex = |text: &str| text.len() == 32 && u128::from_str_radix(text, 16).is_ok();
    ensure!(
        is_hex(&written.node) && is_hex(&written.identity_key),
        "{} is damaged: it has no identity",
        file.display()
    );
    ensure!(written.format == FORMAT, "{} has format {}, this build knows {FORMAT}", file.display(), written.format);
    Ok(written)
}

fn read(path: &Path, shards: u16, bytes: &[u8]) -> anyhow::Result<Written> {
    let written = parse(path, bytes)?;
    if written.state == State::Formatting {
        return Ok(Written { shards, ..written });
    }
    ensure!(
        written.shards == shards,
        "{} was formatted for {} shards, not {shards}: set node.shards = {}",
        path.display(),
        written.shards,
        written.shards
    );
    for shard in 0..shards {
        let slab = path.join(slab_name(shard));
        ensure!(slab.exists(), "{} is missing: bring it back, or set disk.path to an empty directory", slab.display());
    }
    Ok(written)
}

fn draw(path: &Path, shards: u16) -> anyhow::Result<Written> {
    ensure!(
        !path.join(slab_name(0)).exists(),
        "{} holds slabs but no {NAME}: bring that back, or set disk.path to an empty directory",
        path.display()
    );
    fresh(shards)
}

fn fresh(shards: u16) -> anyhow::Result<Written> {
    Ok(Written {
        format: FORMAT,
        node: random_hex()?,
        identity_key: random_hex()?,
        shards,
        state: State::Formatting,
        disk: None,
        roster: None,
    })
}

fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).context("the system has no randomness")?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Removes what an interrupted format left.
fn remove_shards(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("shard-") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refusal(path: &Path, shards: u16) -> String {
        format!("{:#}", NodeDisk::claim(path, shards).err().unwrap())
    }

    fn formatted(path: &Path, shards: u16) -> NodeDisk {
        let mut disk = NodeDisk::claim(path, shards).unwrap();
        assert!(disk.needs_format());
        (0..shards).for_each(|shard| fs::write(path.join(slab_name(shard)), b"slab").unwrap());
        disk.formatted().unwrap();
        disk
    }

    #[test]
    fn an_identity_is_drawn_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = formatted(directory.path(), 2);
        let (node, key) = (first.node_id(), first.identity(1).identity_key.0);
        drop(first);
        let second = NodeDisk::claim(directory.path(), 2).unwrap();
        assert!(!second.needs_format());
        assert_eq!((second.node_id(), second.identity(1).identity_key.0), (node, key));
    }

    #[test]
    fn two_processes_never_share_a_disk() {
        let directory = tempfile::tempdir().unwrap();
        let first = formatted(directory.path(), 1);
        assert!(refusal(directory.path(), 1).contains("in use by another proxy"));
        drop(first);
        NodeDisk::claim(directory.path(), 1).unwrap();
    }

    #[test]
    fn a_format_that_was_cut_off_is_begun_anew_and_a_missing_slab_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let cut_off = NodeDisk::claim(directory.path(), 2).unwrap();
        fs::write(directory.path().join(slab_name(0)), b"half").unwrap();
        drop(cut_off);
        drop(formatted(directory.path(), 2));
        assert!(refusal(directory.path(), 3).contains("set node.shards = 2"));
        fs::remove_file(directory.path().join(slab_name(1))).unwrap();
        assert!(refusal(directory.path(), 2).contains("is missing"));
        fs::remove_file(directory.path().join(NAME)).unwrap();
        assert!(refusal(directory.path(), 2).contains("holds slabs but no node.json"));
    }
}
