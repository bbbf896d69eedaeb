//! What lies between clients and a group: its latency, its bandwidth, and whether it carries anything.
//!
//! Called by the relay for each piece of each connection, and by `dev.rs`, which changes the condition while it runs. The bandwidth is
//! that of the group: its connections share it. Time is tokio's. Invariant: pieces of one connection and direction arrive in order.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::units::{Size, Time};

/// A further latency than this is a cut.
const LATENCY_MAX: Duration = Duration::from_secs(60);

/// The condition of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Condition {
    /// Added to a round trip, half of it each way.
    pub latency: Duration,
    /// In each direction; `None`: whatever the machine can.
    pub bytes_per_second: Option<u64>,
    /// Whether anything arrives.
    pub traffic: Traffic,
}

/// Whether anything arrives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Traffic {
    /// Everything.
    #[default]
    Carried,
    /// Nothing, and nobody is told: as if a cable were cut.
    Cut,
    /// Connections are reset, old and new ones: as if nobody listened.
    Refused,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the proxies.
    Up,
    /// To the clients.
    Down,
}

/// The link of one group.
#[derive(Debug)]
pub struct Link {
    condition: watch::Sender<Condition>,
    /// When each direction has sent all that it was given.
    free_at: Mutex<[Option<Instant>; 2]>,
}

/// A group and its link.
#[derive(Debug, Clone)]
pub struct GroupLink {
    /// The group's name.
    pub group: &'static str,
    /// What lies in front of it.
    pub link: Arc<Link>,
}

/// A change of a link, as `--link GROUP:CHANGE,…` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `up`, `cut`, `refused`.
    Traffic(Traffic),
    /// `latency=20ms`
    Latency(Duration),
    /// `bandwidth=10MiB` a second; `bandwidth=max`.
    Bandwidth(Option<u64>),
}

/// What a change must be.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no change of a link: write up, cut, refused, latency=20ms, bandwidth=10MiB or bandwidth=max")]
pub struct BadChange(String);

impl Link {
    /// In `condition` to begin with.
    #[must_use]
    pub fn new(condition: Condition) -> Link {
        Link { condition: watch::Sender::new(condition), free_at: Mutex::default() }
    }

    /// The condition it is in.
    #[must_use]
    pub fn condition(&self) -> Condition {
        *self.condition.borrow()
    }

    /// Changes it, for open connections too.
    pub fn change(&self, changes: &[Change]) {
        self.condition.send_modify(|condition| {
            for change in changes {
                match *change {
                    Change::Traffic(traffic) => condition.traffic = traffic,
                    Change::Latency(latency) => condition.latency = latency,
                    Change::Bandwidth(bytes_per_second) => condition.bytes_per_second = bytes_per_second,
                }
            }
        });
    }

    /// Sends `bytes` one way; returns when the last of them arrives.
    pub fn send(&self, direction: Direction, bytes: usize) -> Instant {
        let Condition { latency, bytes_per_second, .. } = self.condition();
        let now = Instant::now();
        let sent = match bytes_per_second {
            None => now,
            Some(rate) => {
                let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
                let free_at = &mut free_at[direction as usize];
                let sent = free_at.map_or(now, |free_at| free_at.max(now))
                    + Duration::from_secs_f64(bytes as f64 / rate as f64);
                *free_at = Some(sent);
                sent
            }
        };
        sent + latency / 2
    }

    /// Waits until it carries.
    pub async fn carries(&self) {
        self.becomes(Traffic::Carried).await;
    }

    /// Waits until it refuses.
    pub async fn refuses(&self) {
        self.becomes(Traffic::Refused).await;
    }

    async fn becomes(&self, traffic: Traffic) {
        let mut condition = self.condition.subscribe();
        // The sender lives as long as `self`.
        let _ = condition.wait_for(|condition| condition.traffic == traffic).await;
    }
}

impl FromStr for Change {
    type Err = BadChange;

    fn from_str(text: &str) -> Result<Change, BadChange> {
        let bad = || BadChange(text.to_owned());
        match text.split_once('=') {
            None => match text {
                "up" => Ok(Change::Traffic(Traffic::Carried)),
                "cut" => Ok(Change::Traffic(Traffic::Cut)),
                "refused" => Ok(Change::Traffic(Traffic::Refused)),
                _ => Err(bad()),
            },
            Some(("latency", value)) => {
                let latency = value.parse::<Time>().map_err(|_| bad())?.0;
                if latency <= LATENCY_MAX { Ok(Change::Latency(latency)) } else { Err(bad()) }
            }
            Some(("bandwidth", "max")) => Ok(Change::Bandwidth(None)),
            Some(("bandwidth", value)) => match value.parse::<Size>() {
                Ok(Size::Bytes(bytes)) if bytes > 0 => Ok(Change::Bandwidth(Some(bytes))),
                _ => Err(bad()),
            },
            Some(_) => Err(bad()),
        }
    }
}

/// Reads what `Display` writes, and what a person types: changes with commas between them.
///
/// # Errors
/// The first that is none.
pub fn parse_changes(text: &str) -> Result<Vec<Change>, BadChange> {
    text.split(',').map(|change| change.trim().parse()).collect()
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let traffic = match self.traffic {
            Traffic::Carried => "up",
            Traffic::Cut => "cut",
            Traffic::Refused => "refused",
        };
        write!(f, "{traffic}, latency {}", Time(self.latency))?;
        match self.bytes_per_second {
            None => Ok(()),
            Some(rate) => write!(f, ", bandwidth {}/s", Size::Bytes(rate)),
        }
    }
}
