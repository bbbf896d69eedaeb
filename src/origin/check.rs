//! Is a store fit? At start: credentials, region, clock and bucket. For `forebay check`: whether its conditional PUT
//! is atomic, which every promise about writes stands on and which is therefore tried, never assumed.
//! Both are asked through `OriginHandle` and run in a lane like any job.

use bytes::Bytes;
use forebay_io::checksum::Digest;
use forebay_shard::origin::{Etag, OriginError, OriginErrorKind, Store};
use futures::future::join_all;

use super::attempts::Attempts;
use super::fault::{Effect, broken};
use super::s3::S3Client;

/// How many creates of one scratch key race.
pub const RACERS: usize = 64;

/// What the race showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConditionalPut {
    /// Exactly one create won, its bytes are there, all others were refused.
    Atomic,
    /// Several creates of one key succeeded, or the winner's bytes are not the ones that are there: write-through only.
    NotAtomic {
        /// How many were told that they succeeded.
        winners: usize,
    },
}

/// Lists at most one key under `prefix`.
pub async fn check(client: &S3Client, prefix: &str) -> Result<(), OriginError> {
    Attempts::begin(client).run(|| client.list(prefix)).await.map_err(|fault| fault.error)
}

/// Races [`RACERS`] creates of the absent key `name`, then deletes it.
pub async fn verify_conditional_put(client: &S3Client, name: &str) -> Result<ConditionalPut, OriginError> {
    client.delete(name).await.map_err(|fault| fault.error)?;
    let stores: Vec<Store> = (0..RACERS)
        .map(|racer| {
            let content = Bytes::from(format!("forebay check: racer {racer}"));
            Store { len_bytes: content.len() as u64, digest: Digest::of(&content), frames: vec![content] }
        })
        .collect();
    let outcomes = join_all(stores.iter().map(|store| client.put(name, store))).await;
    let there = client.head(name).await.map_err(|fault| fault.error)?;
    client.delete(name).await.map_err(|fault| fault.error)?;

    let mut winners = Vec::new();
    for (store, outcome) in stores.iter().zip(outcomes) {
        match outcome {
            Ok(()) => winners.push(store.digest),
            Err(fault) if fault.effect == Effect::ConditionFailed => {}
            Err(fault) => return Err(fault.error),
        }
    }
    match (winners.as_slice(), there) {
        ([], _) => Err(broken(OriginErrorKind::Protocol, client.settings(), "no create of an absent key succeeded")),
        ([winner], Some(there)) if there.etag == Etag::Digest(*winner) => Ok(ConditionalPut::Atomic),
        _ => Ok(ConditionalPut::NotAtomic { winners: winners.len() }),
    }
}
