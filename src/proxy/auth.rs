//! Who may do what: bearer tokens, verified once and remembered.
//!
//! Called by `handler` for every data request. A connection remembers its last token; behind that, a bounded table per
//! core remembers verified tokens by their SHA-256, so that a signature is checked about once per client and core. What
//! is remembered is only that the signature is good: times and rights are checked on each request.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use crate::token::{Grant, PublicKeys, Refusal, Right};

/// What a connection remembers: the header it sent last and what that opens.
#[derive(Default)]
pub struct ConnToken {
    last: RefCell<Option<LastToken>>,
}

struct LastToken {
    header: HeaderValue,
    grant: Rc<Grant>,
    /// Of the keys that it was verified by.
    epoch: u64,
}

/// One core's view of who may do what.
pub struct Auth {
    rule: Rule,
}

enum Rule {
    Anonymous,
    Tokens(ByTokens),
}

struct ByTokens {
    keys: RefCell<Arc<PublicKeys>>,
    /// Grows when the keys change: what was verified by other keys is verified again.
    epoch: Cell<u64>,
    remembered: Remembered,
}

impl Auth {
    /// Everybody may do everything.
    #[must_use]
    pub fn anonymous() -> Auth {
        Auth { rule: Rule::Anonymous }
    }

    /// Whoever has a token by one of `keys`; at most `tokens_max` are remembered.
    #[must_use]
    pub fn by_tokens(keys: Arc<PublicKeys>, tokens_max: usize) -> Auth {
        let (keys, remembered) = (RefCell::new(keys), Remembered::new(tokens_max));
        Auth { rule: Rule::Tokens(ByTokens { keys, epoch: Cell::new(0), remembered }) }
    }

    /// From now on these keys count, and no others. Nothing changes where access is anonymous.
    pub fn trust(&self, keys: &Arc<PublicKeys>) {
        if let Rule::Tokens(tokens) = &self.rule {
            tokens.keys.replace(Arc::clone(keys));
            tokens.epoch.set(tokens.epoch.get() + 1);
            tokens.remembered.forget();
        }
    }

    /// The grant of this request at `now` (unix seconds); `None` where none is needed.
    ///
    /// # Errors
    /// Why the token is not accepted.
    pub fn grant(&self, headers: &HeaderMap, conn: &ConnToken, now: u64) -> Result<Option<Rc<Grant>>, Refusal> {
        let Rule::Tokens(ByTokens { keys, epoch, remembered }) = &self.rule else { return Ok(None) };
        let epoch = epoch.get();
        let header = headers.get(AUTHORIZATION).ok_or(Refusal::Missing)?;
        if let Some(last) = &*conn.last.borrow()
            && last.epoch == epoch
            && last.header == header
        {
            return Ok(Some(Rc::clone(&last.grant)));
        }
        let token = bearer(header)?;
        let hash: TokenHash = digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes");
        let grant = match remembered.find(&hash) {
            Some(grant) => grant,
            None => {
                let grant = Rc::new(keys.borrow().verify(token, now)?);
                remembered.keep(hash, Rc::clone(&grant), now);
                grant
            }
        };
        // A copy: a clone would keep the connection's read buffer alive.
        let copy = HeaderValue::from_bytes(header.as_bytes()).expect("it was a header's value");
        conn.last.replace(Some(LastToken { header: copy, grant: Rc::clone(&grant), epoch }));
        Ok(Some(grant))
    }
}

/// Whether `grant` allows `need` on `volume` at `now`.
///
/// # Errors
/// Why not.
pub fn check(grant: Option<&Grant>, volume: &str, need: Right, now: u64) -> Result<(), Refusal> {
    grant.map_or(Ok(()), |grant| grant.allows(volume, need, now))
}

fn bearer(header: &HeaderValue) -> Result<&str, Refusal> {
    let text = header.to_str().map_err(|_| Refusal::Malformed)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Refusal::Missing),
    }
}

type TokenHash = [u8; 32];

/// Verified tokens, at most `count_max`. When it is full, what has expired goes; if that is nothing, the one kept longest.
struct Remembered {
    count_max: usize,
    grants: RefCell<HashMap<TokenHash, (u64, Rc<Grant>)>>,
    next_stamp: Cell<u64>,
}

impl Remembered {
    fn new(count_max: usize) -> Remembered {
        Remembered { count_max, grants: RefCell::default(), next_stamp: Cell::new(0) }
    }

    fn forget(&self) {
        self.grants.borrow_mut().clear();
    }

    fn find(&self, hash: &TokenHash) -> Option<Rc<Grant>> {
        self.grants.borrow().get(hash).map(|(_, grant)| Rc::clone(grant))
    }

    fn keep(&self, hash: TokenHash, grant: Rc<Grant>, now: u64) {
        let mut grants = self.grants.borrow_mut();
        if grants.len() >= self.count_max {
            grants.retain(|_, (_, grant)| grant.is_current(now).is_ok());
        }
        if grants.len() >= self.count_max {
            // One in `count_max` verifications pays for this walk, and a verification costs about as much.
            let mut stamps: Vec<u64> = grants.values().map(|(stamp, _)| *stamp).collect();
            let middle = stamps.len() / 2;
            let (_, median, _) = stamps.select_nth_unstable(middle);
            let median = *median;
            grants.retain(|_, (stamp, _)| *stamp > median);
        }
        grants.insert(hash, (self.next_stamp.replace(self.next_stamp.get() + 1), grant));
        assert!(grants.len() <= self.count_max, "the table of tokens is bounded");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::token::claims;
    use crate::token::{LEEWAY_SECONDS, PublicKey, SigningKey, generate_key};

    const NOW: u64 = 1_800_000_000;

    fn setup(tokens_max: usize) -> (SigningKey, Auth) {
        let signing = SigningKey::from_pem(&generate_key().unwrap()).unwrap();
        let mut keys = PublicKeys::default();
        assert!(keys.add(signing.id(), PublicKey::parse(signing.public()).unwrap()));
        (signing, Auth::by_tokens(Arc::new(keys), tokens_max))
    }

    fn with_token(scheme: &str, token: &str) -> HeaderMap {
        [(AUTHORIZATION, format!("{scheme} {token}").parse().unwrap())].into_iter().collect()
    }

    fn token(signing: &SigningKey, seconds: u64) -> String {
        signing.issue(&claims(&["v".to_owned()], Right::Read, "test", NOW, seconds)).unwrap()
    }

    #[test]
    fn a_remembered_token_still_expires() {
        let (signing, auth) = setup(8);
        let (conn, headers) = (ConnToken::default(), with_token("Bearer", &token(&signing, 60)));
        let grant = auth.grant(&headers, &conn, NOW).unwrap();
        assert_eq!(check(grant.as_deref(), "v", Right::Read, NOW), Ok(()));
        let late = NOW + 60 + LEEWAY_SECONDS;
        for conn in [&conn, &ConnToken::default()] {
            let grant = auth.grant(&headers, conn, late).unwrap();
            assert_eq!(check(grant.as_deref(), "v", Right::Read, late), Err(Refusal::Expired));
        }
    }

    #[test]
    fn a_connection_may_change_its_token() {
        let (signing, auth) = setup(8);
        let conn = ConnToken::default();
        let one = auth.grant(&with_token("bearer", &token(&signing, 60)), &conn, NOW).unwrap().unwrap();
        let other = auth.grant(&with_token("Bearer", &token(&signing, 61)), &conn, NOW).unwrap().unwrap();
        assert_ne!(one.claims(), other.claims());
        assert_eq!(auth.grant(&with_token("Bearer", "x.y.z"), &conn, NOW), Err(Refusal::Malformed));
        assert_eq!(auth.grant(&with_token("Basic", "eDp5"), &conn, NOW), Err(Refusal::Missing));
        assert_eq!(auth.grant(&HeaderMap::new(), &conn, NOW), Err(Refusal::Missing));
    }

    #[test]
    fn the_table_is_bounded_and_prefers_what_is_new() {
        let (signing, auth) = setup(4);
        for seconds in 60..80 {
            let headers = with_token("Bearer", &token(&signing, seconds));
            auth.grant(&headers, &ConnToken::default(), NOW).unwrap();
            let Rule::Tokens(ByTokens { remembered, .. }) = &auth.rule else { panic!("it goes by tokens") };
            assert!(remembered.grants.borrow().len() <= 4);
            assert!(auth.grant(&headers, &ConnToken::default(), NOW).is_ok());
        }
        let (_, one) = setup(1);
        let Rule::Tokens(ByTokens { remembered, .. }) = &one.rule else { panic!("it goes by tokens") };
        assert_eq!(remembered.count_max, 1);
    }

    #[test]
    fn a_key_that_ends_takes_what_was_remembered_along() {
        let (signing, auth) = setup(8);
        let (other, _) = setup(8);
        let (conn, headers) = (ConnToken::default(), with_token("Bearer", &token(&signing, 60)));
        assert!(auth.grant(&headers, &conn, NOW).is_ok());
        let keys = |signing: &[&SigningKey]| {
            let mut keys = PublicKeys::default();
            for key in signing {
                assert!(keys.add(key.id(), PublicKey::parse(key.public()).unwrap()));
            }
            Arc::new(keys)
        };
        auth.trust(&keys(&[&signing, &other]));
        assert!(auth.grant(&headers, &conn, NOW).is_ok(), "rotated: the older key still verifies");
        auth.trust(&keys(&[&other]));
        for conn in [&conn, &ConnToken::default()] {
            assert_eq!(auth.grant(&headers, conn, NOW), Err(Refusal::UnknownKey));
        }
        let headers = with_token("Bearer", &token(&other, 60));
        assert!(auth.grant(&headers, &conn, NOW).is_ok());
    }

    #[test]
    fn nobody_needs_a_token_where_access_is_anonymous() {
        let grant = Auth::anonymous().grant(&HeaderMap::new(), &ConnToken::default(), NOW).unwrap();
        assert_eq!(check(grant.as_deref(), "v", Right::ReadWrite, NOW), Ok(()));
    }
}
