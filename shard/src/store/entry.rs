//! One index entry: where a block lies, packed into 40 bytes, because memory per block bounds how large a disk one
//! node can serve. Made by publish and recovery, kept by `index`.
//!
//! ```text
//!  0             16      24                                                        40
//!  ├ identity ┼ sum  ┼ region 24 │ place 20 │ length 25 │ generation 48 │ flags 11 ┤  (bits, from the lowest)
//! ```
//! The identity is first and split into two words so that the table needs an alignment of 8 only (a `u128` would
//! round 40 bytes up to 48) and stays sorted by it. `sum` is the sum of the only piece, or the number of an extension.

use forebay_io::units::PLACE_BYTES;

use super::block::Pinning;
use crate::key::{Generation, Identity};
use crate::policy::disk::USES_MAX;

/// The largest content length an entry can hold, in bytes.
pub const LEN_BYTES_MAX: u32 = (1 << LEN_BITS) - 1;
/// The largest region number; the one above it means "no region".
pub const REGION_MAX: u32 = (1 << REGION_BITS) - 2;
/// The largest region size in bytes: 2^20 places of 512 bytes.
pub const REGION_BYTES_MAX: u64 = (1 << PLACE_BITS) * PLACE_BYTES as u64;

const REGION_BITS: u32 = 24;
const PLACE_BITS: u32 = 20;
const LEN_BITS: u32 = 25;
const GENERATION_BITS: u32 = 48;
const PLACE_SHIFT: u32 = REGION_BITS;
const LEN_SHIFT: u32 = PLACE_SHIFT + PLACE_BITS;
const GENERATION_SHIFT: u32 = LEN_SHIFT + LEN_BITS;
const FLAGS_SHIFT: u32 = GENERATION_SHIFT + GENERATION_BITS;
const STATE_MASK: u16 = 0b11;
const USES_SHIFT: u32 = 2;
const USES_MASK: u16 = 0b11 << USES_SHIFT;
const FLAG_EXTENDED: u16 = 1 << 4;
const FLAG_PINNED: u16 = 1 << 5;

const _: () = assert!(size_of::<Entry>() == 40 && align_of::<Entry>() == 8);
const _: () = assert!(FLAGS_SHIFT + 11 == 128);

/// A packed entry. All zeros is an empty slot.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Entry {
    identity_high: u64,
    identity_low: u64,
    sum: u64,
    packed_low: u64,
    packed_high: u64,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A block that the origin has.
    Clean,
    /// A block that the origin does not have yet.
    Dirty,
    /// A delete that the origin did not confirm yet.
    Tombstone,
}

/// A place in a slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The region's number.
    pub region: u32,
    /// Offset inside the region in places of 512 bytes.
    pub place: u32,
}

/// What proves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The sum of the only piece.
    Sum(u64),
    /// The number of the extension that holds the rest.
    Extension(u32),
}

impl Entry {
    /// A block's entry.
    ///
    /// # Panics
    /// If a figure is out of the format's range.
    #[must_use]
    pub fn block(
        identity: Identity,
        generation: Generation,
        at: Place,
        len_bytes: u32,
        proof: Proof,
        state: State,
    ) -> Entry {
        assert!(state != State::Tombstone, "a tombstone has no place");
        assert!(at.region <= REGION_MAX && at.place < 1 << PLACE_BITS, "{at:?} is out of range");
        assert!(len_bytes <= LEN_BYTES_MAX, "{len_bytes} bytes are too many for one block");
        let (sum, extended) = match proof {
            Proof::Sum(sum) => (sum, 0),
            Proof::Extension(number) => (u64::from(number), FLAG_EXTENDED),
        };
        Entry::packed(identity, generation, at, len_bytes, sum, state_bits(state) | extended)
    }

    /// The entry of a delete.
    #[must_use]
    pub fn tombstone(identity: Identity, generation: Generation) -> Entry {
        let nowhere = Place { region: REGION_MAX + 1, place: 0 };
        Entry::packed(identity, generation, nowhere, 0, 0, state_bits(State::Tombstone))
    }

    fn packed(identity: Identity, generation: Generation, at: Place, len_bytes: u32, sum: u64, flags: u16) -> Entry {
        assert!(generation.0 < 1 << GENERATION_BITS, "the sequence of generations is used up");
        let packed = u128::from(at.region)
            | u128::from(at.place) << PLACE_SHIFT
            | u128::from(len_bytes) << LEN_SHIFT
            | u128::from(generation.0) << GENERATION_SHIFT
            | u128::from(flags) << FLAGS_SHIFT;
        Entry {
            identity_high: (identity.0 >> 64) as u64,
            identity_low: identity.0 as u64,
            sum,
            packed_low: packed as u64,
            packed_high: (packed >> 64) as u64,
        }
    }

    /// Whether this is an empty slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flags() & STATE_MASK == 0
    }

    /// Whose entry it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity(u128::from(self.identity_high) << 64 | u128::from(self.identity_low))
    }

    /// Which put, delete or fill it stems from.
    #[must_use]
    pub fn generation(&self) -> Generation {
        Generation(self.bits(GENERATION_SHIFT, GENERATION_BITS))
    }

    /// Where the block lies; a tombstone lies nowhere.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let at = Place { region: self.bits(0, REGION_BITS) as u32, place: self.bits(PLACE_SHIFT, PLACE_BITS) as u32 };
        (at.region <= REGION_MAX).then_some(at)
    }

    /// Content length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u32 {
        self.bits(LEN_SHIFT, LEN_BITS) as u32
    }

    /// What it is.
    ///
    /// # Panics
    /// If the slot is empty.
    #[must_use]
    pub fn state(&self) -> State {
        match self.flags() & STATE_MASK {
            1 => State::Clean,
            2 => State::Dirty,
            3 => State::Tombstone,
            _ => panic!("an empty slot has no state"),
        }
    }

    /// Whether it is the clean block of this generation at this place.
    #[must_use]
    pub fn is_clean_at(&self, generation: Generation, at: Place) -> bool {
        (self.state(), self.generation(), self.place()) == (State::Clean, generation, Some(at))
    }

    /// The same entry in another state.
    #[must_use]
    pub fn with_state(self, state: State) -> Entry {
        assert!(state != State::Tombstone && self.place().is_some(), "a block stays a block");
        self.with_flags(self.flags() & !STATE_MASK | state_bits(state))
    }

    /// What proves its bytes.
    #[must_use]
    pub fn proof(&self) -> Proof {
        if self.flags() & FLAG_EXTENDED == 0 { Proof::Sum(self.sum) } else { Proof::Extension(self.sum as u32) }
    }

    /// Whether a client asked for it to stay on disk.
    #[must_use]
    pub fn pinning(&self) -> Pinning {
        if self.flags() & FLAG_PINNED == 0 { Pinning::Unpinned } else { Pinning::Pinned }
    }

    /// The same entry, pinned or not.
    #[must_use]
    pub fn with_pinning(self, pinning: Pinning) -> Entry {
        assert!(self.place().is_some(), "only blocks are pinned");
        let flag = if pinning == Pinning::Pinned { FLAG_PINNED } else { 0 };
        self.with_flags(self.flags() & !FLAG_PINNED | flag)
    }

    /// How often it was asked for since it was written, as far as the policy counts.
    #[must_use]
    pub fn uses(&self) -> u8 {
        ((self.flags() & USES_MASK) >> USES_SHIFT) as u8
    }

    /// The same entry with so many uses.
    ///
    /// # Panics
    /// If there are more than the policy counts.
    #[must_use]
    pub fn with_uses(self, uses: u8) -> Entry {
        assert!(uses <= USES_MAX, "two bits of frequency");
        self.with_flags(self.flags() & !USES_MASK | u16::from(uses) << USES_SHIFT)
    }

    fn flags(&self) -> u16 {
        self.bits(FLAGS_SHIFT, 11) as u16
    }

    fn with_flags(mut self, flags: u16) -> Entry {
        let shift = FLAGS_SHIFT - 64;
        self.packed_high = self.packed_high & ((1 << shift) - 1) | u64::from(flags) << shift;
        self
    }

    fn bits(&self, shift: u32, count: u32) -> u64 {
        let packed = u128::from(self.packed_high) << 64 | u128::from(self.packed_low);
        (packed >> shift) as u64 & ((1 << count) - 1)
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("Entry(empty)");
        }
        let at = self.place().map_or((0, 0), |at| (at.region, at.place));
        write!(
            f,
            "Entry({:032x} g{} {:?} {at:?} {} bytes)",
            self.identity().0,
            self.generation().0,
            self.state(),
            self.len_bytes()
        )
    }
}

fn state_bits(state: State) -> u16 {
    match state {
        State::Clean => 1,
        State::Dirty => 2,
        State::Tombstone => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_keeps_its_largest_value_beside_the_others() {
        let at = Place { region: REGION_MAX, place: (1 << PLACE_BITS) - 1 };
        let generation = Generation((1 << GENERATION_BITS) - 1);
        let entry =
            Entry::block(Identity(u128::MAX), generation, at, LEN_BYTES_MAX, Proof::Sum(u64::MAX), State::Dirty)
                .with_uses(USES_MAX);
        assert_eq!((entry.identity(), entry.generation(), entry.place()), (Identity(u128::MAX), generation, Some(at)));
        assert_eq!(
            (entry.len_bytes(), entry.proof(), entry.state()),
            (LEN_BYTES_MAX, Proof::Sum(u64::MAX), State::Dirty)
        );
        assert!(entry.uses() == USES_MAX && !entry.is_empty());
        let clean = entry.with_state(State::Clean);
        assert_eq!((clean.state(), clean.generation(), clean.uses()), (State::Clean, generation, USES_MAX));
        assert_eq!((clean.with_uses(1).uses(), clean.with_uses(0).proof()), (1, Proof::Sum(u64::MAX)));
        let pinned = entry.with_pinning(Pinning::Pinned).with_state(State::Clean);
        assert_eq!((pinned.pinning(), pinned.uses(), pinned.generation()), (Pinning::Pinned, USES_MAX, generation));
        assert_eq!((pinned.with_pinning(Pinning::Unpinned), clean.pinning()), (clean, Pinning::Unpinned));
    }

    #[test]
    fn small_values_stay_apart() {
        let at = Place { region: 0, place: 3 };
        let entry = Entry::block(Identity(7), Generation(1), at, 5, Proof::Extension(9), State::Clean);
        assert_eq!((entry.place(), entry.len_bytes(), entry.generation()), (Some(at), 5, Generation(1)));
        assert_eq!((entry.proof(), entry.uses()), (Proof::Extension(9), 0));
        assert_eq!(entry.with_uses(2).proof(), Proof::Extension(9));
        let tombstone = Entry::tombstone(Identity(7), Generation(2));
        assert_eq!((tombstone.place(), tombstone.state()), (None, State::Tombstone));
        assert!(Entry::default().is_empty());
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn a_region_beyond_the_format_is_refused() {
        let at = Place { region: REGION_MAX + 1, place: 0 };
        let _ = Entry::block(Identity(0), Generation(0), at, 0, Proof::Sum(0), State::Clean);
    }
}
