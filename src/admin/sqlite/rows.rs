//! Records as rows: which table and columns each kind has, and the statements over them.
//!
//! Called by `sqlite` within its transactions. Names of tables and columns come from the code, never from a request; values are
//! always bound.

use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::registry::{
    AuditRow, GroupMarks, Listing, Record, RecordId, RegistryError, Standing, Versioned, View,
};
use super::placing;
use crate::resource::Revision;
use crate::routing::Placement;

/// Records as a transaction sees them.
pub struct Sight<'a>(pub &'a Connection);

impl View for Sight<'_> {
    fn one(&self, id: &RecordId) -> Result<Option<Versioned>, RegistryError> {
        let (table, key) = place(id);
        let condition = condition(&key, 1);
        let sql = format!("SELECT body, revision FROM {table} WHERE {condition}");
        let mut statement = self.0.prepare(&sql)?;
        let row = statement.query_row(params_from_iter(key.iter().map(|(_, value)| value)), raw).optional()?;
        row.map(|row| decode(table, row)).transpose()
    }

    fn list(&self, listing: &Listing) -> Result<Vec<Versioned>, RegistryError> {
        let (table, condition, value, order) = match listing {
            Listing::Stores => ("stores", "", None, "name"),
            Listing::Volumes => ("volumes", "", None, "name"),
            Listing::Groups => ("groups", "", None, "name"),
            Listing::Members(group) => ("members", "WHERE member_group = ?1", Some(group), "name"),
            Listing::GroupsOf(volume) => ("attachments", "WHERE volume = ?1", Some(volume), "member_group"),
            Listing::VolumesOf(group) => ("attachments", "WHERE member_group = ?1", Some(group), "volume"),
            Listing::Keys => ("keys", "", None, "revision"),
            Listing::Tokens => ("tokens", "", None, "revision"),
        };
        let mut statement =
            self.0.prepare(&format!("SELECT body, revision FROM {table} {condition} ORDER BY {order}"))?;
        let rows = statement.query_map(params_from_iter(value), raw)?;
        rows.map(|row| decode(table, row?)).collect()
    }

    fn revision(&self) -> Result<Revision, RegistryError> {
        Ok(self.0.query_row("SELECT revision FROM meta", [], |row| row.get(0))?)
    }

    fn routing_revision(&self, volume: &str) -> Result<Option<Revision>, RegistryError> {
        let sql = "SELECT routing FROM volumes WHERE name = ?1";
        Ok(self.0.query_row(sql, params![volume], |row| row.get(0)).optional()?)
    }

    fn volume_made(&self, volume: &str) -> Result<Option<Revision>, RegistryError> {
        let sql = "SELECT made FROM volumes WHERE name = ?1";
        Ok(self.0.query_row(sql, params![volume], |row| row.get(0)).optional()?)
    }

    fn group_marks(&self, group: &str) -> Result<Option<GroupMarks>, RegistryError> {
        let sql = "SELECT made, routing FROM groups WHERE name = ?1";
        let marks = |row: &Row<'_>| Ok(GroupMarks { made: row.get(0)?, routing: row.get(1)? });
        Ok(self.0.query_row(sql, params![group], marks).optional()?)
    }

    fn placements(&self, group: &str) -> Result<Vec<Placement>, RegistryError> {
        placing::placements(self.0, group)
    }

    fn standings(&self, group: &str) -> Result<Vec<Standing>, RegistryError> {
        placing::standings(self.0, group)
    }
}

type Columns = Vec<(&'static str, Value)>;

/// The table of a record and the columns that name it.
fn place(id: &RecordId) -> (&'static str, Columns) {
    let named = |column, name: &String| vec![(column, Value::from(name.clone()))];
    match id {
        RecordId::Store(name) => ("stores", named("name", name)),
        RecordId::Volume(name) => ("volumes", named("name", name)),
        RecordId::Group(name) => ("groups", named("name", name)),
        RecordId::Key(id) => ("keys", named("id", id)),
        RecordId::Token(id) => ("tokens", named("id", id)),
        RecordId::Member { group, name } => {
            ("members", vec![("member_group", group.clone().into()), ("name", name.clone().into())])
        }
        RecordId::Attachment { volume, group } => {
            ("attachments", vec![("volume", volume.clone().into()), ("member_group", group.clone().into())])
        }
    }
}

/// The columns of a record beside those that name it.
fn columns(record: &Record, revision: Revision) -> Result<Columns, rusqlite::Error> {
    let mut columns = match record {
        Record::Volume(volume) => vec![
            ("store", volume.store.clone().into()),
            ("prefix", volume.prefix.clone().into()),
            ("home_group", volume.home_group.clone().into()),
        ],
        Record::Member(member) => {
            vec![("id", member.id.clone().into()), ("address", member.address.clone().into())]
        }
        Record::Token(token) => vec![("expires_at", integer(token.expires_at)?)],
        Record::Store(_) | Record::Group(_) | Record::Attachment(_) | Record::Key(_) => Vec::new(),
    };
    let body = match record {
        Record::Store(store) => json(store),
        Record::Volume(volume) => json(volume),
        Record::Group(group) => json(group),
        Record::Member(member) => json(member),
        Record::Attachment(attachment) => json(attachment),
        Record::Key(key) => json(key),
        Record::Token(token) => json(token),
    }?;
    columns.push(("body", body.into()));
    columns.push(("revision", integer(revision)?));
    Ok(columns)
}

fn json(value: &impl Serialize) -> Result<String, rusqlite::Error> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn integer(value: u64) -> Result<Value, rusqlite::Error> {
    let value = i64::try_from(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    Ok(Value::Integer(value))
}

/// `a = ?1 AND b = ?2`, numbered from `first`.
fn condition(key: &Columns, first: usize) -> String {
    let terms = key.iter().enumerate().map(|(index, (column, _))| format!("{column} = ?{}", first + index));
    terms.collect::<Vec<_>>().join(" AND ")
}

fn values(columns: &Columns) -> impl Iterator<Item = &dyn ToSql> {
    columns.iter().map(|(_, value)| value as &dyn ToSql)
}

/// How many records there are where `id` would go.
pub fn count(connection: &Connection, id: &RecordId) -> Result<usize, rusqlite::Error> {
    match id {
        RecordId::Member { group, .. } => {
            let sql = "SELECT count(*) FROM members WHERE member_group = ?1";
            connection.query_row(sql, params![group], |row| row.get(0))
        }
        _ => connection.query_row(&format!("SELECT count(*) FROM {}", place(id).0), [], |row| row.get(0)),
    }
}

/// A new record.
pub fn insert(connection: &Connection, record: &Record, revision: Revision) -> Result<(), rusqlite::Error> {
    let (table, mut all) = place(&record.id());
    all.extend(columns(record, revision)?);
    if let Record::Volume(_) | Record::Group(_) = record {
        all.push(("made", integer(revision)?));
    }
    let names = all.iter().map(|(column, _)| *column).collect::<Vec<_>>().join(", ");
    let marks = (1..=all.len()).map(|number| format!("?{number}")).collect::<Vec<_>>().join(", ");
    let sql = format!("INSERT INTO {table} ({names}) VALUES ({marks})");
    connection.execute(&sql, params_from_iter(values(&all))).map(drop)
}

/// Other contents for a record that exists.
pub fn update(connection: &Connection, record: &Record, revision: Revision) -> Result<(), rusqlite::Error> {
    let (table, key) = place(&record.id());
    let columns = columns(record, revision)?;
    let sets = columns.iter().enumerate().map(|(index, (column, _))| format!("{column} = ?{}", index + 1));
    let sets = sets.collect::<Vec<_>>().join(", ");
    let sql = format!("UPDATE {table} SET {sets} WHERE {}", condition(&key, columns.len() + 1));
    connection.execute(&sql, params_from_iter(values(&columns).chain(values(&key)))).map(drop)
}

/// The end of a record.
pub fn delete(connection: &Connection, id: &RecordId) -> Result<(), rusqlite::Error> {
    let (table, key) = place(id);
    let sql = format!("DELETE FROM {table} WHERE {}", condition(&key, 1));
    connection.execute(&sql, params_from_iter(values(&key))).map(drop)
}

fn raw(row: &Row<'_>) -> Result<(String, Revision), rusqlite::Error> {
    Ok((row.get(0)?, row.get(1)?))
}

fn decode(table: &str, (body, revision): (String, Revision)) -> Result<Versioned, RegistryError> {
    fn parsed<T: DeserializeOwned>(body: &str) -> Result<T, RegistryError> {
        serde_json::from_str(body).map_err(|error| RegistryError::Storage(Box::new(error)))
    }
    let record = match table {
        "stores" => Record::Store(parsed(&body)?),
        "volumes" => Record::Volume(parsed(&body)?),
        "groups" => Record::Group(parsed(&body)?),
        "members" => Record::Member(parsed(&body)?),
        "attachments" => Record::Attachment(parsed(&body)?),
        "keys" => Record::Key(parsed(&body)?),
        _ => Record::Token(parsed(&body)?),
    };
    Ok(Versioned { record, revision })
}

/// Adds a row to the audit log.
pub fn add_audit(connection: &Connection, row: &AuditRow) -> Result<(), rusqlite::Error> {
    let became = row.to.as_ref().map(json).transpose()?;
    let sql = "INSERT INTO audit (revision, at, subject, token, action, kind, name, became) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let AuditRow { revision, at, subject, token, action, kind, name, .. } = row;
    connection.execute(sql, params![revision, at, subject, token, action, kind, name, became]).map(drop)
}

/// At most `limit` rows of the audit log behind `after`, oldest first.
pub fn audit(connection: &Connection, after: Revision, limit: usize) -> Result<Vec<AuditRow>, RegistryError> {
    let sql = "SELECT revision, at, subject, token, action, kind, name, became FROM audit WHERE revision > ?1 \
               ORDER BY revision LIMIT ?2";
    let mut statement = connection.prepare(sql)?;
    // SQLite's integers have a sign; no revision comes near it.
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![after, limit], |row| {
        let became: Option<String> = row.get(7)?;
        Ok(AuditRow {
            revision: row.get(0)?,
            at: row.get(1)?,
            subject: row.get(2)?,
            token: row.get(3)?,
            action: row.get(4)?,
            kind: row.get(5)?,
            name: row.get(6)?,
            to: became.and_then(|became| serde_json::from_str(&became).ok()),
        })
    })?;
    rows.map(|row| Ok(row?)).collect()
}
