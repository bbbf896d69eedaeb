//! The byte semaphore over buffers in flight. A disk takes [`Room`] before it makes a buffer, so that the ring's
//! registered memory never overflows into the heap (there a 4 MiB read costs 25 times the CPU).
//!
//! Called by `ring` and, with the same bounds, by `sim`, so that a design that would starve itself shows in the
//! simulator as a deadlock. Invariants: the bytes of all rooms never exceed the capacity; first come, first served
//! (a large request is not overtaken for ever by small ones). Sizes count as powers of two, as a buddy allocator does.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A bound on the bytes of buffers in flight on one core. Clones share it.
#[derive(Clone)]
pub(crate) struct Arena(Rc<RefCell<State>>);

struct State {
    capacity_bytes: usize,
    free_bytes: usize,
    next_ticket: u64,
    /// In order of arrival; the front alone may be served.
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    ticket: u64,
    bytes: usize,
    waker: Waker,
}

impl Arena {
    pub(crate) fn new(capacity_bytes: usize) -> Arena {
        let waiters = VecDeque::new();
        Arena(Rc::new(RefCell::new(State { capacity_bytes, free_bytes: capacity_bytes, next_ticket: 0, waiters })))
    }

    /// Room for a buffer of `len` bytes; waits for its turn.
    ///
    /// # Panics
    /// If such a buffer could never fit: the configuration must be checked against the largest transfer.
    pub(crate) fn room(&self, len: usize) -> Waiting {
        let bytes = len.next_power_of_two();
        let capacity_bytes = self.0.borrow().capacity_bytes;
        assert!(bytes <= capacity_bytes, "a buffer of {bytes} bytes in an arena of {capacity_bytes}");
        Waiting { arena: self.clone(), bytes, ticket: None }
    }

    /// Bytes that are not in any room.
    #[cfg(test)]
    pub(crate) fn free_bytes(&self) -> usize {
        self.0.borrow().free_bytes
    }

    fn wake_front(&self) {
        let state = self.0.borrow();
        if let Some(front) = state.waiters.front()
            && front.bytes <= state.free_bytes
        {
            front.waker.wake_by_ref();
        }
    }
}

/// A share of the arena, given back on drop.
pub(crate) struct Room {
    arena: Arena,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        {
            let mut state = self.arena.0.borrow_mut();
            state.free_bytes += self.bytes;
            assert!(state.free_bytes <= state.capacity_bytes, "room given back twice");
        }
        self.arena.wake_front();
    }
}

/// Resolves to the room asked for. May be dropped at any time.
pub(crate) struct Waiting {
    arena: Arena,
    bytes: usize,
    /// Its place in the queue; `None` before the first poll and after the last.
    ticket: Option<u64>,
}

impl Future for Waiting {
    type Output = Room;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Room> {
        let arena = self.arena.clone();
        let mut state = arena.0.borrow_mut();
        let first = state.waiters.front().map(|front| front.ticket);
        if first == self.ticket && self.bytes <= state.free_bytes {
            if self.ticket.take().is_some() {
                state.waiters.pop_front();
            }
            state.free_bytes -= self.bytes;
            drop(state);
            arena.wake_front();
            return Poll::Ready(Room { arena, bytes: self.bytes });
        }
        if let Some(ticket) = self.ticket {
            let waiter = state.waiters.iter_mut().find(|waiter| waiter.ticket == ticket);
            waiter.expect("a ticket leaves the queue only with its future").waker.clone_from(cx.waker());
        } else {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiters.push_back(Waiter { ticket, bytes: self.bytes, waker: cx.waker().clone() });
            self.ticket = Some(ticket);
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.arena.0.borrow_mut().waiters.retain(|waiter| waiter.ticket != ticket);
            self.arena.wake_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn rooms_are_powers_of_two_and_come_back() {
        let arena = Arena::new(16 << 10);
        let room = arena.room(5000).now_or_never().expect("there is room");
        assert_eq!(arena.free_bytes(), 8 << 10);
        drop(room);
        assert_eq!(arena.free_bytes(), 16 << 10);
    }

    #[test]
    fn a_large_request_is_not_overtaken() {
        let arena = Arena::new(16 << 10);
        let first = arena.room(8 << 10).now_or_never().expect("there is room");
        let mut large = arena.room(16 << 10);
        let mut small = arena.room(4 << 10);
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none(), "it would fit, but it came later");
        drop(first);
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!((&mut small).now_or_never().is_some(), "the one before it gave up");
    }

    #[test]
    #[should_panic(expected = "in an arena of")]
    fn what_can_never_fit_is_refused() {
        drop(Arena::new(4096).room(4097));
    }
}
