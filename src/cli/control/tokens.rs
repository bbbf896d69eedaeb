//! `forebay token create|list|show|delete` and `forebay key create|list|show|delete`, by the admin.
//!
//! A token is signed and so can't be updated: delete it, create another. It is shown once, when it is made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::{Common, print, said, secret_file, segment, show, table, write};
use crate::admin::api::access::TokenRequest;
use crate::cli::admin::RoleName;
use crate::config::units::Time;
use crate::token::{Right, Role};

/// `forebay token create`
#[derive(Debug, Args)]
pub struct CreateToken {
    /// A volume the token opens; may be given several times.
    #[arg(long = "volume", value_name = "NAME", required_unless_present_any = ["role", "group"], conflicts_with = "role")]
    volumes: Vec<String>,
    /// For PUT and DELETE too.
    #[arg(long, requires = "volumes")]
    write: bool,
    /// For the admin's interface instead of volumes.
    #[arg(long, value_enum)]
    role: Option<RoleName>,
    /// For a proxy of this group: it opens what the group's members are told, and nothing else.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["role", "volumes"])]
    group: Option<String>,
    /// How long it is valid, such as 15m, 1h or 7d; at most 366d.
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    ttl: Time,
    /// To whom: appears in logs.
    #[arg(long, default_value = "cli", value_name = "NAME")]
    subject: String,
    /// Write it to a new file, readable by its owner only, instead of printing it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// One token or key.
#[derive(Debug, Args)]
pub struct Named {
    /// Its id.
    id: String,
    #[command(flatten)]
    common: Common,
}

/// `forebay key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Have a new key sign from now on; what older ones signed stays good until they are deleted.
    Create(Common),
    /// List the keys; the last one signs.
    List(Common),
    /// Show one.
    Show(Named),
    /// End a key and every token it signed.
    Delete(Named),
}

/// `forebay token create`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn create(args: &CreateToken) -> anyhow::Result<()> {
    let right = if args.write { Right::ReadWrite } else { Right::Read };
    let request = TokenRequest {
        subject: args.subject.clone(),
        role: args.group.as_ref().map(|_| Role::Proxy).or(args.role.map(Role::from)),
        group: args.group.clone(),
        volumes: args.volumes.iter().map(|volume| (volume.clone(), right)).collect::<BTreeMap<_, _>>(),
        ttl_seconds: args.ttl.0.as_secs(),
    };
    let answer = Client::new(&args.common.connection)?.post("/v1/tokens", &serde_json::to_value(&request)?)?;
    let token = answer["token"].as_str().unwrap_or_default();
    match &args.out {
        Some(path) => {
            secret_file(path, token)?;
            show(&args.common, &answer["record"])
        }
        None if args.common.json => print(&answer),
        None => write(&format!("{token}\n")),
    }
}

/// `forebay token list`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn list(common: &Common) -> anyhow::Result<()> {
    list_of(common, "/v1/tokens", &["id", "subject", "role", "group", "volumes", "expires_at", "revoked_at"])
}

/// `forebay token show`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn show_one(named: &Named) -> anyhow::Result<()> {
    show_of("/v1/tokens", named)
}

/// `forebay token delete`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn delete(named: &Named) -> anyhow::Result<()> {
    delete_of("/v1/tokens", named, "is revoked")
}

/// `forebay key …`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn keys(command: &KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Create(common) => show(common, &Client::new(&common.connection)?.post("/v1/keys", &json!({}))?),
        KeyCommand::List(common) => list_of(common, "/v1/keys", &["id", "public", "created_at"]),
        KeyCommand::Show(named) => show_of("/v1/keys", named),
        KeyCommand::Delete(named) => delete_of("/v1/keys", named, "is gone, and with it every token it signed"),
    }
}

fn list_of(common: &Common, base: &str, columns: &[&str]) -> anyhow::Result<()> {
    let mut listed = Client::new(&common.connection)?.fetch(base)?.body;
    if common.json {
        return print(&listed);
    }
    for item in listed["items"].as_array_mut().into_iter().flatten() {
        dates(item);
    }
    write(&table::rows(columns, listed["items"].as_array().map(Vec::as_slice).unwrap_or_default()))
}

fn show_of(base: &str, named: &Named) -> anyhow::Result<()> {
    let mut record = Client::new(&named.common.connection)?.fetch(&format!("{base}/{}", segment(&named.id)?))?.body;
    if !named.common.json {
        dates(&mut record);
    }
    show(&named.common, &record)
}

fn delete_of(base: &str, named: &Named, became: &str) -> anyhow::Result<()> {
    let answer = Client::new(&named.common.connection)?.delete(&format!("{base}/{}", segment(&named.id)?), None)?;
    said(&named.common, &answer, &format!("{} {became}", named.id))
}

/// Unix seconds as dates, for people.
fn dates(record: &mut Value) {
    for (name, value) in record.as_object_mut().into_iter().flatten() {
        if let (true, Some(seconds)) = (name.ends_with("_at"), value.as_u64()) {
            let date = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds));
            *value = date.map_or_else(|| seconds.to_string(), httpdate::fmt_http_date).into();
        }
    }
}
