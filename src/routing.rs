//! The routing document: all that a client or a proxy is told of one volume, signed by the admin.
//!
//! Made by the admin, kept on disk by whoever fetched it, so that both start without the admin. A JWS in compact form (RFC 7515) with
//! `typ` `forebay-routing`; it does not expire. Invariant: the same revision has the same content, and a reader never goes back to a
//! lower revision than it has seen. The same content under the same key is the same bytes, for Ed25519 draws nothing.

pub mod group;
pub mod placements;
pub mod session;

use serde::{Deserialize, Serialize};

pub use group::{GroupRouting, GroupStore, GroupVolume};
pub use placements::{Holders, PlacedMember, Placement};

use crate::placement;
use crate::resource::{KeyNames, MemberState, Revision, Volume};
use crate::token::{BadKey, Form, PublicKeys, Refusal, SigningKey};

const TYP: &str = "forebay-routing";
/// The media type that the admin sends it with.
pub const MEDIA_TYPE: &str = "application/jose";
/// The longest document that is looked at, in bytes: 10,000 members are some 2.5 MB.
pub const ROUTING_BYTES_MAX: usize = 16 << 20;
/// The version of the document's shape.
pub const FORMAT: u32 = 1;

/// What a volume's clients and proxies are told. Unknown fields are left out of account: a later admin may say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct Routing {
    /// [`FORMAT`]; a reader refuses another.
    pub format: u32,
    /// The last change of anything in it.
    pub revision: Revision,
    /// The volume's settings.
    pub volume: Volume,
    /// Where its blocks are kept in the end.
    pub store: RoutedStore,
    /// The groups that serve it, by name.
    pub groups: Vec<RoutedGroup>,
    /// The keys whose tokens are good; the last one signs.
    pub keys: Vec<RoutedKey>,
    /// Ids of tokens for this volume that are no longer good, though they have not expired.
    pub revoked: Vec<String>,
}

/// A store, without its credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct RoutedStore {
    /// Its name.
    pub name: String,
    /// The service's URL.
    pub endpoint: String,
    /// The region requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// Whether the bucket stands in the path.
    pub path_style: bool,
    /// How keys are written as object names.
    pub names: KeyNames,
    /// Whether conditional PUTs are atomic.
    pub conditional_put: bool,
    /// Whether the admin gives session credentials for it.
    #[serde(default)]
    pub sessions: bool,
}

/// A group that serves the volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct RoutedGroup {
    /// Its name.
    pub name: String,
    /// Who runs it.
    pub provider: String,
    /// Where.
    pub region: String,
    /// Its members, by name, whatever their state.
    pub members: Vec<RoutedMember>,
    /// Whose the keys were, oldest first, as far back as a member may hold dirty blocks of that time; the last is the one of now.
    #[serde(default)]
    pub placements: Vec<Placement>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct RoutedMember {
    /// What placement knows it by: 32 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// `host:port` of its shared listener.
    pub address: String,
    /// The name its certificate is verified against.
    pub tls_name: String,
    /// Its share of the keys.
    #[cfg_attr(feature = "admin", schema(value_type = u32))]
    pub weight: std::num::NonZeroU32,
    /// What may be expected of it.
    pub state: MemberState,
    /// The last revision as of which it held no dirty block of a key that was another's.
    #[serde(default)]
    pub settled: Revision,
}

/// A key whose tokens are good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub struct RoutedKey {
    /// The `kid` of what it signed.
    pub id: String,
    /// 32 bytes in base64url without padding.
    pub public: String,
}

impl Routing {
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
    pub fn open(signed: &str, keys: &PublicKeys) -> Result<Routing, Refusal> {
        let form = Form { typ: Some(TYP), bytes_max: ROUTING_BYTES_MAX, spec_claims: &[] };
        let routing = keys.open::<Routing>(signed, form)?;
        if routing.format == FORMAT { Ok(routing) } else { Err(Refusal::Malformed) }
    }
}

impl RoutedMember {
    /// What ranking needs to know of it; `None` if its id is malformed, which a signed document rules out.
    #[must_use]
    pub fn ranked(&self) -> Option<placement::Member> {
        Some(placement::Member { id: self.id.parse().ok()?, weight: self.weight })
    }
}
