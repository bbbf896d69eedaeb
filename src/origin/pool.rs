//! The pool: a few named threads that talk to the stores, each with a tokio runtime and connections of its own.
//!
//! Every store has one bounded mailbox and a share of its concurrency on each thread (a *lane*), so a stalled store
//! fills its own lanes and holds up nobody else. A lane takes a job only when it may run it: what waits, waits in the
//! mailbox, whose bound is the store's queue. Started by boot; asked through `OriginHandle`; stops when dropped. Stores and volumes
//! may come and change while it runs: what was asked of a store before ends with the settings it began with.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, mpsc};

use super::handle::{Lanes, OriginHandle, Table, Volume};
use super::job::Job;
use super::retry::RetryBudget;
use super::s3::{ClientError, S3Client, StoreShared};
use super::settings::{StoreSettings, VolumeSettings};
use super::sign::Signer;
use super::stats::Counters;
use crate::mailbox::{Receiver, mailbox};

/// The running threads.
pub struct OriginPool {
    handle: OriginHandle,
    threads: Vec<PoolThread>,
}

/// Why the pool could not start; each names what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A store that can't be used.
    #[error("store `{store}`: {source}")]
    Store {
        /// Its name.
        store: Arc<str>,
        /// What is wrong with it.
        #[source]
        source: ClientError,
    },
    /// A volume of a store that does not exist.
    #[error("volume `{volume}`: there is no store `{store}`: name one of the stores in `store`")]
    NoSuchStore {
        /// The volume.
        volume: Arc<str>,
        /// The store it names.
        store: Arc<str>,
    },
    /// No thread.
    #[error("the origin pool's threads can't be started: {0}")]
    Thread(#[from] io::Error),
}

/// A store that can't be used as it was told; what was told before still holds.
#[derive(Debug)]
pub struct Unusable {
    /// The volume that lies there.
    pub volume: Arc<str>,
    /// Whether it is served from where it was before.
    pub stays: Stays,
    /// What is wrong with the store.
    pub source: ClientError,
}

/// Whether a volume is served from where it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// It is.
    Yes,
    /// It was nowhere.
    No,
}

struct PoolThread {
    /// Lanes for it to run; it ends when this is dropped.
    lanes: Option<mpsc::UnboundedSender<Lane>>,
    join: Option<JoinHandle<()>>,
}

/// One store on one thread.
struct Lane {
    client: Arc<S3Client>,
    jobs: Receiver<Job>,
    concurrency: usize,
}

impl OriginPool {
    /// Starts `threads` threads (at least one) that serve `stores`. Connects to nothing yet.
    ///
    /// # Errors
    /// [`StartError`]: bad endpoint, credentials or CA file of a store, or a volume without a store.
    pub fn start(
        stores: Vec<StoreSettings>,
        volumes: &[VolumeSettings],
        threads: usize,
    ) -> Result<OriginPool, StartError> {
        let threads = (0..threads.max(1)).map(PoolThread::spawn).collect::<io::Result<Vec<_>>>()?;
        let pool = OriginPool { handle: OriginHandle::new(), threads };
        let mut table = Table::default();
        for settings in &stores {
            let failed = |source| StartError::Store { store: Arc::clone(&settings.name), source };
            table.stores.push(pool.lanes(settings).map_err(failed)?);
        }
        for volume in volumes {
            let store = table.stores.iter().find(|lanes| *lanes.settings().name == *volume.store);
            let store = store.ok_or_else(|| StartError::NoSuchStore {
                volume: Arc::clone(&volume.name),
                store: Arc::clone(&volume.store),
            })?;
            let placed = Volume::placed(volume, store);
            table.volumes.insert(Arc::clone(&volume.name), placed);
        }
        pool.handle.replace(table);
        Ok(pool)
    }

    /// From now on there are these volumes, each in its store, and no others. A volume whose store can't be used stays where it was, if it
    /// was anywhere.
    pub fn reconfigure(&self, volumes: &[(VolumeSettings, StoreSettings)]) -> Vec<Unusable> {
        let before = self.handle.table();
        let (mut table, mut unusable) = (Table::default(), Vec::new());
        for (volume, settings) in volumes {
            let known = table.stores.iter().chain(&before.stores).find(|lanes| lanes.settings() == settings);
            let placed = match known.map_or_else(|| self.lanes(settings), |lanes| Ok(Arc::clone(lanes))) {
                Ok(lanes) => Volume::placed(volume, &lanes),
                Err(source) => {
                    let placed = before.volumes.get(&volume.name);
                    let stays = if placed.is_some() { Stays::Yes } else { Stays::No };
                    unusable.push(Unusable { volume: Arc::clone(&volume.name), stays, source });
                    let Some(placed) = placed else { continue };
                    placed.clone()
                }
            };
            if !table.stores.iter().any(|lanes| Arc::ptr_eq(lanes, &placed.store)) {
                table.stores.push(Arc::clone(&placed.store));
            }
            table.volumes.insert(Arc::clone(&volume.name), placed);
        }
        self.handle.replace(table);
        unusable
    }

    /// A way to ask; cheap to clone and to send to any thread.
    #[must_use]
    pub fn handle(&self) -> OriginHandle {
        self.handle.clone()
    }

    /// New lanes of one store, one on each thread.
    fn lanes(&self, settings: &StoreSettings) -> Result<Arc<Lanes>, ClientError> {
        let concurrency = settings.concurrency.div_ceil(self.threads.len()).max(1);
        let queue_depth = settings.queue_depth.div_ceil(self.threads.len()).max(1);
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(StoreShared {
            signer: Signer::new(settings)?,
            budget: RetryBudget::new(&settings.retry),
            counters: Arc::clone(&counters),
            settings: settings.clone(),
        });
        let mut senders = Vec::with_capacity(self.threads.len());
        for thread in &self.threads {
            let (sender, jobs) = mailbox(queue_depth);
            let lane = Lane { client: Arc::new(S3Client::new(Arc::clone(&shared))?), jobs, concurrency };
            // A thread that is gone takes none, and its mailbox is closed: the others serve.
            if let Some(lanes) = &thread.lanes {
                let _ = lanes.send(lane);
            }
            senders.push(sender);
        }
        Ok(Arc::new(Lanes::new(settings, senders, counters)))
    }

    /// Cuts all requests and ends the threads. Whoever waits gets `Unreachable`.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for OriginPool {
    fn drop(&mut self) {
        self.threads.iter_mut().for_each(|thread| drop(thread.lanes.take()));
        for join in self.threads.iter_mut().filter_map(|thread| thread.join.take()) {
            // A panic was printed by the thread itself; those who waited for it have been told.
            let _ = join.join();
        }
    }
}

impl Volume {
    fn placed(volume: &VolumeSettings, store: &Arc<Lanes>) -> Volume {
        let (names, prefix) = (store.settings().names, volume.prefix.clone());
        Volume { store: Arc::clone(store), names, prefix, block_bytes_max: volume.block_bytes_max }
    }
}

impl PoolThread {
    fn spawn(index: usize) -> io::Result<PoolThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (lanes, mut lanes_to_run) = mpsc::unbounded_channel::<Lane>();
        let join = std::thread::Builder::new().name(format!("origin-{index}")).spawn(move || {
            runtime.block_on(async move {
                while let Some(lane) = lanes_to_run.recv().await {
                    tokio::spawn(lane.run());
                }
            });
        })?;
        Ok(PoolThread { lanes: Some(lanes), join: Some(join) })
    }
}

impl Lane {
    async fn run(mut self) {
        let permits = Arc::new(Semaphore::new(self.concurrency));
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("nobody closes the semaphore");
            let Some(job) = self.jobs.recv().await else { return };
            if job.is_unwanted() {
                continue;
            }
            let client = Arc::clone(&self.client);
            let in_flight = client.store.counters.begin();
            tokio::spawn(async move {
                job.run(&client).await;
                drop((permit, in_flight));
            });
        }
    }
}
