//! Fuzzes the frame of journal, checkpoint and footer: sum put right, what was read is written again as it was.
//! The property, and how to read an input, stand at `forebay_io::fuzz::frame`.
//! Built and run by `ci/fuzz frame`.
#![no_main]

use forebay_io::fuzz::{frame, frame_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(frame_seeds()), |data: &[u8]| frame(data));
