//! One client of the shard: random verbs on random keys until the life's quota is used up, each told to the model.
//!
//! Several run at once as tasks of the world. What reads do with an answer is in `reader`. Called by `run`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::sim::{SimDisk, SimRuntime};
use forebay_io::{Nanos, Runtime};
use forebay_shard::key::BlockKey;
use forebay_shard::origin::Etag;
use forebay_shard::outcome::{
    Condition, DeclinedReason, Durability, Headed, PinDone, Put, PutDone, Removed, UnpinDone,
};
use forebay_shard::sim_origin::SimOrigin;
use futures::future::{Either, join, select};
use rand::Rng;
use rand::rngs::SmallRng;

use super::history;
use super::machine::SimShard;
use super::model::{KeyModel, State, States};
use super::pins::PinModel;
use super::plan::{Course, DiskMode, Plan, Writers};
use super::rack::Rack;
use super::reader::{Answer, Reader};
use super::truth::origin_state;

/// What all clients share and what outlives crashes.
pub struct Shared {
    pub plan: Plan,
    pub models: Vec<RefCell<KeyModel>>,
    pub pins: Vec<RefCell<PinModel>>,
    /// Verbs that may still begin in this life.
    pub quota: Cell<u64>,
    /// Verbs begun since the run began.
    pub ops: Cell<u64>,
    /// Reads, deletes and puts of strays that had an answer.
    pub strays: StrayCounts,
    /// Since when each client is at its present verb; `None`: it has ended its life's work.
    pub busy_since: RefCell<Vec<Option<Nanos>>>,
}

/// How often verbs met a key that lies on another disk than its home.
#[derive(Default)]
pub struct StrayCounts {
    pub read: Cell<u64>,
    pub deleted: Cell<u64>,
    pub put: Cell<u64>,
}

impl Shared {
    fn take_op(&self) -> bool {
        let quota = self.quota.get();
        if quota > 0 {
            self.quota.set(quota - 1);
            self.ops.set(self.ops.get() + 1);
        }
        quota > 0
    }
}

/// One client in one life of the machine.
pub struct Client {
    pub shared: Rc<Shared>,
    pub shard: SimShard,
    /// The machine's disks in this life, and handles on those that are here.
    pub rack: Rack,
    pub disks: Vec<Option<SimDisk>>,
    pub origin: SimOrigin<SimRuntime>,
    pub runtime: SimRuntime,
    pub rng: SmallRng,
    pub number: usize,
}

impl Client {
    /// Works until the quota is used up.
    pub async fn run(mut self) {
        let reader = Reader::new(self.shard.clone(), self.disks.clone(), self.shared.plan.disk).await;
        while self.shared.take_op() {
            self.shared.busy_since.borrow_mut()[self.number] = Some(self.runtime.now());
            self.act(&reader).await;
            if self.rng.random_range(0..3) == 0 {
                let pause_us = self.rng.random_range(self.shared.plan.pause_us.clone());
                self.runtime.sleep(Duration::from_micros(pause_us)).await;
            }
        }
        self.shared.busy_since.borrow_mut()[self.number] = None;
    }

    async fn act(&mut self, reader: &Reader) {
        let written = self.shared.plan.universe.written;
        let (any, own) = (self.rng.random_range(0..written), self.own());
        if self.shared.plan.course == Course::Overwriting && self.rng.random_range(0..2) == 0 {
            return self.replace(own).await;
        }
        match self.rng.random_range(0..100) {
            0..17 => self.read(reader, any).await,
            17..21 => self.read_at_once(reader, any).await,
            21..27 => self.read_range(reader, any).await,
            27..32 => self.give_up_a_read(reader, any).await,
            32..36 => self.head(any).await,
            36..40 => self.purge(any).await,
            40..62 => self.put(own).await,
            62..65 => self.give_up_a_put(own).await,
            65..73 => self.delete(own).await,
            73..77 => self.replace(own).await,
            77..79 => self.flush().await,
            79..80 => self.others_store(any),
            80..82 => self.pin().await,
            82..83 => self.unpin(any).await,
            83..86 if self.shared.plan.disk == DiskMode::Lying => {
                self.note(any, "get, slow, while the disk rots", 0);
                reader.outlast_rot(&self.shared.plan.universe, any).await;
            }
            _ => self.press(reader).await,
        }
    }

    /// A key that this client may write.
    fn own(&mut self) -> usize {
        let plan = &self.shared.plan;
        match plan.writers {
            Writers::Shared => self.rng.random_range(0..plan.universe.written),
            Writers::Own => self.rng.random_range(0..plan.universe.written / plan.clients) * plan.clients + self.number,
        }
    }

    fn key(&self, index: usize) -> BlockKey {
        self.shared.plan.universe.key(index).clone()
    }

    fn note(&self, index: usize, what: &'static str, number: u64) {
        history::note(self.runtime.now(), self.number as u16, index, what, number);
    }

    /// Whether the key lies on another disk than its home.
    fn is_stray(&self, index: usize) -> bool {
        let members = &self.rack.members;
        let key = self.shared.plan.universe.key(index);
        let home = || self.rack.home(self.shard.identity(key));
        members.len() > 1 && self.shard.seat_of(key).is_some_and(|at| members[usize::from(at)].id != home())
    }

    fn model<T>(&self, index: usize, act: impl FnOnce(&mut KeyModel) -> T) -> T {
        act(&mut self.shared.models[index].borrow_mut())
    }

    async fn read(&self, reader: &Reader, index: usize) {
        let id = self.model(index, KeyModel::begin_read);
        self.note(index, "get", u64::from(id));
        let is_stray = self.is_stray(index);
        let answer = reader.read(&self.shared.plan.universe, index).await;
        count_if(is_stray && matches!(answer, Answer::Shows(_)), &self.shared.strays.read);
        self.end_read(index, id, answer);
    }

    async fn read_at_once(&self, reader: &Reader, index: usize) {
        join(self.read(reader, index), join(self.read(reader, index), self.read(reader, index))).await;
    }

    async fn read_range(&mut self, reader: &Reader, index: usize) {
        let id = self.model(index, KeyModel::begin_read);
        self.note(index, "get a range", u64::from(id));
        let at = self.rng.random();
        let answer = reader.read_range(&self.shared.plan.universe, index, at).await;
        self.end_read(index, id, answer);
    }

    fn end_read(&self, index: usize, id: u32, answer: Answer) {
        let states = match answer {
            Answer::Shows(states) => states,
            Answer::Lost if self.shared.plan.disk == DiskMode::Lying => States::default(),
            Answer::Lost => history::violation(index, "reported as lost, but nothing rots on this disk"),
            Answer::Nothing => States::default(),
        };
        self.note(index, answer.words(), states.bits() * 10_000 + u64::from(id));
        self.model(index, |model| model.end_read(id, states));
    }

    async fn give_up_a_read(&mut self, reader: &Reader, index: usize) {
        self.note(index, "get, given up", 0);
        let patience_us = self.rng.random_range(0..20_000);
        reader.give_up(&self.key(index), self.runtime.sleep(Duration::from_micros(patience_us))).await;
    }

    async fn head(&self, index: usize) {
        let id = self.model(index, KeyModel::begin_read);
        let universe = &self.shared.plan.universe;
        let answer = match self.shard.head(&self.key(index)).await {
            Headed::Found(meta) => match universe.recognise_etag(index, &meta.etag) {
                Some(version) if universe.version(index, version).body.len() as u64 == meta.len_bytes => {
                    Answer::Shows(States::one(Some(version)))
                }
                _ => history::violation(index, "I8: a HEAD told of bytes that nobody ever put under this key"),
            },
            Headed::Absent => Answer::Shows(States::one(None)),
            Headed::Lost => Answer::Lost,
            Headed::Declined(_) | Headed::Failed(_) => Answer::Nothing,
        };
        self.end_read(index, id, answer);
    }

    async fn purge(&self, index: usize) {
        let change = self.pin_model(index, PinModel::begin);
        let removed = self.shard.purge(&self.key(index)).await;
        self.note(index, "purged", removal_number(&removed));
        self.pin_model(index, |model| model.end_removal(change, &removed));
        assert!(!matches!(removed, Removed::Failed(_)), "a purge asks nobody");
    }

    fn pin_model<T>(&self, index: usize, act: impl FnOnce(&mut PinModel) -> T) -> T {
        act(&mut self.shared.pins[index].borrow_mut())
    }

    /// Pins any key, also one that is only read.
    async fn pin(&mut self) {
        let index = self.rng.random_range(0..self.shared.plan.universe.subjects.len());
        let change = self.pin_model(index, PinModel::begin);
        self.note(index, "pin", 0);
        let done = self.shard.pin(&self.key(index)).await;
        let words = match &done {
            PinDone::Done => "pinned",
            PinDone::Absent => "pin: nothing there",
            PinDone::Full { .. } => "pin: too much is pinned",
            PinDone::Lost => "pin: lost",
            PinDone::Declined(_) => "pin: declined",
            PinDone::Failed(_) => "pin: failed",
        };
        self.note(index, words, 0);
        self.pin_model(index, |model| model.end_pin(index, change, &done, self.shared.plan.disk));
    }

    async fn unpin(&mut self, index: usize) {
        let change = self.pin_model(index, PinModel::begin);
        let done = self.shard.unpin_block(&self.key(index)).await;
        self.note(index, "unpin", u64::from(matches!(done, UnpinDone::Done)));
        self.pin_model(index, |model| model.end_unpin(change, &done));
    }

    fn draw_put(&mut self, index: usize, version: u8) -> Put {
        let content = self.shared.plan.universe.version(index, version);
        let (body, digest) = (content.body.clone(), content.digest);
        let cut = self.rng.random_range(0..=body.len());
        let condition = match self.rng.random_range(0..8) {
            0 => Condition::Absent,
            1 => Condition::Matches(vec![Etag::Digest(digest)]),
            _ => Condition::Any,
        };
        Put {
            key: self.key(index),
            frames: vec![body.slice(..cut), body.slice(cut..)]
                .into_iter()
                .filter(|frame: &Bytes| !frame.is_empty())
                .collect(),
            len_bytes: u32::try_from(body.len()).expect("blocks are small"),
            digest,
            condition,
            durability: if self.rng.random_range(0..5) == 0 { Durability::Origin } else { Durability::Disk },
        }
    }

    async fn put(&mut self, index: usize) {
        let version = self.draw_version();
        self.put_version(index, version).await;
    }

    fn draw_version(&mut self) -> u8 {
        self.rng.random_range(0..super::universe::VERSIONS)
    }

    async fn put_version(&mut self, index: usize, version: u8) {
        let put = self.draw_put(index, version);
        let (condition, asked) = (put.condition.clone(), put.durability);
        let id = self.model(index, |model| model.begin_write(Some(version)));
        self.note(index, "put", u64::from(version));
        let is_stray = self.is_stray(index);
        let done = self.shard.put(put).await;
        count_if(is_stray && matches!(done, PutDone::Created(_)), &self.shared.strays.put);
        self.end_put(index, id, &condition, asked, &done);
    }

    fn end_put(&self, index: usize, id: u32, condition: &Condition, asked: Durability, done: &PutDone) {
        self.note(index, put_words(done), u64::from(id));
        let through = &*self.key(index).volume == "through";
        let sure = self.model(index, |model| model.end_put(id, through, condition, asked, done));
        if let (Some(state), PutDone::Created(Durability::Origin) | PutDone::Unchanged(Durability::Origin)) =
            (sure, done)
        {
            self.require_origin(index, state);
        }
    }

    fn require_origin(&self, index: usize, state: State) {
        let found = origin_state(&self.origin, &self.shared.plan.universe, index);
        if found != state {
            history::violation(index, &format!("acknowledged at level origin as {state:?}, there it is {found:?}"));
        }
    }

    async fn give_up_a_put(&mut self, index: usize) {
        let version = self.draw_version();
        let put = self.draw_put(index, version);
        let (condition, asked) = (put.condition.clone(), put.durability);
        let id = self.model(index, |model| model.begin_write(Some(version)));
        self.note(index, "put, soon given up", u64::from(version));
        let patience = self.runtime.sleep(Duration::from_micros(self.rng.random_range(0..2_000)));
        let shard = self.shard.clone();
        match select(Box::pin(shard.put(put)), Box::pin(patience)).await {
            Either::Left((done, _)) => self.end_put(index, id, &condition, asked, &done),
            Either::Right(_) => {
                self.note(index, "put given up", u64::from(id));
                self.model(index, |model| model.abandon_write(id));
            }
        }
    }

    async fn delete(&self, index: usize) {
        let id = self.model(index, |model| model.begin_write(None));
        let change = self.pin_model(index, PinModel::begin);
        self.note(index, "delete", 0);
        let is_stray = self.is_stray(index);
        let removed = self.shard.delete(&self.key(index)).await;
        count_if(is_stray && matches!(removed, Removed::Done(_)), &self.shared.strays.deleted);
        self.note(index, "deleted", removal_number(&removed));
        self.pin_model(index, |model| model.end_removal(change, &removed));
        let sure = self.model(index, |model| model.end_delete(id, &removed));
        if let (Some(state), Removed::Done(Durability::Origin)) = (sure, &removed) {
            self.require_origin(index, state);
        }
    }

    /// The only way to other bytes in an immutable volume; its flush or relocation may be under way.
    async fn replace(&mut self, index: usize) {
        let version = self.draw_version();
        self.put_version(index, version).await;
        self.delete(index).await;
        self.put_version(index, (version + 1) % super::universe::VERSIONS).await;
    }

    async fn flush(&mut self) {
        let deadline = Duration::from_micros(self.rng.random_range(0..100_000));
        let report = self.shard.flush_all(deadline).await;
        self.note(history::NO_KEY, "flushed all for a while", report.flushed);
    }

    /// Somebody else stores something at the origin where there is nothing.
    fn others_store(&mut self, index: usize) {
        let (universe, key) = (&self.shared.plan.universe, self.key(index));
        let is_quiet = self.model(index, |model| model.is_quiet());
        if !is_quiet || self.origin.meta(&key).is_some() {
            return;
        }
        let is_foreign: bool = self.rng.random();
        self.origin.insert(&key, universe.version(index, 0).body.clone(), is_foreign.then_some("by-others"));
        self.note(index, "others stored version 0", u64::from(is_foreign));
        // A delete that was acknowledged before may still be on its way there, or wait on a disk that is not here.
        let is_listed = || self.shard.dirty_items(usize::MAX).iter().any(|item| item.key == key);
        let is_dirty = self.shard.seat_of(&key).is_none() || is_listed();
        self.model(index, |model| {
            model.others_store(is_foreign);
            model.is_others = !is_dirty;
        });
    }

    /// Reads fillers, so that regions turn over.
    async fn press(&mut self, reader: &Reader) {
        let universe = &self.shared.plan.universe;
        for _ in 0..self.rng.random_range(1..5) {
            let index = self.rng.random_range(universe.written..universe.subjects.len());
            self.read(reader, index).await;
        }
    }
}

fn count_if(holds: bool, count: &Cell<u64>) {
    count.set(count.get() + u64::from(holds));
}

fn put_words(done: &PutDone) -> &'static str {
    match done {
        PutDone::Created(Durability::Disk) => "put: created on disk",
        PutDone::Created(Durability::Origin) => "put: created at the origin",
        PutDone::Unchanged(Durability::Disk) => "put: unchanged on disk",
        PutDone::Unchanged(Durability::Origin) => "put: unchanged at the origin",
        PutDone::KeyExists => "put: key exists",
        PutDone::PreconditionFailed => "put: precondition failed",
        PutDone::Declined(declined) => match declined.reason {
            DeclinedReason::DirtyFull => "put: declined, too much is dirty",
            DeclinedReason::DiskFull => "put: declined, the disk is full",
            DeclinedReason::DiskFault => "put: declined, the disk failed",
            DeclinedReason::FillsFull
            | DeclinedReason::QueueFull
            | DeclinedReason::Stopping
            | DeclinedReason::Unsettled => "put: declined",
        },
        PutDone::Failed(_) => "put: failed",
    }
}

/// For the history: done on disk, done at the origin, dirty, declined, failed.
fn removal_number(removed: &Removed) -> u64 {
    match removed {
        Removed::Done(Durability::Disk) => 0,
        Removed::Done(Durability::Origin) => 1,
        Removed::Dirty => 2,
        Removed::Declined(_) => 3,
        Removed::Failed(_) => 4,
    }
}
