//! Which fills run, which can be joined, and which keys are being changed.
//!
//! Used by `fill` and, through [`ChangeGuard`], by every put, delete and purge. I5: at most one fill of a key can be
//! joined. I6: while a key is being changed nothing gets a validity, and when a change begins and ends every validity
//! given before is cleared. Bounded by the two budgets of fills; keys without fills and changes take no room.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use event_listener::Event;
use futures::channel::oneshot;

use super::stream::Fill;
use crate::budget::{Budget, Reservation};
use crate::key::{Identity, IdentityMap};
use crate::origin::Etag;
use crate::outcome::{FillStream, Got};
use crate::store::Validity;

/// The fills of a shard, and which keys are being changed.
pub(crate) struct FillTable {
    budget: Rc<Budget>,
    running: Rc<Cell<usize>>,
    running_max: usize,
    keys: Rc<RefCell<IdentityMap<KeyFills>>>,
    /// An append has ended.
    ends: Event,
}

/// What is known of one key; only keys with something to say have it.
#[derive(Default)]
struct KeyFills {
    /// The one that can be joined.
    fill: Option<Rc<Fill>>,
    /// Of all appends that may still publish: of the fill above and of blocks kept after a synchronous store.
    validities: Vec<Validity>,
    /// Puts, deletes and purges in progress.
    changes: usize,
}

impl KeyFills {
    fn invalidate(&mut self) {
        self.validities.drain(..).for_each(|validity| validity.clear());
        self.fill = None;
    }

    fn is_empty(&self) -> bool {
        self.fill.is_none() && self.validities.is_empty() && self.changes == 0
    }
}

/// The right to run one fill.
pub(crate) struct Admitted {
    pub(super) reservation: Reservation,
    running: Rc<Cell<usize>>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.running.set(self.running.get() - 1);
    }
}

/// A put, delete or purge of a key in progress (I6).
pub(crate) struct ChangeGuard {
    keys: Rc<RefCell<IdentityMap<KeyFills>>>,
    identity: Identity,
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        let mut keys = self.keys.borrow_mut();
        let of_key = keys.get_mut(&self.identity).expect("a change keeps its key in the table");
        of_key.invalidate();
        of_key.changes -= 1;
        if of_key.is_empty() {
            keys.remove(&self.identity);
        }
    }
}

pub(super) enum Joined {
    Asking(oneshot::Receiver<Got>),
    Streaming(FillStream),
    Crowded,
}

impl FillTable {
    pub(crate) fn new(bytes_max: u64, fills_max: usize) -> FillTable {
        FillTable {
            budget: Budget::new(bytes_max),
            running: Rc::default(),
            running_max: fills_max,
            keys: Rc::default(),
            ends: Event::new(),
        }
    }

    pub(crate) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    pub(crate) fn running_count(&self) -> usize {
        self.running.get()
    }

    pub(crate) fn begin_change(&self, identity: Identity) -> ChangeGuard {
        let mut keys = self.keys.borrow_mut();
        let of_key = keys.entry(identity).or_default();
        of_key.invalidate();
        of_key.changes += 1;
        ChangeGuard { keys: Rc::clone(&self.keys), identity }
    }

    pub(crate) fn is_changing(&self, identity: Identity) -> bool {
        self.keys.borrow().get(&identity).is_some_and(|of_key| of_key.changes > 0)
    }

    /// Whether an append of the key may still publish.
    pub(crate) fn is_filling(&self, identity: Identity) -> bool {
        self.keys.borrow().get(&identity).is_some_and(|of_key| !of_key.validities.is_empty())
    }

    /// The validity of an append that begins now: already cleared while a change of the key is in progress.
    pub(crate) fn validity(&self, identity: Identity) -> Validity {
        let validity = Validity::default();
        let mut keys = self.keys.borrow_mut();
        match keys.entry(identity).or_default() {
            of_key if of_key.changes > 0 => validity.clear(),
            of_key => of_key.validities.push(validity.clone()),
        }
        validity
    }

    /// That append has ended.
    pub(crate) fn end_validity(&self, identity: Identity, ended: &Validity) {
        // Cleared, so that it can be told from the others; nothing looks at it any more.
        ended.clear();
        self.ends.notify(usize::MAX);
        let mut keys = self.keys.borrow_mut();
        let Some(of_key) = keys.get_mut(&identity) else { return };
        of_key.validities.retain(Validity::holds);
        if of_key.is_empty() {
            keys.remove(&identity);
        }
    }

    /// Resolves when no append of the key may still publish. Under the key's lock: a change would end them untold.
    pub(crate) async fn ended(&self, identity: Identity) {
        loop {
            let end = self.ends.listen();
            if !self.is_filling(identity) {
                return;
            }
            end.await;
        }
    }

    /// Length and ETag of the key's fill, once its headers are there.
    pub(crate) fn meta(&self, identity: Identity) -> Option<(u64, Etag)> {
        self.keys.borrow().get(&identity)?.fill.as_ref()?.meta()
    }

    /// I5: the fills that can be joined are among those running, and each key has its place.
    pub(crate) fn check(&self) {
        let keys = self.keys.borrow();
        let joinable = keys.values().filter(|of_key| of_key.fill.is_some()).count();
        assert!(joinable <= self.running.get() && self.running.get() <= self.running_max, "I5: fills are counted");
        assert!(keys.values().all(|of_key| !of_key.is_empty()), "only keys with something to say are in the table");
        assert!(
            keys.values().all(|of_key| of_key.changes == 0 || of_key.validities.is_empty()),
            "I6: nothing may be published for a key that is being changed"
        );
        self.budget.check();
    }

    pub(super) fn admit(&self, block_bytes_max: u64) -> Option<Admitted> {
        if self.running.get() >= self.running_max {
            return None;
        }
        let reservation = self.budget.reserve(block_bytes_max)?;
        self.running.set(self.running.get() + 1);
        Some(Admitted { reservation, running: Rc::clone(&self.running) })
    }

    pub(super) fn join(&self, identity: Identity) -> Option<Joined> {
        let fill = self.keys.borrow().get(&identity)?.fill.clone()?;
        Some(fill.join())
    }

    pub(super) fn begin(&self, identity: Identity) -> (Rc<Fill>, oneshot::Receiver<Got>) {
        let (fill, answer) = Fill::begin(self.validity(identity));
        let fill = Rc::new(fill);
        let mut keys = self.keys.borrow_mut();
        let of_key = keys.entry(identity).or_default();
        assert!(of_key.fill.is_none(), "I5: at most one fill per key can be joined");
        of_key.fill = Some(Rc::clone(&fill));
        (fill, answer)
    }

    pub(super) fn end(&self, identity: Identity, ended: &Rc<Fill>) {
        {
            let mut keys = self.keys.borrow_mut();
            if let Some(of_key) = keys.get_mut(&identity)
                && of_key.fill.as_ref().is_some_and(|fill| Rc::ptr_eq(fill, ended))
            {
                of_key.fill = None;
            }
        }
        self.end_validity(identity, &ended.validity);
    }
}
