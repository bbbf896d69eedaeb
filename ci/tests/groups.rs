//! `forebay dev` as a deployment: the admin, the groups near and far, and what lies between them and their clients.
//!
//! Run by `cargo test --test groups` as part of `ci/test`, on the real binary.

#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::Value;

use running::{Directory, Running, block_on, dev, read_summary, signal, wait_until};
use rustix::process::Signal;

/// Far enough that no machine is that slow by itself most of the time: the least of many samples is taken.
const FAR_LATENCY: Duration = Duration::from_millis(40);

/// The address of a group's first member.
fn address(running: &Running, group: &str) -> String {
    let group = running.summary.groups.iter().find(|found| found.name == group).unwrap();
    group.members[0].address.clone()
}

/// The least of several round trips over a kept connection.
async fn round_trip(client: &Client, address: &str) -> Duration {
    let mut least = Duration::MAX;
    for _ in 0..12 {
        let began = Instant::now();
        let answer = client.head(format!("https://{address}/v1/ping")).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        least = least.min(began.elapsed());
    }
    least
}

#[test]
fn two_groups_an_admin_and_links_that_can_be_cut() {
    let directory = Directory::new();
    let mut command = dev(&directory.path);
    command.args(["--proxies", "1", "--far-proxies", "1", "--far-latency", "40ms"]);
    let mut running = Running::start_groups(&directory, command);
    let names: Vec<&str> = running.summary.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["near", "far"]);
    let (near, far) = (address(&running, "near"), address(&running, "far"));
    block_on(async {
        let client = running.client.clone();
        let (to_near, to_far) = (round_trip(&client, &near).await, round_trip(&client, &far).await);
        assert!(to_far >= FAR_LATENCY && to_near < to_far, "near {to_near:?}, far {to_far:?}");
        routing_names_the_relays(&running, &near, &far).await;

        running.link("near:cut");
        let impatient = || client.head(format!("https://{near}/v1/ping")).timeout(Duration::from_millis(300)).send();
        assert!(impatient().await.unwrap_err().is_timeout());
        round_trip(&client, running.summary.proxies[0].url.strip_prefix("https://").unwrap()).await;
        running.link("near:refused");
        let refused = impatient().await.unwrap_err();
        assert!(!refused.is_timeout(), "{refused:?}");
        running.link("near:up");
        round_trip(&client, &near).await;
        running.link("far:latency=0ms");
        assert!(round_trip(&client, &far).await < FAR_LATENCY);
    });
    let said = read_summary(&directory.path.join("dev.json")).unwrap();
    assert!(said.groups[1].link.starts_with("up, latency 0"), "{}", said.groups[1].link);
    admin_comes_back(&directory, &mut running);
    assert!(running.stop().success());
}

/// What a volume's token is told, and what an operator's is.
async fn routing_names_the_relays(running: &Running, near: &str, far: &str) {
    let admin = &running.summary.admin;
    let ask = |path: &str, token: &str| running.client.get(format!("{}{path}", admin.url)).bearer_auth(token).send();
    let routing = ask("/v1/volumes/demo-back/routing", &running.summary.token).await.unwrap();
    assert_eq!(routing.status(), StatusCode::OK);
    let signed = routing.text().await.unwrap();
    let keys = {
        let key = running.signing_key();
        let mut keys = forebay::token::PublicKeys::default();
        assert!(keys.add(key.id(), forebay::token::PublicKey::parse(key.public()).unwrap()));
        keys
    };
    let routing = forebay::routing::Routing::open(&signed, &keys).unwrap();
    let addresses: Vec<(&str, &str)> = routing
        .groups
        .iter()
        .flat_map(|group| group.members.iter().map(|member| (group.name.as_str(), member.address.as_str())))
        .collect();
    assert_eq!(addresses, [("far", far), ("near", near)]);
    assert_eq!(routing.volume.home_group.as_deref(), Some("near"));
    let refused = ask("/v1/volumes", &running.summary.token).await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let volumes = ask("/v1/volumes", &admin.operator_token).await.unwrap();
    let volumes: Value = serde_json::from_str(&volumes.text().await.unwrap()).unwrap();
    assert_eq!(volumes["items"].as_array().unwrap().len(), 2, "{volumes}");
}

/// Killed, missed, started again through the command line.
fn admin_comes_back(directory: &Directory, running: &mut Running) {
    let before = running.summary.admin.clone();
    signal(before.pid, Signal::KILL);
    let path = directory.path.join("dev.json");
    wait_until("the supervisor to miss the admin", || read_summary(&path).is_some_and(|said| said.admin.pid == 0));
    let output = dev(&directory.path).args(["--restart", "admin"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let after = read_summary(&path).unwrap().admin;
    assert_eq!((&after.url, &after.operator_token), (&before.url, &before.operator_token));
    assert_ne!(after.pid, 0);
    block_on(async {
        let asked = running.client.get(format!("{}/v1/groups", after.url)).bearer_auth(&after.operator_token);
        assert_eq!(asked.send().await.unwrap().status(), StatusCode::OK);
    });
}

#[test]
fn what_cannot_be_asked_is_refused_with_the_fix() {
    let directory = Directory::new();
    let refused = |args: &[&str], words: &str| {
        let output = dev(&directory.path).args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{args:?}: {said}");
    };
    refused(&["--link", "near:cut"], "no `forebay dev` runs");
    refused(&["--link", "near:sideways"], "latency=20ms");
    refused(&["--link", "near"], "GROUP:CHANGES");
    refused(&["--restart", "everything"], "or admin");
    refused(&["--link", "near:cut", "--proxies", "3"], "cannot be used with");
}
