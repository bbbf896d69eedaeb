//! What must hold of the readers of traces, whatever the bytes.
//!
//! Called by the target `trace` of `ci/fuzz`, and by the tests below with random changes of the seeds, so that it stays true and stays
//! compiling without a fuzzer.

use std::io::{BufReader, Read};

use super::csv::Csv;
use super::oracle::Oracle;
use super::{Request, Source};

const RECORD_BYTES: usize = 24;

/// Input: a byte that chooses the format and in which pieces the file is read, then the file.
///
/// # Panics
/// If pieces are read otherwise than the whole, a request is made up or left out, or a refusal is not one line.
pub fn trace(data: &[u8]) {
    let Some((&choice, file)) = data.split_first() else { return };
    let pieces = Pieces { file, bytes_max: usize::from(choice >> 1) + 1 };
    let (whole, in_pieces) = match choice & 1 {
        0 => (read(Oracle::new(file)), read(Oracle::new(pieces))),
        _ => (read(Csv::new(file)), read(Csv::new(BufReader::with_capacity(pieces.bytes_max, pieces)))),
    };
    assert_eq!(whole, in_pieces, "a file is what is in it, however it comes");
    let Trace { requests, refusal } = whole;
    assert!(requests.iter().all(|request| request.bytes > 0), "what takes no place could be cached without bound");
    if let Some(refusal) = &refusal {
        assert!(!refusal.is_empty() && !refusal.contains('\n'), "{refusal:?}");
    }
    match choice & 1 {
        0 => records_are_their_bytes(file, &requests, refusal.is_some()),
        _ => assert!(requests.len() <= file.split(|byte| *byte == b'\n').count(), "a request is a line"),
    }
}

/// The seeds: a trace of each format, whole, and one of each that is refused.
#[must_use]
pub fn trace_seeds() -> Vec<Vec<u8>> {
    let record = |time: u32, id: u64, size: u32, next: i64| {
        [&time.to_le_bytes()[..], &id.to_le_bytes(), &size.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let oracle = [record(1, 7, 4096, 2), record(2, 8, 0, -1), record(3, 7, 4096, -1)].concat();
    let with = |choice: u8, file: &[u8]| [&[choice], file].concat();
    vec![
        with(0, &oracle),
        with(2 * 22, &oracle[..60]),
        with(0, &record(1, 7, 1, -2)),
        with(1, b"1,a,4096\n2,b,0\n\n3,a,4096\n"),
        with(1 + 2 * 3, b"size,key,timestamp\r\n4096,\"a b\",1.5\r\n"),
        with(1, b"1,a,4294967296\n"),
    ]
}

/// A file that is read a little at a time.
struct Pieces<'a> {
    file: &'a [u8],
    bytes_max: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.bytes_max.min(buffer.len());
        self.file.read(&mut buffer[..bytes])
    }
}

/// What a reader made of a file.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    requests: Vec<Request>,
    refusal: Option<String>,
}

fn read(mut source: impl Source) -> Trace {
    let (mut requests, mut batch) = (Vec::new(), Vec::new());
    loop {
        match source.read(&mut batch) {
            Ok(()) if batch.is_empty() => return Trace { requests, refusal: None },
            Ok(()) => requests.append(&mut batch),
            Err(error) => return Trace { requests, refusal: Some(format!("{error:#}")) },
        }
    }
}

fn records_are_their_bytes(file: &[u8], requests: &[Request], refused: bool) {
    if !refused {
        assert_eq!(requests.len() * RECORD_BYTES, file.len(), "what is not refused is read to its end");
    }
    for (record, request) in file.chunks(RECORD_BYTES).zip(requests) {
        let id = u64::from_le_bytes(record[4..12].try_into().expect("8 bytes of a whole record"));
        let size = u32::from_le_bytes(record[12..16].try_into().expect("4 bytes of a whole record"));
        assert_eq!(*request, Request { id, bytes: size.max(1) });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seeds_hold_and_each_kind_is_read_and_refused() {
        let mut refused = 0;
        for seed in trace_seeds() {
            trace(&seed);
            let file = &seed[1..];
            let read = if seed[0] & 1 == 0 { read(Oracle::new(file)) } else { read(Csv::new(file)) };
            refused += usize::from(read.refusal.is_some());
        }
        assert_eq!(refused, 3, "half of the seeds are no traces");
    }

    proptest! {
        #[test]
        fn changed_seeds_hold(seed in 0..trace_seeds().len(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)) {
            let mut data = trace_seeds().swap_remove(seed);
            for (at, byte) in changes {
                let at = at.index(data.len());
                data[at] = byte;
            }
            trace(&data);
        }

        #[test]
        fn any_bytes_hold(data in prop::collection::vec(any::<u8>(), 0..300)) {
            trace(&data);
        }
    }
}
