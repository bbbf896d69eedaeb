//! Checksums: what proves that bytes read are the bytes written, at the place and for the record that was asked for.
//!
//! One pass over a piece yields its content digest (xxh3-128). The stored *piece sum* is a short second hash of that
//! digest together with identity, generation, piece number and length. So one pass proves bytes and place, and for a
//! block of one piece the same pass yields the ETag, which therefore needs no room in the index.
//! Source: xxHash, <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>.

use twox_hash::{XxHash3_64, XxHash3_128};

use crate::units::{PIECE_BYTES, piece_count};

/// xxh3-128 of a block's content: the ETag of what Forebay stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(XxHash3_128::oneshot(bytes))
    }

    /// 32 lower-case hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        format!("{:032x}", self.0)
    }

    /// The inverse of [`Digest::to_hex`]; anything else is `None`.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Digest> {
        let lower_hex = hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if lower_hex { u128::from_str_radix(hex, 16).ok().map(Digest) } else { None }
    }
}

/// A digest computed as the bytes arrive.
pub struct Digester(twox_hash::xxhash3_128::Hasher);

impl Default for Digester {
    fn default() -> Self {
        Digester(twox_hash::xxhash3_128::Hasher::new())
    }
}

impl Digester {
    /// Adds the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The digest of everything added.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest(self.0.finish_128())
    }
}

/// What a piece sum is keyed by, beside the piece's number and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumKey {
    /// The record's identity: a keyed 128-bit hash of volume and key.
    pub identity: u128,
    /// The record's generation.
    pub generation: u64,
}

/// The stored checksum of piece `piece_index`, from the digest of that piece's bytes.
#[must_use]
pub fn piece_sum(key: SumKey, piece_index: usize, piece_bytes: usize, digest: Digest) -> u64 {
    let mut input = [0u8; 48];
    input[..16].copy_from_slice(&digest.0.to_le_bytes());
    input[16..32].copy_from_slice(&key.identity.to_le_bytes());
    input[32..40].copy_from_slice(&key.generation.to_le_bytes());
    input[40..44].copy_from_slice(&u32::try_from(piece_index).expect("a block has few pieces").to_le_bytes());
    input[44..48].copy_from_slice(&u32::try_from(piece_bytes).expect("a piece is small").to_le_bytes());
    XxHash3_64::oneshot(&input)
}

/// The sums of all pieces of `content`, in order; one for an empty block.
#[must_use]
pub fn piece_sums(key: SumKey, content: &[u8]) -> Vec<u64> {
    (0..piece_count(content.len() as u64))
        .map(|index| {
            let start = index * PIECE_BYTES;
            let piece = &content[start..content.len().min(start + PIECE_BYTES)];
            piece_sum(key, index, piece.len(), Digest::of(piece))
        })
        .collect()
}

/// xxh3-64 of a frame's bytes, seeded by the store it belongs to.
#[must_use]
pub fn frame_sum(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_their_hex_form_and_nothing_else_does() {
        let digest = Digest::of(b"forebay");
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
        for bad in [
            "",
            "xyz",
            &digest.to_hex()[1..],
            &digest.to_hex().to_uppercase().replace(char::is_numeric, "A"),
            "+0000000000000000000000000000000",
        ] {
            assert_eq!(Digest::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_streamed_digest_equals_one_over_the_whole() {
        let content: Vec<u8> = (0..100_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let mut digester = Digester::default();
        content.chunks(777).for_each(|part| digester.update(part));
        assert_eq!(digester.finish(), Digest::of(&content));
    }

    #[test]
    fn a_sum_depends_on_everything_it_is_keyed_by() {
        let key = SumKey { identity: 1, generation: 2 };
        let digest = Digest::of(b"x");
        let sum = piece_sum(key, 0, 1, digest);
        assert_ne!(sum, piece_sum(SumKey { identity: 3, ..key }, 0, 1, digest));
        assert_ne!(sum, piece_sum(SumKey { generation: 3, ..key }, 0, 1, digest));
        assert_ne!(sum, piece_sum(key, 1, 1, digest));
        assert_ne!(sum, piece_sum(key, 0, 2, digest));
        assert_ne!(sum, piece_sum(key, 0, 1, Digest::of(b"y")));
        assert_eq!(piece_sums(key, &[]).len(), 1);
        assert_eq!(piece_sums(key, &vec![0; PIECE_BYTES + 1]).len(), 2);
    }
}
