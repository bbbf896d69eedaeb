//! Format, open and close: the beginning and the end of a store's run.
//!
//! Called by `Store`. A format ends with the superblock, so a disk whose format was interrupted is never taken for a store.
//! An open ends when what recovery decided is durable; only then do the tasks start and writes begin (I11).

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use forebay_io::frame::frame_bytes;
use forebay_io::superblock::{Copies, SUPERBLOCK_BYTES, SUPERBLOCKS_BYTES, Superblock, SuperblockReject};
use forebay_io::units::SECTOR_BYTES;
use forebay_io::{Disk, DiskFile, IoError, OpenMode, Runtime};
use futures::future::{Either, select};

use super::block::Certainty;
use super::checkpoint::{Header, SlotWriter, slot_name};
use super::entry::{REGION_BYTES_MAX, REGION_MAX};
use super::journal::{self, JOURNAL_BYTES_MIN, Point};
use super::patient::{PatientDisk, PatientFile};
use super::record::Record;
use super::recover::{self, Beginning, Loaded};
use super::regions::{RegionState, StreamKind};
use super::slots::SALVAGE_SLOT;
use super::state::{Core, Life, Signals};
use super::{NodeIdentity, Recovered, RecoveryWork, StoreConfig, slab_name};
use crate::canary::{self, Canary};
use crate::config::Geometry;
use crate::error::StoreError;
use crate::key::Generation;
use crate::policy::allowance::Allowance;
use crate::policy::disk::DiskPolicy;

/// The fewest regions: one open for each stream, two free, and some to reclaim.
const REGIONS_MIN: u32 = 6;
/// The journal is emptied in writes of this size.
const ZEROS_BYTES: u64 = 1 << 20;
/// For a footer, or the prober's write, that is under way at a close: as long as a disk may be silent before it is offline.
const CLOSE_WAIT: Duration = Duration::from_secs(15);
/// The smallest first checkpoint slot.
const EMPTY_SLOT_BYTES: u64 = 64 << 10;

/// Makes slab and first checkpoint of an empty store; the superblock comes last.
pub async fn format<D: Disk, R: Runtime>(
    disk: &D,
    runtime: &R,
    geometry: Geometry,
    node: &NodeIdentity,
) -> Result<(), StoreError> {
    let Geometry { region_bytes, region_count, journal_bytes } = geometry;
    assert!(region_bytes.is_power_of_two() && region_bytes <= REGION_BYTES_MAX, "{geometry:?}");
    assert!(
        (REGIONS_MIN..=REGION_MAX + 1).contains(&region_count) && journal_bytes >= JOURNAL_BYTES_MIN,
        "{geometry:?}"
    );
    let superblock = Superblock {
        node_id: node.node,
        store_id: runtime.random_u64(),
        shard: u32::from(node.shard),
        shard_count: u32::from(node.shard_count),
        identity_key: node.identity_key.0,
        region_bytes,
        region_count,
        journal_bytes,
        created_unix_ms: runtime.unix_ms(),
    };
    let slab = disk.open(&slab_name(node.shard), OpenMode::Create(superblock.slab_bytes())).await?;
    let slot = disk.open(&slot_name(superblock.shard, 0), OpenMode::Replace(EMPTY_SLOT_BYTES)).await?;
    let header = Header { number: 0, from: Point::BEGIN, next_generation: Generation(1) };
    let is_whole = SlotWriter::begin(disk, slot, superblock.store_id, header).await?.end(header).await?;
    assert!(is_whole, "an empty checkpoint fits into its slot");
    write_superblock(disk, &slab, &superblock).await?;
    disk.sync_names().await?;
    Ok(())
}

/// Recovers and starts.
pub async fn open<D: Disk, R: Runtime>(
    disk: D,
    runtime: R,
    config: StoreConfig,
) -> Result<(Rc<Core<D, R>>, Recovered), StoreError> {
    let name = slab_name(config.node.shard);
    let slab = disk.open(&name, OpenMode::ReadWrite).await?;
    let patient = PatientDisk::new(disk.clone(), runtime.clone());
    let patient_slab = patient.file(&name, slab.clone());
    let (superblock, copies) = read_superblock(&patient_slab, &name).await?;
    check_owner(&superblock, &config.node, &name)?;
    if slab.len_bytes() < superblock.slab_bytes() {
        let what = format!("{name} is shorter than its superblock says; it was cut, restore it or format a new one");
        return Err(StoreError::Foreign { what });
    }
    let Loaded { mut state, voids, settled_through, beginning, by, mut rejected, work } =
        recover::load(&patient, &runtime, &patient_slab, &superblock, &config.node).await?;
    rejected.unreadable_sectors = patient.unreadable();
    if copies == Copies::One {
        rejected.superblocks += 1;
        write_superblock(&disk, &slab, &superblock).await?;
    }
    let mut dirty: Vec<_> = state.dirty.values().cloned().collect();
    dirty.sort_unstable_by_key(|record| record.generation);
    let unsure = dirty.iter().filter(|record| record.certainty == Certainty::Unsure).count() as u64;
    let quarantined = u64::from(state.regions.count_in(RegionState::Quarantined));
    let entries = state.index.count();
    state.counters = Default::default();
    let allowance = config.disk_limits.write_bytes_per_day;
    let allowance = allowance.map(|bytes_per_day| Allowance::new(bytes_per_day, runtime.now().0));
    state.policy = DiskPolicy::new(config.disk_limits.ghosts_max, allowance);
    let core = Rc::new(Core {
        disk,
        runtime,
        slab,
        superblock,
        config,
        state: RefCell::new(state),
        signals: Signals::default(),
        checkpointing: async_lock::Mutex::new(()),
        committing: async_lock::Mutex::new(()),
        syncing: async_lock::Mutex::new(()),
    });
    let began = core.runtime.now();
    core.begin_run(voids, settled_through, beginning).await?;
    let opening_ms = u64::try_from(core.runtime.now().since(began).as_millis()).unwrap_or(u64::MAX);
    let work = RecoveryWork { opening_ms, ..work };
    let recovered = Recovered { dirty, entries, unsure, quarantined, by, rejected, work };
    core.runtime.spawn(Rc::clone(&core).run_committer());
    core.runtime.spawn(Rc::clone(&core).run_checkpointer());
    core.runtime.spawn(Rc::clone(&core).run_reclaimer());
    core.runtime.spawn(Rc::clone(&core).run_prober());
    Ok((core, recovered))
}

impl<D: Disk, R: Runtime> Core<D, R> {
    /// Makes durable what recovery read and decided. The frame that settles the doubt comes last.
    async fn begin_run(
        &self,
        mut voids: Vec<Record>,
        settled_through: u64,
        beginning: Beginning,
    ) -> Result<(), StoreError> {
        // What recovery read may still be in the device's cache only.
        self.sync_slab().await?;
        if beginning != Beginning::Continue {
            self.checkpoint_all(beginning).await?;
            voids.clear();
        }
        let nonce = self.runtime.random_u64();
        if canary::is(Canary::TornRecordNotVoided) {
            voids.clear();
        }
        let opening = |voids: &[Record]| recover::opening_payloads(&self.state.borrow(), voids, nonce);
        let needed: u64 = opening(&voids).iter().map(|(payload, _)| frame_bytes(payload.len()) as u64).sum();
        let is_full = || {
            let state = self.state.borrow();
            state.journal.used_bytes() + needed > state.journal.ring.len_bytes
        };
        // Recovery decided everything; a checkpoint says it as well, and replays nothing from before it. The second one
        // gives back the space that the first still keeps for the slot before it.
        while is_full() {
            self.checkpoint().await?;
            voids.clear();
        }
        let payloads = opening(&voids);
        for (index, (payload, record_count)) in payloads.iter().enumerate() {
            let mut frame = self.disk.buffer(frame_bytes(payload.len())).await;
            let (ring, at) = {
                let mut state = self.state.borrow_mut();
                if index + 1 == payloads.len() {
                    state.journal.synced_through = state.journal.synced_through.max(settled_through);
                }
                let at = state.journal.append(self.superblock.store_id, payload, *record_count, &mut frame);
                (state.journal.ring, at)
            };
            journal::write(&self.disk, &self.slab, ring, at.position, frame).await?;
        }
        self.sync_slab().await?;
        let mut state = self.state.borrow_mut();
        state.journal.published = state.journal.head;
        state.journal.synced_through = state.journal.head.chain.sequence - 1;
        Ok(())
    }

    /// Writes the recovered state to every slot: what lies before it in the journal is never read again.
    async fn checkpoint_all(&self, beginning: Beginning) -> Result<(), StoreError> {
        let aside = slot_name(self.superblock.shard, SALVAGE_SLOT);
        if beginning == Beginning::RebuildAside {
            self.checkpoint_aside(&aside).await?;
        }
        self.checkpoint().await?;
        self.checkpoint().await?;
        if matches!(beginning, Beginning::Rebuild | Beginning::RebuildAside) {
            self.empty_journal().await?;
        }
        // From now on it would be a checkpoint of the past.
        match self.disk.open(&aside, OpenMode::Read).await {
            Err(IoError::Missing { .. }) => Ok(()),
            opened => {
                opened?;
                let empty = self.disk.open(&aside, OpenMode::Replace(SECTOR_BYTES as u64)).await?;
                empty.write(0, self.disk.buffer(SECTOR_BYTES).await).await?;
                Ok(empty.sync().await?)
            }
        }
    }

    /// Overwrites the whole ring, of which nothing is needed any more, with zeros.
    async fn empty_journal(&self) -> Result<(), StoreError> {
        let ring = self.state.borrow().journal.ring;
        for at in (0..ring.len_bytes).step_by(ZEROS_BYTES as usize) {
            let zeros = self.disk.buffer(ZEROS_BYTES.min(ring.len_bytes - at) as usize).await;
            self.slab.write(ring.at + at, zeros).await?;
        }
        Ok(self.sync_slab().await?)
    }

    /// Commits what is queued, waits for footers and the prober's write, seals the open regions, writes a checkpoint, ends the
    /// tasks. Returns at once if the disk failed.
    pub async fn close(&self) {
        {
            let mut state = self.state.borrow_mut();
            if state.life == Life::Running {
                state.life = Life::Closing;
            }
        }
        self.signals.notify_all();
        loop {
            let stopped = self.signals.stopped.listen();
            let life = self.state.borrow().life;
            match life {
                // The tasks end, and nothing more is written.
                Life::Failed | Life::Refounding => return self.stop(),
                Life::Stopped => break,
                Life::Running | Life::Closing => {}
            }
            stopped.await;
        }
        self.until_settled().await;
        // Everything is committed: the open regions get their footers, which disaster recovery reads.
        for kind in StreamKind::ALL {
            let full = self.change(|state| state.take_full(kind));
            if let Some(full) = full {
                self.seal_written(full).await;
            }
        }
        if let Err(error) = self.checkpoint().await {
            tracing::warn!(shard = self.superblock.shard, %error, "the last checkpoint failed; the journal has it all");
        }
    }

    /// Waits, but not for ever, until nothing is being written to any region: a write that lands after the next opening would
    /// hit what that has put there (I1).
    async fn until_settled(&self) {
        let mut patience = pin!(self.runtime.sleep(CLOSE_WAIT));
        loop {
            let settled = self.signals.settled.listen();
            {
                let state = self.state.borrow();
                if !state.probing && state.regions.iter().all(|(_, region)| !region.is_footer_due) {
                    return;
                }
            }
            if let Either::Right(_) = select(settled, patience.as_mut()).await {
                let shard = self.superblock.shard;
                return tracing::warn!(shard, "a region is still being written to; closing without waiting for it");
            }
        }
    }

    fn stop(&self) {
        self.state.borrow_mut().life = Life::Stopped;
        self.signals.notify_all();
    }
}

async fn write_superblock<D: Disk>(disk: &D, slab: &D::File, superblock: &Superblock) -> Result<(), IoError> {
    // One copy after the other: a torn write damages one of them.
    for copy in 0..2 {
        let mut buf = disk.buffer(SUPERBLOCK_BYTES).await;
        superblock.encode(&mut buf);
        slab.write(copy * SUPERBLOCK_BYTES as u64, buf).await?;
        slab.sync().await?;
    }
    Ok(())
}

async fn read_superblock<F: DiskFile, R: Runtime>(
    slab: &PatientFile<F, R>,
    name: &str,
) -> Result<(Superblock, Copies), StoreError> {
    let foreign = |what: String| StoreError::Foreign { what };
    if slab.len_bytes() < SUPERBLOCKS_BYTES as u64 {
        return Err(foreign(format!("{name} is too short for a slab; move it away and format")));
    }
    slab.bear_witness().await?;
    let bytes = slab.read(0, SUPERBLOCKS_BYTES).await?;
    Superblock::decode_copies(&bytes).map_err(|reject| match reject {
        SuperblockReject::NotForebay => {
            foreign(format!("{name} was never formatted to its end, or is no slab; move it away and format"))
        }
        SuperblockReject::OtherVersion { .. } => {
            foreign(format!("{name}: {reject}; use that version, or drain and format"))
        }
        SuperblockReject::Damaged => foreign(format!("{name}: both copies of the superblock are damaged")),
        SuperblockReject::Impossible { .. } => foreign(format!("{name}: {reject}")),
    })
}

/// Whether the slab is this node's and of a shape that this Forebay can use.
///
/// # Errors
/// What does not fit, and the fix.
pub fn check_owner(superblock: &Superblock, node: &NodeIdentity, name: &str) -> Result<(), StoreError> {
    let what = if superblock.node_id != node.node || superblock.identity_key != node.identity_key.0 {
        format!("{name} belongs to another node; give this node its own directory")
    } else if superblock.shard != u32::from(node.shard) || superblock.shard_count != u32::from(node.shard_count) {
        let (found, count) = (superblock.shard, superblock.shard_count);
        format!("{name} is shard {found} of {count}; the number of shards is fixed at format")
    } else if superblock.region_bytes > REGION_BYTES_MAX
        || !(REGIONS_MIN..=REGION_MAX + 1).contains(&superblock.region_count)
        || superblock.journal_bytes < JOURNAL_BYTES_MIN
    {
        format!("{name} has a geometry that this Forebay can't use")
    } else {
        return Ok(());
    };
    Err(StoreError::Foreign { what })
}
