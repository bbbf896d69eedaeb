//! Real proxies that follow a real admin: volumes that come, change and leave while they serve; tokens that end; an admin that is gone.
//!
//! Run by `cargo test --test routing` as part of `ci/test`; `routing/rig` starts the processes, `routing/refusals` is the negative suite of
//! authentication. Times are polled, with a bound.

#![allow(clippy::unwrap_used)]

#[path = "routing/moving.rs"]
mod moving;
#[path = "routing/peers.rs"]
mod peers;
#[path = "routing/refusals.rs"]
mod refusals;
#[path = "routing/rig.rs"]
mod rig;

use std::time::Duration;

use forebay::placement::KeyHash;
use forebay::routing::RoutedMember;
use reqwest::Method;
use rig::{Deployment, Proxy, until};
use serde_json::json;

/// In which a change of the metadata is in effect at the proxies.
const SOON: Duration = Duration::from_secs(2);

fn block(volume: &str, key: &str) -> String {
    format!("/v1/volumes/{volume}/blocks/{key}")
}

fn content(number: usize) -> Vec<u8> {
    (0..2_000 + number * 97).map(|at| (at * 31 + number * 7) as u8).collect()
}

/// A volume that the group serves.
fn volume(deployment: &Deployment, name: &str, group: &str, more: &[&str]) {
    let prefix = format!("{name}/");
    let create = ["volume", "create", name, "--store", "main", "--prefix", &prefix, "--block-size", "64KiB"];
    deployment.control(&[&create[..], more].concat());
    deployment.control(&["attach", name, group]);
}

/// Waits until the proxy answers with this status and problem; how long that took.
fn answered(deployment: &Deployment, proxy: &Proxy, path: &str, token: &str, status: u16, kind: &str) -> Duration {
    let what = format!("{path}: {status} {kind}");
    until(&what, || {
        let answer = deployment.get(proxy, path, token);
        (answer.status == status && (kind.is_empty() || answer.problem().0 == kind)).then_some(())
    })
    .1
}

#[test]
fn what_the_admin_says_holds_at_running_proxies_within_two_seconds() {
    let deployment = Deployment::start();
    deployment.group("near");
    let proxy = deployment.proxy("near", "a", "");
    assert_eq!(deployment.status(&proxy)["volumes"], json!([]));
    volume(&deployment, "late", "near", &[]);
    let (token, _) = deployment.token(&["--volume", "late", "--write"]);
    let path = block("late", "k");
    let took = answered(&deployment, &proxy, &path, &token, 404, "no-such-block");
    assert!(took < SOON, "a new volume took {took:?}");
    assert_eq!(deployment.put(&proxy, &path, &token, &content(1)).status, 201);
    assert_eq!(deployment.get(&proxy, &path, &token).body, content(1));
    assert!(deployment.stored("late/k") == Some(content(1)));
    let status = deployment.status(&proxy);
    assert_eq!((&status["volumes"], &status["admin"]["member"]), (&json!(["late"]), &json!("a")));
    assert_eq!(status["admin"]["source"], "admin");

    // Changed: write-back from now on, then read-only.
    deployment.control(&["volume", "update", "late", "--write", "back"]);
    let (durability, took) = until("write-back", || {
        let answer = deployment.put(&proxy, &path, &token, &content(1));
        assert_eq!(answer.status, 200, "{answer:?}");
        let (other, _) = (block("late", &format!("n-{}", answer.headers["x-request-id"].to_str().unwrap())), ());
        let answer = deployment.put(&proxy, &other, &token, &content(2));
        assert_eq!(answer.status, 201, "{answer:?}");
        let durability = answer.headers["forebay-durability"].to_str().unwrap().to_owned();
        (durability == "disk").then_some(durability)
    });
    assert!(took < SOON, "{durability} took {took:?}");
    deployment.control(&["volume", "update", "late", "--write", "through"]);
    deployment.control(&["volume", "update", "late", "--read-only"]);
    let (_, took) = until("read-only", || {
        let answer = deployment.put(&proxy, &path, &token, &content(1));
        (answer.problem().0 == "volume-read-only").then_some(())
    });
    assert!(took < SOON, "read-only took {took:?}");
}

#[test]
fn tokens_and_keys_end_at_running_proxies_within_two_seconds() {
    let deployment = Deployment::start();
    deployment.group("near");
    volume(&deployment, "late", "near", &[]);
    let proxy = deployment.proxy("near", "a", "");
    let (token, id) = deployment.token(&["--volume", "late", "--write"]);
    let path = block("late", "k");
    assert_eq!(deployment.put(&proxy, &path, &token, &content(1)).status, 201);
    // A token that a connection has used, and the core remembers, ends; and one by a key that is new is good.
    assert_eq!(deployment.get(&proxy, &path, &token).status, 200);
    deployment.control(&["token", "delete", &id]);
    let took = answered(&deployment, &proxy, &path, &token, 401, "unauthorized");
    assert!(took < SOON, "a revocation took {took:?}");
    assert!(deployment.get(&proxy, &path, &token).problem().1.contains("revoked"));
    let (older, _) = deployment.token(&["--volume", "late"]);
    let key = deployment.json(&["key", "list"])["items"][0]["id"].as_str().unwrap().to_owned();
    deployment.control(&["key", "create"]);
    let (newer, _) = deployment.token(&["--volume", "late"]);
    let took = answered(&deployment, &proxy, &path, &newer, 200, "");
    assert!(took < SOON, "a key took {took:?}");
    assert_eq!(deployment.get(&proxy, &path, &older).status, 200);
    // The operator's own token is of the old key: whoever ends that key takes a new one first.
    let file = deployment.path("new.token");
    deployment.control(&["token", "create", "--role", "operator", "--out", &file]);
    std::fs::copy(&file, deployment.path("operator.token")).unwrap();
    let file = deployment.path("proxy.token");
    deployment.control(&["token", "create", "--group", "near", "--out", &file]);
    std::fs::copy(&file, deployment.path("near.token")).unwrap();
    deployment.control(&["key", "delete", &key]);
    let took = answered(&deployment, &proxy, &path, &older, 401, "unauthorized");
    assert!(took < SOON, "the end of a key took {took:?}");
    assert_eq!(deployment.get(&proxy, &path, &newer).status, 200);
}

#[test]
fn what_is_not_served_says_why() {
    let deployment = Deployment::start();
    deployment.group("near");
    volume(&deployment, "late", "near", &[]);
    let proxy = deployment.proxy("near", "a", "");
    let (newer, _) = deployment.token(&["--volume", "late", "--write"]);
    let path = block("late", "k");
    assert_eq!(deployment.put(&proxy, &path, &newer, &content(1)).status, 201);
    // What this version can't serve; what is detached.
    deployment.control(&["volume", "update", "late", "--revalidate", "30s"]);
    answered(&deployment, &proxy, &path, &newer, 404, "unknown-volume");
    assert!(deployment.get(&proxy, &path, &newer).problem().1.contains("immutable volumes only"));
    deployment.control(&["volume", "update", "late", "--revalidate", "none"]);
    answered(&deployment, &proxy, &path, &newer, 200, "");
    deployment.control(&["detach", "late", "near"]);
    let took = answered(&deployment, &proxy, &path, &newer, 404, "unknown-volume");
    assert!(took < SOON, "a detached volume took {took:?}");
}

#[test]
fn without_its_admin_a_proxy_starts_with_what_it_was_told_last() {
    let mut deployment = Deployment::start();
    deployment.group("near");
    volume(&deployment, "kept", "near", &[]);
    let mut proxy = deployment.proxy("near", "a", "");
    let (token, _) = deployment.token(&["--volume", "kept", "--write"]);
    let (ended, id) = deployment.token(&["--volume", "kept"]);
    let path = block("kept", "k");
    assert_eq!(deployment.put(&proxy, &path, &token, &content(1)).status, 201);
    deployment.control(&["token", "delete", &id]);
    answered(&deployment, &proxy, &path, &ended, 401, "unauthorized");
    let revision = deployment.status(&proxy)["admin"]["revision"].clone();
    deployment.kill_admin();
    assert_eq!(deployment.get(&proxy, &path, &token).body, content(1), "a running one goes on");
    proxy.kill();
    deployment.start_proxy(&mut proxy);
    assert_eq!(deployment.get(&proxy, &path, &token).body, content(1));
    assert_eq!(deployment.put(&proxy, &block("kept", "l"), &token, &content(2)).status, 201);
    assert_eq!(deployment.get(&proxy, &path, &ended).status, 401, "a revocation is remembered");
    let (status, _) = until("the admin is missed", || {
        let status = deployment.status(&proxy);
        status["admin"]["error"].is_string().then_some(status)
    });
    assert_eq!((&status["admin"]["source"], &status["admin"]["revision"]), (&json!("cache"), &revision));
    assert!(status["warnings"].as_array().unwrap().iter().any(|warning| warning.as_str().unwrap().contains("admin")));

    deployment.start_admin();
    volume(&deployment, "more", "near", &[]);
    let (token, _) = deployment.token(&["--volume", "more"]);
    answered(&deployment, &proxy, &block("more", "k"), &token, 404, "no-such-block");
    assert_eq!(deployment.status(&proxy)["admin"]["source"], "admin");
}

#[test]
fn a_volume_that_leaves_with_dirty_blocks_has_them_flushed_even_after_a_kill() {
    let mut deployment = Deployment::start();
    deployment.group("near");
    volume(&deployment, "back", "near", &["--write", "back"]);
    deployment.control(&["volume", "update", "back", "--home-group", "near"]);
    let mut proxy = deployment.proxy("near", "a", "");
    let (token, _) = deployment.token(&["--volume", "back", "--write"]);
    deployment.stop_s3();
    for number in 0..20 {
        let answer = deployment.put(&proxy, &block("back", &format!("k{number}")), &token, &content(number));
        assert_eq!((answer.status, answer.headers["forebay-durability"].to_str().unwrap()), (201, "disk"));
    }
    deployment.control(&["volume", "update", "back", "--home-group", "none"]);
    deployment.control(&["detach", "back", "near"]);
    answered(&deployment, &proxy, &block("back", "k0"), &token, 404, "unknown-volume");
    assert_eq!(deployment.status(&proxy)["admin"]["leaving_dirty_blocks"], json!({"back": 20}));
    proxy.kill();
    deployment.start_proxy(&mut proxy);
    assert_eq!(deployment.status(&proxy)["admin"]["leaving_dirty_blocks"], json!({"back": 20}));
    deployment.start_s3();
    until("nothing is dirty", || (deployment.status(&proxy)["dirty_blocks"] == 0).then_some(()));
    for number in 0..20 {
        assert!(deployment.stored(&format!("back/k{number}")) == Some(content(number)), "k{number}");
    }
    // It comes back as it was; another one of its name, elsewhere, does not.
    deployment.control(&["attach", "back", "near"]);
    answered(&deployment, &proxy, &block("back", "k0"), &token, 200, "");
    deployment.control(&["detach", "back", "near"]);
    deployment.control(&["volume", "delete", "back"]);
    deployment.control(&[
        "volume",
        "create",
        "back",
        "--store",
        "main",
        "--prefix",
        "elsewhere/",
        "--block-size",
        "64KiB",
    ]);
    deployment.control(&["attach", "back", "near"]);
    let (token, _) = deployment.token(&["--volume", "back"]);
    let path = block("back", "k0");
    until("it is refused", || {
        deployment.get(&proxy, &path, &token).problem().1.contains("another volume").then_some(())
    });
}

#[test]
fn a_strict_proxy_refuses_what_another_member_holds() {
    let deployment = Deployment::start();
    deployment.group("near");
    volume(&deployment, "shared", "near", &[]);
    let mut members = Vec::new();
    for (name, port) in [("b", 1), ("c", 2)] {
        let address = format!("127.0.0.1:{port}");
        members.push(deployment.json(&[
            "member",
            "create",
            name,
            "--group",
            "near",
            "--address",
            &address,
            "--state",
            "up",
        ]));
    }
    let proxy = deployment.proxy("near", "a", "strict = true");
    members.push(deployment.json(&["member", "show", "a", "--group", "near"]));
    let members: Vec<_> = members
        .into_iter()
        .map(|member| serde_json::from_value::<RoutedMember>(member).unwrap().ranked().unwrap())
        .collect();
    let (token, _) = deployment.token(&["--volume", "shared", "--write"]);
    let mut counts = [0, 0];
    for number in 0..60 {
        let key = format!("k{number}");
        let is_own = KeyHash::of("shared", &key).first(&members) == Some(2);
        let path = block("shared", &key);
        let put = deployment.put(&proxy, &path, &token, &content(number));
        let head = deployment.ask(&proxy.base, Method::HEAD, &path, &token, None);
        if is_own {
            assert_eq!((put.status, head.status), (201, 200), "{key}");
        } else {
            assert_eq!((put.status, put.problem().0.as_str(), head.status), (421, "not-owner", 421), "{key}");
        }
        counts[usize::from(is_own)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
    // Alone, everything is its own.
    for name in ["b", "c"] {
        deployment.control(&["member", "update", name, "--group", "near", "--state", "absent"]);
    }
    (0..60).for_each(|number| {
        let path = block("shared", &format!("k{number}"));
        until("it is alone", || (deployment.get(&proxy, &path, &token).status != 421).then_some(()));
    });
}
