//! The journal's ring, frame by frame: from a checkpoint's point to the end of the chain, and why it ends there.
//!
//! Called by `inspect`, `verify` and `names`. Recovery (`scan`) needs the records and where the writer goes on; here every
//! frame is shown with its place, one at a time, and the end is explained: nothing was written there, a frame of an
//! earlier lap, a tail that was being written, or damage (a frame behind it says that the missing one was durable). Frames
//! that were never durable may be missing on the way, as recovery has it.

use forebay_io::frame::{self, Chain, FrameKind};
use forebay_io::superblock::Superblock;
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, IoError};

use super::super::journal::{Point, Ring};
use super::super::record::Record;
use super::slots::{Slot, SlotHeader, current};
use super::window::{Remains, Window};
use super::{Inspector, RecordCounts};

/// The journal from one point on.
#[derive(Debug, Clone)]
pub struct JournalView {
    /// Offset of the ring in the slab.
    pub ring_at: u64,
    /// Length of the ring in bytes.
    pub ring_bytes: u64,
    /// Where the walk began: bytes ever written.
    pub from_position: u64,
    /// The number of the frame there.
    pub from_sequence: u64,
    /// The good frames, in order.
    pub frames: Vec<FrameLine>,
    /// Their records.
    pub records: RecordCounts,
    /// Behind the last good frame: bytes ever written.
    pub end_position: u64,
    /// The number that the next frame will have.
    pub end_sequence: u64,
    /// The last frame that a later one calls durable.
    pub synced_through: u64,
    /// Frames that are missing on the way though later ones are there. None of them was durable.
    pub skipped_frames: u64,
    /// Why the chain ends.
    pub end: JournalEnd,
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLine {
    /// Its number.
    pub sequence: u64,
    /// Bytes ever written before it.
    pub position: u64,
    /// Where it begins in the slab.
    pub offset: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// The last frame that was surely durable when it was written.
    pub synced_through: u64,
    /// Its records.
    pub records: RecordCounts,
}

/// Why the chain ends. Offsets are in the slab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalEnd {
    /// What lies there is no frame of this lap.
    Nothing {
        /// Where.
        offset: u64,
        /// What lies there.
        what: String,
    },
    /// The whole ring is in use.
    Full,
    /// A frame that is there but damaged, and nobody says that it was durable: ordinary if the node was cut off while it
    /// wrote. What it held was not acknowledged then.
    Torn {
        /// Where.
        offset: u64,
        /// Its number.
        sequence: u64,
    },
    /// A frame that was durable is damaged: what it and the frames behind it acknowledged is in doubt.
    Rotten {
        /// Where.
        offset: u64,
        /// Its number.
        sequence: u64,
        /// How that is known.
        proof: String,
    },
}

/// Whether the journal still leads from the older whole checkpoint to the newer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spare {
    /// There is only one whole checkpoint.
    None,
    /// Either slot can be recovered from.
    Reaches,
    /// The space was used again since the node was started: only the newer slot can be recovered from.
    Reused,
    /// A frame on the way is damaged.
    Damaged {
        /// Offset in the slab.
        offset: u64,
        /// The frame's number.
        sequence: u64,
    },
}

impl JournalView {
    /// How often the ring's end was passed before the chain's end.
    #[must_use]
    pub fn laps(&self) -> u64 {
        self.end_position / self.ring_bytes
    }

    /// Bytes of the frames that were walked.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.end_position - self.from_position
    }
}

impl<D: Disk> Inspector<D> {
    /// Walks the journal from the newest point that a slot names.
    ///
    /// # Errors
    /// What the device said; [`IoError::Corrupt`] if no slot names one.
    pub async fn journal(&self, slots: &[Slot; 2]) -> Result<JournalView, IoError> {
        self.walk_journal(self.start(slots)?, |_, _| {}).await
    }

    /// The point where a walk of the journal begins.
    fn start(&self, slots: &[Slot; 2]) -> Result<Point, IoError> {
        let known = slots.iter().filter_map(|slot| slot.header).max_by_key(|header| header.number);
        let header = current(slots).and_then(|slot| slot.header).or(known);
        header.map(|header| header.from).ok_or_else(|| IoError::Corrupt {
            name: slots[0].name.clone(),
            at: 0,
            what: "neither slot says where the journal begins",
        })
    }

    /// Shows every frame behind the newest checkpoint's point, with its records.
    ///
    /// # Errors
    /// As [`Inspector::journal`].
    pub(super) async fn each_frame(
        &self,
        slots: &[Slot; 2],
        show: impl FnMut(&FrameLine, &[Record]),
    ) -> Result<JournalView, IoError> {
        self.walk_journal(self.start(slots)?, show).await
    }

    async fn walk_journal(
        &self,
        from: Point,
        mut show: impl FnMut(&FrameLine, &[Record]),
    ) -> Result<JournalView, IoError> {
        let ring = self.ring();
        let window = Window::of_ring(self.slab.clone(), ring, from.position);
        let mut view = JournalView {
            ring_at: ring.at,
            ring_bytes: ring.len_bytes,
            from_position: from.position,
            from_sequence: from.chain.sequence,
            frames: Vec::new(),
            records: RecordCounts::default(),
            end_position: from.position,
            end_sequence: from.chain.sequence,
            synced_through: from.chain.sequence.saturating_sub(1),
            skipped_frames: 0,
            end: JournalEnd::Full,
        };
        let mut chain = from.chain;
        while let Some(bytes) = window.frame_at(self.superblock.store_id, view.end_position).await? {
            let accepted = frame::decode(self.superblock.store_id, &bytes)
                .and_then(|found| chain.accept(FrameKind::Journal, &found).map(|()| found));
            let reject = match accepted {
                Ok(found) => {
                    view.take(ring, &found, &mut show);
                    continue;
                }
                Err(reject) => reject,
            };
            let at = view.end_position;
            let remains = window.remains(self.superblock.store_id, at, chain, FrameKind::Journal).await?;
            view.end = view.explain(ring, remains, reject.to_string());
            view.end_sequence = chain.sequence;
            if let Some(proof) = self.proof_of_rot(&window, &view).await? {
                view.end = JournalEnd::Rotten { offset: offset_of(ring, at), sequence: chain.sequence, proof };
                return Ok(view);
            }
            // Several frames are written at once; a power cut may take an earlier one of them and leave a later one.
            match self.behind_gap(&window, &view).await? {
                Some((position, next)) if remains != Remains::Rotten => {
                    view.skipped_frames += next.sequence - chain.sequence;
                    view.end_position = position;
                    chain = next;
                }
                _ => return Ok(view),
            }
        }
        view.end = JournalEnd::Full;
        view.end_sequence = chain.sequence;
        Ok(view)
    }

    /// The next frame of this lap behind the end, if any: its position and the chain that it continues.
    async fn behind_gap(&self, window: &Window<D::File>, view: &JournalView) -> Result<Option<(u64, Chain)>, IoError> {
        let mut position = view.end_position;
        while let Some(bytes) = window.frame_at(self.superblock.store_id, position).await? {
            if let Ok(found) = frame::decode(self.superblock.store_id, &bytes)
                && found.head.kind == FrameKind::Journal
                && found.head.sequence > view.end_sequence
            {
                let chain = Chain { sequence: found.head.sequence, previous_sum: found.head.previous_sum };
                return Ok(Some((position, chain)));
            }
            position += SECTOR_BYTES as u64;
        }
        Ok(None)
    }

    /// A frame behind the end that calls the missing one durable.
    async fn proof_of_rot(&self, window: &Window<D::File>, view: &JournalView) -> Result<Option<String>, IoError> {
        let mut position = view.end_position;
        while let Some(bytes) = window.frame_at(self.superblock.store_id, position).await? {
            if let Ok(found) = frame::decode(self.superblock.store_id, &bytes)
                && found.head.kind == FrameKind::Journal
                && found.head.sequence > view.end_sequence
                && found.head.synced_through >= view.end_sequence
            {
                let offset = offset_of(self.ring(), position);
                return Ok(Some(format!("frame {} at {offset} says that it was durable", found.head.sequence)));
            }
            position += SECTOR_BYTES as u64;
        }
        Ok(None)
    }

    /// Whether either slot can be recovered from.
    ///
    /// # Errors
    /// What the device said.
    pub async fn spare(&self, slots: &[Slot; 2]) -> Result<Spare, IoError> {
        let headers: Option<Vec<SlotHeader>> =
            slots.iter().map(|slot| slot.header.filter(|_| slot.is_whole())).collect();
        let Some(mut headers) = headers else { return Ok(Spare::None) };
        headers.sort_unstable_by_key(|header| header.number);
        let [older, newer] = headers[..] else { return Ok(Spare::None) };
        let (ring, to) = (self.ring(), newer.from);
        let window = Window::of_ring(self.slab.clone(), ring, older.position);
        let Point { mut position, mut chain } = older.from;
        while position < to.position {
            let Some(bytes) = window.frame_at(self.superblock.store_id, position).await? else { break };
            let accepted = frame::decode(self.superblock.store_id, &bytes)
                .and_then(|found| chain.accept(FrameKind::Journal, &found).map(|()| found.len_bytes()));
            match accepted {
                Ok(len_bytes) => position += len_bytes as u64,
                Err(_)
                    if Remains::Nothing
                        != window.remains(self.superblock.store_id, position, chain, FrameKind::Journal).await? =>
                {
                    return Ok(Spare::Damaged { offset: offset_of(ring, position), sequence: chain.sequence });
                }
                Err(_) => return Ok(Spare::Reused),
            }
        }
        Ok(if (Point { position, chain }) == to { Spare::Reaches } else { Spare::Reused })
    }

    fn ring(&self) -> Ring {
        Ring { at: Superblock::JOURNAL_AT, len_bytes: self.superblock.journal_bytes }
    }
}

impl JournalView {
    fn take(&mut self, ring: Ring, found: &frame::Frame<'_>, show: &mut impl FnMut(&FrameLine, &[Record])) {
        let mut line = FrameLine {
            sequence: found.head.sequence,
            position: self.end_position,
            offset: offset_of(ring, self.end_position),
            len_bytes: found.len_bytes() as u64,
            synced_through: found.head.synced_through,
            records: RecordCounts::default(),
        };
        let (mut payload, mut records) = (found.payload, Vec::new());
        for _ in 0..found.head.record_count {
            let Ok(record) = Record::decode(&mut payload) else {
                line.records.malformed += 1;
                self.records.malformed += 1;
                break;
            };
            line.records.count(&record);
            self.records.count(&record);
            records.push(record);
        }
        show(&line, &records);
        self.frames.push(line);
        self.end_position += line.len_bytes;
        self.synced_through = self.synced_through.max(line.synced_through);
    }

    fn explain(&self, ring: Ring, remains: Remains, reject: String) -> JournalEnd {
        let offset = offset_of(ring, self.end_position);
        let sequence = self.frames.last().map_or(self.from_sequence, |frame| frame.sequence + 1);
        match remains {
            Remains::Nothing => JournalEnd::Nothing { offset, what: reject },
            Remains::TornOrRotten => JournalEnd::Torn { offset, sequence },
            Remains::Rotten => {
                let proof = format!("{reject}, and it was written whole");
                JournalEnd::Rotten { offset, sequence, proof }
            }
        }
    }
}

fn offset_of(ring: Ring, position: u64) -> u64 {
    ring.at + position % ring.len_bytes
}
