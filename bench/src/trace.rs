//! Where requests come from: the port between traces and policies, and the opening of a recorded one.
//!
//! Called by `replay`, and by the fuzzer (`trace/fuzz.rs`). A reader refuses what is no trace with the place and what was expected there; it never guesses on.

pub mod csv;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod oracle;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use self::csv::Csv;
use self::oracle::Oracle;

/// Requests handed over at once.
pub const BATCH_COUNT: usize = 32 << 10;

/// One request of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub id: u64,
    /// Its size; at least 1, for what takes no place at all could be cached without bound.
    pub bytes: u32,
}

/// A trace being read.
pub trait Source {
    /// Replaces `batch` by the next requests, at most [`BATCH_COUNT`]; none are left once it is empty.
    ///
    /// # Errors
    /// The trace can't be read, or is none.
    fn read(&mut self, batch: &mut Vec<Request>) -> Result<()>;
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// libCacheSim's: 24 bytes a request
    OracleGeneral,
    /// Lines of time,id,size
    Csv,
}

/// Opens a recorded trace.
///
/// # Errors
/// It can't be opened, or is compressed.
pub fn open(path: &Path, format: Option<Format>) -> Result<Box<dyn Source>> {
    let context = || format!("--trace {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut start = Vec::new();
    file.by_ref().take(64).read_to_end(&mut start).with_context(context)?;
    file.seek(SeekFrom::Start(0)).with_context(context)?;
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        bail!("{}: compressed with zstd; unpack it first (zstd -d)", path.display());
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        bail!("{}: compressed with gzip; unpack it first (gunzip)", path.display());
    }
    // A record of 24 bytes holds zeros: times and sizes are not that large. Text holds none.
    let is_text =
        !start.is_empty() && start.iter().all(|byte| (b' '..=b'~').contains(byte) || b"\r\n\t".contains(byte));
    let input = BufReader::with_capacity(1 << 20, file);
    Ok(match format.unwrap_or(if is_text { Format::Csv } else { Format::OracleGeneral }) {
        Format::Csv => Box::new(Csv::new(input)),
        Format::OracleGeneral => Box::new(Oracle::new(input)),
    })
}
