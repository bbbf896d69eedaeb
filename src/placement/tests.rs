//! The placement of keys against the vectors of PLACEMENT.md, which is the specification for other languages, and against what
//! rendezvous hashing promises: a membership change moves only the keys that the member gains or loses. Its properties
//! over random groups are at the end.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

const KEYS: usize = 100_000;

fn members(weights: &[u32]) -> Vec<Member> {
    let id = |n: u128| MemberId(0x00c0_ffee_0000_0000_0000_0000_0000_0000 + n);
    let member = |(n, weight): (usize, &u32)| Member { id: id(n as u128), weight: NonZeroU32::new(*weight).unwrap() };
    weights.iter().enumerate().map(member).collect()
}

/// The id of the member that holds each of [`KEYS`] keys.
fn holders(members: &[Member]) -> Vec<MemberId> {
    let holder = |n| members[KeyHash::of("demo", &format!("blocks/{n}")).first(members).unwrap()].id;
    (0..KEYS).map(holder).collect()
}

/// Rows of the document's table whose heading begins with `| heading `.
fn table(heading: &str) -> Vec<Vec<String>> {
    let document = include_str!("../../PLACEMENT.md");
    let is_heading = |line: &&str| line.starts_with(&format!("| {heading} "));
    let mut lines = document.lines().skip_while(|line| !is_heading(line)).skip(2);
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect();
    let rows: Vec<Vec<String>> = lines.by_ref().take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "PLACEMENT.md has a table that begins with {heading}");
    rows
}

/// A key as the document writes it: `text`, or `text * count` for a long one.
fn key(cell: &str) -> String {
    match cell.split_once(" * ") {
        Some((text, count)) => text.repeat(count.parse().unwrap()),
        None => cell.to_owned(),
    }
}

#[test]
fn shards_follow_the_document() {
    for row in table("volume") {
        let [volume, name, shard_hash, of_4, of_7, _] = &row[..] else { panic!("{row:?}") };
        let name = key(name);
        assert_eq!(format!("{:016x}", hash(SHARD_SEED, volume, &name)), *shard_hash, "{volume} {name}");
        assert_eq!(shard_of(volume, &name, 4), of_4.parse::<u16>().unwrap(), "{volume} {name}");
        assert_eq!(shard_of(volume, &name, 7), of_7.parse::<u16>().unwrap(), "{volume} {name}");
    }
}

#[test]
fn ranks_follow_the_document() {
    let members: Vec<Member> = table("member")
        .iter()
        .map(|row| Member { id: row[1].parse().unwrap(), weight: row[2].parse().unwrap() })
        .collect();
    let names: Vec<String> = table("member").iter().map(|row| row[0].clone()).collect();
    let hashes = table("volume");
    for (row, hashes) in table("volume, key").iter().zip(hashes) {
        let (volume, name) = row[0].split_once(", ").unwrap();
        let hash = KeyHash::of(volume, &key(name));
        assert_eq!(format!("{:016x}", hash.0), hashes[5], "{}", row[0]);
        let ranked: Vec<&str> = hash.ranked(&members, members.len()).iter().map(|at| names[*at].as_str()).collect();
        assert_eq!(ranked.join(" "), row[1], "{}", row[0]);
        let score = hash.score(&members[hash.first(&members).unwrap()]);
        assert_eq!(format!("{score:.9}"), row[2], "{}", row[0]);
    }
}

#[test]
fn a_member_that_joins_takes_its_share_and_moves_no_other_key() {
    let seven = members(&[1; 7]);
    let (before, after) = (holders(&seven[..6]), holders(&seven));
    let mut moved = 0;
    for (before, after) in before.iter().zip(&after) {
        if before != after {
            assert_eq!(*after, seven[6].id, "a key moves to the new member only");
            moved += 1;
        }
    }
    let share = f64::from(moved) / KEYS as f64;
    assert!((share - 1.0 / 7.0).abs() < 0.02 / 7.0, "{share}");
}

#[test]
fn a_member_that_leaves_moves_exactly_its_own_keys_to_the_next_in_rank() {
    let seven = members(&[1; 7]);
    let without: Vec<Member> = [&seven[..2], &seven[3..]].concat();
    for n in 0..10_000 {
        let hash = KeyHash::of("demo", &format!("blocks/{n}"));
        let ranked = hash.ranked(&seven, 2);
        let expected = if ranked[0] == 2 { ranked[1] } else { ranked[0] };
        assert_eq!(without[hash.first(&without).unwrap()].id, seven[expected].id);
    }
}

#[test]
fn members_share_keys_by_weight() {
    let members = members(&[1, 2, 1, 2]);
    let holders = holders(&members);
    let share = |id| holders.iter().filter(|holder| **holder == id).count() as f64 / KEYS as f64;
    for member in &members {
        let expected = f64::from(member.weight.get()) / 6.0;
        let share = share(member.id);
        assert!((share / expected - 1.0).abs() < 0.03, "{share} of {expected}");
    }
}

#[test]
fn shards_share_keys_evenly() {
    let mut counts = [0u32; 4];
    (0..40_000).for_each(|n| counts[usize::from(shard_of("v", &format!("k{n}"), 4))] += 1);
    assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
}

#[test]
fn only_32_hexadecimal_digits_name_a_member() {
    let id: MemberId = "0123456789abcdef0123456789ABCDEF".parse().unwrap();
    assert_eq!(id.to_string(), "0123456789abcdef0123456789abcdef");
    for text in ["", "0123", "+123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdeg"] {
        assert!(text.parse::<MemberId>().is_err(), "{text}");
    }
}

#[cfg(feature = "server")]
#[test]
fn members_are_ranked_by_the_function_that_ranks_the_disks_of_a_shard() {
    for (n, member) in (0..100).flat_map(|n| members(&[1, 3, 1_000]).into_iter().map(move |member| (n, member))) {
        let hash = KeyHash::of("demo", &format!("blocks/{n}"));
        let theirs = forebay_shard::rendezvous::score(MEMBER_SEED, member.id.0, member.weight, hash.0);
        assert_eq!(hash.score(&member).to_bits(), theirs.to_bits());
    }
}

proptest! {
    #[test]
    fn ranking_some_is_the_beginning_of_ranking_all(
        weights in prop::collection::vec(1u32..1_000, 0..40), name in "[a-z/]{1,40}", count in 0usize..45
    ) {
        let members = members(&weights);
        let hash = KeyHash::of("demo", &name);
        let all = hash.ranked(&members, members.len());
        let mut sorted = all.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..members.len()).collect::<Vec<_>>());
        prop_assert!(all.windows(2).all(|pair| hash.score(&members[pair[0]]) >= hash.score(&members[pair[1]])));
        prop_assert_eq!(hash.first(&members), all.first().copied());
        prop_assert_eq!(&hash.ranked(&members, count)[..], &all[..count.min(members.len())]);
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(weights in prop::collection::vec(1u32..9, 1..20), name in "[a-z/]{1,40}") {
        let members = members(&weights);
        let reversed: Vec<Member> = members.iter().rev().copied().collect();
        let hash = KeyHash::of("demo", &name);
        prop_assert_eq!(members[hash.first(&members).unwrap()].id, reversed[hash.first(&reversed).unwrap()].id);
    }
}
