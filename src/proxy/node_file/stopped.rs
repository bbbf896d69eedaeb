//! The directory of a node that does not run: for `forebay inspect` and `verify`, which only look, and for `forebay format`,
//! which may make it anew.
//!
//! A node that runs holds the directory's lock, so it is told by that, and it can't be started meanwhile. Reading takes
//! what is there as far as it goes: without `node.json` the slabs are found by their names, and speak for themselves.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use forebay_shard::store::{NodeIdentity, slab_name};

use super::{NAME, NodeDisk, State, Written, fresh, parse, remove_shards};
use crate::config::ConfigError;

/// How a stopped node is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Beside others who only look.
    Shared,
    /// To change it.
    Alone,
}

/// The directory of a node that does not run, and will not while this lives.
pub struct StoppedNode {
    path: PathBuf,
    written: Option<Written>,
    /// What is wrong with `node.json`.
    trouble: Option<String>,
    lock: File,
}

impl StoppedNode {
    /// Enters the directory at `path`, which must exist.
    ///
    /// # Errors
    /// A [`ConfigError`] if it can't be opened or a proxy runs there.
    pub fn enter(path: &Path, hold: Hold) -> Result<StoppedNode, ConfigError> {
        let refused = |what: String| ConfigError::new(path.display().to_string(), what);
        let lock = File::open(path).map_err(|error| refused(format!("{error}: name a node's disk.path")))?;
        let locked = match hold {
            Hold::Shared => lock.try_lock_shared(),
            Hold::Alone => lock.try_lock(),
        };
        locked.map_err(|_| refused("a proxy is running there (its directory is locked): stop it first".into()))?;
        let (written, trouble) = match fs::read(path.join(NAME)) {
            Ok(bytes) => match parse(path, &bytes) {
                Ok(written) => (Some(written), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => (None, Some(format!("{NAME} is missing"))),
            Err(error) => (None, Some(format!("{NAME} can't be read: {error}"))),
        };
        Ok(StoppedNode { path: path.to_owned(), written, trouble, lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with `node.json`, if anything is.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The node's id, if `node.json` tells.
    #[must_use]
    pub fn node_id(&self) -> Option<u128> {
        self.written.as_ref().map(Written::node_id)
    }

    /// Whether a format was begun here and not finished: nothing was acknowledged in what it left.
    #[must_use]
    pub fn is_half_formatted(&self) -> bool {
        self.written.as_ref().is_some_and(|written| written.state == State::Formatting)
    }

    /// The numbers of its shards: those that `node.json` counts, else those whose slabs are there.
    #[must_use]
    pub fn shards(&self) -> Vec<u16> {
        match &self.written {
            Some(written) => (0..written.shards).collect(),
            None => self.slabs(),
        }
    }

    /// The numbers of the shards whose slabs are there, in order.
    #[must_use]
    pub fn slabs(&self) -> Vec<u16> {
        // No shard has a larger number: `node.shards` is bounded.
        (0..1024).filter(|shard| self.path.join(slab_name(*shard)).exists()).collect()
    }

    /// Who shard number `shard` belongs to, if `node.json` tells.
    #[must_use]
    pub fn identity(&self, shard: u16) -> Option<NodeIdentity> {
        self.written.as_ref().filter(|written| shard < written.shards).map(|written| written.identity(shard))
    }

    /// Gives up everything that is here for a new node of `shards` shards, which is to be formatted next. From the moment
    /// at which the new `node.json` is in place the old slabs count no more.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn anew(self, shards: u16) -> anyhow::Result<NodeDisk> {
        let disk = NodeDisk { path: self.path, written: fresh(shards)?, _lock: self.lock };
        disk.write().context("writing the node's identity")?;
        remove_shards(&disk.path).with_context(|| format!("clearing {}", disk.path.display()))?;
        Ok(disk)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_is_not_looked_into_and_who_is_looked_into_does_not_start() {
        let directory = tempfile::tempdir().unwrap();
        let running = NodeDisk::claim(directory.path(), 1).unwrap();
        for hold in [Hold::Shared, Hold::Alone] {
            let refused = StoppedNode::enter(directory.path(), hold).err().unwrap();
            assert!(refused.to_string().contains("a proxy is running there"), "{refused}");
        }
        drop(running);
        let first = StoppedNode::enter(directory.path(), Hold::Shared).unwrap();
        let second = StoppedNode::enter(directory.path(), Hold::Shared).unwrap();
        assert!(StoppedNode::enter(directory.path(), Hold::Alone).is_err());
        assert!(NodeDisk::claim(directory.path(), 1).is_err());
        drop((first, second));
        NodeDisk::claim(directory.path(), 1).unwrap();
    }

    #[test]
    fn shards_are_known_by_node_json_or_else_by_their_slabs() {
        let directory = tempfile::tempdir().unwrap();
        let mut disk = NodeDisk::claim(directory.path(), 3).unwrap();
        [0, 2].iter().for_each(|shard| fs::write(directory.path().join(slab_name(*shard)), b"slab").unwrap());
        disk.formatted().unwrap();
        let id = disk.node_id();
        drop(disk);
        let node = StoppedNode::enter(directory.path(), Hold::Shared).unwrap();
        assert_eq!((node.shards(), node.node_id(), node.trouble()), (vec![0, 1, 2], Some(id), None));
        drop(node);
        fs::write(directory.path().join(NAME), b"{").unwrap();
        let node = StoppedNode::enter(directory.path(), Hold::Shared).unwrap();
        assert_eq!((node.shards(), node.node_id()), (vec![0, 2], None));
        assert!(node.trouble().unwrap().contains("damaged"));
    }

    #[test]
    fn a_node_made_anew_is_another_one_without_slabs() {
        let directory = tempfile::tempdir().unwrap();
        let mut disk = NodeDisk::claim(directory.path(), 2).unwrap();
        fs::write(directory.path().join(slab_name(1)), b"slab").unwrap();
        disk.formatted().unwrap();
        let id = disk.node_id();
        drop(disk);
        let anew = StoppedNode::enter(directory.path(), Hold::Alone).unwrap().anew(1).unwrap();
        assert!(anew.needs_format() && anew.node_id() != id && !directory.path().join(slab_name(1)).exists());
    }
}
