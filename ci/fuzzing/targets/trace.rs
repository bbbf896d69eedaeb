//! Fuzzes the readers of recorded traces: a file is what is in it, however it comes.
//! The property, and how to read an input, stand at `forebay_bench::trace::fuzz::trace`.
//! Built and run by `ci/fuzz trace`.
#![no_main]

use forebay_bench::trace::fuzz::{trace, trace_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(trace_seeds()), |data: &[u8]| trace(data));
