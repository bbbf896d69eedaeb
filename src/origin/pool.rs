//! The pool: a few named threads that talk to the stores, each with a tokio runtime and connections of its own.
//!
//! Every store has one bounded mailbox and a share of its concurrency on each thread (a *lane*), so a stalled store
//! fills its own lanes and holds up nobody else. A lane takes a job only when it may run it: what waits, waits in the
//! mailbox, whose bound is the store's queue. Started by boot; asked through `OriginHandle`; stops when dropped.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, oneshot};

use super::handle::{Lanes, OriginHandle, Volume};
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

struct PoolThread {
    stop: Option<oneshot::Sender<()>>,
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
        let threads = threads.max(1);
        let mut thread_lanes: Vec<Vec<Lane>> = (0..threads).map(|_| Vec::new()).collect();
        let mut store_lanes = Vec::with_capacity(stores.len());
        for settings in stores {
            let name = Arc::clone(&settings.name);
            let failed = |source| StartError::Store { store: Arc::clone(&name), source };
            store_lanes.push(lanes(settings, &mut thread_lanes).map_err(failed)?);
        }
        let volumes = volumes.iter().map(|volume| Ok((Arc::clone(&volume.name), resolve(volume, &store_lanes)?)));
        let volumes = volumes.collect::<Result<HashMap<_, _>, StartError>>()?;
        let threads = thread_lanes.into_iter().enumerate().map(|(index, lanes)| PoolThread::spawn(index, lanes));
        let threads = threads.collect::<io::Result<Vec<_>>>()?;
        Ok(OriginPool { handle: OriginHandle::new(store_lanes, volumes), threads })
    }

    /// A way to ask; cheap to clone and to send to any thread.
    #[must_use]
    pub fn handle(&self) -> OriginHandle {
        self.handle.clone()
    }

    /// Cuts all requests and ends the threads. Whoever waits gets `Unreachable`.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for OriginPool {
    fn drop(&mut self) {
        self.threads.iter_mut().for_each(|thread| drop(thread.stop.take()));
        for join in self.threads.iter_mut().filter_map(|thread| thread.join.take()) {
            // A panic was printed by the thread itself; those who waited for it have been told.
            let _ = join.join();
        }
    }
}

/// The lanes of one store, one added to each thread.
fn lanes(settings: StoreSettings, threads: &mut [Vec<Lane>]) -> Result<Lanes, ClientError> {
    let concurrency = settings.concurrency.div_ceil(threads.len()).max(1);
    let queue_depth = settings.queue_depth.div_ceil(threads.len()).max(1);
    let counters = Arc::new(Counters::default());
    let shared = Arc::new(StoreShared {
        signer: Signer::new(&settings)?,
        budget: RetryBudget::new(&settings.retry),
        counters: Arc::clone(&counters),
        settings,
    });
    let mut senders = Vec::with_capacity(threads.len());
    for thread in threads {
        let (sender, jobs) = mailbox(queue_depth);
        senders.push(sender);
        thread.push(Lane { client: Arc::new(S3Client::new(Arc::clone(&shared))?), jobs, concurrency });
    }
    Ok(Lanes::new(&shared.settings, senders, counters))
}

fn resolve(volume: &VolumeSettings, stores: &[Lanes]) -> Result<Volume, StartError> {
    let store = stores.iter().position(|lanes| **lanes.store() == *volume.store).ok_or_else(|| {
        StartError::NoSuchStore { volume: Arc::clone(&volume.name), store: Arc::clone(&volume.store) }
    })?;
    let names = stores[store].names();
    Ok(Volume { store, names, prefix: volume.prefix.clone(), block_bytes_max: volume.block_bytes_max })
}

impl PoolThread {
    fn spawn(index: usize, lanes: Vec<Lane>) -> io::Result<PoolThread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let join = std::thread::Builder::new().name(format!("origin-{index}")).spawn(move || {
            runtime.block_on(async move {
                lanes.into_iter().for_each(|lane| drop(tokio::spawn(lane.run())));
                // The sender is dropped, never used: either way it is time to go.
                let _ = stopped.await;
            });
        })?;
        Ok(PoolThread { stop: Some(stop), join: Some(join) })
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
