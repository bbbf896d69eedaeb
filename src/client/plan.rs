//! Whom to ask for a block, in which order, and what it means that they answered as they did. Pure.
//!
//! Called by `read` and `write`. The rules are those of DESIGN, "Dirty blocks in a group": a write to a write-back volume goes to the first-ranked member that
//! is up in its home group, and nowhere else; a read may be answered by anybody who has the block, for in an immutable volume all who have it have the
//! same bytes; but that there is none is believed only if every member that may hold it dirty was asked.
//!
//! Invariant: [`Verdict::Absent`] of a write-back volume needs an answer of every member that may hold the key dirty (`routing/placements`).

use crate::placement::{self, KeyHash};
use crate::resource::{MemberState, WriteMode};
use crate::routing::Holders;

/// What planning needs to know of a group.
#[derive(Debug, Clone)]
pub struct GroupFacts {
    /// Its name.
    pub name: String,
    /// Its members; positions in here are what a plan consists of.
    pub members: Vec<MemberFacts>,
    /// Who may hold which key dirty; `None`: the admin does not tell.
    pub holders: Option<Holders>,
}

/// What planning needs to know of a member.
#[derive(Debug, Clone, Copy)]
pub struct MemberFacts {
    /// For ranking.
    pub ranked: placement::Member,
    /// As the routing says.
    pub state: MemberState,
}

/// A member: its group's position, its own position in it.
pub type Place = (usize, usize);

/// The volume, as far as planning goes.
#[derive(Debug, Clone)]
pub struct VolumeFacts {
    /// When a put is acknowledged.
    pub write: WriteMode,
    /// The position of the group that holds what is dirty.
    pub home: Option<usize>,
}

/// At most so many members of the selected group are asked for one read, and one of each other group.
const READERS_MAX: usize = 3;

/// The members of `group` in the order in which they hold `key`: those that are up, then those that leave, who may still have it. No others: who joins has
/// nothing yet, and who is absent does not answer.
#[must_use]
pub fn ranked(group: &GroupFacts, key: KeyHash, count: usize) -> Vec<usize> {
    let mut order = Vec::new();
    for state in [MemberState::Up, MemberState::Draining] {
        let positions: Vec<usize> = (0..group.members.len()).filter(|at| group.members[*at].state == state).collect();
        let members: Vec<_> = positions.iter().map(|at| group.members[*at].ranked).collect();
        order.extend(key.ranked(&members, count).into_iter().map(|at| positions[at]));
    }
    order.truncate(count);
    order
}

/// Among how many members the reads of a key are spread really, with a lease that says `leased`: what is told to members counts as the key's heat.
#[must_use]
pub fn spread(groups: &[GroupFacts], selected: Option<usize>, leased: u16) -> u16 {
    let is_asked = |member: &&MemberFacts| matches!(member.state, MemberState::Up | MemberState::Draining);
    let count = selected.map_or(1, |at| groups[at].members.iter().filter(is_asked).count());
    u16::try_from(count).unwrap_or(u16::MAX).min(leased).max(1)
}

/// Whom to ask for a block, in order. `selected` is the group to prefer; of a hot key any of the first `spread` in rank may be first: which, `draw` says.
#[must_use]
pub fn readers(groups: &[GroupFacts], selected: Option<usize>, key: KeyHash, spread: u16, draw: usize) -> Vec<Place> {
    let mut places = Vec::new();
    if let Some(at) = selected {
        let spread = usize::from(spread.max(1));
        let mut order = ranked(&groups[at], key, READERS_MAX.max(spread));
        let first = draw % spread.min(order.len().max(1));
        if first > 0 {
            let chosen = order.remove(first);
            order.insert(0, chosen);
        }
        order.truncate(READERS_MAX);
        places.extend(order.into_iter().map(|member| (at, member)));
    }
    for (at, group) in groups.iter().enumerate().filter(|(at, _)| Some(*at) != selected) {
        places.extend(ranked(group, key, 1).into_iter().map(|member| (at, member)));
    }
    places
}

/// Whom a write may go to, in order.
#[must_use]
pub fn writers(volume: &VolumeFacts, groups: &[GroupFacts], selected: Option<usize>, key: KeyHash) -> Vec<Place> {
    let first_up = |at: usize| {
        let first =
            ranked(&groups[at], key, 1).into_iter().find(|member| groups[at].members[*member].state == MemberState::Up);
        first.map(|member| (at, member))
    };
    match volume.write {
        // Never spilled: whoever reads looks there first.
        WriteMode::Back => volume.home.and_then(first_up).into_iter().collect(),
        // The store decides: any member's answer is as good.
        WriteMode::Through => {
            let others = (0..groups.len()).filter(|at| Some(*at) != selected);
            let mut places: Vec<Place> = match selected {
                Some(at) => {
                    let is_up = |member: &usize| groups[at].members[*member].state == MemberState::Up;
                    ranked(&groups[at], key, READERS_MAX).into_iter().filter(is_up).map(|member| (at, member)).collect()
                }
                None => Vec::new(),
            };
            places.extend(others.filter_map(first_up));
            places
        }
    }
}

/// What the members that were asked for a block said, as far as it matters for "there is none".
#[derive(Debug, Clone, Default)]
pub struct Asked {
    absent: Vec<Place>,
}

/// What may be told about a block that nobody gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is none.
    Absent,
    /// These may hold it dirty and must be asked first.
    Ask(Vec<Place>),
    /// Nobody said that there is none.
    Unknown,
}

impl Asked {
    /// The member at `place` says that there is no such block, neither with it nor in the store.
    pub fn absent(&mut self, place: Place) {
        if !self.absent.contains(&place) {
            self.absent.push(place);
        }
    }

    /// Whether anybody said so.
    #[must_use]
    pub fn is_any_absent(&self) -> bool {
        !self.absent.is_empty()
    }

    /// What follows.
    #[must_use]
    pub fn verdict(&self, volume: &VolumeFacts, groups: &[GroupFacts], key: KeyHash) -> Verdict {
        if self.absent.is_empty() {
            return Verdict::Unknown;
        }
        let left =
            holders(volume, groups, key).into_iter().filter(|place| !self.absent.contains(place)).collect::<Vec<_>>();
        if left.is_empty() { Verdict::Absent } else { Verdict::Ask(left) }
    }
}

/// Who may hold a block that the store does not have: in the home group the member whose key it is, and those that had it before and have not reported since
/// that they hold nothing of others'. Where the admin does not tell of that, all but those that join.
#[must_use]
pub fn holders(volume: &VolumeFacts, groups: &[GroupFacts], key: KeyHash) -> Vec<Place> {
    let of = |at: usize| {
        let told = groups[at].holders.as_ref().map(|holders| holders.of(key));
        let may_hold = move |member: &MemberFacts| match &told {
            Some(ids) => ids.contains(&member.ranked.id),
            None => member.state != MemberState::Joining,
        };
        let members = groups[at].members.iter().enumerate();
        members.filter(move |(_, member)| may_hold(member)).map(move |(member, _)| (at, member))
    };
    match (volume.write, volume.home) {
        (WriteMode::Through, _) => Vec::new(),
        (WriteMode::Back, Some(home)) => of(home).collect(),
        // Without a home no write is accepted through a client; but proxies take them.
        (WriteMode::Back, None) => (0..groups.len()).flat_map(of).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::placement::MemberId;
    use proptest::prelude::*;

    fn group(name: &str, first_id: u128, states: &[MemberState]) -> GroupFacts {
        let member = |(at, state): (u128, &MemberState)| MemberFacts {
            ranked: placement::Member { id: MemberId(first_id + at), weight: NonZeroU32::MIN },
            state: *state,
        };
        GroupFacts { name: name.to_owned(), members: (0..).zip(states).map(member).collect(), holders: None }
    }

    const UP: MemberState = MemberState::Up;

    fn key(number: usize) -> KeyHash {
        KeyHash::of("v", &format!("k{number}"))
    }

    #[test]
    fn who_is_not_up_holds_nothing_new() {
        let states = [MemberState::Joining, UP, MemberState::Draining, MemberState::Absent, UP];
        let group = group("g", 1, &states);
        for number in 0..100 {
            let order = ranked(&group, key(number), 9);
            assert_eq!(order.len(), 3);
            assert!(order[..2].iter().all(|at| states[*at] == UP) && order[2] == 2, "{order:?}");
            let back = VolumeFacts { write: WriteMode::Back, home: Some(0) };
            assert_eq!(writers(&back, std::slice::from_ref(&group), Some(0), key(number)), [(0, order[0])]);
        }
    }

    #[test]
    fn a_write_back_write_goes_to_one_member_of_the_home_group() {
        let groups = [group("home", 1, &[UP; 4]), group("near", 100, &[UP; 4])];
        let back = VolumeFacts { write: WriteMode::Back, home: Some(0) };
        let through = VolumeFacts { write: WriteMode::Through, home: None };
        for number in 0..50 {
            let first = ranked(&groups[0], key(number), 1)[0];
            for selected in [Some(0), Some(1), None] {
                assert_eq!(writers(&back, &groups, selected, key(number)), [(0, first)]);
            }
            let spilled = writers(&through, &groups, Some(1), key(number));
            assert_eq!(spilled.len(), READERS_MAX + 1);
            assert!(spilled[..READERS_MAX].iter().all(|place| place.0 == 1) && spilled[READERS_MAX].0 == 0);
        }
        let nobody_up = [group("home", 1, &[MemberState::Draining, MemberState::Absent])];
        assert!(writers(&back, &nobody_up, Some(0), key(0)).is_empty());
        assert!(writers(&VolumeFacts { home: None, ..back }, &groups, Some(0), key(0)).is_empty());
    }

    #[test]
    fn a_hot_key_is_read_from_the_first_in_rank_and_no_others() {
        let groups = [group("g", 1, &[UP; 8])];
        let order = ranked(&groups[0], key(1), 8);
        let firsts: std::collections::BTreeSet<usize> =
            (0..40).map(|draw| readers(&groups, Some(0), key(1), 4, draw)[0].1).collect();
        assert_eq!(firsts, order[..4].iter().copied().collect());
        assert!((0..40).all(|draw| readers(&groups, Some(0), key(1), 1, draw)[0].1 == order[0]));
        assert_eq!(
            [(Some(0), 1), (Some(0), 5), (Some(0), 900), (None, 900)].map(|(at, k)| spread(&groups, at, k)),
            [1, 5, 8, 1]
        );
        assert_eq!(readers(&groups, None, key(1), 1, 0), [(0, order[0])], "others, where none is selected");
        assert!(readers(&[group("g", 1, &[])], Some(0), key(1), 4, 3).is_empty());
    }

    #[test]
    fn write_through_believes_the_first_that_says_so() {
        let groups = [group("g", 1, &[UP; 2])];
        let through = VolumeFacts { write: WriteMode::Through, home: None };
        let mut asked = Asked::default();
        assert_eq!(asked.verdict(&through, &groups, key(0)), Verdict::Unknown);
        asked.absent((0, 1));
        assert_eq!(asked.verdict(&through, &groups, key(0)), Verdict::Absent);
    }

    fn any_state() -> impl Strategy<Value = MemberState> {
        prop::sample::select(vec![MemberState::Joining, UP, MemberState::Draining, MemberState::Absent])
    }

    proptest! {
        /// DESIGN, (d): whoever could hold a dirty block was asked before "absent" is said, whatever the states and whoever else answered.
        #[test]
        fn absent_needs_every_possible_holder(
            home in prop::collection::vec(any_state(), 1..6),
            other in prop::collection::vec(any_state(), 0..4),
            answers in prop::collection::vec((0usize..2, 0usize..6), 0..14),
            has_home in any::<bool>(),
        ) {
            let groups = [group("home", 1, &home), group("other", 50, &other)];
            let back = VolumeFacts { write: WriteMode::Back, home: has_home.then_some(0) };
            let mut asked = Asked::default();
            for (at, member) in answers {
                if member < groups[at].members.len() {
                    asked.absent((at, member));
                }
            }
            let unasked: Vec<Place> = holders(&back, &groups, key(0)).into_iter().filter(|place| !asked.absent.contains(place)).collect();
            match asked.verdict(&back, &groups, key(0)) {
                Verdict::Absent => prop_assert!(unasked.is_empty()),
                Verdict::Ask(places) => prop_assert_eq!(places, unasked),
                Verdict::Unknown => prop_assert!(!asked.is_any_absent()),
            }
            for place in writers(&back, &groups, Some(1.min(groups.len() - 1)), key(7)) {
                prop_assert!(holders(&back, &groups, key(0)).contains(&place), "a write goes to a possible holder only");
            }
        }
    }
}
