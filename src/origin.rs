//! The origin pool: requests to S3 stores on threads of their own, behind the shard's `Origin` port.
//!
//! A request goes `handle` (any thread) → mailbox → `pool` (lane) → `job` → `fetch`, `store` or `attempts` alone →
//! `s3` (one attempt) → `sign`. What an answer means is `fault`; when to try again is `attempts` and `retry`.
//! Everything is bounded: queue, requests in flight, attempts, bytes of a body in flight, time. Names, credentials and signatures are shared with the
//! client, which goes to the store by itself when no group answers (`src/client/bypass.rs`); the rest is the server's.

#[cfg(feature = "server")]
mod attempts;
#[cfg(feature = "server")]
mod check;
mod credentials;
#[cfg(feature = "server")]
mod fault;
#[cfg(feature = "server")]
mod fetch;
#[cfg(feature = "server")]
mod handle;
#[cfg(feature = "server")]
mod job;
mod name;
#[cfg(feature = "server")]
mod peers;
#[cfg(feature = "server")]
mod pool;
pub(crate) mod retry;
#[cfg(feature = "server")]
mod s3;
mod settings;
pub(crate) mod sign;
#[cfg(feature = "server")]
mod stats;
#[cfg(feature = "server")]
mod store;

#[cfg(feature = "server")]
pub use check::{ConditionalPut, RACERS};
pub use credentials::{CredentialError, CredentialSource, Keys};
#[cfg(feature = "server")]
pub use handle::OriginHandle;
pub use name::{NameStyle, NameTooLong, object_name};
#[cfg(feature = "server")]
pub use peers::{FOREBAY_PEER, PEER_OF_NO_PLACEMENT, PeerAnswer, PeerAsk, PeerHandle, PeerSilent};
#[cfg(feature = "server")]
pub use pool::{OriginPool, StartError, Stays, Unusable};
#[cfg(feature = "server")]
pub use s3::ClientError;
pub use settings::{AddressStyle, RetrySettings, StoreSettings, VolumeSettings};
pub use sign::SignerError;
#[cfg(feature = "server")]
pub use stats::StoreStats;
