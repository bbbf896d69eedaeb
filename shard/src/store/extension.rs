//! What few entries need and all would pay for: the sums of further pieces and the digest of blocks over one piece,
//! the ETag of blocks that others stored. An entry holds the number of its extension in place of its sum.
//!
//! Used by publish and lookups. A number is owned by exactly one entry.

use super::entry::Proof;
use crate::origin::Etag;
use crate::outcome::PieceSums;

/// The rest of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The sums of all pieces.
    pub sums: PieceSums,
    /// The ETag, where one piece's digest does not yield it.
    pub etag: Option<Etag>,
}

/// Extensions by number.
#[derive(Default)]
pub struct Extensions {
    slots: Vec<Option<Extension>>,
    free: Vec<u32>,
    heap_bytes: u64,
}

impl Extensions {
    /// The proof for an entry with these sums and this ETag: an extension where one sum does not say it all.
    pub fn add(&mut self, sums: PieceSums, etag: Option<Etag>) -> Proof {
        match (&sums, &etag) {
            (PieceSums::One(sum), None | Some(Etag::Digest(_))) => Proof::Sum(*sum),
            _ => {
                let extension = Extension { sums, etag };
                self.heap_bytes += heap_bytes(&extension);
                Proof::Extension(self.take_number(extension))
            }
        }
    }

    /// Sums and ETag of an entry with this proof.
    ///
    /// # Panics
    /// If the number is not in use.
    #[must_use]
    pub fn resolve(&self, proof: Proof) -> (PieceSums, Option<Etag>) {
        match proof {
            Proof::Sum(sum) => (PieceSums::One(sum), None),
            Proof::Extension(number) => {
                let extension = self.slots[number as usize].as_ref().expect("an entry owns its extension");
                (extension.sums.clone(), extension.etag.clone())
            }
        }
    }

    /// The entry with this proof is gone.
    ///
    /// # Panics
    /// If the number is not in use.
    pub fn release(&mut self, proof: Proof) {
        if let Proof::Extension(number) = proof {
            let extension = self.slots[number as usize].take().expect("an entry owns its extension");
            self.heap_bytes -= heap_bytes(&extension);
            self.free.push(number);
        }
    }

    /// How many are in use.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Memory in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.heap_bytes + (self.slots.capacity() * size_of::<Option<Extension>>() + self.free.capacity() * 4) as u64
    }

    fn take_number(&mut self, extension: Extension) -> u32 {
        if let Some(number) = self.free.pop() {
            self.slots[number as usize] = Some(extension);
            return number;
        }
        self.slots.push(Some(extension));
        u32::try_from(self.slots.len() - 1).expect("fewer extensions than blocks, fewer blocks than 2^32")
    }
}

fn heap_bytes(extension: &Extension) -> u64 {
    let sums = match &extension.sums {
        PieceSums::One(_) => 0,
        PieceSums::Many(sums) => 16 + sums.len() * 8,
    };
    let etag = match &extension.etag {
        Some(Etag::Origin(etag)) => 16 + etag.len(),
        _ => 0,
    };
    (sums + etag) as u64
}

#[cfg(test)]
mod tests {
    use forebay_io::checksum::Digest;

    use super::*;

    #[test]
    fn one_piece_stored_by_us_needs_none() {
        let mut extensions = Extensions::default();
        let proof = extensions.add(PieceSums::One(7), Some(Etag::Digest(Digest(1))));
        assert_eq!((proof, extensions.count()), (Proof::Sum(7), 0));
        assert_eq!(extensions.resolve(proof), (PieceSums::One(7), None));
    }

    #[test]
    fn numbers_are_used_again_after_their_entry_is_gone() {
        let mut extensions = Extensions::default();
        let sums = PieceSums::Many(vec![1, 2].into());
        let first = extensions.add(sums.clone(), Some(Etag::Digest(Digest(1))));
        let second = extensions.add(PieceSums::One(3), Some(Etag::Origin("x".into())));
        assert_eq!(extensions.resolve(first), (sums.clone(), Some(Etag::Digest(Digest(1)))));
        extensions.release(first);
        assert_eq!(extensions.add(sums, None), first);
        assert_eq!(extensions.resolve(second), (PieceSums::One(3), Some(Etag::Origin("x".into()))));
        extensions.release(first);
        extensions.release(second);
        assert_eq!((extensions.count(), extensions.heap_bytes), (0, 0));
    }
}
