//! The group's document: all that the members of a group are told, signed by the admin.
//!
//! As a volume's routing, but for proxies only, with a `typ` of its own: it says which volumes the group serves, where their blocks are kept in
//! the end and where a proxy finds the credentials for that (a reference, never a secret), which tokens are good, and who the members are. The
//! same invariants hold: one revision, one content.

use serde::{Deserialize, Serialize};

use super::{ROUTING_BYTES_MAX, RoutedGroup, RoutedKey, RoutedMember, RoutedStore};
use crate::placement::MemberId;
use crate::resource::{Revision, Volume};
use crate::token::{BadKey, Form, PublicKeys, Refusal, SigningKey};

const TYP: &str = "forebay-group-routing";
/// The version of the document's shape.
pub const FORMAT: u32 = 1;

/// What a group's members are told. Unknown fields are left out of account: a later admin may say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct GroupRouting {
    /// [`FORMAT`]; a reader refuses another.
    pub format: u32,
    /// The last change of anything in it.
    pub revision: Revision,
    /// The group.
    pub group: String,
    /// The volumes that it serves, by name.
    pub volumes: Vec<GroupVolume>,
    /// The stores of these volumes, by name.
    pub stores: Vec<GroupStore>,
    /// The group itself and the home groups of its volumes, by name.
    pub groups: Vec<RoutedGroup>,
    /// The keys whose tokens are good; the last one signs.
    pub keys: Vec<RoutedKey>,
}

/// A volume that the group serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct GroupVolume {
    /// Its settings.
    pub volume: Volume,
    /// The revision in which it was made: another one of its name has another.
    pub made: Revision,
    /// Ids of tokens for this volume that are no longer good, though they have not expired.
    pub revoked: Vec<String>,
}

/// A store, with what a proxy needs to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct GroupStore {
    /// What everybody is told of it.
    #[serde(flatten)]
    pub store: RoutedStore,
    /// Nobody but one proxy ever writes there.
    pub single_writer: bool,
    /// Where a proxy finds the credentials: `usual`, `env`, `profile:NAME` or `file:PATH#PROFILE`. Absent: `usual`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
}

impl GroupRouting {
    /// The signed document.
    ///
    /// # Errors
    /// When signing fails, which takes a key that was not checked.
    pub fn sign(&self, key: &SigningKey) -> Result<String, BadKey> {
        key.sign(self, TYP)
    }

    /// The document that `signed` carries, if one of `keys` signed it.
    ///
    /// # Errors
    /// It is malformed, of another format, or signed by nobody known.
    pub fn open(signed: &str, keys: &PublicKeys) -> Result<GroupRouting, Refusal> {
        let form = Form { typ: Some(TYP), bytes_max: ROUTING_BYTES_MAX, spec_claims: &[] };
        let routing = keys.open::<GroupRouting>(signed, form)?;
        if routing.format == FORMAT { Ok(routing) } else { Err(Refusal::Malformed) }
    }

    /// A group that is told of.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&RoutedGroup> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// The member of the document's own group that `name` (a name or an id) is.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&RoutedMember> {
        let members = &self.group(&self.group)?.members;
        let id = name.parse::<MemberId>().ok().map(|id| id.to_string());
        let by_id = members.iter().find(|member| id.as_ref() == Some(&member.id));
        by_id.or_else(|| members.iter().find(|member| member.name == name))
    }
}
