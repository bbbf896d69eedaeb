//! The bytes of one simulated file: what a read sees now, what is surely on stable storage, and what lies between.
//!
//! Called by `sim::disk`. Invariants: a sector is stable only if a write of it was accepted before a sync began that
//! succeeded; a crash keeps stable sectors and, of the rest, a seeded subset of writes, torn at 512 bytes; a write
//! whose sync failed stays in doubt until it is overwritten and synced.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::faults::{Fired, Survival};
use crate::units::SECTOR_BYTES;

/// The unit at which a crash tears a write.
const TEAR_BYTES: usize = 512;
const TEARS: usize = SECTOR_BYTES / TEAR_BYTES;

type Sector = Rc<[u8; SECTOR_BYTES]>;

#[derive(Clone)]
pub(super) struct Media {
    pub(super) len_bytes: u64,
    /// Whether `sync_names` has covered the file's name.
    pub(super) name_stable: bool,
    /// What a `Replace` replaced, until a sync succeeds: a crash may bring it back.
    before: Option<Box<Media>>,
    /// Never-written sectors read as noise drawn from this.
    noise: u64,
    current: HashMap<u64, Sector>,
    stable: HashMap<u64, Sector>,
    /// Accepted, not stable; in the order of acceptance.
    unsynced: Vec<Unsynced>,
    /// Begun, not accepted.
    in_flight: BTreeMap<u64, (u64, Vec<Sector>)>,
    next_write: u64,
    accepted: u64,
    /// Sectors that can't be read until they are written again.
    broken: HashSet<u64>,
}

#[derive(Clone)]
struct Unsynced {
    write: u64,
    sector: u64,
    bytes: Sector,
    order: u64,
    doubtful: bool,
}

/// Who decides what a crash leaves: the seed, or a list that begins with the last of the unsynced writes.
pub(super) enum Chooser<'a> {
    Drawn(&'a mut SmallRng),
    Listed {
        survival: &'a [Survival],
        /// How many decisions are still to come.
        left: usize,
    },
}

impl Chooser<'_> {
    fn listed(survival: &[Survival], left: &mut usize) -> Survival {
        *left -= 1;
        survival.get(*left).copied().unwrap_or(Survival::Kept)
    }

    /// Whether a name, or a replacement, that was not synced stays.
    pub(super) fn keeps_name(&mut self) -> bool {
        match self {
            Chooser::Drawn(rng) => rng.random(),
            Chooser::Listed { survival, left } => Chooser::listed(survival, left) == Survival::Kept,
        }
    }

    /// So many decisions are not to be taken after all.
    pub(super) fn skip(&mut self, count: usize) {
        if let Chooser::Listed { left, .. } = self {
            *left -= count;
        }
    }

    fn fate(&mut self, sectors: u64) -> Fate {
        match self {
            Chooser::Drawn(rng) => Fate::draw(rng, sectors),
            Chooser::Listed { survival, left } => match Chooser::listed(survival, left) {
                Survival::Kept => Fate::Kept,
                Survival::Dropped => Fate::Dropped,
                Survival::Torn => Fate::Cut(sectors * TEARS as u64 / 2),
            },
        }
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Dropped,
    /// The first so many 512-byte units were written.
    Cut(u64),
    /// Each 512-byte unit on its own; a seed.
    Shredded(u64),
}

impl Media {
    pub(super) fn new(len_bytes: u64, noise: u64, before: Option<Media>) -> Media {
        let name_stable = before.as_ref().is_some_and(|before| before.name_stable);
        let next_write = before.as_ref().map_or(0, |before| before.next_write);
        Media {
            len_bytes,
            name_stable,
            before: before.map(Box::new),
            noise,
            current: HashMap::new(),
            stable: HashMap::new(),
            unsynced: Vec::new(),
            in_flight: BTreeMap::new(),
            next_write,
            accepted: 0,
            broken: HashSet::new(),
        }
    }

    /// What a read of `into.len()` bytes at `at` sees now.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) {
        for (sector, part) in (at / SECTOR_BYTES as u64..).zip(into.chunks_mut(SECTOR_BYTES)) {
            part.copy_from_slice(&*self.sector(sector));
        }
    }

    /// Takes over the bytes of a write that has begun; the number is its handle.
    pub(super) fn begin(&mut self, at: u64, bytes: &[u8]) -> u64 {
        let sectors = bytes.chunks_exact(SECTOR_BYTES).map(|part| Rc::new(part.try_into().expect("a whole sector")));
        let write = self.next_write;
        self.next_write += 1;
        self.in_flight.insert(write, (at / SECTOR_BYTES as u64, sectors.collect()));
        write
    }

    /// The device has accepted a write: reads see it from now on.
    pub(super) fn accept(&mut self, write: u64) {
        if let Some((first, sectors)) = self.in_flight.remove(&write) {
            self.put(write, first, sectors, false);
        }
    }

    /// As `accept`, but the device put it where `first_sector` says.
    pub(super) fn accept_elsewhere(&mut self, write: u64, first_sector: u64) {
        if let Some((_, sectors)) = self.in_flight.remove(&write) {
            self.put(write, first_sector, sectors, false);
        }
    }

    /// The write is forgotten: it never reached the medium.
    pub(super) fn lose(&mut self, write: u64) {
        self.in_flight.remove(&write);
    }

    /// The write failed: some of its sectors may have landed, none of them surely.
    pub(super) fn fail(&mut self, write: u64, rng: &mut SmallRng) {
        if let Some((first, sectors)) = self.in_flight.remove(&write) {
            let landed = rng.random_range(0..=sectors.len());
            self.put(write, first, sectors.into_iter().take(landed).collect(), true);
        }
    }

    /// What a sync that begins now will cover.
    pub(super) fn sync_mark(&self) -> u64 {
        self.accepted
    }

    /// A sync that began at `mark` succeeded.
    pub(super) fn harden(&mut self, mark: u64) {
        let mut newest: HashMap<u64, u64> = HashMap::new();
        for write in self.unsynced.iter().filter(|write| write.order < mark && !write.doubtful) {
            self.stable.insert(write.sector, Rc::clone(&write.bytes));
            newest.insert(write.sector, write.order);
        }
        self.unsynced.retain(|write| newest.get(&write.sector).is_none_or(|&order| write.order > order));
        self.before = None;
    }

    /// A sync that began at `mark` failed.
    pub(super) fn doubt(&mut self, mark: u64) {
        self.unsynced.iter_mut().filter(|write| write.order < mark).for_each(|write| write.doubtful = true);
    }

    /// One bit rots, in what is read now and in what a crash leaves.
    pub(super) fn flip_bit(&mut self, at: u64, bit: u8) {
        let (sector, byte) = (at / SECTOR_BYTES as u64, (at % SECTOR_BYTES as u64) as usize);
        let mut bytes = *self.sector(sector);
        bytes[byte] ^= 1 << (bit % 8);
        let rotten: Sector = Rc::new(bytes);
        self.unsynced.retain(|write| write.sector != sector);
        self.stable.insert(sector, Rc::clone(&rotten));
        self.current.insert(sector, rotten);
    }

    /// The sector at `at` can't be read any more, until a write of it was accepted.
    pub(super) fn break_sector(&mut self, at: u64) {
        self.broken.insert(at / SECTOR_BYTES as u64);
    }

    /// Whether a read of `len` bytes at `at` touches a broken sector.
    pub(super) fn is_broken(&self, at: u64, len: usize) -> bool {
        let (first, count) = (at / SECTOR_BYTES as u64, (len / SECTOR_BYTES) as u64);
        !self.broken.is_empty() && (first..first + count).any(|sector| self.broken.contains(&sector))
    }

    /// How many decisions a crash would take here, at most.
    pub(super) fn doubts(&self) -> usize {
        let writes: HashSet<u64> = self.unsynced.iter().map(|unsynced| unsynced.write).collect();
        let before = self.before.as_ref().map_or(0, |before| 1 + before.doubts());
        writes.len() + self.in_flight.len() + before
    }

    /// The power is cut: what was not stable survives in part.
    pub(super) fn crash(&mut self, chooser: &mut Chooser<'_>, fired: &mut Fired) {
        if let Some(before) = self.before.take() {
            if !chooser.keeps_name() {
                chooser.skip(self.doubts());
                *self = *before;
                return self.crash(chooser, fired);
            }
            chooser.skip(before.doubts());
        }
        while let Some((write, (first, sectors))) = self.in_flight.pop_first() {
            self.put(write, first, sectors, false);
        }
        let mut sectors_of: HashMap<u64, u64> = HashMap::new();
        self.unsynced.iter().for_each(|unsynced| *sectors_of.entry(unsynced.write).or_default() += 1);
        let mut fates: HashMap<u64, (Fate, u64)> = HashMap::new();
        let mut has_dropped = false;
        for Unsynced { write, sector, bytes, .. } in std::mem::take(&mut self.unsynced) {
            let (fate, first) = *fates.entry(write).or_insert_with(|| {
                let fate = chooser.fate(sectors_of[&write]);
                fate.count(fired);
                fired.crash_reordered += u64::from(has_dropped && matches!(fate, Fate::Kept));
                has_dropped |= matches!(fate, Fate::Dropped);
                (fate, sector)
            });
            let mut merged = match self.stable.get(&sector) {
                Some(old) => **old,
                None => self.noise_of(sector),
            };
            for tear in 0..TEARS {
                if fate.keeps((sector - first.min(sector)) * TEARS as u64 + tear as u64) {
                    let range = tear * TEAR_BYTES..(tear + 1) * TEAR_BYTES;
                    merged[range.clone()].copy_from_slice(&bytes[range]);
                }
            }
            self.stable.insert(sector, Rc::new(merged));
        }
        self.current = self.stable.clone();
    }

    fn put(&mut self, write: u64, first: u64, sectors: Vec<Sector>, doubtful: bool) {
        let order = self.accepted;
        self.accepted += 1;
        for (sector, bytes) in (first..).zip(sectors) {
            self.current.insert(sector, Rc::clone(&bytes));
            self.broken.remove(&sector);
            self.unsynced.push(Unsynced { write, sector, bytes, order, doubtful });
        }
    }

    fn sector(&self, sector: u64) -> Sector {
        self.current.get(&sector).cloned().unwrap_or_else(|| Rc::new(self.noise_of(sector)))
    }

    fn noise_of(&self, sector: u64) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        SmallRng::seed_from_u64(self.noise ^ sector.wrapping_mul(0x9E37_79B9_7F4A_7C15)).fill(&mut bytes[..]);
        bytes
    }
}

impl Fate {
    fn draw(rng: &mut SmallRng, sectors: u64) -> Fate {
        match rng.random_range(0..8) {
            0..3 => Fate::Kept,
            3..5 => Fate::Dropped,
            5..7 => Fate::Cut(rng.random_range(0..sectors * TEARS as u64)),
            _ => Fate::Shredded(rng.random()),
        }
    }

    fn count(self, fired: &mut Fired) {
        *match self {
            Fate::Kept => &mut fired.crash_kept,
            Fate::Dropped => &mut fired.crash_dropped,
            Fate::Cut(_) | Fate::Shredded(_) => &mut fired.crash_torn,
        } += 1;
    }

    /// Whether the write's 512-byte unit number `unit` survives.
    fn keeps(self, unit: u64) -> bool {
        match self {
            Fate::Kept => true,
            Fate::Dropped => false,
            Fate::Cut(units) => unit < units,
            Fate::Shredded(seed) => SmallRng::seed_from_u64(seed.wrapping_add(unit)).random(),
        }
    }
}
