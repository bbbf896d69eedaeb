//! Which documents count: whose signature is trusted, and which revision.
//!
//! Called by `follow` for each document, from the admin or from the disk. The keys that are trusted: those that the last accepted document
//! lists; before there is one, those that were pinned by the operator; without pins, whatever comes over TLS from the admin's verified name. So
//! keys rotate by documents that a known key signed, and a key that the admin deleted is trusted no more, pinned or not.
//!
//! Invariants: a lower revision than was accepted never is (a restored admin begins beyond all that were seen); with pins, no key is trusted that no
//! trusted key introduced.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::Document;
use crate::resource::Revision;
use crate::routing::RoutedKey;
use crate::token::{PublicKey, PublicKeys, Refusal};

/// The way a document came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From the admin, whose certificate was verified.
    Admin,
    /// From the disk, where this follower wrote it after it had accepted it under the same pins.
    Disk,
}

/// Why a document does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The signature.
    #[error("the document is not signed by a key that is known here ({0}): check the pinned keys")]
    Signature(Refusal),
    /// The revision.
    #[error(
        "the document has revision {got}, but {seen} was seen: was an old database put in place by hand? use `forebay admin restore`"
    )]
    Older {
        /// What came.
        got: Revision,
        /// What is known.
        seen: Revision,
    },
    /// A key in it is none.
    #[error("the document lists a key that is no Ed25519 key")]
    BadKey,
}

/// What is trusted so far.
#[derive(Debug)]
pub struct Trust<D> {
    pinned: Vec<RoutedKey>,
    latest: Option<Arc<D>>,
}

impl<D: Document> Trust<D> {
    /// Nothing was seen yet; `pinned` may be empty.
    #[must_use]
    pub fn new(pinned: Vec<RoutedKey>) -> Trust<D> {
        Trust { pinned, latest: None }
    }

    /// The last accepted document.
    #[must_use]
    pub fn latest(&self) -> Option<&Arc<D>> {
        self.latest.as_ref()
    }

    /// Takes a document. `None`: it is known already.
    ///
    /// # Errors
    /// Why it does not count; nothing changed then.
    pub fn accept(&mut self, signed: &str, origin: Origin) -> Result<Option<Arc<D>>, Distrust> {
        let document = self.open(signed, origin)?;
        if let Some(latest) = &self.latest {
            let (got, seen) = (document.revision(), latest.revision());
            if got < seen {
                return Err(Distrust::Older { got, seen });
            }
            if got == seen {
                return Ok(None);
            }
        }
        let document = Arc::new(document);
        self.latest = Some(Arc::clone(&document));
        Ok(Some(document))
    }

    fn open(&self, signed: &str, origin: Origin) -> Result<D, Distrust> {
        let known = match &self.latest {
            Some(latest) => latest.keys(),
            None => &self.pinned,
        };
        // On disk lies what was accepted before: its keys were introduced then.
        let may_introduce_itself = origin == Origin::Disk || self.pinned.is_empty();
        match D::open(signed, &verifying(known)?) {
            Err(Refusal::UnknownKey) if may_introduce_itself => {
                if !known.is_empty() {
                    tracing::warn!(
                        "the admin signs by a key that no document announced: taken on the word of its certificate"
                    );
                }
                D::open(signed, &verifying(&own_keys(signed)?)?).map_err(Distrust::Signature)
            }
            opened => opened.map_err(Distrust::Signature),
        }
    }
}

fn verifying(keys: &[RoutedKey]) -> Result<PublicKeys, Distrust> {
    let mut verifying = PublicKeys::default();
    for key in keys {
        // The same id twice: the later is as good as the first.
        let _ = verifying.add(&key.id, PublicKey::parse(&key.public).map_err(|_| Distrust::BadKey)?);
    }
    Ok(verifying)
}

/// The keys that a document lists, before anything in it is believed.
fn own_keys(signed: &str) -> Result<Vec<RoutedKey>, Distrust> {
    #[derive(Deserialize)]
    struct Listed {
        keys: Vec<RoutedKey>,
    }
    let malformed = Distrust::Signature(Refusal::Malformed);
    let payload = signed.split('.').nth(1).ok_or_else(|| malformed.clone())?;
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed.clone())?;
    serde_json::from_slice::<Listed>(&payload).map(|listed| listed.keys).map_err(|_| malformed)
}
