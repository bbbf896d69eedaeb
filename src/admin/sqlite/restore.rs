//! Backup while work goes on, and restore while none does.
//!
//! Called by `sqlite` and by the command line. A backup is one file, whole or absent. A restore replaces the database by one rename
//! of a file that is complete and proven: a crash at any point leaves the old one or the new one, each whole. The old one stays beside it
//! as `admin.db.replaced`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags, params};

use super::super::registry::{
    Actor, AuditRow, Listing, Record, RecordId, RegistryError, TokenRecord, Versioned, View as _,
};
use super::rows::Sight;
use super::{files, migrations, placing, rows};
use crate::resource::Revision;

const STEP: std::ffi::c_int = 256;
/// Revisions start again at so many for each second since 1970, for nobody can tell how far the lost database had come: further than it
/// can have counted, also if it was a restored one. 2^53, what JavaScript counts to, is reached in the year 2255.
const REVISIONS_PER_SECOND: Revision = 1_000_000;

/// Copies everything that `from` sees into a new file at `to`.
pub fn backup(from: &Connection, to: &Path) -> Result<(), RegistryError> {
    if to.exists() {
        return Err(RegistryError::Refused(format!("{} exists: name a new file", to.display())));
    }
    let partial = with_suffix(to, ".partial");
    let _ = fs::remove_file(&partial);
    let copied = copy(from, &partial).and_then(|copy| {
        prove(&copy)?;
        copy.close().map_err(|(_, error)| error)?;
        Ok(())
    });
    let placed = copied.and_then(|()| {
        File::open(&partial)?.sync_all()?;
        // A link and not a rename: it never replaces a file that came between.
        fs::hard_link(&partial, to)?;
        Ok(())
    });
    let _ = fs::remove_file(&partial);
    placed?;
    Ok(files::sync_directory(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?)
}

/// Copies into a new private file without a WAL: one file is everything.
fn copy(from: &Connection, to: &Path) -> Result<Connection, RegistryError> {
    files::make_private(to)?;
    let mut copy = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    Backup::new(from, &mut copy)?.run_to_completion(STEP, Duration::ZERO, None)?;
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    Ok(copy)
}

/// Whether a database is whole, as far as SQLite can tell.
fn prove(connection: &Connection) -> Result<(), RegistryError> {
    let verdict: String = connection.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
    if verdict != "ok" {
        return Err(RegistryError::Refused(format!("the database is damaged: {verdict}")));
    }
    let is_broken = connection.prepare("PRAGMA foreign_key_check")?.exists([])?;
    if is_broken {
        return Err(RegistryError::Refused(
            "the database is damaged: records refer to others that are gone".to_owned(),
        ));
    }
    Ok(())
}

/// Replaces the database in `directory` by the backup at `from`. The caller holds the directory's claim. Returns the new revision:
/// beyond every one that a client may have seen, so that all of them ask anew.
///
/// # Errors
/// `from` is no whole backup of this version or an earlier one; the disk fails. Then the old database is as it was.
pub fn restore(directory: &Path, from: &Path, by: &Actor) -> Result<Revision, RegistryError> {
    let named = |error: RegistryError| match error {
        RegistryError::Storage(error) => RegistryError::Storage(format!("{}: {error}", from.display()).into()),
        RegistryError::Refused(words) => RegistryError::Refused(format!("{}: {words}", from.display())),
        other => other,
    };
    let _alone = files::sole_use_of(directory)?;
    let path = directory.join(files::DATABASE);
    let new = with_suffix(&path, ".new");
    let _ = fs::remove_file(&new);
    let source =
        Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| named(error.into()))?;
    prove(&source).map_err(named)?;
    let mut copy = copy(&source, &new)?;
    drop(source);
    migrations::run(&mut copy).map_err(named)?;
    let revision = mark(&mut copy, &replaced(&path), from, by)?;
    prove(&copy)?;
    copy.close().map_err(|(_, error)| error)?;
    File::open(&new)?.sync_all()?;
    keep_old(&path)?;
    fs::rename(&new, &path)?;
    files::sync_directory(directory)?;
    Ok(revision)
}

/// What a restore must not undo of the database that it replaces.
#[derive(Debug, Default)]
struct Replaced {
    revision: Revision,
    tokens: Vec<TokenRecord>,
    /// Ids of keys that were deleted.
    keys_deleted: Vec<String>,
}

/// Reads the database that is replaced; nothing of it if that can't be read.
fn replaced(path: &Path) -> Replaced {
    if !path.exists() {
        return Replaced::default();
    }
    read_replaced(path).unwrap_or_else(|error| {
        let consequence = "tokens revoked and keys deleted since the backup are good again: rotate keys";
        tracing::warn!(%error, "the replaced database can't be read: {consequence}");
        Replaced::default()
    })
}

fn read_replaced(path: &Path) -> Result<Replaced, RegistryError> {
    let old = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let revision = Sight(&old).revision()?;
    let tokens = Sight(&old).list(&Listing::Tokens)?.into_iter().filter_map(|found| match found.record {
        Record::Token(token) => Some(token),
        _ => None,
    });
    let tokens = tokens.collect();
    let mut statement = old.prepare("SELECT name FROM audit WHERE kind = 'key' AND action = 'delete'")?;
    let keys_deleted = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    drop(statement);
    // Leaving WAL mode folds the WAL in and removes it: it must not be taken for the new database's.
    old.pragma_update(None, "journal_mode", "DELETE")?;
    old.close().map_err(|(_, error)| error)?;
    Ok(Replaced { revision, tokens, keys_deleted })
}

/// Lifts the revision above every one seen, ends the tokens and keys that had ended, marks every volume and group as changed, writes the audit row.
fn mark(copy: &mut Connection, replaced: &Replaced, from: &Path, by: &Actor) -> Result<Revision, RegistryError> {
    let transaction = copy.transaction()?;
    let own: Revision = transaction.query_row("SELECT revision FROM meta", [], |row| row.get(0))?;
    let revision = own.max(replaced.revision).saturating_add(1).max(by.at.saturating_mul(REVISIONS_PER_SECOND));
    transaction.execute("UPDATE meta SET revision = ?1", params![revision])?;
    transaction.execute("UPDATE volumes SET routing = ?1", params![revision])?;
    transaction.execute("UPDATE groups SET routing = ?1", params![revision])?;
    // Keys may have been dealt otherwise since the backup.
    placing::doubt(&transaction, revision)?;
    for key in &replaced.keys_deleted {
        transaction.execute("DELETE FROM keys WHERE id = ?1", params![key])?;
    }
    for token in &replaced.tokens {
        end_token(&transaction, token, revision, by)?;
    }
    let row = AuditRow {
        revision,
        at: by.at,
        subject: by.subject.clone(),
        token: by.token.clone(),
        action: "restore".to_owned(),
        kind: "metadata".to_owned(),
        name: from.display().to_string(),
        to: Some(serde_json::json!({"backup_revision": own})),
    };
    rows::add_audit(&transaction, &row)?;
    transaction.commit()?;
    Ok(revision)
}

/// Ends a token that was revoked since the backup, or that the backup does not know: a proxy, which asks nobody, would take it.
fn end_token(copy: &Connection, token: &TokenRecord, revision: Revision, by: &Actor) -> Result<(), RegistryError> {
    let known = match Sight(copy).one(&RecordId::Token(token.id.clone()))? {
        Some(Versioned { record: Record::Token(known), .. }) => Some(known),
        _ => None,
    };
    match known {
        Some(known) if known.revoked_at.is_some() || token.revoked_at.is_none() => (),
        Some(_) => rows::update(copy, &Record::Token(token.clone()), revision)?,
        None => {
            let mut ended = token.clone();
            ended.revoked_at.get_or_insert(by.at);
            rows::insert(copy, &Record::Token(ended), revision)?;
        }
    }
    Ok(())
}

/// Keeps the old database under another name, and makes sure that no companion of it is taken for the new one's.
fn keep_old(path: &Path) -> Result<(), RegistryError> {
    if !path.exists() {
        return Ok(());
    }
    let replaced = with_suffix(path, ".replaced");
    let _ = fs::remove_file(&replaced);
    fs::hard_link(path, &replaced)?;
    for companion in ["-wal", "-shm"] {
        // There only if the old database could not be read: what it holds goes with it.
        let companion_path = with_suffix(path, companion);
        if companion_path.exists() {
            fs::rename(&companion_path, with_suffix(&replaced, companion))?;
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
