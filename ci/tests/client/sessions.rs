//! Session credentials, end to end: a client without credentials of its own, an admin that asks the STS, a store that holds sessions to their prefix.
//!
//! Part of `client`. All proxies are dead while the client reads and writes by them; they are renewed at half their life, and end with the admin.

use std::time::{Duration, Instant};

use forebay::client::{Client, ClientError, Settings, StoreAccess, Via};
use forebay::dev::s3_server::ROLE;
use forebay::origin::CredentialSource;
use forebay::token::Right;
use rustix::process::Signal;
use rusty_s3::{Bucket, Credentials, S3Action as _, UrlStyle};
use serde_json::Value;

use super::{Bench, block_on, check, content, key, put, read, until};
use crate::running::{BOUND, signal};

const LASTS: Duration = Duration::from_secs(8);
const SIGNED_FOR: Duration = Duration::from_secs(60);

impl Bench {
    /// A client that has nothing of its own to ask the store with.
    async fn open_bare(&self, mode: &str) -> Client {
        let nowhere = self.directory.path.join("no-credentials");
        let credentials = CredentialSource::File { path: Some(nowhere), profile: None };
        let settings = Settings { credentials, directory: None, ..self.settings() };
        Client::open(settings, &self.running.volume(mode).name).await.unwrap()
    }

    /// The admin's answer to whoever holds `token`.
    async fn session(&self, mode: &str, token: Option<&str>) -> (u16, Value) {
        let url =
            format!("{}/v1/volumes/{}/credentials", self.running.summary.admin.url, self.running.volume(mode).name);
        let mut request = self.running.client.get(url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    }

    /// How the store answers to a session that asks for `name`.
    async fn asked(&self, session: &Credentials, method: &str, name: &str) -> u16 {
        let endpoint = format!("http://{}", self.options.addr).parse().unwrap();
        let (bucket, region) = (self.options.bucket.clone(), self.options.region.clone());
        let bucket = Bucket::new(endpoint, UrlStyle::Path, bucket, region).unwrap();
        let http = &self.running.client;
        let request = match method {
            "GET" => http.get(bucket.get_object(Some(session), name).sign(SIGNED_FOR)),
            "PUT" => http.put(bucket.put_object(Some(session), name).sign(SIGNED_FOR)).body("x"),
            "DELETE" => http.delete(bucket.delete_object(Some(session), name).sign(SIGNED_FOR)),
            _ => {
                let mut list = bucket.get_object(Some(session), "");
                list.query_mut().insert("list-type", "2");
                list.query_mut().insert("prefix", name);
                http.get(list.sign(SIGNED_FOR))
            }
        };
        request.send().await.unwrap().status().as_u16()
    }
}

fn obtained(client: &Client) -> Option<(Right, u64)> {
    match client.store_access() {
        StoreAccess::Session { right, obtained, .. } => Some((right, obtained)),
        _ => None,
    }
}

/// As rusty-s3 has them.
fn signer(given: &Value) -> Credentials {
    let text = |name: &str| given[name].as_str().unwrap().to_owned();
    Credentials::new_with_token(text("access_key"), text("secret_key"), text("session_token"))
}

#[test]
fn a_client_without_credentials_goes_by_a_session_that_opens_its_prefix_alone() {
    let bench = Bench::new("1", "1");
    let endpoint = format!("http://{}", bench.options.addr);
    let through = bench.running.volume("write-through").name.clone();
    block_on(async {
        let (status, said) = bench.session("write-through", Some(&bench.running.summary.token)).await;
        assert_eq!(status, 404, "the store has no STS yet: {said}");
        let seconds = LASTS.as_secs().to_string();
        let sts = ["--sts-endpoint", &endpoint, "--sts-role", ROLE, "--sts-seconds", &seconds];
        bench.control(&[&["store", "update", "origin"][..], &sts].concat());
        bench.control(&["volume", "update", &through, "--bypass", "always"]);

        let client = bench.open_bare("write-through").await;
        until("a session", BOUND, async || obtained(&client)).await;
        let first_seen = Instant::now();
        assert_eq!(obtained(&client), Some((Right::ReadWrite, 1)));
        for number in 0..6 {
            put(&client, number).await;
        }
        for proxy in 0..bench.running.summary.proxies.len() {
            bench.running.kill(proxy);
        }
        for number in 0..6 {
            check(&client, number).await;
        }
        assert_eq!(put(&client, 10).await, "the store");
        let block = client.get(&key(10), None).await.unwrap();
        assert_eq!((block.meta.via.clone(), block.bytes().await.unwrap()), (Via::Store, content(10)));
        client.delete(&key(10)).await.unwrap();
        // To a session the store does not say so by itself.
        assert_eq!(read(&client, 10).await, Err(ClientError::Absent));
        assert_eq!(client.head("plain").await, Err(ClientError::Absent), "others begin so");

        until("a renewal", LASTS, async || obtained(&client).filter(|(_, count)| *count > 1)).await;
        let renewed = first_seen.elapsed();
        println!("renewed after {renewed:?} of {LASTS:?}");
        assert!(
            renewed > LASTS / 2 - Duration::from_secs(2) && renewed < LASTS - Duration::from_secs(1),
            "{renewed:?}"
        );
        until("the first session to end", LASTS * 2, async || (first_seen.elapsed() > LASTS).then_some(())).await;
        check(&client, 3).await;

        nothing_else_is_open(&bench, &client).await;

        // Without the admin they last as long as they last.
        signal(bench.running.summary.admin.pid, Signal::KILL);
        check(&client, 3).await;
        until("the session to end", LASTS * 2, async || read(&client, 3).await.is_err().then_some(())).await;
        assert_eq!(client.store_access(), StoreAccess::None);
    });
}

async fn nothing_else_is_open(bench: &Bench, client: &Client) {
    let token = Some(bench.running.summary.token.as_str());
    let own = client.routing().volume.prefix.clone();
    let back = Client::open(bench.settings(), &bench.running.volume("write-back").name).await.unwrap();
    let other = back.routing().volume.prefix.clone();
    let (_, given) = bench.session("write-through", token).await;
    let (writes, name) = (signer(&given), format!("{own}plain/4"));
    assert_eq!((given["right"].as_str(), given["lasts_seconds"].as_u64() <= Some(LASTS.as_secs())), (Some("rw"), true));
    for (method, name, expected) in [
        ("GET", name.clone(), 200),
        ("PUT", format!("{own}scratch"), 200),
        ("DELETE", format!("{own}scratch"), 204),
        ("LIST", own.clone(), 200),
        ("GET", format!("{own}nothing"), 403),
        ("GET", format!("{other}plain/4"), 403),
        ("PUT", format!("{other}scratch"), 403),
        ("DELETE", format!("{other}plain/4"), 403),
        ("LIST", other.clone(), 403),
        ("LIST", String::new(), 403),
        ("GET", own.trim_end_matches('/').to_owned(), 403),
    ] {
        assert_eq!(bench.asked(&writes, method, &name).await, expected, "{method} {name}");
    }
    let text = |name: &str| given[name].as_str().unwrap().to_owned();
    let without_token = Credentials::new(text("access_key"), text("secret_key"));
    let wrong_token = Credentials::new_with_token(text("access_key"), text("secret_key"), "another".to_owned());
    for bad in [without_token, wrong_token] {
        assert!((400..=403).contains(&bench.asked(&bad, "GET", &name).await));
    }
    // A volume whose `bypass` is for reads: the same token writes nothing.
    let (_, given) = bench.session("write-back", token).await;
    let reads = signer(&given);
    assert_eq!(given["right"], "r");
    assert_eq!(bench.asked(&reads, "PUT", &format!("{other}scratch")).await, 403);
    assert_eq!(bench.asked(&reads, "LIST", &other).await, 200);
    let operator = bench.running.summary.admin.operator_token.as_str();
    assert_eq!(bench.session("write-back", Some(operator)).await.0, 403);
    assert_eq!(bench.session("write-back", None).await.0, 401);
    bench.control(&["volume", "update", &bench.running.volume("write-back").name, "--bypass", "never"]);
    assert_eq!(bench.session("write-back", token).await.0, 403);
}
