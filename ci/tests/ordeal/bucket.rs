//! The object store of a campaign: the S3 server of `forebay dev` in this process, and a line to it that can be cut.
//!
//! The proxy reaches the store through the [`Gate`] only, so that an outage is the line's and the server always finishes
//! what reached it; the campaign itself reads the bucket past the gate. `quiet` waits until nothing that the dead proxy
//! asked for can change the bucket any more: what is read after that is the truth.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay::dev::s3_server::{REGION, S3Server, S3ServerOptions};
use forebay::origin::{NameStyle, object_name};
use reqwest::Client;
use rusty_s3::{Bucket as S3Bucket, Credentials, S3Action, UrlStyle};
use tokio::sync::watch;

use super::oracle::Volume;

pub const ACCESS_KEY: &str = "ordeal";
pub const SECRET_KEY: &str = "ordeal-secret";
pub const BUCKET: &str = "ordeal";

/// Whatever is waited for here takes milliseconds.
const BOUND: Duration = Duration::from_secs(60);

/// Connections remembered by the gate.
const PEERS: usize = 256;

/// The server and the line to it.
pub struct Bucket {
    pub gate: Gate,
    server: S3Server,
    client: Client,
    place: S3Bucket,
    credentials: Credentials,
}

impl Bucket {
    pub fn start(directory: &Path) -> Bucket {
        let server = S3Server::start_with(&S3ServerOptions {
            root: directory.join("s3"),
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
            bucket: BUCKET.to_owned(),
            region: REGION.to_owned(),
            access_log: Some(directory.join("s3.log")),
        })
        .unwrap();
        let endpoint = server.endpoint().parse().unwrap();
        let place = S3Bucket::new(endpoint, UrlStyle::Path, BUCKET, REGION).unwrap();
        // A connection kept would look like work.
        let client = Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(BOUND).build().unwrap();
        let credentials = Credentials::new(ACCESS_KEY, SECRET_KEY);
        Bucket { gate: Gate::start(server.addr()), server, client, place, credentials }
    }

    /// What the bucket holds under a key.
    pub async fn stored(&self, volume: Volume, key: &str) -> Option<Vec<u8>> {
        let name = object_name(NameStyle::Plain, &format!("{}/", volume.name()), key).unwrap();
        let url = self.place.get_object(Some(&self.credentials), &name).sign(Duration::from_secs(300));
        let answer = self.client.get(url).send().await.unwrap();
        match answer.status().as_u16() {
            200 => Some(answer.bytes().await.unwrap().to_vec()),
            404 => None,
            status => panic!("S3 answered {status} for {name}: {}", answer.text().await.unwrap()),
        }
    }

    /// Waits until everything that came through the gate is done. The proxy must be dead, or the gate shut.
    pub async fn quiet(&self) {
        self.gate.all_accepted().await;
        until("the store to become quiet", || {
            self.gate.shared.connections.load(Ordering::SeqCst) == 0 && self.server.busy() == 0
        })
        .await;
    }

    /// Lets requests through again, after those of before have come to their end.
    pub async fn open(&self) {
        if !self.gate.is_open() {
            self.quiet().await;
            self.gate.shared.open.send_replace(true);
        }
    }
}

/// A TCP line to the server: open, or shut and every connection on it cut.
pub struct Gate {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    open: watch::Sender<bool>,
    connections: AtomicUsize,
    /// The last ones accepted.
    peers: Mutex<VecDeque<SocketAddr>>,
}

impl Gate {
    fn start(target: SocketAddr) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let shared = Arc::new(Shared {
            open: watch::channel(true).0,
            connections: AtomicUsize::new(0),
            peers: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, target, serving) => {}
                }
            });
        });
        Gate { addr, shared, stop: Some(stop), thread: Some(thread) }
    }

    pub fn is_open(&self) -> bool {
        *self.shared.open.borrow()
    }

    /// Cuts every connection; new ones are accepted and cut at once.
    pub fn shut(&self) {
        self.shared.open.send_replace(false);
    }

    /// Waits until every connection that was made before has been seen: connections are accepted in order.
    async fn all_accepted(&self) {
        let own = TcpStream::connect(self.addr).unwrap();
        let addr = own.local_addr().unwrap();
        until("the gate to see its last connection", || self.shared.peers.lock().unwrap().contains(&addr)).await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((mut near, peer)) = listener.accept().await else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        {
            let mut peers = shared.peers.lock().unwrap();
            peers.push_back(peer);
            if peers.len() > PEERS {
                peers.pop_front();
            }
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut open = shared.open.subscribe();
            if *open.borrow_and_update() {
                let carried = async {
                    let mut far = tokio::net::TcpStream::connect(target).await?;
                    near.set_nodelay(true)?;
                    far.set_nodelay(true)?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                };
                tokio::select! {
                    _ = carried => {}
                    _ = open.wait_for(|open| !open) => {}
                }
            }
            drop(near);
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Looks again and again, within the bound.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
