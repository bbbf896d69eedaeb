//! `forebay-bench simulate`: groups larger than anyone has at hand.
//!
//! Placement, leases and their bounds are the product's own code (`forebay::placement`, `forebay::lease`); members, clients
//! and the network between them are counters. Says how evenly members are loaded by a skewed demand, what that costs at the
//! origin, and which keys move when a member comes or goes.

mod churn;
mod group;
mod plot;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use self::churn::Churn;
use self::group::{Demand, Ranks, Seen, Way};
use crate::results;

/// `forebay-bench simulate`
#[derive(Args)]
pub struct Simulate {
    /// Sizes of the group
    #[arg(long, value_delimiter = ',', default_value = "3,10,30,100,300,1000", value_name = "COUNT")]
    members: Vec<u16>,
    /// The exponent of Zipf's law that reads follow
    #[arg(long, default_value_t = 1.1, value_name = "ALPHA")]
    zipf: f64,
    /// How many blocks there are
    #[arg(long, default_value_t = 1_000_000, value_name = "COUNT")]
    keys: u32,
    /// Reads a second and member
    #[arg(long, default_value_t = 2_000, value_name = "COUNT")]
    reads: u32,
    /// Seconds that are measured, after as many as the first leases take
    #[arg(long, default_value_t = 6, value_name = "COUNT")]
    seconds: u32,
    /// How many clients share the reads
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    clients: u32,
    /// With bounded load, a member above this multiple of the mean sends reads on to the next in rank
    #[arg(long, default_value_t = 1.25, value_name = "MULTIPLE")]
    bound: f64,
    /// Another seed, other reads
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replace the marked part of this file by the results, e.g. bench/RESULTS.md
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Draw the loads into this SVG file, e.g. bench/simulate.svg
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// What was seen of one group in one way.
struct Row {
    members: u16,
    way: Way,
    seen: Seen,
}

impl Simulate {
    /// Prints the tables.
    pub fn run(&self) -> Result<()> {
        ensure!(self.members.iter().all(|count| *count > 0), "--members: a group has at least one member");
        ensure!(self.zipf >= 0.0 && self.zipf.is_finite(), "--zipf: write a number such as 0.9 or 1.1");
        ensure!(self.keys > 0 && self.clients > 0 && self.reads > 0 && self.seconds > 0, "nothing would be read");
        ensure!(self.bound > 1.0, "--bound: more than 1, or the mean itself would be refused");
        let (mut rows, mut churns) = (Vec::new(), Vec::new());
        for members in &self.members {
            let mut ranks = Ranks::new(*members, self.keys);
            for way in Way::ALL {
                eprintln!("{members} members, {}", way.title());
                let seen = group::run(&self.demand(), way, &mut ranks);
                rows.push(Row { members: *members, way, seen });
            }
            churns.push(churn::run(*members));
        }
        let text = self.render(&rows, &churns);
        if let Some(file) = &self.plot {
            plot::draw(file, &rows, &format!("Zipf {}, {} blocks", self.zipf, self.keys))?;
        }
        match &self.write {
            Some(file) => results::write_marked(file, "simulate", &text),
            None => {
                print!("{text}");
                Ok(())
            }
        }
    }

    fn demand(&self) -> Demand {
        Demand {
            zipf: self.zipf,
            reads_per_member: self.reads,
            seconds: self.seconds,
            clients: self.clients,
            bound: self.bound,
            seed: self.seed,
        }
    }

    fn render(&self, rows: &[Row], churns: &[Churn]) -> String {
        let mut text = format!(
            "Reads follow Zipf {} over {} blocks; {} a second and member, {} clients; the worst of {} s. Bounded load: {} × the mean.\n\n",
            self.zipf, self.keys, self.reads, self.clients, self.seconds, self.bound
        );
        text += "| members | | busiest ÷ mean | p99 ÷ mean | sent on | origin GETs per block read | widest lease |\n";
        text += "|--:|---|--:|--:|--:|--:|--:|\n";
        for Row { members, way, seen } in rows {
            let _ = writeln!(
                text,
                "| {members} | {} | {:.2} | {:.2} | {:.1} % | {:.2} | {} |",
                way.title(),
                seen.busiest,
                seen.p99,
                seen.sent_on * 100.0,
                seen.fills_per_block,
                seen.widest
            );
        }
        text += "\n| members | keys that move when one joins | share of one | of them between old members | keys that move when one leaves | of them not its own |\n";
        text += "|--:|--:|--:|--:|--:|--:|\n";
        for churn in churns {
            let _ = writeln!(
                text,
                "| {} | {:.2} % | {:.2} % | {} | {:.2} % | {} |",
                churn.members,
                churn.joined * 100.0,
                100.0 / (f64::from(churn.members) + 1.0),
                churn.joined_astray,
                churn.left * 100.0,
                churn.left_astray
            );
        }
        text
    }
}
