//! `forebay token keygen` and `forebay token issue`: keys and tokens for a proxy without an admin. The other verbs ask an admin.
//!
//! A private key is written once, readable by its owner only; a token is the only thing on stdout.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rand::{Rng as _, SeedableRng as _};

#[cfg(feature = "admin")]
use super::control::tokens;
use crate::config::units::Time;
use crate::token::{Claims, Right, SigningKey, generate_key};

/// `forebay token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make an Ed25519 key: FILE (private, mode 0600) and FILE.pub; prints what the configuration needs.
    Keygen(KeygenArgs),
    /// Print a token for one or more volumes, signed with a key file.
    Issue(IssueArgs),
    /// Have the admin issue a token, and print it.
    #[cfg(feature = "admin")]
    Create(tokens::CreateToken),
    /// List the tokens that the admin issued.
    #[cfg(feature = "admin")]
    List(super::control::Common),
    /// Show what the admin knows of one.
    #[cfg(feature = "admin")]
    Show(tokens::Named),
    /// Revoke one.
    #[cfg(feature = "admin")]
    Delete(tokens::Named),
}

/// `forebay token keygen`
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Where the private key goes; an existing file is left alone.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// `forebay token issue`
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// The private key that `keygen` made.
    #[arg(long, env = "FOREBAY_TOKEN_KEY", value_name = "FILE")]
    key: PathBuf,
    /// A volume the token opens; may be given several times.
    #[arg(long = "volume", value_name = "NAME", required = true)]
    volumes: Vec<String>,
    /// For GET and HEAD only (the default).
    #[arg(long, conflicts_with = "write")]
    read: bool,
    /// For PUT and DELETE too.
    #[arg(long)]
    write: bool,
    /// How long it is valid, such as 15m, 1h or 7d.
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    ttl: Time,
    /// To whom: appears in logs.
    #[arg(long, default_value = "cli", value_name = "NAME")]
    subject: String,
}

/// Runs one of the subcommands.
///
/// # Errors
/// What failed, with the file's name.
pub fn run(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Keygen(args) => keygen(&args.out),
        TokenCommand::Issue(args) => issue(&args),
        #[cfg(feature = "admin")]
        TokenCommand::Create(args) => tokens::create(&args),
        #[cfg(feature = "admin")]
        TokenCommand::List(common) => tokens::list(&common),
        #[cfg(feature = "admin")]
        TokenCommand::Show(named) => tokens::show_one(&named),
        #[cfg(feature = "admin")]
        TokenCommand::Delete(named) => tokens::delete(&named),
    }
}

fn keygen(out: &Path) -> anyhow::Result<()> {
    let pem = generate_key()?;
    let key = SigningKey::from_pem(&pem)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .with_context(|| format!("{}: choose a file that does not exist", out.display()))?;
    file.write_all(pem.as_bytes()).with_context(|| out.display().to_string())?;
    file.sync_all().with_context(|| out.display().to_string())?;
    let snippet = format!("[[auth.public_keys]]\nid = \"{}\"\nkey = \"{}\"\n", key.id(), key.public());
    let mut public = out.as_os_str().to_owned();
    public.push(".pub");
    fs::write(&public, &snippet).with_context(|| Path::new(&public).display().to_string())?;
    print!("{snippet}");
    Ok(())
}

fn issue(args: &IssueArgs) -> anyhow::Result<()> {
    let pem = fs::read_to_string(&args.key).with_context(|| args.key.display().to_string())?;
    let key = SigningKey::from_pem(&pem).with_context(|| args.key.display().to_string())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let right = if args.write { Right::ReadWrite } else { Right::Read };
    println!("{}", key.issue(&claims(&args.volumes, right, &args.subject, now, args.ttl.0.as_secs()))?);
    Ok(())
}

/// The claims of a token issued at `now` (unix seconds) for `ttl_seconds`.
#[must_use]
pub fn claims(volumes: &[String], right: Right, subject: &str, now: u64, ttl_seconds: u64) -> Claims {
    Claims {
        iss: "forebay token".to_owned(),
        sub: subject.to_owned(),
        iat: now,
        nbf: now,
        exp: now.saturating_add(ttl_seconds.max(1)),
        jti: format!("{:032x}", rand::rngs::StdRng::from_os_rng().random::<u128>()),
        volumes: volumes.iter().map(|volume| (volume.clone(), right)).collect::<BTreeMap<_, _>>(),
    }
}
