//! Keys that move while dirty blocks do not: a member comes or goes, and what the one before holds dirty is read, decided about and flushed as
//! if nothing had moved; when all is flushed nobody is asked any more.
//!
//! Part of `routing`. The store is away while keys move, so that nothing can have been flushed by chance.

use forebay::placement::{KeyHash, Member};
use forebay::routing::RoutedMember;
use reqwest::Method;
use serde_json::Value;

use crate::rig::{Answer, Deployment, Proxy, until};
use crate::{block, content, volume};

struct Moving {
    deployment: Deployment,
    proxies: Vec<Proxy>,
    token: String,
}

/// `near` of these members, the home of the volume, and `far` of one; the last of the proxies.
fn start(members: &[&str]) -> Moving {
    let deployment = Deployment::start();
    deployment.group("near");
    deployment.group("far");
    let mut proxies: Vec<Proxy> = members.iter().map(|name| deployment.proxy("near", name, "")).collect();
    proxies.push(deployment.proxy("far", "f", ""));
    volume(&deployment, "back", "near", &["--write", "back"]);
    deployment.control(&["attach", "back", "far"]);
    deployment.control(&["volume", "update", "back", "--home-group", "near"]);
    let (token, _) = deployment.token(&["--volume", "back", "--write"]);
    let moving = Moving { deployment, proxies, token };
    moving.settled();
    moving
}

impl Moving {
    fn ask(&self, proxy: &Proxy, method: Method, key: &str, body: Option<Vec<u8>>) -> Answer {
        self.deployment.ask(&proxy.base, method, &block("back", key), &self.token, body)
    }

    /// As a client does: again, while the members don't agree yet.
    fn patiently(&self, proxy: &Proxy, method: Method, key: &str, body: Option<Vec<u8>>) -> Answer {
        let agreed = || {
            let answer = self.ask(proxy, method.clone(), key, body.clone());
            (answer.problem().0 != "owner-unreachable").then_some(answer)
        };
        until("the members agree", agreed).0
    }

    fn get(&self, proxy: &Proxy, key: &str) -> Answer {
        self.patiently(proxy, Method::GET, key, None)
    }

    fn put(&self, proxy: &Proxy, key: &str, body: Vec<u8>) -> Answer {
        self.patiently(proxy, Method::PUT, key, Some(body))
    }

    fn update(&self, member: &str, state: &str) {
        self.deployment.control(&["member", "update", member, "--group", "near", "--state", state]);
    }

    fn standing(&self) -> Vec<Value> {
        self.deployment.json(&["member", "list", "--group", "near"])["items"].as_array().unwrap().clone()
    }

    /// Waits until nobody holds anything of others', and everybody that runs was told so.
    fn settled(&self) {
        until("all have settled", || self.standing().iter().all(|member| member.get("moved").is_none()).then_some(()));
        let revision = self.deployment.revision();
        for proxy in self.proxies.iter().filter(|proxy| proxy.is_running()) {
            // A token that is issued is no news.
            until("a proxy hears", || {
                let heard = self.deployment.status(proxy)["admin"]["revision"].as_u64().unwrap();
                (heard + 1 >= revision).then_some(())
            });
        }
    }

    fn ranked(&self, name: &str) -> Member {
        let member = self.deployment.json(&["member", "show", name, "--group", "near"]);
        serde_json::from_value::<RoutedMember>(member).unwrap().ranked().unwrap()
    }

    fn dirty(&self, proxy: &Proxy) -> u64 {
        self.deployment.status(proxy)["dirty_blocks"].as_u64().unwrap()
    }
}

/// The first `count` of `name-0`, `name-1`, … of which `members[at]` is first.
fn keys_of(members: &[Member], at: usize, name: &str, count: usize) -> Vec<String> {
    let keys = (0..).map(|number| format!("{name}-{number}"));
    keys.filter(|key| KeyHash::of("back", key).first(members) == Some(at)).take(count).collect()
}

#[test]
fn a_member_that_joins_leaves_what_is_dirty_to_the_one_that_has_it() {
    let mut moving = start(&["a"]);
    moving.deployment.stop_s3();
    // Written before anybody knows whose they will be: some of them move.
    let old: Vec<String> = (0..30).map(|number| format!("old-{number}")).collect();
    for (number, key) in old.iter().enumerate() {
        assert_eq!(moving.put(&moving.proxies[0], key, content(number)).status, 201);
    }
    let joined = moving.deployment.proxy("near", "b", "");
    moving.proxies.insert(1, joined);
    let members = [moving.ranked("a"), moving.ranked("b")];
    let moved: Vec<&String> = old.iter().filter(|key| KeyHash::of("back", key).first(&members) == Some(1)).collect();
    assert!(moved.len() > 5, "{moved:?}");
    let (a, b, f) = (&moving.proxies[0], &moving.proxies[1], &moving.proxies[2]);
    let number_of = |key: &str| key.strip_prefix("old-").unwrap().parse::<usize>().unwrap();
    // Few: each waits for the store that is away.
    for key in moved.iter().take(3) {
        for proxy in [b, f, a] {
            let answer = moving.get(proxy, key);
            assert!(answer.status == 200 && answer.body == content(number_of(key)), "{key} at {}", proxy.name);
        }
    }
    until("the admin hears of it", || {
        let standing = moving.standing();
        (standing[0]["moved"].as_u64() == Some(moved.len() as u64) && standing[1].get("moved").is_none()).then_some(())
    });
    // The one that holds a key decides about it, through whomever it is asked: the same again, other bytes, a delete, other bytes after it.
    for (at, key) in moved.iter().take(6).enumerate() {
        let proxy = [b, f, a][at % 3];
        assert_eq!(moving.put(proxy, key, content(number_of(key))).status, 200, "{key}");
        let other = moving.put(proxy, key, content(99));
        assert_eq!((other.status, other.problem().0.as_str()), (409, "key-exists"), "{key}");
        if at % 2 == 0 {
            assert_eq!(moving.patiently(proxy, Method::DELETE, key, None).status, 204, "{key}");
            assert_eq!(moving.get(b, key).problem().0, "no-such-block", "{key}");
        }
        if at % 4 == 0 {
            assert_eq!(moving.put(proxy, key, content(99)).status, 201, "{key}");
            assert!([a, b, f].iter().all(|proxy| moving.get(proxy, key).body == content(99)), "{key}");
        }
    }
    assert_eq!(moving.dirty(b), 0, "what moved stays where it is dirty");
    let new = keys_of(&members, 1, "new", 10);
    for (number, key) in new.iter().enumerate() {
        assert_eq!(moving.put([a, b, f][number % 3], key, content(number)).status, 201);
    }
    assert_eq!(moving.dirty(b), 10, "and what is new is its new owner's");
    moving.deployment.start_s3();
    until("all is flushed", || {
        (moving.dirty(&moving.proxies[0]) + moving.dirty(&moving.proxies[1]) == 0).then_some(())
    });
    for (at, key) in moved.iter().enumerate() {
        let expected = match at {
            0 | 4 => Some(content(99)),
            2 => None,
            _ => Some(content(number_of(key))),
        };
        assert!(moving.deployment.stored(&format!("back/{key}")) == expected, "{key}");
    }
    moving.settled();
    what_has_settled_is_nobody_elses_business(&mut moving, &members);
}

/// Nothing moves any more: what is the new member's is no other's business, though that one is dead.
fn what_has_settled_is_nobody_elses_business(moving: &mut Moving, members: &[Member]) {
    moving.proxies[0].kill();
    let (b, f) = (&moving.proxies[1], &moving.proxies[2]);
    for key in keys_of(members, 1, "late", 5) {
        for proxy in [b, f] {
            let answer = moving.ask(proxy, Method::GET, &key, None);
            assert_eq!((answer.status, answer.problem().0.as_str()), (404, "no-such-block"), "{}", proxy.name);
        }
        assert_eq!(moving.ask(f, Method::PUT, &key, Some(content(1))).status, 201);
    }
    for key in keys_of(members, 0, "late", 5) {
        assert_eq!(moving.ask(b, Method::GET, &key, None).problem().0, "owner-unreachable");
    }
}

#[test]
fn a_member_that_left_is_asked_until_it_has_flushed() {
    let mut moving = start(&["a", "b"]);
    let members = [moving.ranked("a"), moving.ranked("b")];
    moving.deployment.stop_s3();
    let held = keys_of(&members, 1, "held", 8);
    for (number, key) in held.iter().enumerate() {
        assert_eq!(moving.put(&moving.proxies[2], key, content(number)).status, 201);
    }
    moving.update("b", "draining");
    moving.update("b", "absent");
    let delete = ["member", "delete", "b", "--group", "near"];
    assert!(moving.deployment.refused(&delete).contains("--abandon-dirty"));
    for (number, key) in held.iter().enumerate().take(3) {
        for proxy in &moving.proxies {
            assert_eq!(moving.get(proxy, key).body, content(number), "{key} at {}", proxy.name);
        }
        let other = moving.put(&moving.proxies[0], key, content(99));
        assert_eq!((other.status, other.problem().0.as_str()), (409, "key-exists"), "{key}");
    }
    until("the admin hears of it", || (moving.standing()[1]["moved"] == 8).then_some(()));
    // It is gone with what it holds: of its keys nothing is said and nothing taken; those of others are as ever.
    moving.proxies[1].kill();
    moving.deployment.start_s3();
    let (a, f) = (&moving.proxies[0], &moving.proxies[2]);
    let (was_bs, was_as) = (keys_of(&members, 1, "none", 2), keys_of(&members, 0, "none", 2));
    for proxy in [a, f] {
        for key in [&held[0], &was_bs[0]] {
            assert_eq!(moving.ask(proxy, Method::GET, key, None).problem().0, "owner-unreachable", "{key}");
            let put = moving.ask(proxy, Method::PUT, key, Some(content(99)));
            assert_eq!(put.problem().0, "owner-unreachable", "{key}");
        }
        assert_eq!(moving.ask(proxy, Method::GET, &was_as[0], None).problem().0, "no-such-block");
    }
    assert_eq!(moving.ask(a, Method::PUT, &was_as[1], Some(content(1))).status, 201);
    assert!(moving.deployment.refused(&delete).contains("8 blocks"));
    // Back, it flushes, says so, and may go.
    let mut proxy = moving.proxies.remove(1);
    moving.deployment.start_proxy(&mut proxy);
    moving.proxies.insert(1, proxy);
    moving.settled();
    for (number, key) in held.iter().enumerate() {
        assert!(moving.deployment.stored(&format!("back/{key}")) == Some(content(number)), "{key}");
    }
    moving.deployment.control(&delete);
    moving.proxies[1].kill();
    for proxy in [&moving.proxies[0], &moving.proxies[2]] {
        assert_eq!(moving.get(proxy, &was_bs[0]).problem().0, "no-such-block");
        assert_eq!(moving.get(proxy, &held[0]).body, content(0));
    }
    assert_eq!(moving.put(&moving.proxies[0], &was_bs[1], content(2)).status, 201);
}

#[test]
fn what_a_member_holds_can_be_given_up() {
    let mut moving = start(&["a", "b"]);
    let members = [moving.ranked("a"), moving.ranked("b")];
    moving.deployment.stop_s3();
    let lost = &keys_of(&members, 1, "lost", 1)[0];
    assert_eq!(moving.put(&moving.proxies[2], lost, content(1)).status, 201);
    moving.update("b", "absent");
    moving.proxies[1].kill();
    moving.deployment.start_s3();
    assert!(moving.deployment.refused(&["member", "delete", "b", "--group", "near"]).contains("acknowledged writes"));
    moving.deployment.control(&["member", "delete", "b", "--group", "near", "--abandon-dirty"]);
    assert_eq!(moving.get(&moving.proxies[0], lost).problem().0, "no-such-block");
    assert_eq!(moving.put(&moving.proxies[2], lost, content(2)).status, 201);
}
