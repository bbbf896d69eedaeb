//! The client library and its commands against the real binary: admin, two groups behind relays, a bucket that can go away.
//!
//! Run by `cargo test --test client` as part of `ci/test`. What is killed and cut here, and what must hold meanwhile: a read returns the last
//! acknowledged bytes or `owner-unreachable`, never "absent" and nothing older; see `src/client.rs`.

#![allow(clippy::unwrap_used)]

#[path = "client/hedged.rs"]
mod hedged;
#[path = "client/hot.rs"]
mod hot;
mod running;
#[path = "client/sessions.rs"]
mod sessions;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::client::{Client, ClientError, PutCondition, Settings, Via};
use forebay::dev::s3_server::{S3Server, S3ServerOptions};
use forebay::follow::bearer::Bearer;
use forebay::origin::{CredentialSource, Keys};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use rustix::process::Signal;
use serde_json::Value;

use running::{BOUND, Directory, Running, block_on, dev, signal};

/// A bucket that goes away and comes back, and a deployment in front of it.
struct Bench {
    options: S3ServerOptions,
    server: Option<S3Server>,
    running: Running,
    directory: Directory,
}

impl Bench {
    fn new(near: &str, far: &str) -> Bench {
        let directory = Directory::new();
        let options = S3ServerOptions {
            root: directory.path.join("outside"),
            addr: "127.0.0.1:0".parse().unwrap(),
            access_key: "client".to_owned(),
            secret_key: "client-secret".to_owned(),
            bucket: "bucket".to_owned(),
            region: "us-east-1".to_owned(),
            access_log: None,
        };
        let server = S3Server::start_with(&options).unwrap();
        let options = S3ServerOptions { addr: server.addr(), ..options };
        let mut command = dev(&directory.path);
        command.args(["--endpoint", &format!("http://{}", options.addr), "--bucket", &options.bucket]);
        command.args(["--proxies", near, "--far-proxies", far, "--far-latency", "20ms"]);
        command.env("AWS_ACCESS_KEY_ID", &options.access_key).env("AWS_SECRET_ACCESS_KEY", &options.secret_key);
        command.env_remove("AWS_SESSION_TOKEN").env_remove("AWS_REGION");
        let running = Running::start_groups(&directory, command);
        Bench { options, server: Some(server), running, directory }
    }

    fn outage(&mut self, is_away: bool) {
        self.server = None;
        if !is_away {
            self.server = Some(S3Server::start_with(&self.options).unwrap());
        }
    }

    fn settings(&self) -> Settings {
        let bearer = Arc::new(Bearer::fixed(&self.running.summary.token).unwrap());
        let keys = Keys {
            access_key: self.options.access_key.clone(),
            secret_key: self.options.secret_key.clone(),
            session_token: None,
        };
        Settings {
            ca: Some(self.running.summary.ca.clone()),
            directory: Some(self.directory.path.join("routing")),
            credentials: CredentialSource::Keys(keys),
            deadline: Duration::from_secs(10),
            ..Settings::new(&self.running.summary.admin.url, bearer)
        }
    }

    async fn open(&self, mode: &str) -> Client {
        Client::open(self.settings(), &self.running.volume(mode).name).await.unwrap()
    }

    /// A command of the binary, as a user of this deployment calls it.
    fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(arguments)
            .env("HOME", &self.directory.path)
            .env_remove("XDG_CACHE_HOME")
            .env("FOREBAY_ADMIN", &self.running.summary.admin.url)
            .env("FOREBAY_TOKEN", &self.running.summary.token)
            .env("FOREBAY_CA", &self.running.summary.ca)
            .env("AWS_ACCESS_KEY_ID", &self.options.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.options.secret_key)
            .output()
            .unwrap()
    }

    fn control(&self, arguments: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(arguments)
            .env("HOME", &self.directory.path)
            .env("FOREBAY_ADMIN", &self.running.summary.admin.url)
            .env("FOREBAY_TOKEN", &self.running.summary.admin.operator_token)
            .env("FOREBAY_CA", &self.running.summary.ca)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn content(number: u64) -> Bytes {
    let mut rng = SmallRng::seed_from_u64(0xc11e_4700 + number);
    let mut content = vec![0; 1 + usize::try_from(number * 7_919 % 200_000).unwrap()];
    rng.fill_bytes(&mut content);
    content.into()
}

fn key(number: u64) -> String {
    match number % 4 {
        0 => format!("plain/{number}"),
        1 => format!("with space+plus%percent?#/{number}"),
        2 => format!("a/../b//{number}"),
        _ => format!("grüße/{number}"),
    }
}

async fn put(client: &Client, number: u64) -> String {
    let done = client.put(&key(number), content(number), PutCondition::Any, None).await;
    match done.unwrap_or_else(|error| panic!("{}: {error}", key(number))).via {
        Via::Member { member, .. } => member,
        Via::Store => "the store".to_owned(),
    }
}

async fn read(client: &Client, number: u64) -> Result<Bytes, ClientError> {
    client.get(&key(number), None).await?.bytes().await
}

async fn check(client: &Client, number: u64) {
    let got = read(client, number).await.unwrap_or_else(|error| panic!("{}: {error}", key(number)));
    assert!(got == content(number), "other bytes for {}", key(number));
}

async fn until<T>(what: &str, bound: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn blocks_are_put_read_and_deleted_and_changes_arrive() {
    let bench = Bench::new("2", "1");
    block_on(async {
        for mode in ["write-back", "write-through"] {
            let client = bench.open(mode).await;
            let mut members = BTreeSet::new();
            for number in 0..16 {
                members.insert(put(&client, number).await);
            }
            assert_eq!(members.len(), 2, "{mode}: both members of the home group hold some: {members:?}");
            for number in 0..16 {
                check(&client, number).await;
                let meta = client.head(&key(number)).await.unwrap();
                assert_eq!(meta.len_bytes, content(number).len() as u64);
                let part = client.get(&key(number), Some(0..1)).await.unwrap().bytes().await.unwrap();
                assert_eq!(part, content(number).slice(0..1));
            }
            let again = client.put(&key(3), content(3), PutCondition::Any, None).await.unwrap();
            assert!(again.unchanged);
            let other = client.put(&key(3), content(4), PutCondition::Any, None).await;
            assert_eq!(other, Err(ClientError::KeyExists));
            let absent = client.put(&key(3), content(3), PutCondition::Absent, None).await;
            assert_eq!(absent, Err(ClientError::PreconditionFailed));
            assert!(matches!(client.get(&key(3), Some(1 << 30..1 << 31)).await.err(), Some(ClientError::BadRange(_))));
            client.delete(&key(5)).await.unwrap();
            assert_eq!(read(&client, 5).await, Err(ClientError::Absent));
            assert_eq!(client.head("never/there").await, Err(ClientError::Absent));
            assert_eq!(client.selected().as_deref(), Some("near"));
        }
        let client = bench.open("write-back").await;
        let before = client.routing().revision;
        let began = Instant::now();
        bench.control(&[
            "member",
            "update",
            &bench.running.summary.groups[1].members[0].name,
            "--group",
            "far",
            "--weight",
            "7",
        ]);
        until("the routing to change", BOUND, async || (client.routing().revision > before).then_some(())).await;
        eprintln!("a change of membership arrived {:?} after the command began", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(4), "by long poll: {:?}", began.elapsed());
    });
    commands(&bench);
}

/// The same from a shell.
fn commands(bench: &Bench) {
    let volume = bench.running.volume("write-back").name.clone();
    let file = bench.directory.path.join("file");
    std::fs::write(&file, content(77)).unwrap();
    let file = file.to_str().unwrap();
    let succeeded = |arguments: &[&str]| {
        let output = bench.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    succeeded(&["put", &volume, "from/a shell", file]);
    assert_eq!(succeeded(&["get", &volume, "from/a shell"]), content(77));
    assert_eq!(succeeded(&["get", &volume, "from/a shell", "--range", "0-9"]), content(77).slice(..10));
    let copy = bench.directory.path.join("copy");
    succeeded(&["get", &volume, "from/a shell", "-o", copy.to_str().unwrap()]);
    assert_eq!(std::fs::read(&copy).unwrap(), content(77));
    let head: Value = serde_json::from_slice(&succeeded(&["head", &volume, "from/a shell", "--json"])).unwrap();
    assert_eq!(head["bytes"], content(77).len());
    let listed = until_listed(bench, &volume, "from/");
    assert!(listed.contains("from/a shell"), "{listed}");
    succeeded(&["rm", &volume, "from/a shell"]);
    assert_eq!(bench.command(&["get", &volume, "from/a shell"]).status.code(), Some(3));
    let probed: Value = serde_json::from_slice(&succeeded(&["probe", &volume, "--json"])).unwrap();
    let groups = probed["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{probed}");
    for group in groups {
        assert_eq!((&group["reachable"], &group["selected"]), (&true.into(), &(group["name"] == "near").into()));
        assert!(group["rtt_ms"].as_f64().unwrap() > 0.0 && !group["members"].as_array().unwrap().is_empty());
    }
    let table = String::from_utf8(succeeded(&["probe", &volume])).unwrap();
    assert!(table.contains("near (home)") && table.contains('*'), "{table}");
    let checked = String::from_utf8(succeeded(&["check", &volume])).unwrap();
    assert!(checked.contains("ok") && !checked.contains("FAILED"), "{checked}");
    let refused = bench.command(&["get", &volume, "x", "--group", "nowhere"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nowhere"));
    assert_eq!(bench.command(&["get", "No Such", "x"]).status.code(), Some(2));
}

/// Lists come from the store, where a block arrives when it is flushed.
fn until_listed(bench: &Bench, volume: &str, prefix: &str) -> String {
    let deadline = Instant::now() + BOUND;
    loop {
        let output = bench.command(&["ls", volume, prefix]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if !output.stdout.is_empty() {
            return String::from_utf8(output.stdout).unwrap();
        }
        assert!(Instant::now() < deadline, "nothing is listed");
    }
}

#[test]
fn a_dead_holder_is_never_taken_for_an_absent_block() {
    let mut bench = Bench::new("2", "1");
    block_on(async {
        let client = bench.open("write-back").await;
        for number in 0..12 {
            put(&client, number).await;
        }
        bench.running.wait_flushed().await;
        bench.outage(true);
        let victim = bench.running.summary.groups.iter().find(|group| group.name == "near").unwrap().members[0].clone();
        let mut orphans = BTreeSet::new();
        for number in 12..40 {
            if put(&client, number).await == victim.name {
                orphans.insert(number);
            }
        }
        println!("{} blocks are dirty, {} of them on the member that is killed", 40 - 12, orphans.len());
        assert!(!orphans.is_empty() && orphans.len() < 28, "both members must hold some: {orphans:?}");
        bench.running.kill(victim.proxy);
        bench.outage(false);
        for number in 0..40 {
            let began = Instant::now();
            match read(&client, number).await {
                Ok(got) => assert!(got == content(number), "other bytes for {}", key(number)),
                Err(ClientError::OwnerUnreachable(_)) if orphans.contains(&number) => {}
                Err(error) => panic!("{} ({}): {error}", key(number), orphans.contains(&number)),
            }
            assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
        }
        // A block that nobody ever had might be on it too, if it would belong there.
        let volume = bench.running.volume("write-back").name.clone();
        let mut names = (0..).map(|number| format!("never/{number}"));
        let theirs = names.find(|key| bench.running.first_in_rank(&volume, key) == victim.proxy).unwrap();
        assert!(matches!(client.head(&theirs).await, Err(ClientError::OwnerUnreachable(_))));
        let unreachable = client.counters().owner_unreachable.load(Ordering::Relaxed);
        assert!(unreachable as usize > orphans.len(), "{unreachable}");
        // A write that belongs on it goes nowhere else.
        let refused = client.put(&key(*orphans.first().unwrap()), content(1), PutCondition::Any, None).await;
        assert!(matches!(refused, Err(ClientError::OwnerUnreachable(_))), "{refused:?}");

        bench.running.restart(victim.proxy);
        until("the member to be asked again", BOUND, async || read(&client, *orphans.first().unwrap()).await.ok())
            .await;
        for number in 0..40 {
            check(&client, number).await;
        }
        assert_eq!(client.head(&theirs).await, Err(ClientError::Absent));
    });
}

#[test]
fn groups_that_are_cut_are_left_and_come_back_to_and_the_store_is_the_last_resort() {
    let bench = Bench::new("1", "1");
    block_on(async {
        let client = bench.open("write-back").await;
        for number in 0..8 {
            put(&client, number).await;
        }
        bench.running.wait_flushed().await;
        check(&client, 0).await;
        assert_eq!(client.selected().as_deref(), Some("near"));

        bench.running.link("near:cut");
        let cut = Instant::now();
        until("the client to leave the group", Duration::from_secs(5), async || {
            check(&client, 1).await;
            (client.selected().as_deref() == Some("far")).then_some(())
        })
        .await;
        println!("left for far after {:?}", cut.elapsed());
        for number in 0..8 {
            check(&client, number).await;
        }
        // The holder of whatever is dirty is behind the cut.
        assert!(matches!(read(&client, 900).await, Err(ClientError::OwnerUnreachable(_))));

        bench.running.link("far:refused");
        for number in 0..8 {
            check(&client, number).await;
        }
        assert!(client.counters().bypassed_reads.load(Ordering::Relaxed) > 0, "by the store itself");
        assert!(matches!(read(&client, 900).await, Err(ClientError::OwnerUnreachable(_))));
        let part = client.get(&key(7), Some(1..3)).await.unwrap().bytes().await.unwrap();
        assert_eq!(part, content(7).slice(1..3));

        bench.running.link("far:up");
        bench.running.link("near:up");
        until("the client to come back", BOUND, async || (client.selected().as_deref() == Some("near")).then_some(()))
            .await;
        assert_eq!(read(&client, 900).await, Err(ClientError::Absent));

        // The admin goes: who runs goes on, and who starts does so from the disk.
        signal(bench.running.summary.admin.pid, Signal::KILL);
        let second = bench.open("write-back").await;
        assert!(second.health().heard.is_none());
        check(&second, 3).await;
        put(&second, 60).await;
        check(&client, 60).await;
    });
}

#[test]
fn a_volume_that_cannot_be_opened_says_why() {
    let bench = Bench::new("1", "0");
    block_on(async {
        let settings = || Settings { directory: None, ..bench.settings() };
        let unknown = Client::open(settings(), "no-such-volume").await.err().unwrap().to_string();
        assert!(unknown.contains("no-such-volume"), "{unknown}");
        let group = Settings { group: Some("elsewhere".to_owned()), ..settings() };
        let name = bench.running.volume("write-back").name.clone();
        let unknown = Client::open(group, &name).await.err().unwrap().to_string();
        assert!(unknown.contains("elsewhere") && unknown.contains("near"), "{unknown}");
        let untrusting = Settings { ca: Some(Path::new("/dev/null").to_owned()), ..settings() };
        assert!(Client::open(untrusting, &name).await.is_err());
    });
}

/// Members that are passed by may be back: what they hold would be read for ever.
#[test]
fn a_delete_past_the_members_is_told_to_those_that_come_back() {
    let bench = Bench::new("2", "0");
    let pids: Vec<u32> = bench.running.summary.proxies.iter().map(|proxy| proxy.pid).collect();
    block_on(async {
        let volume = bench.running.volume("write-through").name.clone();
        let client = bench.open("write-through").await;
        bench.control(&["volume", "update", &volume, "--bypass", "always"]);
        let rule = || client.routing().volume.bypass;
        until("the rule", BOUND, async || (rule() == forebay::resource::Bypass::Always).then_some(())).await;
        put(&client, 1).await;
        check(&client, 1).await;
        pids.iter().for_each(|pid| signal(*pid, Signal::STOP));
        check(&client, 1).await;
        let bypassed = || client.counters().bypassed_writes.load(Ordering::Relaxed);
        let deleting = key(1);
        let (deleted, ()) = tokio::join!(client.delete(&deleting), async {
            until("the store's delete", BOUND, async || (bypassed() == 1).then_some(())).await;
            pids.iter().for_each(|pid| signal(*pid, Signal::CONT));
        });
        assert_eq!(deleted, Ok(()));
        assert_eq!(read(&bench.open("write-through").await, 1).await, Err(ClientError::Absent));
    });
}
