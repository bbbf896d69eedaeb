//! The one binary: the allocator, and the hand-over to `cli`.
//!
//! mimalloc, because glibc's allocator returns the vectors that rustls needs for each batch of records to the kernel
//! and fetches them again: 16.6 GB/s of encryption became 1.8 to 3.2.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forebay::cli::run()
}
