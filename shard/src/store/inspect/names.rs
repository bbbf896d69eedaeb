//! Full keys, where the disk still has them. The index and clean records know identities only (a keyed hash that can't be
//! turned around); dirty blocks carry their keys, and the journal and the footers remember them for a while after.
//!
//! Called by `regions` and `verify`, to name what they show.

use forebay_io::{Disk, IoError};

use super::super::record::Record;
use super::slots::Slot;
use super::{Inspector, Recovery};
use crate::key::{BlockKey, Identity, IdentityMap};

/// Full keys by identity.
#[derive(Default)]
pub struct Names(IdentityMap<BlockKey>);

impl Names {
    /// The key of `identity`, if it is known.
    #[must_use]
    pub fn key(&self, identity: Identity) -> Option<&BlockKey> {
        self.0.get(&identity)
    }

    /// How many are known.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn learn(&mut self, record: &Record) {
        match record {
            Record::Put(put) => {
                if let Some(dirty) = &put.dirty {
                    self.0.insert(put.identity, dirty.key.clone());
                }
            }
            Record::Tombstone(dirty) => {
                self.0.insert(dirty.identity, dirty.key.clone());
            }
            _ => {}
        }
    }
}

impl<D: Disk> Inspector<D> {
    /// The keys of everything dirty, and those that the journal still holds.
    ///
    /// # Errors
    /// What the device said.
    pub async fn names(&self, slots: &[Slot; 2], recovery: &Recovery) -> Result<Names, IoError> {
        let mut names = Names::default();
        match self.each_frame(slots, |_, records| records.iter().for_each(|record| names.learn(record))).await {
            // No slot says where it begins: the dirty ones are all there is.
            Ok(_) | Err(IoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        for record in recovery.dirty() {
            names.0.insert(record.identity, record.key.clone());
        }
        Ok(names)
    }
}
