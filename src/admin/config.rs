//! The admin's configuration: one TOML file of two sections.
//!
//! Read by the command line; every mistake is one line that names the key and the fix, and exit 2. A secret never stands in it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::checked::{Log, LogFormat};
use crate::config::raw::RawLog;
use crate::config::{ConfigError, parse_as};

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    /// The server.
    pub admin: AdminSection,
    /// Logs on stderr.
    #[serde(default)]
    pub log: RawLog,
}

/// `[admin]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSection {
    /// Where it listens. Port 0 picks a free one. Default `127.0.0.1:7300`.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Where the database lies, which holds the signing keys; made, for its owner alone, if missing. Required.
    pub directory: PathBuf,
    /// PEM file of the certificate and its chain. Required.
    pub tls_certificate: PathBuf,
    /// PEM file of its private key. Required.
    pub tls_key: PathBuf,
    /// A JSON file written when the server is ready: the bound address and the process id. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_file: Option<PathBuf>,
    /// Connections at once; more wait to be accepted. Everybody who waits for a change holds one. Default 4096.
    #[serde(default = "connections")]
    pub connections: usize,
}

fn listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 7300).into()
}

fn connections() -> usize {
    4_096
}

impl AdminConfig {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// One line naming the file, the key and the fix.
    pub fn load(path: &Path) -> Result<AdminConfig, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::new(path.display().to_string(), format!("{error}: name a readable file with --config"))
        })?;
        let config: AdminConfig =
            parse_as(&text).map_err(|error| ConfigError::new(path.display().to_string(), error.to_string()))?;
        let admin = &config.admin;
        if !(1..=100_000).contains(&admin.connections) {
            return Err(ConfigError::new("admin.connections", "is out of range: set 1 to 100000"));
        }
        for (key, file) in [("admin.tls_certificate", &admin.tls_certificate), ("admin.tls_key", &admin.tls_key)] {
            std::fs::File::open(file).map_err(|error| {
                ConfigError::new(key, format!("{}: {error}: name a readable PEM file", file.display()))
            })?;
        }
        Ok(config)
    }

    /// How to log.
    #[must_use]
    pub fn log(&self) -> Log {
        let RawLog { level, json, access_one_in } = self.log.clone();
        Log { level, format: if json { LogFormat::Json } else { LogFormat::Text }, access_one_in }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_one_line_that_names_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("admin.toml");
        let pem = directory.path().join("tls.pem");
        std::fs::write(&pem, "").unwrap();
        let load = |more: &str| {
            let pem = pem.display();
            let text = format!("[admin]\ndirectory = \"d\"\ntls_certificate = \"{pem}\"\ntls_key = \"{pem}\"\n{more}");
            std::fs::write(&file, text).unwrap();
            AdminConfig::load(&file).map_err(|error| error.to_string())
        };
        let config = load("").unwrap();
        assert_eq!((config.admin.listen.port(), config.admin.connections), (7300, 4_096));
        for (more, named) in
            [("colour = \"red\"", "colour"), ("connections = 0", "admin.connections"), ("tls_name = 1", "tls_name")]
        {
            let error = load(more).unwrap_err();
            assert!(error.contains(named) && !error.contains('\n'), "{error}");
        }
        std::fs::remove_file(&pem).unwrap();
        assert!(load("").unwrap_err().contains("admin.tls_certificate"));
        assert!(AdminConfig::load(Path::new("/nowhere")).unwrap_err().to_string().contains("--config"));
    }
}
