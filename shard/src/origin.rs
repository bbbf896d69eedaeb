//! The port to the object store: fetch, store, head, delete, each conditional, each with an outcome that says what is
//! known and what is not.
//!
//! Called by `fill`, `put`, `remove` and `flush`. Implemented by `src/origin` (reqwest on its own threads) and by
//! [`sim_origin`](crate::sim_origin).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::checksum::Digest;
use futures::channel::mpsc;

use crate::key::BlockKey;

/// What identifies the bytes of a block towards clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Etag {
    /// Forebay stored it: `"<xxh3-128 hex>"`.
    Digest(Digest),
    /// Somebody else stored it: `"o-<origin ETag>"`, the origin's without its quotes.
    Origin(Arc<str>),
}

/// One origin GET that has begun: its headers are known, its body follows.
pub struct Fetched {
    /// The whole block's length in bytes.
    pub len_bytes: u64,
    /// The digest in `x-amz-meta-forebay-digest`, or the origin's ETag where there is none.
    pub etag: Etag,
    /// The body in order. The stream ends after the last byte or with one error. Closing the receiver cancels the GET.
    pub body: mpsc::Receiver<Result<Bytes, OriginError>>,
}

/// What the origin says about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginMeta {
    /// The object's length in bytes.
    pub len_bytes: u64,
    /// As in [`Fetched::etag`].
    pub etag: Etag,
}

/// What is stored: one origin PUT.
#[derive(Debug, Clone)]
pub struct Store {
    /// The content, in order.
    pub frames: Vec<Bytes>,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Its digest, sent as `x-amz-meta-forebay-digest`.
    pub digest: Digest,
}

/// The known outcome of a store. Every store carries `If-None-Match: *` (immutable volumes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// The object is there now, by this request or by an earlier one with the same digest and length.
    Done,
    /// Another object has the key: the condition failed and HEAD showed other bytes.
    Conflict(OriginMeta),
}

/// A failed origin request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind:?}: {detail}")]
pub struct OriginError {
    /// What happened.
    pub kind: OriginErrorKind,
    /// For people: status, S3 code, the transport's words; no secrets.
    pub detail: Arc<str>,
    /// When to come back, if the origin said so.
    pub retry_after: Option<Duration>,
}

/// The kinds of failure, each with its retry rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OriginErrorKind {
    /// No connection, reset, TLS failure: later.
    Unreachable,
    /// A deadline passed: later. For stores and deletes the outcome is unknown.
    Timeout,
    /// 5xx or 429: later.
    Unavailable,
    /// 401, 403, wrong region, clock skew: the operator must act; later.
    Denied,
    /// The bucket does not exist: the operator must act.
    NoBucket,
    /// Length, digest or checksum of a body disagree: never serve it.
    Corrupt,
    /// Larger than the volume's block size.
    TooLarge,
    /// The pool's queue for this store is full: same request later.
    Busy,
    /// Anything else the origin answered.
    Protocol,
}

impl OriginError {
    /// An error with its words.
    pub fn new(kind: OriginErrorKind, detail: impl Into<Arc<str>>) -> OriginError {
        OriginError { kind, detail: detail.into(), retry_after: None }
    }
}

/// The object store as a shard sees it. Retries, deadlines, signatures and caps are the implementation's.
pub trait Origin: Clone + 'static {
    /// Begins one GET. `Ok(None)`: the origin has no such object.
    fn fetch(&self, key: &BlockKey) -> impl Future<Output = Result<Option<Fetched>, OriginError>> + 'static;
    /// One conditional PUT, its unknown outcomes settled by HEAD.
    fn store(&self, key: &BlockKey, store: Store) -> impl Future<Output = Result<Stored, OriginError>> + 'static;
    /// `Ok(None)`: the origin has no such object.
    fn head(&self, key: &BlockKey) -> impl Future<Output = Result<Option<OriginMeta>, OriginError>> + 'static;
    /// Idempotent.
    fn delete(&self, key: &BlockKey) -> impl Future<Output = Result<(), OriginError>> + 'static;
}
