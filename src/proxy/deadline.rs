//! Deadlines of connections: who is being waited for, since when, and for how long that is all right.
//!
//! hyper's own timers need `Send`, glommio's read timeouts misfire (ARCHITECTURE.md, trap 6), and a timer per request would
//! cost more than the request. So each connection keeps plain counters (`Activity`), which `stream`, `listener` and
//! the bodies update for nothing, and one sweeping task per core looks at them every [`SWEEP`]: a connection that waited
//! too long for its client is told to end. Waiting for us (the disk, the origin) is never the client's fault.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::proxy::tls::Protocol;

/// How often deadlines are looked at; they are late by at most this.
pub const SWEEP: Duration = Duration::from_millis(100);

/// How long a client may let us wait, and how much it must move meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the first byte of a request's head to its last.
    pub header: Duration,
    /// Between requests.
    pub idle: Duration,
    /// The window in which a body must arrive, or at least `window_bytes_min` of it.
    pub body: Duration,
    /// For a request's whole body, however steadily it arrives.
    pub whole_body: Duration,
    /// The window in which the client must take its answer, or at least `window_bytes_min` of it.
    pub reader: Duration,
    /// See `body` and `reader`.
    pub window_bytes_min: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(20),
            whole_body: Duration::from_secs(300),
            reader: Duration::from_secs(30),
            window_bytes_min: 64 << 10,
        }
    }
}

/// What a connection is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// The client's handshake.
    Handshake,
    /// The client's next request.
    Idle,
    /// The rest of a request's head.
    Header,
    /// The rest of a request's body.
    Body,
    /// The client, to take its answer.
    Reader,
    /// Ourselves.
    Us,
}

/// What the connection's task is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Go on.
    None,
    /// Finish what is in flight, then close.
    Drain,
    /// Close now: the client was waited for too long.
    Expire(Waiting),
}

/// One connection's counters. Written by its own core only.
pub(super) struct Activity {
    established: Cell<bool>,
    multiplexed: Cell<bool>,
    /// Plaintext bytes received.
    pub(super) read_bytes: Cell<u64>,
    /// Bytes that the kernel took.
    pub(super) written_bytes: Cell<u64>,
    /// Whether the kernel takes no more for now.
    pub(super) write_blocked: Cell<bool>,
    /// Requests whose answer is not finished.
    pub(super) in_flight: Cell<u32>,
    /// Request bodies that somebody waits for.
    pub(super) bodies_awaited: Cell<u32>,
    /// Answers with a frame that hyper took and has not asked to go on from.
    pub(super) frames_untaken: Cell<u32>,
    /// Requests so far.
    pub(super) requests: Cell<u64>,
    read_bytes_at_idle: Cell<u64>,
    mark: Cell<Mark>,
    /// The request whose body was last waited for, by number, and since when.
    body: Cell<(u64, Duration)>,
    signal: Cell<Signal>,
    waker: RefCell<Option<Waker>>,
}

/// When the present wait began, and where the counters stood.
#[derive(Clone, Copy)]
struct Mark {
    waiting: Waiting,
    since: Duration,
    read_bytes: u64,
    written_bytes: u64,
    requests: u64,
}

impl Activity {
    /// A connection accepted at `now`, on the sweep's clock.
    pub(super) fn new(now: Duration) -> Activity {
        let mark = Mark { waiting: Waiting::Handshake, since: now, read_bytes: 0, written_bytes: 0, requests: 0 };
        Activity {
            established: Cell::new(false),
            multiplexed: Cell::new(false),
            read_bytes: Cell::new(0),
            written_bytes: Cell::new(0),
            write_blocked: Cell::new(false),
            in_flight: Cell::new(0),
            bodies_awaited: Cell::new(0),
            frames_untaken: Cell::new(0),
            requests: Cell::new(0),
            read_bytes_at_idle: Cell::new(0),
            mark: Cell::new(mark),
            body: Cell::new((0, now)),
            signal: Cell::new(Signal::None),
            waker: RefCell::new(None),
        }
    }

    /// The handshake is done. A multiplexed connection's reads tell nothing about heads.
    pub(super) fn establish(&self, protocol: Protocol) {
        self.established.set(true);
        self.multiplexed.set(protocol == Protocol::Http2);
    }

    pub(super) fn request_began(&self) {
        self.requests.set(self.requests.get() + 1);
        self.in_flight.set(self.in_flight.get() + 1);
    }

    pub(super) fn request_ended(&self) {
        let before = self.in_flight.get();
        assert!(before > 0, "a request ends once");
        self.in_flight.set(before - 1);
        self.read_bytes_at_idle.set(self.read_bytes.get());
    }

    pub(super) fn waiting(&self) -> Waiting {
        if !self.established.get() {
            Waiting::Handshake
        } else if self.write_blocked.get() || self.frames_untaken.get() > 0 {
            Waiting::Reader
        } else if self.bodies_awaited.get() > 0 {
            Waiting::Body
        } else if self.in_flight.get() > 0 {
            Waiting::Us
        } else if !self.multiplexed.get() && self.read_bytes.get() != self.read_bytes_at_idle.get() {
            Waiting::Header
        } else {
            Waiting::Idle
        }
    }

    /// Looks at the counters at `now`; says so if the client was waited for too long.
    fn check(&self, now: Duration, deadlines: &Deadlines) -> Option<Waiting> {
        let mark = self.mark.get();
        let waiting = self.waiting();
        let moved_bytes = match waiting {
            Waiting::Body => self.read_bytes.get() - mark.read_bytes,
            Waiting::Reader => self.written_bytes.get() - mark.written_bytes,
            Waiting::Handshake | Waiting::Idle | Waiting::Header | Waiting::Us => 0,
        };
        if waiting == Waiting::Body && self.body_is_overdue(now, deadlines) {
            return Some(waiting);
        }
        let began_anew = waiting != mark.waiting || self.requests.get() != mark.requests;
        if began_anew || moved_bytes >= deadlines.window_bytes_min {
            self.mark.set(Mark {
                waiting,
                since: now,
                read_bytes: self.read_bytes.get(),
                written_bytes: self.written_bytes.get(),
                requests: self.requests.get(),
            });
            return None;
        }
        let limit = match waiting {
            Waiting::Handshake => deadlines.handshake,
            Waiting::Idle => deadlines.idle,
            Waiting::Header => deadlines.header,
            Waiting::Body => deadlines.body,
            Waiting::Reader => deadlines.reader,
            Waiting::Us => return None,
        };
        (now.saturating_sub(mark.since) >= limit).then_some(waiting)
    }

    fn body_is_overdue(&self, now: Duration, deadlines: &Deadlines) -> bool {
        let (request, since) = self.body.get();
        if request != self.requests.get() {
            self.body.set((self.requests.get(), now));
            return false;
        }
        now.saturating_sub(since) >= deadlines.whole_body
    }

    /// Tells the connection's task. An expiry is final; a drain gives way to it.
    pub(super) fn signal(&self, signal: Signal) {
        if !matches!(self.signal.get(), Signal::Expire(_)) {
            self.signal.set(signal);
        }
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// What was told, and wakes the caller when that changes.
    pub(super) fn poll_signal(&self, cx: &mut Context<'_>) -> Signal {
        let mut waker = self.waker.borrow_mut();
        match waker.as_ref() {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
        self.signal.get()
    }

    /// Resolves when the deadline of the present wait has passed.
    pub(super) async fn expired(&self) -> Waiting {
        std::future::poll_fn(|cx| match self.poll_signal(cx) {
            Signal::Expire(waiting) => Poll::Ready(waiting),
            Signal::None | Signal::Drain => Poll::Pending,
        })
        .await
    }

    /// One look by the sweep: ends the connection if its client was waited for too long.
    pub(super) fn sweep(&self, now: Duration, deadlines: &Deadlines) {
        if let Some(waiting) = self.check(now, deadlines) {
            self.signal(Signal::Expire(waiting));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINES: Deadlines = Deadlines {
        handshake: Duration::from_secs(1),
        header: Duration::from_secs(2),
        idle: Duration::from_secs(3),
        body: Duration::from_secs(4),
        whole_body: Duration::from_secs(30),
        reader: Duration::from_secs(5),
        window_bytes_min: 100,
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The second at which `activity` expires when nothing moves any more.
    fn expires(activity: &Activity, from: u64) -> Option<(u64, Waiting)> {
        (from..from + 20).find_map(|second| activity.check(at(second), &DEADLINES).map(|waiting| (second, waiting)))
    }

    fn established() -> Activity {
        let activity = Activity::new(at(0));
        activity.establish(Protocol::Http1);
        activity
    }

    #[test]
    fn each_wait_has_its_deadline() {
        assert_eq!(expires(&Activity::new(at(0)), 0), Some((1, Waiting::Handshake)));
        assert_eq!(expires(&established(), 0), Some((3, Waiting::Idle)));
        let header = established();
        header.read_bytes.set(7);
        assert_eq!(expires(&header, 0), Some((2, Waiting::Header)));
        let body = established();
        body.request_began();
        body.bodies_awaited.set(1);
        assert_eq!(expires(&body, 0), Some((4, Waiting::Body)));
        let reader = established();
        reader.request_began();
        reader.write_blocked.set(true);
        assert_eq!(expires(&reader, 0), Some((5, Waiting::Reader)));
    }

    #[test]
    fn waiting_for_ourselves_never_expires() {
        let activity = established();
        activity.request_began();
        assert_eq!(expires(&activity, 0), None);
        activity.request_ended();
        assert_eq!(expires(&activity, 30), Some((33, Waiting::Idle)));
    }

    #[test]
    fn a_trickle_is_no_progress_and_a_stream_is() {
        let activity = established();
        activity.request_began();
        activity.bodies_awaited.set(1);
        let mut expired_at = None;
        for second in 0..20 {
            activity.read_bytes.set(activity.read_bytes.get() + 10);
            expired_at = expired_at.or(activity.check(at(second), &DEADLINES).map(|_| second));
        }
        assert_eq!(expired_at, Some(4));
        let streaming = established();
        streaming.request_began();
        streaming.bodies_awaited.set(1);
        for second in 0..20 {
            streaming.read_bytes.set(streaming.read_bytes.get() + 50);
            assert_eq!(streaming.check(at(second), &DEADLINES), None, "at {second} s");
        }
        streaming.read_bytes.set(streaming.read_bytes.get() + 5_000);
        assert_eq!(streaming.check(at(30), &DEADLINES), Some(Waiting::Body), "the whole body has a deadline too");
    }

    #[test]
    fn a_ping_on_a_multiplexed_connection_is_no_head() {
        let activity = Activity::new(at(0));
        activity.establish(Protocol::Http2);
        activity.read_bytes.set(7);
        assert_eq!(expires(&activity, 0), Some((3, Waiting::Idle)));
    }

    #[test]
    fn an_expiry_is_final() {
        let activity = established();
        activity.signal(Signal::Expire(Waiting::Idle));
        activity.signal(Signal::Drain);
        assert_eq!(activity.signal.get(), Signal::Expire(Waiting::Idle));
    }
}
