//! What other members ask of this node alone, brought to the shard that owns the key.
//!
//! Part of `dispatch`, one message for all of it: `shard/here` answers, and nobody asks the store. An answer with a place on disk carries its
//! pin as any other (I7).

use forebay_io::{Disk, Runtime};
use forebay_shard::key::BlockKey;
use forebay_shard::origin::Origin;
use forebay_shard::outcome::{Got, Headed, Put, PutDone, Removed};
use forebay_shard::shard::Shard;
use futures::channel::oneshot;

use crate::proxy::heartbeat::InFlight;

use super::{Dispatch, GotPinned, Message, Pinned, Routed, pin_of, routed};

/// A question to the node alone.
pub enum AskHere {
    /// Where the bytes are.
    Get(BlockKey),
    /// Length and ETag.
    Head(BlockKey),
    /// A put, if something of the key is dirty here.
    Put(Box<Put>),
    /// A delete, if something of the key is dirty here.
    Delete(BlockKey),
    /// The end of all puts and deletes that have begun by now.
    Quiet,
}

/// Its answer.
pub enum Here<P = Pinned> {
    /// Nothing of the key is here; to a put or delete: nothing dirty, and nothing was done.
    Nothing,
    /// To a get.
    Got(GotPinned<P>),
    /// To a head.
    Headed(Headed),
    /// To a put.
    Put(PutDone),
    /// To a delete.
    Removed(Removed),
    /// They have ended.
    Quiet,
}

impl AskHere {
    /// What it is about.
    #[must_use]
    pub fn key(&self) -> Option<&BlockKey> {
        match self {
            AskHere::Get(key) | AskHere::Head(key) | AskHere::Delete(key) => Some(key),
            AskHere::Put(put) => Some(&put.key),
            AskHere::Quiet => None,
        }
    }
}

impl<D: Disk, O: Origin, R: Runtime> Dispatch<D, O, R> {
    /// Asks the shard that owns the key.
    pub async fn here(&self, ask: AskHere) -> Routed<Here> {
        let number = ask.key().map_or(0, |key| self.owner(key));
        self.ask_here(number, ask).await
    }

    /// Resolves when all puts and deletes that this core has sent to any shard have ended; whether it could be asked of all.
    pub async fn changes_ended(&self) -> bool {
        let asked = (0..self.shard_count()).map(|number| self.ask_here(number, AskHere::Quiet));
        futures::future::join_all(asked).await.into_iter().all(|routed| matches!(routed.answer, Here::Quiet))
    }

    /// How many dirty records of this core's shards are `chosen`, which are flushed first from now on.
    pub async fn count_dirty(&self, chosen: &(dyn Fn(&BlockKey) -> bool + Send + Sync)) -> u64 {
        let counts = self.own_shards().map(|(_, shard)| shard.count_dirty(chosen));
        futures::future::join_all(counts).await.into_iter().sum()
    }

    async fn ask_here(&self, number: u16, ask: AskHere) -> Routed<Here> {
        if let Some(shard) = self.own(number) {
            return routed(number, 0, self.ask_shard(number, shard, ask).await);
        }
        let (answer, answered) = oneshot::channel();
        let declined = match &ask {
            AskHere::Get(_) => |declined| Here::Got(GotPinned { got: Got::Declined(declined), pinned: None }),
            AskHere::Head(_) => |declined| Here::Headed(Headed::Declined(declined)),
            AskHere::Put(_) => |declined| Here::Put(PutDone::Declined(declined)),
            AskHere::Delete(_) => |declined| Here::Removed(Removed::Declined(declined)),
            AskHere::Quiet => |_| Here::Nothing,
        };
        let message = Message::Here { shard: number, ask, answer };
        routed(number, 1, self.hop(number, message, answered).await.unwrap_or_else(declined))
    }

    pub(super) async fn answer_here(
        &self,
        number: u16,
        shard: &Shard<D, O, R>,
        ask: AskHere,
        answer: oneshot::Sender<Here>,
        in_flight: InFlight,
    ) {
        drop(answer.send(self.ask_shard(number, shard, ask).await));
        drop(in_flight);
    }

    async fn ask_shard(&self, number: u16, shard: &Shard<D, O, R>, ask: AskHere) -> Here {
        let answer = match ask {
            AskHere::Get(key) => shard.look_here(&key).await.map(|got| {
                let pinned = pin_of(&got).map(|pin| self.pinned(number, pin));
                Here::Got(GotPinned { got, pinned })
            }),
            AskHere::Head(key) => shard.head_here(&key).await.map(Here::Headed),
            AskHere::Put(put) => shard.put_over_dirty(*put).await.map(Here::Put),
            AskHere::Delete(key) => shard.delete_over_dirty(&key).await.map(Here::Removed),
            AskHere::Quiet => {
                shard.changes_ended().await;
                Some(Here::Quiet)
            }
        };
        answer.unwrap_or(Here::Nothing)
    }
}
