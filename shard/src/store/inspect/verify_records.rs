//! Every piece of every block that counts, read in the order in which they lie and proven by the one reader of blocks.
//!
//! Called by `verify`. Upholds nothing, asks for I1 (no two share bytes), I4 (what is dirty can be read) and I8 (bytes are
//! those of their record). Reads are large and sequential; memory is one window and the entries of a batch of regions.

use forebay_io::Disk;
use forebay_io::checksum::Digester;
use forebay_io::units::PIECE_BYTES;

use super::super::block::DirtyKind;
use super::super::check::overlaps;
use super::super::entry::{Entry, State as EntryIs};
use super::super::regions::footprint;
use super::names::Names;
use super::report::{Cost, Finding, Part, PartReport};
use super::verify::Progress;
use super::window::Window;
use super::{Inspector, Recovery};
use crate::outcome::{EntryState, Located, Pin};
use crate::read::{BlockReader, ReadError};

/// Entries held at once: 40 bytes each.
const BATCH_COUNT: u64 = 1 << 20;
/// Blocks read between two notes of progress, in bytes.
const NOTE_BYTES: u64 = 4 << 20;

/// What was read so far.
struct Reading<'a> {
    part: PartReport,
    proven_bytes: u64,
    at: Progress,
    noted_bytes: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<D: Disk> Inspector<D> {
    /// Reads and proves every block; also returns how many content bytes were good.
    pub(super) async fn verify_records(
        &self,
        recovery: &Recovery,
        file: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> (PartReport, u64) {
        let total_bytes = recovery.live(self.superblock.region_count).iter().map(|region| region.bytes).sum();
        let at = Progress { part: Part::Records, done_bytes: 0, total_bytes };
        let part = PartReport::new(Part::Records, "blocks");
        let mut reading = Reading { part, proven_bytes: 0, at, noted_bytes: 0, progress };
        (reading.progress)(reading.at);
        for batch in recovery.batches(0..self.superblock.region_count, BATCH_COUNT) {
            let entries = recovery.entries_in(batch);
            for fault in overlaps(&entries) {
                let identity = fault.identity.map(|identity| identity.0);
                reading.part.found(Finding { identity, ..Finding::new(Cost::Data, file, None, fault.what) });
            }
            for of_region in entries.chunk_by(|a, b| a.place().map(|at| at.region) == b.place().map(|at| at.region)) {
                self.verify_region(recovery, file, of_region, &mut reading).await;
            }
        }
        (reading.progress)(reading.at);
        (reading.part, reading.proven_bytes)
    }

    async fn verify_region(&self, recovery: &Recovery, file: &str, entries: &[Entry], reading: &mut Reading<'_>) {
        let Some(region) = entries.first().and_then(Entry::place).map(|at| at.region) else { return };
        let window = Window::until(self.slab.clone(), self.region_at(region) + self.superblock.region_bytes);
        let mut names: Option<Names> = None;
        for entry in entries {
            let broken = self.verify_block(recovery, entry, &window).await;
            reading.part.examined += 1;
            match broken {
                None => reading.proven_bytes += u64::from(entry.len_bytes()),
                Some((offset, what)) => {
                    let names = match &mut names {
                        Some(names) => names,
                        unread => {
                            let mut learned = Names::default();
                            let epoch = recovery.loaded.state.regions.at(region).epoch;
                            // A name is a courtesy: where the footer can't be read the identity stands alone.
                            let _ = self.footer(region, epoch, |record| learned.learn(record)).await;
                            unread.insert(learned)
                        }
                    };
                    reading.part.found(finding(recovery, file, entry, names, offset, what));
                }
            }
            reading.advance(footprint(entry.len_bytes()));
        }
    }

    /// Where and how the block is broken.
    async fn verify_block(
        &self,
        recovery: &Recovery,
        entry: &Entry,
        window: &Window<D::File>,
    ) -> Option<(u64, String)> {
        let at = entry.place()?;
        let (sums, _) = recovery.loaded.state.extensions.resolve(entry.proof());
        let offset = self.offset_of(at);
        let located = Located {
            shard: self.owner.shard,
            offset,
            len_bytes: entry.len_bytes(),
            identity: entry.identity(),
            generation: entry.generation(),
            sums,
            etag: None,
            // Its reader asks for bytes only.
            state: EntryState::Clean,
            pin: Pin { disk: 0, region: at.region },
        };
        let reader = BlockReader::new(window.clone(), located);
        let (mut whole, mut digest) = (Digester::default(), None);
        for index in 0..reader.piece_count() {
            let at = offset + (index * PIECE_BYTES) as u64;
            match reader.piece(index).await {
                Ok(piece) if reader.piece_count() == 1 => digest = Some(piece.digest()),
                Ok(piece) if entry.state() == EntryIs::Dirty => whole.update(&piece),
                Ok(_) => {}
                Err(ReadError::Rot { piece_index }) => {
                    let of = reader.piece_count();
                    return Some((at, format!("piece {} of {of} does not match its checksum", piece_index + 1)));
                }
                Err(ReadError::Disk(error)) => return Some((at, format!("can't be read: {error}"))),
            }
        }
        let dirty = recovery.loaded.state.dirty.get(&entry.identity()).map(|record| record.kind);
        match dirty {
            Some(DirtyKind::Block { digest: promised, .. }) if digest.unwrap_or_else(|| whole.finish()) != promised => {
                Some((offset, "the content is not what was acknowledged: its digest differs".into()))
            }
            _ => None,
        }
    }
}

impl Reading<'_> {
    fn advance(&mut self, bytes: u64) {
        self.at.done_bytes += bytes;
        if self.at.done_bytes - self.noted_bytes >= NOTE_BYTES {
            self.noted_bytes = self.at.done_bytes;
            (self.progress)(self.at);
        }
    }
}

fn finding(recovery: &Recovery, file: &str, entry: &Entry, names: &Names, offset: u64, what: String) -> Finding {
    let generation = entry.generation().0;
    let (cost, what) = match entry.state() {
        EntryIs::Clean => (Cost::Cache, format!("{what} (clean, generation {generation}; the origin has it)")),
        _ => (Cost::Data, format!("{what} (dirty, generation {generation}; only this disk had it)")),
    };
    let dirty = recovery.loaded.state.dirty.get(&entry.identity()).map(|record| record.key.clone());
    let key = dirty.or_else(|| names.key(entry.identity()).cloned());
    Finding { identity: Some(entry.identity().0), key, ..Finding::new(cost, file, Some(offset), what) }
}
