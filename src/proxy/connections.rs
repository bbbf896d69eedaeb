//! The open connections of one core: how many, how long they may wait, and how they are told to end.
//!
//! `listener` registers each connection here; one sweep task per core checks their deadlines while there are any; `drain`
//! tells them to finish. The cap bounds memory (promise 5 in ARCHITECTURE.md): a connection beyond it is closed at once, which costs
//! less than a handshake.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::deadline::{Activity, Deadlines, SWEEP, Signal, Waiting};

/// The open connections of one core.
pub struct Connections {
    count_max: usize,
    deadlines: Deadlines,
    began: Instant,
    open: RefCell<BTreeMap<u64, Rc<Activity>>>,
    next_id: Cell<u64>,
    draining: Cell<bool>,
    is_sweeping: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
    counts: Cell<ConnectionCounts>,
}

/// What happened to connections so far; plain data for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Open now.
    pub open: u64,
    /// Accepted.
    pub accepted: u64,
    /// Closed at once: the cap was reached.
    pub over_cap: u64,
    /// TLS handshakes that failed.
    pub handshakes_failed: u64,
    /// Closed because the client was waited for too long, by what was waited for.
    pub expired_handshake: u64,
    /// As above: between requests.
    pub expired_idle: u64,
    /// As above: within a head.
    pub expired_header: u64,
    /// As above: within a body.
    pub expired_body: u64,
    /// As above: the client did not take its answer.
    pub expired_reader: u64,
}

impl Connections {
    /// At most `count_max` connections at once.
    #[must_use]
    pub fn new(count_max: usize, deadlines: Deadlines) -> Rc<Connections> {
        Rc::new(Connections {
            count_max,
            deadlines,
            began: Instant::now(),
            open: RefCell::default(),
            next_id: Cell::new(0),
            draining: Cell::new(false),
            is_sweeping: Cell::new(false),
            waiters: RefCell::default(),
            counts: Cell::default(),
        })
    }

    /// A new connection, unless there are too many.
    pub(super) fn register(self: &Rc<Self>) -> Option<Registered> {
        if self.open.borrow().len() >= self.count_max {
            self.count(|counts| counts.over_cap += 1);
            return None;
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        let activity = Rc::new(Activity::new(self.began.elapsed()));
        self.open.borrow_mut().insert(id, Rc::clone(&activity));
        self.count(|counts| counts.accepted += 1);
        if !self.is_sweeping.replace(true) {
            glommio::spawn_local(sweep(Rc::clone(self))).detach();
        }
        if self.draining.get() {
            activity.signal(Signal::Drain);
        }
        Some(Registered { connections: Rc::clone(self), id, activity })
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> ConnectionCounts {
        ConnectionCounts { open: self.open.borrow().len() as u64, ..self.counts.get() }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut ConnectionCounts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    pub(super) fn count_expired(&self, waiting: Waiting) {
        self.count(|counts| match waiting {
            Waiting::Handshake => counts.expired_handshake += 1,
            Waiting::Idle => counts.expired_idle += 1,
            Waiting::Header => counts.expired_header += 1,
            Waiting::Body => counts.expired_body += 1,
            Waiting::Reader => counts.expired_reader += 1,
            Waiting::Us => {}
        });
    }

    /// Tells every connection, and those still to come, to finish what is in flight and close; accept loops end.
    pub fn drain(&self) {
        self.draining.set(true);
        self.open.borrow().values().for_each(|activity| activity.signal(Signal::Drain));
        self.wake();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Resolves when the drain has begun.
    pub(super) async fn draining(&self) {
        self.wait_until(|| self.draining.get()).await;
    }

    /// Resolves when no connection is open.
    pub async fn closed(&self) {
        self.wait_until(|| self.open.borrow().is_empty()).await;
    }

    async fn wait_until(&self, condition: impl Fn() -> bool) {
        poll_fn(|cx| {
            if condition() {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waiter| waiter.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn wake(&self) {
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(Waker::wake);
    }
}

async fn sweep(connections: Rc<Connections>) {
    loop {
        glommio::timer::sleep(SWEEP).await;
        let now: Duration = connections.began.elapsed();
        let open = connections.open.borrow();
        if open.is_empty() {
            connections.is_sweeping.set(false);
            return;
        }
        open.values().for_each(|activity| activity.sweep(now, &connections.deadlines));
    }
}

/// One connection's place among the others, given up when dropped.
pub(super) struct Registered {
    connections: Rc<Connections>,
    id: u64,
    pub(super) activity: Rc<Activity>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(&self.id);
        if self.connections.open.borrow().is_empty() {
            self.connections.wake();
        }
    }
}
