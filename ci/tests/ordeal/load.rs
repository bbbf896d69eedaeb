//! Mixed load: several clients put, get and delete, in both kinds of volume, and tell the oracle what they were told.
//!
//! Run by `campaign` until the node is struck; `verify` reads through the same functions. A client never sends what the
//! oracle could not judge: other bytes under a key only after an acknowledged delete. An answer that can't be right is a
//! fault; an error is counted, and leaves the key either-or.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, Response};
use tokio::sync::watch;

use super::bucket::Gate;
use super::node::{Access, REQUEST_BOUND};
use super::oracle::{Change, Found, Key, Oracle, Volume};

/// What a campaign counts.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub puts: u64,
    pub deletes: u64,
    pub purges: u64,
    pub gets: u64,
    /// The longest that an acknowledgement took.
    pub slowest: Duration,
    /// Requests cut off by the end of the node.
    pub cut_off: u64,
    /// Errors by status.
    pub errors: BTreeMap<u16, u64>,
    /// What the stores did, as far as they were asked before their end.
    pub events: BTreeMap<String, u64>,
}

/// What is noted while it goes on.
#[derive(Debug, Default)]
pub struct Ledger {
    pub tally: RefCell<Tally>,
    /// What was found wrong, with histories.
    pub faults: RefCell<Vec<String>>,
}

/// One run of the node, as its clients see it.
pub struct Life<'a> {
    pub oracle: &'a RefCell<Oracle>,
    pub access: &'a Access,
    pub ledger: &'a Ledger,
    /// Set right before the node is struck: nobody begins anything new.
    pub over: Cell<bool>,
    /// Set when the node is gone: nobody waits any longer.
    pub gone: watch::Sender<bool>,
}

/// How a change was answered.
enum Answer {
    Acknowledged(String),
    Error(String),
}

/// How a read was answered.
pub enum Read {
    Found(Found),
    /// Another status.
    Refused(u16, String),
    /// No answer, or a body that broke off.
    Broken(String),
    Wrong(String),
}

impl<'a> Life<'a> {
    pub fn new(oracle: &'a RefCell<Oracle>, access: &'a Access, ledger: &'a Ledger) -> Life<'a> {
        Life { oracle, access, ledger, over: Cell::new(false), gone: watch::channel(false).0 }
    }

    /// One client, until the end.
    pub async fn client(&self, seed: u64, gate: &Gate) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = self.oracle.borrow().keys.len();
        while !self.over.get() {
            let key = rng.random_range(0..count);
            let through = self.oracle.borrow().keys[key].volume == Volume::Through;
            if through && !gate.is_open() && rng.random_ratio(9, 10) {
                // It would be refused.
                continue;
            }
            let (busy, possible) = {
                let oracle = self.oracle.borrow();
                (oracle.keys[key].busy, oracle.possible(key))
            };
            let roll = rng.random_range(0..100);
            match (possible.version, possible.absent) {
                _ if roll >= 96 => self.purge(key, &mut rng).await,
                _ if busy || roll < 30 => self.read(key, &mut rng).await,
                (None, _) => {
                    let version = self.oracle.borrow_mut().draw(key);
                    self.change(key, Change::Put(version), &mut rng).await;
                }
                // Either-or: the same again, or away with it.
                (Some(version), true) if roll < 65 => self.change(key, Change::Put(version), &mut rng).await,
                (Some(version), false) if roll < 38 => self.change(key, Change::Put(version), &mut rng).await,
                (Some(_), _) => self.change(key, Change::Delete, &mut rng).await,
            }
        }
    }

    async fn change(&self, key: usize, change: Change, rng: &mut SmallRng) {
        let (volume, url) = (self.oracle.borrow().keys[key].volume, self.url(key, rng));
        let request = match change {
            Change::Put(version) => {
                let content = self.oracle.borrow().content(key, version);
                self.access.client.request(Method::PUT, url).body(content)
            }
            Change::Delete => self.access.client.request(Method::DELETE, url),
        };
        self.oracle.borrow_mut().begin(key, change);
        let began = Instant::now();
        let answer = match self.until_gone(request.send()).await {
            Some(Ok(answer)) => self.judge(volume, change, &answer),
            Some(Err(error)) => {
                self.broken(&error, &format!("{change:?}"), key);
                Answer::Error(format!("{:?}", error.without_url()))
            }
            None => Answer::Error("the node is gone".to_owned()),
        };
        let mut oracle = self.oracle.borrow_mut();
        match answer {
            Answer::Acknowledged(how) => {
                oracle.acknowledged(key, change, &how);
                let mut tally = self.ledger.tally.borrow_mut();
                tally.slowest = tally.slowest.max(began.elapsed());
                match change {
                    Change::Put(_) => tally.puts += 1,
                    Change::Delete => tally.deletes += 1,
                }
            }
            Answer::Error(how) => {
                oracle.failed(key, change, &how);
                if how.starts_with("IMPOSSIBLE") {
                    self.ledger.faults.borrow_mut().push(format!("{change:?}: {how}\n{}", oracle.history(key)));
                }
            }
        }
    }

    /// What the status of a change means.
    fn judge(&self, volume: Volume, change: Change, answer: &Response) -> Answer {
        let status = answer.status().as_u16();
        let durability = answer.headers().get("forebay-durability").and_then(|value| value.to_str().ok());
        let durability = durability.unwrap_or("none");
        match (change, status, durability, volume) {
            (Change::Put(_), 200 | 201, "origin", _)
            | (Change::Put(_), 200 | 201, "disk", Volume::Back)
            | (Change::Delete, 204, "origin", _)
            | (Change::Delete, 204, "disk", Volume::Back) => {
                Answer::Acknowledged(format!("{status} durable at {durability}"))
            }
            (_, 500.., ..) => {
                *self.ledger.tally.borrow_mut().errors.entry(status).or_default() += 1;
                Answer::Error(format!("{status}"))
            }
            _ => Answer::Error(format!("IMPOSSIBLE {status}, durability {durability}, volume {}", volume.name())),
        }
    }

    /// Drops the key from the cache, which changes nothing: if it is dirty, it stays.
    async fn purge(&self, key: usize, rng: &mut SmallRng) {
        let url = {
            let oracle = self.oracle.borrow();
            let base = &self.access.urls[rng.random_range(0..self.access.urls.len())];
            let Key { volume, name, .. } = &oracle.keys[key];
            format!("{base}/v1/volumes/{}/purge?key={}", volume.name(), name.replace(' ', "%20").replace('/', "%2F"))
        };
        match self.until_gone(self.access.client.post(url).send()).await {
            None => {}
            Some(Err(error)) => self.broken(&error, "purge", key),
            Some(Ok(answer)) => match answer.status().as_u16() {
                204 => self.ledger.tally.borrow_mut().purges += 1,
                409 => {}
                status @ 500.. => *self.ledger.tally.borrow_mut().errors.entry(status).or_default() += 1,
                status => self.fault(key, format!("IMPOSSIBLE {status} for a purge")),
            },
        }
    }

    async fn read(&self, key: usize, rng: &mut SmallRng) {
        let moment = self.oracle.borrow().moment(key);
        let read = self.fetch(key, rng).await;
        match read {
            Read::Found(found) => self.settle(key, moment, found, "under load"),
            Read::Refused(status, _) => *self.ledger.tally.borrow_mut().errors.entry(status).or_default() += 1,
            Read::Broken(_) => {}
            Read::Wrong(what) => self.fault(key, what),
        }
    }

    /// Tells the oracle what a read found.
    pub fn settle(&self, key: usize, moment: super::oracle::Moment, found: Found, how: &str) {
        self.ledger.tally.borrow_mut().gets += 1;
        let judged = self.oracle.borrow_mut().found(key, moment, found, how);
        if let Err(what) = judged {
            self.fault(key, what);
        }
    }

    /// A GET of the whole block or, now and then, of a part of it.
    pub async fn fetch(&self, key: usize, rng: &mut SmallRng) -> Read {
        let range = self.some_range(key, rng);
        let mut request = self.access.client.get(self.url(key, rng));
        if let Some(range) = &range {
            request = request.header("range", format!("bytes={}-{}", range.start(), range.end()));
        }
        let answered = async {
            let answer = request.send().await?;
            let (status, way) = (answer.status().as_u16(), answer.headers().get("cache-status").cloned());
            Ok::<_, reqwest::Error>((status, way, answer.bytes().await?))
        };
        let (status, way, body) = match self.until_gone(answered).await {
            None => return Read::Broken("the node is gone".to_owned()),
            Some(Ok(answered)) => answered,
            Some(Err(error)) => {
                self.broken(&error, "GET", key);
                return Read::Broken(format!("{:?}", error.without_url()));
            }
        };
        let oracle = self.oracle.borrow();
        let found = match (status, &range) {
            (404, _) => Ok(Found::Absent),
            (200, _) => oracle.identify(key, &body, None),
            (206, Some(range)) => oracle.identify(key, &body, Some(range)),
            // The part was drawn for a version that is there no longer.
            (416, Some(_)) => return Read::Refused(status, String::new()),
            (500.., _) => return Read::Refused(status, String::from_utf8_lossy(&body).into_owned()),
            _ => Err(format!("IMPOSSIBLE {status} for a GET")),
        };
        match found {
            Ok(found) => Read::Found(found),
            Err(what) => Read::Wrong(format!("{what} ({status}, {way:?}, {range:?})")),
        }
    }

    fn some_range(&self, key: usize, rng: &mut SmallRng) -> Option<RangeInclusive<usize>> {
        let oracle = self.oracle.borrow();
        let version = oracle.possible(key).version?;
        if !rng.random_ratio(1, 6) {
            return None;
        }
        let len = oracle.content(key, version).len();
        let (a, b) = (rng.random_range(0..len), rng.random_range(0..len));
        Some(a.min(b)..=a.max(b))
    }

    /// Any of the node's ports.
    fn url(&self, key: usize, rng: &mut SmallRng) -> String {
        let oracle = self.oracle.borrow();
        let key = &oracle.keys[key];
        let base = &self.access.urls[rng.random_range(0..self.access.urls.len())];
        format!("{base}/v1/volumes/{}/blocks/{}", key.volume.name(), key.name.replace(' ', "%20"))
    }

    pub fn fault(&self, key: usize, what: String) {
        let history = self.oracle.borrow().history(key);
        self.ledger.faults.borrow_mut().push(format!("{what}\n{history}"));
    }

    /// What comes of a request while the node is there.
    async fn until_gone<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        let mut gone = self.gone.subscribe();
        tokio::select! {
            outcome = request => Some(outcome),
            _ = gone.wait_for(|gone| *gone) => {
                self.ledger.tally.borrow_mut().cut_off += 1;
                None
            }
        }
    }

    /// No answer: fine when the node has been struck, a fault when it took too long.
    fn broken(&self, error: &reqwest::Error, what: &str, key: usize) {
        if error.is_timeout() {
            let threads = self.access.threads();
            self.fault(key, format!("NO ANSWER to {what} within {REQUEST_BOUND:?}; the node's threads:\n{threads}"));
        } else if self.over.get() {
            self.ledger.tally.borrow_mut().cut_off += 1;
        } else {
            self.fault(key, format!("CONNECTION LOST at {what} while the node was running: {error:?}"));
        }
    }
}
