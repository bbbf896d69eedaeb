//! Fuzzes the journal of a store: honest frames are read as they were written, others not at all.
//! The property, and how to read an input, stand at `forebay_shard::store::fuzz::journal`.
//! Built and run by `ci/fuzz journal`.
#![no_main]

use forebay_shard::store::fuzz::{journal, journal_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(journal_seeds()), |data: &[u8]| journal(data));
