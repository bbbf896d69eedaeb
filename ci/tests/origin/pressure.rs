//! Full queues, stalled stores and askers that leave, played by `raw_server`.
//!
//! A full queue is an answer at once, a stalled store holds up no other, and who leaves frees what was held for it.

use std::time::{Duration, Instant};

use forebay::dev::s3_server::S3Server;
use forebay::origin::{OriginPool, Stays, VolumeSettings};
use forebay_shard::key::BlockKey;
use forebay_shard::origin::{Origin, OriginErrorKind};
use futures::StreamExt;

use crate::raw_server::{After, RawServer, http};
use crate::rig::{ACCESS_KEY, BUCKET, Rig, SECRET_KEY, content, key, pool, settings, store_of, until, wait};

/// A store that takes every request and never answers.
fn stalled() -> RawServer {
    RawServer::start(|_, _| (Vec::new(), After::Stall))
}

#[test]
fn a_full_queue_is_busy_at_once() {
    let server = stalled();
    let mut settings = settings(&server.endpoint);
    (settings.concurrency, settings.queue_depth) = (2, 2);
    let pool = pool(settings);
    let handle = pool.handle();
    let key = key("k");
    let running: Vec<_> = (0..2).map(|_| handle.head(&key)).collect();
    until("two requests run", || server.requests() == 2);
    let waiting: Vec<_> = (0..2).map(|_| handle.head(&key)).collect();
    assert_eq!(handle.stats()[0].queue_depth, 2);
    let began = Instant::now();
    let error = futures::executor::block_on(handle.head(&key)).unwrap_err();
    assert!(error.kind == OriginErrorKind::Busy && error.detail.contains("origin_queue"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1));
    // Who leaves makes room: waiting requests are thrown away, running ones cut. In this order: else a waiting one may
    // begin in the place of a running one before it is dropped too.
    drop(waiting);
    drop(running);
    until("the store sees both leave", || server.left() == 2);
    until("nothing runs or waits", || {
        let stats = &handle.stats()[0];
        (stats.in_flight, stats.queue_depth) == (0, 0)
    });
    assert_eq!(server.requests(), 2, "what waited was never sent");
}

#[test]
fn a_dropped_body_cuts_its_request() {
    let answer = http("200 OK", &[("etag", "\"e\""), ("content-length", "1000000")], &content(500_000));
    let server = RawServer::start(move |_, _| (answer.clone(), After::Stall));
    let pool = pool(settings(&server.endpoint));
    let handle = pool.handle();
    let mut fetched = wait(async move { handle.fetch(&key("k")).await }).unwrap().unwrap();
    assert!(futures::executor::block_on(fetched.body.next()).unwrap().is_ok());
    drop(fetched);
    until("the store sees us leave", || server.left() == 1);
    until("nothing runs", || pool.handle().stats()[0].in_flight == 0);
}

#[test]
fn a_body_nobody_reads_takes_little_memory() {
    let rig = Rig::new();
    let block = content(8 << 20);
    wait(rig.handle.store(&key("k"), store_of(&block))).unwrap();
    let handle = rig.handle.clone();
    let fetched = wait(async move { handle.fetch(&key("k")).await }).unwrap().unwrap();
    // The channel fills, then the store has to wait: all that was taken is in the channel or on its way there.
    let mut taken = 0;
    let mut steady_since = Instant::now();
    until("the pool takes no more", || {
        let now = rig.handle.stats()[0].fetched_bytes;
        now > 0 && now < 2 << 20
    });
    while steady_since.elapsed() < Duration::from_millis(200) {
        let now = rig.handle.stats()[0].fetched_bytes;
        if now != taken {
            (taken, steady_since) = (now, Instant::now());
        }
        assert!(now < 2 << 20, "{now} bytes of an unread body");
        std::thread::sleep(Duration::from_millis(5));
    }
    let got = wait(async move { fetched.body.map(|bytes| bytes.unwrap().len()).collect::<Vec<_>>().await });
    assert_eq!(got.iter().sum::<usize>(), block.len());
    assert!(got.iter().all(|bytes| *bytes <= 64 << 10));
}

#[test]
fn a_stalled_store_holds_up_no_other() {
    let root = tempfile::tempdir().unwrap();
    let addr = "127.0.0.1:0".parse().unwrap();
    let good_server = S3Server::start(root.path(), addr, ACCESS_KEY, SECRET_KEY, BUCKET).unwrap();
    let server = stalled();
    let mut slow = settings(&server.endpoint);
    (slow.concurrency, slow.queue_depth, slow.name) = (2, 4, "slow".into());
    let good = settings(&good_server.endpoint());
    let volume = |name: &str, store: &str| VolumeSettings {
        name: name.into(),
        store: store.into(),
        prefix: String::new(),
        block_bytes_max: 1 << 20,
    };
    let pool = OriginPool::start(vec![slow, good], &[volume("slow", "slow"), volume("good", "s")], 1).unwrap();
    let handle = pool.handle();
    let stuck_key = BlockKey::new("slow".into(), "k");
    let stuck: Vec<_> = (0..6).map(|_| handle.head(&stuck_key)).collect();
    until("the slow store's places are taken", || handle.stats()[0].in_flight == 2);
    for n in 0..20 {
        let key = BlockKey::new("good".into(), format!("{n}"));
        wait(handle.store(&key, store_of(b"x"))).unwrap();
        assert!(wait(handle.head(&key)).unwrap().is_some());
    }
    assert_eq!(handle.stats()[0].in_flight, 2);
    drop(stuck);
}

#[test]
fn a_stopped_pool_answers_everybody() {
    let server = stalled();
    let pool = pool(settings(&server.endpoint));
    let handle = pool.handle();
    let running = handle.head(&key("k"));
    until("it runs", || server.requests() == 1);
    pool.stop();
    assert_eq!(wait(running).unwrap_err().kind, OriginErrorKind::Unreachable);
    assert_eq!(wait(handle.head(&key("k"))).unwrap_err().kind, OriginErrorKind::Unreachable);
}

#[test]
fn stores_and_volumes_come_and_change_while_a_pool_runs() {
    let (root, other_root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |root: &tempfile::TempDir| {
        S3Server::start(root.path(), "127.0.0.1:0".parse().unwrap(), ACCESS_KEY, SECRET_KEY, BUCKET).unwrap()
    };
    let (first, second) = (start(&root), start(&other_root));
    let volume = VolumeSettings { name: "v".into(), store: "s".into(), prefix: "p/".into(), block_bytes_max: 1 << 20 };
    let pool = OriginPool::start(Vec::new(), &[], 2).unwrap();
    let handle = pool.handle();
    assert_eq!(wait(handle.head(&key("k"))).unwrap_err().kind, OriginErrorKind::Protocol, "there is no volume yet");

    let here = (volume.clone(), settings(&first.endpoint()));
    assert!(pool.reconfigure(std::slice::from_ref(&here)).is_empty());
    wait(handle.store(&key("k"), store_of(b"x"))).unwrap();
    let requests = || handle.stats()[0].stored_bytes;
    assert_eq!(requests(), 1);
    assert!(pool.reconfigure(std::slice::from_ref(&here)).is_empty());
    assert_eq!(requests(), 1, "what did not change keeps its connections and counters");

    // What was asked of the old place ends there.
    let running = handle.head(&key("k"));
    assert!(pool.reconfigure(&[(volume.clone(), settings(&second.endpoint()))]).is_empty());
    assert!(wait(running).unwrap().is_some());
    assert!(wait(handle.head(&key("k"))).unwrap().is_none(), "another store from now on");

    let mut unusable = settings(&first.endpoint());
    unusable.ca = Some("/nonexistent.pem".into());
    let another = VolumeSettings { name: "w".into(), ..volume.clone() };
    let refused = pool.reconfigure(&[(volume, unusable.clone()), (another, unusable)]);
    let stays: Vec<_> = refused.iter().map(|refused| (&*refused.volume, refused.stays)).collect();
    assert_eq!(stays, [("v", Stays::Yes), ("w", Stays::No)]);
    assert!(wait(handle.head(&key("k"))).unwrap().is_none(), "still where it was");
    assert!(pool.reconfigure(&[]).is_empty() && handle.stats().is_empty());
    assert!(wait(handle.head(&key("k"))).is_err());
}

#[test]
fn a_pool_that_cannot_start_names_the_key() {
    let start = |change: &dyn Fn(&mut forebay::origin::StoreSettings), store: &str| {
        let mut settings = settings("http://127.0.0.1:1");
        change(&mut settings);
        let volume =
            VolumeSettings { name: "v".into(), store: store.into(), prefix: String::new(), block_bytes_max: 1 };
        let error = OriginPool::start(vec![settings], &[volume], 1).err().unwrap();
        error.to_string()
    };
    assert!(start(&|store| store.endpoint = "s3.example.com".into(), "s").contains("endpoint"));
    assert!(start(&|store| store.ca = Some("/nonexistent.pem".into()), "s").contains("`ca = \"/nonexistent.pem\"`"));
    assert!(start(&|_| {}, "other").contains("volume `v`: there is no store `other`"));
}
