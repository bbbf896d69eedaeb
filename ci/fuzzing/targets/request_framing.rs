//! Fuzzes the guard of HTTP/1.1 requests: pieces equal the whole, hyper's parser sees the same requests.
//! The property, and how to read an input, stand at `forebay::fuzz::request_framing`.
//! Built and run by `ci/fuzz request_framing`.
#![no_main]

use forebay::fuzz::{request_framing, request_framing_seeds};

libfuzzer_sys::fuzz_target!(init: forebay_fuzzing::write_seeds(request_framing_seeds()), |data: &[u8]| request_framing(data));
