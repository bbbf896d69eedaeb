//! The regions of a slab: their states, epochs and pins, what lives in them, and where in a region a record may start.
//!
//! Used by append (open, seal), publish (who lives where), reclaim (which goes next) and recovery. Upholds I1 (one
//! owner per byte range: a region takes bytes only while it is open, in one epoch) and I7 (a pinned region is not freed).

use forebay_io::units::{PLACE_BYTES, SECTOR_BYTES, sectors_up};

use super::entry::Place;
use crate::canary::{self, Canary};
use crate::policy::disk::{Class, class_to_reclaim};
use std::collections::HashMap;

/// The number of an opening: every opening of any region takes the next. A record counts only in its region's present
/// epoch; the order of epochs is the order of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u32);

/// What is appended to a region: dirty and clean records stay apart, so that write-back does not fragment the cache, and
/// clean ones by the policy's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// Fills and confirmed puts.
    Clean = 0,
    /// Puts that wait for a flush, and relocations of them.
    Dirty = 1,
    /// What was used and is written again, and fills of what came back.
    Kept = 2,
}

impl StreamKind {
    /// All of them.
    pub const ALL: [StreamKind; 3] = [StreamKind::Clean, StreamKind::Dirty, StreamKind::Kept];

    /// The queue of the policy that its regions belong to.
    #[must_use]
    pub fn class(self) -> Class {
        match self {
            StreamKind::Clean | StreamKind::Dirty => Class::New,
            StreamKind::Kept => Class::Kept,
        }
    }

    /// The inverse of `as u8`.
    #[must_use]
    pub fn from_u8(byte: u8) -> Option<StreamKind> {
        StreamKind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Where a region is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionState {
    /// Nothing in it counts.
    Free,
    /// Its `RegionOpen` is on the way to the journal.
    Opening,
    /// It is being appended to.
    Open(StreamKind),
    /// Full; its footer is being written.
    Sealing,
    /// Full.
    Sealed,
    /// Its entries are being evicted or moved; it is free when the last is gone and no pin is left.
    Reclaiming,
    /// A write failed here, or a dirty block rotted: not reused until a probe succeeds, its good records still served.
    Quarantined,
}

/// One region.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Where it is in its life.
    pub state: RegionState,
    /// The epoch of its records; zero: never opened.
    pub epoch: Epoch,
    /// Readers that hold it (I7).
    pub pins: u32,
    /// Records appended and not yet published or dropped.
    pub uncommitted: u32,
    /// Its footer is on its way to the device.
    pub is_footer_due: bool,
    /// Its footer could not be read: asking again at each try to reclaim it would pass for a disk that goes on failing.
    pub is_footer_unreadable: bool,
    /// Entries that point here.
    pub live: u32,
    /// Bytes that its dirty entries occupy.
    pub dirty_bytes: u64,
    /// Bytes that its clean pinned entries occupy.
    pub pinned_bytes: u64,
    /// The queue of the policy it belongs to.
    pub class: Class,
}

impl Region {
    /// Bytes that reclaim has to move.
    #[must_use]
    pub fn staying_bytes(&self) -> u64 {
        self.dirty_bytes + self.pinned_bytes
    }

    /// No entry and no reader knows of it, and nothing is being written to it (I1, I7): its bytes may be overwritten.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.live == 0 && self.pins == 0 && self.uncommitted == 0 && !self.is_footer_due
    }
}

/// All regions of one slab.
pub struct RegionTable {
    regions: Vec<Region>,
    next_epoch: u32,
}

impl RegionTable {
    /// Regions that were never opened.
    #[must_use]
    pub fn new(count: u32) -> RegionTable {
        let region = Region {
            state: RegionState::Free,
            epoch: Epoch(0),
            pins: 0,
            uncommitted: 0,
            is_footer_due: false,
            is_footer_unreadable: false,
            live: 0,
            dirty_bytes: 0,
            pinned_bytes: 0,
            class: Class::New,
        };
        RegionTable { regions: vec![region; count as usize], next_epoch: 1 }
    }

    /// Region `number`.
    ///
    /// # Panics
    /// If there is none: numbers from a disk are checked before they get here.
    #[must_use]
    pub fn at(&self, number: u32) -> &Region {
        &self.regions[number as usize]
    }

    /// Region `number`, to be changed.
    pub fn at_mut(&mut self, number: u32) -> &mut Region {
        &mut self.regions[number as usize]
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.regions.len() as u32
    }

    /// All of them with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Region)> {
        (0..).zip(&self.regions)
    }

    /// How many are in `state`.
    #[must_use]
    pub fn count_in(&self, state: RegionState) -> u32 {
        self.regions.iter().filter(|region| region.state == state).count() as u32
    }

    /// Recovery found this opening in checkpoint or journal. What was kept stays so: a restart forgets its uses, and its
    /// regions are the oldest, so in the queue of what is new they would be the first to go.
    pub fn recover_opening(&mut self, number: u32, epoch: Epoch, class: Class) {
        self.recover_epoch(number, epoch);
        let region = self.at_mut(number);
        if region.epoch == epoch {
            region.class = class;
        }
    }

    /// Recovery found something of this epoch; its opening may not have been read.
    pub fn recover_epoch(&mut self, number: u32, epoch: Epoch) {
        let region = self.at_mut(number);
        if epoch > region.epoch {
            (region.epoch, region.class) = (epoch, Class::New);
        }
        self.next_epoch = self.next_epoch.max(epoch.0.saturating_add(1));
    }

    /// Recovery has found all entries: regions that hold some are sealed, those quarantined in their present epoch stay so.
    pub fn settle_recovered(&mut self, quarantined: &HashMap<u32, Epoch>) {
        for (number, region) in (0..).zip(&mut self.regions) {
            region.state = match region.live {
                _ if quarantined.get(&number).is_some_and(|epoch| *epoch == region.epoch) => RegionState::Quarantined,
                0 => RegionState::Free,
                _ => RegionState::Sealed,
            };
        }
    }

    /// Leaves out so many epochs: after a disaster openings may have gone unread.
    pub fn skip_epochs(&mut self, count: u32) {
        self.next_epoch = self.next_epoch.saturating_add(count);
    }

    /// Takes the free region that was freed longest ago and gives it the next epoch. Not yet appended to: first its
    /// `RegionOpen` must be durable.
    pub fn take_free(&mut self) -> Option<(u32, Epoch)> {
        let free = self.iter().filter(|(_, region)| region.state == RegionState::Free);
        let (number, _) = free.min_by_key(|(_, region)| region.epoch)?;
        let epoch = self.draw_epoch();
        let region = self.at_mut(number);
        assert!(region.holds_nothing(), "I1, I7: a free region holds nothing");
        region.state = RegionState::Opening;
        Some((number, epoch))
    }

    /// The next epoch.
    pub fn draw_epoch(&mut self) -> Epoch {
        let epoch = Epoch(self.next_epoch);
        self.next_epoch = self.next_epoch.checked_add(1).expect("2^32 openings of 64 MiB outlast any device");
        epoch
    }

    /// That a quarantined region is empty in this new epoch is durable: nothing of the old one will ever count again.
    pub fn emptied(&mut self, number: u32, epoch: Epoch) {
        let region = self.at_mut(number);
        assert!(region.state == RegionState::Quarantined && region.holds_nothing(), "I1, I7: it was emptied");
        assert!(region.epoch < epoch, "I1: epochs only grow");
        region.epoch = epoch;
    }

    /// Its `RegionOpen` is durable.
    pub fn opened(&mut self, number: u32, epoch: Epoch, kind: StreamKind) {
        let region = self.at_mut(number);
        assert_eq!(region.state, RegionState::Opening, "a region opens once");
        assert!(region.epoch < epoch, "I1: epochs only grow");
        *region = Region {
            state: RegionState::Open(kind),
            epoch,
            is_footer_unreadable: false,
            dirty_bytes: 0,
            pinned_bytes: 0,
            class: kind.class(),
            ..*region
        };
    }

    /// Its `RegionOpen` did not become durable.
    pub fn not_opened(&mut self, number: u32) {
        let region = self.at_mut(number);
        assert_eq!(region.state, RegionState::Opening, "a region opens once");
        region.state = RegionState::Free;
    }

    /// The sealed region to reclaim next: of those of which at most half has to be moved (dirty, pinned) the oldest of the queue
    /// whose turn the policy says it is, else of the other; else the one with the fewest such bytes if moving them still frees
    /// a tenth of it. Regions with
    /// records of a commit under way are left alone.
    #[must_use]
    pub fn reclaim_candidate(&self, region_bytes: u64) -> Option<u32> {
        let sealed =
            || self.iter().filter(|(_, region)| region.state == RegionState::Sealed && region.uncommitted == 0);
        let half_clean = sealed().filter(|(_, region)| region.staying_bytes() <= region_bytes / 2);
        let due = self.class_to_reclaim(region_bytes);
        let oldest = half_clean.min_by_key(|(_, region)| (region.class != due, region.epoch));
        let candidate = oldest.or_else(|| {
            let cheap = sealed().filter(|(_, region)| region.staying_bytes() <= region_bytes / 10 * 9);
            cheap.min_by_key(|(_, region)| region.staying_bytes())
        });
        candidate.map(|(number, _)| number)
    }

    /// Which queue gives up a region. Mostly dirty or pinned regions are in neither: their turn comes when they are flushed or
    /// unpinned.
    fn class_to_reclaim(&self, region_bytes: u64) -> Class {
        let count = |class| {
            let is_counted = |region: &&Region| {
                let is_full = matches!(region.state, RegionState::Open(_) | RegionState::Sealing | RegionState::Sealed);
                is_full && region.class == class && region.staying_bytes() <= region_bytes / 2
            };
            self.regions.iter().filter(is_counted).count() as u32
        };
        class_to_reclaim(count(Class::New), count(Class::Kept))
    }

    /// A reader holds the region (I7).
    pub fn pin(&mut self, number: u32) {
        let region = self.at_mut(number);
        assert!(!matches!(region.state, RegionState::Free | RegionState::Opening), "I7: only records are pinned");
        if !canary::is(Canary::PinsIgnored) {
            region.pins += 1;
        }
    }

    /// The reader is done. True if that freed the region.
    pub fn unpin(&mut self, number: u32) -> bool {
        let region = self.at_mut(number);
        if canary::is(Canary::PinsIgnored) {
            return false;
        }
        assert!(region.pins > 0, "I7: a pin is given back once");
        region.pins -= 1;
        self.free_if_empty(number)
    }

    /// Frees a region under reclaim that holds nothing more. True if it did.
    pub fn free_if_empty(&mut self, number: u32) -> bool {
        let region = self.at_mut(number);
        if region.state != RegionState::Reclaiming || !region.holds_nothing() {
            return false;
        }
        assert_eq!(region.staying_bytes(), 0, "I4, I14: no dirty byte is left behind, and no pinned one");
        region.state = RegionState::Free;
        true
    }
}

/// Where after `cursor` (bytes from the region's start) a record of `len_bytes` starts: 4 KiB and more on a sector,
/// less on a multiple of 512 bytes without straddling a sector, so that it is read by one.
#[must_use]
pub fn place_after(cursor: u64, len_bytes: u32) -> u64 {
    let sector = SECTOR_BYTES as u64;
    if u64::from(len_bytes) >= sector {
        return sectors_up(cursor);
    }
    let at = cursor.next_multiple_of(PLACE_BYTES as u64);
    if at % sector + u64::from(len_bytes) > sector { sectors_up(at) } else { at }
}

/// Bytes that a record of `len_bytes` occupies: whole places, one for an empty block, so that no two share a place.
#[must_use]
pub fn footprint(len_bytes: u32) -> u64 {
    u64::from(len_bytes.max(1)).next_multiple_of(PLACE_BYTES as u64)
}

impl Place {
    /// The place `offset` bytes into `region`.
    #[must_use]
    pub fn new(region: u32, offset: u64) -> Place {
        assert!(offset.is_multiple_of(PLACE_BYTES as u64), "records start at places");
        Place { region, place: u32::try_from(offset / PLACE_BYTES as u64).expect("a region has at most 2^20 places") }
    }

    /// Bytes from the start of its region.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.place) * PLACE_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn i1_places_never_overlap_and_small_records_never_straddle(lens in prop::collection::vec(0..20_000u32, 1..60)) {
            let mut cursor = 0;
            for len_bytes in lens {
                let at = place_after(cursor, len_bytes);
                prop_assert!(at >= cursor && at.is_multiple_of(PLACE_BYTES as u64));
                if len_bytes >= SECTOR_BYTES as u32 {
                    prop_assert!(at.is_multiple_of(SECTOR_BYTES as u64));
                } else if len_bytes > 0 {
                    let last = at + u64::from(len_bytes) - 1;
                    prop_assert_eq!(at / SECTOR_BYTES as u64, last / SECTOR_BYTES as u64);
                }
                cursor = at + footprint(len_bytes);
            }
        }
    }

    #[test]
    fn i7_a_region_under_reclaim_waits_for_its_pins() {
        let mut table = RegionTable::new(2);
        let (number, epoch) = table.take_free().expect("two are free");
        table.opened(number, epoch, StreamKind::Clean);
        table.pin(number);
        table.pin(number);
        table.at_mut(number).state = RegionState::Reclaiming;
        assert!(!table.free_if_empty(number) && !table.unpin(number));
        assert!(table.unpin(number));
        assert_eq!(table.at(number).state, RegionState::Free);
    }

    #[test]
    fn the_oldest_region_goes_first_unless_it_is_mostly_dirty() {
        let mut table = RegionTable::new(3);
        for _ in 0..3 {
            let (number, epoch) = table.take_free().expect("free");
            table.opened(number, epoch, StreamKind::Dirty);
            table.at_mut(number).state = RegionState::Sealed;
        }
        table.at_mut(0).dirty_bytes = 60;
        assert_eq!(table.reclaim_candidate(100), Some(1));
        table.at_mut(1).uncommitted = 1;
        assert_eq!(table.reclaim_candidate(100), Some(2));
        table.at_mut(2).dirty_bytes = 95;
        assert_eq!(table.reclaim_candidate(100), Some(0));
        table.at_mut(0).dirty_bytes = 95;
        assert_eq!(table.reclaim_candidate(100), None);
    }

    #[test]
    fn recovery_gives_a_region_back_to_the_queue_of_its_last_opening() {
        let mut table = RegionTable::new(4);
        // In any order, as journal and checkpoint are read; a record may be read of which the opening is not.
        table.recover_epoch(0, Epoch(7));
        table.recover_opening(0, Epoch(7), Class::Kept);
        table.recover_epoch(0, Epoch(7));
        table.recover_opening(1, Epoch(8), Class::Kept);
        table.recover_opening(1, Epoch(2), Class::New);
        table.recover_opening(2, Epoch(3), Class::Kept);
        table.recover_epoch(2, Epoch(9));
        let found: Vec<(Epoch, Class)> = table.iter().map(|(_, region)| (region.epoch, region.class)).collect();
        let expected = [(7, Class::Kept), (8, Class::Kept), (9, Class::New), (0, Class::New)];
        assert_eq!(found, expected.map(|(epoch, class)| (Epoch(epoch), class)));
        assert_eq!(table.draw_epoch(), Epoch(10));
    }

    #[test]
    fn the_queue_whose_turn_it_is_gives_up_its_oldest_region() {
        let mut table = RegionTable::new(30);
        for kind in [StreamKind::Kept, StreamKind::Clean].into_iter().chain([StreamKind::Kept; 18]) {
            let (number, epoch) = table.take_free().expect("free");
            table.opened(number, epoch, kind);
            table.at_mut(number).state = RegionState::Sealed;
        }
        assert_eq!(table.reclaim_candidate(100), Some(0), "one of twenty is new: the oldest that was kept goes");
        for _ in 0..2 {
            let (number, epoch) = table.take_free().expect("free");
            table.opened(number, epoch, StreamKind::Dirty);
            table.at_mut(number).state = RegionState::Sealed;
        }
        assert_eq!(table.reclaim_candidate(100), Some(1), "three of twenty-two are new: the oldest of them goes");
        // Mostly dirty ones count for no queue, and are passed over.
        (20..22).for_each(|number| table.at_mut(number).dirty_bytes = 60);
        assert_eq!(table.reclaim_candidate(100), Some(0));
    }
}
