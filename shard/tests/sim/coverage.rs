//! How often each fault fired and each rare state was reached, counted by the disk, the origin and the engine itself.
//!
//! Filled by `run` at the end of each life, summed over runs and judged by `campaign`: what was never reached was not
//! tested, and fails a run that asked for coverage.

use std::fmt::Write;

use forebay_io::sim::Fired;
use forebay_shard::outcome::DeclinedReason;
use forebay_shard::shard::RecoveryReport;
use forebay_shard::sim_origin::OriginFired;
use forebay_shard::stats::ShardStats;

use super::client::StrayCounts;

/// What can be reached, in the order of the table.
const NAMES: &[&str] = &[
    // The disk.
    "disk: EIO on read",
    "disk: a sector answers EIO at recovery",
    "disk: EIO on write",
    "disk: EIO on sync",
    "disk: ENOSPC",
    "disk: bit flipped",
    "disk: write lost",
    "disk: write misdirected",
    "disk: latency spike",
    "crash",
    "crash: unsynced write kept",
    "crash: unsynced write dropped",
    "crash: unsynced write torn",
    "crash: writes reordered",
    "crash in recovery",
    "a stopped disk verified",
    // The origin.
    "origin: slow",
    "origin: unreachable",
    "origin: error on fetch",
    "origin: error on store",
    "origin: error on head",
    "origin: error on delete",
    "origin: wrong length",
    "origin: wrong bytes",
    "origin: reset mid-body",
    "origin: precondition failed",
    "origin: unknown outcome of a store",
    "origin: unknown outcome of a delete",
    // The journal and its checkpoints.
    "checkpoint torn",
    "journal wrap",
    "journal frame torn",
    "payload torn",
    "superblock copy damaged",
    "recovery past an unreadable sector",
    "clean close and open",
    // Regions.
    "reclaim of a region with dirty records",
    "reclaim waited for a reader's pin",
    "relocation of a dirty block",
    "relocation raced by overwrite",
    "relocation raced by delete",
    "relocation raced by flush",
    "clean block re-inserted",
    "re-insertion raced by put",
    "re-insertion raced by delete or purge",
    "used block evicted all the same",
    "fill of a block known to have gone",
    "block pinned",
    "block fetched to be pinned",
    "pin refused, too much is pinned",
    "pinned block moved by reclaim",
    "pin lost with its bytes",
    "fill declined by the write budget",
    "footer torn or missing",
    "region quarantined",
    "newer record's region died before the older's",
    "disk full of dirty and pinned",
    "writes refused after a failed sync",
    // The disk's health.
    "disk degraded",
    "disk offline",
    "disk offline and back",
    "disk slow",
    "disk stalled",
    "journal begun anew after a failed sync",
    "offline: a GET passed the disk by",
    "offline: a dirty block withheld",
    "a put written through, the disk was not well",
    // Several disks.
    "disks: two at work",
    "disks: one added",
    "disks: one taken out",
    "disks: one not taken out, it holds dirty blocks",
    "disks: one given up with what was dirty there",
    "disks: one missing at a start",
    "disks: one that could not be opened",
    "disks: a missing one is back with dirty blocks",
    "disks: a dirty block withheld, its disk is missing",
    "disks: one offline with dirty blocks, the other takes writes",
    "disks: strays met at a start",
    "disks: a stray read",
    "disks: a stray deleted",
    "disks: a stray put over",
    "disks: a stray went home",
    "disks: power cut while strays are left",
    "disks: crash in recovery after the set has changed",
    // Fills and flushes.
    "fill raced by put",
    "fill raced by delete",
    "fill raced by purge",
    "fill joined",
    "fill abandoned",
    "fill failed",
    "flush raced by delete",
    "flush raced by delete and put",
    "flush failed",
    "conflict at the origin",
    "dirty budget full",
    "put refused",
    "put unchanged",
    // Rot.
    "clean block rotted",
    "dirty block rotted: repaired from memory",
    "dirty block rotted: lost",
];

/// Counts by name.
#[derive(Clone)]
pub struct Coverage(Vec<u64>);

impl Default for Coverage {
    fn default() -> Self {
        Coverage(vec![0; NAMES.len()])
    }
}

impl Coverage {
    fn add_to(&mut self, name: &str, count: u64) {
        let index = NAMES.iter().position(|known| *known == name).expect("every state is in the table");
        self.0[index] += count;
    }

    /// What the disks of one life met, and the verbs that met strays.
    pub fn add_disks(&mut self, stats: &ShardStats, strays: &StrayCounts) {
        let is_missing = stats.disks.iter().any(|disk| disk.away.is_some());
        for (name, count) in [
            ("disks: a dirty block withheld, its disk is missing", u64::from(is_missing) * stats.counts.withheld),
            ("disks: a stray read", strays.read.take()),
            ("disks: a stray deleted", strays.deleted.take()),
            ("disks: a stray put over", strays.put.take()),
        ] {
            self.add_to(name, count);
        }
    }

    /// So many more of something that the director itself counts.
    pub fn some(&mut self, name: &str, count: u64) {
        self.add_to(name, count);
    }

    /// One more of something that the director itself does.
    pub fn one(&mut self, name: &str) {
        self.add_to(name, 1);
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Coverage) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, count)| *sum += count);
    }

    /// What struck in a whole run.
    pub fn add_faults(&mut self, disk: &Fired, origin: &OriginFired) {
        for (name, count) in [
            ("disk: EIO on read", disk.read_error),
            ("disk: a sector answers EIO at recovery", disk.broken_sector),
            ("disk: EIO on write", disk.write_error),
            ("disk: EIO on sync", disk.sync_error),
            ("disk: ENOSPC", disk.no_space),
            ("disk: bit flipped", disk.bit_flip),
            ("disk: write lost", disk.lost_write),
            ("disk: write misdirected", disk.misdirected_write),
            ("disk: latency spike", disk.latency_spike),
            ("crash", disk.crash),
            ("crash: unsynced write kept", disk.crash_kept),
            ("crash: unsynced write dropped", disk.crash_dropped),
            ("crash: unsynced write torn", disk.crash_torn),
            ("crash: writes reordered", disk.crash_reordered),
            ("origin: slow", origin.slow),
            ("origin: unreachable", origin.link_down),
            ("origin: error on fetch", origin.fetch_error),
            ("origin: error on store", origin.store_error),
            ("origin: error on head", origin.head_error),
            ("origin: error on delete", origin.delete_error),
            ("origin: wrong length", origin.wrong_length),
            ("origin: wrong bytes", origin.wrong_bytes),
            ("origin: reset mid-body", origin.reset),
            ("origin: precondition failed", origin.precondition_failed),
            ("origin: unknown outcome of a store", origin.store_unknown),
            ("origin: unknown outcome of a delete", origin.delete_unknown),
        ] {
            self.add_to(name, count);
        }
    }

    /// What a shard met in one life.
    pub fn add_life(&mut self, stats: &ShardStats) {
        let (counts, store) = (&stats.counts, &stats.store);
        let declined = |reason| stats.declined.get(&reason).copied().unwrap_or(0);
        for (name, count) in [
            ("journal wrap", store.journal_wraps),
            ("reclaim of a region with dirty records", store.reclaimed_dirty),
            ("reclaim waited for a reader's pin", store.reclaims_pinned),
            ("relocation of a dirty block", store.relocated),
            ("relocation raced by overwrite", store.relocations_overwritten),
            ("relocation raced by delete", store.relocations_deleted),
            ("relocation raced by flush", store.relocations_flushed),
            ("clean block re-inserted", store.reinserted),
            ("re-insertion raced by put", store.reinsertions_overwritten),
            ("re-insertion raced by delete or purge", store.reinsertions_deleted),
            ("used block evicted all the same", store.reinsertions_forgone),
            ("fill of a block known to have gone", store.ghost_hits),
            ("block pinned", counts.pins),
            ("block fetched to be pinned", counts.pins_filled),
            ("pin refused, too much is pinned", counts.pins_refused),
            ("pinned block moved by reclaim", store.pinned_moved),
            ("pin lost with its bytes", store.pins_lost),
            ("fill declined by the write budget", store.fills_declined),
            ("footer torn or missing", store.footers_missing),
            ("region quarantined", store.regions_quarantined),
            ("disk full of dirty and pinned", declined(DeclinedReason::DiskFull)),
            ("writes refused after a failed sync", declined(DeclinedReason::DiskFault)),
            ("disk degraded", stats.health.counts.degraded),
            ("disk offline", stats.health.counts.offline),
            ("disk offline and back", u64::from(stats.health.counts.offline > 0) * stats.health.counts.returned),
            ("disk slow", stats.health.counts.slow),
            ("disk stalled", stats.health.counts.stalls),
            ("journal begun anew after a failed sync", stats.health.counts.refounded),
            ("offline: a GET passed the disk by", counts.passed_by),
            ("offline: a dirty block withheld", counts.withheld),
            ("a put written through, the disk was not well", counts.written_through),
            ("fill raced by put", counts.fills_raced_by_put),
            ("fill raced by delete", counts.fills_raced_by_delete),
            ("fill raced by purge", counts.fills_raced_by_purge),
            ("fill joined", counts.collapsed),
            ("fill abandoned", counts.fills_abandoned),
            ("fill failed", counts.fills_failed),
            ("flush raced by delete", counts.flushes_raced_by_delete),
            ("flush raced by delete and put", counts.flushes_raced_by_put),
            ("flush failed", counts.flushes_failed),
            ("conflict at the origin", counts.conflicts),
            ("dirty budget full", declined(DeclinedReason::DirtyFull)),
            ("put refused", counts.puts_refused),
            ("put unchanged", counts.puts_unchanged),
            ("clean block rotted", counts.rot),
            ("dirty block rotted: repaired from memory", counts.repaired),
            ("dirty block rotted: lost", counts.lost),
        ] {
            self.add_to(name, count);
        }
    }

    /// What a recovery met.
    pub fn add_recovery(&mut self, report: &RecoveryReport) {
        let rejected = &report.rejected;
        for (name, count) in [
            ("checkpoint torn", rejected.checkpoint_slots),
            ("journal frame torn", rejected.torn_frames),
            ("payload torn", rejected.torn_payload),
            ("superblock copy damaged", rejected.superblocks),
            ("recovery past an unreadable sector", rejected.unreadable_sectors),
            ("newer record's region died before the older's", rejected.outlived),
        ] {
            self.add_to(name, count);
        }
    }

    /// What was never reached.
    pub fn missing(&self) -> Vec<&'static str> {
        NAMES.iter().zip(&self.0).filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect()
    }

    /// The table, one line each.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for (name, count) in NAMES.iter().zip(&self.0) {
            let mark = if *count == 0 { "  NEVER" } else { "" };
            writeln!(table, "  {name:<62} {count:>12}{mark}").expect("a String takes everything");
        }
        table
    }
}
