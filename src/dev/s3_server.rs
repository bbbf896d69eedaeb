//! A real S3 server on loopback, for `forebay dev` and quick tests: s3s-fs in process, on a thread of its own.
//!
//! Never in the data path of a proxy: it listens on a socket like any store and enforces SigV4. A thin layer over
//! s3s's `S3` trait adds what s3s-fs lacks (see `layer`), STS's AssumeRole gives session credentials (see `sessions`), and every request leaves a line in an access log. Stops when
//! it is told to or dropped; objects stay in its folder.

mod body;
mod layer;
mod list;
mod log;
mod names;
mod policy;
mod sessions;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use http::{Method, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::sync::oneshot;

pub use self::log::{AccessEntry, AccessLog};
pub use self::sessions::ROLE;
use self::sessions::Sessions;

/// The region of a server that is not told another.
pub const REGION: &str = "us-east-1";

/// Where the keys of hashed names are kept below the root; no valid bucket name starts with a dot.
const NAMES_FOLDER: &str = ".names";

/// What a server is.
#[derive(Debug, Clone)]
pub struct S3ServerOptions {
    /// The folder that holds the buckets; created if missing.
    pub root: PathBuf,
    /// Where it listens; port 0 picks a free one.
    pub addr: SocketAddr,
    /// The one access key it knows.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// A bucket that exists from the start; 3 to 63 of `a-z`, `0-9`, `-`.
    pub bucket: String,
    /// The region requests must be signed for.
    pub region: String,
    /// A file that gets a line per request.
    pub access_log: Option<PathBuf>,
}

/// A running server.
pub struct S3Server {
    addr: SocketAddr,
    log: Arc<AccessLog>,
    /// Held once here, once by the accepting task, and by each connection and each call that is not done.
    work: Arc<()>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server for [`REGION`] without a log file.
    ///
    /// # Errors
    /// As [`S3Server::start_with`].
    pub fn start(
        root: &Path,
        addr: SocketAddr,
        access_key: &str,
        secret_key: &str,
        bucket: &str,
    ) -> io::Result<S3Server> {
        S3Server::start_with(&S3ServerOptions {
            root: root.to_owned(),
            addr,
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            bucket: bucket.to_owned(),
            region: REGION.to_owned(),
            access_log: None,
        })
    }

    /// Starts a server; it answers from the return of this call on.
    ///
    /// # Errors
    /// The port is in use, or the folder can't be written.
    pub fn start_with(options: &S3ServerOptions) -> io::Result<S3Server> {
        let service = service(options)?;
        let listener = TcpListener::bind(options.addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let file = options.access_log.as_deref().map(open_log).transpose()?;
        let log = Arc::new(AccessLog::new(file));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread_log = Arc::clone(&log);
        let work = Arc::new(());
        let thread_work = Arc::clone(&work);
        let thread = std::thread::Builder::new().name("s3-dev".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = stopped => {}
                    error = accept(listener, service, thread_log, thread_work) => tracing::error!(?error, "the S3 server ended"),
                }
            });
        })?;
        Ok(S3Server { addr, log, work, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL for path-style requests.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What was asked and answered.
    pub fn access_log(&self) -> Arc<AccessLog> {
        Arc::clone(&self.log)
    }

    /// Connections that are open and calls that go on, those among them whose client is gone. At zero, nothing that was
    /// asked for so far can change the bucket any more.
    #[must_use]
    pub fn busy(&self) -> usize {
        Arc::strong_count(&self.work).saturating_sub(2)
    }

    /// Cuts all connections and ends the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server was printed by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn service(options: &S3ServerOptions) -> io::Result<S3Service> {
    let folder = options.root.join(NAMES_FOLDER);
    fs::create_dir_all(&folder)?;
    fs::create_dir_all(options.root.join(&options.bucket))?;
    let root = options.root.canonicalize()?;
    let fs = FileSystem::new(&root).map_err(|error| io::Error::other(format!("s3s-fs: {error:?}")))?;
    let sessions = Sessions::new(&options.access_key, &options.secret_key);
    let layer = layer::Layer::new(fs, root, &options.region, names::Names::new(folder), sessions.clone());
    let mut builder = S3ServiceBuilder::new(layer);
    builder.set_auth(sessions.clone());
    builder.set_access(sessions.clone());
    builder.set_route(sessions);
    Ok(builder.build())
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

async fn accept(listener: TcpListener, service: S3Service, log: Arc<AccessLog>, work: Arc<()>) -> io::Error {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: others will be closed.
                tracing::warn!(%error, "the S3 server could not accept");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                continue;
            }
        };
        // Without it a 4 MiB GET takes 50 ms: Nagle waits for a delayed acknowledgement.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let (service, log, work) = (service.clone(), Arc::clone(&log), Arc::clone(&work));
        tokio::spawn(async move {
            let answer =
                service_fn(move |request| answer(service.clone(), Arc::clone(&log), Arc::clone(&work), request));
            // How a connection ends is the client's business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

async fn answer(
    service: S3Service,
    log: Arc<AccessLog>,
    work: Arc<()>,
    request: Request<Incoming>,
) -> Result<s3s::HttpResponse, s3s::HttpError> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let request_bytes = content_length(request.headers());
    // A task of its own: a client that goes away (a proxy that is killed) cuts the body, never the server's own steps
    // between an object and its metadata.
    let call = tokio::spawn(async move {
        let _work = work;
        service.call(request.map(s3s::Body::from)).await
    });
    let response = call.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let uploads = method == Method::PUT || method == Method::POST;
    let bytes = if uploads { request_bytes } else { content_length(response.headers()) };
    log.add(AccessEntry::new(method, &path, response.status(), bytes));
    Ok(response)
}

fn content_length(headers: &http::HeaderMap) -> u64 {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0)
}
