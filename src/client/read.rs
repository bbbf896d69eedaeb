//! GET and HEAD: ask in the planned order until somebody has the block, or everybody who could has said that there is none, or the store must be asked.
//!
//! Part of `client`. A body that breaks off goes on from where it ended, at the next who has the block, if that has the same ETag. The end of a whole block is
//! held back until its digest agrees.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, RANGE};
use http::{Method, StatusCode};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::{RequestBuilder, Response};
use tokio::task::JoinSet;
use tokio::time::Instant;
use twox_hash::xxhash3_128;

use super::answer::{self, Meaning, Said};
use super::error::ClientError;
use super::member::{Member, locked};
use super::net::Net;
use super::plan::{self, Asked, Place, Verdict};
use super::{Client, Inner};
use crate::breaker::Leave;
use crate::lease::{self, Lease};
use crate::placement::KeyHash;
use crate::resource::{Bypass as BypassRule, WriteMode};

/// For asking a member whether it holds a block that others say there is none of.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(4);
/// A body that breaks off more often is given up.
const RESUMES_MAX: u32 = 4;
/// Says that nobody else is to be asked, nor the store.
const PEER_HEADER: &str = "forebay-peer";
/// How a member marks, in Cache-Status, what the store does not have yet.
const DIRTY: &str = "detail=dirty";

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// A member.
    Member {
        /// Its group.
        group: String,
        /// Its name.
        member: String,
        /// Its `Cache-Status`.
        cache_status: String,
    },
    /// The store, by this client's own credentials.
    Store,
}

/// What is known of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Without quotes: the digest, or `o-` and the store's ETag.
    pub etag: String,
    /// The whole block's length.
    pub len_bytes: u64,
    /// Who answered.
    pub via: Via,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    key: String,
    /// First and, exclusive, last byte; `u64::MAX`: to the end.
    pub(super) range: Option<Range<u64>>,
    whose: Whose,
}

/// Whose answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The group's: a member asks the others, and the store.
    Anybodys,
    /// The member's own, of what it holds.
    Own,
}

impl Whose {
    fn mark(self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Whose::Anybodys => request,
            Whose::Own => request.header(PEER_HEADER, "1"),
        }
    }
}

/// An answer with a block.
pub(super) struct Opened {
    pub(super) meta: Meta,
    /// What of the block follows.
    range: Range<u64>,
    source: Source,
}

pub(super) enum Source {
    Member { response: Response, member: Arc<Member> },
    Bytes(Bytes),
}

/// What one member said.
pub(super) enum Heard {
    Here(Box<Opened>),
    Absent,
    Elsewhere(String),
    Final(ClientError),
}

/// A block, or a part of one, on its way.
pub struct Block {
    /// What is known of it.
    pub meta: Meta,
    /// What of it follows.
    pub range: Range<u64>,
    inner: Arc<Inner>,
    ask: Ask,
    source: Source,
    received_bytes: u64,
    digest: Option<(xxhash3_128::Hasher, u128)>,
    resumes: u32,
}

impl Client {
    /// A block, or `range` of it (its end may be `u64::MAX`).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Block, ClientError> {
        let ask = Ask { method: Method::GET, key: key.to_owned(), range, whose: Whose::Anybodys };
        let Opened { meta, range, source } = self.inner.open(&ask).await?;
        let is_whole = range == (0..meta.len_bytes);
        let digest = answer::digest_of(&meta.etag).filter(|_| is_whole);
        let digest = digest.map(|digest| (xxhash3_128::Hasher::new(), digest));
        let inner = Arc::clone(&self.inner);
        Ok(Block { meta, range, inner, ask, source, received_bytes: 0, digest, resumes: 0 })
    }

    /// What there is of a block.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn head(&self, key: &str) -> Result<Meta, ClientError> {
        let ask = Ask { method: Method::HEAD, key: key.to_owned(), range: None, whose: Whose::Anybodys };
        Ok(self.inner.open(&ask).await?.meta)
    }
}

impl Block {
    /// The next bytes; `None` at the end, which comes only if all of it was right.
    ///
    /// # Errors
    /// It broke off and can't be gone on with, or is not what its digest says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let len_bytes = self.range.end - self.range.start;
        loop {
            if self.received_bytes == len_bytes {
                return Ok(None);
            }
            let pulled = match &mut self.source {
                Source::Member { response, member } => {
                    member.next_bytes(response).await.map_err(|trouble| trouble.words)
                }
                Source::Bytes(bytes) => Ok(Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty())),
            };
            let bytes = match pulled {
                Ok(Some(bytes)) if bytes.is_empty() => continue,
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    self.resume("the body ended early".to_owned()).await?;
                    continue;
                }
                Err(words) => {
                    self.resume(words).await?;
                    continue;
                }
            };
            self.received_bytes += bytes.len() as u64;
            if self.received_bytes > len_bytes {
                return Err(self.corrupt("more bytes than announced"));
            }
            if let Some((hasher, digest)) = &mut self.digest {
                hasher.write(&bytes);
                if self.received_bytes == len_bytes && hasher.finish_128() != *digest {
                    return Err(self.corrupt("other bytes than its ETag says"));
                }
            }
            return Ok(Some(bytes));
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`Block::next`].
    pub async fn bytes(mut self) -> Result<Bytes, ClientError> {
        let len_bytes = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        // A member's word is no reason to take gigabytes at once.
        let mut all = Vec::with_capacity(len_bytes.min(16 << 20));
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        // An empty block has no last bytes to hold back.
        match &self.digest {
            Some((hasher, digest)) if len_bytes == 0 && hasher.finish_128() != *digest => {
                Err(self.corrupt("it is empty, which its ETag does not say"))
            }
            _ => Ok(all.into()),
        }
    }

    fn corrupt(&self, what: &str) -> ClientError {
        ClientError::Corrupt(format!("{} from {:?}: {what}", self.ask.key, self.meta.via))
    }

    /// Goes on with the rest at whoever has it.
    async fn resume(&mut self, why: String) -> Result<(), ClientError> {
        self.resumes += 1;
        if self.resumes > RESUMES_MAX {
            return Err(ClientError::Unavailable(why));
        }
        self.inner.counters.resumed_bodies.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(key = %self.ask.key, %why, at = self.received_bytes, "a body broke off");
        let rest = self.range.start + self.received_bytes..self.range.end;
        let ask = Ask { range: Some(rest.clone()), ..self.ask.clone() };
        let opened = self.inner.open(&ask).await?;
        if opened.meta.etag != self.meta.etag || opened.range != rest {
            return Err(self.corrupt("another block than it began as"));
        }
        self.source = opened.source;
        Ok(())
    }
}

impl Inner {
    /// Somebody's answer, or the reason why there is none.
    async fn open(self: &Arc<Inner>, ask: &Ask) -> Result<Opened, ClientError> {
        let until = Instant::now() + self.settings.deadline;
        let net = self.net();
        let selected = self.selected(&net).await;
        let hash = KeyHash::of(&self.volume, &ask.key);
        let spread = plan::spread(&net.groups, selected, locked(&self.leases).spread(hash, self.now()));
        let draw = SmallRng::from_os_rng().random_range(0..usize::MAX);
        let places = plan::readers(&net.groups, selected, hash, spread, draw);
        self.budget.earn();
        let (mut asked, mut first_absent, mut attempts) = (Asked::default(), None, 0);
        let mut last = "no member of any group is up".to_owned();
        for (at, place) in places.iter().copied().enumerate() {
            let member = net.member(place);
            if member.leave() == Leave::Refused {
                last = format!("member {} at {} has not been answering", member.routed.name, member.routed.address);
                continue;
            }
            if attempts > 0 && !self.further_attempt() {
                break;
            }
            attempts += 1;
            // Elsewhere nothing was chosen.
            let spread = if Some(place.0) == selected { spread } else { 1 };
            match self.ask_in_rank(&net, &places, at, ask, spread, until).await {
                Heard::Here(opened) => return Ok(*opened),
                Heard::Absent => {
                    asked.absent(place);
                    first_absent = Some(place);
                    break;
                }
                Heard::Elsewhere(words) => last = words,
                Heard::Final(error) => return Err(error),
            }
        }
        match (asked.verdict(&net.volume, &net.groups, hash), first_absent) {
            (Verdict::Absent, _) => Err(ClientError::Absent),
            (Verdict::Ask(places), Some(first)) => self.ask_holders(&net, asked, first, places, ask, until).await,
            (Verdict::Ask(_) | Verdict::Unknown, _) => self.read_store(&net, ask, last).await,
        }
    }

    pub(super) fn further_attempt(&self) -> bool {
        let may = self.budget.spend();
        if may {
            self.counters.further_attempts.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// One question to one member.
    pub(super) async fn ask_member(&self, net: &Net, place: Place, ask: &Ask, spread: u16, until: Instant) -> Heard {
        let member = net.member(place);
        let mut request = match member.block_request(ask.method.clone(), &ask.key) {
            Ok(request) => ask.whose.mark(request),
            Err(error) => return Heard::Final(error),
        };
        match &ask.range {
            Some(range) if range.is_empty() => {
                return Heard::Final(ClientError::BadRange("the range is empty".to_owned()));
            }
            Some(range) if range.end == u64::MAX => request = request.header(RANGE, format!("bytes={}-", range.start)),
            Some(range) => request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1)),
            None => {}
        }
        if spread > 1 {
            request = request.header(lease::SPREAD_HEADER, spread);
        }
        let response = match member.send(request, until).await {
            Ok(response) => response,
            Err(trouble) => return Heard::Elsewhere(trouble.words),
        };
        let status = response.status();
        if status == StatusCode::NO_CONTENT && ask.whose == Whose::Own {
            return Heard::Absent;
        }
        if !status.is_success() {
            let said = match ask.method {
                Method::HEAD => self.reason(member, ask, status, until).await,
                _ => Said::of(&member.small_body(response).await),
            };
            return match answer::of_read(status, &said) {
                Meaning::Absent => Heard::Absent,
                Meaning::Elsewhere(words) => Heard::Elsewhere(format!("member {}: {words}", member.routed.name)),
                Meaning::Final(error) => Heard::Final(error),
            };
        }
        if let Some(lease) = response.headers().get(lease::LEASE_HEADER).and_then(|value| value.to_str().ok())
            && let Some(lease) = Lease::parse(lease)
        {
            locked(&self.leases).take(KeyHash::of(&self.volume, &ask.key), lease, self.now());
        }
        match head_of(&response, &net.groups[place.0].name, &member.routed.name, ask) {
            Ok((meta, range)) => {
                let source = Source::Member { response, member: Arc::clone(member) };
                Heard::Here(Box::new(Opened { meta, range, source }))
            }
            Err(what) => Heard::Elsewhere(format!("member {}: {what}", member.routed.name)),
        }
    }

    /// Why a HEAD was answered with `status`: its answer has no body, so a GET is asked. Unknown, if that is answered otherwise.
    async fn reason(&self, member: &Arc<Member>, ask: &Ask, status: StatusCode, until: Instant) -> Said {
        if !matches!(status.as_u16(), 404 | 500) {
            return Said::default();
        }
        let Ok(request) = member.block_request(Method::GET, &ask.key) else { return Said::default() };
        match member.send(ask.whose.mark(request).header(RANGE, "bytes=0-0"), until).await {
            Ok(response) if response.status() == status => Said::of(&member.small_body(response).await),
            _ => Said::default(),
        }
    }

    /// `first` says that there is no such block; these may hold it dirty all the same, if the group's members changed while it waited to be flushed.
    async fn ask_holders(
        self: &Arc<Inner>,
        net: &Arc<Net>,
        mut asked: Asked,
        first: Place,
        places: Vec<Place>,
        ask: &Ask,
        until: Instant,
    ) -> Result<Opened, ClientError> {
        let head = Ask { method: Method::HEAD, range: None, key: ask.key.clone(), whose: Whose::Own };
        let bound = until.min(Instant::now() + HOLDER_TIMEOUT);
        let mut tasks = JoinSet::new();
        for place in places {
            let (inner, net, head) = (Arc::clone(self), Arc::clone(net), head.clone());
            tasks.spawn(async move { (place, inner.ask_member(&net, place, &head, 1, bound).await) });
        }
        let (mut holder, mut is_clean_somewhere, mut unasked) = (None, false, None);
        while let Some(done) = tasks.join_next().await {
            let Ok((place, heard)) = done else {
                unasked = Some("a question was broken off".to_owned());
                continue;
            };
            match heard {
                Heard::Absent => asked.absent(place),
                Heard::Here(opened) if opened.is_dirty() => holder = Some(place),
                // Clean: it was flushed since `first` looked, or deleted through another member.
                Heard::Here(_) => {
                    asked.absent(place);
                    is_clean_somewhere = true;
                }
                Heard::Elsewhere(words) => unasked = Some(words),
                Heard::Final(error) => return Err(error),
            }
        }
        if let Some(place) = holder {
            return match self.ask_member(net, place, ask, 1, until).await {
                Heard::Here(opened) => Ok(*opened),
                Heard::Final(error) => Err(error),
                Heard::Absent => Err(self.owner_unreachable("it is being moved".to_owned())),
                Heard::Elsewhere(words) => Err(self.owner_unreachable(words)),
            };
        }
        if is_clean_somewhere && let Heard::Here(opened) = self.ask_member(net, first, ask, 1, until).await {
            return Ok(*opened);
        }
        match (asked.verdict(&net.volume, &net.groups, KeyHash::of(&self.volume, &ask.key)), unasked) {
            (Verdict::Absent, None) => Err(ClientError::Absent),
            (_, words) => Err(self.owner_unreachable(words.unwrap_or_default())),
        }
    }

    /// Nobody answered: the store, if the volume allows it. `why` is what the last member said.
    async fn read_store(&self, net: &Net, ask: &Ask, why: String) -> Result<Opened, ClientError> {
        let is_write_back = net.volume.write == WriteMode::Back;
        let store = match self.bypass(net, BypassRule::Reads).await {
            Ok(store) => store,
            Err(reason) => return Err(ClientError::Unavailable(format!("{why}; and not from the store: {reason}"))),
        };
        let found = match ask.method {
            Method::HEAD => store.head(&ask.key).await?.map(|stored| (stored, Bytes::new())),
            _ => store.get(&ask.key).await?,
        };
        let Some((stored, body)) = found else {
            // Whoever may have it dirty was not asked.
            return Err(if is_write_back { self.owner_unreachable(why) } else { ClientError::Absent });
        };
        self.counters.bypassed_reads.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(key = %ask.key, %why, "read from the store");
        let meta = Meta { etag: stored.etag, len_bytes: stored.len_bytes, via: Via::Store };
        let range = match &ask.range {
            Some(range) if ask.method == Method::GET => range.start..range.end.min(meta.len_bytes),
            _ => 0..meta.len_bytes,
        };
        if ask.range.is_some() && range.is_empty() {
            return Err(ClientError::BadRange(format!("the block has {} bytes", meta.len_bytes)));
        }
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let body = if ask.method == Method::GET { body.slice(index(range.start)..index(range.end)) } else { body };
        Ok(Opened { meta, range, source: Source::Bytes(body) })
    }
}

impl Opened {
    pub(super) fn is_dirty(&self) -> bool {
        matches!(&self.meta.via, Via::Member { cache_status, .. } if cache_status.contains(DIRTY))
    }
}

/// What a successful answer's head says.
fn head_of(response: &Response, group: &str, member: &str, ask: &Ask) -> Result<(Meta, Range<u64>), &'static str> {
    let headers: &HeaderMap = response.headers();
    let etag = answer::etag(headers).ok_or("an answer without ETag")?;
    let body_bytes = answer::body_bytes(headers).ok_or("an answer without a length")?;
    let cache_status = headers.get("cache-status").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let via = Via::Member { group: group.to_owned(), member: member.to_owned(), cache_status };
    let (len_bytes, range) = match (response.status(), &ask.range) {
        (StatusCode::PARTIAL_CONTENT, Some(asked)) => {
            let (start, whole) = answer::content_range(headers).ok_or("a part without Content-Range")?;
            let range = start..start.saturating_add(body_bytes);
            if start != asked.start || range.end != asked.end.min(whole) {
                return Err("another part than was asked for");
            }
            (whole, range)
        }
        (StatusCode::OK, None) => (body_bytes, 0..body_bytes),
        _ => return Err("an answer to another question"),
    };
    Ok((Meta { etag, len_bytes, via }, range))
}
