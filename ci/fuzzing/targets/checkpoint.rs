//! Fuzzes a checkpoint slot: it is whole or does not count.
//! The property, and how to read an input, stand at `forebay_shard::store::fuzz::checkpoint`.
//! Built and run by `ci/fuzz checkpoint`.
#![no_main]

use forebay_shard::store::fuzz::{checkpoint, checkpoint_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(checkpoint_seeds()), |data: &[u8]| checkpoint(data));
