//! One fill: what has come, who waits, what may be sent.
//!
//! Fed by `fill`, joined through `table`. Every waiter gets every byte and the one outcome (I5), whether it came first or
//! last. The last 16 KiB are held back until the whole body has been verified (I8).

use std::cell::RefCell;

use bytes::Bytes;
use futures::channel::{mpsc, oneshot};

use super::table::Joined;
use crate::canary::{self, Canary};
use crate::origin::{Etag, OriginError};
use crate::outcome::{FillRole, FillStream, Got};
use crate::store::Validity;

/// What is not sent before the whole body has been verified.
pub const HELD_BACK_BYTES: u64 = 16 << 10;

/// Waiters of one fill, at most.
pub(crate) const FILL_WAITERS_MAX: usize = 4096;

/// One fill.
pub(super) struct Fill {
    pub(super) validity: Validity,
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
    /// A fill with its first waiter.
    pub(super) fn begin(validity: Validity) -> (Fill, oneshot::Receiver<Got>) {
        let (sender, answer) = oneshot::channel();
        (Fill { validity, state: RefCell::new(State::Asking(vec![(FillRole::Began, sender)])) }, answer)
    }

    /// Length and ETag, once the headers are there.
    pub(super) fn meta(&self) -> Option<(u64, Etag)> {
        match &*self.state.borrow() {
            State::Streaming(streaming) => Some((streaming.len_bytes, streaming.etag.clone())),
            State::Asking(_) => None,
        }
    }

    pub(super) fn join(&self) -> Joined {
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
    pub(super) fn begin_streaming(&self, len_bytes: u64, etag: &Etag) -> bool {
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

    pub(super) fn answer_all(&self, mut answer: impl FnMut() -> Got) {
        if let State::Asking(waiters) = &mut *self.state.borrow_mut() {
            for (_, waiter) in waiters.drain(..) {
                drop(waiter.send(answer()));
            }
        }
    }

    /// The one error for everyone who waits.
    pub(super) fn fail(&self, error: &OriginError) {
        self.answer_all(|| Got::Failed(error.clone()));
        if let State::Streaming(streaming) = &mut *self.state.borrow_mut() {
            streaming.waiters.drain(..).for_each(|waiter| drop(waiter.unbounded_send(Err(error.clone()))));
        }
    }

    /// Takes the next frame and releases what may be sent. `false`: more than was announced.
    pub(super) fn accept(&self, frame: Bytes) -> bool {
        self.streaming(|streaming| streaming.accept(frame))
    }

    /// Nobody waits, and less than half of it is there.
    pub(super) fn is_abandoned(&self) -> bool {
        self.streaming(|streaming| {
            streaming.drop_closed();
            streaming.waiters.is_empty() && streaming.received_bytes <= streaming.len_bytes / 2
        })
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.streaming(|streaming| streaming.received_bytes)
    }

    /// Length and digest agree: the rest may go, and the streams end well.
    pub(super) fn release_rest(&self) {
        self.streaming(|streaming| {
            let rest = std::mem::take(&mut streaming.held_back);
            rest.into_iter().for_each(|frame| streaming.release(frame));
            streaming.complete = true;
            streaming.waiters.clear();
        });
    }

    /// The whole content of a complete fill.
    pub(super) fn whole(&self) -> (Vec<Bytes>, usize) {
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
        let held_back_bytes = if canary::is(Canary::FillTailSentEarly) { 0 } else { HELD_BACK_BYTES };
        let release_before = self.len_bytes.saturating_sub(held_back_bytes);
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
