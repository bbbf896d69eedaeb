//! What of the load generator others use: the readers of recorded traces.
//!
//! The program is `main.rs`. A reader takes what strangers recorded, so it is fuzzed (`ci/fuzz trace`), and that takes a library.

pub mod trace;
