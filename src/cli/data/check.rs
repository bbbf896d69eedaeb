//! `forebay check`: goes the whole way to a volume and says of each step whether it works, and the fix if it does not.
//!
//! Called by `cli`. Settings, admin, routing, groups, each member, a scratch block put, read, deleted, and the store by this client's own credentials. What
//! it stores it deletes again.

use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Args;

use super::connect::{Connection, runtime};
use crate::client::{Client, ClientError, PutCondition, StoreAccess};
use crate::resource::Bypass;

/// `forebay check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The volume.
    volume: String,
    /// Write nothing: leave the scratch block out.
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What was found so far.
#[derive(Default)]
struct Found {
    failed: u32,
}

impl Found {
    fn say(&mut self, step: &str, outcome: Result<String, String>) {
        let (verdict, words) = match outcome {
            Ok(words) => ("ok", words),
            Err(words) => {
                self.failed += 1;
                ("FAILED", words)
            }
        };
        // Whoever can't read it misses nothing else.
        let _ = writeln!(io::stdout(), "{verdict:<6}  {step:<12}  {words}");
    }
}

/// `forebay check`
///
/// # Errors
/// Something failed.
pub fn check(args: CheckArgs) -> anyhow::Result<()> {
    let settings = args.connection.settings()?;
    let mut found = Found::default();
    found.say("settings", Ok(format!("admin {}", settings.admin)));
    runtime()?.block_on(async {
        match Client::open(settings, &args.volume).await {
            Ok(client) => steps(&client, &args, &mut found).await,
            Err(error) => {
                let fix =
                    "is the admin's URL right (--admin), its authority known (--ca), the token good for this volume?";
                found.say("routing", Err(format!("{error}: {fix}")));
            }
        }
    });
    anyhow::ensure!(found.failed == 0, "{} of the steps failed", found.failed);
    Ok(())
}

async fn steps(client: &Client, args: &CheckArgs, found: &mut Found) {
    let routing = client.routing();
    let members: usize = routing.groups.iter().map(|group| group.members.len()).sum();
    let words = format!("revision {}, {} groups, {members} members", routing.revision, routing.groups.len());
    found.say("routing", Ok(words));
    let groups = client.probe().await;
    for group in &groups {
        for member in &group.members {
            let step = format!("{}/{}", group.name, member.name);
            found.say(
                &step,
                match (&member.error, member.rtt_ms) {
                    (None, Some(ms)) => Ok(format!("{} answers in {ms:.2} ms, TLS verified", member.address)),
                    (error, _) => Err(format!(
                        "{}: {}: does it run, is the port open, and does its certificate name it?",
                        member.address,
                        error.clone().unwrap_or_default()
                    )),
                },
            );
        }
    }
    let selected = client.selected().ok_or_else(|| "no group is reachable".to_owned());
    found.say("group", selected.map(|name| format!("{name} is selected")));
    scratch(client, args, found).await;
    match (client.store().await, routing.volume.bypass) {
        (Ok(store), _) => {
            let listed = store.list("", None).await;
            let words = |error: ClientError| format!("{error}: may these credentials list and read the bucket?");
            found.say(
                "store",
                listed
                    .map(|_| match client.store_access() {
                        StoreAccess::Session { .. } => "answers to session credentials".to_owned(),
                        _ => "answers to this client's own credentials".to_owned(),
                    })
                    .map_err(words),
            );
        }
        (Err(reason), Bypass::Never) => found.say("store", Ok(format!("not needed: bypass is never ({reason})"))),
        (Err(reason), _) => {
            found.say("store", Err(format!("{reason}; without them nothing is read when no proxy answers")))
        }
    }
}

/// A block of this check's own: absent, put, read, deleted, absent.
async fn scratch(client: &Client, args: &CheckArgs, found: &mut Found) {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let key = format!(".forebay-check/{}-{nanoseconds}", std::process::id());
    let body = Bytes::from(format!("forebay check {key}"));
    let read = match client.head(&key).await {
        Err(ClientError::Absent) => Ok("the token opens the volume for reading".to_owned()),
        Ok(_) => Err("a block that was never stored is there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let is_readable = read.is_ok();
    found.say("read", read);
    if args.read_only || !is_readable || client.routing().volume.read_only {
        return;
    }
    let put = client.put(&key, body.clone(), PutCondition::Absent, None).await;
    let is_there = put.is_ok();
    found.say("put", put.map(|done| format!("durability {}", done.durability)).map_err(|error| error.to_string()));
    if !is_there {
        return;
    }
    let got = match client.get(&key, None).await {
        Ok(block) => block.bytes().await,
        Err(error) => Err(error),
    };
    found.say(
        "get",
        match got {
            Ok(bytes) if bytes == body => Ok("the same bytes".to_owned()),
            Ok(_) => Err("other bytes".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    );
    let deleted = client.delete(&key).await.map(|()| "done".to_owned());
    found.say("delete", deleted.map_err(|error| format!("{error}: delete {key} yourself")));
}
