//! Which keys move when a member joins or leaves. Called by `simulate`.
//!
//! Counted, not computed: each key is placed before and after, and a move that rendezvous hashing forbids is counted
//! apart, so that the table would show it.

use forebay::placement::{KeyHash, Member, MemberId};

use super::group;

const KEYS: u32 = 100_000;

/// What a group of `members` sees when one more joins, and when one of them leaves.
pub struct Churn {
    pub members: u16,
    /// Share of the keys that moved when one joined.
    pub joined: f64,
    /// Keys that moved, but not to it.
    pub joined_astray: u32,
    /// Share of the keys that moved when one left.
    pub left: f64,
    /// Keys that moved though they were not its own.
    pub left_astray: u32,
}

/// Places [`KEYS`] keys in a group of `count`, with one member more, and with one less.
pub fn run(count: u16) -> Churn {
    let larger = group::members(count.saturating_add(1));
    let (group, joins) = (&larger[..usize::from(count)], larger[usize::from(count)].id);
    let leaves = group[0].id;
    let smaller = &group[1..];
    let mut churn = Churn { members: count, joined: 0.0, joined_astray: 0, left: 0.0, left_astray: 0 };
    let (mut joined, mut left) = (0u32, 0u32);
    for key in 0..KEYS {
        let hash = KeyHash::of("sim", &format!("blocks/{key}"));
        let (before, with, without) = (holder(hash, group), holder(hash, &larger), holder(hash, smaller));
        joined += u32::from(with != before);
        churn.joined_astray += u32::from(with != before && with != Some(joins));
        left += u32::from(without != before);
        churn.left_astray += u32::from(without != before && before != Some(leaves));
    }
    churn.joined = f64::from(joined) / f64::from(KEYS);
    churn.left = f64::from(left) / f64::from(KEYS);
    churn
}

fn holder(hash: KeyHash, members: &[Member]) -> Option<MemberId> {
    hash.first(members).map(|at| members[at].id)
}
