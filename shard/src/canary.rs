//! Named bugs, put back one at a time to prove that the tests find them: `FOREBAY_CANARY=name` in a build with the
//! feature `canaries`. `ci/canaries` runs the simulator with each.
//!
//! Asked at the very line where a hurried engineer would have made the mistake: `if canary::is(Canary::EvictDirty)`. In a
//! build without the feature (every build that is shipped) `is` is the constant false and nothing of this is left; a build
//! with it says so loudly (`notice`). The list below is the only one: name, what it breaks, and the mistake.

/// Makes the enum of all canaries, and the table of their names where that is wanted.
macro_rules! canaries {
    ($($(#[doc = $sentence:literal])+ $canary:ident = $name:literal breaks $broken:literal;)+) => {
        /// One bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Canary {
            $($(#[doc = $sentence])+ $canary,)+
        }

        /// Every canary: itself, its name, the invariant (I…) or promise (P…) it breaks.
        #[cfg(feature = "canaries")]
        pub const ALL: &[(Canary, &str, &str)] = &[$((Canary::$canary, $name, $broken),)+];
    };
}

canaries! {
    /// A put is acknowledged when its sync has begun, not when it has ended.
    AckBeforeSync = "ack-before-sync" breaks "I3";
    /// A delete is acknowledged when its tombstone is queued.
    DeleteAckedEarly = "delete-acked-early" breaks "I3";
    /// A failed sync is tried once more, and the second success is believed.
    SyncFailureRetried = "sync-failure-retried" breaks "I3";
    /// The journal names a payload whose write has not ended.
    PublishBeforeWrite = "publish-before-write" breaks "I2";
    /// Reclaim evicts whatever lies in the region.
    EvictDirty = "evict-dirty" breaks "I4";
    /// Reclaim takes no notice of a pin.
    EvictPinned = "evict-pinned" breaks "I14";
    /// A pin is acknowledged when its record is queued.
    PinAckedEarly = "pin-acked-early" breaks "I3";
    /// A checkpoint says nothing of pins.
    CheckpointForgetsPins = "checkpoint-forgets-pins" breaks "I14";
    /// A purge drops a block that the origin does not have.
    PurgeDropsDirty = "purge-drops-dirty" breaks "I4";
    /// A second miss of a key begins a second fill.
    FillNotShared = "fill-not-shared" breaks "I5";
    /// A fill goes to the memory tier although its key was changed since it began.
    StaleFillInMemory = "stale-fill-in-memory" breaks "I6";
    /// A fill goes to the disk although its key was changed since it began.
    StaleFillOnDisk = "stale-fill-on-disk" breaks "I6";
    /// A removal is not journaled if there is no entry, though a fill of the key may be in the journal.
    RemoveNotJournaled = "remove-not-journaled" breaks "I6";
    /// Readers don't pin the region they read from.
    PinsIgnored = "pins-ignored" breaks "I7";
    /// A region takes bytes before the record of its opening, behind all that emptied it, is durable.
    RegionReusedEarly = "region-reused-early" breaks "I1";
    /// The prober rewrites a quarantined region whose emptiness is not durable: recovery finds its evicted blocks again.
    ProbeForgetsEpoch = "probe-forgets-epoch" breaks "I1";
    /// What is read from disk is not compared with its checksum.
    SkipChecksum = "skip-checksum" breaks "I8";
    /// The end of a fill is sent before its digest was compared.
    FillTailSentEarly = "fill-tail-sent-early" breaks "I8";
    /// A flush marks clean whatever is dirty under its key when it ends.
    FlushMarksNewer = "flush-marks-newer" breaks "I9";
    /// A put takes no notice of a full dirty budget.
    BudgetIgnored = "budget-ignored" breaks "I10";
    /// Journal space is given back when a checkpoint begins.
    JournalFreedEarly = "journal-freed-early" breaks "I11";
    /// A checkpoint counts before its end is synced.
    CheckpointUnsynced = "checkpoint-unsynced" breaks "I11";
    /// Replay begins behind what was being committed when the checkpoint began.
    CheckpointMissesChanges = "checkpoint-misses-changes" breaks "I11";
    /// A checkpoint leaves tombstones out: the delete is lost while the older bytes live.
    CheckpointDropsTombstones = "checkpoint-drops-tombstones" breaks "I11";
    /// Recovery believes a record whose payload was torn.
    TornPayloadAccepted = "torn-payload-accepted" breaks "I11";
    /// Recovery drops a torn record and tells nobody: the next recovery believes it.
    TornRecordNotVoided = "torn-record-not-voided" breaks "I11";
    /// Recovery takes frames of an earlier lap of the journal for the next ones.
    StaleFrameAccepted = "stale-frame-accepted" breaks "I11";
    /// Recovery learns epochs while it applies records, so that records of a reused region count.
    EpochsLearnedLate = "epochs-learned-late" breaks "I1";
    /// A record of a reused region hides no older ones of its key.
    StaleRecordRevives = "stale-record-revives" breaks "I13";
    /// The last generation before a restart is given out again.
    GenerationReused = "generation-reused" breaks "I13";
    /// A relocation takes the place of whatever its key holds by now.
    RelocationOverNewer = "relocation-over-newer" breaks "I13";
    /// A block that is written again because it was used takes the place of whatever its key holds by now.
    ReinsertionOverNewer = "reinsertion-over-newer" breaks "I6";
    /// A block that is written again because it was used is published although its key was dropped meanwhile.
    ReinsertionAfterRemoval = "reinsertion-after-removal" breaks "I6";
    /// A key whose entry lies on another disk than its home is looked for at home.
    StrayOverlooked = "stray-overlooked" breaks "I13";
    /// A key is looked for at home before its entry on the other disk is durably gone.
    StraySettledEarly = "stray-settled-early" breaks "I13";
    /// When the set of disks has changed, the clean copies that keys leave behind stay where they are.
    MovedCopyKept = "moved-copy-kept" breaks "I13";
    /// After a change of the set a key is looked for at home although it may be dirty on a disk that is not here.
    MissingDiskOverlooked = "missing-disk-overlooked" breaks "P3";
    /// After a failed sync writes go on as if nothing were in doubt.
    DoubtReturns = "doubt-returns" breaks "I11";
    /// A delete that passes an offline disk by leaves no trace on it.
    OfflineForgetsInvalidations = "offline-forgets-invalidations" breaks "I13";
    /// An offline disk answers for a dirty key with what the origin has.
    OfflineServesOrigin = "offline-serves-origin" breaks "P3";
    /// The memory tier keeps a block that is being deleted.
    MemorySurvivesDelete = "memory-survives-delete" breaks "P1";
    /// A tombstone that the origin confirmed goes without a durable record, and comes back after a crash.
    TombstoneRetiredLazily = "tombstone-retired-lazily" breaks "P1";
    /// A put over a delete that was not flushed forgets to delete first.
    DeleteForgotten = "delete-forgotten" breaks "P1";
    /// A store that failed with an unknown outcome is taken for done.
    UnknownOutcomeSuccess = "unknown-outcome-success" breaks "P8";
    /// A conflict at the origin is taken for our own bytes.
    ConflictTakenForSuccess = "conflict-taken-for-success" breaks "P8";
    /// A flush overwrites whatever the origin has.
    UnconditionalStore = "unconditional-store" breaks "P8";
}

/// Whether this bug was asked for.
#[cfg(not(feature = "canaries"))]
#[inline(always)]
pub(crate) const fn is(_: Canary) -> bool {
    false
}

#[cfg(feature = "canaries")]
pub(crate) use chosen::is;
#[cfg(feature = "canaries")]
pub use chosen::notice;

#[cfg(feature = "canaries")]
mod chosen {
    use super::{ALL, Canary};

    const VARIABLE: &str = "FOREBAY_CANARY";

    thread_local! {
        // Read once by each core; an environment does not change while a process runs.
        static CHOSEN: Option<Canary> = choose().unwrap_or_else(|error| panic!("{error}")).map(|(canary, _)| canary);
    }

    /// Whether this bug was asked for.
    pub(crate) fn is(canary: Canary) -> bool {
        CHOSEN.with(|chosen| *chosen == Some(canary))
    }

    /// What a program with canaries says at its start.
    ///
    /// # Errors
    /// That there is no such canary, and which there are.
    pub fn notice() -> Result<String, String> {
        Ok(match choose()? {
            Some((_, name)) => format!("THIS BUILD LOSES DATA ON PURPOSE: canary {name} is let out"),
            None => format!("this build has canaries, for tests only; {VARIABLE} names none"),
        })
    }

    fn choose() -> Result<Option<(Canary, &'static str)>, String> {
        match std::env::var(VARIABLE) {
            Err(_) => Ok(None),
            Ok(name) => find(&name).map(Some),
        }
    }

    fn find(name: &str) -> Result<(Canary, &'static str), String> {
        let found = ALL.iter().find(|(_, known, _)| *known == name).map(|(canary, known, _)| (*canary, *known));
        found.ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|(_, known, _)| *known).collect();
            format!("{VARIABLE}: there is no canary {name:?}; there are {}", names.join(", "))
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_canary_is_found_by_its_name_alone() {
            assert_eq!(find("evict-dirty"), Ok((Canary::EvictDirty, "evict-dirty")));
            assert!(find("evict-dirt").is_err_and(|error| error.contains("evict-dirty")));
            assert!(find("").is_err());
        }

        #[test]
        fn names_are_unique() {
            let mut names: Vec<&str> = ALL.iter().map(|(_, name, _)| *name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), ALL.len());
        }
    }
}
