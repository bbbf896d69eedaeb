//! What can be made to go wrong on a simulated disk, how often it did, and how long operations take.
//!
//! Tests set [`Faults`] on a running [`SimWorld`](super::SimWorld) and read [`Fired`] afterwards: a test that asked
//! for faults and saw none fire has tested nothing.

use std::ops::Range;

use rand::Rng;
use rand::rngs::SmallRng;

/// Odds of one in this many operations; 0 is never, 1 is always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OneIn(pub u32);

impl OneIn {
    /// Never.
    pub const NEVER: OneIn = OneIn(0);
    /// Every time.
    pub const ALWAYS: OneIn = OneIn(1);

    pub(super) fn strikes(self, rng: &mut SmallRng) -> bool {
        self.0 > 0 && rng.random_range(0..self.0) == 0
    }
}

/// Faults by their odds. The default is a disk without any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    /// Only files whose name contains this text are struck; empty strikes all.
    pub only: String,
    /// A read fails with EIO.
    pub read_error: OneIn,
    /// A write fails with EIO; its bytes may be on the disk, be missing, or be torn.
    pub write_error: OneIn,
    /// A sync fails with EIO; the writes it covered stay in doubt for ever.
    pub sync_error: OneIn,
    /// Creating or replacing a file finds no space.
    pub no_space: OneIn,
    /// One bit of what is about to be read has rotted, and stays so.
    pub bit_flip: OneIn,
    /// A write is reported done and never was.
    pub lost_write: OneIn,
    /// A write is reported done and landed elsewhere in the file.
    pub misdirected_write: OneIn,
    /// An operation takes as long as [`Latency::spike_us`] says.
    pub latency_spike: OneIn,
    /// Write errors strike only what begins here; `None`: anywhere.
    pub fails_within: Option<Range<u64>>,
    /// Rot, lost and misdirected writes strike only what begins here, and misdirected writes land here; `None`: anywhere.
    pub lies_within: Option<Range<u64>>,
}

impl Faults {
    /// Whether a write at `at` may fail.
    pub(super) fn may_fail_at(&self, at: u64) -> bool {
        self.fails_within.as_ref().is_none_or(|range| range.contains(&at))
    }

    /// Whether the disk may lie about what is at `at`.
    pub(super) fn may_lie_at(&self, at: u64) -> bool {
        self.lies_within.as_ref().is_none_or(|range| range.contains(&at))
    }
}

/// What becomes of an unsynced write in a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// It is there. Of a name: it stays; of a replaced file: it stays replaced.
    Kept,
    /// It never was. Of a name: it goes; of a replaced file: what it replaced is back.
    Dropped,
    /// Its first half is there. Of a name or a replaced file: as dropped.
    Torn,
}

/// How often each fault has struck since the world began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fired {
    /// Reads failed.
    pub read_error: u64,
    /// Reads that touched a broken sector.
    pub broken_sector: u64,
    /// Writes failed.
    pub write_error: u64,
    /// Syncs failed.
    pub sync_error: u64,
    /// Files that found no space.
    pub no_space: u64,
    /// Bits flipped.
    pub bit_flip: u64,
    /// Writes lost.
    pub lost_write: u64,
    /// Writes misdirected.
    pub misdirected_write: u64,
    /// Operations that took long.
    pub latency_spike: u64,
    /// Crashes, asked for or by `crash_at`.
    pub crash: u64,
    /// Unsynced writes that a crash kept whole.
    pub crash_kept: u64,
    /// Unsynced writes that a crash dropped.
    pub crash_dropped: u64,
    /// Unsynced writes that a crash tore.
    pub crash_torn: u64,
    /// Unsynced writes that a crash kept though it dropped an earlier one.
    pub crash_reordered: u64,
}

/// How long operations take, in virtual microseconds; each draws from its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    /// A read.
    pub read_us: Range<u64>,
    /// A write.
    pub write_us: Range<u64>,
    /// A sync.
    pub sync_us: Range<u64>,
    /// Anything that [`Faults::latency_spike`] struck.
    pub spike_us: Range<u64>,
}

impl Default for Latency {
    fn default() -> Self {
        Latency { read_us: 60..200, write_us: 15..400, sync_us: 50..1_000, spike_us: 5_000..50_000 }
    }
}
