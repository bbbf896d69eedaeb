//! How a group's keys were dealt to its members, now and before, and who may therefore hold a key dirty. Pure.
//!
//! A *placement* is the members that were up from a revision on; each key belongs to the first of them in rank. When it changes, keys move and dirty
//! blocks do not: a member may hold what was its own under any placement since it *settled*, that is, since it reported to the admin that it
//! follows a placement and holds nothing dirty that is another's by that one. Made by the admin (`admin/placing`), asked by proxies and clients.
//! Invariant: a member that may hold a dirty block of a key is among [`Holders::of`] that key; in doubt it is.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::RoutedGroup;
use crate::placement::{self, KeyHash, MemberId};
use crate::resource::Revision;

/// The most that are told; a group that changes more often before its members settle has members in doubt.
pub const PLACEMENTS_MAX: usize = 16;
/// What a member has settled of which nothing is known: it may hold any key.
pub const IN_DOUBT: Revision = 0;

/// Whose the keys were from a revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct Placement {
    /// The change that made it.
    pub revision: Revision,
    /// The members that were up, by id.
    pub members: Vec<PlacedMember>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct PlacedMember {
    /// What placement knows it by: 32 hexadecimal digits.
    pub id: String,
    /// Its share of the keys.
    #[cfg_attr(feature = "admin", schema(value_type = u32))]
    pub weight: NonZeroU32,
}

/// Who may hold what of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// Oldest first; the last is the one of now.
    placements: Vec<(Revision, Vec<placement::Member>)>,
    settled: Vec<(MemberId, Revision)>,
}

/// Whether a member that settled in revision `settled` may hold keys that are not its own by the last of `placements`.
#[must_use]
pub fn is_unsettled(placements: &[Placement], id: &str, settled: Revision) -> bool {
    let was_in = |placement: &Placement| placement.members.iter().any(|member| member.id == id);
    settled == IN_DOUBT || placements.windows(2).any(|pair| was_in(&pair[0]) && settled < pair[1].revision)
}

/// Whether a report that `id` follows revision `followed` and holds nothing of others' tells more than that it settled in `settled`.
#[must_use]
pub fn is_progress(placements: &[Placement], settled: Revision, followed: Revision) -> bool {
    settled == IN_DOUBT || placements.iter().any(|placement| (settled + 1..=followed).contains(&placement.revision))
}

/// Forgets the oldest placements that no member of `settled` can hold anything of any more.
pub fn forget(placements: &mut Vec<Placement>, settled: &[(String, Revision)]) {
    while let [oldest, next, ..] = &placements[..] {
        let may_hold = |member: &PlacedMember| {
            settled.iter().any(|(id, settled)| *id == member.id && *settled != IN_DOUBT && *settled < next.revision)
        };
        if oldest.members.iter().any(may_hold) {
            return;
        }
        placements.remove(0);
    }
}

impl Holders {
    /// What `group` tells; `None`: its admin tells nothing of placements, so all members may hold all keys.
    #[must_use]
    pub fn told(group: &RoutedGroup) -> Option<Holders> {
        if group.placements.is_empty() {
            return None;
        }
        let placed =
            |member: &PlacedMember| Some(placement::Member { id: member.id.parse().ok()?, weight: member.weight });
        let placements =
            group.placements.iter().map(|one| (one.revision, one.members.iter().filter_map(placed).collect()));
        let settled = group.members.iter().filter_map(|member| Some((member.id.parse().ok()?, member.settled)));
        Some(Holders { placements: placements.collect(), settled: settled.collect() })
    }

    /// The revision that made the placement of now.
    #[must_use]
    pub fn placed(&self) -> Revision {
        self.placements.last().map_or(IN_DOUBT, |(revision, _)| *revision)
    }

    /// The members that may hold a dirty block of `key`, the one whose key it is first. Whoever was deleted is not among them.
    #[must_use]
    pub fn of(&self, key: KeyHash) -> Vec<MemberId> {
        let mut holders = Vec::new();
        let mut next_revision = None;
        for (revision, members) in self.placements.iter().rev() {
            let first = key.first(members).map(|at| members[at].id);
            let settled = first.and_then(|id| self.settled.iter().find(|(known, _)| *known == id));
            if let Some((id, settled)) = settled
                && next_revision.is_none_or(|next| *settled < next)
                && !holders.contains(id)
            {
                holders.push(*id);
            }
            next_revision = Some(*revision);
        }
        for (id, settled) in &self.settled {
            if *settled == IN_DOUBT && !holders.contains(id) {
                holders.push(*id);
            }
        }
        holders
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u128) -> String {
        MemberId(number).to_string()
    }

    fn placement(revision: Revision, numbers: &[u128]) -> Placement {
        let member = |number: &u128| PlacedMember { id: id(*number), weight: NonZeroU32::MIN };
        Placement { revision, members: numbers.iter().map(member).collect() }
    }

    fn holders(placements: &[Placement], settled: &[(u128, Revision)]) -> Holders {
        let group = RoutedGroup {
            name: "g".to_owned(),
            provider: String::new(),
            region: String::new(),
            members: settled
                .iter()
                .map(|(number, settled)| super::super::RoutedMember {
                    id: id(*number),
                    name: format!("m{number}"),
                    address: String::new(),
                    tls_name: String::new(),
                    weight: NonZeroU32::MIN,
                    state: crate::resource::MemberState::Up,
                    settled: *settled,
                })
                .collect(),
            placements: placements.to_vec(),
        };
        Holders::told(&group).unwrap()
    }

    fn key(number: usize) -> KeyHash {
        KeyHash::of("v", &format!("k{number}"))
    }

    #[test]
    fn only_a_member_that_had_the_key_before_is_asked_beside_the_one_that_has_it_now() {
        let placements = [placement(5, &[1, 2]), placement(9, &[1, 2, 3])];
        let moving = holders(&placements, &[(1, 5), (2, 5), (3, 7)]);
        let settled = holders(&placements, &[(1, 9), (2, 9), (3, 7)]);
        let mut moved = 0;
        for number in 0..300 {
            let now = settled.of(key(number));
            assert_eq!(now.len(), 1, "nothing moves any more");
            let both = moving.of(key(number));
            assert_eq!(both[0], now[0]);
            if both.len() == 2 {
                moved += 1;
                assert!(now[0] == MemberId(3) && both[1] != MemberId(3));
            }
        }
        assert!((60..150).contains(&moved), "a third of them moved: {moved}");
        assert!(is_unsettled(&placements, &id(1), 5) && !is_unsettled(&placements, &id(3), 7));
        assert!(!is_unsettled(&placements, &id(1), 9) && is_unsettled(&placements, &id(4), IN_DOUBT));
    }

    #[test]
    fn what_is_known_of_nobody_may_be_with_anybody_and_who_was_deleted_is_not_asked() {
        let placements = [placement(5, &[1, 2]), placement(9, &[2])];
        let doubt = holders(&placements, &[(2, 9), (7, IN_DOUBT)]);
        for number in 0..50 {
            assert_eq!(doubt.of(key(number)), [MemberId(2), MemberId(7)]);
        }
    }

    #[test]
    fn a_placement_is_forgotten_when_its_members_have_settled_under_a_later_one() {
        let all = vec![placement(5, &[1, 2]), placement(9, &[1, 2, 3]), placement(12, &[1, 3])];
        let left = |settled: &[(u128, Revision)]| {
            let settled: Vec<_> = settled.iter().map(|(number, settled)| (id(*number), *settled)).collect();
            let mut placements = all.clone();
            forget(&mut placements, &settled);
            placements.iter().map(|placement| placement.revision).collect::<Vec<_>>()
        };
        assert_eq!(left(&[(1, 5), (2, 12), (3, 12)]), [5, 9, 12]);
        assert_eq!(left(&[(1, 9), (2, 12), (3, 12)]), [9, 12]);
        assert_eq!(left(&[(1, 12), (2, 12), (3, 12)]), [12]);
        assert_eq!(left(&[(1, 12), (3, 12)]), [12], "2 was deleted");
        assert!(is_progress(&all, 5, 9) && is_progress(&all, 9, 14) && !is_progress(&all, 12, 14));
        assert!(is_progress(&all, IN_DOUBT, 1));
    }

    proptest! {
        /// Whoever could have taken a write of a key and has not settled since is asked, whatever the order of changes and reports.
        #[test]
        fn every_possible_holder_is_asked(
            sets in prop::collection::vec(prop::collection::btree_set(1u128..6, 1..5), 1..8),
            settled in prop::collection::vec(0usize..8, 5),
            number in 0usize..1_000,
        ) {
            let mut placements: Vec<Placement> =
                (0..).zip(&sets).map(|(at, set)| placement(10 * (at + 1), &set.iter().copied().collect::<Vec<_>>())).collect();
            // A member settles within the reign of some placement: 0 is before all of them.
            let settled: Vec<(u128, Revision)> =
                (1..).zip(&settled).map(|(member, at)| (member, 10 * (*at).min(sets.len()) as u64 + 1)).collect();
            let mut possible = std::collections::BTreeSet::new();
            for (at, placement) in placements.iter().enumerate() {
                let members: Vec<_> = placement.members.iter().map(|member| placement::Member { id: member.id.parse().unwrap(), weight: member.weight }).collect();
                let first = members[key(number).first(&members).unwrap()].id;
                let is_settled_later = placements.get(at + 1).is_some_and(|next| settled.iter().any(|(member, settled)| MemberId(*member) == first && *settled >= next.revision));
                if !is_settled_later {
                    possible.insert(first);
                }
            }
            let names: Vec<_> = settled.iter().map(|(member, settled)| (id(*member), *settled)).collect();
            for _ in 0..2 {
                let asked: std::collections::BTreeSet<_> = holders(&placements, &settled).of(key(number)).into_iter().collect();
                prop_assert_eq!(&asked, &possible);
                forget(&mut placements, &names);
            }
        }
    }
}
