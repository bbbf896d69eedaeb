//! Buffers of the disk floor. `ReadBuf` and `WriteBuf` hide where the bytes lie: in the ring's registered arena or on
//! an aligned heap. A buffer is owned by the request until the kernel has answered.

/// Bytes read from a disk. Not `Send` (it may lie in this core's arena); cheap to clone and to slice.
#[derive(Clone)]
pub struct ReadBuf {}

/// An aligned buffer for one write.
pub struct WriteBuf {}
