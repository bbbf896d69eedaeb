//! What the targets of `ci/fuzz` share: their seeds.
//!
//! No corpus is committed: each target writes the seeds that the product's own encoders make when it starts, so they are
//! always of the present format. The properties themselves stand in the packages (`fuzz.rs`), where stable tests run them too.

use std::path::Path;

/// Writes the seeds into the directory that `FOREBAY_FUZZ_SEEDS` names, before libFuzzer reads its corpus there.
///
/// # Panics
/// If they can't be written.
pub fn write_seeds(seeds: Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os("FOREBAY_FUZZ_SEEDS") else { return };
    for (number, seed) in seeds.iter().enumerate() {
        let path = Path::new(&directory).join(format!("seed-{number:02}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
