//! The model: files with a durable image and a list of changes since, and a directory alike.
//!
//! Used by `mount` and `proof`. Reads see every change; a sync makes those durable that were made before it began; a power
//! cut lets a seeded part of the others survive: each write whole, not at all, its first sectors, or any of its 512-byte
//! sectors, whatever became of the writes before it. Sizes change as a journaling file system does it: in order,
//! and what was written after a change of size that is lost is lost with it. Names change in order too, and are durable
//! with a sync of the directory only.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What a device writes whole.
pub const SECTOR_BYTES: usize = 512;

/// A file, whatever its name.
pub type FileId = u64;

/// What may be torn: the disk's content.
#[derive(Default)]
pub struct Media {
    files: BTreeMap<FileId, File>,
    names: BTreeMap<String, FileId>,
    durable_names: BTreeMap<String, FileId>,
    renamings: Vec<Naming>,
    last: FileId,
}

#[derive(Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since, in order.
    changes: VecDeque<Change>,
    /// Number of the first of them.
    first: u64,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Size(usize),
}

#[derive(Clone)]
enum Naming {
    Link(String, FileId),
    Unlink(String),
    Rename(String, String),
}

/// What a sync that has begun will make durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncPoint {
    file: FileId,
    through: u64,
}

/// What a cut did, for the log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CutReport {
    pub survived: u32,
    pub dropped: u32,
    pub torn: u32,
    pub sizes_lost: u32,
    pub names_lost: u32,
}

impl Media {
    pub fn lookup(&self, name: &str) -> Option<FileId> {
        self.names.get(name).copied()
    }

    pub fn names(&self) -> impl Iterator<Item = (&str, FileId)> {
        self.names.iter().map(|(name, file)| (name.as_str(), *file))
    }

    pub fn size(&self, file: FileId) -> Option<usize> {
        self.files.get(&file).map(|file| file.now.len())
    }

    /// Creates a file; the name must be free.
    pub fn create(&mut self, name: &str) -> FileId {
        assert!(!self.names.contains_key(name), "the caller has looked");
        self.last += 1;
        self.files.insert(self.last, File::default());
        self.rename_durably_later(Naming::Link(name.to_owned(), self.last));
        self.last
    }

    /// Whether there was such a name. The file stays for those who have it open.
    pub fn unlink(&mut self, name: &str) -> bool {
        let known = self.names.contains_key(name);
        if known {
            self.rename_durably_later(Naming::Unlink(name.to_owned()));
        }
        known
    }

    /// Whether there was such a name.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let known = self.names.contains_key(from);
        if known {
            self.rename_durably_later(Naming::Rename(from.to_owned(), to.to_owned()));
        }
        known
    }

    pub fn read(&self, file: FileId, at: usize, len: usize) -> Option<&[u8]> {
        let now = &self.files.get(&file)?.now;
        Some(&now[at.min(now.len())..(at + len).min(now.len())])
    }

    pub fn write(&mut self, file: FileId, at: usize, bytes: &[u8]) -> Option<()> {
        self.files.get_mut(&file)?.change(Change::Write { at, bytes: bytes.to_vec() });
        Some(())
    }

    /// Truncates or extends with zeros.
    pub fn resize(&mut self, file: FileId, len: usize) -> Option<()> {
        let file = self.files.get_mut(&file)?;
        if file.now.len() != len {
            file.change(Change::Size(len));
        }
        Some(())
    }

    /// A sync begins: what was changed before is meant.
    pub fn sync_begins(&self, file: FileId) -> Option<SyncPoint> {
        let through = self.files.get(&file).map(|file| file.first + file.changes.len() as u64)?;
        Some(SyncPoint { file, through })
    }

    /// It is done: all that is durable now.
    pub fn sync_ends(&mut self, point: SyncPoint) {
        let Some(file) = self.files.get_mut(&point.file) else { return };
        while file.first < point.through {
            let change = file.changes.pop_front().expect("a sync begins after the changes it means");
            change.apply(&mut file.durable);
            file.first += 1;
        }
    }

    /// Names are durable.
    pub fn sync_names(&mut self) {
        self.durable_names = self.names.clone();
        self.renamings.clear();
    }

    /// The power is gone and comes back: what is durable stays, of the rest what `seed` says.
    pub fn cut(&mut self, seed: u64) -> CutReport {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut report = CutReport::default();
        let fate = Fate::draw(&mut rng);
        let kept = fate.first_of(self.renamings.len(), &mut rng);
        report.names_lost = count(self.renamings.len() - kept);
        for naming in self.renamings.drain(..).take(kept) {
            naming.apply(&mut self.durable_names);
        }
        self.names = self.durable_names.clone();
        let named: Vec<FileId> = self.names.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
        for file in self.files.values_mut() {
            file.cut(fate, &mut rng, &mut report);
        }
        report
    }

    fn rename_durably_later(&mut self, naming: Naming) {
        naming.clone().apply(&mut self.names);
        self.renamings.push(naming);
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.clone().apply(&mut self.now);
        self.changes.push_back(change);
    }

    fn cut(&mut self, fate: Fate, rng: &mut SmallRng, report: &mut CutReport) {
        let sizes = self.changes.iter().filter(|change| matches!(change, Change::Size(_))).count();
        let sizes_kept = fate.first_of(sizes, rng);
        report.sizes_lost += count(sizes - sizes_kept);
        let mut sizes_seen = 0;
        let mut touched: Vec<Range<usize>> = Vec::new();
        self.first += self.changes.len() as u64;
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Size(_) => {
                    sizes_seen += 1;
                    if sizes_seen <= sizes_kept {
                        change.apply(&mut self.durable);
                    }
                }
                Change::Write { at, bytes } => {
                    touched.push(at..at + bytes.len());
                    let fate = if sizes_seen <= sizes_kept { fate.of_write(rng) } else { WriteFate::Dropped };
                    fate.apply(at, &bytes, &mut self.durable, rng, report);
                }
            }
        }
        // Most of a slab was not touched: copying it all would take longer than anything else here.
        if sizes > 0 || self.now.len() != self.durable.len() {
            self.now.clone_from(&self.durable);
        } else {
            touched.into_iter().for_each(|range| self.now[range.clone()].copy_from_slice(&self.durable[range]));
        }
    }
}

impl Change {
    fn apply(self, image: &mut Vec<u8>) {
        match self {
            Change::Size(len) => image.resize(len, 0),
            Change::Write { at, bytes } => put(image, at, &bytes),
        }
    }
}

impl Naming {
    fn apply(self, names: &mut BTreeMap<String, FileId>) {
        match self {
            Naming::Link(name, file) => drop(names.insert(name, file)),
            Naming::Unlink(name) => drop(names.remove(&name)),
            Naming::Rename(from, to) => {
                if let Some(file) = names.remove(&from) {
                    names.insert(to, file);
                }
            }
        }
    }
}

/// How merciful a cut is as a whole: a device that had written nothing, everything, or something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Nothing,
    Everything,
    /// Each change survives with so many percent.
    Some(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteFate {
    Whole,
    Dropped,
    FirstSectors,
    AnySectors,
}

impl Fate {
    fn draw(rng: &mut SmallRng) -> Fate {
        match rng.random_range(0..10) {
            0..3 => Fate::Nothing,
            3 => Fate::Everything,
            _ => Fate::Some(rng.random_range(10..=90)),
        }
    }

    /// How many of `count` changes survive that are made in order.
    fn first_of(self, count: usize, rng: &mut SmallRng) -> usize {
        match self {
            Fate::Nothing => 0,
            Fate::Everything => count,
            Fate::Some(_) => rng.random_range(0..=count),
        }
    }

    fn of_write(self, rng: &mut SmallRng) -> WriteFate {
        match self {
            Fate::Nothing => WriteFate::Dropped,
            Fate::Everything => WriteFate::Whole,
            Fate::Some(percent) if rng.random_ratio(percent, 100) => WriteFate::Whole,
            Fate::Some(_) => match rng.random_range(0..4) {
                0 => WriteFate::FirstSectors,
                1 => WriteFate::AnySectors,
                _ => WriteFate::Dropped,
            },
        }
    }
}

impl WriteFate {
    fn apply(self, at: usize, bytes: &[u8], image: &mut Vec<u8>, rng: &mut SmallRng, report: &mut CutReport) {
        let first = rng.random_range(0..=bytes.len().div_ceil(SECTOR_BYTES));
        let survives = |index: usize, rng: &mut SmallRng| match self {
            WriteFate::Whole => true,
            WriteFate::Dropped => false,
            WriteFate::FirstSectors => index < first,
            WriteFate::AnySectors => rng.random(),
        };
        match self {
            WriteFate::Whole => report.survived += 1,
            WriteFate::Dropped => report.dropped += 1,
            WriteFate::FirstSectors | WriteFate::AnySectors => report.torn += 1,
        }
        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            if survives(index, rng) {
                put(image, at + index * SECTOR_BYTES, sector);
            }
        }
        // The place was there before the write: a device does not grow.
        if self == WriteFate::Whole {
            assert!(image.len() >= at + bytes.len(), "it was written whole");
        }
    }
}

fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[at..end].copy_from_slice(bytes);
}

fn count(count: usize) -> u32 {
    u32::try_from(count).expect("a directory has few changes")
}
