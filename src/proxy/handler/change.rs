//! PUT, DELETE, purge, pin and unpin of a block.
//!
//! Called by `handler`. Everything that the head can tell is checked before a byte of the body is read, so that a client
//! that waits for `100 Continue` never sends in vain; nothing reaches the shard before the whole body has been verified.

use bytes::Bytes;
use forebay_shard::config::{Access, VolumeConfig};
use forebay_shard::key::BlockKey;
use forebay_shard::origin::Etag;
use forebay_shard::outcome::{Durability, PinDone, Put, PutDone, Removed, UnpinDone};
use http::header::{CONTENT_LENGTH, ETAG};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};

use super::group::Writer;
use super::{Answer, Handler, Trace};
use crate::problem::Problem;
use crate::proxy::blocks::Blocks;
use crate::proxy::body::ResponseBody;
use crate::proxy::conditions::{ContentDigest, etag_value, put_condition};
use crate::proxy::dispatch::{AskHere, Here, Routed};
use crate::proxy::metrics::Outcome;
use crate::proxy::put_body::receive;
use crate::proxy::request::Order;
use crate::proxy::respond::{FOREBAY_DURABILITY, Failure, durability_value, response};
use crate::proxy::served::ServedVolume;

/// When to come back if bodies take all the memory they may: about as long as one takes to arrive.
const PUTS_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

impl<B: Blocks> Handler<B> {
    /// `PUT /v1/volumes/{volume}/blocks/{key}`.
    pub(super) async fn put<T>(
        &self,
        parts: &Parts,
        body: &mut T,
        key: BlockKey,
        volume: &ServedVolume,
        trace: &mut Trace,
    ) -> Answer<B>
    where
        T: http_body::Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        writable(&volume.settings)?;
        let len_bytes = content_length(&parts.headers, volume.settings.block_bytes_max)?;
        let durability = durability_asked(&parts.headers)?.max(volume.durability);
        let condition = put_condition(&parts.headers).map_err(|what| Failure::new(Problem::BadCondition, what))?;
        let expected = ContentDigest::of(&parts.headers).map_err(|what| Failure::new(Problem::BadDigest, what))?;
        let writer = self.writer(parts, volume, &key)?;
        let _admitted = self.puts.admit(u64::from(len_bytes)).ok_or_else(|| {
            Failure::new(Problem::PutsFull, "nothing was stored: try again later").retry_after(PUTS_RETRY)
        })?;
        let received = receive(body, len_bytes, expected, &self.metrics).await?;
        let digest = received.digest;
        trace.outcome = Outcome::Put;
        let frames = received.frames;
        let is_over_dirty = match writer {
            Writer::At(writer) => return self.forward(parts, volume, writer, Method::PUT, &key, frames).await,
            Writer::HereOverDirty => true,
            Writer::Here(holders) => {
                if let Some(answer) = self.over_dirty(parts, volume, &holders, Method::PUT, &key, &frames).await? {
                    return Ok(answer);
                }
                false
            }
        };
        let put = Put { key, frames, len_bytes, digest, condition, durability };
        // Nothing may be waited for between this and the shard.
        self.check_still(volume)?;
        let routed = match is_over_dirty {
            false => self.blocks.put(put).await,
            true => self.put_over_dirty(put).await?,
        };
        trace.hops = Some(routed.hops);
        let (status, promised) = match routed.answer {
            PutDone::Created(promised) => (StatusCode::CREATED, promised),
            PutDone::Unchanged(promised) => (StatusCode::OK, promised),
            PutDone::KeyExists => {
                return Err(Failure::new(Problem::KeyExists, "delete it first, or use another key"));
            }
            PutDone::PreconditionFailed => {
                return Err(Failure::new(Problem::PreconditionFailed, "nothing was stored"));
            }
            PutDone::Declined(declined) => return Err(declined.into()),
            PutDone::Failed(error) => return Err(error.into()),
        };
        assert!(promised >= durability, "a put never promises less than was asked for");
        let mut answer = response(status, ResponseBody::Empty);
        answer.headers_mut().insert(ETAG, etag_value(&Etag::Digest(digest)));
        answer.headers_mut().insert(FOREBAY_DURABILITY, durability_value(promised));
        Ok(answer)
    }

    /// `DELETE /v1/volumes/{volume}/blocks/{key}`.
    pub(super) async fn delete(
        &self,
        parts: &Parts,
        key: &BlockKey,
        volume: &ServedVolume,
        trace: &mut Trace,
    ) -> Answer<B> {
        writable(&volume.settings)?;
        trace.outcome = Outcome::Delete;
        let answer = match self.writer(parts, volume, key)? {
            Writer::At(writer) => self.forward(parts, volume, writer, Method::DELETE, key, Vec::new()).await,
            Writer::HereOverDirty => {
                self.check_still(volume)?;
                return self.delete_over_dirty(key, trace).await;
            }
            Writer::Here(holders) => match self.over_dirty(parts, volume, &holders, Method::DELETE, key, &[]).await? {
                Some(answer) => Ok(answer),
                None => {
                    self.check_still(volume)?;
                    let routed = self.blocks.delete(key).await;
                    trace.hops = Some(routed.hops);
                    return removed(routed.answer);
                }
            },
        };
        // Another member did it: what was cached here of it is no more. What is dirty here that one has asked for.
        self.blocks.purge(key).await;
        answer
    }

    async fn put_over_dirty(&self, put: Put) -> Result<Routed<PutDone>, Failure> {
        let Routed { shard, hops, answer } = self.blocks.here(AskHere::Put(Box::new(put))).await;
        match answer {
            Here::Put(answer) => Ok(Routed { shard, hops, answer }),
            Here::Nothing => Err(not_dirty_here()),
            Here::Got(_) | Here::Headed(_) | Here::Removed(_) | Here::Quiet => unreachable!("a put is answered as one"),
        }
    }

    async fn delete_over_dirty(&self, key: &BlockKey, trace: &mut Trace) -> Answer<B> {
        let routed = self.blocks.here(AskHere::Delete(key.clone())).await;
        trace.hops = Some(routed.hops);
        match routed.answer {
            Here::Removed(answer) => removed(answer),
            Here::Nothing => {
                // A copy of what is deleted elsewhere.
                self.blocks.purge(key).await;
                Err(not_dirty_here())
            }
            Here::Got(_) | Here::Headed(_) | Here::Put(_) | Here::Quiet => unreachable!("a delete is answered as one"),
        }
    }

    /// `POST /v1/volumes/{volume}/{purge|pin|unpin}?key={key}`.
    pub(super) async fn order(&self, order: Order, key: &BlockKey, trace: &mut Trace) -> Answer<B> {
        match order {
            Order::Purge => self.purge(key, trace).await,
            Order::Pin => self.pin(key, trace).await,
            Order::Unpin => self.unpin(key, trace).await,
        }
    }

    async fn pin(&self, key: &BlockKey, trace: &mut Trace) -> Answer<B> {
        let routed = self.blocks.pin(key).await;
        trace.hops = Some(routed.hops);
        trace.outcome = Outcome::Pin;
        match routed.answer {
            PinDone::Done => Ok(response(StatusCode::NO_CONTENT, ResponseBody::Empty)),
            PinDone::Absent => Err(Failure::new(Problem::NoSuchBlock, "there is nothing to pin")),
            PinDone::Full { pinned_bytes, bytes_max } => {
                let detail =
                    format!("{pinned_bytes} of at most {bytes_max} bytes are pinned there: unpin others, or add disk");
                Err(Failure::new(Problem::PinsFull, detail))
            }
            PinDone::Lost => Err(Failure::new(Problem::BlockLost, "it rotted before it reached the object store")),
            PinDone::Declined(declined) => Err(declined.into()),
            PinDone::Failed(error) => Err(error.into()),
        }
    }

    async fn unpin(&self, key: &BlockKey, trace: &mut Trace) -> Answer<B> {
        let routed = self.blocks.unpin(key).await;
        trace.hops = Some(routed.hops);
        trace.outcome = Outcome::Unpin;
        match routed.answer {
            UnpinDone::Done => Ok(response(StatusCode::NO_CONTENT, ResponseBody::Empty)),
            UnpinDone::Declined(declined) => Err(declined.into()),
        }
    }

    async fn purge(&self, key: &BlockKey, trace: &mut Trace) -> Answer<B> {
        let routed = self.blocks.purge(key).await;
        trace.hops = Some(routed.hops);
        trace.outcome = Outcome::Purge;
        removed(routed.answer)
    }
}

/// To the member whose key it is: it may take the write, this one never will.
fn not_dirty_here() -> Failure {
    Failure::new(
        Problem::NotOwner,
        "nothing of it is dirty here, and by the group's routing another member is first for this key",
    )
}

fn removed<B: Blocks>(removed: Removed) -> Answer<B> {
    match removed {
        Removed::Done(promised) => {
            let mut answer = response(StatusCode::NO_CONTENT, ResponseBody::Empty);
            answer.headers_mut().insert(FOREBAY_DURABILITY, durability_value(promised));
            Ok(answer)
        }
        Removed::Dirty => Err(Failure::new(Problem::BlockDirty, "nothing was dropped: purge it after its flush")),
        Removed::Declined(declined) => Err(declined.into()),
        Removed::Failed(error) => Err(error.into()),
    }
}

fn writable(volume: &VolumeConfig) -> Result<(), Failure> {
    match volume.access {
        Access::ReadWrite => Ok(()),
        Access::ReadOnly => Err(Failure::new(Problem::VolumeReadOnly, "its configuration says read_only")),
    }
}

/// The announced length of a body, at most the volume's block size.
fn content_length(headers: &HeaderMap, block_bytes_max: u32) -> Result<u32, Failure> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let Some(length) = length.and_then(|text| text.trim().parse::<u64>().ok()) else {
        return Err(Failure::new(Problem::LengthRequired, "a PUT says how long its body is"));
    };
    match u32::try_from(length) {
        Ok(length) if length <= block_bytes_max => Ok(length),
        _ => {
            let detail = format!("{length} bytes: this volume's blocks have at most {block_bytes_max}");
            Err(Failure::new(Problem::BlockTooLarge, detail))
        }
    }
}

/// What the client asks for at least. Without the header: what the volume gives.
fn durability_asked(headers: &HeaderMap) -> Result<Durability, Failure> {
    match headers.get(FOREBAY_DURABILITY).map(|value| value.as_bytes()) {
        None | Some(b"disk") => Ok(Durability::Disk),
        Some(b"origin") => Ok(Durability::Origin),
        Some(b"peer") => {
            Err(Failure::new(Problem::BadDurability, "this version has no peer level: ask for disk or origin"))
        }
        Some(_) => Err(Failure::new(Problem::BadDurability, "Forebay-Durability is disk or origin")),
    }
}
