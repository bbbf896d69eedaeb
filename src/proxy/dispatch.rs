//! Which core owns a block, and the way there: the only file beside `mailbox` that crosses cores.
//!
//! The handler calls a verb of its own core's [`Dispatch`]. If this core owns the key's shard, the shard is called
//! directly; else the verb takes one hop: a message to the owner's mailbox, answered through a oneshot. Only plain `Send`
//! data crosses; the bytes of a disk hit are read by the asking core from its own handle of the slab. A full mailbox
//! declines. A disk hit's pin is a [`Pinned`], given back exactly once (I7), whatever becomes of the request or the answer.

mod here;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay_io::{Disk, IoError, Runtime};
use forebay_shard::dirty::DirtyItem;
use forebay_shard::flush::FlushReport;
use forebay_shard::key::{BlockKey, Generation};
use forebay_shard::origin::{Etag, Origin};
use forebay_shard::outcome::{
    Declined, DeclinedReason, Got, Headed, Located, Pin, PinDone, Put, PutDone, Removed, UnpinDone,
};
use forebay_shard::read::ReadError;
use forebay_shard::shard::Shard;
use forebay_shard::stats::ShardStats;
use forebay_shard::store::slab_name;
use futures::channel::oneshot;

pub use here::{AskHere, Here};

use crate::mailbox::{Receiver, Refused, Sender, mailbox};
use crate::placement::shard_of;
use crate::proxy::heartbeat::{Heartbeat, InFlight};
use crate::proxy::report::{self, CoreReport};

/// When to come back after a full mailbox: it empties in milliseconds.
const MAILBOX_RETRY: Duration = Duration::from_secs(1);

/// An answer and the way it took.
#[derive(Debug)]
pub struct Routed<T> {
    /// The shard that owns the key.
    pub shard: u16,
    /// 0: this core owns it; 1: another one does.
    pub hops: u8,
    /// What the shard said.
    pub answer: T,
}

impl<T> Routed<T> {
    /// The same way, with another answer.
    pub fn map<U>(self, made: impl FnOnce(T) -> U) -> Routed<U> {
        Routed { shard: self.shard, hops: self.hops, answer: made(self.answer) }
    }
}

/// The answer to a GET, with the pin of a disk hit.
pub struct GotPinned<P = Pinned> {
    /// What the shard said. The [`Pin`] inside a [`Located`] is `pinned`'s: nobody else may give it back.
    pub got: Got,
    /// Keeps the bytes of a disk hit where they are; drop it after the last read.
    pub pinned: Option<P>,
}

/// How often this core's verbs stayed, hopped, or found a full mailbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HopCounts {
    /// Answered by a shard of this core.
    pub local: u64,
    /// Sent to another core.
    pub hopped: u64,
    /// Declined: the other core's mailbox was full or gone.
    pub refused: u64,
}

/// The addresses of all cores, made once at start.
#[derive(Clone)]
pub struct Routes {
    shard_count: u16,
    cores: Vec<Sender<Message>>,
}

impl Routes {
    /// Mailboxes for `core_count` cores that share `shard_count` shards, each for at most `capacity` waiting messages.
    #[must_use]
    pub fn new(shard_count: u16, core_count: usize, capacity: usize) -> (Routes, Vec<Inbox>) {
        assert!(core_count > 0 && shard_count > 0, "a node has a core and a shard");
        let (cores, receivers): (Vec<_>, Vec<_>) = (0..core_count).map(|_| mailbox(capacity)).unzip();
        (Routes { shard_count, cores }, receivers.into_iter().map(Inbox).collect())
    }

    /// The core that owns `shard`: they are dealt round-robin.
    #[must_use]
    pub fn core_of(&self, shard: u16) -> usize {
        usize::from(shard) % self.cores.len()
    }

    /// The shards that `core` owns, in order.
    pub fn shards_of(&self, core: usize) -> impl Iterator<Item = u16> + use<> {
        let core_count = self.cores.len();
        (0..self.shard_count).filter(move |shard| usize::from(*shard) % core_count == core)
    }
}

/// What the other cores ask of one core.
pub struct Inbox(Receiver<Message>);

/// One core's view of all shards.
pub struct Dispatch<D: Disk, O: Origin, R: Runtime> {
    core: usize,
    routes: Routes,
    own: Vec<Option<Shard<D, O, R>>>,
    slabs: Vec<Vec<Option<D::File>>>,
    local: Cell<u64>,
    hopped: Cell<u64>,
    refused: Cell<u64>,
}

impl<D: Disk, O: Origin, R: Runtime> Dispatch<D, O, R> {
    /// The dispatch of `core`: its own shards with their numbers, and a read-only handle of every shard's slab on every
    /// disk, in order; `None` for a disk that is not here.
    #[must_use]
    pub fn new(
        core: usize,
        routes: Routes,
        shards: Vec<(u16, Shard<D, O, R>)>,
        slabs: Vec<Vec<Option<D::File>>>,
    ) -> Rc<Self> {
        assert_eq!(slabs.len(), usize::from(routes.shard_count), "the slabs of each shard");
        let mut own: Vec<Option<Shard<D, O, R>>> = (0..routes.shard_count).map(|_| None).collect();
        for (number, shard) in shards {
            let dealt_to = routes.core_of(number);
            assert_eq!(dealt_to, core, "I12: a shard lives on the core it is dealt to");
            own[usize::from(number)] = Some(shard);
        }
        let zero = || Cell::new(0);
        Rc::new(Dispatch { core, routes, own, slabs, local: zero(), hopped: zero(), refused: zero() })
    }

    /// Answers the other cores' messages until every sender is gone. Each verb runs as a task of its own, so that a slow
    /// one holds nobody up.
    pub async fn serve(self: Rc<Self>, mut inbox: Inbox, runtime: R, heartbeat: Rc<Heartbeat>) {
        while let Some(message) = inbox.0.recv().await {
            self.deliver(message, &runtime, heartbeat.enter());
        }
    }

    /// The core, counted from 0.
    #[must_use]
    pub fn core(&self) -> usize {
        self.core
    }

    /// How many shards the node has.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.routes.shard_count
    }

    /// This core's read-only handle of a shard's slab on one disk.
    ///
    /// # Errors
    /// This core could not open it, though the shard's own could.
    pub fn slab(&self, shard: u16, disk: u16) -> Result<&D::File, ReadError> {
        let slab = self.slabs[usize::from(shard)].get(usize::from(disk)).and_then(Option::as_ref);
        slab.ok_or_else(|| ReadError::Disk(IoError::Missing { name: slab_name(shard) }))
    }

    /// How often verbs hopped so far.
    #[must_use]
    pub fn hop_counts(&self) -> HopCounts {
        HopCounts { local: self.local.get(), hopped: self.hopped.get(), refused: self.refused.get() }
    }

    /// This core's own shards.
    pub fn own_shards(&self) -> impl Iterator<Item = (u16, &Shard<D, O, R>)> {
        (0..).zip(&self.own).filter_map(|(number, shard)| shard.as_ref().map(|shard| (number, shard)))
    }

    /// Where the bytes of `key` are.
    pub async fn get(&self, key: &BlockKey) -> Routed<GotPinned> {
        let number = self.owner(key);
        if let Some(shard) = self.own(number) {
            let got = shard.get(key).await;
            let pinned = pin_of(&got).map(|pin| self.pinned(number, pin));
            return routed(number, 0, GotPinned { got, pinned });
        }
        let (answer, answered) = oneshot::channel();
        let message = Message::Get { shard: number, key: key.clone(), answer };
        let got = self.hop(number, message, answered).await;
        routed(number, 1, got.unwrap_or_else(|declined| GotPinned { got: Got::Declined(declined), pinned: None }))
    }

    /// Length and ETag of `key`.
    pub async fn head(&self, key: &BlockKey) -> Routed<Headed> {
        let number = self.owner(key);
        if let Some(shard) = self.own(number) {
            return routed(number, 0, shard.head(key).await);
        }
        let (answer, answered) = oneshot::channel();
        let headed = self.hop(number, Message::Head { shard: number, key: key.clone(), answer }, answered).await;
        routed(number, 1, headed.unwrap_or_else(Headed::Declined))
    }

    /// Stores a block.
    pub async fn put(&self, put: Put) -> Routed<PutDone> {
        let number = self.owner(&put.key);
        if let Some(shard) = self.own(number) {
            return routed(number, 0, shard.put(put).await);
        }
        let (answer, answered) = oneshot::channel();
        let done = self.hop(number, Message::Put { shard: number, put: Box::new(put), answer }, answered).await;
        routed(number, 1, done.unwrap_or_else(PutDone::Declined))
    }

    /// Deletes a block here and at the origin.
    pub async fn delete(&self, key: &BlockKey) -> Routed<Removed> {
        self.remove(key, Removal::Delete).await
    }

    /// Drops a block from this cache.
    pub async fn purge(&self, key: &BlockKey) -> Routed<Removed> {
        self.remove(key, Removal::Purge).await
    }

    /// Keeps a block on its disk, fetching it if need be.
    pub async fn pin(&self, key: &BlockKey) -> Routed<PinDone> {
        let number = self.owner(key);
        if let Some(shard) = self.own(number) {
            return routed(number, 0, shard.pin(key).await);
        }
        let (answer, answered) = oneshot::channel();
        let message = Message::Pin { shard: number, key: key.clone(), answer };
        routed(number, 1, self.hop(number, message, answered).await.unwrap_or_else(PinDone::Declined))
    }

    /// Takes a pin back.
    pub async fn unpin(&self, key: &BlockKey) -> Routed<UnpinDone> {
        let number = self.owner(key);
        if let Some(shard) = self.own(number) {
            return routed(number, 0, shard.unpin_block(key).await);
        }
        let (answer, answered) = oneshot::channel();
        let message = Message::UnpinBlock { shard: number, key: key.clone(), answer };
        routed(number, 1, self.hop(number, message, answered).await.unwrap_or_else(UnpinDone::Declined))
    }

    /// Offers a block that this core read whole and verified to its owner's memory tier. A full mailbox forgets it.
    pub fn offer_memory(&self, key: &BlockKey, generation: Generation, body: Bytes, etag: Etag) {
        let number = self.owner(key);
        match self.own(number) {
            Some(shard) => shard.offer_memory(key, generation, body, etag),
            None => {
                let offer = Message::Offer { shard: number, key: key.clone(), generation, body, etag };
                if self.sender(number).try_send(offer).is_err() {
                    self.refused.set(self.refused.get() + 1);
                }
            }
        }
    }

    /// Tells the owner that the bytes on disk are not those of the record; resolves when it has dealt with that, so that the
    /// next [`Dispatch::get`] of the same request repairs the block.
    ///
    /// # Errors
    /// The owner could not be told.
    pub async fn report_rot(&self, key: &BlockKey, generation: Generation) -> Result<(), Declined> {
        let number = self.owner(key);
        match self.own(number) {
            Some(shard) => {
                shard.report_rot(key, generation).await;
                Ok(())
            }
            None => {
                let (answer, answered) = oneshot::channel();
                let rot = Message::Rot { shard: number, key: key.clone(), generation, answer };
                self.hop(number, rot, answered).await
            }
        }
    }

    /// Every shard's figures, in order of their numbers; a core that can't be asked is left out.
    pub async fn stats(&self) -> Vec<(u16, ShardStats)> {
        self.gather(|shard, answer| Message::Stats { shard, answer }, Shard::stats).await
    }

    /// What every core tells about itself, in order; a core that can't be asked is left out.
    pub async fn reports(&self) -> Vec<CoreReport> {
        let asked = (0..self.routes.cores.len()).map(|core| {
            let (answer, answered) = oneshot::channel();
            let queue_depth = self.routes.cores[core].depth() as u64;
            match self.routes.shards_of(core).next() {
                Some(_) if core == self.core => drop(answer.send(report::this_core())),
                Some(shard) => drop(self.sender(shard).try_send(Message::Report { shard, answer })),
                None => drop(answer),
            }
            async move { answered.await.ok().map(|report| CoreReport { queue_depth, ..report }) }
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Up to `max` dirty records of each shard, oldest first.
    pub async fn dirty_items(&self, max: usize) -> Vec<(u16, Vec<DirtyItem>)> {
        self.gather(|shard, answer| Message::Dirty { shard, max, answer }, |shard| shard.dirty_items(max)).await
    }

    /// Flushes what this core's shards hold dirty, for at most `deadline`.
    pub async fn flush_own(&self, deadline: Duration) -> Vec<(u16, FlushReport)> {
        let flushes = self.own_shards().map(|(number, shard)| async move { (number, shard.flush_all(deadline).await) });
        futures::future::join_all(flushes).await
    }

    /// Closes this core's shards: nothing is acknowledged afterwards.
    pub async fn close_own(&self) {
        futures::future::join_all(self.own_shards().map(|(_, shard)| shard.close())).await;
    }

    async fn gather<T: Send>(
        &self,
        message: impl Fn(u16, oneshot::Sender<T>) -> Message,
        own: impl Fn(&Shard<D, O, R>) -> T,
    ) -> Vec<(u16, T)> {
        let asked = (0..self.shard_count()).map(|number| {
            let (answer, answered) = oneshot::channel();
            match self.own(number) {
                Some(shard) => drop(answer.send(own(shard))),
                None => drop(self.sender(number).try_send(message(number, answer))),
            }
            async move { answered.await.ok().map(|answer| (number, answer)) }
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn remove(&self, key: &BlockKey, removal: Removal) -> Routed<Removed> {
        let number = self.owner(key);
        if let Some(shard) = self.own(number) {
            return routed(number, 0, removal.run(shard, key).await);
        }
        let (answer, answered) = oneshot::channel();
        let message = Message::Remove { shard: number, key: key.clone(), removal, answer };
        routed(number, 1, self.hop(number, message, answered).await.unwrap_or_else(Removed::Declined))
    }

    /// Sends `message` to the owner of `number` and waits for its answer.
    async fn hop<T>(&self, number: u16, message: Message, answered: oneshot::Receiver<T>) -> Result<T, Declined> {
        let declined = |reason| {
            self.refused.set(self.refused.get() + 1);
            Declined { reason, retry_after: MAILBOX_RETRY }
        };
        match self.sender(number).try_send(message) {
            Ok(()) => self.hopped.set(self.hopped.get() + 1),
            Err(Refused::Full(_)) => return Err(declined(DeclinedReason::QueueFull)),
            Err(Refused::Closed(_)) => return Err(declined(DeclinedReason::Stopping)),
        }
        answered.await.map_err(|_| declined(DeclinedReason::Stopping))
    }

    fn owner(&self, key: &BlockKey) -> u16 {
        shard_of(&key.volume, &key.key, self.shard_count())
    }

    /// The shard, if it is this core's; such a call is counted as local.
    fn own(&self, number: u16) -> Option<&Shard<D, O, R>> {
        let shard = self.own[usize::from(number)].as_ref();
        self.local.set(self.local.get() + u64::from(shard.is_some()));
        shard
    }

    fn sender(&self, number: u16) -> &Sender<Message> {
        &self.routes.cores[self.routes.core_of(number)]
    }

    fn pinned(&self, shard: u16, pin: Pin) -> Pinned {
        Pinned { shard, pin, home: self.sender(shard).clone() }
    }

    /// Does what another core asked for.
    fn deliver(self: &Rc<Self>, message: Message, runtime: &R, in_flight: InFlight) {
        let number = message.shard();
        let shard = self.own[usize::from(number)].as_ref().expect("a message goes to the shard's own core");
        match message {
            Message::Unpin { pin, .. } => shard.unpin(pin),
            Message::Offer { key, generation, body, etag, .. } => shard.offer_memory(&key, generation, body, etag),
            Message::Stats { answer, .. } => drop(answer.send(shard.stats())),
            Message::Report { answer, .. } => drop(answer.send(report::this_core())),
            Message::Dirty { max, answer, .. } => drop(answer.send(shard.dirty_items(max))),
            Message::Get { key, answer, .. } => {
                let (shard, dispatch) = (shard.clone(), Rc::clone(self));
                runtime.spawn(async move {
                    let got = shard.get(&key).await;
                    let pinned = pin_of(&got).map(|pin| dispatch.pinned(number, pin));
                    // If nobody waits any more, the pin is given back by being dropped here.
                    drop(answer.send(GotPinned { got, pinned }));
                    drop(in_flight);
                });
            }
            Message::Here { ask, answer, .. } => {
                let (shard, dispatch) = (shard.clone(), Rc::clone(self));
                runtime.spawn(async move { dispatch.answer_here(number, &shard, ask, answer, in_flight).await });
            }
            Message::Head { key, answer, .. } => {
                let shard = shard.clone();
                runtime.spawn(async move {
                    drop(answer.send(shard.head(&key).await));
                    drop(in_flight);
                });
            }
            Message::Put { put, answer, .. } => {
                let shard = shard.clone();
                runtime.spawn(async move {
                    drop(answer.send(shard.put(*put).await));
                    drop(in_flight);
                });
            }
            Message::Remove { key, removal, answer, .. } => {
                let shard = shard.clone();
                runtime.spawn(async move {
                    drop(answer.send(removal.run(&shard, &key).await));
                    drop(in_flight);
                });
            }
            Message::Pin { key, answer, .. } => {
                let shard = shard.clone();
                runtime.spawn(async move {
                    drop(answer.send(shard.pin(&key).await));
                    drop(in_flight);
                });
            }
            Message::UnpinBlock { key, answer, .. } => {
                let shard = shard.clone();
                runtime.spawn(async move {
                    drop(answer.send(shard.unpin_block(&key).await));
                    drop(in_flight);
                });
            }
            Message::Rot { key, generation, answer, .. } => {
                let shard = shard.clone();
                runtime.spawn(async move {
                    shard.report_rot(&key, generation).await;
                    let _ = answer.send(());
                    drop(in_flight);
                });
            }
        }
    }
}

fn routed<T>(shard: u16, hops: u8, answer: T) -> Routed<T> {
    Routed { shard, hops, answer }
}

fn pin_of(got: &Got) -> Option<Pin> {
    match got {
        Got::Disk(Located { pin, .. }) => Some(*pin),
        _ => None,
    }
}

/// A claim on the bytes of a disk hit, given back to the owner when dropped, on whichever core that happens. It goes
/// through the owner's mailbox even on the owner's core, by the lane that never refuses.
pub struct Pinned {
    shard: u16,
    pin: Pin,
    home: Sender<Message>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.home.give_back(Message::Unpin { shard: self.shard, pin: self.pin });
    }
}

/// Which verb takes a block away.
#[derive(Debug, Clone, Copy)]
enum Removal {
    Delete,
    Purge,
}

impl Removal {
    async fn run<D: Disk, O: Origin, R: Runtime>(self, shard: &Shard<D, O, R>, key: &BlockKey) -> Removed {
        match self {
            Removal::Delete => shard.delete(key).await,
            Removal::Purge => shard.purge(key).await,
        }
    }
}

/// What one core asks of another: a shard's number, a verb, and where the answer goes.
enum Message {
    Get { shard: u16, key: BlockKey, answer: oneshot::Sender<GotPinned> },
    Head { shard: u16, key: BlockKey, answer: oneshot::Sender<Headed> },
    Here { shard: u16, ask: AskHere, answer: oneshot::Sender<Here> },
    Put { shard: u16, put: Box<Put>, answer: oneshot::Sender<PutDone> },
    Remove { shard: u16, key: BlockKey, removal: Removal, answer: oneshot::Sender<Removed> },
    Pin { shard: u16, key: BlockKey, answer: oneshot::Sender<PinDone> },
    UnpinBlock { shard: u16, key: BlockKey, answer: oneshot::Sender<UnpinDone> },
    Unpin { shard: u16, pin: Pin },
    Offer { shard: u16, key: BlockKey, generation: Generation, body: Bytes, etag: Etag },
    Rot { shard: u16, key: BlockKey, generation: Generation, answer: oneshot::Sender<()> },
    Stats { shard: u16, answer: oneshot::Sender<ShardStats> },
    Report { shard: u16, answer: oneshot::Sender<CoreReport> },
    Dirty { shard: u16, max: usize, answer: oneshot::Sender<Vec<DirtyItem>> },
}

impl Message {
    fn shard(&self) -> u16 {
        match self {
            Message::Get { shard, .. }
            | Message::Head { shard, .. }
            | Message::Here { shard, .. }
            | Message::Put { shard, .. }
            | Message::Remove { shard, .. }
            | Message::Pin { shard, .. }
            | Message::UnpinBlock { shard, .. }
            | Message::Unpin { shard, .. }
            | Message::Offer { shard, .. }
            | Message::Rot { shard, .. }
            | Message::Stats { shard, .. }
            | Message::Report { shard, .. }
            | Message::Dirty { shard, .. } => *shard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_shard::outcome::Got;

    /// How many pins have come back; nothing else may be in the box.
    fn given_back(inbox: &mut Inbox) -> usize {
        let mut count = 0;
        while let Some(message) = futures::FutureExt::now_or_never(inbox.0.recv()) {
            match message {
                Some(Message::Unpin { shard: 0, pin: Pin { disk: 0, region: 7 } }) => count += 1,
                Some(_) => panic!("only pins come back"),
                None => break,
            }
        }
        count
    }

    fn hit(routes: &Routes) -> GotPinned {
        let pinned = Pinned { shard: 0, pin: Pin { disk: 0, region: 7 }, home: routes.cores[0].clone() };
        GotPinned { got: Got::Absent, pinned: Some(pinned) }
    }

    #[test]
    fn i7_a_pin_comes_back_once_whatever_becomes_of_the_answer() {
        let (routes, mut inboxes) = Routes::new(1, 1, 1);
        let inbox = &mut inboxes[0];
        drop(hit(&routes));
        assert_eq!(given_back(inbox), 1, "the request is done");
        let (answer, answered) = oneshot::channel();
        drop(answered);
        drop(answer.send(hit(&routes)));
        assert_eq!(given_back(inbox), 1, "nobody waits any more");
        let (answer, answered) = oneshot::channel();
        assert!(answer.send(hit(&routes)).is_ok());
        assert_eq!(given_back(inbox), 0, "the answer is on its way");
        drop(answered);
        assert_eq!(given_back(inbox), 1, "it was never received");
    }

    #[test]
    fn i7_a_pin_comes_back_through_a_full_box_from_another_thread() {
        let (routes, mut inboxes) = Routes::new(1, 1, 1);
        let report = || Message::Report { shard: 0, answer: oneshot::channel().0 };
        assert!(routes.cores[0].try_send(report()).is_ok());
        assert!(matches!(routes.cores[0].try_send(report()), Err(Refused::Full(_))));
        let pins: Vec<_> = (0..100).map(|_| hit(&routes)).collect();
        std::thread::spawn(move || drop(pins)).join().expect("the other core");
        let mut count = 0;
        while let Some(Some(message)) = futures::FutureExt::now_or_never(inboxes[0].0.recv()) {
            count += usize::from(matches!(message, Message::Unpin { .. }));
        }
        assert_eq!(count, 100);
    }

    #[test]
    fn shards_are_dealt_round_robin_and_each_to_one_core() {
        let (routes, _inboxes) = Routes::new(5, 2, 1);
        let dealt: Vec<Vec<u16>> = (0..2).map(|core| routes.shards_of(core).collect()).collect();
        assert_eq!(dealt, [vec![0, 2, 4], vec![1, 3]]);
        assert!((0..5).all(|shard| dealt[routes.core_of(shard)].contains(&shard)));
    }
}
