//! The command line: `forebay proxy`, `format`, `inspect`, `verify`, `dev`, `admin`, and what controls an admin: `store`, `volume`,
//! `group`, `member`, `attach`, `detach`,
//! `token`, `key`; and what a client does with a volume: `get`, `put`, `head`, `rm`, `ls`, `probe`, `check`;
//! `completion` for shells.
//!
//! Results on stdout, logs and errors on stderr. Exit 0 ok, 1 failed, 2 usage or configuration; 3 and 4 see `data`.

#[cfg(feature = "admin")]
pub mod admin;
pub mod client_file;
pub mod completion;
#[cfg(feature = "admin")]
pub mod control;
pub mod data;
#[cfg(feature = "dev")]
pub mod dev;
pub mod format;
pub mod inspect;
pub mod null;
pub mod proxy;
pub mod token;
pub mod verify;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::client::ClientError;
use crate::config::ConfigError;

/// A block-caching tier in front of object storage.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a proxy node: serve volumes over HTTPS from local disk, in front of an object store.
    Proxy(proxy::ProxyArgs),
    /// Make a node's directory and slabs ahead of its first start.
    Format(format::FormatArgs),
    /// Show what lies on the disk of a stopped node; writes nothing.
    Inspect(inspect::InspectArgs),
    /// Read everything on the disk of a stopped node; exit 1 if a promise no longer holds.
    Verify(verify::VerifyArgs),
    /// Run an S3 server (or take an existing bucket) and proxies in front of it, on this machine, to try things out.
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Read a block of a volume.
    Get(data::GetArgs),
    /// Store a block in a volume.
    Put(data::PutArgs),
    /// Show length and ETag of a block.
    Head(data::BlockArgs),
    /// Delete a block.
    Rm(data::BlockArgs),
    /// List a volume's blocks, by your own credentials for its store.
    Ls(data::ListArgs),
    /// Show a volume's groups and members, how far they are, and which group is used.
    Probe(data::show::ProbeArgs),
    /// Go the whole way to a volume and say what does not work.
    Check(data::check::CheckArgs),
    /// Make signing keys and access tokens.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Run the admin server, which keeps stores, volumes, groups and members; or look after its database.
    #[cfg(feature = "admin")]
    Admin(admin::AdminArgs),
    /// Stores: buckets of S3 services.
    #[cfg(feature = "admin")]
    Store(control::Records<control::flags::StoreFlags>),
    /// Volumes: named sets of blocks in a store.
    #[cfg(feature = "admin")]
    Volume(control::Records<control::flags::VolumeFlags>),
    /// Groups: proxies that serve volumes together.
    #[cfg(feature = "admin")]
    Group(control::Records<control::flags::GroupFlags>),
    /// Members: the proxies of a group.
    #[cfg(feature = "admin")]
    Member(control::Members),
    /// Have a group serve a volume.
    #[cfg(feature = "admin")]
    Attach(control::Attach),
    /// Have a group serve a volume no longer.
    #[cfg(feature = "admin")]
    Detach(control::Ends),
    /// The admin's signing keys.
    #[cfg(feature = "admin")]
    #[command(subcommand)]
    Key(control::tokens::KeyCommand),
    /// Print a script with which a shell completes this command line.
    Completion(completion::CompletionArgs),
    /// Answer constant bytes: the ceiling that benchmarks compare with.
    #[command(name = "proxy-null", hide = true)]
    ProxyNull(null::NullArgs),
}

/// Runs the process's command line to its end.
#[must_use]
pub fn run() -> ExitCode {
    #[cfg(feature = "canaries")]
    match forebay_shard::canary::notice() {
        Ok(notice) => eprintln!("forebay: {notice}"),
        Err(error) => {
            eprintln!("forebay: {error}");
            return ExitCode::from(2);
        }
    }
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Proxy(args) => proxy::run(args),
        Command::Format(args) => format::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(args),
        Command::Get(args) => data::get(args),
        Command::Put(args) => data::put(args),
        Command::Head(args) => data::head(args),
        Command::Rm(args) => data::remove(args),
        Command::Ls(args) => data::list(args),
        Command::Probe(args) => data::show::probe(args),
        Command::Check(args) => data::check::check(args),
        Command::Token(command) => token::run(command),
        #[cfg(feature = "admin")]
        Command::Admin(args) => admin::run(args),
        #[cfg(feature = "admin")]
        Command::Store(records) => control::stores(records),
        #[cfg(feature = "admin")]
        Command::Volume(records) => control::volumes(records),
        #[cfg(feature = "admin")]
        Command::Group(records) => control::groups(records),
        #[cfg(feature = "admin")]
        Command::Member(members) => control::members(members),
        #[cfg(feature = "admin")]
        Command::Attach(attach) => control::attach(attach),
        #[cfg(feature = "admin")]
        Command::Detach(ends) => control::detach(ends),
        #[cfg(feature = "admin")]
        Command::Key(command) => control::tokens::keys(&command),
        Command::Completion(args) => completion::run(&args, &Cli::command()),
        Command::ProxyNull(args) => null::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error:#}");
            exit_code(&error)
        }
    }
}

/// 2: usage or configuration. Of data commands, 3: there is no such block; 4: nobody can answer now. Else 1.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Absent) => ExitCode::from(3),
        Some(ClientError::OwnerUnreachable(_) | ClientError::Unavailable(_)) => ExitCode::from(4),
        _ if error.is::<ConfigError>() => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}
