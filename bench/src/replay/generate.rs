//! Traces made on the spot: the same requests for the same words and seed.
//!
//! Parsed from the command line (`zipf:0.9,keys=1000000,seed=2`), read by `replay` like a recorded trace.
//! - `zipf:A`: independent requests by Zipf's law of exponent A.
//! - `zipf-scan:A`: the same, and a share of the requests are scans: runs through as many other keys, round and round.
//! - `epochs:N`: every key once an epoch, in an order shuffled anew, N times.
//! - `loop:F`: round and round through F times as many bytes as the cache holds.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;

use super::trace::{BATCH_COUNT, Request, Source};
use crate::random::{Random, Zipf, mixed};
use crate::units::{parse_size, show_size};

/// Keys of one scan.
const SCAN_KEYS: u64 = 10_000;
/// Keys that are not drawn by popularity have names from here on.
const OTHER_KEYS: u64 = 1 << 40;

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Generator {
    kind: Kind,
    keys: u32,
    requests: u64,
    smallest: u32,
    largest: u32,
    scan_share: f64,
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Zipf(f64),
    ZipfScan(f64),
    Epochs(u32),
    Loop(f64),
}

impl FromStr for Generator {
    type Err = String;

    fn from_str(text: &str) -> Result<Generator, String> {
        let mut words = text.split(',');
        let kind = kind(words.next().unwrap_or_default())?;
        let mut made = Generator {
            kind,
            keys: 1_000_000,
            requests: 10_000_000,
            smallest: 4 << 10,
            largest: 4 << 10,
            scan_share: 0.2,
            seed: 1,
        };
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("`{word}`: expected name=value"))?;
            let number = |what: &str| value.parse::<u64>().map_err(|_| format!("`{word}`: expected {what}"));
            match name {
                "keys" => {
                    let keys = number("a number of keys")?;
                    made.keys = u32::try_from(keys)
                        .ok()
                        .filter(|keys| (1..=1 << 28).contains(keys))
                        .ok_or_else(|| format!("`{word}`: expected 1 to {} keys", 1 << 28))?;
                }
                "requests" => made.requests = number("a number of requests")?,
                "seed" => made.seed = number("a number")?,
                "size" => (made.smallest, made.largest) = sizes(value)?,
                "scan" => {
                    let percent = value.strip_suffix('%').and_then(|percent| percent.parse::<f64>().ok());
                    made.scan_share = percent
                        .filter(|percent| (0.0..=100.0).contains(percent))
                        .ok_or_else(|| format!("`{word}`: expected 0% to 100%"))?
                        / 100.0;
                }
                _ => return Err(format!("`{word}`: expected keys, requests, size, scan or seed")),
            }
        }
        Ok(made)
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let usage = || format!("`{text}`: expected zipf:ALPHA, zipf-scan:ALPHA, epochs:COUNT or loop:FACTOR");
    let (name, value) = text.split_once(':').ok_or_else(usage)?;
    let factor = || value.parse::<f64>().ok().filter(|factor| *factor > 0.0 && *factor <= 100.0).ok_or_else(usage);
    Ok(match name {
        "zipf" => Kind::Zipf(factor()?),
        "zipf-scan" => Kind::ZipfScan(factor()?),
        "epochs" => Kind::Epochs(value.parse().ok().filter(|count| *count > 0).ok_or_else(usage)?),
        "loop" => Kind::Loop(factor()?),
        _ => return Err(usage()),
    })
}

fn sizes(text: &str) -> Result<(u32, u32), String> {
    let one = |text: &str| {
        let bytes = parse_size(text)?;
        u32::try_from(bytes).ok().filter(|bytes| *bytes > 0).ok_or_else(|| format!("`{text}`: expected 1 B to 4 GiB"))
    };
    let (smallest, largest) = text.split_once('-').unwrap_or((text, text));
    let (smallest, largest) = (one(smallest)?, one(largest)?);
    if smallest > largest { Err(format!("`{text}`: expected the smaller size first")) } else { Ok((smallest, largest)) }
}

impl fmt::Display for Generator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Zipf(alpha) => write!(out, "zipf:{alpha}")?,
            Kind::ZipfScan(alpha) => write!(out, "zipf-scan:{alpha},scan={}%", self.scan_share * 100.0)?,
            Kind::Epochs(count) => write!(out, "epochs:{count}")?,
            Kind::Loop(factor) => write!(out, "loop:{factor}")?,
        }
        write!(out, ",keys={}", self.keys)?;
        if !matches!(self.kind, Kind::Epochs(_)) {
            write!(out, ",requests={}", self.requests)?;
        }
        let size = |bytes| show_size(u64::from(bytes)).replace(' ', "");
        write!(out, ",size={}", size(self.smallest))?;
        if self.largest > self.smallest {
            write!(out, "-{}", size(self.largest))?;
        }
        write!(out, ",seed={}", self.seed)
    }
}

impl Generator {
    /// Whether the trace is another one for another capacity.
    pub fn depends_on_capacity(&self) -> bool {
        matches!(self.kind, Kind::Loop(_))
    }

    /// The largest block there may be, in bytes.
    pub fn largest(&self) -> u32 {
        self.largest
    }

    /// The sizes of `keys` keys together; of that a share of a capacity is meant where the trace depends on it.
    pub fn nominal_bytes(&self) -> u64 {
        (0..u64::from(self.keys)).map(|key| u64::from(self.size_of(key))).sum()
    }

    /// Begins the trace; `capacity_bytes` matters to those that depend on it.
    pub fn start(&self, capacity_bytes: u64) -> Box<dyn Source> {
        let keys = u64::from(self.keys);
        let (requests, pattern) = match self.kind {
            Kind::Zipf(alpha) => (self.requests, Pattern::Zipf { law: Zipf::new(self.keys, alpha), scans: None }),
            Kind::ZipfScan(alpha) => {
                let scans = Scans { share: self.scan_share, next: 0, left: 0 };
                (self.requests, Pattern::Zipf { law: Zipf::new(self.keys, alpha), scans: Some(scans) })
            }
            Kind::Epochs(count) => {
                (keys * u64::from(count), Pattern::Epochs { order: (0..self.keys).collect(), at: 0 })
            }
            Kind::Loop(factor) => {
                let mut left = (capacity_bytes as f64 * factor) as u64;
                let mut count = 0;
                while left > 0 {
                    left = left.saturating_sub(u64::from(self.size_of(count)));
                    count += 1;
                }
                (self.requests, Pattern::Loop { count: count.max(1), at: 0 })
            }
        };
        Box::new(Generated { made: self.clone(), random: Random::new(self.seed), left: requests, pattern })
    }

    /// The size of a key: any between the bounds, small and large ones alike by magnitude.
    fn size_of(&self, key: u64) -> u32 {
        if self.smallest == self.largest {
            return self.smallest;
        }
        let place = (mixed(key ^ self.seed << 48) >> 11) as f64 / (1u64 << 53) as f64;
        let ratio = f64::from(self.largest) / f64::from(self.smallest);
        ((f64::from(self.smallest) * ratio.powf(place)) as u32).clamp(self.smallest, self.largest)
    }
}

struct Generated {
    made: Generator,
    random: Random,
    left: u64,
    pattern: Pattern,
}

enum Pattern {
    Zipf { law: Zipf, scans: Option<Scans> },
    Epochs { order: Vec<u32>, at: usize },
    Loop { count: u64, at: u64 },
}

struct Scans {
    share: f64,
    next: u64,
    /// Of the run that has begun.
    left: u64,
}

impl Source for Generated {
    fn read(&mut self, batch: &mut Vec<Request>) -> Result<()> {
        batch.clear();
        let count = self.left.min(BATCH_COUNT as u64);
        self.left -= count;
        for _ in 0..count {
            let id = self.pattern.next(&mut self.random, u64::from(self.made.keys));
            batch.push(Request { id, bytes: self.made.size_of(id) });
        }
        Ok(())
    }
}

impl Pattern {
    fn next(&mut self, random: &mut Random, keys: u64) -> u64 {
        match self {
            Pattern::Zipf { law, scans } => match scans.as_mut().and_then(|scans| scans.next(random, keys)) {
                Some(key) => key,
                None => u64::from(law.next(random)),
            },
            Pattern::Epochs { order, at } => {
                if *at == 0 {
                    for end in (1..order.len()).rev() {
                        order.swap(end, random.below(end as u64 + 1) as usize);
                    }
                }
                let key = order[*at];
                *at = (*at + 1) % order.len();
                u64::from(key)
            }
            Pattern::Loop { count, at } => {
                let key = *at;
                *at = (*at + 1) % *count;
                key
            }
        }
    }
}

impl Scans {
    /// The scan's next key, if this request is one of a scan. A scan runs beside the other requests, at a pace that makes
    /// its requests the share asked for of all.
    fn next(&mut self, random: &mut Random, keys: u64) -> Option<u64> {
        if (random.next() >> 11) as f64 / (1u64 << 53) as f64 >= self.share {
            return None;
        }
        if self.left == 0 {
            // The next scan begins anywhere.
            self.left = SCAN_KEYS;
            self.next = random.below(keys);
        }
        self.left -= 1;
        self.next = (self.next + 1) % keys;
        Some(OTHER_KEYS + self.next)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all(spec: &str, capacity_bytes: u64) -> Vec<Request> {
        let mut source = spec.parse::<Generator>().unwrap().start(capacity_bytes);
        let (mut all, mut batch) = (Vec::new(), Vec::new());
        loop {
            source.read(&mut batch).unwrap();
            if batch.is_empty() {
                return all;
            }
            all.append(&mut batch);
        }
    }

    #[test]
    fn words_are_read_and_shown_again() {
        for text in [
            "zipf:0.9,keys=100,requests=5,size=1KiB-1MiB,seed=7",
            "zipf-scan:1.1,scan=30%,keys=100,requests=5,size=4KiB,seed=1",
            "epochs:3,keys=10,size=4KiB,seed=1",
        ] {
            assert_eq!(text.parse::<Generator>().unwrap().to_string(), text);
        }
        for wrong in ["zipf", "zipf:x", "zipf:-1", "epochs:0", "zipf:1,keys=0", "zipf:1,size=4KiB-1KiB", "zipf:1,hue=3"]
        {
            assert!(wrong.parse::<Generator>().unwrap_err().contains("expected"), "{wrong}");
        }
    }

    #[test]
    fn a_seed_is_a_trace() {
        let one = all("zipf:0.9,keys=1000,requests=100000,seed=3", 0);
        assert_eq!(one.len(), 100_000);
        assert_eq!(one, all("zipf:0.9,keys=1000,requests=100000,seed=3", 0));
        assert_ne!(one, all("zipf:0.9,keys=1000,requests=100000,seed=4", 0));
    }

    #[test]
    fn an_epoch_has_every_key_once_and_no_two_orders_are_the_same() {
        let requests = all("epochs:3,keys=1000", 0);
        let epochs: Vec<Vec<u64>> =
            requests.chunks(1_000).map(|epoch| epoch.iter().map(|one| one.id).collect()).collect();
        assert_eq!(epochs.len(), 3);
        for epoch in &epochs {
            assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), 1_000);
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    }

    #[test]
    fn a_loop_is_as_long_as_the_cache_makes_it_and_a_scan_takes_its_share() {
        let requests = all("loop:1.2,requests=100,size=1KiB", 10 << 10);
        assert_eq!(requests.iter().map(|one| one.id).collect::<BTreeSet<_>>().len(), 12);
        assert_eq!((requests[0].id, requests[12].id), (0, 0));
        let requests = all("zipf-scan:0.9,keys=1000,requests=100000", 0);
        let scanned = requests.iter().filter(|one| one.id >= OTHER_KEYS).count();
        assert!((19_000..21_000).contains(&scanned), "{scanned}");
    }

    #[test]
    fn sizes_lie_between_their_bounds_and_stay_a_keys_own() {
        let requests = all("zipf:0.5,keys=1000,requests=20000,size=1KiB-1MiB", 0);
        assert!(requests.iter().all(|one| (1 << 10..=1 << 20).contains(&one.bytes)));
        let small = requests.iter().filter(|one| one.bytes < 32 << 10).count();
        assert!((8_000..12_000).contains(&small), "half of them below the middle magnitude: {small}");
        assert_eq!(requests.iter().collect::<Vec<_>>().len(), 20_000);
    }
}
