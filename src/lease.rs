//! Hot-block leases: how the reads of one block come to be spread over many members without anybody counting them all.
//!
//! A member that sees too much of one key answers with a [`Lease`]: for a while, read it from any of the first `members` in
//! rank. The client says with each read how many it chose among, so a read that was spread over *k* stands for *k* reads in
//! the group, and every holder of the lease knows the whole heat of the key from its own share: leases grow with the heat,
//! are extended by whoever is asked, and need no memory of what was granted. For reads of clean blocks only.
//!
//! Pure: time is given. Invariants: both tables are bounded; a lease never spans fewer than two members.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::mem;
use std::time::Duration;

use crate::placement::{KeyHash, KeyHasher};

/// Leave to read one block from any of the first members in rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// How many of them, at least two.
    pub members: u16,
    /// For how long from its receipt.
    pub lasts: Duration,
}

/// The header by which a member gives a lease, such as `members=4, lasts=5000`: milliseconds.
pub const LEASE_HEADER: &str = "forebay-lease";
/// The header by which a client says among how many members it chose.
pub const SPREAD_HEADER: &str = "forebay-spread";

impl Lease {
    /// From the value of [`LEASE_HEADER`]; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Lease> {
        let (members, lasts) = text.split_once(',')?;
        let members = members.trim().strip_prefix("members=")?.parse().ok().filter(|members| *members >= 2)?;
        let lasts = lasts.trim().strip_prefix("lasts=")?.parse().ok().map(Duration::from_millis)?;
        Some(Lease { members, lasts })
    }
}

impl std::fmt::Display for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "members={}, lasts={}", self.members, self.lasts.as_millis())
    }
}

/// When a member gives leases.
#[derive(Debug, Clone, Copy)]
pub struct HeatConfig {
    /// Reads are counted in windows of this length.
    pub window: Duration,
    /// One key is to be at most one read in so many of a member's.
    pub share: u32,
    /// Fewer reads of one key in a window are never worth a lease.
    pub reads_min: u64,
    /// How long a lease lasts: several windows, so that it is renewed before it ends.
    pub lasts: Duration,
}

impl Default for HeatConfig {
    fn default() -> HeatConfig {
        HeatConfig { window: Duration::from_secs(1), share: 50, reads_min: 64, lasts: Duration::from_secs(5) }
    }
}

/// The weight of each key's reads in a window, short by at most one in [`COUNTERS`] of all weight (Misra and Gries).
#[derive(Default)]
struct Window {
    reads: u64,
    counters: HashMap<KeyHash, u64, BuildHasherDefault<KeyHasher>>,
}

/// Counters per window. An error of one in so much weight is small beside any sensible [`HeatConfig::share`].
const COUNTERS: usize = 1_024;

impl Window {
    /// A read that stands for `weight` in the group.
    fn count(&mut self, key: KeyHash, weight: u64) {
        self.reads += 1;
        if let Some(counter) = self.counters.get_mut(&key) {
            *counter += weight;
        } else if self.counters.len() < COUNTERS {
            self.counters.insert(key, weight);
        } else {
            // Takes from each what this read would have been given: paid for by the reads that brought them there.
            self.counters.retain(|_, counter| {
                *counter = counter.saturating_sub(weight);
                *counter > 0
            });
        }
    }
}

/// What one member's core knows of the heat of its blocks: the window that is being counted and the last whole one.
pub struct Heat {
    config: HeatConfig,
    ends: Duration,
    current: Window,
    last: Window,
}

impl Heat {
    /// Nothing has been read yet.
    #[must_use]
    pub fn new(config: HeatConfig) -> Heat {
        Heat { config, ends: config.window, current: Window::default(), last: Window::default() }
    }

    /// Counts a read at `now` (any clock that does not go back) by a client that chose among `spread` members, and says whether
    /// it is to choose among more, or go on choosing among as many.
    pub fn read(&mut self, key: KeyHash, spread: u16, now: Duration) -> Option<Lease> {
        if now >= self.ends {
            let is_next = now < self.ends + self.config.window;
            self.last = if is_next { mem::take(&mut self.current) } else { Window::default() };
            self.current = Window::default();
            self.ends = now + self.config.window;
        }
        self.current.count(key, u64::from(spread.max(1)));
        let heat = *self.last.counters.get(&key)?;
        let share = (self.last.reads / u64::from(self.config.share)).max(self.config.reads_min);
        let members = u16::try_from(heat.div_ceil(share)).unwrap_or(u16::MAX);
        (members > 1).then_some(Lease { members, lasts: self.config.lasts })
    }
}

/// The leases that a client holds.
pub struct Leases {
    capacity: usize,
    held: HashMap<KeyHash, Held, BuildHasherDefault<KeyHasher>>,
}

#[derive(Clone, Copy)]
struct Held {
    members: u16,
    until: Duration,
}

impl Leases {
    /// Room for `capacity` leases.
    #[must_use]
    pub fn new(capacity: usize) -> Leases {
        Leases { capacity, held: HashMap::default() }
    }

    /// Among how many of the first members in rank `key` may be read at `now`; 1 without a lease.
    #[must_use]
    pub fn spread(&self, key: KeyHash, now: Duration) -> u16 {
        self.held.get(&key).filter(|held| now < held.until).map_or(1, |held| held.members)
    }

    /// Takes a lease that came with an answer at `now`. The last one counts: heat falls as it rises. With no room left, those
    /// that have ended go; if all are alive, this one is not taken, and comes again with the next answer.
    pub fn take(&mut self, key: KeyHash, lease: Lease, now: Duration) {
        if !self.held.contains_key(&key) && self.held.len() >= self.capacity {
            self.held.retain(|_, held| now < held.until);
            if self.held.len() >= self.capacity {
                return;
            }
        }
        self.held.insert(key, Held { members: lease.members.max(2), until: now + lease.lasts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: HeatConfig =
        HeatConfig { window: Duration::from_secs(1), share: 50, reads_min: 10, lasts: Duration::from_secs(5) };

    fn key(n: usize) -> KeyHash {
        KeyHash::of("v", &format!("k{n}"))
    }

    #[test]
    fn a_key_that_is_too_much_of_a_members_reads_is_spread_by_its_heat() {
        let mut heat = Heat::new(CONFIG);
        for n in 0..1_000 {
            assert_eq!(heat.read(key(if n % 2 == 0 { 0 } else { n }), 1, Duration::ZERO), None, "no whole window yet");
        }
        let now = Duration::from_secs(1);
        // 500 of 1,000 reads, 20 for each member.
        assert_eq!(heat.read(key(0), 1, now), Some(Lease { members: 25, lasts: CONFIG.lasts }));
        assert_eq!(heat.read(key(1), 1, now), None);
    }

    #[test]
    fn a_read_that_was_spread_stands_for_the_others() {
        let mut heat = Heat::new(CONFIG);
        for n in 0..1_000 {
            heat.read(key(if n % 50 == 0 { 0 } else { n }), 25, Duration::ZERO);
        }
        // 20 of 1,000 reads, each one of 25: the lease stays as it is.
        assert_eq!(heat.read(key(0), 25, Duration::from_secs(1)).map(|lease| lease.members), Some(25));
    }

    #[test]
    fn an_idle_window_forgets_the_heat() {
        let mut heat = Heat::new(CONFIG);
        for _ in 0..1_000 {
            heat.read(key(0), 1, Duration::ZERO);
        }
        assert_eq!(heat.read(key(0), 1, Duration::from_secs(3)), None);
    }

    #[test]
    fn a_lease_ends_and_makes_room() {
        let lease = Lease { members: 4, lasts: Duration::from_secs(2) };
        let (mut leases, at) = (Leases::new(1), Duration::from_secs(10));
        leases.take(key(0), lease, at);
        assert_eq!((leases.spread(key(0), at), leases.spread(key(1), at)), (4, 1));
        leases.take(key(1), lease, at);
        assert_eq!(leases.spread(key(1), at), 1, "there is no room");
        let later = at + lease.lasts;
        assert_eq!(leases.spread(key(0), later), 1, "it has ended");
        leases.take(key(1), lease, later);
        assert_eq!(leases.spread(key(1), later), 4);
    }

    #[test]
    fn a_lease_is_read_as_it_is_written() {
        let lease = Lease { members: 25, lasts: Duration::from_secs(5) };
        assert_eq!(
            (lease.to_string().as_str(), Lease::parse(&lease.to_string())),
            ("members=25, lasts=5000", Some(lease))
        );
        for bad in ["", "members=1, lasts=5", "members=4", "lasts=5, members=4", "members=x, lasts=5"] {
            assert_eq!(Lease::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        /// Misra and Gries: never more than the truth, and short by at most one in [`COUNTERS`] of the reads.
        #[test]
        fn counts_are_nearly_exact_and_bounded(keys in prop::collection::vec(0usize..3_000, 0..20_000)) {
            let (mut window, mut truth) = (Window::default(), HashMap::<usize, u64>::new());
            let hashes: Vec<KeyHash> = (0..3_000).map(key).collect();
            for n in &keys {
                window.count(hashes[*n], 1);
                *truth.entry(*n).or_default() += 1;
            }
            prop_assert!(window.counters.len() <= COUNTERS);
            let error_max = keys.len() as u64 / COUNTERS as u64;
            for (n, count) in truth {
                let counted = window.counters.get(&hashes[n]).copied().unwrap_or(0);
                prop_assert!(counted <= count && counted + error_max >= count, "{counted} of {count}");
            }
        }
    }
}
