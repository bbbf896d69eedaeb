//! Which blocks stay in memory: S3-FIFO over bytes, as pure code without a block in it.
//!
//! Used by the memory tier (`memory`) and, with nothing but numbers for values, by `forebay-bench replay`, so that what a
//! trace shows is what a node does. No clock, no I/O, no randomness: the same calls in the same order give the same
//! blocks. Bounded by the bytes it is given: what is held never exceeds them, and neither does what the ghost remembers.

use crate::key::Identity;

pub mod allowance;
pub mod disk;
pub mod fingerprints;
pub mod ghost;
pub mod queues;
pub mod s3fifo;

/// What names a block to a policy.
pub trait PolicyKey: Copy + Eq {
    /// All its bits in 64, well mixed: table positions and ghosts are made of it.
    fn spread(self) -> u64;
}

impl PolicyKey for Identity {
    fn spread(self) -> u64 {
        self.0 as u64
    }
}

impl PolicyKey for u64 {
    fn spread(self) -> u64 {
        // The two halves of a product by an odd constant (2^64 / golden ratio), folded.
        let product = u128::from(self ^ 0x243f_6a88_85a3_08d3) * 0x9e37_79b9_7f4a_7c15;
        (product >> 64) as u64 ^ product as u64
    }
}
