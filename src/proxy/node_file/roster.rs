//! Which disks a node has: the list that each of them keeps in its `node.json`, so that any of them can tell of the others.
//!
//! Used by `set`. The list with the highest revision counts. A disk that is missing is missed by it; one that was taken out
//! and comes back is known by not being on it, because its blocks may be older than what happened since.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// The disks of a node, as they were when it last began to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Roster {
    /// Grows whenever a disk is added or taken out.
    pub(super) revision: u64,
    /// Since the last change all disks were seen together, and every key was on its own disk.
    pub(super) settled: bool,
    /// The volumes that were ever written back: what they hold may be dirty on a disk that is missing.
    pub(super) written_back: BTreeSet<String>,
    /// In no order.
    pub(super) disks: Vec<Member>,
}

/// One disk of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    /// Drawn when it was formatted: 32 hexadecimal digits.
    pub(super) id: String,
    /// Where it was last seen.
    pub(super) path: PathBuf,
    /// Its slabs' size in MiB when it was formatted: its share of the keys.
    pub(super) weight: u32,
}

impl Roster {
    /// What several disks' lists say together.
    ///
    /// # Errors
    /// Two lists of one revision name different disks: somebody started the node with one part of its disks, then with another.
    pub(super) fn newest<'a>(lists: impl Iterator<Item = &'a Roster> + Clone) -> anyhow::Result<Option<Roster>> {
        let Some(revision) = lists.clone().map(|list| list.revision).max() else { return Ok(None) };
        let mut merged: Option<Roster> = None;
        for list in lists.clone().filter(|list| list.revision == revision) {
            let Some(merged) = &mut merged else {
                merged = Some(list.clone());
                continue;
            };
            ensure!(
                merged.ids() == list.ids(),
                "the disks of this node disagree about which disks it has (revision {revision}): start it with those that \
                 belong together"
            );
            merged.settled &= list.settled;
        }
        if let Some(merged) = &mut merged {
            merged.written_back.extend(lists.flat_map(|list| list.written_back.iter().cloned()));
        }
        Ok(merged)
    }

    /// What a disk is on the list.
    pub(super) fn member(&self, id: &str) -> Option<&Member> {
        self.disks.iter().find(|member| member.id == id)
    }

    fn ids(&self) -> BTreeSet<&str> {
        self.disks.iter().map(|member| member.id.as_str()).collect()
    }

    /// Whether the two lists place keys alike.
    pub(super) fn places_as(&self, other: &Roster) -> bool {
        let shares =
            |list: &Roster| list.disks.iter().map(|member| (member.id.clone(), member.weight)).collect::<BTreeSet<_>>();
        shares(self) == shares(other)
    }
}
