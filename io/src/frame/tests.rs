//! Tests of frames: the layout as drawn, each reason for rejection, chains, and bytes of every kind that must not
//! panic. What a damaged frame may cost is the store's business; here each damage is only told from
//! every other.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const STORE: u64 = 0xF0_8E_BA_11;

fn framed(head: FrameHead, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xEE; frame_bytes(payload.len())];
    encode(STORE, head, payload, &mut bytes);
    bytes
}

fn head() -> FrameHead {
    FrameHead { kind: FrameKind::Journal, record_count: 2, sequence: 7, previous_sum: 9, synced_through: 6 }
}

#[test]
fn the_layout_is_the_one_drawn() {
    let bytes = framed(head(), b"load");
    assert_eq!(&bytes[..16], b"FBF1\x01\0\0\0\x04\0\0\0\x02\0\0\0");
    assert_eq!((bytes[16], bytes[24], bytes[32], &bytes[48..53]), (7, 9, 6, &b"load\0"[..]));
    let mut unsummed = bytes[..40].to_vec();
    unsummed.extend_from_slice(b"load");
    assert_eq!(u64_at(&bytes, 40), crate::checksum::frame_sum(STORE, &unsummed));
}

#[test]
fn rot_of_a_byte_is_told_from_a_torn_write() {
    let good = framed(head(), &[5; 3000]);
    let chain = Chain { sequence: 7, previous_sum: 9 };
    let off = |store, chain, bytes: &[u8]| is_one_byte_off(store, chain, FrameKind::Journal, bytes);
    for at in [0, 9, 20, 26, 44, 48, 511] {
        let mut bytes = good.clone();
        bytes[at] ^= 0xA5;
        assert!(off(STORE, chain, &bytes), "byte {at}");
        assert!(!off(STORE + 1, chain, &bytes) && !off(STORE, Chain { sequence: 7, previous_sum: 10 }, &bytes));
        bytes[1024..1536].fill(0);
        assert!(!off(STORE, chain, &bytes));
    }
    // The last byte of the payload alone lies on its 512: a torn write leaves the zero that was there before.
    let good = framed(head(), &[5; 1024 - FRAME_HEADER_BYTES + 1]);
    let mut torn = good.clone();
    torn[1024..1536].fill(0);
    assert_eq!(good.iter().zip(&torn).filter(|(one, other)| one != other).count(), 1);
    assert!(!off(STORE, chain, &torn));
}

#[test]
fn each_reason_is_told() {
    let good = framed(head(), &[5; 5000]);
    let with = |at: usize, value: [u8; 4]| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        decode(STORE, &bytes).unwrap_err()
    };
    assert_eq!(decode(STORE, &good[..47]), Err(Reject::Truncated { got: 47 }));
    assert_eq!(with(0, *b"FBF2"), Reject::Magic);
    assert_eq!(with(4, [6, 0, 0, 0]), Reject::Kind { kind: 6 });
    assert_eq!(with(8, [0xFF; 4]), Reject::Length { payload_bytes: u32::MAX });
    assert_eq!(decode(STORE, &good[..4096]), Err(Reject::Longer { frame_bytes: 8192, got: 4096 }));
    assert_eq!(with(4000, [6; 4]), Reject::Sum);
    assert_eq!(decode(STORE + 1, &good), Err(Reject::Sum), "of another store");
    assert!(decode(STORE, &good).is_ok());
}

#[test]
fn a_chain_takes_only_the_next_frame() {
    let mut writer = Chain::BEGIN;
    let mut frames = Vec::new();
    for number in 0..3u8 {
        let mut bytes = vec![0; frame_bytes(1)];
        let sum = encode(STORE, writer.head(FrameKind::Journal, 1, 0), &[number], &mut bytes);
        writer.push(sum);
        frames.push(bytes);
    }
    let frame = |number: usize| decode(STORE, &frames[number]).unwrap();
    let mut reader = Chain::BEGIN;
    assert_eq!(
        reader.accept(FrameKind::Footer, &frame(0)),
        Err(Reject::OtherKind { want: FrameKind::Footer, got: FrameKind::Journal })
    );
    assert_eq!(reader.accept(FrameKind::Journal, &frame(1)), Err(Reject::Sequence { want: 1, got: 2 }));
    assert_eq!(reader.accept(FrameKind::Journal, &frame(0)), Ok(()));
    let stale = framed(FrameHead { sequence: 2, ..head() }, b"");
    assert_eq!(reader.accept(FrameKind::Journal, &decode(STORE, &stale).unwrap()), Err(Reject::Previous));
    assert_eq!(reader.accept(FrameKind::Journal, &frame(1)), Ok(()));
    assert_eq!(reader.accept(FrameKind::Journal, &frame(2)), Ok(()));
    assert_eq!(reader, writer);
}

#[test]
fn a_frame_of_the_largest_number_does_not_overflow_a_chain() {
    let last = framed(FrameHead { sequence: u64::MAX, ..head() }, b"");
    let mut chain = Chain { sequence: u64::MAX, previous_sum: 9 };
    assert_eq!(chain.accept(FrameKind::Journal, &decode(STORE, &last).unwrap()), Ok(()));
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(
        payload in prop::collection::vec(any::<u8>(), 0..9000), count: u32, sequence: u64, previous_sum: u64,
        synced_through: u64, kind in 0..5usize,
    ) {
        let head = FrameHead { kind: FrameKind::ALL[kind], record_count: count, sequence, previous_sum, synced_through };
        let mut bytes = framed(head, &payload);
        prop_assert_eq!(bytes.len() % SECTOR_BYTES, 0);
        bytes.extend_from_slice(b"what follows");
        let frame = decode(STORE, &bytes).unwrap();
        prop_assert_eq!((frame.head, frame.payload), (head, &payload[..]));
        prop_assert_eq!(frame.len_bytes() + 12, bytes.len());
    }

    #[test]
    fn a_flipped_bit_is_found(payload in prop::collection::vec(any::<u8>(), 0..5000), at: usize, bit in 0..8u8) {
        let mut bytes = framed(head(), &payload);
        let at = at % (FRAME_HEADER_BYTES + payload.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decode(STORE, &bytes).is_err());
    }

    #[test]
    fn a_damaged_frame_is_known_by_its_chain(payload in prop::collection::vec(any::<u8>(), 0..5000), at: usize, bit in 0..8u8) {
        let chain = Chain { sequence: 7, previous_sum: 9 };
        let mut bytes = framed(head(), &payload);
        let at = at % (FRAME_HEADER_BYTES + payload.len());
        bytes[at] ^= 1 << bit;
        let expected = match at {
            0..8 | 16..24 => Likeness::DamagedHead,
            24..32 => Likeness::OtherPredecessor,
            _ => Likeness::WholeHead,
        };
        prop_assert_eq!(chain.likeness(FrameKind::Journal, &bytes), expected);
        let earlier_lap = Chain { sequence: 8, previous_sum: 10 };
        prop_assert_eq!(earlier_lap.likeness(FrameKind::Journal, &bytes), Likeness::Other);
        prop_assert_eq!(chain.likeness(FrameKind::Journal, &bytes[..40]), Likeness::Other);
    }

    #[test]
    fn a_truncated_frame_is_found(payload in prop::collection::vec(any::<u8>(), 0..5000), len: usize) {
        let bytes = framed(head(), &payload);
        let len = len % (FRAME_HEADER_BYTES + payload.len());
        let asks_for_more = matches!(decode(STORE, &bytes[..len]), Err(Reject::Truncated { .. } | Reject::Longer { .. }));
        prop_assert!(asks_for_more);
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool, kind in 0..7u8) {
        if magic && bytes.len() >= 8 {
            put(&mut bytes, 0, *b"FBF1");
            put(&mut bytes, 4, [kind, 0, 0, 0]);
        }
        prop_assert!(decode(STORE, &bytes).is_err());
    }
}
