//! Checkpoints: the whole index in the slot that is not current, so that the journal's space can be used again.
//!
//! Run by the checkpointer task when a third of the journal is behind the last one, by `Store::checkpoint` and by `close`; read by recovery.
//! Fuzzy: it notes the point P behind the last published commit, walks the index slice by slice while work goes on, and
//! ends with an end frame that names P. Whatever changed during the walk is in the journal behind P. Upholds I11: space
//! before P is freed only after slab and slot are synced.
//!
//! ```text
//!  ├ header: number, P, next generation ┼ region openings, then entries … ┼ end: the same as the header ┤
//! ```

use std::rc::Rc;
use std::time::Duration;

use forebay_io::frame::{self, Chain, FRAME_HEADER_BYTES, Frame, FrameKind, frame_bytes};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError, OpenMode, ReadBuf, Runtime};

use super::ahead::Ahead;
use super::block::Pinning;
use super::entry::{Entry, State as EntryIs};
use super::journal::Point;
use super::record::{PutRecord, Record};
use super::regions::{Region, RegionState, StreamKind};
use super::state::{Core, Life, State};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::{Generation, Identity};
use crate::policy::disk::Class;

/// A frame's payload, at most.
const PAYLOAD_BYTES_MAX: usize = (256 << 10) - FRAME_HEADER_BYTES;
/// Entries looked at while the state is borrowed.
const SLICE_COUNT: usize = 256;
/// After a failed checkpoint.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// With a full journal, after so many failures in a row the store takes no more writes.
const FAILURES_MAX: u32 = 3;
const HEADER_BYTES: usize = 40;
/// No journal has written more bytes or frames, and sums of places stay far from overflow.
const FIGURE_MAX: u64 = 1 << 60;
/// While a slot is read back: one read, four frames, and how many are in flight. The executor looks after them between two
/// frames every half a millisecond, in which a megabyte is decoded: they must last the device that long.
const READ_BYTES: u64 = 1 << 20;
const READS_AHEAD: usize = 6;

/// What a checkpoint says about itself, in its first and its last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Checkpoints are numbered; number n lies in slot n mod 2.
    pub number: u64,
    /// P: replay begins here.
    pub from: Point,
    /// The sequence was at this number.
    pub next_generation: Generation,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let chain = self.from.chain;
        let fields = [self.number, self.from.position, chain.sequence, chain.previous_sum, self.next_generation.0];
        let mut bytes = [0; HEADER_BYTES];
        bytes.chunks_exact_mut(8).zip(fields).for_each(|(into, field)| into.copy_from_slice(&field.to_le_bytes()));
        bytes
    }

    /// The inverse of encode; `None` for anything else.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_BYTES] = payload.try_into().ok()?;
        let field = |index: usize| {
            let at = index * 8;
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes inside forty"))
        };
        let chain = Chain { sequence: field(2), previous_sum: field(3) };
        let is_possible = field(1).is_multiple_of(SECTOR_BYTES as u64)
            && field(1) <= FIGURE_MAX
            && (Chain::BEGIN.sequence..=FIGURE_MAX).contains(&chain.sequence)
            && field(0) <= FIGURE_MAX
            && field(4) < 1 << 48;
        let from = Point { position: field(1), chain };
        is_possible.then(|| Header { number: field(0), from, next_generation: Generation(field(4)) })
    }
}

/// The file name of a checkpoint slot.
#[must_use]
pub fn slot_name(shard: u32, slot: u64) -> String {
    format!("shard-{shard:03}.checkpoint-{slot}")
}

impl<D: Disk, R: Runtime> Core<D, R> {
    /// The checkpointer's task: ends with the committer.
    pub async fn run_checkpointer(self: Rc<Self>) {
        let mut failures = 0;
        loop {
            let wanted = self.signals.checkpoint.listen();
            let (is_due, life) = {
                let state = self.state.borrow();
                (state.journal.is_checkpoint_due(), state.life)
            };
            match life {
                Life::Stopped => return,
                Life::Running | Life::Closing if is_due => match self.checkpoint().await {
                    Ok(()) => failures = 0,
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(shard = self.superblock.shard, %error, "a checkpoint failed; trying again");
                        self.fail_if_stuck(failures, &error);
                        self.runtime.sleep(RETRY_AFTER).await;
                    }
                },
                Life::Running | Life::Closing | Life::Failed | Life::Refounding => wanted.await,
            }
        }
    }

    /// Writes a checkpoint to a slot of its own, beside the two that take turns. Before the store runs.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn checkpoint_aside(&self, name: &str) -> Result<(), StoreError> {
        let (header, mut slot_bytes) = {
            let mut state = self.state.borrow_mut();
            state.checkpoint_number += 1;
            let (number, next_generation) = (state.checkpoint_number, Generation(state.next_generation));
            (Header { number, from: state.journal.published, next_generation }, state.checkpoint_bytes())
        };
        while !self.write_slot(name, header, slot_bytes).await? {
            slot_bytes *= 2;
        }
        Ok(())
    }

    /// A journal that is full, and that checkpoints fail to free, takes nothing: whoever waits for it is told.
    fn fail_if_stuck(&self, failures: u32, error: &StoreError) {
        let is_full = {
            let journal = &self.state.borrow().journal;
            !journal.fits(journal.payload_bytes_max())
        };
        if let StoreError::Disk(error) = error
            && is_full
            && failures >= FAILURES_MAX
        {
            self.fail(error);
        }
    }

    /// Writes a checkpoint of everything published so far.
    ///
    /// # Errors
    /// What the disk said; the earlier checkpoint and the whole journal still count.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let (header, mut slot_bytes) = {
            let state = self.state.borrow();
            if state.life == Life::Failed {
                return Err(StoreError::Failed);
            }
            let number = state.checkpoint_number + 1;
            let next_generation = Generation(state.next_generation);
            let is_late = canary::is(Canary::CheckpointMissesChanges);
            let from = if is_late { state.journal.head } else { state.journal.published };
            (Header { number, from, next_generation }, state.checkpoint_bytes())
        };
        let name = slot_name(self.superblock.shard, header.number % 2);
        if canary::is(Canary::JournalFreedEarly) {
            self.change(|state| (0..2).for_each(|_| state.journal.cover(header.from)));
            self.signals.journal.notify(usize::MAX);
        }
        while !self.write_slot(&name, header, slot_bytes).await? {
            slot_bytes *= 2;
        }
        self.change(|state| {
            state.checkpoint_number = header.number;
            state.counters.checkpoints += 1;
            state.journal.cover(header.from);
        });
        self.signals.journal.notify(usize::MAX);
        Ok(())
    }

    /// False if the index grew out of the slot meanwhile.
    async fn write_slot(&self, name: &str, header: Header, slot_bytes: u64) -> Result<bool, StoreError> {
        let file = self.disk.open(name, OpenMode::Replace(slot_bytes)).await?;
        let mut slot = SlotWriter::begin(&self.disk, file, self.superblock.store_id, header).await?;
        for region in 0..self.superblock.region_count {
            let Region { state, epoch, class, .. } = *self.state.borrow().regions.at(region);
            if epoch.0 > 0 {
                let stream = if class == Class::Kept { StreamKind::Kept } else { StreamKind::Clean };
                slot.push(&Record::RegionOpen { region, epoch, stream }).await?;
            }
            if state == RegionState::Quarantined {
                slot.push(&Record::Quarantined { region, epoch }).await?;
            }
        }
        let mut after: Option<Identity> = None;
        loop {
            let records: Vec<Record> = {
                let state = self.state.borrow();
                let slice = state.index.slice_after(after, SLICE_COUNT);
                after = slice.last().map(Entry::identity).or(after);
                slice.iter().map(|entry| state.record_of(entry)).collect()
            };
            if records.is_empty() {
                break;
            }
            for record in &records {
                if canary::is(Canary::CheckpointDropsTombstones) && matches!(record, Record::Tombstone(_)) {
                    continue;
                }
                slot.push(record).await?;
            }
            if slot.is_overfull {
                return Ok(false);
            }
            self.runtime.yield_now().await;
        }
        // What the walk saw may be published and not synced yet: clean fills.
        let through = self.state.borrow().journal.published.chain.sequence - 1;
        self.sync_slab().await?;
        self.change(|state| state.journal.synced_through = state.journal.synced_through.max(through));
        slot.end(header).await
    }
}

impl State {
    /// The record that makes this entry again. The full key of a clean block is not in memory: its identity will do.
    pub fn record_of(&self, entry: &Entry) -> Record {
        let dirty = || self.dirty.get(&entry.identity()).expect("I4: what is dirty is known to be");
        if entry.state() == EntryIs::Tombstone {
            return Record::Tombstone((**dirty()).clone());
        }
        let at = entry.place().expect("a block has a place");
        let (sums, etag) = self.extensions.resolve(entry.proof());
        Record::Put(PutRecord {
            identity: entry.identity(),
            generation: entry.generation(),
            at,
            epoch: self.regions.at(at.region).epoch,
            len_bytes: entry.len_bytes(),
            sums,
            etag,
            dirty: (entry.state() == EntryIs::Dirty).then(|| Box::new((**dirty()).clone())),
            pinning: if canary::is(Canary::CheckpointForgetsPins) { Pinning::Unpinned } else { entry.pinning() },
        })
    }

    /// What a checkpoint will take, with room for what comes in while it is written.
    fn checkpoint_bytes(&self) -> u64 {
        let entries = self.index.count() * 64 + self.extensions.memory_bytes() + self.extensions.count() as u64 * 32;
        let dirty: usize = self.dirty.values().map(|record| record.key.key.len() + 128).sum();
        let bytes = entries + dirty as u64 + u64::from(self.regions.count()) * 32;
        (bytes + bytes / 4 + (128 << 10)).next_multiple_of(SECTOR_BYTES as u64)
    }
}

/// Writes frames into a slot, one after the other.
pub struct SlotWriter<'a, D: Disk> {
    disk: &'a D,
    file: D::File,
    store_id: u64,
    chain: Chain,
    at: u64,
    payload: Vec<u8>,
    record_count: u32,
    is_overfull: bool,
}

impl<'a, D: Disk> SlotWriter<'a, D> {
    /// Writes the header.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn begin(disk: &'a D, file: D::File, store_id: u64, header: Header) -> Result<Self, IoError> {
        let (payload, chain) = (header.encode().to_vec(), slot_chain(header.number));
        let mut slot = SlotWriter { disk, file, store_id, chain, at: 0, payload, record_count: 0, is_overfull: false };
        slot.flush(FrameKind::CheckpointHeader).await?;
        Ok(slot)
    }

    async fn push(&mut self, record: &Record) -> Result<(), IoError> {
        let before = self.payload.len();
        record.encode(&mut self.payload);
        self.record_count += 1;
        if self.payload.len() > PAYLOAD_BYTES_MAX {
            let last = self.payload.split_off(before);
            self.record_count -= 1;
            self.flush(FrameKind::CheckpointRecords).await?;
            self.payload = last;
            self.record_count = 1;
        }
        Ok(())
    }

    /// Writes what is left and the end frame, and syncs. False if it does not fit.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn end(mut self, header: Header) -> Result<bool, StoreError> {
        self.flush(FrameKind::CheckpointRecords).await?;
        // The end frame must not become durable before what it ends.
        self.file.sync().await?;
        self.payload = header.encode().to_vec();
        self.flush(FrameKind::CheckpointEnd).await?;
        if self.is_overfull {
            return Ok(false);
        }
        if canary::is(Canary::CheckpointUnsynced) {
            return Ok(true);
        }
        self.file.sync().await?;
        self.disk.sync_names().await?;
        Ok(true)
    }

    async fn flush(&mut self, kind: FrameKind) -> Result<(), IoError> {
        let len = frame_bytes(self.payload.len());
        self.is_overfull |= self.at + len as u64 > self.file.len_bytes();
        if !self.is_overfull {
            let mut buf = self.disk.buffer(len).await;
            let head = self.chain.head(kind, self.record_count, 0);
            self.chain.push(frame::encode(self.store_id, head, &self.payload, &mut buf));
            self.file.write(self.at, buf).await?;
            self.at += len as u64;
        }
        self.payload.clear();
        self.record_count = 0;
        Ok(())
    }
}

/// Reads the frames of a slot, one after the other; stops at the first that is not the next.
pub struct SlotReader<F> {
    file: F,
    store_id: u64,
    chain: Chain,
    at: u64,
    /// What the header says.
    pub header: Header,
}

impl<F: DiskFile> SlotReader<F> {
    /// The slot's checkpoint, if its header is good.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn begin(file: F, store_id: u64) -> Result<Option<SlotReader<F>>, IoError> {
        if file.len_bytes() < SECTOR_BYTES as u64 {
            return Ok(None);
        }
        let bytes = file.read(0, SECTOR_BYTES).await?;
        let Ok(first) = frame::decode(store_id, &bytes) else { return Ok(None) };
        let Some(header) = Header::decode(first.payload) else { return Ok(None) };
        let mut chain = slot_chain(header.number);
        if chain.accept(FrameKind::CheckpointHeader, &first).is_err() {
            return Ok(None);
        }
        Ok(Some(SlotReader { file, store_id, chain, at: SECTOR_BYTES as u64, header }))
    }

    /// Hands every frame of records to `each`; true if the end frame follows the last and names the same header.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn read<R: Runtime>(mut self, runtime: &R, mut each: impl FnMut(&Frame<'_>)) -> Result<bool, IoError> {
        let mut ahead = ReadAhead { file: self.file.clone(), next: self.at, reads: Ahead::default(), held: None };
        loop {
            let Some(bytes) = ahead.frame(self.at).await? else { return Ok(false) };
            let Ok(found) = frame::decode(self.store_id, &bytes) else { return Ok(false) };
            if self.chain.accept(FrameKind::CheckpointEnd, &found).is_ok() {
                return Ok(Header::decode(found.payload) == Some(self.header));
            }
            if self.chain.accept(FrameKind::CheckpointRecords, &found).is_err() {
                return Ok(false);
            }
            each(&found);
            self.at += found.len_bytes() as u64;
            runtime.yield_now().await;
        }
    }
}

/// Reads of a slot ahead of its walk. Nearly all frames are as long as one can be, so that whole frames lie in a read; where
/// one goes on behind it, reading ahead begins anew with that frame.
struct ReadAhead<F> {
    file: F,
    /// Where the next read begins.
    next: u64,
    /// In order; each with its offset.
    reads: Ahead<(u64, Result<ReadBuf, IoError>)>,
    /// What was read last.
    held: Option<(u64, ReadBuf)>,
}

impl<F: DiskFile> ReadAhead<F> {
    /// The bytes of the frame at `at`, and maybe more, fewer at the end of the file; `None` behind it.
    async fn frame(&mut self, at: u64) -> Result<Option<ReadBuf>, IoError> {
        let left = self.file.len_bytes().saturating_sub(at);
        if left == 0 {
            return Ok(None);
        }
        loop {
            if let Some((from, bytes)) = &self.held
                && (*from..from + bytes.len() as u64).contains(&at)
            {
                let found = bytes.slice((at - from) as usize..bytes.len());
                let claims =
                    [FrameKind::CheckpointRecords, FrameKind::CheckpointEnd].map(|kind| frame::claim(kind, &found));
                let wanted = claims.iter().flatten().map(|claim| claim.frame_bytes).next().unwrap_or(0) as u64;
                if wanted.min(left).min(READ_BYTES) <= found.len() as u64 {
                    return Ok(Some(found));
                }
                (self.next, self.reads) = (at, Ahead::default());
            } else if self.reads.count() == 0 {
                self.next = at;
            }
            while self.reads.count() < READS_AHEAD && self.next < self.file.len_bytes() {
                let (file, from) = (self.file.clone(), self.next);
                let len = (self.file.len_bytes() - from).min(READ_BYTES);
                self.reads.begin(async move { (from, file.read(from, len as usize).await) }).await;
                self.next += len;
            }
            let (from, bytes) = self.reads.next().await.expect("there is something left to read");
            self.held = Some((from, bytes?));
        }
    }
}

fn slot_chain(number: u64) -> Chain {
    Chain { sequence: 1, previous_sum: number }
}
