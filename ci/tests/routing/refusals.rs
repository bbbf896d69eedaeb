//! The negative suite of authentication, against a proxy and against its admin: what no token opens gets 401 or 403 with a reason,
//! everywhere, and leaves nothing behind.
//!
//! Part of `routing`. Tokens that no admin would issue are signed with its own key, taken from its database.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use forebay::token::{Claims, OperatorClaims, Right, Role, SigningKey, generate_key};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;

use crate::rig::{Deployment, Proxy, until};
use crate::{answered, block, content, volume};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(volume: &str, nbf: u64, exp: u64) -> Claims {
    Claims {
        iss: "forebay admin".to_owned(),
        sub: "mallory".to_owned(),
        iat: nbf,
        nbf,
        exp,
        jti: "00".repeat(16),
        volumes: [(volume.to_owned(), Right::ReadWrite)].into(),
    }
}

fn part(json: &str) -> String {
    URL_SAFE_NO_PAD.encode(json)
}

/// What nobody takes, and the reason that is given.
fn worthless(deployment: &Deployment, good: &str, other: &str) -> Vec<(&'static str, String, &'static str)> {
    let key = deployment.signing_key();
    let stranger = SigningKey::from_pem(&generate_key().unwrap()).unwrap();
    let (now, parts) = (now(), good.split('.').collect::<Vec<_>>());
    let none = part(&format!(r#"{{"alg":"none","typ":"JWT","kid":"{}"}}"#, key.id()));
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(key.id().to_owned());
    let by_hmac = |secret: &[u8]| {
        jsonwebtoken::encode(&header, &claims("open", now, now + 600), &EncodingKey::from_secret(secret)).unwrap()
    };
    let wider = part(&serde_json::to_string(&claims("open", now, now + 6_000)).unwrap());
    vec![
        ("none", String::new(), "no bearer token"),
        ("garbage", "garbage".to_owned(), "not an EdDSA JWT"),
        ("expired", key.issue(&claims("open", now - 600, now - 60)).unwrap(), "expired"),
        ("not yet valid", key.issue(&claims("open", now + 600, now + 1_200)).unwrap(), "not valid yet"),
        ("another key", stranger.issue(&claims("open", now, now + 600)).unwrap(), "does not know"),
        ("no algorithm", format!("{none}.{}.", parts[1]), "not an EdDSA JWT"),
        ("HMAC by the public key", by_hmac(key.public().as_bytes()), "not an EdDSA JWT"),
        ("HMAC by its bytes", by_hmac(&URL_SAFE_NO_PAD.decode(key.public()).unwrap()), "not an EdDSA JWT"),
        ("other claims", format!("{}.{wider}.{}", parts[0], parts[2]), "signature is wrong"),
        (
            "another's signature",
            format!("{}.{}.{}", parts[0], parts[1], other.rsplit('.').next().unwrap()),
            "signature is wrong",
        ),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), "signature is wrong"),
    ]
}

fn refused(deployment: &Deployment, base: &str, method: &Method, path: &str, token: &str, status: u16, why: &str) {
    let body = (*method == Method::PUT || *method == Method::POST).then(|| content(9));
    let answer = deployment.ask(base, method.clone(), path, token, body);
    let what = format!("{method} {base}{path}: {why}");
    assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
    if *method == Method::HEAD {
        return;
    }
    let (kind, detail) = answer.problem();
    assert_eq!(kind, if status == 401 { "unauthorized" } else { "forbidden" }, "{what}");
    assert!(detail.contains(why), "{what}: {detail}");
    assert!(status != 401 || answer.headers.contains_key("www-authenticate"), "{what}");
}

/// Everything that a token could open at a proxy.
fn proxy_requests() -> Vec<(Method, String)> {
    let path = block("open", "stolen");
    vec![
        (Method::GET, path.clone()),
        (Method::HEAD, path.clone()),
        (Method::PUT, path.clone()),
        (Method::DELETE, path),
        (Method::POST, "/v1/volumes/open/purge?key=stolen".to_owned()),
        (Method::GET, block("secret", "k")),
        (Method::GET, block("absent", "k")),
    ]
}

/// And at the admin.
fn admin_requests() -> Vec<(Method, String)> {
    let paths = [
        (Method::GET, "/v1/stores"),
        (Method::POST, "/v1/stores"),
        (Method::PUT, "/v1/volumes/open"),
        (Method::DELETE, "/v1/volumes/open"),
        (Method::GET, "/v1/tokens"),
        (Method::POST, "/v1/tokens"),
        (Method::POST, "/v1/keys"),
        (Method::GET, "/v1/audit"),
        (Method::PUT, "/v1/volumes/open/groups/far"),
        (Method::GET, "/v1/groups/near/routing"),
    ];
    paths.into_iter().map(|(method, path)| (method, path.to_owned())).collect()
}

#[test]
fn what_no_token_opens_is_refused_everywhere_and_leaves_nothing_behind() {
    let deployment = Deployment::start();
    deployment.group("near");
    deployment.group("far");
    volume(&deployment, "open", "near", &["--write", "back"]);
    volume(&deployment, "secret", "near", &[]);
    let proxy: Proxy = deployment.proxy("near", "a", "");
    let (good, _) = deployment.token(&["--volume", "open", "--write"]);
    let (reader, _) = deployment.token(&["--volume", "open"]);
    let (other, _) = deployment.token(&["--volume", "secret", "--write"]);
    let (ended, id) = deployment.token(&["--volume", "open", "--write"]);
    let kept = block("open", "kept");
    assert_eq!(deployment.put(&proxy, &kept, &good, &content(1)).status, 201);
    assert_eq!(deployment.get(&proxy, &kept, &ended).status, 200, "it is remembered");
    deployment.control(&["token", "delete", &id]);
    answered(&deployment, &proxy, &kept, &ended, 401, "unauthorized");
    let worthless = worthless(&deployment, &good, &reader);
    let operator = deployment.operator();
    let viewer = OperatorClaims::new("mallory", Role::Viewer, "0", now(), 600).sign(&deployment.signing_key()).unwrap();
    let member = std::fs::read_to_string(deployment.path("near.token")).unwrap().trim().to_owned();
    let far = std::fs::read_to_string(deployment.path("far.token")).unwrap().trim().to_owned();
    let revision = deployment.revision();

    for (method, path) in proxy_requests() {
        let ask = |token: &str, status, why| refused(&deployment, &proxy.base, &method, &path, token, status, why);
        worthless.iter().for_each(|(_, token, why)| ask(token, 401, why));
        // What opens the admin opens no volume.
        for token in [&operator, &viewer, &member] {
            ask(token, 401, "not an EdDSA JWT");
        }
        if path.contains("open") {
            ask(&ended, 401, "revoked");
            ask(&other, 403, "does not open this volume");
            if method != Method::GET && method != Method::HEAD {
                ask(&reader, 403, "for reading only");
            }
        } else if path.contains("secret") {
            ask(&good, 403, "does not open this volume");
        }
    }
    for (method, path) in admin_requests() {
        let ask =
            |token: &str, status, why| refused(&deployment, &deployment.admin_url, &method, &path, token, status, why);
        worthless.iter().for_each(|(_, token, why)| ask(token, 401, why));
        ask(&ended, 401, "revoked");
        // Signed by the admin's key, but never issued.
        ask(&viewer, 401, "never issued");
        for token in [&good, &reader, &other, &far] {
            ask(token, 403, "");
        }
        if path != "/v1/groups/near/routing" {
            ask(&member, 403, "proxy's");
        }
    }
    // A token replayed for another volume's routing.
    for (token, path) in [(&good, "/v1/volumes/secret/routing"), (&member, "/v1/volumes/open/routing")] {
        refused(&deployment, &deployment.admin_url, &Method::GET, path, token, 403, "");
    }

    assert_eq!(deployment.revision(), revision, "nothing was changed");
    assert_eq!(deployment.get(&proxy, &block("open", "stolen"), &good).status, 404);
    assert_eq!(deployment.get(&proxy, &kept, &good).body, content(1));
    until("all is flushed", || (deployment.status(&proxy)["dirty_blocks"] == 0).then_some(()));
    assert!(deployment.stored("open/kept") == Some(content(1)) && deployment.stored("open/stolen").is_none());
}

#[test]
fn a_token_ends_by_itself_also_where_it_is_remembered() {
    let deployment = Deployment::start();
    deployment.group("near");
    volume(&deployment, "open", "near", &[]);
    let proxy = deployment.proxy("near", "a", "");
    let (short, _) = deployment.token(&["--volume", "open", "--ttl", "1s"]);
    let path = block("open", "k");
    assert_eq!(deployment.get(&proxy, &path, &short).problem().0, "no-such-block");
    let took = answered(&deployment, &proxy, &path, &short, 401, "unauthorized");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(deployment.get(&proxy, &path, &short).problem().1.contains("expired"));
}
