//! What must hold of the decoders of the store, whatever the bytes: record, region footer, journal, checkpoint, and a whole
//! recovery.
//!
//! Called by the targets of `ci/fuzz`, and by the tests below with random scripts, so that it stays true and stays
//! compiling without a fuzzer. All but `record` read their input as a script (`fuzz/script.rs`) of frames that the product's
//! encoder seals, so that what is behind the checksums is reached.

mod script;

use std::time::Duration;

use forebay_io::checksum::Digest;
use forebay_io::frame::{self, Chain, FrameKind};
use forebay_io::sim::SimWorld;
use forebay_io::superblock::Superblock;
use forebay_io::units::{SECTOR_BYTES, piece_count};
use forebay_io::{DiskFile, IoError};
use futures::executor::block_on;

use self::script::{BytesDisk, BytesFile, Input, STORE_ID, Written, next_frame, said, sealed};
use super::block::{BeforeStore, Certainty, DirtyKind, DirtyRecord, Pinning};
use super::checkpoint::{Header, SlotReader, slot_name};
use super::entry::{LEN_BYTES_MAX, Place};
use super::footer::{self, DirtyNote, Footer, FooterBuilder};
use super::journal::{JOURNAL_BYTES_MIN, Point, Ring};
use super::record::{PutRecord, RECORD_BYTES_MAX, Record};
use super::regions::{Epoch, StreamKind};
use super::scan::scan;
use super::{NodeIdentity, Store, StoreConfig, slab_name};
use crate::config::{DiskLimits, SyncMode};
use crate::error::StoreError;
use crate::key::{BlockKey, Generation, Identity, IdentityKey};
use crate::origin::Etag;
use crate::outcome::PieceSums;

const NODE_KEY: IdentityKey = IdentityKey([7; 16]);

/// Input: the payload of a frame.
///
/// # Panics
/// If a record that was read is not written and read again as the same, or takes more memory than its bytes justify.
pub fn record(data: &[u8]) {
    let mut rest = data;
    loop {
        let before = rest;
        let Ok(record) = Record::decode(&mut rest) else {
            assert_eq!(rest, before, "what is no record is left where it is");
            return;
        };
        let read_bytes = before.len() - rest.len();
        assert!(read_bytes > 0 && before.ends_with(rest), "a record is taken off the front");
        let mut again = Vec::new();
        record.encode(&mut again);
        assert!(again.len() <= read_bytes, "nothing is made up");
        assert!(again.len() <= RECORD_BYTES_MAX + 8 * piece_count(u64::from(LEN_BYTES_MAX)), "the bound of a record");
        let mut tail = &again[..];
        assert_eq!(Record::decode(&mut tail).as_ref(), Ok(&record), "what was written is read back");
        assert!(tail.is_empty());
        assert!(Record::decode(&mut &again[..again.len() - 1]).is_err(), "a record that was cut off");
    }
}

/// Records that the encoder wrote, one of each shape.
#[must_use]
pub fn record_seeds() -> Vec<Vec<u8>> {
    let encoded = |record: &Record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        bytes
    };
    examples().iter().map(encoded).collect()
}

/// Input: the point where the journal begins (position in sectors 4, sequence 4, sum before 8), whether an earlier lap lies
/// in the ring (1), then frames.
///
/// # Panics
/// If an honest frame at the beginning is not read as it was written, if a frame is made up, or if the ring is left.
pub fn journal(data: &[u8]) {
    let mut input = Input(data);
    let position = input.number(4) * SECTOR_BYTES as u64;
    // An earlier lap has lower numbers.
    let chain = Chain { sequence: 100 + input.number(4), previous_sum: input.number(8) };
    let (from, ring) = (Point { position, chain }, Ring { at: Superblock::JOURNAL_AT, len_bytes: JOURNAL_BYTES_MIN });
    let slab = BytesFile::of(vec![0; (ring.at + ring.len_bytes) as usize]);
    if input.byte() & 1 != 0 {
        let mut stale = Chain { sequence: chain.sequence - 50, previous_sum: 5 };
        for sector in 0..ring.len_bytes / SECTOR_BYTES as u64 {
            let bytes = sealed(STORE_ID, stale.head(FrameKind::Journal, 0, stale.sequence), &[]);
            stale.push(frame::decode(STORE_ID, &bytes).expect("just sealed").sum);
            slab.put(ring.at + sector * SECTOR_BYTES as u64, &bytes);
        }
    }
    let written = write_journal(&mut input, &slab, ring, from);
    let honest = written.iter().take_while(|frame| frame.is_honest).count();
    let scanned = match block_on(scan(&slab, STORE_ID, ring, from)) {
        Ok(scanned) => scanned,
        Err(IoError::Corrupt { .. }) => return assert!(honest < written.len(), "nothing was damaged"),
        Err(error) => panic!("the disk has no faults: {error}"),
    };
    assert!(scanned.frames.len() >= honest, "{} of {honest} honest frames were read", scanned.frames.len());
    for (index, (found, frame)) in scanned.frames.iter().zip(&written[..honest]).enumerate() {
        assert_eq!(found.sequence, chain.sequence + index as u64, "frames come in order");
        assert_eq!(found.records, frame.records(), "a frame is read as it was written");
    }
    for found in &scanned.frames[honest..] {
        assert!(written.iter().any(|frame| frame.sequence == found.sequence), "frame {} was made up", found.sequence);
    }
    assert!(scanned.frames.is_sorted_by(|one, next| one.sequence < next.sequence), "numbers only grow");
    assert!((position..=position + ring.len_bytes).contains(&scanned.end.position), "the ring is not left");
    assert!(scanned.synced_through >= chain.sequence - 1);
}

/// Writes frames until the input or the ring ends.
fn write_journal(input: &mut Input<'_>, slab: &BytesFile, ring: Ring, from: Point) -> Vec<Written> {
    let (mut chain, mut at, mut written) = (from.chain, from.position, Vec::new());
    while !input.0.is_empty() {
        let frame = next_frame(input, &mut chain, FrameKind::Journal);
        let len = frame.bytes.len() as u64;
        if at + len > from.position + ring.len_bytes {
            break;
        }
        let mut done = 0;
        for (place, len) in ring.stretches(at, len) {
            slab.put(place, &frame.bytes[done..done + len]);
            done += len;
        }
        at += len;
        written.push(frame);
    }
    written
}

/// Journals that wrap, follow an earlier lap, and hold one record of each shape.
#[must_use]
pub fn journal_seeds() -> Vec<Vec<u8>> {
    let begin = |position: u32, lap: u8| {
        [position.to_le_bytes().to_vec(), 9u32.to_le_bytes().to_vec(), 3u64.to_le_bytes().to_vec(), vec![lap]].concat()
    };
    let frames: Vec<Vec<u8>> = examples().chunks(3).map(said).collect();
    let mut damaged = frames.clone();
    damaged[1][0] = 0x60;
    let long = vec![[vec![1, 0], 5000u16.to_le_bytes().to_vec(), vec![0xEE; 5000]].concat(); 4];
    vec![
        [begin(0, 0), frames.concat()].concat(),
        [begin(14, 1), frames.concat()].concat(),
        [begin(3, 1), damaged.concat()].concat(),
        [begin(13, 0), long.concat()].concat(),
    ]
}

/// Input: the five fields of a header (8 each), then frames of records; the last byte of each frame's choice aside, a
/// checkpoint ends after the frame whose choice has bit 0x80.
///
/// # Panics
/// If a damaged slot passes for a whole one, a whole one does not, or other frames are handed out than were written.
pub fn checkpoint(data: &[u8]) {
    let mut input = Input(data);
    let fields = input.take(40).to_vec();
    let header = Header::decode(&fields);
    let number = Input(&fields).number(8);
    let mut chain = Chain { sequence: 1, previous_sum: number };
    let push = |chain: &mut Chain, kind, payload: &[u8]| {
        let bytes = sealed(STORE_ID, chain.head(kind, 0, 0), payload);
        chain.push(frame::decode(STORE_ID, &bytes).expect("just sealed").sum);
        bytes
    };
    let mut slot = push(&mut chain, FrameKind::CheckpointHeader, &fields);
    let (mut written, mut is_ended) = (Vec::new(), false);
    while !is_ended && !input.0.is_empty() {
        is_ended = input.0[0] & 0x80 != 0;
        written.push(next_frame(&mut input, &mut chain, FrameKind::CheckpointRecords));
    }
    written.iter().for_each(|frame| slot.extend(&frame.bytes));
    if is_ended {
        slot.extend(push(&mut chain, FrameKind::CheckpointEnd, &fields));
    }
    let honest = written.iter().take_while(|frame| frame.is_honest).count();
    let is_whole = is_ended && honest == written.len();
    let reader = block_on(SlotReader::begin(BytesFile::of(slot), STORE_ID)).expect("the disk has no faults");
    assert_eq!(reader.as_ref().map(|reader| reader.header), header, "a slot is known by its header");
    let Some(reader) = reader else { return };
    let mut found: Vec<(u32, Vec<u8>)> = Vec::new();
    let runtime = SimWorld::new(1).runtime();
    let read = reader.read(&runtime, |frame| found.push((frame.head.record_count, frame.payload.to_vec())));
    assert_eq!(block_on(read).expect("the disk has no faults"), is_whole, "a checkpoint is whole or does not count");
    let expected = written[..honest].iter().map(|frame| (frame.record_count, frame.payload.clone()));
    assert!(found.into_iter().eq(expected), "frames are handed out as they were written");
}

/// Checkpoints of one record of each shape: whole, without an end, damaged.
#[must_use]
pub fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let fields = [4u64, 8192, 3, 77, 40].map(u64::to_le_bytes).concat();
    let frames: Vec<Vec<u8>> = examples().chunks(4).map(said).collect();
    let (mut whole, mut damaged) = (frames.clone(), frames.clone());
    whole.last_mut().expect("there are examples")[0] = 0x80;
    damaged[0][0] = 0x60;
    vec![
        fields.clone(),
        [fields.clone(), frames.concat()].concat(),
        [fields.clone(), whole.concat()].concat(),
        [fields, damaged.concat()].concat(),
    ]
}

/// Input: the region's epoch (4), how many blocks it holds (2, of up to 2,000), which frame is changed (1), where its payload
/// (2) and to what (the rest).
///
/// # Panics
/// If a footer is not read as it was written, or one that says something else brings the reader down or out of the region.
pub fn region_footer(data: &[u8]) {
    const REGION_AT: u64 = 8192;
    const REGION_END: u64 = REGION_AT + (256 << 10);
    let mut input = Input(data);
    let epoch = Epoch(input.number(4) as u32);
    let count = input.number(2) % 2000;
    let (disk, slab) = (BytesDisk::default(), BytesFile::of(vec![0; REGION_END as usize]));
    let mut builder = FooterBuilder::default();
    let mut line = Vec::new();
    for identity in 0..count {
        line.clear();
        block(u128::from(identity), 1, epoch, 100).encode(&mut line);
        builder.push(&line);
    }
    let note = DirtyNote {
        sequence: 9,
        durable: 8,
        next_generation: Generation(1000),
        below: Generation(900),
        dirty: (0..count % 300).map(Generation).collect(),
        unsure: (0..count % 300).step_by(7).map(Generation).collect(),
    };
    block_on(builder.write(&disk, &slab, STORE_ID, epoch, REGION_END, &note)).expect("the disk has no faults");
    let read = || block_on(footer::read(&slab, STORE_ID, REGION_AT, REGION_END)).expect("the disk has no faults");
    let records = (0..count).map(|identity| block(identity.into(), 1, epoch, 100)).collect();
    assert_eq!(read(), Some(Footer { epoch, records, note }), "a footer is read as it was written");
    let footer_bytes = builder.bytes_with(0).min(REGION_END - REGION_AT);
    change_frame(&mut input, &slab, REGION_END - footer_bytes, REGION_END);
    if let Some(found) = read() {
        assert!(found.records.len() as u64 <= (REGION_END - REGION_AT) / 40, "more records than the bytes can hold");
        assert!(found.note.dirty.is_sorted(), "a note is searched by halves");
    }
}

/// Changes the payload of one frame of the chain between `at` and `end`, and seals it and all behind it anew.
fn change_frame(input: &mut Input<'_>, slab: &BytesFile, mut at: u64, end: u64) {
    let (chosen, offset) = (input.byte(), input.number(2) as usize);
    let (mut chain, mut index): (Option<Chain>, u8) = (None, 0);
    while at < end {
        let bytes = block_on(slab.read(at, (end - at) as usize)).expect("inside the region");
        let Ok(found) = frame::decode(STORE_ID, &bytes) else {
            at += SECTOR_BYTES as u64;
            continue;
        };
        let mut payload = found.payload.to_vec();
        if index == chosen % 2 {
            let offset = offset % (payload.len() + 1);
            let change = input.take(payload.len() - offset);
            payload[offset..offset + change.len()].copy_from_slice(change);
        }
        let first = Chain { sequence: found.head.sequence, previous_sum: found.head.previous_sum };
        let next = chain.get_or_insert(first);
        let head = next.head(found.head.kind, found.head.record_count, found.head.synced_through);
        let again = sealed(STORE_ID, head, &payload);
        next.push(frame::decode(STORE_ID, &again).expect("just sealed").sum);
        slab.put(at, &again);
        at += again.len() as u64;
        index += 1;
    }
}

/// Footers of no, one and many blocks.
#[must_use]
pub fn region_footer_seeds() -> Vec<Vec<u8>> {
    let of = |count: u16, frame: u8, offset: u16, change: &[u8]| {
        [&4u32.to_le_bytes()[..], &count.to_le_bytes(), &[frame], &offset.to_le_bytes(), change].concat()
    };
    vec![of(0, 0, 0, &[]), of(1, 0, 0, &[2]), of(1, 1, 0, &4096u64.to_le_bytes()), of(1500, 0, 70, &[9; 20])]
}

/// Input: the fields of a checkpoint's header but its number (position, sequence, sum before, next generation; 8 each), its
/// frames up to the one whose choice has bit 0x80, then frames of the journal. The store is opened, closed and opened again.
///
/// # Panics
/// If opening does, or if what the first opening recovered is not what the second finds.
pub fn recovery(data: &[u8]) {
    let _ = is_opened_twice(data);
}

/// False if the first opening is refused.
fn is_opened_twice(data: &[u8]) -> bool {
    let node = NodeIdentity { node: 1, shard: 0, shard_count: 1, identity_key: NODE_KEY };
    let superblock = Superblock {
        node_id: node.node,
        store_id: STORE_ID,
        shard: 0,
        shard_count: 1,
        identity_key: NODE_KEY.0,
        region_bytes: 32 << 10,
        region_count: 8,
        journal_bytes: JOURNAL_BYTES_MIN,
        created_unix_ms: 0,
    };
    let mut slab = vec![0; superblock.slab_bytes() as usize];
    slab.chunks_mut(SECTOR_BYTES).take(2).for_each(|copy| superblock.encode(copy));
    let (disk, slab, mut input) = (BytesDisk::default(), BytesFile::of(slab), Input(data));
    let mut fields = 2u64.to_le_bytes().to_vec();
    fields.extend(input.take(32));
    fields.resize(40, 0);
    disk.put(&slot_name(0, 0), whole_slot(&mut input, &fields));
    if let Some(header) = Header::decode(&fields) {
        let ring = Ring { at: Superblock::JOURNAL_AT, len_bytes: superblock.journal_bytes };
        write_journal(&mut input, &slab, ring, header.from);
    }
    disk.put_file(&slab_name(0), slab);
    let open = |seed| {
        let world = SimWorld::new(seed);
        let config = StoreConfig {
            node: node.clone(),
            sync: SyncMode::Always,
            commit_delay: Duration::ZERO,
            disk_limits: DiskLimits::default(),
        };
        world.block_on(async {
            let (store, recovered) = Store::open(disk.clone(), world.runtime(), config).await?;
            store.close().await;
            Ok::<_, StoreError>(recovered)
        })
    };
    let Ok(first) = open(1) else { return false };
    let second = open(2).unwrap_or_else(|error| panic!("what was opened and closed is opened again: {error}"));
    assert_eq!(first.entries, second.entries, "I11: what was recovered stays");
    assert_eq!(first.dirty, second.dirty, "I11: what is dirty stays so");
    true
}

/// A whole slot with the script's frames in it.
fn whole_slot(input: &mut Input<'_>, fields: &[u8]) -> Vec<u8> {
    let mut chain = Chain { sequence: 1, previous_sum: 2 };
    let mut slot = sealed(STORE_ID, chain.head(FrameKind::CheckpointHeader, 0, 0), fields);
    chain.push(frame::decode(STORE_ID, &slot).expect("just sealed").sum);
    let mut is_ended = false;
    while !is_ended && !input.0.is_empty() {
        is_ended = input.0[0] & 0x80 != 0;
        slot.extend(next_frame(input, &mut chain, FrameKind::CheckpointRecords).bytes);
    }
    slot.extend(sealed(STORE_ID, chain.head(FrameKind::CheckpointEnd, 0, 0), fields));
    slot
}

/// Disks with one record of each shape in checkpoint and journal.
#[must_use]
pub fn recovery_seeds() -> Vec<Vec<u8>> {
    let mut end = said(&[]);
    end[0] = 0x80;
    let openings: Vec<Record> = (0..4)
        .map(|region| Record::RegionOpen { region, epoch: Epoch(region + 1), stream: StreamKind::Dirty })
        .collect();
    let put = |identity: u128, generation, region: u32| {
        let Record::Put(put) = block(identity, generation, Epoch(region + 1), 100) else { unreachable!("a put") };
        Record::Put(PutRecord { at: Place { region, place: identity as u32 * 8 }, ..put })
    };
    let reopened = Record::RegionOpen { region: 1, epoch: Epoch(9), stream: StreamKind::Clean };
    let newer = [put(1, 5, 1), put(2, 6, 2), put(1, 7, 3), reopened];
    let begin = [0, 1, 0, 1].map(u64::to_le_bytes).concat();
    vec![
        [begin.clone(), end.clone(), said(&examples())].concat(),
        [begin.clone(), said(&examples()), end.clone(), said(&examples())].concat(),
        [begin.clone(), said(&openings), end.clone(), said(&[put(1, 2, 0), put(2, 3, 0)]), said(&newer)].concat(),
        [begin, end, said(&openings), said(&newer), said(&examples())].concat(),
    ]
}

/// A clean block of one piece in region 0.
fn block(identity: u128, generation: u64, epoch: Epoch, len_bytes: u32) -> Record {
    let at = Place { region: 0, place: 0 };
    let (identity, generation, sums) = (Identity(identity), Generation(generation), PieceSums::One(1));
    let pinning = Pinning::Unpinned;
    Record::Put(PutRecord { identity, generation, at, epoch, len_bytes, sums, etag: None, dirty: None, pinning })
}

/// One record of each shape.
fn examples() -> Vec<Record> {
    let key = BlockKey::new("v".into(), "a/key");
    let identity = NODE_KEY.identity(&key);
    let (key, certainty) = (&key, Certainty::Sure);
    let dirty = |generation, kind| {
        let (key, since_unix_ms) = (key.clone(), 9);
        DirtyRecord { key, identity, generation, kind, since_unix_ms, certainty }
    };
    let digest = Digest(5);
    let kind = DirtyKind::Block { len_bytes: 100, digest, before: BeforeStore::Delete };
    let of = |generation, len_bytes: u32, etag, dirty: Option<DirtyRecord>| {
        let sums = match piece_count(len_bytes.into()) {
            1 => PieceSums::One(3),
            count => PieceSums::Many(vec![4; count].into()),
        };
        let (at, dirty) = (Place { region: 0, place: 8 }, dirty.map(Box::new));
        let pinning = Pinning::Pinned;
        Record::Put(PutRecord { identity, generation, at, epoch: Epoch(1), len_bytes, sums, etag, dirty, pinning })
    };
    let generation = Generation;
    vec![
        Record::Opened { nonce: 1, next_generation: Generation(2) },
        Record::RegionOpen { region: 0, epoch: Epoch(1), stream: StreamKind::Dirty },
        of(generation(2), 100, None, None),
        of(generation(3), (2 << 20) + 1, Some(Etag::Digest(digest)), None),
        of(generation(4), 100, Some(Etag::Origin("\"etag\"".into())), None),
        of(generation(5), 100, Some(Etag::Digest(digest)), Some(dirty(generation(5), kind))),
        Record::Flushed { identity, generation: Generation(5) },
        Record::Tombstone(dirty(generation(6), DirtyKind::Tombstone)),
        Record::Tombstone(DirtyRecord { certainty: Certainty::Unsure, ..dirty(generation(7), DirtyKind::Tombstone) }),
        Record::Quarantined { region: 0, epoch: Epoch(1) },
        Record::Remove { identity, up_to: Generation(4) },
        Record::Void { sequence: 3, ordinal: 1 },
        Record::Pin { identity, up_to: Generation(40), pinning: Pinning::Pinned },
        Record::Pin { identity, up_to: Generation(41), pinning: Pinning::Unpinned },
    ]
}

#[cfg(test)]
mod tests;
