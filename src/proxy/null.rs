//! The null server of the benchmarks: the proxy's own TLS, hyper and socket code with a constant body and no lookup.
//!
//! What it reaches on one core is the ceiling of what the proxy can reach there; `forebay-bench` measures both in one run.
//! `GET /<bytes>` answers that many constant bytes (at most [`BODY_BYTES_MAX`]); any other path answers `bytes` of the
//! options. It serves loopback only: it checks no token.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use forebay_io::ring::Listener;
use futures::channel::oneshot;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::connections::Connections;
use super::deadline::Deadlines;
use super::executor::{self, Executor, ExecutorOptions};
use super::framing::HeadLimits;
use super::heartbeat::BEAT;
use super::listener::{self, Conn, RequestBody, Service, Serving};
use super::stream::Batches;
use super::tls::TlsConfig;

/// The largest body it answers.
pub const BODY_BYTES_MAX: usize = 64 << 20;

const CONNECTIONS_MAX: usize = 10_000;
const BATCH_BYTES: usize = 64 << 20;

/// What the null server is started with.
#[derive(Debug, Clone)]
pub struct NullOptions {
    /// A loopback address; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The processor it runs on.
    pub cpu: usize,
    /// The body's size for paths that name none, in bytes.
    pub body_bytes: usize,
    /// The heartbeat; a long one shows what it is for.
    pub beat: Duration,
    /// How long clients are waited for.
    pub deadlines: Deadlines,
    /// Connections at once.
    pub connections_max: usize,
}

impl NullOptions {
    /// A server on a free port of 127.0.0.1 with a body of 4 KiB.
    #[must_use]
    pub fn new(cert: PathBuf, key: PathBuf, cpu: usize) -> NullOptions {
        NullOptions {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            cert,
            key,
            cpu,
            body_bytes: 4096,
            beat: BEAT,
            deadlines: Deadlines::default(),
            connections_max: CONNECTIONS_MAX,
        }
    }
}

/// A running null server. Dropping it does not stop it.
pub struct NullServer {
    /// Where it listens.
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    executor: Executor<anyhow::Result<()>>,
}

impl NullServer {
    /// Starts one executor that serves.
    ///
    /// # Errors
    /// The address is not on loopback or not free, the certificate is unusable, or the executor can't start.
    pub fn start(options: NullOptions) -> anyhow::Result<NullServer> {
        anyhow::ensure!(options.listen.ip().is_loopback(), "the null server listens on loopback addresses only");
        let tls = TlsConfig::from_pem_files(&options.cert, &options.key)?;
        let (listening, listens) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let mut executor_options = ExecutorOptions::new(options.cpu);
        executor_options.name = "forebay-null".to_owned();
        executor_options.beat = options.beat;
        let executor = executor::start(&executor_options, move |heartbeat| async move {
            let connections = Connections::new(options.connections_max, options.deadlines);
            let bound = Listener::bind(options.listen)
                .and_then(|listener| listener.local_addr().map(|address| (listener, address)))
                .with_context(|| format!("listening on {}", options.listen));
            let (listener, address) = match bound {
                Ok(bound) => bound,
                Err(error) => {
                    let _ = listening.send(Err(error));
                    return Ok(());
                }
            };
            let serving = Serving {
                service: Rc::new(NullService { body_bytes: options.body_bytes, bodies: RefCell::default() }),
                tls,
                heads: HeadLimits::default(),
                http2_streams_max: 64,
                heartbeat,
                connections: Rc::clone(&connections),
                batches: Batches::new(BATCH_BYTES),
                core: 0,
            };
            listener::serve(listener, Rc::new(serving));
            let _ = listening.send(Ok(address));
            let _ = stopped.await;
            connections.drain();
            connections.closed().await;
            Ok(())
        })?;
        let address = listens.recv().context("the null server's executor ended")??;
        Ok(NullServer { address, stop, executor })
    }

    /// Finishes what is in flight and ends.
    ///
    /// # Errors
    /// The executor panicked.
    pub fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        self.executor.join()?
    }
}

/// Serves until SIGTERM or SIGINT. Prints one line of JSON with its URL when it listens.
///
/// # Errors
/// As [`NullServer::start`].
pub fn run(options: NullOptions) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).context("listening to signals")?;
    let server = NullServer::start(options)?;
    println!("{}", serde_json::json!({ "url": format!("https://{}", server.address), "pid": std::process::id() }));
    signals.forever().next();
    server.stop()
}

struct NullService {
    body_bytes: usize,
    bodies: RefCell<BTreeMap<usize, Bytes>>,
}

impl Service for NullService {
    type Body = Full<Bytes>;

    async fn call(&self, _conn: &Rc<Conn>, request: Request<RequestBody>) -> Response<Full<Bytes>> {
        let Ok(response) = self.answer(request).await;
        response
    }
}

impl NullService {
    async fn answer(&self, request: Request<RequestBody>) -> Result<Response<Full<Bytes>>, Infallible> {
        let mut response = Response::new(Full::default());
        match *request.method() {
            Method::GET => {
                let named = request.uri().path().trim_start_matches('/').parse().ok();
                let bytes = named.filter(|bytes| *bytes <= BODY_BYTES_MAX).unwrap_or(self.body_bytes);
                *response.body_mut() = Full::new(self.body(bytes));
            }
            Method::PUT => {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                *response.status_mut() = StatusCode::CREATED;
            }
            _ => *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED,
        }
        Ok(response)
    }

    fn body(&self, bytes: usize) -> Bytes {
        let mut bodies = self.bodies.borrow_mut();
        bodies.entry(bytes).or_insert_with(|| Bytes::from(vec![b'f'; bytes])).clone()
    }
}
