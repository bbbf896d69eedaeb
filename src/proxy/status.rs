//! `/v1/status`: the node's figures for people, and the one place where those of all cores and shards are added up.
//!
//! Gathered on demand by `handler/node`; `openmetrics` renders the same for machines. The figures that `forebay dev` shows
//! (hits, misses, dirty, payload) stand at the top level.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use forebay_shard::config::SyncMode;
use forebay_shard::disks::DiskStats;
use forebay_shard::health::HealthReport;
use forebay_shard::stats::ShardStats;
use serde_json::{Value, json};

use crate::config::budget::Budget;
use crate::problem::Problem;
use crate::proxy::blocks::Blocks;
use crate::proxy::following::Sight;
use crate::proxy::handler::Stage;
use crate::proxy::metrics::{Outcome, Snapshot};
use crate::proxy::node_file::OtherCapacity;
use crate::proxy::report::CoreReport;
use crate::proxy::topology::Topology;

/// Said loudly wherever it is shown: the operator gave a promise up.
pub const NO_SYNC: &str =
    "sync = false: an acknowledged write survives the process, not a power cut; set sync = true in [[disk]]";

/// What does not change while a node runs.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Names and ports.
    pub topology: Topology,
    /// When it started.
    pub started: Instant,
    /// The volumes' names, of a node without an admin.
    pub volumes: Vec<String>,
    /// The split of its memory.
    pub budget: Budget,
    /// The disks, in order.
    pub disks: Vec<DiskFacts>,
    /// What the admin says, if there is one.
    pub following: Option<Arc<Sight>>,
}

/// What does not change of a disk.
#[derive(Debug, Clone)]
pub struct DiskFacts {
    /// The directory.
    pub path: String,
    /// 32 hexadecimal digits.
    pub id: String,
    /// Whether an acknowledgement from it means stable storage.
    pub sync: SyncMode,
    /// Another capacity is configured than it was formatted for.
    pub other_capacity: Option<OtherCapacity>,
}

impl DiskFacts {
    /// Of a disk with the capacity that is configured.
    #[must_use]
    pub fn new(path: String, id: String, sync: SyncMode) -> DiskFacts {
        DiskFacts { path, id, sync, other_capacity: None }
    }

    /// What to tell of a capacity that is not in force, with the way to it.
    #[must_use]
    pub fn capacity_warning(&self) -> Option<String> {
        let OtherCapacity { formatted_bytes, configured_bytes } = self.other_capacity?;
        Some(format!(
            "the disk {} at {} was formatted with room for {} MiB of blocks, its [[disk]] now makes {} MiB and is not applied: take the disk out, \
             clear its directory and add it again (README, \"Several disks\"), or set capacity back",
            self.id,
            self.path,
            formatted_bytes >> 20,
            configured_bytes >> 20
        ))
    }
}

impl NodeFacts {
    /// Whether an acknowledgement from disk means stable storage: only if it does on every disk.
    #[must_use]
    pub fn sync(&self) -> SyncMode {
        match self.disks.iter().all(|disk| disk.sync == SyncMode::Always) {
            true => SyncMode::Always,
            false => SyncMode::Never,
        }
    }
}

/// A node at one moment.
#[derive(Debug)]
pub struct Status {
    /// What does not change.
    pub facts: NodeFacts,
    /// Whether it serves.
    pub stage: Stage,
    /// Each core.
    pub cores: Vec<CoreReport>,
    /// All cores' requests.
    pub requests: Snapshot,
    /// Each shard.
    pub shards: Vec<(u16, ShardStats)>,
    /// All shards.
    pub total: ShardStats,
}

impl Status {
    /// Asks every core.
    pub async fn gather<B: Blocks>(blocks: &B, facts: &NodeFacts, stage: Stage) -> Status {
        let (cores, shards) = futures::future::join(blocks.reports(), blocks.stats()).await;
        let (mut requests, mut total) = (Snapshot::default(), ShardStats::default());
        cores.iter().for_each(|core| requests.add(&core.requests));
        shards.iter().for_each(|(_, stats)| total.add(stats));
        Status { facts: facts.clone(), stage, cores, requests, shards, total }
    }

    /// How long the oldest dirty record has been waiting; zero if there is none.
    #[must_use]
    pub fn dirty_oldest_age(&self) -> Duration {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        let age_ms = self.total.dirty_oldest_unix_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        Duration::from_millis(age_ms)
    }

    /// GETs answered from this node's memory or disk.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.total.counts.hits_memory + self.total.counts.hits_disk
    }

    /// GETs that needed the origin, first or in company.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.total.counts.misses + self.total.counts.collapsed
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        let total = &self.total;
        let document = json!({
            "node": self.facts.topology.node,
            "version": env!("CARGO_PKG_VERSION"),
            "state": self.stage_name(),
            "uptime_seconds": self.facts.started.elapsed().as_secs(),
            "volumes": self.volumes(),
            "admin": self.admin_json(),
            "hits": self.hits(),
            "misses": self.misses(),
            "dirty_blocks": total.dirty_records,
            "dirty_bytes": total.dirty_bytes,
            "payload_bytes": self.requests.bytes_sent + self.requests.bytes_received,
            "requests": self.requests_json(),
            "dirty": self.dirty_json(),
            "pinned": pinned_json(total),
            "sync": self.facts.sync() == SyncMode::Always,
            "warnings": self.warnings(),
            "memory": self.memory_json(),
            "disk": disk_json(total),
            "disks": self.disks().map(|(facts, stats)| one_disk_json(facts, stats)).collect::<Vec<_>>(),
            "cores": self.cores.iter().map(core_json).collect::<Vec<_>>(),
            "shards": self.shards.iter().map(|(number, stats)| shard_json(*number, stats)).collect::<Vec<_>>(),
        });
        #[cfg(feature = "canaries")]
        let document = with_canary(document);
        let mut text = serde_json::to_vec_pretty(&document).expect("it has only strings and numbers");
        text.push(b'\n');
        text.into()
    }

    /// What an operator should know even if nobody asked: one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        if self.facts.sync() == SyncMode::Never {
            warnings.push(NO_SYNC.to_owned());
        }
        warnings.extend(self.facts.disks.iter().filter_map(DiskFacts::capacity_warning));
        if let Some(sight) = &self.facts.following {
            let applied = sight.applied();
            warnings.extend(applied.warnings);
            warnings
                .extend(applied.refused.iter().map(|(volume, why)| format!("volume {volume} is not served: {why}")));
            if let Some(error) = sight.health().error {
                warnings.push(format!("the admin was not heard: {error}; what it said last goes on"));
            }
        }
        for (disk, stats) in self.disks() {
            if let Some(why) = &stats.away {
                warnings.push(format!(
                    "the disk {} at {} is away ({why}): its blocks are passed by, and those that may be dirty there answer 503",
                    disk.id, disk.path
                ));
            }
        }
        warnings
    }

    /// Each disk, with the figures of all shards on it.
    pub fn disks(&self) -> impl Iterator<Item = (&DiskFacts, &DiskStats)> {
        self.facts.disks.iter().zip(&self.total.disks)
    }

    /// `starting`, `ready` or `draining`.
    #[must_use]
    pub fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Starting => "starting",
            Stage::Ready => "ready",
            Stage::Draining => "draining",
        }
    }

    /// The volumes that are served.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        match &self.facts.following {
            Some(sight) => sight.applied().volumes,
            None => self.facts.volumes.clone(),
        }
    }

    /// What the admin said last, when, and what became of it.
    fn admin_json(&self) -> Value {
        let Some(sight) = &self.facts.following else { return Value::Null };
        let (health, applied) = (sight.health(), sight.applied());
        let is_leaving = |volume: &str| !applied.volumes.iter().any(|served| served == volume);
        let leaving = self.total.dirty_by_volume.iter().filter(|(volume, _)| is_leaving(volume));
        json!({
            "url": sight.link.url,
            "group": sight.link.group,
            "member": applied.member,
            "revision": applied.revision,
            "source": if health.heard.is_some() { "admin" } else { "cache" },
            "heard_seconds_ago": health.heard.map(|heard| heard.elapsed().as_secs()),
            "error": health.error,
            "refused": applied.refused,
            "leaving_dirty_blocks": leaving
                .map(|(volume, dirty)| (volume.to_string(), (*dirty).into()))
                .collect::<serde_json::Map<_, _>>(),
        })
    }

    fn requests_json(&self) -> Value {
        let requests = &self.requests;
        let outcomes = Outcome::ALL.iter().filter(|outcome| requests.count(**outcome) > 0).map(|outcome| {
            let us = |quantile| requests.quantile_us(*outcome, quantile);
            let figures = json!({
                "count": requests.count(*outcome), "p50_us": us(0.5), "p99_us": us(0.99), "max_us": us(1.0),
            });
            (outcome.label().to_owned(), figures)
        });
        let problems = Problem::ALL.iter().filter(|problem| requests.problems(**problem) > 0);
        json!({
            "outcomes": outcomes.collect::<serde_json::Map<_, _>>(),
            "problems": problems
                .map(|problem| (problem.slug().to_owned(), requests.problems(*problem).into()))
                .collect::<serde_json::Map<_, _>>(),
            "in_flight": requests.in_flight,
            "hops": requests.hops,
            "leases": requests.leases,
            "bytes_sent": requests.bytes_sent,
            "bytes_received": requests.bytes_received,
            "bodies_broken": requests.bodies_broken,
            "bodies_repaired": requests.bodies_repaired,
        })
    }

    fn dirty_json(&self) -> Value {
        let total = &self.total;
        json!({
            "records": total.dirty_records,
            "bytes": total.dirty_bytes,
            "bytes_max": total.dirty_bytes_max,
            "oldest_age_seconds": self.dirty_oldest_age().as_secs(),
            "flushing": total.flushing,
            "conflicts": total.conflicts_held,
            "lost": total.lost_held,
        })
    }

    fn memory_json(&self) -> Value {
        let uses =
            self.memory_uses().map(|(name, used, max)| (name.to_owned(), json!({ "bytes": used, "bytes_max": max })));
        json!({
            "bytes_max": self.facts.budget.memory_bytes,
            "uses": uses.into_iter().collect::<serde_json::Map<_, _>>(),
        })
    }

    /// What memory is used for: name, bytes in use, bytes at most.
    #[must_use]
    pub fn memory_uses(&self) -> [(&'static str, u64, u64); 5] {
        let (total, budget) = (&self.total, &self.facts.budget);
        [
            ("tier", total.memory_bytes, budget.memory_tier_bytes),
            ("fills", total.fill_bytes, budget.fill_bytes),
            ("puts", self.requests.put_bytes_held, budget.put_bytes),
            ("index", total.store.index_bytes, budget.index_bytes),
            ("ghosts", total.store.ghost_bytes, budget.ghost_bytes),
        ]
    }
}

/// A node that loses data on purpose says so.
#[cfg(feature = "canaries")]
fn with_canary(mut document: Value) -> Value {
    let notice = forebay_shard::canary::notice().unwrap_or_else(|error| error);
    document["canary"] = notice.into();
    document
}

fn core_json(core: &CoreReport) -> Value {
    json!({
        "core": core.core,
        "connections": core.connections.open,
        "requests_in_flight": core.requests.in_flight,
        "queue_depth": core.queue_depth,
    })
}

/// The health of a shard's disk; of several, of the worst.
fn disk_json(stats: &ShardStats) -> Value {
    let mut document = health_json(&stats.health);
    document["takes_writes"] = (!stats.writes_stopped).into();
    document["dirty_records"] = stats.dirty_records.into();
    document["policy"] = policy_json(stats);
    document
}

/// One disk of the node.
fn one_disk_json(facts: &DiskFacts, stats: &DiskStats) -> Value {
    let mut document = health_json(&stats.health);
    let store = &stats.store;
    let more = [
        ("path", facts.path.as_str().into()),
        ("id", facts.id.as_str().into()),
        ("sync", (facts.sync == SyncMode::Always).into()),
        ("away", stats.away.as_deref().into()),
        ("takes_writes", (!stats.writes_stopped).into()),
        ("entries", store.entries.into()),
        ("dirty_records", store.dirty_entries.into()),
        ("dirty_bytes", store.dirty_bytes.into()),
        ("pinned_blocks", store.pinned_entries.into()),
        ("pinned_bytes", store.pinned_bytes.into()),
        ("pinned_bytes_max", store.pinned_bytes_max.into()),
        ("written_bytes", stats.written_bytes.into()),
        ("strays", stats.strays.into()),
        ("regions_free", store.regions_free.into()),
        ("regions_sealed", store.regions_sealed.into()),
        ("regions_quarantined", store.regions_quarantined.into()),
    ];
    for (name, value) in more {
        document[name] = value;
    }
    document
}

fn health_json(health: &HealthReport) -> Value {
    json!({
        "state": health.state.name(),
        "reason": health.reason.map(|reason| reason.name()),
        "since_unix_ms": (health.since_unix_ms > 0).then_some(health.since_unix_ms),
        "errors_in_window": health.errors,
        "probes_good": health.probes_good,
        "probes_needed": health.probes_needed,
        "counts": health.counts.named().into_iter().map(|(name, count)| (name.to_owned(), count.into()))
            .collect::<serde_json::Map<_, _>>(),
    })
}

/// What clients asked to stay on disk, and the share that they may ask for.
fn pinned_json(stats: &ShardStats) -> Value {
    let store = &stats.store;
    json!({
        "blocks": store.pinned_entries,
        "bytes": store.pinned_bytes,
        "bytes_max": store.pinned_bytes_max,
        "moved": store.pinned_moved,
        "lost": store.pins_lost,
    })
}

/// What the policy of the disk did, and what it cost: bytes written for each byte that was served.
fn policy_json(stats: &ShardStats) -> Value {
    let store = &stats.store;
    let per_byte = stats.written_bytes as f64 / stats.served_bytes().max(1) as f64;
    json!({
        "reinserted_blocks": store.reinserted,
        "reinserted_bytes": store.reinserted_bytes,
        "reinsertions_forgone": store.reinsertions_forgone,
        "ghost_hits": store.ghost_hits,
        "fills_declined": store.fills_declined,
        "written_bytes": stats.written_bytes,
        "served_bytes": stats.served_bytes(),
        "written_per_byte_served": (per_byte * 1e4).round() / 1e4,
    })
}

fn shard_json(number: u16, stats: &ShardStats) -> Value {
    let store = &stats.store;
    json!({
        "shard": number,
        "entries": store.entries,
        "memory_blocks": stats.memory_blocks,
        "fills": stats.fills,
        "dirty_records": stats.dirty_records,
        "regions": {
            "free": store.regions_free, "sealed": store.regions_sealed, "quarantined": store.regions_quarantined,
        },
        "journal_used_bytes": store.journal_used_bytes,
        "disk": disk_json(stats),
        "counts": stats.counts.named().into_iter().map(|(name, count)| (name.to_owned(), count.into()))
            .collect::<serde_json::Map<_, _>>(),
        "recovered": {
            "entries": stats.recovery.entries,
            "dirty_blocks": stats.recovery.dirty_blocks,
            "tombstones": stats.recovery.tombstones,
            "unsure": stats.recovery.unsure,
            "by": if stats.recovery.salvaged > 0 { "salvage" } else { "journal" },
            "records": stats.recovery.work.records,
            "ms": stats.recovery.work.phases_ms().into_iter().map(|(name, ms)| (name.to_owned(), ms.into()))
                .collect::<serde_json::Map<_, _>>(),
            "rejected": stats.recovery.rejected.named().into_iter().filter(|(_, count)| *count > 0)
                .map(|(name, count)| (name.to_owned(), count.into()))
                .collect::<serde_json::Map<_, _>>(),
        },
    })
}
