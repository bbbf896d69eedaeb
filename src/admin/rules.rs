//! What records must satisfy together: who may be deleted, what a write-back volume needs, what stays as it was made; and
//! which volumes' clients a change concerns.
//!
//! Pure questions to a [`View`], asked by the storage inside the transaction that makes the change, so that no other change comes
//! between. Every refusal says what to do first.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::registry::{Change, Listing, Record, RecordId, RegistryError, Standing, TokenRecord, View};
use crate::placement::MemberId;
use crate::resource::{Invalid, MemberState, Store, Volume};

/// Whether `change` may be made; `before` is the record that it replaces or deletes.
///
/// # Errors
/// Why not.
pub fn check(view: &dyn View, change: &Change, before: Option<&Record>) -> Result<(), RegistryError> {
    match (change, before) {
        (Change::Create(record) | Change::Replace(record, _), before) => check_contents(view, record, before),
        (Change::Delete(id, _), Some(before)) => {
            check_delete(view, id, before)?;
            check_holds_nothing(view, before)
        }
        (Change::Abandon(id, _), Some(before)) => check_delete(view, id, before),
        (Change::Delete(..) | Change::Abandon(..), None) => Ok(()),
    }
}

fn refused<T>(words: String) -> Result<T, RegistryError> {
    Err(RegistryError::Refused(words))
}

fn check_contents(view: &dyn View, record: &Record, before: Option<&Record>) -> Result<(), RegistryError> {
    match (record, before) {
        (Record::Volume(volume), before) => {
            if let Some(Record::Volume(before)) = before {
                check_fixed(volume, before)?;
            }
            check_volume(view, volume)
        }
        (Record::Store(store), Some(Record::Store(before))) => check_store_change(view, store, before),
        (Record::Member(member), Some(Record::Member(before))) => {
            if member.id != before.id {
                return refused(format!(
                    "member {} keeps its id for life: leave it out, or delete the member and make another",
                    member.name
                ));
            }
            if member.state == MemberState::Joining
                && !matches!(before.state, MemberState::Joining | MemberState::Absent)
            {
                return refused(format!(
                    "member {} has served: drain it and make it absent before it joins again",
                    member.name
                ));
            }
            Ok(())
        }
        (Record::Member(member), None) => must_exist(view, &RecordId::Group(member.group.clone())),
        (Record::Attachment(attachment), _) => {
            must_exist(view, &RecordId::Volume(attachment.volume.clone()))?;
            must_exist(view, &RecordId::Group(attachment.group.clone()))
        }
        (Record::Token(token), None) => {
            for volume in token.volumes.keys() {
                must_exist(view, &RecordId::Volume(volume.clone()))?;
            }
            match &token.group {
                Some(group) => must_exist(view, &RecordId::Group(group.clone())),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn must_exist(view: &dyn View, id: &RecordId) -> Result<(), RegistryError> {
    if view.one(id)?.is_some() {
        return Ok(());
    }
    Err(RegistryError::NotFound(id.to_string()))
}

fn check_fixed(volume: &Volume, before: &Volume) -> Result<(), RegistryError> {
    let fixed = [
        ("store", volume.store == before.store),
        ("prefix", volume.prefix == before.prefix),
        ("kind", volume.kind == before.kind),
        ("block_size", volume.block_size == before.block_size),
    ];
    match fixed.iter().find(|(_, is_same)| !is_same) {
        None => Ok(()),
        Some((field, _)) => refused(format!(
            "{field} of volume {} is fixed: what proxies and disks hold was named by it; make another volume",
            volume.name
        )),
    }
}

fn check_volume(view: &dyn View, volume: &Volume) -> Result<(), RegistryError> {
    let Some(found) = view.one(&RecordId::Store(volume.store.clone()))? else {
        let fix = format!("there is no store {}: make it first, or name another", volume.store);
        return Err(Invalid { field: "store", fix }.into());
    };
    if let Record::Store(store) = &found.record {
        check_conditional(volume, store)?;
    }
    for other in view.list(&Listing::Volumes)? {
        if let Record::Volume(other) = other.record
            && other.name != volume.name
            && other.store == volume.store
            && other.prefix == volume.prefix
        {
            return refused(format!("volume {} is the same place: give each its own prefix", other.name));
        }
    }
    let Some(group) = &volume.home_group else { return Ok(()) };
    let attachment = RecordId::Attachment { volume: volume.name.clone(), group: group.clone() };
    if view.one(&attachment)?.is_none() {
        let fix = format!("group {group} does not serve volume {}: attach it first", volume.name);
        return Err(Invalid { field: "home_group", fix }.into());
    }
    Ok(())
}

/// Whether what `volume` does is safe in `store`.
fn check_conditional(volume: &Volume, store: &Store) -> Result<(), RegistryError> {
    if !volume.needs_conditional_put() || store.conditional_put || store.single_writer {
        return Ok(());
    }
    refused(format!(
        "volume {} is write-back or mutable, which needs a store with atomic conditional PUT: set conditional_put of store {} if it \
         has that, or single_writer if nobody else ever writes there",
        volume.name, store.name
    ))
}

fn check_store_change(view: &dyn View, store: &Store, before: &Store) -> Result<(), RegistryError> {
    for volume in view.list(&Listing::Volumes)? {
        let Record::Volume(volume) = volume.record else { continue };
        if volume.store != store.name {
            continue;
        }
        check_conditional(&volume, store)?;
        if (&store.bucket, store.names) != (&before.bucket, before.names) {
            return refused(format!(
                "volume {} lies in store {}: its bucket and names stay; make another store",
                volume.name, store.name
            ));
        }
    }
    Ok(())
}

fn check_delete(view: &dyn View, id: &RecordId, before: &Record) -> Result<(), RegistryError> {
    match (id, before) {
        (RecordId::Store(name), _) => {
            let volumes = view.list(&Listing::Volumes)?;
            let uses = |record: &Record| matches!(record, Record::Volume(volume) if volume.store == *name);
            in_use(id, "delete", volumes.into_iter().map(|volume| volume.record).filter(uses))
        }
        (RecordId::Volume(name), _) => in_use(id, "detach", records(view, &Listing::GroupsOf(name.clone()))?),
        (RecordId::Group(name), _) => {
            in_use(id, "delete", records(view, &Listing::Members(name.clone()))?)?;
            in_use(id, "detach", records(view, &Listing::VolumesOf(name.clone()))?)
        }
        (RecordId::Member { .. }, Record::Member(member)) => match member.state {
            MemberState::Joining | MemberState::Absent => Ok(()),
            MemberState::Up | MemberState::Draining => refused(format!(
                "{id} may hold what the store does not have: set its state to draining, and to absent when it has flushed"
            )),
        },
        (RecordId::Attachment { volume, group }, _) => match view.one(&RecordId::Volume(volume.clone()))? {
            Some(found) if matches!(&found.record, Record::Volume(found) if found.home_group.as_ref() == Some(group)) => {
                refused(format!(
                    "{group} is the home group of volume {volume}: name another home_group, or none, first"
                ))
            }
            _ => Ok(()),
        },
        (RecordId::Key(key), _) => {
            let is_current = records(view, &Listing::Keys)?.last().is_some_and(|last| last.id() == *id);
            if is_current {
                return refused(format!("key {key} signs: rotate first"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether a member that is to go is known to hold no dirty block that others would have to ask it for.
fn check_holds_nothing(view: &dyn View, before: &Record) -> Result<(), RegistryError> {
    let Record::Member(member) = before else { return Ok(()) };
    let standings = view.standings(&member.group)?;
    match standings.iter().find(|standing| standing.name == member.name) {
        Some(Standing { moving: true, moved, .. }) => {
            let held = match moved {
                Some(moved) => format!("it reported {moved} blocks that the store does not have"),
                None => "it never reported".to_owned(),
            };
            refused(format!(
                "member {} may hold what nobody else has: {held}. Let it run, absent, until it reports that all is flushed; or give up \
                 what it holds with --abandon-dirty (?abandon=dirty): acknowledged writes are lost then",
                member.name
            ))
        }
        _ => Ok(()),
    }
}

fn records(view: &dyn View, listing: &Listing) -> Result<impl Iterator<Item = Record> + use<>, RegistryError> {
    Ok(view.list(listing)?.into_iter().map(|versioned| versioned.record))
}

fn in_use(id: &RecordId, verb: &str, users: impl Iterator<Item = Record>) -> Result<(), RegistryError> {
    const NAMED_MAX: usize = 5;
    let mut names: Vec<String> = users.map(|user| user.id().to_string()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    refused(format!("{id} is in use: {verb} {}{more} first", names.join(", ")))
}

/// Whom a change concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Everybody.
    All,
    /// Only some.
    Some {
        /// The clients of these.
        volumes: Vec<String>,
        /// The members of these: every group that serves one of the volumes is among them.
        groups: BTreeSet<String>,
    },
}

/// Which volumes' and groups' routing a change of `id` alters; `after` is what the record becomes, if it does not end. Asked before a delete and after
/// anything else, while what refers to the record is there.
///
/// # Errors
/// [`RegistryError::Storage`].
pub fn touched(view: &dyn View, id: &RecordId, after: Option<&Record>) -> Result<Touched, RegistryError> {
    let volumes = match id {
        RecordId::Key(_) => return Ok(Touched::All),
        RecordId::Volume(name) => vec![name.clone()],
        RecordId::Store(name) => {
            let uses = |record: Record| match record {
                Record::Volume(volume) if volume.store == *name => Some(volume.name),
                _ => None,
            };
            records(view, &Listing::Volumes)?.filter_map(uses).collect()
        }
        RecordId::Group(group) | RecordId::Member { group, .. } => {
            let volume = |record| match record {
                Record::Attachment(attachment) => Some(attachment.volume),
                _ => None,
            };
            records(view, &Listing::VolumesOf(group.clone()))?.filter_map(volume).collect()
        }
        RecordId::Attachment { volume, .. } => vec![volume.clone()],
        // A new token changes nothing for anybody; a revoked one must be told.
        RecordId::Token(_) => match after {
            Some(Record::Token(TokenRecord { revoked_at: Some(_), volumes, .. })) => volumes.keys().cloned().collect(),
            _ => Vec::new(),
        },
    };
    let mut groups = BTreeSet::new();
    if let RecordId::Group(group) | RecordId::Member { group, .. } = id {
        groups.insert(group.clone());
    }
    for volume in &volumes {
        let serves = |record| match record {
            Record::Attachment(attachment) => Some(attachment.group),
            _ => None,
        };
        groups.extend(records(view, &Listing::GroupsOf(volume.clone()))?.filter_map(serves));
    }
    Ok(Touched::Some { volumes, groups })
}

/// Fills in what `change` leaves to us in its record: the id of a member; in an update, the reference to credentials that a reader was never
/// shown. A create names all of it: one without credentials is not the same as one with them.
pub fn complete(record: &mut Record, change: &Change, before: Option<&Record>) {
    match (record, before) {
        (Record::Member(member), Some(Record::Member(before))) if member.id.is_none() => {
            member.id.clone_from(&before.id)
        }
        (Record::Member(member), None) if member.id.is_none() => {
            member.id = Some(MemberId(StdRng::from_os_rng().random()).to_string());
        }
        (Record::Store(store), Some(Record::Store(before)))
            if store.credentials.is_none() && matches!(change, Change::Replace(..)) =>
        {
            store.credentials.clone_from(&before.credentials);
        }
        _ => (),
    }
}
