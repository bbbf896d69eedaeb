//! A thread that wakes an executor from outside, a hundred times a second.
//!
//! glommio can park with runnable tasks (GLOMMIO.md, trap 1), and a heartbeat of its own can be among them: when the
//! beat's timer has fired and the turn ends before the beat's task has run, no timer is armed and nothing would ever wake
//! the executor again. On a busy machine that was one start in ten, for ever. A wake from another thread goes through the
//! executor's eventfd and always ends the park. Held by the first future of an executor (`boot`, `node_core`) as long as
//! that one runs; `heartbeat` stays what bounds a stall while requests are in flight.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

/// Between two nudges: the longest that a park with runnable tasks can last.
pub const NUDGE_EVERY: Duration = Duration::from_millis(10);

/// Nudges the executor on which it was started, until it is dropped there.
pub struct Nudge {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Nudge {
    /// Nudges the task that awaits this; it is polled more often than it needs, which does no harm.
    ///
    /// # Errors
    /// No thread can be started.
    pub async fn start() -> anyhow::Result<Nudge> {
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("forebay-nudge".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                waker.wake_by_ref();
                thread::park_timeout(NUDGE_EVERY);
            }
        });
        Ok(Nudge { stop, thread: Some(thread.context("starting the thread that nudges an executor")?) })
    }
}

impl Drop for Nudge {
    /// Waits for the thread, which ends at once: no wake may come after the executor's end.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
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
