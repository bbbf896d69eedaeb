//! Forebay's disk policy (`forebay_shard::policy::disk`) on regions that are lists of names: what the store decides, without
//! the store.
//!
//! Started by `policies`. All clean, nothing is ever removed, and memory is none. A region is 1/256 of the capacity, but at
//! least 64 KiB and at most an eighth of it; a record that does not fit any more begins the next, as on disk.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use forebay_shard::policy::PolicyKey;
use forebay_shard::policy::disk::{
    Admission, Class, DiskPolicy, Fate, USES_MAX, class_to_reclaim, fate, kept_bytes_max,
};

use super::super::Mixed;
use super::Policy;

const REGIONS: u64 = 256;
const REGION_BYTES_MIN: u64 = 64 << 10;
const REGIONS_MIN: u64 = 8;
/// A ghost for each 4 KiB; the policy uses no more than there are blocks.
const BYTES_PER_GHOST: u64 = 4 << 10;

/// Regions of names.
pub struct Regions {
    policy: DiskPolicy,
    capacity_bytes: u64,
    region_bytes: u64,
    /// Of all regions, what lies in them.
    used_bytes: u64,
    held: HashMap<u64, Held, BuildHasherDefault<Mixed>>,
    regions: HashMap<u32, Region>,
    /// Full ones by class, oldest first.
    full: [VecDeque<u32>; 2],
    open: [Option<u32>; 2],
    next: u32,
    moved_bytes: u64,
}

struct Held {
    region: u32,
    bytes: u32,
    uses: u8,
}

#[derive(Default)]
struct Region {
    names: Vec<u64>,
    bytes: u64,
}

impl Regions {
    pub fn new(capacity_bytes: u64) -> Regions {
        let ghosts = usize::try_from(capacity_bytes / BYTES_PER_GHOST).unwrap_or(usize::MAX).max(64);
        Regions {
            policy: DiskPolicy::new(ghosts, None),
            capacity_bytes,
            region_bytes: (capacity_bytes / REGIONS).max(REGION_BYTES_MIN).min(capacity_bytes / REGIONS_MIN).max(1),
            used_bytes: 0,
            held: HashMap::default(),
            regions: HashMap::new(),
            full: Default::default(),
            open: [None; 2],
            next: 0,
            moved_bytes: 0,
        }
    }

    fn append(&mut self, id: u64, bytes: u32, class: Class, uses: u8) {
        let at = class as usize;
        let is_full = |region: &Region| region.bytes > 0 && region.bytes + u64::from(bytes) > self.region_bytes;
        if let Some(open) = self.open[at]
            && is_full(&self.regions[&open])
        {
            // Its end stays empty.
            self.used_bytes += self.region_bytes.saturating_sub(self.regions[&open].bytes);
            self.full[at].push_back(open);
            self.open[at] = None;
        }
        let open = *self.open[at].get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        let region = self.regions.entry(open).or_default();
        region.names.push(id);
        region.bytes += u64::from(bytes);
        self.used_bytes += u64::from(bytes);
        self.held.insert(id, Held { region: open, bytes, uses });
    }

    fn reclaim(&mut self) {
        let count =
            |class: Class| self.full[class as usize].len() as u32 + u32::from(self.open[class as usize].is_some());
        let mut class = class_to_reclaim(count(Class::New), count(Class::Kept));
        if self.full[class as usize].is_empty() {
            class = if class == Class::New { Class::Kept } else { Class::New };
        }
        let full = self.full[class as usize].pop_front();
        // In a cache of a few blocks the regions that are open may be all there is.
        let number =
            full.or_else(|| self.open.iter_mut().find_map(Option::take)).expect("what is used is in some region");
        let region = self.regions.remove(&number).expect("what is queued is there");
        self.used_bytes -= if full.is_some() { region.bytes.max(self.region_bytes) } else { region.bytes };
        let mut names: Vec<(u8, u64, u32)> = Vec::new();
        for id in region.names {
            if let Some(held) = self.held.get(&id).filter(|held| held.region == number) {
                names.push((held.uses, id, held.bytes));
            }
        }
        names.sort_by_key(|(uses, ..)| std::cmp::Reverse(*uses));
        let mut left = kept_bytes_max(self.region_bytes);
        for (uses, id, bytes) in names {
            match fate(class, uses) {
                Fate::Stays { uses } if left >= u64::from(bytes) => {
                    left -= u64::from(bytes);
                    self.moved_bytes += u64::from(bytes);
                    self.append(id, bytes, Class::Kept, uses);
                }
                _ => {
                    self.held.remove(&id);
                    self.policy.evicted(id.spread(), class, self.held.len() as u64);
                }
            }
        }
    }
}

impl Policy for Regions {
    fn is_hit(&mut self, id: u64) -> bool {
        let Some(held) = self.held.get_mut(&id) else { return false };
        held.uses = (held.uses + 1).min(USES_MAX);
        true
    }

    fn admit(&mut self, id: u64, bytes: u32) {
        while self.used_bytes + u64::from(bytes) > self.capacity_bytes {
            self.reclaim();
        }
        if let Admission::To(class) = self.policy.admit(id.spread(), u64::from(bytes), self.held.len() as u64, 0) {
            self.append(id, bytes, class, 0);
        }
    }

    fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }
}
