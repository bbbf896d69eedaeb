//! The records of journal, checkpoint and region footers, and their one codec.
//!
//! Written by commit, checkpoint and the footer writer; read by recovery and reclaim. Bytes from a disk never panic:
//! whatever is not exactly a record is [`Malformed`]. All integers are little-endian.
//!
//! ```text
//! Put        1 │ flags 1 │ identity 16 │ generation 8 │ region 4 │ epoch 4 │ place 4 │ length 4 │ sums 8 × pieces
//!              │ [digest 16] │ [origin ETag 2 + n] │ [since 8 │ volume 1 + n │ key 2 + n]
//! Tombstone  2 │ identity 16 │ generation 8 │ since 8 │ volume 1 + n │ key 2 + n
//! Flushed    3 │ identity 16 │ generation 8          Remove   4 │ identity 16 │ up to generation 8
//! RegionOpen 5 │ region 4 │ epoch 4 │ stream 1       Opened   6 │ nonce 8 │ next generation 8
//! Void       7 │ frame sequence 8 │ ordinal 4      Quarantined 8 │ region 4 │ epoch 4
//! unsure Tombstone 9: as 2
//! Pinned    10 │ identity 16 │ up to generation 8      Unpinned 11 │ identity 16 │ up to generation 8
//! ```

use forebay_io::checksum::Digest;
use forebay_io::units::piece_count;

use super::block::{BeforeStore, Certainty, DirtyKind, DirtyRecord, Pinning};
use super::entry::{LEN_BYTES_MAX, Place, REGION_BYTES_MAX, REGION_MAX};
use super::regions::{Epoch, StreamKind};
use crate::key::{BlockKey, Generation, Identity, KEY_BYTES_MAX, VOLUME_NAME_BYTES_MAX};
use crate::origin::Etag;
use crate::outcome::PieceSums;
use forebay_io::units::{PIECE_BYTES, PLACE_BYTES};

/// One state change. A later record of a key overrides an earlier one, so replaying any of them again changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The key's block is this one.
    Put(PutRecord),
    /// The key is deleted, the origin does not know yet.
    Tombstone(DirtyRecord),
    /// The origin confirmed this generation.
    Flushed {
        /// Whose.
        identity: Identity,
        /// Which.
        generation: Generation,
    },
    /// Clean entries up to this generation are gone.
    Remove {
        /// Whose.
        identity: Identity,
        /// The newest that is gone.
        up_to: Generation,
    },
    /// The key's block, if it is of this generation at most, is pinned from here on, or not any more.
    Pin {
        /// Whose.
        identity: Identity,
        /// The newest that is meant.
        up_to: Generation,
        /// Which.
        pinning: Pinning,
    },
    /// From here on the region holds records of this epoch only.
    RegionOpen {
        /// Which region.
        region: u32,
        /// Its new epoch.
        epoch: Epoch,
        /// What is appended there.
        stream: StreamKind,
    },
    /// A store was opened. The nonce makes this frame unlike any earlier one at its place.
    Opened {
        /// Drawn anew.
        nonce: u64,
        /// The first generation of this run.
        next_generation: Generation,
    },
    /// Recovery found this record's payload torn: it never counts.
    Void {
        /// The frame.
        sequence: u64,
        /// The record in it, from zero.
        ordinal: u32,
    },
    /// A write failed in the region, or a dirty block of it rotted: out of use until it opens in a later epoch. In an epoch
    /// of its own: it was emptied since, and records of earlier epochs count no more.
    Quarantined {
        /// Which region.
        region: u32,
        /// The epoch in which it is.
        epoch: Epoch,
    },
}

/// A block at a place.
#[derive(Debug, Clone, PartialEq)]
pub struct PutRecord {
    /// Whose.
    pub identity: Identity,
    /// Which put or fill.
    pub generation: Generation,
    /// Where.
    pub at: Place,
    /// The epoch of its region in which it was written.
    pub epoch: Epoch,
    /// Content length in bytes.
    pub len_bytes: u32,
    /// One per piece.
    pub sums: PieceSums,
    /// Kept where it can't be computed from one piece.
    pub etag: Option<Etag>,
    /// What a flush needs; `None` if clean.
    pub dirty: Option<Box<DirtyRecord>>,
    /// Whether its key was pinned when this was written. Where a block of the key is, that one's says.
    pub pinning: Pinning,
}

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

const PUT: u8 = 1;
const TOMBSTONE: u8 = 2;
const FLUSHED: u8 = 3;
const REMOVE: u8 = 4;
const REGION_OPEN: u8 = 5;
const OPENED: u8 = 6;
const VOID: u8 = 7;
const QUARANTINED: u8 = 8;
const UNSURE_TOMBSTONE: u8 = 9;
const PINNED: u8 = 10;
const UNPINNED: u8 = 11;

const HAS_DIGEST: u8 = 1;
const HAS_ORIGIN_ETAG: u8 = 2;
const IS_DIRTY: u8 = 4;
const DELETES_BEFORE: u8 = 8;
const IS_UNSURE: u8 = 16;
const IS_PINNED: u8 = 32;
const PUT_FLAGS: u8 = 63;

/// Longer origin ETags are not kept; S3's have at most some 40 bytes.
pub const ORIGIN_ETAG_BYTES_MAX: usize = 1024;
/// The largest encoded record without its piece sums: fixed fields, digest, origin ETag, volume and key.
pub const RECORD_BYTES_MAX: usize = 64 + 16 + 2 + ORIGIN_ETAG_BYTES_MAX + 8 + 3 + VOLUME_NAME_BYTES_MAX + KEY_BYTES_MAX;

impl Record {
    /// Appends the encoded record to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Put(put) => put.encode(out),
            Record::Tombstone(record) => {
                out.push(match record.certainty {
                    Certainty::Sure => TOMBSTONE,
                    Certainty::Unsure => UNSURE_TOMBSTONE,
                });
                out.extend_from_slice(&record.identity.0.to_le_bytes());
                out.extend_from_slice(&record.generation.0.to_le_bytes());
                encode_since_and_key(out, record);
            }
            Record::Flushed { identity, generation } => {
                encode_marked(out, FLUSHED, *identity, *generation);
            }
            Record::Remove { identity, up_to } => encode_marked(out, REMOVE, *identity, *up_to),
            Record::Pin { identity, up_to, pinning } => {
                let tag = if *pinning == Pinning::Pinned { PINNED } else { UNPINNED };
                encode_marked(out, tag, *identity, *up_to);
            }
            Record::RegionOpen { region, epoch, stream } => {
                out.push(REGION_OPEN);
                out.extend_from_slice(&region.to_le_bytes());
                out.extend_from_slice(&epoch.0.to_le_bytes());
                out.push(*stream as u8);
            }
            Record::Opened { nonce, next_generation } => {
                out.push(OPENED);
                out.extend_from_slice(&nonce.to_le_bytes());
                out.extend_from_slice(&next_generation.0.to_le_bytes());
            }
            Record::Void { sequence, ordinal } => {
                out.push(VOID);
                out.extend_from_slice(&sequence.to_le_bytes());
                out.extend_from_slice(&ordinal.to_le_bytes());
            }
            Record::Quarantined { region, epoch } => {
                out.push(QUARANTINED);
                out.extend_from_slice(&region.to_le_bytes());
                out.extend_from_slice(&epoch.0.to_le_bytes());
            }
        }
    }

    /// Takes one record off the front of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`] if there is none; what follows can't be read either then.
    pub fn decode(bytes: &mut &[u8]) -> Result<Record, Malformed> {
        let mut reader = Reader(bytes);
        let record = decode_one(&mut reader).ok_or(Malformed)?;
        *bytes = reader.0;
        Ok(record)
    }
}

/// A clean block of one piece whose ETag follows from its sum: nearly all that a checkpoint of a large disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainPut {
    /// As in [`PutRecord`].
    pub identity: Identity,
    /// As in [`PutRecord`].
    pub generation: Generation,
    /// As in [`PutRecord`].
    pub at: Place,
    /// As in [`PutRecord`].
    pub epoch: Epoch,
    /// As in [`PutRecord`].
    pub len_bytes: u32,
    /// The sum of its piece.
    pub sum: u64,
}

/// Without its digest.
const PLAIN_PUT_BYTES: usize = 50;

impl PlainPut {
    /// Takes such a record off the front of `bytes`, which stay as they are if another stands there, or none. A start decodes
    /// millions of these: without a branch for each field, and without making a record of many words.
    #[must_use]
    pub fn decode(bytes: &mut &[u8]) -> Option<PlainPut> {
        let (record, rest) = bytes.split_first_chunk::<PLAIN_PUT_BYTES>()?;
        let digest_bytes = match record {
            [PUT, 0, ..] => 0,
            [PUT, HAS_DIGEST, ..] => size_of::<Digest>(),
            _ => return None,
        };
        let u32_at = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four of fifty bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight of fifty bytes"));
        let identity = Identity(u128::from(u64_at(10)) << 64 | u128::from(u64_at(2)));
        let generation = Generation(u64_at(18));
        let (at, epoch) = (Place { region: u32_at(26), place: u32_at(34) }, Epoch(u32_at(30)));
        let (len_bytes, sum) = (u32_at(38), u64_at(42));
        let is_possible = generation.0 < 1 << 48
            && at.region <= REGION_MAX
            && u64::from(at.place) < REGION_BYTES_MAX / PLACE_BYTES as u64
            && len_bytes as usize <= PIECE_BYTES;
        *bytes = rest.get(digest_bytes..).filter(|_| is_possible)?;
        Some(PlainPut { identity, generation, at, epoch, len_bytes, sum })
    }
}

/// Whether an encoded record is a dirty put or a tombstone.
#[must_use]
pub fn is_dirty_line(line: &[u8]) -> bool {
    match line {
        [PUT, flags, ..] => flags & IS_DIRTY != 0,
        [TOMBSTONE | UNSURE_TOMBSTONE, ..] => true,
        _ => false,
    }
}

impl PutRecord {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        let digest = match (&self.etag, self.dirty.as_ref().map(|dirty| dirty.kind)) {
            (_, Some(DirtyKind::Block { digest, before, .. })) => {
                flags |= if before == BeforeStore::Delete { DELETES_BEFORE } else { 0 };
                Some(digest)
            }
            (Some(Etag::Digest(digest)), _) => Some(*digest),
            _ => None,
        };
        let origin_etag = match &self.etag {
            Some(Etag::Origin(etag)) if self.dirty.is_none() && etag.len() <= ORIGIN_ETAG_BYTES_MAX => Some(etag),
            _ => None,
        };
        flags |= if digest.is_some() { HAS_DIGEST } else { 0 };
        flags |= if origin_etag.is_some() { HAS_ORIGIN_ETAG } else { 0 };
        flags |= if self.dirty.is_some() { IS_DIRTY } else { 0 };
        let is_unsure = self.dirty.as_ref().is_some_and(|dirty| dirty.certainty == Certainty::Unsure);
        flags |= if is_unsure { IS_UNSURE } else { 0 };
        flags |= if self.pinning == Pinning::Pinned { IS_PINNED } else { 0 };
        out.extend_from_slice(&[PUT, flags]);
        out.extend_from_slice(&self.identity.0.to_le_bytes());
        out.extend_from_slice(&self.generation.0.to_le_bytes());
        for field in [self.at.region, self.epoch.0, self.at.place, self.len_bytes] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let sums = self.sums.as_slice();
        assert_eq!(sums.len(), piece_count(u64::from(self.len_bytes)), "one sum per piece");
        sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        if let Some(digest) = digest {
            out.extend_from_slice(&digest.0.to_le_bytes());
        }
        if let Some(etag) = origin_etag {
            out.extend_from_slice(&(etag.len() as u16).to_le_bytes());
            out.extend_from_slice(etag.as_bytes());
        }
        if let Some(dirty) = &self.dirty {
            encode_since_and_key(out, dirty);
        }
    }
}

impl PieceSums {
    /// The sums in order.
    #[must_use]
    pub fn as_slice(&self) -> &[u64] {
        match self {
            PieceSums::One(sum) => std::slice::from_ref(sum),
            PieceSums::Many(sums) => sums,
        }
    }
}

fn encode_marked(out: &mut Vec<u8>, tag: u8, identity: Identity, generation: Generation) {
    out.push(tag);
    out.extend_from_slice(&identity.0.to_le_bytes());
    out.extend_from_slice(&generation.0.to_le_bytes());
}

fn encode_since_and_key(out: &mut Vec<u8>, record: &DirtyRecord) {
    out.extend_from_slice(&record.since_unix_ms.to_le_bytes());
    let (volume, key) = (&record.key.volume, &record.key.key);
    assert!(volume.len() <= VOLUME_NAME_BYTES_MAX && key.len() <= KEY_BYTES_MAX, "keys are bounded when they are made");
    out.push(volume.len() as u8);
    out.extend_from_slice(volume.as_bytes());
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key.as_bytes());
}

fn decode_one(reader: &mut Reader<'_>) -> Option<Record> {
    match reader.u8()? {
        PUT => decode_put(reader).map(Record::Put),
        tag @ (TOMBSTONE | UNSURE_TOMBSTONE) => {
            let (identity, generation) = (reader.identity()?, reader.generation()?);
            let (since_unix_ms, key) = reader.since_and_key()?;
            let kind = DirtyKind::Tombstone;
            let certainty = if tag == TOMBSTONE { Certainty::Sure } else { Certainty::Unsure };
            Some(Record::Tombstone(DirtyRecord { key, identity, generation, kind, since_unix_ms, certainty }))
        }
        FLUSHED => Some(Record::Flushed { identity: reader.identity()?, generation: reader.generation()? }),
        REMOVE => Some(Record::Remove { identity: reader.identity()?, up_to: reader.generation()? }),
        tag @ (PINNED | UNPINNED) => {
            let pinning = if tag == PINNED { Pinning::Pinned } else { Pinning::Unpinned };
            Some(Record::Pin { identity: reader.identity()?, up_to: reader.generation()?, pinning })
        }
        REGION_OPEN => Some(Record::RegionOpen {
            region: reader.u32().filter(|&region| region <= REGION_MAX)?,
            epoch: Epoch(reader.u32()?),
            stream: StreamKind::from_u8(reader.u8()?)?,
        }),
        OPENED => Some(Record::Opened { nonce: reader.u64()?, next_generation: reader.generation()? }),
        VOID => Some(Record::Void { sequence: reader.u64()?, ordinal: reader.u32()? }),
        QUARANTINED => {
            let region = reader.u32().filter(|&region| region <= REGION_MAX)?;
            Some(Record::Quarantined { region, epoch: Epoch(reader.u32()?) })
        }
        _ => None,
    }
}

fn decode_put(reader: &mut Reader<'_>) -> Option<PutRecord> {
    let flags = reader.u8().filter(|flags| flags & !PUT_FLAGS == 0)?;
    let (identity, generation) = (reader.identity()?, reader.generation()?);
    let (region, epoch, place, len_bytes) = (reader.u32()?, Epoch(reader.u32()?), reader.u32()?, reader.u32()?);
    let places_max = REGION_BYTES_MAX / PLACE_BYTES as u64;
    if region > REGION_MAX || u64::from(place) >= places_max || len_bytes > LEN_BYTES_MAX {
        return None;
    }
    let sums = match piece_count(u64::from(len_bytes)) {
        // Without an allocation: a start decodes millions of these.
        1 => PieceSums::One(reader.u64()?),
        count => PieceSums::Many((0..count).map(|_| reader.u64()).collect::<Option<Vec<u64>>>()?.into()),
    };
    let digest = if flags & HAS_DIGEST != 0 { Some(Digest(reader.u128()?)) } else { None };
    let origin_etag = if flags & HAS_ORIGIN_ETAG != 0 {
        let bytes = reader.u16()?;
        Some(reader.text(usize::from(bytes)).filter(|etag| etag.len() <= ORIGIN_ETAG_BYTES_MAX)?)
    } else {
        None
    };
    let dirty = if flags & IS_DIRTY != 0 {
        let (since_unix_ms, key) = reader.since_and_key()?;
        let before = if flags & DELETES_BEFORE != 0 { BeforeStore::Delete } else { BeforeStore::Nothing };
        let certainty = if flags & IS_UNSURE != 0 { Certainty::Unsure } else { Certainty::Sure };
        let kind = DirtyKind::Block { len_bytes, digest: digest?, before };
        Some(Box::new(DirtyRecord { key, identity, generation, kind, since_unix_ms, certainty }))
    } else {
        None
    };
    let etag = digest.map(Etag::Digest).or(origin_etag.map(|etag| Etag::Origin(etag.into())));
    let pinning = if flags & IS_PINNED != 0 { Pinning::Pinned } else { Pinning::Unpinned };
    Some(PutRecord { identity, generation, at: Place { region, place }, epoch, len_bytes, sums, etag, dirty, pinning })
}

/// Takes fields off the front; `None` where there are too few bytes or a field is out of range.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.take().map(u128::from_le_bytes)
    }

    fn identity(&mut self) -> Option<Identity> {
        self.u128().map(Identity)
    }

    fn generation(&mut self) -> Option<Generation> {
        self.u64().filter(|&generation| generation < 1 << 48).map(Generation)
    }

    fn text(&mut self, bytes: usize) -> Option<&'a str> {
        let (field, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        std::str::from_utf8(field).ok()
    }

    fn since_and_key(&mut self) -> Option<(u64, BlockKey)> {
        let since_unix_ms = self.u64()?;
        let volume_bytes = self.u8().filter(|&bytes| (1..=VOLUME_NAME_BYTES_MAX).contains(&usize::from(bytes)))?;
        let volume = self.text(usize::from(volume_bytes))?;
        let key_bytes = self.u16().filter(|&bytes| (1..=KEY_BYTES_MAX).contains(&usize::from(bytes)))?;
        Some((since_unix_ms, BlockKey::new(volume.into(), self.text(usize::from(key_bytes))?)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dirty(key: String, generation: u64, kind: DirtyKind) -> DirtyRecord {
        let key = BlockKey::new("demo-back".into(), key);
        let (identity, generation) = (Identity(77), Generation(generation));
        let certainty = if generation.0.is_multiple_of(3) { Certainty::Unsure } else { Certainty::Sure };
        DirtyRecord { key, identity, generation, kind, since_unix_ms: 5, certainty }
    }

    fn records() -> impl Strategy<Value = Record> {
        let put =
            (any::<u128>(), 0..1u64 << 48, 0..=REGION_MAX, 0..1u32 << 20, 0..=LEN_BYTES_MAX, 0..5u8, "\\PC{1,40}");
        let put = put.prop_map(|(identity, generation, region, place, len_bytes, shape, text)| {
            let kind = |before| DirtyKind::Block { len_bytes, digest: Digest(identity), before };
            let dirty = |before| {
                let record = dirty(text.clone(), generation, kind(before));
                Some(Box::new(DirtyRecord { identity: Identity(identity), ..record }))
            };
            let (etag, dirty) = match shape {
                0 => (None, None),
                1 => (Some(Etag::Digest(Digest(3))), None),
                2 => (Some(Etag::Origin(text.as_str().into())), None),
                3 => (Some(Etag::Digest(Digest(identity))), dirty(BeforeStore::Nothing)),
                _ => (Some(Etag::Digest(Digest(identity))), dirty(BeforeStore::Delete)),
            };
            let sums: Vec<u64> = (0..piece_count(u64::from(len_bytes)) as u64).collect();
            let sums = if sums.len() == 1 { PieceSums::One(0) } else { PieceSums::Many(sums.into()) };
            let (at, epoch) = (Place { region, place }, Epoch(place));
            let pinning = if place.is_multiple_of(2) { Pinning::Pinned } else { Pinning::Unpinned };
            let (identity, generation) = (Identity(identity), Generation(generation));
            Record::Put(PutRecord { identity, generation, at, epoch, len_bytes, sums, etag, dirty, pinning })
        });
        let marked = (any::<u128>(), 0..1u64 << 48);
        prop_oneof![
            4 => put,
            1 => ("\\PC{1,90}", 0..1u64 << 48).prop_map(|(k, g)| Record::Tombstone(dirty(k, g, DirtyKind::Tombstone))),
            1 => marked.clone().prop_map(|(i, g)| Record::Flushed { identity: Identity(i), generation: Generation(g) }),
            1 => marked.clone().prop_map(|(i, g)| Record::Pin {
                identity: Identity(i),
                up_to: Generation(g),
                pinning: if g % 2 == 0 { Pinning::Pinned } else { Pinning::Unpinned },
            }),
            1 => marked.prop_map(|(i, g)| Record::Remove { identity: Identity(i), up_to: Generation(g) }),
            1 => (0..=REGION_MAX, any::<u32>()).prop_map(|(region, epoch)| Record::RegionOpen {
                region,
                epoch: Epoch(epoch),
                stream: StreamKind::ALL[(epoch % 3) as usize],
            }),
            1 => (any::<u64>(), 0..1u64 << 48)
                .prop_map(|(nonce, next)| Record::Opened { nonce, next_generation: Generation(next) }),
            1 => (any::<u64>(), any::<u32>()).prop_map(|(sequence, ordinal)| Record::Void { sequence, ordinal }),
            1 => (0..=REGION_MAX, any::<u32>())
                .prop_map(|(region, epoch)| Record::Quarantined { region, epoch: Epoch(epoch) }),
        ]
    }

    proptest! {
        #[test]
        fn records_survive_the_codec(records in prop::collection::vec(records(), 1..20)) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            let mut rest = &bytes[..];
            for record in &records {
                prop_assert_eq!(&Record::decode(&mut rest).unwrap(), record);
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_are_a_record_or_malformed(tag in 0..13u8, tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = vec![tag];
            bytes.extend(tail);
            let _ = Record::decode(&mut &bytes[..]);
        }

        #[test]
        fn damaged_and_cut_records_never_panic(record in records(), at in any::<usize>(), bit in 0..8u32, cut in any::<usize>()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert!(Record::decode(&mut &bytes[..cut % bytes.len()]).is_err());
            let at = at % bytes.len();
            bytes[at] ^= 1u8 << bit;
            let _ = Record::decode(&mut &bytes[..]);
        }
    }

    #[test]
    fn the_longest_record_fits_its_bound() {
        let kind = DirtyKind::Block { len_bytes: 1, digest: Digest(1), before: BeforeStore::Delete };
        let mut record = dirty("k".repeat(KEY_BYTES_MAX), 1, kind);
        record.key.volume = "v".repeat(VOLUME_NAME_BYTES_MAX).into();
        let put = PutRecord {
            identity: record.identity,
            generation: record.generation,
            at: Place { region: 1, place: 1 },
            epoch: Epoch(1),
            len_bytes: 1,
            sums: PieceSums::One(1),
            etag: None,
            dirty: Some(Box::new(record)),
            pinning: Pinning::Pinned,
        };
        let mut bytes = Vec::new();
        Record::Put(put).encode(&mut bytes);
        assert!(bytes.len() <= RECORD_BYTES_MAX, "{}", bytes.len());
    }
}
