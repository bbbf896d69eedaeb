//! The REST interface: the table of routes, and the way from a request to its answer.
//!
//! Called by `server` for each request. [`routes`] is the one list of what there is: dispatch walks it, and `document` makes the OpenAPI
//! document from it, so no route can be missing there. Work on the registry blocks and runs on tokio's threads for that. Invariants:
//! nothing but health and the document is answered without a token; bodies, waits and answers are bounded.

pub mod access;
pub mod document;
pub mod fault;
pub mod overview;
pub mod records;
pub mod routing;
pub mod sessions;
mod standing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, IF_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::{Semaphore, watch};

use super::keys::{self, AuthError, Caller};
use super::registry::{Actor, Applied, Change, Guard, Registry, looked};
use crate::resource::Revision;
use crate::token::{Refusal, Right, Role};
use document::Told;
use fault::Fault;

/// The largest body of a request, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// What all requests share.
pub struct App {
    registry: Arc<dyn Registry>,
    /// The newest revision that this process knows of: wakes whoever waits for a change.
    revision: watch::Sender<Revision>,
    stopping: watch::Receiver<Stage>,
    signed: routing::SignedRoutings,
    /// Places for those who wait for a change.
    waits: Semaphore,
    sts: super::sts::Sts,
    /// Places for questions to an STS.
    questions: Semaphore,
    clock: fn() -> u64,
}

/// Whether the server goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It serves.
    Serving,
    /// It stops: nobody waits any longer.
    Stopping,
}

/// Whose token a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// None at all.
    Nothing,
    /// Any good one.
    AnyToken,
    /// An operator's of either role.
    Viewer,
    /// An operator's who may change things.
    Operator,
    /// A viewer's, or one that opens the volume in the path.
    Volume,
    /// That of a proxy of the group in the path, and no other: what it opens names credentials.
    Group,
}

/// Who does a route's work.
#[derive(Clone, Copy)]
enum Work {
    /// On a thread that may block.
    Blocking(fn(&App, &Call) -> Result<Reply, Fault>),
    /// The long poll.
    Routing,
    /// A question to an STS.
    Sessions,
}

/// One route.
pub struct Route {
    method: Method,
    /// Segments; `{name}` takes any one.
    path: &'static str,
    need: Need,
    work: Work,
    told: Told,
}

/// The values in a path, by their names in the route's.
type Parameters = Vec<(&'static str, String)>;

/// A request, taken apart.
pub struct Call {
    parameters: Parameters,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
    caller: Option<Caller>,
    now: u64,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// Beside `Content-Type`.
    pub headers: HeaderMap,
    /// Empty where there is none.
    pub media_type: &'static str,
    /// The body.
    pub body: Bytes,
}

const JSON: &str = "application/json";

impl App {
    /// Over a registry; `stopping` ends every wait.
    ///
    /// # Errors
    /// The registry's.
    pub fn new(
        registry: Arc<dyn Registry>,
        stopping: watch::Receiver<Stage>,
        clock: fn() -> u64,
    ) -> Result<App, super::registry::RegistryError> {
        let revision = looked(&*registry, |view| view.revision())?;
        let revision = watch::Sender::new(revision);
        let (signed, waits) = (routing::SignedRoutings::default(), Semaphore::new(routing::WAITS_MAX));
        let (sts, questions) = (super::sts::Sts::default(), Semaphore::new(sessions::QUESTIONS_MAX));
        Ok(App { registry, revision, stopping, signed, waits, sts, questions, clock })
    }

    /// Answers one request.
    pub async fn answer(self: &Arc<App>, method: Method, uri: &http::Uri, headers: HeaderMap, body: Bytes) -> Reply {
        self.try_answer(method, uri, headers, body).await.unwrap_or_else(|fault| fault.reply())
    }

    async fn try_answer(
        self: &Arc<App>,
        method: Method,
        uri: &http::Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Reply, Fault> {
        let (route, mut call) = self.begun(&method, uri, headers, body)?;
        let (need, work) = (route.need, route.work);
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            call.caller = app.admit(need, &call)?;
            match work {
                Work::Blocking(work) => work(&app, &call).map(Done::Reply),
                Work::Routing => Ok(Done::Waiting(call)),
                Work::Sessions => Ok(Done::Asking(call)),
            }
        });
        match done.await.map_err(|_| Fault::internal())?? {
            Done::Reply(reply) => Ok(reply),
            Done::Waiting(call) => routing::wait(self, Arc::new(call)).await,
            Done::Asking(call) => sessions::give(self, call).await,
        }
    }

    /// Whether a request with this head would be let in: asked before its body is read, so that nobody else makes us hold one.
    ///
    /// # Errors
    /// The answer, if it is not.
    pub async fn let_in(self: &Arc<App>, method: &Method, uri: &http::Uri, headers: &HeaderMap) -> Result<(), Reply> {
        let (route, call) = self.begun(method, uri, headers.clone(), Bytes::new()).map_err(Fault::reply)?;
        let app = Arc::clone(self);
        let admitted = tokio::task::spawn_blocking(move || app.admit(route.need, &call).map(drop));
        admitted.await.unwrap_or_else(|_| Err(Fault::internal())).map_err(Fault::reply)
    }

    /// A request and its route.
    fn begun(
        &self,
        method: &Method,
        uri: &http::Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(&'static Route, Call), Fault> {
        let (route, parameters) = find(method, uri.path())?;
        let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        Ok((route, Call { parameters, query, headers, body, caller: None, now: (self.clock)() }))
    }

    /// Lets the request in at this moment, and says who asks; nobody does where no token is needed.
    fn admit(&self, need: Need, call: &Call) -> Result<Option<Caller>, Fault> {
        if need == Need::Nothing {
            return Ok(None);
        }
        let now = (self.clock)();
        let token = bearer(&call.headers).ok_or_else(|| Fault::unauthorized(&Refusal::Missing))?;
        let (authenticated, made) = looked(&*self.registry, |view| {
            let made = match need {
                Need::Volume => view.volume_made(call.parameter("volume"))?,
                Need::Group => view.group_marks(call.parameter("group"))?.map(|marks| marks.made),
                _ => None,
            };
            match keys::authenticate(view, token, now) {
                Err(AuthError::Registry(error)) => Err(error),
                other => Ok((other, made)),
            }
        })?;
        let caller = authenticated.map_err(|error| Fault::unauthorized(&error))?;
        match (&caller, need) {
            (Caller::Operator(claims), Need::Operator) if claims.role < Role::Operator => {
                return Err(Fault::forbidden("the token is a viewer's: changes take an operator's"));
            }
            (Caller::Operator(_) | Caller::Client { .. }, Need::Group) => {
                return Err(Fault::forbidden(
                    "this takes the token of a proxy: make one by `forebay token create --group`",
                ));
            }
            (Caller::Operator(_), _) | (Caller::Client { .. } | Caller::Proxy { .. }, Need::AnyToken) => (),
            (Caller::Proxy { claims, issued }, Need::Group) => {
                if claims.group.as_deref() != Some(call.parameter("group")) {
                    return Err(Fault::forbidden("the token is for a proxy of another group"));
                }
                if made.is_some_and(|made| *issued < made) {
                    return Err(Fault::forbidden(
                        "the group was deleted and made again since the token was issued: have a new one issued",
                    ));
                }
            }
            (Caller::Proxy { .. }, _) => {
                return Err(Fault::forbidden("the token is a proxy's: it opens the routing of its group"));
            }
            (Caller::Client { grant, issued }, Need::Volume) => {
                grant
                    .allows(call.parameter("volume"), Right::Read, now)
                    .map_err(|refusal| Fault::forbidden(&refusal))?;
                if made.is_some_and(|made| *issued < made) {
                    return Err(Fault::forbidden(
                        "the volume was deleted and made again since the token was issued: have a new one issued",
                    ));
                }
            }
            (Caller::Client { .. }, _) => {
                return Err(Fault::forbidden("the token is for volumes: this takes an operator's"));
            }
        }
        Ok(Some(caller))
    }

    /// Makes a change and wakes whoever waits for one.
    fn change(&self, change: &Change, call: &Call) -> Result<Applied, Fault> {
        self.told(self.registry.change(change, &call.actor()))
    }

    /// Passes on what became of a change, and wakes whoever waits for one.
    fn told(&self, applied: Result<Applied, super::registry::RegistryError>) -> Result<Applied, Fault> {
        let applied = applied?;
        if let Applied::Changed(super::registry::Versioned { revision, .. }) | Applied::Deleted(revision) = applied {
            self.wake(revision);
        }
        Ok(applied)
    }

    fn wake(&self, made: Revision) {
        self.revision.send_if_modified(|known| {
            let is_news = made > *known;
            *known = made.max(*known);
            is_news
        });
    }
}

enum Done {
    Reply(Reply),
    Waiting(Call),
    Asking(Call),
}

/// Every route there is.
pub fn routes() -> Vec<Route> {
    let mut routes = overview::routes();
    routes.extend(records::routes());
    routes.extend(access::routes());
    routes.extend(routing::routes());
    routes.extend(sessions::routes());
    routes.extend(standing::routes());
    routes
}

/// The route of a request and the values of its path's parameters.
fn find(method: &Method, path: &str) -> Result<(&'static Route, Parameters), Fault> {
    static ROUTES: std::sync::LazyLock<Vec<Route>> = std::sync::LazyLock::new(routes);
    let mut allowed: Vec<&'static str> = Vec::new();
    for route in ROUTES.iter() {
        let Some(parameters) = matched(route.path, path) else { continue };
        // A HEAD is a GET whose body hyper leaves out.
        if route.method == *method || (*method == Method::HEAD && route.method == Method::GET) {
            return Ok((route, parameters));
        }
        allowed.push(route.method.as_str());
    }
    Err(if allowed.is_empty() { Fault::no_such_path() } else { Fault::method_not_allowed(&allowed.join(", ")) })
}

/// The parameters of `path` if it is of the form `template`. Names need no percent-encoding, so none is undone.
fn matched(template: &'static str, path: &str) -> Option<Parameters> {
    let mut segments = path.split('/');
    let mut parameters = Vec::new();
    for expected in template.split('/') {
        let segment = segments.next()?;
        match expected.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(_) if segment.is_empty() => return None,
            Some(name) => parameters.push((name, segment.to_owned())),
            None if segment == expected => (),
            None => return None,
        }
    }
    segments.next().is_none().then_some(parameters)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl Call {
    /// A parameter of the path; the table of routes has it.
    fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// A parameter of the query, if it is there; `known` are those that the route takes.
    fn query(&self, name: &str, known: &[&str]) -> Result<Option<&str>, Fault> {
        if let Some((stranger, _)) = self.query.iter().find(|(given, _)| !known.contains(&given.as_str())) {
            return Err(Fault::bad_query(stranger, &format!("is unknown here: {} are taken", known.join(", "))));
        }
        Ok(self.query.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str()))
    }

    /// What the caller saw of the record that it changes.
    fn guard(&self) -> Result<Guard, Fault> {
        let value = self.headers.get(IF_MATCH).ok_or_else(Fault::precondition_required)?;
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(Guard::Any);
        }
        parse_etag(text).map(Guard::Seen).ok_or_else(Fault::bad_condition)
    }

    fn actor(&self) -> Actor {
        let (subject, token) = match &self.caller {
            Some(Caller::Operator(claims) | Caller::Proxy { claims, .. }) => (claims.sub.clone(), claims.jti.clone()),
            Some(Caller::Client { grant, .. }) => (grant.claims().sub.clone(), grant.claims().jti.clone()),
            None => Default::default(),
        };
        Actor { subject, token, at: self.now }
    }
}

/// `"17"` is the entity tag of revision 17.
fn etag(revision: Revision) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{revision}\"")).expect("digits in quotes are a header's value")
}

fn parse_etag(text: &str) -> Option<Revision> {
    text.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

impl Reply {
    fn json(status: StatusCode, body: &impl serde::Serialize) -> Reply {
        match serde_json::to_vec(body) {
            Ok(mut bytes) => {
                bytes.push(b'\n');
                Reply { status, headers: HeaderMap::new(), media_type: JSON, body: bytes.into() }
            }
            Err(_) => Fault::internal().reply(),
        }
    }

    fn empty(status: StatusCode) -> Reply {
        Reply { status, headers: HeaderMap::new(), media_type: "", body: Bytes::new() }
    }

    fn with(mut self, name: http::HeaderName, value: HeaderValue) -> Reply {
        self.headers.insert(name, value);
        self
    }
}
