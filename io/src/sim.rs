//! The simulator: [`Disk`](crate::Disk) and [`Runtime`] in memory, deterministic from one seed, faster than real time.
//! Tests of everything above `io` run on it.
//!
//! ```
//! use forebay_io::sim::SimWorld;
//! use forebay_io::{Disk, DiskFile, OpenMode};
//!
//! let world = SimWorld::new(1);
//! let disk = world.disk();
//! let bytes = world.block_on(async move {
//!     let file = disk.open("a.slab", OpenMode::Create(1 << 20)).await?;
//!     let mut buf = disk.buffer(4096).await;
//!     buf[..5].copy_from_slice(b"hello");
//!     file.write(8192, buf).await?;
//!     file.read(8192, 4096).await
//! });
//! assert_eq!(&bytes.expect("no faults are set")[..5], b"hello");
//! world.crash(); // unsynced: the file, and the bytes, may be gone
//! ```
//!
//! Invariants: the same seed and program make the same run; time is virtual and stands still unless something waits;
//! a crash drops all tasks, ends the life of all handles, and keeps what the contract in `disk` says.

mod disk;
mod executor;
mod faults;
mod media;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub use self::disk::{SimDisk, SimFile};
pub use self::executor::Crashed;
pub use self::faults::{Faults, Fired, Latency, OneIn, Survival};

use self::disk::{DISK_END, Platter};
use self::executor::Executor;
use self::media::Chooser;
use crate::arena::Arena;
use crate::runtime::{Nanos, Runtime};

/// The default bound on buffers in flight: small, so that starvation shows.
const ARENA_BYTES: usize = 32 << 20;
/// 2025-01-01T00:00:00Z, when every simulated world begins.
const BEGIN_UNIX_MS: u64 = 1_735_689_600_000;

/// One simulated machine: an executor, a clock, a disk. Clones are the same world.
#[derive(Clone)]
pub struct SimWorld(Rc<Owner>);

/// Ends the world with the last [`SimWorld`]: tasks hold handles, and handles the world, so it would not go by itself.
struct Owner(Rc<World>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.life.set(self.0.life.get() + 1);
        self.0.executor.drop_all();
    }
}

struct World {
    executor: Rc<Executor>,
    platter: RefCell<Platter>,
    /// How often it has crashed: handles know in which life they were made.
    life: Cell<u64>,
    arena: RefCell<Arena>,
    arena_bytes: Cell<usize>,
    rng: RefCell<SmallRng>,
}

impl World {
    fn arena(&self) -> Arena {
        self.arena.borrow().clone()
    }
}

impl SimWorld {
    /// A world whose every choice follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> SimWorld {
        let platter = Platter {
            files: Default::default(),
            faults: Faults::default(),
            fired: Fired::default(),
            latency: Latency::default(),
            rng: SmallRng::seed_from_u64(seed ^ 0xD15C),
            changes: 0,
            crash_at: None,
            survivors: None,
            doubts: 0,
        };
        let world = World {
            executor: Rc::new(Executor::new(seed)),
            platter: RefCell::new(platter),
            life: Cell::new(0),
            arena: RefCell::new(Arena::new(ARENA_BYTES)),
            arena_bytes: Cell::new(ARENA_BYTES),
            rng: RefCell::new(SmallRng::seed_from_u64(seed ^ 0x7A5C)),
        };
        SimWorld(Rc::new(Owner(Rc::new(world))))
    }

    fn world(&self) -> &Rc<World> {
        &self.0.0
    }

    /// A handle on the disk, for the present life.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        SimDisk { world: Rc::clone(self.world()), life: self.world().life.get(), prefix: "".into() }
    }

    /// As [`SimWorld::disk`], a disk beside that one. Faults and bits are told whose they are by `name:` before the file's name.
    #[must_use]
    pub fn disk_named(&self, name: &str) -> SimDisk {
        SimDisk { prefix: format!("{name}{DISK_END}").into(), ..self.disk() }
    }

    /// Replaces a disk by an empty one: all its files are gone, for good. Between two lives.
    pub fn lose_disk(&self, name: &str) {
        let prefix = format!("{name}{DISK_END}");
        self.world().platter.borrow_mut().files.retain(|file, _| !file.starts_with(&prefix));
    }

    /// Puts the files of a disk aside, or back, as if it had been pulled out and put in again. Between two lives.
    pub fn rename_disk(&self, from: &str, to: &str) {
        let (from, to) = (format!("{from}{DISK_END}"), format!("{to}{DISK_END}"));
        let mut platter = self.world().platter.borrow_mut();
        let files = std::mem::take(&mut platter.files);
        let renamed = |name: String| match name.strip_prefix(&from) {
            Some(file) => format!("{to}{file}"),
            None => name,
        };
        platter.files = files.into_iter().map(|(name, media)| (renamed(name), media)).collect();
    }

    /// A handle on time, tasks and randomness, for the present life.
    #[must_use]
    pub fn runtime(&self) -> SimRuntime {
        SimRuntime { world: Rc::clone(self.world()), life: self.world().life.get() }
    }

    /// Runs `future`, and the tasks it spawns, until it is done. Tasks that are still at work stay where they are and
    /// go on in the next call.
    ///
    /// # Panics
    /// On a deadlock, and if a crash ordered by [`SimWorld::crash_at`] strikes.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        match self.run(future) {
            Ok(output) => output,
            Err(Crashed) => panic!("the world crashed during block_on; use run where a crash is expected"),
        }
    }

    /// As [`SimWorld::block_on`], for tests that order a crash.
    ///
    /// # Errors
    /// [`Crashed`]: `future` and all tasks were dropped, and the disk holds what a power cut leaves.
    ///
    /// # Panics
    /// On a deadlock.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> Result<T, Crashed> {
        let outcome = self.world().executor.run(future);
        if outcome.is_err() {
            self.crash();
        }
        outcome
    }

    /// Lets the spawned tasks run for this long (virtual time).
    ///
    /// # Errors
    /// [`Crashed`] as in [`SimWorld::run`].
    pub fn run_for(&self, duration: Duration) -> Result<(), Crashed> {
        self.run(self.world().executor.sleep(duration))
    }

    /// Cuts the power now: all tasks are dropped and unsynced writes survive by a seeded subset. Take new handles
    /// afterwards.
    pub fn crash(&self) {
        let world = self.world();
        world.executor.cut.set(true);
        world.life.set(world.life.get() + 1);
        world.executor.drop_all();
        {
            let mut platter = world.platter.borrow_mut();
            let Platter { files, rng, fired, crash_at, survivors, doubts, .. } = &mut *platter;
            *doubts = files.values().map(|media| media.doubts() + usize::from(!media.name_stable)).sum();
            let survivors = survivors.take();
            let mut chooser = match &survivors {
                Some(survival) => Chooser::Listed { survival, left: *doubts },
                None => Chooser::Drawn(rng),
            };
            files.retain(|_, media| {
                let stays = media.name_stable || chooser.keeps_name();
                if !stays {
                    chooser.skip(media.doubts());
                }
                stays
            });
            for media in files.values_mut() {
                media.crash(&mut chooser, fired);
                media.name_stable = true;
            }
            fired.crash += 1;
            *crash_at = None;
        }
        world.arena.replace(Arena::new(world.arena_bytes.get()));
        world.executor.cut.set(false);
    }

    /// Orders a crash at the beginning of change number `change`, counted from the world's beginning: a write, a
    /// sync, a creation, a sync of names. The change itself is then under way, so a write may survive or not.
    pub fn crash_at(&self, change: u64) {
        self.world().platter.borrow_mut().crash_at = Some(change);
    }

    /// Says what the next crash leaves of what is not synced then, the last write first; what the list does not reach is
    /// kept. Without a list the seed decides.
    pub fn set_survivors(&self, survival: Vec<Survival>) {
        self.world().platter.borrow_mut().survivors = Some(survival);
    }

    /// How many unsynced writes, names and replacements the last crash decided about, at most: the useful length of a
    /// list for [`SimWorld::set_survivors`].
    #[must_use]
    pub fn doubts(&self) -> usize {
        self.world().platter.borrow().doubts
    }

    /// How many changes have begun since the world did: the bound for an exhaustive crash test.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.world().platter.borrow().changes
    }

    /// From now on these faults strike.
    pub fn set_faults(&self, faults: Faults) {
        self.world().platter.borrow_mut().faults = faults;
    }

    /// How often each fault has struck.
    #[must_use]
    pub fn fired(&self) -> Fired {
        self.world().platter.borrow().fired
    }

    /// From now on operations take this long.
    pub fn set_latency(&self, latency: Latency) {
        self.world().platter.borrow_mut().latency = latency;
    }

    /// From the next life on, the bound on bytes of buffers in flight; before anything has run, at once.
    pub fn set_arena_bytes(&self, bytes: usize) {
        self.world().arena_bytes.set(bytes);
        if self.changes() == 0 {
            self.world().arena.replace(Arena::new(bytes));
        }
    }

    /// Rots one bit of a file, for as long as it is not overwritten.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn flip_bit(&self, name: &str, at: u64, bit: u8) {
        self.disk().flip_bit(name, at, bit);
    }

    /// Makes the sector of a file at `at` unreadable (EIO) until it is written again, also after a crash.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn break_sector(&self, name: &str, at: u64) {
        self.disk().break_sector(name, at);
    }

    /// The names of all files, sorted.
    #[must_use]
    pub fn file_names(&self) -> Vec<String> {
        self.world().platter.borrow().files.keys().cloned().collect()
    }
}

/// Virtual time, tasks and seeded randomness of a [`SimWorld`].
#[derive(Clone)]
pub struct SimRuntime {
    world: Rc<World>,
    life: u64,
}

impl Runtime for SimRuntime {
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.life == self.world.life.get() {
            self.world.executor.spawn(task);
        }
    }

    fn now(&self) -> Nanos {
        self.world.executor.now()
    }

    fn unix_ms(&self) -> u64 {
        BEGIN_UNIX_MS + self.now().0 / 1_000_000
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.world.executor.sleep(duration)
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let mut yielded = false;
        futures::future::poll_fn(move |cx| {
            if std::mem::replace(&mut yielded, true) {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
    }

    fn random_u64(&self) -> u64 {
        self.world.rng.borrow_mut().random()
    }
}

#[cfg(test)]
mod tests;
