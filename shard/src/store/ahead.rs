//! Reads that are begun before anybody waits for them.
//!
//! Called where recovery reads a long stretch in order: `checkpoint` and `scan`. A future does nothing before it is polled,
//! and `FuturesOrdered` polls none while it has results to hand out: reads in flight would come to an end, all of them be
//! decoded, and the device idle meanwhile. Invariant: results come in the order in which reads were begun.

use std::future::{poll_fn, ready};
use std::task::Poll;

use futures::future::{FutureExt, LocalBoxFuture};
use futures::stream::{FuturesOrdered, StreamExt};

/// What is being read, in order.
pub struct Ahead<T> {
    reads: FuturesOrdered<LocalBoxFuture<'static, T>>,
}

impl<T> Default for Ahead<T> {
    fn default() -> Self {
        Ahead { reads: FuturesOrdered::new() }
    }
}

impl<T: 'static> Ahead<T> {
    /// How many were begun and not taken.
    #[must_use]
    pub fn count(&self) -> usize {
        self.reads.len()
    }

    /// Begins one, behind all others.
    pub async fn begin(&mut self, read: impl Future<Output = T> + 'static) {
        let mut read = read.boxed_local();
        let polled = poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
        self.reads.push_back(match polled {
            Poll::Ready(result) => ready(result).boxed_local(),
            Poll::Pending => read,
        });
    }

    /// Waits for the first; `None` if there is none.
    pub async fn next(&mut self) -> Option<T> {
        self.reads.next().await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use futures::channel::oneshot;
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_read_begins_while_results_wait_to_be_taken() {
        let begun = Rc::new(Cell::new(0));
        let mut ahead = Ahead::default();
        let mut answers = Vec::new();
        block_on(async {
            for number in 0..6 {
                let (answer, answered) = oneshot::channel();
                answers.push(Some(answer));
                let count = Rc::clone(&begun);
                let read = async move {
                    count.set(count.get() + 1);
                    (number, answered.await.is_ok())
                };
                ahead.begin(read).await;
                assert_eq!(begun.get(), number + 1, "it began before anybody waited for it");
                // The first three are answered in the other order, so that two wait to be taken.
                if number == 2 {
                    (0..3).rev().for_each(|at| answers[at].take().unwrap().send(()).unwrap());
                    assert_eq!(ahead.next().await, Some((0, true)));
                }
            }
            assert_eq!(ahead.count(), 5);
            answers.into_iter().flatten().for_each(|answer| answer.send(()).unwrap());
            for number in 1..6 {
                assert_eq!(ahead.next().await, Some((number, true)));
            }
            assert_eq!(ahead.next().await, None);
        });
    }
}
