//! What `forebay inspect` prints for people: plain columns, one fact a line, no colours.
//!
//! Called by `inspect`. Each function shows one structure; damage is shown where the structure would be.

use std::io::Write;

use anyhow::Result;
use forebay_io::superblock::{FORMAT_VERSION, Superblock};
use forebay_shard::origin::Etag;
use forebay_shard::store::inspect::footers::FooterState;
use forebay_shard::store::inspect::journal::{FrameLine, JournalEnd, JournalView, Spare};
use forebay_shard::store::inspect::regions::{RecordIs, RecordLine, RegionIs, RegionView, Stream};
use forebay_shard::store::inspect::slots::{Slot, SlotState, current};
use forebay_shard::store::inspect::{RecordCounts, Recovery, Superblocks};
use forebay_shard::store::{DirtyKind, DirtyRecord};

use super::figures::{bytes, count, counted, key, moment};
use super::region_map;
use crate::proxy::node_file::StoppedNode;

/// Frames of the journal that are listed at its beginning and at its end.
const FRAMES_SHOWN: usize = 20;
/// Dirty blocks that are listed, the oldest first.
const DIRTY_SHOWN: usize = 20;

pub fn node(out: &mut dyn Write, node: &StoppedNode) -> Result<()> {
    let id = node.node_id().map_or_else(|| "of an unknown id".to_owned(), |id| format!("{id:032x}"));
    writeln!(out, "{}: node {id}, {}", node.path().display(), counted(node.shards().len() as u64, "shard"))?;
    if let Some(trouble) = node.trouble() {
        writeln!(out, "  {trouble}: what follows is what the slabs say themselves")?;
    }
    if node.is_half_formatted() {
        writeln!(out, "  its format was not finished: nothing was acknowledged here, the next start begins anew")?;
    }
    Ok(())
}

pub fn superblock_line(out: &mut dyn Write, shard: u16, superblocks: &Superblocks) -> Result<()> {
    let good = superblocks.copies.iter().filter(|copy| copy.is_ok()).count();
    writeln!(out, "\nshard {shard}: {}, {}", superblocks.name, bytes(superblocks.slab_bytes))?;
    write!(out, "  superblock   {good} of 2 copies good")?;
    if let Some(superblock) = superblocks.good() {
        write!(out, "; format {FORMAT_VERSION}, made {}", moment(superblock.created_unix_ms))?;
        if superblocks.slab_bytes < superblock.slab_bytes() {
            write!(out, "; THE FILE WAS CUT, it should have {}", bytes(superblock.slab_bytes()))?;
        }
    }
    writeln!(out)?;
    Ok(())
}

pub fn superblocks(out: &mut dyn Write, shard: u16, superblocks: &Superblocks) -> Result<()> {
    writeln!(out, "\nshard {shard}: {}, {} bytes", superblocks.name, count(superblocks.slab_bytes))?;
    for (number, copy) in superblocks.copies.iter().enumerate() {
        write!(out, "  copy {number} at {}: ", number * 4096)?;
        match copy {
            Ok(superblock) => {
                writeln!(out, "good")?;
                superblock_fields(out, superblock)?;
            }
            Err(why) => writeln!(out, "{why}")?,
        }
    }
    Ok(())
}

fn superblock_fields(out: &mut dyn Write, superblock: &Superblock) -> Result<()> {
    let Superblock { region_bytes, region_count, journal_bytes, .. } = *superblock;
    writeln!(out, "    node          {:032x}", superblock.node_id)?;
    writeln!(out, "    store         {:016x}", superblock.store_id)?;
    writeln!(out, "    shard         {} of {}", superblock.shard, superblock.shard_count)?;
    writeln!(out, "    format        {FORMAT_VERSION}")?;
    writeln!(out, "    made          {}", moment(superblock.created_unix_ms))?;
    writeln!(out, "    journal       {} at {}", bytes(journal_bytes), Superblock::JOURNAL_AT)?;
    writeln!(out, "    regions       {region_count} of {} from {}", bytes(region_bytes), superblock.regions_at())?;
    writeln!(out, "    slab          {} bytes", count(superblock.slab_bytes()))?;
    Ok(())
}

pub fn slot_lines(out: &mut dyn Write, slots: &[Slot; 2]) -> Result<()> {
    let current = current(slots).map(|slot| &slot.name);
    for (number, slot) in slots.iter().enumerate() {
        let label = if number == 0 { "checkpoints" } else { "" };
        let mark = if Some(&slot.name) == current { ", current" } else { "" };
        writeln!(out, "  {label:<12} slot {number}: {}{mark}", slot_words(slot))?;
    }
    Ok(())
}

fn slot_words(slot: &Slot) -> String {
    let number = slot.header.map_or_else(|| "unknown".to_owned(), |header| header.number.to_string());
    match &slot.state {
        SlotState::Missing => "none was written yet".into(),
        SlotState::Unfinished => format!("number {number} was cut off while it was written"),
        SlotState::Whole => {
            format!("number {number}, {}, {}", counted(slot.records.total(), "record"), bytes(slot.used_bytes))
        }
        SlotState::Damaged { at, what } => format!("number {number} is DAMAGED at {at}: {what}"),
    }
}

pub fn slots(out: &mut dyn Write, shard: u16, slots: &[Slot; 2]) -> Result<()> {
    let current = current(slots).map(|slot| &slot.name);
    writeln!(out, "\nshard {shard}")?;
    for slot in slots {
        let mark = if Some(&slot.name) == current { " (current)" } else { "" };
        writeln!(out, "  {}{mark}: {}", slot.name, slot_words(slot))?;
        if let Some(header) = slot.header {
            writeln!(out, "    replay from   journal position {}, frame {}", count(header.position), header.sequence)?;
            writeln!(out, "    generation    {} comes next", header.next_generation)?;
        }
        if slot.frames > 0 {
            writeln!(
                out,
                "    good frames   {}, {} of {}",
                slot.frames,
                bytes(slot.used_bytes),
                bytes(slot.file_bytes)
            )?;
            writeln!(out, "    records       {}", record_words(&slot.records))?;
        }
    }
    Ok(())
}

fn record_words(records: &RecordCounts) -> String {
    let named = [
        (records.clean_puts, "clean put"),
        (records.dirty_puts, "dirty put"),
        (records.tombstones, "tombstone"),
        (records.flushed, "flushed mark"),
        (records.removes, "remove"),
        (records.pins, "pin or unpin"),
        (records.region_opens, "region opening"),
        (records.starts, "start"),
        (records.voids, "void"),
        (records.quarantines, "quarantine"),
        (records.malformed, "MALFORMED record"),
    ];
    let words: Vec<String> =
        named.iter().filter(|(figure, _)| *figure > 0).map(|(n, noun)| counted(*n, noun)).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

pub fn journal_line(out: &mut dyn Write, journal: &JournalView) -> Result<()> {
    let (used, ring, frames) = (journal.used_bytes(), journal.ring_bytes, journal.frames.len() as u64);
    let since = format!("{} of {} since the checkpoint", bytes(used), bytes(ring));
    writeln!(out, "  journal      {since}, {}, {}", counted(frames, "frame"), record_words(&journal.records))?;
    writeln!(out, "               {}", end_words(journal))?;
    Ok(())
}

fn end_words(journal: &JournalView) -> String {
    let next = journal.end_sequence;
    match &journal.end {
        JournalEnd::Nothing { offset, what } => {
            format!("ends before frame {next}: at {offset} lies no such frame ({what})")
        }
        JournalEnd::Full => format!("ends before frame {next}: the ring is full"),
        JournalEnd::Torn { offset, sequence } => {
            format!("ends at {offset}: frame {sequence} is torn, it was being written")
        }
        JournalEnd::Rotten { offset, sequence, proof } => {
            format!("BREAKS at {offset}: frame {sequence} is damaged ({proof})")
        }
    }
}

pub fn journal(out: &mut dyn Write, shard: u16, journal: &JournalView, spare: &Spare) -> Result<()> {
    writeln!(out, "\nshard {shard}")?;
    writeln!(out, "  ring          {} at {}", bytes(journal.ring_bytes), journal.ring_at)?;
    let (from, until) = (count(journal.from_position), count(journal.end_position));
    writeln!(out, "  span          position {from} to {until}: {}", bytes(journal.used_bytes()))?;
    writeln!(out, "  laps          the ring's end was passed {}", counted(journal.laps(), "time"))?;
    writeln!(
        out,
        "  frames        {}, numbers {} to {}",
        journal.frames.len(),
        journal.from_sequence,
        journal.end_sequence - 1
    )?;
    if journal.skipped_frames > 0 {
        writeln!(out, "  missing       {} in between, none of them durable", counted(journal.skipped_frames, "frame"))?;
    }
    writeln!(out, "  durable       surely through frame {}", journal.synced_through)?;
    writeln!(out, "  records       {}", record_words(&journal.records))?;
    writeln!(out, "  end           {}", end_words(journal))?;
    let spare = match spare {
        Spare::None => "there is none".to_owned(),
        Spare::Reaches => "the journal still leads on from it".to_owned(),
        Spare::Reused => "its part of the journal was used again".to_owned(),
        Spare::Damaged { offset, sequence } => format!("frame {sequence} at {offset}, which it needs, is DAMAGED"),
    };
    writeln!(out, "  older slot    {spare}")?;
    if !journal.frames.is_empty() {
        writeln!(out, "\n     frame      offset    bytes  durable through  records")?;
    }
    let hidden = journal.frames.len().saturating_sub(2 * FRAMES_SHOWN);
    for (index, frame) in journal.frames.iter().enumerate() {
        if hidden > 0 && index == FRAMES_SHOWN {
            writeln!(out, "  …  {} more; --json shows all", counted(hidden as u64, "frame"))?;
        }
        if hidden == 0 || index < FRAMES_SHOWN || index >= FRAMES_SHOWN + hidden {
            frame_line(out, frame)?;
        }
    }
    Ok(())
}

fn frame_line(out: &mut dyn Write, frame: &FrameLine) -> Result<()> {
    let FrameLine { sequence, offset, len_bytes, synced_through, records, .. } = frame;
    writeln!(out, "  {sequence:>8}  {offset:>10}  {len_bytes:>7}  {synced_through:>15}  {}", record_words(records))?;
    Ok(())
}

pub fn region_line(out: &mut dyn Write, superblock: &Superblock, regions: &[RegionView]) -> Result<()> {
    let in_state = |state| regions.iter().filter(|region| region.state == state).count();
    let (sealed, unsealed) = (in_state(RegionIs::Sealed), in_state(RegionIs::Unsealed));
    let (free, quarantined) = (in_state(RegionIs::Free), in_state(RegionIs::Quarantined));
    let live: u64 = regions.iter().map(|region| region.live_bytes).sum();
    let of = format!("{} of {}", regions.len(), bytes(superblock.region_bytes));
    write!(out, "  regions      {of}: {sealed} sealed, {unsealed} unsealed, {free} free")?;
    if quarantined > 0 {
        write!(out, ", {quarantined} QUARANTINED")?;
    }
    writeln!(out, "; {} in use", bytes(live))?;
    let damaged: Vec<String> = regions.iter().filter_map(damaged_footer).collect();
    if !damaged.is_empty() {
        writeln!(out, "               DAMAGED footers of regions {}", damaged.join(", "))?;
    }
    Ok(())
}

fn damaged_footer(region: &RegionView) -> Option<String> {
    matches!(region.footer, FooterState::Damaged { .. }).then(|| region.number.to_string())
}

pub fn regions(out: &mut dyn Write, shard: u16, superblock: &Superblock, regions: &[RegionView]) -> Result<()> {
    writeln!(out, "\nshard {shard}: {} regions of {}", regions.len(), bytes(superblock.region_bytes))?;
    writeln!(out, "    region  state        epoch  stream    filled    blocks        live       dirty  footer")?;
    for region in regions.iter().filter(|region| region.epoch > 0) {
        let state = match region.state {
            RegionIs::Free => "free",
            RegionIs::Sealed => "sealed",
            RegionIs::Unsealed => "unsealed",
            RegionIs::Quarantined => "QUARANTINED",
        };
        let stream = match region.stream {
            Some(Stream::Clean) => "clean",
            Some(Stream::Dirty) => "dirty",
            None => "?",
        };
        let filled = format!("{} %", region.fill_bytes * 100 / superblock.region_bytes.max(1));
        let footer = match &region.footer {
            FooterState::None => "none".to_owned(),
            FooterState::Whole { records } => counted(*records, "record"),
            FooterState::Damaged { offset, what, .. } => format!("DAMAGED at {offset}: {what}"),
        };
        let (number, epoch, live) = (region.number, region.epoch, count(region.live));
        let (live_bytes, dirty_bytes) = (bytes(region.live_bytes), bytes(region.dirty_bytes));
        writeln!(
            out,
            "  {number:>8}  {state:<11}  {epoch:>5}  {stream:<6}  {filled:>8}  {live:>8}  {live_bytes:>10}  \
             {dirty_bytes:>10}  {footer}"
        )?;
    }
    let never = regions.iter().filter(|region| region.epoch == 0).count();
    if never > 0 {
        writeln!(out, "  {} never opened", counted(never as u64, "region"))?;
    }
    writeln!(out)?;
    region_map::draw(out, superblock, regions)?;
    Ok(())
}

pub fn records_head(out: &mut dyn Write, shard: u16) -> Result<()> {
    writeln!(out, "\nshard {shard}")?;
    writeln!(
        out,
        "  region    offset      bytes  generation  state      pieces  key, or identity where only that is known"
    )?;
    Ok(())
}

pub fn records(out: &mut dyn Write, records: &[RecordLine]) -> Result<()> {
    for record in records {
        let state = match record.state {
            RecordIs::Clean => "clean",
            RecordIs::Dirty => "dirty",
            RecordIs::Tombstone => "tombstone",
        };
        let (region, offset) = match record.place {
            Some((region, offset)) => (region.to_string(), offset.to_string()),
            None => ("-".into(), "-".into()),
        };
        let name = record.key.as_ref().map_or_else(|| format!("{:032x}", record.identity), key);
        let etag = match &record.etag {
            Some(Etag::Origin(etag)) => format!("  origin ETag {}", etag.escape_debug()),
            _ => String::new(),
        };
        let (len_bytes, generation, pieces) = (record.len_bytes, record.generation, record.pieces);
        writeln!(
            out,
            "  {region:>6}  {offset:>8}  {len_bytes:>9}  {generation:>10}  {state:<9}  {pieces:>6}  {name}{etag}"
        )?;
    }
    Ok(())
}

pub fn index_lines(out: &mut dyn Write, recovery: &Recovery) -> Result<()> {
    let index = recovery.summary();
    let per_entry = index.memory_bytes as f64 / index.entries.max(1) as f64;
    let entries =
        format!("{} clean, {} dirty, {}", count(index.clean), count(index.dirty), counted(index.tombstones, "delete"));
    writeln!(
        out,
        "  index        {} entries: {entries}; generation {} comes next",
        count(index.entries),
        index.next_generation
    )?;
    writeln!(out, "               {} of memory, {per_entry:.1} bytes an entry", bytes(index.memory_bytes))?;
    let oldest =
        index.oldest_dirty_unix_ms.map_or_else(String::new, |since| format!(", the oldest since {}", moment(since)));
    writeln!(
        out,
        "  dirty        {} in {}, {}{oldest}",
        bytes(index.dirty_bytes),
        counted(index.dirty, "block"),
        counted(index.tombstones, "delete")
    )?;
    let rejected = recovery.rejected();
    if rejected.stale_epoch + rejected.torn_payload + rejected.malformed > 0 {
        let torn = counted(rejected.torn_payload, "torn record");
        writeln!(
            out,
            "  not taken    {} of reused regions, {torn}, {} malformed",
            rejected.stale_epoch, rejected.malformed
        )?;
    }
    Ok(())
}

pub fn index(out: &mut dyn Write, shard: u16, recovery: &Recovery) -> Result<()> {
    writeln!(
        out,
        "\nshard {shard}: the index that the next start computes, from checkpoint {} on",
        recovery.summary().checkpoint
    )?;
    index_lines(out, recovery)?;
    let summary = recovery.summary();
    writeln!(out, "  extensions   {} entries have one", count(summary.extensions))?;
    writeln!(out, "  content      {} clean, {} dirty", bytes(summary.clean_bytes), bytes(summary.dirty_bytes))?;
    let dirty = recovery.dirty();
    if !dirty.is_empty() {
        writeln!(out, "\n  dirty, the oldest first\n  generation  since                               bytes  key")?;
    }
    for record in dirty.iter().take(DIRTY_SHOWN) {
        let DirtyRecord { generation, since_unix_ms, .. } = **record;
        let len = match record.kind {
            DirtyKind::Block { len_bytes, .. } => len_bytes.to_string(),
            DirtyKind::Tombstone => "delete".into(),
        };
        writeln!(out, "  {:>10}  {}  {len:>9}  {}", generation.0, moment(since_unix_ms), key(&record.key))?;
    }
    if dirty.len() > DIRTY_SHOWN {
        writeln!(out, "  …  {} more; --json shows all", count((dirty.len() - DIRTY_SHOWN) as u64))?;
    }
    Ok(())
}
