//! `forebay store|volume|group|member|token|key create|list|show|update|delete`, `attach`, `detach`: the admin's interface from a shell.
//!
//! Called by `cli`. Each command is a request or two to the admin (`control/client`); what its flags set is a part of the record's JSON
//! (`control/flags`), so that the server alone says what is valid. Tables for people, `--json` for machines. A token comes
//! from a file or the environment, never from an argument.

pub mod client;
pub mod flags;
pub mod table;
pub mod tokens;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use client::{Client, Connection};
use flags::{GroupFlags, MemberFlags, StoreFlags, VolumeFlags};

/// Where the admin is, and how to answer.
#[derive(Debug, Args)]
pub struct Common {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

/// The five verbs of a kind of record.
#[derive(Debug, Subcommand)]
enum Verb<F: Args> {
    /// Make one. The same again succeeds, something else under the name does not.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        flags: Box<F>,
    },
    /// List all.
    List,
    /// Show one.
    Show {
        /// Its name.
        name: String,
    },
    /// Change what the flags name, leave the rest.
    Update {
        /// Its name.
        name: String,
        #[command(flatten)]
        flags: Box<F>,
    },
    /// End one.
    Delete {
        /// Its name.
        name: String,
    },
}

/// `forebay store …` and its like.
#[derive(Debug, Args)]
pub struct Records<F: Args> {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb<F>,
}

/// `forebay member …`
#[derive(Debug, Args)]
pub struct Members {
    /// The group, for all verbs.
    #[arg(long, short, global = true, required = false, value_name = "NAME")]
    group: Option<String>,
    /// With delete: end a member that may hold what the store does not have. Acknowledged writes are lost then.
    #[arg(long, global = true)]
    abandon_dirty: bool,
    #[command(flatten)]
    records: Records<MemberFlags>,
}

/// `forebay attach`, `forebay detach`
#[derive(Debug, Args)]
pub struct Ends {
    /// The volume.
    volume: String,
    /// The group.
    group: String,
    #[command(flatten)]
    common: Common,
}

/// `forebay attach`
#[derive(Debug, Args)]
pub struct Attach {
    #[command(flatten)]
    ends: Ends,
    /// Make it the volume's home group too.
    #[arg(long)]
    home: bool,
}

/// `forebay store …`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn stores(records: Records<StoreFlags>) -> anyhow::Result<()> {
    run(records, "/v1/stores", &["name", "endpoint", "region", "bucket", "conditional_put", "credentials_set"])
}

/// `forebay volume …`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn volumes(records: Records<VolumeFlags>) -> anyhow::Result<()> {
    run(records, "/v1/volumes", &["name", "store", "prefix", "kind", "write", "durability", "home_group", "bypass"])
}

/// `forebay group …`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn groups(records: Records<GroupFlags>) -> anyhow::Result<()> {
    run(records, "/v1/groups", &["name", "provider", "region"])
}

/// `forebay member …`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn members(members: Members) -> anyhow::Result<()> {
    let group = members.group.context("--group is missing: name the member's group")?;
    let (group, common) = (segment(&group)?, &members.records.common);
    let base = format!("/v1/groups/{group}/members");
    match &members.records.verb {
        Verb::Delete { name } if members.abandon_dirty => {
            let client = Client::new(&common.connection)?;
            let path = format!("{base}/{}", segment(name)?);
            let etag = client.fetch(&path)?.etag;
            client.delete(&format!("{path}?abandon=dirty"), etag.as_deref())?;
            said(common, &Value::Null, &format!("{name} is gone, and what it alone held is lost"))
        }
        _ if members.abandon_dirty => anyhow::bail!("--abandon-dirty goes with delete"),
        Verb::List => {
            let client = Client::new(&common.connection)?;
            let mut listed = client.fetch(&base)?.body;
            let standing = client.fetch(&format!("/v1/groups/{group}/standing"))?.body;
            show_moved(&mut listed, &standing);
            if common.json {
                return print(&listed);
            }
            let items = listed["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            write(&table::rows(&["name", "state", "address", "tls_name", "weight", "moved", "id"], items))
        }
        _ => run(members.records, &base, &[]),
    }
}

/// Adds to each member how many dirty blocks it may hold that are others' by now: `-` none, `unknown` if it did not report.
fn show_moved(listed: &mut Value, standing: &Value) {
    let standings = standing["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    for member in listed["items"].as_array_mut().into_iter().flatten() {
        let found = standings.iter().find(|standing| standing["name"] == member["name"]);
        let Some(found) = found.filter(|standing| standing["moving"] == true) else { continue };
        member["moved"] = found.get("moved").cloned().unwrap_or_else(|| "unknown".into());
    }
}

/// `forebay attach`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn attach(args: Attach) -> anyhow::Result<()> {
    let Ends { volume, group, common } = args.ends;
    let client = Client::new(&common.connection)?;
    let (volume, group) = (segment(&volume)?.to_owned(), segment(&group)?.to_owned());
    let mut answer = client.put(&format!("/v1/volumes/{volume}/groups/{group}"), None, &json!({}))?;
    if args.home {
        let patch = Map::from_iter([("home_group".to_owned(), group.clone().into())]);
        answer = update(&client, &format!("/v1/volumes/{volume}"), &patch)?;
    }
    let home = if args.home { ", its home group" } else { "" };
    said(&common, &answer, &format!("volume {volume} is served by group {group}{home}"))
}

/// `forebay detach`
///
/// # Errors
/// What the admin says, or why it can't be asked.
pub fn detach(ends: Ends) -> anyhow::Result<()> {
    let client = Client::new(&ends.common.connection)?;
    let (volume, group) = (segment(&ends.volume)?, segment(&ends.group)?);
    client.delete(&format!("/v1/volumes/{volume}/groups/{group}"), None)?;
    said(&ends.common, &Value::Null, &format!("volume {volume} is no longer served by group {group}"))
}

fn run<F: Args + flags::Patch>(records: Records<F>, base: &str, columns: &[&str]) -> anyhow::Result<()> {
    let Records { common, verb } = records;
    let client = Client::new(&common.connection)?;
    let one = |name: &str| Ok::<_, anyhow::Error>(format!("{base}/{}", segment(name)?));
    match verb {
        Verb::Create { name, flags } => {
            let mut body = flags.patch()?;
            body.insert("name".to_owned(), name.into());
            show(&common, &client.post(base, &Value::Object(body))?)
        }
        Verb::List => {
            let listed = client.fetch(base)?.body;
            if common.json {
                return print(&listed);
            }
            let items = listed["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            write(&table::rows(columns, items))
        }
        Verb::Show { name } => show(&common, &client.fetch(&one(&name)?)?.body),
        Verb::Update { name, flags } => show(&common, &update(&client, &one(&name)?, &flags.patch()?)?),
        Verb::Delete { name } => {
            let path = one(&name)?;
            let etag = client.fetch(&path)?.etag;
            client.delete(&path, etag.as_deref())?;
            said(&common, &Value::Null, &format!("{name} is gone"))
        }
    }
}

/// Lays `patch` over a record as it is, and fails if somebody else changes it meanwhile.
fn update(client: &Client, path: &str, patch: &Map<String, Value>) -> anyhow::Result<Value> {
    anyhow::ensure!(!patch.is_empty(), "nothing to change: name a setting");
    let found = client.fetch(path)?;
    let mut body = found.body;
    let fields = body.as_object_mut().context("the admin's answer is no record")?;
    // Its default follows the write mode, when that changes and no other is named.
    if patch.contains_key("write") && !patch.contains_key("durability") {
        fields.remove("durability");
    }
    fields.extend(patch.clone());
    client.put(path, found.etag.as_deref(), &body)
}

/// A name as a segment of a path. The admin says what a name is; here it only may not lead elsewhere.
fn segment(name: &str) -> anyhow::Result<&str> {
    let lawful = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    anyhow::ensure!(
        !name.is_empty() && name.bytes().all(lawful),
        "{name:?} is no name: write 1 to 63 of a-z, 0-9 and -"
    );
    Ok(name)
}

fn show(common: &Common, record: &Value) -> anyhow::Result<()> {
    if common.json { print(record) } else { write(&table::fields(record)) }
}

fn said(common: &Common, answer: &Value, words: &str) -> anyhow::Result<()> {
    match (common.json, answer) {
        (false, _) => write(&format!("{words}\n")),
        (true, Value::Null) => print(&json!({})),
        (true, answer) => print(answer),
    }
}

fn print(value: &Value) -> anyhow::Result<()> {
    write(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn write(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("stdout")
}

/// Writes a secret to a new file that its owner alone may read.
///
/// # Errors
/// The file exists, or can't be written.
pub(super) fn secret_file(path: &Path, secret: &str) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{}: choose a file that does not exist", path.display()))?;
    writeln!(file, "{secret}").with_context(|| path.display().to_string())
}
