//! `forebay proxy`: load the configuration, start the logs, run the node until it is told to stop.
//!
//! Called by `cli`. `--check-config` and `--print-config` end before anything is opened or bound.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::config::checked::{Log, LogFormat};
use crate::config::units::Size;
use crate::config::{self, Overrides};
use crate::proxy::boot;
use crate::proxy::parent::follow_parent;

/// Flags go before the environment (`FOREBAY_…`), that before the file, that before defaults.
#[derive(Debug, Args)]
pub struct ProxyArgs {
    /// The configuration file (TOML).
    #[arg(long, env = "FOREBAY_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration, do nothing else.
    #[arg(long)]
    check_config: bool,
    /// Print the configuration in effect, secrets removed, do nothing else.
    #[arg(long)]
    print_config: bool,
    /// Instead of `node.listen`.
    #[arg(long, env = "FOREBAY_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Instead of `node.shard_port_base`.
    #[arg(long, env = "FOREBAY_SHARD_PORT_BASE", value_name = "PORT")]
    shard_port_base: Option<u16>,
    /// Instead of `node.memory`.
    #[arg(long, env = "FOREBAY_MEMORY", value_name = "SIZE")]
    memory: Option<Size>,
    /// Instead of `node.ports_file`.
    #[arg(long, env = "FOREBAY_PORTS_FILE", value_name = "FILE")]
    ports_file: Option<PathBuf>,
    /// Instead of `log.level`.
    #[arg(long, env = "FOREBAY_LOG_LEVEL", value_name = "FILTER")]
    log_level: Option<String>,
}

/// Runs a node until a signal stops it.
///
/// # Errors
/// A [`config::ConfigError`] for the configuration, anything else for what failed later.
pub fn run(args: ProxyArgs) -> anyhow::Result<()> {
    follow_parent()?;
    let overrides = Overrides {
        listen: args.listen,
        shard_port_base: args.shard_port_base,
        shards: None,
        memory: args.memory,
        ports_file: args.ports_file,
        log_level: args.log_level,
    };
    let config = config::load(&args.config, overrides)?;
    if args.print_config {
        print!("{}", toml::to_string(&config.effective).context("the configuration can't be printed")?);
        return Ok(());
    }
    if args.check_config {
        println!("{}: ok", args.config.display());
        return Ok(());
    }
    start_logs(&config.log);
    boot::run(config)
}

/// Sends `tracing`, and `log` through it, to stderr.
pub(super) fn start_logs(log: &Log) {
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}
