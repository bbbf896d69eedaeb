//! The simulator's executor: one thread, virtual time, and a seeded choice among the tasks that could run, so that
//! one seed is one interleaving and many seeds are many. Driven by [`SimWorld`](super::SimWorld).
//!
//! Invariants: the same seed and program give the same run; time moves only here; a task dropped by a crash is never
//! polled again. When nothing can run and no timer is set, the run panics and says so: that is a deadlock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::runtime::Nanos;

/// Virtual time that one poll takes, so that loops that only yield still see time pass.
const POLL_NS: u64 = 100;
/// Polls after which a run counts as endless.
const POLLS_MAX: u64 = 200_000_000;
/// The future that `block_on` was given.
const ROOT: u64 = 0;

/// The run was cut short by a crash that the test had ordered with `crash_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the simulated world crashed")]
pub struct Crashed;

pub(super) struct Executor {
    seed: u64,
    now: Cell<Nanos>,
    rng: RefCell<SmallRng>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    next_id: Cell<u64>,
    timers: RefCell<BTreeMap<(Nanos, u64), Waker>>,
    ready: Arc<Ready>,
    polls: Cell<u64>,
    /// Set when the power is cut: from then on nothing is polled until the world has settled.
    pub(super) cut: Cell<bool>,
}

struct Task {
    /// Absent while it is being polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Arc<TaskWaker>,
}

#[derive(Default)]
struct Ready(Mutex<Vec<u64>>);

impl Ready {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<u64>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.with(|ids| ids.push(self.id));
        }
    }
}

impl Executor {
    pub(super) fn new(seed: u64) -> Executor {
        Executor {
            seed,
            now: Cell::new(Nanos(1_000_000_000)),
            rng: RefCell::new(SmallRng::seed_from_u64(seed)),
            tasks: RefCell::default(),
            next_id: Cell::new(ROOT + 1),
            timers: RefCell::default(),
            ready: Arc::default(),
            polls: Cell::new(0),
            cut: Cell::new(false),
        }
    }

    pub(super) fn now(&self) -> Nanos {
        self.now.get()
    }

    pub(super) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let id = self.next_id.replace(self.next_id.get() + 1);
        let waker = self.waker(id);
        self.tasks.borrow_mut().insert(id, Task { future: Some(Box::pin(future)), waker: Arc::clone(&waker) });
        waker.wake();
    }

    pub(super) fn sleep(self: &Rc<Self>, duration: Duration) -> Sleep {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Sleep { executor: Rc::clone(self), deadline: Nanos(self.now.get().0.saturating_add(nanos)), timer: None }
    }

    /// Runs `root`, and whatever it spawned, until `root` is done or the power is cut.
    pub(super) fn run<T>(&self, root: impl Future<Output = T>) -> Result<T, Crashed> {
        let mut root = pin!(root);
        let root_waker = self.waker(ROOT);
        Arc::clone(&root_waker).wake();
        loop {
            if self.cut.get() {
                self.ready.with(|ids| ids.retain(|&id| id != ROOT));
                return Err(Crashed);
            }
            self.fire_timers();
            let Some(id) = self.pick() else {
                self.jump();
                continue;
            };
            self.now.set(Nanos(self.now.get().0 + POLL_NS));
            self.polls.set(self.polls.get() + 1);
            assert!(self.polls.get() < POLLS_MAX, "seed {}: {POLLS_MAX} polls and no end", self.seed);
            if id == ROOT {
                root_waker.queued.store(false, Ordering::Relaxed);
                let waker = Waker::from(Arc::clone(&root_waker));
                if let Poll::Ready(output) = root.as_mut().poll(&mut Context::from_waker(&waker))
                    && !self.cut.get()
                {
                    return Ok(output);
                }
            } else {
                self.poll_task(id);
            }
        }
    }

    /// Drops every task and timer, as a power cut does.
    pub(super) fn drop_all(&self) {
        let tasks = self.tasks.take();
        drop(tasks);
        let timers = self.timers.take();
        drop(timers);
        // What the tasks' destructors have spawned goes too.
        let late = self.tasks.take();
        drop(late);
        self.ready.with(Vec::clear);
    }

    fn waker(&self, id: u64) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) })
    }

    fn pick(&self) -> Option<u64> {
        self.ready.with(|ids| match ids.len() {
            0 => None,
            count => Some(ids.swap_remove(self.rng.borrow_mut().random_range(0..count))),
        })
    }

    fn poll_task(&self, id: u64) {
        let taken = self.tasks.borrow_mut().get_mut(&id).and_then(|task| {
            task.waker.queued.store(false, Ordering::Relaxed);
            Some((task.future.take()?, Arc::clone(&task.waker)))
        });
        // A waker that outlives its task wakes nobody.
        let Some((mut future, waker)) = taken else { return };
        match future.as_mut().poll(&mut Context::from_waker(&Waker::from(waker))) {
            Poll::Ready(()) => {
                let done = self.tasks.borrow_mut().remove(&id);
                drop(done);
            }
            Poll::Pending => {
                if let Some(task) = self.tasks.borrow_mut().get_mut(&id) {
                    task.future = Some(future);
                }
            }
        }
    }

    fn fire_timers(&self) {
        let now = self.now.get();
        loop {
            let due = self.timers.borrow_mut().first_entry().filter(|entry| entry.key().0 <= now).map(|e| e.remove());
            match due {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Nothing can run: time goes on to the next timer.
    fn jump(&self) {
        let next = self.timers.borrow().first_key_value().map(|((at, _), _)| *at);
        let Some(at) = next else {
            panic!(
                "simulated deadlock (seed {}, {} ms): nothing can run, no timer is set, {} tasks and the test itself \
                 wait; buffers that are never given back and handles from before a crash look like this",
                self.seed,
                self.now.get().0 / 1_000_000,
                self.tasks.borrow().len(),
            );
        };
        self.now.set(self.now.get().max(at));
    }
}

/// Resolves when virtual time has come.
pub(super) struct Sleep {
    executor: Rc<Executor>,
    deadline: Nanos,
    timer: Option<(Nanos, u64)>,
}

impl Sleep {
    fn cancel(&mut self) {
        if let Some(key) = self.timer.take() {
            let waker = self.executor.timers.borrow_mut().remove(&key);
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.cancel();
        if self.executor.now() >= self.deadline {
            return Poll::Ready(());
        }
        let id = self.executor.next_id.replace(self.executor.next_id.get() + 1);
        let key = (self.deadline, id);
        self.executor.timers.borrow_mut().insert(key, cx.waker().clone());
        self.timer = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}
