//! Gathers the routing documents of volumes and of groups from the registry.
//!
//! Called by `api/routing` within one look, so that everything in it is of the same moment. Pure but for the view it is given.

use std::collections::{BTreeMap, BTreeSet};

use super::keys;
use super::registry::{Listing, Record, RecordId, RegistryError, Versioned, View};
use crate::resource::{Group, Member, Revision, Store};
use crate::routing::{
    FORMAT, GroupRouting, GroupStore, GroupVolume, RoutedGroup, RoutedKey, RoutedMember, RoutedStore, Routing, group,
};
use crate::token::LEEWAY_SECONDS;

/// What the clients of `volume` are told at `now` (unix seconds); `None` if there is no such volume.
///
/// # Errors
/// The registry's.
pub fn gather(view: &dyn View, volume: &str, now: u64) -> Result<Option<Routing>, RegistryError> {
    let Some(revision) = view.routing_revision(volume)? else { return Ok(None) };
    let Some(Record::Volume(settings)) = record(view, RecordId::Volume(volume.to_owned()))? else { return Ok(None) };
    let Some(Record::Store(store)) = record(view, RecordId::Store(settings.store.clone()))? else { return Ok(None) };
    let mut groups = Vec::new();
    for attached in view.list(&Listing::GroupsOf(volume.to_owned()))? {
        let Record::Attachment(attachment) = attached.record else { continue };
        if let Some(Record::Group(group)) = record(view, RecordId::Group(attachment.group))? {
            groups.push(routed_group(view, group)?);
        }
    }
    let made = view.volume_made(volume)?.unwrap_or_default();
    let revoked = revoked(&view.list(&Listing::Tokens)?, volume, made, now);
    Ok(Some(Routing {
        format: FORMAT,
        revision,
        volume: settings,
        store: routed_store(store),
        groups,
        keys: routed_keys(view)?,
        revoked,
    }))
}

/// What the members of `group` are told at `now` (unix seconds); `None` if there is no such group.
///
/// # Errors
/// The registry's.
pub fn gather_group(view: &dyn View, group: &str, now: u64) -> Result<Option<GroupRouting>, RegistryError> {
    let Some(marks) = view.group_marks(group)? else { return Ok(None) };
    let tokens = view.list(&Listing::Tokens)?;
    let (mut volumes, mut stores) = (Vec::new(), BTreeMap::new());
    let mut names = BTreeSet::from([group.to_owned()]);
    for attached in view.list(&Listing::VolumesOf(group.to_owned()))? {
        let Record::Attachment(attachment) = attached.record else { continue };
        let Some(Record::Volume(volume)) = record(view, RecordId::Volume(attachment.volume))? else { continue };
        let Some(Record::Store(store)) = record(view, RecordId::Store(volume.store.clone()))? else { continue };
        stores.insert(store.name.clone(), group_store(store));
        names.extend(volume.home_group.clone());
        let made = view.volume_made(&volume.name)?.unwrap_or_default();
        let revoked = revoked(&tokens, &volume.name, made, now);
        volumes.push(GroupVolume { volume, made, revoked });
    }
    let mut groups = Vec::new();
    for name in names {
        if let Some(Record::Group(group)) = record(view, RecordId::Group(name))? {
            groups.push(routed_group(view, group)?);
        }
    }
    Ok(Some(GroupRouting {
        format: group::FORMAT,
        revision: marks.routing,
        group: group.to_owned(),
        volumes,
        stores: stores.into_values().collect(),
        groups,
        keys: routed_keys(view)?,
    }))
}

/// The keys, the one that signs last.
fn routed_keys(view: &dyn View) -> Result<Vec<RoutedKey>, RegistryError> {
    Ok(keys::records(view)?.into_iter().map(|key| RoutedKey { id: key.id, public: key.public }).collect())
}

/// Which of `tokens` open `volume`, which was made in revision `made`, no more, though they have not expired.
fn revoked(tokens: &[Versioned], volume: &str, made: Revision, now: u64) -> Vec<String> {
    let ended = tokens.iter().filter_map(|found| match &found.record {
        Record::Token(token) if token.volumes.contains_key(volume) => {
            // Issued before the volume was made: for another one of its name.
            let is_ended = token.revoked_at.is_some() || found.revision < made;
            // As long as a proxy would take it otherwise.
            let is_current = now < token.expires_at.saturating_add(LEEWAY_SECONDS);
            (is_ended && is_current).then(|| token.id.clone())
        }
        _ => None,
    });
    ended.collect()
}

fn record(view: &dyn View, id: RecordId) -> Result<Option<Record>, RegistryError> {
    Ok(view.one(&id)?.map(|found| found.record))
}

fn routed_store(store: Store) -> RoutedStore {
    let Store { name, endpoint, region, bucket, path_style, names, conditional_put, sts_endpoint, .. } = store;
    let sessions = sts_endpoint.is_some();
    RoutedStore { name, endpoint, region, bucket, path_style, names, conditional_put, sessions }
}

fn group_store(store: Store) -> GroupStore {
    let (single_writer, credentials) = (store.single_writer, store.credentials.clone());
    GroupStore { store: routed_store(store), single_writer, credentials }
}

fn routed_group(view: &dyn View, group: Group) -> Result<RoutedGroup, RegistryError> {
    let standings = view.standings(&group.name)?;
    let settled = |name: &str| standings.iter().find(|standing| standing.name == name).map_or(0, |found| found.settled);
    let members =
        view.list(&Listing::Members(group.name.clone()))?.into_iter().filter_map(|member| match member.record {
            Record::Member(member) => Some(routed_member(settled(&member.name), member)),
            _ => None,
        });
    let members = members.collect();
    let placements = view.placements(&group.name)?;
    Ok(RoutedGroup { name: group.name, provider: group.provider, region: group.region, members, placements })
}

fn routed_member(settled: Revision, member: Member) -> RoutedMember {
    let Member { name, id, address, tls_name, weight, state, .. } = member;
    // Both are filled in when a member is made.
    let (id, tls_name) = (id.unwrap_or_default(), tls_name.unwrap_or_default());
    RoutedMember { id, name, address, tls_name, weight, state, settled }
}
