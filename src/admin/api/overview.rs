//! What is not about one record: health, the document of the interface, the state of things, the audit log.
//!
//! Part of the table of routes. Health and the document are the only ones that take no token.

use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::document::{self, Shape, Told};
use super::fault::Fault;
use super::{App, Call, JSON, Need, Reply, Route, Work};
use crate::admin::registry::{AUDIT_ROWS_MAX, AuditRow, Listing, looked};
use crate::resource::Revision;

/// The state of the admin.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Of this program.
    pub version: String,
    /// The last change.
    pub revision: Revision,
    /// How many there are.
    pub stores: usize,
    /// How many there are.
    pub volumes: usize,
    /// How many there are.
    pub groups: usize,
}

/// A part of the audit log.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditRows {
    /// Oldest first.
    pub items: Vec<AuditRow>,
    /// Ask again with `after` set to this; absent: there is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Revision>,
}

/// Its routes.
pub fn routes() -> Vec<Route> {
    let route = |path, need, work, told| Route { method: Method::GET, path, need, work: Work::Blocking(work), told };
    let told = |name: &str, what: &str| Told::new(name.to_owned(), "overview", what);
    vec![
        route("/healthz", Need::Nothing, |_, _| Ok(Reply::empty(StatusCode::OK)), {
            told("health", "The server is alive.").answers(200, Shape::nothing())
        }),
        route("/v1/openapi.json", Need::Nothing, openapi, {
            told("openapi", "This document.").answers(200, Shape::anything())
        }),
        route("/v1/status", Need::AnyToken, status, {
            told("status", "The state of things.").answers(200, Shape::of::<Status>())
        }),
        route("/v1/audit", Need::Viewer, audit, {
            told("audit", "Who changed what, and when.")
                .asks("after", "Only changes behind this revision. Default 0.")
                .asks("limit", "At most so many rows, up to 1,000. Default 100.")
                .answers(200, Shape::of::<AuditRows>())
                .problems(&[400])
        }),
    ]
}

fn openapi(_: &App, _: &Call) -> Result<Reply, Fault> {
    static DOCUMENT: std::sync::LazyLock<bytes::Bytes> =
        std::sync::LazyLock::new(|| document::document().to_string().into());
    Ok(Reply { status: StatusCode::OK, headers: HeaderMap::new(), media_type: JSON, body: DOCUMENT.clone() })
}

fn status(app: &App, _: &Call) -> Result<Reply, Fault> {
    let status = looked(&*app.registry, |view| {
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: view.revision()?,
            stores: view.list(&Listing::Stores)?.len(),
            volumes: view.list(&Listing::Volumes)?.len(),
            groups: view.list(&Listing::Groups)?.len(),
        })
    })?;
    Ok(Reply::json(StatusCode::OK, &status))
}

fn audit(app: &App, call: &Call) -> Result<Reply, Fault> {
    const KNOWN: [&str; 2] = ["after", "limit"];
    let number = |name: &str, default: u64| match call.query(name, &KNOWN)? {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| Fault::bad_query(name, "is no number: write digits")),
    };
    let after = number("after", 0)?;
    let limit = usize::try_from(number("limit", 100)?).unwrap_or(AUDIT_ROWS_MAX).clamp(1, AUDIT_ROWS_MAX);
    // One more, to know whether there is more.
    let mut items = app.registry.audit(after, limit + 1)?;
    let is_more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| is_more).map(|row| row.revision);
    Ok(Reply::json(StatusCode::OK, &AuditRows { items, next }))
}
