//! The replay's tables in markdown.
//!
//! Rows are capacities, columns policies. Ratios of misses are percent. Written is what would go to a disk per byte served:
//! what was let in and what was queued again, as if the queues were logs. Called by `replay`.

use std::fmt::Write as _;

use super::Capacity;
use super::node::Compared;
use super::policies::{Name, Tally};
use crate::units::show_size;

/// One trace at one capacity.
pub struct Cell {
    pub trace: String,
    pub requests: u64,
    pub capacity: Capacity,
    pub capacity_bytes: u64,
    pub results: Vec<(Name, Tally)>,
}

/// A figure of a run.
struct Measure {
    title: &'static str,
    of: fn(&Tally) -> f64,
    decimals: usize,
}

const MEASURES: [Measure; 3] = [
    Measure { title: "requests missed, %", of: |tally| share(tally.misses, tally.requests) * 100.0, decimals: 2 },
    Measure {
        title: "bytes missed, %",
        of: |tally| share(tally.missed_bytes, tally.served_bytes) * 100.0,
        decimals: 2,
    },
    Measure {
        title: "written per byte served",
        of: |tally| share(tally.admitted_bytes + tally.moved_bytes, tally.served_bytes),
        decimals: 3,
    },
];

/// All cells; those of one trace in one table.
pub fn render(cells: &[Cell]) -> String {
    let mut text = String::new();
    for section in cells.chunk_by(|one, other| one.trace == other.trace) {
        let _ = writeln!(text, "### {} ({} requests)\n", section[0].trace, section[0].requests);
        let names: Vec<Name> = section[0].results.iter().map(|(name, _)| *name).collect();
        let has_own = names.contains(&Name::Forebay) && names.len() > 1;
        let titles: Vec<&str> = names.iter().map(|name| name.title()).collect();
        let last = if has_own { " Forebay − best |" } else { "" };
        let _ = writeln!(text, "| capacity | | {} |{last}", titles.join(" | "));
        let _ = writeln!(text, "|---|---|{}", "--:|".repeat(names.len() + usize::from(has_own)));
        for cell in section {
            // Where all sizes are the same, both ratios are.
            let is_even = cell
                .results
                .iter()
                .all(|(_, tally)| share(tally.misses, tally.requests) == share(tally.missed_bytes, tally.served_bytes));
            for (at, measure) in MEASURES.iter().enumerate().filter(|(at, _)| *at != 1 || !is_even) {
                text.push_str(&row(cell, measure, at == 0, has_own));
            }
        }
        text.push('\n');
    }
    text
}

/// One trace at one capacity, through a node and through S3-FIFO.
pub struct NodeCell {
    pub trace: String,
    pub capacity: Capacity,
    pub capacity_bytes: u64,
    pub compared: Compared,
}

/// All cells of whole nodes in one table.
pub fn render_node(cells: &[NodeCell]) -> String {
    let mut text = String::from(
        "| trace | bytes of the node | of them memory | regions | missed, %: S3-FIFO | node | node − S3-FIFO | payload written per byte served | of it again | all written |\n\
         |---|--:|--:|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for NodeCell { trace, capacity, capacity_bytes, compared } in cells {
        let missed = |tally: &Tally| share(tally.misses, tally.requests) * 100.0;
        let (paper, node) = (missed(&compared.paper), missed(&compared.node));
        let served = compared.node.served_bytes;
        let size =
            if matches!(capacity, Capacity::Share(_)) { format!(" = {}", mib(*capacity_bytes)) } else { String::new() };
        let shape = &compared.shape;
        let _ = writeln!(
            text,
            "| {trace} | {capacity}{size} | {} | {} × {} | {paper:.2} | {node:.2} | {:+.2} | {:.3} | {:.3} | {:.3} |",
            mib(shape.memory_bytes),
            shape.region_count,
            show_size(shape.region_bytes),
            node - paper,
            share(compared.node.admitted_bytes + compared.node.moved_bytes, served),
            share(compared.node.moved_bytes, served),
            share(compared.written_bytes, served),
        );
    }
    text
}

fn row(cell: &Cell, measure: &Measure, is_first: bool, has_own: bool) -> String {
    let figures: Vec<f64> = cell.results.iter().map(|(_, tally)| (measure.of)(tally)).collect();
    let shown: Vec<String> = figures.iter().map(|figure| format!("{figure:.*}", measure.decimals)).collect();
    let capacity = match (is_first, cell.capacity) {
        (false, _) => String::new(),
        (true, Capacity::Bytes(_)) => cell.capacity.to_string(),
        (true, Capacity::Share(_)) => format!("{} = {}", cell.capacity, mib(cell.capacity_bytes)),
    };
    let mut line = format!("| {capacity} | {} | {} |", measure.title, shown.join(" | "));
    if has_own {
        let of = |wanted: fn(Name) -> bool| {
            let some = cell.results.iter().zip(&figures).filter(move |((name, _), _)| wanted(*name));
            some.map(|(_, figure)| *figure).fold(f64::INFINITY, f64::min)
        };
        let gap = of(|name| !name.is_of_the_papers()) - of(Name::is_of_the_papers);
        let _ = write!(line, " {gap:+.*} |", measure.decimals);
    }
    line.push('\n');
    line
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 { show_size(bytes) } else { format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(misses: u64, missed_bytes: u64) -> Tally {
        Tally {
            requests: 100,
            misses,
            served_bytes: 1_000,
            missed_bytes,
            admitted_bytes: missed_bytes,
            moved_bytes: 100,
        }
    }

    #[test]
    fn a_table_says_ratios_and_the_distance_from_the_best() {
        let results =
            vec![(Name::Lru, tally(40, 400)), (Name::S3Fifo, tally(30, 350)), (Name::Forebay, tally(31, 310))];
        let capacity = Capacity::Share(0.05);
        let cell = Cell { trace: "t".to_owned(), requests: 100, capacity, capacity_bytes: 4096, results };
        let text = render(&[cell]);
        assert!(text.contains("### t (100 requests)"), "{text}");
        assert!(text.contains("| 5 % = 4 KiB | requests missed, % | 40.00 | 30.00 | 31.00 | +1.00 |"), "{text}");
        assert!(text.contains("|  | bytes missed, % | 40.00 | 35.00 | 31.00 | -4.00 |"), "{text}");
        assert!(text.contains("|  | written per byte served | 0.500 | 0.450 | 0.410 | -0.040 |"), "{text}");
    }
}
