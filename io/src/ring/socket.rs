//! Sockets on the ring, with the real vectored write that glommio lacks. Used by the proxy's listeners.
//!
//! A write tries `sendmsg` first, at once and without the ring: on a socket with room that is the whole cost. Only
//! when the send buffer is full does it wait for the ring to say that there is room again. Invariants: nothing here
//! blocks; TCP_NODELAY is set on every accepted socket.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::io::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use socket2::SockRef;

use super::file::io_error;

/// Slices of one sendmsg; the kernel takes up to 1024.
const SLICES_MAX: usize = 64;

const MSG_DONTWAIT: i32 = 0x40;
const MSG_NOSIGNAL: i32 = 0x4000;
const EINTR: i32 = 4;
const ECONNABORTED: i32 = 103;

/// A listening TCP socket of this executor. Several executors may bind one address: the kernel spreads connections
/// over them by hash (SO_REUSEPORT).
pub struct Listener(TcpListener);

impl Listener {
    /// Listens at `address`; port 0 picks a free one. Must run on an executor.
    ///
    /// # Errors
    /// The kernel's, errno included.
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        TcpListener::bind(address).map(Listener).map_err(io_error)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().map_err(io_error)
    }

    /// The next connection. One that was reset while it waited is skipped.
    ///
    /// # Errors
    /// The kernel's, errno included: EMFILE and the like, after which the caller should pause.
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            match self.0.accept().await.map_err(io_error) {
                Ok(stream) => {
                    if let Ok(socket) = Socket::new(stream) {
                        return Ok(socket);
                    }
                }
                Err(error) if matches!(error.raw_os_error(), Some(ECONNABORTED | EINTR)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A connected TCP socket of this executor.
pub struct Socket {
    stream: TcpStream,
    peer: SocketAddr,
}

impl Socket {
    /// Connects to `address`. Must run on an executor.
    ///
    /// # Errors
    /// The kernel's, errno included.
    pub async fn connect(address: SocketAddr) -> io::Result<Socket> {
        Socket::new(TcpStream::connect(address).await.map_err(io_error)?)
    }

    /// The other side.
    ///
    /// # Errors
    /// None today; the signature leaves room for sockets that ask the kernel.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }

    /// Sets TCP_NODELAY. Accepted and connected sockets have it already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.stream.set_nodelay(true).map_err(io_error)
    }

    /// Reads at least one byte into `into`; 0 is the end of the stream.
    ///
    /// # Errors
    /// The kernel's.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }

    /// Writes at least one byte of `slices`, in order, by one `sendmsg`; 0 only if they are all empty.
    ///
    /// # Errors
    /// The kernel's. A closed peer is EPIPE, never a signal.
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some(begin) = slices.iter().position(|slice| !slice.is_empty()) else { return Poll::Ready(Ok(0)) };
        let slices = &slices[begin..slices.len().min(begin + SLICES_MAX)];
        loop {
            let sent = self.with_socket(|socket| socket.send_vectored_with_flags(slices, MSG_DONTWAIT | MSG_NOSIGNAL));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // glommio tries once more, and else has the ring wake us when there is room.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Pin::new(&mut self.stream).poll_write(cx, &slices[0]);
                }
                done => return Poll::Ready(done),
            }
        }
    }

    /// Tells the peer that nothing more will be written.
    ///
    /// # Errors
    /// The kernel's; ENOTCONN, if the peer is gone already, is none.
    pub fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.with_socket(|socket| socket.shutdown(Shutdown::Write)) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            outcome => outcome,
        })
    }

    fn new(stream: TcpStream) -> io::Result<Socket> {
        let peer = stream.peer_addr().map_err(io_error)?;
        let socket = Socket { stream, peer };
        socket.set_nodelay()?;
        // What is left of a connection after this process must not keep the next one from binding its port alone.
        socket.with_socket(|socket| socket.set_reuse_address(true))?;
        Ok(socket)
    }

    fn with_socket<T>(&self, act: impl FnOnce(SockRef<'_>) -> T) -> T {
        // SAFETY: the descriptor is open: `self.stream` owns it, lives as long as the borrow of `self`, and closes it
        // only when it is dropped. `act` can't keep the borrowed descriptor beyond this call, and nothing done through
        // a SockRef closes it.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) };
        act(SockRef::from(&descriptor))
    }
}
