//! What an attacker or a race does to the interface: tokens that outlive what they were issued for, waits that outlive their token, creates that
//! pass for others, numbers and strings at the edge.
//!
//! Each of these was once answered wrongly.

use super::*;
use crate::admin::registry::{AuditRow, Listing, Record, RecordId, RegistryError, View};

const ROUTING: &str = "/v1/volumes/pictures/routing";

/// The id of the token that was issued last.
fn newest_token(registry: &Sqlite) -> String {
    let tokens = looked(registry, |view| view.list(&Listing::Tokens)).unwrap();
    tokens.last().unwrap().record.id().name()
}

#[test]
fn a_token_of_a_volume_that_was_deleted_and_made_again_is_shut_out() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        assert_eq!(
            bench.ask("POST", "/v1/volumes", json!({"name": "films", "store": "main", "prefix": "f/"})).await.status,
            201
        );
        let old = issue(&bench.registry, None, &[("pictures", Right::ReadWrite), ("films", Right::Read)]);
        let old_id = newest_token(&bench.registry);
        assert_eq!(bench.ask_as(&old, "GET", ROUTING, Value::Null, None).await.status, 200);
        assert_eq!(bench.ask("DELETE", "/v1/volumes/pictures/groups/near", Value::Null).await.status, 204);
        assert_eq!(bench.ask("DELETE", "/v1/volumes/pictures", Value::Null).await.status, 204);
        let body = json!({"name": "pictures", "store": "main", "prefix": "somebody-elses/"});
        assert_eq!(bench.ask("POST", "/v1/volumes", body).await.status, 201);
        let refused = bench.ask_as(&old, "GET", ROUTING, Value::Null, None).await;
        assert!(problem(&refused, 403, "forbidden").contains("made again"), "{}", text(&refused));
        // Its other volume is the same as ever, and proxies are told of just this one.
        assert_eq!(bench.ask_as(&old, "GET", "/v1/volumes/films/routing", Value::Null, None).await.status, 200);
        let told = |path: &'static str| {
            let bench = &bench;
            async move { Routing::open(&text(&bench.ask("GET", path, Value::Null).await), &bench.keys()).unwrap().revoked }
        };
        assert_eq!(told(ROUTING).await, [old_id]);
        assert_eq!(told("/v1/volumes/films/routing").await, Vec::<String>::new());
        let new = issue(&bench.registry, None, &[("pictures", Right::Read)]);
        assert_eq!(bench.ask_as(&new, "GET", ROUTING, Value::Null, None).await.status, 200);
        // A change of the volume is no new volume.
        let body = json!({"name": "pictures", "store": "main", "prefix": "somebody-elses/", "bypass": "never"});
        assert_eq!(bench.ask("PUT", "/v1/volumes/pictures", body).await.status, 200);
        assert_eq!(bench.ask_as(&new, "GET", ROUTING, Value::Null, None).await.status, 200);
    });
}

#[test]
fn a_wait_does_not_outlive_its_token() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let reader = issue(&bench.registry, None, &[("pictures", Right::Read)]);
        let id = newest_token(&bench.registry);
        let first = bench.ask_as(&reader, "GET", ROUTING, Value::Null, None).await;
        let path = format!("{ROUTING}?since={}&wait=30s", tag(&first).trim_matches('"'));
        let wait = bench.ask_as(&reader, "GET", &path, Value::Null, None);
        let token = format!("/v1/tokens/{id}");
        let revoke = bench.ask("DELETE", &token, Value::Null);
        let both = async { tokio::join!(wait, revoke) };
        let (waited, revoked) = tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
        assert_eq!(revoked.status, 200);
        assert!(problem(&waited, 401, "unauthorized").contains("revoked"), "{}", text(&waited));
    });
}

#[test]
fn a_create_without_the_credentials_is_not_the_same_as_one_with_them() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let body = json!({"name": "main", "endpoint": "https://s3.example.net", "bucket": "pictures"});
        let reply = bench.ask("POST", "/v1/stores", body).await;
        assert!(problem(&reply, 409, "record-exists").contains("credentials"), "{}", text(&reply));
        // The id of a member is drawn: leaving it out again is the same.
        let body = json!({"name": "a", "address": "10.0.0.1:7400"});
        assert_eq!(bench.ask("POST", "/v1/groups/near/members", body).await.status, 200);
    });
}

#[test]
fn numbers_beyond_every_revision_are_answered() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let most = u64::MAX;
        let rows = bench.ask("GET", &format!("/v1/audit?after={most}&limit={most}"), Value::Null).await;
        assert_eq!((rows.status.as_u16(), parsed(&rows)), (200, json!({"items": []})));
        assert_eq!(bench.ask("GET", &format!("{ROUTING}?since={most}"), Value::Null).await.status, 200);
        let tag = format!("\"{most}\"");
        let stale = bench.ask_as(&bench.operator, "DELETE", "/v1/groups/near", Value::Null, Some(&tag)).await;
        problem(&stale, 412, "precondition-failed");
    });
}

#[test]
fn a_secret_with_quotes_in_the_wrong_place_is_not_repeated() {
    let bench = Bench::new();
    run(async {
        for secret in ["a\"wJalr\"b", "\"wJalr", "x\" at line wJalr", "`, expected wJalr\""] {
            for field in ["path_style", "names", "region"] {
                let mut body = json!({"name": "s", "endpoint": "https://s3.example.net", "bucket": "pictures"});
                body[field] = if field == "region" { json!({secret: secret}) } else { secret.into() };
                let reply = bench.ask("POST", "/v1/stores", body).await;
                problem(&reply, 400, "bad-body");
                assert!(!text(&reply).contains("wJalr"), "{}", text(&reply));
            }
        }
    });
}

#[test]
fn names_that_lead_elsewhere_name_nothing() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        for path in [
            "/v1/stores/main%27%20OR%20%271%27=%271",
            "/v1/stores/..",
            "/v1/stores/%2e%2e",
            "/v1/stores/main%00",
            "/v1/stores/MAIN",
            "/v1/volumes/pictures%2Fgroups%2Fnear",
        ] {
            for method in ["GET", "DELETE"] {
                problem(&bench.ask(method, path, Value::Null).await, 404, "no-such-record");
            }
        }
        problem(&bench.ask("GET", "/v1//stores", Value::Null).await, 404, "no-such-path");
        problem(&bench.ask("GET", "/v1/stores/", Value::Null).await, 404, "no-such-path");
        let body = json!({"name": "x'; DROP TABLE stores; --", "endpoint": "https://h", "bucket": "pictures"});
        problem(&bench.ask("POST", "/v1/stores", body).await, 400, "bad-body");
        let body = json!({"group": "far", "name": "c", "address": "10.0.0.3:7400"});
        problem(&bench.ask("POST", "/v1/groups/near/members", body).await, 400, "bad-body");
        assert_eq!(bench.ask("GET", "/v1/stores/main", Value::Null).await.status, 200);
    });
}

/// A registry where somebody else revokes whatever token was just looked at.
struct Meddled<'a>(&'a Sqlite);

impl Registry for Meddled<'_> {
    fn change(&self, change: &Change, by: &Actor) -> Result<Applied, RegistryError> {
        self.0.change(change, by)
    }

    fn look(&self, look: &mut dyn FnMut(&dyn View) -> Result<(), RegistryError>) -> Result<(), RegistryError> {
        self.0.look(look)?;
        let id = newest_token(self.0);
        keys::revoke(self.0, &id, &Actor { subject: "another".to_owned(), ..by() }).map(drop)
    }

    fn audit(&self, after: Revision, limit: usize) -> Result<Vec<AuditRow>, RegistryError> {
        self.0.audit(after, limit)
    }

    fn backup(&self, to: &std::path::Path) -> Result<(), RegistryError> {
        self.0.backup(to)
    }
}

#[test]
fn two_may_revoke_a_token_at_once() {
    let bench = Bench::new();
    issue(&bench.registry, Some(Role::Viewer), &[]);
    let id = newest_token(&bench.registry);
    let later = Actor { at: NOW + 9, ..by() };
    keys::revoke(&Meddled(&bench.registry), &id, &later).unwrap();
    let found = looked(&*bench.registry, |view| view.one(&RecordId::Token(id.clone()))).unwrap().unwrap();
    assert!(matches!(found.record, Record::Token(token) if token.revoked_at == Some(NOW)), "the first time counts");
}

#[test]
fn those_who_wait_are_bounded_and_the_others_are_answered() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let first = bench.ask("GET", ROUTING, Value::Null).await;
        let _all = bench.app.waits.try_acquire_many(u32::try_from(routing::WAITS_MAX).unwrap()).unwrap();
        let path = format!("{ROUTING}?since={}", tag(&first).trim_matches('"'));
        let waiting = format!("{path}&wait=30s");
        let refused =
            tokio::time::timeout(Duration::from_secs(20), bench.ask("GET", &waiting, Value::Null)).await.unwrap();
        assert!(problem(&refused, 503, "queue-full").contains("without `wait`"));
        assert!(refused.headers.contains_key(http::header::RETRY_AFTER));
        assert_eq!(bench.ask("GET", &path, Value::Null).await.status, 304);
        assert_eq!(bench.ask("GET", &format!("{ROUTING}?since=0&wait=30s"), Value::Null).await.status, 200);
    });
}

#[test]
fn nobodys_body_is_read_before_its_token() {
    let bench = Bench::new();
    run(async {
        let viewer = issue(&bench.registry, Some(Role::Viewer), &[]);
        for (token, status) in [("", 401), ("nonsense", 401), (&*viewer, 403), (&*bench.operator, 200)] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
            let uri = "/v1/stores".parse().unwrap();
            let found = bench.app.let_in(&Method::POST, &uri, &headers).await;
            assert_eq!(found.err().map_or(200, |reply| reply.status.as_u16()), status, "{token}");
        }
    });
}
