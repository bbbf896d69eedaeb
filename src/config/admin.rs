//! `[admin]` checked: where a node's stores, volumes and keys come from when they are not in its own file.
//!
//! Part of `Config::check`; `proxy/following` reads the result. A node has one truth: what an admin keeps is not in the file too, so
//! that no name can mean two things. The token is read when it is used, and printed by nobody.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::config::checked::{ConfigError, check_keys};
use crate::config::raw::{RawAdmin, RawConfig, RawPublicKey};
use crate::config::units::Size;
use crate::resource::check::name;
use crate::routing::RoutedKey;

/// The environment variable that holds the token where no file does.
pub const TOKEN_VARIABLE: &str = "FOREBAY_TOKEN";
/// The shortest and the longest wait of one question.
const REFRESH: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// How a node follows its admin.
#[derive(Debug, Clone)]
pub struct AdminLink {
    /// Its URL, without a slash at the end.
    pub url: String,
    /// A further certificate authority, PEM: for the admin and for other members.
    pub ca: Option<PathBuf>,
    /// The node's group.
    pub group: String,
    /// Which member of it the node is: a name or an id.
    pub member: String,
    /// Where the token is.
    pub token: TokenPlace,
    /// Where what the admin said is kept.
    pub directory: PathBuf,
    /// The keys that may sign; none: those that the admin names.
    pub pinned: Vec<RoutedKey>,
    /// A further certificate authority for stores, PEM.
    pub store_ca: Option<PathBuf>,
    /// The largest block of a volume that is served, in bytes.
    pub block_bytes_max: u32,
    /// What becomes of blocks that belong to another member.
    pub ownership: Ownership,
    /// How long one question waits for news.
    pub refresh: Duration,
}

/// Where a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenPlace {
    /// In this file.
    File(PathBuf),
    /// In [`TOKEN_VARIABLE`].
    Environment,
}

/// What becomes of requests for blocks that belong to another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// They are served.
    Any,
    /// They are refused.
    Strict,
}

/// Checks `[admin]` of `raw`.
///
/// # Errors
/// The first mistake found.
pub(super) fn check_admin(admin: &RawAdmin, raw: &RawConfig) -> Result<AdminLink, ConfigError> {
    for (key, is_there) in [
        ("store", !raw.store.is_empty()),
        ("volume", !raw.volume.is_empty()),
        ("auth.public_keys", !raw.auth.public_keys.is_empty()),
    ] {
        if is_there {
            let what = "comes from the admin: remove it here, or remove [admin]";
            return Err(ConfigError::new(key, what));
        }
    }
    let url = admin.url.trim_end_matches('/');
    let is_admin = |url: &Url| url.scheme() == "https" && url.has_host() && url.query().is_none();
    if !Url::parse(url).as_ref().is_ok_and(is_admin) {
        return Err(ConfigError::new("admin.url", format!("{:?} is no admin: write https://HOST:PORT", admin.url)));
    }
    for (key, value) in [("group", &admin.group), ("member", &admin.member)] {
        name(key, value).map_err(|invalid| ConfigError::new(format!("admin.{key}"), invalid.fix))?;
    }
    let files = [("admin.ca", &admin.ca), ("admin.store_ca", &admin.store_ca), ("admin.token_file", &admin.token_file)];
    for (key, file) in files.into_iter().filter_map(|(key, file)| Some((key, file.as_ref()?))) {
        std::fs::File::open(file)
            .map_err(|error| ConfigError::new(key, format!("{}: {error}: name a readable file", file.display())))?;
    }
    let token = match &admin.token_file {
        Some(file) => TokenPlace::File(file.clone()),
        None if std::env::var_os(TOKEN_VARIABLE).is_some() => TokenPlace::Environment,
        None => {
            let what =
                format!("is missing, and so is {TOKEN_VARIABLE}: have one made by `forebay token create --group`");
            return Err(ConfigError::new("admin.token_file", what));
        }
    };
    let block_bytes_max = match admin.block_size_max {
        Size::Bytes(bytes @ 4096..=16_777_216) => u32::try_from(bytes).expect("at most 16 MiB"),
        other => {
            return Err(ConfigError::new(
                "admin.block_size_max",
                format!("{other} is out of range: set 4KiB to 16MiB"),
            ));
        }
    };
    if !(REFRESH.0..=REFRESH.1).contains(&admin.refresh.0) {
        return Err(ConfigError::new("admin.refresh", "is out of range: set 100ms to 60s"));
    }
    check_keys("admin.public_keys", &admin.public_keys)?;
    let pinned = |key: &RawPublicKey| RoutedKey { id: key.id.clone(), public: key.key.clone() };
    Ok(AdminLink {
        url: url.to_owned(),
        ca: admin.ca.clone(),
        group: admin.group.clone(),
        member: admin.member.clone(),
        token,
        directory: admin.directory.clone(),
        pinned: admin.public_keys.iter().map(pinned).collect(),
        store_ca: admin.store_ca.clone(),
        block_bytes_max,
        ownership: if admin.strict { Ownership::Strict } else { Ownership::Any },
        refresh: admin.refresh.0,
    })
}
