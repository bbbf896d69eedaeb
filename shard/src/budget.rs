//! A byte budget and the reservations drawn from it: what bounds fills in progress and dirty bytes (I10).
//!
//! Called by `fill`, `put`, `remove` (through `dirty`) and `shard`. A reservation gives its bytes back when it is
//! dropped, so no path can forget to. Single-threaded: plain cells.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that may be in use at once.
pub(crate) struct Budget {
    max_bytes: u64,
    used_bytes: Cell<u64>,
    /// What `used_bytes` may be now: `max_bytes`, or more while recovered bytes beyond it drain away.
    ceiling_bytes: Cell<u64>,
}

/// Bytes taken from a budget until dropped.
pub(crate) struct Reservation {
    budget: Rc<Budget>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(max_bytes: u64) -> Rc<Budget> {
        Rc::new(Budget { max_bytes, used_bytes: Cell::new(0), ceiling_bytes: Cell::new(max_bytes) })
    }

    /// Takes `bytes`, or nothing if they don't fit now.
    pub(crate) fn reserve(self: &Rc<Self>, bytes: u64) -> Option<Reservation> {
        let used_bytes = self.used_bytes.get().checked_add(bytes)?;
        if used_bytes > self.max_bytes {
            return None;
        }
        self.used_bytes.set(used_bytes);
        Some(Reservation { budget: Rc::clone(self), bytes })
    }

    /// Takes `bytes` that exist already: what recovery found is counted even where the budget became smaller since.
    pub(crate) fn adopt(self: &Rc<Self>, bytes: u64) -> Reservation {
        self.used_bytes.set(self.used_bytes.get() + bytes);
        self.ceiling_bytes.set(self.ceiling_bytes.get().max(self.used_bytes.get()));
        Reservation { budget: Rc::clone(self), bytes }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.get()
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// I10: never more in use than the budget allows.
    pub(crate) fn check(&self) {
        assert!(self.used_bytes.get() <= self.ceiling_bytes.get(), "I10: bytes in use within the budget");
        assert!(self.ceiling_bytes.get() >= self.max_bytes, "I10: the ceiling is never below the budget");
    }

    fn give_back(&self, bytes: u64) {
        let used_bytes = self.used_bytes.get().checked_sub(bytes).expect("a reservation gives back what it took");
        self.used_bytes.set(used_bytes);
        self.ceiling_bytes.set(self.max_bytes.max(used_bytes.min(self.ceiling_bytes.get())));
        self.check();
    }
}

impl Reservation {
    /// Gives back what is beyond `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        assert!(bytes <= self.bytes, "a reservation only shrinks");
        self.budget.give_back(self.bytes - bytes);
        self.bytes = bytes;
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_a_budget_is_never_exceeded_and_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.reserve(60).expect("60 of 100 fit");
        assert!(budget.reserve(41).is_none());
        let second = budget.reserve(40).expect("exactly the rest fits");
        first.shrink_to(10);
        assert_eq!((budget.used_bytes(), first.bytes()), (50, 10));
        drop(second);
        drop(first);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn i10_recovered_bytes_beyond_the_budget_drain_and_admit_nothing() {
        let budget = Budget::new(100);
        let old = budget.adopt(150);
        budget.check();
        assert!(budget.reserve(1).is_none());
        drop(old);
        budget.check();
        assert!(budget.reserve(100).is_some());
    }
}
