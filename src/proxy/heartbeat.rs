//! The heartbeat of one core: a timer that bounds how long the executor can sleep while requests are in flight.
//!
//! glommio can park with runnable tasks (GLOMMIO.md, trap 1): when the preempt timer fires before any task of a turn has
//! run, the turn passes for idle. A parked executor still wakes for its earliest timer, so a task that always has one
//! armed bounds the stall to one beat. On a busy machine the beat itself may be among the tasks that the park left runnable,
//! its timer spent: then nothing would ever wake the executor. So the beat holds a [`Ladder`] of timers, each four times as
//! long as the one before: to spend them all, the executor would have to park wrongly once on every rung. It beats fast only while something is in flight, and for a short while after, so
//! that a busy core never finds it disarmed; an idle core still beats [`IDLE_BEAT`], because the first request of all, or
//! the first message from another core, can be met by the same park. Started by `node_core` and `null`; entered by
//! `listener` for connections and by `dispatch` for messages. The regression test is `ci/tests/stall.rs`.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::select;
use glommio::timer::Timer;

/// The usual beat. At 1 ms it costs no measurable throughput.
pub const BEAT: Duration = Duration::from_millis(1);

/// The beat of an idle core: 40 wake-ups a second cost it less than a thousandth of its processor.
pub const IDLE_BEAT: Duration = Duration::from_millis(25);

/// How many fast beats go on after the last request left: a client with one connection has nothing in flight between its
/// requests, and arming anew for each of them would leave the gap that the beat is to close.
const BEATS_AFTER: u32 = 200;

/// The timers of a beat, and how much longer each is than the one before: 1 ms, 4 ms, 16 ms … 16 s.
const RUNGS: u32 = 8;
const RUNG_RATIO: u32 = 4;

/// One core's heartbeat.
pub struct Heartbeat {
    in_flight: Cell<usize>,
    sleeper: RefCell<Option<Waker>>,
    beats: Cell<u64>,
}

impl Heartbeat {
    /// Starts beating every `every` on this core. `Duration::ZERO` never beats: only to show what it is for.
    #[must_use]
    pub fn start(every: Duration) -> Rc<Heartbeat> {
        let heartbeat =
            Rc::new(Heartbeat { in_flight: Cell::new(0), sleeper: RefCell::new(None), beats: Cell::new(0) });
        if !every.is_zero() {
            glommio::spawn_local(beat(Rc::clone(&heartbeat), every)).detach();
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

async fn beat(heartbeat: Rc<Heartbeat>, every: Duration) {
    let (mut busy, mut idle) = (Ladder::new(every), Ladder::new(IDLE_BEAT));
    let mut quiet_beats = 0;
    loop {
        if quiet_beats < BEATS_AFTER {
            busy.next().await;
        } else {
            select(pin!(idle.next()), pin!(first_entry(&heartbeat))).await;
        }
        heartbeat.beats.set(heartbeat.beats.get() + 1);
        quiet_beats = if heartbeat.in_flight.get() == 0 { BEATS_AFTER.min(quiet_beats + 1) } else { 0 };
    }
}

/// Timers of which some are always armed.
struct Ladder {
    rungs: Vec<Rung>,
}

struct Rung {
    period: Duration,
    due: Instant,
    timer: Timer,
}

impl Ladder {
    /// A ladder whose first rung is `first` long.
    fn new(first: Duration) -> Ladder {
        let periods = (0..RUNGS).map(|rung| first * RUNG_RATIO.pow(rung));
        let now = Instant::now();
        Ladder { rungs: periods.map(|period| Rung { period, due: now + period, timer: Timer::new(period) }).collect() }
    }

    /// Resolves when any rung is due. The first is set anew each time, a longer one when half of it has passed.
    async fn next(&mut self) {
        let now = Instant::now();
        for (number, rung) in self.rungs.iter_mut().enumerate() {
            if number == 0 || rung.due < now + rung.period / 2 {
                rung.due = now + rung.period;
                rung.timer = Timer::new(rung.period);
            }
        }
        poll_fn(|cx| {
            // Each must be looked at: looking is what arms it.
            let due =
                self.rungs.iter_mut().filter_map(|rung| Pin::new(&mut rung.timer).poll(cx).is_ready().then_some(()));
            if due.count() > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
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
    use glommio::{LocalExecutorBuilder, Placement};

    #[test]
    fn it_beats_fast_while_something_is_in_flight_and_slowly_else() {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).make().expect("an executor");
        executor.run(async {
            let heartbeat = Heartbeat::start(Duration::from_micros(200));
            let guard = heartbeat.enter();
            until("it beats", || heartbeat.beats() > 20).await;
            drop(guard);
            until("it slows down", || heartbeat.sleeper.borrow().is_some()).await;
            let beats = heartbeat.beats();
            until("it still beats", || heartbeat.beats() > beats + 2).await;
            let (beats, began) = (heartbeat.beats(), Instant::now());
            glommio::timer::sleep(IDLE_BEAT * 4).await;
            let most = began.elapsed().as_millis() / IDLE_BEAT.as_millis() + 1;
            assert!(u128::from(heartbeat.beats() - beats) <= most, "an idle core is woken rarely");
            let (beats, again) = (heartbeat.beats(), heartbeat.enter());
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
