//! Keys as file names: any UTF-8 key of up to 1,024 bytes becomes one flat, short, safe name, and back.
//!
//! The file system below knows `..`, `//`, 255-byte names and directories; S3 keys know none of them (`a` and `a/b` are
//! two objects). So a key is percent-encoded into one name; a name that would be too long is `%~` + the SHA-256 of the
//! key, whose key is kept in a small file beside it (`%~` can't come from encoding, so the two never meet).

use std::fs;
use std::io;
use std::path::PathBuf;

use aws_lc_rs::digest::{SHA256, digest};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// s3s-fs puts bucket and name in base64 into one file name of at most 255 bytes:
/// `.bucket-` 8 + 63 × 4/3 = 84 + `.object-` 8 + 90 × 4/3 = 120 + `.upload-…` 44 do not fit with more than 90.
const NAME_BYTES_MAX: usize = 90;

/// Everything but these stands as `%XX`. No `.` at all: a name is never `.` or `..`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// How hashed names begin.
const HASHED: &str = "%~";

/// The table of long keys of one server.
#[derive(Debug)]
pub struct Names {
    folder: PathBuf,
}

impl Names {
    /// Keeps the keys of hashed names in `folder`, which must exist.
    pub fn new(folder: PathBuf) -> Names {
        Names { folder }
    }

    /// The file name of `key`.
    pub fn name(&self, key: &str) -> String {
        let name = utf8_percent_encode(key, ENCODED).to_string();
        if name.len() <= NAME_BYTES_MAX {
            return name;
        }
        let hash = digest(&SHA256, key.as_bytes());
        hash.as_ref().iter().fold(HASHED.to_owned(), |name, byte| format!("{name}{byte:02x}"))
    }

    /// Remembers the key of a name, so that [`Names::key`] finds it. To be called before the name is used.
    pub fn remember(&self, key: &str, name: &str) -> io::Result<()> {
        if !name.starts_with(HASHED) {
            return Ok(());
        }
        let path = self.folder.join(name);
        if path.exists() { Ok(()) } else { fs::write(path, key) }
    }

    /// The key of a file name; `None` for a file that is no object.
    pub fn key(&self, name: &str) -> Option<String> {
        if name.starts_with(HASHED) {
            return fs::read_to_string(self.folder.join(name)).ok();
        }
        let key = percent_decode_str(name).decode_utf8().ok()?.into_owned();
        (self.name(&key) == name).then_some(key)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_own_short_name_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let names = Names::new(folder.path().to_owned());
        let long = ["x".repeat(1024), "ä".repeat(512), "x".repeat(91), "x".repeat(90)];
        let odd = ["a", "a/", "a/b", "a//b", "..", ".", "../..", "a b", "a+b", "a%2Fb", "%~", "\0", "ü", "/"];
        let keys: Vec<&str> = odd.into_iter().chain(long.iter().map(String::as_str)).collect();
        let mut seen = std::collections::BTreeSet::new();
        for key in keys {
            let name = names.name(key);
            assert!(name.len() <= NAME_BYTES_MAX && !name.contains(['/', '.']), "{name}");
            names.remember(key, &name).unwrap();
            assert_eq!(names.key(&name).as_deref(), Some(key));
            assert!(seen.insert(name), "{key}");
        }
        assert_eq!(names.key(".bucket-x.object-y.metadata.json"), None);
    }
}
