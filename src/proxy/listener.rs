//! Accepts connections on one core and serves HTTP/1.1 and HTTP/2 on them. The one file of the proxy that drives hyper.
//!
//! Generic over the [`Service`], so that the real handler and the null server of the benchmarks run the same code. Each
//! core listens on the shared port (SO_REUSEPORT: the kernel spreads connections) and on a port per shard it owns.
//! Deadlines are raced from outside (`deadline`), heads are guarded before hyper sees them (`framing`). Started by `boot`
//! and `null`.

use std::any::Any;
use std::cell::OnceCell;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use forebay_io::ring::{Listener, Socket};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use tracing::{debug, warn};

use super::connections::{Connections, Registered};
use super::deadline::{Activity, Signal, Waiting};
use super::exchange::{AnswerBody, Exchange};
use super::framing::{HeadLimits, problem_response};
use super::heartbeat::Heartbeat;
use super::stream::{Batches, TlsStream};
use super::tls::TlsConfig;
use crate::problem::Problem;

pub use super::exchange::RequestBody;
pub use super::tls::Protocol;

/// hyper's read buffer: large enough for a head, small enough for promise 5 in ARCHITECTURE.md.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// HTTP/2: what a client may send ahead per request, and per connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// HTTP/2: what waits per request for the client's window.
const STREAM_SEND_BYTES: usize = 64 << 10;
/// How long, and how much, a refused client is listened to so that it can read the refusal.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 16 << 20;
/// Pauses after a failed accept (no file descriptors left), doubling.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What answers requests. One instance per core; nothing of it need be `Send`.
pub trait Service: 'static {
    /// The answer's body.
    type Body: Body<Data: 'static, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin + 'static;

    /// Answers one request; a failure is an answer too.
    fn call(&self, conn: &Rc<Conn>, request: Request<RequestBody>) -> impl Future<Output = Response<Self::Body>>;
}

/// One connection, as the service sees it.
pub struct Conn {
    /// The client's address.
    pub peer: SocketAddr,
    /// The negotiated protocol.
    pub protocol: Protocol,
    /// The core that serves it, counted from 0.
    pub core: usize,
    activity: Rc<Activity>,
    slot: OnceCell<Box<dyn Any>>,
}

impl Conn {
    /// What the service remembers for this connection: one value of one type, made when first asked for.
    pub fn slot<T: Default + 'static>(&self) -> &T {
        let slot = self.slot.get_or_init(|| Box::new(T::default()));
        slot.downcast_ref().expect("a service asks for one type only")
    }

    /// How many requests it has carried, this one included.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.activity.requests.get()
    }
}

/// What one core's listeners share.
pub struct Serving<S> {
    /// Answers the requests.
    pub service: Rc<S>,
    /// Certificates and protocols.
    pub tls: TlsConfig,
    /// The bounds of a request's head.
    pub heads: HeadLimits,
    /// HTTP/2: requests in flight per connection.
    pub http2_streams_max: u32,
    /// Beats while requests are in flight.
    pub heartbeat: Rc<Heartbeat>,
    /// The core's open connections.
    pub connections: Rc<Connections>,
    /// Large batches of encrypted records.
    pub batches: Rc<Batches>,
    /// The core, counted from 0.
    pub core: usize,
}

/// Serves `listener` on this core until the connections drain.
pub fn serve<S: Service>(listener: Listener, serving: Rc<Serving<S>>) {
    glommio::spawn_local(accept(listener, serving)).detach();
}

async fn accept<S: Service>(listener: Listener, serving: Rc<Serving<S>>) {
    let mut pause = ACCEPT_PAUSE_MIN;
    while !serving.connections.is_draining() {
        match first(listener.accept(), serving.connections.draining()).await {
            First::Left(Ok(socket)) => {
                pause = ACCEPT_PAUSE_MIN;
                if let Some(registered) = serving.connections.register() {
                    glommio::spawn_local(connection(socket, registered, Rc::clone(&serving))).detach();
                }
            }
            First::Left(Err(error)) => {
                warn!(%error, "a connection could not be accepted");
                glommio::timer::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
            }
            First::Right(()) => return,
        }
    }
}

async fn connection<S: Service>(socket: Socket, registered: Registered, serving: Rc<Serving<S>>) {
    let activity = &registered.activity;
    let result = async {
        let peer = socket.peer_addr()?;
        let batches = Rc::clone(&serving.batches);
        let mut stream = TlsStream::new(socket, &serving.tls, Rc::clone(activity), batches)?;
        let in_flight = serving.heartbeat.enter();
        let protocol = match first(stream.handshake(), activity.expired()).await {
            First::Left(Ok(protocol)) => protocol,
            First::Left(Err(error)) => {
                serving.connections.count(|counts| counts.handshakes_failed += 1);
                return Err(error);
            }
            First::Right(waiting) => return Ok(Some(waiting)),
        };
        drop(in_flight);
        activity.establish(protocol);
        let conn =
            Rc::new(Conn { peer, protocol, core: serving.core, activity: Rc::clone(activity), slot: OnceCell::new() });
        match protocol {
            Protocol::Http1 => serve_http1(stream, conn, Rc::clone(&serving)).await,
            Protocol::Http2 => serve_http2(stream, conn, Rc::clone(&serving)).await,
        }
    };
    match result.await {
        Ok(None) => {}
        Ok(Some(waiting)) => {
            serving.connections.count_expired(waiting);
            debug!(?waiting, "the client was waited for too long");
        }
        // Clients that hang up, speak no TLS or break off are their own affair.
        Err(error) => debug!(%error, "a connection ended early"),
    }
}

async fn serve_http1<S: Service>(
    mut stream: TlsStream,
    conn: Rc<Conn>,
    serving: Rc<Serving<S>>,
) -> io::Result<Option<Waiting>> {
    stream.guard_heads(serving.heads);
    let activity = Rc::clone(&conn.activity);
    let mut http = http1::Builder::new()
        .max_buf_size(READ_BUFFER_BYTES)
        .max_headers(serving.heads.headers_max)
        .header_read_timeout(None)
        .serve_connection(stream, answering(conn, Rc::clone(&serving)));
    let mut is_told = false;
    let ended = poll_fn(|cx| {
        match activity.poll_signal(cx) {
            Signal::Expire(waiting) => return Poll::Ready(Ended::Expired(waiting)),
            Signal::Drain if !is_told => {
                is_told = true;
                Pin::new(&mut http).graceful_shutdown();
            }
            Signal::Drain | Signal::None => {}
        }
        Pin::new(&mut http).poll(cx).map(Ended::Served)
    })
    .await;
    let mut stream = http.into_parts().io;
    if matches!(ended, Ended::Expired(Waiting::Header)) {
        let detail = "send a request's head without a pause";
        stream.answer_last(&problem_response(Problem::RequestTimeout, detail)).await;
    }
    if stream.has_refused() || matches!(ended, Ended::Served(Err(_))) {
        first(stream.linger(LINGER_BYTES), glommio::timer::sleep(LINGER)).await;
    }
    ended.into_result()
}

async fn serve_http2<S: Service>(
    stream: TlsStream,
    conn: Rc<Conn>,
    serving: Rc<Serving<S>>,
) -> io::Result<Option<Waiting>> {
    let activity = Rc::clone(&conn.activity);
    let heads = serving.heads;
    let mut http = pin!(
        http2::Builder::new(OnThisCore)
            .max_concurrent_streams(serving.http2_streams_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(STREAM_SEND_BYTES)
            .max_header_list_size(u32::try_from(heads.head_bytes_max).unwrap_or(u32::MAX))
            .serve_connection(stream, answering(conn, serving))
    );
    let mut is_told = false;
    poll_fn(|cx| {
        match activity.poll_signal(cx) {
            Signal::Expire(waiting) => return Poll::Ready(Ended::Expired(waiting)),
            Signal::Drain if !is_told => {
                is_told = true;
                http.as_mut().graceful_shutdown();
            }
            Signal::Drain | Signal::None => {}
        }
        http.as_mut().poll(cx).map(Ended::Served)
    })
    .await
    .into_result()
}

/// Why a connection ended.
enum Ended {
    Served(hyper::Result<()>),
    Expired(Waiting),
}

impl Ended {
    fn into_result(self) -> io::Result<Option<Waiting>> {
        match self {
            Ended::Served(Ok(())) => Ok(None),
            Ended::Served(Err(error)) => Err(io::Error::other(error)),
            Ended::Expired(waiting) => Ok(Some(waiting)),
        }
    }
}

/// The service as hyper calls it.
fn answering<S: Service>(
    conn: Rc<Conn>,
    serving: Rc<Serving<S>>,
) -> impl hyper::service::HttpService<
    Incoming,
    ResBody = AnswerBody<S::Body>,
    Error = std::convert::Infallible,
    Future: Future<Output = Result<Response<AnswerBody<S::Body>>, std::convert::Infallible>>,
> {
    hyper::service::service_fn(move |request: Request<Incoming>| {
        let (conn, serving) = (Rc::clone(&conn), Rc::clone(&serving));
        async move {
            let exchange = Exchange::begin(Rc::clone(&conn.activity), serving.heartbeat.enter());
            let request = request.map(|body| RequestBody::new(body, Rc::clone(&conn.activity)));
            let response = serving.service.call(&conn, request).await;
            Ok(response.map(|body| exchange.answer(body)))
        }
    })
}

/// Runs HTTP/2's streams on this core.
#[derive(Clone, Copy)]
struct OnThisCore;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for OnThisCore {
    fn execute(&self, future: F) {
        glommio::spawn_local(future).detach();
    }
}

/// Which of two futures was first.
enum First<A, B> {
    Left(A),
    Right(B),
}

/// The first of two; the other is dropped. The left one is looked at first.
async fn first<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> First<A, B> {
    match futures::future::select(pin!(left), pin!(right)).await {
        futures::future::Either::Left((left, _)) => First::Left(left),
        futures::future::Either::Right((right, _)) => First::Right(right),
    }
}
