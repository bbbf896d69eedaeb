//! The keys of a run and the contents that may ever be stored under each: what answers are recognised by.
//!
//! Made by `plan` from the seed. Written keys have a few versions, fillers one, which the origin holds from the beginning:
//! reading those turns regions over. All contents differ but for the empty one, so bytes tell key and version.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use forebay_io::checksum::Digest;
use forebay_shard::key::BlockKey;
use forebay_shard::origin::{Etag, OriginMeta};

use super::model::State;

/// Versions of a written key.
pub const VERSIONS: u8 = 3;

/// One key and what may be stored under it.
pub struct Subject {
    pub key: BlockKey,
    pub versions: Vec<Version>,
}

/// One content.
pub struct Version {
    pub body: Bytes,
    pub digest: Digest,
}

/// All keys of a run.
pub struct Universe {
    pub subjects: Vec<Subject>,
    /// The first so many are written; the rest are fillers.
    pub written: usize,
    by_key: BTreeMap<BlockKey, usize>,
    by_digest: HashMap<Digest, (usize, u8)>,
}

impl Universe {
    pub fn new(subjects: Vec<Subject>, written: usize) -> Universe {
        let by_key = subjects.iter().enumerate().map(|(index, subject)| (subject.key.clone(), index)).collect();
        let mut by_digest = HashMap::new();
        for (index, subject) in subjects.iter().enumerate() {
            for (version, content) in (0u8..).zip(&subject.versions) {
                by_digest.insert(content.digest, (index, version));
            }
        }
        Universe { subjects, written, by_key, by_digest }
    }

    pub fn key(&self, index: usize) -> &BlockKey {
        &self.subjects[index].key
    }

    pub fn index(&self, key: &BlockKey) -> usize {
        self.by_key[key]
    }

    pub fn version(&self, index: usize, version: u8) -> &Version {
        &self.subjects[index].versions[usize::from(version)]
    }

    /// Which version of a key has these bytes.
    ///
    /// # Errors
    /// Whose bytes they are instead, in words.
    pub fn recognise(&self, index: usize, bytes: &[u8]) -> Result<u8, String> {
        let found = (0u8..).zip(&self.subjects[index].versions).find(|(_, version)| version.body == bytes);
        found.map(|(version, _)| version).ok_or_else(|| self.name_bytes(bytes))
    }

    fn name_bytes(&self, bytes: &[u8]) -> String {
        match self.by_digest.get(&Digest::of(bytes)) {
            Some((index, version)) => format!("the bytes of key {index}, version {version}"),
            None => format!("{} bytes that nobody ever stored", bytes.len()),
        }
    }

    /// Which version an ETag and length stand for. Only version 0 is ever stored by others, with an ETag of theirs.
    pub fn recognise_meta(&self, index: usize, meta: &OriginMeta) -> Option<u8> {
        self.recognise_etag(index, &meta.etag)
            .filter(|version| self.version(index, *version).body.len() as u64 == meta.len_bytes)
    }

    pub fn recognise_etag(&self, index: usize, etag: &Etag) -> Option<u8> {
        match etag {
            Etag::Origin(_) => Some(0),
            Etag::Digest(digest) => self.recognise_digest(index, *digest),
        }
    }

    pub fn recognise_digest(&self, index: usize, digest: Digest) -> Option<u8> {
        (0u8..).zip(&self.subjects[index].versions).find(|(_, version)| version.digest == digest).map(|(v, _)| v)
    }

    /// The versions of which `bytes` are what lies at `at`, of a block of `len_bytes`.
    pub fn versions_with(&self, index: usize, len_bytes: u64, at: usize, bytes: &[u8]) -> impl Iterator<Item = State> {
        let versions = (0u8..).zip(&self.subjects[index].versions);
        versions
            .filter(move |(_, version)| {
                version.body.len() as u64 == len_bytes && version.body.get(at..at + bytes.len()) == Some(bytes)
            })
            .map(|(version, _)| Some(version))
    }
}

/// `len` bytes that follow from `seed`.
pub fn content(seed: u64, len: usize) -> Version {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    Version { digest: Digest::of(&bytes), body: bytes.into() }
}
