//! What may be read under each key: plain maps of what was acknowledged and what was in flight.
//!
//! Written by `load` as it sends and hears, asked by `load` and `verify`. A key is changed by one client at a time; between
//! an acknowledged put and delete of it there is never more than one version that may be there, because volumes are
//! immutable: the next version is put only after an acknowledged delete. What was in flight, or answered with an
//! error, is either-or until something settles it: an acknowledgement, or a read that saw it done.

use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// Events kept of a key for its history.
const HISTORY: usize = 200;

/// The two kinds of volume of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Volume {
    Back,
    Through,
}

impl Volume {
    pub const ALL: [Volume; 2] = [Volume::Back, Volume::Through];

    pub fn name(self) -> &'static str {
        match self {
            Volume::Back => "back",
            Volume::Through => "through",
        }
    }
}

/// What a read of a key may find: never nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Possible {
    pub absent: bool,
    pub version: Option<u32>,
}

impl Possible {
    pub const ABSENT: Possible = Possible { absent: true, version: None };

    pub fn only(version: u32) -> Possible {
        Possible { absent: false, version: Some(version) }
    }

    /// What surely is there, if anything is sure.
    pub fn settled(self) -> Option<Found> {
        match self {
            Possible { absent: true, version: None } => Some(Found::Absent),
            Possible { absent: false, version: Some(version) } => Some(Found::Version(version)),
            Possible { .. } => None,
        }
    }

    fn allows(self, found: Found) -> bool {
        match found {
            Found::Absent => self.absent,
            Found::Version(version) => self.version == Some(version),
        }
    }
}

impl fmt::Display for Possible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Possible { absent: true, version: None } => write!(f, "absent"),
            Possible { absent: true, version: Some(version) } => write!(f, "absent or v{version}"),
            Possible { version: Some(version), .. } => write!(f, "v{version}"),
            Possible { version: None, .. } => write!(f, "nothing"),
        }
    }
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Absent,
    Version(u32),
}

/// A change of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Put(u32),
    Delete,
}

/// One key and everything known of it.
pub struct Key {
    pub volume: Volume,
    pub name: String,
    number: u64,
    /// The last version that was drawn.
    last: u32,
    now: Possible,
    /// Changes that have begun since the last acknowledgement or restart: each may take effect at any time.
    open: Vec<Change>,
    /// Whether a client is changing it at this moment.
    pub busy: bool,
    history: VecDeque<Event>,
    /// Number of the first event in `history`.
    first: u64,
}

struct Event {
    at: Instant,
    what: String,
    after: Possible,
}

/// A moment in a key's history: reads remember when they began.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

/// All keys of one directory's life.
pub struct Oracle {
    pub seed: u64,
    pub block_bytes_max: usize,
    pub keys: Vec<Key>,
    began: Instant,
}

impl Oracle {
    pub fn new(seed: u64, keys_per_volume: usize, block_bytes_max: usize) -> Oracle {
        let key = |volume: Volume, number: usize| Key {
            volume,
            name: format!("{}/{number:04}", ["a", "b c", "d/e"][number % 3]),
            number: (number as u64) << 1 | u64::from(volume == Volume::Through),
            last: 0,
            now: Possible::ABSENT,
            open: Vec::new(),
            busy: false,
            history: VecDeque::new(),
            first: 0,
        };
        let keys = Volume::ALL.into_iter().flat_map(|volume| (0..keys_per_volume).map(move |n| key(volume, n)));
        Oracle { seed, block_bytes_max, keys: keys.collect(), began: Instant::now() }
    }

    /// The bytes of a version of a key: everything follows from the seed.
    pub fn content(&self, key: usize, version: u32) -> Vec<u8> {
        let salt = self.keys[key].number << 32 | u64::from(version);
        let mut rng = SmallRng::seed_from_u64(self.seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Some at the edges of sectors, where arithmetic goes wrong; some large, so that regions fill; the others evenly
        // on a logarithmic scale from 1 byte on.
        const EDGES: [usize; 10] = [1, 511, 512, 513, 1024, 4095, 4096, 4097, 8192, 12_289];
        let len = match rng.random_range(0..32) {
            0 => self.block_bytes_max,
            1 => self.block_bytes_max - 1,
            n if n < 12 => EDGES[rng.random_range(0..EDGES.len())],
            n if n < 22 => rng.random_range(self.block_bytes_max / 4..=self.block_bytes_max),
            _ => (self.block_bytes_max as f64).powf(rng.random::<f64>()) as usize,
        };
        let mut content = vec![0; len.clamp(1, self.block_bytes_max)];
        rng.fill_bytes(&mut content);
        content
    }

    /// A version that was never used before.
    pub fn draw(&mut self, key: usize) -> u32 {
        self.keys[key].last += 1;
        self.keys[key].last
    }

    pub fn possible(&self, key: usize) -> Possible {
        self.keys[key].now
    }

    pub fn moment(&self, key: usize) -> Moment {
        let key = &self.keys[key];
        Moment(key.first + key.history.len() as u64)
    }

    /// A change is sent: from now on its effect may be seen.
    pub fn begin(&mut self, key: usize, change: Change) {
        let key_state = &mut self.keys[key];
        assert!(!key_state.busy, "a key is changed by one client at a time");
        key_state.busy = true;
        key_state.open.push(change);
        let now = match change {
            Change::Put(version) => {
                let other = key_state.now.version;
                assert!(other.is_none_or(|other| other == version), "never two versions of a key at once");
                Possible { version: Some(version), ..key_state.now }
            }
            Change::Delete => Possible { absent: true, ..key_state.now },
        };
        self.note(key, format!("begin {change:?}"), now);
    }

    /// It was acknowledged: nothing else may be seen.
    pub fn acknowledged(&mut self, key: usize, change: Change, how: &str) {
        self.keys[key].open.clear();
        self.keys[key].busy = false;
        let now = match change {
            Change::Put(version) => Possible::only(version),
            Change::Delete => Possible::ABSENT,
        };
        self.note(key, format!("acknowledged {change:?}: {how}"), now);
    }

    /// It was not: both may be seen, until something settles it.
    pub fn failed(&mut self, key: usize, change: Change, how: &str) {
        self.keys[key].busy = false;
        let now = self.keys[key].now;
        self.note(key, format!("not acknowledged {change:?}: {how}"), now);
    }

    /// Nothing that was begun before goes on: what is seen from now on stays.
    pub fn restarted(&mut self, what: &str) {
        for key in 0..self.keys.len() {
            assert!(!self.keys[key].busy, "every client has given up");
            self.keys[key].open.clear();
            let now = self.keys[key].now;
            self.note(key, what.to_owned(), now);
        }
    }

    /// A read that began at `since` found this.
    ///
    /// # Errors
    /// Why that can't be.
    pub fn found(&mut self, key: usize, since: Moment, found: Found, how: &str) -> Result<(), String> {
        let state = &self.keys[key];
        assert!(since.0 >= state.first, "a key's history covers every read");
        let skip = usize::try_from(since.0 - state.first).unwrap();
        // The state at `since` is that after the event before it.
        let before = match skip.checked_sub(1) {
            Some(index) => state.history[index].after,
            None => Possible::ABSENT,
        };
        let mut moments = std::iter::once(before).chain(state.history.iter().skip(skip).map(|event| event.after));
        if !moments.any(|possible| possible.allows(found)) {
            let must = state.now;
            self.note(key, format!("READ {found:?} ({how})"), must);
            return Err(format!("a read found {found:?}, possible: {must} ({how})"));
        }
        // What was seen is published, hence durable (I2): if nothing contradicts it, it stays.
        let unchanged = skip == state.history.len();
        let settles = state.open.iter().all(|open| match found {
            Found::Absent => *open == Change::Delete,
            Found::Version(version) => *open == Change::Put(version),
        });
        if unchanged && settles && state.now.settled().is_none() {
            let now = match found {
                Found::Absent => Possible::ABSENT,
                Found::Version(version) => Possible::only(version),
            };
            self.note(key, format!("seen {found:?} ({how})"), now);
        }
        Ok(())
    }

    /// Which version these bytes are, all of it or a part of it. The newest one that fits: small parts fit several.
    ///
    /// # Errors
    /// They are none.
    pub fn identify(&self, key: usize, body: &[u8], part: Option<&RangeInclusive<usize>>) -> Result<Found, String> {
        let state = &self.keys[key];
        let candidates = state.now.version.into_iter().chain((1..=state.last).rev());
        for version in candidates {
            let content = self.content(key, version);
            let expected = match part {
                None => &content[..],
                Some(part) if *part.start() < content.len() => {
                    &content[*part.start()..content.len().min(part.end() + 1)]
                }
                Some(_) => continue,
            };
            if expected == body {
                return Ok(Found::Version(version));
            }
        }
        let here = self.content(key, state.last);
        let same = here.iter().zip(body).take_while(|(a, b)| a == b).count();
        Err(format!("WRONG BYTES: {} of them, {same} as in v{} ({} bytes)", body.len(), state.last, here.len()))
    }

    /// A key's life so far, for whoever looks for the fault.
    pub fn history(&self, key: usize) -> String {
        let state = &self.keys[key];
        let mut text = format!("history of {}/{} (now: {}):\n", state.volume.name(), state.name, state.now);
        for event in &state.history {
            let at = event.at.duration_since(self.began).as_secs_f64();
            text += &format!("  {at:10.4} s  {}  -> {}\n", event.what, event.after);
        }
        for version in state.last.saturating_sub(3).max(1)..=state.last {
            text += &format!("  v{version} has {} bytes\n", self.content(key, version).len());
        }
        text
    }

    fn note(&mut self, key: usize, what: String, after: Possible) {
        let key = &mut self.keys[key];
        key.now = after;
        key.history.push_back(Event { at: Instant::now(), what, after });
        if key.history.len() > HISTORY {
            key.history.pop_front();
            key.first += 1;
        }
    }
}
