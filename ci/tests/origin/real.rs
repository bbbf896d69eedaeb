//! Against a real S3 server: round trips, conditions, odd keys, refusals.
//!
//! The server is the development one, whose access log is then looked at too, or the one that `ci/seaweedfs` names.
//! Both must give the same results.

use forebay::origin::{ConditionalPut, CredentialSource, Keys, NameStyle};
use forebay_io::checksum::Digest;
use forebay_shard::origin::{Etag, Origin, OriginErrorKind, OriginMeta, Stored};

use crate::rig::{BLOCK_BYTES_MAX, Rig, content, external, fetch, key, store_of, wait};

#[test]
fn blocks_of_every_size_come_back_with_their_digest() {
    let rig = Rig::new();
    for bytes in [0, 1, 4_095, 4_096, 65_536, 65_537, 1 << 20, BLOCK_BYTES_MAX as usize] {
        let name = format!("size/{bytes}");
        let content = content(bytes);
        assert!(fetch(&rig.handle, &name).unwrap().is_none());
        assert_eq!(wait(rig.handle.store(&key(&name), store_of(&content))).unwrap(), Stored::Done);
        let (etag, got) = fetch(&rig.handle, &name).unwrap().unwrap();
        assert!(got == content, "{bytes} bytes came back changed");
        assert_eq!(etag, Etag::Digest(Digest::of(&content)));
        let meta = OriginMeta { len_bytes: bytes as u64, etag };
        assert_eq!(wait(rig.handle.head(&key(&name))).unwrap(), Some(meta));
        wait(rig.handle.delete(&key(&name))).unwrap();
        wait(rig.handle.delete(&key(&name))).expect("deleting nothing is success");
        assert_eq!(wait(rig.handle.head(&key(&name))).unwrap(), None);
    }
    let stats = &rig.handle.stats()[0];
    assert!(stats.fetched_bytes == stats.stored_bytes && stats.stored_bytes > 9 << 20, "{stats:?}");
    assert_eq!(stats.errors.iter().map(|(_, count)| count).sum::<u64>(), 0, "{stats:?}");
}

#[test]
fn any_key_is_its_own_object() {
    // A server over a file tree can't tell `a//b` from `a/b`: there names are written portably.
    let rig = Rig::with(|store| {
        store.names = if external() { NameStyle::Portable } else { NameStyle::Plain };
    });
    keys_are_kept_apart(&rig);
    keys_are_kept_apart(&Rig::with(|store| store.names = NameStyle::Portable));
}

fn keys_are_kept_apart(rig: &Rig) {
    let (long, wide) = (format!("{}/end", "k".repeat(250)).repeat(3), "ü/".repeat(290));
    let keys = [
        "a",
        "a/",
        "a/b",
        "a//b",
        "/a",
        "//a",
        "..",
        ".",
        "../a",
        "a/../b",
        "a/./b",
        "b",
        "%2E",
        "%2E%2E",
        "%2e%2e",
        "a b",
        "a+b",
        "a%20b",
        "a%2Bb",
        "a?b=c",
        "a#b",
        "ü",
        "日本",
        "a&b;c=d",
        "~",
        "\u{1}\t\n",
        "'\"<>",
        "\\",
        long.as_str(),
        wide.as_str(),
    ];
    for name in keys {
        let stored = wait(rig.handle.store(&key(name), store_of(name.as_bytes()))).unwrap();
        assert_eq!(stored, Stored::Done, "{name:?} met another key");
    }
    for name in keys {
        let (_, got) = fetch(&rig.handle, name).unwrap().unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), name);
    }
}

#[test]
fn names_are_plain_but_for_dot_segments() {
    let rig = Rig::new();
    for name in ["a/b", "a//b", "/a", "a/", "a b+c%", "\\", "a/../b"] {
        fetch(&rig.handle, name).unwrap();
        let unchanged = !name.split('/').any(|part| matches!(part, "." | ".." | "%2E" | "%2E%2E"));
        let found = rig.requests("GET", name).is_none_or(|requests| !requests.is_empty());
        assert!(!unchanged || found, "{name:?} has another name");
    }
    assert!(rig.requests("GET", "a/%2E%2E/b").is_none_or(|requests| requests.len() == 1));
}

#[test]
fn a_name_that_s3_does_not_take_is_refused_with_the_reason() {
    let rig = Rig::new();
    let long = key(&"k".repeat(1_025 - rig.prefix.len()));
    assert!(rig.handle.check_key(&key(&"k".repeat(1_024 - rig.prefix.len()))).is_ok());
    assert!(rig.handle.check_key(&long).unwrap_err().to_string().contains("1,024"));
    let error = wait(rig.handle.head(&long)).unwrap_err();
    assert!(error.kind == OriginErrorKind::Protocol && error.detail.contains("1025 bytes"), "{error}");
    let error = wait(rig.handle.head(&forebay_shard::key::BlockKey::new("other".into(), "k"))).unwrap_err();
    assert!(error.detail.contains("`other`"), "{error}");
}

#[test]
fn of_64_racing_stores_one_wins_and_the_others_learn_what_is_there() {
    let rig = Rig::new();
    let contents: Vec<Vec<u8>> = (0..64).map(|racer| format!("racer {racer}").into_bytes()).collect();
    let race = contents.iter().map(|content| {
        let (handle, store) = (rig.handle.clone(), store_of(content));
        Box::pin(async move { handle.store(&key("race"), store).await })
    });
    let outcomes = wait(futures::future::join_all(race.collect::<Vec<_>>()));
    let there = wait(rig.handle.head(&key("race"))).unwrap().unwrap();
    let winners = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Stored::Done))).count();
    assert_eq!(winners, 1);
    for (content, outcome) in contents.iter().zip(outcomes) {
        match outcome.unwrap() {
            Stored::Done => assert_eq!(there.etag, Etag::Digest(Digest::of(content))),
            Stored::Conflict(found) => assert_eq!(found, there),
        }
    }
    if let Some(puts) = rig.requests("PUT", "race") {
        assert_eq!(puts.iter().filter(|put| put.status == 200).count(), 1);
    }
}

#[test]
fn a_failed_condition_is_done_for_the_same_bytes_and_a_conflict_for_others() {
    let rig = Rig::new();
    let stored = |content: &[u8]| wait(rig.handle.store(&key("k"), store_of(content))).unwrap();
    assert_eq!(stored(b"first"), Stored::Done);
    assert_eq!(stored(b"first"), Stored::Done);
    let there = OriginMeta { len_bytes: 5, etag: Etag::Digest(Digest::of(b"first")) };
    assert_eq!(stored(b"other"), Stored::Conflict(there));
    assert_eq!(fetch(&rig.handle, "k").unwrap().unwrap().1, b"first");
    if let Some(puts) = rig.requests("PUT", "k") {
        assert_eq!(puts.iter().map(|put| put.status.as_u16()).collect::<Vec<_>>(), [200, 412, 412]);
    }
}

#[test]
fn the_race_of_the_check_finds_the_layer_atomic_and_leaves_nothing() {
    let rig = Rig::new();
    let verified = wait(rig.handle.verify_conditional_put("v", ".forebay-check")).unwrap();
    assert_eq!(verified, ConditionalPut::Atomic);
    assert_eq!(wait(rig.handle.head(&key(".forebay-check"))).unwrap(), None);
    assert!(rig.requests("PUT", ".forebay-check").is_none_or(|puts| puts.len() == 64));
}

#[test]
fn an_object_longer_than_a_block_is_refused_unread() {
    let rig = Rig::new();
    let big = content(BLOCK_BYTES_MAX as usize + 1);
    wait(rig.handle.store(&key("big"), store_of(&big))).unwrap();
    let error = fetch(&rig.handle, "big").unwrap_err();
    assert!(error.kind == OriginErrorKind::TooLarge && error.detail.contains("block_size"), "{error}");
}

#[test]
fn refusals_name_the_fix() {
    let refused = |rig: &Rig| {
        let checked = wait(rig.handle.check_store("v")).unwrap_err();
        let fetched = fetch(&rig.handle, "k").unwrap_err();
        assert_eq!(checked.kind, fetched.kind);
        assert!(!checked.detail.contains("Signature=") && !checked.detail.contains("with + signs"), "{checked}");
        checked
    };
    let keys = |access_key: &str, secret_key: &str| {
        CredentialSource::Keys(Keys {
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            session_token: None,
        })
    };
    let known_key = std::env::var("AWS_ACCESS_KEY_ID").ok().filter(|_| external()).unwrap_or("AKTEST".to_owned());
    let ok = Rig::new();
    wait(ok.handle.check_store("v")).unwrap();

    let error = refused(&Rig::with(|store| store.credentials = keys(&known_key, "wrong")));
    assert!(error.kind == OriginErrorKind::Denied && error.detail.contains("secret key"), "{error}");
    let error = refused(&Rig::with(|store| store.credentials = keys("NOBODY", "wrong")));
    assert!(error.kind == OriginErrorKind::Denied && error.detail.contains("access key NOBO…"), "{error}");
    if !external() {
        let error = refused(&Rig::with(|store| store.region = "eu-west-1".into()));
        assert!(error.detail.contains("is in `us-east-1`") && error.detail.contains("says `eu-west-1`"), "{error}");
    }
    let error = refused(&Rig::with(|store| store.bucket = "no-such-bucket".into()));
    assert!(error.kind == OriginErrorKind::NoBucket && error.detail.contains("`no-such-bucket`"), "{error}");
}
