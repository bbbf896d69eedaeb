//! `forebay format`: makes a node's directory and slabs ahead of its first start.
//!
//! Called by `cli`; the making is the boot's own. An existing store is never overwritten unless that is asked for twice:
//! `--force` for clean blocks, `--discard-dirty` too where acknowledged writes have not reached the object store. The
//! directory is locked from the first look to the end, so nothing becomes dirty in between.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use forebay_io::plain::{PlainDisk, PlainRuntime};
use forebay_shard::store::inspect::Inspector;

use super::inspect::figures::{bytes, counted};
use crate::config::{self, Config, Overrides};
use crate::proxy::node_file::{Hold, NodeDisk, NodeSet, StoppedNode};
use crate::proxy::{boot, preflight};

/// `forebay format`
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// The configuration file (TOML): directory, capacity, region.
    #[arg(long, env = "FOREBAY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Instead of `node.shards`: more than there are cores cost nothing and leave room to grow.
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Give up the store that is there.
    #[arg(long)]
    force: bool,
    /// Give up blocks and deletes that were acknowledged and have not reached the object store, too.
    #[arg(long, requires = "force")]
    discard_dirty: bool,
}

/// What an existing store would cost.
#[derive(Debug, Default)]
struct Existing {
    shards: usize,
    entries: u64,
    dirty_blocks: u64,
    dirty_bytes: u64,
    deletes: u64,
    /// Shards whose dirty blocks can't be counted, and why.
    unknown: Vec<String>,
}

/// Formats.
///
/// # Errors
/// A [`ConfigError`](config::ConfigError) for the configuration or a running proxy; what is there and would be lost; what the disk said.
pub fn run(args: FormatArgs) -> anyhow::Result<()> {
    let configured = config::load(&args.config, Overrides { shards: args.shards, ..Overrides::default() })?;
    preflight::machine()?;
    // All are looked at before the first is given up.
    let mut looked_at = Vec::new();
    for disk in &configured.disks {
        disk.shape.as_ref().map_err(Clone::clone)?;
        looked_at.push((look(&args, &disk.path)?, disk));
    }
    let mut directories = Vec::new();
    for (found, disk) in looked_at {
        directories.push(claim(found, &disk.path, configured.shards)?);
    }
    let mut disks = NodeSet::anew(&configured, directories)?;
    boot::format(&configured, &mut disks)?;
    for disk in &configured.disks {
        let geometry = disk.shape.clone()?.geometry;
        println!(
            "{}: formatted node {:032x}: {}, each with {} regions of {} and a journal of {}",
            disk.path.display(),
            disks.node_id(),
            counted(u64::from(configured.shards), "shard"),
            geometry.region_count,
            bytes(geometry.region_bytes),
            bytes(geometry.journal_bytes),
        );
    }
    if args.shards.is_some() && !names_shards(&args.config, &configured) {
        println!(
            "set node.shards = {} in {}: the number is fixed from now on",
            configured.shards,
            args.config.display()
        );
    }
    Ok(())
}

/// Whether the file alone says the same number of shards.
fn names_shards(file: &Path, formatted: &Config) -> bool {
    config::load(file, Overrides::default()).is_ok_and(|config| config.shards == formatted.shards)
}

/// A directory that may be taken.
enum Found {
    /// It does not exist.
    Nothing,
    /// What is there may go; this much is lost with it.
    Takeable(Box<StoppedNode>, Option<String>),
}

/// Whether the directory may be taken for a node that is yet to be formatted.
fn look(args: &FormatArgs, path: &Path) -> anyhow::Result<Found> {
    if !path.exists() {
        return Ok(Found::Nothing);
    }
    let node = StoppedNode::enter(path, Hold::Alone)?;
    let is_empty = node.node_id().is_none() && node.slabs().is_empty() && !path.join("node.json").exists();
    if is_empty || node.is_half_formatted() {
        return Ok(Found::Takeable(Box::new(node), None));
    }
    let existing = survey(&node);
    if !args.force {
        bail!(
            "{} holds {}: start that node, choose another disk.path, or give the store up with --force",
            path.display(),
            existing.words()
        );
    }
    if existing.is_costly() && !args.discard_dirty {
        bail!(
            "{} holds {}: start the node and let it flush, or lose them with --force --discard-dirty",
            path.display(),
            existing.costs()
        );
    }
    let lost = existing.is_costly().then(|| existing.costs());
    Ok(Found::Takeable(Box::new(node), lost))
}

/// The directory, claimed for a node that is yet to be formatted.
fn claim(found: Found, path: &Path, shards: u16) -> anyhow::Result<NodeDisk> {
    let (node, lost) = match found {
        Found::Nothing => return NodeDisk::claim(path, shards),
        Found::Takeable(node, lost) => (node, lost),
    };
    let disk = node.anew(shards).context("giving up the old store")?;
    if let Some(lost) = lost {
        eprintln!("forebay: gave up {lost}");
    }
    Ok(disk)
}

/// What is there, as the next start would find it.
fn survey(node: &StoppedNode) -> Existing {
    let mut existing = Existing::default();
    for shard in node.shards() {
        existing.shards += 1;
        let runtime = PlainRuntime::default();
        let summary = runtime.run(async {
            let inspector = Inspector::open(PlainDisk::new(node.path()), shard).await?;
            inspector.recover(&runtime).await.map(|recovery| recovery.summary())
        });
        match summary {
            Ok(summary) => {
                existing.entries += summary.entries;
                existing.dirty_blocks += summary.dirty;
                existing.dirty_bytes += summary.dirty_bytes;
                existing.deletes += summary.tombstones;
            }
            Err(error) => existing.unknown.push(format!("shard {shard}: {:#}", anyhow::Error::from(error))),
        }
    }
    if existing.shards == 0 {
        // A node.json that nobody can read, and no slabs.
        existing.unknown.extend(node.trouble().map(str::to_owned));
    }
    existing
}

impl Existing {
    fn is_costly(&self) -> bool {
        self.dirty_blocks + self.deletes > 0 || !self.unknown.is_empty()
    }

    fn words(&self) -> String {
        let (shards, blocks) = (counted(self.shards as u64, "shard"), counted(self.entries - self.deletes, "block"));
        let dirty = if self.is_costly() { self.costs() } else { "all are in the object store".to_owned() };
        format!("a store of {shards} with {blocks}; {dirty}")
    }

    fn costs(&self) -> String {
        let (blocks, deletes) = (counted(self.dirty_blocks, "block"), counted(self.deletes, "delete"));
        let known =
            format!("{blocks} ({}) and {deletes} that have not reached the object store", bytes(self.dirty_bytes));
        match &self.unknown[..] {
            [] => known,
            unknown => format!("{known}, and an unknown number more ({})", unknown.join("; ")),
        }
    }
}
