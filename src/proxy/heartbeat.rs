//! The heartbeat of one core: a timer that bounds how long the executor can sleep while requests are in flight.
//!
//! glommio can park with runnable tasks (ARCHITECTURE.md, trap 1): when the preempt timer fires before any task of a turn has
//! run, the turn passes for idle. A parked executor still wakes for its earliest timer, so a task that always has one
//! armed bounds the stall to one beat. On a busy machine the beat itself may be among the tasks that the park left runnable,
//! its timer spent: then the `nudge` from outside ends the park, at the pace that is set here. Both are fast only while
//! something is in flight, and for a short while after, so that a busy core never finds them slow and an idle one rests.
//! Started by `node_core` and `null`; entered by `listener` for connections and by `dispatch` for messages. The
//! regression test is `ci/tests/stall.rs`.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::nudge::{Pace, Speed};

/// The usual beat. At 1 ms it costs no measurable throughput.
pub const BEAT: Duration = Duration::from_millis(1);

/// How many fast beats go on after the last request left: a client with one connection has nothing in flight between its
/// requests, and arming anew for each of them would leave the gap that the beat is to close.
const BEATS_AFTER: u32 = 200;

/// One core's heartbeat.
pub struct Heartbeat {
    in_flight: Cell<usize>,
    sleeper: RefCell<Option<Waker>>,
    beats: Cell<u64>,
}

impl Heartbeat {
    /// Starts beating every `every` on this core, and sets the pace of its nudges. `Duration::ZERO` never beats: only to
    /// show what it is for.
    #[must_use]
    pub fn start(every: Duration, pace: Pace) -> Rc<Heartbeat> {
        let heartbeat =
            Rc::new(Heartbeat { in_flight: Cell::new(0), sleeper: RefCell::new(None), beats: Cell::new(0) });
        if !every.is_zero() {
            glommio::spawn_local(beat(Rc::clone(&heartbeat), every, pace)).detach();
        }
        heartbeat
    }

    /// Something is in flight until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Rc<Self>) -> InFlight {
        let before = self.in_flight.replace(self.in_flight.get() + 1);
        if before == 0
            && let Some(sleeper) = self.sleeper.borrow_mut().take()
        {
            sleeper.wake();
        }
        InFlight { heartbeat: Rc::clone(self) }
    }

    /// How many guards are held.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// How often it has beaten.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.get()
    }
}

/// Held while a request is in flight.
pub struct InFlight {
    heartbeat: Rc<Heartbeat>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let before = self.heartbeat.in_flight.get();
        assert!(before > 0, "a guard is dropped once");
        self.heartbeat.in_flight.set(before - 1);
    }
}

async fn beat(heartbeat: Rc<Heartbeat>, every: Duration, pace: Pace) {
    let mut quiet_beats = 0;
    loop {
        if quiet_beats >= BEATS_AFTER {
            pace.set(Speed::Idle);
            first_entry(&heartbeat).await;
            pace.set(Speed::Busy);
            quiet_beats = 0;
        }
        glommio::timer::sleep(every).await;
        heartbeat.beats.set(heartbeat.beats.get() + 1);
        quiet_beats = if heartbeat.in_flight.get() == 0 { quiet_beats + 1 } else { 0 };
    }
}

async fn first_entry(heartbeat: &Heartbeat) {
    poll_fn(|cx| {
        if heartbeat.in_flight.get() > 0 {
            return Poll::Ready(());
        }
        *heartbeat.sleeper.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::nudge::Nudge;
    use glommio::{LocalExecutorBuilder, Placement};
    use std::time::Instant;

    #[test]
    fn it_beats_while_something_is_in_flight_and_then_rests() {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).make().expect("an executor");
        executor.run(async {
            let nudge = Nudge::start().await.expect("a thread");
            let heartbeat = Heartbeat::start(Duration::from_micros(200), nudge.pace());
            let guard = heartbeat.enter();
            until("it beats", || heartbeat.beats() > 20).await;
            assert_eq!(nudge.pace().speed(), Speed::Busy);
            drop(guard);
            until("it rests", || nudge.pace().speed() == Speed::Idle).await;
            let beats = heartbeat.beats();
            let again = heartbeat.enter();
            until("it beats again", || heartbeat.beats() > beats + 20).await;
            drop(again);
            assert_eq!(heartbeat.in_flight(), 0);
        });
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}: not within 20 s");
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
    }
}
