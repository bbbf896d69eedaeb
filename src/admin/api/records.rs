//! Stores, volumes, groups, members and attachments: create, list, show, replace, delete, the same way for each.
//!
//! A kind says how its records are named by a path and read from a body; the verbs are written once. A create is idempotent: the same body
//! again is 200 instead of 201, another one 409. A replacement or deletion names what it saw by `If-Match`.

use http::header::{ETAG, LOCATION};
use http::{HeaderValue, Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::document::{Shape, Told};
use super::fault::Fault;
use super::{App, Call, Need, Reply, Route, Work, etag};
use crate::admin::registry::{Applied, Change, Guard, Listing, Record, RecordId, Versioned, looked};
use crate::resource::check::{self, Invalid};
use crate::resource::{Attachment, Group, Member, Revision, Store, Volume};

/// Records of one kind, at one moment.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Listed<T> {
    /// The moment.
    pub revision: Revision,
    /// All of them, by name.
    pub items: Vec<T>,
}

/// A kind of record with a path of its own.
trait Kind: DeserializeOwned + ToSchema + 'static {
    const ONE: &'static str;
    const ALL: &'static str;
    /// A record of this body at this path, checked by itself.
    fn record(self, call: &Call) -> Result<Record, Invalid>;
    /// What the path names.
    fn id(call: &Call) -> RecordId;
    /// What the path lists.
    fn listing(call: &Call) -> Listing;
    /// What a DELETE asks for, and what its query may say.
    fn end(call: &Call, guard: Guard) -> Result<Change, Fault> {
        Ok(Change::Delete(Self::id(call), guard))
    }
    const END_ASKS: &[(&str, &str)] = &[];
}

/// The routes of all kinds.
pub fn routes() -> Vec<Route> {
    let mut routes = of_kind::<Store>("stores", "/v1/stores", "/v1/stores/{name}");
    routes.extend(of_kind::<Volume>("volumes", "/v1/volumes", "/v1/volumes/{name}"));
    routes.extend(of_kind::<Group>("groups", "/v1/groups", "/v1/groups/{name}"));
    routes.extend(of_kind::<Member>("members", "/v1/groups/{group}/members", "/v1/groups/{group}/members/{name}"));
    routes.extend(attachments());
    routes
}

fn of_kind<T: Kind>(tag: &'static str, all: &'static str, one: &'static str) -> Vec<Route> {
    let told = |verb: &str, plural: &str, what: &str| Told::new(format!("{verb}_{plural}"), tag, what);
    let route = |method, path, need, work, told| Route { method, path, need, work: Work::Blocking(work), told };
    let changes = |told: Told| told.guarded().problems(&[400, 404, 409, 412, 428]);
    vec![
        route(Method::GET, all, Need::Viewer, list::<T>, {
            told("list", T::ALL, "All, by name.").answers(200, Shape::listed::<T>()).problems(&[404])
        }),
        route(Method::POST, all, Need::Operator, create::<T>, {
            told("create", T::ONE, "Makes one. The same body again is 200, another body under the name 409.")
                .takes(Shape::of::<T>())
                .answers(201, Shape::of::<T>())
                .answers(200, Shape::of::<T>())
                .problems(&[400, 404, 409])
        }),
        route(Method::GET, one, Need::Viewer, show::<T>, {
            told("show", T::ONE, "One, with its revision as ETag.").answers(200, Shape::of::<T>()).problems(&[404])
        }),
        route(Method::PUT, one, Need::Operator, replace::<T>, {
            changes(
                told("replace", T::ONE, "Gives it other contents.")
                    .takes(Shape::of::<T>())
                    .answers(200, Shape::of::<T>()),
            )
        }),
        route(Method::DELETE, one, Need::Operator, delete::<T>, {
            let ends = told("delete", T::ONE, "Ends it.").answers(204, Shape::nothing());
            changes(T::END_ASKS.iter().fold(ends, |told, (parameter, what)| told.asks(parameter, what)))
        }),
    ]
}

/// A record of the request's body.
fn parsed<T: Kind>(call: &Call) -> Result<Record, Fault> {
    let body: T = body(call)?;
    let record = body.record(call);
    record.map_err(|invalid| Fault::bad_body(Some(invalid.field), invalid.to_string()))
}

/// A JSON body of the right shape. What it says is not repeated: it may hold a secret in the wrong place.
pub(super) fn body<T: DeserializeOwned>(call: &Call) -> Result<T, Fault> {
    serde_json::from_slice(&call.body).map_err(|error| {
        let fix = format!("line {}, column {}: {}", error.line(), error.column(), without_values(&error.to_string()));
        Fault::bad_body(None, fix)
    })
}

/// serde's words without the value that they quote (`invalid type: string "…"`, `unknown variant …`).
fn without_values(words: &str) -> String {
    // serde_json adds the place last; a value may hold the same words.
    let words = words.rsplit_once(" at line ").map_or(words, |(words, _)| words);
    if let Some((_, expected)) =
        words.strip_prefix("unknown variant `").and_then(|rest| rest.rsplit_once("`, expected "))
    {
        // The value comes first, and may hold the separator itself: what is expected is the last.
        return format!("unknown variant, expected {expected}");
    }
    // A value may hold quotes; what is expected holds none.
    match (words.find('"'), words.rfind('"')) {
        (Some(first), Some(last)) if first < last => format!("{}…{}", &words[..first], &words[last + 1..]),
        _ => words.to_owned(),
    }
}

fn create<T: Kind>(app: &App, call: &Call) -> Result<Reply, Fault> {
    Ok(match app.change(&Change::Create(parsed::<T>(call)?), call)? {
        Applied::Changed(made) => {
            let location = location(&made.record.id());
            let reply = shown(StatusCode::CREATED, &made);
            match HeaderValue::from_str(&location) {
                Ok(location) => reply.with(LOCATION, location),
                Err(_) => reply,
            }
        }
        Applied::Same(same) => shown(StatusCode::OK, &same),
        Applied::Deleted(_) => return Err(Fault::internal()),
    })
}

fn list<T: Kind>(app: &App, call: &Call) -> Result<Reply, Fault> {
    let listing = T::listing(call);
    if let Listing::Members(group) = &listing {
        found(app, &RecordId::Group(group.clone()))?;
    }
    listed(app, &listing)
}

pub(super) fn listed(app: &App, listing: &Listing) -> Result<Reply, Fault> {
    let (revision, records) = looked(&*app.registry, |view| Ok((view.revision()?, view.list(listing)?)))?;
    let items: Vec<_> = records.iter().map(|versioned| versioned.record.shown()).collect();
    Ok(Reply::json(StatusCode::OK, &Listed { revision, items }))
}

fn show<T: Kind>(app: &App, call: &Call) -> Result<Reply, Fault> {
    found(app, &T::id(call)).map(|found| shown(StatusCode::OK, &found))
}

pub(super) fn found(app: &App, id: &RecordId) -> Result<Versioned, Fault> {
    let found = looked(&*app.registry, |view| view.one(id))?;
    found.ok_or_else(|| crate::admin::registry::RegistryError::NotFound(id.to_string()).into())
}

pub(super) fn shown(status: StatusCode, versioned: &Versioned) -> Reply {
    Reply::json(status, &versioned.record.shown()).with(ETAG, etag(versioned.revision))
}

fn replace<T: Kind>(app: &App, call: &Call) -> Result<Reply, Fault> {
    let guard = call.guard()?;
    let record = parsed::<T>(call)?;
    if record.id() != T::id(call) {
        let fix = "name: the path says another: a record keeps its name, make a new one and delete this";
        return Err(Fault::bad_body(Some("name"), fix));
    }
    match app.change(&Change::Replace(record, guard), call)? {
        Applied::Changed(record) | Applied::Same(record) => Ok(shown(StatusCode::OK, &record)),
        Applied::Deleted(_) => Err(Fault::internal()),
    }
}

fn delete<T: Kind>(app: &App, call: &Call) -> Result<Reply, Fault> {
    app.change(&T::end(call, call.guard()?)?, call)?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

fn location(id: &RecordId) -> String {
    match id {
        RecordId::Member { group, name } => format!("/v1/groups/{group}/members/{name}"),
        RecordId::Attachment { volume, group } => format!("/v1/volumes/{volume}/groups/{group}"),
        RecordId::Store(name) => format!("/v1/stores/{name}"),
        RecordId::Volume(name) => format!("/v1/volumes/{name}"),
        RecordId::Group(name) => format!("/v1/groups/{name}"),
        RecordId::Key(id) => format!("/v1/keys/{id}"),
        RecordId::Token(id) => format!("/v1/tokens/{id}"),
    }
}

macro_rules! named_kind {
    ($type:ident, $one:literal, $all:literal, $listing:ident) => {
        impl Kind for $type {
            const ONE: &'static str = $one;
            const ALL: &'static str = $all;

            fn record(mut self, _call: &Call) -> Result<Record, Invalid> {
                self.check()?;
                Ok(Record::$type(self))
            }

            fn id(call: &Call) -> RecordId {
                RecordId::$type(call.parameter("name").to_owned())
            }

            fn listing(_call: &Call) -> Listing {
                Listing::$listing
            }
        }
    };
}

named_kind!(Store, "store", "stores", Stores);
named_kind!(Volume, "volume", "volumes", Volumes);
named_kind!(Group, "group", "groups", Groups);

impl Kind for Member {
    const ONE: &'static str = "member";
    const ALL: &'static str = "members";

    fn record(mut self, call: &Call) -> Result<Record, Invalid> {
        let group = call.parameter("group");
        if self.group.is_empty() {
            group.clone_into(&mut self.group);
        }
        if self.group != group {
            return Err(Invalid { field: "group", fix: "the path says another: leave it out".to_owned() });
        }
        self.check()?;
        Ok(Record::Member(self))
    }

    fn id(call: &Call) -> RecordId {
        RecordId::Member { group: call.parameter("group").to_owned(), name: call.parameter("name").to_owned() }
    }

    fn listing(call: &Call) -> Listing {
        Listing::Members(call.parameter("group").to_owned())
    }

    const END_ASKS: &[(&str, &str)] =
        &[("abandon", "`dirty`: end it though it may hold what the store does not have, which is lost then.")];

    fn end(call: &Call, guard: Guard) -> Result<Change, Fault> {
        match call.query("abandon", &["abandon"])? {
            None => Ok(Change::Delete(Self::id(call), guard)),
            Some("dirty") => Ok(Change::Abandon(Self::id(call), guard)),
            Some(_) => Err(Fault::bad_query("abandon", "takes one word: dirty")),
        }
    }
}

fn attachments() -> Vec<Route> {
    let all = "/v1/volumes/{volume}/groups";
    let one = "/v1/volumes/{volume}/groups/{group}";
    let told = |name: &str, what: &str| Told::new(name.to_owned(), "attachments", what);
    let route = |method, path, need, work, told| Route { method, path, need, work: Work::Blocking(work), told };
    vec![
        route(Method::GET, all, Need::Viewer, list_attachments, {
            told("list_attachments", "The groups that serve the volume.")
                .answers(200, Shape::listed::<Attachment>())
                .problems(&[404])
        }),
        route(Method::PUT, one, Need::Operator, attach, {
            told("attach", "The group serves the volume from now on. Again: 200 instead of 201.")
                .answers(201, Shape::of::<Attachment>())
                .answers(200, Shape::of::<Attachment>())
                .problems(&[400, 404, 409])
        }),
        route(Method::DELETE, one, Need::Operator, detach, {
            told("detach", "The group serves the volume no longer.")
                .answers(204, Shape::nothing())
                .problems(&[404, 409])
        }),
    ]
}

fn list_attachments(app: &App, call: &Call) -> Result<Reply, Fault> {
    let volume = call.parameter("volume").to_owned();
    found(app, &RecordId::Volume(volume.clone()))?;
    listed(app, &Listing::GroupsOf(volume))
}

fn attach(app: &App, call: &Call) -> Result<Reply, Fault> {
    let (volume, group) = (call.parameter("volume"), call.parameter("group"));
    let named = check::name("volume", volume).and_then(|()| check::name("group", group));
    named.map_err(|invalid| Fault::bad_body(Some(invalid.field), invalid.to_string()))?;
    let record = Record::Attachment(Attachment { volume: volume.to_owned(), group: group.to_owned() });
    match app.change(&Change::Create(record), call)? {
        Applied::Changed(made) => Ok(shown(StatusCode::CREATED, &made)),
        Applied::Same(same) => Ok(shown(StatusCode::OK, &same)),
        Applied::Deleted(_) => Err(Fault::internal()),
    }
}

fn detach(app: &App, call: &Call) -> Result<Reply, Fault> {
    let id =
        RecordId::Attachment { volume: call.parameter("volume").to_owned(), group: call.parameter("group").to_owned() };
    // There is nothing in it that another could have changed.
    app.change(&Change::Delete(id, Guard::Any), call)?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}
