//! The simulated object store: the [`Origin`] port in memory, with seeded latency and faults, for tests of everything
//! above it.
//!
//! It outlives crashes of the shard ([`SimOrigin::reconnect`]). It asserts what every origin would reject or suffer
//! from: that the bytes of a store match its digest and length. An operation takes effect in the middle of its latency,
//! so a crash may leave it done or not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::Runtime;
use forebay_io::checksum::Digest;
use futures::SinkExt;
use futures::channel::mpsc;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::key::BlockKey;
use crate::origin::{Etag, Fetched, Origin, OriginError, OriginErrorKind, OriginMeta, Store, Stored};

/// Faults by their odds: one in this many, 0 is never, 1 is always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OriginFaults {
    /// A fetch fails before its headers.
    pub fetch_error: u32,
    /// The body breaks off with an error.
    pub reset: u32,
    /// The body is shorter or longer than its headers said, and ends well.
    pub wrong_length: u32,
    /// One bit of the body differs (only where a digest can tell).
    pub wrong_bytes: u32,
    /// A store fails and had no effect.
    pub store_error: u32,
    /// A store fails and had its effect.
    pub store_unknown: u32,
    /// A head fails.
    pub head_error: u32,
    /// A delete fails and had no effect.
    pub delete_error: u32,
    /// A delete fails and had its effect.
    pub delete_unknown: u32,
    /// A step takes twenty times as long.
    pub slow: u32,
}

/// How often each fault has struck.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OriginFired {
    /// Fetches that failed before their headers.
    pub fetch_error: u64,
    /// Bodies that broke off.
    pub reset: u64,
    /// Bodies of another length than announced.
    pub wrong_length: u64,
    /// Bodies with a wrong bit.
    pub wrong_bytes: u64,
    /// Stores that failed without effect.
    pub store_error: u64,
    /// Stores that failed with effect.
    pub store_unknown: u64,
    /// Stores whose condition failed: other bytes were there.
    pub precondition_failed: u64,
    /// Heads that failed.
    pub head_error: u64,
    /// Deletes that failed without effect.
    pub delete_error: u64,
    /// Deletes that failed with effect.
    pub delete_unknown: u64,
    /// Steps that took long.
    pub slow: u64,
    /// Steps that met the link down.
    pub link_down: u64,
}

/// How often each verb was asked for, and what faults struck.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OriginCounts {
    /// Fetches.
    pub fetches: u64,
    /// Bodies whose receiver went away.
    pub fetches_cancelled: u64,
    /// Stores.
    pub stores: u64,
    /// Heads.
    pub heads: u64,
    /// Deletes.
    pub deletes: u64,
    /// The most stores and deletes at once.
    pub changes_at_once_max: u64,
}

/// The way to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Requests arrive.
    Up,
    /// Requests fail after a while.
    Down,
}

/// An object store in memory. Clones are one store.
pub struct SimOrigin<R> {
    runtime: R,
    world: Rc<World>,
}

struct World {
    held: RefCell<BTreeMap<BlockKey, Held>>,
    faults: Cell<OriginFaults>,
    link: Cell<Link>,
    latency_us: RefCell<Range<u64>>,
    frame_bytes_max: Cell<usize>,
    counts: Cell<OriginCounts>,
    fired: Cell<OriginFired>,
    changes_at_once: Cell<u64>,
    rng: RefCell<SmallRng>,
}

#[derive(Clone)]
struct Held {
    body: Bytes,
    etag: Etag,
}

impl<R: Runtime> SimOrigin<R> {
    /// An empty store whose every choice follows from `seed`.
    #[must_use]
    pub fn new(seed: u64, runtime: R) -> SimOrigin<R> {
        let world = World {
            held: RefCell::default(),
            faults: Cell::default(),
            link: Cell::new(Link::Up),
            latency_us: RefCell::new(500..20_000),
            frame_bytes_max: Cell::new(16 << 10),
            counts: Cell::default(),
            fired: Cell::default(),
            changes_at_once: Cell::new(0),
            rng: RefCell::new(SmallRng::seed_from_u64(seed ^ 0x0515)),
        };
        SimOrigin { runtime, world: Rc::new(world) }
    }

    /// The same store, reached from the next life of the simulated machine.
    #[must_use]
    pub fn reconnect(&self, runtime: R) -> SimOrigin<R> {
        self.world.changes_at_once.set(0);
        SimOrigin { runtime, world: Rc::clone(&self.world) }
    }

    /// From now on these faults strike.
    pub fn set_faults(&self, faults: OriginFaults) {
        self.world.faults.set(faults);
    }

    /// Whether the origin can be reached at all.
    pub fn set_link(&self, link: Link) {
        self.world.link.set(link);
    }

    /// From now on each step takes this long, in virtual microseconds.
    pub fn set_latency_us(&self, latency_us: Range<u64>) {
        self.world.latency_us.replace(latency_us);
    }

    /// From now on bodies come in frames of at most this many bytes.
    pub fn set_frame_bytes_max(&self, bytes: usize) {
        self.world.frame_bytes_max.set(bytes);
    }

    /// Puts something there as somebody else would: `Etag::Origin` if `etag` says so.
    pub fn insert(&self, key: &BlockKey, body: Bytes, etag: Option<&str>) {
        let etag = etag.map_or_else(|| Etag::Digest(Digest::of(&body)), |etag| Etag::Origin(etag.into()));
        self.world.held.borrow_mut().insert(key.clone(), Held { body, etag });
    }

    /// Removes something as somebody else would.
    pub fn remove(&self, key: &BlockKey) {
        self.world.held.borrow_mut().remove(key);
    }

    /// The bytes under a key.
    #[must_use]
    pub fn body(&self, key: &BlockKey) -> Option<Bytes> {
        self.world.held.borrow().get(key).map(|held| held.body.clone())
    }

    /// Length and ETag under a key.
    #[must_use]
    pub fn meta(&self, key: &BlockKey) -> Option<OriginMeta> {
        self.world.held.borrow().get(key).map(meta_of)
    }

    /// How often each fault has struck since the store was made.
    #[must_use]
    pub fn fired(&self) -> OriginFired {
        self.world.fired.get()
    }

    /// Since the store was made.
    #[must_use]
    pub fn counts(&self) -> OriginCounts {
        self.world.counts.get()
    }

    fn count(&self, act: impl FnOnce(&mut OriginCounts)) {
        let mut counts = self.world.counts.get();
        act(&mut counts);
        self.world.counts.set(counts);
    }

    fn strikes(&self, odds: fn(&OriginFaults) -> u32, count: fn(&mut OriginFired) -> &mut u64) -> bool {
        let odds = odds(&self.world.faults.get());
        let strikes = odds > 0 && self.random(0..u64::from(odds)) == 0;
        if strikes {
            self.note(count);
        }
        strikes
    }

    fn note(&self, count: fn(&mut OriginFired) -> &mut u64) {
        let mut fired = self.world.fired.get();
        *count(&mut fired) += 1;
        self.world.fired.set(fired);
    }

    fn random(&self, range: Range<u64>) -> u64 {
        if range.is_empty() { range.start } else { self.world.rng.borrow_mut().random_range(range) }
    }

    async fn take_time(&self) -> Result<(), OriginError> {
        let latency_us = self.world.latency_us.borrow().clone();
        let factor = if self.strikes(|faults| faults.slow, |fired| &mut fired.slow) { 20 } else { 1 };
        self.runtime.sleep(Duration::from_micros(self.random(latency_us) * factor)).await;
        if self.world.link.get() == Link::Up {
            return Ok(());
        }
        self.note(|fired| &mut fired.link_down);
        Err(failure(OriginErrorKind::Unreachable))
    }

    /// Sends a body frame by frame, with what the faults make of it.
    async fn send(self, held: Held, mut sender: mpsc::Sender<Result<Bytes, OriginError>>) {
        let mut body = held.body.to_vec();
        let has_digest = matches!(held.etag, Etag::Digest(_));
        if has_digest && !body.is_empty() && self.strikes(|faults| faults.wrong_bytes, |fired| &mut fired.wrong_bytes) {
            let at = self.random(0..body.len() as u64) as usize;
            body[at] ^= 1 << self.random(0..8);
        }
        if self.strikes(|faults| faults.wrong_length, |fired| &mut fired.wrong_length) {
            match body.pop() {
                Some(_) if self.random(0..2) == 0 => {}
                _ => body.extend_from_slice(&[0; 2]),
            }
        }
        let is_reset = self.strikes(|faults| faults.reset, |fired| &mut fired.reset);
        let reset_at = is_reset.then(|| self.random(0..body.len() as u64 + 1) as usize);
        let mut sent = 0;
        let mut body = Bytes::from(body);
        while !body.is_empty() || reset_at.is_some() {
            let broken = self.take_time().await.is_err();
            if broken || reset_at.is_some_and(|at| sent >= at) {
                drop(sender.send(Err(failure(OriginErrorKind::Unreachable))).await);
                return;
            }
            let len = self.random(1..self.world.frame_bytes_max.get() as u64 + 1) as usize;
            let frame = body.split_to(len.min(body.len()));
            sent += frame.len();
            if sender.send(Ok(frame)).await.is_err() {
                self.count(|counts| counts.fetches_cancelled += 1);
                return;
            }
        }
    }

    async fn fetch_now(self, key: BlockKey) -> Result<Option<Fetched>, OriginError> {
        self.count(|counts| counts.fetches += 1);
        self.take_time().await?;
        if self.strikes(|faults| faults.fetch_error, |fired| &mut fired.fetch_error) {
            return Err(failure(OriginErrorKind::Unavailable));
        }
        let Some(held) = self.world.held.borrow().get(&key).cloned() else { return Ok(None) };
        let (sender, body) = mpsc::channel(2);
        let fetched = Fetched { len_bytes: held.body.len() as u64, etag: held.etag.clone(), body };
        self.runtime.spawn(self.clone().send(held, sender));
        Ok(Some(fetched))
    }

    async fn store_now(self, key: BlockKey, store: Store) -> Result<Stored, OriginError> {
        let body: Bytes = store.frames.concat().into();
        assert_eq!(body.len() as u64, store.len_bytes, "a store sends what it announces");
        assert_eq!(Digest::of(&body), store.digest, "a store sends the bytes of its digest");
        self.take_time().await?;
        if self.strikes(|faults| faults.store_error, |fired| &mut fired.store_error) {
            return Err(failure(OriginErrorKind::Unavailable));
        }
        let there = self.world.held.borrow().get(&key).cloned();
        let stored = match there {
            Some(held) if held.etag == Etag::Digest(store.digest) && held.body == body => Stored::Done,
            Some(held) => {
                self.note(|fired| &mut fired.precondition_failed);
                Stored::Conflict(meta_of(&held))
            }
            None => {
                self.insert(&key, body, None);
                Stored::Done
            }
        };
        self.take_time().await.map_err(|_| failure(OriginErrorKind::Timeout))?;
        if self.strikes(|faults| faults.store_unknown, |fired| &mut fired.store_unknown) {
            return Err(failure(OriginErrorKind::Timeout));
        }
        Ok(stored)
    }

    async fn delete_now(self, key: BlockKey) -> Result<(), OriginError> {
        self.take_time().await?;
        if self.strikes(|faults| faults.delete_error, |fired| &mut fired.delete_error) {
            return Err(failure(OriginErrorKind::Unavailable));
        }
        self.remove(&key);
        self.take_time().await.map_err(|_| failure(OriginErrorKind::Timeout))?;
        if self.strikes(|faults| faults.delete_unknown, |fired| &mut fired.delete_unknown) {
            return Err(failure(OriginErrorKind::Timeout));
        }
        Ok(())
    }

    /// Counts how many changes are under way at once.
    async fn counted<T>(self, change: impl Future<Output = T>) -> T {
        let at_once = self.world.changes_at_once.get() + 1;
        self.world.changes_at_once.set(at_once);
        self.count(|counts| counts.changes_at_once_max = counts.changes_at_once_max.max(at_once));
        let outcome = change.await;
        self.world.changes_at_once.set(self.world.changes_at_once.get() - 1);
        outcome
    }
}

impl<R: Runtime> Origin for SimOrigin<R> {
    fn fetch(&self, key: &BlockKey) -> impl Future<Output = Result<Option<Fetched>, OriginError>> + 'static {
        self.clone().fetch_now(key.clone())
    }

    fn store(&self, key: &BlockKey, store: Store) -> impl Future<Output = Result<Stored, OriginError>> + 'static {
        self.count(|counts| counts.stores += 1);
        self.clone().counted(self.clone().store_now(key.clone(), store))
    }

    fn head(&self, key: &BlockKey) -> impl Future<Output = Result<Option<OriginMeta>, OriginError>> + 'static {
        let (origin, key) = (self.clone(), key.clone());
        async move {
            origin.count(|counts| counts.heads += 1);
            origin.take_time().await?;
            if origin.strikes(|faults| faults.head_error, |fired| &mut fired.head_error) {
                return Err(failure(OriginErrorKind::Unavailable));
            }
            Ok(origin.world.held.borrow().get(&key).map(meta_of))
        }
    }

    fn delete(&self, key: &BlockKey) -> impl Future<Output = Result<(), OriginError>> + 'static {
        self.count(|counts| counts.deletes += 1);
        self.clone().counted(self.clone().delete_now(key.clone()))
    }
}

impl<R: Clone> Clone for SimOrigin<R> {
    fn clone(&self) -> Self {
        SimOrigin { runtime: self.runtime.clone(), world: Rc::clone(&self.world) }
    }
}

fn meta_of(held: &Held) -> OriginMeta {
    OriginMeta { len_bytes: held.body.len() as u64, etag: held.etag.clone() }
}

fn failure(kind: OriginErrorKind) -> OriginError {
    OriginError::new(kind, "simulated")
}
