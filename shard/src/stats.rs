//! What a shard counts, and the snapshot that status and metrics show.
//!
//! Counted by the verbs; read by `src/proxy` through [`Shard::stats`]. A snapshot is plain `Send` data, and snapshots of
//! several shards add up.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_io::{Disk, Runtime};

use crate::dirty::DirtyItem;
use crate::disks::DiskStats;
use crate::health::HealthReport;
use crate::origin::Origin;
use crate::outcome::DeclinedReason;
use crate::shard::{RecoveryReport, Shard};
use crate::store::StoreStats;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the shard was opened.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl Counts {
            /// Adds the counts of another shard.
            pub fn add(&mut self, other: &Counts) {
                $(self.$name += other.$name;)*
            }

            /// Every count with its name.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Count,)*
            declined: [Cell<u64>; REASONS.len()],
        }

        impl Counters {
            fn counts(&self) -> Counts {
                Counts { $($name: self.$name.0.get(),)* }
            }
        }
    };
}

counters! {
    /// GETs answered from the memory tier.
    hits_memory,
    /// GETs answered with a place on disk.
    hits_disk,
    /// GETs that began a fill.
    misses,
    /// GETs that joined a fill.
    collapsed,
    /// GETs and HEADs answered with "no such block".
    absent,
    /// HEADs, whoever knew.
    heads,
    /// Fills published.
    fills_published,
    /// Fills that a put, delete or purge overtook (I6).
    fills_invalidated,
    /// Puts that began while their key was being filled (I6).
    fills_raced_by_put,
    /// Deletes that began while their key was being filled (I6).
    fills_raced_by_delete,
    /// Purges that began while their key was being filled (I6).
    fills_raced_by_purge,
    /// Fills that nobody waited for any more.
    fills_abandoned,
    /// Fills that the origin failed.
    fills_failed,
    /// Blocks that could not be kept on disk, though they were served or stored.
    appends_failed,
    /// Puts acknowledged, of new bytes.
    puts_created,
    /// Puts acknowledged, of bytes that were there.
    puts_unchanged,
    /// Puts of other bytes under a known key, or whose condition did not hold.
    puts_refused,
    /// Puts and deletes that failed at the origin.
    changes_failed,
    /// Deletes acknowledged.
    deletes,
    /// Purges that dropped what there was.
    purges,
    /// Pins acknowledged.
    pins,
    /// Pins of blocks that were not on disk and were fetched for them.
    pins_filled,
    /// Pins declined because too much is pinned.
    pins_refused,
    /// Pins taken back.
    unpins,
    /// Flushes confirmed by the origin.
    flushes,
    /// Flushes whose key was put again before the origin's answer was there (I9).
    flushes_raced_by_put,
    /// Flushes whose key was deleted before the origin's answer was there (I9).
    flushes_raced_by_delete,
    /// Flushes that failed and wait for their next try.
    flushes_failed,
    /// Flushes that found other bytes at the origin.
    conflicts,
    /// Dirty blocks that rotted.
    lost,
    /// Clean blocks that rotted and were dropped.
    rot,
    /// GETs and HEADs that passed an offline disk by.
    passed_by,
    /// GETs of dirty blocks on an offline disk, declined: the origin's bytes may be older.
    withheld,
    /// Write-back puts that were written through because the disk was not well.
    written_through,
    /// Blocks that were not kept on disk because the disk was not well.
    not_admitted,
    /// Dirty blocks that rotted on disk and were written again from memory or by their client.
    repaired,
    /// Content bytes acknowledged.
    bytes_put,
    /// Content bytes that came from the origin.
    bytes_fetched,
    /// Content bytes sent to the origin by write-through.
    bytes_stored,
    /// Content bytes sent to the origin by the flusher.
    bytes_flushed,
    /// Content bytes answered from the memory tier.
    bytes_hit_memory,
    /// Content bytes located on disk.
    bytes_hit_disk,
}

const REASONS: [DeclinedReason; 7] = [
    DeclinedReason::DirtyFull,
    DeclinedReason::DiskFull,
    DeclinedReason::FillsFull,
    DeclinedReason::DiskFault,
    DeclinedReason::QueueFull,
    DeclinedReason::Stopping,
    DeclinedReason::Unsettled,
];

/// One count of a [`Counters`].
#[derive(Default)]
pub(crate) struct Count(Cell<u64>);

impl Count {
    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.get()
    }

    pub(crate) fn add(&self, count: u64) {
        self.0.set(self.0.get() + count);
    }
}

impl Counters {
    pub(crate) fn declined(&self, reason: DeclinedReason) {
        let index = REASONS.iter().position(|known| *known == reason).expect("every reason is in the list");
        self.declined[index].set(self.declined[index].get() + 1);
    }
}

/// A shard at one moment. All sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Since it was opened.
    pub counts: Counts,
    /// Declined requests by reason.
    pub declined: BTreeMap<DeclinedReason, u64>,
    /// What dirty records take from their budget.
    pub dirty_bytes: u64,
    /// The dirty budget.
    pub dirty_bytes_max: u64,
    /// Dirty blocks and tombstones.
    pub dirty_records: u64,
    /// How many of them each volume has, of those that have any.
    pub dirty_by_volume: Vec<(Arc<str>, u64)>,
    /// Since when the oldest is dirty: milliseconds since 1970.
    pub dirty_oldest_unix_ms: Option<u64>,
    /// Dirty blocks in conflict now.
    pub conflicts_held: u64,
    /// Dirty blocks lost and not dealt with.
    pub lost_held: u64,
    /// Flushes in progress.
    pub flushing: u64,
    /// What the memory tier takes.
    pub memory_bytes: u64,
    /// Blocks in the memory tier.
    pub memory_blocks: u64,
    /// What fills in progress take from their budget.
    pub fill_bytes: u64,
    /// Fills in progress.
    pub fills: u64,
    /// What recovery found.
    pub recovery: RecoveryReport,
    /// The disk's health; of several, of the worst.
    pub health: HealthReport,
    /// Whether a store takes no writes now, after a failed sync.
    pub writes_stopped: bool,
    /// Bytes written to the disk since the shard was opened, its journal, checkpoints and footers included.
    pub written_bytes: u64,
    /// The stores' own figures.
    pub store: StoreStats,
    /// Each disk.
    pub disks: Vec<DiskStats>,
}

impl ShardStats {
    /// Adds another shard's figures.
    pub fn add(&mut self, other: &ShardStats) {
        self.counts.add(&other.counts);
        for (reason, count) in &other.declined {
            *self.declined.entry(*reason).or_default() += count;
        }
        self.dirty_bytes += other.dirty_bytes;
        self.dirty_bytes_max += other.dirty_bytes_max;
        self.dirty_records += other.dirty_records;
        for (volume, records) in &other.dirty_by_volume {
            match self.dirty_by_volume.iter_mut().find(|(known, _)| known == volume) {
                Some((_, sum)) => *sum += records,
                None => self.dirty_by_volume.push((Arc::clone(volume), *records)),
            }
        }
        self.dirty_oldest_unix_ms = [self.dirty_oldest_unix_ms, other.dirty_oldest_unix_ms].into_iter().flatten().min();
        self.conflicts_held += other.conflicts_held;
        self.lost_held += other.lost_held;
        self.flushing += other.flushing;
        self.memory_bytes += other.memory_bytes;
        self.memory_blocks += other.memory_blocks;
        self.fill_bytes += other.fill_bytes;
        self.fills += other.fills;
        self.recovery.add(&other.recovery);
        self.health.add(&other.health);
        self.writes_stopped |= other.writes_stopped;
        self.written_bytes += other.written_bytes;
        add_store(&mut self.store, &other.store);
        let missing = other.disks.len().saturating_sub(self.disks.len());
        self.disks.extend(std::iter::repeat_n(DiskStats::default(), missing));
        self.disks.iter_mut().zip(&other.disks).for_each(|(sum, disk)| sum.add(disk));
    }
}

impl DiskStats {
    /// Adds what another shard has on the same disk.
    fn add(&mut self, other: &DiskStats) {
        if self.away.is_none() {
            self.away.clone_from(&other.away);
        }
        self.health.add(&other.health);
        self.writes_stopped |= other.writes_stopped;
        self.written_bytes += other.written_bytes;
        self.strays += other.strays;
        add_store(&mut self.store, &other.store);
    }
}

impl ShardStats {
    /// Content bytes that GETs were answered with: from memory, from disk, and by fills (once each, however many shared it).
    #[must_use]
    pub fn served_bytes(&self) -> u64 {
        self.counts.bytes_hit_memory + self.counts.bytes_hit_disk + self.counts.bytes_fetched
    }
}

impl RecoveryReport {
    /// Adds what another disk's, or another shard's, recovery found.
    pub(crate) fn add(&mut self, other: &RecoveryReport) {
        self.entries += other.entries;
        self.dirty_blocks += other.dirty_blocks;
        self.dirty_bytes += other.dirty_bytes;
        self.tombstones += other.tombstones;
        self.unsure += other.unsure;
        self.quarantined += other.quarantined;
        self.salvaged += other.salvaged;
        self.rejected.add(&other.rejected);
        self.work.add(&other.work);
    }
}

fn add_store(sum: &mut StoreStats, other: &StoreStats) {
    sum.entries += other.entries;
    sum.index_bytes += other.index_bytes;
    sum.dirty_bytes += other.dirty_bytes;
    sum.dirty_entries += other.dirty_entries;
    sum.pinned_bytes += other.pinned_bytes;
    sum.pinned_bytes_max += other.pinned_bytes_max;
    sum.pinned_entries += other.pinned_entries;
    sum.regions_free += other.regions_free;
    sum.regions_sealed += other.regions_sealed;
    sum.regions_quarantined += other.regions_quarantined;
    sum.journal_used_bytes += other.journal_used_bytes;
    sum.commits += other.commits;
    sum.syncs += other.syncs;
    sum.checkpoints += other.checkpoints;
    sum.reclaimed += other.reclaimed;
    sum.evicted += other.evicted;
    sum.relocated += other.relocated;
    sum.appended_bytes += other.appended_bytes;
    sum.reclaimed_dirty += other.reclaimed_dirty;
    sum.footers_missing += other.footers_missing;
    sum.relocations_overwritten += other.relocations_overwritten;
    sum.relocations_deleted += other.relocations_deleted;
    sum.relocations_flushed += other.relocations_flushed;
    sum.reclaims_pinned += other.reclaims_pinned;
    sum.journal_wraps += other.journal_wraps;
    sum.reinserted += other.reinserted;
    sum.reinserted_bytes += other.reinserted_bytes;
    sum.reinsertions_forgone += other.reinsertions_forgone;
    sum.reinsertions_overwritten += other.reinsertions_overwritten;
    sum.reinsertions_deleted += other.reinsertions_deleted;
    sum.pinned_moved += other.pinned_moved;
    sum.pins_lost += other.pins_lost;
    sum.ghost_hits += other.ghost_hits;
    sum.fills_declined += other.fills_declined;
    sum.ghost_bytes += other.ghost_bytes;
}

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// The shard's figures now.
    #[must_use]
    pub fn stats(&self) -> ShardStats {
        let inner = &self.inner;
        let totals = inner.dirty.totals();
        let declined = REASONS.iter().zip(&inner.counters.declined);
        let memory = inner.memory.borrow();
        let disks = inner.disks.stats();
        let (first, others) = disks.split_first().expect("a shard has a disk");
        let (mut health, mut store) = (first.health, first.store);
        for disk in others {
            health.add(&disk.health);
            add_store(&mut store, &disk.store);
        }
        ShardStats {
            counts: inner.counters.counts(),
            declined: declined.map(|(reason, count)| (*reason, count.get())).collect(),
            dirty_bytes: inner.dirty.budget().used_bytes(),
            dirty_bytes_max: inner.dirty.budget().max_bytes(),
            dirty_records: totals.records,
            dirty_by_volume: inner.dirty.by_volume(),
            dirty_oldest_unix_ms: totals.oldest_since_unix_ms,
            conflicts_held: totals.conflicts,
            lost_held: totals.lost,
            flushing: totals.flushing,
            memory_bytes: memory.used_bytes(),
            memory_blocks: memory.block_count() as u64,
            fill_bytes: inner.fills.budget().used_bytes(),
            fills: inner.fills.running_count() as u64,
            recovery: inner.recovery,
            health,
            writes_stopped: disks.iter().any(|disk| disk.writes_stopped),
            written_bytes: disks.iter().map(|disk| disk.written_bytes).sum(),
            store,
            disks,
        }
    }

    /// Fills in progress, those on their way to the disk included.
    #[must_use]
    pub fn fills_running(&self) -> usize {
        self.inner.fills.running_count()
    }

    /// Up to `max` dirty records, oldest first, with where each stands.
    #[must_use]
    pub fn dirty_items(&self, max: usize) -> Vec<DirtyItem> {
        self.inner.dirty.list(max)
    }
}
