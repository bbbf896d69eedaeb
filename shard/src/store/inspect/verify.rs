//! `verify`: reads everything that a stopped shard has on its disk and says which promise no longer holds.
//!
//! Called by `forebay verify` and by tests. Part by part, each standing on those before it: superblocks, checkpoints, the
//! journal's chain, the index that recovery makes of them (I1, I4, I9, I10, I11, I13 and the regions' epochs), footers,
//! and every piece of every block against its checksum (in `verify_records`). A part that can't be examined says why.
//! What a crash ordinarily leaves (a torn tail, an unfinished checkpoint) is a note and no fault.

use std::collections::{HashMap, HashSet};

use forebay_io::{Disk, IoError, OpenMode, Runtime};

use super::super::block::Certainty;
use super::super::entry::State as EntryIs;
use super::super::patient::PatientDisk;
use super::super::record::Record;
use super::super::regions::{Epoch, RegionTable};
use super::super::{NodeIdentity, RecoveredBy, open, slab_name};
use super::footers::FooterState;
use super::journal::{JournalEnd, Spare};
use super::report::{Cost, Finding, Part, PartReport, Report};
use super::slots::{Slot, SlotState, current};
use super::{Inspector, Recovery, Superblocks};
use crate::key::{Generation, Identity, IdentityMap};

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being read.
    pub part: Part,
    /// Bytes of blocks read so far.
    pub done_bytes: u64,
    /// Bytes of blocks to be read; zero until that is known.
    pub total_bytes: u64,
}

/// Reads everything of shard number `shard`. `owner` is who it should belong to, if that is known.
pub async fn verify<D: Disk, R: Runtime>(
    disk: D,
    runtime: &R,
    shard: u16,
    owner: Option<&NodeIdentity>,
    progress: &mut dyn FnMut(Progress),
) -> Report {
    let mut report = Report { shard, parts: Vec::new(), proven_bytes: 0 };
    let file = slab_name(shard);
    let at = |part| Progress { part, done_bytes: 0, total_bytes: 0 };
    // As recovery reads: what lies on a bad sector is damaged, and everything else is still judged.
    let disk = PatientDisk::new(disk, runtime.clone());
    if let Ok(slab) = disk.open(&file, OpenMode::Read).await {
        // A disk that reads nothing at all says so to whoever reads next.
        let _ = slab.bear_witness().await;
    }
    progress(at(Part::Superblock));
    report.parts.push(superblocks(&disk, shard, owner).await);
    let inspector = match Inspector::open(disk.clone(), shard).await {
        Ok(inspector) => inspector,
        Err(error) => {
            report.cut_short(Part::Checkpoints, format!("{:#}", Chain(&error)));
            return report;
        }
    };
    progress(at(Part::Checkpoints));
    let (part, slots) = inspector.verify_slots().await;
    report.parts.push(part);
    let Some(slots) = slots else {
        report.cut_short(Part::Journal, "the checkpoints can't be read".into());
        return report;
    };
    progress(at(Part::Journal));
    report.parts.push(inspector.verify_journal(&slots, &file).await);
    progress(at(Part::Index));
    let (part, recovery) = inspector.verify_index(runtime, &slots, &file).await;
    report.parts.push(part);
    let Some(recovery) = recovery else {
        report.cut_short(Part::Footers, "which blocks count is not known without the index".into());
        return report;
    };
    progress(at(Part::Footers));
    report.parts.push(inspector.verify_footers(&recovery, &file).await);
    let (part, proven_bytes) = inspector.verify_records(&recovery, &file, progress).await;
    report.proven_bytes = proven_bytes;
    report.parts.push(part);
    inspector.name_keys(&slots, &recovery, &mut report).await;
    if disk.unreadable() > 0
        && let Some(part) = report.parts.last_mut()
    {
        let what = format!("{} sectors can't be read: what lay there counts as damaged", disk.unreadable());
        part.found(Finding::new(Cost::Note, &file, None, what));
    }
    report
}

/// An error with its sources on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Report {
    fn cut_short(&mut self, part: Part, why: String) {
        let mut cut = PartReport::new(part, "examined");
        cut.cut_short = Some(why);
        self.parts.push(cut);
    }
}

async fn superblocks<D: Disk>(disk: &D, shard: u16, owner: Option<&NodeIdentity>) -> PartReport {
    let mut part = PartReport::new(Part::Superblock, "copies");
    let file = slab_name(shard);
    let read = match Superblocks::read(disk, shard).await {
        Ok(read) => read,
        Err(error) => {
            part.found(Finding::new(Cost::Data, &file, None, format!("the slab can't be read: {:#}", Chain(&error))));
            return part;
        }
    };
    part.examined = 2;
    let Some(good) = read.good() else {
        let [first, second] = read.copies.map(|copy| copy.map_or_else(|why| why.to_string(), |_| String::new()));
        let what = format!("both copies are damaged (first: {first}; second: {second}): the shard can't be opened");
        part.found(Finding::new(Cost::Data, &file, Some(0), what));
        return part;
    };
    for (number, copy) in read.copies.iter().enumerate() {
        let offset = Some(number as u64 * 4096);
        match copy {
            Err(why) => {
                let what = format!("copy {number} is damaged ({why}); the other counts, the next start writes it anew");
                part.found(Finding::new(Cost::Spare, &file, offset, what));
            }
            Ok(copy) if copy != good => {
                part.found(Finding::new(Cost::Spare, &file, offset, "the copies differ; the first counts"));
            }
            Ok(_) => {}
        }
    }
    if let Some(owner) = owner
        && let Err(error) = open::check_owner(good, owner, &file)
    {
        part.found(Finding::new(Cost::Data, &file, Some(0), format!("{error}: this node does not open it")));
    }
    if read.slab_bytes < good.slab_bytes() {
        let what = format!("the file was cut: it has {} of {} bytes", read.slab_bytes, good.slab_bytes());
        part.found(Finding::new(Cost::Data, &file, Some(read.slab_bytes), what));
    }
    part
}

impl<D: Disk> Inspector<D> {
    async fn verify_slots(&self) -> (PartReport, Option<[Slot; 2]>) {
        let mut part = PartReport::new(Part::Checkpoints, "frames");
        let slots = match self.slots().await {
            Ok(slots) => slots,
            Err(error) => {
                let what = format!("a slot can't be read: {:#}", Chain(&error));
                part.found(Finding::new(Cost::Data, "checkpoints", None, what));
                return (part, None);
            }
        };
        let is_any_whole = current(&slots).is_some();
        for slot in &slots {
            part.examined += slot.frames;
            let (cost, offset, what) = match &slot.state {
                SlotState::Whole if slot.records.malformed > 0 => {
                    (Cost::Data, 0, "a good frame holds bytes that are no record".to_owned())
                }
                SlotState::Whole | SlotState::Missing => continue,
                SlotState::Unfinished => {
                    (Cost::Note, slot.used_bytes, "a checkpoint that was cut off while it was written".to_owned())
                }
                SlotState::Damaged { at, what } if is_any_whole => {
                    (Cost::Spare, *at, format!("a damaged frame ({what}); recovery begins with the other slot"))
                }
                SlotState::Damaged { at, what } => (Cost::Data, *at, format!("a damaged frame ({what})")),
            };
            part.found(Finding::new(cost, &slot.name, Some(offset), what));
        }
        if !is_any_whole {
            let what = "no slot holds a whole checkpoint: clean blocks are dropped, dirty ones are in doubt";
            part.found(Finding::new(Cost::Data, &slots[0].name, None, what));
        }
        (part, Some(slots))
    }

    async fn verify_journal(&self, slots: &[Slot; 2], file: &str) -> PartReport {
        let mut part = PartReport::new(Part::Journal, "frames");
        let view = match self.journal(slots).await {
            Ok(view) => view,
            Err(error) => {
                part.found(Finding::new(Cost::Data, file, None, format!("{:#}", Chain(&error))));
                return part;
            }
        };
        part.examined = view.frames.len() as u64;
        if view.records.malformed > 0 {
            part.found(Finding::new(Cost::Data, file, None, "a good frame holds bytes that are no record"));
        }
        match view.end {
            JournalEnd::Nothing { .. } | JournalEnd::Full => {}
            JournalEnd::Torn { offset, sequence } => {
                let what = format!(
                    "frame {sequence}, the last, is torn: if the node was cut off while it wrote, nothing in it was \
                     acknowledged"
                );
                part.found(Finding::new(Cost::Note, file, Some(offset), what));
            }
            JournalEnd::Rotten { offset, sequence, proof } => {
                let what = format!("frame {sequence} is damaged ({proof}): writes acknowledged from there on are lost");
                part.found(Finding::new(Cost::Data, file, Some(offset), what));
            }
        }
        match self.spare(slots).await {
            Ok(Spare::None | Spare::Reaches) => {}
            Ok(Spare::Reused) => {
                let what = "its space was used again: only the newer checkpoint can be recovered from";
                part.found(Finding::new(Cost::Note, file, None, what));
            }
            Ok(Spare::Damaged { offset, sequence }) => {
                let what = format!("frame {sequence} is damaged; only the older checkpoint needs it");
                part.found(Finding::new(Cost::Spare, file, Some(offset), what));
            }
            Err(error) => part.found(Finding::new(Cost::Data, file, None, format!("{:#}", Chain(&error)))),
        }
        part
    }

    async fn verify_index<R: Runtime>(
        &self,
        runtime: &R,
        slots: &[Slot; 2],
        file: &str,
    ) -> (PartReport, Option<Recovery>) {
        let mut part = PartReport::new(Part::Index, "entries");
        let recovery = match self.recover(runtime).await {
            Ok(recovery) => recovery,
            Err(error) => {
                let what = format!("the node would not start: {:#}", Chain(&error));
                part.found(Finding::new(Cost::Data, file, None, what));
                return (part, None);
            }
        };
        (self.judge_index(slots, &recovery, file).await, Some(recovery))
    }

    /// What recovery made, against the invariants and the journal.
    pub(super) async fn judge_index(&self, slots: &[Slot; 2], recovery: &Recovery, file: &str) -> PartReport {
        let mut part = PartReport::new(Part::Index, "entries");
        let state = &recovery.loaded.state;
        part.examined = state.index.count();
        let rejected = recovery.rejected();
        if rejected.malformed > 0 {
            let what = format!("recovery refuses {} records inside good frames", rejected.malformed);
            part.found(Finding::new(Cost::Data, file, None, what));
        }
        if rejected.torn_payload > 0 {
            let torn = rejected.torn_payload;
            let what = format!("{torn} records that were being written are torn; they were not acknowledged");
            part.found(Finding::new(Cost::Note, file, None, what));
        }
        if recovery.loaded.by == RecoveredBy::Salvage {
            let unsure = state.dirty.values().filter(|record| record.certainty == Certainty::Unsure).count();
            let what = format!(
                "checkpoint or journal are damaged: the next start drops what is clean, brings back what is dirty, and asks \
                 the object store about {unsure} of it"
            );
            part.found(Finding::new(Cost::Data, file, None, what));
            return part;
        }
        for fault in state.faults(self.superblock.region_bytes) {
            let identity = fault.identity.map(|identity| identity.0);
            part.found(Finding { identity, ..Finding::new(Cost::Data, file, None, fault.what) });
        }
        let mut epochs = HashMap::new();
        for (number, region) in state.regions.iter().filter(|(_, region)| region.epoch > Epoch(0)) {
            if let Some(other) = epochs.insert(region.epoch, number) {
                let what = format!("I1: regions {other} and {number} have the same epoch {}", region.epoch.0);
                part.found(Finding::new(Cost::Data, file, Some(self.region_at(number)), what));
            }
        }
        if let Err(error) = self.compare_with_journal(slots, recovery, file, &mut part).await {
            part.cut_short = Some(format!("{:#}", Chain(&error)));
        }
        part
    }

    /// I11 and I13 against the journal's own words: what it calls dirty last is there, nothing older is.
    async fn compare_with_journal(
        &self,
        slots: &[Slot; 2],
        recovery: &Recovery,
        file: &str,
        part: &mut PartReport,
    ) -> Result<(), IoError> {
        let mut voids: HashSet<(u64, u32)> = HashSet::new();
        let mut void = |record: &Record| {
            if let Record::Void { sequence, ordinal } = record {
                voids.insert((*sequence, *ordinal));
            }
        };
        recovery.loaded.voids.iter().for_each(&mut void);
        self.each_frame(slots, |_, records| records.iter().for_each(&mut void)).await?;
        let mut newest: IdentityMap<Newest> = IdentityMap::default();
        let walked = self.each_frame(slots, |line, records| {
            for (ordinal, record) in (0u32..).zip(records) {
                if !voids.contains(&(line.sequence, ordinal)) {
                    Newest::apply(&mut newest, record);
                }
            }
        });
        let has_gap = walked.await?.skipped_frames > 0;
        for (identity, newest) in newest {
            let entry = recovery.loaded.state.index.find(identity);
            let what = match entry {
                // Only what is flushed is overwritten, and the record of that flush may be among the frames that were lost.
                None if has_gap && newest.is_overwritten(&recovery.loaded.state.regions) => continue,
                Some(entry) if entry.generation() < newest.generation => {
                    format!("I13: {entry:?} is older than generation {} in the journal", newest.generation.0)
                }
                None if newest.is_dirty => {
                    format!(
                        "I11: generation {}, acknowledged and not flushed, is not in the index",
                        newest.generation.0
                    )
                }
                Some(entry)
                    if newest.is_dirty
                        && entry.generation() == newest.generation
                        && entry.state() == EntryIs::Clean =>
                {
                    format!("I9: generation {} was not flushed and passes for clean", newest.generation.0)
                }
                _ => continue,
            };
            let identity = Some(identity.0);
            part.found(Finding { identity, ..Finding::new(Cost::Data, file, None, what) });
        }
        Ok(())
    }

    async fn verify_footers(&self, recovery: &Recovery, file: &str) -> PartReport {
        let mut part = PartReport::new(Part::Footers, "regions");
        for (number, region) in recovery.loaded.state.regions.iter() {
            if region.epoch == Epoch(0) || region.live == 0 {
                continue;
            }
            part.examined += 1;
            match self.footer(number, region.epoch, |_| {}).await {
                Ok(FooterState::None | FooterState::Whole { .. }) => {}
                Ok(FooterState::Damaged { offset, what, is_proven }) => {
                    let (cost, how) =
                        if is_proven { (Cost::Spare, "damaged") } else { (Cost::Note, "torn or damaged") };
                    let what = format!("the footer of region {number} is {how} ({what}); reclaim does without it");
                    part.found(Finding::new(cost, file, Some(offset), what));
                }
                Err(error) => {
                    let what = format!("the footer of region {number} can't be read: {:#}", Chain(&error));
                    part.found(Finding::new(Cost::Spare, file, Some(self.region_at(number)), what));
                }
            }
        }
        part
    }

    /// Fills in the keys that the disk still knows.
    async fn name_keys(&self, slots: &[Slot; 2], recovery: &Recovery, report: &mut Report) {
        let findings = report.parts.iter_mut().flat_map(|part| &mut part.findings);
        let mut unnamed: Vec<_> =
            findings.filter(|finding| finding.identity.is_some() && finding.key.is_none()).collect();
        if unnamed.is_empty() {
            return;
        }
        // A name is a courtesy: where it can't be read the identity stands alone.
        let Ok(names) = self.names(slots, recovery).await else { return };
        for finding in &mut unnamed {
            finding.key = finding.identity.and_then(|identity| names.key(Identity(identity))).cloned();
        }
    }
}

/// What the journal said last about an identity.
struct Newest {
    generation: Generation,
    is_dirty: bool,
    /// A block's region, and its epoch then.
    place: Option<(u32, Epoch)>,
}

impl Newest {
    fn apply(newest: &mut IdentityMap<Newest>, record: &Record) {
        let (identity, generation, is_dirty, place) = match record {
            Record::Put(put) => (put.identity, put.generation, put.dirty.is_some(), Some((put.at.region, put.epoch))),
            Record::Tombstone(dirty) => (dirty.identity, dirty.generation, true, None),
            Record::Flushed { identity, generation } => {
                if let Some(known) = newest.get_mut(identity).filter(|known| known.generation == *generation) {
                    known.is_dirty = false;
                }
                return;
            }
            _ => return,
        };
        let known = newest.entry(identity).or_insert(Newest { generation, is_dirty, place });
        if known.generation <= generation {
            *known = Newest { generation, is_dirty, place };
        }
    }

    /// Whether its region has begun another epoch since.
    fn is_overwritten(&self, regions: &RegionTable) -> bool {
        self.place.is_some_and(|(region, epoch)| regions.at(region).epoch > epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seed 1045112 of the simulator: the frames that told of a flush and of the reuse of its region were lost to a power cut, a put into that
    /// region behind them was not; what had lain there was called lost, though the origin had it.
    #[test]
    fn what_another_epoch_wrote_over_was_flushed() {
        let mut regions = RegionTable::new(4);
        regions.recover_epoch(2, Epoch(58));
        let put = |place| Newest { generation: Generation(801), is_dirty: true, place };
        let block = put(Some((2, Epoch(58))));
        assert!(!block.is_overwritten(&regions), "it is where it was put");
        regions.recover_epoch(2, Epoch(63));
        assert!(block.is_overwritten(&regions));
        assert!(!put(None).is_overwritten(&regions), "a tombstone lies in no region");
    }
}
