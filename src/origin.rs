//! The origin pool: requests to S3 stores on threads of their own, behind the shard's `Origin` port.
//!
//! A request goes `handle` (any thread) → mailbox → `pool` (lane) → `job` → `fetch`, `store` or `attempts` alone →
//! `s3` (one attempt) → `sign`. What an answer means is `fault`; when to try again is `attempts` and `retry`.
//! Everything is bounded: queue, requests in flight, attempts, bytes of a body in flight, time.

mod attempts;
mod check;
mod credentials;
mod fault;
mod fetch;
mod handle;
mod job;
mod name;
mod pool;
mod retry;
mod s3;
mod settings;
mod sign;
mod stats;
mod store;

pub use check::{ConditionalPut, RACERS};
pub use credentials::{CredentialError, CredentialSource, Keys};
pub use handle::OriginHandle;
pub use name::{NameStyle, NameTooLong, object_name};
pub use pool::{OriginPool, StartError, Stays, Unusable};
pub use s3::ClientError;
pub use settings::{AddressStyle, RetrySettings, StoreSettings, VolumeSettings};
pub use sign::SignerError;
pub use stats::StoreStats;
