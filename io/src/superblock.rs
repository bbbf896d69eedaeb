//! The superblock: what a slab file says about itself before anything else in it is believed. Written once, at format,
//! in two copies (offsets 0 and 4096); read by whoever opens a slab.
//!
//! ```text
//!  0         8         12      16        32         48         56       60     64       72       76     80
//!  ├ magic   ┼ format  ┼ shard ┼ node id ┼ identity ┼ store id ┼ shard  ┼ zero ┼ region ┼ region ┼ zero ┼ journal …
//!  │ FOREBAY0│ version │       │ (16)    │ key (16) │          │ _count │      │ _bytes │ _count │      │ _bytes
//!  80            88                96            4088        4096
//!  … journal     ┼ created         ┼ zeros       ┼ sum        ┤
//!    _bytes      │ unix ms         │             │ of 0..4088 │
//! ```
//!
//! Magic and version come first and never move, so that every version can name every other. Numbers are little-endian.
//! Invariants: decoding never panics, whatever the bytes; a superblock that decodes describes a file that can exist.

use std::mem::{offset_of, size_of};

use twox_hash::XxHash3_64;

use crate::units::SECTOR_BYTES;

/// The length of one copy.
pub const SUPERBLOCK_BYTES: usize = size_of::<Layout>();
/// Both copies; the journal begins here.
pub const SUPERBLOCKS_BYTES: usize = 2 * SUPERBLOCK_BYTES;
/// The version of everything on disk.
pub const FORMAT_VERSION: u32 = 2;

const MAGIC: [u8; 8] = *b"FOREBAY0";
const SUM_AT: usize = offset_of!(Layout, sum);
/// No disk is larger: 2^56 bytes keep all sums of offsets far from overflow.
const SLAB_BYTES_MAX: u64 = 1 << 56;

/// The superblock as it lies on disk; only its offsets are used.
#[repr(C)]
#[allow(dead_code)]
struct Layout {
    magic: [u8; 8],
    version: u32,
    shard: u32,
    node_id: [u8; 16],
    identity_key: [u8; 16],
    store_id: u64,
    shard_count: u32,
    zero_a: u32,
    region_bytes: u64,
    region_count: u32,
    zero_b: u32,
    journal_bytes: u64,
    created_unix_ms: u64,
    zeros: [u8; 3992],
    sum: u64,
}

const _: () = assert!(SUPERBLOCK_BYTES == SECTOR_BYTES && SUM_AT == 4088 && offset_of!(Layout, zeros) == 96);

/// What a slab file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The node this disk was formatted for.
    pub node_id: u128,
    /// Drawn at random at format; seeds the sums of the store's frames.
    pub store_id: u64,
    /// Which shard this is, 0-based.
    pub shard: u32,
    /// How many shards the node has.
    pub shard_count: u32,
    /// Keys the hash that turns a volume and key into an identity.
    pub identity_key: [u8; 16],
    /// The length of a region: whole sectors.
    pub region_bytes: u64,
    /// How many regions there are.
    pub region_count: u32,
    /// The length of the journal: whole sectors.
    pub journal_bytes: u64,
    /// When it was formatted, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// Why bytes are no superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockReject {
    /// Something else lies here.
    #[error("not a Forebay slab")]
    NotForebay,
    /// Written by another version of Forebay.
    #[error("slab format {found}, this Forebay reads {FORMAT_VERSION}")]
    OtherVersion {
        /** The version found. */
        found: u32,
    },
    /// A Forebay slab whose superblock is torn or rotten.
    #[error("the superblock is damaged")]
    Damaged,
    /// The sum is right and the content can't be.
    #[error("the superblock describes no possible slab: {what}")]
    Impossible {
        /** What can't be. */
        what: &'static str,
    },
}

/// Which copies of a superblock are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// Both, and equal.
    Both,
    /// One is damaged; the other counts. It should be written anew.
    One,
}

impl Superblock {
    /// Where the journal begins.
    pub const JOURNAL_AT: u64 = SUPERBLOCKS_BYTES as u64;

    /// Where region 0 begins.
    #[must_use]
    pub const fn regions_at(&self) -> u64 {
        Self::JOURNAL_AT + self.journal_bytes
    }

    /// The length of the slab file.
    #[must_use]
    pub const fn slab_bytes(&self) -> u64 {
        self.regions_at() + self.region_bytes * self.region_count as u64
    }

    /// Writes one copy into `into`.
    ///
    /// # Panics
    /// If `into` is not [`SUPERBLOCK_BYTES`] long or the slab described can't exist.
    pub fn encode(&self, into: &mut [u8]) {
        assert_eq!(into.len(), SUPERBLOCK_BYTES, "a superblock fills its sector");
        assert_eq!(self.impossible(), None, "only a possible slab is formatted");
        into.fill(0);
        put(into, offset_of!(Layout, magic), &MAGIC);
        put(into, offset_of!(Layout, version), &FORMAT_VERSION.to_le_bytes());
        put(into, offset_of!(Layout, shard), &self.shard.to_le_bytes());
        put(into, offset_of!(Layout, node_id), &self.node_id.to_le_bytes());
        put(into, offset_of!(Layout, identity_key), &self.identity_key);
        put(into, offset_of!(Layout, store_id), &self.store_id.to_le_bytes());
        put(into, offset_of!(Layout, shard_count), &self.shard_count.to_le_bytes());
        put(into, offset_of!(Layout, region_bytes), &self.region_bytes.to_le_bytes());
        put(into, offset_of!(Layout, region_count), &self.region_count.to_le_bytes());
        put(into, offset_of!(Layout, journal_bytes), &self.journal_bytes.to_le_bytes());
        put(into, offset_of!(Layout, created_unix_ms), &self.created_unix_ms.to_le_bytes());
        let sum = XxHash3_64::oneshot(&into[..SUM_AT]);
        put(into, SUM_AT, &sum.to_le_bytes());
    }

    /// The superblock in the first [`SUPERBLOCK_BYTES`] of `bytes`. Never panics.
    ///
    /// # Errors
    /// Why it is none.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, SuperblockReject> {
        let Some(bytes) = bytes.first_chunk::<SUPERBLOCK_BYTES>() else { return Err(SuperblockReject::NotForebay) };
        if bytes[..8] != MAGIC {
            return Err(SuperblockReject::NotForebay);
        }
        // Before the sum: another version may sum otherwise.
        let found = u32::from_le_bytes(field(bytes, offset_of!(Layout, version)));
        if found != FORMAT_VERSION {
            return Err(SuperblockReject::OtherVersion { found });
        }
        if u64::from_le_bytes(field(bytes, SUM_AT)) != XxHash3_64::oneshot(&bytes[..SUM_AT]) {
            return Err(SuperblockReject::Damaged);
        }
        let superblock = Superblock {
            node_id: u128::from_le_bytes(field(bytes, offset_of!(Layout, node_id))),
            store_id: u64::from_le_bytes(field(bytes, offset_of!(Layout, store_id))),
            shard: u32::from_le_bytes(field(bytes, offset_of!(Layout, shard))),
            shard_count: u32::from_le_bytes(field(bytes, offset_of!(Layout, shard_count))),
            identity_key: field(bytes, offset_of!(Layout, identity_key)),
            region_bytes: u64::from_le_bytes(field(bytes, offset_of!(Layout, region_bytes))),
            region_count: u32::from_le_bytes(field(bytes, offset_of!(Layout, region_count))),
            journal_bytes: u64::from_le_bytes(field(bytes, offset_of!(Layout, journal_bytes))),
            created_unix_ms: u64::from_le_bytes(field(bytes, offset_of!(Layout, created_unix_ms))),
        };
        match superblock.impossible() {
            None => Ok(superblock),
            Some(what) => Err(SuperblockReject::Impossible { what }),
        }
    }

    /// The superblock of a slab that begins with `bytes` ([`SUPERBLOCKS_BYTES`] of them): the first good copy.
    ///
    /// # Errors
    /// If no copy is good, why the better one is not: a damaged slab is told from something that is no slab.
    pub fn decode_copies(bytes: &[u8]) -> Result<(Superblock, Copies), SuperblockReject> {
        let first = Superblock::decode(bytes);
        let second = Superblock::decode(bytes.get(SUPERBLOCK_BYTES..).unwrap_or_default());
        match (first, second) {
            (Ok(first), Ok(second)) if first == second => Ok((first, Copies::Both)),
            (Ok(good), _) | (Err(_), Ok(good)) => Ok((good, Copies::One)),
            (Err(SuperblockReject::NotForebay), Err(why)) | (Err(why), Err(_)) => Err(why),
        }
    }

    /// Why no such slab can exist, if so.
    fn impossible(&self) -> Option<&'static str> {
        let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES as u64);
        if self.shard >= self.shard_count {
            Some("shard beyond shard_count")
        } else if !whole(self.region_bytes) {
            Some("region_bytes is not whole sectors")
        } else if !whole(self.journal_bytes) || self.journal_bytes > SLAB_BYTES_MAX {
            Some("journal_bytes is not whole sectors, or beyond any disk")
        } else if self.region_count == 0 {
            Some("no region")
        } else if self.region_bytes.checked_mul(self.region_count.into()).is_none_or(|bytes| bytes > SLAB_BYTES_MAX) {
            Some("regions beyond any disk")
        } else {
            None
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn field<const N: usize>(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a field inside the sector has its own length")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Superblock {
        Superblock {
            node_id: 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF,
            store_id: 42,
            shard: 1,
            shard_count: 4,
            identity_key: *b"sixteen byte key",
            region_bytes: 64 << 20,
            region_count: 16,
            journal_bytes: 8 << 20,
            created_unix_ms: 1_735_689_600_000,
        }
    }

    fn copies() -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCKS_BYTES];
        bytes.chunks_mut(SUPERBLOCK_BYTES).for_each(|copy| example().encode(copy));
        bytes
    }

    /// Changes the field at `at` and makes the sum right again.
    fn with(at: usize, value: &[u8]) -> Result<Superblock, SuperblockReject> {
        let mut bytes = copies();
        put(&mut bytes, at, value);
        let sum = XxHash3_64::oneshot(&bytes[..SUM_AT]);
        put(&mut bytes, SUM_AT, &sum.to_le_bytes());
        Superblock::decode(&bytes)
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        assert_eq!(Superblock::decode_copies(&copies()), Ok((example(), Copies::Both)));
        assert_eq!(example().regions_at(), 8192 + (8 << 20));
        assert_eq!(example().slab_bytes(), 8192 + (8 << 20) + (1 << 30));
        assert_eq!(&copies()[..12], b"FOREBAY0\x02\0\0\0");
    }

    #[test]
    fn each_reason_is_told() {
        assert_eq!(Superblock::decode(b"FOREBAY0"), Err(SuperblockReject::NotForebay));
        assert_eq!(with(0, b"EYABEROF"), Err(SuperblockReject::NotForebay));
        assert_eq!(with(8, &[9]), Err(SuperblockReject::OtherVersion { found: 9 }));
        for (at, value) in [(12, &[4][..]), (64, &[1]), (64, &[0; 8]), (71, &[0xF0]), (72, &[0; 4]), (87, &[0xFF])] {
            assert!(matches!(with(at, value), Err(SuperblockReject::Impossible { .. })), "{at}");
        }
        assert!(with(96, &[1]).is_ok(), "later minor versions may use the zeros");
    }

    #[test]
    fn one_good_copy_is_enough() {
        for damaged in 0..2 {
            let mut bytes = copies();
            bytes[damaged * SUPERBLOCK_BYTES + 20] ^= 1;
            assert_eq!(Superblock::decode_copies(&bytes), Ok((example(), Copies::One)));
            bytes[(1 - damaged) * SUPERBLOCK_BYTES] ^= 1;
            assert_eq!(Superblock::decode_copies(&bytes), Err(SuperblockReject::Damaged));
        }
        assert_eq!(Superblock::decode_copies(&[0; SUPERBLOCKS_BYTES]), Err(SuperblockReject::NotForebay));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(at in 0..SUPERBLOCK_BYTES, bit in 0..8u8) {
            let mut bytes = copies();
            bytes[at] ^= 1 << bit;
            prop_assert!(Superblock::decode(&bytes).is_err());
        }

        #[test]
        fn no_fields_make_it_panic(at in 8..96usize, value in prop::collection::vec(any::<u8>(), 1..40)) {
            if let Ok(superblock) = with(at, &value) {
                prop_assert!(superblock.slab_bytes() > superblock.regions_at());
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert!(Superblock::decode_copies(&bytes).is_err());
        }
    }
}
