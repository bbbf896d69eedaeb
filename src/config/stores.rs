//! `[[store]]` and `[[volume]]` checked: names that refer to something, endpoints that are URLs, credentials of one
//! kind, block sizes in range.
//!
//! Part of `Config::check`; the origin pool reads the result. No secret is ever printed from here.

use std::path::PathBuf;
use std::sync::Arc;

use forebay_shard::config::{Access, DirtyFull, VolumeConfig, WriteMode};
use forebay_shard::key::VOLUME_NAME_BYTES_MAX;
use url::Url;

use crate::config::checked::ConfigError;
use crate::config::raw::{RawCredentials, RawDirtyFull, RawNames, RawStore, RawVolume, RawWrite};
use crate::config::units::Size;

/// One bucket of one S3 service.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// What volumes call it.
    pub name: Arc<str>,
    /// The service.
    pub endpoint: Url,
    /// The region requests are signed for.
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// Where the bucket's name stands.
    pub addressing: Addressing,
    /// How keys are written as object names.
    pub naming: Naming,
    /// Who signs.
    pub credentials: Credentials,
    /// A further certificate authority, PEM.
    pub ca: Option<PathBuf>,
}

/// Where the bucket's name stands in a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// In the path.
    Path,
    /// In the host.
    Host,
}

/// How keys are written as object names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// As they are.
    Plain,
    /// Escaped where a file tree would take two keys for one.
    Portable,
}

/// Who signs requests to a store.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Environment, then `~/.aws/credentials`.
    Usual,
    /// The environment only.
    Environment,
    /// A file in the form of `~/.aws/credentials` (that one if `None`) and a section of it.
    Profile {
        /// The file.
        file: Option<PathBuf>,
        /// The section.
        profile: String,
    },
    /// A pair of keys in the configuration.
    Keys {
        /// The access key.
        access_key: String,
        /// The secret key.
        secret_key: String,
        /// The session token that goes with them.
        session_token: Option<String>,
    },
}

/// One volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// What shards are told of it.
    pub shard: VolumeConfig,
    /// Its store: an index into the configuration's stores.
    pub store_index: usize,
    /// Put before each key.
    pub prefix: Arc<str>,
}

/// Never shows a secret.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Usual => f.write_str("Usual"),
            Credentials::Environment => f.write_str("Environment"),
            Credentials::Profile { file, profile } => {
                f.debug_struct("Profile").field("file", file).field("profile", profile).finish()
            }
            Credentials::Keys { access_key, .. } => {
                f.debug_struct("Keys").field("access_key", access_key).finish_non_exhaustive()
            }
        }
    }
}

/// Checks every `[[store]]`.
///
/// # Errors
/// The first mistake found.
pub fn check_stores(raw: &[RawStore]) -> Result<Vec<StoreConfig>, ConfigError> {
    let mut stores: Vec<StoreConfig> = Vec::with_capacity(raw.len());
    for store in raw {
        if stores.iter().any(|other| *other.name == *store.name) {
            return Err(ConfigError::new("store.name", format!("two stores are named {:?}: rename one", store.name)));
        }
        stores.push(check_store(store)?);
    }
    Ok(stores)
}

fn check_store(raw: &RawStore) -> Result<StoreConfig, ConfigError> {
    let fail = |key: &str, what: String| ConfigError::new(format!("store.{key} (store {:?})", raw.name), what);
    if raw.name.is_empty() {
        return Err(ConfigError::new("store.name", "is empty: name the store"));
    }
    let endpoint = Url::parse(&raw.endpoint)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none())
        .ok_or_else(|| fail("endpoint", format!("{:?} is no URL: write http://… or https://…", raw.endpoint)))?;
    if !(3..=63).contains(&raw.bucket.len()) || raw.bucket.contains(['/', ' ', '?', '#']) {
        return Err(fail("bucket", format!("{:?} is no bucket name: 3 to 63 of a-z, 0-9, . and -", raw.bucket)));
    }
    if let Some(ca) = &raw.ca {
        std::fs::File::open(ca)
            .map_err(|error| fail("ca", format!("{}: {error}: name a readable PEM file", ca.display())))?;
    }
    let credentials = check_credentials(&raw.credentials).map_err(|what| fail("credentials", what.to_owned()))?;
    Ok(StoreConfig {
        name: raw.name.as_str().into(),
        endpoint,
        region: raw.region.clone(),
        bucket: raw.bucket.clone(),
        addressing: if raw.path_style { Addressing::Path } else { Addressing::Host },
        naming: match raw.names {
            RawNames::Plain => Naming::Plain,
            RawNames::Portable => Naming::Portable,
        },
        credentials,
        ca: raw.ca.clone(),
    })
}

fn check_credentials(raw: &RawCredentials) -> Result<Credentials, &'static str> {
    let RawCredentials { access_key, secret_key, session_token, env, file, profile } = raw;
    match (access_key, secret_key, env, file.is_some() || profile.is_some()) {
        (Some(access_key), Some(secret_key), false, false) => Ok(Credentials::Keys {
            access_key: access_key.clone(),
            secret_key: secret_key.clone(),
            session_token: session_token.clone(),
        }),
        (None, None, _, _) if session_token.is_some() => Err("session_token needs access_key and secret_key"),
        (None, None, true, false) => Ok(Credentials::Environment),
        (None, None, false, true) => Ok(Credentials::Profile {
            file: file.clone(),
            profile: profile.clone().unwrap_or_else(|| "default".to_owned()),
        }),
        (None, None, false, false) => Ok(Credentials::Usual),
        (Some(_), None, ..) => Err("access_key without secret_key: add it"),
        (None, Some(_), ..) => Err("secret_key without access_key: add it"),
        _ => Err("several kinds at once: keep access_key and secret_key, or env, or file and profile"),
    }
}

/// Checks every `[[volume]]` against the stores.
///
/// # Errors
/// The first mistake found.
pub fn check_volumes(raw: &[RawVolume], stores: &[StoreConfig]) -> Result<Vec<Volume>, ConfigError> {
    if raw.is_empty() {
        return Err(ConfigError::new("volume", "there is none: add a [[volume]] with name and store"));
    }
    let mut volumes: Vec<Volume> = Vec::with_capacity(raw.len());
    for volume in raw {
        let checked = check_volume(volume, stores)?;
        for other in &volumes {
            if other.shard.name == checked.shard.name {
                let what = format!("two volumes are named {:?}: rename one", volume.name);
                return Err(ConfigError::new("volume.name", what));
            }
            if other.store_index == checked.store_index && other.prefix == checked.prefix {
                let what = format!("volumes {:?} and {:?} are the same place", &*other.shard.name, volume.name);
                return Err(ConfigError::new("volume.prefix", format!("{what}: give each its own prefix")));
            }
        }
        volumes.push(checked);
    }
    Ok(volumes)
}

fn check_volume(raw: &RawVolume, stores: &[StoreConfig]) -> Result<Volume, ConfigError> {
    let fail = |key: &str, what: String| ConfigError::new(format!("volume.{key} (volume {:?})", raw.name), what);
    let lawful = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=VOLUME_NAME_BYTES_MAX).contains(&raw.name.len()) || !raw.name.bytes().all(lawful) {
        return Err(fail("name", "write 1 to 63 of a-z, 0-9 and -".to_owned()));
    }
    let store_index = stores.iter().position(|store| *store.name == *raw.store).ok_or_else(|| {
        let known = stores.iter().map(|store| &*store.name).collect::<Vec<_>>().join(", ");
        fail("store", format!("no [[store]] is named {:?}: there is {known:?}", raw.store))
    })?;
    let block_bytes_max = match raw.block_size {
        Size::Bytes(bytes @ 4096..=16_777_216) => u32::try_from(bytes).expect("at most 16 MiB"),
        other => return Err(fail("block_size", format!("{other} is out of range: set 4KiB to 16MiB"))),
    };
    if raw.prefix.len() > 512 {
        return Err(fail("prefix", "is longer than 512 bytes: S3 keys end at 1,024".to_owned()));
    }
    let shard = VolumeConfig {
        name: raw.name.as_str().into(),
        block_bytes_max,
        write_mode: match raw.write {
            RawWrite::Through => WriteMode::Through,
            RawWrite::Back => WriteMode::Back,
        },
        dirty_full: match raw.dirty_full {
            RawDirtyFull::Decline => DirtyFull::Decline,
            RawDirtyFull::WriteThrough => DirtyFull::WriteThrough,
        },
        access: if raw.read_only { Access::ReadOnly } else { Access::ReadWrite },
    };
    Ok(Volume { shard, store_index, prefix: raw.prefix.as_str().into() })
}
