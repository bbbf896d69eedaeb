//! What `verify` found: one line for each part of a store, and a finding for each thing that is wrong.
//!
//! Made by `verify`; shown by `forebay verify`. Plain data. Findings are bounded: the first of each part are kept, all are
//! counted.

use crate::key::BlockKey;

/// Findings kept for each part.
pub const FINDINGS_MAX: usize = 50;

/// The parts of a store, in the order in which they are looked at. Each stands on those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The slab's superblock and its copy.
    Superblock,
    /// The two slots.
    Checkpoints,
    /// The ring.
    Journal,
    /// What recovery makes of both, and its invariants.
    Index,
    /// The regions' tables.
    Footers,
    /// The content of every block.
    Records,
}

/// What a finding costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Ordinary after a crash, or worth knowing: no fault.
    Note,
    /// A spare copy is damaged: nothing is lost yet.
    Spare,
    /// Blocks that the origin has: they are fetched again.
    Cache,
    /// Acknowledged writes are lost, or may be.
    Data,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it costs.
    pub cost: Cost,
    /// The file.
    pub file: String,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// Whose: the keyed hash of volume and key.
    pub identity: Option<u128>,
    /// The full key, where it is known.
    pub key: Option<BlockKey>,
    /// What is wrong.
    pub what: String,
}

/// One part's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartReport {
    /// Which.
    pub part: Part,
    /// How many of `unit` were examined.
    pub examined: u64,
    /// What was counted.
    pub unit: &'static str,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// How many findings of each cost there were, the kept ones included: notes, spares, cache, data.
    pub counts: [u64; 4],
    /// Why it could not be examined (to its end).
    pub cut_short: Option<String>,
}

/// One shard's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which shard.
    pub shard: u16,
    /// Its parts, in order.
    pub parts: Vec<PartReport>,
    /// Content bytes of blocks that were read and proven.
    pub proven_bytes: u64,
}

impl PartReport {
    pub(super) fn new(part: Part, unit: &'static str) -> PartReport {
        PartReport { part, examined: 0, unit, findings: Vec::new(), counts: [0; 4], cut_short: None }
    }

    pub(super) fn found(&mut self, finding: Finding) {
        self.counts[finding.cost as usize] += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else if finding.cost > Cost::Note
            && let Some(note) = self.findings.iter_mut().rfind(|kept| kept.cost == Cost::Note)
        {
            // No number of notes hides a fault.
            *note = finding;
        }
    }

    /// Findings that are faults.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.counts[Cost::Spare as usize..].iter().sum()
    }

    /// The worst of its findings.
    #[must_use]
    pub fn worst(&self) -> Option<Cost> {
        [Cost::Data, Cost::Cache, Cost::Spare, Cost::Note].into_iter().find(|cost| self.counts[*cost as usize] > 0)
    }
}

impl Report {
    /// Whether every promise that can be examined offline holds.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.parts.iter().all(|part| part.faults() == 0 && part.cut_short.is_none())
    }

    /// The first fault, with its part.
    #[must_use]
    pub fn first_fault(&self) -> Option<(Part, &Finding)> {
        let faults = |part: &PartReport| part.findings.iter().position(|finding| finding.cost > Cost::Note);
        self.parts.iter().find_map(|part| faults(part).map(|index| (part.part, &part.findings[index])))
    }
}

impl Finding {
    pub(super) fn new(cost: Cost, file: &str, offset: Option<u64>, what: impl Into<String>) -> Finding {
        Finding { cost, file: file.to_owned(), offset, identity: None, key: None, what: what.into() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_notes_hides_a_fault_and_all_are_counted() {
        let mut part = PartReport::new(Part::Footers, "regions");
        (0..200).for_each(|n| part.found(Finding::new(Cost::Note, "slab", Some(n), "torn")));
        part.found(Finding::new(Cost::Spare, "slab", Some(7), "damaged"));
        assert_eq!((part.findings.len(), part.counts, part.faults()), (FINDINGS_MAX, [200, 1, 0, 0], 1));
        let report = Report { shard: 0, parts: vec![part], proven_bytes: 0 };
        assert!(!report.is_good());
        assert_eq!(report.first_fault().unwrap().1.what, "damaged");
    }
}
