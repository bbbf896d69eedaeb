//! What an attacker or a race does to the interface: tokens that outlive what they were issued for, waits that outlive their token, creates that
//! pass for others, numbers and strings at the edge.
//!
//! Each of these was once answered wrongly.

use super::*;
use crate::admin::registry::Report;
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

    fn report(&self, group: &str, member: &str, report: Report, by: &Actor) -> Result<Option<Revision>, RegistryError> {
        self.0.report(group, member, report, by)
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

const CREDENTIALS: &str = "/v1/volumes/pictures/credentials";

/// An STS that gives one answer, and hands on the form it was asked by.
fn sts_once(status: &'static str, answer: String) -> (String, std::thread::JoinHandle<String>) {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut request, mut buffer) = (String::new(), [0; 4_096]);
        while !request.contains("Policy=") || !request.ends_with("%7D") {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "{request}");
            request.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        let length = answer.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        stream.write_all(format!("{head}{answer}").as_bytes()).unwrap();
        request.rsplit_once("\r\n\r\n").unwrap().1.to_owned()
    });
    (endpoint, asked)
}

fn assumed(expiration: &str) -> String {
    format!(
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>S</SecretAccessKey>\
         <SessionToken>T</SessionToken><Expiration>{expiration}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
}

impl Bench {
    /// The store's STS is `endpoint` from now on, for sessions of half a day; its credentials are in `file`.
    async fn name_sts(&self, endpoint: &str, file: &std::path::Path) {
        let body = json!({
            "name": "main", "endpoint": "https://s3.example.net", "bucket": "pictures", "sts_endpoint": endpoint,
            "sts_role": "arn:aws:iam::1:role/r", "sts_seconds": 43_200, "credentials": format!("file:{}#p", file.display()),
        });
        let reply = self.ask("PUT", "/v1/stores/main", body).await;
        assert_eq!(reply.status, 200, "{}", text(&reply));
    }
}

#[test]
fn a_session_is_no_more_than_its_token_and_its_volume() {
    let bench = Bench::new();
    let file = bench._directory.path().join("store-keys");
    std::fs::write(&file, "[p]\naws_access_key_id = AK\naws_secret_access_key = SK\n").unwrap();
    run(async {
        bench.populate().await;
        let pictures = json!({"name": "pictures", "store": "main", "prefix": "p*/", "bypass": "always"});
        assert_eq!(bench.ask("PUT", "/v1/volumes/pictures", pictures).await.status, 409, "its prefix stays");
        let films = json!({"name": "films", "store": "main", "prefix": "f*/", "bypass": "always"});
        assert_eq!(bench.ask("POST", "/v1/volumes", films).await.status, 201);
        for (right, written) in [(Right::Read, false), (Right::ReadWrite, true)] {
            let token = issue(&bench.registry, None, &[("films", right)]);
            let (endpoint, asked) = sts_once("200 OK", assumed("2027-01-15T08:15:00Z"));
            bench.name_sts(&endpoint, &file).await;
            let reply = bench.ask_as(&token, "GET", "/v1/volumes/films/credentials", Value::Null, None).await;
            let given = parsed(&reply);
            assert_eq!((reply.status.as_u16(), given["lasts_seconds"].as_u64()), (200, Some(900)), "{}", text(&reply));
            assert_eq!(given["right"], if written { "rw" } else { "r" });
            let form = asked.join().unwrap();
            let fields: Vec<_> = url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
            let field = |name: &str| fields.iter().find(|(known, _)| known == name).unwrap().1.clone();
            assert_eq!(field("DurationSeconds"), "900", "the token lasts ten minutes, the store's sessions half a day");
            let policy = field("Policy");
            assert!(policy.contains("arn:aws:s3:::pictures/f${*}/*"), "{policy}");
            assert_eq!((policy.contains("s3:PutObject"), policy.contains("s3:DeleteObject")), (written, written));
        }
        let other = issue(&bench.registry, None, &[("films", Right::ReadWrite)]);
        problem(&bench.ask_as(&other, "GET", CREDENTIALS, Value::Null, None).await, 403, "forbidden");
        let revoked = newest_token(&bench.registry);
        assert_eq!(bench.ask("DELETE", &format!("/v1/tokens/{revoked}"), Value::Null).await.status, 200);
        let path = "/v1/volumes/films/credentials";
        problem(&bench.ask_as(&other, "GET", path, Value::Null, None).await, 401, "unauthorized");
    });
}

#[test]
fn who_holds_a_volumes_token_learns_nothing_of_the_operators_accounts_and_files() {
    let bench = Bench::new();
    let file = bench._directory.path().join("store-keys");
    run(async {
        bench.populate().await;
        let token = issue(&bench.registry, None, &[("pictures", Right::Read)]);
        let refusal = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>user arn:aws:iam::42:user/ops may not</Message></Error></ErrorResponse>";
        for (answer, has_file) in [
            (("403 Forbidden", refusal.to_owned()), true),
            // A clock that is wrong by a day.
            (("200 OK", assumed("2027-01-14T08:00:00Z")), true),
            (("200 OK", String::new()), false),
        ] {
            let (endpoint, asked) = sts_once(answer.0, answer.1);
            bench.name_sts(&endpoint, &file).await;
            let _ = std::fs::remove_file(&file);
            if has_file {
                std::fs::write(&file, "[p]\naws_access_key_id = AK\naws_secret_access_key = SK\n").unwrap();
            }
            let reply = bench.ask_as(&token, "GET", CREDENTIALS, Value::Null, None).await;
            let detail = problem(&reply, 502, "origin-unavailable");
            for secret in ["42", "arn:", "store-keys", "AK", "127.0.0.1"] {
                assert!(!detail.contains(secret), "{detail}");
            }
            if has_file {
                asked.join().unwrap();
            }
        }
    });
}
