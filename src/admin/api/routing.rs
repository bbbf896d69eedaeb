//! The routing documents of volumes and of groups, and the wait for their next revision.
//!
//! `since` names the revision that the asker has: another one is answered at once, also a lower one, the same one when it changes or with 304
//! after `wait`. Invariant: a change that is acknowledged is seen by whoever waits; the waiter notes what it knows before it looks.
//! A signed document is kept until its subject's revision changes, so that a thousand waiters cost one signature.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::document::{Shape, Told};
use super::fault::Fault;
use super::{App, Call, Need, Reply, Route, Stage, Work, etag, parse_etag};
use crate::admin::registry::{RegistryError, View, looked};
use crate::admin::{keys, routing_view};
use crate::config::units::Time;
use crate::resource::Revision;
use crate::routing::MEDIA_TYPE;

/// The longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Those who wait, at most; HTTP/2 lets one connection wait many times.
pub(super) const WAITS_MAX: usize = 16_384;
/// Signed documents kept.
const SIGNED_MAX: usize = 1_024;
/// And their bytes.
const SIGNED_BYTES_MAX: usize = 64 << 20;

/// Signed documents, by what they are of.
#[derive(Default)]
pub struct SignedRoutings(Mutex<HashMap<Subject, Signed>>);

/// What a document is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    /// A volume, for its clients.
    Volume(String),
    /// A group, for its members.
    Group(String),
}

#[derive(Clone)]
struct Signed {
    revision: Revision,
    document: Bytes,
}

/// Their routes.
pub fn routes() -> [Route; 2] {
    let told = |name: &str, what: &str, shape: Shape| {
        Told::new(name.to_owned(), "routing", what)
            .asks("since", "The revision that the asker has: its document is not sent again.")
            .asks("wait", "How long to wait for another one, such as 30s; at most 60s. Default: not at all.")
            .answers_as(200, MEDIA_TYPE, shape)
            .answers(304, Shape::nothing())
            .problems(&[400, 404])
    };
    let of_volume = told(
        "routing",
        "What the volume's clients are told, as a JWS signed by the oldest key.",
        Shape::of::<crate::routing::Routing>(),
    );
    let of_group = told(
        "group_routing",
        "What the group's members are told, as a JWS signed by the oldest key.",
        Shape::of::<crate::routing::GroupRouting>(),
    );
    let route = |path, need, told| Route { method: Method::GET, path, need, work: Work::Routing, told };
    [
        route("/v1/volumes/{volume}/routing", Need::Volume, of_volume),
        route("/v1/groups/{group}/routing", Need::Group, of_group),
    ]
}

impl Subject {
    /// What the request's path names.
    fn of(call: &Call) -> Subject {
        match call.parameter("group") {
            "" => Subject::Volume(call.parameter("volume").to_owned()),
            group => Subject::Group(group.to_owned()),
        }
    }

    fn need(&self) -> Need {
        match self {
            Subject::Volume(_) => Need::Volume,
            Subject::Group(_) => Need::Group,
        }
    }

    fn absent(&self) -> RegistryError {
        RegistryError::NotFound(match self {
            Subject::Volume(name) => format!("volume {name}"),
            Subject::Group(name) => format!("group {name}"),
        })
    }

    fn revision(&self, view: &dyn View) -> Result<Revision, RegistryError> {
        let revision = match self {
            Subject::Volume(name) => view.routing_revision(name)?,
            Subject::Group(name) => view.group_marks(name)?.map(|marks| marks.routing),
        };
        revision.ok_or_else(|| self.absent())
    }

    /// Document and key are of one moment; its revision may be a later one than was seen before.
    fn sign(&self, view: &dyn View, now: u64) -> Result<Signed, RegistryError> {
        let key = keys::oldest(view)?;
        let (revision, signed) = match self {
            Subject::Volume(name) => {
                let routing = routing_view::gather(view, name, now)?.ok_or_else(|| self.absent())?;
                (routing.revision, routing.sign(&key))
            }
            Subject::Group(name) => {
                let routing = routing_view::gather_group(view, name, now)?.ok_or_else(|| self.absent())?;
                (routing.revision, routing.sign(&key))
            }
        };
        let document = signed.map_err(|error| RegistryError::Storage(Box::new(error)))?;
        Ok(Signed { revision, document: document.into() })
    }
}

/// Answers at once, or when there is news, or when the wait is over.
pub(super) async fn wait(app: &Arc<App>, call: Arc<Call>) -> Result<Reply, Fault> {
    let (since, wait) = asked(&call)?;
    let until = Instant::now() + wait;
    let mut place = None;
    let mut changes = app.revision.subscribe();
    let mut stopping = app.stopping.clone();
    loop {
        // Before the look: a change that comes after it wakes us.
        changes.mark_unchanged();
        if let Seen::News(signed) = look(app, &call, since).await? {
            return Ok(reply(signed));
        }
        if place.is_none() && !wait.is_zero() {
            place = Some(app.waits.try_acquire().map_err(|_| Fault::too_many_wait())?);
        }
        let woken = timeout_at(until, async {
            tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                _ = stopping.wait_for(|stage| *stage == Stage::Stopping) => false,
            }
        });
        if !matches!(woken.await, Ok(true)) {
            let known = since.map_or_else(|| HeaderValue::from_static("\"0\""), etag);
            return Ok(Reply::empty(StatusCode::NOT_MODIFIED).with(ETAG, known));
        }
    }
}

fn asked(call: &Call) -> Result<(Option<Revision>, Duration), Fault> {
    const KNOWN: [&str; 2] = ["since", "wait"];
    let since = match call.query("since", &KNOWN)? {
        Some(text) => Some(text.parse().map_err(|_| Fault::bad_query("since", "is no revision: write digits"))?),
        None => {
            let tag = call.headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
            tag.and_then(|tag| parse_etag(tag.trim()))
        }
    };
    let wait = match call.query("wait", &KNOWN)? {
        Some(text) => text.parse::<Time>().map_err(|error| Fault::bad_query("wait", &error.to_string()))?.0,
        None => Duration::ZERO,
    };
    Ok((since, wait.min(WAIT_MAX)))
}

enum Seen {
    News(Signed),
    Same,
}

/// Looks into the registry, on a thread that may block; each time for one whose token is still good.
async fn look(app: &Arc<App>, call: &Arc<Call>, since: Option<Revision>) -> Result<Seen, Fault> {
    let (app, call) = (Arc::clone(app), Arc::clone(call));
    let looking = tokio::task::spawn_blocking(move || {
        let (subject, now) = (Subject::of(&call), (app.clock)());
        app.admit(subject.need(), &call)?;
        let revision = looked(&*app.registry, |view| subject.revision(view))?;
        if since == Some(revision) {
            return Ok(Seen::Same);
        }
        if let Some(signed) = app.signed.kept(&subject, revision) {
            return Ok(Seen::News(signed));
        }
        let signed = looked(&*app.registry, |view| subject.sign(view, now))?;
        app.signed.keep(subject, signed.clone());
        Ok::<_, Fault>(Seen::News(signed))
    });
    looking.await.map_err(|_| Fault::internal())?
}

fn reply(signed: Signed) -> Reply {
    let headers = HeaderMap::new();
    Reply { status: StatusCode::OK, headers, media_type: MEDIA_TYPE, body: signed.document }
        .with(ETAG, etag(signed.revision))
        .with(CACHE_CONTROL, HeaderValue::from_static("no-cache"))
}

impl SignedRoutings {
    fn kept(&self, subject: &Subject, revision: Revision) -> Option<Signed> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(subject).filter(|signed| signed.revision == revision).cloned()
    }

    fn keep(&self, subject: Subject, signed: Signed) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(&subject);
        let bytes = kept.values().map(|signed| signed.document.len()).sum::<usize>() + signed.document.len();
        if kept.len() >= SIGNED_MAX || bytes > SIGNED_BYTES_MAX {
            kept.clear();
        }
        kept.insert(subject, signed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_documents_are_bounded_in_bytes() {
        let signed = SignedRoutings::default();
        let volume = |number: u64| Subject::Volume(format!("v-{number}"));
        let document = Bytes::from(vec![b'x'; SIGNED_BYTES_MAX / 4]);
        for number in 0..20 {
            signed.keep(volume(number), Signed { revision: number, document: document.clone() });
            let kept = (0..=number).filter(|&number| signed.kept(&volume(number), number).is_some()).count();
            assert!((1..=4).contains(&kept), "{kept} of {} bytes each", document.len());
        }
    }
}
