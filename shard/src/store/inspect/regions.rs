//! Regions and records: what each region of the slab holds, as recovery sees it, and what its footer says.
//!
//! Called by `inspect` and by `verify`, which reads the records of one region after the other in the order in which they
//! lie. Memory: a few numbers for each region, and the records of one region (or a few small ones) at a time.

use std::collections::HashMap;
use std::ops::Range;

use forebay_io::{Disk, IoError};

use super::super::entry::{Entry, Place, Proof, State as EntryIs};
use super::super::record::Record;
use super::super::regions::{Epoch, RegionState, StreamKind, footprint};
use super::footers::FooterState;
use super::names::Names;
use super::slots::Slot;
use super::{Inspector, Recovery};
use crate::key::BlockKey;
use crate::origin::Etag;

/// One region. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionView {
    /// Its number.
    pub number: u32,
    /// What the next start of the node will take it for.
    pub state: RegionIs,
    /// The number of its opening; 0: never opened.
    pub epoch: u32,
    /// What was appended to it, where journal or footer tell.
    pub stream: Option<Stream>,
    /// Blocks that count.
    pub live: u64,
    /// What they occupy.
    pub live_bytes: u64,
    /// What the dirty ones among them occupy.
    pub dirty_bytes: u64,
    /// Up to the end of the last record that is known, superseded ones included.
    pub fill_bytes: u64,
    /// What its footer is worth.
    pub footer: FooterState,
}

/// What a region is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionIs {
    /// Nothing in it counts.
    Free,
    /// Full, with a footer.
    Sealed,
    /// It holds records and has no footer: it was open when the node stopped.
    Unsealed,
    /// Out of use.
    Quarantined,
}

/// Clean and dirty records are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Fills and confirmed puts.
    Clean,
    /// Puts that waited for a flush.
    Dirty,
}

/// One block or tombstone of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordLine {
    /// Whose: the keyed hash of volume and key.
    pub identity: u128,
    /// The full key, where it is known.
    pub key: Option<BlockKey>,
    /// Which put, fill or delete.
    pub generation: u64,
    /// Region and offset inside it in bytes; a tombstone lies nowhere.
    pub place: Option<(u32, u64)>,
    /// Where its content begins in the slab.
    pub offset: Option<u64>,
    /// Content length in bytes.
    pub len_bytes: u32,
    /// What it is.
    pub state: RecordIs,
    /// Pieces that are verified one by one.
    pub pieces: u32,
    /// Kept where it can't be computed from one piece.
    pub etag: Option<Etag>,
}

/// What an entry of the index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordIs {
    /// A block that the origin has.
    Clean,
    /// A block that it does not have yet.
    Dirty,
    /// A delete that it does not know yet.
    Tombstone,
}

/// What lives in a region.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Live {
    pub(super) count: u64,
    pub(super) bytes: u64,
    end: u64,
}

impl<D: Disk> Inspector<D> {
    /// All regions of the slab.
    ///
    /// # Errors
    /// What the device said.
    pub async fn regions(&self, slots: &[Slot; 2], recovery: &Recovery) -> Result<Vec<RegionView>, IoError> {
        let mut streams = HashMap::new();
        let walked = self.each_frame(slots, |_, records| {
            for record in records {
                if let Record::RegionOpen { region, epoch, stream } = record {
                    streams.insert((*region, *epoch), *stream);
                }
            }
        });
        match walked.await {
            Ok(_) | Err(IoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut views = Vec::new();
        for (number, live) in (0..).zip(recovery.live(self.superblock.region_count)) {
            let epoch = recovery.loaded.state.regions.at(number).epoch;
            views.push(self.region(recovery, number, live, streams.get(&(number, epoch)).copied()).await?);
        }
        Ok(views)
    }

    async fn region(
        &self,
        recovery: &Recovery,
        number: u32,
        live: Live,
        stream: Option<StreamKind>,
    ) -> Result<RegionView, IoError> {
        let region = recovery.loaded.state.regions.at(number);
        let (mut fill_bytes, mut footer, mut listed) = (live.end, FooterState::None, None);
        if region.epoch > Epoch(0) {
            let show = |record: &Record| {
                if let Record::Put(put) = record {
                    fill_bytes = fill_bytes.max(put.at.offset() + footprint(put.len_bytes));
                    let is_dirty = put.dirty.is_some();
                    listed = listed.or(Some(if is_dirty { StreamKind::Dirty } else { StreamKind::Clean }));
                }
            };
            footer = self.footer(number, region.epoch, show).await?;
        }
        let state = match (region.state, &footer) {
            (RegionState::Quarantined, _) => RegionIs::Quarantined,
            (RegionState::Free, _) => RegionIs::Free,
            (_, FooterState::None) => RegionIs::Unsealed,
            _ => RegionIs::Sealed,
        };
        let stream = stream.or(listed).map(|stream| match stream {
            StreamKind::Clean | StreamKind::Kept => Stream::Clean,
            StreamKind::Dirty => Stream::Dirty,
        });
        Ok(RegionView {
            number,
            state,
            epoch: region.epoch.0,
            stream,
            live: live.count,
            live_bytes: live.bytes,
            dirty_bytes: region.dirty_bytes,
            fill_bytes,
            footer,
        })
    }

    /// The records of these regions that count, in the order in which they lie. Ask for a batch of
    /// [`Recovery::batches`] at a time: each costs a walk of the index.
    ///
    /// # Errors
    /// What the device said about a footer, which names some.
    pub async fn records(
        &self,
        recovery: &Recovery,
        names: &mut Names,
        regions: Range<u32>,
    ) -> Result<Vec<RecordLine>, IoError> {
        let entries = recovery.entries_in(regions);
        let mut named = None;
        for at in entries.iter().filter_map(Entry::place) {
            if named != Some(at.region) {
                named = Some(at.region);
                let epoch = recovery.loaded.state.regions.at(at.region).epoch;
                self.footer(at.region, epoch, |record| names.learn(record)).await?;
            }
        }
        Ok(entries.iter().map(|entry| self.line(recovery, names, entry)).collect())
    }

    /// Deletes that the origin does not know yet, the oldest first.
    #[must_use]
    pub fn tombstones(&self, recovery: &Recovery, names: &Names) -> Vec<RecordLine> {
        let dirty = recovery.dirty();
        let entries = dirty.iter().filter_map(|record| recovery.loaded.state.index.find(record.identity));
        let tombstones = entries.filter(|entry| entry.state() == EntryIs::Tombstone);
        tombstones.map(|entry| self.line(recovery, names, &entry)).collect()
    }

    pub(super) fn line(&self, recovery: &Recovery, names: &Names, entry: &Entry) -> RecordLine {
        let state = match entry.state() {
            EntryIs::Clean => RecordIs::Clean,
            EntryIs::Dirty => RecordIs::Dirty,
            EntryIs::Tombstone => RecordIs::Tombstone,
        };
        // A tombstone has neither sums nor an extension.
        let (sums, etag) = match entry.place() {
            Some(_) => recovery.loaded.state.extensions.resolve(entry.proof()),
            None => recovery.loaded.state.extensions.resolve(Proof::Sum(0)),
        };
        RecordLine {
            identity: entry.identity().0,
            key: names.key(entry.identity()).cloned(),
            generation: entry.generation().0,
            place: entry.place().map(|at| (at.region, at.offset())),
            offset: entry.place().map(|at| self.offset_of(at)),
            len_bytes: entry.len_bytes(),
            state,
            pieces: if state == RecordIs::Tombstone { 0 } else { sums.as_slice().len() as u32 },
            etag,
        }
    }

    pub(super) fn offset_of(&self, at: Place) -> u64 {
        self.region_at(at.region) + at.offset()
    }
}

impl Recovery {
    /// What lives in each region.
    pub(super) fn live(&self, region_count: u32) -> Vec<Live> {
        let mut live = vec![Live::default(); region_count as usize];
        self.each_entry(|entry| {
            let Some(at) = entry.place() else { return };
            let region = &mut live[at.region as usize];
            region.count += 1;
            region.bytes += footprint(entry.len_bytes());
            region.end = region.end.max(at.offset() + footprint(entry.len_bytes()));
        });
        live
    }

    /// `regions` cut into batches of at most `count_max` blocks, or of one region that has more.
    #[must_use]
    pub fn batches(&self, regions: Range<u32>, count_max: u64) -> Vec<Range<u32>> {
        let live = self.live(self.loaded.state.regions.count());
        let (mut batches, mut count) = (Vec::<Range<u32>>::new(), 0);
        for number in regions {
            let more = live[number as usize].count;
            match batches.last_mut() {
                Some(last) if count + more <= count_max => {
                    last.end = number + 1;
                    count += more;
                }
                _ => {
                    batches.push(number..number + 1);
                    count = more;
                }
            }
        }
        batches
    }

    /// The entries of these regions, in the order in which they lie.
    pub(super) fn entries_in(&self, regions: Range<u32>) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.each_entry(|entry| {
            if entry.place().is_some_and(|at| regions.contains(&at.region)) {
                entries.push(*entry);
            }
        });
        entries.sort_unstable_by_key(Entry::place);
        entries
    }
}
