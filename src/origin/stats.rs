//! What a store was asked and how it answered: counted by the pool's threads, read by metrics and status.
//!
//! Counters only grow; each name is fit for Prometheus. Relaxed atomics: a snapshot may be torn by one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_shard::origin::OriginErrorKind;

use super::sign::Verb;

/// Verbs in the order of the counters.
pub const VERBS: [(Verb, &str); 5] =
    [(Verb::Get, "get"), (Verb::Head, "head"), (Verb::Put, "put"), (Verb::Delete, "delete"), (Verb::List, "list")];

/// Kinds of errors in the order of the counters.
pub const KINDS: [(OriginErrorKind, &str); 9] = [
    (OriginErrorKind::Unreachable, "unreachable"),
    (OriginErrorKind::Timeout, "timeout"),
    (OriginErrorKind::Unavailable, "unavailable"),
    (OriginErrorKind::Denied, "denied"),
    (OriginErrorKind::NoBucket, "no-bucket"),
    (OriginErrorKind::Corrupt, "corrupt"),
    (OriginErrorKind::TooLarge, "too-large"),
    (OriginErrorKind::Busy, "busy"),
    (OriginErrorKind::Protocol, "protocol"),
];

/// The counters of one store.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; VERBS.len()],
    errors: [AtomicU64; KINDS.len()],
    retries: AtomicU64,
    in_flight: AtomicU64,
    fetched_bytes: AtomicU64,
    stored_bytes: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStats {
    /// The store's name.
    pub store: Arc<str>,
    /// HTTP requests begun, by verb, retries included.
    pub requests: Vec<(&'static str, u64)>,
    /// Answers to askers that were errors, by kind.
    pub errors: Vec<(&'static str, u64)>,
    /// Requests that were repetitions.
    pub retries: u64,
    /// Jobs taken from the queue and not finished.
    pub in_flight: u64,
    /// Jobs waiting.
    pub queue_depth: u64,
    /// Body bytes received.
    pub fetched_bytes: u64,
    /// Body bytes of confirmed stores.
    pub stored_bytes: u64,
}

impl Counters {
    /// A request goes out.
    pub fn requested(&self, verb: Verb) {
        if let Some(index) = VERBS.iter().position(|(counted, _)| *counted == verb) {
            self.requests[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An asker gets an error.
    pub fn failed(&self, kind: OriginErrorKind) {
        if let Some(index) = KINDS.iter().position(|(counted, _)| *counted == kind) {
            self.errors[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request is repeated.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Body bytes came.
    pub fn fetched(&self, bytes: usize) {
        self.fetched_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A store was confirmed.
    pub fn stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A job begins; it ends with the guard.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// The counters now.
    pub fn snapshot(&self, store: Arc<str>, queue_depth: usize) -> StoreStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreStats {
            store,
            requests: VERBS.iter().zip(&self.requests).map(|((_, name), counter)| (*name, read(counter))).collect(),
            errors: KINDS.iter().zip(&self.errors).map(|((_, name), counter)| (*name, read(counter))).collect(),
            retries: read(&self.retries),
            in_flight: read(&self.in_flight),
            queue_depth: queue_depth as u64,
            fetched_bytes: read(&self.fetched_bytes),
            stored_bytes: read(&self.stored_bytes),
        }
    }
}

/// A running job.
#[derive(Debug)]
pub struct InFlight(Arc<Counters>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
