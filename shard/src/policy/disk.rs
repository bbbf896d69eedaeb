//! Which blocks stay on disk: S3-FIFO whose queues are regions, as pure code without a block in it.
//!
//! Called by `store` (a fill is admitted, a region is reclaimed, a block is evicted) and by `forebay-bench replay`. The small
//! queue is the regions of what is new, the main queue those of what came back or was used; both are logs, and a block
//! that stays is written again. No clock, no I/O, no randomness. Invariants: a reclaimed region keeps at most
//! [`KEPT_MAX_16TH`] of its bytes, so each reclaim frees the rest; nothing but a fill is ever declined.

use super::allowance::Allowance;
use super::fingerprints::Fingerprints;

/// Two bits of frequency, as in the paper.
pub const USES_MAX: u8 = 3;
/// The regions of what is new may take one in so many before they are the ones to be reclaimed.
const NEW_DIVISOR: u32 = 10;
/// Of a reclaimed region at most so much is written again, in sixteenths.
pub const KEPT_MAX_16TH: u64 = 12;

/// Of the regions beyond so many half ones, those that pinned blocks may fill are one in four: with half of the disk dirty beside them,
/// three open and one free, a region remains of which less than nine tenths has to be moved.
const UNPINNED_HALF_REGIONS: u64 = 15;
const PINNED_DIVISOR: u64 = 4;

/// A queue of regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The small queue: first sights, and what clients put.
    New,
    /// The main queue: what was used in the small one, or came back soon after it had gone.
    Kept,
}

/// Whether a fill goes to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It does, as the newest of a queue.
    To(Class),
    /// The allowance is better spent on something that came back. The memory tier has it meanwhile.
    Declined,
}

/// What becomes of a clean block whose region is reclaimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes.
    Goes,
    /// It is written again, if there is room, to the main queue, with so many uses left.
    Stays {
        /// The uses it has left.
        uses: u8,
    },
}

/// The policy of one disk. By default it remembers nothing and declines nothing.
#[derive(Default)]
pub struct DiskPolicy {
    ghost: Fingerprints,
    allowance: Option<Allowance>,
}

impl DiskPolicy {
    /// Remembers at most `ghosts_max` of what went.
    #[must_use]
    pub fn new(ghosts_max: usize, allowance: Option<Allowance>) -> DiskPolicy {
        DiskPolicy { ghost: Fingerprints::new(ghosts_max), allowance }
    }

    /// Whether a fill goes to disk, and into which queue, where `held` blocks are now. Asked once for each.
    pub fn admit(&mut self, spread: u64, bytes: u64, held: u64, now_ns: u64) -> Admission {
        let known = self.ghost.knows(spread);
        let is_affordable = match &mut self.allowance {
            None => true,
            Some(allowance) => allowance.left_bytes(now_ns) >= bytes && (known || allowance.is_ample(now_ns)),
        };
        match (is_affordable, known) {
            (true, true) => {
                self.ghost.take(spread);
                Admission::To(Class::Kept)
            }
            (true, false) => Admission::To(Class::New),
            (false, _) => {
                self.ghost.insert(spread, held);
                Admission::Declined
            }
        }
    }

    /// Whether `bytes` may be written that need not be.
    pub fn affords(&mut self, bytes: u64, now_ns: u64) -> bool {
        self.allowance.as_mut().is_none_or(|allowance| allowance.left_bytes(now_ns) >= bytes)
    }

    /// `bytes` are written, whatever for.
    pub fn wrote(&mut self, bytes: u64, now_ns: u64) {
        if let Some(allowance) = &mut self.allowance {
            allowance.charge(bytes, now_ns);
        }
    }

    /// A block left a queue unused, where `held` blocks are now. As in the paper, what goes from the main queue leaves no
    /// ghost.
    pub fn evicted(&mut self, spread: u64, class: Class, held: u64) {
        if class == Class::New {
            self.ghost.insert(spread, held);
        }
    }

    /// What it takes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.ghost.memory_bytes()
    }
}

/// Which queue gives up its oldest region, by the regions of each that are full or being filled.
#[must_use]
pub fn class_to_reclaim(new_regions: u32, kept_regions: u32) -> Class {
    let is_new_due = new_regions > (new_regions + kept_regions) / NEW_DIVISOR;
    if is_new_due || kept_regions == 0 { Class::New } else { Class::Kept }
}

/// What becomes of a clean block that was used so often since it was written.
#[must_use]
pub fn fate(class: Class, uses: u8) -> Fate {
    match (class, uses) {
        (Class::New, 0 | 1) | (Class::Kept, 0) => Fate::Goes,
        (Class::New, _) => Fate::Stays { uses: 0 },
        (Class::Kept, uses) => Fate::Stays { uses: uses - 1 },
    }
}

/// How much of a region of `region_bytes` may be written again when it is reclaimed: the rest is what reclaim frees.
#[must_use]
pub fn kept_bytes_max(region_bytes: u64) -> u64 {
    region_bytes / 16 * KEPT_MAX_16TH
}

/// What pinned blocks may occupy of a disk, in bytes: a quarter of a large one, little of a very small one.
#[must_use]
pub fn pinned_bytes_max(region_count: u32, region_bytes: u64) -> u64 {
    let half_regions = (u64::from(region_count) * 2).saturating_sub(UNPINNED_HALF_REGIONS);
    region_bytes / 2 / PINNED_DIVISOR * half_regions
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the arithmetic of reclaim: it takes a region of which at most nine tenths has to be moved.
    #[test]
    fn i14_what_is_pinned_and_dirty_always_leaves_a_region_to_reclaim() {
        let region_bytes = 64 << 20;
        for region_count in 8..2_000u32 {
            let pinned_bytes = pinned_bytes_max(region_count, region_bytes);
            let staying_bytes = u64::from(region_count) * region_bytes / 2 + pinned_bytes;
            // Open: dirty, clean and, in all but very small stores, kept; one is free.
            let sealed = u64::from(region_count - if region_count < 12 { 3 } else { 4 });
            assert!(staying_bytes < sealed * (region_bytes / 10 * 9), "{region_count} regions");
            assert!(pinned_bytes > 0 && pinned_bytes <= u64::from(region_count) * region_bytes / 4);
        }
    }
}
