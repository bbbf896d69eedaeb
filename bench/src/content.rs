//! The bytes of every benchmark block: a pure function of the key's number, so that a writer, a file on an nginx
//! document root and a verifying reader agree without talking to each other.
//!
//! One seeded stream of random bytes (the *sea*) is generated once; the block of key `i` is the window that starts at
//! `64 × i`. Two keys never have the same content, nothing compresses, and a sample is verified by one comparison.
//! Called by `put`, `fill` and the load generator.

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Distance between the windows of neighbouring keys.
const STEP_BYTES: usize = 64;
/// The seed of the sea; part of the tool, so that a set written yesterday verifies today.
const SEED: u64 = 0x0f0e_ba71;

/// What bodies are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Body {
    /// The seeded stream.
    #[default]
    Seeded,
    /// One byte all over: what the null server answers.
    Constant(u8),
}

/// The contents of `keys` blocks of one size.
pub struct Contents {
    sea: Vec<u8>,
    block_bytes: usize,
}

impl Contents {
    /// Generates the sea for `key_count` blocks of `block_bytes` each.
    pub fn new(body: Body, key_count: usize, block_bytes: usize) -> Self {
        let mut sea = vec![0; block_bytes + key_count * STEP_BYTES];
        match body {
            Body::Seeded => SmallRng::seed_from_u64(SEED).fill_bytes(&mut sea),
            Body::Constant(byte) => sea.fill(byte),
        }
        Self { sea, block_bytes }
    }

    /// The bytes of the key with this number.
    pub fn block(&self, key_index: usize) -> &[u8] {
        let start = key_index * STEP_BYTES;
        &self.sea[start..start + self.block_bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::{Body, Contents};

    #[test]
    fn blocks_differ_and_do_not_depend_on_the_number_of_keys() {
        let few = Contents::new(Body::Seeded, 4, 4096);
        let many = Contents::new(Body::Seeded, 1000, 4096);
        assert_eq!(few.block(3), many.block(3));
        assert_ne!(few.block(2), few.block(3));
        assert_eq!(few.block(0).len(), 4096);
    }
}
