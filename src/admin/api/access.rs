//! Keys and tokens: rotate, issue, look, revoke.
//!
//! An issued token is answered once and kept nowhere; a private key is never answered at all.

use std::collections::BTreeMap;

use http::header::{CACHE_CONTROL, ETAG};
use http::{HeaderValue, Method, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::document::{Shape, Told};
use super::fault::Fault;
use super::records::{body, found, listed, shown};
use super::{App, Call, Need, Reply, Route, Work, etag};
use crate::admin::keys::{self, Wish};
use crate::admin::registry::{Applied, Change, Guard, Listing, RecordId, TokenRecord, Versioned};
use crate::token::{Right, Role};

/// What a new token is to say.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// To whom: appears in logs.
    pub subject: String,
    /// For the admin's interface; leave it out for volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// With the role `proxy`: the group whose routing it opens, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The volumes it opens, for reading (`r`) or writing too (`rw`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Right>,
    /// How long it is good: at most a year and a day. Default: an hour.
    #[serde(default = "hour")]
    pub ttl_seconds: u64,
}

/// A token, for the only time.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct IssuedToken {
    /// The token: a secret. It is kept nowhere.
    pub token: String,
    /// What is known of it.
    pub record: TokenRecord,
}

/// A key, without its private half.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ShownKey {
    /// The `kid` of what it signs.
    pub id: String,
    /// 32 bytes in base64url without padding.
    pub public: String,
    /// Unix seconds.
    pub created_at: u64,
}

fn hour() -> u64 {
    3_600
}

/// The routes of keys and tokens.
pub fn routes() -> Vec<Route> {
    let mut routes = key_routes();
    routes.extend(token_routes());
    routes
}

fn route(
    method: Method,
    path: &'static str,
    need: Need,
    work: fn(&App, &Call) -> Result<Reply, Fault>,
    told: Told,
) -> Route {
    Route { method, path, need, work: Work::Blocking(work), told }
}

fn key_routes() -> Vec<Route> {
    let told = |name: &str, what: &str| Told::new(name.to_owned(), "keys", what);
    vec![
        route(Method::GET, "/v1/keys", Need::AnyToken, |app, _| listed(app, &Listing::Keys), {
            told("list_keys", "The keys whose tokens are good; the last one signs.")
                .answers(200, Shape::listed::<ShownKey>())
        }),
        route(Method::POST, "/v1/keys", Need::Operator, rotate, {
            told(
                "rotate_keys",
                "A new key signs from now on; tokens of the older ones stay good until these are deleted.",
            )
            .answers(201, Shape::of::<ShownKey>())
        }),
        route(
            Method::GET,
            "/v1/keys/{id}",
            Need::AnyToken,
            |app, call| {
                found(app, &RecordId::Key(call.parameter("id").to_owned())).map(|key| shown(StatusCode::OK, &key))
            },
            told("show_key", "One key.").answers(200, Shape::of::<ShownKey>()).problems(&[404]),
        ),
        route(Method::DELETE, "/v1/keys/{id}", Need::Operator, retire, {
            told("delete_key", "Ends a key and all tokens it signed. Not the one that signs.")
                .answers(204, Shape::nothing())
                .problems(&[404, 409])
        }),
    ]
}

fn token_routes() -> Vec<Route> {
    let told = |name: &str, what: &str| Told::new(name.to_owned(), "tokens", what);
    vec![
        route(Method::GET, "/v1/tokens", Need::Viewer, |app, _| listed(app, &Listing::Tokens), {
            told("list_tokens", "The tokens issued, until a week after their end.")
                .answers(200, Shape::listed::<TokenRecord>())
        }),
        route(Method::POST, "/v1/tokens", Need::Operator, issue, {
            told("issue_token", "Issues a token and returns it, for the only time.")
                .takes(Shape::of::<TokenRequest>())
                .answers(201, Shape::of::<IssuedToken>())
                .problems(&[400, 404])
        }),
        route(
            Method::GET,
            "/v1/tokens/{id}",
            Need::Viewer,
            |app, call| {
                found(app, &RecordId::Token(call.parameter("id").to_owned())).map(|token| shown(StatusCode::OK, &token))
            },
            told("show_token", "What is known of one token.").answers(200, Shape::of::<TokenRecord>()).problems(&[404]),
        ),
        route(Method::DELETE, "/v1/tokens/{id}", Need::Operator, revoke, {
            told("revoke_token", "Ends a token: here at once, at proxies with their next routing.")
                .answers(200, Shape::of::<TokenRecord>())
                .problems(&[404])
        }),
    ]
}

fn rotate(app: &App, call: &Call) -> Result<Reply, Fault> {
    match app.told(keys::rotate(&*app.registry, &call.actor()))? {
        Applied::Changed(key) => Ok(shown(StatusCode::CREATED, &key)),
        _ => Err(Fault::internal()),
    }
}

fn retire(app: &App, call: &Call) -> Result<Reply, Fault> {
    let id = RecordId::Key(call.parameter("id").to_owned());
    app.change(&Change::Delete(id, Guard::Any), call)?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn issue(app: &App, call: &Call) -> Result<Reply, Fault> {
    let TokenRequest { subject, role, group, volumes, ttl_seconds } = body(call)?;
    let wish = Wish { subject, role, group, volumes, ttl_seconds };
    let (record, token) = keys::issue(&*app.registry, &wish, &call.actor())?;
    Ok(Reply::json(StatusCode::CREATED, &IssuedToken { token, record })
        .with(CACHE_CONTROL, HeaderValue::from_static("no-store")))
}

fn revoke(app: &App, call: &Call) -> Result<Reply, Fault> {
    match app.told(keys::revoke(&*app.registry, call.parameter("id"), &call.actor()))? {
        Applied::Changed(Versioned { record, revision }) | Applied::Same(Versioned { record, revision }) => {
            Ok(Reply::json(StatusCode::OK, &record.shown()).with(ETAG, etag(revision)))
        }
        Applied::Deleted(_) => Err(Fault::internal()),
    }
}
