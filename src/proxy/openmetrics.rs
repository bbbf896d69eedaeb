//! `/metrics`: the node's figures as OpenMetrics 1.0 text, encoded by `prometheus-client`.
//!
//! Rendered from a [`Status`] on each scrape; nothing is registered and nothing is counted here. All names begin with
//! `forebay_`; units are seconds and bytes.

use std::fmt;

use bytes::Bytes;
use forebay_shard::config::SyncMode;
use forebay_shard::disks::DiskStats;
use forebay_shard::outcome::DeclinedReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::problem::Problem;
use crate::proxy::metrics::Outcome;
use crate::proxy::status::Status;

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole exposition.
#[must_use]
pub fn render(status: &Status) -> Bytes {
    let mut registry = Registry::with_prefix("forebay");
    registry.register_collector(Box::new(Figures(families(status))));
    let mut text = String::with_capacity(32 << 10);
    encode(&mut text, &registry).expect("a string takes everything");
    text.into()
}

/// One metric family with its samples.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    /// The name of its one label; empty for a family of one sample without labels.
    label: &'static str,
    samples: Vec<(String, Sample)>,
}

#[derive(Debug)]
enum Sample {
    Counter(u64),
    Gauge(f64),
    Histogram { sum: f64, count: u64, buckets: Vec<(f64, u64)> },
}

#[derive(Debug)]
struct Figures(Vec<Family>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = match family.samples.first() {
                Some((_, Sample::Counter(_))) => MetricType::Counter,
                Some((_, Sample::Gauge(_))) => MetricType::Gauge,
                Some((_, Sample::Histogram { .. })) => MetricType::Histogram,
                None => continue,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            for (value, sample) in &family.samples {
                if family.label.is_empty() {
                    sample.encode(&mut metric)?;
                } else {
                    sample.encode(&mut metric.encode_family(&[(family.label, value.as_str())])?)?;
                }
            }
        }
        Ok(())
    }
}

impl Sample {
    fn encode(&self, metric: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Sample::Counter(count) => metric.encode_counter::<NoLabelSet, _, u64>(count, None),
            Sample::Gauge(value) => metric.encode_gauge(value),
            Sample::Histogram { sum, count, buckets } => {
                metric.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
            }
        }
    }
}

impl Family {
    fn counters<L: Into<String>>(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> Family {
        let samples = samples.into_iter().map(|(value, count)| (value.into(), Sample::Counter(count))).collect();
        Family { name, help, unit: None, label, samples }
    }

    fn gauges<L: Into<String>>(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> Family {
        let samples = samples.into_iter().map(|(value, now)| (value.into(), Sample::Gauge(now as f64))).collect();
        Family { name, help, unit: None, label, samples }
    }

    fn counter(name: &'static str, help: &'static str, count: u64) -> Family {
        Family::counters(name, help, "", [("", count)])
    }

    fn gauge(name: &'static str, help: &'static str, now: u64) -> Family {
        Family::gauges(name, help, "", [("", now)])
    }

    fn in_bytes(self) -> Family {
        Family { unit: Some(Unit::Bytes), ..self }
    }
}

fn families(status: &Status) -> Vec<Family> {
    let mut families = request_families(status);
    families.extend(connection_families(status));
    families.extend(block_families(status));
    families.extend(dirty_families(status));
    families.extend(memory_families(status));
    families.extend(store_families(status));
    families.extend(disk_families(status));
    families.push(Family::gauges("build_info", "The running version", "version", [(env!("CARGO_PKG_VERSION"), 1)]));
    let ready = u64::from(status.stage_name() == "ready");
    let sync = u64::from(status.facts.sync() == SyncMode::Always);
    families.push(Family::gauge("sync", "0 when an acknowledged write would not survive a power cut", sync));
    families.push(Family::gauge("ready", "1 while the node serves", ready));
    families
}

fn request_families(status: &Status) -> Vec<Family> {
    let requests = &status.requests;
    let durations = Outcome::ALL.iter().map(|outcome| {
        let (sum, count) = (requests.sum_seconds(*outcome), requests.count(*outcome));
        (outcome.label().to_owned(), Sample::Histogram { sum, count, buckets: requests.buckets(*outcome) })
    });
    vec![
        Family {
            name: "request_duration",
            help: "Time inside the node until the head of the answer was ready, by how the request ended",
            unit: Some(Unit::Seconds),
            label: "outcome",
            samples: durations.collect(),
        },
        Family::counters(
            "problems",
            "Answers that were problems, by type",
            "type",
            Problem::ALL.iter().map(|problem| (problem.slug(), requests.problems(*problem))),
        ),
        Family::counters("tokens_refused", "Tokens not accepted, by reason", "reason", requests.refusals()),
        Family::counters(
            "body",
            "Content of bodies",
            "direction",
            [("sent", requests.bytes_sent), ("received", requests.bytes_received)],
        )
        .in_bytes(),
        Family::counter("bodies_broken", "Answers that could not be sent to their end", requests.bodies_broken),
        Family::counter("bodies_repaired", "Blocks repaired within their request", requests.bodies_repaired),
        Family::counter("hops", "Requests that crossed to another core", requests.hops),
        Family::counter("leases", "Answers that told to spread the reads of a hot block", requests.leases),
        Family::gauge("requests_in_flight", "Requests without an answer yet", requests.in_flight),
    ]
}

fn connection_families(status: &Status) -> Vec<Family> {
    let sum = |count: fn(&crate::proxy::connections::ConnectionCounts) -> u64| {
        status.cores.iter().map(|core| count(&core.connections)).sum::<u64>()
    };
    let per_core = status.cores.iter();
    vec![
        Family::gauge("connections", "Open connections", sum(|counts| counts.open)),
        Family::counter("connections_accepted", "Connections accepted", sum(|counts| counts.accepted)),
        Family::counters(
            "connections_refused",
            "Connections closed without service, by reason",
            "reason",
            [
                ("over-cap", sum(|counts| counts.over_cap)),
                ("handshake-failed", sum(|counts| counts.handshakes_failed)),
                ("handshake-timeout", sum(|counts| counts.expired_handshake)),
                ("idle-timeout", sum(|counts| counts.expired_idle)),
                ("header-timeout", sum(|counts| counts.expired_header)),
                ("body-timeout", sum(|counts| counts.expired_body)),
                ("write-timeout", sum(|counts| counts.expired_reader)),
            ],
        ),
        Family::gauges(
            "core_queue_depth",
            "Messages of other cores waiting for this one",
            "core",
            per_core.map(|core| (core.core.to_string(), core.queue_depth)),
        ),
    ]
}

fn block_families(status: &Status) -> Vec<Family> {
    let (bytes, events): (Vec<_>, Vec<_>) =
        status.total.counts.named().into_iter().partition(|(name, _)| name.starts_with("bytes_"));
    let bytes = bytes.into_iter().map(|(name, count)| (name.trim_start_matches("bytes_").replace('_', "-"), count));
    let events = events.into_iter().map(|(name, count)| (name.replace('_', "-"), count));
    let declined = status.total.declined.iter().map(|(reason, count)| (declined_label(*reason), *count));
    vec![
        Family::counters("shard_events", "What shards did, by what", "event", events),
        Family::counters("shard", "Content that shards moved, by what", "kind", bytes).in_bytes(),
        Family::counters("declined", "Requests that shards declined, by reason", "reason", declined),
        Family::gauge("fills", "Fills in progress", status.total.fills),
    ]
}

fn declined_label(reason: DeclinedReason) -> &'static str {
    match reason {
        DeclinedReason::DirtyFull => "dirty-full",
        DeclinedReason::DiskFull => "disk-full",
        DeclinedReason::FillsFull => "fills-full",
        DeclinedReason::DiskFault => "disk-fault",
        DeclinedReason::QueueFull => "queue-full",
        DeclinedReason::Stopping => "stopping",
        DeclinedReason::Unsettled => "unsettled",
    }
}

fn dirty_families(status: &Status) -> Vec<Family> {
    let total = &status.total;
    let age = Sample::Gauge(status.dirty_oldest_age().as_secs_f64());
    vec![
        Family::gauge("dirty", "Acknowledged and not yet in the object store", total.dirty_bytes).in_bytes(),
        Family::gauge("dirty_budget", "What may be dirty", total.dirty_bytes_max).in_bytes(),
        Family::gauge("dirty_records", "Dirty blocks and tombstones", total.dirty_records),
        Family {
            name: "dirty_oldest_age",
            help: "How long the oldest dirty record has been waiting",
            unit: Some(Unit::Seconds),
            label: "",
            samples: vec![(String::new(), age)],
        },
        Family::gauge("dirty_flushing", "Flushes in progress", total.flushing),
        Family::gauge("dirty_conflicts", "Dirty blocks whose key has other bytes at the origin", total.conflicts_held),
        Family::gauge("dirty_lost", "Dirty blocks that rotted", total.lost_held),
    ]
}

fn memory_families(status: &Status) -> Vec<Family> {
    let uses = status.memory_uses();
    vec![
        Family::gauges("memory", "Memory in use, by use", "use", uses.map(|(name, used, _)| (name, used))).in_bytes(),
        Family::gauges("memory_budget", "Memory at most, by use", "use", uses.map(|(name, _, max)| (name, max)))
            .in_bytes(),
        Family::gauge("memory_blocks", "Blocks in the memory tier", status.total.memory_blocks),
    ]
}

fn disk_families(status: &Status) -> Vec<Family> {
    let health = status.shards.iter().map(|(number, stats)| (number.to_string(), stats.health.state as u64));
    let stopped = status.shards.iter().map(|(number, stats)| (number.to_string(), u64::from(stats.writes_stopped)));
    let events = status.total.health.counts.named();
    let each = |figure: fn(&DiskStats) -> u64| {
        status.disks().map(|(disk, stats)| (disk.path.clone(), figure(stats))).collect::<Vec<_>>()
    };
    vec![
        Family::gauges(
            "disk_state",
            "0 ok, 1 degraded, 2 offline, by disk",
            "disk",
            each(|disk| disk.health.state as u64),
        ),
        Family::gauges(
            "disk_away",
            "1 for a disk that could not be opened",
            "disk",
            each(|disk| u64::from(disk.away.is_some())),
        ),
        Family::gauges(
            "disk_dirty_records",
            "Dirty blocks and tombstones, by disk",
            "disk",
            each(|disk| disk.store.dirty_entries),
        ),
        Family::gauges("disk_entries", "Blocks and tombstones, by disk", "disk", each(|disk| disk.store.entries)),
        Family::gauges(
            "disk_strays",
            "Dirty blocks that belong to another disk, by disk",
            "disk",
            each(|disk| disk.strays),
        ),
        Family::counters(
            "disk_errors",
            "Operations that failed, by disk",
            "disk",
            each(|disk| disk.health.counts.errors),
        ),
        Family::gauges("disk_health", "0 ok, 1 degraded, 2 offline, by shard", "shard", health),
        Family::gauges("disk_writes_stopped", "1 after a failed sync, until the disk is back", "shard", stopped),
        Family::counters("disk_events", "What happened to disks, by what", "event", events),
    ]
}

fn store_families(status: &Status) -> Vec<Family> {
    let store = &status.total.store;
    vec![
        Family::gauge("store_entries", "Blocks and tombstones in the index", store.entries),
        Family::gauges(
            "store_regions",
            "Regions, by state",
            "state",
            [
                ("free", store.regions_free),
                ("sealed", store.regions_sealed),
                ("quarantined", store.regions_quarantined),
            ],
        ),
        Family::gauge("store_pinned_blocks", "Blocks that stay on disk until they are unpinned", store.pinned_entries),
        Family::gauge("store_pinned", "What they occupy", store.pinned_bytes).in_bytes(),
        Family::gauge("store_pinned_limit", "What they may occupy", store.pinned_bytes_max).in_bytes(),
        Family::gauge("store_journal_used", "Journal that no checkpoint covers yet", store.journal_used_bytes)
            .in_bytes(),
        Family::counters(
            "store_events",
            "What stores did, by what",
            "event",
            [
                ("commit", store.commits),
                ("sync", store.syncs),
                ("checkpoint", store.checkpoints),
                ("reclaim", store.reclaimed),
                ("evict", store.evicted),
                ("relocate", store.relocated),
                ("reinsert", store.reinserted),
                ("reinsert-forgone", store.reinsertions_forgone),
                ("pinned-moved", store.pinned_moved),
                ("pin-lost", store.pins_lost),
                ("ghost-hit", store.ghost_hits),
                ("fill-declined", store.fills_declined),
            ],
        ),
        Family::gauges(
            "store_recovery_rejected",
            "What the last recovery did not take, by reason",
            "reason",
            status.total.recovery.rejected.named().into_iter().map(|(name, count)| (name.replace('_', "-"), count)),
        ),
        Family::gauge(
            "store_recovery_salvaged",
            "Shards recovered from a damaged disk",
            status.total.recovery.salvaged,
        ),
        Family::gauge("store_recovery_unsure", "Dirty records that came back unsure", status.total.recovery.unsure),
        Family::gauges(
            "store_recovery_milliseconds",
            "How long the last recovery took, by phase",
            "phase",
            status.total.recovery.work.phases_ms(),
        ),
        Family::counter("store_appended", "Payload appended", store.appended_bytes).in_bytes(),
        Family::counter("store_reinserted", "Payload of used blocks that was appended again", store.reinserted_bytes)
            .in_bytes(),
        Family::counter("disk_written", "All that was written to disks", status.total.written_bytes).in_bytes(),
        Family::counter("served", "Content that GETs were answered with, for comparison", status.total.served_bytes())
            .in_bytes(),
    ]
}
