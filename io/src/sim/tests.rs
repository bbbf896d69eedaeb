//! Tests of the simulator itself: that it is deterministic, that its crashes and faults bite, that deadlocks are told.
//! A simulator that forgave a lost write or ran the same order twice would let every test above it pass for nothing.
//! Each test here fails if one of its properties is taken away.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::units::SECTOR_BYTES;
use crate::{Disk, DiskFile, IoError, OpenMode};

const FILE: &str = "a.slab";
const SECTOR: u64 = SECTOR_BYTES as u64;

async fn create(disk: &SimDisk) -> SimFile {
    let file = disk.open(FILE, OpenMode::Create(1 << 20)).await.unwrap();
    disk.sync_names().await.unwrap();
    file
}

async fn fill(disk: &SimDisk, file: &SimFile, at: u64, sectors: usize, byte: u8) -> Result<(), IoError> {
    let mut buf = disk.buffer(sectors * SECTOR_BYTES).await;
    buf.fill(byte);
    file.write(at, buf).await
}

fn interleaving(seed: u64) -> Vec<u64> {
    let world = SimWorld::new(seed);
    let runtime = world.runtime();
    let seen = Rc::new(RefCell::new(Vec::new()));
    for id in 0..6 {
        let (runtime, seen) = (runtime.clone(), Rc::clone(&seen));
        world.runtime().spawn(async move {
            for round in 0..3 {
                seen.borrow_mut().push(id * 10 + round);
                runtime.sleep(Duration::from_micros(runtime.random_u64() % 3)).await;
                runtime.yield_now().await;
            }
        });
    }
    world.run_for(Duration::from_secs(1)).unwrap();
    let seen = seen.borrow().clone();
    assert_eq!(seen.len(), 18);
    seen
}

#[test]
fn one_seed_is_one_interleaving_and_seeds_differ() {
    assert_eq!(interleaving(7), interleaving(7));
    let distinct: std::collections::HashSet<_> = (0..20).map(interleaving).collect();
    assert!(distinct.len() > 15, "{} of 20 interleavings differ", distinct.len());
}

#[test]
fn time_jumps_when_nothing_can_run() {
    let world = SimWorld::new(1);
    let begin = world.runtime().now();
    world.block_on(world.runtime().sleep(Duration::from_secs(86_400)));
    assert_eq!(world.runtime().now().since(begin).as_secs(), 86_400);
}

#[test]
#[should_panic(expected = "simulated deadlock (seed 3")]
fn a_deadlock_is_told() {
    SimWorld::new(3).block_on(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "simulated deadlock")]
fn a_starved_arena_is_a_deadlock() {
    let world = SimWorld::new(1);
    world.set_arena_bytes(8192);
    let disk = world.disk();
    world.block_on(async {
        let held = (disk.buffer(4096).await, disk.buffer(4096).await);
        let _third = disk.buffer(4096).await;
        drop(held);
    });
}

#[test]
fn a_crash_keeps_what_was_synced_and_tears_the_rest() {
    let (mut torn, mut kept, mut missing) = (0, 0, 0);
    for seed in 0..60 {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        world.block_on(async {
            let file = create(&disk).await;
            fill(&disk, &file, 0, 4, 1).await.unwrap();
            file.sync().await.unwrap();
            fill(&disk, &file, 2 * SECTOR, 4, 2).await.unwrap();
        });
        world.crash();
        let disk = world.disk();
        let bytes = world.block_on(async {
            let file = disk.open(FILE, OpenMode::Read).await.unwrap();
            file.read(0, 4 * SECTOR_BYTES).await.unwrap()
        });
        assert!(bytes[..2 * SECTOR_BYTES].iter().all(|&byte| byte == 1), "synced, and not touched since");
        let new = bytes[2 * SECTOR_BYTES..].iter().filter(|&&byte| byte == 2).count();
        let old = bytes[2 * SECTOR_BYTES..].iter().filter(|&&byte| byte == 1).count();
        assert_eq!((new + old, new % 512), (2 * SECTOR_BYTES, 0), "each 512 bytes are old or new");
        match (new, old) {
            (_, 0) => kept += 1,
            (0, _) => missing += 1,
            _ => torn += 1,
        }
    }
    assert!(torn > 0 && kept > 0 && missing > 0, "torn {torn}, kept {kept}, missing {missing}");
}

#[test]
fn unsynced_names_and_replacements_may_be_undone() {
    let (mut gone, mut undone) = (0, 0);
    for seed in 0..40 {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        world.block_on(async {
            let file = create(&disk).await;
            fill(&disk, &file, 0, 1, 1).await.unwrap();
            file.sync().await.unwrap();
            disk.open(FILE, OpenMode::Replace(1 << 20)).await.unwrap();
            disk.open("unsynced", OpenMode::Create(4096)).await.unwrap();
        });
        world.crash();
        gone += usize::from(world.file_names().len() == 1);
        let disk = world.disk();
        let bytes = world.block_on(async {
            let file = disk.open(FILE, OpenMode::Read).await.unwrap();
            file.read(0, SECTOR_BYTES).await.unwrap()
        });
        undone += usize::from(bytes.iter().all(|&byte| byte == 1));
    }
    assert!((1..40).contains(&gone) && (1..40).contains(&undone), "gone {gone}, undone {undone}");
}

#[test]
fn writes_of_a_failed_sync_stay_in_doubt() {
    let mut lost = 0;
    for seed in 0..40 {
        let world = SimWorld::new(seed);
        let disk = world.disk();
        world.block_on(async {
            let file = create(&disk).await;
            fill(&disk, &file, 0, 1, 1).await.unwrap();
            world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
            assert!(file.sync().await.unwrap_err().is_device_fault());
            world.set_faults(Faults::default());
            file.sync().await.unwrap();
        });
        assert_eq!(world.fired().sync_error, 1);
        world.crash();
        let disk = world.disk();
        let bytes = world.block_on(async {
            let file = disk.open(FILE, OpenMode::Read).await.unwrap();
            file.read(0, SECTOR_BYTES).await.unwrap()
        });
        lost += usize::from(bytes.iter().any(|&byte| byte != 1));
    }
    assert!((1..40).contains(&lost), "lost {lost} of 40");
}

#[test]
fn an_ordered_crash_strikes_at_each_change_once() {
    let write_three = |world: &SimWorld| {
        let disk = world.disk();
        world.run(async move {
            let file = create(&disk).await;
            for at in 0..3 {
                fill(&disk, &file, at * SECTOR, 1, 1).await.unwrap();
                file.sync().await.unwrap();
            }
        })
    };
    let world = SimWorld::new(9);
    write_three(&world).unwrap();
    assert_eq!(world.changes(), 8, "a creation, a sync of names, three writes, three syncs");
    for change in 0..8 {
        let world = SimWorld::new(9);
        world.crash_at(change);
        assert_eq!(write_three(&world), Err(Crashed));
        assert_eq!((world.fired().crash, world.changes()), (1, change + 1));
        let disk = world.disk();
        let durable = world.block_on(async move {
            let file = disk.open(FILE, OpenMode::Read).await.ok()?;
            file.read(0, 3 * SECTOR_BYTES).await.ok()
        });
        // Changes: create, names, then a write and its sync in turn; a write is sure once the next write has begun.
        let sure = usize::try_from(change.saturating_sub(2) / 2).unwrap() * SECTOR_BYTES;
        assert!(sure == 0 || durable.unwrap()[..sure].iter().all(|&byte| byte == 1), "crash at change {change}");
    }
}

#[test]
fn faults_strike_and_are_counted() {
    let world = SimWorld::new(5);
    let disk = world.disk();
    let set = |faults: Faults| world.set_faults(faults);
    world.block_on(async {
        let file = create(&disk).await;
        fill(&disk, &file, 0, 1, 1).await.unwrap();
        set(Faults { lost_write: OneIn::ALWAYS, ..Faults::default() });
        fill(&disk, &file, 0, 1, 2).await.unwrap();
        set(Faults { bit_flip: OneIn::ALWAYS, ..Faults::default() });
        let rotten = file.read(0, SECTOR_BYTES).await.unwrap();
        assert_eq!(rotten.iter().map(|byte| (byte ^ 1).count_ones()).sum::<u32>(), 1, "one bit of the old bytes");
        set(Faults::default());
        assert_eq!(*file.read(0, SECTOR_BYTES).await.unwrap(), *rotten, "rot stays");
        set(Faults { misdirected_write: OneIn::ALWAYS, ..Faults::default() });
        fill(&disk, &file, 4 * SECTOR, 1, 3).await.unwrap();
        set(Faults { read_error: OneIn::ALWAYS, ..Faults::default() });
        assert!(file.read(0, SECTOR_BYTES).await.is_err());
        set(Faults { write_error: OneIn::ALWAYS, only: "other".into(), ..Faults::default() });
        fill(&disk, &file, 0, 1, 4).await.unwrap();
        set(Faults { write_error: OneIn::ALWAYS, no_space: OneIn::ALWAYS, ..Faults::default() });
        assert!(fill(&disk, &file, 0, 1, 4).await.is_err());
        assert!(matches!(disk.open("b", OpenMode::Create(4096)).await, Err(IoError::NoSpace { .. })));
        set(Faults::default());
        let whole = file.read(0, 1 << 20).await.unwrap();
        assert_eq!(whole.chunks(SECTOR_BYTES).filter(|part| part.iter().all(|&byte| byte == 3)).count(), 1);
    });
    let once = Fired {
        read_error: 1,
        write_error: 1,
        no_space: 1,
        bit_flip: 1,
        lost_write: 1,
        misdirected_write: 1,
        ..Fired::default()
    };
    assert_eq!(world.fired(), once);
}

/// One 512-byte unit of the model: the value that is surely stable and those that may have come after it.
#[derive(Clone, Default)]
struct Unit {
    stable: u8,
    later: Vec<(u64, u8)>,
}

/// Random writes, syncs (some failing) and drops, then a crash; each unit must hold what was surely stable or
/// something accepted after it, and never what a later synced write had replaced.
#[test]
fn what_survives_a_crash_is_what_the_contract_allows() {
    const SECTORS: u64 = 12;
    let mut lost = 0;
    for seed in 0..200 {
        let world = SimWorld::new(seed);
        let (disk, runtime) = (world.disk(), world.runtime());
        let mut model = vec![Unit::default(); SECTORS as usize];
        world.block_on(async {
            let file = disk.open(FILE, OpenMode::Create(SECTORS * SECTOR)).await.unwrap();
            disk.sync_names().await.unwrap();
            fill(&disk, &file, 0, SECTORS as usize, 0).await.unwrap();
            file.sync().await.unwrap();
            for step in 1..=40u64 {
                let (first, count) = (runtime.random_u64() % SECTORS, 1 + runtime.random_u64() % 3);
                let sectors = first..SECTORS.min(first + count);
                let value = u8::try_from(step).unwrap();
                match runtime.random_u64() % 8 {
                    0 => {
                        file.sync().await.unwrap();
                        for unit in &mut model {
                            // Values before the first of this era are settled; doubt ends only by a newer synced write.
                            if let Some(&(_, newest)) = unit.later.iter().rev().find(|(era, _)| *era == DECIDED) {
                                unit.stable = newest;
                                unit.later.clear();
                            }
                        }
                    }
                    1 => {
                        world.set_faults(Faults { sync_error: OneIn::ALWAYS, ..Faults::default() });
                        file.sync().await.unwrap_err();
                        world.set_faults(Faults::default());
                        model.iter_mut().flat_map(|unit| &mut unit.later).for_each(|(era, _)| *era = DOUBTED);
                    }
                    _ => {
                        let len = usize::try_from(sectors.end - sectors.start).unwrap();
                        fill(&disk, &file, sectors.start * SECTOR, len, value).await.unwrap();
                        sectors.for_each(|sector| model[sector as usize].later.push((DECIDED, value)));
                    }
                }
            }
        });
        world.crash();
        let disk = world.disk();
        let bytes = world.block_on(async {
            let file = disk.open(FILE, OpenMode::Read).await.unwrap();
            file.read(0, SECTORS as usize * SECTOR_BYTES).await.unwrap()
        });
        for (place, unit_bytes) in bytes.chunks(512).enumerate() {
            let (unit, found) = (&model[place * 512 / SECTOR_BYTES], unit_bytes[0]);
            assert!(unit_bytes.iter().all(|&byte| byte == found), "seed {seed}: a unit of 512 bytes is whole");
            let allowed = found == unit.stable || unit.later.iter().any(|(_, value)| *value == found);
            assert!(allowed, "seed {seed}, place {place}: {found} of {} and {:?}", unit.stable, unit.later);
            lost += usize::from(unit.later.last().is_some_and(|(_, value)| *value != found));
        }
    }
    assert!(lost > 0, "no crash lost anything: the simulator is too kind");
}

/// Accepted since the last sync of any outcome, or before one that succeeded.
const DECIDED: u64 = 0;
/// Covered by a sync that failed.
const DOUBTED: u64 = 1;
