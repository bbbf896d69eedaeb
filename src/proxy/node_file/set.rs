//! All directories of a node: which of its disks are here, which are away and why, which are new.
//!
//! Called by `boot` before anything else touches a disk, and by `forebay format`. One disk tells of all (`roster`). A missing
//! disk is never made up for by an empty directory, a disk that was taken out never comes back with its old blocks, and one
//! that may hold what the object store does not have is never taken out unless the configuration says so by its id. A
//! node with one disk that is not here does not start; with several it starts with the others.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use forebay_io::plain::{PlainDisk, PlainRuntime};
use forebay_shard::config::{SyncMode, WriteMode};
use forebay_shard::disks::Strays;
use forebay_shard::store::inspect::Inspector;
use forebay_shard::store::{NodeIdentity, slab_name};
use tracing::{error, info, warn};

use super::roster::{Member, Roster};
use super::{FORMAT, NAME, NodeDisk, State, Written, fresh, parse, random_hex, remove_shards};
use crate::config::checked::Config;
use crate::config::disk::DiskConfig;

/// The disks of a node that this process alone uses.
pub struct NodeSet {
    written: Written,
    disks: Vec<SetDisk>,
    roster: Roster,
}

/// One disk of a node.
pub struct SetDisk {
    /// The directory.
    pub path: PathBuf,
    /// Drawn at format.
    pub id: u128,
    /// Its share of the keys.
    pub weight: NonZeroU32,
    /// Whether acknowledgements wait for its fdatasync.
    pub sync: SyncMode,
    /// What may be written to it in a day for the whole node, in bytes.
    pub write_bytes_per_day: Option<u64>,
    /// Its directory, locked, or why it is away.
    pub disk: Result<NodeDisk, String>,
}

/// A capacity that is configured and not in force: it is applied only when a disk is formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherCapacity {
    /// Room for blocks as the disk was formatted, in bytes.
    pub formatted_bytes: u64,
    /// The same as it would be by the configuration.
    pub configured_bytes: u64,
}

/// What a directory looks like.
enum Look {
    /// Nothing that counts; locked, if it exists.
    Empty(Option<File>),
    /// A node's disk, formatted to its end.
    Formatted(NodeDisk),
    /// Neither: why.
    Trouble(String),
}

impl NodeSet {
    /// Claims every configured directory; draws an identity for the node if none has one, and for each new disk.
    ///
    /// # Errors
    /// Another process has one of them; the only one can't be used; something is there, or missing, that only a person can judge.
    pub fn claim(config: &Config) -> anyhow::Result<NodeSet> {
        let mut looks = Vec::new();
        for disk in &config.disks {
            looks.push(look(&disk.path)?);
        }
        let Some((written, roster)) = node_of(config, &looks)? else { return NodeSet::first(config, looks) };
        ensure!(
            written.shards == config.shards,
            "{} was formatted for {} shards, not {}: set node.shards = {}",
            config.disks[0].path.display(),
            written.shards,
            config.shards,
            written.shards
        );
        let mut disks = Vec::new();
        for (disk, look) in config.disks.iter().zip(looks) {
            disks.push(place(config, disk, look, &written, &roster)?);
        }
        let here = disks.iter().filter(|disk| disk.disk.is_ok()).count();
        if here == 0 || disks.len() == 1 {
            let away = disks.iter().find_map(|disk| disk.disk.as_ref().err().map(|why| (why, &disk.path)));
            if let Some((why, path)) = away {
                bail!("{}: {why}", path.display());
            }
        }
        for member in &roster.disks {
            if !disks.iter().any(|disk| hex(disk.id) == member.id) {
                take_out(config, member, &written)?;
            }
        }
        let mut set = NodeSet { written, disks, roster };
        if let [only] = &set.disks[..] {
            only_slabs(&only.path, set.written.shards, only.disk.as_ref().is_ok_and(|disk| !disk.needs_format()))?;
        }
        set.revise(config);
        Ok(set)
    }

    /// A node that has no disk yet.
    fn first(config: &Config, looks: Vec<Look>) -> anyhow::Result<NodeSet> {
        let written = fresh(config.shards)?;
        let mut disks = Vec::new();
        for (disk, look) in config.disks.iter().zip(looks) {
            match look {
                Look::Empty(lock) => disks.push(new_disk(disk, lock, &written)?),
                Look::Trouble(why) => bail!("{}: {why}", disk.path.display()),
                Look::Formatted(_) => unreachable!("a formatted disk tells of its node"),
            }
        }
        Ok(NodeSet::beginning(config, written, disks))
    }

    fn beginning(config: &Config, written: Written, disks: Vec<SetDisk>) -> NodeSet {
        let roster = Roster { revision: 0, settled: true, written_back: BTreeSet::new(), disks: Vec::new() };
        let mut set = NodeSet { written, disks, roster };
        set.revise(config);
        // Nothing lies anywhere yet.
        set.roster.settled = true;
        set
    }

    /// One node from directories that were made anew, in the order of the configuration.
    ///
    /// # Errors
    /// A directory can't be written.
    pub fn anew(config: &Config, directories: Vec<NodeDisk>) -> anyhow::Result<NodeSet> {
        let mut written: Option<Written> = None;
        let mut disks = Vec::new();
        for (disk, mut directory) in config.disks.iter().zip(directories) {
            let node = written.get_or_insert_with(|| directory.written.clone());
            directory.written = Written { disk: Some(random_hex()?), ..node.clone() };
            directory.write().context("writing the node's identity")?;
            disks.push(SetDisk::new(disk, directory)?);
        }
        Ok(NodeSet::beginning(config, written.context("a node has a disk")?, disks))
    }

    /// The list, as it is to be from now on.
    fn revise(&mut self, config: &Config) {
        let disks = self.disks.iter().map(|disk| Member {
            id: hex(disk.id),
            path: disk.path.clone(),
            weight: disk.weight.get(),
        });
        let back = config.volumes.iter().filter(|volume| volume.shard.write_mode == WriteMode::Back);
        let mut revised = Roster { disks: disks.collect(), ..self.roster.clone() };
        revised.written_back.extend(back.map(|volume| volume.shard.name.to_string()));
        revised.written_back.extend(config.written_back.iter().cloned());
        if !revised.places_as(&self.roster) {
            revised.revision += 1;
            revised.settled = false;
        }
        self.roster = revised;
    }

    /// Every disk, in the order of the configuration.
    #[must_use]
    pub fn disks(&self) -> &[SetDisk] {
        &self.disks
    }

    /// The disks whose slabs have to be made, by their positions.
    #[must_use]
    pub fn unformatted(&self) -> Vec<usize> {
        let is_new = |disk: &SetDisk| disk.disk.as_ref().is_ok_and(NodeDisk::needs_format);
        (0..self.disks.len()).filter(|at| is_new(&self.disks[*at])).collect()
    }

    /// Does without a disk that turned out unusable.
    ///
    /// # Errors
    /// It is the last one, or new.
    pub fn do_without(&mut self, at: usize, why: anyhow::Error) -> anyhow::Result<()> {
        let others = self.disks.iter().filter(|disk| disk.disk.is_ok()).count() - 1;
        let disk = &mut self.disks[at];
        if others == 0 || disk.disk.as_ref().is_ok_and(NodeDisk::needs_format) {
            return Err(why.context(format!("using {}", disk.path.display())));
        }
        error!(path = %disk.path.display(), why = format!("{why:#}"), "a disk is away: the others serve");
        disk.disk = Err(format!("{why:#}"));
        Ok(())
    }

    /// All slabs are there and durable: the new disks belong to the node from now on, and every disk knows of all.
    ///
    /// # Errors
    /// No disk can be written.
    pub fn enroll(&mut self) -> anyhow::Result<()> {
        // The new ones first: an older one must not miss a disk that is not formatted.
        let mut order: Vec<usize> = self.unformatted();
        order.extend((0..self.disks.len()).filter(|at| !order.contains(at)).collect::<Vec<_>>());
        for at in order {
            let Ok(disk) = &mut self.disks[at].disk else { continue };
            let id = disk.written.disk.clone().unwrap_or_else(|| self.written.node.clone());
            let written = Written {
                state: State::Formatted,
                disk: Some(id),
                roster: Some(self.roster.clone()),
                ..self.written.clone()
            };
            if disk.written == written {
                continue;
            }
            disk.written = written;
            if let Err(error) = disk.write().context("writing the node's identity") {
                self.do_without(at, error)?;
            }
        }
        Ok(())
    }

    /// Every key is on its own disk, and every disk is here.
    ///
    /// # Errors
    /// As [`NodeSet::enroll`].
    pub fn settle(&mut self) -> anyhow::Result<()> {
        if self.roster.settled || self.disks.iter().any(|disk| disk.disk.is_err()) {
            return Ok(());
        }
        self.roster.settled = true;
        self.enroll()
    }

    /// Whether a key may lie on another disk than its own.
    #[must_use]
    pub fn strays(&self) -> Strays {
        if self.roster.settled { Strays::None } else { Strays::Possible }
    }

    /// The volumes that were ever written back.
    #[must_use]
    pub fn written_back(&self) -> Vec<String> {
        self.roster.written_back.iter().cloned().collect()
    }

    /// The node's id.
    #[must_use]
    pub fn node_id(&self) -> u128 {
        self.written.node_id()
    }

    /// How many shards the node has.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.written.shards
    }

    /// Who shard number `shard` belongs to.
    #[must_use]
    pub fn identity(&self, shard: u16) -> NodeIdentity {
        self.written.identity(shard)
    }
}

impl SetDisk {
    /// What the configuration asks for, if the disk is here and was formatted for something else. A share of what is free
    /// changes by itself, so it counts only from a tenth on.
    #[must_use]
    pub fn other_capacity(&self, disk: &DiskConfig, shards: u16) -> Option<OtherCapacity> {
        let shape = disk.shape.as_ref().ok().filter(|_| self.disk.is_ok())?;
        let mebibytes = [self.weight, mebibytes(shape.regions_bytes())];
        let [formatted_bytes, configured_bytes] =
            mebibytes.map(|mebibytes| (u64::from(mebibytes.get()) << 20) * u64::from(shards));
        let ignored_bytes = formatted_bytes / if shape.is_share { 10 } else { 100 };
        (formatted_bytes.abs_diff(configured_bytes) > ignored_bytes)
            .then_some(OtherCapacity { formatted_bytes, configured_bytes })
    }

    fn new(disk: &DiskConfig, directory: NodeDisk) -> anyhow::Result<SetDisk> {
        let slab_bytes = disk.shape.clone()?.regions_bytes();
        let id = directory.written.disk.clone().context("a new disk has an id")?;
        Ok(SetDisk {
            path: disk.path.clone(),
            id: u128::from_str_radix(&id, 16).context("a new disk has an id")?,
            weight: mebibytes(slab_bytes),
            sync: disk.sync,
            write_bytes_per_day: disk.write_bytes_per_day,
            disk: Ok(directory),
        })
    }
}

fn hex(id: u128) -> String {
    format!("{id:032x}")
}

fn mebibytes(bytes: u64) -> NonZeroU32 {
    let mebibytes = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    NonZeroU32::new(mebibytes).unwrap_or(NonZeroU32::MIN)
}

/// Looks, and locks what it finds.
fn look(path: &Path) -> anyhow::Result<Look> {
    let lock = match File::open(path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Empty(None)),
        Err(error) => return Ok(Look::Trouble(format!("it can't be opened: {error}"))),
    };
    if let Err(error) = lock.try_lock() {
        bail!(
            "{} is in use by another proxy, or being verified ({error}): stop that one, or set another disk.path",
            path.display()
        );
    }
    Ok(match fs::read(path.join(NAME)) {
        Ok(bytes) => match parse(path, &bytes) {
            Ok(written) if written.state == State::Formatting => Look::Empty(Some(lock)),
            Ok(written) => Look::Formatted(NodeDisk { path: path.to_owned(), written, _lock: lock }),
            Err(error) => Look::Trouble(format!("{error:#}")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.join(slab_name(0)).exists() => Look::Trouble(
            format!("it holds slabs but no {NAME}: bring that back, or set disk.path to an empty directory"),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Look::Empty(Some(lock)),
        Err(error) => Look::Trouble(format!("{NAME} can't be read: {error}")),
    })
}

/// The node that these directories are of, if they are of one: the one that most of them speak for.
fn node_of(config: &Config, looks: &[Look]) -> anyhow::Result<Option<(Written, Roster)>> {
    let formatted = || looks.iter().filter_map(|look| if let Look::Formatted(disk) = look { Some(disk) } else { None });
    let mut nodes: Vec<&str> = formatted().map(|disk| disk.written.node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let mut candidates = Vec::new();
    for node in nodes {
        let of_node = || formatted().filter(|disk| disk.written.node == node);
        let first = of_node().next().expect("a node was found on a disk");
        let roster = match Roster::newest(of_node().filter_map(|disk| disk.written.roster.as_ref()))? {
            Some(roster) => roster,
            None => alone(first)?,
        };
        let is_named = |disk: &&DiskConfig| roster.disks.iter().any(|member| member.path == disk.path);
        let voices = of_node().count() + config.disks.iter().filter(is_named).count();
        candidates.push((voices, first.written.clone(), roster));
    }
    candidates.sort_by_key(|(voices, ..)| std::cmp::Reverse(*voices));
    if let [first, second, ..] = &candidates[..] {
        ensure!(first.0 > second.0, "the directories belong to several nodes: give each node its own");
    }
    Ok(candidates.into_iter().next().map(|(_, written, roster)| (written, roster)))
}

/// The list of a node whose only disk was formatted before there were lists.
fn alone(disk: &NodeDisk) -> anyhow::Result<Roster> {
    let slab = disk.path.join(slab_name(0));
    let slab_bytes = fs::metadata(&slab).map_or(0, |metadata| metadata.len());
    let id = disk.written.disk.clone().unwrap_or_else(|| disk.written.node.clone());
    let member = Member { id, path: disk.path.clone(), weight: mebibytes(slab_bytes).get() };
    Ok(Roster { revision: 0, settled: true, written_back: BTreeSet::new(), disks: vec![member] })
}

/// What a configured directory is to the node.
fn place(config: &Config, disk: &DiskConfig, look: Look, node: &Written, roster: &Roster) -> anyhow::Result<SetDisk> {
    let path = disk.path.display();
    let here = |member: &Member, disk_here: Result<NodeDisk, String>| -> anyhow::Result<SetDisk> {
        if let Err(why) = &disk_here {
            error!(path = %path, why, "a disk is away: the others serve");
        }
        Ok(SetDisk {
            path: disk.path.clone(),
            id: u128::from_str_radix(&member.id, 16).context("a disk's id is damaged")?,
            weight: NonZeroU32::new(member.weight).unwrap_or(NonZeroU32::MIN),
            sync: disk.sync,
            write_bytes_per_day: disk.write_bytes_per_day,
            disk: disk_here,
        })
    };
    let missed = roster.disks.iter().find(|member| member.path == disk.path);
    let is_given_up = |member: &Member| config.abandon_disks.iter().any(|id| hex(*id) == member.id);
    match (look, missed) {
        (Look::Formatted(found), _) if found.written.node == node.node => {
            let id = found.written.disk.clone().unwrap_or_else(|| found.written.node.clone());
            match roster.member(&id) {
                Some(member) => here(member, Ok(found)),
                None => bail!(
                    "{path} was taken out of this node, and what it holds may be older than what happened since: clear it to \
                     use it as a new disk"
                ),
            }
        }
        (Look::Formatted(_), Some(member)) => here(member, Err("it holds another node's slabs".to_owned())),
        (Look::Formatted(_), None) => bail!("{path} belongs to another node: give this node its own directory"),
        (Look::Trouble(why), Some(member)) => here(member, Err(why)),
        (Look::Trouble(why), None) => bail!("{path}: {why}"),
        (Look::Empty(lock), Some(member)) if is_given_up(member) => {
            warn!(path = %path, disk = member.id, "a disk was given up; an empty one takes its place");
            new_disk(disk, lock, node)
        }
        (Look::Empty(_), Some(member)) => {
            let why = format!(
                "it is empty: mount the disk, or give it up for a new one by node.abandon_disks = [\"{}\"]",
                member.id
            );
            here(member, Err(why))
        }
        (Look::Empty(lock), None) => new_disk(disk, lock, node),
    }
}

fn new_disk(disk: &DiskConfig, lock: Option<File>, node: &Written) -> anyhow::Result<SetDisk> {
    let path = &disk.path;
    let lock = match lock {
        Some(lock) => lock,
        None => {
            fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
            let lock = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            lock.try_lock().with_context(|| format!("{} is in use", path.display()))?;
            lock
        }
    };
    let written =
        Written { format: FORMAT, state: State::Formatting, disk: Some(random_hex()?), roster: None, ..node.clone() };
    let directory = NodeDisk { path: path.clone(), written, _lock: lock };
    directory.write().context("writing the node's identity")?;
    remove_shards(path).with_context(|| format!("clearing {} for its format", path.display()))?;
    SetDisk::new(disk, directory)
}

/// Lets go of a disk that is on the list and not in the configuration any more.
fn take_out(config: &Config, member: &Member, node: &Written) -> anyhow::Result<()> {
    let (path, id) = (member.path.display(), &member.id);
    if config.abandon_disks.iter().any(|given_up| hex(*given_up) == *id) {
        warn!(%path, disk = id, "a disk was given up, with whatever was not flushed there");
        return Ok(());
    }
    let why = match left_dirty(member, node) {
        Ok(0) => {
            info!(%path, disk = id, "a disk was taken out; all it held is in the object store");
            return Ok(());
        }
        Ok(dirty) => format!("holds {dirty} blocks and deletes that have not reached the object store"),
        Err(why) => format!("can't be asked what it holds that has not reached the object store ({why})"),
    };
    bail!(
        "the disk {id} at {path} is not in the configuration any more, and {why}: put it back and let the node flush, or give it \
         up by node.abandon_disks = [\"{id}\"]"
    )
}

/// How much is dirty on a disk that was taken out.
fn left_dirty(member: &Member, node: &Written) -> Result<u64, String> {
    let Look::Formatted(found) = look(&member.path).map_err(|error| format!("{error:#}"))? else {
        return Err("it is not there".to_owned());
    };
    let id = found.written.disk.as_ref().unwrap_or(&found.written.node);
    if found.written.node != node.node || *id != member.id {
        return Err("another disk is there".to_owned());
    }
    let mut dirty = 0;
    for shard in 0..node.shards {
        let runtime = PlainRuntime::default();
        let summary = runtime.run(async {
            let inspector = Inspector::open(PlainDisk::new(&member.path), shard).await?;
            inspector.recover(&runtime).await.map(|recovery| recovery.summary())
        });
        let summary = summary.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        dirty += summary.dirty + summary.tombstones;
    }
    Ok(dirty)
}

/// A node's only disk must have all its slabs.
fn only_slabs(path: &Path, shards: u16, is_formatted: bool) -> anyhow::Result<()> {
    for shard in (0..shards).filter(|_| is_formatted) {
        let slab = path.join(slab_name(shard));
        ensure!(slab.exists(), "{} is missing: bring it back, or set disk.path to an empty directory", slab.display());
    }
    Ok(())
}
