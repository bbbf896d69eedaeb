//! The memory tier: whole hot blocks as `Bytes`, within a byte budget, kept by the policy of `policy`.
//!
//! Called by `get` (look up, offer), `fill` and `put` (insert), `remove` (drop). It holds only bytes that were verified
//! (I8), and `shard` drops a key from it before any put, delete or purge of that key begins, so that it never answers
//! with older bytes than the index.

use bytes::Bytes;

use crate::key::{Generation, Identity};
use crate::origin::Etag;
use crate::outcome::{EntryState, MemoryHit};
use crate::policy::s3fifo::{News, S3Fifo};

/// What one block costs beside its content: the policy's slot and place in its table (at most 138 bytes), its ghost (21), what a shared
/// `Bytes` allocates (32), and the allocator's rounding.
const BLOCK_OVERHEAD_BYTES: u64 = 256;

/// A block larger than this share of the budget is not admitted: one block must not flush all others.
const LARGEST_SHARE: u64 = 4;

/// Blocks in memory.
pub(crate) struct MemoryTier {
    max_bytes: u64,
    blocks: S3Fifo<Identity, Held>,
}

struct Held {
    body: Bytes,
    etag: Etag,
    generation: Generation,
}

impl Held {
    /// Clean, until whoever knows says otherwise.
    fn hit(&self) -> (MemoryHit, Generation) {
        let (body, etag) = (self.body.clone(), self.etag.clone());
        (MemoryHit { body, etag, state: EntryState::Clean }, self.generation)
    }
}

impl MemoryTier {
    pub(crate) fn new(max_bytes: u64) -> MemoryTier {
        MemoryTier { max_bytes, blocks: S3Fifo::new(max_bytes) }
    }

    /// Whether a block of `len_bytes` could be held at all: whoever would have to copy it asks first.
    pub(crate) fn admits(&self, len_bytes: u64) -> bool {
        let cost_bytes = len_bytes + BLOCK_OVERHEAD_BYTES;
        cost_bytes.saturating_mul(LARGEST_SHARE) <= self.max_bytes && u32::try_from(cost_bytes).is_ok()
    }

    /// For a client: counts as a use, and says whether that is news.
    pub(crate) fn look_up(&mut self, identity: Identity) -> Option<(MemoryHit, News)> {
        self.blocks.use_of(identity).map(|(held, news)| (held.hit().0, news))
    }

    /// For our own work: a block is not hot because it is flushed.
    pub(crate) fn peek(&self, identity: Identity) -> Option<(MemoryHit, Generation)> {
        self.blocks.peek(identity).map(Held::hit)
    }

    /// Takes `body`, which must be an allocation of its own (see [`contiguous`]): the budget counts its length.
    pub(crate) fn insert(&mut self, identity: Identity, generation: Generation, body: Bytes, etag: Etag) {
        if self.admits(body.len() as u64) {
            let cost_bytes = cost_bytes(&body);
            self.blocks.insert(identity, Held { body, etag, generation }, cost_bytes);
        }
    }

    pub(crate) fn remove(&mut self, identity: Identity) {
        drop(self.blocks.remove(identity));
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.blocks.bytes()
    }

    pub(crate) fn block_count(&self) -> usize {
        self.blocks.count()
    }

    /// Every block held; for `check`.
    pub(crate) fn identities(&self) -> impl Iterator<Item = (Identity, Generation)> + '_ {
        self.blocks.iter().map(|(identity, held, _)| (identity, held.generation))
    }

    pub(crate) fn check(&self) {
        self.blocks.check();
        for (_, held, bytes) in self.blocks.iter() {
            assert_eq!(bytes, cost_bytes(&held.body), "a block counts for what it takes");
        }
        assert!(self.used_bytes() <= self.max_bytes, "the memory tier stays within its budget");
    }
}

/// The frames as one allocation of exactly their length. Always a copy: a frame may be a slice of a larger network
/// buffer, which it would keep alive uncounted.
pub(crate) fn contiguous(frames: &[Bytes], len_bytes: usize) -> Bytes {
    let mut body = Vec::with_capacity(len_bytes);
    frames.iter().for_each(|frame| body.extend_from_slice(frame));
    assert_eq!(body.len(), len_bytes, "the frames are the whole block");
    Bytes::from(body)
}

fn cost_bytes(body: &Bytes) -> u32 {
    u32::try_from(body.len() as u64 + BLOCK_OVERHEAD_BYTES).expect("what is admitted has a length of 32 bits")
}

#[cfg(test)]
mod tests {
    use forebay_io::checksum::Digest;

    use super::*;

    fn insert(tier: &mut MemoryTier, name: u128, len: usize) {
        tier.insert(Identity(name), Generation(1), Bytes::from(vec![name as u8; len]), Etag::Digest(Digest(name)));
    }

    #[test]
    fn blocks_in_use_stay_and_others_go() {
        let mut tier = MemoryTier::new(10 * (1_000 + BLOCK_OVERHEAD_BYTES));
        (0..10).for_each(|name| insert(&mut tier, name, 1_000));
        (0..2).for_each(|_| assert!(tier.look_up(Identity(0)).is_some()));
        (0..2).for_each(|_| assert!(tier.peek(Identity(1)).is_some()));
        (10..1_000).for_each(|name| insert(&mut tier, name, 1_000));
        tier.check();
        assert!(tier.look_up(Identity(0)).is_some(), "it was used since it came");
        assert!((1..990).all(|name| tier.look_up(Identity(name)).is_none()), "to be peeked at is no use");
        assert_eq!(tier.block_count(), 10);
    }

    #[test]
    fn a_block_takes_no_more_than_it_counts_for() {
        let mut tier = MemoryTier::new(100_000 * BLOCK_OVERHEAD_BYTES);
        (0..400_000u128).for_each(|name| insert(&mut tier, name * 0x9e37_79b9_7f4a_7c15, 0));
        assert_eq!(tier.block_count(), 100_000);
        let each = tier.blocks.memory_bytes() / tier.block_count();
        println!("{each} bytes a block beside its content");
        // A shared `Bytes` and the allocator's rounding come on top.
        assert!(each + 64 <= BLOCK_OVERHEAD_BYTES as usize, "{each} bytes a block");
    }

    #[test]
    fn a_block_that_would_flush_the_others_is_not_taken() {
        let mut tier = MemoryTier::new(10_000);
        insert(&mut tier, 1, 9_000);
        assert!(tier.look_up(Identity(1)).is_none());
        let mut none = MemoryTier::new(0);
        insert(&mut none, 1, 0);
        assert_eq!(none.block_count(), 0);
    }

    #[test]
    fn removing_and_replacing_leak_no_bytes() {
        let mut tier = MemoryTier::new(1 << 20);
        for round in 0..10_000u128 {
            insert(&mut tier, round % 3, 100);
            if round % 2 == 0 {
                tier.remove(Identity(round % 3));
            }
        }
        tier.check();
        (0..3).for_each(|name| tier.remove(Identity(name)));
        assert_eq!(tier.used_bytes(), 0);
    }
}
