//! Blocks that another member may hold: writes go to the one that is first in rank, and nothing is called absent before all that may hold it
//! were asked.
//!
//! Called by `read` and `change`, for write-back volumes with several members (DESIGN, "Dirty blocks in a group"). A request that comes from
//! another member is never passed on. What can't be asked is `owner-unreachable`, but for bytes that the store has of an immutable volume.

use bytes::Bytes;
use forebay_shard::key::BlockKey;
use forebay_shard::origin::Etag;
use forebay_shard::outcome::{FillRole, FillStream};
use futures::channel::mpsc;
use futures::future::join_all;
use http::header::{AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, RANGE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Answer, Handler};
use crate::origin::{FOREBAY_PEER, PeerAnswer, PeerAsk};
use crate::problem::{Problem, TYPE_PREFIX};
use crate::proxy::blocks::Blocks;
use crate::proxy::body::ResponseBody;
use crate::proxy::respond::{FOREBAY_DURABILITY, Failure, response};
use crate::proxy::served::{Home, HomeMember, ServedVolume};

/// When to come back to a member that gave no answer.
const OWNER_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// What another member says of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// It has it, or the store has.
    There,
    /// Neither: never stored, or deleted.
    Absent,
    /// It holds nothing of it, and can't ask the store.
    NotHere,
    /// Nothing that counts.
    Nothing(String),
}

/// What the holder says of a block that the store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nothing against it; or nobody else holds it.
    Agrees,
    /// It was deleted, and the store has not heard of it yet.
    Deleted,
    /// It gave no answer.
    Unasked,
}

/// Whether another member asks.
pub(super) fn is_peer(parts: &Parts) -> bool {
    parts.headers.contains_key(FOREBAY_PEER)
}

pub(super) fn unreachable(words: String) -> Failure {
    Failure::new(Problem::OwnerUnreachable, words).retry_after(OWNER_RETRY)
}

impl<B: Blocks> Handler<B> {
    /// The member that a write is for; `None`: this one.
    pub(super) fn writer<'a>(
        &self,
        parts: &Parts,
        volume: &'a ServedVolume,
        key: &BlockKey,
    ) -> Result<Option<&'a HomeMember>, Failure> {
        let Some(home) = volume.home.as_deref() else { return Ok(None) };
        let Some(first) = home.first(&key.volume, &key.key) else {
            return Err(unreachable("no member of the volume's home group is up".to_owned()));
        };
        if Some(first) == home.own() {
            return Ok(None);
        }
        if is_peer(parts) {
            return Err(Failure::new(Problem::NotOwner, "by this member's routing another one is first for this key"));
        }
        Ok(Some(first))
    }

    /// Has a write done by the member that it is for.
    pub(super) async fn forward(
        &self,
        parts: &Parts,
        to: &HomeMember,
        method: Method,
        key: &BlockKey,
        body: Vec<Bytes>,
    ) -> Answer<B> {
        let mut headers = passed_on(parts, &[AUTHORIZATION, IF_MATCH, IF_NONE_MATCH, FOREBAY_DURABILITY]);
        if let Some(digest) = parts.headers.get("content-digest") {
            headers.insert("content-digest", digest.clone());
        }
        let ask = PeerAsk { body, ..question(to, method, key, headers) };
        let answer = self.ask(ask).await.map_err(unreachable)?;
        if answer.status == StatusCode::MISDIRECTED_REQUEST {
            return Err(unreachable(format!("{} has another routing: it changes", to.name)));
        }
        if answer.status.is_success() {
            let mut relayed = response(answer.status, ResponseBody::Empty);
            for name in [ETAG, FOREBAY_DURABILITY] {
                if let Some(value) = answer.headers.get(&name) {
                    relayed.headers_mut().insert(name, value.clone());
                }
            }
            return Ok(relayed);
        }
        let mut relayed = response(answer.status, ResponseBody::bytes(answer.body, &self.metrics));
        for name in [CONTENT_TYPE, RETRY_AFTER] {
            if let Some(value) = answer.headers.get(&name) {
                relayed.headers_mut().insert(name, value.clone());
            }
        }
        Ok(relayed)
    }

    /// A block that neither this node nor the store has, from the member that holds it.
    ///
    /// # Errors
    /// There is none, or nobody knows.
    pub(super) async fn elsewhere(
        &self,
        parts: &Parts,
        volume: &ServedVolume,
        key: &BlockKey,
    ) -> Result<FillStream, Failure> {
        let absent = || Failure::new(Problem::NoSuchBlock, "neither here nor at the origin");
        let home = volume.home.as_deref().filter(|_| !is_peer(parts)).ok_or_else(absent)?;
        let others: Vec<&HomeMember> = home.others().collect();
        let said = join_all(others.iter().map(|member| self.said(parts, member, key))).await;
        if let Some(at) = said.iter().position(|said| *said == Said::There) {
            return self.fetched(parts, volume, others[at], key).await;
        }
        let silent = said.into_iter().find_map(|said| if let Said::Nothing(words) = said { Some(words) } else { None });
        Err(silent.map_or_else(absent, unreachable))
    }

    async fn fetched(
        &self,
        parts: &Parts,
        volume: &ServedVolume,
        from: &HomeMember,
        key: &BlockKey,
    ) -> Result<FillStream, Failure> {
        let headers = passed_on(parts, &[AUTHORIZATION]);
        let body_bytes_max = volume.settings.block_bytes_max;
        let ask = PeerAsk { body_bytes_max, ..question(from, Method::GET, key, headers) };
        let answer = self.ask(ask).await.map_err(unreachable)?;
        let etag = answer.headers.get(ETAG).and_then(|value| value.to_str().ok()).and_then(parse_etag);
        let (StatusCode::OK, Some(etag)) = (answer.status, etag) else {
            return Err(unreachable(format!("{} said first that it has the block, then {}", from.name, answer.status)));
        };
        let (sender, frames) = mpsc::unbounded();
        let len_bytes = answer.body.len() as u64;
        if len_bytes > 0 {
            // The receiver is at hand.
            let _ = sender.unbounded_send(Ok(answer.body));
        }
        Ok(FillStream { role: FillRole::Began, len_bytes, etag, frames })
    }

    /// What the member that is first in rank says of a block that the store has.
    pub(super) async fn holder(&self, parts: &Parts, volume: &ServedVolume, key: &BlockKey) -> Holder {
        let Some(home) = volume.home.as_deref().filter(|_| !is_peer(parts)) else { return Holder::Agrees };
        let Some(first) = home.first(&key.volume, &key.key) else { return Holder::Unasked };
        if Some(first) == home.own() {
            return Holder::Agrees;
        }
        let headers = passed_on(parts, &[AUTHORIZATION]);
        match self.ask(question(first, Method::HEAD, key, headers)).await {
            Ok(answer) if answer.status.is_success() => Holder::Agrees,
            // The body of a 404 says of what.
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => match self.said(parts, first, key).await {
                Said::There | Said::NotHere => Holder::Agrees,
                Said::Absent => Holder::Deleted,
                Said::Nothing(_) => Holder::Unasked,
            },
            _ => Holder::Unasked,
        }
    }

    async fn said(&self, parts: &Parts, member: &HomeMember, key: &BlockKey) -> Said {
        let mut headers = passed_on(parts, &[AUTHORIZATION]);
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        match self.ask(question(member, Method::GET, key, headers)).await {
            Ok(answer) if answer.status == StatusCode::NO_CONTENT => Said::NotHere,
            Ok(answer) if answer.status.is_success() || is_empty_block(&answer) => Said::There,
            Ok(answer) if is_no_such_block(&answer) => Said::Absent,
            Ok(answer) => Said::Nothing(format!("{} answers {}", member.name, answer.status)),
            Err(words) => Said::Nothing(words),
        }
    }

    async fn ask(&self, ask: PeerAsk) -> Result<PeerAnswer, String> {
        let Some(peers) = &self.peers else { return Err("this node asks no other".to_owned()) };
        peers.ask(ask).await.map_err(|error| error.to_string())
    }
}

fn question(to: &HomeMember, method: Method, key: &BlockKey, headers: HeaderMap) -> PeerAsk {
    let encoded = utf8_percent_encode(&key.key, NON_ALPHANUMERIC);
    PeerAsk {
        address: to.address.clone(),
        tls_name: to.tls_name.clone(),
        method,
        path: format!("/v1/volumes/{}/blocks/{encoded}", key.volume),
        headers,
        body: Vec::new(),
        body_bytes_max: 1,
    }
}

fn passed_on(parts: &Parts, names: &[HeaderName]) -> HeaderMap {
    let present = names.iter().filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone())));
    present.collect()
}

fn is_no_such_block(answer: &PeerAnswer) -> bool {
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let kind = problem["type"].as_str().and_then(|kind| kind.strip_prefix(TYPE_PREFIX));
    answer.status == StatusCode::NOT_FOUND && kind == Some(Problem::NoSuchBlock.slug())
}

/// No byte of it can be asked for.
fn is_empty_block(answer: &PeerAnswer) -> bool {
    let range = answer.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    answer.status == StatusCode::RANGE_NOT_SATISFIABLE && range == Some("bytes */0")
}

fn parse_etag(text: &str) -> Option<Etag> {
    let tag = text.strip_prefix('"')?.strip_suffix('"')?;
    match tag.strip_prefix("o-") {
        Some(other) => Some(Etag::Origin(other.into())),
        None => forebay_io::checksum::Digest::from_hex(tag).map(Etag::Digest),
    }
}

impl Home {
    /// The member that is to hold the block; `None`: nobody is up.
    fn first(&self, volume: &str, key: &str) -> Option<&HomeMember> {
        let at = crate::placement::KeyHash::of(volume, key).first(&self.up)?;
        self.members.iter().find(|member| member.id == self.up[at].id)
    }

    fn own(&self) -> Option<&HomeMember> {
        self.members.iter().find(|member| Some(member.id) == self.own)
    }

    /// Who else may hold what the store does not have.
    fn others(&self) -> impl Iterator<Item = &HomeMember> {
        self.members.iter().filter(|member| member.may_hold && Some(member.id) != self.own)
    }
}
