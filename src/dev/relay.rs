//! A TCP relay in front of the proxies of a group: as far away, as slow or as cut off as one wants to see it.
//!
//! Called by `dev.rs`. One thread of its own serves every port of every group; each group has one link (`relay/link.rs`), whose
//! condition is changed while connections are open. Bytes are never changed, dropped or reordered: a link that is cut holds them
//! until it is up again, as TCP would. Invariant: a connection holds at most [`PIECES_MAX`] pieces of [`PIECE_BYTES`] each way.

pub mod link;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use link::{Direction, Link};

/// How much is read at once.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces under way in one direction of a connection: 4 MiB, more than a link of 10 ms and 3 Gbit/s holds.
const PIECES_MAX: usize = 64;

/// Between two tries when no connection can be accepted, for want of descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// One port that is relayed.
#[derive(Debug, Clone)]
pub struct Path {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where their bytes go.
    pub to: SocketAddr,
    /// What lies between.
    pub link: Arc<Link>,
}

/// The relay's thread. Dropped, it cuts all connections.
#[derive(Debug)]
pub struct Relay {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens on every path; connections are relayed from the return of this call on.
    ///
    /// # Errors
    /// A port is in use.
    pub fn start(paths: Vec<Path>) -> io::Result<Relay> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let mut listening = Vec::with_capacity(paths.len());
        for path in paths {
            let listener = std::net::TcpListener::bind(path.listen)?;
            listener.set_nonblocking(true)?;
            listening.push((TcpListener::from_std(listener)?, path));
        }
        drop(entered);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("relay-dev".to_owned()).spawn(move || {
            runtime.block_on(async move {
                for (listener, path) in listening {
                    tokio::spawn(accept(listener, path));
                }
                // An error is the sender's end, which is what is waited for.
                let _ = stopped.await;
            });
        })?;
        Ok(Relay { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread itself.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, path: Path) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(connection(client, path.clone()))),
            Err(error) => {
                tracing::warn!(%error, "the relay could not accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Relays one connection until both sides have said all, one of them fails, or the link refuses it.
async fn connection(mut client: TcpStream, path: Path) {
    let ended = tokio::select! {
        ended = relay(&mut client, &path) => ended,
        () = path.link.refuses() => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if ended.is_err() {
        // A reset, rather than an end that looks well. A socket that can't be set is gone already.
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
}

async fn relay(client: &mut TcpStream, path: &Path) -> io::Result<()> {
    let mut proxy = TcpStream::connect(path.to).await?;
    client.set_nodelay(true)?;
    proxy.set_nodelay(true)?;
    let (from_client, to_client) = client.split();
    let (from_proxy, to_proxy) = proxy.split();
    tokio::try_join!(
        carry(from_client, to_proxy, &path.link, Direction::Up),
        carry(from_proxy, to_client, &path.link, Direction::Down),
    )
    .map(drop)
}

/// One direction of a connection: what is read is written when the link lets it arrive, and so is its end.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, link: &Link, direction: Direction) -> io::Result<()> {
    let (sent, mut arriving) = mpsc::channel::<(Instant, Bytes)>(PIECES_MAX);
    let read = async {
        let sent = sent;
        loop {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            if from.read_buf(&mut piece).await? == 0 {
                return io::Result::Ok(());
            }
            let arrives = link.send(direction, piece.len());
            if sent.send((arrives, piece.freeze())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        while let Some((arrives, piece)) = arriving.recv().await {
            if arrives > Instant::now() {
                tokio::time::sleep_until(arrives).await;
            }
            link.carries().await;
            to.write_all(&piece).await?;
        }
        link.carries().await;
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
