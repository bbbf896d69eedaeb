//! What a shard is told when it opens: sizes, budgets, volumes.
//!
//! Made by `src/config` from the file and the command line, where it is validated; here it is only asserted. All budgets
//! are bounds of this one shard (I10 among them): the edge divides the node's among its shards.

use std::sync::Arc;
use std::time::Duration;

pub use crate::health::HealthLimits;

/// Limits and budgets of one shard. All sizes are bytes.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Which shard of the node this is.
    pub shard: u16,
    /// The volumes this node serves.
    pub volumes: Vec<VolumeConfig>,
    /// What the memory tier may hold.
    pub memory_tier_bytes: u64,
    /// What fills in progress may hold.
    pub fill_bytes_max: u64,
    /// Dirty bytes of this shard, at most (I10). At most half of the slab's regions.
    pub dirty_bytes_max: u64,
    /// Whether an acknowledgement waits for fdatasync.
    pub sync: SyncMode,
    /// Stores in flight at once.
    pub flush_parallelism: usize,
    /// How long the committer gathers before it syncs; zero: as soon as the previous sync is done.
    pub commit_delay: Duration,
    /// Fills in progress, at most.
    pub fills_max: usize,
    /// When a disk counts as bad, and as good again.
    pub health: HealthLimits,
    /// What the disk's policy may remember and write.
    pub disk_limits: DiskLimits,
}

/// What the policy of a shard's disk may remember and write. By default it remembers nothing of what went, and may write
/// all it wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Evicted blocks remembered, at most: 4 bytes each.
    pub ghosts_max: usize,
    /// Payload bytes a day, beyond which fills are declined and nothing is written again; puts never are.
    pub write_bytes_per_day: Option<u64>,
}

/// Whether `disk` durability means stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// An acknowledged write is on stable storage.
    Always,
    /// The operator gave that up: an acknowledged write survives the process, not the power.
    Never,
}

/// How one volume behaves.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// Its name.
    pub name: Arc<str>,
    /// The largest block in bytes.
    pub block_bytes_max: u32,
    /// Write-through or write-back.
    pub write_mode: WriteMode,
    /// What a put gets when the dirty budget is full.
    pub dirty_full: DirtyFull,
    /// Whether puts and deletes are allowed at all.
    pub access: Access,
}

/// When a put is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// After the origin has it.
    Through,
    /// After this node's disk has it; flushed later.
    Back,
}

/// A full dirty budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyFull {
    /// 503 with Retry-After.
    Decline,
    /// Acknowledge after the origin has it.
    WriteThrough,
}

/// Reading and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Puts and deletes are refused.
    ReadOnly,
    /// Everything.
    ReadWrite,
}

/// The shape of a store, fixed at `format`. All sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The append and eviction unit: a power of two, at least eight blocks.
    pub region_bytes: u64,
    /// How many regions the slab has.
    pub region_count: u32,
    /// The journal's size: whole sectors.
    pub journal_bytes: u64,
}
