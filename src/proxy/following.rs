//! A node that follows an admin: what it serves comes from the group's document, at start and while it runs.
//!
//! Called by `boot`. A thread of its own asks the admin (`follow`); each new document goes to the main thread, which alone changes what the
//! node serves, in an order that drops no request: `known` remembers the volumes and their stores, the origin pool gets to know them, every
//! shard gets to know them, and only then every handler serves them. A volume that left is refused by the handlers first and forgotten by nobody:
//! what is dirty of it is flushed as ever. A document that can't be applied whole is tried again; until then the one before counts.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use forebay_shard::config::{Access, DirtyFull, VolumeConfig, WriteMode};
use forebay_shard::key::BlockKey;
use forebay_shard::outcome::Durability;
use tracing::{error, info, warn};

use super::drain::{self, Control, Event};
use super::known::KnownVolumes;
use super::origins;
use super::served::{Agreed, Home, HomeMember, Own, Served, ServedVolume};
use super::standing::{self, Goal};
use crate::config::admin::{AdminLink, Ownership, TOKEN_VARIABLE, TokenPlace};
use crate::config::checked::Config;
use crate::config::stores::Volume;
use crate::follow::bearer::Bearer;
use crate::follow::pace::PaceSettings;
use crate::follow::{Document, FollowSettings, Follower, Health};
use crate::mailbox::Sender;
use crate::origin::{OriginPool, Stays};
use crate::placement::KeyHash;
use crate::resource::{self, MemberState, Revision, VolumeKind};
use crate::routing::placements::is_unsettled;
use crate::routing::{GroupRouting, GroupStore, GroupVolume, Holders, RoutedKey, RoutedMember};
use crate::token::{PublicKey, PublicKeys, Refusal};

/// For the first word of an admin that a node without a copy on disk must hear.
const FIRST_BOUND: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// For all cores to take note.
const CORES_BOUND: Duration = Duration::from_secs(10);
/// A document that could not be applied whole is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

impl Document for GroupRouting {
    fn open(signed: &str, keys: &PublicKeys) -> Result<GroupRouting, Refusal> {
        GroupRouting::open(signed, keys)
    }

    fn revision(&self) -> Revision {
        self.revision
    }

    fn keys(&self) -> &[RoutedKey] {
        &self.keys
    }
}

/// The main thread's side: what the node was told, and what it made of it.
pub(super) struct Following {
    link: AdminLink,
    config: Config,
    sight: Arc<Sight>,
    known: KnownVolumes,
    latest: Arc<GroupRouting>,
    agreed: Agreed,
    /// What is to be counted; `None`: the cores don't run yet.
    goals: Option<mpsc::Sender<Goal>>,
    /// When to try again what did not work.
    again: Option<Instant>,
}

/// What status shows of it, from any core.
#[derive(Debug)]
pub struct Sight {
    follower: Follower<GroupRouting>,
    /// As configured.
    pub link: AdminLink,
    applied: Mutex<Applied>,
}

/// What the node made of the last document.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// The document's revision.
    pub revision: Revision,
    /// The volumes that are served.
    pub volumes: Vec<String>,
    /// Those that are not, though the group serves them, and why.
    pub refused: BTreeMap<String, String>,
    /// The name of the member that this node is; `None`: the group has no such member.
    pub member: Option<String>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

impl Sight {
    /// How asking the admin goes.
    #[must_use]
    pub fn health(&self) -> Health {
        self.follower.health()
    }

    /// What the node serves.
    #[must_use]
    pub fn applied(&self) -> Applied {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a document means for this node.
struct Meaning {
    served: Served,
    applied: Applied,
    /// What shards are to know, volumes that left included.
    volumes: Vec<VolumeConfig>,
    is_whole: bool,
}

impl Following {
    /// Begins to follow; returns when there is a first document, from disk or from the admin.
    ///
    /// # Errors
    /// There is none within a minute; the token or the directory can't be used.
    pub(super) fn start(config: &Config, link: &AdminLink, events: mpsc::Sender<Event>) -> anyhow::Result<Following> {
        let known = KnownVolumes::open(&link.directory).context("admin.directory")?;
        let settings = settings(link)?;
        let (first, follower) = mpsc::channel();
        let run = move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let started = begin(settings).await;
                let documents = started.as_ref().ok().map(|follower| follower.documents());
                // The main thread waits for it, and for nothing else.
                let _ = first.send(started);
                let Some(mut documents) = documents else { return };
                while documents.changed().await.is_ok() {
                    let document = Arc::clone(&documents.borrow_and_update());
                    if events.send(Event::News(document)).is_err() {
                        return;
                    }
                }
            });
            Ok(())
        };
        let run = move || {
            if let Err(error) = run() {
                error!(%error, "the admin can't be followed");
            }
        };
        std::thread::Builder::new().name("forebay-follow".to_owned()).spawn(run).context("a thread for the admin")?;
        let follower = follower.recv().context("the admin can't be followed")??;
        let latest = follower.current();
        let sight = Arc::new(Sight { follower, link: link.clone(), applied: Mutex::default() });
        Ok(Following {
            link: link.clone(),
            config: config.clone(),
            sight,
            known,
            latest,
            agreed: Agreed::default(),
            goals: None,
            again: None,
        })
    }

    /// For status.
    pub(super) fn sight(&self) -> Arc<Sight> {
        Arc::clone(&self.sight)
    }

    /// Learns the first document and puts what is known into the node's configuration, before anything reads it.
    ///
    /// # Errors
    /// It can't be kept.
    pub(super) fn fill_in(&mut self, config: &mut Config) -> anyhow::Result<()> {
        // Refusals are found again when the document is applied.
        self.known.learn(&told(&self.latest))?;
        let volume = |settings: VolumeConfig| Volume { shard: settings, store_index: 0, prefix: "".into() };
        config.volumes = self.shard_volumes(&self.latest).into_iter().map(volume).collect();
        config.written_back =
            self.known.all().filter(|(_, known)| known.written_back).map(|(name, _)| name.to_owned()).collect();
        Ok(())
    }

    /// What the node serves at its start; the pool knows it from then on.
    ///
    /// # Errors
    /// It can't be kept.
    pub(super) fn first(&mut self, pool: &OriginPool) -> anyhow::Result<Served> {
        let latest = Arc::clone(&self.latest);
        let meaning = self.meaning(&latest, pool)?;
        self.agreed.set(placed(&latest));
        self.note(&meaning, meaning.is_whole);
        Ok(meaning.served)
    }

    /// From now on the node serves what `document` says.
    pub(super) fn apply(&mut self, document: Arc<GroupRouting>, pool: &OriginPool, cores: &[Sender<Control>]) {
        self.latest = document;
        self.try_apply(pool, cores);
    }

    /// How long until what did not work is tried again.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.again.map(|again| again.saturating_duration_since(Instant::now()))
    }

    /// Applies the last document, or tries to once more.
    pub(super) fn try_apply(&mut self, pool: &OriginPool, cores: &[Sender<Control>]) {
        let latest = Arc::clone(&self.latest);
        let meaning = match self.meaning(&latest, pool) {
            Ok(meaning) => meaning,
            Err(error) => {
                error!(
                    error = format!("{error:#}"),
                    revision = latest.revision,
                    "what the admin says can't be kept: the last goes on"
                );
                self.again = Some(Instant::now() + AGAIN);
                return;
            }
        };
        // A request may hop from a core that has heard to one that has not: so every shard knows a volume before any handler serves it.
        let volumes: Arc<[VolumeConfig]> = meaning.volumes.clone().into();
        let served = Arc::new(meaning.served.clone());
        let until = Instant::now() + CORES_BOUND;
        let is_told = drain::step(cores, until, |done| Control::Know(Arc::clone(&volumes), done))
            && drain::step(cores, until, |done| Control::Serve(Arc::clone(&served), done))
            // Before others hear that the node goes by it, nothing is under way that was let in by another placement.
            && (self.agreed.placed() == placed(&latest) || drain::step(cores, until, Control::Quiet));
        if is_told {
            self.agreed.set(placed(&latest));
            self.aim();
        } else {
            error!(revision = latest.revision, "a core did not take note of what the admin says: it is told again");
        }
        self.note(&meaning, is_told && meaning.is_whole);
    }

    /// From now on the cores run: what is left of other members' keys is counted and reported.
    ///
    /// # Errors
    /// There is no way to the admin, or no thread to be had.
    pub(super) fn serving(&mut self, cores: &[Sender<Control>]) -> anyhow::Result<()> {
        self.goals = Some(standing::start(&settings(&self.link)?, &self.link.group, cores)?);
        self.aim();
        Ok(())
    }

    /// Says what is to be counted by the routing that the node goes by.
    fn aim(&self) {
        let (document, Some(goals)) = (&self.latest, &self.goals) else { return };
        let (Some(member), Some(group)) = (document.member(&self.link.member), document.group(&document.group)) else {
            return;
        };
        let Some(own) = member.ranked() else { return };
        let is_up = |routed: &&RoutedMember| routed.state == MemberState::Up;
        let up: Vec<_> = group.members.iter().filter(is_up).filter_map(RoutedMember::ranked).collect();
        let is_home = |told: &&GroupVolume| told.volume.home_group.as_ref().is_none_or(|home| *home == group.name);
        let at_home: HashSet<String> =
            document.volumes.iter().filter(is_home).map(|told| told.volume.name.clone()).collect();
        let is_moved = move |key: &BlockKey| {
            let first = KeyHash::of(&key.volume, &key.key).first(&up);
            !at_home.contains(&*key.volume) || first.is_none_or(|at| up[at].id != own.id)
        };
        let goal = Goal {
            followed: document.revision,
            member: member.name.clone(),
            awaited: is_unsettled(&group.placements, &member.id, member.settled),
            is_moved: Arc::new(is_moved),
        };
        // The thread ends with this.
        let _ = goals.send(goal);
    }

    fn note(&mut self, meaning: &Meaning, is_whole: bool) {
        let applied = &meaning.applied;
        info!(revision = applied.revision, volumes = applied.volumes.len(), "serving what the admin says");
        for (volume, why) in &applied.refused {
            warn!(volume, why, "a volume of the group is not served here");
        }
        for warning in &applied.warnings {
            warn!("{warning}");
        }
        *self.sight.applied.lock().unwrap_or_else(PoisonError::into_inner) = applied.clone();
        self.again = (!is_whole).then(|| Instant::now() + AGAIN);
    }

    /// Keeps what `document` tells of volumes, and makes the pool know it.
    fn meaning(&mut self, document: &GroupRouting, pool: &OriginPool) -> anyhow::Result<Meaning> {
        let mut refused = BTreeMap::new();
        for (name, why) in self.known.learn(&told(document))? {
            refused.insert(name, why.to_string());
        }
        let mut warnings = Vec::new();
        let is_whole = self.place(pool, &mut refused, &mut warnings);
        let mut volumes = Vec::new();
        for told in &document.volumes {
            let name = &told.volume.name;
            if let Some(why) = self.unfit(told) {
                refused.entry(name.clone()).or_insert(why);
            }
            if !refused.contains_key(name) {
                volumes.push(ServedVolume { home: home(document, &told.volume, &self.link), ..served_volume(told) });
            }
        }
        // Only what is told is refused; what left has nobody to tell.
        refused.retain(|name, _| document.volumes.iter().any(|told| told.volume.name == *name));
        let member = document.member(&self.link.member).map(|member| member.name.clone());
        if member.is_none() {
            let AdminLink { member, group, .. } = &self.link;
            warnings.push(format!("the group {group} has no member {member}: make it, or set admin.member"));
        }
        let applied = Applied {
            revision: document.revision,
            volumes: volumes.iter().map(|volume| volume.settings.name.to_string()).collect(),
            refused: refused.clone(),
            member,
            warnings,
        };
        let own = own(document, &self.link);
        let is_strict = self.link.ownership == Ownership::Strict;
        // Where all but the first in rank refuse a block, its reads can't be spread.
        let lease_members = if is_strict { 0 } else { u16::try_from(own.members.len()).unwrap_or(u16::MAX) };
        let strict = is_strict.then_some(own);
        let (keys, agreed) = (Some(Arc::new(keys(document)?)), self.agreed.clone());
        let served = Served { volumes, refused, keys, strict, lease_members, agreed };
        Ok(Meaning { served, applied, volumes: self.shard_volumes(document), is_whole })
    }

    /// Makes the pool know every volume's store; whether all can be used. Volumes whose store can't be are refused, unless they were in another
    /// before that can.
    fn place(&self, pool: &OriginPool, refused: &mut BTreeMap<String, String>, warnings: &mut Vec<String>) -> bool {
        let known = self.known.all();
        let placed: Vec<_> = known.map(|(name, known)| origins::known_volume(&self.config, name, known)).collect();
        let unusable = pool.reconfigure(&placed);
        for unusable in &unusable {
            let why = format!("its store can't be used from here: {}", unusable.source);
            match unusable.stays {
                Stays::No => drop(refused.insert(unusable.volume.to_string(), why)),
                Stays::Yes => warnings.push(format!("volume {}: {why}; it goes on with what it had", unusable.volume)),
            }
        }
        unusable.is_empty()
    }

    /// Why this version, or this node, can't serve a volume.
    fn unfit(&self, told: &GroupVolume) -> Option<String> {
        let volume = &told.volume;
        let words = if volume.kind != VolumeKind::Blocks {
            "this version serves volumes of kind blocks only"
        } else if volume.revalidate_seconds.is_some() {
            "this version serves immutable volumes only"
        } else if volume.durability == Some(resource::Durability::Peer) {
            "this version has no durability level peer"
        } else if volume.block_size > self.link.block_bytes_max {
            return Some(format!("its blocks are larger than admin.block_size_max: set {} B", volume.block_size));
        } else {
            return None;
        };
        Some(words.to_owned())
    }

    /// Every volume that is known, with the settings that `document` tells, or those of one that left.
    fn shard_volumes(&self, document: &GroupRouting) -> Vec<VolumeConfig> {
        let settings = |(name, known): (&str, &super::known::KnownVolume)| {
            let told = document.volumes.iter().find(|told| told.volume.name == name);
            let is_back = told.is_some_and(|told| told.volume.write == resource::WriteMode::Back);
            VolumeConfig {
                name: name.into(),
                block_bytes_max: known.block_bytes_max,
                write_mode: if is_back { WriteMode::Back } else { WriteMode::Through },
                dirty_full: DirtyFull::Decline,
                // A handler that has not heard yet may still let a write in: handlers alone refuse.
                access: Access::ReadWrite,
            }
        };
        self.known.all().map(settings).collect()
    }
}

/// Asks until there is a document, for a minute at most.
async fn begin(settings: FollowSettings) -> anyhow::Result<Follower<GroupRouting>> {
    let until = Instant::now() + FIRST_BOUND;
    loop {
        match Follower::start(settings.clone()).await {
            Ok(follower) => return Ok(follower),
            Err(error) if Instant::now() < until => {
                warn!(error = format!("{:#}", anyhow!(error)), "nothing is known of this node's volumes yet");
                tokio::time::sleep(FIRST_PAUSE).await;
            }
            Err(error) => return Err(error).context("nothing is known of this node's volumes"),
        }
    }
}

fn settings(link: &AdminLink) -> anyhow::Result<FollowSettings> {
    let bearer = match &link.token {
        TokenPlace::File(file) => Bearer::file(file).context("admin.token_file")?,
        TokenPlace::Environment => {
            Bearer::fixed(&std::env::var(TOKEN_VARIABLE).context(TOKEN_VARIABLE)?).context(TOKEN_VARIABLE)?
        }
    };
    Ok(FollowSettings {
        admin: link.url.clone(),
        path: format!("/v1/groups/{}/routing", link.group),
        bearer: Arc::new(bearer),
        ca: link.ca.clone(),
        pinned: link.pinned.clone(),
        directory: Some(link.directory.clone()),
        name: format!("group.{}", link.group),
        pace: pace(link.refresh),
    })
}

/// Where something cuts long polls, looks come no later than one of them would have ended.
fn pace(refresh: Duration) -> PaceSettings {
    let usual = PaceSettings::default();
    PaceSettings { wait: refresh, refresh: refresh.min(usual.refresh), ..usual }
}

/// The volumes of a document, each with its store.
fn told(document: &GroupRouting) -> Vec<(&GroupVolume, &GroupStore)> {
    let with_store =
        |volume: &'_ GroupVolume| document.stores.iter().position(|store| store.store.name == volume.volume.store);
    document.volumes.iter().filter_map(|volume| Some((volume, &document.stores[with_store(volume)?]))).collect()
}

fn served_volume(told: &GroupVolume) -> ServedVolume {
    let volume = &told.volume;
    ServedVolume {
        settings: VolumeConfig {
            name: volume.name.as_str().into(),
            block_bytes_max: volume.block_size,
            write_mode: match volume.write {
                resource::WriteMode::Through => WriteMode::Through,
                resource::WriteMode::Back => WriteMode::Back,
            },
            dirty_full: DirtyFull::Decline,
            access: if volume.read_only { Access::ReadOnly } else { Access::ReadWrite },
        },
        durability: match volume.durability {
            Some(resource::Durability::Origin) => Durability::Origin,
            _ => Durability::Disk,
        },
        home: None,
        revoked: told.revoked.iter().cloned().collect(),
    }
}

/// Who may hold dirty blocks of a volume. A volume without a home group is at home in each.
fn home(document: &GroupRouting, volume: &resource::Volume, link: &AdminLink) -> Option<Arc<Home>> {
    if volume.write != resource::WriteMode::Back {
        return None;
    }
    let name = volume.home_group.as_ref().unwrap_or(&document.group);
    let group = document.group(name)?;
    let own = document.member(&link.member).filter(|_| *name == document.group).and_then(|member| member.ranked());
    let own = own.map(|member| member.id);
    let member = |routed: &RoutedMember| {
        Some(HomeMember {
            id: routed.ranked()?.id,
            name: routed.name.clone(),
            address: routed.address.clone(),
            tls_name: routed.tls_name.clone(),
            may_hold: routed.state != MemberState::Joining,
        })
    };
    let members: Vec<HomeMember> = group.members.iter().filter_map(member).collect();
    let is_up = |routed: &&RoutedMember| routed.state == MemberState::Up;
    let up = group.members.iter().filter(is_up).filter_map(RoutedMember::ranked).collect();
    Some(Arc::new(Home { members, up, own, holders: Holders::told(group) }))
}

/// The placement of the node's own group.
fn placed(document: &GroupRouting) -> Revision {
    document.group(&document.group).and_then(Holders::told).map_or(0, |holders| holders.placed())
}

/// The members that blocks of the group are dealt to: those that are up, and this one as long as it runs.
fn own(document: &GroupRouting, link: &AdminLink) -> Own {
    let itself = document.member(&link.member);
    let members = document.group(&document.group).map(|group| group.members.as_slice()).unwrap_or_default();
    let counted = members.iter().filter(|member| member.state == MemberState::Up || Some(*member) == itself);
    let counted: Vec<_> = counted.filter_map(|member| Some((member.ranked()?, member.name.clone()))).collect();
    let (members, names): (Vec<_>, Vec<_>) = counted.into_iter().unzip();
    let at = itself.and_then(|itself| names.iter().position(|name| *name == itself.name));
    Own { members, names, at }
}

fn keys(document: &GroupRouting) -> anyhow::Result<PublicKeys> {
    let mut keys = PublicKeys::default();
    for key in &document.keys {
        // The same id twice: the first counts.
        let _ = keys.add(&key.id, PublicKey::parse(&key.public).context("a key of the admin's document")?);
    }
    Ok(keys)
}
