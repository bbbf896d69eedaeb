//! [`Registry`] on SQLite: one file in WAL mode, synced at each commit. The only files that name rusqlite are this and those below.
//!
//! Columns are what others refer to or what must be unique; the rest of a record is its JSON body, so that a new setting needs no
//! migration. One connection writes, another reads, so that readers do not wait for a sync. Invariants: foreign keys are checked;
//! revision, record, routing marks and audit row are one transaction.

mod files;
mod migrations;
mod placing;
mod restore;
mod rows;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};

pub use files::{DATABASE, claim};
pub use restore::restore;

use super::registry::{
    Actor, Applied, AuditRow, Change, Guard, RECORDS_MAX, Record, RecordId, Registry, RegistryError, Report, Versioned,
    View,
};
use super::rules::{self, Touched};
use crate::resource::Revision;
use crate::token::LEEWAY_SECONDS;
use rows::Sight;

/// How long one connection waits for another that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// The audit log forgets what is older than so many changes.
const AUDIT_ROWS_KEPT: u64 = 1_000_000;
/// It is looked whether there are so many once in so many changes.
const AUDIT_PRUNED_EACH: u64 = 1_000;
/// For so long after its end a token is still listed.
const TOKEN_KEPT_SECONDS: u64 = 7 * 86_400;

impl From<rusqlite::Error> for RegistryError {
    fn from(error: rusqlite::Error) -> RegistryError {
        RegistryError::Storage(Box::new(error))
    }
}

/// The admin's database.
pub struct Sqlite {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    /// Let go of after the connections.
    _use: files::Use,
}

impl Sqlite {
    /// Opens the database in `directory`; makes it, or brings it up to this version, first. The directory must exist.
    ///
    /// # Errors
    /// What the disk or SQLite say; a database of a later version, or of another program.
    pub fn open(directory: &Path) -> Result<Sqlite, RegistryError> {
        let path = directory.join(DATABASE);
        let in_use = files::use_of(directory)?;
        files::make_private(&path)?;
        files::sync_directory(directory)?;
        let mut writer = connect(&path)?;
        migrations::run(&mut writer)?;
        let reader = connect(&path)?;
        Ok(Sqlite { writer: Mutex::new(writer), reader: Mutex::new(reader), _use: in_use })
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        // A panic within a transaction has rolled it back.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to an existing file, set up as every one of ours is.
fn connect(path: &Path) -> Result<Connection, RegistryError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: a commit is on stable storage before it is answered.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

impl Registry for Sqlite {
    fn change(&self, change: &Change, by: &Actor) -> Result<Applied, RegistryError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let applied = apply(&transaction, change, by)?;
        if !matches!(applied, Applied::Same(_)) {
            transaction.commit().map_err(|error| constraint(error, change))?;
        }
        Ok(applied)
    }

    fn report(&self, group: &str, member: &str, report: Report, by: &Actor) -> Result<Option<Revision>, RegistryError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let revision = placing::report(&transaction, group, member, report, by)?;
        transaction.commit()?;
        Ok(revision)
    }

    fn look(&self, look: &mut dyn FnMut(&dyn View) -> Result<(), RegistryError>) -> Result<(), RegistryError> {
        let mut reader = self.reader();
        let transaction = reader.transaction()?;
        look(&Sight(&transaction))
    }

    fn audit(&self, after: Revision, limit: usize) -> Result<Vec<AuditRow>, RegistryError> {
        rows::audit(&self.reader(), after, limit)
    }

    fn backup(&self, to: &Path) -> Result<(), RegistryError> {
        restore::backup(&self.reader(), to)
    }
}

/// Makes `change` within `transaction`.
fn apply(transaction: &Transaction<'_>, change: &Change, by: &Actor) -> Result<Applied, RegistryError> {
    let view = Sight(transaction);
    let (record, guard) = match change {
        Change::Create(record) => (Some(record.clone()), Guard::Any),
        Change::Replace(record, guard) => (Some(record.clone()), *guard),
        Change::Delete(_, guard) | Change::Abandon(_, guard) => (None, *guard),
    };
    let id = match change {
        Change::Create(record) | Change::Replace(record, _) => record.id(),
        Change::Delete(id, _) | Change::Abandon(id, _) => id.clone(),
    };
    let before = view.one(&id)?;
    let record = record.map(|mut record| {
        rules::complete(&mut record, change, before.as_ref().map(|before| &before.record));
        record
    });
    let before = match (change, before) {
        (Change::Create(_), Some(before)) if record.as_ref() == Some(&before.record) => {
            return Ok(Applied::Same(before));
        }
        (Change::Create(_), Some(_)) => return Err(other_exists(&id)),
        (Change::Create(_), None) => None,
        (_, None) => return Err(RegistryError::NotFound(id.to_string())),
        (_, Some(before)) => Some(seen(before, guard)?),
    };
    if let (Some(record), Some(before)) = (&record, &before)
        && *record == before.record
    {
        return Ok(Applied::Same(before.clone()));
    }
    // What is checked is what is stored, filled in.
    let completed = match (&record, change) {
        (Some(record), Change::Create(_)) => Change::Create(record.clone()),
        (Some(record), _) => Change::Replace(record.clone(), guard),
        (None, _) => change.clone(),
    };
    rules::check(&view, &completed, before.as_ref().map(|before| &before.record))?;
    let revision = next_revision(transaction)?;
    let written = write(transaction, &id, record.as_ref(), before.is_some(), revision, by);
    written.map_err(|error| match error {
        Unwritten::Refused(error) => error,
        Unwritten::Sql(error) => constraint(error, change),
    })?;
    audit(transaction, change, &id, record.as_ref(), revision, by)?;
    Ok(match record {
        Some(record) => Applied::Changed(Versioned { record, revision }),
        None => Applied::Deleted(revision),
    })
}

fn other_exists(id: &RecordId) -> RegistryError {
    let compared = match id {
        RecordId::Store(_) => " (credentials count too, though they are never shown)",
        _ => "",
    };
    RegistryError::Exists(format!("there is another {id}{compared}: choose another name, or update that one"))
}

fn seen(before: Versioned, guard: Guard) -> Result<Versioned, RegistryError> {
    match guard {
        Guard::Seen(revision) if revision != before.revision => Err(RegistryError::Stale(before.revision)),
        _ => Ok(before),
    }
}

fn next_revision(transaction: &Transaction<'_>) -> Result<Revision, RegistryError> {
    let sql = "UPDATE meta SET revision = revision + 1 RETURNING revision";
    Ok(transaction.query_row(sql, [], |row| row.get::<_, Revision>(0))?)
}

enum Unwritten {
    Refused(RegistryError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Unwritten {
    fn from(error: rusqlite::Error) -> Unwritten {
        Unwritten::Sql(error)
    }
}

impl From<RegistryError> for Unwritten {
    fn from(error: RegistryError) -> Unwritten {
        Unwritten::Refused(error)
    }
}

/// Writes the record (or its end) and marks the volumes whose clients, and the groups whose members, must hear of it.
fn write(
    transaction: &Transaction<'_>,
    id: &RecordId,
    record: Option<&Record>,
    is_there: bool,
    revision: Revision,
    by: &Actor,
) -> Result<(), Unwritten> {
    let view = Sight(transaction);
    let touched = match record {
        None => {
            let touched = rules::touched(&view, id, None)?;
            rows::delete(transaction, id)?;
            touched
        }
        Some(record) => {
            if let Record::Token(_) = record {
                let kept_from = by.at.saturating_sub(TOKEN_KEPT_SECONDS);
                transaction.execute("DELETE FROM tokens WHERE expires_at < ?1", params![kept_from])?;
            }
            if is_there {
                rows::update(transaction, record, revision)?;
            } else {
                make_room(transaction, id, by)?;
                rows::insert(transaction, record, revision)?;
                placing::begin(transaction, id, revision)?;
            }
            rules::touched(&view, id, Some(record))?
        }
    };
    if let RecordId::Member { group, .. } = id {
        placing::place(transaction, group, revision)?;
    }
    mark(transaction, touched, revision)
}

/// Marks the volumes and groups of which something is told from `revision` on.
fn mark(transaction: &Transaction<'_>, touched: Touched, revision: Revision) -> Result<(), Unwritten> {
    match touched {
        Touched::All => {
            transaction.execute("UPDATE volumes SET routing = ?1", params![revision])?;
            transaction.execute("UPDATE groups SET routing = ?1", params![revision])?;
        }
        Touched::Some { volumes, groups } => {
            for volume in volumes {
                transaction.execute("UPDATE volumes SET routing = ?1 WHERE name = ?2", params![revision, volume])?;
            }
            for group in groups {
                transaction.execute("UPDATE groups SET routing = ?1 WHERE name = ?2", params![revision, group])?;
            }
        }
    }
    Ok(())
}

/// Makes sure that there may be one more record where `id` goes. Tokens that have ended are the first to go.
fn make_room(transaction: &Transaction<'_>, id: &RecordId, by: &Actor) -> Result<(), Unwritten> {
    if rows::count(transaction, id)? < RECORDS_MAX {
        return Ok(());
    }
    let fix = match id {
        RecordId::Token(_) => {
            let ended = by.at.saturating_sub(LEEWAY_SECONDS);
            if transaction.execute("DELETE FROM tokens WHERE expires_at <= ?1", params![ended])? > 0 {
                return Ok(());
            }
            "wait until some have ended, and issue fewer or shorter ones"
        }
        _ => "delete one first",
    };
    let words = format!("there are {RECORDS_MAX} of them, which is the most: {fix}");
    Err(RegistryError::Refused(words).into())
}

/// What a foreign key or a unique column said, for people. The rules catch what they can explain better.
fn constraint(error: rusqlite::Error, change: &Change) -> RegistryError {
    if error.sqlite_error_code() != Some(ErrorCode::ConstraintViolation) {
        return error.into();
    }
    match change {
        Change::Create(Record::Member(_)) | Change::Replace(Record::Member(_), _) => RegistryError::Exists(
            "another member has this id, or this address in this group: each has its own".to_owned(),
        ),
        _ => RegistryError::Refused(format!("other records speak against it: {error}")),
    }
}

fn audit(
    transaction: &Transaction<'_>,
    change: &Change,
    id: &RecordId,
    record: Option<&Record>,
    revision: Revision,
    by: &Actor,
) -> Result<(), RegistryError> {
    let action = match (change, id) {
        (Change::Create(_), RecordId::Key(_)) => "rotate",
        (Change::Create(_), RecordId::Token(_)) => "issue",
        (Change::Replace(..), RecordId::Token(_)) => "revoke",
        (Change::Create(_), _) => "create",
        (Change::Replace(..), _) => "update",
        (Change::Delete(..), _) => "delete",
        (Change::Abandon(..), _) => "abandon",
    };
    let row = AuditRow {
        revision,
        at: by.at,
        subject: by.subject.clone(),
        token: by.token.clone(),
        action: action.to_owned(),
        kind: id.kind().to_owned(),
        name: id.name(),
        to: record.map(Record::shown),
    };
    rows::add_audit(transaction, &row)?;
    if revision.is_multiple_of(AUDIT_PRUNED_EACH) {
        // Counted in rows: a restore leaves a wide gap between revisions.
        let sql =
            "DELETE FROM audit WHERE revision <= (SELECT revision FROM audit ORDER BY revision DESC LIMIT 1 OFFSET ?1)";
        transaction.execute(sql, params![AUDIT_ROWS_KEPT])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
