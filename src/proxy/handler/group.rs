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
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Answer, Handler};
use crate::origin::{FOREBAY_PEER, PEER_OF_NO_PLACEMENT, PeerAnswer, PeerAsk};
use crate::placement::KeyHash;
use crate::problem::{Problem, TYPE_PREFIX};
use crate::proxy::blocks::Blocks;
use crate::proxy::body::ResponseBody;
use crate::proxy::respond::{FOREBAY_DURABILITY, Failure, response};
use crate::proxy::served::{Home, HomeMember, ServedVolume};
use crate::resource::Revision;
use crate::routing::Holders;

/// When to come back to a member that gave no answer.
const OWNER_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// What another member says of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// It has it.
    There,
    /// It was deleted there, and the store may not have heard of it.
    Absent,
    /// It holds nothing of it.
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

/// By which placement the other member that asks goes; `None`: it does not matter to it, or nobody else asks.
fn placed_there(parts: &Parts) -> Option<Revision> {
    let value = parts.headers.get(FOREBAY_PEER)?;
    let placed = value.to_str().ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default();
    (placed != PEER_OF_NO_PLACEMENT).then_some(placed)
}

pub(super) fn unreachable(words: String) -> Failure {
    Failure::new(Problem::OwnerUnreachable, words).retry_after(OWNER_RETRY)
}

pub(super) fn deleted() -> Failure {
    Failure::new(Problem::NoSuchBlock, "it was deleted; the origin has not heard of it yet")
}

/// Who takes a write.
pub(super) enum Writer<'a> {
    /// This node, once each of these has said that nothing of the key is dirty there; one where something is takes it.
    Here(Vec<&'a HomeMember>),
    /// Another one.
    At(&'a HomeMember),
    /// This node, if something of the key is dirty here: the member whose key it is asks.
    HereOverDirty,
}

impl<B: Blocks> Handler<B> {
    /// Whom a write is for.
    pub(super) fn writer<'a>(
        &self,
        parts: &Parts,
        volume: &'a ServedVolume,
        key: &BlockKey,
    ) -> Result<Writer<'a>, Failure> {
        let Some(home) = volume.home.as_deref() else { return Ok(Writer::Here(Vec::new())) };
        self.check_agreed(parts, home)?;
        let first = match home.first(&key.volume, &key.key) {
            None if home.is_alone() => return Ok(Writer::Here(Vec::new())),
            None => return Err(unreachable("no member of the volume's home group is up".to_owned())),
            Some(first) => first,
        };
        if Some(first) == home.own() {
            // Without placements nobody can be asked to give a key up.
            let holders = if home.holders.is_some() { home.holders(key) } else { Vec::new() };
            return Ok(Writer::Here(holders));
        }
        if is_peer(parts) { Ok(Writer::HereOverDirty) } else { Ok(Writer::At(first)) }
    }

    /// Whether both go by the same placement, if another member asks: else each might take a key for its own, or neither.
    pub(super) fn check_agreed(&self, parts: &Parts, home: &Home) -> Result<(), Failure> {
        let Some(there) = placed_there(parts) else { return Ok(()) };
        let everywhere = self.served.borrow().all.agreed.placed();
        if there == home.placed() && there == everywhere {
            return Ok(());
        }
        Err(unreachable(format!(
            "this member goes by placement {everywhere} of the group's keys and the one that asks by {there}: it changes"
        )))
    }

    /// Whether the key that was found to be this node's still is: asked last of all, before its shard gets the write.
    pub(super) fn check_still(&self, volume: &ServedVolume) -> Result<(), Failure> {
        let placed = |volume: &ServedVolume| volume.home.as_deref().map(Home::placed);
        let served = self.served.borrow();
        match served.volumes.get(&volume.settings.name) {
            Some(now) if placed(now) == placed(volume) => Ok(()),
            _ => Err(unreachable("the group's members change just now".to_owned())),
        }
    }

    /// The answer of whichever of `holders` has something of the key dirty, which it decides about; `None`: none of them has.
    pub(super) async fn over_dirty(
        &self,
        parts: &Parts,
        volume: &ServedVolume,
        holders: &[&HomeMember],
        method: Method,
        key: &BlockKey,
        body: &[Bytes],
    ) -> Result<Option<Response<ResponseBody<B>>>, Failure> {
        for holder in holders {
            let answer = self.hand(parts, volume, holder, method.clone(), key, body.to_vec()).await?;
            if answer.status != StatusCode::MISDIRECTED_REQUEST {
                return Ok(Some(self.relayed(answer)));
            }
        }
        Ok(None)
    }

    /// Has a write done by the member that it is for.
    pub(super) async fn forward(
        &self,
        parts: &Parts,
        volume: &ServedVolume,
        to: &HomeMember,
        method: Method,
        key: &BlockKey,
        body: Vec<Bytes>,
    ) -> Answer<B> {
        let answer = self.hand(parts, volume, to, method, key, body).await?;
        if answer.status == StatusCode::MISDIRECTED_REQUEST {
            return Err(unreachable(format!("{} has another routing: it changes", to.name)));
        }
        Ok(self.relayed(answer))
    }

    async fn hand(
        &self,
        parts: &Parts,
        volume: &ServedVolume,
        to: &HomeMember,
        method: Method,
        key: &BlockKey,
        body: Vec<Bytes>,
    ) -> Result<PeerAnswer, Failure> {
        let mut headers = passed_on(parts, &[AUTHORIZATION, IF_MATCH, IF_NONE_MATCH, FOREBAY_DURABILITY]);
        if let Some(digest) = parts.headers.get("content-digest") {
            headers.insert("content-digest", digest.clone());
        }
        let ask = PeerAsk { body, ..question(volume, to, method, key, headers) };
        self.ask(ask).await.map_err(unreachable)
    }

    /// What another member answered to a write, as this node's answer.
    fn relayed(&self, answer: PeerAnswer) -> Response<ResponseBody<B>> {
        let (body, names) = match answer.status.is_success() {
            true => (ResponseBody::Empty, [ETAG, FOREBAY_DURABILITY]),
            false => (ResponseBody::bytes(answer.body, &self.metrics), [CONTENT_TYPE, RETRY_AFTER]),
        };
        let mut relayed = response(answer.status, body);
        for name in names {
            if let Some(value) = answer.headers.get(&name) {
                relayed.headers_mut().insert(name, value.clone());
            }
        }
        relayed
    }

    /// A block that this node does not have and the store does not give, from the member that holds it; `None`: nobody has anything of it.
    ///
    /// # Errors
    /// It was deleted, or one that may hold it can't be asked.
    pub(super) async fn elsewhere(
        &self,
        parts: &Parts,
        volume: &ServedVolume,
        key: &BlockKey,
    ) -> Result<Option<FillStream>, Failure> {
        let Some(home) = volume.home.as_deref().filter(|_| !is_peer(parts)) else { return Ok(None) };
        let others = home.holders(key);
        let said = join_all(others.iter().map(|member| self.said(parts, volume, member, key))).await;
        // Whoever has it dirty, deleted or not, is one alone: beside a delete another has at most an old copy.
        if said.contains(&Said::Absent) && home.holders.is_some() {
            return Err(deleted());
        }
        if let Some(at) = said.iter().position(|said| *said == Said::There) {
            return self.fetched(parts, volume, others[at], key).await.map(Some);
        }
        let silent = said.into_iter().find_map(|said| if let Said::Nothing(words) = said { Some(words) } else { None });
        silent.map_or(Ok(None), |words| Err(unreachable(words)))
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
        let ask = PeerAsk { body_bytes_max, ..question(volume, from, Method::GET, key, headers) };
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

    /// What those who may hold it say of a block that the store has.
    pub(super) async fn holder(&self, parts: &Parts, volume: &ServedVolume, key: &BlockKey) -> Holder {
        let Some(home) = volume.home.as_deref().filter(|_| !is_peer(parts)) else { return Holder::Agrees };
        if home.first(&key.volume, &key.key).is_none() && !home.is_alone() {
            return Holder::Unasked;
        }
        // Who may have deleted it; without placements only the first can be told from the others, who have copies.
        let mut holders = home.holders(key);
        if home.holders.is_none() {
            holders.retain(|member| home.first(&key.volume, &key.key) == Some(*member));
        }
        let told = join_all(holders.iter().map(|member| self.told_of(parts, volume, member, key))).await;
        told.into_iter().fold(Holder::Agrees, |all, one| match (all, one) {
            (Holder::Deleted, _) | (_, Holder::Deleted) => Holder::Deleted,
            (Holder::Unasked, _) | (_, Holder::Unasked) => Holder::Unasked,
            (Holder::Agrees, Holder::Agrees) => Holder::Agrees,
        })
    }

    async fn told_of(&self, parts: &Parts, volume: &ServedVolume, member: &HomeMember, key: &BlockKey) -> Holder {
        let headers = passed_on(parts, &[AUTHORIZATION]);
        match self.ask(question(volume, member, Method::HEAD, key, headers)).await {
            Ok(answer) if answer.status.is_success() => Holder::Agrees,
            // The body of a 404 says of what.
            Ok(answer) if answer.status == StatusCode::NOT_FOUND => match self.said(parts, volume, member, key).await {
                Said::There | Said::NotHere => Holder::Agrees,
                Said::Absent => Holder::Deleted,
                Said::Nothing(_) => Holder::Unasked,
            },
            _ => Holder::Unasked,
        }
    }

    async fn said(&self, parts: &Parts, volume: &ServedVolume, member: &HomeMember, key: &BlockKey) -> Said {
        let mut headers = passed_on(parts, &[AUTHORIZATION]);
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        match self.ask(question(volume, member, Method::GET, key, headers)).await {
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

fn question(volume: &ServedVolume, to: &HomeMember, method: Method, key: &BlockKey, headers: HeaderMap) -> PeerAsk {
    let encoded = utf8_percent_encode(&key.key, NON_ALPHANUMERIC);
    PeerAsk {
        address: to.address.clone(),
        tls_name: to.tls_name.clone(),
        method,
        path: format!("/v1/volumes/{}/blocks/{encoded}", key.volume),
        headers,
        body: Vec::new(),
        body_bytes_max: 1,
        placed: volume.home.as_deref().map_or(PEER_OF_NO_PLACEMENT, Home::placed),
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
        let at = KeyHash::of(volume, key).first(&self.up)?;
        self.members.iter().find(|member| member.id == self.up[at].id)
    }

    fn own(&self) -> Option<&HomeMember> {
        self.members.iter().find(|member| Some(member.id) == self.own)
    }

    /// The placement of its keys that this node goes by; 0: none.
    fn placed(&self) -> Revision {
        self.holders.as_ref().map_or(0, Holders::placed)
    }

    /// Whether this node is all of it.
    fn is_alone(&self) -> bool {
        self.members.iter().all(|member| Some(member.id) == self.own)
    }

    /// Who else may hold of a key what the store does not have.
    fn holders(&self, key: &BlockKey) -> Vec<&HomeMember> {
        let others = self.members.iter().filter(|member| Some(member.id) != self.own);
        match &self.holders {
            None => others.filter(|member| member.may_hold).collect(),
            Some(holders) => {
                let ids = holders.of(KeyHash::of(&key.volume, &key.key));
                others.filter(|member| ids.contains(&member.id)).collect()
            }
        }
    }
}
