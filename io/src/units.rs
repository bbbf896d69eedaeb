//! The units of the disk floor and the only conversions between them.
//!
//! Every transfer to or from a slab starts and ends on a sector boundary; records are placed at multiples of
//! [`PLACE_BYTES`], so that four blocks of 1 KiB share one sector.

/// The unit of transfer: every read and write starts and ends on a multiple of it. 4 KiB suits 512-byte and
/// 4Kn devices alike.
pub const SECTOR_BYTES: usize = 4096;

/// The unit of placement inside a region: a record begins on a multiple of it.
pub const PLACE_BYTES: usize = 512;

/// The unit of checksumming: a block is verified and sent in pieces of this size (the last may be shorter).
pub const PIECE_BYTES: usize = 1 << 20;

/// Rounds `bytes` up to whole sectors.
#[must_use]
pub const fn sectors_up(bytes: u64) -> u64 {
    bytes.div_ceil(SECTOR_BYTES as u64) * SECTOR_BYTES as u64
}

/// Rounds `bytes` down to whole sectors.
#[must_use]
pub const fn sectors_down(bytes: u64) -> u64 {
    bytes / SECTOR_BYTES as u64 * SECTOR_BYTES as u64
}

/// How many pieces a block of `bytes` has. An empty block has one empty piece, so that it too is verified.
#[must_use]
pub const fn piece_count(bytes: u64) -> usize {
    let pieces = bytes.div_ceil(PIECE_BYTES as u64) as usize;
    if pieces == 0 { 1 } else { pieces }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_round_both_ways() {
        assert_eq!((sectors_up(0), sectors_up(1), sectors_up(4096), sectors_up(4097)), (0, 4096, 4096, 8192));
        assert_eq!((sectors_down(4095), sectors_down(4096)), (0, 4096));
    }

    #[test]
    fn an_empty_block_has_one_piece() {
        assert_eq!((piece_count(0), piece_count(1), piece_count(1 << 20), piece_count((1 << 20) + 1)), (1, 1, 1, 2));
    }
}
