//! The last accepted document on disk, so that a follower starts without the admin.
//!
//! One file per document, replaced by a rename after a sync, in a directory that is its owner's alone: after a kill or a power cut there is the old
//! document or the new one. It also says from which admin and under which pinned keys it was accepted; for any other it does not count.
//! A file that can't be read or does not parse is as good as none: the admin is asked.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::routing::{ROUTING_BYTES_MAX, RoutedKey};

const FORMAT: u32 = 1;

/// Where a document is kept, and for whom it counts.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    name: String,
    terms: Terms,
}

/// Under which terms a document was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Terms {
    format: u32,
    /// The document's full URL.
    url: String,
    /// The public halves of the pinned keys.
    pinned: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    terms: Terms,
    document: String,
}

impl Cache {
    /// The place of the document at `url` in `directory`, called `name`.
    #[must_use]
    pub fn new(directory: &Path, name: &str, url: &str, pinned: &[RoutedKey]) -> Cache {
        let mut pinned: Vec<String> = pinned.iter().map(|key| key.public.clone()).collect();
        pinned.sort_unstable();
        let terms = Terms { format: FORMAT, url: url.to_owned(), pinned };
        Cache { directory: directory.to_owned(), name: name.to_owned(), terms }
    }

    /// The signed document, if there is one that counts.
    #[must_use]
    pub fn read(&self) -> Option<String> {
        let path = self.path();
        let length = fs::metadata(&path).ok()?.len();
        if length > 2 * ROUTING_BYTES_MAX as u64 {
            return None;
        }
        let kept: Kept = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        (kept.terms == self.terms).then_some(kept.document)
    }

    /// Keeps `document` from now on.
    ///
    /// # Errors
    /// The system's. The old document is still there.
    pub fn write(&self, document: &str) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // Several processes of one user may keep the same document: each writes a file of its own.
        let new = self.directory.join(format!(".{}.{}.new", self.name, std::process::id()));
        let kept = Kept { terms: self.terms.clone(), document: document.to_owned() };
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(&kept)?)?;
            file.sync_all()?;
            fs::rename(&new, self.path())?;
            File::open(&self.directory)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.json", self.name))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_document_counts_for_its_admin_and_pins_only() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("deep/routing");
        let key = RoutedKey { id: "a".to_owned(), public: "A".to_owned() };
        let cache = Cache::new(&directory, "v", "https://a/v", &[]);
        assert_eq!(cache.read(), None);
        cache.write("one").unwrap();
        cache.write("two").unwrap();
        assert_eq!(cache.read().as_deref(), Some("two"));
        assert_eq!(Cache::new(&directory, "v", "https://b/v", &[]).read(), None);
        assert_eq!(Cache::new(&directory, "v", "https://a/v", &[key]).read(), None);
        assert_eq!(Cache::new(&directory, "w", "https://a/v", &[]).read(), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&cache.path())), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing is left behind");
        fs::write(cache.path(), "{\"torn").unwrap();
        assert_eq!(cache.read(), None);
    }
}
