//! `forebay inspect`: shows what lies on the disk of a stopped node, one structure or all of them on one screen.
//!
//! Called by `cli`. It never writes, takes what can be read of damaged files, and says what can't. Exit 0 if everything
//! asked for was shown, 1 if something could not be read, 2 if there is nothing to look into: no such directory, or a
//! proxy runs there. The looking is done by `forebay_shard::store::inspect`, the showing by `text` and `json`.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use forebay_io::plain::{PlainDisk, PlainRuntime};
use forebay_shard::store::inspect::names::Names;
use forebay_shard::store::inspect::regions::RegionView;
use forebay_shard::store::inspect::slots::Slot;
use forebay_shard::store::inspect::{Inspector, Recovery, Superblocks};

use crate::config::{self, ConfigError};
use crate::proxy::node_file::{Hold, StoppedNode};

pub mod figures;
mod json;
mod region_map;
mod text;

/// Records listed in one go: some 200 bytes each.
const LISTED_COUNT: u64 = 1 << 17;

/// `forebay inspect [DIR] [PART]`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The node's directory (disk.path); with --config: what to show.
    #[arg(value_name = "DIR")]
    first: Option<String>,
    /// What to show. Default: a summary of everything.
    #[arg(value_name = "PART")]
    part: Option<Part>,
    /// Take the directory from this configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This shard only.
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// Of `records`: this region only.
    #[arg(long, value_name = "N")]
    region: Option<u32>,
    /// For machines: one JSON object per line, for each shard; of `records` one for each record.
    #[arg(long)]
    json: bool,
}

/// What to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What the slab says about itself, twice.
    Superblock,
    /// The frames behind the current checkpoint, and why they end where they do.
    Journal,
    /// The two checkpoint slots.
    Checkpoint,
    /// Each region: state, epoch, what lives there.
    Regions,
    /// Each block and delete that counts.
    Records,
    /// The index in figures, and what is dirty.
    Index,
}

/// A shard as far as it can be read.
struct Opened {
    superblocks: Superblocks,
    inspector: Inspector<PlainDisk>,
    runtime: PlainRuntime,
}

/// Shows what the flags ask for.
///
/// # Errors
/// A [`ConfigError`] if there is nothing to look into; else what could not be read.
pub fn run(args: InspectArgs) -> anyhow::Result<()> {
    let (directory, part) = args.target()?;
    let node = StoppedNode::enter(&directory, Hold::Shared)?;
    let shards = chosen(&node, args.shard)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut unread = Vec::new();
    let shown = show_all(&args, part, &node, &shards, &mut out, &mut unread);
    match shown.and_then(|()| out.flush().map_err(anyhow::Error::from)) {
        // Who reads has seen enough.
        Err(error) if is_broken_pipe(&error) => return Ok(()),
        shown => shown?,
    }
    if unread.is_empty() { Ok(()) } else { bail!("could not be read: {}", unread.join("; ")) }
}

/// The shards to look at: one that was asked for, or all.
///
/// # Errors
/// There are none, or not that one.
pub fn chosen(node: &StoppedNode, asked: Option<u16>) -> Result<Vec<u16>, ConfigError> {
    let (shards, directory) = (node.shards(), node.path().display());
    if shards.is_empty() {
        return Err(ConfigError::new(directory.to_string(), "holds no node: neither node.json nor slabs are there"));
    }
    match asked {
        Some(shard) if !shards.contains(&shard) => Err(ConfigError::new(
            "--shard",
            format!("{directory} has shards {} to {}", shards[0], shards[shards.len() - 1]),
        )),
        Some(shard) => Ok(vec![shard]),
        None => Ok(shards),
    }
}

/// The directory that a configuration names, whatever else stands in it.
///
/// # Errors
/// It can't be read, or names no disk.
pub fn directory_of(config: &Path) -> Result<PathBuf, ConfigError> {
    let named = config.display().to_string();
    let text = std::fs::read_to_string(config)
        .map_err(|error| ConfigError::new(&*named, format!("{error}: name a readable file with --config")))?;
    let raw = config::parse(&text).map_err(|error| ConfigError::new(&*named, error.to_string()))?;
    match &raw.disk[..] {
        [disk] => Ok(disk.path.clone()),
        disks => {
            Err(ConfigError::new(named, format!("has {} [[disk]]: name one of their directories itself", disks.len())))
        }
    }
}

impl InspectArgs {
    fn target(&self) -> Result<(PathBuf, Option<Part>), ConfigError> {
        let Some(config) = &self.config else {
            let Some(directory) = &self.first else {
                return Err(ConfigError::new("DIR", "is missing: name a node's disk.path, or --config FILE"));
            };
            return Ok((directory.into(), self.part));
        };
        let directory = directory_of(config)?;
        match (&self.first, self.part) {
            (None, part) => Ok((directory, part)),
            (Some(first), None) => match Part::from_str(first, false) {
                Ok(part) => Ok((directory, Some(part))),
                Err(_) => Err(ConfigError::new("PART", format!("{first:?} is none, and --config names the directory"))),
            },
            (Some(_), Some(_)) => Err(ConfigError::new("DIR", "--config names the directory: leave one of them out")),
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Shows every shard; what can't be read is told in its place and gathered in `unread`.
fn show_all(
    args: &InspectArgs,
    part: Option<Part>,
    node: &StoppedNode,
    shards: &[u16],
    out: &mut dyn Write,
    unread: &mut Vec<String>,
) -> anyhow::Result<()> {
    if !args.json {
        text::node(out, node)?;
    }
    for shard in shards {
        let shown = show_shard(args, part, node, *shard, out);
        if let Err(error) = shown {
            if is_broken_pipe(&error) {
                return Err(error);
            }
            if args.json {
                json::unread(out, *shard, &error)?;
            } else {
                writeln!(out, "shard {shard}: {error:#}")?;
            }
            unread.push(format!("shard {shard}"));
        }
    }
    Ok(())
}

fn show_shard(
    args: &InspectArgs,
    part: Option<Part>,
    node: &StoppedNode,
    shard: u16,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let (disk, runtime) = (PlainDisk::new(node.path()), PlainRuntime::default());
    let superblocks = runtime.run(Superblocks::read(&disk, shard))?;
    if part == Some(Part::Superblock) || superblocks.good().is_none() {
        if args.json {
            json::superblocks(out, shard, &superblocks)?;
        } else {
            text::superblocks(out, shard, &superblocks)?;
        }
        ensure!(superblocks.good().is_some(), "without a superblock nothing else can be found");
        return Ok(());
    }
    let inspector = runtime.run(Inspector::open(disk, shard))?;
    let opened = Opened { superblocks, inspector, runtime };
    let slots = opened.runtime.run(opened.inspector.slots())?;
    match part {
        Some(Part::Checkpoint) if args.json => json::slots(out, shard, &slots),
        Some(Part::Checkpoint) => text::slots(out, shard, &slots),
        Some(Part::Journal) => {
            let journal = opened.runtime.run(opened.inspector.journal(&slots))?;
            let spare = opened.runtime.run(opened.inspector.spare(&slots))?;
            if args.json {
                json::journal(out, shard, &journal, &spare)
            } else {
                text::journal(out, shard, &journal, &spare)
            }
        }
        Some(Part::Superblock) => unreachable!("shown above"),
        None if !args.json => summary(&opened, &slots, out),
        None | Some(Part::Regions | Part::Records | Part::Index) => recovered(args, part, &opened, &slots, out),
    }
}

/// The parts that need the index.
fn recovered(
    args: &InspectArgs,
    part: Option<Part>,
    opened: &Opened,
    slots: &[Slot; 2],
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let Opened { superblocks, inspector, runtime } = opened;
    let shard = inspector.shard();
    let recovery = runtime.run(inspector.recover(runtime)).context("the index can't be computed")?;
    match part {
        Some(Part::Index) if args.json => json::index(out, shard, &recovery),
        Some(Part::Index) => text::index(out, shard, &recovery),
        Some(Part::Records) => records(args, opened, slots, &recovery, out),
        _ => {
            let regions = runtime.run(inspector.regions(slots, &recovery))?;
            match part {
                Some(_) if args.json => json::regions(out, shard, inspector.superblock(), &regions),
                Some(_) => text::regions(out, shard, inspector.superblock(), &regions),
                None => {
                    let journal = runtime.run(inspector.journal(slots))?;
                    json::summary(out, shard, superblocks, slots, &journal, &regions, &recovery)
                }
            }
        }
    }
}

/// One screen; a structure that can't be read costs its own lines only.
fn summary(opened: &Opened, slots: &[Slot; 2], out: &mut dyn Write) -> anyhow::Result<()> {
    let Opened { superblocks, inspector, runtime } = opened;
    text::superblock_line(out, inspector.shard(), superblocks)?;
    text::slot_lines(out, slots)?;
    match runtime.run(inspector.journal(slots)) {
        Ok(journal) => text::journal_line(out, &journal)?,
        Err(error) => writeln!(out, "  journal      can't be read: {error}")?,
    }
    let recovery = runtime.run(inspector.recover(runtime)).context("the index can't be computed")?;
    let regions: Vec<RegionView> = runtime.run(inspector.regions(slots, &recovery))?;
    text::region_line(out, inspector.superblock(), &regions)?;
    text::index_lines(out, &recovery)?;
    region_map::draw(out, inspector.superblock(), &regions)?;
    Ok(())
}

fn records(
    args: &InspectArgs,
    opened: &Opened,
    slots: &[Slot; 2],
    recovery: &Recovery,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let Opened { inspector, runtime, .. } = opened;
    let (shard, count) = (inspector.shard(), inspector.superblock().region_count);
    let regions = match args.region {
        Some(region) if region >= count => {
            return Err(ConfigError::new("--region", format!("shard {shard} has regions 0 to {}", count - 1)).into());
        }
        Some(region) => region..region + 1,
        None => 0..count,
    };
    let mut names: Names = runtime.run(inspector.names(slots, recovery))?;
    if !args.json {
        text::records_head(out, shard)?;
    }
    let show = |out: &mut dyn Write, lines: &[_]| {
        if args.json { json::records(out, shard, lines) } else { text::records(out, lines) }
    };
    for batch in recovery.batches(regions, LISTED_COUNT) {
        show(out, &runtime.run(inspector.records(recovery, &mut names, batch))?)?;
    }
    if args.region.is_none() {
        show(out, &inspector.tombstones(recovery, &names))?;
    }
    Ok(())
}
