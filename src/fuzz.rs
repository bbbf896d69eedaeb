//! What must hold of the parsers of the edge, whatever the bytes: path and key, range, token, configuration.
//!
//! Called by the targets of `ci/fuzz`, and by the tests below with random changes of the seeds, so that it stays true and
//! stays compiling without a fuzzer. Tokens are signed here with a key that the verifier knows, so that what is behind the
//! signature is reached. How requests are told apart has its property beside the guard (`proxy/framing/fuzz.rs`).

use std::io;
use std::path::Path;
use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use forebay_shard::key::KEY_BYTES_MAX;
use http::HeaderValue;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::config::machine::Machine;
use crate::config::units::{Size, Time};
use crate::config::{Config, ConfigError, parse};
pub use crate::proxy::framing::fuzz::{request_framing, request_framing_seeds};
use crate::proxy::request::{RangeAsked, Route, decode_key, range_asked};
use crate::token::{Claims, PublicKey, PublicKeys, Refusal, Right, SigningKey};

/// The clock of every verification, in unix seconds.
const NOW: u64 = 1_800_000_000;
const KEY_ID: &str = "k";
/// What no printed configuration may show.
const SECRET: &str = "secret-3141592653";

/// Input: the path of a request.
///
/// # Panics
/// If a route is not its path again, or a key is not what its bytes say.
pub fn http_path(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    let route = Route::of(path);
    match route {
        Route::Block { volume, key } => {
            assert!(!volume.contains('/'), "a volume's name ends at the first slash");
            assert_eq!(format!("/v1/volumes/{volume}/blocks/{key}"), path, "nothing is normalised");
            key_is_its_bytes(key);
        }
        Route::Order { volume, order } => {
            let verb = format!("{order:?}").to_lowercase();
            assert_eq!(format!("/v1/volumes/{volume}/{verb}"), path);
        }
        Route::Unknown => assert_eq!(route.methods(), ""),
        _ => assert!(!path.contains(['%', '?']), "a fixed path"),
    }
    key_is_its_bytes(path);
}

fn key_is_its_bytes(encoded: &str) {
    let found = decode_key(encoded);
    let bytes = encoded.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let is_encoded = bytes.iter().enumerate().all(|(at, byte)| *byte != b'%' || (is_digit(at + 1) && is_digit(at + 2)));
    let decoded = percent_decode_str(encoded).decode_utf8().ok();
    let expected = decoded.filter(|key| is_encoded && (1..=KEY_BYTES_MAX).contains(&key.len()));
    assert_eq!(found.as_deref().ok(), expected.as_deref(), "{encoded:?}");
    if let Ok(key) = found {
        let again = utf8_percent_encode(&key, NON_ALPHANUMERIC).to_string();
        assert_eq!(decode_key(&again).as_deref(), Ok(&*key), "what was encoded is decoded");
    }
}

/// Paths of each route.
#[must_use]
pub fn http_path_seeds() -> Vec<Vec<u8>> {
    let paths = [
        "/v1/volumes/v/blocks/a/../b",
        "/v1/volumes/v/blocks/%C3%A9%2f%00",
        "/v1/volumes/demo-back/purge",
        "/v1/volumes/demo-back/unpin",
        "/v1/topology",
        "/v1/ping",
        "/v1/status",
        "/metrics",
        "/healthz",
        "/readyz",
    ];
    let long = format!("/v1/volumes/v/blocks/{}", "%41".repeat(KEY_BYTES_MAX));
    paths.iter().map(|path| path.as_bytes().to_vec()).chain([long.into_bytes()]).collect()
}

/// Input: the block's length (8, little-endian), first and last position of a range that is asked for (4 each), then a
/// header of the fuzzer's own.
///
/// # Panics
/// If a part lies outside of its block, or an ordinary range is not read as it was written.
pub fn http_range(data: &[u8]) {
    let Some((numbers, text)) = data.split_first_chunk::<16>() else { return };
    let len_bytes = u64::from_le_bytes(numbers[..8].try_into().expect("eight of sixteen"));
    let position = |at: usize| u64::from(u32::from_le_bytes(numbers[at..at + 4].try_into().expect("four of sixteen")));
    let asked = |text: &str| range_asked(HeaderValue::from_str(text).ok().as_ref(), len_bytes);
    let (first, last) = (position(8), position(12));
    let ordinary = asked(&format!("bytes={first}-{last}"));
    if first <= last && first < len_bytes {
        assert_eq!(ordinary, RangeAsked::Part(first..len_bytes.min(last + 1)));
        assert_eq!(asked(&format!("bytes={first}-")), RangeAsked::Part(first..len_bytes));
    } else {
        assert_eq!(ordinary, RangeAsked::Unsatisfiable);
    }
    let suffix = asked(&format!("bytes=-{last}"));
    let is_something = last > 0 && len_bytes > 0;
    let expected = RangeAsked::Part(len_bytes.saturating_sub(last)..len_bytes);
    assert_eq!(suffix, if is_something { expected } else { RangeAsked::Unsatisfiable });
    let Ok(header) = HeaderValue::from_bytes(text) else { return };
    if let RangeAsked::Part(part) = range_asked(Some(&header), len_bytes) {
        assert!(part.start < part.end && part.end <= len_bytes, "{part:?} of {len_bytes} bytes");
        let again = format!("bytes={}-{}", part.start, part.end - 1);
        assert_eq!(asked(&again), RangeAsked::Part(part), "the same part, written plainly");
    }
}

/// Ranges of each form.
#[must_use]
pub fn http_range_seeds() -> Vec<Vec<u8>> {
    let headers = [
        "bytes=0-0",
        "Bytes=2-",
        "bytes=-3",
        "bytes=5-99999999999999999999999",
        "bytes=0-1,3-4",
        "blocks=1-2",
        "bytes=+1-2",
    ];
    let numbers = [&10u64.to_le_bytes()[..], &2u32.to_le_bytes(), &5u32.to_le_bytes()].concat();
    headers.iter().map(|header| [&numbers, header.as_bytes()].concat()).collect()
}

static KEY_PAIR: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("any 32 bytes are a seed"));

static KEYS: LazyLock<PublicKeys> = LazyLock::new(|| {
    let public = URL_SAFE_NO_PAD.encode(KEY_PAIR.public_key().as_ref());
    let mut keys = PublicKeys::default();
    assert!(keys.add(KEY_ID, PublicKey::parse(&public).expect("a public key")), "the only key");
    keys
});

/// Input: how long the header is (2, little-endian), the header as JSON, then the claims as JSON. Both are signed. The whole
/// input is also taken for a token, a public key and a private key.
///
/// # Panics
/// If a token opens that was not signed, says something else, is not current, or a good one is refused.
pub fn token(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(KEYS.verify(text, NOW).is_err(), "nobody signed this");
        let _ = PublicKey::parse(text);
        let _ = SigningKey::from_pem(text);
    }
    let Some((header_bytes, rest)) = data.split_first_chunk::<2>() else { return };
    let (header, claims) = rest.split_at(usize::from(u16::from_le_bytes(*header_bytes)).min(rest.len()));
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut signature = KEY_PAIR.sign(signed.as_bytes()).as_ref().to_vec();
    let verified = KEYS.verify(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature)), NOW);
    let said: Option<Claims> = serde_json::from_slice(claims).ok();
    let Ok(grant) = verified else {
        let is_good = header == token_header().as_bytes() && said.is_some_and(|said| is_current(&said));
        assert!(
            !is_good || verified == Err(Refusal::Malformed) && signed.len() > 8000,
            "a good token is refused: {verified:?}"
        );
        return;
    };
    assert_eq!(Some(grant.claims()), said.as_ref(), "a token says what was signed");
    assert!(is_current(grant.claims()), "a token of another time");
    let header: serde_json::Value = serde_json::from_slice(header).expect("a token with this header was taken");
    assert!(header["alg"] == "EdDSA" && header["kid"] == KEY_ID, "a token chooses no algorithm");
    assert_eq!(grant.allows("Not-A-Volume", Right::Read, NOW), Err(Refusal::WrongVolume));
    for (volume, right) in &grant.claims().volumes {
        assert_eq!(grant.allows(volume, Right::Read, NOW), Ok(()));
        assert_eq!(grant.allows(volume, Right::ReadWrite, NOW).is_ok(), *right == Right::ReadWrite);
    }
    let at = claims.len() % signature.len();
    signature[at] ^= 1;
    let forged = KEYS.verify(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature)), NOW);
    assert_eq!(forged, Err(Refusal::BadSignature), "a changed signature");
}

fn is_current(claims: &Claims) -> bool {
    use crate::token::LEEWAY_SECONDS;
    NOW < claims.exp.saturating_add(LEEWAY_SECONDS) && claims.nbf <= NOW + LEEWAY_SECONDS
}

fn token_header() -> String {
    format!(r#"{{"typ":"JWT","alg":"EdDSA","kid":"{KEY_ID}"}}"#)
}

/// A good token, one that chose its algorithm, one that has expired.
#[must_use]
pub fn token_seeds() -> Vec<Vec<u8>> {
    let claims = |exp: u64| {
        let volumes = r#"{"v":"r","w":"rw"}"#;
        format!(r#"{{"iss":"i","sub":"s","iat":{NOW},"nbf":{NOW},"exp":{exp},"jti":"1","volumes":{volumes}}}"#)
    };
    let none = r#"{"alg":"none","kid":"k"}"#.to_owned();
    let of = |header: String, claims: String| {
        let header_bytes = u16::try_from(header.len()).expect("a seed is short");
        [&header_bytes.to_le_bytes(), header.as_bytes(), claims.as_bytes()].concat()
    };
    vec![
        of(token_header(), claims(NOW + 60)),
        of(none, claims(NOW + 60)),
        of(token_header(), claims(NOW - 60)),
        of(token_header(), claims(u64::MAX)),
    ]
}

/// Input: a configuration file. It is checked for a machine of 2 cores, 8 GiB and a disk of 100 GiB; files that it names are
/// not opened.
///
/// # Panics
/// If a mistake takes more than a line, or a configuration that passed is not the same when it is printed and read again.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size), "a size that is printed is the same size");
    }
    if let Ok(time) = text.parse::<Time>() {
        assert_eq!(time.to_string().parse(), Ok(time), "a duration that is printed is the same duration");
    }
    let config = match checked(text) {
        Ok(config) => config,
        Err(error) => return assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    };
    let printed = toml::to_string(&config.effective).expect("a configuration can be printed");
    assert!(!printed.contains(SECRET), "a secret is printed");
    let again =
        checked(&printed).unwrap_or_else(|error| panic!("what is printed is a configuration: {error}\n{printed}"));
    assert_eq!(again.budget, config.budget, "the same memory");
    assert_eq!(toml::to_string(&again.effective).as_deref(), Ok(&*printed), "the same again");
    for shard in 0..config.shards {
        let shard = config.shard(shard);
        assert!(
            shard.memory_tier_bytes <= config.budget.memory_bytes && shard.dirty_bytes_max <= config.dirty_bytes_max
        );
    }
}

fn checked(text: &str) -> Result<Config, ConfigError> {
    fn free(_: &Path) -> io::Result<u64> {
        Ok(100 << 30)
    }
    let mut raw = parse(text)?;
    (raw.node.tls_certificate, raw.node.tls_key) = ("/dev/null".into(), "/dev/null".into());
    for store in &mut raw.store {
        store.ca = store.ca.take().map(|_| "/dev/null".into());
        let credentials = &mut store.credentials;
        credentials.secret_key = credentials.secret_key.take().map(|_| SECRET.to_owned());
        credentials.session_token = credentials.session_token.take().map(|_| SECRET.to_owned());
    }
    let machine = Machine { cores: vec![0, 1], memory_bytes: 8 << 30, host_name: "host".to_owned(), disk_free: free };
    Config::check(raw, &machine)
}

/// A good file with little in it, one with most keys, and quantities.
#[must_use]
pub fn config_seeds() -> Vec<Vec<u8>> {
    let small = r#"node = { tls_certificate = "c", tls_key = "k", memory = "1GiB" }
disk = [{ path = "/data", capacity = "8GiB" }]
store = [{ name = "s", endpoint = "https://x", bucket = "bbb" }]
volume = [{ name = "v", store = "s" }]
auth = { anonymous = true }
"#;
    let large = r#"[node]
name = "one"
listen = "127.0.0.1:7400"
shards = 4
cores = [0, 1]
memory = "1GiB"
dirty_max = "25%"
tls_certificate = "c"
tls_key = "k"
drain_deadline = "30s"
[[disk]]
path = "/data"
capacity = "50%"
region = "64MiB"
sync = false
mean_block = "64KiB"
write_budget = "1TiB"
[[store]]
name = "main"
endpoint = "https://s3.example.com"
bucket = "blocks"
names = "portable"
credentials = { access_key = "AK", secret_key = "very-secret" }
[[volume]]
name = "demo-back"
store = "main"
prefix = "demo/"
write = "back"
block_size = "4MiB"
dirty_full = "write-through"
[limits]
connections_per_core = 100
queue_depth = 4096
idle_timeout = "75s"
[log]
level = "info,forebay::origin=debug"
json = true
[auth]
public_keys = [{ id = "k", key = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }]
"#;
    [small, large, "64MiB", "90%", "500ms"].iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Property = (fn(&[u8]), fn() -> Vec<Vec<u8>>);
    const PROPERTIES: [Property; 5] = [
        (http_path, http_path_seeds),
        (http_range, http_range_seeds),
        (token, token_seeds),
        (config, config_seeds),
        (request_framing, request_framing_seeds),
    ];

    #[test]
    fn the_seeds_hold_and_reach_what_they_are_for() {
        for (property, seeds) in PROPERTIES {
            seeds().iter().for_each(|seed| property(seed));
        }
        for seed in &config_seeds()[..2] {
            let text = std::str::from_utf8(seed).expect("a seed is text");
            assert!(checked(text).is_ok(), "{:?}", checked(text).err());
        }
        let good = &token_seeds()[0][2..];
        assert!(good.starts_with(token_header().as_bytes()), "a good header is told from others by its bytes");
    }

    proptest! {
        #[test]
        fn changed_seeds_hold(
            which in 0..PROPERTIES.len(),
            seed in any::<usize>(),
            at in any::<usize>(),
            bytes in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let (property, seeds) = PROPERTIES[which];
            let mut seeds = seeds();
            let chosen = seed % seeds.len();
            let mut data = seeds.swap_remove(chosen);
            let at = at % data.len();
            let len = bytes.len().min(data.len() - at);
            data[at..at + len].copy_from_slice(&bytes[..len]);
            property(&data);
        }
    }
}
