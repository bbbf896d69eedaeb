//! Opening a volume from a command line: flags, then the environment, then `client.toml`.
//!
//! Called by every data command. A token comes from a file or the environment, never from an argument. The routing is kept in `~/.cache/forebay`, so
//! that a command works while the admin is away.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;

use crate::cli::client_file::ClientFile;
use crate::client::{Client, Hedging, Settings};
use crate::config::ConfigError;
use crate::follow::bearer::Bearer;
use crate::origin::CredentialSource;

/// Where the admin is, and how to go by what it says.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The admin's URL, https://….
    #[arg(long, env = "FOREBAY_ADMIN", value_name = "URL")]
    admin: Option<String>,
    /// A file that holds a token for the volume; or the token in `FOREBAY_TOKEN`.
    #[arg(long, env = "FOREBAY_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the certificate authority to trust, instead of the system's.
    #[arg(long, env = "FOREBAY_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Use this group, not the nearest.
    #[arg(long, env = "FOREBAY_GROUP", value_name = "NAME")]
    group: Option<String>,
}

/// An open volume and the thread it lives on.
pub struct Opened {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Connection {
    /// What the library is told.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the setting.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let file = ClientFile::read()?;
        let admin = self.admin.clone().or(file.admin);
        let admin = admin
            .ok_or_else(|| ConfigError::new("--admin", "is missing: give the admin's URL, or set FOREBAY_ADMIN"))?;
        let bearer = bearer(self.token_file.clone().or(file.token_file))?;
        let credentials = match (file.credentials_file, file.profile) {
            (None, None) => CredentialSource::Usual,
            (path, profile) => CredentialSource::File { path, profile },
        };
        let directory = file.cache.or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
            let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
            Some(cache.join("forebay"))
        });
        Ok(Settings {
            ca: self.ca.clone().or(file.ca),
            group: self.group.clone().or(file.group),
            pinned: file.pinned_keys,
            directory,
            credentials,
            store_ca: file.store_ca,
            hedge: if file.hedge { Hedging::On } else { Hedging::Off },
            ..Settings::new(&admin, bearer)
        })
    }
}

impl Opened {
    /// Opens `volume`.
    ///
    /// # Errors
    /// A setting is missing, or there is no routing.
    pub fn new(connection: &Connection, volume: &str) -> anyhow::Result<Opened> {
        let settings = connection.settings()?;
        let lawful = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if volume.is_empty() || !volume.bytes().all(lawful) {
            return Err(
                ConfigError::new("VOLUME", format!("{volume:?} is no name: write 1 to 63 of a-z, 0-9 and -")).into()
            );
        }
        let runtime = runtime()?;
        let client = runtime.block_on(Client::open(settings, volume)).with_context(|| format!("volume {volume}"))?;
        Ok(Opened { runtime, client })
    }

    /// Runs `work` to its end.
    ///
    /// # Errors
    /// Its own.
    pub fn run<T>(self, work: impl AsyncFnOnce(Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.runtime.block_on(work(self.client))
    }
}

/// One thread is enough for one block.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime for the network")
}

/// The token from the environment, else from a file.
fn bearer(file: Option<PathBuf>) -> anyhow::Result<Arc<Bearer>> {
    let fail = |what: String| ConfigError::new("--token-file", what);
    let bearer = match (std::env::var("FOREBAY_TOKEN"), file) {
        (Ok(token), _) if !token.trim().is_empty() => Bearer::fixed(&token),
        (_, Some(file)) => Bearer::file(&file),
        _ => return Err(fail("is missing: name a file that holds a token, or set FOREBAY_TOKEN".to_owned()).into()),
    };
    Ok(Arc::new(bearer.map_err(|error| fail(error.to_string()))?))
}
