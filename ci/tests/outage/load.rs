//! Clients that put and read all the time, and what may come of it while a part of the deployment is dead.
//!
//! Writers note what was acknowledged, and by whom; readers ask for it. Judged at once: other bytes and "absent" for what was acknowledged never;
//! `owner-unreachable` only for what is not in the bucket yet and whose holder is dead; a refused write only as the volume's `bypass` says.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::client::{Client, ClientError, PutCondition, Via};
use futures::{StreamExt as _, stream};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::deployment::BucketView;

/// Between two requests of one client: the machine has other things to do as well.
const PAUSE: Duration = Duration::from_millis(25);
/// As many are looked for in the bucket.
const ORPHANS_MAX: usize = 100;
/// At once, after a strike.
const VERIFYING: usize = 16;
const WRITERS: usize = 4;
const READERS: usize = 4;
/// Beyond its own deadline no operation may last; the machine may be busy with something else too.
const GRACE: Duration = Duration::from_secs(4);

/// What came of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged by this member, or by the store.
    Acked(Option<String>),
    /// Refused or not answered: it may be there or not.
    Unsure,
}

/// What is counted, over all volumes.
#[derive(Debug, Default)]
pub struct Counts {
    pub acked: AtomicU64,
    pub refused: AtomicU64,
    pub right: AtomicU64,
    pub from_store: AtomicU64,
    pub unreachable: AtomicU64,
}

impl Counts {
    pub fn all(&self) -> [u64; 5] {
        [&self.acked, &self.refused, &self.right, &self.from_store, &self.unreachable]
            .map(|count| count.load(Ordering::Relaxed))
    }
}

/// What a volume's writes may do while members are dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// They go elsewhere, at last to the store.
    NeverFail,
    /// They wait for their holder, and fail.
    MayFail,
}

/// One volume under load.
pub struct Volume {
    /// For messages.
    mode: &'static str,
    pub client: Client,
    pub writes: Writes,
    pub bucket: BucketView,
    pub deadline: Duration,
    pub seed: u64,
    /// Number and fate, in the order of the puts.
    book: Mutex<Vec<(u64, Fate)>>,
    next: AtomicU64,
}

/// Who is dead now, and what was seen.
#[derive(Default)]
pub struct Scene {
    dead: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
    pub counts: Counts,
}

impl Scene {
    pub fn set_dead(&self, names: &[String]) {
        *self.dead.lock().unwrap() = names.iter().cloned().collect();
    }

    fn is_dead(&self, name: &str) -> bool {
        self.dead.lock().unwrap().contains(name)
    }

    fn is_anybody_dead(&self) -> bool {
        !self.dead.lock().unwrap().is_empty()
    }
}

fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn key(number: u64) -> String {
    format!("block/{number}")
}

impl Volume {
    pub fn new(
        mode: &'static str,
        client: Client,
        writes: Writes,
        bucket: BucketView,
        deadline: Duration,
        seed: u64,
    ) -> Volume {
        Volume { mode, client, writes, bucket, deadline, seed, book: Mutex::default(), next: AtomicU64::new(0) }
    }

    fn content(&self, number: u64) -> Bytes {
        let mut rng = SmallRng::seed_from_u64(self.seed << 32 | number);
        let mut content = vec![0; rng.random_range(1..24_000)];
        rng.fill_bytes(&mut content);
        content.into()
    }

    pub fn count(&self) -> usize {
        self.book.lock().unwrap().len()
    }

    async fn put(&self, scene: &Scene) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (began, was_dead) = (Instant::now(), scene.is_anybody_dead());
        let done = self.client.put(&key(number), self.content(number), PutCondition::Any, None).await;
        self.in_time("put", number, began);
        let fate = match done {
            Ok(done) => {
                one_more(&scene.counts.acked);
                match done.via {
                    Via::Member { member, .. } => Fate::Acked(Some(member)),
                    Via::Store => Fate::Acked(None),
                }
            }
            Err(ClientError::OwnerUnreachable(_) | ClientError::Unavailable(_))
                if self.writes == Writes::MayFail && (was_dead || scene.is_anybody_dead()) =>
            {
                one_more(&scene.counts.refused);
                Fate::Unsure
            }
            Err(error) => panic!("{}: put of {}: {error}", self.mode, key(number)),
        };
        self.book.lock().unwrap().push((number, fate));
    }

    /// Any of what was put, the newest more often than others.
    fn draw(&self, rng: &mut SmallRng) -> Option<(u64, Fate)> {
        let book = self.book.lock().unwrap();
        let back = if rng.random_bool(0.5) { 40 } else { book.len() };
        let first = book.len().saturating_sub(back);
        (!book.is_empty()).then(|| book[rng.random_range(first..book.len())].clone())
    }

    async fn get(&self, scene: &Scene, number: u64, fate: &Fate) {
        let (began, was_dead) = (Instant::now(), scene.is_anybody_dead());
        let got = self.read(number).await;
        self.in_time("get", number, began);
        match (got, fate) {
            (Ok((got, via)), _) => {
                assert!(got == self.content(number), "other bytes for {}", key(number));
                one_more(&scene.counts.right);
                if via == Via::Store {
                    one_more(&scene.counts.from_store);
                }
            }
            (Err(ClientError::Absent | ClientError::OwnerUnreachable(_)), Fate::Unsure) => {}
            (Err(ClientError::OwnerUnreachable(why)), Fate::Acked(holder)) => {
                assert!(was_dead || scene.is_anybody_dead(), "{}: {why}, and everybody lives", key(number));
                let is_orphan = holder.as_ref().is_some_and(|holder| scene.is_dead(holder));
                if !is_orphan || self.bucket.stored(&key(number)).await.is_some() {
                    // It was flushed since, or its holder came back since: then it is had now.
                    self.read(number).await.unwrap_or_else(|again| {
                        panic!(
                            "{} of {holder:?}: {why}, then {again}; its holder lives or it is in the bucket",
                            key(number)
                        )
                    });
                }
                one_more(&scene.counts.unreachable);
            }
            (Err(error), fate) => panic!("{}: get of {} ({fate:?}): {error}", self.mode, key(number)),
        }
    }

    async fn read(&self, number: u64) -> Result<(Bytes, Via), ClientError> {
        let block = self.client.get(&key(number), None).await?;
        let via = block.meta.via.clone();
        Ok((block.bytes().await?, via))
    }

    fn in_time(&self, verb: &str, number: u64, began: Instant) {
        let took = began.elapsed();
        assert!(took < self.deadline + GRACE, "{verb} of {} took {took:?}", key(number));
    }

    /// How many of the newest blocks that the dead acknowledged the store does not have.
    pub async fn orphans(&self, dead: &[String]) -> usize {
        let book = self.book.lock().unwrap().clone();
        let theirs = book.iter().rev().filter_map(|(number, fate)| match fate {
            Fate::Acked(Some(holder)) if dead.contains(holder) => Some(*number),
            _ => None,
        });
        let newest: Vec<u64> = theirs.take(ORPHANS_MAX).collect();
        let looks = stream::iter(newest).map(|number| async move { self.bucket.stored(&key(number)).await.is_none() });
        looks.buffer_unordered(VERIFYING).filter(|is_orphan| std::future::ready(*is_orphan)).count().await
    }

    /// Every block that was acknowledged is had, with its bytes, within the bound.
    pub async fn verify(&self, bound: Duration) {
        let book = self.book.lock().unwrap().clone();
        let deadline = Instant::now() + bound;
        let looks = stream::iter(book).map(|(number, fate)| self.verify_one(number, fate, deadline));
        looks.buffer_unordered(VERIFYING).collect::<Vec<()>>().await;
    }

    async fn verify_one(&self, number: u64, fate: Fate, deadline: Instant) {
        loop {
            match self.read(number).await {
                Ok((got, _)) => {
                    assert!(got == self.content(number), "other bytes for {}", key(number));
                    return;
                }
                Err(ClientError::Absent) if fate == Fate::Unsure => return,
                Err(error @ ClientError::OwnerUnreachable(_)) => {
                    assert!(Instant::now() < deadline, "{} ({fate:?}) after the return: {error}", key(number));
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => panic!("{}: {} ({fate:?}) after the return: {error}", self.mode, key(number)),
            }
        }
    }
}

/// Tasks that put and get until they are told to end.
pub struct Load {
    tasks: Vec<JoinHandle<()>>,
    scene: Arc<Scene>,
}

impl Load {
    pub fn start(handle: &Handle, volumes: &[Arc<Volume>], scene: &Arc<Scene>) -> Load {
        let mut tasks = Vec::new();
        for volume in volumes {
            for at in 0..WRITERS + READERS {
                let (volume, scene) = (Arc::clone(volume), Arc::clone(scene));
                tasks.push(handle.spawn(async move {
                    let mut rng = SmallRng::seed_from_u64(volume.seed ^ at as u64);
                    while !scene.stop.load(Ordering::Relaxed) {
                        if at < WRITERS {
                            volume.put(&scene).await;
                        } else if let Some((number, fate)) = volume.draw(&mut rng) {
                            volume.get(&scene, number, &fate).await;
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                }));
            }
        }
        Load { tasks, scene: Arc::clone(scene) }
    }

    /// Panics with what a task found, if one did.
    pub fn check(&mut self, handle: &Handle) {
        if let Some(task) = self.tasks.extract_if(.., |task| task.is_finished()).next() {
            handle.block_on(task).unwrap();
            panic!("a client ended before it was told to");
        }
    }

    pub fn end(self, handle: &Handle) {
        self.scene.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            handle.block_on(task).unwrap();
        }
    }
}
