//! The server around `api`: accepts connections, TLS, HTTP/1.1 and HTTP/2, and stops in order.
//!
//! Called by `cli/admin`; one thread does the network, a few more the database. The stack is the proxies' own (rustls set up by
//! `proxy/tls`, hyper), on tokio, because here no byte of a block passes. Invariants: connections, handshakes, heads and bodies
//! are bounded in number, time and size; a stopping server answers what it has begun.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::api::fault::Fault;
use super::api::{App, BODY_BYTES_MAX, Reply, Stage};
use super::config::AdminSection;
use super::registry::{Actor, Registry};
use super::{keys, sqlite};
use crate::proxy::drain::{self, Event};
use crate::proxy::tls::TlsConfig;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
const HEAD_BYTES_MAX: usize = 16 << 10;
const STREAMS_MAX: u32 = 32;
/// What a client may send of bodies before they are read: by stream, by connection.
const STREAM_WINDOW_BYTES: u32 = BODY_BYTES_MAX as u32;
const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;
/// A connection without a request for so long is closed, also if its client takes no answers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// For what was begun when the server is told to stop.
const STOP_BOUND: Duration = Duration::from_secs(5);
/// Threads for the database: one writes, one reads, the others wait for these.
const BLOCKING_THREADS: usize = 8;

/// Runs the server until a signal stops it.
///
/// # Errors
/// What keeps it from starting, with the fix.
pub fn run(config: &AdminSection) -> anyhow::Result<()> {
    let (events, event) = std::sync::mpsc::channel();
    drain::listen_to_signals(events)?;
    let tls = TlsConfig::from_pem_files(&config.tls_certificate, &config.tls_key)?;
    let _claim = sqlite::claim(&config.directory).context("admin.directory")?;
    let registry = sqlite::Sqlite::open(&config.directory).with_context(|| config.directory.display().to_string())?;
    let itself = Actor { subject: "forebay admin".to_owned(), token: String::new(), at: unix_now() };
    keys::ensure_key(&registry, &itself)?;
    let (stop, stopping) = watch::channel(Stage::Serving);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("a runtime for the network")?;
    std::thread::Builder::new().name("forebay-stop".to_owned()).spawn(move || {
        if let Ok(Event::Signal) = event.recv() {
            stop.send_replace(Stage::Stopping);
        }
    })?;
    raise_file_limit(config.connections);
    runtime.block_on(serve(config, &tls, Arc::new(registry), stopping))?;
    info!("stopped");
    Ok(())
}

/// Seconds since 1970; 0 before it.
#[must_use]
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn serve(
    config: &AdminSection,
    tls: &TlsConfig,
    registry: Arc<dyn Registry>,
    mut stopping: watch::Receiver<Stage>,
) -> anyhow::Result<()> {
    let app = Arc::new(App::new(registry, stopping.clone(), unix_now)?);
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("{} can't be bound: free it, or set admin.listen", config.listen))?;
    let address = listener.local_addr()?;
    if let Some(path) = &config.ports_file {
        write_ports_file(path, address).with_context(|| format!("writing {}", path.display()))?;
    }
    info!(listen = %address, "serving");
    let acceptor = TlsAcceptor::from(tls.server());
    let room = Arc::new(Semaphore::new(config.connections));
    let mut connections = JoinSet::new();
    loop {
        // Dropped connections are collected as others come.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            _ = stopping.wait_for(|stage| *stage == Stage::Stopping) => break,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let (app, acceptor, stopping) = (Arc::clone(&app), acceptor.clone(), stopping.clone());
        connections.spawn(async move {
            if let Err(error) = connection(app, acceptor, stream, stopping).await {
                debug!(%peer, %error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    info!("stopping: no new connections");
    let all_done = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_BOUND, all_done).await.is_err() {
        warn!("requests were still running: they are cut off");
    }
    Ok(())
}

/// The next connection, as soon as there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place)),
        Err(error) => {
            // Out of descriptors, mostly: others will be closed.
            warn!(%error, "a connection can't be accepted");
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

/// One connection, from the handshake to its end.
async fn connection(
    app: Arc<App>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    mut stopping: watch::Receiver<Stage>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.context("no handshake")??;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let (running, seen) = watch::channel(0);
    let running = Arc::new(running);
    let service = service_fn(move |request| {
        let (app, running) = (Arc::clone(&app), Running::new(&running));
        async move {
            let answer = answer(&app, request).await;
            drop(running);
            Ok::<_, Infallible>(answer)
        }
    });
    let idle = idle(seen, IDLE_TIMEOUT);
    tokio::pin!(idle);
    let stop = async move { drop(stopping.wait_for(|stage| *stage == Stage::Stopping).await) };
    tokio::pin!(stop);
    let io = TokioIo::new(stream);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).max_concurrent_streams(STREAMS_MAX);
        builder.max_header_list_size(u32::try_from(HEAD_BYTES_MAX)?);
        builder.initial_stream_window_size(STREAM_WINDOW_BYTES);
        builder.initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let serving = builder.serve_connection(io, service);
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return Ok(ended?),
            () = &mut idle => anyhow::bail!("idle"),
            () = &mut stop => serving.as_mut().graceful_shutdown(),
        }
        Ok(serving.await?)
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
        let serving = builder.serve_connection(io, service);
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return Ok(ended?),
            () = &mut idle => anyhow::bail!("idle"),
            () = &mut stop => serving.as_mut().graceful_shutdown(),
        }
        Ok(serving.await?)
    }
}

/// A request that runs, for as long as this lives.
struct Running(Arc<watch::Sender<usize>>);

impl Running {
    fn new(running: &Arc<watch::Sender<usize>>) -> Running {
        running.send_modify(|count| *count += 1);
        Running(Arc::clone(running))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Ends when no request has run for `bound`.
async fn idle(mut running: watch::Receiver<usize>, bound: Duration) {
    loop {
        let is_idle = *running.borrow_and_update() == 0;
        let changed = running.changed();
        // An error: the connection has ended.
        let goes_on = if is_idle {
            matches!(tokio::time::timeout(bound, changed).await, Ok(Ok(())))
        } else {
            changed.await.is_ok()
        };
        if !goes_on {
            return;
        }
    }
}

/// One request.
async fn answer(app: &Arc<App>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let let_in = if body.is_end_stream() { Ok(()) } else { app.let_in(&head.method, &head.uri, &head.headers).await };
    let reply = match let_in {
        Ok(()) => answer_body(app, &head, body).await,
        Err(refusal) => refusal,
    };
    // The query is left out: nothing in it is secret today, and nothing shall become so by mistake.
    debug!(method = %head.method, path = head.uri.path(), status = reply.status.as_u16(), "answered");
    let Reply { status, headers, media_type, body } = reply;
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if !media_type.is_empty() {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    response
}

/// Reads the body and answers.
async fn answer_body(app: &Arc<App>, head: &http::request::Parts, body: Incoming) -> Reply {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => app.answer(head.method.clone(), &head.uri, head.headers.clone(), body.to_bytes()).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => Fault::body_too_large().reply(),
        Ok(Err(_)) | Err(_) => Fault::body_incomplete().reply(),
    }
}

/// Tells whoever started the server where it listens; moved into place whole.
fn write_ports_file(path: &Path, address: SocketAddr) -> std::io::Result<()> {
    let ports = serde_json::json!({"pid": std::process::id(), "listen": address.to_string()});
    let new = path.with_extension("new");
    std::fs::write(&new, format!("{ports:#}\n"))?;
    std::fs::rename(&new, path)
}

fn raise_file_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        warn!(%error, "the limit of open files can't be raised");
    }
    if limit.maximum.is_some_and(|files| files < connections as u64 + 64) {
        warn!(
            open_files = limit.maximum,
            connections, "fewer open files than connections are allowed: raise `ulimit -n`"
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_when_no_request_runs() {
        const BOUND: Duration = Duration::from_millis(50);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (running, seen) = watch::channel(0);
            let running = Arc::new(running);
            tokio::time::timeout(Duration::from_secs(20), idle(seen.clone(), BOUND)).await.unwrap();
            let request = Running::new(&running);
            let waiting = tokio::time::timeout(4 * BOUND, idle(seen.clone(), BOUND)).await;
            assert!(waiting.is_err(), "a long poll runs: the connection is in use");
            drop(request);
            tokio::time::timeout(Duration::from_secs(20), idle(seen, BOUND)).await.unwrap();
        });
    }
}
