//! The memory tier: whole hot blocks as `Bytes`, within a byte budget, behind a small interface.
//!
//! Called by `get` (look up, offer), `fill` and `put` (insert), `remove` (drop). It holds only bytes that were verified
//! (I8), and `shard` drops a key from it before any put, delete or purge of that key begins, so that it never answers
//! with older bytes than the index. The policy is plain: second chance (Corbató's CLOCK as a queue), amortised O(1).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::key::{Generation, Identity, IdentityMap};
use crate::origin::Etag;
use crate::outcome::MemoryHit;

/// What one block costs beside its content: table slot, queue slot, the `Bytes` header and the allocator's share.
const BLOCK_OVERHEAD_BYTES: u64 = 256;

/// A block larger than this share of the budget is not admitted: one block must not flush all others.
const LARGEST_SHARE: u64 = 4;

/// Blocks in memory.
pub(crate) struct MemoryTier {
    max_bytes: u64,
    used_bytes: u64,
    blocks: IdentityMap<Held>,
    /// In order of insertion; an item whose stamp is not its block's is stale and skipped.
    queue: VecDeque<(Identity, u64)>,
    next_stamp: u64,
}

struct Held {
    body: Bytes,
    etag: Etag,
    generation: Generation,
    stamp: u64,
    /// Looked up since the hand last passed.
    used: bool,
}

impl MemoryTier {
    pub(crate) fn new(max_bytes: u64) -> MemoryTier {
        MemoryTier { max_bytes, used_bytes: 0, blocks: IdentityMap::default(), queue: VecDeque::new(), next_stamp: 0 }
    }

    /// Whether a block of `len_bytes` could be held at all: whoever would have to copy it asks first.
    pub(crate) fn admits(&self, len_bytes: u64) -> bool {
        (len_bytes + BLOCK_OVERHEAD_BYTES).saturating_mul(LARGEST_SHARE) <= self.max_bytes
    }

    pub(crate) fn look_up(&mut self, identity: Identity) -> Option<(MemoryHit, Generation)> {
        let held = self.blocks.get_mut(&identity)?;
        held.used = true;
        Some((MemoryHit { body: held.body.clone(), etag: held.etag.clone() }, held.generation))
    }

    /// Takes `body`, which must be an allocation of its own (see [`contiguous`]): the budget counts its length.
    pub(crate) fn insert(&mut self, identity: Identity, generation: Generation, body: Bytes, etag: Etag) {
        if !self.admits(body.len() as u64) {
            return;
        }
        self.remove(identity);
        let cost = cost_bytes(&body);
        self.make_room(cost);
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        self.used_bytes += cost;
        self.blocks.insert(identity, Held { body, etag, generation, stamp, used: false });
        self.queue.push_back((identity, stamp));
        self.drop_stale_items();
        assert!(self.used_bytes <= self.max_bytes, "the memory tier stays within its budget");
    }

    pub(crate) fn remove(&mut self, identity: Identity) {
        if let Some(held) = self.blocks.remove(&identity) {
            self.used_bytes -= cost_bytes(&held.body);
        }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Every block held; for `check`.
    pub(crate) fn identities(&self) -> impl Iterator<Item = (Identity, Generation)> + '_ {
        self.blocks.iter().map(|(identity, held)| (*identity, held.generation))
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.used_bytes, self.blocks.values().map(|held| cost_bytes(&held.body)).sum::<u64>());
        assert!(self.used_bytes <= self.max_bytes, "the memory tier stays within its budget");
    }

    fn make_room(&mut self, cost: u64) {
        while self.used_bytes + cost > self.max_bytes {
            let (identity, stamp) = self.queue.pop_front().expect("bytes in use belong to queued blocks");
            match self.blocks.get_mut(&identity) {
                Some(held) if held.stamp == stamp && held.used => {
                    held.used = false;
                    self.queue.push_back((identity, stamp));
                }
                Some(held) if held.stamp == stamp => self.remove(identity),
                _ => {}
            }
        }
    }

    /// Keeps the queue in proportion when blocks are removed by request rather than by the hand.
    fn drop_stale_items(&mut self) {
        if self.queue.len() > 2 * self.blocks.len() + 64 {
            let blocks = &self.blocks;
            self.queue.retain(|(identity, stamp)| blocks.get(identity).is_some_and(|held| held.stamp == *stamp));
        }
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

fn cost_bytes(body: &Bytes) -> u64 {
    body.len() as u64 + BLOCK_OVERHEAD_BYTES
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
        assert!(tier.look_up(Identity(0)).is_some());
        (10..19).for_each(|name| insert(&mut tier, name, 1_000));
        tier.check();
        assert!(tier.look_up(Identity(0)).is_some(), "it was used since it came");
        assert!((1..10).all(|name| tier.look_up(Identity(name)).is_none()));
        assert_eq!(tier.block_count(), 10);
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
    fn removing_and_replacing_neither_leak_bytes_nor_queue_items() {
        let mut tier = MemoryTier::new(1 << 20);
        for round in 0..10_000u128 {
            insert(&mut tier, round % 3, 100);
            if round % 2 == 0 {
                tier.remove(Identity(round % 3));
            }
        }
        tier.check();
        assert!(tier.queue.len() <= 2 * tier.blocks.len() + 65);
        (0..3).for_each(|name| tier.remove(Identity(name)));
        assert_eq!(tier.used_bytes(), 0);
    }
}
