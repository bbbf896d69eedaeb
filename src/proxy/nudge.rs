//! A thread that wakes an executor from outside.
//!
//! glommio can park with runnable tasks (ARCHITECTURE.md, trap 1), and a heartbeat of its own can be among them: when the
//! beat's timer has fired and the turn ends before the beat's task has run, no timer is armed and nothing would ever wake
//! the executor again. On a busy machine that was one start in ten, for ever. A wake from another thread goes through the
//! executor's eventfd and always ends the park. Held by the first future of an executor (`boot`, `node_core`, `null`) as long
//! as that one runs; `heartbeat` says when it must be fast.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use anyhow::Context;

/// Between two nudges of an executor that has something in flight: a stall is never longer, however busy the machine.
pub const NUDGE_BUSY: Duration = Duration::from_millis(3);
/// Between two nudges of an idle one: the longest that its first request can wait.
pub const NUDGE_IDLE: Duration = Duration::from_millis(20);

/// Nudges the executor on which it was started, until it is dropped there.
pub struct Nudge {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    is_stopped: AtomicBool,
    is_busy: AtomicBool,
}

/// How often an executor is nudged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// Every [`NUDGE_BUSY`].
    Busy,
    /// Every [`NUDGE_IDLE`].
    Idle,
}

/// Sets the speed of a [`Nudge`].
#[derive(Clone)]
pub struct Pace {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Nudge {
    /// Nudges the task that awaits this; it is polled more often than it needs, which does no harm. It begins busy.
    ///
    /// # Errors
    /// No thread can be started.
    pub async fn start() -> anyhow::Result<Nudge> {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let shared = Arc::new(Shared { is_stopped: AtomicBool::new(false), is_busy: AtomicBool::new(true) });
        let seen = Arc::clone(&shared);
        let thread = thread::Builder::new().name("forebay-nudge".to_owned()).spawn(move || {
            while !seen.is_stopped.load(Ordering::Acquire) {
                waker.wake_by_ref();
                thread::park_timeout(if seen.is_busy.load(Ordering::Relaxed) { NUDGE_BUSY } else { NUDGE_IDLE });
            }
        });
        Ok(Nudge { shared, thread: Some(thread.context("starting the thread that nudges an executor")?) })
    }

    /// What sets its speed.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let thread = self.thread.as_ref().expect("it runs until it is dropped").thread().clone();
        Pace { shared: Arc::clone(&self.shared), thread }
    }
}

impl Pace {
    /// From now on at `speed`.
    pub fn set(&self, speed: Speed) {
        self.shared.is_busy.store(speed == Speed::Busy, Ordering::Relaxed);
        if speed == Speed::Busy {
            self.thread.unpark();
        }
    }

    /// The present speed.
    #[must_use]
    pub fn speed(&self) -> Speed {
        if self.shared.is_busy.load(Ordering::Relaxed) { Speed::Busy } else { Speed::Idle }
    }
}

impl Drop for Nudge {
    /// Waits for the thread, which ends at once: no wake may come after the executor's end.
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "waking does not panic");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use glommio::{LocalExecutorBuilder, Placement};

    #[test]
    fn a_task_that_nothing_else_wakes_is_polled_again_and_again() {
        let executor = LocalExecutorBuilder::new(Placement::Unbound).make().unwrap();
        let polls = executor.run(async {
            let _nudge = Nudge::start().await.unwrap();
            let mut polls = 0;
            // Returns `Pending` without leaving its waker anywhere: only nudges can bring it to its end.
            poll_fn(|_| {
                polls += 1;
                if polls > 20 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            polls
        });
        assert_eq!(polls, 21);
    }
}
