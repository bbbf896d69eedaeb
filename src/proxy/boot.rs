//! From a checked configuration to a serving node, and back: the one place that knows all parts of a proxy.
//!
//! Called by `forebay proxy`. The main thread prepares what the cores share (machine, disk, certificate, origin pool, ports),
//! starts one executor per core, waits until each serves, and then for a signal; everything of a core is made on its own
//! thread in `node_core` (I12). A node that can't start says why in one line and leaves nothing behind but a format that
//! the next start finishes.

use std::net::SocketAddr;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use anyhow::{Context, bail};
use forebay_io::ring::{ArenaConfig, RingDisk, RingRuntime};
use forebay_shard::config::SyncMode;
use forebay_shard::shard::Shard;
use tracing::{info, warn};

use super::dispatch::{Dispatch, Routes};
use super::drain::{self, Control, Event};
use super::executor::{self, ExecutorOptions};
use super::following::{Following, Sight};
use super::handler::{Readiness, Stage};
use super::node_core::{CoreDisks, CoreStart, Settled, core_main, seed};
use super::node_file::{NodeSet, SetDisk};
use super::origins;
use super::ports::{Ports, write_ports_file};
use super::preflight;
use super::served::Served;
use super::status::{DiskFacts, NO_SYNC, NodeFacts};
use super::tls::TlsConfig;
use super::topology::Topology;
use crate::config::checked::Config;
use crate::config::disk::DiskConfig;
use crate::mailbox::{Sender, mailbox};
use crate::origin::{OriginHandle, OriginPool, PeerHandle};

/// A shard of this node.
pub type NodeShard = Shard<RingDisk, OriginHandle, RingRuntime>;
/// One core's way to all shards of this node.
pub type NodeDispatch = Dispatch<RingDisk, OriginHandle, RingRuntime>;

/// The arena that formatting a disk needs.
const FORMAT_ARENA: ArenaConfig = ArenaConfig { bytes: 8 << 20 };
/// What all cores know of the node.
pub struct Node {
    /// Its configuration.
    pub config: Config,
    /// Its id, drawn when its disk was formatted.
    pub id: u128,
    /// The shared address, with its port.
    pub listen: SocketAddr,
    /// Each shard's own address, in order.
    pub shards: Vec<SocketAddr>,
    /// Where it stands.
    pub readiness: Arc<Readiness>,
    /// What status and topology tell of it.
    pub facts: Arc<NodeFacts>,
    /// The way to the object stores.
    pub origin: OriginHandle,
    /// The way to other members; `None`: it follows no admin.
    pub peers: Option<PeerHandle>,
    /// What it serves at first.
    pub served: Arc<Served>,
}

/// Runs a node until a signal stops it.
///
/// # Errors
/// What keeps the node from starting, with the fix; or a core that failed later.
pub fn run(mut config: Config) -> anyhow::Result<()> {
    preflight::machine()?;
    let (events, event) = mpsc::channel();
    drain::listen_to_signals(events.clone())?;
    raise_file_limit(&config);
    let tls = TlsConfig::from_pem_files(&config.tls_certificate, &config.tls_key)?;
    let mut following = match config.admin.clone() {
        Some(link) => Some(Following::start(&config, &link, events.clone())?),
        None => None,
    };
    if let Some(following) = &mut following {
        following.fill_in(&mut config)?;
    }
    let mut disks = NodeSet::claim(&config)?;
    for at in 0..disks.disks().len() {
        let disk = &disks.disks()[at];
        if disk.disk.is_ok()
            && let Err(refusal) = preflight::direct_io(&disk.path)
        {
            disks.do_without(at, refusal.into())?;
        }
    }
    let ports = Ports::reserve(&config)?;
    format(&config, &mut disks)?;
    let pool = origins::start_pool(&config)?;
    let served = match &mut following {
        Some(following) => following.first(&pool)?,
        None => Served::configured(config.volumes.iter().map(|volume| volume.shard.clone())),
    };
    let peers = match &config.admin {
        Some(link) => Some(PeerHandle::start(link.ca.as_deref()).context("a thread for other members")?),
        None => None,
    };
    let node = Arc::new(Node {
        id: disks.node_id(),
        listen: ports.listen,
        shards: ports.shards.clone(),
        readiness: Arc::default(),
        facts: Arc::new(facts(&config, &disks, &ports, following.as_ref().map(Following::sight))),
        origin: pool.handle(),
        peers,
        served: Arc::new(served),
        config,
    });
    let (cores, settled) = start_cores(&node, &disks, &tls, &events)?;
    if settled == Settled::Yes {
        disks.settle()?;
    }
    drop(ports);
    if let Some(following) = &mut following {
        following.serving(&cores)?;
    }
    node.readiness.set(Stage::Ready);
    write_ports_file(&node)?;
    if node.facts.sync() == SyncMode::Never {
        warn!("{NO_SYNC}");
    }
    node.facts.disks.iter().filter_map(DiskFacts::capacity_warning).for_each(|warning| warn!("{warning}"));
    info!(listen = %node.listen, shards = node.shards.len(), cores = cores.len(), "serving");
    wait_for_end(&event, following, &pool, &cores)?;
    drain::drain(&cores, &node.readiness, node.config.drain_deadline);
    pool.stop();
    info!("stopped");
    Ok(())
}

/// Does what the admin says until a signal ends the node.
fn wait_for_end(
    event: &mpsc::Receiver<Event>,
    mut following: Option<Following>,
    pool: &OriginPool,
    cores: &[Sender<Control>],
) -> anyhow::Result<()> {
    loop {
        let next = match following.as_ref().and_then(Following::wait) {
            Some(wait) => event.recv_timeout(wait),
            None => event.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match (next, &mut following) {
            (Ok(Event::Signal), _) => return Ok(()),
            (Ok(Event::CoreEnded(core)), _) => {
                bail!("the executor of core {core} ended; acknowledged writes are on disk: start the node again")
            }
            (Ok(Event::News(document)), Some(following)) => following.apply(document, pool, cores),
            (Err(RecvTimeoutError::Timeout), Some(following)) => following.try_apply(pool, cores),
            (Ok(Event::News(_)) | Err(RecvTimeoutError::Timeout), None) => (),
            (Err(RecvTimeoutError::Disconnected), _) => bail!("nobody can end this node"),
        }
    }
}

fn facts(config: &Config, disks: &NodeSet, ports: &Ports, following: Option<Arc<Sight>>) -> NodeFacts {
    let shard_ports: Vec<u16> = ports.shards.iter().map(SocketAddr::port).collect();
    let disk_facts = |(disk, configured): (&SetDisk, &DiskConfig)| DiskFacts {
        other_capacity: disk.other_capacity(configured, disks.shard_count()),
        ..DiskFacts::new(disk.path.display().to_string(), format!("{:032x}", disk.id), disk.sync)
    };
    NodeFacts {
        topology: Topology::new(disks.node_id(), &config.name, &config.tls_name, ports.listen.port(), &shard_ports),
        started: Instant::now(),
        volumes: config.volumes.iter().map(|volume| volume.shard.name.to_string()).collect(),
        budget: config.budget,
        disks: disks.disks().iter().zip(&config.disks).map(disk_facts).collect(),
        following,
    }
}

/// Makes the files of every shard on every new disk, on an executor that lives only for that, and tells all disks of each
/// other. Called here at each start of a node, and by `forebay format` ahead of the first.
///
/// # Errors
/// Too little space, or what the disk said; the next format begins anew.
pub fn format(config: &Config, disks: &mut NodeSet) -> anyhow::Result<()> {
    for at in disks.unformatted() {
        format_disk(config, &config.disks[at], disks)?;
    }
    disks.enroll()
}

fn format_disk(config: &Config, disk: &DiskConfig, disks: &NodeSet) -> anyhow::Result<()> {
    let geometry = disk.shape.clone()?.geometry;
    let slab_bytes = u64::from(geometry.region_count) * geometry.region_bytes + geometry.journal_bytes;
    preflight::direct_io(&disk.path)?;
    preflight::space(&disk.path, slab_bytes * u64::from(config.shards))?;
    info!(path = %disk.path.display(), shards = config.shards, slab_bytes, "formatting");
    let mut options = ExecutorOptions::new(config.cores[0]);
    "forebay-format".clone_into(&mut options.name);
    options.io_memory_bytes = FORMAT_ARENA.io_memory_bytes();
    let path = disk.path.clone();
    let runtime_seed = seed()?;
    let identities: Vec<_> = (0..config.shards).map(|shard| disks.identity(shard)).collect();
    let formatting = executor::start(&options, move |heartbeat| async move {
        let _formatting = heartbeat.enter();
        let ring = RingDisk::open(&path, FORMAT_ARENA).await?;
        let runtime = RingRuntime::new(runtime_seed);
        for identity in &identities {
            NodeShard::format(&ring, &runtime, geometry, identity).await?;
        }
        anyhow::Ok(())
    })?;
    formatting.join()?.with_context(|| format!("formatting {}", disk.path.display()))
}

/// Starts every core and waits until all of them serve; tells whether every key is on its own disk.
fn start_cores(
    node: &Arc<Node>,
    disks: &NodeSet,
    tls: &TlsConfig,
    events: &mpsc::Sender<Event>,
) -> anyhow::Result<(Vec<Sender<Control>>, Settled)> {
    let config = &node.config;
    let (routes, inboxes) = Routes::new(config.shards, config.cores.len(), config.limits.queue_depth);
    let (started, starts) = mpsc::channel();
    let mut controls = Vec::new();
    let core_disks = Arc::new(CoreDisks::of(disks));
    for (core, (cpu, inbox)) in config.cores.iter().zip(inboxes).enumerate() {
        let (control, controlled) = mailbox(4);
        controls.push(control);
        let arena = ArenaConfig { bytes: usize::try_from(config.budget.arena_bytes_per_executor)? };
        let mut options = ExecutorOptions::new(*cpu);
        options.name = format!("forebay-core-{core}");
        options.io_memory_bytes = arena.io_memory_bytes();
        let identities = routes.shards_of(core).map(|shard| (shard, disks.identity(shard))).collect();
        let (node, disks) = (Arc::clone(node), Arc::clone(&core_disks));
        let start = CoreStart { core, node, tls: tls.clone(), arena, disks, identities, routes: routes.clone() };
        let (started, events) = (started.clone(), events.clone());
        executor::start(&options, move |heartbeat| core_main(start, heartbeat, inbox, controlled, started, events))?;
    }
    drop(started);
    let mut settled = Settled::Yes;
    for _ in 0..controls.len() {
        let (core, outcome) = starts.recv().context("an executor ended while it started")?;
        settled = settled.and(outcome.with_context(|| format!("starting core {core}"))?);
    }
    Ok((controls, settled))
}

/// Connections need file descriptors; the soft limit is a default for programs that use select(2).
fn raise_file_limit(config: &Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        warn!(%error, "the limit of open files can't be raised");
    }
    let connections = (config.budget.connections_per_core * config.cores.len()) as u64;
    if limit.maximum.is_some_and(|files| files < connections + 1024) {
        warn!(
            open_files = limit.maximum,
            connections,
            "fewer open files than connections are allowed: raise `ulimit -n`, or lower connections_per_core"
        );
    }
}
