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
/// The superblock and its copy.
const SUPERBLOCKS_BYTES: u64 = 8 << 10;

/// The node's disk.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// The directory.
    pub path: PathBuf,
    /// What it may take for the whole node, in bytes.
    pub capacity_bytes: u64,
    /// The shape of each shard's store, applied at format.
    pub geometry: Geometry,
    /// Whether acknowledgements wait for fdatasync.
    pub sync: SyncMode,
    /// What may be written to it in a day for the whole node, in bytes of payload.
    pub write_bytes_per_day: Option<u64>,
}

/// Checks the one `[[disk]]` for `shards` shards and blocks of at most `block_bytes_max`.
///
/// # Errors
/// The first mistake found.
pub fn check_disk(
    disks: &[RawDisk],
    machine: &Machine,
    shards: u16,
    block_bytes_max: u32,
) -> Result<DiskConfig, ConfigError> {
    let [disk] = disks else {
        let what = format!("there are {}: this version serves exactly one [[disk]]", disks.len());
        return Err(ConfigError::new("disk", what));
    };
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
    let write_bytes_per_day = match disk.write_budget {
        None => None,
        Some(Size::Bytes(bytes)) if bytes >= MIB => Some(bytes),
        Some(_) => return Err(ConfigError::new("disk.write_budget", "write bytes a day, at least \"1MiB\"")),
    };
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
    let geometry = geometry(capacity_bytes, region_bytes, u64::from(shards), disk.mean_block.of(0))?;
    let sync = if disk.sync { SyncMode::Always } else { SyncMode::Never };
    Ok(DiskConfig { path: disk.path.clone(), capacity_bytes, geometry, sync, write_bytes_per_day })
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

/// The dirty budget of a node with `shards` shards on `disk`, in bytes.
///
/// # Errors
/// When it is more than half of the capacity.
pub fn check_dirty(node: &RawNode, disk: &DiskConfig, shards: u16) -> Result<u64, ConfigError> {
    let capacity_bytes = disk.capacity_bytes;
    let data_bytes = disk.geometry.region_bytes * u64::from(disk.geometry.region_count) * u64::from(shards);
    let dirty = node.dirty_max.of(capacity_bytes);
    if dirty > capacity_bytes / 2 {
        let half = Size::Bytes(capacity_bytes / 2 / MIB * MIB);
        let what = format!("{} is more than half of disk.capacity: set at most {half} or \"50%\"", node.dirty_max);
        return Err(ConfigError::new("node.dirty_max", what));
    }
    // Half of the capacity may be a little more than half of the regions.
    Ok(dirty.min(data_bytes / 2))
}
