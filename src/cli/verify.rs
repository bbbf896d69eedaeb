//! `forebay verify`: reads everything on the disk of a stopped node and says which promise no longer holds.
//!
//! Called by `cli`. Exit 0: all good; 1: something is broken (the first such thing is the last line on stderr); 2: nothing
//! was verified (no such directory, or a proxy runs there). The reading and judging is
//! `forebay_shard::store::inspect::verify`; here are the progress on stderr and the verdict on stdout.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use forebay_io::plain::{PlainDisk, PlainRuntime};
use forebay_shard::store::inspect::report::{Cost, FINDINGS_MAX, Finding, Part, PartReport, Report};
use forebay_shard::store::inspect::verify::verify;
use serde_json::{Value, json};

use super::inspect::figures::{bytes, count, key};
use super::inspect::{chosen, directory_of};
use crate::config::ConfigError;
use crate::proxy::node_file::{Hold, StoppedNode};

mod progress;

use self::progress::Meter;

/// `forebay verify [DIR]`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The node's directory (disk.path).
    #[arg(value_name = "DIR", required_unless_present = "config", conflicts_with = "config")]
    directory: Option<PathBuf>,
    /// Take the directory from this configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This shard only.
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// The verdict as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Verifies what the flags name.
///
/// # Errors
/// A [`ConfigError`] if there is nothing to verify; else the first broken promise.
pub fn run(args: VerifyArgs) -> anyhow::Result<()> {
    let directory = match (args.directory, args.config) {
        (Some(directory), _) => directory,
        (None, Some(config)) => directory_of(&config)?,
        (None, None) => return Err(ConfigError::new("DIR", "is missing: name a node's disk.path").into()),
    };
    let node = StoppedNode::enter(&directory, Hold::Shared)?;
    let shards = chosen(&node, args.shard)?;
    if node.is_half_formatted() {
        println!("{}: its format was not finished; nothing was acknowledged here", directory.display());
        return Ok(());
    }
    let mut meter = Meter::on_stderr(shards.len());
    let reports: Vec<Report> = shards
        .iter()
        .map(|shard| {
            let (disk, runtime) = (PlainDisk::new(&directory), PlainRuntime::default());
            let owner = node.identity(*shard);
            let report = runtime.run(verify(disk, &runtime, *shard, owner.as_ref(), &mut |at| meter.show(*shard, at)));
            meter.shard_done();
            report
        })
        .collect();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", verdict_value(&node, &reports))?;
    } else {
        print_verdict(&mut out, &node, &reports)?;
    }
    out.flush()?;
    first_fault(&node, &reports).map_or(Ok(()), |fault| bail!("{fault}"))
}

/// The first broken promise in one line.
fn first_fault(node: &StoppedNode, reports: &[Report]) -> Option<String> {
    if let Some(trouble) = node.trouble() {
        return Some(format!("{trouble}: the node does not start; bring the file back"));
    }
    let bad = reports.iter().find(|report| !report.is_good())?;
    let line = match bad.first_fault() {
        Some((part, finding)) => format!("{}: {}", part_name(part), finding_words(finding)),
        None => {
            let cut = bad.parts.iter().find_map(|part| Some((part.part, part.cut_short.as_ref()?)))?;
            format!("{} not examined: {}", part_name(cut.0), cut.1)
        }
    };
    Some(format!("shard {}: {line}", bad.shard))
}

fn print_verdict(out: &mut dyn Write, node: &StoppedNode, reports: &[Report]) -> io::Result<()> {
    for report in reports {
        writeln!(out, "shard {}", report.shard)?;
        for part in &report.parts {
            let examined =
                if part.examined == 0 { "-".to_owned() } else { format!("{} {}", count(part.examined), part.unit) };
            writeln!(out, "  {:<12} {examined:<22} {}", part_name(part.part), part_words(part))?;
        }
        for (part, finding) in report.parts.iter().flat_map(|part| part.findings.iter().map(move |f| (part.part, f))) {
            writeln!(out, "  {} in {}: {}", cost_words(finding.cost), part_name(part), finding_words(finding))?;
        }
        for part in report.parts.iter().filter(|part| part.counts.iter().sum::<u64>() > FINDINGS_MAX as u64) {
            let more = part.counts.iter().sum::<u64>() - part.findings.len() as u64;
            writeln!(out, "  … and {} more in {}", count(more), part_name(part.part))?;
        }
    }
    if let Some(trouble) = node.trouble() {
        writeln!(out, "node\n  BROKEN: {trouble}")?;
    }
    let proven: u64 = reports.iter().map(|report| report.proven_bytes).sum();
    let is_good = first_fault(node, reports).is_none();
    let word = if is_good { "good" } else { "BROKEN" };
    writeln!(out, "verdict: {word}; {} of blocks proven", bytes(proven))
}

fn part_name(part: Part) -> &'static str {
    match part {
        Part::Superblock => "superblock",
        Part::Checkpoints => "checkpoints",
        Part::Journal => "journal",
        Part::Index => "index",
        Part::Footers => "footers",
        Part::Records => "records",
    }
}

fn part_words(part: &PartReport) -> String {
    if let Some(why) = &part.cut_short {
        return format!("NOT EXAMINED: {why}");
    }
    let [notes, spare, cache, data] = part.counts;
    let named = [(data, "acknowledged data lost"), (cache, "cache only"), (spare, "spare copy"), (notes, "note")];
    let words: Vec<String> = named
        .iter()
        .filter(|(figure, _)| *figure > 0)
        .map(|(figure, what)| format!("{} × {what}", count(*figure)))
        .collect();
    if words.is_empty() { "good".into() } else { words.join(", ") }
}

fn cost_words(cost: Cost) -> &'static str {
    match cost {
        Cost::Note => "note",
        Cost::Spare => "DAMAGED (nothing is lost)",
        Cost::Cache => "DAMAGED (cache only)",
        Cost::Data => "DATA LOST",
    }
}

fn cost_name(cost: Cost) -> &'static str {
    match cost {
        Cost::Note => "note",
        Cost::Spare => "spare",
        Cost::Cache => "cache",
        Cost::Data => "data",
    }
}

fn finding_words(finding: &Finding) -> String {
    let at = finding.offset.map_or_else(String::new, |offset| format!(" at {offset}"));
    let who = match (&finding.key, finding.identity) {
        (Some(name), _) => format!(" {}", key(name)),
        (None, Some(identity)) => format!(" identity {identity:032x}"),
        (None, None) => String::new(),
    };
    format!("{}{at}{who}: {}", finding.file, finding.what)
}

fn verdict_value(node: &StoppedNode, reports: &[Report]) -> Value {
    let fault = first_fault(node, reports);
    json!({
        "verdict": if fault.is_none() { "good" } else { "broken" },
        "first_fault": fault,
        "node": node.node_id().map(|id| format!("{id:032x}")),
        "node_trouble": node.trouble(),
        "shards": reports.iter().map(report_value).collect::<Vec<_>>(),
    })
}

fn report_value(report: &Report) -> Value {
    let part = |part: &PartReport| {
        let [notes, spare, cache, data] = part.counts;
        json!({
            "part": part_name(part.part),
            "examined": part.examined,
            "unit": part.unit,
            "not_examined": part.cut_short,
            "counts": { "note": notes, "spare": spare, "cache": cache, "data": data },
            "findings": part.findings.iter().map(finding_value).collect::<Vec<_>>(),
        })
    };
    json!({
        "shard": report.shard,
        "good": report.is_good(),
        "proven_bytes": report.proven_bytes,
        "parts": report.parts.iter().map(part).collect::<Vec<_>>(),
    })
}

fn finding_value(finding: &Finding) -> Value {
    json!({
        "cost": cost_name(finding.cost),
        "file": finding.file,
        "offset": finding.offset,
        "identity": finding.identity.map(|identity| format!("{identity:032x}")),
        "volume": finding.key.as_ref().map(|key| &*key.volume),
        "key": finding.key.as_ref().map(|key| &*key.key),
        "what": finding.what,
    })
}
