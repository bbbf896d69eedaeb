//! What recovery found, read, refused and how long it took. Plain data.
//!
//! Made by `recover` and `salvage`, returned by `Store::open` inside [`super::Recovered`], logged and shown by `src/proxy`.
//! Each kind of damage has one count, so that an operator sees what was hit and what it cost.

macro_rules! rejected {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Records, frames and files that recovery did not take, by reason.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct RejectedCounts { $($(#[$doc])* pub $name: u64,)* }

        impl RejectedCounts {
            /// Adds the counts of another store.
            pub fn add(&mut self, other: &RejectedCounts) {
                $(self.$name += other.$name;)*
            }

            /// Every count with its name.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

rejected! {
    /// Their region was opened again later: evicted, or a newer record follows.
    stale_epoch,
    /// Not synced before the crash, and their bytes do not verify.
    torn_payload,
    /// Frames of the journal that are there but damaged.
    torn_frames,
    /// Frames missing between others, none of which was called durable: nobody waited for what they held.
    skipped_frames,
    /// Frames that were durable and can't be read: a disaster.
    lost_frames,
    /// A record that its codec refuses inside a good frame.
    malformed,
    /// Older records of keys whose newest record lay in a region that was opened again (I13).
    outlived,
    /// Checkpoint slots that are incomplete or damaged.
    checkpoint_slots,
    /// Copies of the superblock that are damaged.
    superblocks,
    /// Sectors that the device could not read (EIO), however often it was asked; each cost what lay on it.
    unreadable_sectors,
    /// After a disaster: clean entries that were dropped, as far as something named them.
    clean_dropped,
    /// After a disaster: regions without a whole footer; what only a footer would have named is lost.
    footers,
    /// After a disaster: dirty puts whose bytes do not verify, or whose region was reused, and that may have been settled.
    candidates,
    /// After a disaster: generations that were surely dirty and of which no record is left.
    dirty_unfound,
}

/// How the state was read back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum RecoveredBy {
    /// From a whole checkpoint and the journal behind it.
    #[default]
    Journal,
    /// Both checkpoint slots or the journal were damaged: from whatever could still be read. Only dirty records came back.
    Salvage,
}

impl RecoveredBy {
    /// A word for logs and status.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            RecoveredBy::Journal => "journal",
            RecoveredBy::Salvage => "salvage",
        }
    }
}

/// How much recovery read and how long each phase took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryWork {
    /// Records read from checkpoint, journal and footers.
    pub records: u64,
    /// Reading the journal, in milliseconds.
    pub journal_ms: u64,
    /// Reading the checkpoint, in milliseconds.
    pub checkpoint_ms: u64,
    /// Applying the journal and verifying what was in doubt, in milliseconds.
    pub replay_ms: u64,
    /// Reading footers and weighing candidates after a disaster, in milliseconds.
    pub salvage_ms: u64,
    /// Making durable what was decided, in milliseconds.
    pub opening_ms: u64,
}

impl RecoveryWork {
    /// Adds the work of another store: stores recover side by side, so the slowest phase counts.
    pub fn add(&mut self, other: &RecoveryWork) {
        self.records += other.records;
        self.journal_ms = self.journal_ms.max(other.journal_ms);
        self.checkpoint_ms = self.checkpoint_ms.max(other.checkpoint_ms);
        self.replay_ms = self.replay_ms.max(other.replay_ms);
        self.salvage_ms = self.salvage_ms.max(other.salvage_ms);
        self.opening_ms = self.opening_ms.max(other.opening_ms);
    }

    /// Every phase with its name, in milliseconds.
    #[must_use]
    pub fn phases_ms(&self) -> [(&'static str, u64); 5] {
        [
            ("journal", self.journal_ms),
            ("checkpoint", self.checkpoint_ms),
            ("replay", self.replay_ms),
            ("salvage", self.salvage_ms),
            ("opening", self.opening_ms),
        ]
    }
}
