//! PUT and DELETE: to the one member that a write-back volume's write may go to, or to any that answers where the store decides.
//!
//! Part of `client`. An attempt whose outcome is not known is repeated, for a put of the same bytes changes nothing twice; a condition that fails only because
//! the first attempt succeeded is settled by looking. What a delete leaves at other members (clean copies, or a dirty one from before a change of
//! membership) is dropped there too, as far as they can be reached.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::{Method, StatusCode};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::{Body, RequestBuilder};
use tokio::task::JoinSet;
use tokio::time::Instant;
use twox_hash::XxHash3_128;

use super::answer::{self, Meaning, Said};
use super::bypass::StoreOutcome;
use super::error::ClientError;
use super::member::PING_TIMEOUT;
use super::net::Net;
use super::plan::{self, Place};
use super::read::Via;
use super::sending::{Sending, Sent};
use super::{Client, Inner};
use crate::breaker::Leave;
use crate::placement::KeyHash;
use crate::resource::{Bypass as BypassRule, Durability, WriteMode};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const FOREBAY_DURABILITY: HeaderName = HeaderName::from_static("forebay-durability");
/// Rounds over the planned members.
const ROUNDS_MAX: u32 = 4;
/// The pause after the first round is random below this; each further bound is twice as long.
const PAUSE_BASE: Duration = Duration::from_millis(150);
/// However long a member asks to stay away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3);
/// For dropping what a delete leaves elsewhere.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Under which condition to put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PutCondition {
    /// The volume's own: in an immutable one, the same bytes or none.
    #[default]
    Any,
    /// Nothing has the key.
    Absent,
    /// The block has this ETag (without quotes).
    Matches(String),
}

/// A put that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutDone {
    /// The digest.
    pub etag: String,
    /// Where it lies at least: `disk`, `peer` or `origin`.
    pub durability: String,
    /// Whether it was there already.
    pub unchanged: bool,
    /// Who took it.
    pub via: Via,
}

/// Why no attempt succeeded.
struct Failed {
    words: String,
    /// Whether a member answered at all, if only to decline.
    was_answered: bool,
    /// Whether an attempt may have taken effect.
    in_doubt: bool,
}

impl Client {
    /// Stores a block; resolves when it is as durable as the volume says, or as `durability` asks.
    ///
    /// # Errors
    /// [`ClientError`]. After [`ClientError::Unavailable`] and [`ClientError::OwnerUnreachable`] it may have been stored all the same.
    pub async fn put(
        &self,
        key: &str,
        body: Bytes,
        condition: PutCondition,
        durability: Option<Durability>,
    ) -> Result<PutDone, ClientError> {
        self.put_watched(key, body, condition, durability, &Sent::default()).await
    }

    /// As [`Client::put`]; meanwhile `sent` tells how much of the body has gone out to a member.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put_watched(
        &self,
        key: &str,
        body: Bytes,
        condition: PutCondition,
        durability: Option<Durability>,
        sent: &Sent,
    ) -> Result<PutDone, ClientError> {
        let etag = format!("{:032x}", XxHash3_128::oneshot(&body));
        let sha256 = STANDARD.encode(digest(&SHA256, &body).as_ref());
        let build = |request: RequestBuilder| {
            let sending = Body::wrap(Sending::new(body.clone(), sent));
            let mut request = request.header(CONTENT_DIGEST, format!("sha-256=:{sha256}:")).body(sending);
            request = match &condition {
                PutCondition::Any => request,
                PutCondition::Absent => request.header(IF_NONE_MATCH, "*"),
                PutCondition::Matches(etag) => request.header(IF_MATCH, format!("\"{etag}\"")),
            };
            match durability {
                Some(Durability::Disk) => request.header(FOREBAY_DURABILITY, "disk"),
                Some(Durability::Peer) => request.header(FOREBAY_DURABILITY, "peer"),
                Some(Durability::Origin) => request.header(FOREBAY_DURABILITY, "origin"),
                None => request,
            }
        };
        match self.inner.write(Method::PUT, key, &build).await {
            Ok((net, place, headers, status)) => {
                if answer::etag(&headers).as_deref() != Some(&*etag) {
                    return Err(ClientError::Corrupt(format!("{key}: the member received other bytes than were sent")));
                }
                let durability = headers.get(FOREBAY_DURABILITY).and_then(|value| value.to_str().ok());
                let durability = durability.unwrap_or("disk").to_owned();
                Ok(PutDone { etag, durability, unchanged: status == StatusCode::OK, via: net.via(place) })
            }
            Err(Outcome::Final(ClientError::PreconditionFailed, true)) if condition == PutCondition::Absent => {
                // Perhaps it failed because our first attempt succeeded.
                let net = self.inner.net();
                let there = self.head(key).await?;
                if there.etag != etag {
                    return Err(ClientError::PreconditionFailed);
                }
                // Only this much is known of a put whose answer was lost.
                let durability = if net.volume.write == WriteMode::Through { "origin" } else { "disk" };
                Ok(PutDone { etag, durability: durability.to_owned(), unchanged: false, via: there.via })
            }
            Err(Outcome::Final(error, _)) => Err(error),
            Err(Outcome::Failed(failed)) => {
                self.inner.put_in_store(&self.inner.net(), key, &body, &condition, etag, failed).await
            }
        }
    }

    /// Deletes a block; that there was none is success.
    ///
    /// # Errors
    /// [`ClientError`]. After [`ClientError::Unavailable`] and [`ClientError::OwnerUnreachable`] it may have been deleted all the same.
    pub async fn delete(&self, key: &str) -> Result<(), ClientError> {
        match self.inner.write(Method::DELETE, key, &|request| request).await {
            Ok((net, place, _, _)) => {
                self.inner.sweep(&net, key, Some(place)).await;
                Ok(())
            }
            Err(Outcome::Final(error, _)) => Err(error),
            Err(Outcome::Failed(failed)) => {
                let net = self.inner.net();
                let may_bypass = net.volume.write == WriteMode::Through && !failed.was_answered;
                if may_bypass && let Ok(store) = self.inner.bypass(&net, BypassRule::Always).await {
                    store.delete(key).await?;
                    self.inner.counters.bypassed_writes.fetch_add(1, Ordering::Relaxed);
                    self.inner.sweep(&net, key, None).await;
                    return Ok(());
                }
                Err(self.inner.given_up(&net, failed))
            }
        }
    }
}

/// Who is asked in a round.
#[derive(Clone, Copy)]
enum Whom {
    Answering,
    First,
}

/// How a write ended that no member acknowledged.
enum Outcome {
    /// For good; and whether an earlier attempt may have taken effect.
    Final(ClientError, bool),
    /// For now.
    Failed(Failed),
}

impl Inner {
    /// Sends what `build` makes of a request, until a member acknowledges it.
    async fn write(
        &self,
        method: Method,
        key: &str,
        build: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
    ) -> Result<(Arc<Net>, Place, HeaderMap, StatusCode), Outcome> {
        let until = Instant::now() + self.settings.deadline;
        let mut failed =
            Failed { words: "no member that could take it is up".to_owned(), was_answered: false, in_doubt: false };
        self.budget.earn();
        loop {
            match self.rounds(&method, key, build, until, failed).await {
                Err(Outcome::Failed(again)) if Instant::now() < until && self.has_come_back(&again).await => {
                    failed = again
                }
                outcome => return outcome,
            }
        }
    }

    /// Whether a write that nobody answered has somebody to take it after all: one that came back after its turn.
    async fn has_come_back(&self, failed: &Failed) -> bool {
        let net = self.net();
        net.volume.write == WriteMode::Through && !failed.was_answered && does_anybody_answer(&net).await
    }

    /// Asks who may take a write, a few times. Each round goes by the routing of its time.
    async fn rounds(
        &self,
        method: &Method,
        key: &str,
        build: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
        until: Instant,
        mut failed: Failed,
    ) -> Result<(Arc<Net>, Place, HeaderMap, StatusCode), Outcome> {
        for round in 0..ROUNDS_MAX {
            let mut pause = PAUSE_BASE * (1 << round);
            let net = self.net();
            let selected = self.selected(&net).await;
            let places = plan::writers(&net.volume, &net.groups, selected, KeyHash::of(&self.volume, key));
            if places.is_empty() {
                return Err(Outcome::Failed(failed));
            }
            let mut attempts = 0;
            // Who answered in an earlier round may have died since.
            failed.was_answered = false;
            // Those that are not passed by; if all are, the first in rank: perhaps it has just come back.
            let each = places.iter().map(|place| (place, Whom::Answering));
            for (place, whom) in each.chain(places.first().map(|place| (place, Whom::First))) {
                let member = net.member(*place);
                let is_asked = match whom {
                    Whom::Answering => places.len() > 1 && member.leave() != Leave::Refused,
                    Whom::First => attempts == 0,
                };
                if !is_asked {
                    continue;
                }
                if attempts + round > 0 && !self.further_attempt() {
                    return Err(Outcome::Failed(failed));
                }
                attempts += 1;
                let request = member.block_request(method.clone(), key);
                let request = request.map_err(|error| Outcome::Final(error, failed.in_doubt))?;
                let response = match member.send(build(request), until).await {
                    Ok(response) => response,
                    Err(trouble) => {
                        failed.in_doubt |= trouble.was_sent;
                        failed.words = trouble.words;
                        continue;
                    }
                };
                failed.was_answered = true;
                let (status, headers) = (response.status(), response.headers().clone());
                if status.is_success() {
                    return Ok((Arc::clone(&net), *place, headers, status));
                }
                // A store that took too long may have it all the same.
                failed.in_doubt |= status.is_server_error();
                let said = Said::of(&member.small_body(response).await);
                match answer::of_write(status, &said) {
                    Meaning::Final(error) => return Err(Outcome::Final(error, failed.in_doubt)),
                    Meaning::Elsewhere(words) => failed.words = format!("member {}: {words}", member.routed.name),
                    Meaning::Absent => {
                        failed.words = format!("member {} answers {status} to a write", member.routed.name)
                    }
                }
                pause = pause.max(answer::retry_after(&headers, RETRY_AFTER_MAX).unwrap_or_default());
            }
            let pause = pause.mul_f64(0.5 + SmallRng::from_os_rng().random::<f64>() / 2.0);
            if round + 1 == ROUNDS_MAX || Instant::now() + pause >= until {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Err(Outcome::Failed(failed))
    }

    /// No member took the block: the store, if the volume allows it and indeed nobody answers.
    async fn put_in_store(
        &self,
        net: &Arc<Net>,
        key: &str,
        body: &Bytes,
        condition: &PutCondition,
        etag: String,
        failed: Failed,
    ) -> Result<PutDone, ClientError> {
        // Without a home group, or while one of its members lives, a write has its place and waits for it.
        if failed.was_answered || matches!(condition, PutCondition::Matches(_)) || does_anybody_answer(net).await {
            return Err(self.given_up(net, failed));
        }
        let Ok(store) = self.bypass(net, BypassRule::Always).await else { return Err(self.given_up(net, failed)) };
        if body.len() as u64 > u64::from(net.routing.volume.block_size) {
            return Err(ClientError::Refused("the block is larger than the volume allows".to_owned()));
        }
        if net.routing.volume.read_only {
            return Err(ClientError::Refused("the volume is read-only".to_owned()));
        }
        let unchanged = match store.put(key, body).await? {
            StoreOutcome::Created => false,
            // In doubt: what is there may be ours.
            StoreOutcome::Unchanged if *condition == PutCondition::Absent && !failed.in_doubt => {
                return Err(ClientError::PreconditionFailed);
            }
            StoreOutcome::Unchanged => true,
            StoreOutcome::Exists if *condition == PutCondition::Absent => return Err(ClientError::PreconditionFailed),
            StoreOutcome::Exists => return Err(ClientError::KeyExists),
        };
        self.counters.bypassed_writes.fetch_add(1, Ordering::Relaxed);
        Ok(PutDone { etag, durability: "origin".to_owned(), unchanged, via: Via::Store })
    }

    fn given_up(&self, net: &Net, failed: Failed) -> ClientError {
        if net.volume.write == WriteMode::Back && !failed.was_answered {
            self.owner_unreachable(failed.words)
        } else {
            ClientError::Unavailable(failed.words)
        }
    }

    /// Drops what other members have of a deleted block. A copy that is dirty there, from before a change of membership, is deleted there too.
    /// Where no member did the delete, those that are passed by are asked as well: they may be back, with a copy that would be read for ever.
    async fn sweep(&self, net: &Arc<Net>, key: &str, done: Option<Place>) {
        let mut tasks = JoinSet::new();
        let until = Instant::now() + SWEEP_TIMEOUT;
        for (at, members) in net.members.iter().enumerate() {
            for (position, member) in members.iter().enumerate() {
                if Some((at, position)) == done || (done.is_some() && member.is_passed_by()) {
                    continue;
                }
                let (member, key) = (Arc::clone(member), key.to_owned());
                tasks.spawn(async move {
                    let Ok(answer) = member.send(member.purge_request(&key), until).await else { return };
                    if answer.status() != StatusCode::CONFLICT {
                        return;
                    }
                    let Ok(delete) = member.block_request(Method::DELETE, &key) else { return };
                    match member.send(delete, until).await {
                        Ok(answer) if answer.status().is_success() => {}
                        Ok(answer) => {
                            tracing::warn!(key, status = %answer.status(), "a dirty copy could not be deleted")
                        }
                        Err(trouble) => {
                            tracing::warn!(key, trouble = trouble.words, "a dirty copy could not be deleted")
                        }
                    }
                });
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl Net {
    fn via(&self, place: Place) -> Via {
        Via::Member {
            group: self.groups[place.0].name.clone(),
            member: self.member(place).routed.name.clone(),
            cache_status: String::new(),
        }
    }
}

/// Whether any member answers a ping, whatever its circuit says.
async fn does_anybody_answer(net: &Arc<Net>) -> bool {
    let mut tasks = JoinSet::new();
    for at in 0..net.groups.len() {
        for member in net.expected(at) {
            tasks.spawn(async move { member.ping(PING_TIMEOUT).await.is_ok() });
        }
    }
    while let Some(answered) = tasks.join_next().await {
        if matches!(answered, Ok(true)) {
            return true;
        }
    }
    false
}
