//! Signing keys and tokens: made, drawn, recorded and verified here, on top of the registry.
//!
//! Called by `api` for each request and by the command line. The newest key signs; older ones verify until they are deleted. A token is good if
//! a known key signed it, its times fit, and the registry still lists its id as not revoked; so a restore of an older backup
//! forgets the tokens issued since. Times come from the caller.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::registry::{
    Actor, Applied, Change, Guard, KeyRecord, Listing, Record, RecordId, Registry, RegistryError, TokenRecord,
    Versioned, View, looked,
};
use crate::resource::{Invalid, Revision};
use crate::token::{
    Claims, Grant, OperatorClaims, PublicKey, PublicKeys, Refusal, Right, Role, SigningKey, generate_key,
};

/// The longest life of a token.
pub const TOKEN_SECONDS_MAX: u64 = 366 * 86_400;
/// The most volumes of one token: it must fit into a request's head.
const TOKEN_VOLUMES_MAX: usize = 64;
const SUBJECT_BYTES_MAX: usize = 128;

/// Who asks, as a verified token says.
#[derive(Debug, Clone)]
pub enum Caller {
    /// An operator.
    Operator(OperatorClaims),
    /// A proxy.
    Proxy {
        /// Its group is in it.
        claims: OperatorClaims,
        /// When it was issued: a group that was made later is another one.
        issued: Revision,
    },
    /// A client, with a token for volumes.
    Client {
        /// What it opens, by name.
        grant: Grant,
        /// When it was issued: a volume that was made later is another one.
        issued: Revision,
    },
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It does not verify.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It was revoked, or is not from this admin.
    #[error("the token is revoked, or this admin never issued it: have a new one issued")]
    Unlisted,
    /// The registry can't tell.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// What a new token is to say.
#[derive(Debug, Clone)]
pub struct Wish {
    /// To whom.
    pub subject: String,
    /// For the admin's interface; `None`: for volumes.
    pub role: Option<Role>,
    /// With the role of a proxy: its group.
    pub group: Option<String>,
    /// The volumes; empty with a role.
    pub volumes: BTreeMap<String, Right>,
    /// How long it is good.
    pub ttl_seconds: u64,
}

/// Makes a new key the one that signs.
///
/// # Errors
/// The registry's; or the system has no randomness.
pub fn rotate(registry: &dyn Registry, by: &Actor) -> Result<Applied, RegistryError> {
    let broken = |error| RegistryError::Storage(Box::new(error));
    let private_pem = generate_key().map_err(broken)?;
    let key = SigningKey::from_pem(&private_pem).map_err(broken)?;
    let record = KeyRecord { id: key.id().to_owned(), public: key.public().to_owned(), private_pem, created_at: by.at };
    registry.change(&Change::Create(Record::Key(record)), by)
}

/// Makes the first key, if there is none.
///
/// # Errors
/// As [`rotate`].
pub fn ensure_key(registry: &dyn Registry, by: &Actor) -> Result<(), RegistryError> {
    let is_there = looked(registry, |view| Ok(!view.list(&Listing::Keys)?.is_empty()))?;
    if is_there { Ok(()) } else { rotate(registry, by).map(drop) }
}

/// All keys, the one that signs last.
///
/// # Errors
/// The registry's.
pub fn records(view: &dyn View) -> Result<Vec<KeyRecord>, RegistryError> {
    let keys = view.list(&Listing::Keys)?.into_iter().filter_map(|versioned| match versioned.record {
        Record::Key(key) => Some(key),
        _ => None,
    });
    Ok(keys.collect())
}

/// The key that signs.
///
/// # Errors
/// The registry's; there is none.
pub fn current(view: &dyn View) -> Result<SigningKey, RegistryError> {
    let key = records(view)?.pop().ok_or_else(|| RegistryError::NotFound("signing key".to_owned()))?;
    SigningKey::from_pem(&key.private_pem).map_err(|error| RegistryError::Storage(Box::new(error)))
}

/// The key that signs routing documents: the oldest. Whoever follows learns a new key from a document signed by one that it knows, and knows it
/// when the old one is deleted.
///
/// # Errors
/// The registry's; there is none.
pub fn oldest(view: &dyn View) -> Result<SigningKey, RegistryError> {
    let key = records(view)?.into_iter().next().ok_or_else(|| RegistryError::NotFound("signing key".to_owned()))?;
    SigningKey::from_pem(&key.private_pem).map_err(|error| RegistryError::Storage(Box::new(error)))
}

fn verifying(view: &dyn View) -> Result<PublicKeys, RegistryError> {
    let mut keys = PublicKeys::default();
    for key in records(view)? {
        let public = PublicKey::parse(&key.public).map_err(|error| RegistryError::Storage(Box::new(error)))?;
        // Ids are the table's primary key.
        let _ = keys.add(&key.id, public);
    }
    Ok(keys)
}

/// Whom `token` belongs to at `now`.
///
/// # Errors
/// Why it is not accepted.
pub fn authenticate(view: &dyn View, token: &str, now: u64) -> Result<Caller, AuthError> {
    let keys = verifying(view)?;
    match OperatorClaims::verify(token, &keys, now) {
        Ok(claims) => {
            let issued = listed(view, &claims.jti)?;
            Ok(if claims.role == Role::Proxy { Caller::Proxy { claims, issued } } else { Caller::Operator(claims) })
        }
        // Not an operator's, but perhaps a client's.
        Err(Refusal::Malformed) => {
            let grant = keys.verify(token, now)?;
            let issued = listed(view, &grant.claims().jti)?;
            Ok(Caller::Client { grant, issued })
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// When a token was issued, if it is still good: only its revocation ever changes its record.
fn listed(view: &dyn View, id: &str) -> Result<Revision, AuthError> {
    match view.one(&RecordId::Token(id.to_owned()))? {
        Some(Versioned { record: Record::Token(TokenRecord { revoked_at: None, .. }), revision }) => Ok(revision),
        _ => Err(AuthError::Unlisted),
    }
}

/// Issues a token: records it, then signs it. The token itself is kept nowhere.
///
/// # Errors
/// A field of the wish can't stand; a volume does not exist; the registry's.
pub fn issue(registry: &dyn Registry, wish: &Wish, by: &Actor) -> Result<(TokenRecord, String), RegistryError> {
    check(wish)?;
    let key = looked(registry, |view| current(view))?;
    let id = format!("{:032x}", StdRng::from_os_rng().random::<u128>());
    let record = TokenRecord {
        id: id.clone(),
        subject: wish.subject.clone(),
        role: wish.role,
        group: wish.group.clone(),
        volumes: wish.volumes.clone(),
        key: key.id().to_owned(),
        issued_at: by.at,
        expires_at: by.at.saturating_add(wish.ttl_seconds),
        revoked_at: None,
    };
    registry.change(&Change::Create(Record::Token(record.clone())), by)?;
    let signed = match wish.role {
        Some(role) => OperatorClaims::new(&wish.subject, role, &id, by.at, wish.ttl_seconds)
            .of_group(wish.group.clone())
            .sign(&key),
        None => key.issue(&Claims {
            iss: "forebay admin".to_owned(),
            sub: wish.subject.clone(),
            iat: by.at,
            nbf: by.at,
            exp: record.expires_at,
            jti: id,
            volumes: wish.volumes.clone(),
        }),
    };
    Ok((record, signed.map_err(|error| RegistryError::Storage(Box::new(error)))?))
}

fn check(wish: &Wish) -> Result<(), RegistryError> {
    let fail = |field, fix: String| Err(RegistryError::Invalid(Invalid { field, fix }));
    if wish.subject.is_empty() || wish.subject.len() > SUBJECT_BYTES_MAX || wish.subject.contains(char::is_control) {
        return fail("subject", format!("write to whom, in 1 to {SUBJECT_BYTES_MAX} bytes"));
    }
    if wish.role.is_some() != wish.volumes.is_empty() {
        return fail("volumes", "name volumes, or a role for the admin's interface, and not both".to_owned());
    }
    if wish.group.is_some() != (wish.role == Some(Role::Proxy)) {
        return fail("group", "name the group of a proxy's token, and of no other".to_owned());
    }
    if wish.volumes.len() > TOKEN_VOLUMES_MAX {
        return fail("volumes", format!("name at most {TOKEN_VOLUMES_MAX}: issue several tokens"));
    }
    if !(1..=TOKEN_SECONDS_MAX).contains(&wish.ttl_seconds) {
        return fail("ttl_seconds", format!("write 1 to {TOKEN_SECONDS_MAX}: a token ends some day"));
    }
    Ok(())
}

/// Revokes a token. One that was revoked before stays so.
///
/// # Errors
/// There is no such token; the registry's.
pub fn revoke(registry: &dyn Registry, id: &str, by: &Actor) -> Result<Applied, RegistryError> {
    loop {
        let found = looked(registry, |view| view.one(&RecordId::Token(id.to_owned())))?;
        let Some(Versioned { record: Record::Token(mut token), revision }) = found else {
            return Err(RegistryError::NotFound(format!("token {id}")));
        };
        token.revoked_at.get_or_insert(by.at);
        match registry.change(&Change::Replace(Record::Token(token), Guard::Seen(revision)), by) {
            // Somebody else revoked it meanwhile, which is all that ever changes it: the next look finds that, and leaves it.
            Err(RegistryError::Stale(_)) => (),
            other => return other,
        }
    }
}
