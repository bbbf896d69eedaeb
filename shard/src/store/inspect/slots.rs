//! The two checkpoint slots, frame by frame: which is whole, which counts, where a damaged one ends.
//!
//! Called by `inspect` and `verify`. Recovery asks only whether a slot is whole; here the reasons are told apart: a slot
//! whose writing was cut off is ordinary after a crash, one that was finished and reads no more is damage. The end frame
//! is written after everything before it is synced, so a damaged frame with a good end frame behind it has rotted; and
//! a frame inside one sector of 512 bytes is there whole or not at all.

use forebay_io::frame::{self, Chain, FrameKind, Likeness, Reject};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError, OpenMode};

use super::super::checkpoint::{Header, slot_name};
use super::super::journal::Point;
use super::super::record::Record;
use super::window::Window;
use super::{Inspector, RecordCounts};

/// One checkpoint slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The file's name.
    pub name: String,
    /// What it is worth.
    pub state: SlotState,
    /// What it says about itself, as far as it can be read.
    pub header: Option<SlotHeader>,
    /// Good frames from its start.
    pub frames: u64,
    /// Their records.
    pub records: RecordCounts,
    /// Bytes of those frames.
    pub used_bytes: u64,
    /// How long the file is.
    pub file_bytes: u64,
}

/// What a checkpoint says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotHeader {
    /// Checkpoints are numbered; the larger is the newer.
    pub number: u64,
    /// Journal position where replay begins, in bytes ever written.
    pub position: u64,
    /// The number of the frame there.
    pub sequence: u64,
    /// The shard's sequence stood here.
    pub next_generation: u64,
    pub(super) from: Point,
}

/// What a slot is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    /// The file does not exist: no checkpoint was written there yet.
    Missing,
    /// A checkpoint that was cut off while it was written; the other slot counts.
    Unfinished,
    /// A complete checkpoint.
    Whole,
    /// It was complete once.
    Damaged {
        /// Offset in the file.
        at: u64,
        /// What is wrong there.
        what: String,
    },
}

impl Slot {
    /// Whether recovery can begin with it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.state == SlotState::Whole
    }
}

/// The slot that recovery begins with: the newest whole one.
#[must_use]
pub fn current(slots: &[Slot; 2]) -> Option<&Slot> {
    slots.iter().filter(|slot| slot.is_whole()).max_by_key(|slot| slot.header.map(|header| header.number))
}

impl<D: Disk> Inspector<D> {
    /// Reads both slots to their ends.
    ///
    /// # Errors
    /// What the device said.
    pub async fn slots(&self) -> Result<[Slot; 2], IoError> {
        Ok([self.slot(0).await?, self.slot(1).await?])
    }

    async fn slot(&self, number: u64) -> Result<Slot, IoError> {
        let name = slot_name(self.superblock.shard, number);
        let file = match self.disk.open(&name, OpenMode::Read).await {
            Err(IoError::Missing { .. }) => return Ok(Slot::new(name, 0, SlotState::Missing)),
            opened => opened?,
        };
        let mut slot = Slot::new(name, file.len_bytes(), SlotState::Unfinished);
        let window = Window::of_file(file);
        let broken = slot.walk(&window, self.superblock.store_id).await?;
        let Some(broken) = broken else {
            slot.state = SlotState::Whole;
            return Ok(slot);
        };
        let end = find_end(&window, self.superblock.store_id, slot.used_bytes).await?;
        let was_whole = end.is_some_and(|end| {
            let is_own = end.number % 2 == number;
            is_own && slot.header.is_none_or(|header| header.number == end.number)
        });
        if was_whole || broken.is_proof {
            slot.state = SlotState::Damaged { at: slot.used_bytes, what: broken.what };
            slot.header = slot.header.or(end.map(SlotHeader::of));
        }
        Ok(slot)
    }
}

/// Where a walk ended.
struct Broken {
    what: String,
    /// It can't have been torn.
    is_proof: bool,
}

impl Slot {
    fn new(name: String, file_bytes: u64, state: SlotState) -> Slot {
        Slot { name, state, header: None, frames: 0, records: RecordCounts::default(), used_bytes: 0, file_bytes }
    }

    /// Goes through the frames; `None` if they end with the end frame.
    async fn walk<F: DiskFile>(&mut self, window: &Window<F>, store_id: u64) -> Result<Option<Broken>, IoError> {
        let mut chain: Option<(Chain, Header)> = None;
        loop {
            let bytes = match window.frame_at(store_id, self.used_bytes).await? {
                Some(bytes) => bytes,
                None => return Ok(Some(Broken { what: "the file ends before the end frame".into(), is_proof: false })),
            };
            let found = match frame::decode(store_id, &bytes) {
                Ok(found) => found,
                Err(reject) => return Ok(Some(explain(reject, chain.map(|(chain, _)| chain), &bytes))),
            };
            let Some((next, header)) = &mut chain else {
                let header = Header::decode(found.payload);
                let mut first = Chain { sequence: 1, previous_sum: header.map_or(0, |header| header.number) };
                let (Some(header), Ok(())) = (header, first.accept(FrameKind::CheckpointHeader, &found)) else {
                    return Ok(Some(Broken {
                        what: "the first frame is no checkpoint's header".into(),
                        is_proof: false,
                    }));
                };
                self.header = Some(SlotHeader::of(header));
                chain = Some((first, header));
                self.took(&found);
                continue;
            };
            if next.accept(FrameKind::CheckpointEnd, &found).is_ok() {
                if Header::decode(found.payload) != Some(*header) {
                    return Ok(Some(Broken { what: "header and end frame disagree".into(), is_proof: true }));
                }
                self.took(&found);
                return Ok(None);
            }
            if let Err(reject) = next.accept(FrameKind::CheckpointRecords, &found) {
                return Ok(Some(Broken { what: reject.to_string(), is_proof: false }));
            }
            let mut payload = found.payload;
            for _ in 0..found.head.record_count {
                match Record::decode(&mut payload) {
                    Ok(record) => self.records.count(&record),
                    Err(_) => {
                        self.records.malformed += 1;
                        break;
                    }
                }
            }
            self.took(&found);
        }
    }

    fn took(&mut self, found: &frame::Frame<'_>) {
        self.frames += 1;
        self.used_bytes += found.len_bytes() as u64;
    }
}

impl SlotHeader {
    fn of(header: Header) -> SlotHeader {
        SlotHeader {
            number: header.number,
            position: header.from.position,
            sequence: header.from.chain.sequence,
            next_generation: header.next_generation.0,
            from: header.from,
        }
    }
}

/// A frame of records may be torn; the head of any frame, and the whole end frame, are one part of 512 bytes.
fn explain(reject: Reject, chain: Option<Chain>, bytes: &[u8]) -> Broken {
    let is_proof = chain.is_some_and(|chain| {
        let as_records = chain.likeness(FrameKind::CheckpointRecords, bytes);
        let as_end = chain.likeness(FrameKind::CheckpointEnd, bytes);
        let is_damaged = [as_records, as_end].contains(&Likeness::DamagedHead);
        as_end == Likeness::WholeHead || as_records != Likeness::WholeHead && is_damaged
    });
    Broken { what: reject.to_string(), is_proof }
}

/// The last good end frame behind `from`.
async fn find_end<F: DiskFile>(window: &Window<F>, store_id: u64, from: u64) -> Result<Option<Header>, IoError> {
    let (mut at, mut end) = (from, None);
    while let Some(bytes) = window.sector_at(at).await? {
        if let Ok(found) = frame::decode(store_id, &bytes)
            && found.head.kind == FrameKind::CheckpointEnd
        {
            end = Header::decode(found.payload).or(end);
        }
        at += SECTOR_BYTES as u64;
    }
    Ok(end)
}
