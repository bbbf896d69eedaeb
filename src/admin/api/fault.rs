//! What goes wrong, as problem details (RFC 9457): a stable `type`, and a `detail` that says what to do.
//!
//! The one map from the registry's refusals to statuses. A failure of the storage is logged here with its chain; the answer says no more
//! than that.

use bytes::Bytes;
use http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::Reply;
use crate::admin::registry::RegistryError;
use crate::problem::{Problem, TYPE_PREFIX};

const PROBLEM_JSON: &str = "application/problem+json";

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProblemDocument {
    /// `urn:forebay:problem:…`; never renamed.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same for each occurrence.
    pub title: String,
    /// The status, again.
    pub status: u16,
    /// What is wrong here, and what to do.
    pub detail: String,
    /// The field of the body that can't stand, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// Why a request is not answered as it wished.
#[derive(Debug)]
pub struct Fault {
    problem: Problem,
    detail: String,
    field: Option<&'static str>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Fault {
    fn new(problem: Problem, detail: impl Into<String>) -> Fault {
        Fault { problem, detail: detail.into(), field: None, header: None }
    }

    fn with(mut self, name: HeaderName, value: &str) -> Fault {
        self.header = HeaderValue::from_str(value).ok().map(|value| (name, value));
        self
    }

    pub(super) fn internal() -> Fault {
        Fault::new(Problem::Internal, "a bug: the log says more")
    }

    pub(super) fn no_such_path() -> Fault {
        Fault::new(Problem::NoSuchPath, "see /v1/openapi.json for what there is")
    }

    pub(super) fn method_not_allowed(allowed: &str) -> Fault {
        Fault::new(Problem::MethodNotAllowed, format!("use {allowed}")).with(ALLOW, allowed)
    }

    pub(super) fn unauthorized(why: &dyn std::fmt::Display) -> Fault {
        let detail = format!("{why}: send `Authorization: Bearer TOKEN` with a token of this admin");
        Fault::new(Problem::Unauthorized, detail).with(WWW_AUTHENTICATE, "Bearer realm=\"forebay-admin\"")
    }

    pub(super) fn forbidden(why: &(impl std::fmt::Display + ?Sized)) -> Fault {
        Fault::new(Problem::Forbidden, why.to_string())
    }

    pub(super) fn bad_query(name: &str, fix: &str) -> Fault {
        Fault::new(Problem::BadQuery, format!("{name:?} {fix}"))
    }

    pub(super) fn bad_condition() -> Fault {
        Fault::new(Problem::BadCondition, "write If-Match: \"REVISION\" as the record's ETag says, or If-Match: *")
    }

    pub(super) fn precondition_required() -> Fault {
        let detail = "read the record, then send its ETag as If-Match, so that nobody's change is lost; If-Match: * changes whatever is there";
        Fault::new(Problem::PreconditionRequired, detail)
    }

    pub(super) fn bad_body(field: Option<&'static str>, fix: impl Into<String>) -> Fault {
        Fault { field, ..Fault::new(Problem::BadBody, fix) }
    }

    pub(super) fn too_many_wait() -> Fault {
        Fault::new(Problem::QueueFull, "too many wait for a change: ask without `wait`, or again later")
    }

    /// What went wrong names roles, accounts and files of the operator's: it is for the log, and not for whoever holds a token for a volume.
    pub(super) fn sts(store: &str, words: &str) -> Fault {
        tracing::warn!(store, words, "no session credentials");
        let told = format!("store {store} gives no session credentials now: the admin's log says why");
        Fault::new(Problem::OriginUnavailable, told)
    }

    /// A body beyond [`super::BODY_BYTES_MAX`].
    pub(in crate::admin) fn body_too_large() -> Fault {
        Fault::new(Problem::BodyTooLarge, format!("send at most {} bytes", super::BODY_BYTES_MAX))
    }

    /// A body that did not come.
    pub(in crate::admin) fn body_incomplete() -> Fault {
        Fault::new(Problem::BodyIncomplete, "the body ended early or came too slowly: send it again")
    }

    /// The answer.
    pub(in crate::admin) fn reply(self) -> Reply {
        let document = ProblemDocument {
            kind: format!("{TYPE_PREFIX}{}", self.problem.slug()),
            title: self.problem.title().to_owned(),
            status: self.problem.status().as_u16(),
            detail: self.detail,
            field: self.field.map(str::to_owned),
        };
        let mut body = serde_json::to_vec(&document).unwrap_or_default();
        body.push(b'\n');
        let mut headers = HeaderMap::new();
        headers.extend(self.header);
        if document.status == 503 {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Reply { status: self.problem.status(), headers, media_type: PROBLEM_JSON, body: Bytes::from(body) }
    }
}

impl From<RegistryError> for Fault {
    fn from(error: RegistryError) -> Fault {
        match error {
            RegistryError::Invalid(invalid) => Fault::bad_body(Some(invalid.field), invalid.to_string()),
            RegistryError::NotFound(what) => {
                Fault::new(Problem::NoSuchRecord, format!("there is no {what}: make it first, or name another"))
            }
            RegistryError::Exists(words) => Fault::new(Problem::RecordExists, words),
            RegistryError::Refused(words) => Fault::new(Problem::RuleRefused, words),
            RegistryError::Stale(_) => Fault::new(Problem::PreconditionFailed, error.to_string()),
            RegistryError::Storage(source) => {
                tracing::error!(error = %source, "the metadata can't be read or written");
                Fault::new(
                    Problem::MetadataUnavailable,
                    "nothing was changed; the admin's log says why: try again later",
                )
            }
        }
    }
}
