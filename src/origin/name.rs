//! From a volume's key to the object's name in the bucket: prefix + key, but for segments no HTTP client can send.
//!
//! Keys are bytes; `..` means nothing to S3. But URL libraries resolve `.` and `..` segments even when they are
//! percent-encoded, and several S3 servers do too, so that `a/../b` would silently become `b`: the wrong object. Such
//! a segment therefore stands in the bucket as `%2E` or `%2E%2E`, and a segment that already looks like one gets one
//! more `25` after each `%`. The mapping is one to one, and all other keys stand unchanged.

/// The longest name S3 takes, in bytes.
pub const NAME_BYTES_MAX: usize = 1024;

/// A key that can't be stored in this volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the object's name (prefix and key, `.` and `..` segments written as %2E) has {bytes} bytes; S3 takes 1,024")]
pub struct NameTooLong {
    /// How long it would be.
    pub bytes: usize,
}

/// How keys are written in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameStyle {
    /// As they are, but for dot segments: what S3 itself and most stores take.
    #[default]
    Plain,
    /// For stores over a file tree (SeaweedFS), which take `a//b`, `a\b` and `a/b` for one object: also an empty segment
    /// stands as `%`, `\` as `%5C` and `%` as `%25`.
    Portable,
}

/// The object's name for `key`.
///
/// # Errors
/// [`NameTooLong`]: more than 1,024 bytes.
pub fn object_name(style: NameStyle, prefix: &str, key: &str) -> Result<String, NameTooLong> {
    let plain = format!("{prefix}{key}");
    let segments = plain.split('/');
    let name = match style {
        NameStyle::Plain if plain.split('/').all(|segment| dots(segment).is_none()) => plain,
        NameStyle::Plain => segments.map(escape).collect::<Vec<_>>().join("/"),
        NameStyle::Portable => segments.map(escape_portably).collect::<Vec<_>>().join("/"),
    };
    if name.len() <= NAME_BYTES_MAX { Ok(name) } else { Err(NameTooLong { bytes: name.len() }) }
}

/// Whether `segment` is one or two dots, each written as `.` (depth 0), `%2E` (1), `%252E` (2)…, and how deep.
/// Both dots must be equally deep, as [`escape`] writes them.
fn dots(segment: &str) -> Option<usize> {
    let depth = |dot: &str| {
        if dot == "." {
            return Some(0);
        }
        let middle = dot.strip_prefix('%')?.strip_suffix("2E")?;
        middle.as_bytes().chunks(2).all(|pair| pair == b"25").then_some(1 + middle.len() / 2)
    };
    depth(segment).or_else(|| {
        let (first, second) = segment.split_at_checked(segment.len() / 2)?;
        depth(first).filter(|_| first == second)
    })
}

fn escape(segment: &str) -> String {
    match dots(segment) {
        None => segment.to_owned(),
        Some(0) => segment.replace('.', "%2E"),
        Some(_) => segment.replace('%', "%25"),
    }
}

/// Literal `%` is always followed by `25`, so the other uses of `%` are free.
fn escape_portably(segment: &str) -> String {
    match segment {
        "" => "%".to_owned(),
        "." | ".." => segment.replace('.', "%2E"),
        _ => segment.replace('%', "%25").replace('\\', "%5C"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_stand_unchanged() {
        for key in ["a", "a/b", "a//b", "/a", "a/", "...", ".a", "a..b", "%2e", "a%2Eb", "ü b+c", "%2E%252E", ".%2E"] {
            assert_eq!(object_name(NameStyle::Plain, "p/", key).unwrap(), format!("p/{key}"));
        }
    }

    #[test]
    fn dot_segments_are_escaped_one_to_one() {
        assert_eq!(object_name(NameStyle::Plain, "p/", "a/../b").unwrap(), "p/a/%2E%2E/b");
        assert_eq!(object_name(NameStyle::Plain, "p/", ".").unwrap(), "p/%2E");
        let keys = [".", "..", "%2E", "%2E%2E", "%252E", "%252E%252E", "%25252E", ".%2E", "%2E.", "...", "%25%252E2E"];
        let names: std::collections::BTreeSet<_> =
            keys.iter().map(|key| object_name(NameStyle::Plain, "", key).unwrap()).collect();
        assert_eq!(names.len(), keys.len(), "{names:?}");
        assert!(names.iter().all(|name| name != "." && name != ".."));
    }

    #[test]
    fn portable_names_have_no_segment_that_a_file_tree_would_resolve() {
        let portable = |key: &str| object_name(NameStyle::Portable, "p/", key).unwrap();
        assert_eq!(portable("a b/c.d"), "p/a b/c.d");
        let keys = ["a/b", "a//b", "/a/b", "a/b/", "a\\b", "a%5Cb", "a/%/b", "..", "%2E%2E", "%", "%25", "a/../b", "/"];
        let names: std::collections::BTreeSet<_> = keys.iter().map(|key| portable(key)).collect();
        assert_eq!(names.len(), keys.len(), "{names:?}");
        for name in names {
            assert!(
                name.split('/').all(|segment| !matches!(segment, "" | "." | "..")) && !name.contains('\\'),
                "{name}"
            );
        }
    }

    #[test]
    fn too_long_names_are_refused() {
        assert!(object_name(NameStyle::Plain, "p", &"x".repeat(1023)).is_ok());
        assert_eq!(object_name(NameStyle::Plain, "p", &"x".repeat(1024)), Err(NameTooLong { bytes: 1025 }));
        assert_eq!(
            object_name(NameStyle::Plain, "", &vec![".."; 341].join("/")),
            Err(NameTooLong { bytes: 341 * 7 - 1 })
        );
    }
}
