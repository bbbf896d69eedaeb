//! `~/.config/forebay/client.toml`: what flags and the environment leave open, for the commands that talk to an admin or to a volume.
//!
//! Read by `control` and `data`. Unknown keys are errors. It holds no secret: a token and credentials are named by their files.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::config::{ConfigError, parse_as};
use crate::routing::RoutedKey;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The admin's URL.
    pub admin: Option<String>,
    /// A file that holds a token.
    pub token_file: Option<PathBuf>,
    /// PEM file of the authority to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// The group to use, instead of the nearest.
    pub group: Option<String>,
    /// Where the routing is kept between runs.
    pub cache: Option<PathBuf>,
    /// The section of the credentials file for reads past the proxies.
    pub profile: Option<String>,
    /// The credentials file, if it is not `~/.aws/credentials`.
    pub credentials_file: Option<PathBuf>,
    /// PEM file of a further authority for the store's certificate.
    pub store_ca: Option<PathBuf>,
    /// Ask a second member too for a read that takes long.
    #[serde(default)]
    pub hedge: bool,
    /// The admin's signing keys, as `forebay key list --json` shows them: no others are trusted at first.
    #[serde(default)]
    pub pinned_keys: Vec<RoutedKey>,
}

impl ClientFile {
    /// The user's, or an empty one.
    ///
    /// # Errors
    /// It can't be read, or says something that is unknown.
    pub fn read() -> anyhow::Result<ClientFile> {
        let Some(home) = std::env::var_os("HOME") else { return Ok(ClientFile::default()) };
        let path = Path::new(&home).join(".config/forebay/client.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                Ok(parse_as(&text).map_err(|error| ConfigError::new(path.display().to_string(), error.to_string()))?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(ClientFile::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }
}
