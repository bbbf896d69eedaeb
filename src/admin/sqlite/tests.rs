//! The storage against its contract: one revision and one audit row for each change, nothing for a refused one, rules and foreign keys,
//! backup and restore, files that are not ours.
//!
//! Run against SQLite as another implementation of the port would be; only what looks below the port is SQLite's own.

#![allow(clippy::unwrap_used)]

mod hostile;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::admin::keys;
use crate::admin::registry::{Listing, looked};
use crate::admin::routing_view;
use crate::resource::{Attachment, MemberState};

const NOW: u64 = 1_800_000_000;

fn by() -> Actor {
    Actor { subject: "test".to_owned(), token: "t".to_owned(), at: NOW }
}

fn open() -> (TempDir, Sqlite) {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(directory.path()).unwrap();
    (directory, sqlite)
}

fn store(more: Value) -> Record {
    let mut body =
        json!({"name": "main", "endpoint": "https://s3.example.net", "bucket": "pictures", "conditional_put": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut store: crate::resource::Store = serde_json::from_value(body).unwrap();
    store.check().unwrap();
    Record::Store(store)
}

fn volume(more: Value) -> Record {
    let mut body = json!({"name": "pictures", "store": "main", "write": "back"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut volume: crate::resource::Volume = serde_json::from_value(body).unwrap();
    volume.check().unwrap();
    Record::Volume(volume)
}

fn group(name: &str) -> Record {
    Record::Group(serde_json::from_value(json!({"name": name})).unwrap())
}

fn member(more: Value) -> Record {
    let mut body = json!({"group": "near", "name": "a", "address": "10.0.0.1:7400"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut member: crate::resource::Member = serde_json::from_value(body).unwrap();
    member.check().unwrap();
    Record::Member(member)
}

fn attachment() -> Record {
    Record::Attachment(Attachment { volume: "pictures".to_owned(), group: "near".to_owned() })
}

fn create(sqlite: &Sqlite, record: Record) -> Versioned {
    match sqlite.change(&Change::Create(record), &by()).unwrap() {
        Applied::Changed(made) => made,
        other => panic!("{other:?}"),
    }
}

fn replace(sqlite: &Sqlite, record: Record) -> Result<Applied, RegistryError> {
    sqlite.change(&Change::Replace(record, Guard::Any), &by())
}

fn delete(sqlite: &Sqlite, record: &Record) -> Result<Applied, RegistryError> {
    sqlite.change(&Change::Delete(record.id(), Guard::Any), &by())
}

fn revision(sqlite: &Sqlite) -> Revision {
    looked(sqlite, |view| view.revision()).unwrap()
}

fn routing(sqlite: &Sqlite) -> Revision {
    looked(sqlite, |view| view.routing_revision("pictures")).unwrap().unwrap()
}

/// A key, a store, a volume, a group with a member, attached as home: revisions 1 to 7.
fn populated() -> (TempDir, Sqlite) {
    let (directory, sqlite) = open();
    keys::ensure_key(&sqlite, &by()).unwrap();
    for record in [store(json!({})), volume(json!({})), group("near"), member(json!({})), attachment()] {
        create(&sqlite, record);
    }
    replace(&sqlite, volume(json!({"home_group": "near"}))).unwrap();
    assert_eq!(revision(&sqlite), 7);
    (directory, sqlite)
}

#[test]
fn each_change_is_one_revision_and_one_audit_row() {
    let (_directory, sqlite) = populated();
    let rows = sqlite.audit(0, 100).unwrap();
    assert_eq!(rows.iter().map(|row| row.revision).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
    let actions: Vec<_> = rows.iter().map(|row| format!("{} {} {}", row.action, row.kind, row.name)).collect();
    assert_eq!(actions[0].split(' ').take(2).collect::<Vec<_>>(), ["rotate", "key"]);
    assert_eq!(
        actions[1..],
        [
            "create store main",
            "create volume pictures",
            "create group near",
            "create member near/a",
            "create attachment pictures/near",
            "update volume pictures"
        ]
    );
    assert!(rows.iter().all(|row| (row.at, &*row.subject, &*row.token) == (NOW, "test", "t")));
    assert!(!rows[0].to.as_ref().unwrap().to_string().contains("PRIVATE"), "no private key in the log");
    assert_eq!(sqlite.audit(5, 1).unwrap()[0].revision, 6);
}

#[test]
fn a_create_is_idempotent_and_a_refused_change_leaves_nothing() {
    let (_directory, sqlite) = populated();
    let before = revision(&sqlite);
    let same = sqlite.change(&Change::Create(member(json!({}))), &by()).unwrap();
    // Its id was drawn the first time, and is the same now.
    assert!(
        matches!(&same, Applied::Same(Versioned { record: Record::Member(found), revision: 5 }) if found.id.is_some())
    );
    let refusals = [
        sqlite.change(&Change::Create(member(json!({"weight": 7}))), &by()),
        sqlite.change(&Change::Create(member(json!({"name": "b"}))), &by()),
        sqlite.change(&Change::Create(volume(json!({"name": "other"}))), &by()),
        sqlite.change(&Change::Replace(group("near"), Guard::Seen(3)), &by()),
        delete(&sqlite, &group("nowhere")),
        replace(&sqlite, group("nowhere")),
    ];
    let words: Vec<_> = refusals.into_iter().map(|refusal| refusal.unwrap_err().to_string()).collect();
    for (words, expected) in words.iter().zip([
        "another member near/a",
        "address in this group",
        "volume pictures is the same place",
        "changed in revision 4",
        "no group nowhere",
        "no group nowhere",
    ]) {
        assert!(words.contains(expected), "{words}");
    }
    assert_eq!(revision(&sqlite), before);
    assert_eq!(sqlite.audit(before, 10).unwrap(), []);
    // The same contents are no change either.
    assert!(matches!(replace(&sqlite, group("near")).unwrap(), Applied::Same(_)));
    assert_eq!(revision(&sqlite), before);
}

#[test]
fn what_is_in_use_stays_and_says_by_whom() {
    let (_directory, sqlite) = populated();
    let refused = |outcome: Result<Applied, RegistryError>, words: &str| match outcome {
        Err(RegistryError::Refused(found)) => assert!(found.contains(words), "{found}"),
        other => panic!("{words}: {other:?}"),
    };
    refused(delete(&sqlite, &store(json!({}))), "delete volume pictures");
    refused(delete(&sqlite, &volume(json!({}))), "detach attachment pictures/near");
    refused(delete(&sqlite, &group("near")), "delete member near/a");
    refused(delete(&sqlite, &attachment()), "home group");
    for (state, words) in [("up", "draining"), ("draining", "absent")] {
        replace(&sqlite, member(json!({"state": state}))).unwrap();
        refused(delete(&sqlite, &member(json!({}))), words);
    }
    refused(replace(&sqlite, member(json!({"state": "joining"}))), "absent before it joins");
    refused(replace(&sqlite, member(json!({"id": "0".repeat(32)}))), "keeps its id");
    refused(replace(&sqlite, volume(json!({"prefix": "p/"}))), "prefix of volume pictures is fixed");
    refused(replace(&sqlite, store(json!({"conditional_put": false}))), "conditional_put");
    refused(replace(&sqlite, store(json!({"bucket": "other"}))), "volume pictures lies in store main");
    // In the right order all of it goes.
    replace(&sqlite, member(json!({"state": "absent"}))).unwrap();
    refused(delete(&sqlite, &member(json!({}))), "never reported");
    let report = Report { followed: revision(&sqlite), moved: 0 };
    assert!(sqlite.report("near", "a", report, &by()).unwrap().is_some());
    replace(&sqlite, volume(json!({}))).unwrap();
    for record in [attachment(), member(json!({})), group("near"), volume(json!({})), store(json!({}))] {
        assert!(matches!(delete(&sqlite, &record), Ok(Applied::Deleted(_))), "{record:?}");
    }
}

#[test]
fn a_write_back_volume_needs_a_conditional_store_or_a_single_writer() {
    let (_directory, sqlite) = open();
    create(&sqlite, store(json!({"conditional_put": false})));
    let refused = sqlite.change(&Change::Create(volume(json!({}))), &by()).unwrap_err();
    assert!(refused.to_string().contains("single_writer"), "{refused}");
    create(&sqlite, volume(json!({"write": "through"})));
    assert!(replace(&sqlite, volume(json!({}))).is_err());
    replace(&sqlite, store(json!({"conditional_put": false, "single_writer": true}))).unwrap();
    assert!(replace(&sqlite, volume(json!({}))).is_ok());
    let missing = sqlite.change(&Change::Create(volume(json!({"name": "x", "prefix": "x", "store": "none"}))), &by());
    assert!(missing.unwrap_err().to_string().contains("no store none"));
    let homeless = replace(&sqlite, volume(json!({"home_group": "near"})));
    assert!(homeless.unwrap_err().to_string().contains("attach it first"));
}

#[test]
fn foreign_keys_hold_below_the_rules() {
    let (_directory, sqlite) = populated();
    let writer = sqlite.writer.lock().unwrap();
    for sql in [
        "DELETE FROM stores",
        "DELETE FROM groups",
        "DELETE FROM attachments",
        "UPDATE volumes SET store = 'nowhere'",
        "INSERT INTO members (member_group, name, id, address, body, revision) VALUES ('nowhere', 'a', 'b', 'c', 'd', 1)",
    ] {
        let error = writer.execute(sql, []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation), "{sql}");
    }
}

#[test]
fn a_volumes_routing_is_marked_by_what_concerns_it_and_nothing_else() {
    let (_directory, sqlite) = populated();
    let concerns = |record: Record, marks: bool| {
        let before = routing(&sqlite);
        let changed = match sqlite.change(&Change::Create(record.clone()), &by()) {
            Ok(Applied::Changed(_)) => revision(&sqlite),
            _ => {
                replace(&sqlite, record.clone()).unwrap();
                revision(&sqlite)
            }
        };
        assert_eq!(routing(&sqlite), if marks { changed } else { before }, "{record:?}");
    };
    concerns(member(json!({"state": "up"})), true);
    concerns(member(json!({"name": "b", "address": "10.0.0.2:7400"})), true);
    concerns(store(json!({"region": "eu-central-1"})), true);
    concerns(volume(json!({"home_group": "near", "bypass": "never"})), true);
    concerns(group("far"), false);
    concerns(member(json!({"group": "far"})), false);
    concerns(store(json!({"name": "other", "bucket": "others"})), false);
    keys::rotate(&sqlite, &by()).unwrap();
    assert_eq!(routing(&sqlite), revision(&sqlite), "a new key concerns everybody");
    // A token concerns its volumes when it is revoked.
    let wish = keys::Wish {
        subject: "s".to_owned(),
        role: None,
        group: None,
        volumes: [("pictures".to_owned(), crate::token::Right::Read)].into(),
        ttl_seconds: 60,
    };
    let before = routing(&sqlite);
    let (token, _) = keys::issue(&sqlite, &wish, &by()).unwrap();
    assert_eq!(routing(&sqlite), before);
    keys::revoke(&sqlite, &token.id, &by()).unwrap();
    assert_eq!(routing(&sqlite), revision(&sqlite));
    let gathered = looked(&sqlite, |view| routing_view::gather(view, "pictures", NOW)).unwrap().unwrap();
    assert_eq!((gathered.revision, gathered.revoked), (revision(&sqlite), vec![token.id]));
    assert_eq!(gathered.groups[0].members.iter().map(|member| &*member.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(gathered.groups[0].members[0].state, MemberState::Up);
    assert_eq!(gathered.keys.len(), 2);
    let later = looked(&sqlite, |view| routing_view::gather(view, "pictures", NOW + 65)).unwrap().unwrap();
    assert_eq!(later.revoked, Vec::<String>::new(), "it has expired by itself");
}

#[test]
fn credentials_are_kept_when_an_update_does_not_name_them() {
    let (_directory, sqlite) = open();
    create(&sqlite, store(json!({"credentials": "profile:render"})));
    replace(&sqlite, store(json!({"region": "eu-central-1"}))).unwrap();
    let found = looked(&sqlite, |view| view.one(&RecordId::Store("main".to_owned()))).unwrap().unwrap();
    assert!(matches!(&found.record, Record::Store(store) if store.credentials.as_deref() == Some("profile:render")));
    let shown = found.record.shown();
    assert_eq!((shown.get("credentials"), &shown["credentials_set"]), (None, &json!(true)));
}

#[test]
fn the_signing_key_stays_until_another_signs() {
    let (_directory, sqlite) = open();
    keys::rotate(&sqlite, &by()).unwrap();
    let first = looked(&sqlite, |view| keys::current(view)).unwrap().id().to_owned();
    let delete = |id: &str| sqlite.change(&Change::Delete(RecordId::Key(id.to_owned()), Guard::Any), &by());
    assert!(delete(&first).unwrap_err().to_string().contains("rotate first"));
    keys::rotate(&sqlite, &by()).unwrap();
    assert_ne!(looked(&sqlite, |view| keys::current(view)).unwrap().id(), first);
    delete(&first).unwrap();
    assert_eq!(looked(&sqlite, |view| Ok(view.list(&Listing::Keys)?.len())).unwrap(), 1);
}

#[test]
fn a_database_is_private_found_again_and_claimed_once() {
    use std::os::unix::fs::PermissionsExt as _;

    let (directory, sqlite) = populated();
    for file in std::fs::read_dir(directory.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
    let claimed = claim(directory.path()).unwrap();
    assert!(claim(directory.path()).unwrap_err().to_string().contains("an admin runs in"));
    drop(claimed);
    drop(sqlite);
    assert_eq!(revision(&Sqlite::open(directory.path()).unwrap()), 7);
    let _again = claim(directory.path()).unwrap();
}

#[test]
fn files_of_others_and_of_later_versions_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(DATABASE);
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (a)").unwrap();
    assert!(Sqlite::open(directory.path()).err().unwrap().to_string().contains("no database of a Forebay admin"));
    std::fs::remove_file(&path).unwrap();
    drop(Sqlite::open(directory.path()).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(Sqlite::open(directory.path()).err().unwrap().to_string().contains("later version"));
    std::fs::write(&path, "not a database, but long enough to be looked at as one, whatever it is").unwrap();
    assert!(Sqlite::open(directory.path()).is_err());
}

#[test]
fn a_backup_comes_back_with_a_revision_that_nobody_has_seen() {
    let (directory, sqlite) = populated();
    let backup = directory.path().join("backup.db");
    sqlite.backup(&backup).unwrap();
    assert!(sqlite.backup(&backup).unwrap_err().to_string().contains("exists"), "a backup replaces nothing");
    replace(&sqlite, member(json!({"state": "up"}))).unwrap();
    create(&sqlite, group("far"));
    let seen = revision(&sqlite);
    drop(sqlite);
    let restored = restore(directory.path(), &backup, &by()).unwrap();
    assert!(restored > seen);
    let sqlite = Sqlite::open(directory.path()).unwrap();
    assert_eq!((revision(&sqlite), routing(&sqlite)), (restored, restored));
    let found = looked(&sqlite, |view| view.one(&RecordId::Group("far".to_owned()))).unwrap();
    assert_eq!(found, None, "it came after the backup");
    let last = sqlite.audit(7, 10).unwrap();
    assert_eq!((last.len(), &*last[0].action, last[0].revision), (1, "restore", restored));
    // The replaced one is there, whole.
    let replaced = Connection::open(directory.path().join("admin.db.replaced")).unwrap();
    assert_eq!(replaced.query_row("SELECT revision FROM meta", [], |row| row.get::<_, u64>(0)), Ok(seen));
}

#[test]
fn a_backup_that_is_none_changes_nothing_and_a_damaged_database_can_be_replaced() {
    let (directory, sqlite) = populated();
    let backup = directory.path().join("backup.db");
    sqlite.backup(&backup).unwrap();
    drop(sqlite);
    let torn = directory.path().join("torn.db");
    let mut bytes = std::fs::read(&backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[4_096..middle].fill(0x5a);
    std::fs::write(&torn, &bytes).unwrap();
    std::fs::write(directory.path().join("text.db"), "hello").unwrap();
    for bad in ["torn.db", "text.db", "absent.db"] {
        assert!(restore(directory.path(), &directory.path().join(bad), &by()).is_err(), "{bad}");
        assert_eq!(revision(&Sqlite::open(directory.path()).unwrap()), 7);
    }
    std::fs::write(directory.path().join(DATABASE), "damaged").unwrap();
    let restored = restore(directory.path(), &backup, &by()).unwrap();
    assert!(restored > 1_000_000, "how far the damaged one had come can't be known");
    assert_eq!(revision(&Sqlite::open(directory.path()).unwrap()), restored);
}

#[test]
fn writers_in_several_threads_never_share_a_revision() {
    let (_directory, sqlite) = open();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let sqlite = &sqlite;
            scope.spawn(move || {
                for number in 0..10 {
                    create(sqlite, group(&format!("g-{thread}-{number}")));
                }
            });
        }
    });
    assert_eq!(revision(&sqlite), 40);
    let rows = sqlite.audit(0, 100).unwrap();
    assert_eq!(rows.iter().map(|row| row.revision).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    let listed = looked(&sqlite, |view| view.list(&Listing::Groups)).unwrap();
    assert!(listed.is_sorted_by_key(|found| found.record.id().name()) && listed.len() == 40);
}
