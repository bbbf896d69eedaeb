//! A bounded queue into one core or into the origin pool: the only way a message crosses threads.
//!
//! Many senders, one receiver that awaits. `try_send` never blocks and never allocates; a full box is an answer (the
//! caller declines). What crosses is plain `Send` data. Works on glommio and on tokio alike, because waking goes
//! through `std::task::Waker` (both wake a parked executor from another thread).
//!
//! Beside the box there is a lane for what must not be refused: messages that give something back (a pin). Each follows
//! an answer that was admitted, so there are never more of them than requests in flight.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use crossbeam::queue::{ArrayQueue, SegQueue};
use futures::task::AtomicWaker;

/// A new mailbox for at most `capacity` waiting messages.
#[must_use]
pub fn mailbox<T: Send>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        given_back: SegQueue::new(),
        waker: AtomicWaker::new(),
        senders: AtomicUsize::new(1),
        receiver_gone: AtomicBool::new(false),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

/// The message was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// The box is full: come back later.
    Full(T),
    /// Nobody will ever receive it.
    Closed(T),
}

/// The sending side; clone it for each sender.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving side.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

impl<T: Send> Sender<T> {
    /// Leaves `message` in the box and wakes the receiver.
    ///
    /// # Errors
    /// [`Refused`] gives the message back.
    pub fn try_send(&self, message: T) -> Result<(), Refused<T>> {
        if self.shared.receiver_gone.load(Ordering::Acquire) {
            return Err(Refused::Closed(message));
        }
        self.shared.queue.push(message).map_err(Refused::Full)?;
        self.shared.waker.wake();
        if self.shared.receiver_gone.load(Ordering::Acquire) {
            // It left between the check and the push: nothing may lie in a box that nobody empties.
            self.shared.drain();
        }
        Ok(())
    }

    /// Leaves a message that gives back what an earlier answer handed out; never refused. It is dropped if nobody will
    /// ever receive it: then there is nobody to give it back to.
    pub fn give_back(&self, message: T) {
        self.shared.given_back.push(message);
        self.shared.waker.wake();
        if self.shared.receiver_gone.load(Ordering::Acquire) {
            self.shared.drain();
        }
    }

    /// How many messages wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.shared.queue.len()
    }
}

impl<T: Send> Receiver<T> {
    /// The next message, in order of arrival, but what is given back first; `None` when the box is empty and every sender is gone.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| {
            if let Some(message) = self.shared.pop() {
                return Poll::Ready(Some(message));
            }
            self.shared.waker.register(cx.waker());
            // A message may have come between the pop and the registration.
            match self.shared.pop() {
                Some(message) => Poll::Ready(Some(message)),
                None if self.shared.senders.load(Ordering::Acquire) == 0 => Poll::Ready(self.shared.pop()),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Sender { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.waker.wake();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receiver_gone.store(true, Ordering::Release);
        self.shared.drain();
    }
}

struct Shared<T> {
    queue: ArrayQueue<T>,
    given_back: SegQueue<T>,
    waker: AtomicWaker,
    senders: AtomicUsize,
    receiver_gone: AtomicBool,
}

impl<T> Shared<T> {
    fn pop(&self) -> Option<T> {
        self.given_back.pop().or_else(|| self.queue.pop())
    }

    /// Drops what is left. Whoever waits for an answer to such a message learns that it won't come: its oneshot is
    /// dropped with it.
    fn drain(&self) {
        while self.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_from_several_threads_all_arrive() {
        let (sender, mut receiver) = mailbox::<u32>(8);
        let threads: Vec<_> = (0..4u32)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for n in 0..1_000 {
                        let mut message = thread * 1_000 + n;
                        while let Err(refused) = sender.try_send(message) {
                            match refused {
                                Refused::Full(back) => message = back,
                                Refused::Closed(_) => panic!("the receiver is alive"),
                            }
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut got: Vec<u32> = futures::executor::block_on(async {
            let mut got = Vec::new();
            while let Some(message) = receiver.recv().await {
                got.push(message);
            }
            got
        });
        threads.into_iter().for_each(|thread| thread.join().expect("a sender panicked"));
        got.sort_unstable();
        assert_eq!(got, (0..4_000).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_given_back_is_never_refused_and_comes_first() {
        let (sender, mut receiver) = mailbox::<u32>(1);
        assert_eq!(sender.try_send(1), Ok(()));
        (2..100).for_each(|n| sender.give_back(n));
        drop(sender);
        let mut got = Vec::new();
        while let Some(message) = futures::executor::block_on(receiver.recv()) {
            got.push(message);
        }
        assert_eq!(got, (2..100).chain([1]).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_and_a_closed_box_give_the_message_back() {
        let (sender, receiver) = mailbox::<u32>(1);
        assert_eq!(sender.try_send(1), Ok(()));
        assert_eq!(sender.try_send(2), Err(Refused::Full(2)));
        drop(receiver);
        assert_eq!(sender.try_send(3), Err(Refused::Closed(3)));
    }
}
