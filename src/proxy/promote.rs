//! Copies of blocks that were read from disk, on their way to the memory tier.
//!
//! Used by `handler/read`. Whether a block stays in memory is the shard's decision; here is only what may be spent on
//! offering it: a block of one piece is copied at each disk hit, a longer one at every eighth, because copying it costs
//! about as much as sending it. A hot block is hit often and so gets there soon; a scan pays for one copy in eight.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use forebay_io::units::PIECE_BYTES;

/// One in so many disk hits of long blocks is copied.
const LONG_ONE_IN: u64 = 8;
/// Copies of long blocks in progress on one core: at most 4 × 16 MiB.
const LONG_COPIES_MAX: usize = 4;
/// The memory tier of a shard takes no block larger than this share of it.
const LARGEST_SHARE: u64 = 4;

/// One core's copies.
pub struct Promoter {
    len_bytes_max: u64,
    long_hits: Cell<u64>,
    in_progress: Rc<Cell<usize>>,
}

impl Promoter {
    /// For shards whose memory tier holds `tier_bytes` each.
    #[must_use]
    pub fn new(tier_bytes: u64) -> Promoter {
        Promoter { len_bytes_max: tier_bytes / LARGEST_SHARE, long_hits: Cell::new(0), in_progress: Rc::default() }
    }

    /// A copy to be filled with a block of `len_bytes`, if one is worth its cost now.
    #[must_use]
    pub fn begin(&self, len_bytes: u64) -> Option<Copying> {
        if len_bytes > self.len_bytes_max {
            return None;
        }
        if len_bytes > PIECE_BYTES as u64 {
            let hits = self.long_hits.get();
            self.long_hits.set(hits + 1);
            if !hits.is_multiple_of(LONG_ONE_IN) || self.in_progress.get() >= LONG_COPIES_MAX {
                return None;
            }
        }
        self.in_progress.set(self.in_progress.get() + 1);
        let len_bytes = usize::try_from(len_bytes).expect("a block fits into memory");
        Some(Copying { bytes: Vec::with_capacity(len_bytes), len_bytes, in_progress: Rc::clone(&self.in_progress) })
    }
}

/// A copy in progress.
pub struct Copying {
    bytes: Vec<u8>,
    len_bytes: usize,
    in_progress: Rc<Cell<usize>>,
}

impl Copying {
    /// Adds the next verified bytes of the block; the whole copy after the last of them.
    #[must_use]
    pub fn add(&mut self, bytes: &[u8]) -> Option<Bytes> {
        self.bytes.extend_from_slice(bytes);
        assert!(self.bytes.len() <= self.len_bytes, "a copy is not longer than its block");
        (self.bytes.len() == self.len_bytes).then(|| Bytes::from(std::mem::take(&mut self.bytes)))
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.in_progress.set(self.in_progress.get() - 1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_or_nothing() {
        let mut copying = Promoter::new(1 << 20).begin(7).unwrap();
        assert_eq!(copying.add(b"fore"), None);
        assert_eq!(copying.add(b"bay").as_deref(), Some(&b"forebay"[..]));
    }

    #[test]
    fn long_copies_are_rare_and_bounded() {
        let long = PIECE_BYTES as u64 + 1;
        let promoter = Promoter::new(100 * long);
        assert!((0..100).all(|_| promoter.begin(long - 1).is_some()), "each disk hit of a block of one piece");
        let held: Vec<_> = (0..80).filter_map(|_| promoter.begin(long)).collect();
        assert_eq!(held.len(), LONG_COPIES_MAX);
        drop(held);
        assert_eq!((0..80).filter_map(|_| promoter.begin(long)).count(), 10);
        assert!(promoter.begin(26 * long).is_none(), "the tier would not take it");
    }
}
