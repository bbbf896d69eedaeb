//! The configuration: one TOML file, a few flags and environment variables over it.
//!
//! `load` is what the command line calls: file → `raw` (shapes) → overrides → `checked` (meaning). Every failure is one
//! line that names the key and the fix; the caller exits with 2.

pub mod admin;
pub mod budget;
pub mod checked;
pub mod disk;
pub mod health;
pub mod limits;
pub mod machine;
pub mod raw;
pub mod stores;
#[cfg(test)]
mod tests;
pub mod units;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use checked::{Config, ConfigError};
use serde::de::DeserializeOwned;

use crate::config::machine::Machine;
use crate::config::raw::RawConfig;
use crate::config::units::Size;

/// What a flag or an environment variable may replace in the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `node.listen`.
    pub listen: Option<SocketAddr>,
    /// `node.shard_port_base`.
    pub shard_port_base: Option<u16>,
    /// `node.shards`.
    pub shards: Option<u16>,
    /// `node.memory`.
    pub memory: Option<Size>,
    /// `node.ports_file`.
    pub ports_file: Option<PathBuf>,
    /// `log.level`.
    pub log_level: Option<String>,
}

/// Reads `path`, lays `overrides` over it and checks the result for this machine.
///
/// # Errors
/// One line naming the file, the key and the fix.
pub fn load(path: &Path, overrides: Overrides) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new(path.display().to_string(), format!("{error}: name a readable file with --config"))
    })?;
    let mut raw = parse(&text).map_err(|error| ConfigError::new(path.display().to_string(), error.to_string()))?;
    overrides.lay_over(&mut raw);
    let machine = Machine::this().map_err(|error| ConfigError::new("/proc", format!("{error}: mount it")))?;
    Config::check(raw, &machine)
}

/// A configuration of the right shape.
///
/// # Errors
/// The line and the key, what is wrong, what was expected.
pub fn parse(text: &str) -> Result<RawConfig, ConfigError> {
    parse_as(text)
}

/// A configuration of any shape.
pub(crate) fn parse_as<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::new(format!("line {line}"), error.message().trim().replace('\n', " "))
    })
}

impl Overrides {
    fn lay_over(self, raw: &mut RawConfig) {
        let node = &mut raw.node;
        node.listen = self.listen.unwrap_or(node.listen);
        node.shard_port_base = self.shard_port_base.unwrap_or(node.shard_port_base);
        node.shards = self.shards.or(node.shards);
        node.memory = self.memory.unwrap_or(node.memory);
        node.ports_file = self.ports_file.or(node.ports_file.take());
        raw.log.level = self.log_level.unwrap_or_else(|| std::mem::take(&mut raw.log.level));
    }
}
