//! Fuzzes the superblock and its copy: sums put right, what was encoded is decoded.
//! The property, and how to read an input, stand at `forebay_io::fuzz::superblock`.
//! Built and run by `ci/fuzz superblock`.
#![no_main]

use forebay_io::fuzz::{superblock, superblock_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(superblock_seeds()), |data: &[u8]| superblock(data));
