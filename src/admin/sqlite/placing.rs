//! Whose a group's keys are and were, and how far each member has come with what a change took from it.
//!
//! Called by `sqlite` within its transactions; what it means is `routing/placements`. Invariants: the last placement of a group is the members
//! that are up, from the revision on that made them so; a member that may hold a key of an older one has that one listed, or is in doubt.

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::super::registry::{Actor, AuditRow, Listing, Record, RecordId, RegistryError, Report, Standing, View as _};
use super::rows::{self, Sight};
use super::{Unwritten, mark, next_revision, rules};
use crate::resource::{MemberState, Revision};
use crate::routing::placements::{self, IN_DOUBT, PLACEMENTS_MAX};
use crate::routing::{PlacedMember, Placement};

/// A group's placements, oldest first.
pub fn placements(connection: &Connection, group: &str) -> Result<Vec<Placement>, RegistryError> {
    let sql = "SELECT placements FROM groups WHERE name = ?1";
    let text: Option<String> = connection.query_row(sql, params![group], |row| row.get(0)).optional()?;
    let parsed = serde_json::from_str(text.as_deref().unwrap_or("[]"));
    parsed.map_err(|error| RegistryError::Storage(Box::new(error)))
}

/// How far a group's members have come, by name.
pub fn standings(connection: &Connection, group: &str) -> Result<Vec<Standing>, RegistryError> {
    let placements = placements(connection, group)?;
    let sql =
        "SELECT name, id, settled, followed, moved, reported_at FROM members WHERE member_group = ?1 ORDER BY name";
    let mut statement = connection.prepare(sql)?;
    let standing = |row: &Row<'_>| {
        let (id, settled): (String, Revision) = (row.get(1)?, row.get(2)?);
        Ok(Standing {
            name: row.get(0)?,
            moving: placements::is_unsettled(&placements, &id, settled),
            id,
            settled,
            followed: row.get(3)?,
            moved: row.get(4)?,
            reported_at: row.get(5)?,
        })
    };
    let found = statement.query_map(params![group], standing)?;
    found.map(|standing| Ok(standing?)).collect()
}

/// A member that was just made holds nothing of anybody.
pub(super) fn begin(transaction: &Transaction<'_>, id: &RecordId, revision: Revision) -> Result<(), rusqlite::Error> {
    if let RecordId::Member { group, name } = id {
        let sql = "UPDATE members SET settled = ?1 WHERE member_group = ?2 AND name = ?3";
        transaction.execute(sql, params![revision, group, name])?;
    }
    Ok(())
}

/// Adds the placement of now, if a change of a member made it another.
pub(super) fn place(transaction: &Transaction<'_>, group: &str, revision: Revision) -> Result<(), Unwritten> {
    let mut members: Vec<PlacedMember> = Vec::new();
    for found in Sight(transaction).list(&Listing::Members(group.to_owned()))? {
        if let Record::Member(member) = found.record
            && member.state == MemberState::Up
        {
            members.push(PlacedMember { id: member.id.unwrap_or_default(), weight: member.weight });
        }
    }
    members.sort();
    let mut placements = placements(transaction, group)?;
    if placements.last().is_none_or(|last| last.members != members) {
        placements.push(Placement { revision, members });
    }
    keep(transaction, group, placements)
}

/// Keeps what of `placements` may still matter.
fn keep(transaction: &Transaction<'_>, group: &str, mut placements: Vec<Placement>) -> Result<(), Unwritten> {
    let standings = standings(transaction, group)?;
    let mut settled: Vec<_> = standings.into_iter().map(|standing| (standing.id, standing.settled)).collect();
    placements::forget(&mut placements, &settled);
    while placements.len() > PLACEMENTS_MAX {
        let (oldest, next) = (placements.remove(0), &placements[0]);
        for (id, settled) in &mut settled {
            if *settled < next.revision && oldest.members.iter().any(|member| member.id == *id) {
                transaction.execute("UPDATE members SET settled = ?1 WHERE id = ?2", params![IN_DOUBT, *id])?;
                *settled = IN_DOUBT;
            }
        }
    }
    let text = serde_json::to_string(&placements).map_err(|error| RegistryError::Storage(Box::new(error)))?;
    transaction.execute("UPDATE groups SET placements = ?1 WHERE name = ?2", params![text, group])?;
    Ok(())
}

/// As [`super::super::registry::Registry::report`].
pub(super) fn report(
    transaction: &Transaction<'_>,
    group: &str,
    member: &str,
    report: Report,
    by: &Actor,
) -> Result<Option<Revision>, RegistryError> {
    let view = Sight(transaction);
    let id = RecordId::Member { group: group.to_owned(), name: member.to_owned() };
    let found = standings(transaction, group)?.into_iter().find(|standing| standing.name == member);
    let found = found.ok_or_else(|| RegistryError::NotFound(id.to_string()))?;
    if report.followed > view.revision()? {
        return Err(RegistryError::Refused(format!("revision {} is none of this admin's", report.followed)));
    }
    let Report { followed, moved } = report;
    let sql = "UPDATE members SET followed = ?1, moved = ?2, reported_at = ?3 WHERE member_group = ?4 AND name = ?5";
    transaction.execute(sql, params![followed, moved, by.at, group, member])?;
    let placements = placements(transaction, group)?;
    if moved > 0 || !placements::is_progress(&placements, found.settled, followed) {
        return Ok(None);
    }
    let revision = next_revision(transaction)?;
    let sql = "UPDATE members SET settled = ?1 WHERE member_group = ?2 AND name = ?3";
    transaction.execute(sql, params![followed, group, member])?;
    let written = keep(transaction, group, placements)
        .and_then(|()| mark(transaction, rules::touched(&view, &id, None)?, revision));
    written.map_err(|error| match error {
        Unwritten::Refused(error) => error,
        Unwritten::Sql(error) => error.into(),
    })?;
    let row = AuditRow {
        revision,
        at: by.at,
        subject: by.subject.clone(),
        token: by.token.clone(),
        action: "settle".to_owned(),
        kind: id.kind().to_owned(),
        name: id.name(),
        to: Some(serde_json::json!({"followed": followed})),
    };
    rows::add_audit(transaction, &row)?;
    Ok(Some(revision))
}

/// After a restore nobody knows who held what: each member may hold anything until it reports.
pub(super) fn doubt(transaction: &Transaction<'_>, revision: Revision) -> Result<(), RegistryError> {
    transaction.execute("UPDATE members SET settled = ?1", params![IN_DOUBT])?;
    for found in Sight(transaction).list(&Listing::Groups)? {
        let Record::Group(group) = found.record else { continue };
        let mut placements = placements(transaction, &group.name)?;
        let Some(mut last) = placements.pop() else { continue };
        last.revision = revision;
        let text = serde_json::to_string(&[last]).map_err(|error| RegistryError::Storage(Box::new(error)))?;
        transaction.execute("UPDATE groups SET placements = ?1 WHERE name = ?2", params![text, group.name])?;
    }
    Ok(())
}
