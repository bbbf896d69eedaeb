//! Members that ask and write through each other: a block that only one has dirty is had from all, is never called absent where that one
//! can't be asked, and writes go to one member only.
//!
//! Part of `routing`. A group `near` of two members is the home of the volume, `far` serves it too.

use forebay::placement::{KeyHash, Member};
use forebay::routing::RoutedMember;
use reqwest::Method;

use crate::rig::{Answer, Deployment, Proxy, until};
use crate::{block, content, volume};

struct Groups {
    deployment: Deployment,
    /// `near-a`, `near-b`, `far-f`.
    proxies: Vec<Proxy>,
    near: Vec<Member>,
    token: String,
}

fn start() -> Groups {
    let deployment = Deployment::start();
    deployment.group("near");
    deployment.group("far");
    let proxies =
        vec![deployment.proxy("near", "a", ""), deployment.proxy("near", "b", ""), deployment.proxy("far", "f", "")];
    volume(&deployment, "back", "near", &["--write", "back"]);
    deployment.control(&["attach", "back", "far"]);
    deployment.control(&["volume", "update", "back", "--home-group", "near"]);
    let (token, _) = deployment.token(&["--volume", "back", "--write"]);
    let near = ["a", "b"].map(|name| {
        let member = deployment.json(&["member", "show", name, "--group", "near"]);
        serde_json::from_value::<RoutedMember>(member).unwrap().ranked().unwrap()
    });
    let revision = deployment.revision();
    let groups = Groups { deployment, proxies, near: near.to_vec(), token };
    groups.heard(revision - 1);
    groups.settled();
    groups
}

impl Groups {
    /// Waits until every proxy that runs serves this revision. A token that is issued is no news.
    fn heard(&self, revision: u64) {
        for proxy in self.proxies.iter().filter(|proxy| proxy.is_running()) {
            let heard = || self.deployment.status(proxy)["admin"]["revision"].as_u64().unwrap() >= revision;
            until("a proxy hears", || heard().then_some(()));
        }
    }

    /// Waits until every proxy that runs knows that nobody holds anything of others'.
    fn settled(&self) {
        until("all have settled", || {
            let listed = self.deployment.json(&["member", "list", "--group", "near"]);
            let members = listed["items"].as_array().unwrap();
            members.iter().all(|member| member.get("moved").is_none()).then_some(())
        });
        self.heard(self.deployment.revision() - 1);
    }

    /// Which of `near` is first for a key: 0 or 1.
    fn first(&self, key: &str) -> usize {
        KeyHash::of("back", key).first(&self.near).unwrap()
    }

    /// The first of `name-0`, `name-1`, … that is `near-b`'s.
    fn key_of_b(&self, name: &str) -> String {
        (0..).map(|number| format!("{name}-{number}")).find(|key| self.first(key) == 1).unwrap()
    }

    fn get(&self, proxy: usize, key: &str) -> Answer {
        self.deployment.get(&self.proxies[proxy], &block("back", key), &self.token)
    }

    fn put(&self, proxy: usize, key: &str, body: &[u8]) -> Answer {
        self.deployment.put(&self.proxies[proxy], &block("back", key), &self.token, body)
    }

    fn dirty(&self) -> Vec<u64> {
        let dirty = |proxy| self.deployment.status(proxy)["dirty_blocks"].as_u64().unwrap();
        self.proxies.iter().map(dirty).collect()
    }
}

fn cache_status(answer: &Answer) -> &str {
    answer.headers.get("cache-status").map_or("", |value| value.to_str().unwrap())
}

#[test]
fn a_block_that_one_member_has_dirty_is_written_and_read_through_all() {
    let mut groups = start();
    groups.deployment.stop_s3();
    let keys: Vec<String> = (0..24).map(|number| format!("k {number}/..%")).collect();
    let path = |key: &str| key.replace('%', "%25").replace(' ', "%20").replace('/', "%2F");
    let mut expected = [0, 0, 0];
    for (number, key) in keys.iter().enumerate() {
        let answer = groups.put(number % 3, &path(key), &content(number));
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!(answer.headers["forebay-durability"], "disk");
        expected[groups.first(key)] += 1;
    }
    assert_eq!(groups.dirty(), expected, "each at the member that is first in rank");
    assert!(expected[0] > 0 && expected[1] > 0);
    for (number, key) in keys.iter().enumerate() {
        for proxy in 0..3 {
            let answer = groups.get(proxy, &path(key));
            assert!(answer.status == 200 && answer.body == content(number), "{key} at {proxy}: {}", answer.status);
            let is_own = groups.first(key) == proxy;
            assert_eq!(cache_status(&answer).contains("detail=member"), !is_own, "{}", cache_status(&answer));
        }
        // Other bytes are refused by the one that knows, through any.
        let other = groups.put((number + 1) % 3, &path(key), &content(number + 1));
        assert_eq!((other.status, other.problem().0.as_str()), (409, "key-exists"));
    }
    groups.deployment.start_s3();
    until("all is flushed", || (groups.dirty() == [0, 0, 0]).then_some(()));
    // A delete through one is a delete for all.
    let key = groups.key_of_b("gone");
    assert_eq!(groups.put(2, &key, &content(1)).status, 201);
    assert_eq!(groups.get(2, &key).status, 200);
    let answer =
        groups.deployment.ask(&groups.proxies[2].base, Method::DELETE, &block("back", &key), &groups.token, None);
    assert_eq!(answer.status, 204);
    for proxy in 0..3 {
        assert_eq!(groups.get(proxy, &key).problem().0, "no-such-block", "{proxy}");
    }
}

#[test]
fn nothing_is_absent_while_a_holder_cannot_be_asked() {
    let mut groups = start();
    let stored = groups.key_of_b("stored");
    assert_eq!(groups.put(0, &stored, &content(1)).status, 201);
    until("it is flushed", || (groups.dirty() == [0, 0, 0]).then_some(()));
    for proxy in 0..3 {
        assert_eq!(groups.get(proxy, "nothing").problem().0, "no-such-block");
    }
    groups.deployment.stop_s3();
    let dirty = groups.key_of_b("dirty");
    assert_eq!(groups.put(2, &dirty, &content(2)).status, 201);
    groups.proxies[1].kill();
    groups.deployment.start_s3();
    let nothing = groups.key_of_b("nothing");
    for proxy in [0, 2] {
        for key in [&dirty, &nothing] {
            let answer = groups.get(proxy, key);
            assert_eq!((answer.status, answer.problem().0.as_str()), (503, "owner-unreachable"), "{key} at {proxy}");
        }
        // The store's bytes of an immutable volume are the right ones.
        let answer = groups.get(proxy, &stored);
        assert!(answer.status == 200 && answer.body == content(1));
        assert!(cache_status(&answer).contains("holder-unasked"), "{}", cache_status(&answer));
        let key = groups.key_of_b(&format!("new-{proxy}"));
        let answer = groups.put(proxy, &key, &content(3));
        assert_eq!((answer.status, answer.problem().0.as_str()), (503, "owner-unreachable"));
        assert!(answer.headers.contains_key("retry-after"));
        // A member that asks is answered for this one alone, and never passed on.
        let base = &groups.proxies[proxy].base;
        let peer = [("forebay-peer", "1")];
        let ask = |method, path: &str, body| groups.deployment.ask_with(base, method, path, &groups.token, body, &peer);
        assert_eq!(ask(Method::GET, &block("back", &nothing), None).status, 204, "nothing of it is here");
        assert_eq!(ask(Method::PUT, &block("back", &key), Some(content(3))).problem().0, "not-owner");
    }
    // Its return brings back what it alone had; its keys are written again.
    let mut proxy = groups.proxies.remove(1);
    groups.deployment.start_proxy(&mut proxy);
    groups.proxies.insert(1, proxy);
    for proxy in 0..3 {
        // The others try it again within a second.
        until("it is back", || (groups.get(proxy, &dirty).body == content(2)).then_some(()));
        // And "absent" is said again as soon as both go by the same placement.
        until("it is asked again", || (groups.get(proxy, &nothing).problem().0 == "no-such-block").then_some(()));
    }
    let (number, key) = (7, groups.key_of_b("again"));
    assert_eq!(groups.put(0, &key, &content(number)).status, 201);
}

#[test]
fn writes_go_to_who_is_up() {
    let groups = start();
    let key = groups.key_of_b("moved");
    groups.deployment.control(&["member", "update", "b", "--group", "near", "--state", "draining"]);
    groups.heard(groups.deployment.revision());
    groups.deployment.control(&["volume", "show", "back"]);
    assert_eq!(groups.put(2, &key, &content(1)).status, 201);
    let own = groups.deployment.status(&groups.proxies[0]);
    assert!(own["requests"]["outcomes"]["put"]["count"].as_u64() >= Some(1), "{own}");
    for proxy in 0..3 {
        assert_eq!(groups.get(proxy, &key).body, content(1), "{proxy}");
    }
}
