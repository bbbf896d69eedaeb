//! Answers requests: routes them, checks who asks, calls the verb, and puts the common headers on.
//!
//! One per core, called by `listener` for every request. The verbs are in `handler/`: `read` (GET, HEAD), `change` (PUT,
//! DELETE, purge, pin, unpin) and `node` (everything that is not about a block). A verb answers a response or a [`Failure`]; this file
//! turns either into an answer with a request id, counts it and logs it.

mod change;
mod group;
mod hot;
mod node;
mod read;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use forebay_shard::config::VolumeConfig;
use forebay_shard::key::BlockKey;
use http::header::EXPECT;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body as _;
use rand::{Rng as _, SeedableRng as _};
use tracing::Level;

use crate::lease::{Heat, HeatConfig};
use crate::origin::{NameTooLong, PeerHandle};
use crate::problem::Problem;
use crate::proxy::auth::{self, Auth, ConnToken};
use crate::proxy::blocks::Blocks;
use crate::proxy::body::{Meter, ResponseBody};
use crate::proxy::listener::{Conn, Protocol, RequestBody, Service};
use crate::proxy::metrics::{CoreMetrics, Outcome};
use crate::proxy::promote::Promoter;
use crate::proxy::put_body::{PutBudget, discard};
use crate::proxy::request::{Route, decode_key};
use crate::proxy::respond::{FOREBAY_HOPS, Failure, SERVER_TIMING, ShortText, X_REQUEST_ID, server_timing};
use crate::proxy::served::{Served, ServedVolume};
use crate::proxy::status::NodeFacts;
use crate::token::{Refusal, Right};

/// Asks the origin's side whether the object of a key would have a lawful name.
pub type KeyCheck = Box<dyn Fn(&BlockKey) -> Result<(), NameTooLong>>;

/// A shorter key always has a lawful name: a prefix has at most 512 bytes, and no byte of a key becomes more than three.
const KEY_BYTES_UNCHECKED: usize = 170;

/// What is read and thrown away of a refused body: the largest block there may be. Its deadlines are the connection's.
const DISCARD_BYTES_MAX: usize = 16 << 20;

/// What a handler needs to know; the same on every core but for the counters.
pub struct HandlerSettings {
    /// What is served at first.
    pub served: Arc<Served>,
    /// Who may ask.
    pub auth: Auth,
    /// What bodies of puts may hold on this core.
    pub put_bytes_max: u64,
    /// One in so many requests is logged; 0: none.
    pub access_one_in: u32,
    /// Whether the volume's store can hold a key at all.
    pub check_key: KeyCheck,
    /// The way to other members; `None`: there are none.
    pub peers: Option<PeerHandle>,
    /// For status and topology.
    pub facts: Arc<NodeFacts>,
    /// Whether the node serves.
    pub readiness: Arc<Readiness>,
}

/// Whether a node serves: what `/readyz` says. Set by `boot`, read on every core.
#[derive(Default)]
pub struct Readiness(AtomicU8);

/// The stages of a node's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Shards are being opened.
    Starting,
    /// It serves.
    Ready,
    /// It finishes what is in flight and takes leave.
    Draining,
}

impl Readiness {
    /// The node's stage now.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.0.load(Ordering::Acquire) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }

    /// The node has come to `stage`.
    pub fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Release);
    }
}

/// One core's handler.
pub struct Handler<B: Blocks> {
    blocks: B,
    served: RefCell<Rc<CoreServed>>,
    auth: Auth,
    puts: Rc<PutBudget>,
    promoter: Promoter,
    heat: RefCell<Heat>,
    started: Instant,
    metrics: Rc<CoreMetrics>,
    ids: RequestIds,
    access_one_in: u32,
    check_key: KeyCheck,
    peers: Option<PeerHandle>,
    facts: Arc<NodeFacts>,
    topology: Bytes,
    readiness: Arc<Readiness>,
}

/// What this core serves.
struct CoreServed {
    volumes: HashMap<Arc<str>, Rc<ServedVolume>>,
    all: Arc<Served>,
}

/// What one request gathers on its way.
struct Trace {
    request_id: HeaderValue,
    outcome: Outcome,
    hops: Option<u8>,
}

type Answer<B> = Result<Response<ResponseBody<B>>, Failure>;

impl<B: Blocks> Handler<B> {
    /// A handler of `blocks` that counts in `metrics`.
    #[must_use]
    pub fn new(blocks: B, settings: HandlerSettings, metrics: Rc<CoreMetrics>) -> Handler<B> {
        let facts = &settings.facts;
        let tier_bytes = facts.budget.memory_tier_bytes / u64::from(facts.topology.shard_count.max(1));
        Handler {
            blocks,
            served: RefCell::new(CoreServed::new(settings.served)),
            auth: settings.auth,
            puts: PutBudget::new(settings.put_bytes_max, Rc::clone(&metrics)),
            promoter: Promoter::new(tier_bytes),
            heat: RefCell::new(Heat::new(HeatConfig::default())),
            started: Instant::now(),
            metrics,
            ids: RequestIds::new(),
            access_one_in: settings.access_one_in,
            check_key: settings.check_key,
            peers: settings.peers,
            topology: settings.facts.topology.to_json(),
            facts: settings.facts,
            readiness: settings.readiness,
        }
    }

    /// Requests that come from now on see this.
    pub fn serve(&self, served: &Arc<Served>) {
        if let Some(keys) = &served.keys {
            self.auth.trust(keys);
        }
        self.served.replace(CoreServed::new(Arc::clone(served)));
    }

    /// Answers one request; `remembered` is what its connection knows of its token. What is left of the body is the
    /// caller's.
    async fn answer<T>(&self, parts: &Parts, body: &mut T, remembered: &ConnToken) -> Response<ResponseBody<B>>
    where
        T: http_body::Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        let began = Instant::now();
        let _in_flight = InFlight::begin(&self.metrics);
        let mut trace = Trace { request_id: self.ids.next(), outcome: Outcome::Other, hops: None };
        let mut response = match self.route(parts, body, remembered, &mut trace).await {
            Ok(response) => response,
            Err(failure) => self.fail(failure, parts, &mut trace),
        };
        let took = began.elapsed();
        let headers = response.headers_mut();
        headers.insert(SERVER_TIMING, server_timing(took));
        if let Some(hops) = trace.hops {
            headers.insert(FOREBAY_HOPS, HeaderValue::from_static(if hops == 0 { "0" } else { "1" }));
            if hops > 0 {
                self.metrics.hopped();
            }
        }
        self.metrics.ended(trace.outcome, took);
        if self.access_one_in > 0 && self.ids.issued().is_multiple_of(u64::from(self.access_one_in)) {
            let (method, path, status) = (&parts.method, parts.uri.path(), response.status().as_u16());
            let (outcome, request_id) = (trace.outcome.label(), &trace.request_id);
            tracing::info!(?request_id, %method, path, status, outcome, ?took, "answered");
        }
        response.headers_mut().insert(X_REQUEST_ID, trace.request_id);
        response
    }

    async fn route<T>(&self, parts: &Parts, body: &mut T, remembered: &ConnToken, trace: &mut Trace) -> Answer<B>
    where
        T: http_body::Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
    {
        let route = Route::of(parts.uri.path());
        match (route, &parts.method) {
            (Route::Block { volume, key }, method) => {
                let method = method.clone();
                if ![Method::GET, Method::HEAD, Method::PUT, Method::DELETE].contains(&method) {
                    return Err(Failure::method(route.methods()));
                }
                let need = if method == Method::GET || method == Method::HEAD { Right::Read } else { Right::ReadWrite };
                let volume = self.admit(parts, volume, need, remembered)?;
                if parts.uri.query().is_some() {
                    return Err(Failure::new(Problem::BadKey, "a ? in a key is written %3F"));
                }
                let key = self.block_key(&volume.settings, key)?;
                // Another member asks for what is here, whoever's it is by now.
                if !group::is_peer(parts) {
                    self.check_own(&key)?;
                }
                match method {
                    Method::GET => self.get(parts, &key, &volume, trace).await,
                    Method::HEAD => self.head(parts, &key, &volume, trace).await,
                    Method::PUT => self.put(parts, body, key, &volume, trace).await,
                    _ => self.delete(parts, &key, &volume, trace).await,
                }
            }
            (Route::Order { volume, order }, &Method::POST) => {
                let volume = self.admit(parts, volume, Right::ReadWrite, remembered)?;
                let query = parts.uri.query().and_then(|query| query.strip_prefix("key="));
                let encoded = query.ok_or_else(|| Failure::new(Problem::BadKey, "write ?key=… percent-encoded"))?;
                self.order(order, &self.block_key(&volume.settings, encoded)?, trace).await
            }
            (Route::Unknown, _) => Err(Failure::new(Problem::NoSuchPath, "see the README for the paths there are")),
            (_, &Method::GET | &Method::HEAD) if !matches!(route, Route::Order { .. }) => self.node(route).await,
            _ => Err(Failure::method(route.methods())),
        }
    }

    /// The volume, if it is served here and the request may do what it `need`s there. Who has no good token is not told
    /// which volumes there are.
    fn admit(
        &self,
        parts: &Parts,
        volume: &str,
        need: Right,
        remembered: &ConnToken,
    ) -> Result<Rc<ServedVolume>, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let grant = self.auth.grant(&parts.headers, remembered, now)?;
        if let Some(grant) = &grant {
            grant.is_current(now)?;
        }
        let served = Rc::clone(&self.served.borrow());
        let found = served.volumes.get(volume).ok_or_else(|| served.unknown(volume))?;
        auth::check(grant.as_deref(), volume, need, now)?;
        if let Some(grant) = &grant
            && found.revoked.contains(&grant.claims().jti)
        {
            return Err(Refusal::Revoked.into());
        }
        Ok(Rc::clone(found))
    }

    /// Refuses a block that belongs to another member, if that is to be refused.
    fn check_own(&self, key: &BlockKey) -> Result<(), Failure> {
        let served = self.served.borrow();
        let Some(own) = &served.all.strict else { return Ok(()) };
        own.check(&key.volume, &key.key).map_err(|first| match first {
            Some(first) => {
                Failure::new(Problem::NotOwner, format!("ask member {first}, which is the first in rank for this key"))
            }
            None => Failure::new(Problem::NotOwner, "no member of this group is up or draining"),
        })
    }

    /// The key that `encoded` names, if its block could be stored.
    fn block_key(&self, volume: &VolumeConfig, encoded: &str) -> Result<BlockKey, Failure> {
        let key = BlockKey::new(Arc::clone(&volume.name), decode_key(encoded)?);
        if key.key.len() > KEY_BYTES_UNCHECKED {
            // An acknowledged write that can never be flushed would stay dirty for ever.
            (self.check_key)(&key).map_err(|error| Failure::new(Problem::BadKey, error.to_string()))?;
        }
        Ok(key)
    }

    fn fail(&self, failure: Failure, parts: &Parts, trace: &mut Trace) -> Response<ResponseBody<B>> {
        self.metrics.problem(failure.problem);
        if let Some(refusal) = failure.refusal {
            self.metrics.refusal(refusal);
        }
        trace.outcome = match failure.problem {
            Problem::NoSuchBlock => Outcome::Absent,
            problem if problem.status().is_server_error() => Outcome::Failed,
            _ => Outcome::Refused,
        };
        log(&failure, parts, &trace.request_id);
        let id = trace.request_id.to_str().unwrap_or_default();
        let is_head = parts.method == Method::HEAD;
        failure.into_response(id).map(|body| match is_head {
            true => ResponseBody::Empty,
            false => ResponseBody::bytes(body, &self.metrics),
        })
    }

    fn meter(&self, trace: &Trace) -> Meter {
        Meter { metrics: Rc::clone(&self.metrics), request_id: trace.request_id.clone() }
    }
}

impl CoreServed {
    fn new(all: Arc<Served>) -> Rc<CoreServed> {
        let named = |volume: &ServedVolume| (Arc::clone(&volume.settings.name), Rc::new(volume.clone()));
        Rc::new(CoreServed { volumes: all.volumes.iter().map(named).collect(), all })
    }

    /// What is said of a volume that is not served.
    fn unknown(&self, volume: &str) -> Failure {
        match (self.all.refused.get(volume), &self.all.keys) {
            (Some(why), _) => Failure::new(Problem::UnknownVolume, why.clone()),
            (None, Some(_)) => {
                Failure::new(Problem::UnknownVolume, "the admin does not attach it to this node's group")
            }
            (None, None) => Failure::new(Problem::UnknownVolume, "this node's volumes are named in its configuration"),
        }
    }
}

impl<B: Blocks> Service for Handler<B> {
    type Body = ResponseBody<B>;

    async fn call(&self, conn: &Rc<Conn>, request: Request<RequestBody>) -> Response<ResponseBody<B>> {
        let (parts, mut body) = request.into_parts();
        let response = self.answer(&parts, &mut body, conn.slot::<ConnToken>()).await;
        // A refused client may go on sending: whoever stops listening to it takes its answer away (RFC 9112, section 9.6).
        // One that waits for `100 Continue` sends nothing.
        if !body.is_end_stream() && conn.protocol == Protocol::Http1 && !parts.headers.contains_key(EXPECT) {
            glommio::spawn_local(discard(body, DISCARD_BYTES_MAX)).detach();
        }
        response
    }
}

/// Logged where handled: once, as loud as [`Failure::level`] says.
fn log(failure: &Failure, parts: &Parts, request_id: &HeaderValue) {
    let (method, path) = (&parts.method, parts.uri.path());
    let (problem, detail) = (failure.problem.slug(), &*failure.detail);
    match failure.level() {
        Level::ERROR => tracing::error!(?request_id, %method, path, problem, detail, "failed"),
        Level::WARN => tracing::warn!(?request_id, %method, path, problem, detail, "failed"),
        Level::INFO => tracing::info!(?request_id, %method, path, problem, detail, "declined"),
        _ => tracing::debug!(?request_id, %method, path, problem, detail, "refused"),
    }
}

/// Counts a request as in flight until its answer's head is ready, or nobody waits for it any more.
struct InFlight<'a>(&'a CoreMetrics);

impl<'a> InFlight<'a> {
    fn begin(metrics: &'a CoreMetrics) -> InFlight<'a> {
        metrics.began();
        InFlight(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.answered();
    }
}

/// Ids that no other core or run issues: a random beginning and a count.
struct RequestIds {
    prefix: u64,
    issued: Cell<u64>,
}

impl RequestIds {
    fn new() -> RequestIds {
        RequestIds { prefix: rand::rngs::StdRng::from_os_rng().random(), issued: Cell::new(0) }
    }

    fn issued(&self) -> u64 {
        self.issued.get()
    }

    fn next(&self) -> HeaderValue {
        let count = self.issued.get() + 1;
        self.issued.set(count);
        let mut text = ShortText::default();
        write!(text, "{:016x}-{count:x}", self.prefix).expect("33 bytes fit");
        text.value()
    }
}
