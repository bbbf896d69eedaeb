//! One core's life: open its shards, answer the other cores, listen, obey the main thread, end.
//!
//! Started by `boot`, once for each executor; everything made here stays on its thread (I12). A core listens only when its
//! shards are open; what other cores ask of it before that waits in its mailbox.

use std::future::Future;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, ensure};
use forebay_io::ring::{ArenaConfig, Listener, RingDisk, RingFile, RingRuntime};
use forebay_io::{Disk, OpenMode};
use forebay_shard::config::SyncMode;
use forebay_shard::disks::{Seat, Seats, Strays};
use forebay_shard::shard::{RecoveryReport, Shard};
use forebay_shard::store::{NodeIdentity, slab_name};
use tracing::{info, warn};

use super::auth::Auth;
use super::boot::{Node, NodeDispatch};
use super::connections::Connections;
use super::deadline::Deadlines;
use super::dispatch::{Dispatch, Inbox, Routes};
use super::drain::{Control, Event};
use super::framing::HeadLimits;
use super::handler::{Handler, HandlerSettings};
use super::heartbeat::Heartbeat;
use super::listener::{self, Serving};
use super::metrics::CoreMetrics;
use super::node_file::{NodeSet, SetDisk};
use super::report;
use super::stream::Batches;
use super::tls::TlsConfig;
use crate::config::checked::{self as config, Config};
use crate::mailbox::Receiver;

/// Large batches of encrypted records: this share of the memory, within these bounds for each core.
const BATCH_SHARE: u64 = 64;
const BATCH_BYTES: (u64, u64) = (2 << 20, 16 << 20);

/// When to ask the shards once more whether their changes have ended, if one could not be asked.
const QUIET_AGAIN: Duration = Duration::from_millis(10);

/// What one core is started with.
pub(super) struct CoreStart {
    pub(super) core: usize,
    pub(super) node: Arc<Node>,
    pub(super) tls: TlsConfig,
    pub(super) arena: ArenaConfig,
    pub(super) disks: Arc<CoreDisks>,
    /// The shards it owns.
    pub(super) identities: Vec<(u16, NodeIdentity)>,
    pub(super) routes: Routes,
}

/// What every core is told of the node's disks.
pub(super) struct CoreDisks {
    disks: Vec<CoreDisk>,
    strays: Strays,
    written_back: Vec<Arc<str>>,
}

struct CoreDisk {
    path: PathBuf,
    id: u128,
    weight: NonZeroU32,
    sync: SyncMode,
    /// For each shard.
    write_bytes_per_day: Option<u64>,
    /// Why it is away, if it is.
    away: Option<String>,
}

/// Whether every key of a core's shards is known to be on its own disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Yes,
    No,
}

impl Settled {
    /// Both are.
    pub(super) fn and(self, other: Settled) -> Settled {
        if self == Settled::Yes { other } else { Settled::No }
    }
}

impl CoreDisks {
    pub(super) fn of(set: &NodeSet) -> CoreDisks {
        let disk = |disk: &SetDisk| CoreDisk {
            path: disk.path.clone(),
            id: disk.id,
            weight: disk.weight,
            sync: disk.sync,
            write_bytes_per_day: disk.write_bytes_per_day.map(|bytes| bytes / u64::from(set.shard_count())),
            away: disk.disk.as_ref().err().cloned(),
        };
        CoreDisks {
            disks: set.disks().iter().map(disk).collect(),
            strays: set.strays(),
            written_back: set.written_back().into_iter().map(Arc::from).collect(),
        }
    }

    /// This core's own handles, in order. They share the core's arena.
    async fn open(&self, arena: ArenaConfig) -> anyhow::Result<Vec<Result<RingDisk, String>>> {
        let mut rings: Vec<Result<RingDisk, String>> = Vec::new();
        for disk in &self.disks {
            if let Some(why) = &disk.away {
                rings.push(Err(why.clone()));
                continue;
            }
            let opened = match rings.iter().flatten().next() {
                None => RingDisk::open(&disk.path, arena).await,
                Some(first) => first.beside(&disk.path).await,
            };
            rings.push(opened.map_err(|error| format!("{:#}", anyhow::Error::from(error))));
        }
        ensure!(
            rings.iter().any(Result::is_ok),
            "no disk can be used: {}",
            rings.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; ")
        );
        Ok(rings)
    }

    /// What a shard is offered.
    fn seats(&self, rings: &[Result<RingDisk, String>]) -> Seats<RingDisk> {
        let seat = |(disk, ring): (&CoreDisk, &Result<RingDisk, String>)| Seat {
            id: disk.id,
            weight: disk.weight,
            sync: disk.sync,
            write_bytes_per_day: disk.write_bytes_per_day,
            disk: ring.clone(),
        };
        Seats {
            disks: self.disks.iter().zip(rings).map(seat).collect(),
            strays: self.strays,
            written_back: self.written_back.clone(),
        }
    }
}

/// One core's life.
pub(super) fn core_main(
    start: CoreStart,
    heartbeat: Rc<Heartbeat>,
    inbox: Inbox,
    controls: Receiver<Control>,
    started: mpsc::Sender<(usize, anyhow::Result<Settled>)>,
    events: mpsc::Sender<Event>,
) -> impl Future<Output = ()> {
    let ended = Ended { core: start.core, events };
    async move {
        let _ended = ended;
        let starting = heartbeat.enter();
        let (outcome, parts) = match serve_core(&start, inbox, heartbeat).await {
            Ok(Core { dispatch, connections, handler }) => {
                let is_settled = dispatch.own_shards().all(|(_, shard)| shard.is_settled());
                (Ok(if is_settled { Settled::Yes } else { Settled::No }), Some((dispatch, connections, handler)))
            }
            Err(error) => (Err(error), None),
        };
        // The main thread may have given up on another core's failure.
        let _ = started.send((start.core, outcome));
        drop((started, starting));
        if let Some((dispatch, connections, handler)) = parts {
            obey(controls, &dispatch, &connections, &handler).await;
        }
    }
}

/// Tells the main thread when a core is gone, also by a panic.
struct Ended {
    core: usize,
    events: mpsc::Sender<Event>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.events.send(Event::CoreEnded(self.core));
    }
}

/// What a core consists of.
struct Core {
    dispatch: Rc<NodeDispatch>,
    connections: Rc<Connections>,
    handler: Rc<NodeHandler>,
}

type NodeHandler = Handler<Rc<NodeDispatch>>;

/// Opens the core's shards, answers other cores, listens.
async fn serve_core(start: &CoreStart, inbox: Inbox, heartbeat: Rc<Heartbeat>) -> anyhow::Result<Core> {
    let (node, config) = (&start.node, &start.node.config);
    let rings = start.disks.open(start.arena).await?;
    let runtime = RingRuntime::new(seed()?);
    let mut shards = Vec::new();
    for (number, identity) in &start.identities {
        let (seats, origin) = (start.disks.seats(&rings), node.origin.clone());
        let opened = Shard::open_on(seats, origin, runtime.clone(), identity.clone(), config.shard(*number));
        let (shard, recovery) = opened.await.with_context(|| format!("opening {}", slab_name(*number)))?;
        log_recovery(*number, &recovery);
        shards.push((*number, shard));
    }
    let slabs = open_slabs(&rings, config.shards).await?;
    let dispatch = Dispatch::new(start.core, start.routes.clone(), shards, slabs);
    glommio::spawn_local(Rc::clone(&dispatch).serve(inbox, runtime, Rc::clone(&heartbeat))).detach();
    let connections = Connections::new(config.budget.connections_per_core, deadlines(config));
    let handler = Rc::new(handler(start, &dispatch, &connections));
    let serving = Rc::new(Serving {
        service: Rc::clone(&handler),
        tls: start.tls.clone(),
        heads: HeadLimits { head_bytes_max: config.limits.header_bytes, headers_max: config.limits.header_count },
        http2_streams_max: config.limits.http2_streams,
        heartbeat,
        connections: Rc::clone(&connections),
        batches: Batches::new(batch_bytes(config)),
        core: start.core,
    });
    let own = start.routes.shards_of(start.core).map(|shard| node.shards[usize::from(shard)]);
    for address in std::iter::once(node.listen).chain(own) {
        let listener = Listener::bind(address).with_context(|| format!("listening on {address}"))?;
        listener::serve(listener, Rc::clone(&serving));
    }
    Ok(Core { dispatch, connections, handler })
}

/// What answers this core's requests.
fn handler(start: &CoreStart, dispatch: &Rc<NodeDispatch>, connections: &Rc<Connections>) -> NodeHandler {
    let (node, config) = (&start.node, &start.node.config);
    let metrics = Rc::new(CoreMetrics::default());
    report::publish(start.core, Rc::clone(&metrics), Rc::clone(connections));
    let settings = HandlerSettings {
        served: Arc::clone(&node.served),
        auth: match &config.auth {
            config::Auth::Tokens(keys) => Auth::by_tokens(Arc::clone(keys), config.limits.tokens),
            config::Auth::AdminTokens => {
                Auth::by_tokens(node.served.keys.clone().unwrap_or_default(), config.limits.tokens)
            }
            config::Auth::Anonymous => Auth::anonymous(),
        },
        put_bytes_max: config.put_bytes_per_core(),
        access_one_in: config.log.access_one_in,
        check_key: {
            let origin = node.origin.clone();
            Box::new(move |key| origin.check_key(key))
        },
        peers: node.peers.clone(),
        facts: Arc::clone(&node.facts),
        readiness: Arc::clone(&node.readiness),
    };
    Handler::new(Rc::clone(dispatch), settings, metrics)
}

/// Does what the main thread says, until the end.
async fn obey(
    mut controls: Receiver<Control>,
    dispatch: &Rc<NodeDispatch>,
    connections: &Connections,
    handler: &NodeHandler,
) {
    while let Some(control) = controls.recv().await {
        // The main thread may have stopped waiting.
        match control {
            Control::Drain(done) => {
                connections.drain();
                connections.closed().await;
                let _ = done.send(());
            }
            Control::Flush(deadline, done) => {
                for (shard, report) in dispatch.flush_own(deadline).await {
                    info!(shard, ?report, "flushed");
                }
                let _ = done.send(());
            }
            Control::Know(volumes, done) => {
                dispatch.own_shards().for_each(|(_, shard)| shard.serve(&volumes));
                let _ = done.send(());
            }
            Control::Serve(served, done) => {
                handler.serve(&served);
                let _ = done.send(());
            }
            // Both may take their time, and other orders don't wait for them.
            Control::Quiet(done) => {
                let dispatch = Rc::clone(dispatch);
                glommio::spawn_local(async move {
                    // A full mailbox empties in milliseconds.
                    while !dispatch.changes_ended().await {
                        glommio::timer::sleep(QUIET_AGAIN).await;
                    }
                    let _ = done.send(());
                })
                .detach();
            }
            Control::Count(chosen, counted) => {
                let dispatch = Rc::clone(dispatch);
                glommio::spawn_local(async move {
                    let _ = counted.send(dispatch.count_dirty(&*chosen).await);
                })
                .detach();
            }
            Control::Close(done) => {
                dispatch.close_own().await;
                let _ = done.send(());
                return;
            }
        }
    }
}

/// A handle of every slab, in order of shards and disks. Of one of several disks it may be missing.
async fn open_slabs(
    rings: &[Result<RingDisk, String>],
    shard_count: u16,
) -> anyhow::Result<Vec<Vec<Option<RingFile>>>> {
    let mut slabs = Vec::new();
    for shard in 0..shard_count {
        let mut of_shard = Vec::new();
        for ring in rings {
            let opened = match ring {
                Ok(ring) => Some(ring.open(&slab_name(shard), OpenMode::Read).await),
                Err(_) => None,
            };
            of_shard.push(match opened.transpose() {
                Err(error) if rings.len() == 1 => return Err(error.into()),
                opened => opened.ok().flatten(),
            });
        }
        slabs.push(of_shard);
    }
    Ok(slabs)
}

fn log_recovery(shard: u16, recovery: &RecoveryReport) {
    let RecoveryReport { entries, dirty_blocks, dirty_bytes, tombstones, unsure, quarantined, salvaged, .. } =
        *recovery;
    let joined = |counts: Vec<(&'static str, u64)>| {
        let named = counts.into_iter().filter(|(_, count)| *count > 0);
        named.map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
    };
    let rejected = joined(recovery.rejected.named());
    let ms = joined(recovery.work.phases_ms().to_vec());
    let records = recovery.work.records;
    if salvaged > 0 {
        warn!(
            shard,
            dirty_blocks,
            dirty_bytes,
            tombstones,
            unsure,
            quarantined,
            records,
            rejected,
            ms,
            "checkpoint or journal were damaged: recovered what is dirty, dropped what is clean"
        );
    } else {
        info!(shard, entries, dirty_blocks, dirty_bytes, tombstones, quarantined, records, rejected, ms, "recovered");
    }
}

fn deadlines(config: &Config) -> Deadlines {
    let limits = &config.limits;
    Deadlines {
        handshake: limits.handshake_timeout,
        header: limits.header_timeout,
        idle: limits.idle_timeout,
        body: limits.body_timeout,
        whole_body: limits.body_deadline,
        reader: limits.write_timeout,
        ..Deadlines::default()
    }
}

fn batch_bytes(config: &Config) -> usize {
    let share = config.budget.memory_bytes / BATCH_SHARE / config.cores.len() as u64;
    usize::try_from(share.clamp(BATCH_BYTES.0, BATCH_BYTES.1)).expect("at most 16 MiB")
}

/// A start for random numbers that nobody can foresee.
pub(super) fn seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).context("the system has no randomness")?;
    Ok(u64::from_le_bytes(bytes))
}
