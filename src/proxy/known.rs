//! The volumes that a node has ever been told of, with all that is needed to flush what it holds of them: kept in a file beside the admin's
//! last word, because a volume that was detached, and its store, are in no document any more.
//!
//! Called by `following`, which writes it before it serves a volume. Invariants: a volume that was ever served is in the file, on stable
//! storage, before the first write to it is acknowledged; one name is one place in one store for good, because blocks are cached by name.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::resource::{Revision, WriteMode};
use crate::routing::{GroupStore, GroupVolume};

const NAME: &str = "volumes.json";
const FORMAT: u32 = 1;

/// All volumes that the node was told of, by name.
#[derive(Debug)]
pub struct KnownVolumes {
    path: PathBuf,
    volumes: BTreeMap<String, KnownVolume>,
}

/// What must be known of a volume even after it left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownVolume {
    /// The revision in which it was made.
    pub made: Revision,
    /// Its store, as it was told last.
    pub store: GroupStore,
    /// Put before each key.
    pub prefix: String,
    /// The largest block in bytes.
    pub block_bytes_max: u32,
    /// Whether its blocks may be dirty here: it was write-back at some time.
    pub written_back: bool,
}

#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    volumes: BTreeMap<String, KnownVolume>,
}

/// The name was used for another place before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "another volume of this name was served here, from other objects, and blocks are cached by name: give this one another name, or \
     format the node"
)]
pub struct OtherPlace;

impl KnownVolumes {
    /// What is known from before.
    ///
    /// # Errors
    /// The file is there and can't be read: without it, dirty blocks may have no place to go.
    pub fn open(directory: &Path) -> anyhow::Result<KnownVolumes> {
        let path = directory.join(NAME);
        let volumes = match fs::read(&path) {
            Ok(bytes) => {
                let written: Written = serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
                ensure!(written.format == FORMAT, "{} is of another version: run that one", path.display());
                written.volumes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(KnownVolumes { path, volumes })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&str, &KnownVolume)> {
        self.volumes.iter().map(|(name, volume)| (name.as_str(), volume))
    }

    /// Learns what is told of volumes now, and keeps it; which of them can't be, though they are told. If it fails, nothing was
    /// learned.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn learn(&mut self, told: &[(&GroupVolume, &GroupStore)]) -> anyhow::Result<Vec<(String, OtherPlace)>> {
        let (mut volumes, mut refused) = (self.volumes.clone(), Vec::new());
        for (volume, store) in told {
            let name = &volume.volume.name;
            let before = self.volumes.get(name);
            if before.is_some_and(|before| !before.is_same_place(volume, store)) {
                refused.push((name.clone(), OtherPlace));
                continue;
            }
            let is_back = volume.volume.write == WriteMode::Back;
            let known = KnownVolume {
                made: volume.made,
                store: (*store).clone(),
                prefix: volume.volume.prefix.clone(),
                block_bytes_max: volume.volume.block_size,
                written_back: is_back || before.is_some_and(|before| before.written_back),
            };
            volumes.insert(name.clone(), known);
        }
        if volumes != self.volumes {
            self.write(&volumes).with_context(|| format!("writing {}", self.path.display()))?;
            self.volumes = volumes;
        }
        Ok(refused)
    }

    /// Moved into place whole and synced.
    fn write(&self, volumes: &BTreeMap<String, KnownVolume>) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let written = Written { format: FORMAT, volumes: volumes.clone() };
        file.write_all(&serde_json::to_vec_pretty(&written)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(directory)?.sync_all()
    }
}

impl KnownVolume {
    /// Whether the objects of `volume` are this one's. The same volume's store may have moved; another's must be where this one's was.
    fn is_same_place(&self, volume: &GroupVolume, store: &GroupStore) -> bool {
        let (here, there) = (&self.store.store, &store.store);
        let is_same_store = self.made == volume.made || here.endpoint == there.endpoint;
        is_same_store && (&here.bucket, here.names, &self.prefix) == (&there.bucket, there.names, &volume.volume.prefix)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(made: Revision, prefix: &str, write: &str) -> GroupVolume {
        let settings = json!({"name": "v", "store": "main", "prefix": prefix, "write": write});
        GroupVolume { volume: serde_json::from_value(settings).unwrap(), made, revoked: Vec::new() }
    }

    fn store(endpoint: &str) -> GroupStore {
        let store = json!({"name": "main", "endpoint": endpoint, "region": "r", "bucket": "b", "path_style": true, "names": "plain",
            "conditional_put": true, "single_writer": false, "credentials": "env"});
        serde_json::from_value(store).unwrap()
    }

    #[test]
    fn what_was_told_is_known_after_a_restart_and_was_written_back_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let mut known = KnownVolumes::open(&directory.path().join("new")).unwrap();
        assert_eq!(known.all().count(), 0);
        assert!(known.learn(&[(&volume(1, "p/", "back"), &store("https://a"))]).unwrap().is_empty());
        assert!(known.learn(&[(&volume(1, "p/", "through"), &store("https://b"))]).unwrap().is_empty());
        assert!(known.learn(&[]).unwrap().is_empty(), "it was detached");
        let again = KnownVolumes::open(&directory.path().join("new")).unwrap();
        let (name, volume) = again.all().next().unwrap();
        assert_eq!((name, &*volume.store.store.endpoint, volume.written_back), ("v", "https://b", true));
        fs::write(directory.path().join("new").join(NAME), "torn").unwrap();
        assert!(KnownVolumes::open(&directory.path().join("new")).is_err());
    }

    #[test]
    fn a_name_stays_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let mut known = KnownVolumes::open(directory.path()).unwrap();
        known.learn(&[(&volume(1, "p/", "back"), &store("https://a"))]).unwrap();
        let refused = |known: &mut KnownVolumes, made, prefix, endpoint| {
            !known.learn(&[(&volume(made, prefix, "back"), &store(endpoint))]).unwrap().is_empty()
        };
        assert!(refused(&mut known, 2, "q/", "https://a"), "made again below another prefix");
        assert!(refused(&mut known, 2, "p/", "https://c"), "made again elsewhere");
        assert!(!refused(&mut known, 1, "p/", "https://c"), "the same, and its store moved");
        assert!(!refused(&mut known, 2, "p/", "https://c"), "made again over the same objects");
    }
}
