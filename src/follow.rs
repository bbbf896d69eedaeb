//! Following a signed document of the admin: the routing of a volume, and whatever else is told that way.
//!
//! Used by clients and proxies. A task asks the admin by long poll (`pace` says when and how, `https` asks), believes only what `trust` accepts, keeps it on
//! disk (`cache`) and hands it on through a `watch`. With a document on disk it starts without the admin, and goes on with the last one
//! for as long as the admin is away.
//!
//! Invariants: what is handed on was signed by a trusted key; its revision never falls; each question has a deadline.

pub mod bearer;
pub mod cache;
pub mod https;
pub mod pace;
pub mod trust;

#[cfg(all(test, feature = "admin"))]
mod tests;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use bearer::Bearer;
use cache::Cache;
use https::{Admin, SetupError};
use pace::{Ask, Outcome, Pace, PaceSettings};
use trust::{Distrust, Origin, Trust};

use crate::resource::Revision;
use crate::routing::{RoutedKey, Routing};
use crate::token::{PublicKeys, Refusal};

/// A document that the admin signs. Its JSON has a field `keys`: those that may sign it.
pub trait Document: DeserializeOwned + Send + Sync + 'static {
    /// What `signed` says, if one of `keys` signed it as a document of this kind.
    ///
    /// # Errors
    /// Why it does not count.
    fn open(signed: &str, keys: &PublicKeys) -> Result<Self, Refusal>;
    /// Its revision.
    fn revision(&self) -> Revision;
    /// The keys that are good.
    fn keys(&self) -> &[RoutedKey];
}

impl Document for Routing {
    fn open(signed: &str, keys: &PublicKeys) -> Result<Routing, Refusal> {
        Routing::open(signed, keys)
    }

    fn revision(&self) -> Revision {
        self.revision
    }

    fn keys(&self) -> &[RoutedKey] {
        &self.keys
    }
}

/// What to follow, and how.
#[derive(Debug, Clone)]
pub struct FollowSettings {
    /// The admin's URL, `https://…`.
    pub admin: String,
    /// Where the document is, such as `/v1/volumes/pictures/routing`.
    pub path: String,
    /// The token to show.
    pub bearer: Arc<Bearer>,
    /// PEM file of the authority to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// The only keys that are trusted at first. None: whatever the admin's certificate vouches for.
    pub pinned: Vec<RoutedKey>,
    /// Where the document is kept between runs. `None`: nowhere.
    pub directory: Option<PathBuf>,
    /// Its name there: `a-z`, `0-9`, `-`, `.`.
    pub name: String,
    /// How often to ask.
    pub pace: PaceSettings,
}

impl FollowSettings {
    /// The routing of `volume`, with the defaults of everything else.
    #[must_use]
    pub fn routing(admin: &str, volume: &str, bearer: Arc<Bearer>) -> FollowSettings {
        FollowSettings {
            admin: admin.to_owned(),
            path: format!("/v1/volumes/{volume}/routing"),
            bearer,
            ca: None,
            pinned: Vec::new(),
            directory: None,
            name: format!("routing.{volume}"),
            pace: PaceSettings::default(),
        }
    }
}

/// Why nothing can be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It could never be asked.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// There is no document on disk, and the admin gave none.
    #[error("{url}: {source}; and there is no copy of it on disk")]
    Nothing {
        /// What was asked for.
        url: String,
        /// The last failure.
        #[source]
        source: AskError,
    },
}

/// What the admin answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A signed document.
    Document(String),
    /// Still the one that is known.
    Same,
}

/// No usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The admin can't be reached, or is failing.
    #[error("the admin can't be asked: {0}")]
    Unreachable(String),
    /// The admin, or this side, says no.
    #[error("the admin's answer is no use: {0}")]
    Refused(String),
}

/// Asking for one document.
pub trait Asking: Send + Sync + 'static {
    /// What there is unless it has revision `since`; then what comes within `wait`. Has a deadline of its own.
    fn ask(&self, since: Option<Revision>, wait: Duration) -> impl Future<Output = Result<Answer, AskError>> + Send;
}

/// How the following goes.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// The admin's last usable answer; `None`: not in this run, the document is from the disk.
    pub heard: Option<Instant>,
    /// What went wrong since.
    pub error: Option<String>,
}

/// A document that is being followed, for as long as this lives.
#[derive(Debug)]
pub struct Follower<D> {
    documents: watch::Receiver<Arc<D>>,
    health: watch::Receiver<Health>,
    task: JoinHandle<()>,
}

impl<D: Document> Follower<D> {
    /// Begins to follow: from the document on disk if there is one, else from the admin's first answer. Within a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// There is neither.
    pub async fn start(settings: FollowSettings) -> Result<Follower<D>, FollowError> {
        let admin = Admin::new(&settings.admin, &settings.path, Arc::clone(&settings.bearer), settings.ca.as_deref())?;
        let url = admin.url().to_string();
        let cache = settings
            .directory
            .as_deref()
            .map(|directory| Cache::new(directory, &settings.name, &url, &settings.pinned));
        Self::start_with(admin, url, cache, settings.pinned, settings.pace).await
    }

    /// As [`Follower::start`], by any way to ask.
    ///
    /// # Errors
    /// As there.
    pub async fn start_with<A: Asking>(
        asking: A,
        url: String,
        cache: Option<Cache>,
        pinned: Vec<RoutedKey>,
        pace: PaceSettings,
    ) -> Result<Follower<D>, FollowError> {
        let mut reader = Reader { asking, cache, trust: Trust::new(pinned) };
        let mut health = Health::default();
        let first = match reader.start_from_disk() {
            Some(document) => document,
            None => {
                let asked = reader.ask(Duration::ZERO).await.and_then(|news| {
                    news.ok_or_else(|| AskError::Refused("not modified, though nothing was known".to_owned()))
                });
                health.heard = Some(Instant::now());
                asked.map_err(|source| FollowError::Nothing { url, source })?
            }
        };
        let (documents, seen) = watch::channel(first);
        let (healths, health) = watch::channel(health);
        let task = tokio::spawn(follow(reader, Pace::new(pace), documents, healths));
        Ok(Follower { documents: seen, health, task })
    }

    /// The newest document, and its changes.
    #[must_use]
    pub fn documents(&self) -> watch::Receiver<Arc<D>> {
        self.documents.clone()
    }

    /// The newest document.
    #[must_use]
    pub fn current(&self) -> Arc<D> {
        Arc::clone(&self.documents.borrow())
    }

    /// How it goes.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }
}

impl<D> Drop for Follower<D> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks, judges and keeps.
struct Reader<A, D> {
    asking: A,
    cache: Option<Cache>,
    trust: Trust<D>,
}

impl<A: Asking, D: Document> Reader<A, D> {
    fn start_from_disk(&mut self) -> Option<Arc<D>> {
        let kept = self.cache.as_ref()?.read()?;
        match self.trust.accept(&kept, Origin::Disk) {
            Ok(document) => document,
            Err(error) => {
                tracing::warn!(%error, "the routing on disk does not count");
                None
            }
        }
    }

    /// A newer document than is known, if there is one.
    async fn ask(&mut self, wait: Duration) -> Result<Option<Arc<D>>, AskError> {
        let since = self.trust.latest().map(|document| document.revision());
        let Answer::Document(signed) = self.asking.ask(since, wait).await? else { return Ok(None) };
        let accepted = self.trust.accept(&signed, Origin::Admin);
        let news = accepted.map_err(|distrust: Distrust| AskError::Refused(distrust.to_string()))?;
        if news.is_some()
            && let Some(cache) = &self.cache
            && let Err(error) = cache.write(&signed)
        {
            // The next start needs the admin; this run does not.
            tracing::warn!(%error, "the routing can't be kept on disk");
        }
        Ok(news)
    }
}

async fn follow<A: Asking, D: Document>(
    mut reader: Reader<A, D>,
    mut pace: Pace,
    documents: watch::Sender<Arc<D>>,
    healths: watch::Sender<Health>,
) {
    loop {
        let asked = pace.ask();
        let wait = match asked {
            Ask::Look => Duration::ZERO,
            Ask::Wait(wait) => wait,
        };
        let began = Instant::now();
        let outcome = match reader.ask(wait).await {
            Ok(news) => {
                healths.send_replace(Health { heard: Some(Instant::now()), error: None });
                let took = began.elapsed();
                match news {
                    Some(document) => {
                        tracing::debug!(revision = document.revision(), "there is news from the admin");
                        documents.send_replace(document);
                        Outcome::Answered(took)
                    }
                    // "Nothing new" before the wait was over: a server that stops, or something between that knows better.
                    None if took < wait / 2 => Outcome::Failed,
                    None => Outcome::Answered(took),
                }
            }
            Err(error) => {
                healths.send_modify(|health| health.error = Some(error.to_string()));
                tracing::debug!(%error, ?asked, "the admin gave no answer");
                match error {
                    AskError::Unreachable(_) => Outcome::Failed,
                    AskError::Refused(_) => Outcome::Refused,
                }
            }
        };
        let chance = SmallRng::from_os_rng().random::<f64>();
        tokio::time::sleep(pace.after(outcome, chance)).await;
    }
}
