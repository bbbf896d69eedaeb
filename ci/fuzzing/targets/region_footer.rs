//! Fuzzes a region's footer: read as it was written, never read out of the region.
//! The property, and how to read an input, stand at `forebay_shard::store::fuzz::region_footer`.
//! Built and run by `ci/fuzz region_footer`.
#![no_main]

use forebay_shard::store::fuzz::{region_footer, region_footer_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(region_footer_seeds()), |data: &[u8]| region_footer(data));
