//! Six real proxies and changes of who they are: which keys move, that clients and proxies agree on it without talking, and that nobody's
//! request fails meanwhile.
//!
//! Run by `cargo test --test membership` as part of `ci/test`; `ci/membership` asks the proxies for 100,000 keys instead of a few thousand.
//! `strict` proxies refuse what is not theirs and say whose it is: so each key is asked of one that must refuse it, and the name that it gives
//! is compared with the client's own plan. PLACEMENT.md's vectors are checked beside, by `ci/placement-vectors`.

#![allow(clippy::unwrap_used)]

mod background;
#[path = "routing/rig.rs"]
mod rig;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use background::Background;
use bytes::Bytes;
use forebay::client::plan::{GroupFacts, MemberFacts, ranked};
use forebay::client::{Client, OpenError, PutCondition, Settings};
use forebay::dev::relay::link::{Change, Condition, Link, Traffic};
use forebay::dev::relay::{Path, Relay};
use forebay::follow::bearer::Bearer;
use forebay::follow::pace::PaceSettings;
use forebay::origin::{CredentialSource, Keys};
use forebay::placement::KeyHash;
use forebay::routing::{RoutedGroup, RoutedMember};
use futures::{StreamExt as _, stream};
use reqwest::Certificate;
use rig::{ACCESS_KEY, BOUND, Deployment, Proxy, SECRET_KEY, until};
use serde_json::Value;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Requests under way at once while all keys are asked for.
const ASKING: usize = 64;
/// Keys whose shares are counted: enough that chance is far below the bounds.
const COUNTED: usize = 1_000_000;

fn key(number: usize) -> String {
    format!("block/{number}")
}

/// Who is first for keys, by the client's plan.
struct Plan {
    names: Vec<String>,
    facts: GroupFacts,
}

impl Plan {
    fn new(group: &RoutedGroup) -> Plan {
        let facts = |member: &RoutedMember| MemberFacts { ranked: member.ranked().unwrap(), state: member.state };
        Plan {
            names: group.members.iter().map(|member| member.name.clone()).collect(),
            facts: GroupFacts {
                name: group.name.clone(),
                members: group.members.iter().map(facts).collect(),
                holders: None,
            },
        }
    }

    fn first(&self, key: &str) -> &str {
        &self.names[ranked(&self.facts, KeyHash::of("through", key), 1)[0]]
    }

    fn firsts(&self) -> Vec<&str> {
        (0..COUNTED).map(|number| self.first(&key(number))).collect()
    }
}

/// The share of keys that moved, all of which must have moved from or to `name`.
fn moved(before: &[&str], after: &[&str], name: &str) -> f64 {
    let changed = before.iter().zip(after).filter(|(before, after)| before != after);
    let mut count = 0.0;
    for (from, to) in changed {
        assert!(*from == name || *to == name, "a key moved from {from} to {to}, and {name} is what changed");
        count += 1.0;
    }
    count / COUNTED as f64
}

/// Asks for each key at a member that it does not belong to, and at some keys' first one too.
async fn everybody_agrees(plan: &Plan, proxies: &[&Proxy], http: &reqwest::Client, token: &str, keys: usize) {
    let began = Instant::now();
    let bases: BTreeMap<&str, &str> =
        proxies.iter().map(|proxy| (proxy.name.trim_start_matches("near-"), proxy.base.as_str())).collect();
    let names: Vec<&str> = bases.keys().copied().collect();
    let bases = &bases;
    let ask = async |number: usize, at: &str| {
        let url = format!("{}/v1/volumes/through/blocks/{}", bases[at], key(number));
        let answer = http.get(url).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.bytes().await.unwrap())
    };
    let (ask, names) = (&ask, &names);
    let asked = stream::iter(0..keys).map(|number| async move {
        let first = plan.first(&key(number));
        let others: Vec<&&str> = names.iter().filter(|name| **name != first).collect();
        let other = others[number % others.len()];
        let (status, body) = ask(number, other).await;
        let problem: Value = serde_json::from_slice(&body).unwrap();
        let says = format!("ask member {first},");
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 421 && detail.starts_with(&says), "{}: {other} says {status} {detail:?}", key(number));
        if number % 100 == 0 {
            let (status, _) = ask(number, first).await;
            assert_eq!(status, 404, "{}: {first} has been named as the first", key(number));
        }
    });
    asked.buffer_unordered(ASKING).collect::<Vec<()>>().await;
    println!("{} members agree with the client on {keys} keys ({:.1?})", names.len(), began.elapsed());
}

struct Six {
    deployment: Deployment,
    proxies: Vec<Proxy>,
    token: String,
    background: Background,
}

impl Six {
    fn start(more: &str) -> Six {
        let deployment = Deployment::start();
        deployment.group("near");
        let proxies = NAMES.map(|name| deployment.proxy("near", name, more)).into();
        for (name, write) in [("through", "through"), ("back", "back")] {
            let prefix = format!("{name}/");
            let create = ["volume", "create", name, "--store", "main", "--prefix", &prefix, "--block-size", "64KiB"];
            deployment.control(&[&create[..], &["--write", write]].concat());
            deployment.control(&["attach", name, "near"]);
        }
        deployment.control(&["volume", "update", "back", "--home-group", "near"]);
        let (token, _) = deployment.token(&["--volume", "through", "--volume", "back", "--write"]);
        let six = Six { deployment, proxies, token, background: Background::start() };
        six.heard();
        six
    }

    /// Waits until every proxy serves by what a client that asks now is told.
    fn heard(&self) -> Plan {
        let client = self.open(&self.deployment.admin_url, "through").unwrap();
        let routing = client.routing();
        for proxy in &self.proxies {
            let heard = || self.deployment.status(proxy)["admin"]["revision"].as_u64().unwrap() >= routing.revision;
            until("a proxy hears", || heard().then_some(()));
        }
        Plan::new(&routing.groups[0])
    }

    fn settings(&self, admin: &str) -> Settings {
        let keys = Keys { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), session_token: None };
        Settings {
            ca: Some(self.deployment.path("tls.pem").into()),
            credentials: CredentialSource::Keys(keys),
            ..Settings::new(admin, Arc::new(Bearer::fixed(&self.token).unwrap()))
        }
    }

    fn open(&self, admin: &str, volume: &str) -> Result<Client, OpenError> {
        self.background.handle.block_on(Client::open(self.settings(admin), volume))
    }

    fn agree(&self, plan: &Plan, keys: usize) {
        let certificate = Certificate::from_pem(&std::fs::read(self.deployment.path("tls.pem")).unwrap()).unwrap();
        let http = reqwest::Client::builder().tls_certs_only([certificate]).no_proxy().timeout(BOUND).build().unwrap();
        let proxies: Vec<&Proxy> = self.proxies.iter().collect();
        self.background.handle.block_on(everybody_agrees(plan, &proxies, &http, &self.token, keys));
    }

    fn member(&self, name: &str, flags: &[&str]) {
        self.deployment.control(&[&["member", "update", name, "--group", "near"], flags].concat());
    }
}

#[test]
fn a_member_that_comes_or_goes_moves_its_own_keys_and_all_agree() {
    let keys = std::env::var("FOREBAY_KEYS").map_or(5_000, |keys| keys.parse().unwrap());
    let mut six = Six::start("strict = true");
    let plan = six.heard();
    let with_six = plan.firsts();
    six.agree(&plan, keys);

    six.proxies.push(six.deployment.proxy("near", "g", "strict = true"));
    let plan = six.heard();
    let with_seven = plan.firsts();
    let share = moved(&with_six, &with_seven, "g");
    println!("a seventh member: {share:.5} of {COUNTED} keys moved, 1/7 is {:.5}", 1.0 / 7.0);
    assert!((share * 7.0 - 1.0).abs() < 0.02, "{share}");
    six.agree(&plan, keys);

    six.member("g", &["--state", "draining"]);
    let draining = six.heard();
    assert!(draining.firsts() == with_six, "a member that leaves takes nothing with it");
    six.proxies.pop();
    six.member("g", &["--state", "absent"]);
    six.deployment.control(&["member", "delete", "g", "--group", "near"]);
    let plan = six.heard();
    assert!(plan.firsts() == with_six, "its keys are where they were, and no other moved");
    six.agree(&plan, keys);

    six.member("a", &["--weight", "200"]);
    let plan = six.heard();
    let weighted = plan.firsts();
    moved(&with_six, &weighted, "a");
    let count = |name: &str| weighted.iter().filter(|first| **first == name).count() as f64;
    for name in &NAMES[1..] {
        let ratio = count("a") / count(name);
        println!("weights 200 and 100: a has {ratio:.4} times the keys of {name}");
        assert!((ratio / 2.0 - 1.0).abs() < 0.03, "{name}: {ratio}");
    }
    assert_eq!(plan.facts.members[0].ranked.weight, NonZeroU32::new(200).unwrap());
    six.agree(&plan, keys);
}

/// What a client does while members change: puts blocks, reads them at once and again later. Nothing of it may fail.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(runtime: &tokio::runtime::Handle, clients: &[(String, Arc<Client>)]) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let begin = |(name, client): &(String, Arc<Client>)| {
            let (name, client, stop, done) = (name.clone(), Arc::clone(client), Arc::clone(&stop), Arc::clone(&done));
            runtime.spawn(async move {
                for number in 0_usize.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let put = client.put(&format!("{name}/{number}"), content(number), PutCondition::Any, None).await;
                    put.unwrap_or_else(|error| panic!("{name}: put {number}: {error}"));
                    for number in [number, number / 2, number * 7 / 8] {
                        let got = async { client.get(&format!("{name}/{number}"), None).await?.bytes().await }.await;
                        let got = got.unwrap_or_else(|error| panic!("{name}: get {number}: {error}"));
                        assert!(got == content(number), "{name}: other bytes for {number}");
                    }
                    done.fetch_add(4, Ordering::Relaxed);
                }
            })
        };
        let tasks = clients.iter().map(begin).collect();
        Load { stop, done, tasks }
    }

    /// Waits until some more was done since.
    fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        until("the load to go on", || {
            let is_dead = self.tasks.iter().any(tokio::task::JoinHandle::is_finished);
            (is_dead || self.done.load(Ordering::Relaxed) >= before + 200).then_some(())
        });
    }

    /// How many requests were made; none failed.
    fn end(self, runtime: &tokio::runtime::Handle) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            runtime.block_on(task).unwrap();
        }
        self.done.load(Ordering::Relaxed)
    }
}

fn content(number: usize) -> Bytes {
    (0..1_000 + number % 4_000).map(|at| (at * 31 + number * 7) as u8).collect()
}

/// A line to the admin on which no request lives for a second: looks pass, long polls are reset.
struct CutLine {
    url: String,
    link: Arc<Link>,
    /// Held while the line carries nothing.
    turn: Arc<Mutex<()>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    _relay: Relay,
}

impl CutLine {
    fn to(admin_url: &str) -> CutLine {
        let to = admin_url.trim_start_matches("https://").parse().unwrap();
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let link = Arc::new(Link::new(Condition::default()));
        let relay = Relay::start(vec![Path { listen, to, link: Arc::clone(&link) }]).unwrap();
        let (stop, turn) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(())));
        let (stopped, cut, turns) = (Arc::clone(&stop), Arc::clone(&link), Arc::clone(&turn));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                reset(&cut, &turns.lock().unwrap());
                std::thread::sleep(Duration::from_millis(700));
            }
        });
        CutLine { url: format!("https://{listen}"), link, turn, stop, thread: Some(thread), _relay: relay }
    }

    /// Whoever waits for this change at the other end of the line is not told.
    fn hides(&self, change: impl FnOnce()) {
        let turn = self.turn.lock().unwrap();
        self.link.change(&[Change::Traffic(Traffic::Cut)]);
        change();
        reset(&self.link, &turn);
    }
}

/// Ends all that is under way.
fn reset(link: &Link, _turn: &MutexGuard<'_, ()>) {
    link.change(&[Change::Traffic(Traffic::Refused)]);
    std::thread::sleep(Duration::from_millis(250));
    link.change(&[Change::Traffic(Traffic::Carried)]);
}

impl Drop for CutLine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(std::thread::JoinHandle::join));
    }
}

#[test]
fn no_request_fails_while_members_come_and_go_and_clients_hear_of_it_in_time() {
    let mut six = Six::start("");
    let line = CutLine::to(&six.deployment.admin_url);
    let mut clients = Vec::new();
    for (way, admin) in [("polls", six.deployment.admin_url.clone()), ("looks", line.url.clone())] {
        for volume in ["through", "back"] {
            let (client, _) = until("the routing through the line", || six.open(&admin, volume).ok());
            clients.push((format!("{way}-{volume}"), Arc::new(client)));
        }
    }
    let load = Load::start(&six.background.handle, &clients);
    load.goes_on();
    // It runs before it is given keys, as in a real deployment.
    six.proxies.push(six.deployment.proxy_in("joining", "near", "g", ""));
    let refresh = PaceSettings::default().refresh;
    for change in ["a seventh member comes", "a gets twice the weight", "the seventh leaves"] {
        let before: Vec<u64> = clients.iter().map(|(_, client)| client.routing().revision).collect();
        let began = Instant::now();
        line.hides(|| match change {
            "a gets twice the weight" => six.member("a", &["--weight", "200"]),
            "a seventh member comes" => six.member("g", &["--state", "up"]),
            _ => six.member("g", &["--state", "draining"]),
        });
        for ((name, client), before) in clients.iter().zip(before) {
            until("a client hears", || (client.routing().revision > before).then_some(()));
            let bound =
                if name.starts_with("polls") { Duration::from_secs(2) } else { refresh + Duration::from_secs(1) };
            println!("{change}: {name} heard within {:.2?}", began.elapsed());
            assert!(began.elapsed() < bound, "{name}: {:?}", began.elapsed());
        }
        load.goes_on();
    }
    println!("{} requests, none failed", load.end(&six.background.handle));
}
