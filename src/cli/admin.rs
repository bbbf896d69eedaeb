//! `forebay admin`: run the server; make an operator token, a backup or a restore on the machine where it runs.
//!
//! Called by `cli`. Whoever may read the admin's directory is trusted with everything: `admin token` is how the first operator token, or
//! one after all were lost, comes to be. It works beside a running server, as `backup` does.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};

use super::control::secret_file;
use super::proxy::start_logs;
use crate::admin::config::AdminConfig;
use crate::admin::keys::{self, Wish};
use crate::admin::registry::{Actor, Registry as _};
use crate::admin::server::unix_now;
use crate::admin::{server, sqlite};
use crate::config::units::Time;
use crate::proxy::parent::follow_parent;
use crate::token::Role;

/// `forebay admin`
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The configuration file (TOML).
    #[arg(long, env = "FOREBAY_ADMIN_CONFIG", value_name = "FILE", global = true, required = false)]
    config: Option<PathBuf>,
    /// Check the configuration, do nothing else.
    #[arg(long)]
    check_config: bool,
    /// Print the configuration in effect, do nothing else.
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<AdminCommand>,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Print an operator token; needs no token, but the right to read the admin's directory.
    Token(LocalToken),
    /// Copy everything into a new file, while the server goes on. The copy holds the signing keys: guard it.
    Backup {
        /// The new file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Replace everything by a backup; the server must not run. What was there stays as admin.db.replaced.
    Restore {
        /// The backup.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
    },
}

/// `forebay admin token`
#[derive(Debug, Args)]
struct LocalToken {
    /// What it allows.
    #[arg(long, value_enum, default_value = "operator")]
    role: RoleName,
    /// How long it is valid, such as 1h, 7d; at most 366d.
    #[arg(long, default_value = "30d", value_name = "DURATION")]
    ttl: Time,
    /// To whom: appears in the audit log.
    #[arg(long, default_value = "operator", value_name = "NAME")]
    subject: String,
    /// Write it to a new file, readable by its owner only, instead of printing it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A role, as flags name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// May look at everything.
    Viewer,
    /// May change everything.
    Operator,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Role {
        match name {
            RoleName::Viewer => Role::Viewer,
            RoleName::Operator => Role::Operator,
        }
    }
}

/// Runs what the flags ask for.
///
/// # Errors
/// A [`ConfigError`](crate::config::ConfigError) for the configuration, anything else for what failed later.
pub fn run(args: AdminArgs) -> anyhow::Result<()> {
    let path = args.config.ok_or_else(|| {
        crate::config::ConfigError::new("--config", "is missing: name the admin's configuration file")
    })?;
    let config = AdminConfig::load(&path)?;
    let directory = &config.admin.directory;
    match args.command {
        _ if args.print_config => print!("{}", toml::to_string(&config).context("the configuration can't be printed")?),
        _ if args.check_config => println!("{}: ok", path.display()),
        None => {
            follow_parent()?;
            start_logs(&config.log());
            server::run(&config.admin)?;
        }
        Some(AdminCommand::Token(args)) => token(directory, &args)?,
        Some(AdminCommand::Backup { out }) => {
            existing(directory)?.backup(&out)?;
            println!("{}: everything, signing keys too", out.display());
        }
        Some(AdminCommand::Restore { from }) => {
            start_logs(&config.log());
            let _claim = sqlite::claim(directory)?;
            let revision = sqlite::restore(directory, &from, &itself("forebay admin restore"))?;
            println!("{}: restored from {}, now revision {revision}", directory.display(), from.display());
        }
    }
    Ok(())
}

/// The database of a server that has run before.
fn existing(directory: &Path) -> anyhow::Result<sqlite::Sqlite> {
    let database = directory.join(sqlite::DATABASE);
    anyhow::ensure!(
        database.exists(),
        "{} does not exist: start the server once, or set admin.directory",
        database.display()
    );
    Ok(sqlite::Sqlite::open(directory)?)
}

fn itself(subject: &str) -> Actor {
    Actor { subject: subject.to_owned(), token: String::new(), at: unix_now() }
}

fn token(directory: &Path, args: &LocalToken) -> anyhow::Result<()> {
    let registry = existing(directory)?;
    let by = itself("forebay admin token");
    keys::ensure_key(&registry, &by)?;
    let wish = Wish {
        subject: args.subject.clone(),
        role: Some(args.role.into()),
        group: None,
        volumes: Default::default(),
        ttl_seconds: args.ttl.0.as_secs(),
    };
    let (_, token) = keys::issue(&registry, &wish, &by)?;
    match &args.out {
        Some(path) => secret_file(path, &token),
        None => {
            println!("{token}");
            Ok(())
        }
    }
}
