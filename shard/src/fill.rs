//! Fills: one fetch per cold key, streamed to everyone who asks while it runs, then published.
//!
//! Begun by `get` on a miss. I5: the table holds at most one joinable fill per key, and all its waiters get its one
//! outcome. I6: a put, delete or purge clears the validity of the key's fills and detaches them from the table, when it
//! begins and again when it ends; in between none gets a validity. I8: the last 16 KiB are held back until length and
//! digest agree. Bounded by `fills_max` and `fill_bytes_max`; beyond them a miss is declined before anything is asked.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use forebay_io::checksum::Digester;
use forebay_io::{Disk, Runtime};
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};

use crate::budget::{Budget, Reservation};
use crate::key::{BlockKey, Generation, Identity, IdentityMap};
use crate::memory::contiguous;
use crate::origin::{Etag, Fetched, Origin, OriginError, OriginErrorKind};
use crate::outcome::{DeclinedReason, FillRole, FillStream, Got};
use crate::shard::Shard;
use crate::store::{Appended, Commit, NewBlock, NewKind, Validity};

/// What is not sent before the whole body has been verified.
pub const HELD_BACK_BYTES: u64 = 16 << 10;

/// Waiters of one fill, at most.
pub(crate) const FILL_WAITERS_MAX: usize = 4096;

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// Joins the key's fill or begins one.
    pub(crate) async fn fill(&self, key: &BlockKey, identity: Identity) -> Got {
        let fills = &self.inner.fills;
        let answer = match fills.join(identity) {
            Some(Joined::Streaming(stream)) => {
                self.inner.counters.collapsed.one();
                return Got::Fill(stream);
            }
            Some(Joined::Asking(answer)) => {
                self.inner.counters.collapsed.one();
                answer
            }
            Some(Joined::Crowded) => return Got::Declined(self.decline(DeclinedReason::FillsFull)),
            None => match self.begin_fill(key, identity) {
                Ok(answer) => answer,
                Err(reason) => return Got::Declined(self.decline(reason)),
            },
        };
        let got = answer.await.unwrap_or_else(|_| Got::Declined(self.decline(DeclinedReason::Stopping)));
        if matches!(got, Got::Absent) {
            self.inner.counters.absent.one();
        }
        got
    }

    fn begin_fill(&self, key: &BlockKey, identity: Identity) -> Result<oneshot::Receiver<Got>, DeclinedReason> {
        if self.inner.stopping.get() {
            return Err(DeclinedReason::Stopping);
        }
        let Some(volume) = self.volume(key) else {
            let (sender, receiver) = oneshot::channel();
            let error = OriginError::new(OriginErrorKind::NoBucket, "this node does not serve the volume");
            drop(sender.send(Got::Failed(error)));
            return Ok(receiver);
        };
        // The length is unknown until the headers are there: the largest block is reserved, the rest given back then.
        let block_bytes_max = volume.block_bytes_max;
        let admitted = self.inner.fills.admit(u64::from(block_bytes_max)).ok_or(DeclinedReason::FillsFull)?;
        self.inner.counters.misses.one();
        let (fill, answer) = self.inner.fills.begin(identity);
        let work = FillWork {
            key: key.clone(),
            identity,
            // Drawn before the fetch: the store refuses to publish it over anything newer, which guards I6 once more.
            generation: self.inner.store.next_generation(),
            block_bytes_max,
            fill,
            admitted,
        };
        self.spawn(self.clone().run_fill(work));
        Ok(answer)
    }

    async fn run_fill(self, mut work: FillWork) {
        let outcome = match self.inner.origin.fetch(&work.key).await {
            Ok(Some(fetched)) if fetched.len_bytes > u64::from(work.block_bytes_max) => {
                let detail =
                    format!("{} bytes, the volume's blocks have at most {}", fetched.len_bytes, work.block_bytes_max);
                Err(OriginError::new(OriginErrorKind::TooLarge, detail))
            }
            Ok(Some(fetched)) => {
                work.admitted.reservation.shrink_to(fetched.len_bytes);
                if work.fill.begin_streaming(fetched.len_bytes, &fetched.etag) {
                    self.stream(&work, fetched).await
                } else {
                    Ok(Ended::Abandoned)
                }
            }
            Ok(None) => {
                work.fill.answer_all(|| Got::Absent);
                Ok(Ended::Absent)
            }
            Err(error) => Err(error),
        };
        let counters = &self.inner.counters;
        match outcome {
            Ok(Ended::Complete(etag)) => self.publish(&work, etag).await,
            Ok(Ended::Abandoned) => counters.fills_abandoned.one(),
            Ok(Ended::Absent) => {}
            Err(error) => {
                counters.fills_failed.one();
                tracing::warn!(volume = %work.key.volume, key = %work.key.key, %error, "a fill failed");
                work.fill.fail(&error);
            }
        }
        self.inner.fills.end(work.identity, &work.fill);
    }

    /// Takes the body frame by frame. Dropping it cancels the GET.
    async fn stream(&self, work: &FillWork, mut fetched: Fetched) -> Result<Ended, OriginError> {
        let corrupt = |detail: &str| Err(OriginError::new(OriginErrorKind::Corrupt, detail));
        let mut digester = Digester::default();
        while let Some(frame) = fetched.body.next().await {
            let frame = frame?;
            digester.update(&frame);
            self.inner.counters.bytes_fetched.add(frame.len() as u64);
            if !work.fill.accept(frame) {
                return corrupt("the body is longer than its headers said");
            }
            if work.fill.is_abandoned() {
                return Ok(Ended::Abandoned);
            }
        }
        if work.fill.received_bytes() != fetched.len_bytes {
            return corrupt("the body is shorter than its headers said");
        }
        if let Etag::Digest(digest) = &fetched.etag
            && digester.finish() != *digest
        {
            return corrupt("the body does not match its digest");
        }
        work.fill.release_rest();
        Ok(Ended::Complete(fetched.etag))
    }

    /// Memory tier first, so that the next GET hits, then disk. The fill stays in the table meanwhile: where the tier
    /// does not take the block, a GET still joins the complete fill.
    async fn publish(&self, work: &FillWork, etag: Etag) {
        if !work.fill.validity.holds() {
            self.inner.counters.fills_invalidated.one();
            return;
        }
        let (frames, len_bytes) = work.fill.whole();
        let frames = if self.inner.memory.borrow().admits(len_bytes as u64) {
            // One copy serves memory and disk, and lets go of the network's buffers.
            let body = contiguous(&frames, len_bytes);
            let mut memory = self.inner.memory.borrow_mut();
            memory.insert(work.identity, work.generation, body.clone(), etag.clone());
            vec![body]
        } else {
            frames
        };
        let block = NewBlock {
            key: work.key.clone(),
            identity: work.identity,
            generation: work.generation,
            frames,
            len_bytes: u32::try_from(len_bytes).expect("a block's length was compared with its volume's maximum"),
            etag,
            kind: NewKind::Clean { validity: work.fill.validity.clone(), commit: Commit::Lazy },
        };
        self.append_clean(block).await;
    }

    /// Appends a block that the origin has; that it can't be kept is no error of anybody's request.
    pub(crate) async fn append_clean(&self, block: NewBlock) {
        let counters = &self.inner.counters;
        match self.inner.store.append(block).await {
            Ok(Appended::Published) => counters.fills_published.one(),
            Ok(Appended::Invalidated) => counters.fills_invalidated.one(),
            Err(error) => {
                counters.appends_failed.one();
                tracing::debug!(%error, "a clean block was not kept on disk");
            }
        }
    }

    /// Keeps a block that a synchronous store has just given to the origin: in memory at once, on disk in the
    /// background while the fill budget has room. Called under the key's lock, after its change has ended.
    pub(crate) fn keep_clean(&self, key: &BlockKey, identity: Identity, frames: Vec<Bytes>, etag: Etag) {
        let len_bytes: usize = frames.iter().map(Bytes::len).sum();
        let generation = self.inner.store.next_generation();
        self.remember(identity, generation, &frames, etag.clone());
        let Some(reservation) = self.inner.fills.budget().reserve(len_bytes as u64) else {
            self.inner.counters.appends_failed.one();
            return;
        };
        let validity = self.inner.fills.validity(identity);
        let block = NewBlock {
            key: key.clone(),
            identity,
            generation,
            frames,
            len_bytes: u32::try_from(len_bytes).expect("a block's length is a u32"),
            etag,
            kind: NewKind::Clean { validity: validity.clone(), commit: Commit::Lazy },
        };
        let shard = self.clone();
        self.spawn(async move {
            shard.append_clean(block).await;
            shard.inner.fills.end_validity(identity, &validity);
            drop(reservation);
        });
    }
}

struct FillWork {
    key: BlockKey,
    identity: Identity,
    generation: Generation,
    block_bytes_max: u32,
    fill: Rc<Fill>,
    admitted: Admitted,
}

enum Ended {
    Complete(Etag),
    Absent,
    Abandoned,
}

/// The fills of a shard, and which keys are being changed.
pub(crate) struct FillTable {
    budget: Rc<Budget>,
    running: Rc<Cell<usize>>,
    running_max: usize,
    keys: Rc<RefCell<IdentityMap<KeyFills>>>,
}

/// What is known of one key; only keys with something to say have it.
#[derive(Default)]
struct KeyFills {
    /// The one that can be joined.
    fill: Option<Rc<Fill>>,
    /// Of all appends that may still publish: of the fill above and of blocks kept after a synchronous store.
    validities: Vec<Validity>,
    /// Puts, deletes and purges in progress.
    changes: usize,
}

impl KeyFills {
    fn invalidate(&mut self) {
        self.validities.drain(..).for_each(|validity| validity.clear());
        self.fill = None;
    }

    fn is_empty(&self) -> bool {
        self.fill.is_none() && self.validities.is_empty() && self.changes == 0
    }
}

/// The right to run one fill.
pub(crate) struct Admitted {
    reservation: Reservation,
    running: Rc<Cell<usize>>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.running.set(self.running.get() - 1);
    }
}

/// A put, delete or purge of a key in progress (I6).
pub(crate) struct ChangeGuard {
    keys: Rc<RefCell<IdentityMap<KeyFills>>>,
    identity: Identity,
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        let mut keys = self.keys.borrow_mut();
        let of_key = keys.get_mut(&self.identity).expect("a change keeps its key in the table");
        of_key.invalidate();
        of_key.changes -= 1;
        if of_key.is_empty() {
            keys.remove(&self.identity);
        }
    }
}

enum Joined {
    Asking(oneshot::Receiver<Got>),
    Streaming(FillStream),
    Crowded,
}

impl FillTable {
    pub(crate) fn new(bytes_max: u64, fills_max: usize) -> FillTable {
        FillTable {
            budget: Budget::new(bytes_max),
            running: Rc::default(),
            running_max: fills_max,
            keys: Rc::default(),
        }
    }

    pub(crate) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    pub(crate) fn running_count(&self) -> usize {
        self.running.get()
    }

    pub(crate) fn begin_change(&self, identity: Identity) -> ChangeGuard {
        let mut keys = self.keys.borrow_mut();
        let of_key = keys.entry(identity).or_default();
        of_key.invalidate();
        of_key.changes += 1;
        ChangeGuard { keys: Rc::clone(&self.keys), identity }
    }

    pub(crate) fn is_changing(&self, identity: Identity) -> bool {
        self.keys.borrow().get(&identity).is_some_and(|of_key| of_key.changes > 0)
    }

    /// The validity of an append that begins now: already cleared while a change of the key is in progress.
    pub(crate) fn validity(&self, identity: Identity) -> Validity {
        let validity = Validity::default();
        let mut keys = self.keys.borrow_mut();
        match keys.entry(identity).or_default() {
            of_key if of_key.changes > 0 => validity.clear(),
            of_key => of_key.validities.push(validity.clone()),
        }
        validity
    }

    /// That append has ended.
    pub(crate) fn end_validity(&self, identity: Identity, ended: &Validity) {
        // Cleared, so that it can be told from the others; nothing looks at it any more.
        ended.clear();
        let mut keys = self.keys.borrow_mut();
        let Some(of_key) = keys.get_mut(&identity) else { return };
        of_key.validities.retain(Validity::holds);
        if of_key.is_empty() {
            keys.remove(&identity);
        }
    }

    /// Length and ETag of the key's fill, once its headers are there.
    pub(crate) fn meta(&self, identity: Identity) -> Option<(u64, Etag)> {
        let fill = self.keys.borrow().get(&identity)?.fill.clone()?;
        let state = fill.state.borrow();
        match &*state {
            State::Streaming(streaming) => Some((streaming.len_bytes, streaming.etag.clone())),
            State::Asking(_) => None,
        }
    }

    /// I5: the fills that can be joined are among those running, and each key has its place.
    pub(crate) fn check(&self) {
        let keys = self.keys.borrow();
        let joinable = keys.values().filter(|of_key| of_key.fill.is_some()).count();
        assert!(joinable <= self.running.get() && self.running.get() <= self.running_max, "I5: fills are counted");
        assert!(keys.values().all(|of_key| !of_key.is_empty()), "only keys with something to say are in the table");
        assert!(
            keys.values().all(|of_key| of_key.changes == 0 || of_key.validities.is_empty()),
            "I6: nothing may be published for a key that is being changed"
        );
        self.budget.check();
    }

    fn admit(&self, block_bytes_max: u64) -> Option<Admitted> {
        if self.running.get() >= self.running_max {
            return None;
        }
        let reservation = self.budget.reserve(block_bytes_max)?;
        self.running.set(self.running.get() + 1);
        Some(Admitted { reservation, running: Rc::clone(&self.running) })
    }

    fn join(&self, identity: Identity) -> Option<Joined> {
        let fill = self.keys.borrow().get(&identity)?.fill.clone()?;
        Some(fill.join())
    }

    fn begin(&self, identity: Identity) -> (Rc<Fill>, oneshot::Receiver<Got>) {
        let (sender, answer) = oneshot::channel();
        let state = RefCell::new(State::Asking(vec![(FillRole::Began, sender)]));
        let fill = Rc::new(Fill { validity: self.validity(identity), state });
        let mut keys = self.keys.borrow_mut();
        let of_key = keys.entry(identity).or_default();
        assert!(of_key.fill.is_none(), "I5: at most one fill per key can be joined");
        of_key.fill = Some(Rc::clone(&fill));
        (fill, answer)
    }

    fn end(&self, identity: Identity, ended: &Rc<Fill>) {
        {
            let mut keys = self.keys.borrow_mut();
            if let Some(of_key) = keys.get_mut(&identity)
                && of_key.fill.as_ref().is_some_and(|fill| Rc::ptr_eq(fill, ended))
            {
                of_key.fill = None;
            }
        }
        self.end_validity(identity, &ended.validity);
    }
}

/// One fill.
struct Fill {
    validity: Validity,
    state: RefCell<State>,
}

enum State {
    /// The origin has not answered yet.
    Asking(Vec<(FillRole, oneshot::Sender<Got>)>),
    Streaming(Streaming),
}

struct Streaming {
    len_bytes: u64,
    etag: Etag,
    received_bytes: u64,
    /// What may be sent, in order; late joiners get all of it at once.
    released: Vec<Bytes>,
    /// The last 16 KiB, as far as they have come.
    held_back: Vec<Bytes>,
    waiters: Vec<mpsc::UnboundedSender<Result<Bytes, OriginError>>>,
    complete: bool,
}

impl Fill {
    fn join(&self) -> Joined {
        match &mut *self.state.borrow_mut() {
            State::Asking(waiters) if waiters.len() >= FILL_WAITERS_MAX => Joined::Crowded,
            State::Asking(waiters) => {
                let (sender, answer) = oneshot::channel();
                waiters.push((FillRole::Joined, sender));
                Joined::Asking(answer)
            }
            State::Streaming(streaming) if streaming.waiters.len() >= FILL_WAITERS_MAX => Joined::Crowded,
            State::Streaming(streaming) => Joined::Streaming(streaming.join(FillRole::Joined)),
        }
    }

    /// Gives every waiter its stream. `false`: nobody waits any more.
    fn begin_streaming(&self, len_bytes: u64, etag: &Etag) -> bool {
        let mut streaming = Streaming {
            len_bytes,
            etag: etag.clone(),
            received_bytes: 0,
            released: Vec::new(),
            held_back: Vec::new(),
            waiters: Vec::new(),
            complete: false,
        };
        let mut state = self.state.borrow_mut();
        let State::Asking(waiters) = &mut *state else { panic!("a fill begins to stream once") };
        for (role, waiter) in std::mem::take(waiters) {
            // Whoever went away drops its stream, which is noticed with the first frame.
            drop(waiter.send(Got::Fill(streaming.join(role))));
        }
        streaming.drop_closed();
        let anyone = !streaming.waiters.is_empty();
        *state = State::Streaming(streaming);
        anyone
    }

    fn answer_all(&self, mut answer: impl FnMut() -> Got) {
        if let State::Asking(waiters) = &mut *self.state.borrow_mut() {
            for (_, waiter) in waiters.drain(..) {
                drop(waiter.send(answer()));
            }
        }
    }

    /// The one error for everyone who waits.
    fn fail(&self, error: &OriginError) {
        self.answer_all(|| Got::Failed(error.clone()));
        if let State::Streaming(streaming) = &mut *self.state.borrow_mut() {
            streaming.waiters.drain(..).for_each(|waiter| drop(waiter.unbounded_send(Err(error.clone()))));
        }
    }

    /// Takes the next frame and releases what may be sent. `false`: more than was announced.
    fn accept(&self, frame: Bytes) -> bool {
        self.streaming(|streaming| streaming.accept(frame))
    }

    /// Nobody waits, and less than half of it is there.
    fn is_abandoned(&self) -> bool {
        self.streaming(|streaming| {
            streaming.drop_closed();
            streaming.waiters.is_empty() && streaming.received_bytes <= streaming.len_bytes / 2
        })
    }

    fn received_bytes(&self) -> u64 {
        self.streaming(|streaming| streaming.received_bytes)
    }

    /// Length and digest agree: the rest may go, and the streams end well.
    fn release_rest(&self) {
        self.streaming(|streaming| {
            let rest = std::mem::take(&mut streaming.held_back);
            rest.into_iter().for_each(|frame| streaming.release(frame));
            streaming.complete = true;
            streaming.waiters.clear();
        });
    }

    /// The whole content of a complete fill.
    fn whole(&self) -> (Vec<Bytes>, usize) {
        self.streaming(|streaming| {
            assert!(streaming.complete, "I8: only a verified body is published");
            let len_bytes = usize::try_from(streaming.len_bytes).expect("a block fits in memory");
            (streaming.released.clone(), len_bytes)
        })
    }

    fn streaming<T>(&self, act: impl FnOnce(&mut Streaming) -> T) -> T {
        match &mut *self.state.borrow_mut() {
            State::Streaming(streaming) => act(streaming),
            State::Asking(_) => panic!("a body comes after its headers"),
        }
    }
}

impl Streaming {
    /// A stream of what has come already and of the rest as it comes.
    fn join(&mut self, role: FillRole) -> FillStream {
        let (sender, frames) = mpsc::unbounded();
        for frame in &self.released {
            sender.unbounded_send(Ok(frame.clone())).expect("its receiver is here");
        }
        if !self.complete {
            self.waiters.push(sender);
        }
        FillStream { role, len_bytes: self.len_bytes, etag: self.etag.clone(), frames }
    }

    fn accept(&mut self, mut frame: Bytes) -> bool {
        let start = self.received_bytes;
        self.received_bytes += frame.len() as u64;
        if self.received_bytes > self.len_bytes {
            return false;
        }
        let release_before = self.len_bytes.saturating_sub(HELD_BACK_BYTES);
        let releasable = release_before.saturating_sub(start).min(frame.len() as u64);
        let head = frame.split_to(usize::try_from(releasable).expect("it is at most the frame's length"));
        if !head.is_empty() {
            self.release(head);
        }
        if !frame.is_empty() {
            self.held_back.push(frame);
        }
        true
    }

    fn release(&mut self, frame: Bytes) {
        self.waiters.retain(|waiter| waiter.unbounded_send(Ok(frame.clone())).is_ok());
        self.released.push(frame);
    }

    fn drop_closed(&mut self) {
        self.waiters.retain(|waiter| !waiter.is_closed());
    }
}
