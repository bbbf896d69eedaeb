//! A lock per key: puts, deletes and purges of one key take turns in the order in which they came.
//!
//! Used twice by `shard`: once to order the verbs of a key, once (the *origin lane*) to order what is sent to the
//! origin for a key by flushes and synchronous stores. Always taken in that order: key first, then lane. Only keys
//! with a holder have an entry, and a key's queue is bounded; beyond it the request is declined.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use futures::channel::oneshot;

use crate::key::{Identity, IdentityMap};

/// Requests that may wait for one key.
pub(crate) const KEY_WAITERS_MAX: usize = 128;

/// The locks of all keys in use.
#[derive(Clone, Default)]
pub(crate) struct KeyLocks(Rc<RefCell<IdentityMap<VecDeque<oneshot::Sender<KeyGuard>>>>>);

/// The right to change one key; dropping it hands it to the next in line.
pub(crate) struct KeyGuard {
    locks: KeyLocks,
    identity: Identity,
}

impl KeyLocks {
    /// Waits for its turn. `None`: [`KEY_WAITERS_MAX`] requests wait already.
    pub(crate) async fn lock(&self, identity: Identity) -> Option<KeyGuard> {
        let turn = {
            let mut locks = self.0.borrow_mut();
            match locks.get_mut(&identity) {
                None => {
                    locks.insert(identity, VecDeque::new());
                    None
                }
                Some(queue) if queue.len() >= KEY_WAITERS_MAX => return None,
                Some(queue) => {
                    let (sender, receiver) = oneshot::channel();
                    queue.push_back(sender);
                    Some(receiver)
                }
            }
        };
        match turn {
            None => Some(KeyGuard { locks: self.clone(), identity }),
            Some(receiver) => receiver.await.ok(),
        }
    }

    /// Whether somebody holds the key's lock.
    pub(crate) fn is_locked(&self, identity: Identity) -> bool {
        self.0.borrow().contains_key(&identity)
    }

    /// How many keys are locked now.
    #[cfg(test)]
    pub(crate) fn locked_count(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        let next = {
            let mut locks = self.locks.0.borrow_mut();
            let queue = locks.get_mut(&self.identity).expect("a held key has its queue");
            let next = queue.pop_front();
            if next.is_none() {
                locks.remove(&self.identity);
            }
            next
        };
        if let Some(sender) = next {
            // A waiter that went away gives the guard back here or drops it unread; either way it passes on.
            drop(sender.send(KeyGuard { locks: self.locks.clone(), identity: self.identity }));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::executor::LocalPool;
    use futures::future::FutureExt;
    use futures::task::LocalSpawnExt;

    use super::*;

    #[test]
    fn holders_follow_each_other_in_order() {
        let (locks, order) = (KeyLocks::default(), Rc::new(RefCell::new(Vec::new())));
        let mut pool = LocalPool::new();
        let first = locks.lock(Identity(1)).now_or_never().unwrap().unwrap();
        for n in 0..5 {
            let (locks, order) = (locks.clone(), Rc::clone(&order));
            let task = async move {
                let _guard = locks.lock(Identity(1)).await.unwrap();
                order.borrow_mut().push(n);
            };
            pool.spawner().spawn_local(task).unwrap();
        }
        pool.run_until_stalled();
        assert!(order.borrow().is_empty());
        drop(first);
        pool.run_until_stalled();
        assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
        assert_eq!(locks.locked_count(), 0);
    }

    #[test]
    fn a_waiter_that_goes_away_does_not_keep_the_key() {
        let locks = KeyLocks::default();
        let first = locks.lock(Identity(1)).now_or_never().unwrap().unwrap();
        let (mut gone_before, mut gone_after) = (Box::pin(locks.lock(Identity(1))), Box::pin(locks.lock(Identity(1))));
        assert!((&mut gone_before).now_or_never().is_none() && (&mut gone_after).now_or_never().is_none());
        drop(gone_before);
        drop(first);
        // The guard lies in its channel, unread.
        drop(gone_after);
        assert_eq!(locks.locked_count(), 0);
        assert!(locks.lock(Identity(1)).now_or_never().is_some());
    }

    #[test]
    fn the_queue_of_a_key_is_bounded() {
        let locks = KeyLocks::default();
        let _first = locks.lock(Identity(1)).now_or_never().unwrap().unwrap();
        let mut waiting: Vec<_> = (0..KEY_WAITERS_MAX).map(|_| Box::pin(locks.lock(Identity(1)))).collect();
        assert!(waiting.iter_mut().all(|waiter| waiter.now_or_never().is_none()));
        assert!(matches!(locks.lock(Identity(1)).now_or_never(), Some(None)));
        assert!(locks.lock(Identity(2)).now_or_never().is_some());
    }
}
