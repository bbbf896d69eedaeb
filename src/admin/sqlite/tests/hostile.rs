//! Restores that lose more than they should, and limits that are reached for good: each of these once went wrong.
//!
//! A restore is hostile when it helps whoever holds a revoked token, a deleted key, or a revision that is ahead of it.

use super::*;
use crate::admin::keys::{AuthError, Wish, authenticate};
use crate::admin::registry::TokenRecord;
use crate::token::{LEEWAY_SECONDS, Right, Role};

fn operator_wish() -> Wish {
    Wish {
        subject: "s".to_owned(),
        role: Some(Role::Operator),
        group: None,
        volumes: Default::default(),
        ttl_seconds: 600,
    }
}

fn volume_wish() -> Wish {
    Wish { role: None, volumes: [("pictures".to_owned(), Right::Read)].into(), ..operator_wish() }
}

fn is_good(sqlite: &Sqlite, token: &str) -> bool {
    let answer = looked(sqlite, |view| Ok(authenticate(view, token, NOW)));
    !matches!(answer.unwrap(), Err(AuthError::Unlisted | AuthError::Refused(_)))
}

fn told_revoked(sqlite: &Sqlite, now: u64) -> Vec<String> {
    looked(sqlite, |view| routing_view::gather(view, "pictures", now)).unwrap().unwrap().revoked
}

#[test]
fn a_restore_elsewhere_is_beyond_what_clients_have_seen() {
    let (directory, sqlite) = populated();
    let backup = directory.path().join("backup.db");
    sqlite.backup(&backup).unwrap();
    for number in 0..50 {
        create(&sqlite, group(&format!("g-{number}")));
    }
    let seen = revision(&sqlite);
    drop(sqlite);
    // The machine is lost: an empty directory, and one where a server has started once.
    for is_started in [false, true] {
        let fresh = tempfile::tempdir().unwrap();
        if is_started {
            keys::ensure_key(&Sqlite::open(fresh.path()).unwrap(), &by()).unwrap();
        }
        let restored = restore(fresh.path(), &backup, &by()).unwrap();
        assert!(restored > seen, "{restored}: clients never go back below {seen}");
        let sqlite = Sqlite::open(fresh.path()).unwrap();
        create(&sqlite, group("another"));
        let seen = revision(&sqlite);
        drop(sqlite);
        // Lost again, a second later.
        let fresh = tempfile::tempdir().unwrap();
        let restored = restore(fresh.path(), &backup, &Actor { at: NOW + 1, ..by() }).unwrap();
        assert!(restored > seen, "{restored}: clients never go back below {seen}");
    }
}

#[test]
fn the_audit_log_goes_on_after_a_restore() {
    let (directory, sqlite) = populated();
    let backup = directory.path().join("backup.db");
    sqlite.backup(&backup).unwrap();
    drop(sqlite);
    let fresh = tempfile::tempdir().unwrap();
    std::fs::write(fresh.path().join(DATABASE), "damaged").unwrap();
    restore(fresh.path(), &backup, &by()).unwrap();
    let sqlite = Sqlite::open(fresh.path()).unwrap();
    create(&sqlite, group("far"));
    let rows = sqlite.audit(0, 100).unwrap();
    assert_eq!(rows.len(), 9, "seven changes, the restore, one more: {rows:?}");
}

#[test]
fn a_restore_brings_back_no_revoked_token_and_no_deleted_key() {
    let (directory, sqlite) = populated();
    let (revoked, revoked_token) = keys::issue(&sqlite, &volume_wish(), &by()).unwrap();
    let (_, kept_token) = keys::issue(&sqlite, &volume_wish(), &by()).unwrap();
    let (_, operator_token) = keys::issue(&sqlite, &operator_wish(), &by()).unwrap();
    let stolen = looked(&sqlite, |view| keys::current(view)).unwrap().id().to_owned();
    keys::rotate(&sqlite, &by()).unwrap();
    let (_, new_key_token) = keys::issue(&sqlite, &operator_wish(), &by()).unwrap();
    let backup = directory.path().join("backup.db");
    sqlite.backup(&backup).unwrap();
    keys::revoke(&sqlite, &revoked.id, &by()).unwrap();
    let (later, later_token) = keys::issue(&sqlite, &volume_wish(), &by()).unwrap();
    drop(sqlite);
    restore(directory.path(), &backup, &by()).unwrap();
    let sqlite = Sqlite::open(directory.path()).unwrap();
    assert!(!is_good(&sqlite, &revoked_token), "it was revoked before the restore");
    assert!(is_good(&sqlite, &kept_token) && is_good(&sqlite, &operator_token));
    // What was issued since is not known here any longer; proxies, which ask nobody, must be told so.
    assert!(!is_good(&sqlite, &later_token));
    let told = told_revoked(&sqlite, NOW);
    assert!(told.contains(&revoked.id) && told.contains(&later.id), "{told:?}");

    sqlite.change(&Change::Delete(RecordId::Key(stolen.clone()), Guard::Any), &by()).unwrap();
    drop(sqlite);
    restore(directory.path(), &backup, &by()).unwrap();
    let sqlite = Sqlite::open(directory.path()).unwrap();
    assert!(!is_good(&sqlite, &operator_token), "its key was deleted before the restore");
    assert!(is_good(&sqlite, &new_key_token));
    let keys = looked(&sqlite, keys::records).unwrap();
    assert!(keys.len() == 1 && keys[0].id != stolen);
    assert!(told_revoked(&sqlite, NOW).contains(&revoked.id), "through a second restore, too");
}

#[test]
fn a_revoked_token_is_told_as_long_as_a_proxy_would_take_it() {
    let (_directory, sqlite) = populated();
    let (token, _) = keys::issue(&sqlite, &volume_wish(), &by()).unwrap();
    keys::revoke(&sqlite, &token.id, &by()).unwrap();
    let end = token.expires_at + LEEWAY_SECONDS;
    assert_eq!(told_revoked(&sqlite, end - 1), [token.id]);
    assert_eq!(told_revoked(&sqlite, end), Vec::<String>::new());
}

#[test]
fn tokens_that_have_ended_make_room_for_others() {
    let (_directory, sqlite) = populated();
    let fill = |from: usize, expires_at: u64| {
        let mut writer = sqlite.writer.lock().unwrap();
        let transaction = writer.transaction().unwrap();
        for number in from..RECORDS_MAX {
            let token = TokenRecord {
                id: format!("{number:032x}"),
                subject: "s".to_owned(),
                role: Some(Role::Viewer),
                group: None,
                volumes: Default::default(),
                key: String::new(),
                issued_at: NOW - 100,
                expires_at,
                revoked_at: None,
            };
            rows::insert(&transaction, &Record::Token(token), 7).unwrap();
        }
        transaction.commit().unwrap();
    };
    fill(0, NOW - LEEWAY_SECONDS - 1);
    keys::issue(&sqlite, &operator_wish(), &by()).unwrap();
    // Those that have not ended make none: whoever is refused is told what helps.
    let left = looked(&sqlite, |view| Ok(view.list(&Listing::Tokens)?.len())).unwrap();
    assert!(left < RECORDS_MAX);
    sqlite.writer.lock().unwrap().execute("DELETE FROM tokens", []).unwrap();
    fill(0, NOW + 1);
    let words = keys::issue(&sqlite, &operator_wish(), &by()).unwrap_err().to_string();
    assert!(words.contains("shorter"), "a token can't be deleted: {words}");
}

#[test]
fn a_restore_waits_for_no_command_and_takes_nothing_from_it() {
    let (directory, sqlite) = populated();
    let backup = directory.path().join("backup.db");
    sqlite.backup(&backup).unwrap();
    // A command such as `forebay admin token` works beside a server, without its claim: what it writes must not be lost.
    let refused = restore(directory.path(), &backup, &by()).unwrap_err().to_string();
    assert!(refused.contains("in use"), "{refused}");
    create(&sqlite, group("far"));
    drop(sqlite);
    restore(directory.path(), &backup, &by()).unwrap();
    drop(Sqlite::open(directory.path()).unwrap());
}
