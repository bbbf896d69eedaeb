//! What must hold of the decoders of this package, whatever the bytes: superblock and frame.
//!
//! Called by the targets of `ci/fuzz`, and by the tests below with random bytes, so that it stays true and stays
//! compiling without a fuzzer. Both structures end in a checksum that no fuzzer guesses: each property looks at the bytes
//! as they are, and at the same bytes with the sum put right, so that the decoder behind it is reached. The sums are computed
//! here from the drawing of the layout, not by the code under test.

use twox_hash::XxHash3_64;

use crate::frame::{self, Chain, FRAME_HEADER_BYTES, FrameHead, FrameKind, Likeness, Reject, frame_bytes};
use crate::superblock::{Copies, SUPERBLOCK_BYTES, Superblock};

const STORE_ID: u64 = 0x5EED;
const SUPERBLOCK_FIELDS_BYTES: usize = 96;
const SUPERBLOCK_SUM_AT: usize = 4088;
const FRAME_SUM_AT: usize = 40;

/// Input: a byte of choices, then the fields of the first copy (96 bytes), then those of the second. A copy whose choice
/// says so keeps a wrong sum.
///
/// # Panics
/// If the decoder lets an impossible slab pass, does not read back what it wrote, or takes a damaged copy.
pub fn superblock(data: &[u8]) {
    let _ = Superblock::decode(data);
    let _ = Superblock::decode_copies(data);
    let Some((choices, fields)) = data.split_first() else { return };
    let second = fields.get(SUPERBLOCK_FIELDS_BYTES..).unwrap_or_default();
    let second = if choices & 4 != 0 { fields } else { second };
    let mut copies = superblock_copy(fields, choices & 1 == 0);
    copies.extend(superblock_copy(second, choices & 2 == 0));
    let (one, two) = (Superblock::decode(&copies), Superblock::decode(&copies[SUPERBLOCK_BYTES..]));
    for (good, is_summed) in [(one, choices & 1 == 0), (two, choices & 2 == 0)] {
        let Ok(good) = good else { continue };
        assert!(is_summed, "a copy with a wrong sum was taken");
        assert!(good.shard < good.shard_count && good.regions_at() < good.slab_bytes() && good.slab_bytes() < 1 << 58);
        let mut again = vec![0xAA; SUPERBLOCK_BYTES];
        good.encode(&mut again);
        assert_eq!(Superblock::decode(&again), Ok(good), "what was written is read back");
    }
    match Superblock::decode_copies(&copies) {
        Ok((found, Copies::Both)) => assert!(one == Ok(found) && two == Ok(found), "both are good and equal"),
        Ok((found, Copies::One)) => {
            assert!(Ok(found) == one || (one.is_err() && Ok(found) == two), "the first good one")
        }
        Err(why) => assert!(one.is_err() && two.is_err() && [one, two].contains(&Err(why)), "none is good"),
    }
}

fn superblock_copy(fields: &[u8], is_summed: bool) -> Vec<u8> {
    let mut copy = vec![0; SUPERBLOCK_BYTES];
    let len = fields.len().min(SUPERBLOCK_FIELDS_BYTES);
    copy[..len].copy_from_slice(&fields[..len]);
    let sum = XxHash3_64::oneshot(&copy[..SUPERBLOCK_SUM_AT]) ^ u64::from(!is_summed);
    copy[SUPERBLOCK_SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    copy
}

/// Superblocks that the encoder wrote.
#[must_use]
pub fn superblock_seeds() -> Vec<Vec<u8>> {
    let good = Superblock {
        node_id: 7,
        store_id: STORE_ID,
        shard: 1,
        shard_count: 4,
        identity_key: *b"sixteen byte key",
        region_bytes: 64 << 20,
        region_count: 16,
        journal_bytes: 8 << 20,
        created_unix_ms: 1_735_689_600_000,
    };
    let fields = |superblock: Superblock| {
        let mut copy = vec![0; SUPERBLOCK_BYTES];
        superblock.encode(&mut copy);
        copy[..SUPERBLOCK_FIELDS_BYTES].to_vec()
    };
    let other = Superblock { shard: 0, region_count: 1, ..good };
    vec![
        [vec![4], fields(good)].concat(),
        [vec![0], fields(good), fields(other)].concat(),
        [vec![1], fields(good), fields(other)].concat(),
    ]
}

/// Input: a frame as it lies on disk, header and all; its sum does not matter.
///
/// # Panics
/// If a frame that was taken is not written again as it was read, if a shorter or damaged one is taken, or one of another
/// store.
pub fn frame(data: &[u8]) {
    let _ = frame::decode(STORE_ID, data);
    let mut bytes = data.to_vec();
    if !seal_as_it_is(&mut bytes) {
        return;
    }
    let found = match frame::decode(STORE_ID, &bytes) {
        Ok(found) => found,
        Err(Reject::Longer { frame_bytes, got }) => {
            assert!(got == bytes.len() && frame_bytes > got && frame_bytes <= frame::FRAME_BYTES_MAX);
            return;
        }
        Err(reject) => {
            assert!(!matches!(reject, Reject::Sum), "the sum was put right");
            return;
        }
    };
    let end = FRAME_HEADER_BYTES + found.payload.len();
    let mut again = vec![0xAA; frame_bytes(found.payload.len())];
    let sum = frame::encode(STORE_ID, found.head, found.payload, &mut again);
    assert!(sum == found.sum && again[..end] == bytes[..end], "what was read is written again as it was");
    assert!(again[end..].iter().all(|byte| *byte == 0) && found.len_bytes() == again.len());
    assert!(frame::decode(STORE_ID, &bytes[..end]).is_ok(), "the padding does not count");
    assert!(frame::decode(STORE_ID, &bytes[..end - 1]).is_err(), "a frame that was cut off");
    assert_eq!(frame::decode(STORE_ID ^ 1, &bytes), Err(Reject::Sum), "a frame of another store");
    let at = usize::try_from(found.sum).unwrap_or_default() % end;
    let mut damaged = bytes.clone();
    damaged[at] ^= 1 << (found.sum >> 61);
    assert!(frame::decode(STORE_ID, &damaged).is_err(), "byte {at} was changed");
    in_its_chain(found.head, found.payload, &bytes);
}

/// A chain that stands before a frame takes it, and each other one does not.
fn in_its_chain(head: FrameHead, payload: &[u8], bytes: &[u8]) {
    let found = frame::decode(STORE_ID, bytes).expect("it was decoded above");
    let before = Chain { sequence: head.sequence, previous_sum: head.previous_sum };
    assert_eq!(before.likeness(head.kind, bytes), Likeness::WholeHead);
    let mut chain = before;
    assert_eq!(chain.accept(head.kind, &found), Ok(()));
    if head.sequence < u64::MAX {
        assert_eq!(chain, Chain { sequence: head.sequence + 1, previous_sum: found.sum });
        assert!(matches!(chain.accept(head.kind, &found), Err(Reject::Sequence { .. })), "a frame comes once");
    }
    let mut other = Chain { previous_sum: head.previous_sum ^ 1, ..before };
    assert_eq!(other.accept(head.kind, &found), Err(Reject::Previous));
    let other_kind = if head.kind == FrameKind::Footer { FrameKind::Journal } else { FrameKind::Footer };
    assert!(matches!({ before }.accept(other_kind, &found), Err(Reject::OtherKind { .. })));
    // Tries each byte with each value: for few and short ones only.
    if payload.len() < 4 && found.sum.is_multiple_of(64) {
        let mut damaged = bytes.to_vec();
        damaged[FRAME_SUM_AT + payload.len()] ^= 0x80;
        assert!(frame::is_one_byte_off(STORE_ID, before, head.kind, &damaged), "one byte was changed");
    }
}

/// Magic and sum of whatever frame the header claims; false if the claim goes beyond the bytes.
fn seal_as_it_is(bytes: &mut [u8]) -> bool {
    if bytes.len() < FRAME_HEADER_BYTES {
        return false;
    }
    bytes[..4].copy_from_slice(b"FBF1");
    let claim: [u8; 4] = bytes[8..12].try_into().expect("four bytes");
    let end = FRAME_HEADER_BYTES.saturating_add(u32::from_le_bytes(claim) as usize);
    let Some(payload) = bytes.get(FRAME_HEADER_BYTES..end) else { return true };
    let sum = XxHash3_64::oneshot_with_seed(STORE_ID, &[&bytes[..FRAME_SUM_AT], payload].concat());
    bytes[FRAME_SUM_AT..FRAME_HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    true
}

/// Frames that the encoder wrote, one of each kind.
#[must_use]
pub fn frame_seeds() -> Vec<Vec<u8>> {
    let kinds = [
        FrameKind::Journal,
        FrameKind::CheckpointHeader,
        FrameKind::CheckpointRecords,
        FrameKind::CheckpointEnd,
        FrameKind::Footer,
    ];
    let frames = kinds.into_iter().zip([0usize, 3, 40, 90, 200]).map(|(kind, payload_bytes)| {
        let head = FrameHead { kind, record_count: 2, sequence: 3, previous_sum: 4, synced_through: 2 };
        let mut bytes = vec![0; frame_bytes(payload_bytes)];
        frame::encode(STORE_ID, head, &vec![0x5A; payload_bytes], &mut bytes);
        bytes.truncate(FRAME_HEADER_BYTES + payload_bytes);
        bytes
    });
    frames.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_seeds_are_taken() {
        superblock_seeds().iter().for_each(|seed| superblock(seed));
        let copy = superblock_copy(&superblock_seeds()[0][1..], true);
        assert!(Superblock::decode(&copy).is_ok());
        for mut seed in frame_seeds() {
            frame(&seed);
            assert!(frame::decode(STORE_ID, &seed).is_ok());
            seed[FRAME_SUM_AT] ^= 1;
            assert!(seal_as_it_is(&mut seed) && frame::decode(STORE_ID, &seed).is_ok(), "sealed as the encoder does");
        }
    }

    /// A seed with `bytes` over what stood from `at` on.
    fn overwritten(mut seed: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        let at = at % seed.len();
        let len = bytes.len().min(seed.len() - at);
        seed[at..at + len].copy_from_slice(&bytes[..len]);
        seed
    }

    proptest! {
        #[test]
        fn superblocks_hold(seed in 0..3usize, at in 0..193usize, bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            superblock(&overwritten(superblock_seeds()[seed].clone(), at, &bytes));
        }

        #[test]
        fn frames_hold(seed in 0..5usize, at in 0..250usize, bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            frame(&overwritten(frame_seeds()[seed].clone(), at, &bytes));
        }
    }
}
