//! How far the members of a group have come with what a change of the group took from them: what their proxies report, and what operators see.
//!
//! A report that a member holds nothing of others' any more, by the routing of now, changes what everybody is told: it is not asked any more.

use http::{Method, StatusCode};

use super::document::{Shape, Told};
use super::fault::Fault;
use super::records::{Listed, body, found};
use super::{App, Call, Need, Reply, Route, Work};
use crate::admin::registry::{RecordId, Report, Standing, looked};

/// Their routes.
pub fn routes() -> [Route; 2] {
    let told = |name: &str, what: &str| Told::new(name.to_owned(), "members", what);
    let listing = told("list_standings", "Which members may hold dirty blocks of keys that are others' now.")
        .answers(200, Shape::listed::<Standing>())
        .problems(&[404]);
    let reporting = told("report_standing", "What a member's proxy holds of keys that are others'.")
        .takes(Shape::of::<Report>())
        .answers(204, Shape::nothing())
        .problems(&[400, 404, 409]);
    [
        Route {
            method: Method::GET,
            path: "/v1/groups/{group}/standing",
            need: Need::Viewer,
            work: Work::Blocking(list),
            told: listing,
        },
        Route {
            method: Method::PUT,
            path: "/v1/groups/{group}/members/{name}/standing",
            need: Need::Group,
            work: Work::Blocking(report),
            told: reporting,
        },
    ]
}

fn list(app: &App, call: &Call) -> Result<Reply, Fault> {
    let group = call.parameter("group");
    found(app, &RecordId::Group(group.to_owned()))?;
    let (revision, items) = looked(&*app.registry, |view| Ok((view.revision()?, view.standings(group)?)))?;
    Ok(Reply::json(StatusCode::OK, &Listed { revision, items }))
}

fn report(app: &App, call: &Call) -> Result<Reply, Fault> {
    let report: Report = body(call)?;
    let made = app.registry.report(call.parameter("group"), call.parameter("name"), report, &call.actor())?;
    if let Some(revision) = made {
        app.wake(revision);
    }
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}
