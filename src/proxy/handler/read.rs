//! GET and HEAD of a block.
//!
//! Called by `handler`. The first piece of a block on disk is read and verified before the answer's head goes out; if it
//! rotted, the owner is told and the request goes on with what it says next, once (I8, promise 2).

use std::ops::Range;
use std::rc::Rc;

use forebay_shard::key::BlockKey;
use forebay_shard::origin::{Etag, OriginError};
use forebay_shard::outcome::{EntryState, FillRole, FillStream, Got, Headed, Located, MemoryHit, MetaSource};
use forebay_shard::read::{BlockReader, ReadError};
use http::header::RANGE;
use http::request::Parts;
use http::{Response, StatusCode};

use super::group::{Holder, deleted, is_peer};
use super::{Answer, Handler, Trace};
use crate::problem::Problem;
use crate::proxy::blocks::Blocks;
use crate::proxy::body::{DiskBody, FillBody, FirstPiece, ResponseBody, piece_of};
use crate::proxy::conditions::{is_match, is_not_modified, is_range_meant};
use crate::proxy::dispatch::{AskHere, GotPinned, Here, Routed};
use crate::proxy::metrics::Outcome;
use crate::proxy::request::{RangeAsked, range_asked};
use crate::proxy::respond::{BlockHead, Failure, Source, block_response, not_modified, response};
use crate::proxy::served::ServedVolume;

impl<B: Blocks> Handler<B> {
    /// `GET /v1/volumes/{volume}/blocks/{key}`.
    pub(super) async fn get(
        &self,
        parts: &Parts,
        key: &BlockKey,
        volume: &ServedVolume,
        trace: &mut Trace,
    ) -> Answer<B> {
        self.check_asked(parts, volume)?;
        let mut rotten: Option<ReadError> = None;
        let lease = self.heat_of(parts, key);
        loop {
            let routed = self.look(parts, key).await;
            trace.hops = Some(routed.hops);
            let Some(GotPinned { got, pinned }) = routed.answer else { return Ok(not_here()) };
            match got {
                Got::Memory(hit) => {
                    trace.outcome = Outcome::HitMemory;
                    let lease = lease.filter(|_| hit.state == EntryState::Clean);
                    return Ok(self.leased(self.answer_memory(parts, hit)?, lease));
                }
                Got::Fill(stream) => {
                    trace.outcome = match stream.role {
                        FillRole::Began => Outcome::Miss,
                        FillRole::Joined => Outcome::Collapsed,
                    };
                    let source = self.source_of_fill(parts, key, volume, stream.role).await?;
                    return self.answer_fill(parts, stream, source, trace);
                }
                Got::Disk(located) => {
                    trace.outcome = Outcome::HitDisk;
                    let generation = located.generation;
                    let lease = lease.filter(|_| located.state == EntryState::Clean);
                    match self.answer_disk(parts, key, located, pinned, trace).await {
                        Ok(answer) => return answer.map(|answer| self.leased(answer, lease)),
                        Err(error) if rotten.is_none() => {
                            let (volume, key_text) = (&*key.volume, &*key.key);
                            let request_id = &trace.request_id;
                            tracing::error!(?request_id, volume, key = key_text, %error, "a read failed: repairing");
                            self.blocks.report_rot(key, generation).await;
                            self.metrics.body_repaired();
                            rotten = Some(error);
                        }
                        Err(error) => return Err(Failure::new(Problem::DiskFault, error.to_string())),
                    }
                }
                Got::Absent => {
                    let stream = self.elsewhere(parts, volume, key).await?.ok_or_else(absent)?;
                    return self.answer_fill(parts, stream, Source::Member, trace);
                }
                Got::Lost => return Err(lost()),
                Got::Declined(declined) => return Err(declined.into()),
                Got::Failed(error) => {
                    // The origin can't be asked; the member that has it dirty can.
                    let stream = self.elsewhere_or(parts, volume, key, error).await?;
                    return self.answer_fill(parts, stream, Source::Member, trace);
                }
            }
        }
    }

    /// `HEAD /v1/volumes/{volume}/blocks/{key}`.
    pub(super) async fn head(
        &self,
        parts: &Parts,
        key: &BlockKey,
        volume: &ServedVolume,
        trace: &mut Trace,
    ) -> Answer<B> {
        self.check_asked(parts, volume)?;
        let routed = self.look_at_meta(parts, key).await;
        trace.hops = Some(routed.hops);
        trace.outcome = Outcome::Head;
        let Some(headed) = routed.answer else { return Ok(not_here()) };
        let (etag, len_bytes, source) = match headed {
            Headed::Found(meta) => match meta.source {
                MetaSource::Cache => (meta.etag, meta.len_bytes, Source::Cache),
                MetaSource::Dirty => (meta.etag, meta.len_bytes, Source::Dirty),
                MetaSource::Origin => match self.holder(parts, volume, key).await {
                    Holder::Agrees => (meta.etag, meta.len_bytes, Source::Origin),
                    Holder::Unasked => (meta.etag, meta.len_bytes, Source::Unasked),
                    Holder::Deleted => return Err(deleted()),
                },
            },
            Headed::Absent => {
                let stream = self.elsewhere(parts, volume, key).await?.ok_or_else(absent)?;
                (stream.etag, stream.len_bytes, Source::Member)
            }
            Headed::Lost => return Err(lost()),
            Headed::Declined(declined) => return Err(declined.into()),
            Headed::Failed(error) => {
                let stream = self.elsewhere_or(parts, volume, key, error).await?;
                (stream.etag, stream.len_bytes, Source::Member)
            }
        };
        let head = BlockHead { etag, len_bytes, source };
        match wanted(parts, &head, Ranges::Ignored)? {
            Wanted::NotModified => Ok(not_modified(&head, ResponseBody::Empty)),
            Wanted::Whole | Wanted::Part(_) => Ok(block_response(&head, None, ResponseBody::Empty)),
        }
    }

    /// The origin failed: the member that has it dirty, or deleted it, knows better.
    async fn elsewhere_or(
        &self,
        parts: &Parts,
        volume: &ServedVolume,
        key: &BlockKey,
        error: OriginError,
    ) -> Result<FillStream, Failure> {
        match self.elsewhere(parts, volume, key).await {
            Ok(Some(stream)) => Ok(stream),
            Err(failure) if failure.problem == Problem::NoSuchBlock => Err(failure),
            Ok(None) | Err(_) => Err(error.into()),
        }
    }

    fn check_asked(&self, parts: &Parts, volume: &ServedVolume) -> Result<(), Failure> {
        volume.home.as_deref().map_or(Ok(()), |home| self.check_agreed(parts, home))
    }

    /// Where the bytes are. Another member is told what is here alone; `None`: nothing.
    async fn look(&self, parts: &Parts, key: &BlockKey) -> Routed<Option<GotPinned<B::Pinned>>> {
        if !is_peer(parts) {
            return self.blocks.get(key).await.map(Some);
        }
        self.blocks.here(AskHere::Get(key.clone())).await.map(|here| match here {
            Here::Got(got) => Some(got),
            Here::Nothing => None,
            Here::Headed(_) | Here::Put(_) | Here::Removed(_) | Here::Quiet => unreachable!("a get is answered as one"),
        })
    }

    /// Length and ETag, in the same way.
    async fn look_at_meta(&self, parts: &Parts, key: &BlockKey) -> Routed<Option<Headed>> {
        if !is_peer(parts) {
            return self.blocks.head(key).await.map(Some);
        }
        self.blocks.here(AskHere::Head(key.clone())).await.map(|here| match here {
            Here::Headed(headed) => Some(headed),
            Here::Nothing => None,
            Here::Got(_) | Here::Put(_) | Here::Removed(_) | Here::Quiet => unreachable!("a head is answered as one"),
        })
    }

    fn answer_memory(&self, parts: &Parts, hit: MemoryHit) -> Answer<B> {
        let len_bytes = hit.body.len() as u64;
        let source = if hit.state == EntryState::Dirty { Source::Dirty } else { Source::Memory };
        let head = BlockHead { etag: hit.etag, len_bytes, source };
        Ok(match wanted(parts, &head, Ranges::Served)? {
            Wanted::NotModified => not_modified(&head, ResponseBody::Empty),
            Wanted::Whole => block_response(&head, None, ResponseBody::bytes(hit.body, &self.metrics)),
            Wanted::Part(part) => {
                let bytes = hit.body.slice(index_of(part.start)..index_of(part.end));
                block_response(&head, Some(&part), ResponseBody::bytes(bytes, &self.metrics))
            }
        })
    }

    /// What is told of a fill, once the member that may know better was asked.
    async fn source_of_fill(
        &self,
        parts: &Parts,
        key: &BlockKey,
        volume: &ServedVolume,
        role: FillRole,
    ) -> Result<Source, Failure> {
        match self.holder(parts, volume, key).await {
            Holder::Agrees => Ok(Source::Fill(role)),
            Holder::Unasked => Ok(Source::Unasked),
            Holder::Deleted => {
                // The fill goes on: what it leaves here is no block any more.
                self.blocks.purge(key).await;
                Err(deleted())
            }
        }
    }

    fn answer_fill(&self, parts: &Parts, stream: FillStream, source: Source, trace: &Trace) -> Answer<B> {
        let etag = stream.etag.clone();
        let head = BlockHead { etag, len_bytes: stream.len_bytes, source };
        let (range, part) = match wanted(parts, &head, Ranges::Served)? {
            Wanted::NotModified => return Ok(not_modified(&head, ResponseBody::Empty)),
            Wanted::Whole => (0..head.len_bytes, None),
            Wanted::Part(part) => (part.clone(), Some(part)),
        };
        let body = ResponseBody::Fill(Box::new(FillBody::new(stream, range, self.meter(trace))));
        Ok(block_response(&head, part.as_ref(), body))
    }

    /// The outer error is the disk's: the block may be had from elsewhere.
    async fn answer_disk(
        &self,
        parts: &Parts,
        key: &BlockKey,
        located: Located,
        pinned: Option<B::Pinned>,
        trace: &Trace,
    ) -> Result<Answer<B>, ReadError> {
        let len_bytes = u64::from(located.len_bytes);
        let known = located.etag.clone();
        let source = if located.state == EntryState::Dirty { Source::Dirty } else { Source::Disk };
        let reader = Rc::new(BlockReader::new(self.blocks.slab(&located)?, located));
        let is_one_piece = reader.piece_count() == 1;
        // A block of one piece has its ETag from its bytes; of a longer one only the piece where the range begins is read.
        let first_index = match &known {
            _ if is_one_piece => 0,
            Some(etag) => {
                let head = BlockHead { etag: etag.clone(), len_bytes, source };
                match wanted(parts, &head, Ranges::Served) {
                    Ok(Wanted::Part(part)) => piece_of(part.start),
                    Ok(Wanted::Whole) => 0,
                    Ok(Wanted::NotModified) => return Ok(Ok(not_modified(&head, ResponseBody::Empty))),
                    Err(failure) => return Ok(Err(failure)),
                }
            }
            None => return Ok(Err(Failure::new(Problem::Internal, "a block of several pieces has no ETag"))),
        };
        let piece = reader.piece(first_index).await?;
        let etag = known.unwrap_or_else(|| Etag::Digest(piece.digest()));
        let head = BlockHead { etag, len_bytes, source };
        let (range, part) = match wanted(parts, &head, Ranges::Served) {
            Ok(Wanted::NotModified) => return Ok(Ok(not_modified(&head, ResponseBody::Empty))),
            Ok(Wanted::Whole) => (0..len_bytes, None),
            Ok(Wanted::Part(part)) => (part.clone(), Some(part)),
            Err(failure) => return Ok(Err(failure)),
        };
        if range.is_empty() {
            return Ok(Ok(block_response(&head, None, ResponseBody::Empty)));
        }
        let copying = if part.is_none() { self.promoter.begin(len_bytes) } else { None };
        let first = FirstPiece { reader, pinned, piece, copying };
        let meter = self.meter(trace);
        let body = DiskBody::new(self.blocks.clone(), key.clone(), first, head.etag.clone(), range, meter);
        Ok(Ok(block_response(&head, part.as_ref(), ResponseBody::Disk(Box::new(body)))))
    }
}

/// Whether a request's `Range` counts (RFC 9110: for GET only).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ranges {
    Served,
    Ignored,
}

/// What of a block a request wants.
enum Wanted {
    NotModified,
    Whole,
    Part(Range<u64>),
}

/// In the order of RFC 9110, section 13.2.2: If-Match, If-None-Match, then Range with If-Range.
fn wanted(parts: &Parts, head: &BlockHead, ranges: Ranges) -> Result<Wanted, Failure> {
    let headers = &parts.headers;
    if !is_match(headers, &head.etag) {
        return Err(Failure::new(Problem::PreconditionFailed, "the block's ETag is none of those in If-Match"));
    }
    if is_not_modified(headers, &head.etag) {
        return Ok(Wanted::NotModified);
    }
    if ranges == Ranges::Ignored || !headers.contains_key(RANGE) || !is_range_meant(headers, &head.etag) {
        return Ok(Wanted::Whole);
    }
    match range_asked(headers.get(RANGE), head.len_bytes) {
        RangeAsked::Whole => Ok(Wanted::Whole),
        RangeAsked::Part(part) => Ok(Wanted::Part(part)),
        RangeAsked::Unsatisfiable => Err(Failure::range(head.len_bytes)),
    }
}

/// To another member: there is nothing of it here; what the store has, that one knows.
fn not_here<B: Blocks>() -> Response<ResponseBody<B>> {
    response(StatusCode::NO_CONTENT, ResponseBody::Empty)
}

fn absent() -> Failure {
    Failure::new(Problem::NoSuchBlock, "neither here nor at the origin")
}

fn lost() -> Failure {
    Failure::new(Problem::BlockLost, "an acknowledged write rotted before it was flushed: see /v1/status")
}

fn index_of(at: u64) -> usize {
    usize::try_from(at).expect("a block fits into memory")
}
