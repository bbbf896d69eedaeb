//! Which generations of blocks left the index with nothing in their place: evicted, forgotten, purged.
//!
//! Asked by `publish` before a fill becomes the entry of its key. Two appends of one key may be under way (a put keeps what it stored, a pin brings
//! the same block to disk), and the newer may come and go before the older is written. The older must not come into the index then: recovery
//! would find the newer one's record without its bytes, and take the older for overtaken (I13), with the pin that it was given meanwhile (I14).
//! By identity in a few slots, each with the newest: a slot shared with another key costs a fill its place on disk, and nothing else.

use crate::key::{Generation, Identity};
use crate::policy::PolicyKey as _;

const SLOTS: usize = 256;

/// The newest generation that went, by slot.
#[derive(Debug)]
pub struct Gone(Box<[Generation; SLOTS]>);

impl Default for Gone {
    fn default() -> Gone {
        Gone(Box::new([Generation(0); SLOTS]))
    }
}

impl Gone {
    /// A block left.
    pub fn note(&mut self, identity: Identity, generation: Generation) {
        let newest = &mut self.0[slot(identity)];
        *newest = generation.max(*newest);
    }

    /// Whether a newer block of this key may have been here and gone.
    #[must_use]
    pub fn hides(&self, identity: Identity, generation: Generation) -> bool {
        self.0[slot(identity)] > generation
    }
}

fn slot(identity: Identity) -> usize {
    identity.spread() as usize % SLOTS
}
