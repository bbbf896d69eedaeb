//! What names a block: volume and key, and its identity (keyed hash) inside one node.
//!
//! Used by everything above. Keys are parsed and bounded at the edge; equal identities are equal keys, so below the verbs
//! only identities travel.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher13};

/// The longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest volume name in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 63;

/// A block's full name. Cheap to clone; `Send`, so it may cross cores.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// The volume's name: 1–63 bytes of `[a-z0-9-]`.
    pub volume: Arc<str>,
    /// The key: any UTF-8, 1–1,024 bytes, already percent-decoded.
    pub key: Arc<str>,
}

impl BlockKey {
    /// A key from parts that were validated at the edge.
    #[must_use]
    pub fn new(volume: Arc<str>, key: impl Into<Arc<str>>) -> BlockKey {
        let key = key.into();
        assert!((1..=VOLUME_NAME_BYTES_MAX).contains(&volume.len()), "a volume name is 1 to 63 bytes");
        assert!((1..=KEY_BYTES_MAX).contains(&key.len()), "a key is 1 to 1,024 bytes");
        BlockKey { volume, key }
    }
}

/// A keyed 128-bit hash of volume and key; the hash key is drawn at `format`. Equal identities are equal keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(pub u128);

/// A map by identity. An identity is a keyed hash already, so its low half is its hash.
pub type IdentityMap<T> = hashbrown::HashMap<Identity, T, BuildHasherDefault<IdentityHasher>>;
/// A set of identities.
pub type IdentitySet = hashbrown::HashSet<Identity, BuildHasherDefault<IdentityHasher>>;

/// Takes the low half of an identity for its hash.
#[derive(Default)]
pub struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn write_u128(&mut self, identity: u128) {
        self.0 = identity as u64;
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only identities are hashed");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The secret of a node's identities.
#[derive(Clone, Copy)]
pub struct IdentityKey(pub [u8; 16]);

impl IdentityKey {
    /// The identity of `key` on the node that owns this secret (SipHash-1-3, 128 bits).
    #[must_use]
    pub fn identity(&self, key: &BlockKey) -> Identity {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        // A volume name has no NUL, so the pair is unambiguous.
        Hasher::write(&mut hasher, key.volume.as_bytes());
        Hasher::write(&mut hasher, &[0]);
        Hasher::write(&mut hasher, key.key.as_bytes());
        Identity(hasher.finish128().as_u128())
    }
}

/// A number from the shard's one ever-growing sequence; it orders puts, deletes, fills and flushes of that shard.
/// 48 bits: 2^48 at a million operations a second last nine years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(volume: &str, name: &str) -> BlockKey {
        BlockKey::new(volume.into(), name)
    }

    #[test]
    fn identities_differ_by_secret_volume_and_key() {
        let one = IdentityKey([1; 16]);
        let base = one.identity(&key("v", "k"));
        assert_ne!(base, IdentityKey([2; 16]).identity(&key("v", "k")));
        assert_ne!(base, one.identity(&key("vk", "k")));
        assert_ne!(base, one.identity(&key("v", "kk")));
        assert_eq!(base, one.identity(&key("v", "k")));
    }
}
