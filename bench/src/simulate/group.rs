//! One group under a skewed demand: who is asked, who answers, what each member saw.
//!
//! Reads come at even intervals, each from a client drawn at random. A member answers at once and keeps what it has
//! fetched; an overloaded one sends the read on to the next in rank. Called by `simulate`.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use forebay::lease::{Heat, HeatConfig, Leases};
use forebay::placement::{KeyHash, Member, MemberId};

use crate::random::{Random, Zipf, mixed};

/// Seconds before anything is measured: the first leases come after one, the last of their growth some seconds later.
const SETTLING: u32 = 6;
/// How many members in rank are tried before the last one takes the read whatever its load.
const TRIES: usize = 8;
/// A member may be so many reads above its bound, as a queue is: the mean of few reads says nothing.
const QUEUE: f64 = 16.0;
/// Leases that one client remembers.
const LEASES: usize = 10_000;

/// What is asked of a group.
pub struct Demand {
    pub zipf: f64,
    pub reads_per_member: u32,
    pub seconds: u32,
    pub clients: u32,
    pub bound: f64,
    pub seed: u64,
}

/// How reads find a member.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    First,
    Bounded,
    Leased,
    Both,
}

impl Way {
    pub const ALL: [Way; 4] = [Way::First, Way::Bounded, Way::Leased, Way::Both];

    /// As tables call it.
    pub fn title(self) -> &'static str {
        match self {
            Way::First => "the first in rank",
            Way::Bounded => "bounded load",
            Way::Leased => "hot-block leases",
            Way::Both => "leases and bounded load",
        }
    }

    fn is_bounded(self) -> bool {
        matches!(self, Way::Bounded | Way::Both)
    }

    fn is_leased(self) -> bool {
        matches!(self, Way::Leased | Way::Both)
    }
}

/// What was seen: loads are the worst of all measured seconds.
#[derive(Default)]
pub struct Seen {
    /// The busiest member's reads, of the mean.
    pub busiest: f64,
    /// What one member in a hundred exceeds, of the mean.
    pub p99: f64,
    /// Share of the reads that were sent on.
    pub sent_on: f64,
    /// Origin GETs from the beginning, for each block that was read at all.
    pub fills_per_block: f64,
    /// The largest number of members that a lease named.
    pub widest: u16,
}

/// The members of a group of `count`, all of one weight, with ids drawn by their number.
pub fn members(count: u16) -> Vec<Member> {
    let id = |n: u64| MemberId(u128::from(mixed(2 * n + 1)) << 64 | u128::from(mixed(2 * n + 2)));
    (0..u64::from(count)).map(|n| Member { id: id(n), weight: NonZeroU32::MIN }).collect()
}

/// The order of the members for each key, as far as it was needed.
pub struct Ranks {
    members: Vec<Member>,
    of_key: Vec<Option<(KeyHash, Vec<u16>)>>,
}

impl Ranks {
    pub fn new(member_count: u16, key_count: u32) -> Ranks {
        Ranks { members: members(member_count), of_key: vec![None; key_count as usize] }
    }

    fn hash(&mut self, key: u32) -> KeyHash {
        self.of_key[key as usize].get_or_insert_with(|| (KeyHash::of("sim", &format!("blocks/{key}")), Vec::new())).0
    }

    /// At least the first `count` members for `key`, or all there are.
    fn first(&mut self, key: u32, count: usize) -> &[u16] {
        let hash = self.hash(key);
        let known = self.of_key[key as usize].as_ref().map_or(0, |(_, ranked)| ranked.len());
        let count = count.min(self.members.len());
        if known < count {
            // A little ahead: a lease that grows would come back for every step.
            let ranked = hash.ranked(&self.members, (count + count / 2).max(TRIES));
            let ranked = ranked.into_iter().map(|at| u16::try_from(at).expect("members are counted in 16 bits"));
            self.of_key[key as usize] = Some((hash, ranked.collect()));
        }
        self.of_key[key as usize].as_ref().map_or(&[], |(_, ranked)| ranked)
    }
}

/// Lets the group answer the demand in one way.
pub fn run(demand: &Demand, way: Way, ranks: &mut Ranks) -> Seen {
    let count = ranks.members.len();
    let zipf = Zipf::new(u32::try_from(ranks.of_key.len()).expect("keys are counted in 32 bits"), demand.zipf);
    let mut random = Random::new(demand.seed);
    let mut heats: Vec<Heat> = (0..count).map(|_| Heat::new(HeatConfig::default())).collect();
    let mut clients: Vec<Leases> = (0..demand.clients).map(|_| Leases::new(LEASES)).collect();
    let mut held: HashSet<(u16, u32)> = HashSet::new();
    let mut blocks: HashSet<u32> = HashSet::new();
    let mut seen = Seen::default();
    let reads = u64::from(demand.reads_per_member) * count as u64;
    let mut sent_on = 0u64;
    for second in 0..SETTLING + demand.seconds {
        let mut loads = vec![0u64; count];
        for n in 0..reads {
            let now = Duration::from_secs(u64::from(second)) + Duration::from_nanos(n * 1_000_000_000 / reads);
            let key = zipf.next(&mut random);
            let client = &mut clients[random.below(u64::from(demand.clients)) as usize];
            let hash = ranks.hash(key);
            let spread = if way.is_leased() { usize::from(client.spread(hash, now)).min(count) } else { 1 };
            let ranked = ranks.first(key, spread.max(TRIES));
            let chosen = random.below(spread as u64) as usize;
            let mut answers = ranked[chosen];
            if way.is_bounded() {
                let most = demand.bound * n as f64 / count as f64 + QUEUE;
                let mut tries = (0..TRIES.min(ranked.len())).map(|step| ranked[(chosen + step) % ranked.len()]);
                if let Some(free) = tries.find(|member| (loads[usize::from(*member)] as f64) < most) {
                    answers = free;
                }
            }
            if second >= SETTLING {
                sent_on += u64::from(answers != ranked[chosen]);
            }
            loads[usize::from(answers)] += 1;
            blocks.insert(key);
            held.insert((answers, key));
            // Who is asked first sees the heat, and may answer with a lease even when it sends the read on.
            let asked = usize::from(ranked[chosen]);
            if way.is_leased()
                && let Some(lease) = heats[asked].read(hash, spread as u16, now)
            {
                client.take(hash, lease, now);
                seen.widest = seen.widest.max(lease.members.min(count as u16));
            }
        }
        if second >= SETTLING {
            loads.sort_unstable();
            let of_mean = |load: u64| load as f64 / f64::from(demand.reads_per_member);
            seen.busiest = seen.busiest.max(of_mean(loads[count - 1]));
            seen.p99 = seen.p99.max(of_mean(loads[(count * 99).div_ceil(100) - 1]));
        }
    }
    seen.sent_on = sent_on as f64 / (reads * u64::from(demand.seconds)) as f64;
    seen.fills_per_block = held.len() as f64 / blocks.len() as f64;
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of 30 where one key draws every fifth read.
    fn seen(way: Way) -> Seen {
        let demand = Demand { zipf: 1.2, reads_per_member: 1_000, seconds: 2, clients: 8, bound: 1.25, seed: 7 };
        run(&demand, way, &mut Ranks::new(30, 20_000))
    }

    #[test]
    fn each_way_does_what_it_says() {
        let (first, bounded, leased, both) = (seen(Way::First), seen(Way::Bounded), seen(Way::Leased), seen(Way::Both));
        assert!(first.busiest > 5.0, "one member has the hottest key alone: {}", first.busiest);
        assert!((first.fills_per_block - 1.0).abs() < 1e-9 && first.sent_on == 0.0 && first.widest == 0);
        assert!(bounded.busiest < 1.3 && bounded.sent_on > 0.1, "{} {}", bounded.busiest, bounded.sent_on);
        assert!(leased.busiest < 2.0 && leased.sent_on == 0.0, "{}", leased.busiest);
        assert!(leased.widest > 5 && leased.widest <= 30, "{}", leased.widest);
        assert!(both.busiest < 1.3 && both.sent_on < bounded.sent_on / 2.0, "{} {}", both.busiest, both.sent_on);
    }

    #[test]
    fn ranks_grow_as_they_are_needed() {
        let mut ranks = Ranks::new(100, 10);
        let few = ranks.first(3, 4).to_vec();
        let all = ranks.first(3, 100).to_vec();
        assert_eq!((few.len(), all.len()), (TRIES, 100));
        assert_eq!(few[..], all[..few.len()]);
    }
}
