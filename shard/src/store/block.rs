//! What goes into the store and what a lookup finds: blocks, dirty records, the validity of a fill.
//!
//! Used by the verbs (put, fill, remove, flush) and by the store's own files. Plain data, no algorithm.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use forebay_io::checksum::Digest;

use crate::key::{BlockKey, Generation, Identity};
use crate::origin::Etag;

/// A dirty block or tombstone: what a flush needs. Kept in memory while dirty, persisted in journal and checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyRecord {
    /// Its full name.
    pub key: BlockKey,
    /// The identity of `key`.
    pub identity: Identity,
    /// Which put or delete this is.
    pub generation: Generation,
    /// A block or a delete.
    pub kind: DirtyKind,
    /// When it became dirty: milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Sure, unless it came back from a disaster.
    pub certainty: Certainty,
}

/// A put or a delete that the origin has not confirmed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyKind {
    /// A put.
    Block {
        /// Content length in bytes.
        len_bytes: u32,
        /// The content's digest.
        digest: Digest,
        /// What the flush does before it stores.
        before: BeforeStore,
    },
    /// A delete.
    Tombstone,
}

/// What a flush of a block does at the origin before it stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BeforeStore {
    /// Nothing.
    Nothing,
    /// The put superseded a tombstone that was not flushed: delete first.
    Delete,
}

/// Whether a dirty record is surely the newest of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// It is.
    Sure,
    /// It came back from a disaster, and nobody knows whether it was flushed, deleted or superseded since. Until the origin
    /// was asked it is not served; it deletes nothing there.
    Unsure,
}

impl DirtyRecord {
    /// Content bytes that count against the dirty budget (I10); a tombstone has none.
    #[must_use]
    pub fn len_bytes(&self) -> u32 {
        match self.kind {
            DirtyKind::Block { len_bytes, .. } => len_bytes,
            DirtyKind::Tombstone => 0,
        }
    }
}

/// A block to append. The digest in `etag` must have been computed from `frames`: it is what the block will be
/// verified against.
#[derive(Debug, Clone)]
pub struct NewBlock {
    /// Its full name.
    pub key: BlockKey,
    /// The identity of `key`.
    pub identity: Identity,
    /// Drawn from `Store::next_generation`.
    pub generation: Generation,
    /// The content, complete and in order.
    pub frames: Vec<Bytes>,
    /// The content's length in bytes.
    pub len_bytes: u32,
    /// Its ETag.
    pub etag: Etag,
    /// Clean or dirty.
    pub kind: NewKind,
}

/// How a new block is published.
#[derive(Debug, Clone)]
pub enum NewKind {
    /// It came from the origin: the policy may decline it. Otherwise as a clean one whose commit is lazy.
    Fetched {
        /// The fill's (I6).
        validity: Validity,
    },
    /// The origin has it; never declined.
    Clean {
        /// A fill's validity (I6); `Validity::default()` for a put.
        validity: Validity,
        /// Whether to wait for the sync.
        commit: Commit,
    },
    /// The origin does not have it yet. Always waits for the sync (I3).
    Dirty(Rc<DirtyRecord>),
}

/// When an append of a clean block resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// After its bytes and its journal record are written; the sync comes with a later commit. A fill: it never
    /// replaces a dirty entry. The caller begins none while a put or delete of its key is under way (I6): with the
    /// newer generation it would win over that put.
    Lazy,
    /// After the sync. A put that the origin confirmed: it replaces anything older.
    Durable,
}

/// Whether a fill may still be published (I6). All clones share one mark, which is cleared by a put, delete or purge
/// of the key. The store looks at it when the record is queued for the journal and again at publish.
#[derive(Debug, Clone)]
pub struct Validity(Rc<Cell<bool>>);

impl Default for Validity {
    fn default() -> Self {
        Validity(Rc::new(Cell::new(true)))
    }
}

impl Validity {
    /// From now on this fill is not published.
    pub fn clear(&self) {
        self.0.set(false);
    }

    /// Whether it was never cleared.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.get()
    }
}

/// Whether a client asked for a block to stay on disk, whatever the policy thinks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinning {
    /// The policy decides.
    Unpinned,
    /// It stays until it is unpinned, purged or deleted (I14).
    Pinned,
}

/// What became of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinOutcome {
    /// The block is pinned, durably.
    Pinned,
    /// There is no block of this key on the disk.
    Missing,
    /// The disk holds as many pinned bytes as it may.
    Full,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is the entry now.
    Published,
    /// Its validity was cleared, or a newer generation is there.
    Invalidated,
    /// The policy does not want it on disk now; only what was fetched is declined.
    Declined,
}

/// What the index knows about an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A block.
    Block {
        /// Which.
        generation: Generation,
        /// Content length in bytes.
        len_bytes: u32,
        /// Clean or dirty.
        state: EntryState,
        /// Known for blocks of several pieces, for blocks others stored, and while dirty.
        etag: Option<Etag>,
    },
    /// A delete that the origin has not confirmed yet.
    Tombstone {
        /// Which.
        generation: Generation,
    },
}

impl Found {
    /// Which put, fill or delete it is.
    #[must_use]
    pub fn generation(&self) -> Generation {
        match self {
            Found::Block { generation, .. } | Found::Tombstone { generation } => *generation,
        }
    }
}

/// Whether the origin has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryState {
    /// It has.
    Clean,
    /// Not yet.
    Dirty,
}
