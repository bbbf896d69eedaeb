//! The properties of `fuzz` on their seeds and on random changes of them: a short form of `ci/fuzz` that needs no fuzzer.
//! Also inputs that once broke one.
//! Run by `cargo test`.

use proptest::prelude::*;

use super::*;

type Property = (fn(&[u8]), fn() -> Vec<Vec<u8>>);
const PROPERTIES: [Property; 5] = [
    (record, record_seeds),
    (journal, journal_seeds),
    (checkpoint, checkpoint_seeds),
    (region_footer, region_footer_seeds),
    (recovery, recovery_seeds),
];

#[test]
fn the_seeds_hold() {
    for (property, seeds) in PROPERTIES {
        seeds().iter().for_each(|seed| property(seed));
    }
    let encoded = record_seeds().concat();
    let mut rest = &encoded[..];
    while !rest.is_empty() {
        assert!(Record::decode(&mut rest).is_ok(), "a seed is a record");
    }
}

#[test]
fn the_seeds_of_recovery_open() {
    for (number, seed) in recovery_seeds().iter().enumerate() {
        assert!(is_opened_twice(seed), "seed {number}");
    }
}

/// A header that names frame 0, and one whose journal ends beyond 64 bits: both overflowed.
#[test]
fn a_header_that_names_no_possible_point_is_none() {
    recovery(&[]);
    for fields in [[2, 0, 0, 0, 1], [2, !4095, 1, 0, 1], [2, 0, u64::MAX, 0, 1], [u64::MAX, 0, 1, 0, 1]] {
        assert_eq!(Header::decode(&fields.map(u64::to_le_bytes).concat()), None, "{fields:?}");
        recovery(&fields[1..].iter().flat_map(|field| field.to_le_bytes()).collect::<Vec<u8>>());
    }
}

proptest! {
    #[test]
    fn changed_seeds_hold(
        which in 0..PROPERTIES.len(),
        seed in any::<usize>(),
        at in any::<usize>(),
        bytes in prop::collection::vec(any::<u8>(), 0..16),
    ) {
        let (property, seeds) = PROPERTIES[which];
        let mut seeds = seeds();
        let chosen = seed % seeds.len();
        let mut data = seeds.swap_remove(chosen);
        let at = at % data.len();
        let len = bytes.len().min(data.len() - at);
        data[at..at + len].copy_from_slice(&bytes[..len]);
        property(&data);
    }

    #[test]
    fn any_input_holds(which in 0..PROPERTIES.len(), data in prop::collection::vec(any::<u8>(), 0..300)) {
        PROPERTIES[which].0(&data);
    }
}
