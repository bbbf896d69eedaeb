//! Fuzzes the configuration file: what is printed is the same configuration.
//! The property, and how to read an input, stand at `forebay::fuzz::config`.
//! Built and run by `ci/fuzz config`.
#![no_main]

use forebay::fuzz::{config, config_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(config_seeds()), |data: &[u8]| config(data));
