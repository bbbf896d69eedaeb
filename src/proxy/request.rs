//! What a request asks for: the route and the key in its path, the range it wants.
//!
//! Called by `handler` first thing. Parses the path as it was sent: nothing is normalised, so `..` and `//` are bytes of a
//! key like any other, and the key that is signed, cached and stored is the key that was asked for.

use std::ops::Range;

use forebay_shard::key::KEY_BYTES_MAX;
use http::HeaderValue;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/v1/volumes/{volume}/blocks/{key}`, the key still percent-encoded.
    Block {
        /// The volume's name.
        volume: &'a str,
        /// Percent-encoded.
        key: &'a str,
    },
    /// `/v1/volumes/{volume}/{purge|pin|unpin}`.
    Order {
        /// The volume's name.
        volume: &'a str,
        /// What is to be done with a block of it.
        order: Order,
    },
    /// `/v1/topology`.
    Topology,
    /// `/v1/ping`.
    Ping,
    /// `/v1/status`.
    Status,
    /// `/metrics`.
    Metrics,
    /// `/healthz`.
    Healthz,
    /// `/readyz`.
    Readyz,
    /// None of ours.
    Unknown,
}

/// What can be done with a block of this cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It goes.
    Purge,
    /// It stays.
    Pin,
    /// The policy decides again.
    Unpin,
}

impl<'a> Route<'a> {
    /// The route of a path as it was sent.
    #[must_use]
    pub fn of(path: &'a str) -> Route<'a> {
        if let Some(rest) = path.strip_prefix("/v1/volumes/") {
            return match rest.split_once('/') {
                Some((volume, "purge")) => Route::Order { volume, order: Order::Purge },
                Some((volume, "pin")) => Route::Order { volume, order: Order::Pin },
                Some((volume, "unpin")) => Route::Order { volume, order: Order::Unpin },
                Some((volume, verb)) => match verb.strip_prefix("blocks/") {
                    Some(key) => Route::Block { volume, key },
                    None => Route::Unknown,
                },
                None => Route::Unknown,
            };
        }
        match path {
            "/v1/topology" => Route::Topology,
            "/v1/ping" => Route::Ping,
            "/v1/status" => Route::Status,
            "/metrics" => Route::Metrics,
            "/healthz" => Route::Healthz,
            "/readyz" => Route::Readyz,
            _ => Route::Unknown,
        }
    }

    /// The methods it takes, for `Allow`.
    #[must_use]
    pub fn methods(self) -> &'static str {
        match self {
            Route::Block { .. } => "GET, HEAD, PUT, DELETE",
            Route::Order { .. } => "POST",
            Route::Topology | Route::Ping | Route::Status | Route::Metrics | Route::Healthz | Route::Readyz => {
                "GET, HEAD"
            }
            Route::Unknown => "",
        }
    }
}

/// A key that can't be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Nothing after `blocks/`.
    #[error("the key is empty")]
    Empty,
    /// More than 1,024 bytes when decoded.
    #[error("the key is longer than 1,024 bytes")]
    TooLong,
    /// A `%` without two hexadecimal digits.
    #[error("a % in the key is not followed by two hexadecimal digits")]
    BadEncoding,
    /// The decoded bytes are no UTF-8.
    #[error("the key is not UTF-8")]
    NotUtf8,
}

/// The key that `encoded` names. Every `%xx` is one byte; everything else, `+` and `/` included, is itself.
///
/// # Errors
/// Why it is no key.
pub fn decode_key(encoded: &str) -> Result<std::sync::Arc<str>, BadKey> {
    if encoded.is_empty() {
        return Err(BadKey::Empty);
    }
    if !encoded.contains('%') {
        return if encoded.len() > KEY_BYTES_MAX { Err(BadKey::TooLong) } else { Ok(encoded.into()) };
    }
    if encoded.len() > 3 * KEY_BYTES_MAX {
        return Err(BadKey::TooLong);
    }
    let mut key = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        key.push(match byte {
            b'%' => match (bytes.next().and_then(hex_digit), bytes.next().and_then(hex_digit)) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(BadKey::BadEncoding),
            },
            plain => plain,
        });
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(BadKey::TooLong);
    }
    std::str::from_utf8(&key).map(Into::into).map_err(|_| BadKey::NotUtf8)
}

fn hex_digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// What a `Range` header means for a block of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeAsked {
    /// All of it: no range, several of them, or a unit that is not `bytes`.
    Whole,
    /// These bytes of it.
    Part(Range<u64>),
    /// Not inside the block, or not a range at all: 416.
    Unsatisfiable,
}

/// Reads a `Range` header (RFC 9110, section 14.2) for a block of `len_bytes`.
#[must_use]
pub fn range_asked(header: Option<&HeaderValue>, len_bytes: u64) -> RangeAsked {
    let Some(header) = header else { return RangeAsked::Whole };
    let Ok(text) = header.to_str() else { return RangeAsked::Unsatisfiable };
    let Some((unit, set)) = text.split_once('=') else { return RangeAsked::Unsatisfiable };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return RangeAsked::Whole;
    }
    match set.trim().split_once('-').and_then(|(first, last)| one_range(first, last, len_bytes)) {
        Some(range) if range.start < range.end => RangeAsked::Part(range),
        _ => RangeAsked::Unsatisfiable,
    }
}

fn one_range(first: &str, last: &str, len_bytes: u64) -> Option<Range<u64>> {
    if first.is_empty() {
        let suffix = position(last)?;
        return Some(len_bytes.saturating_sub(suffix)..len_bytes);
    }
    let first = position(first)?;
    let end = if last.is_empty() { len_bytes } else { position(last)?.saturating_add(1) };
    // A last position before the first is no range.
    (first < end).then_some(first..end.min(len_bytes))
}

/// Only digits: `parse` alone would take a sign.
fn position(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A figure beyond 64 bits is beyond every block.
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_routed_as_they_were_sent() {
        assert_eq!(Route::of("/v1/volumes/v/blocks/a/../b"), Route::Block { volume: "v", key: "a/../b" });
        assert_eq!(Route::of("/v1/volumes/v/blocks//"), Route::Block { volume: "v", key: "/" });
        assert_eq!(Route::of("/v1/volumes/v/blocks/"), Route::Block { volume: "v", key: "" });
        assert_eq!(Route::of("/v1/volumes//blocks/k"), Route::Block { volume: "", key: "k" });
        assert_eq!(Route::of("/v1/volumes/v/blocks/purge"), Route::Block { volume: "v", key: "purge" });
        for (name, order) in [("purge", Order::Purge), ("pin", Order::Pin), ("unpin", Order::Unpin)] {
            assert_eq!(Route::of(&format!("/v1/volumes/v/{name}")), Route::Order { volume: "v", order });
        }
        for unknown in ["", "/", "/v1", "/v1/volumes/v", "/v1/volumes/v/blocks", "/v1/volumes/v/purge/", "//healthz"] {
            assert_eq!(Route::of(unknown), Route::Unknown, "{unknown}");
        }
    }

    #[test]
    fn keys_are_bytes_after_decoding() {
        for (encoded, key) in [
            ("a/b", "a/b"),
            ("..", ".."),
            ("%2e%2E/%2f", "..//"),
            ("a+b", "a+b"),
            ("%25", "%"),
            ("%00", "\0"),
            ("%C3%A9", "é"),
            ("é", "é"),
            ("a%3Fb%23c", "a?b#c"),
        ] {
            assert_eq!(decode_key(encoded).as_deref(), Ok(key), "{encoded}");
        }
        for (encoded, why) in [
            ("", BadKey::Empty),
            ("%", BadKey::BadEncoding),
            ("a%2", BadKey::BadEncoding),
            ("%zz", BadKey::BadEncoding),
            ("%+1", BadKey::BadEncoding),
            ("%ff", BadKey::NotUtf8),
            ("%C3", BadKey::NotUtf8),
        ] {
            assert_eq!(decode_key(encoded), Err(why), "{encoded}");
        }
    }

    #[test]
    fn keys_end_at_1024_bytes_decoded() {
        assert!(decode_key(&"k".repeat(1024)).is_ok() && decode_key(&"%41".repeat(1024)).is_ok());
        for long in ["k".repeat(1025), "%41".repeat(1025), format!("%41{}", "k".repeat(1024)), "é".repeat(513)] {
            assert_eq!(decode_key(&long), Err(BadKey::TooLong));
        }
    }

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let asked = |text: &str, len| range_asked(Some(&HeaderValue::from_str(text).expect("ASCII")), len);
        assert_eq!(range_asked(None, 10), RangeAsked::Whole);
        for (text, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-4", 2..5),
            ("Bytes=2-", 2..10),
            ("bytes=-3", 7..10),
            ("bytes=-30", 0..10),
            ("bytes=5-99999999999999999999999", 5..10),
        ] {
            assert_eq!(asked(text, 10), RangeAsked::Part(part), "{text}");
        }
        for whole in ["bytes=0-1,3-4", "blocks=1-2"] {
            assert_eq!(asked(whole, 10), RangeAsked::Whole, "{whole}");
        }
        for bad in
            ["bytes=10-", "bytes=-0", "bytes=4-2", "bytes=a-b", "bytes=+1-2", "bytes=", "bytes=-", "bytes", "5-6"]
        {
            assert_eq!(asked(bad, 10), RangeAsked::Unsatisfiable, "{bad}");
        }
        assert_eq!(asked("bytes=0-", 0), RangeAsked::Unsatisfiable);
        assert_eq!(asked("bytes=-1", 0), RangeAsked::Unsatisfiable);
    }
}
