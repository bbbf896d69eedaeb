//! Listing of a bucket by decoded keys: s3s-fs lists file names, which are not keys here (see `names`).
//! Called by `layer` for both versions of ListObjects. It reads the folder anew each time: a development server's buckets
//! are small.

use std::collections::BTreeSet;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::names::Names;

/// Everything but RFC 3986's unreserved characters and `/`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// A key as it can stand in XML and in a query.
pub fn encode(key: &str) -> String {
    utf8_percent_encode(key, ENCODED).to_string()
}

/// The inverse of [`encode`].
pub fn decode(key: &str) -> String {
    percent_decode_str(key).decode_utf8_lossy().into_owned()
}

/// What is asked.
pub struct Query<'a> {
    /// Only keys that start with it.
    pub prefix: &'a str,
    /// Keys that go on with it after the prefix are rolled up into a common prefix.
    pub delimiter: Option<&'a str>,
    /// Only keys and common prefixes after it.
    pub after: &'a str,
    /// At most so many keys and common prefixes.
    pub count_max: usize,
}

/// One answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Keys in byte order.
    pub keys: Vec<String>,
    /// Common prefixes in byte order.
    pub common_prefixes: Vec<String>,
    /// The last key or prefix, if there is more.
    pub next: Option<String>,
}

/// All keys of the bucket whose files are in `folder`, in byte order.
pub fn keys(folder: &Path, names: &Names) -> std::io::Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        if let Some(key) = entry?.file_name().to_str().and_then(|name| names.key(name)) {
            keys.insert(key);
        }
    }
    Ok(keys)
}

/// Selects from `keys` what `query` asks for.
pub fn select(keys: &BTreeSet<String>, query: &Query<'_>) -> Listing {
    let mut listing = Listing::default();
    let mut last = None;
    for key in keys.iter().filter(|key| key.starts_with(query.prefix)) {
        let rest = &key[query.prefix.len()..];
        let rolled_up = query
            .delimiter
            .filter(|delimiter| !delimiter.is_empty())
            .and_then(|delimiter| rest.find(delimiter).map(|at| query.prefix.len() + at + delimiter.len()))
            .map(|end| &key[..end]);
        let name = rolled_up.unwrap_or(key);
        if name <= query.after || last.as_deref() == Some(name) {
            continue;
        }
        if listing.keys.len() + listing.common_prefixes.len() == query.count_max {
            listing.next = last;
            return listing;
        }
        match rolled_up {
            Some(prefix) => listing.common_prefixes.push(prefix.to_owned()),
            None => listing.keys.push(key.clone()),
        }
        last = Some(name.to_owned());
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn a_listing_goes_on_where_the_last_one_stopped() {
        let keys = set(&["a", "p/1", "p/2/x", "p/2/y", "p/3", "q"]);
        let mut query = Query { prefix: "p/", delimiter: Some("/"), after: "", count_max: 2 };
        let first = select(&keys, &query);
        assert_eq!((first.keys.clone(), first.common_prefixes.clone()), (vec!["p/1".into()], vec!["p/2/".into()]));
        let next = first.next.expect("there is more");
        query.after = &next;
        let second = select(&keys, &query);
        assert_eq!((second.keys, second.common_prefixes, second.next), (vec!["p/3".into()], vec![], None));
    }

    #[test]
    fn without_a_delimiter_all_keys_of_the_prefix_are_listed() {
        let keys = set(&["a", "p/1", "p/2/x"]);
        let listing = select(&keys, &Query { prefix: "", delimiter: None, after: "", count_max: 1000 });
        assert_eq!((listing.keys.len(), listing.next), (3, None));
    }
}
