//! The interface as a client sees it, over a real database and without a network: who is let in, what is answered, what the document
//! says, and that whoever waits for a change hears of it.
//!
//! The network around it is `ci/tests/admin.rs`.

#![allow(clippy::unwrap_used)]

mod groups;
mod hostile;
mod standing;

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use http::header::{ETAG, IF_NONE_MATCH, WWW_AUTHENTICATE};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::admin::keys::Wish;
use crate::admin::sqlite::Sqlite;
use crate::routing::Routing;
use crate::token::{Claims, OperatorClaims, PublicKey, PublicKeys, SigningKey, generate_key};

const NOW: u64 = 1_800_000_000;

struct Bench {
    app: Arc<App>,
    registry: Arc<Sqlite>,
    stop: watch::Sender<Stage>,
    operator: String,
    _directory: TempDir,
}

fn by() -> Actor {
    Actor { subject: "test".to_owned(), token: String::new(), at: NOW }
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let registry = Arc::new(Sqlite::open(directory.path()).unwrap());
        keys::ensure_key(&*registry, &by()).unwrap();
        let (stop, stopping) = watch::channel(Stage::Serving);
        let app = Arc::new(App::new(registry.clone(), stopping, || NOW).unwrap());
        let operator = issue(&registry, Some(Role::Operator), &[]);
        Bench { app, registry, stop, operator, _directory: directory }
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Reply {
        self.ask_as(&self.operator, method, path, body, Some("*")).await
    }

    async fn ask_as(&self, token: &str, method: &str, path: &str, body: Value, if_match: Option<&str>) -> Reply {
        let mut headers = HeaderMap::new();
        if !token.is_empty() {
            headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        if let Some(tag) = if_match {
            headers.insert(IF_MATCH, tag.parse().unwrap());
        }
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        self.app.answer(method.parse().unwrap(), &path.parse().unwrap(), headers, body).await
    }

    /// A store, a write-through volume, a group with two members, attached.
    async fn populate(&self) {
        for (path, body) in [
            (
                "/v1/stores",
                json!({"name": "main", "endpoint": "https://s3.example.net", "bucket": "pictures", "credentials": "env"}),
            ),
            ("/v1/volumes", json!({"name": "pictures", "store": "main"})),
            ("/v1/groups", json!({"name": "near"})),
            ("/v1/groups/near/members", json!({"name": "a", "address": "10.0.0.1:7400"})),
            ("/v1/groups/near/members", json!({"name": "b", "address": "10.0.0.2:7400"})),
        ] {
            let reply = self.ask("POST", path, body).await;
            assert_eq!(reply.status, 201, "{path}: {}", text(&reply));
        }
        assert_eq!(self.ask("PUT", "/v1/volumes/pictures/groups/near", json!({})).await.status, 201);
    }

    fn keys(&self) -> PublicKeys {
        let mut keys = PublicKeys::default();
        for key in looked(&*self.registry, keys::records).unwrap() {
            assert!(keys.add(&key.id, PublicKey::parse(&key.public).unwrap()));
        }
        keys
    }
}

fn issue(registry: &Sqlite, role: Option<Role>, volumes: &[(&str, Right)]) -> String {
    let volumes = volumes.iter().map(|(name, right)| ((*name).to_owned(), *right)).collect();
    let wish = Wish { subject: "someone".to_owned(), role, group: None, volumes, ttl_seconds: 600 };
    keys::issue(registry, &wish, &by()).unwrap().1
}

fn text(reply: &Reply) -> String {
    String::from_utf8(reply.body.to_vec()).unwrap()
}

fn parsed(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {}", text(reply)))
}

fn problem(reply: &Reply, status: u16, slug: &str) -> String {
    let body = parsed(reply);
    assert_eq!(
        (reply.status.as_u16(), body["type"].as_str()),
        (status, Some(&*format!("urn:forebay:problem:{slug}"))),
        "{body}"
    );
    assert_eq!(reply.media_type, "application/problem+json");
    body["detail"].as_str().unwrap().to_owned()
}

fn tag(reply: &Reply) -> String {
    reply.headers[ETAG].to_str().unwrap().to_owned()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn every_route_is_in_the_document_and_nothing_else() {
    let document = document::document();
    assert_eq!(document["openapi"], "3.1.0");
    let mut told = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            told.insert(format!("{} {path}", method.to_uppercase()));
            assert!(
                names.insert(operation["operationId"].as_str().unwrap().to_owned()),
                "{path}: an operation's name twice"
            );
            let parameters = operation["parameters"].as_array().unwrap();
            for name in path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')) {
                assert!(
                    parameters.iter().any(|given| given["name"] == name && given["in"] == "path"),
                    "{path}: {name}"
                );
            }
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{method} {path}");
        }
    }
    let served: BTreeSet<_> = routes().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    assert_eq!(told, served);
    // The interface is a promise: whoever changes it changes this list.
    for promised in [
        "GET /v1/openapi.json",
        "GET /v1/status",
        "GET /v1/audit",
        "GET /healthz",
        "GET /v1/stores",
        "POST /v1/stores",
        "PUT /v1/volumes/{name}",
        "DELETE /v1/groups/{name}",
        "POST /v1/groups/{group}/members",
        "PUT /v1/groups/{group}/members/{name}",
        "PUT /v1/volumes/{volume}/groups/{group}",
        "DELETE /v1/volumes/{volume}/groups/{group}",
        "GET /v1/volumes/{volume}/routing",
        "GET /v1/volumes/{volume}/credentials",
        "GET /v1/groups/{group}/routing",
        "GET /v1/groups/{group}/standing",
        "PUT /v1/groups/{group}/members/{name}/standing",
        "POST /v1/tokens",
        "DELETE /v1/tokens/{id}",
        "GET /v1/keys",
        "POST /v1/keys",
        "DELETE /v1/keys/{id}",
    ] {
        assert!(served.contains(promised), "{promised}");
    }
    assert_eq!(served.len(), 40);
}

#[test]
fn the_document_refers_to_nothing_that_is_not_there() {
    fn walk<'a>(value: &'a Value, references: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                references.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| walk(value, references));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, references)),
            _ => (),
        }
    }
    let document = document::document();
    let mut references = Vec::new();
    walk(&document, &mut references);
    assert!(references.len() > 40);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let store = &schemas["Store"]["properties"];
    assert_eq!(store["credentials"]["writeOnly"], true);
    assert!(store["endpoint"]["description"].is_string());
}

#[test]
fn nobody_gets_in_without_a_good_token_and_nothing_is_left_behind() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let before = parsed(&bench.ask("GET", "/v1/status", Value::Null).await)["revision"].clone();
        let reader = issue(&bench.registry, None, &[("pictures", Right::Read)]);
        let writer = issue(&bench.registry, None, &[("pictures", Right::ReadWrite)]);
        let viewer = issue(&bench.registry, Some(Role::Viewer), &[]);
        let key = looked(&*bench.registry, |view| keys::current(view)).unwrap();
        let other = SigningKey::from_pem(&generate_key().unwrap()).unwrap();
        let claims = |id: &str, from: u64| OperatorClaims::new("mallory", Role::Operator, id, from, 60);
        let bad = [
            (String::new(), "no bearer token"),
            ("nonsense".to_owned(), "not an EdDSA JWT"),
            (claims("1", NOW).sign(&other).unwrap(), "does not know"),
            (claims("1", NOW - 100).sign(&key).unwrap(), "expired"),
            (claims("1", NOW + 100).sign(&key).unwrap(), "not valid yet"),
            (claims("1", NOW).sign(&key).unwrap(), "never issued"),
            (algorithm_none(&bench.operator), "not an EdDSA JWT"),
            (swapped_signature(&bench.operator, &viewer), "signature is wrong"),
        ];
        for route in routes().iter().filter(|route| route.need != Need::Nothing) {
            let path = filled(route.path);
            for (token, why) in &bad {
                let reply = bench.ask_as(token, route.method.as_str(), &path, json!({}), Some("*")).await;
                let detail = problem(&reply, 401, "unauthorized");
                assert!(detail.contains(why), "{path}: {detail}");
                assert!(reply.headers.contains_key(WWW_AUTHENTICATE));
            }
            for token in [&reader, &writer, &viewer] {
                let is_allowed = match route.need {
                    Need::Operator => false,
                    Need::Viewer => token == &viewer,
                    // The reader's volume is another one than the path's.
                    Need::Volume => token == &viewer,
                    Need::Group => false,
                    Need::AnyToken | Need::Nothing => true,
                };
                if !is_allowed {
                    let reply = bench.ask_as(token, route.method.as_str(), &path, json!({}), Some("*")).await;
                    problem(&reply, 403, "forbidden");
                }
            }
        }
        // A token of a volume opens its routing, and status and keys.
        assert_eq!(bench.ask_as(&reader, "GET", "/v1/volumes/pictures/routing", Value::Null, None).await.status, 200);
        assert_eq!(bench.ask_as(&reader, "GET", "/v1/keys", Value::Null, None).await.status, 200);
        let after = parsed(&bench.ask("GET", "/v1/status", Value::Null).await)["revision"].clone();
        // Three tokens were issued meanwhile, and nothing else was changed.
        assert_eq!(after.as_u64(), before.as_u64().map(|before| before + 3));
    });
}

/// A path that names nothing, for a template.
fn filled(template: &str) -> String {
    let segments = template.split('/').map(|segment| if segment.starts_with('{') { "nothing" } else { segment });
    segments.collect::<Vec<_>>().join("/")
}

/// What `token` says under another's signature.
fn swapped_signature(token: &str, other: &str) -> String {
    let (contents, _) = token.rsplit_once('.').unwrap();
    let (_, signature) = other.rsplit_once('.').unwrap();
    format!("{contents}.{signature}")
}

fn algorithm_none(token: &str) -> String {
    use base64::Engine as _;
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"forebay-operator"}"#);
    let parts: Vec<&str> = token.split('.').collect();
    format!("{header}.{}.", parts[1])
}

#[test]
fn revocation_and_the_end_of_a_key_end_tokens_at_once() {
    let bench = Bench::new();
    run(async {
        let request = json!({"subject": "ci", "role": "viewer", "ttl_seconds": 60});
        let issued = parsed(&bench.ask("POST", "/v1/tokens", request).await);
        let (token, id) = (issued["token"].as_str().unwrap(), issued["record"]["id"].as_str().unwrap());
        assert_eq!(bench.ask_as(token, "GET", "/v1/stores", Value::Null, None).await.status, 200);
        let listed = text(&bench.ask("GET", "/v1/tokens", Value::Null).await);
        assert!(listed.contains(id) && !listed.contains(token), "a token is shown once");
        let revoked = bench.ask("DELETE", &format!("/v1/tokens/{id}"), Value::Null).await;
        assert_eq!(parsed(&revoked)["revoked_at"], NOW);
        let again = bench.ask("DELETE", &format!("/v1/tokens/{id}"), Value::Null).await;
        assert_eq!((again.status.as_u16(), tag(&again)), (200, tag(&revoked)), "revoked once");
        let refused = bench.ask_as(token, "GET", "/v1/stores", Value::Null, None).await;
        assert!(problem(&refused, 401, "unauthorized").contains("revoked"));

        let old =
            parsed(&bench.ask("GET", "/v1/keys", Value::Null).await)["items"][0]["id"].as_str().unwrap().to_owned();
        assert_eq!(bench.ask("POST", "/v1/keys", json!({})).await.status, 201);
        let new = parsed(&bench.ask("POST", "/v1/tokens", json!({"subject": "ops", "role": "operator"})).await);
        assert_eq!(bench.ask("GET", "/v1/stores", Value::Null).await.status, 200, "the old key still verifies");
        let reply =
            bench.ask_as(new["token"].as_str().unwrap(), "DELETE", &format!("/v1/keys/{old}"), Value::Null, None).await;
        assert_eq!(reply.status, 204);
        problem(&bench.ask("GET", "/v1/stores", Value::Null).await, 401, "unauthorized");
    });
}

#[test]
fn what_cannot_be_issued_says_why() {
    let bench = Bench::new();
    run(async {
        for (request, field) in [
            (json!({"subject": "", "role": "viewer"}), "subject"),
            (json!({"subject": "x"}), "volumes"),
            (json!({"subject": "x", "role": "viewer", "volumes": {"v": "r"}}), "volumes"),
            (json!({"subject": "x", "role": "viewer", "ttl_seconds": 0}), "ttl_seconds"),
            (json!({"subject": "x", "role": "viewer", "ttl_seconds": keys::TOKEN_SECONDS_MAX + 1}), "ttl_seconds"),
        ] {
            let reply = bench.ask("POST", "/v1/tokens", request).await;
            problem(&reply, 400, "bad-body");
            assert_eq!(parsed(&reply)["field"], field);
        }
        let absent = bench.ask("POST", "/v1/tokens", json!({"subject": "x", "volumes": {"absent": "r"}})).await;
        assert!(problem(&absent, 404, "no-such-record").contains("volume absent"));
    });
}

#[test]
fn changes_take_the_revision_that_was_seen() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let path = "/v1/groups/near/members/a";
        let seen = bench.ask("GET", path, Value::Null).await;
        let mut body = parsed(&seen);
        body["state"] = "up".into();
        let put = |tag: Option<String>| {
            let (bench, body) = (&bench, body.clone());
            async move { bench.ask_as(&bench.operator, "PUT", path, body, tag.as_deref()).await }
        };
        problem(&put(None).await, 428, "precondition-required");
        problem(&put(Some("W/x".to_owned())).await, 400, "bad-condition");
        let changed = put(Some(tag(&seen))).await;
        assert_eq!((changed.status.as_u16(), parsed(&changed)["state"].as_str()), (200, Some("up")));
        assert!(problem(&put(Some("\"1\"".to_owned())).await, 412, "precondition-failed").contains("read it again"));
        let stale = bench.ask_as(&bench.operator, "DELETE", path, Value::Null, Some(&tag(&seen))).await;
        problem(&stale, 412, "precondition-failed");
        let in_use = bench.ask_as(&bench.operator, "DELETE", path, Value::Null, Some(&tag(&changed))).await;
        assert!(problem(&in_use, 409, "rule-refused").contains("draining"));
        body["name"] = "c".into();
        problem(&bench.ask("PUT", path, body).await, 400, "bad-body");
    });
}

#[test]
fn a_create_answers_the_same_again_and_tells_others_apart() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let body =
            json!({"name": "main", "endpoint": "https://s3.example.net", "bucket": "pictures", "credentials": "env"});
        let same = bench.ask("POST", "/v1/stores", body.clone()).await;
        assert_eq!((same.status.as_u16(), parsed(&same)["credentials_set"].as_bool()), (200, Some(true)));
        assert_eq!(parsed(&same).get("credentials"), None);
        let mut other = body;
        other["bucket"] = "others".into();
        problem(&bench.ask("POST", "/v1/stores", other).await, 409, "record-exists");
        let attached = bench.ask("PUT", "/v1/volumes/pictures/groups/near", json!({})).await;
        assert_eq!(attached.status, 200);
        problem(&bench.ask("PUT", "/v1/volumes/pictures/groups/far", json!({})).await, 404, "no-such-record");
        problem(&bench.ask("GET", "/v1/groups/far/members", Value::Null).await, 404, "no-such-record");
        problem(&bench.ask("PATCH", "/v1/stores", json!({})).await, 405, "method-not-allowed");
        problem(&bench.ask("GET", "/v1/nothing", Value::Null).await, 404, "no-such-path");
        problem(&bench.ask("GET", "/v1/audit?colour=red", Value::Null).await, 400, "bad-query");
        let first = parsed(&bench.ask("GET", "/v1/audit?limit=2", Value::Null).await);
        assert_eq!((first["items"].as_array().unwrap().len(), first["next"].as_u64()), (2, Some(2)));
    });
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    let bench = Bench::new();
    run(async {
        let secret = "wJalrXUtnFEMI/K7MDENG";
        for body in [
            json!({"name": "s", "endpoint": "https://s3.example.net", "bucket": "pictures", "credentials": secret}),
            json!({"name": "s", "endpoint": "https://s3.example.net", "bucket": "pictures", "path_style": secret}),
            json!({"name": "s", "endpoint": "https://s3.example.net", "bucket": "pictures", "names": secret}),
        ] {
            let reply = bench.ask("POST", "/v1/stores", body).await;
            problem(&reply, 400, "bad-body");
            assert!(!text(&reply).contains(secret), "{}", text(&reply));
        }
    });
}

#[test]
fn routing_is_signed_and_waits_for_news() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let first = bench.ask("GET", "/v1/volumes/pictures/routing", Value::Null).await;
        assert_eq!((first.status.as_u16(), first.media_type), (200, "application/jose"));
        let routing = Routing::open(&text(&first), &bench.keys()).unwrap();
        assert_eq!(format!("\"{}\"", routing.revision), tag(&first));
        assert_eq!(routing.groups[0].members.len(), 2);
        assert!(routing.groups[0].members.iter().all(|member| member.ranked().is_some()));
        assert!(!format!("{routing:?}").contains("credentials: Some"), "references stay with the admin");
        // The same revision is the same bytes, and is not sent again to whoever has it.
        assert_eq!(bench.ask("GET", "/v1/volumes/pictures/routing?since=0", Value::Null).await.body, first.body);
        let since = format!("/v1/volumes/pictures/routing?since={}", routing.revision);
        assert_eq!(bench.ask("GET", &since, Value::Null).await.status, 304);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {}", bench.operator).parse().unwrap());
        headers.insert(IF_NONE_MATCH, tag(&first).parse().unwrap());
        let path = "/v1/volumes/pictures/routing".parse().unwrap();
        assert_eq!(bench.app.answer(Method::GET, &path, headers, Bytes::new()).await.status, 304);

        // Waiters hear of what concerns them, and of nothing else.
        let waiting = format!("{since}&wait=30s");
        let wait = bench.ask("GET", &waiting, Value::Null);
        let change = async {
            assert_eq!(bench.ask("POST", "/v1/groups", json!({"name": "far"})).await.status, 201);
            let reply = bench
                .ask(
                    "PUT",
                    "/v1/groups/near/members/a",
                    json!({"name": "a", "address": "10.0.0.1:7400", "state": "up"}),
                )
                .await;
            assert_eq!(reply.status, 200);
            tag(&reply)
        };
        let (news, made) =
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(wait, change) }).await.unwrap();
        assert_eq!((news.status.as_u16(), tag(&news)), (200, made));
        let news = Routing::open(&text(&news), &bench.keys()).unwrap();
        assert_eq!(news.groups[0].members[0].state, crate::resource::MemberState::Up);

        // A wait ends by itself, and when the server stops.
        let since = format!("/v1/volumes/pictures/routing?since={}", news.revision);
        assert_eq!(bench.ask("GET", &format!("{since}&wait=50ms"), Value::Null).await.status, 304);
        let long = format!("{since}&wait=60s");
        let wait = bench.ask("GET", &long, Value::Null);
        let stop = async { bench.stop.send_replace(Stage::Stopping) };
        let (stopped, _) =
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(wait, stop) }).await.unwrap();
        assert_eq!(stopped.status, 304);
        problem(&bench.ask("GET", &format!("{since}&wait=soon"), Value::Null).await, 400, "bad-query");
        problem(&bench.ask("GET", "/v1/volumes/absent/routing", Value::Null).await, 404, "no-such-record");
    });
}

#[test]
fn a_routing_document_is_no_token_and_a_token_no_routing() {
    let bench = Bench::new();
    run(async {
        bench.populate().await;
        let document = text(&bench.ask("GET", "/v1/volumes/pictures/routing", Value::Null).await);
        problem(&bench.ask_as(&document, "GET", "/v1/stores", Value::Null, None).await, 401, "unauthorized");
        assert!(Routing::open(&bench.operator, &bench.keys()).is_err());
        let claims = Claims {
            iss: String::new(),
            sub: String::new(),
            iat: 0,
            nbf: 0,
            exp: u64::MAX,
            jti: String::new(),
            volumes: Default::default(),
        };
        let key = looked(&*bench.registry, |view| keys::current(view)).unwrap();
        assert!(Routing::open(&key.issue(&claims).unwrap(), &bench.keys()).is_err());
        let mut parts: Vec<&str> = document.split('.').collect();
        parts[2] = "AAAA";
        assert!(Routing::open(&parts.join("."), &bench.keys()).is_err());
    });
}
