//! The heartbeat of one core: timers that bound how long its executor can sleep with work to do.
//!
//! glommio can park with runnable tasks (ARCHITECTURE.md, trap 1): when the preempt timer fires before any task of a turn has
//! run, the turn passes for idle. A parked executor still wakes for its earliest timer. One timer is not enough: on a busy
//! machine the heartbeat's own task is among those that the park left runnable, its timer spent. So each beat arms a
//! ladder of them, at 1, 2, 4, 8 … beats from now, and the next one ends the park that the last one did not: a stall is at most
//! as long again as the time for which the executor had been kept from its processor. The ladder begins at one beat
//! while anything is in flight and for a short while after, and higher on an idle core, so that it rests.
//! Started by `executor` before anything else of a core; entered by `listener` for connections and by `dispatch` for
//! messages. The regression test is `ci/tests/stall.rs`; `first_beat` covers the time before there is a ladder.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use glommio::timer::Timer;

/// The usual beat. At 1 ms it costs no measurable throughput.
pub const BEAT: Duration = Duration::from_millis(1);

/// How many fast beats go on after the last request left: a client with one connection has nothing in flight between its
/// requests, and arming anew for each of them would leave the gap that the beat is to close.
const BEATS_AFTER: u32 = 200;

/// Beats from one beat to the next on an idle core: the longest that its first request can wait.
const BEATS_AT_REST: u32 = 16;

/// Timers armed by each beat, each twice as far off as the one before: the last at half a minute, at rest at nine.
const RUNGS: u32 = 16;

/// One core's heartbeat.
pub struct Heartbeat {
    in_flight: Cell<usize>,
    /// A short request comes and goes between two beats: a core can be busy with nothing in flight at any beat.
    has_entered: Cell<bool>,
    /// Wakes the beat while it rests.
    resting: RefCell<Option<Waker>>,
    beats: Cell<u64>,
}

impl Heartbeat {
    /// Starts beating every `every` on this core, for as long as its executor lives. `has_begun` is set by the first beat.
    #[must_use]
    pub fn start(every: Duration, has_begun: Arc<AtomicBool>) -> Rc<Heartbeat> {
        let heartbeat = Rc::new(Heartbeat {
            in_flight: Cell::new(0),
            has_entered: Cell::new(false),
            resting: RefCell::new(None),
            beats: Cell::new(0),
        });
        glommio::spawn_local(beat(Rc::clone(&heartbeat), every, has_begun)).detach();
        heartbeat
    }

    /// Something is in flight until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        self.has_entered.set(true);
        if let Some(resting) = self.resting.borrow_mut().take() {
            resting.wake();
        }
        InFlight { heartbeat: Rc::clone(self) }
    }

    /// How often it has beaten.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.get()
    }

    /// Whether it beats slowly, because nothing is in flight.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.resting.borrow().is_some()
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

/// Never ends. Each poll is a beat: a rung was reached, or something entered while it rested.
async fn beat(heartbeat: Rc<Heartbeat>, every: Duration, has_begun: Arc<AtomicBool>) {
    let mut ladder = Ladder::default();
    let mut quiet_beats = 0;
    poll_fn(|cx| {
        heartbeat.beats.set(heartbeat.beats.get() + 1);
        let is_quiet = heartbeat.in_flight.get() == 0 && !heartbeat.has_entered.take();
        quiet_beats = if is_quiet { quiet_beats + 1 } else { 0 };
        let is_at_rest = quiet_beats > BEATS_AFTER;
        *heartbeat.resting.borrow_mut() = is_at_rest.then(|| cx.waker().clone());
        ladder.arm(if is_at_rest { every * BEATS_AT_REST } else { every }, cx);
        has_begun.store(true, Ordering::Release);
        Poll::Pending
    })
    .await
}

/// Timers of which at least one is still ahead, however long the executor was kept from looking at them.
#[derive(Default)]
struct Ladder {
    rungs: Vec<Timer>,
}

impl Ladder {
    /// Arms all rungs anew, the first at `first` from now.
    fn arm(&mut self, first: Duration, cx: &mut Context<'_>) {
        self.rungs.clear();
        for rung in 0..RUNGS {
            let mut timer = Timer::new(first * (1 << rung));
            if Pin::new(&mut timer).poll(cx).is_pending() {
                self.rungs.push(timer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glommio::{LocalExecutorBuilder, Placement};
    use std::time::Instant;

    #[test]
    fn it_beats_while_something_is_in_flight_and_then_rests() {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).make().expect("an executor");
        executor.run(async {
            let heartbeat = Heartbeat::start(Duration::from_micros(200), Arc::default());
            let guard = heartbeat.enter();
            until("it beats", || heartbeat.beats() > u64::from(BEATS_AFTER) + 20).await;
            assert!(!heartbeat.is_at_rest());
            drop(guard);
            until("it rests", || heartbeat.is_at_rest()).await;
            let beats = heartbeat.beats();
            until("it beats at rest", || heartbeat.beats() > beats + 2).await;
            assert!(heartbeat.is_at_rest());
            let again = heartbeat.enter();
            until("it is awake again", || !heartbeat.is_at_rest()).await;
            drop(again);
        });
    }

    #[test]
    fn requests_shorter_than_a_beat_keep_it_awake() {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).make().expect("an executor");
        executor.run(async {
            let heartbeat = Heartbeat::start(Duration::from_micros(200), Arc::default());
            let beats = heartbeat.beats();
            until("twice as many beats as it takes to rest", || {
                drop(heartbeat.enter());
                assert!(!heartbeat.is_at_rest());
                heartbeat.beats() > beats + 2 * u64::from(BEATS_AFTER)
            })
            .await;
        });
    }

    /// What a park with runnable tasks does to the beat: its timer fires, and its task does not run.
    #[test]
    fn while_the_beat_cannot_run_the_next_rungs_still_fire() {
        use std::sync::atomic::AtomicU32;
        struct Count(AtomicU32);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let executor = LocalExecutorBuilder::new(Placement::Unbound).make().expect("an executor");
        executor.run(async {
            let wakes = Arc::new(Count(AtomicU32::new(0)));
            let waker = Waker::from(Arc::clone(&wakes));
            let mut ladder = Ladder::default();
            ladder.arm(Duration::from_micros(100), &mut Context::from_waker(&waker));
            assert_eq!(ladder.rungs.len(), RUNGS as usize);
            // Nobody polls the ladder, and yet it goes on waking.
            until("six rungs were reached", || wakes.0.load(Ordering::Relaxed) >= 6).await;
            let reached = wakes.0.load(Ordering::Relaxed);
            ladder.arm(Duration::from_secs(60), &mut Context::from_waker(&waker));
            glommio::timer::sleep(Duration::from_millis(20)).await;
            assert_eq!(wakes.0.load(Ordering::Relaxed), reached, "the old rungs are gone");
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
