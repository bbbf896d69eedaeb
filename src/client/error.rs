//! Why a client could not do what it was asked: one enum for all verbs.
//!
//! Made by `read`, `write` and `bypass`; commands turn it into words and an exit code, a file system into an errno. No secrets, no signed URLs.

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// There is no block with this key: everybody who could know was asked.
    #[error("there is no such block")]
    Absent,
    /// A member that may hold a newer write of this key can't be asked. Not "absent", and nothing older: come back when it is there again.
    #[error("owner-unreachable: a member that may hold this block can't be asked ({0})")]
    OwnerUnreachable(String),
    /// An acknowledged write rotted on its member's disk.
    #[error("the block is lost: {0}")]
    Lost(String),
    /// The key holds other bytes, and the volume is immutable.
    #[error("key-exists: the key holds other bytes and the volume is immutable")]
    KeyExists,
    /// The request's own condition.
    #[error("the precondition does not hold")]
    PreconditionFailed,
    /// The range is not inside the block.
    #[error("{0}")]
    BadRange(String),
    /// No key that can be sent.
    #[error("{0}")]
    BadKey(String),
    /// The token, the volume's settings or the request: trying again does not help.
    #[error("refused: {0}")]
    Refused(String),
    /// Nobody could answer, in time or at all.
    #[error("nobody could answer: {0}")]
    Unavailable(String),
    /// Bytes that are not the block's.
    #[error("the bytes do not match their digest: {0}")]
    Corrupt(String),
}
