//! The access log of the development S3 server: what was asked, what was answered. Tests count requests with it
//! (one origin GET per cold block), people read the file.
//! Bounded in memory; the file, if any, grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

/// How many requests the log remembers: the oldest make room.
pub const ENTRIES_MAX: usize = 16_384;

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessEntry {
    /// The method.
    pub method: Method,
    /// The bucket, empty for the service itself.
    pub bucket: String,
    /// The decoded key, empty for requests about the bucket.
    pub key: String,
    /// The status answered.
    pub status: StatusCode,
    /// Body bytes: the request's for PUT and POST, the announced response's otherwise.
    pub bytes: u64,
}

impl AccessEntry {
    /// An entry for a path-style request path.
    pub fn new(method: Method, path: &str, status: StatusCode, bytes: u64) -> AccessEntry {
        let path = path.strip_prefix('/').unwrap_or(path);
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
        AccessEntry { method, bucket: bucket.to_owned(), key, status, bytes }
    }
}

/// The log itself, shared by all connections.
#[derive(Debug)]
pub struct AccessLog {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: VecDeque<AccessEntry>,
    file: Option<File>,
}

impl AccessLog {
    /// A log that also appends to `file`, one line a request.
    pub fn new(file: Option<File>) -> AccessLog {
        AccessLog { inner: Mutex::new(Inner { entries: VecDeque::new(), file }) }
    }

    /// Adds one request.
    pub fn add(&self, entry: AccessEntry) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            let AccessEntry { method, bucket, key, status, bytes } = &entry;
            // A full disk must not stop the server: the line is lost, the entry in memory stays.
            let _ = writeln!(file, "{method} {bucket} {key:?} {} {bytes}", status.as_u16());
        }
        if inner.entries.len() == ENTRIES_MAX {
            inner.entries.pop_front();
        }
        inner.entries.push_back(entry);
    }

    /// The remembered requests, oldest first.
    pub fn entries(&self) -> Vec<AccessEntry> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).entries.iter().cloned().collect()
    }
}
