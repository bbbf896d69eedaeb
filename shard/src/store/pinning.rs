//! Pin and unpin: a client's word that a block stays on disk, whatever the policy thinks of it.
//!
//! Called by the shard's verbs under the key's lock. A pin is a flag of the entry and a record of its own in the journal;
//! checkpoints and the records of blocks that are moved carry the flag. It is set when its record is queued, so that
//! nothing evicts the block until the record is durable, and it holds from the acknowledgement on, over restarts, until the
//! block is unpinned, purged or deleted, or its bytes are gone (I14). It belongs to the key as long as that has a block.
//! Bounded, so that reclaim can always move what has to stay (`policy::disk::pinned_bytes_max`).

use forebay_io::{Disk, Runtime};

use super::Store;
use super::block::{PinOutcome, Pinning};
use super::commit::{Change, Item};
use super::record::Record;
use super::regions::footprint;
use super::state::{Core, State};
use crate::canary::{self, Canary};
use crate::error::StoreError;
use crate::key::{Generation, Identity};
use crate::policy::disk::pinned_bytes_max;

impl<D: Disk, R: Runtime> Core<D, R> {
    /// What pinned blocks may occupy, in bytes.
    pub fn pinned_bytes_max(&self) -> u64 {
        pinned_bytes_max(self.superblock.region_count, self.superblock.region_bytes)
    }
}

impl<D: Disk, R: Runtime> Store<D, R> {
    /// Pins the block of a key, durably. `up_to` is drawn for this pin: it means whatever block the key has by then.
    ///
    /// # Errors
    /// As [`Store::remove`]; the block is not pinned then, but may be found so after a restart.
    pub async fn pin(&self, identity: Identity, up_to: Generation) -> Result<PinOutcome, StoreError> {
        self.core.state.borrow().writable()?;
        let before = self.core.state.borrow().pinning_of(identity);
        let bytes_max = self.core.pinned_bytes_max();
        match self.core.change(|state| state.try_pin(identity, up_to, bytes_max)) {
            PinOutcome::Pinned => {}
            refused => return Ok(refused),
        }
        let said = self.say(identity, up_to, Pinning::Pinned).await;
        if said.is_err() && before == Pinning::Unpinned {
            // Nobody was promised anything; and its bytes may be on no good sync yet.
            self.core.change(|state| state.set_pinning(identity, up_to, before));
        }
        said.map(|()| PinOutcome::Pinned)
    }

    /// Takes a pin back, durably. Journaled even if there is none: one that was dropped a moment ago may be in the journal.
    ///
    /// # Errors
    /// As [`Store::remove`]; whether the block is pinned after a restart is in doubt then.
    pub async fn unpin_block(&self, identity: Identity, up_to: Generation) -> Result<(), StoreError> {
        self.core.state.borrow().writable()?;
        self.core.change(|state| state.set_pinning(identity, up_to, Pinning::Unpinned));
        self.core.signals.reclaim.notify(1);
        self.say(identity, up_to, Pinning::Unpinned).await
    }

    /// Whether the block of a key is pinned.
    #[must_use]
    pub fn pinning(&self, identity: Identity) -> Pinning {
        self.core.state.borrow().pinning_of(identity)
    }

    async fn say(&self, identity: Identity, up_to: Generation, pinning: Pinning) -> Result<(), StoreError> {
        let (item, decided) = Item::awaited(&Record::Pin { identity, up_to, pinning }, Change::Awaited);
        self.core.queue(item);
        if canary::is(Canary::PinAckedEarly) {
            return Ok(());
        }
        self.decision(decided).await.map(drop)
    }
}

impl State {
    /// Pins a block that is there if so much may be pinned.
    fn try_pin(&mut self, identity: Identity, up_to: Generation, bytes_max: u64) -> PinOutcome {
        let Some(entry) = self.index.find(identity).filter(|entry| entry.place().is_some()) else {
            return PinOutcome::Missing;
        };
        let is_new = entry.pinning() == Pinning::Unpinned;
        if is_new && self.pinned_bytes + footprint(entry.len_bytes()) > bytes_max {
            return PinOutcome::Full;
        }
        let is_set = self.set_pinning(identity, up_to, Pinning::Pinned);
        assert!(is_set, "I14: a pin's generation is drawn after that of every block its key has");
        PinOutcome::Pinned
    }
}
