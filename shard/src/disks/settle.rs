//! The settler: what is dirty on another disk than its home goes from there when the origin has it, what is pinned there (I14)
//! when it is not any more.
//!
//! One task per shard that opened with strays, ended when there are none or the shard closes. A stray's key takes turns with
//! every other change of it by the key's lock; its entry goes durably first, and only then its key is looked for at home,
//! so that at no moment two disks have an entry of it, nor after any crash (I13).

use std::time::Duration;

use forebay_io::{Disk, Runtime};

use super::DiskSet;
use crate::canary::{self, Canary};
use crate::key::Identity;
use crate::origin::Origin;
use crate::shard::Shard;
use crate::store::Pinning;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Strays looked at in one go.
const LOOK_COUNT: usize = 4096;

impl<D: Disk, R: Runtime> DiskSet<D, R> {
    /// Up to [`LOOK_COUNT`] strays whose home is here, the next ones after `after`.
    fn next_strays(&self, after: Option<Identity>) -> Vec<(Identity, u16)> {
        let strays = self.strays.borrow();
        let is_ahead = |identity: Identity| after.is_none_or(|after| identity > after);
        let may_go = |identity: Identity| self.places[self.home(identity)].disk.is_ok();
        let strays = strays.iter().map(|(identity, number)| (*identity, *number));
        let mut ahead: Vec<_> = strays.filter(|(identity, _)| is_ahead(*identity) && may_go(*identity)).collect();
        if ahead.len() > LOOK_COUNT {
            ahead.select_nth_unstable(LOOK_COUNT);
            ahead.truncate(LOOK_COUNT);
        }
        ahead.sort_unstable();
        ahead
    }
}

impl<D: Disk, O: Origin, R: Runtime> Shard<D, O, R> {
    /// The settler's task.
    pub(crate) async fn settle_forever(self) {
        let inner = &self.inner;
        let mut after = None;
        while !inner.disks.strays.borrow().is_empty() && !inner.stopping.get() {
            let strays = inner.disks.next_strays(after);
            after = strays.last().map(|(identity, _)| *identity);
            for (identity, number) in strays {
                if inner.dirty.record(identity).is_none() && !inner.stopping.get() {
                    let shard = self.clone();
                    self.run_to_end(async move { shard.settle(identity, number).await }).await;
                }
            }
            inner.runtime.sleep(LOOK_EVERY).await;
        }
        if inner.disks.is_settled() && !inner.stopping.get() {
            tracing::info!(shard = inner.config.shard, "every key is on its own disk again");
        }
    }

    async fn settle(&self, identity: Identity, number: u16) {
        let inner = &self.inner;
        let Some(_turn) = inner.locks.lock(identity).await else { return };
        if inner.dirty.record(identity).is_some() || inner.in_doubt.borrow().contains_key(&identity) {
            return;
        }
        let store = &inner.disks.at(number).store;
        // I14: it was promised to stay on disk. It goes when the pin is taken back.
        if store.pinning(identity) == Pinning::Pinned {
            return;
        }
        let _change = self.begin_change(identity, |counters| &counters.fills_raced_by_purge);
        if canary::is(Canary::StraySettledEarly) {
            inner.disks.strays.borrow_mut().remove(&identity);
        }
        // Whatever was queued there before it goes, too. A disk that takes no writes keeps its strays.
        if store.remove(identity, inner.disks.next_generation()).await.is_ok() && store.find(identity).is_none() {
            inner.disks.strays.borrow_mut().remove(&identity);
        }
    }
}
