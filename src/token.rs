//! Access tokens: short-lived JWTs (RFC 7519) signed with EdDSA over Ed25519 (RFC 8037), scoped to volumes.
//!
//! The admin server and the command line issue them, proxies verify them without asking anybody. Only `EdDSA` is
//! accepted, and only by the key that the token's `kid` names: a token can choose neither algorithm nor key type.
//! Times are unix seconds and come from the caller, so that tests need no clock.

pub mod operator;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use operator::{OperatorClaims, Role};

/// How far two clocks may be apart, in seconds.
pub const LEEWAY_SECONDS: u64 = 5;
/// The longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// To whom.
    pub sub: String,
    /// When.
    pub iat: u64,
    /// Not valid before.
    pub nbf: u64,
    /// Not valid from then on.
    pub exp: u64,
    /// Its id, for logs and revocation.
    pub jti: String,
    /// The volumes it opens. Every other is closed.
    pub volumes: BTreeMap<String, Right>,
}

/// What may be done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
pub enum Right {
    /// GET and HEAD.
    #[serde(rename = "r")]
    Read,
    /// PUT, DELETE and purge too.
    #[serde(rename = "rw")]
    ReadWrite,
}

/// Why a token does not open what was asked for. One problem type and metric label each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// No `Authorization: Bearer`.
    #[error("the request carries no bearer token")]
    Missing,
    /// Not an EdDSA JWT with the claims above.
    #[error("the token is not an EdDSA JWT with the claims that Forebay issues")]
    Malformed,
    /// Its `kid` names no configured key.
    #[error("the token was signed by a key that this node does not know")]
    UnknownKey,
    /// The signature is not that key's.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It does not name the volume.
    #[error("the token does not open this volume")]
    WrongVolume,
    /// It opens the volume for reading only.
    #[error("the token opens this volume for reading only")]
    ReadOnly,
    /// It was good, and was ended before its time.
    #[error("the token is revoked: have a new one issued")]
    Revoked,
}

/// What a verified token allows. The signature is checked once; times and rights on each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    claims: Claims,
}

impl Grant {
    /// Whether `need` on `volume` is allowed at `now` (unix seconds).
    ///
    /// # Errors
    /// Why not.
    pub fn allows(&self, volume: &str, need: Right, now: u64) -> Result<(), Refusal> {
        self.is_current(now)?;
        match self.claims.volumes.get(volume) {
            None => Err(Refusal::WrongVolume),
            Some(right) if *right < need => Err(Refusal::ReadOnly),
            Some(_) => Ok(()),
        }
    }

    /// Whether the token is valid at `now` (unix seconds), whatever it opens.
    ///
    /// # Errors
    /// [`Refusal::Expired`] or [`Refusal::NotYetValid`].
    pub fn is_current(&self, now: u64) -> Result<(), Refusal> {
        if now >= self.claims.exp.saturating_add(LEEWAY_SECONDS) {
            return Err(Refusal::Expired);
        }
        if self.claims.nbf > now.saturating_add(LEEWAY_SECONDS) {
            return Err(Refusal::NotYetValid);
        }
        Ok(())
    }

    /// What the token says.
    #[must_use]
    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// A key that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no Ed25519 {0}")]
pub struct BadKey(&'static str);

const PUBLIC_FORM: &str = "public key: write 32 bytes in base64url as `forebay token keygen` prints them, or PEM";
const PRIVATE_FORM: &str = "private key in PKCS #8 PEM: make one with `forebay token keygen`";

/// A key that verifies.
#[derive(Clone)]
pub struct PublicKey {
    decoding: DecodingKey,
}

impl PublicKey {
    /// From 32 bytes in base64url without padding (the `x` of RFC 8037), or from PEM.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<PublicKey, BadKey> {
        let text = text.trim();
        let decoding = if text.starts_with("-----BEGIN") {
            DecodingKey::from_ed_pem(text.as_bytes())
        } else {
            DecodingKey::from_ed_components(text)
        };
        let decoding = decoding.map_err(|_| BadKey(PUBLIC_FORM))?;
        let is_ed25519 = decoding.try_get_as_bytes().is_ok_and(|bytes| bytes.len() == 32);
        if is_ed25519 { Ok(PublicKey { decoding }) } else { Err(BadKey(PUBLIC_FORM)) }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey")
    }
}

/// The keys whose tokens a node accepts, by their ids.
#[derive(Debug, Clone, Default)]
pub struct PublicKeys {
    keys: HashMap<String, PublicKey>,
}

impl PublicKeys {
    /// Accepts `key` under `id`; `false` if the id is taken.
    #[must_use]
    pub fn add(&mut self, id: &str, key: PublicKey) -> bool {
        self.keys.insert(id.to_owned(), key).is_none()
    }

    /// Checks form, algorithm, key, signature and times of `token` at `now` (unix seconds).
    ///
    /// # Errors
    /// The first that fails, in that order.
    pub fn verify(&self, token: &str, now: u64) -> Result<Grant, Refusal> {
        let claims =
            self.open::<Claims>(token, Form { typ: None, bytes_max: TOKEN_BYTES_MAX, spec_claims: &["exp"] })?;
        let grant = Grant { claims };
        grant.is_current(now)?;
        Ok(grant)
    }

    /// What a known key signed, if it is of this form. Times are the caller's to check.
    pub(crate) fn open<T: DeserializeOwned>(&self, signed: &str, form: Form) -> Result<T, Refusal> {
        if signed.len() > form.bytes_max {
            return Err(Refusal::Malformed);
        }
        let header = jsonwebtoken::decode_header(signed).map_err(|_| Refusal::Malformed)?;
        if header.alg != Algorithm::EdDSA || form.typ.is_some_and(|typ| header.typ.as_deref() != Some(typ)) {
            return Err(Refusal::Malformed);
        }
        let key = header.kid.as_ref().and_then(|kid| self.keys.get(kid)).ok_or(Refusal::UnknownKey)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        // Times are checked against the caller's clock; an audience has no meaning here.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.set_required_spec_claims(form.spec_claims);
        let opened = jsonwebtoken::decode::<T>(signed, &key.decoding, &validation).map_err(|error| {
            if matches!(error.kind(), ErrorKind::InvalidSignature) { Refusal::BadSignature } else { Refusal::Malformed }
        })?;
        Ok(opened.claims)
    }
}

/// What kind of signed document is expected. The `typ` of its header keeps one kind from being taken for another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// `None`: whatever it says.
    pub(crate) typ: Option<&'static str>,
    /// The longest that is looked at.
    pub(crate) bytes_max: usize,
    /// The registered claims that it must have.
    pub(crate) spec_claims: &'static [&'static str],
}

/// A key that signs.
pub struct SigningKey {
    encoding: EncodingKey,
    id: String,
    public: String,
}

impl SigningKey {
    /// From PKCS #8 PEM. The key's id is its RFC 7638 thumbprint, so no file needs to carry it.
    ///
    /// # Errors
    /// Anything that is not an Ed25519 private key.
    pub fn from_pem(pem: &str) -> Result<SigningKey, BadKey> {
        let bad = |_| BadKey(PRIVATE_FORM);
        let encoding = EncodingKey::from_ed_pem(pem.as_bytes()).map_err(bad)?;
        let jwk = Jwk::from_encoding_key(&encoding, Algorithm::EdDSA).map_err(bad)?;
        let id = jwk.thumbprint(ThumbprintHash::SHA256).map_err(bad)?;
        let AlgorithmParameters::OctetKeyPair(pair) = jwk.algorithm else { return Err(BadKey(PRIVATE_FORM)) };
        Ok(SigningKey { encoding, id, public: pair.x })
    }

    /// The key's id: what a token's `kid` says.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key as [`PublicKey::parse`] reads it.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// A token that says `claims`.
    ///
    /// # Errors
    /// When signing fails, which takes a key that was not checked.
    pub fn issue(&self, claims: &Claims) -> Result<String, BadKey> {
        self.sign(claims, "JWT")
    }

    /// Signs `contents` as a document of the kind `typ`.
    pub(crate) fn sign<T: Serialize>(&self, contents: &T, typ: &str) -> Result<String, BadKey> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(typ.to_owned());
        header.kid = Some(self.id.clone());
        jsonwebtoken::encode(&header, contents, &self.encoding).map_err(|_| BadKey(PRIVATE_FORM))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A new Ed25519 private key in PKCS #8 PEM.
///
/// # Errors
/// When the system has no randomness.
#[cfg(feature = "server")]
pub fn generate_key() -> Result<String, BadKey> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use base64::Engine as _;

    let pair = aws_lc_rs::signature::Ed25519KeyPair::generate().map_err(|_| BadKey("key without randomness"))?;
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| BadKey(PRIVATE_FORM))?;
    // 48 bytes: one line of PEM.
    let line = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{line}\n-----END PRIVATE KEY-----\n"))
}

#[cfg(all(test, feature = "server"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn claims() -> Claims {
        let volumes = [("v".to_owned(), Right::Read), ("w".to_owned(), Right::ReadWrite)].into();
        Claims {
            iss: "test".to_owned(),
            sub: "someone".to_owned(),
            iat: NOW,
            nbf: NOW,
            exp: NOW + 60,
            jti: "1".to_owned(),
            volumes,
        }
    }

    fn setup() -> (SigningKey, PublicKeys) {
        let signing = SigningKey::from_pem(&generate_key().unwrap()).unwrap();
        let mut keys = PublicKeys::default();
        assert!(keys.add(signing.id(), PublicKey::parse(signing.public()).unwrap()));
        (signing, keys)
    }

    fn part(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    #[test]
    fn a_token_opens_its_volumes_and_no_other() {
        let (signing, keys) = setup();
        let grant = keys.verify(&signing.issue(&claims()).unwrap(), NOW).unwrap();
        assert_eq!(grant.allows("v", Right::Read, NOW), Ok(()));
        assert_eq!(grant.allows("v", Right::ReadWrite, NOW), Err(Refusal::ReadOnly));
        assert_eq!(grant.allows("w", Right::ReadWrite, NOW), Ok(()));
        assert_eq!(grant.allows("x", Right::Read, NOW), Err(Refusal::WrongVolume));
        assert_eq!(grant.allows("v", Right::Read, NOW + 60 + LEEWAY_SECONDS), Err(Refusal::Expired));
    }

    #[test]
    fn times_are_checked_with_a_little_leeway() {
        let (signing, keys) = setup();
        let token = signing.issue(&claims()).unwrap();
        assert!(keys.verify(&token, NOW + 60 + LEEWAY_SECONDS - 1).is_ok());
        assert_eq!(keys.verify(&token, NOW + 60 + LEEWAY_SECONDS), Err(Refusal::Expired));
        assert!(keys.verify(&token, NOW - LEEWAY_SECONDS).is_ok());
        assert_eq!(keys.verify(&token, NOW - LEEWAY_SECONDS - 1), Err(Refusal::NotYetValid));
        let endless = Claims { exp: u64::MAX, ..claims() };
        assert!(keys.verify(&signing.issue(&endless).unwrap(), NOW).is_ok());
    }

    #[test]
    fn a_token_of_another_key_is_refused() {
        let (signing, keys) = setup();
        let (other, _) = setup();
        assert_eq!(keys.verify(&other.issue(&claims()).unwrap(), NOW), Err(Refusal::UnknownKey));
        // The other key's signature under the known key's id.
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(signing.id().to_owned());
        let forged = jsonwebtoken::encode(&header, &claims(), &other.encoding).unwrap();
        assert_eq!(keys.verify(&forged, NOW), Err(Refusal::BadSignature));
        header.kid = None;
        let nameless = jsonwebtoken::encode(&header, &claims(), &signing.encoding).unwrap();
        assert_eq!(keys.verify(&nameless, NOW), Err(Refusal::UnknownKey));
    }

    #[test]
    fn a_token_chooses_no_algorithm() {
        let (signing, keys) = setup();
        let body = part(&serde_json::to_string(&claims()).unwrap());
        for alg in ["none", "None", "HS256", "RS256", "ES256"] {
            let header = part(&format!(r#"{{"alg":"{alg}","typ":"JWT","kid":"{}"}}"#, signing.id()));
            for signature in ["", "AAAA"] {
                let token = format!("{header}.{body}.{signature}");
                assert_eq!(keys.verify(&token, NOW), Err(Refusal::Malformed), "{alg}");
            }
        }
        // HMAC keyed with the public key, which everybody knows.
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(signing.id().to_owned());
        for secret in [signing.public().as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(signing.public()).unwrap()] {
            let token = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap();
            assert_eq!(keys.verify(&token, NOW), Err(Refusal::Malformed));
        }
    }

    #[test]
    fn a_changed_or_torn_token_is_refused() {
        let (signing, keys) = setup();
        let token = signing.issue(&claims()).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let wider = Claims { volumes: [("x".to_owned(), Right::ReadWrite)].into(), ..claims() };
        let swapped = format!("{}.{}.{}", parts[0], part(&serde_json::to_string(&wider).unwrap()), parts[2]);
        assert_eq!(keys.verify(&swapped, NOW), Err(Refusal::BadSignature));
        assert_eq!(keys.verify(&format!("{}.{}.", parts[0], parts[1]), NOW), Err(Refusal::BadSignature));
        for torn in ["", ".", "..", "...", parts[0], &token[1..], &"a".repeat(TOKEN_BYTES_MAX + 1)] {
            assert_eq!(keys.verify(torn, NOW), Err(Refusal::Malformed), "{torn}");
        }
        // Signed, but without the claims.
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(signing.id().to_owned());
        let bare = jsonwebtoken::encode(&header, &serde_json::json!({"sub": "x"}), &signing.encoding).unwrap();
        assert_eq!(keys.verify(&bare, NOW), Err(Refusal::Malformed));
    }

    #[test]
    fn keys_are_read_in_their_two_forms_and_no_other() {
        let (signing, _) = setup();
        assert!(PublicKey::parse(signing.public()).is_ok());
        // RFC 8410, section 10.1.
        let pem = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                   -----END PUBLIC KEY-----\n";
        assert!(PublicKey::parse(pem).is_ok());
        for bad in ["", "AAAA", "not base64!", &format!("{}AAAA", signing.public()), &generate_key().unwrap()] {
            assert!(PublicKey::parse(bad).is_err(), "{bad}");
        }
        assert!(SigningKey::from_pem(pem).is_err() && SigningKey::from_pem("").is_err());
    }
}
