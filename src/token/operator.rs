//! Operator tokens: they open the admin's interface and no volume; and a volume's token opens nothing there but its routing. A proxy's
//! is one of them, of the least role: it opens the routing of its group.
//!
//! Issued and verified by the admin alone, signed by the same keys. The `typ` of the header and the audience tell them from tokens for
//! volumes, which lack both.

use serde::{Deserialize, Serialize};

use super::{BadKey, Form, LEEWAY_SECONDS, PublicKeys, Refusal, SigningKey, TOKEN_BYTES_MAX};

const TYP: &str = "forebay-operator";
const AUDIENCE: &str = "forebay-admin";

/// What an operator token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorClaims {
    /// Who issued it.
    pub iss: String,
    /// To whom.
    pub sub: String,
    /// For whom: always the admin.
    pub aud: String,
    /// When.
    pub iat: u64,
    /// Not valid before.
    pub nbf: u64,
    /// Not valid from then on.
    pub exp: u64,
    /// Its id, for the audit log and revocation.
    pub jti: String,
    /// What it allows.
    pub role: Role,
    /// With the role of a proxy: in which group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// What an operator may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Learn what a proxy of one group is told, and nothing else.
    Proxy,
    /// Look at everything.
    Viewer,
    /// Change everything.
    Operator,
}

impl OperatorClaims {
    /// Claims of a token that is valid from `now` on for `ttl_seconds`.
    #[must_use]
    pub fn new(subject: &str, role: Role, id: &str, now: u64, ttl_seconds: u64) -> OperatorClaims {
        OperatorClaims {
            iss: "forebay admin".to_owned(),
            sub: subject.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat: now,
            nbf: now,
            exp: now.saturating_add(ttl_seconds.max(1)),
            jti: id.to_owned(),
            role,
            group: None,
        }
    }

    /// The same for a proxy of `group`.
    #[must_use]
    pub fn of_group(self, group: Option<String>) -> OperatorClaims {
        OperatorClaims { group, ..self }
    }

    /// The token.
    ///
    /// # Errors
    /// When signing fails, which takes a key that was not checked.
    pub fn sign(&self, key: &SigningKey) -> Result<String, BadKey> {
        key.sign(self, TYP)
    }

    /// Checks form, algorithm, key, signature, audience and times of `token` at `now` (unix seconds).
    ///
    /// # Errors
    /// The first that fails, in that order.
    pub fn verify(token: &str, keys: &PublicKeys, now: u64) -> Result<OperatorClaims, Refusal> {
        let form = Form { typ: Some(TYP), bytes_max: TOKEN_BYTES_MAX, spec_claims: &["exp", "nbf", "aud"] };
        let claims = keys.open::<OperatorClaims>(token, form)?;
        if claims.aud != AUDIENCE {
            return Err(Refusal::Malformed);
        }
        if now >= claims.exp.saturating_add(LEEWAY_SECONDS) {
            return Err(Refusal::Expired);
        }
        if claims.nbf > now.saturating_add(LEEWAY_SECONDS) {
            return Err(Refusal::NotYetValid);
        }
        Ok(claims)
    }
}

#[cfg(all(test, feature = "server"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::token::{Claims, PublicKey, Right, generate_key};

    const NOW: u64 = 1_800_000_000;

    fn keys() -> (SigningKey, PublicKeys) {
        let signing = SigningKey::from_pem(&generate_key().unwrap()).unwrap();
        let mut keys = PublicKeys::default();
        assert!(keys.add(signing.id(), PublicKey::parse(signing.public()).unwrap()));
        (signing, keys)
    }

    #[test]
    fn an_operator_token_is_verified_with_its_times() {
        let (signing, keys) = keys();
        let claims = OperatorClaims::new("ops", Role::Operator, "1", NOW, 60);
        let token = claims.sign(&signing).unwrap();
        assert_eq!(OperatorClaims::verify(&token, &keys, NOW), Ok(claims));
        assert_eq!(OperatorClaims::verify(&token, &keys, NOW + 60 + LEEWAY_SECONDS), Err(Refusal::Expired));
        assert_eq!(OperatorClaims::verify(&token, &keys, NOW - LEEWAY_SECONDS - 1), Err(Refusal::NotYetValid));
        assert_eq!(OperatorClaims::verify(&token, &PublicKeys::default(), NOW), Err(Refusal::UnknownKey));
    }

    #[test]
    fn neither_kind_of_token_is_taken_for_the_other() {
        let (signing, keys) = keys();
        let operator = OperatorClaims::new("ops", Role::Operator, "1", NOW, 60);
        assert_eq!(keys.verify(&operator.sign(&signing).unwrap(), NOW), Err(Refusal::Malformed));
        let claims = Claims {
            iss: "test".to_owned(),
            sub: "someone".to_owned(),
            iat: NOW,
            nbf: NOW,
            exp: NOW + 60,
            jti: "1".to_owned(),
            volumes: [("v".to_owned(), Right::ReadWrite)].into(),
        };
        assert_eq!(OperatorClaims::verify(&signing.issue(&claims).unwrap(), &keys, NOW), Err(Refusal::Malformed));
        // The right claims under the wrong kind, and another audience.
        assert_eq!(
            OperatorClaims::verify(&signing.sign(&operator, "JWT").unwrap(), &keys, NOW),
            Err(Refusal::Malformed)
        );
        let elsewhere = OperatorClaims { aud: "someone-else".to_owned(), ..operator };
        assert_eq!(OperatorClaims::verify(&elsewhere.sign(&signing).unwrap(), &keys, NOW), Err(Refusal::Malformed));
    }
}
