//! The one memory figure, split. Everything that may grow has its share here, and the shares add up to the figure.
//!
//! ```text
//! base          48 MiB: code, stacks, certificates, the origin pool's queues
//! index         48 B × (capacity ÷ mean_block): the entries of a full disk
//! ghosts        4 B × the same: fingerprints of as many that went from it
//! arenas        executors × arena × 3: I/O buffers, pinned once for each of the executor's three rings
//! connections   executors × connections_per_core × 64 KiB, by default an eighth of the figure
//! fills         an eighth: bodies on their way from the origin
//! puts          an eighth: bodies on their way from clients
//! memory tier   the rest, at least 16 MiB
//! ```

use crate::config::checked::ConfigError;
use crate::config::units::Size;

/// Code, stacks, certificates, queues.
pub const BASE_BYTES: u64 = 48 << 20;
/// An entry of the index.
pub const INDEX_ENTRY_BYTES: u64 = 48;
/// A fingerprint of a block that went from disk.
pub const GHOST_BYTES: u64 = 4;
/// TLS and HTTP buffers of one connection.
pub const CONNECTION_BYTES: u64 = 64 << 10;
/// An executor has three rings, and each registers the arena.
pub const RINGS: u64 = 3;
/// The smallest memory tier worth having.
pub const MEMORY_TIER_BYTES_MIN: u64 = 16 << 20;
/// The smallest and largest arena of an executor. More than 64 MiB in flight adds only latency.
pub const ARENA_BYTES: (u64, u64) = (16 << 20, 64 << 20);
const CONNECTIONS_PER_CORE_MAX: u64 = 8192;

/// What the split depends on.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// The memory figure in bytes.
    pub memory_bytes: u64,
    /// Executors.
    pub executors: u64,
    /// Shards.
    pub shards: u64,
    /// The disk's capacity in bytes.
    pub capacity_bytes: u64,
    /// The mean block the index is planned for, in bytes.
    pub mean_block_bytes: u64,
    /// The largest block of any volume in bytes.
    pub block_bytes_max: u64,
    /// As configured, if it is.
    pub connections_per_core: Option<u64>,
}

/// The split, in bytes for the whole node unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The figure.
    pub memory_bytes: u64,
    /// The index of a full disk.
    pub index_bytes: u64,
    /// What is remembered of blocks that went from disk.
    pub ghost_bytes: u64,
    /// One executor's registered arena.
    pub arena_bytes_per_executor: u64,
    /// Connections one core accepts.
    pub connections_per_core: usize,
    /// Bodies on their way from the origin.
    pub fill_bytes: u64,
    /// Bodies on their way from clients.
    pub put_bytes: u64,
    /// Hot blocks.
    pub memory_tier_bytes: u64,
}

impl Budget {
    /// Splits the figure.
    ///
    /// # Errors
    /// When it is too little for the disk, the cores or the blocks, with the least that would do.
    pub fn split(demand: &Demand) -> Result<Budget, ConfigError> {
        let memory = demand.memory_bytes;
        let eighth = memory / 8;
        let blocks = demand.capacity_bytes / demand.mean_block_bytes.max(1);
        let (index, ghosts) = (blocks * INDEX_ENTRY_BYTES, blocks * GHOST_BYTES);
        let arena = floor_power_of_two(memory / 16 / demand.executors).clamp(ARENA_BYTES.0, ARENA_BYTES.1);
        let connections_per_core = demand
            .connections_per_core
            .unwrap_or((eighth / demand.executors / CONNECTION_BYTES).clamp(16, CONNECTIONS_PER_CORE_MAX));
        let connections = connections_per_core * CONNECTION_BYTES * demand.executors;
        let fixed = BASE_BYTES + index + ghosts + arena * RINGS * demand.executors + connections;
        let rest = memory.checked_sub(fixed + 2 * eighth).filter(|rest| *rest >= MEMORY_TIER_BYTES_MIN);
        let two_blocks = eighth / demand.shards >= 2 * demand.block_bytes_max;
        let (Some(memory_tier_bytes), true) = (rest, two_blocks) else {
            return Err(too_little(demand, index + ghosts));
        };
        Ok(Budget {
            memory_bytes: memory,
            index_bytes: index,
            ghost_bytes: ghosts,
            arena_bytes_per_executor: arena,
            connections_per_core: usize::try_from(connections_per_core).expect("64-bit"),
            fill_bytes: eighth,
            put_bytes: eighth,
            memory_tier_bytes,
        })
    }
}

/// The least figure that satisfies every line of the table, with the smallest arenas.
fn too_little(demand: &Demand, index_bytes: u64) -> ConfigError {
    let fixed = BASE_BYTES + index_bytes + ARENA_BYTES.0 * RINGS * demand.executors + MEMORY_TIER_BYTES_MIN;
    // Fills and puts take two eighths of the figure, connections a third unless their number is given.
    let by_sum = match demand.connections_per_core {
        Some(count) => (fixed + count * CONNECTION_BYTES * demand.executors) * 4 / 3,
        None => fixed * 8 / 5,
    };
    let by_blocks = demand.shards * 2 * demand.block_bytes_max * 8;
    let least_mib = by_sum.max(by_blocks).div_ceil(1 << 20) + 1;
    ConfigError::new(
        "node.memory",
        format!(
            "{} is too little for {} executors, {} shards, blocks of {} and an index of {}: set at least {least_mib}MiB",
            Size::Bytes(demand.memory_bytes),
            demand.executors,
            demand.shards,
            Size::Bytes(demand.block_bytes_max),
            Size::Bytes(index_bytes),
        ),
    )
}

fn floor_power_of_two(bytes: u64) -> u64 {
    if bytes == 0 { 0 } else { 1 << bytes.ilog2() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn demand(memory_bytes: u64) -> Demand {
        Demand {
            memory_bytes,
            executors: 2,
            shards: 2,
            capacity_bytes: 100 << 30,
            mean_block_bytes: 64 << 10,
            block_bytes_max: 4 << 20,
            connections_per_core: None,
        }
    }

    #[test]
    fn the_shares_add_up_to_the_figure() {
        for memory_mib in [512, 1024, 8192, 100_000] {
            let demand = demand(memory_mib << 20);
            let budget = Budget::split(&demand).unwrap();
            let sum = BASE_BYTES
                + budget.index_bytes
                + budget.ghost_bytes
                + budget.arena_bytes_per_executor * RINGS * demand.executors
                + budget.connections_per_core as u64 * CONNECTION_BYTES * demand.executors
                + budget.fill_bytes
                + budget.put_bytes
                + budget.memory_tier_bytes;
            assert_eq!(sum, demand.memory_bytes, "{budget:?}");
        }
    }

    #[test]
    fn the_least_figure_an_error_names_is_enough() {
        for (capacity_bytes, connections_per_core) in [(1 << 30, None), (10 << 40, None), (1 << 30, Some(4000))] {
            let small = Demand { capacity_bytes, connections_per_core, ..demand(64 << 20) };
            let error = Budget::split(&small).unwrap_err().to_string();
            let least = error.rsplit_once("at least ").unwrap().1.trim_end_matches("MiB").parse::<u64>().unwrap();
            let enough = Demand { memory_bytes: least << 20, ..small };
            assert!(Budget::split(&enough).is_ok(), "{error}");
        }
    }
}
