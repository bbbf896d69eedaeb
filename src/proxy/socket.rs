//! A listener and its sockets on glommio, as `listener` and `stream` use them, until the disk floor brings the ones with a
//! real vectored write (`forebay_io::ring::socket`): the same interface, one record per `send`.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::io::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};

/// Listens on one address; several cores may listen on the same.
pub struct Listener(TcpListener);

impl Listener {
    /// Listens on `address` with SO_REUSEPORT; port 0 picks a free one.
    ///
    /// # Errors
    /// As bind(2) and listen(2).
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        Ok(Listener(TcpListener::bind(address)?))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// The next connection, with TCP_NODELAY.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<Socket> {
        let stream = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Socket(stream))
    }
}

/// One connection.
pub struct Socket(TcpStream);

impl Socket {
    /// The other end.
    ///
    /// # Errors
    /// As getpeername(2).
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.peer_addr()?)
    }

    /// Reads what is there; 0 is the end.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }

    /// Writes from the first buffer that is not empty.
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
        Pin::new(&mut self.0).poll_write(cx, first)
    }

    /// Ends the sending side.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}
