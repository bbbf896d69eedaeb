//! Traces as lines: `time,id,size`, or columns that a first line names.
//!
//! Names of columns that are understood: time (timestamp, ts), id (obj_id, object_id, key), size (obj_size, bytes, length);
//! others are passed over. An id is any text; only its hash is kept. A line that is no request is refused with its number.

use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, Read};

use anyhow::{Result, bail, ensure};

use super::{BATCH_COUNT, Request, Source};

/// A longer line is none of a trace.
const LINE_BYTES_MAX: u64 = 4 << 10;

/// A trace being read.
pub struct Csv<R> {
    input: R,
    line: Vec<u8>,
    line_number: u64,
    columns: Columns,
}

/// Where in a line the columns are, from 0.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Columns {
    time: Option<usize>,
    id: usize,
    size: usize,
}

impl<R: BufRead> Csv<R> {
    /// Reads from the beginning of `input`.
    pub fn new(input: R) -> Self {
        let columns = Columns { time: Some(0), id: 1, size: 2 };
        Csv { input, line: Vec::new(), line_number: 0, columns }
    }

    /// The next line that is not empty, in `self.line`.
    fn next_line(&mut self) -> Result<bool> {
        loop {
            self.line.clear();
            self.line_number += 1;
            let read = self.input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.line)?;
            ensure!(
                read as u64 <= LINE_BYTES_MAX,
                "line {}: longer than {LINE_BYTES_MAX} bytes, expected time,id,size",
                self.line_number
            );
            if read == 0 {
                return Ok(false);
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn request(&self, text: &str) -> Result<Request> {
        let number = self.line_number;
        let field = |at: usize| text.split(',').nth(at).map(|field| field.trim().trim_matches('"'));
        let expected =
            |what, at: usize| format!("line {number}: no {what} in column {}, expected time,id,size", at + 1);
        if let Some(at) = self.columns.time {
            match field(at) {
                Some(time) if time.parse::<f64>().is_ok_and(f64::is_finite) => {}
                Some(time) => bail!("line {number}: the time is `{time}`, expected a number"),
                None => bail!(expected("time", at)),
            }
        }
        let id = match field(self.columns.id) {
            Some(id) if !id.is_empty() => id,
            _ => bail!(expected("id", self.columns.id)),
        };
        let Some(size) = field(self.columns.size) else { bail!(expected("size", self.columns.size)) };
        let Ok(bytes) = size.parse::<u32>() else {
            bail!("line {number}: the size is `{size}`, expected bytes from 0 to {}", u32::MAX)
        };
        let mut hasher = DefaultHasher::new();
        hasher.write(id.as_bytes());
        Ok(Request { id: hasher.finish(), bytes: bytes.max(1) })
    }
}

impl<R: BufRead> Source for Csv<R> {
    fn read(&mut self, batch: &mut Vec<Request>) -> Result<()> {
        batch.clear();
        while batch.len() < BATCH_COUNT {
            let is_first = self.line_number == 0;
            if !self.next_line()? {
                break;
            }
            let Ok(text) = std::str::from_utf8(&self.line) else { bail!("line {}: no text", self.line_number) };
            if is_first && let Some(columns) = header(text) {
                self.columns = columns;
                continue;
            }
            batch.push(self.request(text)?);
        }
        Ok(())
    }
}

/// The columns, if a line names them.
fn header(line: &str) -> Option<Columns> {
    let named = |names: &[&str]| {
        line.split(',').position(|field| names.contains(&field.trim().trim_matches('"').to_ascii_lowercase().as_str()))
    };
    Some(Columns {
        time: named(&["time", "timestamp", "ts"]),
        id: named(&["id", "obj_id", "object_id", "key"])?,
        size: named(&["size", "obj_size", "bytes", "length"])?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &[u8]) -> Result<Vec<Request>> {
        let (mut batch, mut csv) = (Vec::new(), Csv::new(text));
        csv.read(&mut batch)?;
        Ok(batch)
    }

    fn refused(text: &str) -> String {
        all(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn plain_and_named_columns_give_the_same_requests() {
        let plain = all(b"1,a,10\n2.5,b,0\r\n\n3,a,10").unwrap();
        assert_eq!((plain.len(), plain[0].bytes, plain[1].bytes), (3, 10, 1));
        assert_eq!(plain[0].id, plain[2].id);
        assert_ne!(plain[0].id, plain[1].id);
        let named = all(b"op,Size,\"key\",ts\nget,10,a,1\nget,0,b,2.5\nget,10,\"a\",3\n").unwrap();
        assert_eq!(plain, named);
        assert_eq!(all(b"id,size\na,10\n").unwrap()[0], plain[0], "a time is not needed where columns are named");
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_line() {
        assert!(refused("1,a,10\n2,b\n").contains("line 2: no size in column 3"));
        assert!(refused("1,a,-3\n").contains("line 1: the size is `-3`"));
        assert!(refused("1,,3\n").contains("no id in column 2"));
        assert!(refused("soon,a,3\n").contains("the time is `soon`"));
        assert!(refused("hello\n").contains("line 1"));
        assert!(refused(&"x".repeat(5_000)).contains("longer than"));
        assert!(all(b"1,\xff,3\n").unwrap_err().to_string().contains("no text"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            drop(all(&bytes));
        }
    }
}
