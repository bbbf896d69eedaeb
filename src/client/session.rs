//! Session credentials of a client that has none of its own for the store: from the admin, in memory only, renewed at half of their life.
//!
//! A task of `client`, begun when a volume is opened. It asks only while the volume allows to bypass, its store offers sessions, and this client's own credentials
//! can't be loaded; so they are at hand when the proxies and the admin are gone. Time is the wall clock's: a machine that slept knows that they have ended.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::{Client, Url};
use serde::Serialize;
use tokio::sync::watch;

use super::Inner;
use super::member::locked;
use crate::follow::https;
use crate::origin::Keys;
use crate::resource::Bypass as BypassRule;
use crate::routing::Routing;
use crate::routing::session::SessionCredentials;
use crate::token::Right;

/// For one answer of the admin, which asks another service.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// What can change without a word (credentials of its own, the clock) is looked at so often.
const LOOK: Duration = Duration::from_secs(30);
/// After a failure; doubled by each further one.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = LOOK;
/// No session is believed to last longer.
const LASTS_MAX: Duration = Duration::from_secs(7 * 86_400);
/// How long a first question is waited for by whoever needs the store.
const FIRST_MAX: Duration = Duration::from_secs(3);

/// What a client has to ask the store with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "credentials", rename_all = "kebab-case")]
pub enum StoreAccess {
    /// Credentials of its own.
    Own,
    /// Session credentials.
    Session {
        /// What they open.
        right: Right,
        /// How long they last.
        expires_in_seconds: u64,
        /// How many were given so far, renewals among them.
        obtained: u64,
        /// Questions that failed.
        failed: u64,
    },
    /// Nothing.
    None,
}

/// What is held.
pub(super) struct Sessions {
    held: Mutex<Result<Held, String>>,
    /// Whether it is known if there are any.
    settled: watch::Sender<bool>,
}

#[derive(Clone)]
struct Held {
    keys: Keys,
    right: Right,
    given: SystemTime,
    renew: SystemTime,
    ends: SystemTime,
    /// What they are for.
    of: Scope,
}

impl Held {
    fn new(given: SessionCredentials, of: Scope, now: SystemTime) -> Result<Held, String> {
        if given.lasts_seconds == 0 {
            return Err("the admin gives session credentials that have ended: is its clock right?".to_owned());
        }
        let lasts = Duration::from_secs(given.lasts_seconds).min(LASTS_MAX);
        let (access_key, secret_key) = (given.access_key, given.secret_key);
        let keys = Keys { access_key, secret_key, session_token: Some(given.session_token) };
        Ok(Held { keys, right: given.right, given: now, renew: now + lasts / 2, ends: now + lasts, of })
    }

    /// How long no renewal is needed. Of a clock that was set back nothing is known.
    fn good_for(&self, now: SystemTime) -> Duration {
        if now < self.given { Duration::ZERO } else { self.renew.duration_since(now).unwrap_or_default() }
    }
}

/// What a session depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    endpoint: String,
    bucket: String,
    prefix: String,
    rule: BypassRule,
    read_only: bool,
}

impl Scope {
    fn of(routing: &Routing) -> Scope {
        Scope {
            endpoint: routing.store.endpoint.clone(),
            bucket: routing.store.bucket.clone(),
            prefix: routing.volume.prefix.clone(),
            rule: routing.volume.bypass,
            read_only: routing.volume.read_only,
        }
    }

    fn is_same_place(&self, other: &Scope) -> bool {
        (&self.endpoint, &self.bucket, &self.prefix) == (&other.endpoint, &other.bucket, &other.prefix)
    }
}

impl Default for Sessions {
    fn default() -> Sessions {
        Sessions { held: Mutex::new(Err("none were asked for yet".to_owned())), settled: watch::Sender::new(false) }
    }
}

impl Sessions {
    /// The keys for what `routing` says, if they have not ended, and when they do. Waits a little for a first answer.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) async fn keys(&self, routing: &Routing) -> Result<(Keys, SystemTime), String> {
        let mut settled = self.settled.subscribe();
        // Over time: then without.
        let _ = tokio::time::timeout(FIRST_MAX, settled.wait_for(|is_settled| *is_settled)).await;
        match &*locked(&self.held) {
            Ok(held) if !held.of.is_same_place(&Scope::of(routing)) => {
                Err("the session credentials are for where the volume was before".to_owned())
            }
            Ok(held) if SystemTime::now() < held.ends => Ok((held.keys.clone(), held.ends)),
            Ok(_) => Err("the session credentials have ended, and the admin gives no others".to_owned()),
            Err(why) => Err(format!("no session credentials: {why}")),
        }
    }

    /// For people.
    pub(super) fn access(&self, obtained: u64, failed: u64) -> StoreAccess {
        let now = SystemTime::now();
        match &*locked(&self.held) {
            Ok(held) if now < held.ends => StoreAccess::Session {
                right: held.right,
                expires_in_seconds: held.ends.duration_since(now).unwrap_or_default().as_secs(),
                obtained,
                failed,
            },
            _ => StoreAccess::None,
        }
    }

    /// How long those that are held need no renewal; zero: now.
    fn good_for(&self, scope: &Scope, now: SystemTime) -> Duration {
        match &*locked(&self.held) {
            Ok(held) if held.of == *scope => held.good_for(now),
            _ => Duration::ZERO,
        }
    }
}

/// Keeps session credentials at hand for as long as the client lives.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut routing = inner.follower.documents();
    let mut failures = 0;
    loop {
        let told = Arc::clone(&routing.borrow_and_update());
        let is_wanted = told.store.sessions && told.volume.bypass != BypassRule::Never;
        let pause = match is_wanted && inner.settings.credentials.load().is_err() {
            true => renewed(&inner, &told, &mut failures).await,
            false => LOOK,
        };
        inner.sessions.settled.send_replace(true);
        tokio::select! {
            // However short they last: nobody is asked without a pause.
            () = tokio::time::sleep(pause.clamp(PAUSE / 2, LOOK)) => {}
            changed = routing.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Renews what is due; how long until it is to be looked at again.
async fn renewed(inner: &Inner, told: &Routing, failures: &mut u32) -> Duration {
    let scope = Scope::of(told);
    let good_for = inner.sessions.good_for(&scope, SystemTime::now());
    if !good_for.is_zero() {
        return good_for;
    }
    let given = ask(inner).await.and_then(|given| Held::new(given, scope.clone(), SystemTime::now()));
    match given {
        Ok(held) => {
            *failures = 0;
            let good_for = held.good_for(held.given);
            *locked(&inner.sessions.held) = Ok(held);
            // The next who needs the store begins with these.
            locked(&inner.bypass).forget();
            inner.counters.sessions_obtained.fetch_add(1, Ordering::Relaxed);
            good_for
        }
        Err(why) => {
            tracing::debug!(%why, "no session credentials");
            inner.counters.sessions_failed.fetch_add(1, Ordering::Relaxed);
            // Those that are held are good until they end.
            let mut held = locked(&inner.sessions.held);
            if !matches!(&*held, Ok(held) if held.of == scope) {
                *held = Err(why);
            }
            let pause = PAUSE.saturating_mul(1 << (*failures).min(6)).min(PAUSE_MAX);
            *failures += 1;
            // All clients of an admin that was away begin at the same time.
            pause.mul_f64(0.5 + SmallRng::from_os_rng().random::<f64>() / 2.0)
        }
    }
}

async fn ask(inner: &Inner) -> Result<SessionCredentials, String> {
    let base = Url::parse(&inner.settings.admin).map_err(|error| error.to_string())?;
    let url = base.join(&format!("/v1/volumes/{}/credentials", inner.volume)).map_err(|error| error.to_string())?;
    let builder = https::builder(inner.settings.ca.as_deref(), &base).map_err(|error| error.to_string())?;
    let http: Client = builder.timeout(ANSWER_TIMEOUT).build().map_err(|error| error.to_string())?;
    let fail = |error: reqwest::Error| format!("the admin can't be asked: {}", https::words(&error.without_url()));
    let mut answer = http.get(url).bearer_auth(inner.settings.bearer.token()).send().await.map_err(fail)?;
    let (status, mut body) = (answer.status(), Vec::new());
    while let Some(bytes) = answer.chunk().await.map_err(fail)? {
        body.extend_from_slice(&bytes);
        if body.len() > ANSWER_BYTES_MAX {
            return Err("the admin's answer is too long".to_owned());
        }
    }
    if !status.is_success() {
        return Err(format!("the admin answers {}", super::answer::Said::of(&body.into()).words(status)));
    }
    serde_json::from_slice(&body).map_err(|_| "the admin's answer makes no sense".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(prefix: &str) -> Scope {
        Scope {
            endpoint: "https://s3.example.net".to_owned(),
            bucket: "b".to_owned(),
            prefix: prefix.to_owned(),
            rule: BypassRule::Reads,
            read_only: false,
        }
    }

    fn given(lasts_seconds: u64) -> SessionCredentials {
        SessionCredentials {
            access_key: "A".to_owned(),
            secret_key: "S".to_owned(),
            session_token: "T".to_owned(),
            expires_at: 0,
            lasts_seconds,
            right: Right::Read,
        }
    }

    #[test]
    fn they_are_renewed_at_half_their_life_and_when_they_are_for_something_else() {
        let (sessions, now, hour) = (Sessions::default(), SystemTime::now(), Duration::from_secs(3_600));
        assert_eq!(sessions.good_for(&scope("v/"), now), Duration::ZERO, "there are none");
        *locked(&sessions.held) = Held::new(given(3_600), scope("v/"), now);
        assert_eq!(sessions.good_for(&scope("v/"), now), hour / 2);
        assert_eq!(sessions.good_for(&scope("v/"), now + hour / 2), Duration::ZERO);
        assert_eq!(sessions.good_for(&scope("v/"), now + hour * 9), Duration::ZERO, "the machine slept");
        assert_eq!(sessions.good_for(&scope("v/"), now - hour * 9), Duration::ZERO, "the clock was set back");
        assert_eq!(sessions.good_for(&scope("w/"), now), Duration::ZERO);
        assert!(matches!(
            sessions.access(3, 1),
            StoreAccess::Session { right: Right::Read, obtained: 3, failed: 1, .. }
        ));
    }

    #[test]
    fn no_lifetime_in_an_answer_ends_the_task_or_makes_it_ask_without_a_pause() {
        let now = SystemTime::now();
        assert!(Held::new(given(0), scope("v/"), now).is_err());
        let held = Held::new(given(u64::MAX), scope("v/"), now);
        assert_eq!(held.map(|held| held.good_for(now)), Ok(LASTS_MAX / 2));
    }
}
