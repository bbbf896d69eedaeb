//! libCacheSim's oracleGeneral: packed little-endian records of 24 bytes.
//!
//! ```text
//!  0           4                  12         16                       24
//!  ├ time u32 ┼ object id u64    ┼ size u32 ┼ next access i64        ┤
//! ```
//! The next access is the number of the request that asks for the same thing next; −1 (or the largest i64) if none does.
//! Nothing here needs it, but it is what tells a trace from any other file: it never points back.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

use super::{BATCH_COUNT, Request, Source};

const RECORD_BYTES: usize = 24;

/// A trace being read.
pub struct Oracle<R> {
    input: R,
    records: u64,
    buffer: Vec<u8>,
}

impl<R: Read> Oracle<R> {
    /// Reads from the beginning of `input`.
    pub fn new(input: R) -> Self {
        Oracle { input, records: 0, buffer: vec![0; RECORD_BYTES * BATCH_COUNT] }
    }

    fn decode(&self, record: &[u8]) -> Result<Request> {
        let (_time, rest) = record.split_at(4);
        let (id, rest) = rest.split_at(8);
        let (size, next) = rest.split_at(4);
        let id = u64::from_le_bytes(id.try_into().context("8 bytes")?);
        let size = u32::from_le_bytes(size.try_into().context("4 bytes")?);
        let next = i64::from_le_bytes(next.try_into().context("8 bytes")?);
        let at = self.records * RECORD_BYTES as u64;
        ensure!(
            next == -1 || u64::try_from(next).is_ok_and(|next| next >= self.records),
            "record {} at byte {at}: its next access is {next}, expected -1 or the number of a later request: this is no \
             oracleGeneral trace",
            self.records
        );
        Ok(Request { id, bytes: size.max(1) })
    }
}

impl<R: Read> Source for Oracle<R> {
    fn read(&mut self, batch: &mut Vec<Request>) -> Result<()> {
        batch.clear();
        let mut filled = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        for record in buffer[..filled].chunks(RECORD_BYTES) {
            if record.len() < RECORD_BYTES {
                let (number, at) = (self.records, self.records * RECORD_BYTES as u64);
                bail!(
                    "record {number} at byte {at}: the file ends after {} of its {RECORD_BYTES} bytes: it was cut off, or is \
                     no oracleGeneral trace",
                    record.len()
                );
            }
            batch.push(self.decode(record)?);
            self.records += 1;
        }
        self.buffer = buffer;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(id: u64, size: u32, next: i64) -> Vec<u8> {
        [&7u32.to_le_bytes()[..], &id.to_le_bytes(), &size.to_le_bytes(), &next.to_le_bytes()].concat()
    }

    fn all(bytes: &[u8]) -> Result<Vec<Request>> {
        let (mut oracle, mut batch, mut all) = (Oracle::new(bytes), Vec::new(), Vec::new());
        loop {
            oracle.read(&mut batch)?;
            if batch.is_empty() {
                return Ok(all);
            }
            all.append(&mut batch);
        }
    }

    #[test]
    fn records_are_read_to_the_end_over_batches() {
        let count = BATCH_COUNT as u64 + 5;
        let bytes: Vec<u8> = (0..count).flat_map(|id| record(id, id as u32, -1)).collect();
        let read = all(&bytes).unwrap();
        assert_eq!(read.len() as u64, count);
        assert_eq!(read[BATCH_COUNT + 2], Request { id: count - 3, bytes: count as u32 - 3 });
        assert_eq!(read[0].bytes, 1, "what is empty counts for one byte");
    }

    #[test]
    fn what_is_no_trace_is_refused_with_its_place() {
        let mut bytes: Vec<u8> = [record(1, 10, 2), record(2, 10, i64::MAX), record(1, 10, 1)].concat();
        let error = all(&bytes).unwrap_err().to_string();
        assert!(error.contains("record 2 at byte 48") && error.contains("next access is 1"), "{error}");
        bytes.truncate(47);
        let error = all(&bytes).unwrap_err().to_string();
        assert!(error.contains("record 1 at byte 24") && error.contains("after 23 of its 24"), "{error}");
        assert!(all(&record(1, 10, -2)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(read) = all(&bytes) {
                prop_assert_eq!(read.len() * RECORD_BYTES, bytes.len());
            }
        }
    }
}
