//! What the origin pool is told at start: stores, volumes, bounds. Filled in by the configuration, which names each
//! of these as a key and gives it a default.
//! Called by nobody: plain values, filled by `proxy/origins` and by tests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::CredentialSource;
use super::name::NameStyle;

/// One bucket of one S3 service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// What volumes, errors and metrics call it.
    pub name: Arc<str>,
    /// The service's URL, `http://` or `https://`.
    pub endpoint: String,
    /// The region requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// How the bucket is addressed.
    pub style: AddressStyle,
    /// How keys are written.
    pub names: NameStyle,
    /// Who signs.
    pub credentials: CredentialSource,
    /// PEM file of certificate authorities to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// Requests in flight at once, over all threads.
    pub concurrency: usize,
    /// Requests waiting, over all threads; more get `Busy`.
    pub queue_depth: usize,
    /// For a connection, TLS included.
    pub connect_timeout: Duration,
    /// The longest silence of the store within a request.
    pub read_timeout: Duration,
    /// For one request, its retries included; of a GET's body only the waiting for the store counts.
    pub deadline: Duration,
    /// When and how often to try again.
    pub retry: RetrySettings,
}

impl StoreSettings {
    /// A path-style store with the defaults of every bound.
    #[must_use]
    pub fn new(name: &str, endpoint: &str, region: &str, bucket: &str, credentials: CredentialSource) -> StoreSettings {
        StoreSettings {
            name: name.into(),
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            bucket: bucket.to_owned(),
            style: AddressStyle::Path,
            names: NameStyle::Plain,
            credentials,
            ca: None,
            concurrency: 64,
            queue_depth: 1024,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(15),
            deadline: Duration::from_secs(60),
            retry: RetrySettings::default(),
        }
    }
}

/// How a bucket is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressStyle {
    /// `endpoint/bucket/key`.
    Path,
    /// `bucket.endpoint/key`.
    VirtualHost,
}

/// When and how often a failed request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrySettings {
    /// Attempts of one request, the first included.
    pub attempts_max: u32,
    /// The first pause is random below this; each further bound is twice as long (full jitter).
    pub pause_base: Duration,
    /// No pause is longer.
    pub pause_max: Duration,
    /// Retries that may run up while there were few requests. Beyond them, retries are at most a tenth of requests.
    pub budget_max: u32,
}

impl Default for RetrySettings {
    fn default() -> RetrySettings {
        RetrySettings {
            attempts_max: 4,
            pause_base: Duration::from_millis(50),
            pause_max: Duration::from_secs(2),
            budget_max: 10,
        }
    }
}

/// Where the blocks of one volume are.
#[derive(Debug, Clone)]
pub struct VolumeSettings {
    /// The volume's name.
    pub name: Arc<str>,
    /// The store's name.
    pub store: Arc<str>,
    /// Put before each key, as it is.
    pub prefix: String,
    /// The largest block in bytes; longer objects are refused with `TooLarge`.
    pub block_bytes_max: u32,
}
