//! Fuzzes the records in a frame: what was read is written and read again as the same.
//! The property, and how to read an input, stand at `forebay_shard::store::fuzz::record`.
//! Built and run by `ci/fuzz record`.
#![no_main]

use forebay_shard::store::fuzz::{record, record_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(record_seeds()), |data: &[u8]| record(data));
