//! What can go wrong between a core and its disk: one enum, each variant saying whose fault and whether to retry.
//!
//! Made by `ring` (from the kernel's answers), `sim` (from its faults), `frame` and `superblock`; handled by the store.

use std::io;

/// A failed disk operation. Offsets and lengths are bytes.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The named file does not exist.
    #[error("{name} does not exist")]
    Missing {
        /** File name. */
        name: String,
    },
    /// The named file exists already.
    #[error("{name} exists already")]
    Exists {
        /** File name. */
        name: String,
    },
    /// The file system is full.
    #[error("no space for {bytes} bytes in {name}")]
    NoSpace {
        /** File name. */
        name: String,
        /** Bytes asked for. */
        bytes: u64,
    },
    /// The file system refuses O_DIRECT.
    #[error("{name}: this file system has no direct I/O; put the disk on ext4, xfs or a raw device")]
    NoDirectIo {
        /** File name. */
        name: String,
    },
    /// The device ended early.
    #[error("{name}: {got} of {want} bytes at {at}")]
    Short {
        /** File name. */
        name: String,
        /** Offset. */
        at: u64,
        /** Bytes asked for. */
        want: usize,
        /** Bytes transferred. */
        got: usize,
    },
    /// The device or the kernel failed the operation.
    #[error("{verb} of {name} at {at}")]
    Device {
        /** read, write, sync, open, allocate. */
        verb: &'static str,
        /** File name. */
        name: String,
        /** Offset. */
        at: u64,
        /** What the kernel said. */
        #[source]
        source: io::Error,
    },
    /// Bytes on disk are not what the format says.
    #[error("{name} at {at}: {what}")]
    Corrupt {
        /** File name. */
        name: String,
        /** Offset. */
        at: u64,
        /** What was expected. */
        what: &'static str,
    },
}

impl IoError {
    /// Whether the device itself is to blame (counts against its health).
    #[must_use]
    pub fn is_device_fault(&self) -> bool {
        matches!(self, IoError::Short { .. } | IoError::Device { .. } | IoError::Corrupt { .. })
    }

    /// Whether the device says that what lies there can't be read: how Linux reports a medium, a target or a protection error.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        const EIO: i32 = 5;
        const ENODATA: i32 = 61;
        const EILSEQ: i32 = 84;
        const EREMOTEIO: i32 = 121;
        match self {
            IoError::Device { verb: "read" | "open", source, .. } => {
                matches!(source.raw_os_error(), Some(EIO | ENODATA | EILSEQ | EREMOTEIO))
            }
            _ => false,
        }
    }
}
