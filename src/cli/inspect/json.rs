//! What `forebay inspect --json` prints: one JSON object per line, for each shard; of `records` one for each record.
//!
//! Called by `inspect`. Sizes are bytes, moments milliseconds since 1970, ids and identities hexadecimal; keys are not
//! encoded beyond what JSON asks for. Names are part of the interface: add, don't rename.

use std::io::Write;

use anyhow::Result;
use forebay_io::superblock::Superblock;
use forebay_shard::origin::Etag;
use forebay_shard::store::inspect::footers::FooterState;
use forebay_shard::store::inspect::journal::{JournalEnd, JournalView, Spare};
use forebay_shard::store::inspect::regions::{RecordIs, RecordLine, RegionIs, RegionView, Stream};
use forebay_shard::store::inspect::slots::{Slot, SlotState, current};
use forebay_shard::store::inspect::{RecordCounts, Recovery, Superblocks};
use forebay_shard::store::{DirtyKind, DirtyRecord};
use serde_json::{Value, json};

fn line(out: &mut dyn Write, value: &Value) -> Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

pub fn unread(out: &mut dyn Write, shard: u16, error: &anyhow::Error) -> Result<()> {
    line(out, &json!({ "shard": shard, "error": format!("{error:#}") }))
}

pub fn superblocks(out: &mut dyn Write, shard: u16, superblocks: &Superblocks) -> Result<()> {
    line(out, &json!({ "shard": shard, "superblock": superblock_values(superblocks) }))
}

fn superblock_values(superblocks: &Superblocks) -> Value {
    let copies: Vec<Value> = superblocks
        .copies
        .iter()
        .map(|copy| match copy {
            Ok(superblock) => superblock_value(superblock),
            Err(why) => json!({ "error": why.to_string() }),
        })
        .collect();
    json!({ "file": superblocks.name, "file_bytes": superblocks.slab_bytes, "copies": copies })
}

fn superblock_value(superblock: &Superblock) -> Value {
    json!({
        "node": format!("{:032x}", superblock.node_id),
        "store": format!("{:016x}", superblock.store_id),
        "shard": superblock.shard,
        "shards": superblock.shard_count,
        "created_unix_ms": superblock.created_unix_ms,
        "journal_bytes": superblock.journal_bytes,
        "region_bytes": superblock.region_bytes,
        "regions": superblock.region_count,
        "slab_bytes": superblock.slab_bytes(),
    })
}

pub fn slots(out: &mut dyn Write, shard: u16, slots: &[Slot; 2]) -> Result<()> {
    line(out, &json!({ "shard": shard, "checkpoints": slot_values(slots) }))
}

fn slot_values(slots: &[Slot; 2]) -> Value {
    let current = current(slots).map(|slot| &slot.name);
    let values = slots.iter().map(|slot| {
        let (state, damage) = match &slot.state {
            SlotState::Missing => ("missing", None),
            SlotState::Unfinished => ("unfinished", None),
            SlotState::Whole => ("whole", None),
            SlotState::Damaged { at, what } => ("damaged", Some(json!({ "offset": at, "what": what }))),
        };
        json!({
            "file": slot.name,
            "file_bytes": slot.file_bytes,
            "state": state,
            "current": Some(&slot.name) == current,
            "damage": damage,
            "number": slot.header.map(|header| header.number),
            "journal_position": slot.header.map(|header| header.position),
            "journal_sequence": slot.header.map(|header| header.sequence),
            "next_generation": slot.header.map(|header| header.next_generation),
            "frames": slot.frames,
            "used_bytes": slot.used_bytes,
            "records": record_counts(&slot.records),
        })
    });
    values.collect()
}

fn record_counts(records: &RecordCounts) -> Value {
    json!({
        "clean_puts": records.clean_puts,
        "dirty_puts": records.dirty_puts,
        "tombstones": records.tombstones,
        "flushed": records.flushed,
        "removes": records.removes,
        "pins": records.pins,
        "region_opens": records.region_opens,
        "starts": records.starts,
        "voids": records.voids,
        "quarantines": records.quarantines,
        "malformed": records.malformed,
    })
}

pub fn journal(out: &mut dyn Write, shard: u16, journal: &JournalView, spare: &Spare) -> Result<()> {
    let mut value = journal_value(journal);
    let frames: Vec<Value> = journal
        .frames
        .iter()
        .map(|frame| {
            json!({
                "sequence": frame.sequence,
                "position": frame.position,
                "offset": frame.offset,
                "bytes": frame.len_bytes,
                "synced_through": frame.synced_through,
                "records": record_counts(&frame.records),
            })
        })
        .collect();
    value["frames"] = frames.into();
    value["older_slot"] = match spare {
        Spare::None => json!({ "state": "none" }),
        Spare::Reaches => json!({ "state": "usable" }),
        Spare::Reused => json!({ "state": "reused" }),
        Spare::Damaged { offset, sequence } => json!({ "state": "damaged", "offset": offset, "sequence": sequence }),
    };
    line(out, &json!({ "shard": shard, "journal": value }))
}

fn journal_value(journal: &JournalView) -> Value {
    let end = match &journal.end {
        JournalEnd::Nothing { offset, what } => json!({ "reason": "nothing", "offset": offset, "what": what }),
        JournalEnd::Full => json!({ "reason": "full" }),
        JournalEnd::Torn { offset, sequence } => json!({ "reason": "torn", "offset": offset, "sequence": sequence }),
        JournalEnd::Rotten { offset, sequence, proof } => {
            json!({ "reason": "damaged", "offset": offset, "sequence": sequence, "what": proof })
        }
    };
    json!({
        "ring_offset": journal.ring_at,
        "ring_bytes": journal.ring_bytes,
        "from_position": journal.from_position,
        "end_position": journal.end_position,
        "from_sequence": journal.from_sequence,
        "end_sequence": journal.end_sequence,
        "laps": journal.laps(),
        "synced_through": journal.synced_through,
        "frame_count": journal.frames.len(),
        "skipped_frames": journal.skipped_frames,
        "records": record_counts(&journal.records),
        "end": end,
    })
}

pub fn regions(out: &mut dyn Write, shard: u16, superblock: &Superblock, regions: &[RegionView]) -> Result<()> {
    let values: Vec<Value> = regions.iter().map(region_value).collect();
    line(out, &json!({ "shard": shard, "region_bytes": superblock.region_bytes, "regions": values }))
}

fn region_value(region: &RegionView) -> Value {
    let footer = match &region.footer {
        FooterState::None => json!({ "state": "none" }),
        FooterState::Whole { records } => json!({ "state": "whole", "records": records }),
        FooterState::Damaged { offset, what, is_proven } => {
            let state = if *is_proven { "damaged" } else { "torn" };
            json!({ "state": state, "offset": offset, "what": what })
        }
    };
    json!({
        "region": region.number,
        "state": match region.state {
            RegionIs::Free => "free",
            RegionIs::Sealed => "sealed",
            RegionIs::Unsealed => "unsealed",
            RegionIs::Quarantined => "quarantined",
        },
        "epoch": region.epoch,
        "stream": region.stream.map(|stream| match stream {
            Stream::Clean => "clean",
            Stream::Dirty => "dirty",
        }),
        "filled_bytes": region.fill_bytes,
        "live": region.live,
        "live_bytes": region.live_bytes,
        "dirty_bytes": region.dirty_bytes,
        "footer": footer,
    })
}

pub fn records(out: &mut dyn Write, shard: u16, records: &[RecordLine]) -> Result<()> {
    for record in records {
        let value = json!({
            "shard": shard,
            "identity": format!("{:032x}", record.identity),
            "volume": record.key.as_ref().map(|key| &*key.volume),
            "key": record.key.as_ref().map(|key| &*key.key),
            "state": match record.state {
                RecordIs::Clean => "clean",
                RecordIs::Dirty => "dirty",
                RecordIs::Tombstone => "tombstone",
            },
            "generation": record.generation,
            "region": record.place.map(|(region, _)| region),
            "region_offset": record.place.map(|(_, offset)| offset),
            "offset": record.offset,
            "bytes": record.len_bytes,
            "pieces": record.pieces,
            "etag": record.etag.as_ref().map(|etag| match etag {
                Etag::Digest(digest) => digest.to_hex(),
                Etag::Origin(etag) => format!("o-{etag}"),
            }),
        });
        line(out, &value)?;
    }
    Ok(())
}

pub fn index(out: &mut dyn Write, shard: u16, recovery: &Recovery) -> Result<()> {
    let mut value = index_value(recovery);
    value["dirty_records"] = recovery.dirty().iter().map(|record| dirty_value(record)).collect();
    line(out, &json!({ "shard": shard, "index": value }))
}

fn dirty_value(record: &DirtyRecord) -> Value {
    let bytes = match record.kind {
        DirtyKind::Block { len_bytes, .. } => Some(len_bytes),
        DirtyKind::Tombstone => None,
    };
    json!({
        "volume": &*record.key.volume,
        "key": &*record.key.key,
        "generation": record.generation.0,
        "since_unix_ms": record.since_unix_ms,
        "kind": if bytes.is_some() { "block" } else { "tombstone" },
        "bytes": bytes,
    })
}

fn index_value(recovery: &Recovery) -> Value {
    let (index, rejected) = (recovery.summary(), recovery.rejected());
    json!({
        "checkpoint": index.checkpoint,
        "entries": index.entries,
        "clean": index.clean,
        "dirty": index.dirty,
        "tombstones": index.tombstones,
        "clean_bytes": index.clean_bytes,
        "dirty_bytes": index.dirty_bytes,
        "extensions": index.extensions,
        "memory_bytes": index.memory_bytes,
        "next_generation": index.next_generation,
        "oldest_dirty_unix_ms": index.oldest_dirty_unix_ms,
        "rejected": {
            "stale_epoch": rejected.stale_epoch,
            "torn_payload": rejected.torn_payload,
            "torn_frames": rejected.torn_frames,
            "malformed": rejected.malformed,
            "checkpoint_slots": rejected.checkpoint_slots,
        },
    })
}

/// Everything but frames and records.
pub fn summary(
    out: &mut dyn Write,
    shard: u16,
    superblocks: &Superblocks,
    slots: &[Slot; 2],
    journal: &JournalView,
    regions: &[RegionView],
    recovery: &Recovery,
) -> Result<()> {
    let value = json!({
        "shard": shard,
        "superblock": superblock_values(superblocks),
        "checkpoints": slot_values(slots),
        "journal": journal_value(journal),
        "regions": regions.iter().map(region_value).collect::<Vec<_>>(),
        "index": index_value(recovery),
    });
    line(out, &value)
}
