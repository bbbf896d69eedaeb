//! `forebay dev --endpoint URL --bucket B`: an existing bucket in place of the built-in server's.
//!
//! Called by `dev.rs` before the proxies start. One request shows what would otherwise fail later, on each block: wrong
//! keys, region, bucket, clock. The credentials are those of the usual places; they are not written down.
//! The directory remembers which bucket its disks are a cache of, so that blocks of one are never served for another.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, Secrecy, write_whole};
use super::node_config::{Bucket, Mode, Volume};
use super::{BUILT_IN_BUCKET, demo_volumes};
use crate::origin::{CredentialSource, OriginPool, StoreSettings, VolumeSettings};

/// The volume that is the bucket itself, below the prefix.
const WHOLE_VOLUME: &str = "bucket";

/// What the words of the origin pool are called here.
const FLAGS: &str = "see --endpoint, --region, --bucket and AWS_ACCESS_KEY_ID or ~/.aws/credentials";

/// A service that doesn't answer by then won't.
const CHECK_BOUND: Duration = Duration::from_secs(10);

/// The default block size of a volume.
const BLOCK_BYTES_MAX: u32 = 4 << 20;

/// A bucket that is there already.
#[derive(Debug, Clone)]
pub struct ExistingBucket {
    /// The service's URL.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket.
    pub name: String,
    /// Put before each key.
    pub prefix: String,
    /// Whether anything may be written.
    pub writes: Writes,
}

/// Whether anything may be written to an existing bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// By whoever has the token.
    Allowed,
    /// By nobody.
    Refused,
}

impl ExistingBucket {
    /// As the proxies' configuration names it.
    #[must_use]
    pub fn bucket(&self) -> Bucket {
        Bucket { endpoint: self.endpoint.clone(), region: self.region.clone(), name: self.name.clone(), keys: None }
    }

    /// The bucket as it is, and, where writing is allowed, the two volumes to play with beside it.
    #[must_use]
    pub fn volumes(&self) -> Vec<Volume> {
        let whole = |mode| Volume { name: WHOLE_VOLUME.to_owned(), prefix: self.prefix.clone(), mode };
        match self.writes {
            Writes::Refused => vec![whole(Mode::ReadOnly)],
            Writes::Allowed => {
                let mut volumes = demo_volumes(&self.prefix);
                volumes.push(whole(Mode::WriteThrough));
                volumes
            }
        }
    }

    /// Lists one key, as the proxies' own origin pool would.
    ///
    /// # Errors
    /// One line with the fix: no credentials, wrong ones, wrong region, no such bucket, a clock that is off, no answer.
    pub async fn check(&self) -> anyhow::Result<()> {
        let mut store =
            StoreSettings::new(WHOLE_VOLUME, &self.endpoint, &self.region, &self.name, CredentialSource::Usual);
        store.deadline = CHECK_BOUND;
        let volume = VolumeSettings {
            name: WHOLE_VOLUME.into(),
            store: WHOLE_VOLUME.into(),
            prefix: self.prefix.clone(),
            block_bytes_max: BLOCK_BYTES_MAX,
        };
        let what = || format!("bucket {} at {} can't be used ({FLAGS})", self.name, self.endpoint);
        let pool = OriginPool::start(vec![store], &[volume], 1).with_context(what)?;
        let answer = pool.handle().check_store(WHOLE_VOLUME).await;
        answer.map_err(|e| anyhow!("{}", e.detail)).with_context(what)
    }
}

/// What the disks of a directory are a cache of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    endpoint: String,
    bucket: String,
    prefixes: Vec<String>,
}

/// Notes in `layout` which bucket its disks are a cache of, and declines to mix two. The built-in server may move from
/// port to port.
///
/// # Errors
/// If the directory belongs to another bucket, or can't be read or written.
pub fn remember_origin(layout: &Layout, bucket: &Bucket, volumes: &[Volume]) -> anyhow::Result<()> {
    let built_in = bucket.keys.is_some() && bucket.name == BUILT_IN_BUCKET;
    let origin = Origin {
        endpoint: if built_in { "built-in".to_owned() } else { bucket.endpoint.clone() },
        bucket: bucket.name.clone(),
        prefixes: volumes.iter().map(|volume| format!("{}={}", volume.name, volume.prefix)).collect(),
    };
    let path = layout.origin();
    match fs::read(&path) {
        Ok(bytes) => {
            let kept: Origin =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
            if !kept.agrees_with(&origin) {
                bail!(
                    "{} is a cache of bucket {} at {}, not of bucket {} at {}; choose another --dir",
                    layout.root().display(),
                    kept.bucket,
                    kept.endpoint,
                    origin.bucket,
                    origin.endpoint
                );
            }
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {
            write_whole(&path, &serde_json::to_vec_pretty(&origin)?, Secrecy::Public)
        }
        Err(e) => Err(e).with_context(|| format!("{} can't be read", path.display())),
    }
}

impl Origin {
    /// The same bucket, and no volume that both know lies elsewhere.
    fn agrees_with(&self, other: &Origin) -> bool {
        let name = |prefix: &str| prefix.split('=').next().unwrap_or_default().to_owned();
        let contradicts =
            |mine: &String| other.prefixes.iter().any(|theirs| name(mine) == name(theirs) && mine != theirs);
        self.endpoint == other.endpoint && self.bucket == other.bucket && !self.prefixes.iter().any(contradicts)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn existing(writes: Writes) -> ExistingBucket {
        ExistingBucket {
            endpoint: "http://127.0.0.1:1".to_owned(),
            region: "us-east-1".to_owned(),
            name: "b".to_owned(),
            prefix: "p/".to_owned(),
            writes,
        }
    }

    #[test]
    fn a_read_only_bucket_has_no_volume_to_write_to() {
        let [volume] = existing(Writes::Refused).volumes().try_into().unwrap();
        assert_eq!((volume.mode, volume.prefix.as_str()), (Mode::ReadOnly, "p/"));
        let names: Vec<String> =
            existing(Writes::Allowed).volumes().into_iter().map(|v| v.name + "@" + &v.prefix).collect();
        assert_eq!(names, ["demo-back@p/demo-back/", "demo-through@p/demo-through/", "bucket@p/"]);
    }

    #[test]
    fn a_directory_is_the_cache_of_one_bucket() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let writable = existing(Writes::Allowed);
        remember_origin(&layout, &writable.bucket(), &writable.volumes()).unwrap();
        let read_only = existing(Writes::Refused);
        remember_origin(&layout, &read_only.bucket(), &read_only.volumes()).unwrap();
        let other = Bucket { name: "c".to_owned(), ..writable.bucket() };
        let refused = remember_origin(&layout, &other, &writable.volumes()).unwrap_err().to_string();
        assert!(refused.contains("another --dir"), "{refused}");
        let elsewhere = ExistingBucket { prefix: "q/".to_owned(), ..writable };
        assert!(remember_origin(&layout, &elsewhere.bucket(), &elsewhere.volumes()).is_err());
    }
}
