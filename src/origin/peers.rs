//! Asking other members of a group: one thread with tokio and HTTPS connections to them, behind a bounded mailbox.
//!
//! Used by `proxy/handler/group` where a block's holder may be another member. A request carries the client's own token and says that it is a
//! member's, so that nobody passes it on. Everything is bounded: who waits, the bytes of bodies, time; and a member that does not answer is not
//! waited for by each question again: after a few its circuit is open, and one question at a time tries it. A body is handed over only after it was
//! found to be what its ETag says (I8). Nothing here is retried: whoever asks knows what a silence means.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use forebay_io::checksum::Digest;
use futures::channel::oneshot;
use http::header::{CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use reqwest::{Client, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::breaker::{Breaker, BreakerSettings, Leave};
use crate::follow::https;
use crate::mailbox::{Sender, mailbox};
use crate::resource::Revision;

/// Says that a request comes from another member, which answers for the block if this one can't, and by which placement that one goes; or from
/// a client that asks what this member holds ([`PEER_OF_NO_PLACEMENT`]).
pub const FOREBAY_PEER: HeaderName = HeaderName::from_static("forebay-peer");

/// No placement, for the first revision makes a key: whoever asks so wants to know what is here, and takes nothing for its own by the answer.
pub const PEER_OF_NO_PLACEMENT: Revision = 1;

/// Questions waiting; more are not asked.
const WAITING_MAX: usize = 1_024;
/// Questions at once.
const ASKED_MAX: usize = 64;
/// What bodies may hold, in KiB, from when they are asked for or sent until nobody needs them: one block of the largest, or several smaller. It is
/// beside the memory figure.
const BODIES_KIB_MAX: usize = 16 << 10;
/// An open circuit is tried soon: whoever comes back finds its keys waiting.
const CIRCUIT: BreakerSettings = BreakerSettings {
    failures_max: 3,
    slow: LONG_DEADLINE,
    slow_max: u32::MAX,
    pause: Duration::from_millis(250),
    pause_max: Duration::from_secs(1),
};
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For an answer without a body worth mentioning, and for one with.
const SHORT_DEADLINE: Duration = Duration::from_secs(3);
const LONG_DEADLINE: Duration = Duration::from_secs(30);
/// A problem is cut here.
const PROBLEM_BYTES_MAX: usize = 16 << 10;

/// One question to one member.
#[derive(Debug)]
pub struct PeerAsk {
    /// `host:port`.
    pub address: String,
    /// The name its certificate is verified against.
    pub tls_name: String,
    /// What is asked.
    pub method: Method,
    /// Percent-encoded.
    pub path: String,
    /// The client's token and conditions.
    pub headers: HeaderMap,
    /// Of a PUT.
    pub body: Vec<Bytes>,
    /// The most that a GET may bring, in bytes.
    pub body_bytes_max: u32,
    /// The placement that this node goes by: another is no answer.
    pub placed: Revision,
}

/// What a member answered.
#[derive(Debug)]
pub struct PeerAnswer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body; of a whole block, verified.
    pub body: Bytes,
}

/// A member gave no usable answer; what it did meanwhile is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PeerSilent(String);

/// Asks. Clones share the thread, which ends with the last of them.
#[derive(Clone)]
pub struct PeerHandle {
    jobs: Sender<Job>,
}

struct Job {
    ask: PeerAsk,
    answer: oneshot::Sender<Result<PeerAnswer, PeerSilent>>,
}

/// The thread's side.
struct Peers {
    ca: Option<PathBuf>,
    /// By address and TLS name.
    clients: Mutex<HashMap<(String, String), Client>>,
    circuits: Mutex<HashMap<(String, String), Breaker>>,
    started: Instant,
    /// In KiB.
    bodies: Arc<Semaphore>,
}

/// The bytes of a body and its place among all of them.
struct Held {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl PeerHandle {
    /// Starts the thread; `ca` is trusted instead of the system's authorities.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(ca: Option<&Path>) -> io::Result<PeerHandle> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (jobs, mut inbox) = mailbox::<Job>(WAITING_MAX);
        let peers = Arc::new(Peers {
            ca: ca.map(Path::to_owned),
            clients: Mutex::default(),
            circuits: Mutex::default(),
            started: Instant::now(),
            bodies: Arc::new(Semaphore::new(BODIES_KIB_MAX)),
        });
        std::thread::Builder::new().name("forebay-peers".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let places = Arc::new(Semaphore::new(ASKED_MAX));
                loop {
                    let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
                    let Some(Job { ask, mut answer }) = inbox.recv().await else { return };
                    let peers = Arc::clone(&peers);
                    tokio::spawn(async move {
                        let answered = tokio::select! {
                            biased;
                            () = answer.cancellation() => return,
                            answered = peers.ask(ask) => answered,
                        };
                        // Nobody to tell: the client left at the last moment.
                        let _ = answer.send(answered);
                        drop(place);
                    });
                }
            });
        })?;
        Ok(PeerHandle { jobs })
    }

    /// Asks one member, within a deadline. Dropping the future gives the question up.
    pub fn ask(&self, ask: PeerAsk) -> impl Future<Output = Result<PeerAnswer, PeerSilent>> + use<> {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.try_send(Job { ask, answer }).is_ok();
        async move {
            if !sent {
                return Err(PeerSilent("too many questions to other members wait".to_owned()));
            }
            answered.await.map_err(|_| PeerSilent("the node is stopping".to_owned()))?
        }
    }
}

impl Peers {
    async fn ask(&self, ask: PeerAsk) -> Result<PeerAnswer, PeerSilent> {
        let name = (ask.address.clone(), ask.tls_name.clone());
        if self.circuit(&name, |circuit, now| circuit.leave(now)) == Leave::Refused {
            return Err(silent(&name.0, "it has not been answering"));
        }
        let body_bytes = body_bytes(&ask);
        let deadline = if body_bytes > 0 { LONG_DEADLINE } else { SHORT_DEADLINE };
        let place = match body_bytes {
            0 => None,
            bytes => {
                let kib = u32::try_from(bytes.div_ceil(1 << 10).min(BODIES_KIB_MAX)).expect("the most is a u32");
                let place = tokio::time::timeout(deadline, Arc::clone(&self.bodies).acquire_many_owned(kib)).await;
                // Not the other member's fault.
                let full = || PeerSilent("the bodies between members take all the memory they may".to_owned());
                Some(place.map_err(|_| full())?.map_err(|_| full())?)
            }
        };
        let began = Instant::now();
        let asking = async { once(&self.client(&name).await?, ask).await };
        let answered = tokio::time::timeout(deadline, asking).await;
        let answered = answered.unwrap_or_else(|_| Err(silent(&name.0, &format!("no answer within {deadline:?}"))));
        match answered {
            Ok(answer) => {
                self.circuit(&name, |circuit, now| circuit.succeeded(began.elapsed(), now));
                Ok(match place {
                    Some(place) if !answer.body.is_empty() => {
                        let body = Bytes::from_owner(Held { bytes: answer.body, _place: place });
                        PeerAnswer { body, ..answer }
                    }
                    _ => answer,
                })
            }
            Err(silent) => {
                self.circuit(&name, |circuit, now| circuit.failed(now));
                // Its name may mean another address by now.
                self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                Err(silent)
            }
        }
    }

    /// What `act` says of the member's circuit.
    fn circuit<T>(&self, name: &(String, String), act: impl FnOnce(&mut Breaker, Duration) -> T) -> T {
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        if circuits.len() >= WAITING_MAX {
            circuits.clear();
        }
        act(circuits.entry(name.clone()).or_insert_with(|| Breaker::new(CIRCUIT)), self.started.elapsed())
    }

    async fn client(&self, name: &(String, String)) -> Result<Client, PeerSilent> {
        let known = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let fail = |words: &str| silent(&name.0, words);
        let url = base(name).ok_or_else(|| fail("its address makes no URL"))?;
        let mut builder = https::builder(self.ca.as_deref(), &url).map_err(|error| fail(&error.to_string()))?;
        builder = builder.connect_timeout(CONNECT_TIMEOUT).no_proxy();
        if name.1.parse::<IpAddr>().is_err() {
            let found = tokio::net::lookup_host(&name.0).await.map_err(|error| fail(&error.to_string()))?;
            builder = builder.resolve_to_addrs(&name.1, &found.collect::<Vec<_>>());
        }
        let client = builder.build().map_err(|error| fail(&error.to_string()))?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= WAITING_MAX {
            clients.clear();
        }
        clients.insert(name.clone(), client.clone());
        Ok(client)
    }
}

/// The most that a question's body, or its answer's, takes; 0: nothing worth mentioning.
fn body_bytes(ask: &PeerAsk) -> usize {
    let sent: usize = ask.body.iter().map(Bytes::len).sum();
    let brought = if ask.method == Method::GET && ask.body_bytes_max > 1 { ask.body_bytes_max as usize } else { 0 };
    sent.max(brought)
}

/// The member's URL, by the name in its certificate. One by a number must be that of its address.
fn base((address, tls_name): &(String, String)) -> Option<Url> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_number = tls_name.parse::<IpAddr>().is_ok();
    if is_number && host != tls_name {
        return None;
    }
    let name = if tls_name.contains(':') { format!("[{tls_name}]") } else { tls_name.clone() };
    Url::parse(&format!("https://{name}:{port}")).ok()
}

async fn once(client: &Client, ask: PeerAsk) -> Result<PeerAnswer, PeerSilent> {
    let fail = |words: &str| silent(&ask.address, words);
    let name = (ask.address.clone(), ask.tls_name.clone());
    let url = base(&name).and_then(|base| base.join(&ask.path).ok()).ok_or_else(|| fail("its address makes no URL"))?;
    if url.path() != ask.path {
        return Err(fail("the key can't be written in a URL"));
    }
    let mut request = client.request(ask.method.clone(), url).headers(ask.headers);
    request = request.header(FOREBAY_PEER, HeaderValue::from(ask.placed));
    if ask.method == Method::PUT {
        let mut body = BytesMut::new();
        ask.body.iter().for_each(|frame| body.extend_from_slice(frame));
        request = request.header(CONTENT_LENGTH, body.len()).body(body.freeze());
    }
    let mut answer = request.send().await.map_err(|error| fail(&error.without_url().to_string()))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let bytes_max = if status.is_success() { ask.body_bytes_max as usize } else { PROBLEM_BYTES_MAX };
    let mut body = BytesMut::new();
    while let Some(frame) = answer.chunk().await.map_err(|error| fail(&error.without_url().to_string()))? {
        if body.len() + frame.len() > bytes_max {
            return Err(fail("its answer is longer than a block"));
        }
        body.extend_from_slice(&frame);
    }
    let body = body.freeze();
    if status == StatusCode::OK && ask.method == Method::GET && !is_what_it_says(&headers, &body) {
        return Err(fail("its answer is not what its ETag says"));
    }
    Ok(PeerAnswer { status, headers, body })
}

/// Whether a whole block's bytes match its ETag, if that is our own.
fn is_what_it_says(headers: &HeaderMap, body: &[u8]) -> bool {
    let etag = headers.get(ETAG).and_then(|value| value.to_str().ok()).map(|tag| tag.trim_matches('"'));
    etag.and_then(Digest::from_hex).is_none_or(|digest| digest == Digest::of(body))
}

fn silent(address: &str, words: &str) -> PeerSilent {
    PeerSilent(format!("{address}: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_url_has_the_name_of_its_certificate() {
        let url =
            |address: &str, tls_name: &str| base(&(address.to_owned(), tls_name.to_owned())).map(|url| url.to_string());
        assert_eq!(url("10.0.0.1:7400", "cache.example.net").as_deref(), Some("https://cache.example.net:7400/"));
        assert_eq!(url("10.0.0.1:7400", "10.0.0.1").as_deref(), Some("https://10.0.0.1:7400/"));
        assert_eq!(url("[fd00::1]:7400", "fd00::1").as_deref(), Some("https://[fd00::1]:7400/"));
        assert_eq!(url("10.0.0.1:7400", "10.0.0.2"), None, "a number is not looked up");
    }

    fn question(address: String) -> PeerAsk {
        PeerAsk {
            tls_name: address.rsplit_once(':').expect("host and port").0.to_owned(),
            address,
            method: Method::HEAD,
            path: "/".to_owned(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            body_bytes_max: 1,
            placed: 0,
        }
    }

    #[test]
    fn a_member_that_does_not_answer_is_not_waited_for_by_each_question() {
        // It takes connections and says nothing.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = mute.local_addr().expect("bound").to_string();
        let peers = PeerHandle::start(None).expect("a thread");
        let ask = || futures::executor::block_on(peers.ask(question(address.clone()))).expect_err("nobody answers").0;
        let together =
            futures::future::join_all((0..CIRCUIT.failures_max).map(|_| peers.ask(question(address.clone()))));
        assert!(futures::executor::block_on(together).iter().all(Result::is_err));
        let began = Instant::now();
        assert!(ask().contains("has not been answering"));
        assert!(began.elapsed() < SHORT_DEADLINE / 4, "{:?}", began.elapsed());
        // Nobody listens there any more, which is said at once: after each pause one question tries.
        drop(mute);
        let until = Instant::now() + 10 * CIRCUIT.pause_max;
        while ask().contains("has not been answering") {
            assert!(Instant::now() < until, "it is never tried again");
            std::thread::yield_now();
        }
    }

    #[test]
    fn bytes_that_are_not_what_they_say_are_no_answer() {
        let headers = |tag: String| [(ETAG, HeaderValue::from_str(&tag).expect("visible ASCII"))].into_iter().collect();
        let good: HeaderMap = headers(format!("\"{}\"", Digest::of(b"abc").to_hex()));
        assert!(is_what_it_says(&good, b"abc") && !is_what_it_says(&good, b"abd"));
        assert!(is_what_it_says(&headers("\"o-someone's\"".to_owned()), b"abd"), "the store's own tag says nothing");
    }
}
