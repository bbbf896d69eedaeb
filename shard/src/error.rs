//! What can keep a shard from opening or a record from being durable.
//!
//! Made by `store`, turned by the verbs into a declined request: a put or delete whose record is not durable is never
//! acknowledged (I3). Ordinary outcomes are variants of `outcome`, not errors.

use forebay_io::IoError;

/// A shard that can't open, or a store operation that did not become durable.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed. The put or delete that waited on it is not acknowledged.
    #[error("the disk failed")]
    Disk(#[from] IoError),
    /// The disk did not take the bytes of the block, so that its record was never journaled: nothing of it can turn up later.
    #[error("the disk did not take the block")]
    NotWritten(#[source] IoError),
    /// The superblock belongs to another node, shard or format.
    #[error("{what}")]
    Foreign {
        /// What does not fit, and the fix.
        what: String,
    },
    /// No region can be freed now.
    #[error("no free region: everything is dirty or pinned")]
    Full,
    /// An earlier sync failed: this store takes no more writes until it is reopened.
    #[error("this disk failed a sync earlier and takes no writes")]
    Failed,
    /// The key may lie on a disk that is not here.
    #[error("the disk that may hold this key is not here")]
    Away,
    /// The store is closing.
    #[error("the store is closing")]
    Closing,
}
