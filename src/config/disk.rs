//! `[[disk]]` checked: a share of the free space becomes a shape of each shard's store.
//!
//! Part of `Config::check`. The shape leaves room for superblocks, journal and checkpoints, and the dirty budget is at most
//! half of the regions (I10: reclaim can always move what is dirty).

use std::path::PathBuf;

use forebay_shard::config::{Geometry, SyncMode};

use crate::config::checked::ConfigError;
use crate::config::machine::Machine;
use crate::config::raw::{RawDisk, RawNode};
use crate::config::units::Size;

const MIB: u64 = 1 << 20;
/// The fewest regions a store works with: one open for clean, one for dirty, one being reclaimed, one free, two sealed.
const REGIONS_MIN: u64 = 6;
/// More would not make a node more reliable: give them to several nodes.
const DISKS_MAX: usize = 64;
/// The superblock and its copy.
const SUPERBLOCKS_BYTES: u64 = 8 << 10;

/// One of the node's disks.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// The directory.
    pub path: PathBuf,
    /// What it may take for the whole node, in bytes, and the shape of each shard's store, applied at format. `Err`: the disk is
    /// one of several, and can't be measured, or is too small; only its format needs this.
    pub shape: Result<Shape, ConfigError>,
    /// Whether acknowledgements wait for fdatasync.
    pub sync: SyncMode,
    /// What may be written to it in a day for the whole node, in bytes of payload.
    pub write_bytes_per_day: Option<u64>,
}

/// How much of a disk is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// In bytes, for the whole node.
    pub capacity_bytes: u64,
    /// It is a share of what is free, which changes with what else lies there.
    pub is_share: bool,
    /// Of each shard's store.
    pub geometry: Geometry,
}

impl Shape {
    /// What the regions of one shard take, in bytes.
    #[must_use]
    pub fn regions_bytes(&self) -> u64 {
        self.geometry.region_bytes * u64::from(self.geometry.region_count)
    }
}

/// Checks every `[[disk]]` for `shards` shards and blocks of at most `block_bytes_max`.
///
/// # Errors
/// The first mistake found.
pub fn check_disks(
    disks: &[RawDisk],
    machine: &Machine,
    shards: u16,
    block_bytes_max: u32,
) -> Result<Vec<DiskConfig>, ConfigError> {
    if disks.is_empty() || disks.len() > DISKS_MAX {
        let what = format!("there are {}: name 1 to {DISKS_MAX} [[disk]]", disks.len());
        return Err(ConfigError::new("disk", what));
    }
    let mut checked: Vec<DiskConfig> = Vec::new();
    for disk in disks {
        if checked.iter().any(|other| other.path == disk.path) {
            let what = format!("{} is named twice: give each [[disk]] its own directory", disk.path.display());
            return Err(ConfigError::new("disk.path", what));
        }
        check_units(disk, block_bytes_max)?;
        let shape = shape(disk, machine, shards);
        // One of several may be missing: the node starts with the others.
        if disks.len() == 1 {
            shape.as_ref().map_err(Clone::clone)?;
        }
        let sync = if disk.sync { SyncMode::Always } else { SyncMode::Never };
        let write_bytes_per_day = match disk.write_budget {
            None => None,
            Some(Size::Bytes(bytes)) if bytes >= MIB => Some(bytes),
            Some(_) => return Err(ConfigError::new("disk.write_budget", "write bytes a day, at least \"1MiB\"")),
        };
        checked.push(DiskConfig { path: disk.path.clone(), shape, sync, write_bytes_per_day });
    }
    match checked.iter().all(|disk| disk.shape.is_err()) {
        true => Err(checked.swap_remove(0).shape.expect_err("all are")),
        false => Ok(checked),
    }
}

fn check_units(disk: &RawDisk, block_bytes_max: u32) -> Result<(), ConfigError> {
    let Size::Bytes(region_bytes) = disk.region else {
        return Err(ConfigError::new("disk.region", "a share has no meaning here: write bytes such as \"64MiB\""));
    };
    let least = (8 * u64::from(block_bytes_max)).next_power_of_two();
    if !region_bytes.is_power_of_two() || region_bytes < least || region_bytes > 4 << 30 {
        let (region, block) = (disk.region, Size::Bytes(u64::from(block_bytes_max)));
        let what = format!(
            "{region} is not a power of two between 8 × the largest block ({block}) and 4GiB: set at least {}",
            Size::Bytes(least)
        );
        return Err(ConfigError::new("disk.region", what));
    }
    if !matches!(disk.mean_block, Size::Bytes(512..)) {
        return Err(ConfigError::new("disk.mean_block", "write bytes, at least \"512B\""));
    }
    Ok(())
}

fn shape(disk: &RawDisk, machine: &Machine, shards: u16) -> Result<Shape, ConfigError> {
    let free = (machine.disk_free)(&disk.path).map_err(|error| {
        ConfigError::new("disk.path", format!("{}: {error}: name a directory on a local disk", disk.path.display()))
    })?;
    let capacity_bytes = disk.capacity.of(free);
    if capacity_bytes > free {
        let what = format!(
            "{} is more than the {}MiB free at {}: set less, or free some space",
            disk.capacity,
            free >> 20,
            disk.path.display()
        );
        return Err(ConfigError::new("disk.capacity", what));
    }
    let geometry = geometry(capacity_bytes, disk.region.of(0), u64::from(shards), disk.mean_block.of(0))?;
    Ok(Shape { capacity_bytes, is_share: matches!(disk.capacity, Size::Percent(_)), geometry })
}

/// What all disks hold for the whole node, in bytes; those that can't be measured are left out.
#[must_use]
pub fn capacity_bytes(disks: &[DiskConfig]) -> u64 {
    shapes(disks).map(|shape| shape.capacity_bytes).sum()
}

fn shapes(disks: &[DiskConfig]) -> impl Iterator<Item = &Shape> {
    disks.iter().filter_map(|disk| disk.shape.as_ref().ok())
}

/// What a shard's share of the capacity holds: superblocks, journal, two checkpoints, and regions from the rest.
fn geometry(capacity: u64, region_bytes: u64, shards: u64, mean_block: u64) -> Result<Geometry, ConfigError> {
    let share = capacity / shards;
    let journal_bytes = (share / 64).clamp(4 << 20, 256 << 20) / MIB * MIB;
    // A checkpoint holds a record of about 128 bytes for each block; there are two.
    let checkpoints = 2 * 128 * (share / mean_block);
    let rest = share.saturating_sub(SUPERBLOCKS_BYTES + journal_bytes + checkpoints);
    let regions = rest / region_bytes;
    if regions < REGIONS_MIN {
        let least = shards * ((REGIONS_MIN + 1) * region_bytes + journal_bytes);
        let what = format!(
            "{}MiB make {regions} regions of {} for each of {shards} shards, {REGIONS_MIN} are needed: set at least \
             {}MiB, or a smaller disk.region",
            capacity >> 20,
            Size::Bytes(region_bytes),
            least.div_ceil(1 << 20)
        );
        return Err(ConfigError::new("disk.capacity", what));
    }
    // An entry names its region in 24 bits.
    let region_count = u32::try_from(regions).ok().filter(|count| *count < 1 << 24).ok_or_else(|| {
        ConfigError::new("disk.region", "more than 16,777,215 regions for a shard: set a larger disk.region")
    })?;
    Ok(Geometry { region_bytes, region_count, journal_bytes })
}

/// The dirty budget of a node with `shards` shards on `disks`, in bytes.
///
/// # Errors
/// When it is more than half of the capacity.
pub fn check_dirty(node: &RawNode, disks: &[DiskConfig], shards: u16) -> Result<u64, ConfigError> {
    let capacity_bytes = capacity_bytes(disks);
    let data_bytes = shapes(disks).map(Shape::regions_bytes).sum::<u64>() * u64::from(shards);
    let dirty = node.dirty_max.of(capacity_bytes);
    // With a disk missing a figure that was right is no mistake.
    if dirty > capacity_bytes / 2 && disks.iter().all(|disk| disk.shape.is_ok()) {
        let half = Size::Bytes(capacity_bytes / 2 / MIB * MIB);
        let what = format!("{} is more than half of disk.capacity: set at most {half} or \"50%\"", node.dirty_max);
        return Err(ConfigError::new("node.dirty_max", what));
    }
    // Half of the capacity may be a little more than half of the regions.
    Ok(dirty.min(data_bytes / 2))
}
