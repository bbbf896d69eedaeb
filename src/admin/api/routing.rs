//! The routing document of a volume, and the wait for its next revision.
//!
//! `since` names the revision that the asker has: another one is answered at once, also a lower one, the same one when it changes or with 304
//! after `wait`. Invariant: a change that is acknowledged is seen by whoever waits; the waiter notes what it knows before it looks.
//! A signed document is kept until its volume's revision changes, so that a thousand waiters cost one signature.

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
use crate::admin::registry::{RegistryError, looked};
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

/// Signed documents, by volume.
#[derive(Default)]
pub struct SignedRoutings(Mutex<HashMap<String, Signed>>);

#[derive(Clone)]
struct Signed {
    revision: Revision,
    document: Bytes,
}

/// Its route.
pub fn route() -> Route {
    let told = Told::new(
        "routing".to_owned(),
        "routing",
        "What the volume's clients and proxies are told, as a JWS signed by the current key.",
    )
    .asks("since", "The revision that the asker has: its document is not sent again.")
    .asks("wait", "How long to wait for another one, such as 30s; at most 60s. Default: not at all.")
    .answers_as(200, MEDIA_TYPE, Shape::of::<crate::routing::Routing>())
    .answers(304, Shape::nothing())
    .problems(&[400, 404]);
    Route { method: Method::GET, path: "/v1/volumes/{volume}/routing", need: Need::Volume, work: Work::Routing, told }
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
        app.admit(Need::Volume, &call)?;
        let (volume, now) = (call.parameter("volume").to_owned(), (app.clock)());
        let absent = || RegistryError::NotFound(format!("volume {volume}"));
        let revision = looked(&*app.registry, |view| view.routing_revision(&volume))?.ok_or_else(absent)?;
        if since == Some(revision) {
            return Ok(Seen::Same);
        }
        if let Some(signed) = app.signed.kept(&volume, revision) {
            return Ok(Seen::News(signed));
        }
        // Document and key are of one moment; its revision may be a later one than was seen above.
        let (routing, key) = looked(&*app.registry, |view| {
            Ok((routing_view::gather(view, &volume, now)?.ok_or_else(absent)?, keys::current(view)?))
        })?;
        let document = routing.sign(&key).map_err(|error| RegistryError::Storage(Box::new(error)))?;
        let signed = Signed { revision: routing.revision, document: document.into() };
        app.signed.keep(&volume, signed.clone());
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
    fn kept(&self, volume: &str, revision: Revision) -> Option<Signed> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(volume).filter(|signed| signed.revision == revision).cloned()
    }

    fn keep(&self, volume: &str, signed: Signed) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(volume);
        let bytes = kept.values().map(|signed| signed.document.len()).sum::<usize>() + signed.document.len();
        if kept.len() >= SIGNED_MAX || bytes > SIGNED_BYTES_MAX {
            kept.clear();
        }
        kept.insert(volume.to_owned(), signed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_documents_are_bounded_in_bytes() {
        let signed = SignedRoutings::default();
        let document = Bytes::from(vec![b'x'; SIGNED_BYTES_MAX / 4]);
        for number in 0..20 {
            signed.keep(&format!("v-{number}"), Signed { revision: number, document: document.clone() });
            let kept = (0..=number).filter(|&number| signed.kept(&format!("v-{number}"), number).is_some()).count();
            assert!((1..=4).contains(&kept), "{kept} of {} bytes each", document.len());
        }
    }
}
