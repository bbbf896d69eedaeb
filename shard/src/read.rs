//! Reading a record: piece by piece, each verified before a byte of it is handed on (I8).
//!
//! Used by the store itself (flush, relocation, recovery) and by any core that holds a read-only handle of the slab:
//! the owner of a block answers *where* ([`Located`], pinned, I7), the asking core reads on its own ring.

use std::ops::Deref;

use forebay_io::checksum::{Digest, SumKey, piece_sum};
use forebay_io::units::{PIECE_BYTES, SECTOR_BYTES, piece_count, sectors_down, sectors_up};
use forebay_io::{DiskFile, IoError, ReadBuf};

use crate::canary::{self, Canary};
use crate::outcome::{Located, PieceSums};

/// Reads the pieces of one located block.
pub struct BlockReader<F> {
    file: F,
    located: Located,
}

impl<F: DiskFile> BlockReader<F> {
    /// A reader of `located` in `file`, the slab of the shard that located it.
    #[must_use]
    pub fn new(file: F, located: Located) -> BlockReader<F> {
        if let PieceSums::Many(sums) = &located.sums {
            assert_eq!(sums.len(), piece_count(u64::from(located.len_bytes)), "one sum per piece");
        }
        BlockReader { file, located }
    }

    /// Where the block lies.
    #[must_use]
    pub fn located(&self) -> &Located {
        &self.located
    }

    /// How many pieces the block has; at least one.
    #[must_use]
    pub fn piece_count(&self) -> usize {
        piece_count(u64::from(self.located.len_bytes))
    }

    /// Reads and verifies piece `index`: exactly its content bytes, and their digest.
    ///
    /// # Errors
    /// [`ReadError::Disk`] if the device failed, [`ReadError::Rot`] if the bytes are not those of this record.
    ///
    /// # Panics
    /// If the block has no such piece.
    pub async fn piece(&self, index: usize) -> Result<VerifiedPiece, ReadError> {
        let span = self.span(index);
        let sectors = match span.read_bytes {
            0 => ReadBuf::copy_of(&[]),
            read_bytes => self.file.read(span.first, read_bytes).await.map_err(ReadError::Disk)?,
        };
        self.prove(index, sectors)
    }

    /// The sectors that hold piece `index`.
    ///
    /// # Panics
    /// If the block has no such piece.
    #[must_use]
    pub fn span(&self, index: usize) -> PieceSpan {
        assert!(index < self.piece_count(), "piece {index} of {}", self.piece_count());
        let skipped_bytes = index * PIECE_BYTES;
        let piece_bytes = (self.located.len_bytes as usize - skipped_bytes).min(PIECE_BYTES);
        let start = self.located.offset + skipped_bytes as u64;
        let first = sectors_down(start);
        let read_bytes = if piece_bytes == 0 { 0 } else { (sectors_up(start + piece_bytes as u64) - first) as usize };
        assert!(read_bytes <= PIECE_BYTES + SECTOR_BYTES, "one piece is read at a time");
        PieceSpan { first, read_bytes, lead_bytes: (start - first) as usize, piece_bytes }
    }

    /// Verifies piece `index` in the sectors of its [`span`](BlockReader::span).
    ///
    /// # Errors
    /// [`ReadError::Rot`] if the bytes are not those of this record.
    ///
    /// # Panics
    /// If these are more or fewer sectors.
    pub fn prove(&self, index: usize, sectors: ReadBuf) -> Result<VerifiedPiece, ReadError> {
        let PieceSpan { read_bytes, lead_bytes, piece_bytes, .. } = self.span(index);
        assert_eq!(sectors.len(), read_bytes, "a disk never passes a short read on");
        let bytes = if piece_bytes == 0 { sectors } else { sectors.slice(lead_bytes..lead_bytes + piece_bytes) };
        let digest = Digest::of(&bytes);
        let key = SumKey { identity: self.located.identity.0, generation: self.located.generation.0 };
        let expected = match &self.located.sums {
            PieceSums::One(sum) => *sum,
            PieceSums::Many(sums) => sums[index],
        };
        if piece_sum(key, index, piece_bytes, digest) != expected && !canary::is(Canary::SkipChecksum) {
            return Err(ReadError::Rot { piece_index: index });
        }
        Ok(VerifiedPiece { bytes, digest })
    }
}

/// The sectors that hold one piece, and where in them it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceSpan {
    /// Offset in the slab of the first sector.
    pub first: u64,
    /// Whole sectors; zero for an empty block.
    pub read_bytes: usize,
    lead_bytes: usize,
    piece_bytes: usize,
}

/// The content of one piece, proven to be that of its record (I8). Keep it only while it is being sent: it may hold a
/// part of the core's arena.
#[derive(Clone, Debug)]
pub struct VerifiedPiece {
    bytes: ReadBuf,
    digest: Digest,
}

impl VerifiedPiece {
    /// The digest of this piece's bytes; for a block of one piece this is its ETag.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The bytes as a buffer that can be sliced and sent.
    #[must_use]
    pub fn into_buf(self) -> ReadBuf {
        self.bytes
    }
}

impl Deref for VerifiedPiece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why a piece could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The device failed.
    #[error("the disk failed")]
    Disk(#[source] IoError),
    /// The bytes are not those of the record: repair from the origin, or fail the request.
    #[error("piece {piece_index} does not match its checksum")]
    Rot {
        /// Which piece, from zero.
        piece_index: usize,
    },
}
