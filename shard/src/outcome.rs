//! What the verbs answer. Plain `Send` data: an answer may cross cores.
//!
//! Made by the verbs, turned into responses by `src/proxy`. Ordinary outcomes (a miss, busy, declined) are variants here,
//! not errors. A [`Located`] carries a pin that has to be given back (I7).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::{mpsc, oneshot};

use crate::key::{BlockKey, Generation, Identity};
use crate::origin::{Etag, OriginError};
pub use crate::store::EntryState;
use forebay_io::checksum::Digest;

/// Where the bytes that answer a GET come from.
pub enum Got {
    /// From the memory tier, whole.
    Memory(MemoryHit),
    /// On disk and pinned: the asking core reads it itself through `read::BlockReader`.
    Disk(Located),
    /// From a fill in progress: this request began it or joined it.
    Fill(FillStream),
    /// No such block: here (a tombstone) or at the origin.
    Absent,
    /// Not now: overload. Nothing was started.
    Declined(Declined),
    /// It was acknowledged here, never reached the origin, and its bytes rotted: kept and listed, never served, and
    /// never replaced by older bytes of the origin.
    Lost,
    /// The origin could not be asked, or answered badly, before any byte was sent.
    Failed(OriginError),
}

/// The answer to a HEAD.
#[derive(Debug, Clone)]
pub enum Headed {
    /// The block exists.
    Found(BlockMeta),
    /// No such block: here (a tombstone) or at the origin.
    Absent,
    /// As [`Got::Lost`].
    Lost,
    /// Not now.
    Declined(Declined),
    /// The origin could not be asked, or answered badly.
    Failed(OriginError),
}

/// What a HEAD tells of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMeta {
    /// Content length in bytes.
    pub len_bytes: u64,
    /// Its ETag.
    pub etag: Etag,
    /// Who knew: for `Cache-Status`.
    pub source: MetaSource,
}

/// Where a HEAD's answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaSource {
    /// This shard holds the block.
    Cache,
    /// This shard holds it, and the origin does not yet.
    Dirty,
    /// The origin was asked; nothing was filled.
    Origin,
}

/// A block in the memory tier.
#[derive(Clone)]
pub struct MemoryHit {
    /// The whole content.
    pub body: Bytes,
    /// Its ETag.
    pub etag: Etag,
    /// Whether the origin has it.
    pub state: EntryState,
}

/// A record on disk, pinned until `Shard::unpin` (I7).
#[derive(Debug, Clone)]
pub struct Located {
    /// The shard whose slab holds it.
    pub shard: u16,
    /// Byte offset in the slab.
    pub offset: u64,
    /// Content length in bytes.
    pub len_bytes: u32,
    /// What its sums are keyed by.
    pub identity: Identity,
    /// What its sums are keyed by.
    pub generation: Generation,
    /// One sum per piece.
    pub sums: PieceSums,
    /// Known for blocks of several pieces and for the origin's own; else computed while the one piece is verified.
    pub etag: Option<Etag>,
    /// Whether the origin has it.
    pub state: EntryState,
    /// What to give back.
    pub pin: Pin,
}

/// The sums of a block's pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceSums {
    /// A block of at most one piece.
    One(u64),
    /// Several, in order.
    Many(Arc<[u64]>),
}

/// A claim on a region: it is neither reused nor overwritten while held. Give it to `Shard::unpin` exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Which of the shard's disks; what is located lies in that disk's slab.
    pub disk: u16,
    /// The region.
    pub region: u32,
}

/// Bytes of a fill as they arrive.
pub struct FillStream {
    /// Whether this request began the fetch.
    pub role: FillRole,
    /// The whole block's length in bytes.
    pub len_bytes: u64,
    /// Its ETag (checked against the bytes before the last 16 KiB are released).
    pub etag: Etag,
    /// Frames in order; ends after the last byte, or with the one error that all waiters get.
    pub frames: mpsc::UnboundedReceiver<Result<Bytes, OriginError>>,
}

/// Who began a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillRole {
    /// This request (`Cache-Status: fwd=miss`).
    Began,
    /// An earlier one (`…; collapsed`).
    Joined,
}

/// Why a request was not admitted, and when to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declined {
    /// The reason.
    pub reason: DeclinedReason,
    /// For `Retry-After`.
    pub retry_after: Duration,
}

/// Reasons for declining, one metric label each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeclinedReason {
    /// The dirty budget is full.
    DirtyFull,
    /// No region can be freed now: everything is dirty or pinned.
    DiskFull,
    /// The fill budget is full.
    FillsFull,
    /// The device failed a write or a sync; the put is not acknowledged.
    DiskFault,
    /// The queue to this shard is full.
    QueueFull,
    /// The shard is stopping.
    Stopping,
    /// After a disaster nobody knows whether what is here is the newest of its key, until the origin was asked.
    Unsettled,
}

/// A block that a client sends.
#[derive(Debug, Clone)]
pub struct Put {
    /// Its name.
    pub key: BlockKey,
    /// Its content, complete and in order.
    pub frames: Vec<Bytes>,
    /// Its length in bytes, at most the volume's block size.
    pub len_bytes: u32,
    /// Its digest.
    pub digest: Digest,
    /// The client's precondition.
    pub condition: Condition,
    /// The least durability the client asks for; never answered with less.
    pub durability: Durability,
}

/// A precondition of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// None.
    Any,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: <etag>` (one of).
    Matches(Vec<Etag>),
}

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// On stable storage of this node.
    Disk,
    /// In the object store.
    Origin,
}

/// The answer to a put.
#[derive(Debug)]
pub enum PutDone {
    /// Stored; the key was not known before.
    Created(Durability),
    /// The same bytes were there already.
    Unchanged(Durability),
    /// Other bytes have the key, and the volume is immutable.
    KeyExists,
    /// The client's condition does not hold.
    PreconditionFailed,
    /// Not now. Nothing was stored.
    Declined(Declined),
    /// The origin failed. With `Durability::Origin` the outcome may be unknown; nothing was published here.
    Failed(OriginError),
}

/// The answer to a delete or a purge.
#[derive(Debug)]
pub enum Removed {
    /// Gone, as durably as said.
    Done(Durability),
    /// A purge of a dirty block: nothing was dropped.
    Dirty,
    /// Not now. Nothing was done.
    Declined(Declined),
    /// The origin failed; the outcome there may be unknown.
    Failed(OriginError),
}

/// The answer to a pin.
#[derive(Debug)]
pub enum PinDone {
    /// It is on disk, and stays: durable.
    Done,
    /// No such block: here (a tombstone) or at the origin.
    Absent,
    /// The disk holds as many pinned bytes as it may.
    Full {
        /// What is pinned now.
        pinned_bytes: u64,
        /// What may be.
        bytes_max: u64,
    },
    /// As [`Got::Lost`].
    Lost,
    /// Not now.
    Declined(Declined),
    /// The origin could not be asked, or answered badly.
    Failed(OriginError),
}

/// The answer to an unpin.
#[derive(Debug)]
pub enum UnpinDone {
    /// The policy decides about it again: durable.
    Done,
    /// Not now.
    Declined(Declined),
}

/// One waiter of an answer that is still to come.
pub type Answer<T> = oneshot::Sender<T>;
