//! Numbers for generated traces and simulated clients: the same for the same seed, in every build and for ever.
//!
//! Used by `replay` and `simulate`. The generator is SplitMix64 (Steele, Lea, Flood, OOPSLA '14); library generators don't promise to
//! stay the same. The sampler of Zipf's law is Walker's alias method as Vose builds it: exact, one table look a number.

/// A stream of 64-bit numbers.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number below `end`, which is not 0. (Lemire's product; the bias is below 2^-32 for what is asked here.)
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}

/// A permutation of the 64-bit numbers that leaves nothing in order.
pub fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

/// Ranks from 0, rank `r` with a probability in proportion to (r + 1)^-alpha.
pub struct Zipf {
    /// For each rank the share of its column (of 2^32) that is its own, and whose the rest is.
    columns: Vec<(u32, u32)>,
}

impl Zipf {
    /// `count` ranks, from 1 to 2^32 − 1 of them.
    pub fn new(count: u32, alpha: f64) -> Zipf {
        let weights: Vec<f64> = (1..=count).map(|rank| f64::from(rank).powf(-alpha)).collect();
        let scale = f64::from(count) / weights.iter().sum::<f64>();
        let mut shares: Vec<f64> = weights.iter().map(|weight| weight * scale).collect();
        let mut columns = vec![(u32::MAX, 0); count as usize];
        let (mut poor, mut rich): (Vec<u32>, Vec<u32>) = (0..count).partition(|rank| shares[*rank as usize] < 1.0);
        while let (Some(low), Some(high)) = (poor.pop(), rich.last().copied()) {
            columns[low as usize] = ((shares[low as usize] * f64::from(u32::MAX)) as u32, high);
            shares[high as usize] -= 1.0 - shares[low as usize];
            if shares[high as usize] < 1.0 {
                poor.extend(rich.pop());
            }
        }
        // What is left on either side is 1 but for rounding: columns of their own.
        Zipf { columns }
    }

    /// A rank.
    pub fn next(&self, random: &mut Random) -> u32 {
        let number = random.next();
        let column = (((number >> 32) * self.columns.len() as u64) >> 32) as u32;
        let (own, other) = self.columns[column as usize];
        if number as u32 <= own { column } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // The first numbers of SplitMix64 from seed 0, as its authors' program prints them.
        let mut random = Random::new(0);
        assert_eq!([random.next(), random.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn ranks_come_as_often_as_the_law_says() {
        for alpha in [0.7, 1.1] {
            let (zipf, mut random, mut counts) = (Zipf::new(1_000, alpha), Random::new(3), vec![0u32; 1_000]);
            (0..1_000_000).for_each(|_| counts[zipf.next(&mut random) as usize] += 1);
            let all: f64 = (1..=1_000).map(|rank| f64::from(rank).powf(-alpha)).sum();
            for rank in [1, 2, 3, 10, 100, 900] {
                let expected = f64::from(rank).powf(-alpha) / all * 1e6;
                let seen = f64::from(counts[rank as usize - 1]);
                // Five standard deviations of a Poisson number.
                assert!((seen - expected).abs() < 5.0 * expected.sqrt(), "{alpha}: rank {rank}, {seen} for {expected}");
            }
        }
    }
}
