//! Placements and reports: what a change of a group's members leaves to be flushed, who may say that it was, and what that changes.
//!
//! Part of the tests of `api`: over a real database, without a network. The same with real proxies is `ci/tests/routing/moving.rs`.

use super::groups::{proxy_token, told};
use super::*;
use crate::admin::registry::Standing;
use crate::resource::Revision;
use crate::routing::GroupRouting;

async fn standing(bench: &Bench) -> Vec<Standing> {
    let listed = parsed(&bench.ask("GET", "/v1/groups/near/standing", Value::Null).await);
    serde_json::from_value(listed["items"].clone()).unwrap()
}

async fn moving(bench: &Bench) -> Vec<String> {
    standing(bench).await.into_iter().filter(|standing| standing.moving).map(|standing| standing.name).collect()
}

async fn report(bench: &Bench, member: &str, followed: Revision, moved: u64) -> Reply {
    let path = format!("/v1/groups/near/members/{member}/standing");
    let token = proxy_token(bench, "near");
    bench.ask_as(&token, "PUT", &path, json!({"followed": followed, "moved": moved}), None).await
}

async fn state(bench: &Bench, member: &str, state: &str) {
    let path = format!("/v1/groups/near/members/{member}");
    let mut record = parsed(&bench.ask("GET", &path, Value::Null).await);
    record["state"] = state.into();
    assert_eq!(bench.ask("PUT", &path, record).await.status, 200);
}

fn placed(document: &GroupRouting) -> Vec<Revision> {
    document.group("near").unwrap().placements.iter().map(|placement| placement.revision).collect()
}

#[test]
fn a_placement_is_told_until_all_of_its_members_have_settled() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let proxy = proxy_token(&bench, "near");
        assert_eq!(moving(&bench).await, [""; 0], "members that were just made hold nothing");
        state(&bench, "a", "up").await;
        let first = told(&bench, &proxy).await;
        assert_eq!(report(&bench, "a", first.revision, 0).await.status, 204);
        state(&bench, "b", "up").await;
        let second = told(&bench, &proxy).await;
        assert_eq!((placed(&second).len(), moving(&bench).await), (2, vec!["a".to_owned()]));
        // A change that deals no keys adds none.
        let member = parsed(&bench.ask("GET", "/v1/groups/near/members/a", Value::Null).await);
        let renamed = json!({"name": "a", "id": member["id"], "address": "10.0.0.9:7400", "state": "up"});
        assert_eq!(bench.ask("PUT", "/v1/groups/near/members/a", renamed).await.status, 200);
        assert_eq!(placed(&told(&bench, &proxy).await), placed(&second));

        // What is left, or what is said of the placement before, changes nothing; what is none of ours is refused.
        let before = told(&bench, &proxy).await.revision;
        assert_eq!(report(&bench, "a", before, 7).await.status, 204);
        assert_eq!(report(&bench, "a", first.revision, 0).await.status, 204);
        problem(&report(&bench, "a", 1_000_000, 0).await, 409, "rule-refused");
        problem(&report(&bench, "z", before, 0).await, 404, "no-such-record");
        assert_eq!((told(&bench, &proxy).await.revision, moving(&bench).await.len()), (before, 1));
        assert_eq!(report(&bench, "a", before, 0).await.status, 204);
        let last = told(&bench, &proxy).await;
        assert!(last.revision > before && placed(&last) == placed(&second)[1..] && moving(&bench).await.is_empty());
        assert_eq!(last.member("a").unwrap().settled, before);
        // Once more is no news.
        assert_eq!(report(&bench, "a", last.revision, 0).await.status, 204);
        assert_eq!(told(&bench, &proxy).await.revision, last.revision);
        let clients =
            Routing::open(&text(&bench.ask("GET", "/v1/volumes/pictures/routing", Value::Null).await), &bench.keys());
        assert_eq!(
            clients.unwrap().groups[0].placements,
            last.group("near").unwrap().placements,
            "clients are told too"
        );
        let audit = parsed(&bench.ask("GET", "/v1/audit", Value::Null).await);
        assert!(audit.to_string().contains("\"settle\""), "{audit}");
    });
}

#[test]
fn only_a_proxy_of_the_group_reports() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        assert_eq!(bench.ask("POST", "/v1/groups", json!({"name": "far"})).await.status, 201);
        let path = "/v1/groups/near/members/a/standing";
        let body = json!({"followed": 1, "moved": 0});
        let stranger = proxy_token(&bench, "far");
        let reader = issue(&bench.registry, None, &[("pictures", Right::Read)]);
        for token in [&bench.operator, &stranger, &reader] {
            problem(&bench.ask_as(token, "PUT", path, body.clone(), None).await, 403, "forbidden");
        }
        let own = proxy_token(&bench, "near");
        problem(&bench.ask_as(&own, "PUT", path, json!({"moved": 0}), None).await, 400, "bad-body");
        problem(&bench.ask("GET", "/v1/groups/none/standing", Value::Null).await, 404, "no-such-record");
    });
}

#[test]
fn a_member_that_may_hold_something_is_deleted_by_force_only() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let (a, b) = ("/v1/groups/near/members/a", "/v1/groups/near/members/b");
        for member in ["a", "b"] {
            state(&bench, member, "up").await;
            state(&bench, member, "absent").await;
        }
        assert!(problem(&bench.ask("DELETE", a, Value::Null).await, 409, "rule-refused").contains("never reported"));
        let revision = told(&bench, &proxy_token(&bench, "near")).await.revision;
        report(&bench, "a", revision, 3).await;
        assert!(problem(&bench.ask("DELETE", a, Value::Null).await, 409, "rule-refused").contains("3 blocks"));
        report(&bench, "a", revision, 0).await;
        assert_eq!(bench.ask("DELETE", a, Value::Null).await.status, 204);
        problem(&bench.ask("DELETE", &format!("{b}?abandon=all"), Value::Null).await, 400, "bad-query");
        problem(&bench.ask("DELETE", b, Value::Null).await, 409, "rule-refused");
        assert_eq!(bench.ask("DELETE", &format!("{b}?abandon=dirty"), Value::Null).await.status, 204);
    });
}

#[test]
fn a_group_that_changes_often_has_members_in_doubt_rather_than_a_history_without_end() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        state(&bench, "a", "up").await;
        for _ in 0..crate::routing::placements::PLACEMENTS_MAX {
            state(&bench, "b", "up").await;
            state(&bench, "b", "draining").await;
        }
        let document = told(&bench, &proxy_token(&bench, "near")).await;
        // Who is in doubt is asked for every key: what was before needs not be known.
        assert!(placed(&document).len() < crate::routing::placements::PLACEMENTS_MAX);
        assert!(standing(&bench).await.iter().all(|standing| standing.moving && standing.settled == 0));
        assert_eq!(report(&bench, "a", document.revision, 0).await.status, 204);
        assert_eq!(report(&bench, "b", document.revision, 0).await.status, 204);
        assert_eq!(placed(&told(&bench, &proxy_token(&bench, "near")).await).len(), 1);
        assert!(moving(&bench).await.is_empty());
    });
}
