//! The asker's side of the pool: the shard's `Origin` port over bounded mailboxes.
//!
//! Runs on any executor: nothing here blocks or knows tokio. A full queue is `Busy` at once. Whoever drops a future or
//! a body cancels its request.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use forebay_shard::key::BlockKey;
use forebay_shard::origin::{Fetched, Origin, OriginError, OriginErrorKind, OriginMeta, Store, Stored};
use futures::channel::oneshot;

use super::check::ConditionalPut;
use super::job::{Answer, Job, Task};
use super::name::{NameStyle, NameTooLong, object_name};
use super::settings::StoreSettings;
use super::stats::{Counters, StoreStats};
use crate::mailbox::{Refused, Sender};

/// Asks the pool. Clones share the queues.
#[derive(Clone)]
pub struct OriginHandle {
    shared: Arc<Shared>,
}

/// What is known now; replaced whole.
#[derive(Default)]
struct Shared {
    table: RwLock<Arc<Table>>,
}

/// The stores and volumes of one moment.
#[derive(Default)]
pub(super) struct Table {
    /// Every store that is asked.
    pub stores: Vec<Arc<Lanes>>,
    /// By name.
    pub volumes: HashMap<Arc<str>, Volume>,
}

/// Where a volume's blocks are.
#[derive(Clone)]
pub(super) struct Volume {
    /// The store's queues.
    pub store: Arc<Lanes>,
    /// How keys are written there.
    pub names: NameStyle,
    /// Put before each key.
    pub prefix: String,
    /// The largest block.
    pub block_bytes_max: u32,
}

/// The queues of one store, one per thread.
pub(super) struct Lanes {
    settings: StoreSettings,
    senders: Vec<Sender<Job>>,
    next: AtomicUsize,
    counters: Arc<Counters>,
}

impl OriginHandle {
    /// Of a pool without stores.
    pub(super) fn new() -> OriginHandle {
        OriginHandle { shared: Arc::default() }
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.shared.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on it is this table. What was asked before goes on.
    pub(super) fn replace(&self, table: Table) {
        *self.shared.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// Whether the store can hold `key` at all; to be asked before a put is acknowledged.
    ///
    /// # Errors
    /// [`NameTooLong`]: with the volume's prefix, the object's name is longer than S3 takes.
    pub fn check_key(&self, key: &BlockKey) -> Result<(), NameTooLong> {
        match self.table().volumes.get(&key.volume) {
            Some(volume) => object_name(volume.names, &volume.prefix, &key.key).map(drop),
            None => Ok(()),
        }
    }

    /// Tries credentials, region, clock and bucket of a volume's store by listing one key.
    ///
    /// # Errors
    /// With the words for the operator in `detail`.
    pub fn check_store(&self, volume: &str) -> impl Future<Output = Result<(), OriginError>> + 'static + use<> {
        answered(self.submit(volume, |volume| Ok(volume.prefix.clone()), |_, answer| Task::Check(answer)))
    }

    /// Races 64 creates of a scratch key below the volume's prefix and deletes it again.
    ///
    /// # Errors
    /// The store could not be asked.
    pub fn verify_conditional_put(
        &self,
        volume: &str,
        scratch_key: &str,
    ) -> impl Future<Output = Result<ConditionalPut, OriginError>> + 'static + use<> {
        answered(self.submit(
            volume,
            |volume| name(volume, scratch_key),
            |_, answer| Task::VerifyConditionalPut(answer),
        ))
    }

    /// The counters of every store.
    #[must_use]
    pub fn stats(&self) -> Vec<StoreStats> {
        self.table().stores.iter().map(|lanes| lanes.stats()).collect()
    }

    /// Leaves a job in the queue at once.
    fn submit<T: Send + 'static>(
        &self,
        volume: &str,
        name: impl FnOnce(&Volume) -> Result<String, OriginError>,
        task: impl FnOnce(&Volume, Answer<T>) -> Task,
    ) -> Result<oneshot::Receiver<Result<T, OriginError>>, OriginError> {
        let table = self.table();
        let volume = table
            .volumes
            .get(volume)
            .ok_or_else(|| OriginError::new(OriginErrorKind::Protocol, format!("no store for volume `{volume}`")))?;
        let (answer, answered) = oneshot::channel();
        let job = Job { name: name(volume)?, task: task(volume, answer) };
        volume.store.send(job)?;
        Ok(answered)
    }
}

impl Origin for OriginHandle {
    fn fetch(&self, key: &BlockKey) -> impl Future<Output = Result<Option<Fetched>, OriginError>> + 'static {
        let task = |volume: &Volume, answer| Task::Fetch(volume.block_bytes_max, answer);
        answered(self.submit(&key.volume, |volume| name(volume, &key.key), task))
    }

    fn store(&self, key: &BlockKey, store: Store) -> impl Future<Output = Result<Stored, OriginError>> + 'static {
        answered(self.submit(&key.volume, |volume| name(volume, &key.key), |_, answer| Task::Store(store, answer)))
    }

    fn head(&self, key: &BlockKey) -> impl Future<Output = Result<Option<OriginMeta>, OriginError>> + 'static {
        answered(self.submit(&key.volume, |volume| name(volume, &key.key), |_, answer| Task::Head(answer)))
    }

    fn delete(&self, key: &BlockKey) -> impl Future<Output = Result<(), OriginError>> + 'static {
        answered(self.submit(&key.volume, |volume| name(volume, &key.key), |_, answer| Task::Delete(answer)))
    }
}

impl Lanes {
    pub(super) fn new(settings: &StoreSettings, senders: Vec<Sender<Job>>, counters: Arc<Counters>) -> Lanes {
        Lanes { settings: settings.clone(), senders, next: AtomicUsize::new(0), counters }
    }

    pub(super) fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    /// Into the next thread's queue that has room.
    fn send(&self, mut job: Job) -> Result<(), OriginError> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut kind = OriginErrorKind::Unreachable;
        for offset in 0..self.senders.len() {
            match self.senders[first.wrapping_add(offset) % self.senders.len()].try_send(job) {
                Ok(()) => return Ok(()),
                Err(Refused::Full(refused)) => (job, kind) = (refused, OriginErrorKind::Busy),
                Err(Refused::Closed(refused)) => job = refused,
            }
        }
        self.counters.failed(kind);
        let words = match kind {
            OriginErrorKind::Busy => "its queue is full: raise `limits.origin_queue` or `limits.origin_concurrency`",
            _ => "the origin pool stopped",
        };
        Err(OriginError::new(kind, format!("store `{}`: {words}", self.settings.name)))
    }

    fn stats(&self) -> StoreStats {
        let queue_depth = self.senders.iter().map(Sender::depth).sum();
        self.counters.snapshot(Arc::clone(&self.settings.name), queue_depth)
    }
}

/// The answer to a submitted job, or why it was not taken.
async fn answered<T>(asked: Result<oneshot::Receiver<Result<T, OriginError>>, OriginError>) -> Result<T, OriginError> {
    let stopped = |_| OriginError::new(OriginErrorKind::Unreachable, "the origin pool stopped");
    asked?.await.map_err(stopped)?
}

fn name(volume: &Volume, key: &str) -> Result<String, OriginError> {
    object_name(volume.names, &volume.prefix, key)
        .map_err(|error| OriginError::new(OriginErrorKind::Protocol, error.to_string()))
}
