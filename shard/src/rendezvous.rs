//! Weighted rendezvous hashing: which of several places attracts a key most. Pure arithmetic on public, unkeyed hashes.
//!
//! `disks` ranks the disks of a shard by it; `src/placement.rs` does the same for the members of a group (PLACEMENT.md has the
//! vectors; its test compares the two). Each has a seed of its own, so that the two choices have nothing to do with each other. A score depends on nothing but the place,
//! its weight and the key: a change of the places moves only the keys that a place gains or loses. Source: Thaler and
//! Ravishankar, "A Name-Based Mapping Scheme for Rendezvous" (1996), with the weights of Schindelhauer and Schomaker (2005).

use std::num::NonZeroU32;

use twox_hash::XxHash3_64;

/// The seed of the hashes that rank the disks of a shard. On disk depends on it: it never changes.
pub const DISK_SEED: u64 = 0x666f_7265_6261_7903;

/// How strongly `place` attracts the key whose hash is `key`: the greatest score holds it. `-w / ln(u)` with `u` uniform in
/// (0, 1) gives each place its weight's share.
#[must_use]
pub fn score(seed: u64, place: u128, weight: NonZeroU32, key: u64) -> f64 {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&place.to_be_bytes());
    bytes[16..].copy_from_slice(&key.to_be_bytes());
    let hash = XxHash3_64::oneshot_with_seed(seed, &bytes);
    // 53 bits and a half: exact in a double, never 0 and never 1.
    let u = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(weight.get()) / u.ln()
}
