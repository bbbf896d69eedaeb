//! Fuzzes the Range header: a part lies inside its block.
//! The property, and how to read an input, stand at `forebay::fuzz::http_range`.
//! Built and run by `ci/fuzz http_range`.
#![no_main]

use forebay::fuzz::{http_range, http_range_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(http_range_seeds()), |data: &[u8]| http_range(data));
