//! What went from disk, in four bytes each: fingerprints of evicted blocks, about as many as the disk holds blocks.
//!
//! Used by `disk`. A node that holds a hundred million blocks can't spend 20 bytes on each one that went, as `ghost` does
//! for the memory tier. A key's bucket is a line of cache, its sixteen fingerprints a queue: a new one comes in front, the
//! last falls out. So what is remembered is the latest in each bucket, which by chance is nearly the latest of all. A wrong
//! "yes" happens once in 2^28 questions, and puts a new block where those lie that came back. Fixed size, no allocation
//! after the first.

/// Fingerprints of a bucket: 64 bytes.
const WAYS: usize = 16;

/// A set of fingerprints that forgets the oldest. By default it holds none.
#[derive(Default)]
pub struct Fingerprints {
    /// Newest first in each; 0 is none.
    buckets: Box<[[u32; WAYS]]>,
}

impl Fingerprints {
    /// Remembers about `count_max` keys; none if that is 0.
    #[must_use]
    pub fn new(count_max: usize) -> Fingerprints {
        // Zeroed by the kernel: memory is taken as it is used.
        Fingerprints { buckets: vec![[0; WAYS]; count_max.div_ceil(WAYS)].into_boxed_slice() }
    }

    /// Remembers a key, as the newest of about `count` at most: the others of its bucket beyond its share of them go.
    pub fn insert(&mut self, spread: u64, count: u64) {
        let ways = self.ways(count);
        let print = print(spread);
        let Some(bucket) = self.bucket(spread) else { return };
        let at = bucket.iter().position(|known| *known == print).unwrap_or(WAYS - 1);
        bucket.copy_within(..at, 1);
        bucket[0] = print;
        bucket[ways..].fill(0);
    }

    /// Whether a key is remembered.
    #[must_use]
    pub fn knows(&self, spread: u64) -> bool {
        let bucket = self.buckets.get(place(spread, self.buckets.len()));
        bucket.is_some_and(|bucket| bucket.contains(&print(spread)))
    }

    /// Whether a key is remembered; it is forgotten by being asked for.
    pub fn take(&mut self, spread: u64) -> bool {
        let print = print(spread);
        let Some(bucket) = self.bucket(spread) else { return false };
        let Some(at) = bucket.iter().position(|known| *known == print) else { return false };
        bucket.copy_within(at + 1.., at);
        bucket[WAYS - 1] = 0;
        true
    }

    /// What it takes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    fn bucket(&mut self, spread: u64) -> Option<&mut [u32; WAYS]> {
        let at = place(spread, self.buckets.len());
        self.buckets.get_mut(at)
    }

    /// How many of a bucket's places `count` keys take.
    fn ways(&self, count: u64) -> usize {
        let buckets = self.buckets.len().max(1) as u64;
        usize::try_from(count.div_ceil(buckets)).unwrap_or(WAYS).clamp(1, WAYS)
    }
}

/// The bucket, by the upper bits (Lemire's fast range).
fn place(spread: u64, buckets: usize) -> usize {
    ((u128::from(spread) * buckets as u128) >> 64) as usize
}

/// The lower bits, never 0.
fn print(spread: u64) -> u32 {
    (spread as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::PolicyKey;
    use super::*;

    #[test]
    fn a_fingerprint_takes_4_bytes_and_the_latest_are_known() {
        let count = 100_000;
        let mut ghost = Fingerprints::new(count);
        (0..1_000_000u64).for_each(|key| ghost.insert(key.spread(), count as u64));
        println!("{} bytes for each of {count} fingerprints", ghost.memory_bytes() as f64 / count as f64);
        assert!(ghost.memory_bytes() <= 4 * count + 64);
        let known = |keys: std::ops::Range<u64>| keys.filter(|key| ghost.knows(key.spread())).count();
        // Of the latest half nearly all, of what is twice as old as the set is large nearly none.
        assert!(known(950_000..1_000_000) > 49_000, "{}", known(950_000..1_000_000));
        assert!(known(700_000..800_000) < 2_500, "{}", known(700_000..800_000));
        assert_eq!(known(2_000_000..2_100_000), 0);
    }

    #[test]
    fn fewer_are_remembered_where_fewer_are_held() {
        let mut ghost = Fingerprints::new(16_000);
        (0..100_000u64).for_each(|key| ghost.insert(key.spread(), 4_000));
        let known = (0..100_000u64).filter(|key| ghost.knows(key.spread())).count();
        assert!((3_500..=4_000).contains(&known), "{known}");
    }

    #[test]
    fn what_is_asked_for_is_forgotten_once() {
        let mut ghost = Fingerprints::new(160);
        (0..20u64).for_each(|key| ghost.insert(key.spread(), 160));
        ghost.insert(7u64.spread(), 160);
        assert!(ghost.knows(7u64.spread()) && ghost.take(7u64.spread()) && !ghost.take(7u64.spread()));
        assert!((0..20u64).filter(|key| *key != 7).all(|key| ghost.take(key.spread())));
        let mut none = Fingerprints::new(0);
        none.insert(1, 1);
        assert!(!none.knows(1) && !none.take(1) && none.memory_bytes() == 0);
    }
}
