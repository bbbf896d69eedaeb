//! One TLS connection over one socket, as hyper reads and writes it.
//!
//! Thin on purpose: plaintext goes from hyper's vectored write straight into rustls, whole batches of records leave by
//! one `sendmsg` (×1.9–2.1 on large bodies against stock adapters, ARCHITECTURE.md) and arrive by one `recv` (rustls by itself
//! reads 4 KiB at a time). Memory: idle or slow, a connection holds at most [`UNSENT_BYTES_SLOW`] encrypted; up to
//! [`UNSENT_BYTES_FAST`] while the core's [`Batches`] have room, given back when drained. A transport that ends without
//! the peer's goodbye is an error (a body may have been cut off). Created by `listener`.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use forebay_io::ring::Socket;
use hyper::rt::ReadBufCursor;

use super::deadline::Activity;
use super::framing::{HeadGuard, HeadLimits, Violation, instead_of, problem_response};
use super::tls::{Plain, Protocol, Tls, TlsConfig};

/// Plaintext that may wait encrypted on any connection.
pub const UNSENT_BYTES_SLOW: usize = 48 << 10;

/// Plaintext that may wait encrypted on a connection that drains: 256 KiB of a block and its head in one batch.
pub const UNSENT_BYTES_FAST: usize = 288 << 10;

/// The same for a body that one such batch would hold: two batches took 4 % less CPU at 256 KiB than one, and long bodies in
/// batches of this size half as much CPU again at 4 MiB.
const UNSENT_BYTES_SHORT: usize = UNSENT_BYTES_FAST / 2;

/// Encrypted bytes that are read at once.
const ARRIVING_BYTES: usize = 64 << 10;

/// What the connections of one core share: room for large batches on their way out, and the buffer in which they arrive.
pub struct Batches {
    free: Cell<usize>,
    /// Empty between two polls: what arrives is opened at once, and what was opened has its place in the reader.
    arriving: RefCell<Box<[u8]>>,
}

impl Batches {
    /// Room for `bytes` beyond what every connection may hold anyway.
    #[must_use]
    pub fn new(bytes: usize) -> Rc<Batches> {
        Rc::new(Batches {
            free: Cell::new(bytes / (UNSENT_BYTES_FAST - UNSENT_BYTES_SLOW)),
            arriving: RefCell::new(vec![0; ARRIVING_BYTES].into()),
        })
    }

    fn take(&self) -> bool {
        let free = self.free.get();
        self.free.set(free.saturating_sub(1));
        free > 0
    }

    fn give(&self) {
        self.free.set(self.free.get() + 1);
    }
}

/// A TLS connection.
pub(super) struct TlsStream {
    socket: Socket,
    tls: Tls,
    activity: Rc<Activity>,
    batches: Rc<Batches>,
    has_batch: bool,
    guard: Option<HeadGuard>,
    closing: bool,
    refused: bool,
}

impl TlsStream {
    pub(super) fn new(
        socket: Socket,
        config: &TlsConfig,
        activity: Rc<Activity>,
        batches: Rc<Batches>,
    ) -> io::Result<TlsStream> {
        let mut tls = Tls::new(config)?;
        tls.limit_unsent(UNSENT_BYTES_SLOW);
        Ok(TlsStream { socket, tls, activity, batches, has_batch: false, guard: None, closing: false, refused: false })
    }

    /// The handshake, to its end.
    pub(super) async fn handshake(&mut self) -> io::Result<Protocol> {
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await?;
        Ok(self.tls.protocol())
    }

    /// Guards the heads of an HTTP/1.1 connection from now on.
    pub(super) fn guard_heads(&mut self, limits: HeadLimits) {
        self.guard = Some(HeadGuard::new(limits));
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_drain(cx))?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_records(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads records of the handshake once and opens them.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut reader = SocketReader { socket: &mut self.socket, cx };
        let bytes = match self.tls.read_records(&mut reader) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            other => other?,
        };
        self.open(cx)?;
        Poll::Ready(Ok(bytes))
    }

    fn open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.tls.open_records().inspect_err(|_| {
            // The peer learns why, if it listens.
            let _ = self.poll_drain(cx);
        })
    }

    /// Reads what is there, but no more than `cursor` has room for: so what was opened and does not fit is less than
    /// one record, and rustls keeps it.
    fn poll_batch(&mut self, cx: &mut Context<'_>, cursor: &mut ReadBufCursor<'_>) -> Poll<io::Result<Taken>> {
        let batches = Rc::clone(&self.batches);
        let mut arriving = batches.arriving.borrow_mut();
        let room = cursor.remaining().min(arriving.len());
        let bytes = ready!(self.socket.poll_read(cx, &mut arriving[..room]))?;
        let mut records = &arriving[..bytes];
        loop {
            // Without any bytes this tells rustls that the transport has ended.
            let read = self.tls.read_records(&mut records)?;
            self.open(cx)?;
            let taken = self.take_plaintext(cursor)?;
            if records.is_empty() || read == 0 || !matches!(taken, Taken::Bytes | Taken::Nothing) {
                return Poll::Ready(Ok(taken));
            }
        }
    }

    /// Writes until nothing is left.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.has_unsent() {
            let mut writer = SocketWriter { socket: &mut self.socket, cx };
            match self.tls.write_records(&mut writer) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(bytes) => {
                    self.activity.write_blocked.set(false);
                    self.activity.written_bytes.set(self.activity.written_bytes.get() + bytes as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.activity.write_blocked.set(true);
                    return Poll::Pending;
                }
                Err(error) => {
                    self.activity.write_blocked.set(false);
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.give_batch();
        Poll::Ready(Ok(()))
    }

    fn give_batch(&mut self) {
        if self.has_batch {
            self.has_batch = false;
            self.tls.limit_unsent(UNSENT_BYTES_SLOW);
            self.batches.give();
        }
    }

    /// Makes room for a large batch if there is much to write, nothing waits, and the core can afford it.
    fn take_batch(&mut self, wanted_bytes: usize) {
        if wanted_bytes > UNSENT_BYTES_SLOW && !self.has_batch && !self.tls.has_unsent() && self.batches.take() {
            self.has_batch = true;
            let is_short = wanted_bytes <= UNSENT_BYTES_FAST;
            self.tls.limit_unsent(if is_short { UNSENT_BYTES_SHORT } else { UNSENT_BYTES_FAST });
        }
    }

    fn poll_seal(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted_bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        loop {
            self.take_batch(wanted_bytes);
            if self.guard.is_some()
                && let Some(problem) = bufs.first().and_then(|head| instead_of(head))
            {
                let response = problem_response(problem, "this is no HTTP/1.1 request");
                self.refused = true;
                self.tls.seal(&[IoSlice::new(response.as_bytes())])?;
                return Poll::Ready(Ok(wanted_bytes));
            }
            let sealed = self.tls.seal(bufs)?;
            if sealed > 0 || wanted_bytes == 0 {
                return Poll::Ready(Ok(sealed));
            }
            // A fast peer never makes a write block: without this, one large body would keep the core for milliseconds.
            if glommio::executor().need_preempt() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_drain(cx))?;
        }
    }

    /// Moves waiting plaintext to `cursor`, as much as fits: whether there was any, or the peer has said goodbye.
    fn take_plaintext(&mut self, cursor: &mut ReadBufCursor<'_>) -> io::Result<Taken> {
        let mut taken = Taken::Nothing;
        while cursor.remaining() > 0 {
            let bytes = match self.tls.plaintext()? {
                // Bytes that came before the goodbye are read first; the next read meets it again.
                Plain::Closed if matches!(taken, Taken::Bytes) => break,
                Plain::Closed => return Ok(Taken::Closed),
                Plain::Empty => break,
                Plain::Bytes(bytes) => {
                    let here = &bytes[..bytes.len().min(cursor.remaining())];
                    if let Some(guard) = &mut self.guard
                        && let Err(violation) = guard.see(here)
                    {
                        return Ok(Taken::Violation(violation));
                    }
                    cursor.put_slice(here);
                    here.len()
                }
            };
            self.tls.consume_plaintext(bytes);
            self.activity.read_bytes.set(self.activity.read_bytes.get() + bytes as u64);
            taken = Taken::Bytes;
        }
        Ok(taken)
    }

    /// Answers a request that hyper never sees, then says goodbye. While another request is being answered there is no
    /// place for it: then the connection just ends.
    fn refuse(&mut self, cx: &mut Context<'_>, violation: Violation) -> io::Error {
        if self.activity.in_flight.get() == 0 && !self.tls.has_unsent() {
            let (problem, detail) = violation.problem();
            self.answer_and_close(cx, &problem_response(problem, detail));
        }
        io::Error::new(io::ErrorKind::InvalidData, violation.problem().1)
    }

    /// Best effort: what the socket does not take at once is lost with the connection.
    fn answer_and_close(&mut self, cx: &mut Context<'_>, response: &str) {
        if self.tls.seal(&[IoSlice::new(response.as_bytes())]).is_ok() {
            self.tls.close();
            self.closing = true;
            self.refused = true;
            if self.poll_drain(cx).is_ready() {
                let _ = self.socket.poll_close(cx);
            }
        }
    }

    /// Reads and drops what the peer still sends, up to `bytes_max`: closing with unread bytes resets the connection, and the
    /// peer would lose the answer that it was just sent.
    pub(super) async fn linger(&mut self, bytes_max: u64) {
        let mut scrap = [0u8; 4096];
        let mut left_bytes = bytes_max;
        while left_bytes > 0 {
            match std::future::poll_fn(|cx| self.socket.poll_read(cx, &mut scrap)).await {
                Ok(bytes) if bytes > 0 => left_bytes = left_bytes.saturating_sub(bytes as u64),
                _ => return,
            }
        }
    }

    /// Whether an answer was written that ends the connection.
    pub(super) fn has_refused(&self) -> bool {
        self.refused
    }

    /// A last answer outside hyper, for a request whose head did not arrive in time.
    pub(super) async fn answer_last(&mut self, response: &str) {
        std::future::poll_fn(|cx| {
            self.answer_and_close(cx, response);
            Poll::Ready(())
        })
        .await;
    }
}

enum Taken {
    Bytes,
    Nothing,
    Closed,
    Violation(Violation),
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        self.give_batch();
    }
}

impl hyper::rt::Read for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut cursor: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let empty = cursor.remaining();
        let mut taken = this.take_plaintext(&mut cursor)?;
        loop {
            match taken {
                Taken::Violation(violation) => return Poll::Ready(Err(this.refuse(cx, violation))),
                Taken::Closed => return Poll::Ready(Ok(())),
                _ if cursor.remaining() < empty => return Poll::Ready(Ok(())),
                Taken::Bytes | Taken::Nothing => {}
            }
            taken = ready!(this.poll_batch(cx, &mut cursor))?;
        }
    }
}

impl hyper::rt::Write for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_seal(cx, &[IoSlice::new(buf)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_seal(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closing {
            this.closing = true;
            this.tls.close();
        }
        ready!(this.poll_drain(cx))?;
        this.socket.poll_close(cx)
    }
}

/// The socket as rustls reads it: pending is `WouldBlock`.
struct SocketReader<'a, 'c> {
    socket: &'a mut Socket,
    cx: &'a mut Context<'c>,
}

impl Read for SocketReader<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.socket.poll_read(self.cx, buf) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// The socket as rustls writes it.
struct SocketWriter<'a, 'c> {
    socket: &'a mut Socket,
    cx: &'a mut Context<'c>,
}

impl Write for SocketWriter<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.socket.poll_write_vectored(self.cx, bufs) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
