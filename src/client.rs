//! The client: blocks of one volume, from the nearest group, from whoever has them, or from the store.
//!
//! For programs and for the commands `forebay get`, `put` and so on. [`Client::open`] follows the volume's routing (`follow`), probes its groups and selects one
//! (`probe`, `select`), and then answers [`get`](Client::get), [`head`](Client::head), [`put`](Client::put), [`delete`](Client::delete). Whom to ask and what an answer
//! means is `plan` and `answer`, pure; `member` and `bypass` do the talking. Within a tokio runtime with time and I/O.
//!
//! Invariants: "absent" is never said while a member that may hold the block dirty could not be asked; bytes of a whole block that do not match its
//! digest are never given out to their end; writes of a write-back volume go to one member and nowhere else.

pub mod answer;
pub mod bypass;
pub mod error;
pub mod hedge;
mod kept;
mod member;
mod net;
pub mod plan;
pub mod probe;
mod race;
mod read;
pub mod select;
mod sending;
mod session;
mod write;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use error::ClientError;
pub use read::{Block, Meta, Via};
pub use sending::Sent;
pub use session::StoreAccess;
pub use write::{PutCondition, PutDone};

use bypass::Bypass;
use hedge::Hedges;
use kept::Kept;
use member::{Reach, locked};
use net::Net;
use probe::GroupProbe;
use select::Selector;
use session::Sessions;

use crate::follow::bearer::Bearer;
use crate::follow::https::SetupError;
use crate::follow::pace::PaceSettings;
use crate::follow::{FollowError, FollowSettings, Follower, Health};
use crate::lease::Leases;
use crate::origin::CredentialSource;
use crate::origin::RetrySettings;
use crate::origin::retry::RetryBudget;
use crate::resource::{Bypass as BypassRule, Volume, VolumeKind};
use crate::routing::{RoutedKey, RoutedStore, Routing};

/// Leases that are held at once.
const LEASES_MAX: usize = 4_096;
/// How long an operation waits for the first probe to end.
const FIRST_PROBE_MAX: Duration = Duration::from_secs(3);

/// What a client is told.
#[derive(Clone)]
pub struct Settings {
    /// The admin's URL, `https://…`.
    pub admin: String,
    /// The token for volumes.
    pub bearer: Arc<Bearer>,
    /// PEM file of the authority that signed the admin's and the members' certificates, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The only keys trusted at first.
    pub pinned: Vec<RoutedKey>,
    /// Where the routing is kept between runs. `None`: nowhere.
    pub directory: Option<PathBuf>,
    /// Use this group and no other.
    pub group: Option<String>,
    /// This client's own credentials for the store.
    pub credentials: CredentialSource,
    /// A further authority for the store's certificate.
    pub store_ca: Option<PathBuf>,
    /// For one operation up to its answer's head, its retries included.
    pub deadline: Duration,
    /// How often the admin is asked.
    pub pace: PaceSettings,
    /// Whether a read that takes long is asked of a second member too.
    pub hedge: Hedging,
}

/// Whether reads are hedged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hedging {
    /// No read is.
    #[default]
    Off,
    /// Those that take longer than 98 % of their class, at most one in 25: for clients that live long, for there is nothing to compare a first read with.
    On,
}

impl Settings {
    /// With the defaults of everything that can have one.
    #[must_use]
    pub fn new(admin: &str, bearer: Arc<Bearer>) -> Settings {
        Settings {
            admin: admin.to_owned(),
            bearer,
            ca: None,
            pinned: Vec::new(),
            directory: None,
            group: None,
            credentials: CredentialSource::Usual,
            store_ca: None,
            deadline: Duration::from_secs(20),
            pace: PaceSettings::default(),
            hedge: Hedging::Off,
        }
    }
}

/// Why a volume can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No routing.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// HTTPS.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A volume of a kind that this version does not serve.
    #[error("this version's client does not serve {0}")]
    Unsupported(&'static str),
    /// `group` names none of the volume's.
    #[error("group {group:?} does not serve the volume: there is {known}")]
    NoSuchGroup {
        /// As asked.
        group: String,
        /// Those that do.
        known: String,
    },
}

/// What a client counted since it was opened.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads that the store answered, because no group did.
    pub bypassed_reads: AtomicU64,
    /// Writes that went to the store, because no group answered.
    pub bypassed_writes: AtomicU64,
    /// Attempts beyond the first of an operation.
    pub further_attempts: AtomicU64,
    /// Operations that ended with `owner-unreachable`.
    pub owner_unreachable: AtomicU64,
    /// Bodies that broke off and were gone on with elsewhere.
    pub resumed_bodies: AtomicU64,
    /// Reads that were asked of a second member, because the first took long.
    pub hedged_reads: AtomicU64,
    /// Those that the second answered.
    pub hedges_won: AtomicU64,
    /// Session credentials that were given, renewals among them.
    pub sessions_obtained: AtomicU64,
    /// Questions for session credentials that failed.
    pub sessions_failed: AtomicU64,
}

/// An open volume. Cheap to clone; its tasks end with the last clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    _tasks: Arc<Tasks>,
}

struct Tasks([JoinHandle<()>; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Where a volume lies, and what it lets its clients do.
type StorePlace = (RoutedStore, Volume);

/// What all clones share.
struct Inner {
    settings: Settings,
    volume: Arc<str>,
    follower: Follower<Routing>,
    reach: Reach,
    net: Mutex<Arc<Net>>,
    selector: Mutex<Selector>,
    /// Whether a first probe has ended.
    probed: watch::Sender<bool>,
    leases: Mutex<Leases>,
    hedges: Mutex<Hedges>,
    budget: RetryBudget,
    counters: Counters,
    bypass: Mutex<Kept<StorePlace, Bypass>>,
    sessions: Sessions,
    started: Instant,
}

impl Client {
    /// Opens `volume`. Its routing comes from the admin, or from the disk if the admin is away; the first probe goes on in the background.
    ///
    /// # Errors
    /// There is no routing, or none that this client can follow.
    pub async fn open(settings: Settings, volume: &str) -> Result<Client, OpenError> {
        let mut follow = FollowSettings::routing(&settings.admin, volume, Arc::clone(&settings.bearer));
        follow.ca.clone_from(&settings.ca);
        follow.pinned.clone_from(&settings.pinned);
        follow.directory.clone_from(&settings.directory);
        follow.pace = settings.pace;
        // Two admins may have a volume of this name.
        follow.name = format!("routing.{volume}.{:016x}", twox_hash::XxHash3_64::oneshot(settings.admin.as_bytes()));
        let follower = Follower::start(follow).await?;
        let routing = follower.current();
        supported(&routing)?;
        if let Some(group) = &settings.group
            && !routing.groups.iter().any(|known| known.name == *group)
        {
            let known = routing.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(OpenError::NoSuchGroup { group: group.clone(), known });
        }
        let volume: Arc<str> = volume.into();
        let reach = Reach {
            ca: settings.ca.clone(),
            bearer: Arc::clone(&settings.bearer),
            trouble: Arc::new(Notify::new()),
            volume: Arc::clone(&volume),
        };
        let net = Arc::new(Net::new(routing, None, &reach)?);
        let inner = Arc::new(Inner {
            selector: Mutex::new(Selector::new(settings.group.clone())),
            settings,
            volume,
            follower,
            reach,
            net: Mutex::new(net),
            probed: watch::Sender::new(false),
            leases: Mutex::new(Leases::new(LEASES_MAX)),
            hedges: Mutex::default(),
            budget: RetryBudget::new(&RetrySettings { budget_max: 100, ..RetrySettings::default() }),
            counters: Counters::default(),
            bypass: Mutex::default(),
            sessions: Sessions::default(),
            started: Instant::now(),
        });
        let tasks = [tokio::spawn(probe::run(Arc::clone(&inner))), tokio::spawn(session::run(Arc::clone(&inner)))];
        Ok(Client { inner, _tasks: Arc::new(Tasks(tasks)) })
    }

    /// Probes every group now and shows what was found, and which group is selected.
    pub async fn probe(&self) -> Vec<GroupProbe> {
        probe::probe(&self.inner).await
    }

    /// The routing that counts now.
    #[must_use]
    pub fn routing(&self) -> Arc<Routing> {
        self.inner.follower.current()
    }

    /// The selected group; `None`: none is reachable, or none was probed yet.
    #[must_use]
    pub fn selected(&self) -> Option<String> {
        locked(&self.inner.selector).current().map(str::to_owned)
    }

    /// How the following of the routing goes.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.follower.health()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    /// The store, by this client's own credentials, else by session credentials, whatever the volume says about bypassing: for lists and checks.
    ///
    /// # Errors
    /// Why not, with the fix.
    pub async fn store(&self) -> Result<Arc<Bypass>, String> {
        self.inner.store(&self.inner.net()).await
    }

    /// What this client has to ask the store with at the moment.
    #[must_use]
    pub fn store_access(&self) -> StoreAccess {
        if self.inner.settings.credentials.load().is_ok() {
            return StoreAccess::Own;
        }
        let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.inner.counters;
        self.inner.sessions.access(counted(&counters.sessions_obtained), counted(&counters.sessions_failed))
    }
}

impl Inner {
    fn net(&self) -> Arc<Net> {
        Arc::clone(&locked(&self.net))
    }

    /// Goes by `routing` from now on, if this client can.
    fn adopt(&self, routing: Arc<Routing>) {
        if let Err(error) = supported(&routing) {
            tracing::error!(%error, "the volume became one that this client can't serve: the last routing stays");
            return;
        }
        let last = self.net();
        match Net::new(routing, Some(&last), &self.reach) {
            Ok(net) => *locked(&self.net) = Arc::new(net),
            Err(error) => tracing::error!(%error, "the new routing can't be used: the last one stays"),
        }
    }

    /// The position of the selected group. Before the first probe has ended, waits a little for it.
    async fn selected(&self, net: &Net) -> Option<usize> {
        let mut probed = self.probed.subscribe();
        // Over time: then without a selection, any group is as good.
        let _ = tokio::time::timeout(FIRST_PROBE_MAX, probed.wait_for(|is_probed| *is_probed)).await;
        let name = locked(&self.selector).current().map(str::to_owned).or_else(|| self.settings.group.clone());
        name.and_then(|name| net.position(&name))
    }

    /// The store as the volume allows it for a read, or a write.
    async fn bypass(&self, net: &Net, wanted: BypassRule) -> Result<Arc<Bypass>, String> {
        let rule = net.routing.volume.bypass;
        let is_allowed = match wanted {
            BypassRule::Reads => rule != BypassRule::Never,
            _ => rule == BypassRule::Always,
        };
        if is_allowed { self.store(net).await } else { Err("the volume's `bypass` does not allow this".to_owned()) }
    }

    async fn store(&self, net: &Net) -> Result<Arc<Bypass>, String> {
        let place = (net.routing.store.clone(), net.routing.volume.clone());
        let begun = match locked(&self.bypass).find(&place, SystemTime::now()) {
            Ok(bypass) => return Ok(bypass),
            Err(begun) => begun,
        };
        let own = self.settings.credentials.clone();
        let ca = self.settings.store_ca.as_deref();
        let (bypass, ends) = match own.load() {
            Err(missing) if net.routing.store.sessions => {
                let (keys, ends) =
                    self.sessions.keys(&net.routing).await.map_err(|why| format!("{missing}; and {why}"))?;
                (Bypass::new(&net.routing, CredentialSource::Keys(keys), ca)?.with_absence_listed(), Some(ends))
            }
            _ => (Bypass::new(&net.routing, own, ca)?, None),
        };
        let bypass = Arc::new(bypass);
        locked(&self.bypass).keep(begun, place, ends, &bypass);
        Ok(bypass)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn owner_unreachable(&self, words: String) -> ClientError {
        self.counters.owner_unreachable.fetch_add(1, Ordering::Relaxed);
        ClientError::OwnerUnreachable(words)
    }
}

fn supported(routing: &Routing) -> Result<(), OpenError> {
    if routing.volume.kind == VolumeKind::Objects {
        return Err(OpenError::Unsupported("volumes of kind objects"));
    }
    if routing.volume.revalidate_seconds.is_some() {
        return Err(OpenError::Unsupported("mutable volumes"));
    }
    Ok(())
}
