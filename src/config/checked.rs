//! The configuration after every check: types that can't be wrong, figures instead of shares, one disk, one split of
//! the memory. Made once at start by `config::load`; everything that runs reads this and nothing else.
//!
//! The parts are checked in `disk`, `stores`, `limits` and `budget`; this file puts them together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_shard::config::{DiskLimits, HealthLimits, ShardConfig, SyncMode, VolumeConfig};

use crate::config::admin::{AdminLink, check_admin};
use crate::config::budget::{Budget, Demand, GHOST_BYTES};
use crate::config::disk::{DiskConfig, capacity_bytes, check_dirty, check_disks};
use crate::config::health::check_health;
use crate::config::limits::{Limits, check_limits};
use crate::config::machine::Machine;
use crate::config::raw::{RawConfig, RawNode, RawPublicKey, SECRET_REMOVED};
use crate::config::stores::{self, StoreConfig, Volume};
use crate::config::units::Size;
use crate::token::{PublicKey, PublicKeys};

/// A mistake in the configuration: the key, what is wrong with it, and the fix. One line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct ConfigError {
    key: String,
    what: String,
}

impl ConfigError {
    /// An error of `key`; `what` ends with the fix.
    pub fn new(key: impl Into<String>, what: impl Into<String>) -> ConfigError {
        ConfigError { key: key.into(), what: what.into() }
    }
}

/// A node's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name.
    pub name: Arc<str>,
    /// The shared address.
    pub listen: SocketAddr,
    /// The port of shard 0; 0: each port is picked free.
    pub shard_port_base: u16,
    /// How many shards.
    pub shards: u16,
    /// The CPU of each executor. Shard *n* belongs to executor *n* mod their number.
    pub cores: Vec<usize>,
    /// PEM file of the certificate chain.
    pub tls_certificate: PathBuf,
    /// PEM file of the key.
    pub tls_key: PathBuf,
    /// The name in the certificate.
    pub tls_name: Arc<str>,
    /// Where to write the bound addresses when ready.
    pub ports_file: Option<PathBuf>,
    /// For requests and flushes of a stopping node.
    pub drain_deadline: Duration,
    /// The disks.
    pub disks: Vec<DiskConfig>,
    /// Ids of disks whose blocks are given up.
    pub abandon_disks: Vec<u128>,
    /// Where stores, volumes and keys come from; `None`: from the file.
    pub admin: Option<AdminLink>,
    /// The stores volumes refer to. With an admin: as the node last knew them, filled in at start.
    pub stores: Vec<StoreConfig>,
    /// The volumes, as the stores.
    pub volumes: Vec<Volume>,
    /// Volumes that may have dirty blocks here, whatever they are now.
    pub written_back: Vec<String>,
    /// The largest block of any volume in bytes.
    pub block_bytes_max: u32,
    /// Dirty bytes of the whole node, at most.
    pub dirty_bytes_max: u64,
    /// Who may ask.
    pub auth: Auth,
    /// The split of the memory.
    pub budget: Budget,
    /// Bounds.
    pub limits: Limits,
    /// When a disk counts as bad, and as good again.
    pub health: HealthLimits,
    /// Logs.
    pub log: Log,
    /// The same as a file, filled in, without secrets: what `--print-config` prints.
    pub effective: RawConfig,
}

/// Who may ask.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Whoever has a token signed by one of these keys.
    Tokens(Arc<PublicKeys>),
    /// Whoever has a token signed by one of the admin's keys.
    AdminTokens,
    /// Everybody on this machine (the address is a loopback one).
    Anonymous,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct Log {
    /// A tracing filter.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
    /// One in so many requests is logged; 0: none.
    pub access_one_in: u32,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Config {
    /// Checks `raw` for a node on `machine`.
    ///
    /// # Errors
    /// The first mistake found.
    pub fn check(raw: RawConfig, machine: &Machine) -> Result<Config, ConfigError> {
        let stores = stores::check_stores(&raw.store)?;
        let admin = raw.admin.as_ref().map(|admin| check_admin(admin, &raw)).transpose()?;
        let volumes = match &admin {
            Some(_) => Vec::new(),
            None => stores::check_volumes(&raw.volume, &stores)?,
        };
        // Before the memory is split by them: a count that no machine can hold is refused here.
        let limits = check_limits(&raw.limits)?;
        let cores = cores(&raw.node, machine)?;
        let shards = shards(&raw.node, cores.len())?;
        let largest = volumes.iter().map(|volume| volume.shard.block_bytes_max).max().unwrap_or(0);
        let block_bytes_max = admin.as_ref().map_or(largest, |admin| admin.block_bytes_max);
        let disks = check_disks(&raw.disk, machine, shards, block_bytes_max)?;
        let dirty_bytes_max = check_dirty(&raw.node, &disks, shards)?;
        let budget = check_memory(&raw, machine, &disks, cores.len(), shards, block_bytes_max)?;
        let abandon_disks = abandoned(&raw.node)?;
        let name = raw.node.name.clone().unwrap_or_else(|| machine.host_name.clone());
        let tls_name = raw.node.tls_name.clone().unwrap_or_else(|| name.clone());
        check_files(&raw.node)?;
        let mut config = Config {
            name: name.into(),
            listen: raw.node.listen,
            shard_port_base: shard_port_base(&raw.node, shards)?,
            shards,
            cores,
            tls_certificate: raw.node.tls_certificate.clone(),
            tls_key: raw.node.tls_key.clone(),
            tls_name: tls_name.into(),
            ports_file: raw.node.ports_file.clone(),
            drain_deadline: raw.node.drain_deadline.0,
            disks,
            abandon_disks,
            admin,
            stores,
            volumes,
            written_back: Vec::new(),
            block_bytes_max,
            dirty_bytes_max,
            auth: check_auth(&raw)?,
            budget,
            limits,
            health: check_health(&raw.health)?,
            log: check_log(&raw)?,
            effective: raw,
        };
        config.fill_in();
        Ok(config)
    }

    /// Puts figures where shares and defaults were in the printed form, and takes the secrets out.
    fn fill_in(&mut self) {
        let raw = &mut self.effective;
        raw.node.name = Some(self.name.to_string());
        raw.node.tls_name = Some(self.tls_name.to_string());
        raw.node.cores = Some(self.cores.clone());
        raw.node.shards = Some(self.shards);
        raw.node.memory = Size::Bytes(self.budget.memory_bytes);
        raw.node.dirty_max = Size::Bytes(self.dirty_bytes_max);
        for (raw, disk) in raw.disk.iter_mut().zip(&self.disks) {
            raw.capacity = disk.shape.as_ref().map_or(raw.capacity, |shape| Size::Bytes(shape.capacity_bytes));
        }
        raw.limits.connections_per_core = Some(self.budget.connections_per_core);
        for store in &mut raw.store {
            let credentials = &mut store.credentials;
            for secret in [&mut credentials.secret_key, &mut credentials.session_token].into_iter().flatten() {
                SECRET_REMOVED.clone_into(secret);
            }
        }
    }

    /// What shard number `shard` is told: its share of every budget.
    #[must_use]
    pub fn shard(&self, shard: u16) -> ShardConfig {
        assert!(shard < self.shards, "shards are numbered from 0");
        let shards = u64::from(self.shards);
        ShardConfig {
            shard,
            volumes: self.volumes.iter().map(|volume| volume.shard.clone()).collect::<Vec<VolumeConfig>>(),
            memory_tier_bytes: self.budget.memory_tier_bytes / shards,
            fill_bytes_max: self.budget.fill_bytes / shards,
            dirty_bytes_max: self.dirty_bytes_max / shards,
            sync: self.sync(),
            flush_parallelism: self.limits.flushes,
            commit_delay: self.limits.commit_delay,
            fills_max: self.limits.fills,
            health: self.health.clone(),
            disk_limits: DiskLimits {
                ghosts_max: usize::try_from(self.budget.ghost_bytes / GHOST_BYTES / shards).expect("64-bit"),
                // Each disk has its own.
                write_bytes_per_day: None,
            },
        }
    }

    /// Whether acknowledgements wait for fdatasync: only if they do on every disk.
    #[must_use]
    pub fn sync(&self) -> SyncMode {
        match self.disks.iter().all(|disk| disk.sync == SyncMode::Always) {
            true => SyncMode::Always,
            false => SyncMode::Never,
        }
    }

    /// What bodies of puts may hold on one core, in bytes.
    #[must_use]
    pub fn put_bytes_per_core(&self) -> u64 {
        self.budget.put_bytes / self.cores.len() as u64
    }
}

fn cores(node: &RawNode, machine: &Machine) -> Result<Vec<usize>, ConfigError> {
    let Some(cores) = &node.cores else { return Ok(machine.cores.clone()) };
    if cores.is_empty() {
        return Err(ConfigError::new("node.cores", "is empty: name at least one CPU, or remove the key to use all"));
    }
    if let Some(missing) = cores.iter().find(|core| !machine.cores.contains(core)) {
        let have = machine.cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(ConfigError::new(
            "node.cores",
            format!("this process may not use CPU {missing}: choose of {have}"),
        ));
    }
    let mut sorted = cores.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != cores.len() {
        return Err(ConfigError::new("node.cores", "names a CPU twice: name each once"));
    }
    Ok(cores.clone())
}

fn abandoned(node: &RawNode) -> Result<Vec<u128>, ConfigError> {
    let id = |text: &String| {
        let what = || format!("{text:?} is no disk: write its 32 hexadecimal digits, as /v1/status names it");
        let is_id = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let parsed = is_id.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        parsed.ok_or_else(|| ConfigError::new("node.abandon_disks", what()))
    };
    node.abandon_disks.iter().map(id).collect()
}

fn shards(node: &RawNode, executors: usize) -> Result<u16, ConfigError> {
    let shards = node.shards.map_or(executors, usize::from);
    if shards < executors || shards > 1024 {
        let what = format!("{shards} shards for {executors} executors: set {executors} to 1024, or fewer node.cores");
        return Err(ConfigError::new("node.shards", what));
    }
    Ok(u16::try_from(shards).expect("at most 1024"))
}

fn shard_port_base(node: &RawNode, shards: u16) -> Result<u16, ConfigError> {
    let base = node.shard_port_base;
    if base == 0 {
        return Ok(0);
    }
    let Some(last) = base.checked_add(shards - 1) else {
        return Err(ConfigError::new("node.shard_port_base", format!("{base} leaves no room for {shards} ports")));
    };
    if (base..=last).contains(&node.listen.port()) {
        let what = format!("ports {base} to {last} hold the port of node.listen: move one of them");
        return Err(ConfigError::new("node.shard_port_base", what));
    }
    Ok(base)
}

fn check_memory(
    raw: &RawConfig,
    machine: &Machine,
    disks: &[DiskConfig],
    executors: usize,
    shards: u16,
    block_bytes_max: u32,
) -> Result<Budget, ConfigError> {
    let memory_bytes = raw.node.memory.of(machine.memory_bytes);
    if memory_bytes > machine.memory_bytes {
        let most = Size::Bytes(machine.memory_bytes);
        return Err(ConfigError::new("node.memory", format!("this machine (or its cgroup) has {most}: set less")));
    }
    Budget::split(&Demand {
        memory_bytes,
        executors: executors as u64,
        shards: u64::from(shards),
        capacity_bytes: capacity_bytes(disks),
        // The index is one memory: planned for the smallest blocks.
        mean_block_bytes: raw.disk.iter().map(|disk| disk.mean_block.of(0)).min().unwrap_or(1),
        block_bytes_max: u64::from(block_bytes_max),
        connections_per_core: raw.limits.connections_per_core.map(|count| count as u64),
    })
}

fn check_files(node: &RawNode) -> Result<(), ConfigError> {
    for (key, path) in [("node.tls_certificate", &node.tls_certificate), ("node.tls_key", &node.tls_key)] {
        std::fs::File::open(path)
            .map_err(|error| ConfigError::new(key, format!("{}: {error}: name a readable PEM file", path.display())))?;
    }
    Ok(())
}

fn check_auth(raw: &RawConfig) -> Result<Auth, ConfigError> {
    if raw.auth.anonymous {
        if !raw.node.listen.ip().is_loopback() {
            let what = format!("is only allowed on a loopback address, node.listen is {}", raw.node.listen);
            return Err(ConfigError::new("auth.anonymous", format!("{what}: use tokens (auth.public_keys)")));
        }
        return Ok(Auth::Anonymous);
    }
    if raw.admin.is_some() {
        return Ok(Auth::AdminTokens);
    }
    if raw.auth.public_keys.is_empty() {
        let what = "is empty: add the key that `forebay token keygen --out FILE` prints";
        return Err(ConfigError::new("auth.public_keys", what));
    }
    Ok(Auth::Tokens(Arc::new(check_keys("auth.public_keys", &raw.auth.public_keys)?)))
}

/// The keys listed under `name`.
pub(super) fn check_keys(name: &str, listed: &[RawPublicKey]) -> Result<PublicKeys, ConfigError> {
    let mut keys = PublicKeys::default();
    for key in listed {
        let parsed = PublicKey::parse(&key.key)
            .map_err(|error| ConfigError::new(format!("{name} ({})", key.id), format!("key: {error}")))?;
        if !keys.add(&key.id, parsed) {
            return Err(ConfigError::new(name, format!("two keys have the id {:?}: rename one", key.id)));
        }
    }
    Ok(keys)
}

fn check_log(raw: &RawConfig) -> Result<Log, ConfigError> {
    tracing_subscriber::EnvFilter::try_new(&raw.log.level).map_err(|_| {
        let what = format!("{:?} is no level: set error, warn, info, debug or trace", raw.log.level);
        ConfigError::new("log.level", what)
    })?;
    let format = if raw.log.json { LogFormat::Json } else { LogFormat::Text };
    Ok(Log { level: raw.log.level.clone(), format, access_one_in: raw.log.access_one_in })
}
