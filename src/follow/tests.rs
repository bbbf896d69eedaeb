//! The follower and the real admin's interface over a real database, without a network: news arrive, keys rotate, revisions never fall, the disk
//! stands in for an admin that is away.
//!
//! Over TLS against the real process it is tried in `ci/tests/client.rs`.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::admin::api::{App, Stage};
use crate::admin::keys::{self, Wish};
use crate::admin::registry::{Actor, looked};
use crate::admin::sqlite::Sqlite;
use crate::token::{Right, Role};

const NOW: u64 = 1_800_000_000;
const BOUND: Duration = Duration::from_secs(20);

struct Bench {
    app: Arc<App>,
    registry: Arc<Sqlite>,
    operator: String,
    client: String,
    directory: TempDir,
    _stop: watch::Sender<Stage>,
}

impl Bench {
    async fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let registry = Arc::new(Sqlite::open(directory.path()).unwrap());
        keys::ensure_key(&*registry, &by()).unwrap();
        let (stop, stopping) = watch::channel(Stage::Serving);
        let app = Arc::new(App::new(registry.clone(), stopping, || NOW).unwrap());
        let operator = issue(&registry, Some(Role::Operator), &[]);
        let bench = Bench { app, registry, operator, client: String::new(), directory, _stop: stop };
        let store = json!({"name": "main", "endpoint": "https://s3.example.net", "bucket": "pictures"});
        bench.create("/v1/stores", store).await;
        bench.create("/v1/volumes", json!({"name": "v", "store": "main"})).await;
        bench.create("/v1/groups", json!({"name": "near"})).await;
        let answer = bench.send("PUT", "/v1/volumes/v/groups/near", json!({})).await;
        assert_eq!(answer, StatusCode::CREATED);
        let client = issue(&bench.registry, None, &[("v", Right::Read)]);
        Bench { client, ..bench }
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> StatusCode {
        let headers = bearer(&self.operator);
        let body = Bytes::from(body.to_string());
        self.app.answer(method.parse().unwrap(), &path.parse().unwrap(), headers, body).await.status
    }

    async fn create(&self, path: &str, body: Value) {
        assert_eq!(self.send("POST", path, body).await, StatusCode::CREATED, "{path}");
    }

    async fn add_member(&self, name: &str) {
        self.create("/v1/groups/near/members", json!({"name": name, "address": format!("{name}.example.net:7400")}))
            .await;
    }

    async fn rotate(&self) {
        self.create("/v1/keys", json!({})).await;
    }

    fn keys(&self) -> Vec<RoutedKey> {
        let keys = looked(&*self.registry, keys::records).unwrap();
        keys.into_iter().map(|key| RoutedKey { id: key.id, public: key.public }).collect()
    }

    fn cache(&self, pinned: &[RoutedKey]) -> Cache {
        Cache::new(&self.directory.path().join("routing"), "v", "https://admin/v", pinned)
    }

    fn asking(&self) -> Asked {
        Asked {
            app: Arc::clone(&self.app),
            token: Arc::new(Mutex::new(self.client.clone())),
            is_away: Arc::default(),
            long_polls_cut: Arc::default(),
            waits: Arc::default(),
            instead: Arc::default(),
        }
    }

    async fn follow(&self, asking: Asked, pinned: &[RoutedKey]) -> Result<Follower<Routing>, FollowError> {
        let pace = PaceSettings { refresh: Duration::from_millis(200), ..PaceSettings::default() };
        Follower::start_with(asking, "the admin".to_owned(), Some(self.cache(pinned)), pinned.to_vec(), pace).await
    }
}

/// The admin, in this process, with faults.
#[derive(Clone)]
struct Asked {
    app: Arc<App>,
    token: Arc<Mutex<String>>,
    is_away: Arc<AtomicBool>,
    long_polls_cut: Arc<AtomicBool>,
    waits: Arc<AtomicUsize>,
    instead: Arc<Mutex<VecDeque<String>>>,
}

impl Asking for Asked {
    async fn ask(&self, since: Option<Revision>, wait: Duration) -> Result<Answer, AskError> {
        let unreachable = |words: &str| Err(AskError::Unreachable(words.to_owned()));
        if self.is_away.load(Ordering::Relaxed) {
            return unreachable("away");
        }
        if let Some(document) = self.instead.lock().unwrap().pop_front() {
            return Ok(Answer::Document(document));
        }
        if !wait.is_zero() {
            self.waits.fetch_add(1, Ordering::Relaxed);
            if self.long_polls_cut.load(Ordering::Relaxed) {
                return unreachable("cut");
            }
        }
        let since = since.map_or_else(String::new, |since| format!("&since={since}"));
        let path = format!("/v1/volumes/v/routing?wait={}ms{since}", wait.as_millis());
        let headers = bearer(&self.token.lock().unwrap());
        let reply = self.app.answer("GET".parse().unwrap(), &path.parse().unwrap(), headers, Bytes::new()).await;
        match reply.status {
            StatusCode::OK => Ok(Answer::Document(String::from_utf8(reply.body.to_vec()).unwrap())),
            StatusCode::NOT_MODIFIED => Ok(Answer::Same),
            status => Err(AskError::Refused(status.to_string())),
        }
    }
}

fn by() -> Actor {
    Actor { subject: "test".to_owned(), token: String::new(), at: NOW }
}

fn issue(registry: &Sqlite, role: Option<Role>, volumes: &[(&str, Right)]) -> String {
    let volumes = volumes.iter().map(|(name, right)| ((*name).to_owned(), *right)).collect();
    let wish = Wish { subject: "someone".to_owned(), role, group: None, volumes, ttl_seconds: 600 };
    keys::issue(registry, &wish, &by()).unwrap().1
}

fn bearer(token: &str) -> HeaderMap {
    [(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())].into_iter().collect()
}

fn members(routing: &Routing) -> usize {
    routing.groups[0].members.len()
}

async fn until(follower: &Follower<Routing>, what: impl Fn(&Routing) -> bool) {
    let mut documents = follower.documents();
    let seen = tokio::time::timeout(BOUND, documents.wait_for(|document| what(document))).await;
    seen.expect("in time").unwrap();
}

#[tokio::test]
async fn news_arrive_by_long_poll_and_without() {
    let bench = Bench::new().await;
    let asking = bench.asking();
    let follower = bench.follow(asking.clone(), &[]).await.unwrap();
    assert_eq!(members(&follower.current()), 0);
    let deadline = Instant::now() + BOUND;
    while asking.waits.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "no long poll is under way");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.add_member("a").await;
    until(&follower, |routing| members(routing) == 1).await;

    // Where they are cut, by looking; the one that is under way still brings the first.
    asking.long_polls_cut.store(true, Ordering::Relaxed);
    for (count, name) in [(2, "b"), (3, "c"), (4, "d")] {
        bench.add_member(name).await;
        until(&follower, |routing| members(routing) == count).await;
    }
    let waits = asking.waits.load(Ordering::Relaxed);
    asking.long_polls_cut.store(false, Ordering::Relaxed);
    bench.add_member("e").await;
    until(&follower, |routing| members(routing) == 5).await;
    assert!(waits < 20, "{waits} long polls that could only be cut");
}

#[tokio::test]
async fn the_disk_stands_in_for_the_admin() {
    let bench = Bench::new().await;
    let asking = bench.asking();
    asking.is_away.store(true, Ordering::Relaxed);
    let nothing = bench.follow(asking.clone(), &[]).await.unwrap_err();
    assert!(nothing.to_string().contains("no copy of it on disk"), "{nothing}");
    asking.is_away.store(false, Ordering::Relaxed);
    bench.add_member("a").await;
    drop(bench.follow(asking.clone(), &[]).await.unwrap());

    asking.is_away.store(true, Ordering::Relaxed);
    let follower = bench.follow(asking.clone(), &[]).await.unwrap();
    assert_eq!((members(&follower.current()), follower.health().heard), (1, None));
    bench.add_member("b").await;
    asking.is_away.store(false, Ordering::Relaxed);
    until(&follower, |routing| members(routing) == 2).await;
    assert!(follower.health().heard.is_some());
}

#[tokio::test]
async fn a_lower_revision_never_counts() {
    let bench = Bench::new().await;
    let old = bench.asking().ask(None, Duration::ZERO).await.unwrap();
    let Answer::Document(old) = old else { panic!("nothing was known") };
    bench.add_member("a").await;
    let asking = bench.asking();
    let follower = bench.follow(asking.clone(), &[]).await.unwrap();
    asking.instead.lock().unwrap().push_back(old.clone());
    bench.add_member("b").await;
    until(&follower, |routing| members(routing) == 2).await;

    let mut trust = Trust::<Routing>::new(Vec::new());
    let Answer::Document(new) = bench.asking().ask(None, Duration::ZERO).await.unwrap() else { panic!("news") };
    assert!(trust.accept(&new, Origin::Admin).unwrap().is_some());
    assert_eq!(trust.accept(&new, Origin::Admin).unwrap(), None);
    let latest = trust.latest().unwrap().revision;
    assert!(matches!(trust.accept(&old, Origin::Admin), Err(Distrust::Older { seen, .. }) if seen == latest));
    assert_eq!(trust.latest().unwrap().revision, latest);
}

#[tokio::test]
async fn keys_rotate_and_only_introduced_ones_count() {
    let bench = Bench::new().await;
    let pinned = bench.keys();
    let asking = bench.asking();
    let follower = bench.follow(asking.clone(), &pinned).await.unwrap();
    bench.rotate().await;
    until(&follower, |routing| routing.keys.len() == 2).await;
    // The pinned key goes, and its tokens; the one that it introduced signs on, also for who starts from the disk.
    let operator = issue(&bench.registry, Some(Role::Operator), &[]);
    let client = issue(&bench.registry, None, &[("v", Right::Read)]);
    (*asking.token.lock().unwrap()).clone_from(&client);
    let bench = Bench { operator, client, ..bench };
    assert_eq!(bench.send("DELETE", &format!("/v1/keys/{}", pinned[0].id), Value::Null).await, StatusCode::NO_CONTENT);
    until(&follower, |routing| routing.keys.len() == 1).await;
    drop(follower);
    let follower = bench.follow(bench.asking(), &pinned).await.unwrap();
    bench.add_member("a").await;
    until(&follower, |routing| members(routing) == 1).await;

    // Whoever starts with pins that nobody introduced gets nothing; without pins the certificate decides.
    let other = Bench::new().await;
    let refused = other.follow(other.asking(), &pinned).await.unwrap_err();
    assert!(
        refused.to_string().contains("check the pinned keys") || format!("{refused:?}").contains("pinned"),
        "{refused}"
    );
    assert!(other.follow(other.asking(), &[]).await.is_ok());
}

#[test]
fn another_admins_document_and_a_changed_one_never_count() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (one, other) = (Bench::new().await, Bench::new().await);
        let document = |bench: &Bench| {
            let asking = bench.asking();
            async move {
                match asking.ask(None, Duration::ZERO).await.unwrap() {
                    Answer::Document(document) => document,
                    Answer::Same => panic!("nothing was known"),
                }
            }
        };
        let (ours, theirs) = (document(&one).await, document(&other).await);
        let mut trust = Trust::<Routing>::new(one.keys());
        assert_eq!(trust.accept(&theirs, Origin::Admin), Err(Distrust::Signature(Refusal::UnknownKey)));
        let mut changed = ours.clone().into_bytes();
        let at = changed.len() - 20;
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        for pins in [one.keys(), Vec::new()] {
            let mut trust = Trust::<Routing>::new(pins);
            assert_eq!(trust.accept(&changed, Origin::Admin), Err(Distrust::Signature(Refusal::BadSignature)));
            assert!(trust.accept("no.such.thing", Origin::Admin).is_err());
            assert!(trust.latest().is_none());
            assert!(trust.accept(&ours, Origin::Admin).is_ok());
        }
    });
}
