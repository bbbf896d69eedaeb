//! Storing: a conditional PUT whose outcome is known in the end, or an error (promise 8 in ARCHITECTURE.md).
//!
//! Every attempt carries `If-None-Match: *`, so no attempt, however late it arrives, overwrites anything. After a
//! failed condition, a timeout, a reset or a 5xx, HEAD settles what is there: our digest and length: done; other
//! bytes: a conflict; nothing: once more.

use forebay_shard::origin::{Etag, OriginError, OriginErrorKind, OriginMeta, Store, Stored};

use super::attempts::Attempts;
use super::fault::{Effect, broken};
use super::s3::S3Client;

/// Stores `store` as `name`.
pub async fn store(client: &S3Client, name: &str, store: &Store) -> Result<Stored, OriginError> {
    let mut attempts = Attempts::begin(client);
    loop {
        let mut fault = match attempts.limit(client.put(name, store)).await {
            Ok(()) => {
                client.store.counters.stored(store.len_bytes);
                return Ok(Stored::Done);
            }
            Err(fault) => fault,
        };
        if matches!(fault.effect, Effect::ConditionFailed | Effect::Unknown) {
            match attempts.limit(client.head(name)).await {
                Ok(Some(there)) => return Ok(settle(store, there)),
                Ok(None) if fault.effect == Effect::ConditionFailed => fault.error = nothing_there(client),
                Ok(None) => {}
                // Unsettled: the next attempt is conditional too, so it may go ahead without knowing.
                Err(unsettled) => tracing::debug!(error = %unsettled.error, "a store could not be settled"),
            }
        }
        if !attempts.again(&fault).await {
            return Err(fault.error);
        }
    }
}

/// The condition failed and yet nothing is there: just deleted, or a store over a file tree has a folder there.
fn nothing_there(client: &S3Client) -> OriginError {
    let words = "the condition failed though nothing is there: another request for the key is under way, or the store \
                 can't hold an object `a` beside `a/b`";
    broken(OriginErrorKind::Unavailable, client.settings(), words)
}

/// What is there, compared with what was to be stored.
fn settle(store: &Store, there: OriginMeta) -> Stored {
    let ours = there.etag == Etag::Digest(store.digest) && there.len_bytes == store.len_bytes;
    if ours { Stored::Done } else { Stored::Conflict(there) }
}
