//! Fuzzes the path of a request: a route is its path, a key is its bytes.
//! The property, and how to read an input, stand at `forebay::fuzz::http_path`.
//! Built and run by `ci/fuzz http_path`.
#![no_main]

use forebay::fuzz::{http_path, http_path_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(http_path_seeds()), |data: &[u8]| http_path(data));
