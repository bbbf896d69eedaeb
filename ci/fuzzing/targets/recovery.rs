//! Fuzzes the opening of a whole store: what was recovered once is recovered again.
//! The property, and how to read an input, stand at `forebay_shard::store::fuzz::recovery`.
//! Built and run by `ci/fuzz recovery`.
#![no_main]

use forebay_shard::store::fuzz::{recovery, recovery_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(recovery_seeds()), |data: &[u8]| recovery(data));
