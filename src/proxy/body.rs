//! Bodies of answers: a block from memory, from disk piece by piece, or from a fill as it arrives.
//!
//! Made by `handler`, polled by hyper. Nothing is copied: frames are slices of the memory tier's bytes, of the ring's
//! read buffers or of the origin's. A body ends well only if every byte of it was verified (I8): pieces before they are
//! sent, a fill before its last bytes are. Anything else is an error, on which hyper breaks the connection off. A pin is
//! given up as soon as the last piece is read (I7).

use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use forebay_io::ReadBuf;
use forebay_io::units::PIECE_BYTES;
use forebay_shard::key::BlockKey;
use forebay_shard::origin::{Etag, OriginError};
use forebay_shard::outcome::{FillStream, Got};
use forebay_shard::read::{BlockReader, ReadError, VerifiedPiece};
use futures::Stream as _;
use futures::future::LocalBoxFuture;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};

use crate::proxy::blocks::Blocks;
use crate::proxy::dispatch::GotPinned;
use crate::proxy::metrics::CoreMetrics;
use crate::proxy::promote::Copying;

/// An answer's body.
pub enum ResponseBody<B: Blocks> {
    /// Nothing.
    Empty,
    /// These bytes.
    Bytes(Bytes),
    /// Pieces on disk.
    Disk(Box<DiskBody<B>>),
    /// A fill in progress.
    Fill(Box<FillBody>),
}

/// A part of a body, where it lies.
pub enum Segment {
    /// In memory.
    Bytes(Bytes),
    /// In the ring's arena.
    Disk(ReadBuf),
}

/// Why a body could not be sent to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The fill failed.
    #[error("the fill failed: {0}")]
    Origin(#[from] OriginError),
    /// The fill ended before its length was reached.
    #[error("the fill ended early")]
    Short,
    /// The disk failed, or its bytes rotted, and they could not be had from elsewhere.
    #[error("the disk failed and the block could not be repaired: {0}")]
    Disk(#[from] ReadError),
    /// The block was replaced by another one while it was being sent.
    #[error("the block changed while it was being repaired")]
    Changed,
}

/// What bodies tell about themselves: on this core, for this request.
#[derive(Clone)]
pub struct Meter {
    /// The core's counters.
    pub metrics: Rc<CoreMetrics>,
    /// The request's id, as its header says it.
    pub request_id: HeaderValue,
}

impl Meter {
    fn broke(&self, error: &BodyError) {
        self.metrics.body_broke();
        tracing::warn!(request_id = ?self.request_id, %error, "an answer was broken off");
    }
}

impl<B: Blocks> ResponseBody<B> {
    /// These bytes, counted as sent.
    #[must_use]
    pub fn bytes(bytes: Bytes, metrics: &CoreMetrics) -> ResponseBody<B> {
        metrics.sent(bytes.len() as u64);
        if bytes.is_empty() { ResponseBody::Empty } else { ResponseBody::Bytes(bytes) }
    }

    fn remaining_bytes(&self) -> u64 {
        match self {
            ResponseBody::Empty => 0,
            ResponseBody::Bytes(bytes) => bytes.len() as u64,
            ResponseBody::Disk(disk) => disk.remaining_bytes(),
            ResponseBody::Fill(fill) => fill.remaining_bytes,
        }
    }
}

impl<B: Blocks> Body for ResponseBody<B> {
    type Data = Segment;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Segment>, BodyError>>> {
        let this = self.get_mut();
        loop {
            let segment = match this {
                ResponseBody::Empty => return Poll::Ready(None),
                ResponseBody::Bytes(bytes) => {
                    let bytes = std::mem::take(bytes);
                    *this = ResponseBody::Empty;
                    return Poll::Ready(Some(Ok(Frame::data(Segment::Bytes(bytes)))));
                }
                ResponseBody::Disk(disk) => match futures::ready!(disk.poll(cx)) {
                    Ok(Step::Repaired(body)) => {
                        *this = *body;
                        continue;
                    }
                    Ok(Step::Segment(segment)) => Ok(segment),
                    Err(error) => Err((error, disk.meter.clone())),
                },
                ResponseBody::Fill(fill) => match futures::ready!(fill.poll(cx)) {
                    Ok(segment) => Ok(segment),
                    Err(error) => Err((error, fill.meter.clone())),
                },
            };
            return Poll::Ready(match segment {
                Ok(None) => {
                    *this = ResponseBody::Empty;
                    None
                }
                Ok(Some(segment)) => Some(Ok(Frame::data(segment))),
                Err((error, meter)) => {
                    meter.broke(&error);
                    *this = ResponseBody::Empty;
                    Some(Err(error))
                }
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining_bytes() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining_bytes())
    }
}

enum Step<B: Blocks> {
    Segment(Option<Segment>),
    Repaired(Box<ResponseBody<B>>),
}

type PieceRead = LocalBoxFuture<'static, Result<VerifiedPiece, ReadError>>;

/// A block, or a range of it, on disk. One piece is read ahead while another is being sent.
pub struct DiskBody<B: Blocks> {
    blocks: B,
    key: BlockKey,
    reader: Rc<BlockReader<B::File>>,
    /// Known for every block that has a second piece.
    etag: Etag,
    pinned: Option<B::Pinned>,
    /// What is still to be sent.
    rest: Range<u64>,
    /// The first bytes of `rest`, verified.
    ready: Option<ReadBuf>,
    /// The piece after `ready`, or the one that `rest` begins in.
    reading: Option<PieceRead>,
    repairing: Option<LocalBoxFuture<'static, Result<ResponseBody<B>, BodyError>>>,
    copying: Option<Copying>,
    meter: Meter,
}

/// What a body from disk begins with: its first piece, read and verified before the answer's head goes out.
pub struct FirstPiece<B: Blocks> {
    /// Reads the rest.
    pub reader: Rc<BlockReader<B::File>>,
    /// Keeps the region.
    pub pinned: Option<B::Pinned>,
    /// The piece in which the range begins.
    pub piece: VerifiedPiece,
    /// A copy for the memory tier, if the whole block is sent and one is wanted.
    pub copying: Option<Copying>,
}

/// The piece that holds byte `at` of a block.
#[must_use]
pub fn piece_of(at: u64) -> usize {
    usize::try_from(at / PIECE_BYTES as u64).expect("a block has few pieces")
}

impl<B: Blocks> DiskBody<B> {
    /// The bytes `range` of the block `key`.
    #[must_use]
    pub fn new(
        blocks: B,
        key: BlockKey,
        first: FirstPiece<B>,
        etag: Etag,
        range: Range<u64>,
        meter: Meter,
    ) -> DiskBody<B> {
        assert!(range.start < range.end, "an empty body reads nothing");
        assert!(range.end <= u64::from(first.reader.located().len_bytes), "a range is inside its block");
        let ready = Some(in_range(first.piece, &range));
        let mut body = DiskBody {
            blocks,
            key,
            reader: first.reader,
            etag,
            pinned: first.pinned,
            rest: range,
            ready,
            reading: None,
            repairing: None,
            copying: first.copying,
            meter,
        };
        body.read_ahead();
        body
    }

    fn remaining_bytes(&self) -> u64 {
        self.rest.end - self.rest.start
    }

    /// Begins to read the piece after `ready`, or lets the pin go if that was the last.
    fn read_ahead(&mut self) {
        let next_start = self.rest.start + self.ready.as_ref().map_or(0, |ready| ready.len() as u64);
        if next_start >= self.rest.end {
            self.pinned = None;
            return;
        }
        let (reader, index) = (Rc::clone(&self.reader), piece_of(next_start));
        self.reading = Some(Box::pin(async move { reader.piece(index).await }));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step<B>, BodyError>> {
        if let Some(repairing) = &mut self.repairing {
            let body = futures::ready!(repairing.as_mut().poll(cx))?;
            return Poll::Ready(Ok(Step::Repaired(Box::new(body))));
        }
        // The read ahead must be under way before the piece in hand goes out.
        let read = self.reading.as_mut().map(|reading| reading.as_mut().poll(cx));
        if let Some(Poll::Ready(read)) = read {
            self.reading = None;
            match read {
                Ok(piece) if self.ready.is_some() => self.reading = Some(Box::pin(async move { Ok(piece) })),
                Ok(piece) => {
                    self.ready = Some(in_range(piece, &self.rest));
                    self.read_ahead();
                    if let Some(reading) = &mut self.reading
                        && let Poll::Ready(early) = reading.as_mut().poll(cx)
                    {
                        *reading = Box::pin(async move { early });
                    }
                }
                Err(error) if self.ready.is_some() => self.reading = Some(Box::pin(async move { Err(error) })),
                Err(error) => {
                    self.repairing = Some(Box::pin(self.repair(error)));
                    return self.poll(cx);
                }
            }
        }
        match self.ready.take() {
            Some(bytes) => {
                self.rest.start += bytes.len() as u64;
                if let Some(copy) = self.copying.as_mut().and_then(|copying| copying.add(&bytes)) {
                    self.copying = None;
                    let generation = self.reader.located().generation;
                    self.blocks.offer_memory(&self.key, generation, copy, self.etag.clone());
                }
                self.meter.metrics.sent(bytes.len() as u64);
                Poll::Ready(Ok(Step::Segment(Some(Segment::Disk(bytes)))))
            }
            None if self.rest.is_empty() => Poll::Ready(Ok(Step::Segment(None))),
            None => Poll::Pending,
        }
    }

    /// Goes on with the same bytes from elsewhere: the owner drops what rotted, and the next GET has it from the origin.
    fn repair(&mut self, error: ReadError) -> impl Future<Output = Result<ResponseBody<B>, BodyError>> + use<B> {
        self.pinned = None;
        let generation = self.reader.located().generation;
        let rest = Rest {
            blocks: self.blocks.clone(),
            key: self.key.clone(),
            etag: self.etag.clone(),
            len_bytes: u64::from(self.reader.located().len_bytes),
            range: self.rest.clone(),
            meter: self.meter.clone(),
        };
        async move {
            let (request_id, volume, key) = (&rest.meter.request_id, &*rest.key.volume, &*rest.key.key);
            tracing::error!(?request_id, volume, key, %error, "a read failed in the middle of an answer: repairing");
            rest.blocks.report_rot(&rest.key, generation).await;
            rest.again(error).await
        }
    }
}

/// What is still to be sent of a block whose bytes on disk went bad.
struct Rest<B: Blocks> {
    blocks: B,
    key: BlockKey,
    etag: Etag,
    /// Of the whole block.
    len_bytes: u64,
    range: Range<u64>,
    meter: Meter,
}

impl<B: Blocks> Rest<B> {
    /// The same bytes from wherever they are now, if the block is still the same.
    async fn again(self, error: ReadError) -> Result<ResponseBody<B>, BodyError> {
        let GotPinned { got, pinned } = self.blocks.get(&self.key).await.answer;
        let is_same = match &got {
            Got::Memory(hit) => hit.etag == self.etag && hit.body.len() as u64 == self.len_bytes,
            Got::Fill(stream) => stream.etag == self.etag && stream.len_bytes == self.len_bytes,
            Got::Disk(located) => {
                located.etag.as_ref() == Some(&self.etag) && u64::from(located.len_bytes) == self.len_bytes
            }
            Got::Failed(_) | Got::Absent | Got::Declined(_) | Got::Lost => true,
        };
        if !is_same {
            return Err(BodyError::Changed);
        }
        let body = match got {
            Got::Memory(hit) => {
                let bytes = hit.body.slice(index_of(self.range.start)..index_of(self.range.end));
                ResponseBody::bytes(bytes, &self.meter.metrics)
            }
            Got::Fill(stream) => ResponseBody::Fill(Box::new(FillBody::new(stream, self.range, self.meter.clone()))),
            Got::Disk(located) => {
                let reader = Rc::new(BlockReader::new(self.blocks.slab(&located)?, located));
                let piece = reader.piece(piece_of(self.range.start)).await?;
                let first = FirstPiece { reader, pinned, piece, copying: None };
                let meter = self.meter.clone();
                ResponseBody::Disk(Box::new(DiskBody::new(self.blocks, self.key, first, self.etag, self.range, meter)))
            }
            Got::Failed(error) => return Err(BodyError::Origin(error)),
            Got::Absent | Got::Declined(_) | Got::Lost => return Err(BodyError::Disk(error)),
        };
        self.meter.metrics.body_repaired();
        Ok(body)
    }
}

/// The part of a piece that is in `range`. The piece is the one that `range.start` lies in.
fn in_range(piece: VerifiedPiece, range: &Range<u64>) -> ReadBuf {
    let piece_start = range.start / PIECE_BYTES as u64 * PIECE_BYTES as u64;
    let start = index_of(range.start - piece_start);
    let end = index_of(range.end - piece_start).min(piece.len());
    assert!(start < end, "a piece holds the byte it was read for");
    piece.into_buf().slice(start..end)
}

fn index_of(at: u64) -> usize {
    usize::try_from(at).expect("a block fits into memory")
}

/// A fill as it arrives, or a range of it.
pub struct FillBody {
    stream: FillStream,
    /// Bytes before the range that are still to come.
    skip_bytes: u64,
    /// Bytes of the range that were not sent yet.
    remaining_bytes: u64,
    /// The last bytes of the range: they wait until the fill has ended well.
    held: Option<Bytes>,
    meter: Meter,
}

impl FillBody {
    /// The bytes `range` of a fill.
    #[must_use]
    pub fn new(stream: FillStream, range: Range<u64>, meter: Meter) -> FillBody {
        assert!(range.end <= stream.len_bytes, "a range is inside its block");
        FillBody { stream, skip_bytes: range.start, remaining_bytes: range.end - range.start, held: None, meter }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Segment>, BodyError>> {
        loop {
            if self.remaining_bytes == 0 {
                return Poll::Ready(Ok(None));
            }
            match futures::ready!(Pin::new(&mut self.stream.frames).poll_next(cx)) {
                Some(Ok(frame)) => {
                    if let Some(bytes) = self.take(frame) {
                        self.remaining_bytes -= bytes.len() as u64;
                        self.meter.metrics.sent(bytes.len() as u64);
                        return Poll::Ready(Ok(Some(Segment::Bytes(bytes))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => {
                    let Some(bytes) = self.held.take() else { return Poll::Ready(Err(BodyError::Short)) };
                    assert_eq!(bytes.len() as u64, self.remaining_bytes, "what is held is the end of the range");
                    self.remaining_bytes = 0;
                    self.meter.metrics.sent(bytes.len() as u64);
                    return Poll::Ready(Ok(Some(Segment::Bytes(bytes))));
                }
            }
        }
    }

    /// What of `frame` can be sent now.
    fn take(&mut self, mut frame: Bytes) -> Option<Bytes> {
        let skipped = index_of(self.skip_bytes.min(frame.len() as u64));
        self.skip_bytes -= skipped as u64;
        frame.advance(skipped);
        if frame.is_empty() || self.held.is_some() {
            return None;
        }
        if frame.len() as u64 >= self.remaining_bytes {
            frame.truncate(index_of(self.remaining_bytes));
            self.held = Some(frame);
            return None;
        }
        Some(frame)
    }
}

impl Buf for Segment {
    fn remaining(&self) -> usize {
        match self {
            Segment::Bytes(bytes) => bytes.remaining(),
            Segment::Disk(buf) => buf.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Segment::Bytes(bytes) => bytes.chunk(),
            Segment::Disk(buf) => buf.chunk(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Segment::Bytes(bytes) => bytes.advance(count),
            Segment::Disk(buf) => buf.advance(count),
        }
    }
}
