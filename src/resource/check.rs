//! What a resource must satisfy by itself, whatever else there is; and the defaults that follow from its other fields.
//!
//! Called by the admin before a change reaches its rules and its storage. An error names the field and says what to write
//! there; it never repeats what could be a secret.

use url::Url;

use super::{Bypass, Durability, Group, Member, Store, Volume, VolumeKind, WriteMode};
use crate::placement::MemberId;

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
const NOTE_BYTES_MAX: usize = 128;
const TEXT_BYTES_MAX: usize = 1_024;
const PREFIX_BYTES_MAX: usize = 512;
const WEIGHT_MAX: u32 = 1_000_000;
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 4_096..=16_777_216;

/// A field that can't stand as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {fix}")]
pub struct Invalid {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong and what to write instead.
    pub fix: String,
}

fn fail<T>(field: &'static str, fix: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field, fix: fix.into() })
}

/// Whether `name` can name anything: 1 to 63 of `a-z`, `0-9`, `-`.
///
/// # Errors
/// What to write in `field` instead.
pub fn name(field: &'static str, name: &str) -> Result<(), Invalid> {
    let lawful = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(lawful) {
        return Ok(());
    }
    fail(field, "write 1 to 63 of a-z, 0-9 and -")
}

fn short(field: &'static str, text: &str, bytes_max: usize) -> Result<(), Invalid> {
    if text.len() <= bytes_max && !text.contains(char::is_control) {
        return Ok(());
    }
    fail(field, format!("write at most {bytes_max} bytes, without control characters"))
}

impl Store {
    /// Checks the store by itself.
    ///
    /// # Errors
    /// The first field that can't stand.
    pub fn check(&mut self) -> Result<(), Invalid> {
        self.credentials_set = None;
        name("name", &self.name)?;
        short("endpoint", &self.endpoint, TEXT_BYTES_MAX)?;
        let is_service = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
        };
        let Some(url) = Url::parse(&self.endpoint).ok().filter(is_service) else {
            return fail("endpoint", "write the service's URL, http://… or https://…");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return fail("endpoint", "leave user and password out of the URL: credentials are named in `credentials`");
        }
        if self.region.is_empty() {
            return fail("region", "write the region requests are signed for, such as us-east-1");
        }
        short("region", &self.region, NOTE_BYTES_MAX)?;
        let lawful = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !(3..=63).contains(&self.bucket.len()) || !self.bucket.bytes().all(lawful) {
            return fail("bucket", "write 3 to 63 of a-z, 0-9, . and -");
        }
        self.check_sts()?;
        match self.credentials.as_deref().map(is_reference) {
            None | Some(true) => Ok(()),
            // The value is not repeated: it may be a secret that was meant for a proxy.
            Some(false) => fail(
                "credentials",
                "name where a proxy finds them: usual, env, profile:NAME or file:PATH#PROFILE; secrets are not kept here",
            ),
        }
    }
}

impl Store {
    fn check_sts(&self) -> Result<(), Invalid> {
        let is_service = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.fragment().is_none()
        };
        if let Some(endpoint) = &self.sts_endpoint {
            short("sts_endpoint", endpoint, TEXT_BYTES_MAX)?;
            if !Url::parse(endpoint).as_ref().is_ok_and(is_service) {
                return fail("sts_endpoint", "write the STS's URL, http://… or https://…");
            }
        }
        if let Some(role) = &self.sts_role {
            short("sts_role", role, TEXT_BYTES_MAX)?;
            if !role.starts_with("arn:") {
                return fail("sts_role", "write the ARN of the role, such as arn:aws:iam::123456789012:role/forebay");
            }
        }
        if self.sts_endpoint.is_some() != self.sts_role.is_some() {
            return fail("sts_role", "name both the STS's URL and the role, or neither");
        }
        match self.sts_seconds {
            Some(seconds) if !(1..=43_200).contains(&seconds) => fail("sts_seconds", "write 1 to 43200"),
            _ => Ok(()),
        }
    }
}

/// Whether `text` names credentials, in one of the four forms.
fn is_reference(text: &str) -> bool {
    if text.len() > TEXT_BYTES_MAX || text.contains(char::is_control) {
        return false;
    }
    if let Some(profile) = text.strip_prefix("profile:") {
        return !profile.is_empty();
    }
    if let Some(file) = text.strip_prefix("file:") {
        return file.rsplit_once('#').is_some_and(|(path, profile)| path.starts_with('/') && !profile.is_empty());
    }
    matches!(text, "usual" | "env")
}

impl Volume {
    /// Checks the volume by itself and fills in the durability that its write mode implies.
    ///
    /// # Errors
    /// The first field that can't stand.
    pub fn check(&mut self) -> Result<(), Invalid> {
        name("name", &self.name)?;
        name("store", &self.store)?;
        if let Some(group) = &self.home_group {
            name("home_group", group)?;
        }
        short("prefix", &self.prefix, PREFIX_BYTES_MAX)?;
        if !BLOCK_BYTES.contains(&self.block_size) {
            return fail("block_size", "write 4096 to 16777216 bytes");
        }
        let durability = self.durability.get_or_insert(match self.write {
            WriteMode::Back => Durability::Disk,
            WriteMode::Through => Durability::Origin,
        });
        if self.write == WriteMode::Through && *durability != Durability::Origin {
            return fail("durability", "a write-through volume promises origin: leave it out, or set write to back");
        }
        if self.read_only && self.write == WriteMode::Back {
            return fail("write", "a read-only volume takes no writes: set write to through");
        }
        if self.read_only && self.bypass == Bypass::Always {
            return fail("bypass", "a read-only volume takes no writes: set bypass to reads or never");
        }
        if self.revalidate_seconds == Some(0) {
            return fail("revalidate_seconds", "write at least 1, or leave it out for an immutable volume");
        }
        match (self.kind, self.max_proxied) {
            (VolumeKind::Blocks, Some(_)) => {
                fail("max_proxied", "only volumes of kind objects have slices: leave it out")
            }
            (_, Some(0)) => fail("max_proxied", "write at least 1, or leave it out to proxy everything"),
            _ => Ok(()),
        }
    }

    /// Whether a store of this volume must be conditional to be safe.
    #[must_use]
    pub fn needs_conditional_put(&self) -> bool {
        self.write == WriteMode::Back || self.revalidate_seconds.is_some()
    }
}

impl Group {
    /// Checks the group by itself.
    ///
    /// # Errors
    /// The first field that can't stand.
    pub fn check(&mut self) -> Result<(), Invalid> {
        name("name", &self.name)?;
        short("provider", &self.provider, NOTE_BYTES_MAX)?;
        short("region", &self.region, NOTE_BYTES_MAX)
    }
}

impl Member {
    /// Checks the member by itself and fills in the TLS name that its address implies.
    ///
    /// # Errors
    /// The first field that can't stand.
    pub fn check(&mut self) -> Result<(), Invalid> {
        name("group", &self.group)?;
        name("name", &self.name)?;
        if let Some(id) = &mut self.id {
            let Ok(parsed) = id.parse::<MemberId>() else {
                return fail("id", "write 32 hexadecimal digits, or leave it out to have one drawn");
            };
            *id = parsed.to_string();
        }
        let Some(host) = host(&self.address) else {
            return fail("address", "write host:port, such as cache-1.example.net:7400 or [fd00::1]:7400");
        };
        let tls_name = self.tls_name.get_or_insert(host);
        if tls_name.is_empty() || tls_name.len() > 253 || !tls_name.bytes().all(is_host_byte) {
            return fail("tls_name", "write the name or address that stands in the member's certificate");
        }
        if self.weight.get() > WEIGHT_MAX {
            return fail("weight", "write 1 to 1000000");
        }
        Ok(())
    }
}

/// The host of `host:port`, without brackets; `None` if it is no such thing.
fn host(address: &str) -> Option<String> {
    let (host, port) = address.rsplit_once(':')?;
    if port.parse::<u16>().ok()? == 0 || host.len() > 253 {
        return None;
    }
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok().then(|| inner.to_owned());
    }
    (!host.is_empty() && !host.contains(':') && host.bytes().all(is_host_byte)).then(|| host.to_owned())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn parse<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn store(more: &Value) -> Store {
        let mut store = json!({"name": "main", "endpoint": "https://s3.example.net", "bucket": "pictures"});
        store.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(store)
    }

    fn volume(more: &Value) -> Volume {
        let mut volume = json!({"name": "pictures", "store": "main"});
        volume.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(volume)
    }

    fn member(more: &Value) -> Member {
        let mut member = json!({"group": "near", "name": "a", "address": "10.0.0.1:7400"});
        member.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(member)
    }

    #[test]
    fn stores_name_their_credentials_and_never_hold_them() {
        for good in ["usual", "env", "profile:render", "file:/etc/forebay/keys#main"] {
            assert_eq!(store(&json!({"credentials": good})).check(), Ok(()), "{good}");
        }
        for bad in ["AKIAEXAMPLE:sEcReT", "file:keys#main", "file:/etc/keys", "profile:", "", "env\n"] {
            let error = store(&json!({"credentials": bad})).check().unwrap_err();
            assert_eq!(error.field, "credentials", "{bad}");
            assert!(!error.fix.contains("sEcReT"), "a secret in the wrong place is not repeated");
        }
        assert_eq!(
            store(&json!({"endpoint": "https://key:secret@s3.example.net"})).check().unwrap_err().field,
            "endpoint"
        );
        assert_eq!(store(&json!({"endpoint": "s3.example.net"})).check().unwrap_err().field, "endpoint");
        assert_eq!(store(&json!({"bucket": "a/b"})).check().unwrap_err().field, "bucket");
    }

    #[test]
    fn an_sts_has_a_url_and_a_role() {
        let (endpoint, role) = ("https://sts.example.net", "arn:aws:iam::1:role/r");
        assert_eq!(store(&json!({"sts_endpoint": endpoint, "sts_role": role, "sts_seconds": 900})).check(), Ok(()));
        for (bad, field) in [
            (json!({"sts_endpoint": endpoint}), "sts_role"),
            (json!({"sts_role": role}), "sts_role"),
            (json!({"sts_endpoint": "https://k:s@sts.example.net", "sts_role": role}), "sts_endpoint"),
            (json!({"sts_endpoint": endpoint, "sts_role": "forebay"}), "sts_role"),
            (json!({"sts_endpoint": endpoint, "sts_role": role, "sts_seconds": 0}), "sts_seconds"),
        ] {
            assert_eq!(store(&bad).check().unwrap_err().field, field, "{bad}");
        }
    }

    #[test]
    fn a_volumes_durability_follows_its_write_mode() {
        let checked = |more: &Value| {
            let mut volume = volume(more);
            volume.check().map(|()| volume.durability.unwrap())
        };
        assert_eq!(checked(&json!({})), Ok(Durability::Origin));
        assert_eq!(checked(&json!({"write": "back"})), Ok(Durability::Disk));
        assert_eq!(checked(&json!({"write": "back", "durability": "peer"})), Ok(Durability::Peer));
        for (more, field) in [
            (json!({"durability": "disk"}), "durability"),
            (json!({"block_size": 4095}), "block_size"),
            (json!({"revalidate_seconds": 0}), "revalidate_seconds"),
            (json!({"max_proxied": 4}), "max_proxied"),
            (json!({"read_only": true, "write": "back"}), "write"),
            (json!({"read_only": true, "bypass": "always"}), "bypass"),
            (json!({"name": "Pictures"}), "name"),
            (json!({"name": "a".repeat(64)}), "name"),
            (json!({"home_group": "no group"}), "home_group"),
        ] {
            assert_eq!(checked(&more).unwrap_err().field, field, "{more}");
        }
        assert!(checked(&json!({"kind": "objects", "max_proxied": 4})).is_ok());
    }

    #[test]
    fn a_members_address_implies_its_tls_name() {
        for (address, tls_name) in [
            ("10.0.0.1:7400", "10.0.0.1"),
            ("cache-1.example.net:7400", "cache-1.example.net"),
            ("[fd00::1]:7400", "fd00::1"),
        ] {
            let mut member = member(&json!({"address": address}));
            assert_eq!(member.check(), Ok(()));
            assert_eq!(member.tls_name.as_deref(), Some(tls_name));
        }
        for bad in ["", "host", "host:", "host:0", ":7400", "fd00::1:7400", "[host]:1", "a b:7400", "host:99999"] {
            assert_eq!(member(&json!({"address": bad})).check().unwrap_err().field, "address", "{bad}");
        }
        assert_eq!(member(&json!({"weight": 1_000_001})).check().unwrap_err().field, "weight");
        assert_eq!(member(&json!({"id": "x"})).check().unwrap_err().field, "id");
        let mut upper = member(&json!({"id": "ABCDEF00000000000000000000000000"}));
        upper.check().unwrap();
        assert_eq!(upper.id.as_deref(), Some("abcdef00000000000000000000000000"));
        assert!(serde_json::from_value::<Member>(json!({"name": "a", "address": "h:1", "colour": "red"})).is_err());
    }
}
