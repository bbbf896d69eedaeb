//! Where a block belongs: its shard within a member, and the order in which a group's members hold it.
//!
//! Pure arithmetic on public, unkeyed hashes, so that clients, proxies and programs in other languages agree without talking.
//! PLACEMENT.md is the specification, with test vectors that the tests below and `ci/placement-vectors` follow. Called by
//! `dispatch` (shards); members are ranked by whoever routes.
//!
//! Invariants: a member's score for a key depends on nothing but that member and the key, so a membership change moves only
//! the keys that the member gains or loses; both hashes and their seeds are part of the protocol and never change.

use std::fmt;
use std::hash::Hasher;
use std::num::NonZeroU32;
use std::str::FromStr;

use twox_hash::{XxHash3_64, xxhash3_64};

/// The seed of the hash that deals keys to shards.
pub const SHARD_SEED: u64 = 0x666f_7265_6261_7901;

/// The seed of the hashes that rank members.
pub const MEMBER_SEED: u64 = 0x666f_7265_6261_7902;

/// A member's name for placement: drawn once and kept for life, whatever its address. Text: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u128);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A member's id must be 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no member id: 32 hexadecimal digits are expected")]
pub struct BadMemberId(String);

impl FromStr for MemberId {
    type Err = BadMemberId;

    fn from_str(text: &str) -> Result<MemberId, BadMemberId> {
        let is_plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = is_plain.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        id.map(MemberId).ok_or_else(|| BadMemberId(text.to_owned()))
    }
}

/// What ranking needs to know of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub id: MemberId,
    /// Its share of the keys, relative to the others'.
    pub weight: NonZeroU32,
}

/// One block's key, hashed for ranking. Hashed once, however many members there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(u64);

/// For tables by [`KeyHash`], which is its own hash.
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only hashes of keys are hashed");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl KeyHash {
    /// The hash of `key` (decoded, 1–1,024 bytes) in `volume`.
    #[must_use]
    pub fn of(volume: &str, key: &str) -> KeyHash {
        KeyHash(hash(MEMBER_SEED, volume, key))
    }

    /// How strongly `member` attracts this key: the greatest score holds it. `-w / ln(u)` with `u` uniform in (0, 1) gives
    /// each member its weight's share.
    #[must_use]
    pub fn score(self, member: &Member) -> f64 {
        // As `forebay_shard::rendezvous` does it for the disks of a shard; clients are built without the shard.
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&member.id.0.to_be_bytes());
        bytes[16..].copy_from_slice(&self.0.to_be_bytes());
        let hash = XxHash3_64::oneshot_with_seed(MEMBER_SEED, &bytes);
        // 53 bits and a half: exact in a double, never 0 and never 1.
        let u = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -f64::from(member.weight.get()) / u.ln()
    }

    /// The member that is to hold this key, by its position; none of none.
    #[must_use]
    pub fn first(self, members: &[Member]) -> Option<usize> {
        let scored = members.iter().enumerate().map(|(at, member)| (self.score(member), member.id, at));
        scored.reduce(|best, next| if is_before(&next, &best) { next } else { best }).map(|(_, _, at)| at)
    }

    /// The positions of the `count` first members, the first first: whom to ask, in order.
    #[must_use]
    pub fn ranked(self, members: &[Member], count: usize) -> Vec<usize> {
        let mut scored: Vec<_> =
            members.iter().enumerate().map(|(at, member)| (self.score(member), member.id, at)).collect();
        let count = count.min(scored.len());
        let by_rank = |a: &Scored, b: &Scored| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if count > 0 && count < scored.len() {
            scored.select_nth_unstable_by(count - 1, by_rank);
        }
        scored.truncate(count);
        scored.sort_unstable_by(by_rank);
        scored.into_iter().map(|(_, _, at)| at).collect()
    }
}

type Scored = (f64, MemberId, usize);

/// The greater score; of equal ones, the smaller id.
fn is_before(a: &Scored, b: &Scored) -> bool {
    a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)).is_gt()
}

/// The shard of `key` in `volume` among `shard_count` of a member: the high half of hash × count (Lemire's fast range).
///
/// # Panics
/// If there is no shard.
#[must_use]
pub fn shard_of(volume: &str, key: &str, shard_count: u16) -> u16 {
    assert!(shard_count > 0, "a node has at least one shard");
    let shard = (u128::from(hash(SHARD_SEED, volume, key)) * u128::from(shard_count)) >> 64;
    u16::try_from(shard).expect("the product's high half is below the count")
}

/// xxh3-64 of volume, a NUL byte and key. A volume name has no NUL, so the pair is unambiguous.
fn hash(seed: u64, volume: &str, key: &str) -> u64 {
    let mut hasher = xxhash3_64::Hasher::with_seed(seed);
    hasher.write(volume.as_bytes());
    hasher.write(&[0]);
    hasher.write(key.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests;
