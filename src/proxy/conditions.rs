//! ETags and the conditions on them (RFC 9110, section 13), and digests of bodies (RFC 9530).
//!
//! Called by `handler` for GET and HEAD, by `put_body` for PUT. A condition that Forebay does not understand is refused,
//! never ignored: ignoring one would write what the client said not to write.

use aws_lc_rs::digest::{Algorithm, Context, SHA256, SHA512};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay_io::checksum::Digest;
use forebay_shard::origin::Etag;
use forebay_shard::outcome::Condition;
use http::HeaderValue;
use http::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE};

/// The `ETag` header of a block.
#[must_use]
pub fn etag_value(etag: &Etag) -> HeaderValue {
    match etag {
        Etag::Digest(digest) => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            let mut text = [b'"'; 34];
            for (pair, byte) in text[1..33].chunks_exact_mut(2).zip(digest.0.to_be_bytes()) {
                pair[0] = HEX[usize::from(byte >> 4)];
                pair[1] = HEX[usize::from(byte & 15)];
            }
            HeaderValue::from_bytes(&text).expect("hexadecimal digits are visible ASCII")
        }
        Etag::Origin(tag) => HeaderValue::from_str(&format!("\"o-{tag}\""))
            // An origin's ETag with bytes that no header may hold can't be compared by a client either.
            .unwrap_or(HeaderValue::from_static("\"o-\"")),
    }
}

/// A list of entity tags, or `*`.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    Any,
    /// Those that could be a block's, without the weak mark.
    These(Vec<(Etag, Strength)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strength {
    Strong,
    Weak,
}

/// Whether `If-None-Match` says that the client has this block already (weak comparison): 304.
#[must_use]
pub fn is_not_modified(headers: &HeaderMap, etag: &Etag) -> bool {
    match tags(headers, &IF_NONE_MATCH) {
        Some(Tags::Any) => true,
        Some(Tags::These(tags)) => tags.iter().any(|(tag, _)| tag == etag),
        None => false,
    }
}

/// Whether `If-Match` allows this block (strong comparison); else 412.
#[must_use]
pub fn is_match(headers: &HeaderMap, etag: &Etag) -> bool {
    match tags(headers, &IF_MATCH) {
        Some(Tags::These(tags)) => tags.iter().any(|(tag, strength)| tag == etag && *strength == Strength::Strong),
        Some(Tags::Any) | None => true,
    }
}

/// Whether `Range` counts: there is no `If-Range`, or it names this block (strong comparison). A date never does.
#[must_use]
pub fn is_range_meant(headers: &HeaderMap, etag: &Etag) -> bool {
    match tags(headers, &IF_RANGE) {
        Some(Tags::These(tags)) => tags.as_slice() == [(etag.clone(), Strength::Strong)],
        Some(Tags::Any) => false,
        None => true,
    }
}

/// The condition of a put.
///
/// # Errors
/// A sentence, for conditions that have no meaning for blocks.
pub fn put_condition(headers: &HeaderMap) -> Result<Condition, &'static str> {
    match (tags(headers, &IF_NONE_MATCH), tags(headers, &IF_MATCH)) {
        (None, None) => Ok(Condition::Any),
        (Some(Tags::Any), None) => Ok(Condition::Absent),
        (None, Some(Tags::These(tags))) => {
            let strong = tags.into_iter().filter(|(_, strength)| *strength == Strength::Strong);
            Ok(Condition::Matches(strong.map(|(tag, _)| tag).collect()))
        }
        (Some(Tags::These(_)), None) => Err("a put takes If-None-Match: * only"),
        (None, Some(Tags::Any)) => Err("a put takes If-Match with entity tags only"),
        (Some(_), Some(_)) => Err("a put takes either If-Match or If-None-Match"),
    }
}

/// All tags of all lines of header `name`; `None` if there is none. What can't be a tag of Forebay's can't match and is
/// left out.
fn tags(headers: &HeaderMap, name: &HeaderName) -> Option<Tags> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let mut tags = Vec::new();
    for line in lines {
        let Ok(mut rest) = line.to_str() else { continue };
        if rest.trim() == "*" {
            return Some(Tags::Any);
        }
        // A tag may hold a comma: it ends at its closing quote.
        while let Some(open) = rest.find('"') {
            let strength = if rest[..open].ends_with("W/") { Strength::Weak } else { Strength::Strong };
            let Some(len) = rest[open + 1..].find('"') else { break };
            tags.extend(own_tag(&rest[open + 1..open + 1 + len]).map(|tag| (tag, strength)));
            rest = &rest[open + 2 + len..];
        }
    }
    Some(Tags::These(tags))
}

/// The tag between the quotes.
fn own_tag(text: &str) -> Option<Etag> {
    match text.strip_prefix("o-") {
        Some(origin) => Some(Etag::Origin(origin.into())),
        None => Digest::from_hex(text).map(Etag::Digest),
    }
}

/// `Content-Digest` (RFC 9530): what the client says its body hashes to.
pub struct ContentDigest {
    expected: Vec<(Context, Vec<u8>)>,
}

impl ContentDigest {
    /// Reads the header; without it there is nothing to check. Algorithms other than `sha-256` and `sha-512` are left
    /// out, as the RFC asks.
    ///
    /// # Errors
    /// A sentence, if it is no dictionary of byte sequences or a digest has the wrong length.
    pub fn of(headers: &HeaderMap) -> Result<ContentDigest, &'static str> {
        let mut expected = Vec::new();
        for line in headers.get_all("content-digest") {
            let text = line.to_str().map_err(|_| "the Content-Digest is not ASCII")?;
            for member in text.split(',') {
                let (name, value) = member.split_once('=').ok_or("a Content-Digest is written sha-256=:base64:")?;
                let encoded = value.trim().strip_prefix(':').and_then(|rest| rest.strip_suffix(':'));
                let encoded = encoded.ok_or("a Content-Digest is written sha-256=:base64:")?;
                let digest = STANDARD.decode(encoded).map_err(|_| "the Content-Digest is not base64")?;
                let Some(algorithm) = algorithm(name.trim()) else { continue };
                if digest.len() != algorithm.output_len() {
                    return Err("the Content-Digest has the wrong length for its algorithm");
                }
                expected.push((Context::new(algorithm), digest));
            }
        }
        Ok(ContentDigest { expected })
    }

    /// Adds the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.expected.iter_mut().for_each(|(context, _)| context.update(bytes));
    }

    /// Whether the whole body matches every digest.
    #[must_use]
    pub fn is_matched(self) -> bool {
        self.expected.into_iter().all(|(context, digest)| context.finish().as_ref() == digest)
    }
}

fn algorithm(name: &str) -> Option<&'static Algorithm> {
    match name {
        "sha-256" => Some(&SHA256),
        "sha-512" => Some(&SHA512),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn digest() -> Etag {
        Etag::Digest(Digest(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef))
    }

    const TAG: &str = "\"0123456789abcdef0123456789abcdef\"";

    #[test]
    fn etags_are_written_as_they_are_read() {
        assert_eq!(etag_value(&digest()), TAG);
        assert_eq!(etag_value(&Etag::Origin("a,b".into())), "\"o-a,b\"");
        assert!(is_match(&headers(&[("if-match", TAG)]), &digest()));
        assert!(is_match(&headers(&[("if-match", "\"o-a,b\"")]), &Etag::Origin("a,b".into())));
    }

    #[test]
    fn get_conditions_compare_weakly_or_strongly_as_they_must() {
        let weak = format!("\"other\", W/{TAG}");
        assert!(is_not_modified(&headers(&[("if-none-match", &weak)]), &digest()));
        assert!(is_not_modified(&headers(&[("if-none-match", "\"x\""), ("if-none-match", TAG)]), &digest()));
        assert!(is_not_modified(&headers(&[("if-none-match", "*")]), &digest()));
        assert!(!is_not_modified(&headers(&[("if-none-match", "\"x\"")]), &digest()));
        assert!(!is_not_modified(&headers(&[]), &digest()));
        assert!(!is_match(&headers(&[("if-match", &weak)]), &digest()));
        assert!(is_match(&headers(&[("if-match", "*")]), &digest()) && is_match(&headers(&[]), &digest()));
        assert!(is_range_meant(&headers(&[]), &digest()) && is_range_meant(&headers(&[("if-range", TAG)]), &digest()));
        assert!(!is_range_meant(&headers(&[("if-range", &format!("W/{TAG}"))]), &digest()));
        assert!(!is_range_meant(&headers(&[("if-range", "Sat, 29 Oct 1994 19:43:31 GMT")]), &digest()));
    }

    #[test]
    fn put_conditions_are_understood_or_refused() {
        assert_eq!(put_condition(&headers(&[])), Ok(Condition::Any));
        assert_eq!(put_condition(&headers(&[("if-none-match", "*")])), Ok(Condition::Absent));
        assert_eq!(put_condition(&headers(&[("if-match", TAG)])), Ok(Condition::Matches(vec![digest()])));
        // Tags that can't be a block's match nothing, which is not the same as no condition.
        assert_eq!(put_condition(&headers(&[("if-match", "\"x\"")])), Ok(Condition::Matches(vec![])));
        assert_eq!(put_condition(&headers(&[("if-match", "garbage")])), Ok(Condition::Matches(vec![])));
        for bad in [&[("if-none-match", TAG)][..], &[("if-match", "*")], &[("if-match", TAG), ("if-none-match", "*")]] {
            assert!(put_condition(&headers(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn content_digests_are_checked_or_refused() {
        let right = "sha-256=:uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=:";
        let check = |text: &str, body: &[u8]| {
            ContentDigest::of(&headers(&[("content-digest", text)])).map(|mut digest| {
                digest.update(&body[..body.len() / 2]);
                digest.update(&body[body.len() / 2..]);
                digest.is_matched()
            })
        };
        assert_eq!(check(right, b"hello world"), Ok(true));
        assert_eq!(check(right, b"hello worle"), Ok(false));
        assert_eq!(check("md5=:AAAA:", b"x"), Ok(true));
        assert_eq!(check(&format!("md5=:AAAA:, {right}"), b"x"), Ok(false));
        for bad in ["", "sha-256", "sha-256=abc", "sha-256=:a:", "sha-256=:AAAA:", "sha-512=:AAAA:"] {
            assert!(check(bad, b"x").is_err(), "{bad}");
        }
        let long = STANDARD.encode(aws_lc_rs::digest::digest(&SHA512, b"x"));
        assert_eq!(check(&format!("sha-512=:{long}:"), b"x"), Ok(true));
    }
}
