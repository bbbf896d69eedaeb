//! Which group a client uses: the nearest by round-trip time, with hysteresis. Pure; fed by `probe`.
//!
//! A member's round-trip time is the least of its samples, a group's the median of those of its members that answered; a group of which fewer than half
//! answered is unreachable. A reachable group is left for another only if that was better by more than 20 % and 1 ms three times running; an
//! unreachable one at once.
//!
//! Invariants: an unreachable group is never selected while another is reachable; two groups that are about equally far never alternate.

use std::time::Duration;

/// Better by more than this share, in percent.
const BETTER_PERCENT: u32 = 20;
/// And by more than this.
const BETTER_BY: Duration = Duration::from_millis(1);
/// So many times running.
const TIMES: u32 = 3;

/// The round-trip time of a group from those of its members; `None` for a member that did not answer. `None`: unreachable.
#[must_use]
pub fn group_rtt(members: &[Option<Duration>]) -> Option<Duration> {
    let mut answered: Vec<Duration> = members.iter().copied().flatten().collect();
    if answered.is_empty() || answered.len() * 2 < members.len() {
        return None;
    }
    answered.sort_unstable();
    let middle = answered.len() / 2;
    Some(if answered.len().is_multiple_of(2) {
        (answered[middle - 1] + answered[middle]) / 2
    } else {
        answered[middle]
    })
}

/// What a probe found of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// `None`: unreachable.
    pub rtt: Option<Duration>,
}

/// The choice so far.
#[derive(Debug, Default)]
pub struct Selector {
    forced: Option<String>,
    current: Option<String>,
    challenger: Option<(String, u32)>,
}

impl Selector {
    /// Nothing was probed yet. `forced`: this group and no other.
    #[must_use]
    pub fn new(forced: Option<String>) -> Selector {
        Selector { forced, current: None, challenger: None }
    }

    /// The selected group; `None`: none is reachable.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// Whether another group is on its way to be selected: then it is worth probing again soon.
    #[must_use]
    pub fn is_challenged(&self) -> bool {
        self.challenger.is_some()
    }

    /// Takes what a probe of all groups found. Whether the selection changed.
    pub fn probed(&mut self, groups: &[Seen]) -> bool {
        let best = groups
            .iter()
            .filter(|group| self.forced.as_ref().is_none_or(|forced| *forced == group.name))
            .filter_map(|group| Some((group.rtt?, group.name.as_str())))
            .min();
        let current_rtt =
            groups.iter().find(|group| Some(&group.name) == self.current.as_ref()).and_then(|group| group.rtt);
        let next = match (best, current_rtt) {
            (None, _) => None,
            (Some((_, best)), None) => Some(best.to_owned()),
            (Some((rtt, best)), Some(current_rtt)) => Some(self.challenge(best, rtt, current_rtt)),
        };
        if next.is_none() || current_rtt.is_none() || next != self.current {
            self.challenger = None;
        }
        let is_changed = next != self.current;
        self.current = next;
        is_changed
    }

    /// Who is to be used while the current group answers: it, or `best` if that has been better often enough.
    fn challenge(&mut self, best: &str, rtt: Duration, current_rtt: Duration) -> String {
        let current = self.current.clone().unwrap_or_default();
        let is_better = rtt + BETTER_BY < current_rtt && rtt < current_rtt * (100 - BETTER_PERCENT) / 100;
        if best == current || !is_better {
            self.challenger = None;
            return current;
        }
        let times = match &self.challenger {
            Some((name, times)) if name == best => times + 1,
            _ => 1,
        };
        if times >= TIMES {
            return best.to_owned();
        }
        self.challenger = Some((best.to_owned(), times));
        current
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(figure: u64) -> Duration {
        Duration::from_millis(figure)
    }

    fn probe(selector: &mut Selector, rtts: [Option<u64>; 2]) -> Option<String> {
        let names = ["near", "far"];
        let groups: Vec<_> =
            names.iter().zip(rtts).map(|(name, rtt)| Seen { name: (*name).to_owned(), rtt: rtt.map(ms) }).collect();
        selector.probed(&groups);
        selector.current().map(str::to_owned)
    }

    #[test]
    fn a_group_is_as_far_as_its_middle_member_and_there_if_half_of_them_are() {
        assert_eq!(group_rtt(&[]), None);
        assert_eq!(group_rtt(&[None, None]), None);
        assert_eq!(group_rtt(&[Some(ms(3)), None]), Some(ms(3)));
        assert_eq!(group_rtt(&[Some(ms(3)), None, None]), None);
        assert_eq!(group_rtt(&[Some(ms(9)), Some(ms(1)), Some(ms(3))]), Some(ms(3)));
        assert_eq!(group_rtt(&[Some(ms(9)), Some(ms(1)), Some(ms(3)), Some(ms(5)), None]), Some(ms(4)));
    }

    #[test]
    fn a_better_group_must_be_so_three_times_running() {
        let mut selector = Selector::default();
        assert_eq!(probe(&mut selector, [None, Some(10)]).as_deref(), Some("far"), "the only one");
        for _ in 0..2 {
            assert_eq!(probe(&mut selector, [Some(2), Some(10)]).as_deref(), Some("far"));
            assert!(selector.is_challenged());
        }
        assert_eq!(probe(&mut selector, [Some(9), Some(10)]).as_deref(), Some("far"), "not by enough: counted anew");
        assert!(!selector.is_challenged());
        let seen: Vec<_> = (0..3).map(|_| probe(&mut selector, [Some(2), Some(10)])).collect();
        assert_eq!(
            seen.iter().map(|name| name.as_deref()).collect::<Vec<_>>(),
            [Some("far"), Some("far"), Some("near")]
        );
        assert!(!selector.is_challenged());
    }

    #[test]
    fn a_group_that_is_gone_is_left_at_once() {
        let mut selector = Selector::default();
        assert_eq!(probe(&mut selector, [Some(1), Some(10)]).as_deref(), Some("near"));
        assert_eq!(probe(&mut selector, [None, Some(10)]).as_deref(), Some("far"));
        assert_eq!(probe(&mut selector, [None, None]), None);
        assert_eq!(probe(&mut selector, [None, Some(10)]).as_deref(), Some("far"));
    }

    #[test]
    fn a_forced_group_is_the_only_one() {
        let mut selector = Selector::new(Some("far".to_owned()));
        for _ in 0..5 {
            assert_eq!(probe(&mut selector, [Some(1), Some(10)]).as_deref(), Some("far"));
        }
        assert_eq!(probe(&mut selector, [Some(1), None]), None);
    }

    #[test]
    fn a_millisecond_is_not_worth_a_change() {
        let mut selector = Selector::default();
        let groups = |near: u64| {
            [("near", near), ("far", 1_000)]
                .map(|(name, us)| Seen { name: name.to_owned(), rtt: Some(Duration::from_micros(us)) })
        };
        selector.probed(&[groups(100)[1].clone()]);
        for _ in 0..5 {
            selector.probed(&groups(100));
        }
        assert_eq!(selector.current(), Some("far"), "0.9 ms better, though a tenth");
    }

    proptest! {
        /// Whatever is seen: selected is who answers, if anybody does; and who answers is left only for one that was clearly better three times.
        #[test]
        fn the_selected_group_answers(probes in prop::collection::vec((prop::option::of(0u64..40), prop::option::of(0u64..40)), 1..100)) {
            let mut selector = Selector::default();
            let mut last: Option<String> = None;
            let mut better_for = 0;
            for (near, far) in probes {
                let selected = probe(&mut selector, [near, far]);
                prop_assert_eq!(selected.is_some(), near.is_some() || far.is_some());
                let of = |name: &str| if name == "near" { near } else { far };
                if let Some(name) = &selected {
                    prop_assert!(of(name).is_some());
                }
                let is_better = match &last {
                    Some(last) => match (of(last), of(if last == "near" { "far" } else { "near" })) {
                        (Some(current), Some(other)) => other + 1 < current && other * 10 < current * 8,
                        _ => false,
                    },
                    None => false,
                };
                better_for = if is_better { better_for + 1 } else { 0 };
                if let (Some(last), Some(now)) = (&last, &selected)
                    && last != now && of(last).is_some()
                {
                    prop_assert_eq!(better_for, 3);
                }
                if last != selected {
                    better_for = 0;
                }
                last = selected;
            }
        }
    }
}
