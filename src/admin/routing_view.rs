//! Gathers the routing document of a volume from the registry.
//!
//! Called by `api/routing` within one look, so that everything in it is of the same moment. Pure but for the view it is given.

use super::keys;
use super::registry::{Listing, Record, RecordId, RegistryError, View};
use crate::resource::{Group, Member, Store};
use crate::routing::{FORMAT, RoutedGroup, RoutedKey, RoutedMember, RoutedStore, Routing};
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
    let keys = keys::records(view)?.into_iter().map(|key| RoutedKey { id: key.id, public: key.public }).collect();
    let made = view.volume_made(volume)?.unwrap_or_default();
    let revoked = view.list(&Listing::Tokens)?.into_iter().filter_map(|found| match found.record {
        Record::Token(token) if token.volumes.contains_key(volume) => {
            // Issued before the volume was made: for another one of its name.
            let is_ended = token.revoked_at.is_some() || found.revision < made;
            // As long as a proxy would take it otherwise.
            let is_current = now < token.expires_at.saturating_add(LEEWAY_SECONDS);
            (is_ended && is_current).then_some(token.id)
        }
        _ => None,
    });
    Ok(Some(Routing {
        format: FORMAT,
        revision,
        volume: settings,
        store: routed_store(store),
        groups,
        keys,
        revoked: revoked.collect(),
    }))
}

fn record(view: &dyn View, id: RecordId) -> Result<Option<Record>, RegistryError> {
    Ok(view.one(&id)?.map(|found| found.record))
}

fn routed_store(store: Store) -> RoutedStore {
    let Store { name, endpoint, region, bucket, path_style, names, conditional_put, .. } = store;
    RoutedStore { name, endpoint, region, bucket, path_style, names, conditional_put }
}

fn routed_group(view: &dyn View, group: Group) -> Result<RoutedGroup, RegistryError> {
    let members =
        view.list(&Listing::Members(group.name.clone()))?.into_iter().filter_map(|member| match member.record {
            Record::Member(member) => Some(routed_member(member)),
            _ => None,
        });
    let members = members.collect();
    Ok(RoutedGroup { name: group.name, provider: group.provider, region: group.region, members })
}

fn routed_member(member: Member) -> RoutedMember {
    let Member { name, id, address, tls_name, weight, state, .. } = member;
    // Both are filled in when a member is made.
    RoutedMember { id: id.unwrap_or_default(), name, address, tls_name: tls_name.unwrap_or_default(), weight, state }
}
