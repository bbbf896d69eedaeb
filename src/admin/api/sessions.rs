//! Session credentials for a volume's clients: `GET /v1/volumes/{volume}/credentials`.
//!
//! Takes the token that opens the volume, and gives what the volume's `bypass` lets a client do by itself: nothing, read, or write too if the token and the volume allow that;
//! and no longer than the token lasts.
//! The keys that the store's record refers to are read here, on this machine, and assume its role (`sts`). Nothing of it is kept.

use std::sync::Arc;

use http::header::CACHE_CONTROL;
use http::{HeaderValue, Method, StatusCode};

use super::document::{Shape, Told};
use super::fault::Fault;
use super::{App, Call, Need, Reply, Route, Work};
use crate::admin::keys::Caller;
use crate::admin::registry::{Record, RecordId, RegistryError, looked};
use crate::admin::sts::{Deletes, Wish, policy};
use crate::origin::{CredentialSource, Keys};
use crate::resource::{Bypass, Store, Volume, WriteMode};
use crate::routing::session::SessionCredentials;
use crate::token::Right;

/// Questions to STSs at once.
pub(super) const QUESTIONS_MAX: usize = 32;
/// How long a session lasts if the store's record does not say.
const SECONDS: u32 = 3_600;
/// Most STSs give none for less.
const SECONDS_MIN: u32 = 900;

/// Its route.
pub fn routes() -> [Route; 1] {
    let told = Told::new(
        "volume_credentials".to_owned(),
        "routing",
        "Keys for the volume's prefix in its store that end soon, for clients that must do without proxies.",
    );
    let told = told.answers(200, Shape::of::<SessionCredentials>()).problems(&[404, 502, 503]);
    [Route {
        method: Method::GET,
        path: "/v1/volumes/{volume}/credentials",
        need: Need::Volume,
        work: Work::Sessions,
        told,
    }]
}

/// What an STS is to be asked for.
struct Asked {
    store: Store,
    volume: Volume,
    subject: String,
    right: Right,
    seconds: u32,
    keys: Keys,
}

/// Has a session made.
pub(super) async fn give(app: &Arc<App>, call: Call) -> Result<Reply, Fault> {
    let (looking, now) = (Arc::clone(app), call.now);
    let asked = tokio::task::spawn_blocking(move || look(&looking, &call)).await.map_err(|_| Fault::internal())??;
    let Asked { store, volume, subject, right, seconds, keys } = asked;
    let absent = || no_sts(&store);
    let _place = app.questions.try_acquire().map_err(|_| Fault::too_many_wait())?;
    let deletes = if volume.write == WriteMode::Through { Deletes::Allowed } else { Deletes::Refused };
    let wish = Wish {
        endpoint: store.sts_endpoint.as_deref().ok_or_else(absent)?,
        region: &store.region,
        role: store.sts_role.as_deref().ok_or_else(absent)?,
        seconds,
        name: &subject,
        policy: &policy(&store.bucket, &volume.prefix, right, deletes),
        right,
    };
    let given = app.sts.assume(&wish, &keys, now).await.map_err(|words| Fault::sts(&store.name, &words))?;
    tracing::info!(
        volume = volume.name,
        subject,
        ?right,
        expires_at = given.expires_at,
        "session credentials were given"
    );
    Ok(Reply::json(StatusCode::OK, &given).with(CACHE_CONTROL, HeaderValue::from_static("no-store")))
}

fn no_sts(store: &Store) -> Fault {
    RegistryError::NotFound(format!("STS of store {} (sts_endpoint and sts_role)", store.name)).into()
}

/// Who asks, for what, by which keys.
fn look(app: &App, call: &Call) -> Result<Asked, Fault> {
    let Some(Caller::Client { grant, .. }) = &call.caller else {
        return Err(Fault::forbidden("session credentials take a token for the volume, not an operator's"));
    };
    let name = call.parameter("volume");
    let found = looked(&*app.registry, |view| {
        let Some(found) = view.one(&RecordId::Volume(name.to_owned()))? else { return Ok(None) };
        let Record::Volume(volume) = found.record else { return Ok(None) };
        let Some(found) = view.one(&RecordId::Store(volume.store.clone()))? else { return Ok(None) };
        let Record::Store(store) = found.record else { return Ok(None) };
        Ok(Some((volume, store)))
    })?;
    let (volume, store) = found.ok_or_else(|| RegistryError::NotFound(format!("volume {name}")))?;
    if store.sts_endpoint.is_none() {
        return Err(no_sts(&store));
    }
    let may_write = !volume.read_only && grant.allows(name, Right::ReadWrite, call.now).is_ok();
    let right = match volume.bypass {
        Bypass::Never => {
            return Err(Fault::forbidden("the volume's `bypass` is never: its clients go through proxies"));
        }
        Bypass::Always if may_write => Right::ReadWrite,
        Bypass::Always | Bypass::Reads => Right::Read,
    };
    let keys = CredentialSource::referred(store.credentials.as_deref()).load();
    let keys = keys.map_err(|error| Fault::sts(&store.name, &error.to_string()))?;
    let claims = grant.claims();
    let seconds = lasts(store.sts_seconds.unwrap_or(SECONDS), claims.exp.saturating_sub(call.now));
    Ok(Asked { subject: claims.sub.clone(), store, volume, right, seconds, keys })
}

/// No longer than the token that it was got by, as far as STSs give such sessions.
fn lasts(wanted: u32, token_seconds: u64) -> u32 {
    wanted.min(u32::try_from(token_seconds).unwrap_or(u32::MAX).max(SECONDS_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_with_its_token_if_there_are_sessions_so_short() {
        for (wanted, token, lasting) in [
            (43_200, 86_400 * 366, 43_200),
            (43_200, 3_600, 3_600),
            (43_200, 10, 900),
            (43_200, 0, 900),
            (900, 10, 900),
            (8, 3_600, 8),
            (8, 0, 8),
            (3_600, u64::MAX, 3_600),
        ] {
            assert_eq!(lasts(wanted, token), lasting, "{wanted} by a token for {token}");
        }
    }
}
