//! Fuzzes access tokens: signed ones say what was signed, others open nothing.
//! The property, and how to read an input, stand at `forebay::fuzz::token`.
//! Built and run by `ci/fuzz token`.
#![no_main]

use forebay::fuzz::{token, token_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(token_seeds()), |data: &[u8]| token(data));
