//! Everything that a seed decides before its run begins: the shape of the disk, budgets, keys, faults, pauses.
//!
//! All sizes are tiny, so that rare things happen: a journal of sixteen sectors wraps with every sixteenth commit, a
//! store of twelve regions reclaims all the time. Read by `run` and `client`.

use std::ops::Range;
use std::time::Duration;

use forebay_io::sim::{Faults, Latency, OneIn};
use forebay_io::superblock::Superblock;
use forebay_shard::config::{
    Access, DirtyFull, DiskLimits, Geometry, HealthLimits, ShardConfig, SyncMode, VolumeConfig, WriteMode,
};
use forebay_shard::key::BlockKey;
use forebay_shard::sim_origin::OriginFaults;
use rand::Rng;
use rand::rngs::SmallRng;

use super::universe::{Subject, Universe, VERSIONS, content};

/// What may go wrong on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskMode {
    /// It keeps its contract; the power may fail at any moment.
    Honest,
    /// As honest, but it fails reads, writes, syncs and creations, and says so.
    Failing,
    /// It rots, loses and misdirects writes, and says nothing. The power fails only when nothing is in doubt: what such a
    /// disk loses of the last commit before a power cut nobody can tell from what was never acknowledged.
    Lying,
}

/// Who writes which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Each key has one writer: the model then knows every state.
    Own,
    /// Everybody writes every key.
    Shared,
}

/// What a run is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// A bit of everything.
    Mixed,
    /// Few keys, deleted, put again and flushed all the time, and a journal so long that it still holds their older records
    /// when the region of the newest has been reused: what recovery then believes decides (I13).
    Overwriting,
}

/// A run's plan.
pub struct Plan {
    pub course: Course,
    pub geometry: Geometry,
    pub config: ShardConfig,
    pub universe: Universe,
    pub disk: DiskMode,
    pub writers: Writers,
    pub clients: usize,
    /// Between two verbs of a client.
    pub pause_us: Range<u64>,
    pub latency: Latency,
    pub origin_latency_us: Range<u64>,
    pub frame_bytes_max: usize,
    /// How likely the origin can be reached when that changes.
    pub link_up_percent: u32,
}

fn one_of<T: Clone>(rng: &mut SmallRng, choices: &[T]) -> T {
    choices[rng.random_range(0..choices.len())].clone()
}

impl Plan {
    pub fn draw(rng: &mut SmallRng) -> Plan {
        match rng.random_range(0..5) {
            0 => Plan::overwriting(rng),
            _ => Plan::mixed(rng),
        }
    }

    fn overwriting(rng: &mut SmallRng) -> Plan {
        let (region_bytes, region_count, block_bytes_max) = (32 << 10, 8, 4 << 10);
        let journal_bytes = one_of(rng, &[1 << 20, 2 << 20]);
        let geometry = Geometry { region_bytes, region_count, journal_bytes };
        let clients = rng.random_range(3..5);
        let disk = if rng.random_range(0..4) == 0 { DiskMode::Failing } else { DiskMode::Honest };
        let config = config(rng, geometry, block_bytes_max, disk);
        Plan {
            course: Course::Overwriting,
            geometry,
            // Room for what is dirty, and none for what need not be read from disk.
            config: ShardConfig {
                memory_tier_bytes: 0,
                dirty_bytes_max: geometry.region_bytes * u64::from(region_count) / 4,
                flush_parallelism: 4,
                ..config
            },
            universe: universe(rng, geometry, block_bytes_max, clients, 2),
            disk,
            writers: Writers::Own,
            clients,
            pause_us: one_of(rng, &[0..200, 0..2_000]),
            latency: latency(rng),
            origin_latency_us: one_of(rng, &[50..1_000, 500..5_000]),
            link_up_percent: one_of(rng, &[75, 95]),
            frame_bytes_max: 5_000,
        }
    }

    fn mixed(rng: &mut SmallRng) -> Plan {
        let is_large = rng.random_range(0..40) == 0;
        let (region_bytes, region_count, block_bytes_max) = match is_large {
            // Blocks of several pieces.
            true => (8 << 20, 8, 2_500_000),
            false => one_of(
                rng,
                &[(32 << 10, 8, 4 << 10), (32 << 10, 16, 4 << 10), (64 << 10, 12, 8 << 10), (256 << 10, 10, 32 << 10)],
            ),
        };
        let journal_bytes = one_of(rng, &[64 << 10, 64 << 10, 128 << 10, 512 << 10]);
        let geometry = Geometry { region_bytes, region_count, journal_bytes };
        let disk = match rng.random_range(0..10) {
            0..5 => DiskMode::Honest,
            5..8 => DiskMode::Failing,
            _ => DiskMode::Lying,
        };
        let clients = rng.random_range(3..8);
        let keys_each = one_of(rng, &[2, 4, 6, 12]);
        Plan {
            course: Course::Mixed,
            geometry,
            config: config(rng, geometry, block_bytes_max, disk),
            universe: universe(rng, geometry, block_bytes_max, clients, keys_each),
            disk,
            writers: if rng.random_range(0..4) == 0 { Writers::Shared } else { Writers::Own },
            clients,
            pause_us: one_of(rng, &[0..200, 0..2_000, 0..20_000]),
            latency: latency(rng),
            origin_latency_us: one_of(rng, &[50..1_000, 500..20_000, 5_000..6_000]),
            link_up_percent: one_of(rng, &[10, 75, 75, 95]),
            frame_bytes_max: if is_large { 256 << 10 } else { one_of(rng, &[900, 5_000, 16 << 10]) },
        }
    }

    /// How many verbs a life may have, if the power lasts.
    pub fn draw_quota(&self, rng: &mut SmallRng) -> u64 {
        match self.course {
            Course::Mixed => rng.random_range(20..500),
            Course::Overwriting => rng.random_range(100..900),
        }
    }

    /// After how many changes of the disk the power fails, if it does.
    pub fn draw_crash(&self, rng: &mut SmallRng) -> u64 {
        match self.course {
            Course::Mixed => rng.random_range(1..400),
            Course::Overwriting => rng.random_range(100..2_000),
        }
    }

    /// What the disk does wrong from now on.
    pub fn draw_disk_faults(&self, rng: &mut SmallRng) -> Faults {
        let spikes = Faults { latency_spike: OneIn(one_of(rng, &[0, 50, 300])), ..Faults::default() };
        let mut odds =
            |low: u32, high: u32| OneIn(if rng.random_range(0..2) == 0 { 0 } else { rng.random_range(low..high) });
        match self.disk {
            DiskMode::Honest => spikes,
            DiskMode::Failing => Faults {
                read_error: odds(20, 200),
                write_error: odds(60, 400),
                sync_error: odds(100, 400),
                no_space: odds(2, 20),
                ..spikes
            },
            DiskMode::Lying => Faults {
                bit_flip: odds(20, 100),
                lost_write: odds(20, 100),
                misdirected_write: odds(20, 100),
                lies_within: Some(self.region_bytes_in_slab()),
                ..spikes
            },
        }
    }

    /// A spell of a failing disk: nothing works, or everything, or as ever.
    pub fn draw_spell(&self, rng: &mut SmallRng) -> Faults {
        let always = Faults {
            read_error: OneIn::ALWAYS,
            write_error: OneIn::ALWAYS,
            sync_error: OneIn::ALWAYS,
            ..Faults::default()
        };
        match rng.random_range(0..5) {
            0 => always,
            1 => Faults { read_error: OneIn::ALWAYS, ..Faults::default() },
            2 | 3 => Faults::default(),
            _ => self.draw_disk_faults(rng),
        }
    }

    /// Where in the slab the regions are.
    pub fn region_bytes_in_slab(&self) -> Range<u64> {
        let at = Superblock::JOURNAL_AT + self.geometry.journal_bytes;
        at..at + self.geometry.region_bytes * u64::from(self.geometry.region_count)
    }
}

/// What the origin does wrong from now on.
pub fn draw_origin_faults(rng: &mut SmallRng) -> OriginFaults {
    let is_well = rng.random_range(0..3) == 0;
    let mut odds = || if is_well || rng.random_range(0..3) > 0 { 0 } else { rng.random_range(3..20) };
    OriginFaults {
        fetch_error: odds(),
        reset: odds(),
        wrong_length: odds(),
        wrong_bytes: odds(),
        store_error: odds(),
        store_unknown: odds(),
        head_error: odds(),
        delete_error: odds(),
        delete_unknown: odds(),
        slow: odds(),
    }
}

fn latency(rng: &mut SmallRng) -> Latency {
    let spike_us = one_of(rng, &[2_000..10_000, 5_000..100_000]);
    match rng.random_range(0..4) {
        0 => Latency { spike_us, ..Latency::default() },
        1 => Latency { read_us: 10..20, write_us: 10..20, sync_us: 10..50, spike_us },
        // Reads that take longer than commits: what was located is long gone when it is read.
        2 => Latency { read_us: 100..5_000, write_us: 10..100, sync_us: 50..300, spike_us },
        _ => Latency { read_us: 2_000..20_000, write_us: 10..20, sync_us: 10..50, spike_us },
    }
}

/// `back` declines when its dirty budget is full, `spill` then writes through, `through` always does.
fn config(rng: &mut SmallRng, geometry: Geometry, block_bytes_max: u32, disk: DiskMode) -> ShardConfig {
    let volume = |name: &str, write_mode, dirty_full| VolumeConfig {
        name: name.into(),
        block_bytes_max,
        write_mode,
        dirty_full,
        access: Access::ReadWrite,
    };
    let slab_bytes = geometry.region_bytes * u64::from(geometry.region_count);
    ShardConfig {
        shard: 0,
        volumes: vec![
            volume("back", WriteMode::Back, DirtyFull::Decline),
            volume("spill", WriteMode::Back, DirtyFull::WriteThrough),
            volume("through", WriteMode::Through, DirtyFull::Decline),
        ],
        memory_tier_bytes: one_of(rng, &[0, 0, slab_bytes / 20, slab_bytes]),
        fill_bytes_max: u64::from(block_bytes_max) * one_of(rng, &[2, 8, 64]),
        dirty_bytes_max: one_of(rng, &[slab_bytes / 20, slab_bytes / 4, slab_bytes / 2]),
        sync: SyncMode::Always,
        flush_parallelism: rng.random_range(1..5),
        commit_delay: one_of(rng, &[Duration::ZERO, Duration::ZERO, Duration::from_micros(700)]),
        fills_max: one_of(rng, &[2, 64]),
        health: health(rng, disk),
        disk_limits: disk_limits(rng, slab_bytes),
    }
}

/// Mostly without a write budget, else with one that lasts for a part of the run.
fn disk_limits(rng: &mut SmallRng, slab_bytes: u64) -> DiskLimits {
    let ghosts_max = one_of(rng, &[0, 16, 256, 4_096]);
    // An hour's worth is what there is to spend: the virtual time of a run is seconds to minutes.
    let hours_worth = one_of(rng, &[None, None, None, Some(slab_bytes / 4), Some(slab_bytes * 8)]);
    DiskLimits { ghosts_max, write_bytes_per_day: hours_worth.map(|bytes| bytes * 24) }
}

/// A patient judge, and one so quick that a disk goes and comes back several times in a life.
fn health(rng: &mut SmallRng, disk: DiskMode) -> HealthLimits {
    let ms = Duration::from_millis;
    // A commit that is given up on is in doubt, which only the model of a failing disk allows for.
    let stalled = if disk == DiskMode::Failing { ms(40) } else { HealthLimits::default().stalled };
    match rng.random_range(0..3) {
        0 => HealthLimits { errors_degraded: 1_000, errors_offline: 2_000, ..HealthLimits::default() },
        1 => HealthLimits::default(),
        _ => HealthLimits {
            window: ms(200),
            errors_degraded: 2,
            errors_offline: rng.random_range(3..6),
            slow: ms(8),
            slow_percent: 60,
            slow_ops_min: 4,
            stalled,
            probe_every: ms(4),
            probe_every_max: ms(30),
            probes_bad: 2,
            probes_good: 2,
            relapse: ms(100),
        },
    }
}

fn universe(
    rng: &mut SmallRng,
    geometry: Geometry,
    block_bytes_max: u32,
    clients: usize,
    keys_each: usize,
) -> Universe {
    let written = clients * keys_each;
    let pad = "x".repeat(one_of(rng, &[0, 0, 0, 300, 1_000]));
    let slab_bytes = geometry.region_bytes * u64::from(geometry.region_count);
    // Together more than the slab, so that reading them turns it over.
    let fillers = (slab_bytes * 3 / u64::from(block_bytes_max)).clamp(8, 60) as usize;
    let mut salt = rng.random::<u64>() | 1;
    let mut new_content = |rng: &mut SmallRng, is_first: bool| {
        let len = match rng.random_range(0..12) {
            0 if is_first => 0,
            0..4 => rng.random_range(16..700),
            4..7 => rng.random_range(700..4_096.min(block_bytes_max)),
            7 => 4_096,
            8 => block_bytes_max,
            _ => rng.random_range(block_bytes_max / 2..block_bytes_max),
        };
        salt = salt.wrapping_add(2);
        content(salt, len as usize)
    };
    let mut subjects = Vec::with_capacity(written + fillers);
    for index in 0..written {
        let volume = ["back", "back", "spill", "through"][index % 4];
        let versions = (0..VERSIONS).map(|version| new_content(rng, version == 0)).collect();
        subjects.push(Subject { key: BlockKey::new(volume.into(), format!("key/{index}/{pad}")), versions });
    }
    for index in 0..fillers {
        let volume = ["back", "through"][index % 2];
        let versions = vec![new_content(rng, false)];
        subjects.push(Subject { key: BlockKey::new(volume.into(), format!("filler/{index}")), versions });
    }
    Universe::new(subjects, written)
}
