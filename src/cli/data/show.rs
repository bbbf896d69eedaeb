//! `forebay probe`: the volume's groups and members, how far each is, and which group this client uses.
//!
//! Called by `cli`. A table for people, JSON for programs. Says loudly, once, if reads past the proxies are allowed but can't be made.

use std::io::{self, Write as _};

use clap::Args;
use serde_json::json;

use super::connect::{Connection, Opened};
use crate::client::StoreAccess;
use crate::client::probe::GroupProbe;
use crate::resource::Bypass;
use crate::token::Right;

/// `forebay probe`
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The volume.
    volume: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Go on probing every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

/// `forebay probe`
///
/// # Errors
/// There is no routing; or no group is reachable.
pub fn probe(args: ProbeArgs) -> anyhow::Result<()> {
    let opened = Opened::new(&args.connection, &args.volume)?;
    opened.run(async |client| {
        let rule = client.routing().volume.bypass;
        let bypass = client.store().await.map(drop);
        if let (Err(reason), true) = (&bypass, rule != Bypass::Never) {
            eprintln!(
                "forebay: WARNING: if no proxy answers, nothing can be read: the volume allows going straight to its store, but \
                 this client has no credentials for it ({reason})"
            );
        }
        loop {
            let groups = client.probe().await;
            if args.json {
                let said = json!({
                    "volume": args.volume,
                    "revision": client.routing().revision,
                    "groups": groups,
                    "bypass": {"rule": rule, "usable": bypass.is_ok(), "by": client.store_access()},
                });
                writeln!(io::stdout(), "{said}")?;
            } else {
                write!(io::stdout(), "{}{}", table(&groups), by(&client.store_access()))?;
            }
            let Some(seconds) = args.watch else {
                anyhow::ensure!(groups.iter().any(|group| group.selected), "no group is reachable");
                return Ok(());
            };
            io::stdout().flush()?;
            tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
        }
    })
}

/// How the store would be asked, where that is worth a word.
fn by(access: &StoreAccess) -> String {
    match access {
        StoreAccess::Session { right, expires_in_seconds, obtained, .. } => {
            let right = if *right == Right::Read { "reads" } else { "reads and writes" };
            format!(
                "bypass: {right} by session credentials, good for {expires_in_seconds} s more, {obtained} given so far\n"
            )
        }
        StoreAccess::Own | StoreAccess::None => String::new(),
    }
}

/// One line a member, the selected group marked.
fn table(groups: &[GroupProbe]) -> String {
    let mut rows = vec![["", "GROUP", "MEMBER", "STATE", "RTT", "ADDRESS", ""].map(str::to_owned)];
    for group in groups {
        let mark = if group.selected { "*" } else { "" };
        let name = if group.home { format!("{} (home)", group.name) } else { group.name.clone() };
        rows.push([
            mark.to_owned(),
            name,
            String::new(),
            String::new(),
            rtt(group.rtt_ms),
            group.region.clone(),
            String::new(),
        ]);
        for member in &group.members {
            let state = format!("{:?}", member.state).to_lowercase();
            let error = member.error.clone().unwrap_or_default();
            let address = member.address.clone();
            rows.push([String::new(), String::new(), member.name.clone(), state, rtt(member.rtt_ms), address, error]);
        }
    }
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 7]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn rtt(ms: Option<f64>) -> String {
    ms.map_or_else(|| "unreachable".to_owned(), |ms| format!("{ms:.2} ms"))
}
