//! The port to the admin's storage: records, the one verb that changes them, and what it may answer.
//!
//! Declared here, implemented by `sqlite` (several admins on one shared store are to be another implementation); called by
//! `api`, `keys` and `routing_view`. Invariants of every implementation: a change that is answered is on stable storage; it raised
//! the revision by one, and its audit row was written with it; a change that was refused left nothing behind.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::resource::{Attachment, Group, Invalid, Member, Revision, Store, Volume};
use crate::routing::Placement;
use crate::token::{Right, Role};

/// The most records of one kind (of members: in one group).
pub const RECORDS_MAX: usize = 10_000;
/// The most rows that one look into the audit log returns.
pub const AUDIT_ROWS_MAX: usize = 1_000;

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A bucket.
    Store(Store),
    /// A volume.
    Volume(Volume),
    /// A group.
    Group(Group),
    /// A member of a group.
    Member(Member),
    /// A group serves a volume.
    Attachment(Attachment),
    /// A key that signs, or that signed and still verifies.
    Key(KeyRecord),
    /// A token that was issued.
    Token(TokenRecord),
}

/// What names a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RecordId {
    /// By name.
    Store(String),
    /// By name.
    Volume(String),
    /// By name.
    Group(String),
    /// By name within a group.
    Member {
        /// The group.
        group: String,
        /// The member.
        name: String,
    },
    /// By both ends.
    Attachment {
        /// The volume.
        volume: String,
        /// The group.
        group: String,
    },
    /// By the key's id.
    Key(String),
    /// By the token's id.
    Token(String),
}

/// Records that are listed together, in order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listing {
    /// All stores.
    Stores,
    /// All volumes.
    Volumes,
    /// All groups.
    Groups,
    /// The members of one group.
    Members(String),
    /// The groups of one volume.
    GroupsOf(String),
    /// The volumes of one group.
    VolumesOf(String),
    /// All keys.
    Keys,
    /// All tokens.
    Tokens,
}

/// A signing key. The private half never leaves the storage but to sign.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The `kid` of what it signs.
    pub id: String,
    /// 32 bytes in base64url.
    pub public: String,
    /// PKCS #8 PEM.
    pub private_pem: String,
    /// Unix seconds.
    pub created_at: u64,
}

impl std::fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRecord").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What is known of a token that was issued; the token itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct TokenRecord {
    /// Its `jti`.
    pub id: String,
    /// To whom.
    pub subject: String,
    /// What it may do here; absent: it is for volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// With the role of a proxy: its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The volumes it opens: `r` or `rw`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Right>,
    /// The key that signed it.
    pub key: String,
    /// Unix seconds.
    pub issued_at: u64,
    /// Unix seconds.
    pub expires_at: u64,
    /// Unix seconds; absent: it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<u64>,
}

/// A record and the revision of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The record.
    pub record: Record,
    /// Its last change.
    pub revision: Revision,
}

/// Who asks for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The token's subject, or what program it was.
    pub subject: String,
    /// The token's id; empty for a program on the admin's own machine.
    pub token: String,
    /// Unix seconds.
    pub at: u64,
}

/// What the caller saw before it asked for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Whatever there is.
    Any,
    /// The record in this revision and no other.
    Seen(Revision),
}

/// How far a member has come with what a change of its group's placement took from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct Standing {
    /// The member's name.
    pub name: String,
    /// What placement knows it by.
    pub id: String,
    /// The last revision as of which it held no dirty block of a key that was another's; 0: nothing is known.
    pub settled: Revision,
    /// Whether it may hold dirty blocks of keys that are others' now, and is asked for these.
    pub moving: bool,
    /// The revision that it followed when it reported last; absent: it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<Revision>,
    /// How many such blocks (and deletes) it held then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<u64>,
    /// When that was, in unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_at: Option<u64>,
}

/// What a member's proxy reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The revision of the group's routing that it follows: no request of before is under way any more.
    pub followed: Revision,
    /// How many dirty blocks and deletes it holds of keys that are others' by that routing.
    pub moved: u64,
}

/// One change. Each is one transaction, one revision, one audit row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new record. The same one again changes nothing and succeeds.
    Create(Record),
    /// Other contents for a record that exists.
    Replace(Record, Guard),
    /// The end of a record.
    Delete(RecordId, Guard),
    /// The end of a member that may hold what the store does not have: that is lost to everybody.
    Abandon(RecordId, Guard),
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It was made.
    Changed(Versioned),
    /// It was there already.
    Same(Versioned),
    /// The record is gone.
    Deleted(Revision),
}

/// One row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct AuditRow {
    /// The revision that the change made.
    pub revision: Revision,
    /// Unix seconds.
    pub at: u64,
    /// Who: a token's subject, or a program on the admin's own machine.
    pub subject: String,
    /// By which token; empty for such a program.
    pub token: String,
    /// `create`, `update`, `delete`, `abandon`, `settle`, `rotate`, `issue`, `revoke`, `restore`.
    pub action: String,
    /// `store`, `volume`, `group`, `member`, `attachment`, `key`, `token`, `metadata`.
    pub kind: String,
    /// Its name; `group/member`, `volume/group`.
    pub name: String,
    /// What it became, without secrets.
    #[cfg_attr(feature = "admin", schema(value_type = Option<std::collections::BTreeMap<String, String>>))]
    pub to: Option<serde_json::Value>,
}

/// Why a change was not made, or a question not answered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A field can't stand.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no such record.
    #[error("there is no {0}")]
    NotFound(String),
    /// Another one has the name.
    #[error("{0}")]
    Exists(String),
    /// A rule speaks against it; the words say what to do first.
    #[error("{0}")]
    Refused(String),
    /// The record is not what the caller saw.
    #[error("it was changed in revision {0} since you read it: read it again")]
    Stale(Revision),
    /// The storage failed.
    #[error("the metadata can't be read or written: {0}")]
    Storage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What is remembered of a group beside its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupMarks {
    /// The revision in which it was made.
    pub made: Revision,
    /// The revision that last changed anything its members are told.
    pub routing: Revision,
}

/// Records as they are at one moment.
pub trait View {
    /// One record.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn one(&self, id: &RecordId) -> Result<Option<Versioned>, RegistryError>;

    /// All of a listing.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn list(&self, listing: &Listing) -> Result<Vec<Versioned>, RegistryError>;

    /// The revision of the moment.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn revision(&self) -> Result<Revision, RegistryError>;

    /// The revision that last changed anything a volume's clients are told; `None` if there is no such volume.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn routing_revision(&self, volume: &str) -> Result<Option<Revision>, RegistryError>;

    /// The revision in which a volume was made: tokens issued before it were for another one of that name, which was deleted. `None` if there
    /// is no such volume.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn volume_made(&self, volume: &str) -> Result<Option<Revision>, RegistryError>;

    /// What is remembered of a group beside its record; `None` if there is no such group.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn group_marks(&self, group: &str) -> Result<Option<GroupMarks>, RegistryError>;

    /// Whose a group's keys were, as far back as that matters; none, if there is no such group.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn placements(&self, group: &str) -> Result<Vec<Placement>, RegistryError>;

    /// How far the members of a group have come, by name.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn standings(&self, group: &str) -> Result<Vec<Standing>, RegistryError>;
}

/// The admin's storage. Calls block: they are made from threads that may.
pub trait Registry: Send + Sync {
    /// Makes one change, or none.
    ///
    /// # Errors
    /// Why not; then nothing was changed.
    fn change(&self, change: &Change, by: &Actor) -> Result<Applied, RegistryError>;

    /// Notes what `member` of `group` reports. The revision, if that changed what others are told.
    ///
    /// # Errors
    /// There is no such member, or no such revision; or [`RegistryError::Storage`]. Then nothing was noted.
    fn report(&self, group: &str, member: &str, report: Report, by: &Actor) -> Result<Option<Revision>, RegistryError>;

    /// Hands `look` everything as it is at one moment.
    ///
    /// # Errors
    /// What `look` says, or [`RegistryError::Storage`].
    fn look(&self, look: &mut dyn FnMut(&dyn View) -> Result<(), RegistryError>) -> Result<(), RegistryError>;

    /// At most `limit` rows of the audit log behind revision `after`, oldest first.
    ///
    /// # Errors
    /// [`RegistryError::Storage`].
    fn audit(&self, after: Revision, limit: usize) -> Result<Vec<AuditRow>, RegistryError>;

    /// Writes everything into a new file at `to`, while work goes on.
    ///
    /// # Errors
    /// [`RegistryError::Storage`], also if `to` exists.
    fn backup(&self, to: &Path) -> Result<(), RegistryError>;
}

/// Looks once and returns what was found.
///
/// # Errors
/// As [`Registry::look`].
pub fn looked<T>(
    registry: &dyn Registry,
    mut question: impl FnMut(&dyn View) -> Result<T, RegistryError>,
) -> Result<T, RegistryError> {
    let mut answer = None;
    registry.look(&mut |view| {
        answer = Some(question(view)?);
        Ok(())
    })?;
    Ok(answer.expect("a look that succeeded has asked its question"))
}

impl Record {
    /// What names it.
    #[must_use]
    pub fn id(&self) -> RecordId {
        match self {
            Record::Store(store) => RecordId::Store(store.name.clone()),
            Record::Volume(volume) => RecordId::Volume(volume.name.clone()),
            Record::Group(group) => RecordId::Group(group.name.clone()),
            Record::Member(member) => RecordId::Member { group: member.group.clone(), name: member.name.clone() },
            Record::Attachment(attachment) => {
                RecordId::Attachment { volume: attachment.volume.clone(), group: attachment.group.clone() }
            }
            Record::Key(key) => RecordId::Key(key.id.clone()),
            Record::Token(token) => RecordId::Token(token.id.clone()),
        }
    }

    /// What may be shown of it: everything but private keys and references to credentials.
    #[must_use]
    pub fn shown(&self) -> serde_json::Value {
        let shown = match self {
            Record::Store(store) => {
                let credentials_set = Some(store.credentials.is_some());
                serde_json::to_value(Store { credentials: None, credentials_set, ..store.clone() })
            }
            Record::Key(key) => {
                return serde_json::json!({"id": key.id, "public": key.public, "created_at": key.created_at});
            }
            Record::Volume(volume) => serde_json::to_value(volume),
            Record::Group(group) => serde_json::to_value(group),
            Record::Member(member) => serde_json::to_value(member),
            Record::Attachment(attachment) => serde_json::to_value(attachment),
            Record::Token(token) => serde_json::to_value(token),
        };
        shown.expect("these types have string keys only, which JSON can hold")
    }
}

impl RecordId {
    /// The word for its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            RecordId::Store(_) => "store",
            RecordId::Volume(_) => "volume",
            RecordId::Group(_) => "group",
            RecordId::Member { .. } => "member",
            RecordId::Attachment { .. } => "attachment",
            RecordId::Key(_) => "key",
            RecordId::Token(_) => "token",
        }
    }

    /// Its name, with a slash between the parts of one that has two.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            RecordId::Store(name)
            | RecordId::Volume(name)
            | RecordId::Group(name)
            | RecordId::Key(name)
            | RecordId::Token(name) => name.clone(),
            RecordId::Member { group, name } => format!("{group}/{name}"),
            RecordId::Attachment { volume, group } => format!("{volume}/{group}"),
        }
    }
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}
