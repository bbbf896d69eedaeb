//! The configuration file as it is written: every key, its default and its effect.
//!
//! Only shapes are checked here (types, unknown keys); what the values mean together is `checked.rs`. The same types,
//! filled in and with secrets removed, are what `--print-config` prints.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use forebay_shard::config::HealthLimits;
use serde::{Deserialize, Serialize};

use crate::config::units::{Size, Time};

/// What stands in a printed configuration where a secret was.
pub const SECRET_REMOVED: &str = "(removed)";

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// The node: addresses, cores, memory, certificate.
    pub node: RawNode,
    /// Where blocks are kept; each disk is a failure domain of its own.
    #[serde(default)]
    pub disk: Vec<RawDisk>,
    /// The object stores.
    #[serde(default)]
    pub store: Vec<RawStore>,
    /// The volumes served, each from one store.
    #[serde(default)]
    pub volume: Vec<RawVolume>,
    /// Where the stores and volumes come from instead, if an admin keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<RawAdmin>,
    /// Who may ask.
    #[serde(default)]
    pub auth: RawAuth,
    /// Bounds of everything that could grow. The defaults suit most nodes.
    #[serde(default)]
    pub limits: RawLimits,
    /// When a disk counts as bad, and as good again. The defaults suit most disks.
    #[serde(default)]
    pub health: RawHealth,
    /// Logs on stderr.
    #[serde(default)]
    pub log: RawLog,
}

/// `[node]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawNode {
    /// The node's name in topology, status and metrics. Default: the host's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The shared address: every core accepts here. Port 0 picks a free one. Default `127.0.0.1:7400`.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Shard *n* is also served at port `shard_port_base + n` of the listen address, by the core that owns it.
    /// 0 picks free ports. Default 7410.
    #[serde(default = "shard_port_base")]
    pub shard_port_base: u16,
    /// Into how many shards the key space is divided; fixed when the disk is formatted. Default: the number of cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<u16>,
    /// The CPUs that get a pinned executor each. Default: all this process may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<Vec<usize>>,
    /// The one memory figure: bytes, or a share of the cgroup's or the machine's, the smaller. Default `25%`.
    #[serde(default = "memory")]
    pub memory: Size,
    /// How much may be acknowledged and not yet in the object store: bytes, or a share of the disk's capacity, at most
    /// half of it. Default `25%`.
    #[serde(default = "dirty_max")]
    pub dirty_max: Size,
    /// PEM file of the certificate and its chain. Required.
    pub tls_certificate: PathBuf,
    /// PEM file of its private key. Required.
    pub tls_key: PathBuf,
    /// The name clients verify the certificate against; told by `/v1/topology`. Default: the node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_name: Option<String>,
    /// A JSON file written when the node is ready: the bound addresses and the process id. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports_file: Option<PathBuf>,
    /// Ids of disks, as `/v1/status` names them, whose blocks are given up for good, also those that were acknowledged and not
    /// flushed: for a disk that died and is replaced or taken out. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abandon_disks: Vec<String>,
    /// How long a stopping node waits for running requests and for the flush of dirty blocks; what is dirty after that
    /// is flushed after the next start. Default `30s`.
    #[serde(default = "seconds::<30>")]
    pub drain_deadline: Time,
}

/// `[[disk]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDisk {
    /// A directory on a file system with O_DIRECT (ext4, xfs); created if missing. Several `[[disk]]` share the keys by their
    /// capacity, and each fails alone. Required.
    pub path: PathBuf,
    /// What Forebay may take: bytes, or a share of what is free there (its own slabs count as free). Applied when the
    /// disk is formatted. Default `90%`.
    #[serde(default = "capacity")]
    pub capacity: Size,
    /// The unit of appending and eviction: a power of two, at least eight blocks of the largest volume.
    /// Default `64MiB`.
    #[serde(default = "region")]
    pub region: Size,
    /// Whether an acknowledgement waits for fdatasync. `false` gives up the power-cut promise. Default `true`.
    #[serde(default = "yes")]
    pub sync: bool,
    /// The mean block size the index's memory is planned for; smaller blocks need more. Default `64KiB`.
    #[serde(default = "mean_block")]
    pub mean_block: Size,
    /// How much payload may be written to the disk in a day (`"2TiB"`), to spare an SSD. When it runs short, blocks that are
    /// asked for the first time stay in memory only, then all that came from the object store; puts and dirty blocks are always
    /// written. What was not used is kept for an hour. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_budget: Option<Size>,
}

/// `[[store]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawStore {
    /// What volumes call it. Required.
    pub name: String,
    /// The service's URL, `http://` or `https://`. Required.
    pub endpoint: String,
    /// The region requests are signed for. Default `us-east-1`.
    #[serde(default = "region_name")]
    pub region: String,
    /// The bucket. Required.
    pub bucket: String,
    /// `true`: `endpoint/bucket/key`; `false`: `bucket.endpoint/key`. Default `true`.
    #[serde(default = "yes")]
    pub path_style: bool,
    /// How keys are written as object names. `plain`: as they are. `portable`: also for stores over a file tree
    /// (SeaweedFS), which take `a//b`, `a\b` and `a/b` for one object; set it there before the first write.
    /// Default `plain`.
    #[serde(default)]
    pub names: RawNames,
    /// Who signs. Default: the environment, then the profile `default` of `~/.aws/credentials`.
    #[serde(default)]
    pub credentials: RawCredentials,
    /// PEM file of a certificate authority to trust beside the system's. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// `names = …`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawNames {
    /// As they are.
    #[default]
    Plain,
    /// Escaped where a file tree would take two keys for one.
    Portable,
}

/// `credentials = { … }`: a pair of keys, `env`, a profile, or a file and a profile.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCredentials {
    /// The access key; with `secret_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<String>,
    /// The secret key; with `access_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<String>,
    /// A session token that goes with the pair. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_token: Option<String>,
    /// `true`: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub env: bool,
    /// A file in the form of `~/.aws/credentials`. Default with `profile`: that file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// A section of that file. Default with `file`: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// `[[volume]]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawVolume {
    /// 1–63 of `a-z`, `0-9`, `-`. Required.
    pub name: String,
    /// The store's name. Required.
    pub store: String,
    /// Put before each key in the bucket, as it is. Default empty.
    #[serde(default)]
    pub prefix: String,
    /// The largest block, `4KiB` to `16MiB`. Default `4MiB`.
    #[serde(default = "block_size")]
    pub block_size: Size,
    /// `through`: a put is acknowledged when the store has it. `back`: when this node's disk has it; flushed later.
    /// Default `through`.
    #[serde(default)]
    pub write: RawWrite,
    /// Puts and deletes are refused. Default `false`.
    #[serde(default)]
    pub read_only: bool,
    /// What a put to a write-back volume gets when `dirty_max` is reached: `decline` (503, Retry-After) or
    /// `write-through`. Default `decline`.
    #[serde(default)]
    pub dirty_full: RawDirtyFull,
}

/// `write = …`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawWrite {
    /// Acknowledged by the store.
    #[default]
    Through,
    /// Acknowledged by this node.
    Back,
}

/// `dirty_full = …`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawDirtyFull {
    /// 503 and Retry-After.
    #[default]
    Decline,
    /// The put takes as long as the store does.
    WriteThrough,
}

/// `[admin]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAdmin {
    /// The URL of the admin that this node learns its stores, volumes and keys from, and follows while it runs. With this section the
    /// file has no `[[store]]`, no `[[volume]]` and no `auth.public_keys`. Required.
    pub url: String,
    /// PEM file of a certificate authority to trust instead of the system's, for the admin and the other members of the group.
    /// Default: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The group that this node serves in. Required.
    pub group: String,
    /// Which of its members this node is: a name, or an id. Required.
    pub member: String,
    /// A file that holds the token which `forebay token create --group GROUP` made; it is read again for each question. Default: the
    /// token is in `FOREBAY_TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// A directory for what the admin said last, so that the node starts without it, and for the settings of volumes that left with dirty
    /// blocks; created if missing. Required.
    pub directory: PathBuf,
    /// The Ed25519 keys that may sign what the admin says. Default: those that the admin names over TLS when it is first asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_keys: Vec<RawPublicKey>,
    /// PEM file of a certificate authority to trust beside the system's, for the stores. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ca: Option<PathBuf>,
    /// The largest `block_size` of a volume that this node serves; memory and regions are planned for it. Default `4MiB`.
    #[serde(default = "block_size")]
    pub block_size_max: Size,
    /// Blocks that belong to another member of the group are refused (421) instead of served. Default `false`.
    #[serde(default)]
    pub strict: bool,
    /// How long one question waits for news; a change is known at once, or within this, and 10 s at most, where something cuts waits. Default `30s`.
    #[serde(default = "seconds::<30>")]
    pub refresh: Time,
}

/// `[auth]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAuth {
    /// The Ed25519 keys whose tokens are accepted; with `[admin]` it is the admin's keys. Required unless `anonymous`.
    #[serde(default)]
    pub public_keys: Vec<RawPublicKey>,
    /// Everybody may do everything; only on a loopback address. Default `false`.
    #[serde(default)]
    pub anonymous: bool,
}

/// One of `auth.public_keys`, as `forebay token keygen` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPublicKey {
    /// The key's id: the `kid` in a token's header.
    pub id: String,
    /// The public key: 32 bytes in base64url without padding, or PEM.
    pub key: String,
}

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLimits {
    /// The largest request head. Default `16KiB`.
    pub header_bytes: Size,
    /// The most header lines in it. Default 64.
    pub header_count: usize,
    /// Connections a core accepts at once. Default: an eighth of the memory at 64 KiB each, at most 8,192.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_core: Option<usize>,
    /// Streams of one HTTP/2 connection at once. Default 64.
    pub http2_streams: u32,
    /// For the TLS handshake. Default `10s`.
    pub handshake_timeout: Time,
    /// From the first byte of a request to the end of its head. Default `10s`.
    pub header_timeout: Time,
    /// The longest pause in a request's body. Default `20s`.
    pub body_timeout: Time,
    /// How long a whole request body may take. Default `5m`.
    pub body_deadline: Time,
    /// How long a client may leave a response unread. Default `30s`.
    pub write_timeout: Time,
    /// Between requests of one connection. Default `75s`.
    pub idle_timeout: Time,
    /// Requests of other cores waiting for one core; more are declined. Default 4,096.
    pub queue_depth: usize,
    /// Fills at once of one shard. Default 128.
    pub fills: usize,
    /// Stores to the origin at once of one shard, from write-back. Default 8.
    pub flushes: usize,
    /// How long a group commit gathers. Default `0s`: as long as the sync before it takes.
    pub commit_delay: Time,
    /// Tokens remembered by a core. Default 4,096.
    pub tokens: usize,
    /// Threads of the origin pool. Default 1.
    pub origin_threads: usize,
    /// Requests at once to one store. Default 64.
    pub origin_concurrency: usize,
    /// Requests waiting for one store; more are declined. Default 1,024.
    pub origin_queue: usize,
    /// For connecting to a store. Default `5s`.
    pub origin_connect_timeout: Time,
    /// The longest silence of a store within a request. Default `15s`.
    pub origin_read_timeout: Time,
    /// For one request to a store, retries included. Default `60s`.
    pub origin_deadline: Time,
}

/// `[health]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHealth {
    /// Errors and slow operations of a disk count for this long. Default `60s`.
    pub window: Time,
    /// So many errors within `window` degrade a disk: no new blocks on it. Default 3.
    pub errors_degraded: u32,
    /// So many take it offline: requests pass it by. More than `errors_degraded`. Default 12.
    pub errors_offline: u32,
    /// A write or sync that takes longer is slow. Default `1s`.
    pub slow: Time,
    /// A disk is degraded when this share of the writes and syncs within `window` was slow. Default `50%`.
    pub slow_share: Size,
    /// But not before there were so many of them. Default 16.
    pub slow_ops_min: u32,
    /// An operation without an answer for so long takes the disk offline. Longer than `slow`. Default `15s`.
    pub stalled: Time,
    /// From one probe of a disk that is not well to the next. Default `2s`.
    pub probe_every: Time,
    /// While an offline disk fails its probes that doubles, up to this. Default `60s`.
    pub probe_every_max: Time,
    /// So many failed probes in a row take a degraded disk offline. Default 3.
    pub probes_bad: u32,
    /// So many good ones in a row bring a disk one step up. Default 3.
    pub probes_good: u32,
    /// A disk that falls within this time after a step up needs twice as many good probes for the next. Default `10m`.
    pub relapse: Time,
}

/// `[log]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,forebay::origin=debug`. Default `info`.
    pub level: String,
    /// One JSON document a line instead of text. Default `false`.
    pub json: bool,
    /// One in so many requests is logged at `info`; 0: none (errors always are). Default 0.
    pub access_one_in: u32,
}

impl Default for RawLimits {
    fn default() -> RawLimits {
        RawLimits {
            header_bytes: Size::Bytes(16 << 10),
            header_count: 64,
            connections_per_core: None,
            http2_streams: 64,
            handshake_timeout: seconds::<10>(),
            header_timeout: seconds::<10>(),
            body_timeout: seconds::<20>(),
            body_deadline: seconds::<300>(),
            write_timeout: seconds::<30>(),
            idle_timeout: seconds::<75>(),
            queue_depth: 4096,
            fills: 128,
            flushes: 8,
            commit_delay: Time(Duration::ZERO),
            tokens: 4096,
            origin_threads: 1,
            origin_concurrency: 64,
            origin_queue: 1024,
            origin_connect_timeout: seconds::<5>(),
            origin_read_timeout: seconds::<15>(),
            origin_deadline: seconds::<60>(),
        }
    }
}

impl Default for RawHealth {
    fn default() -> RawHealth {
        let HealthLimits {
            window,
            errors_degraded,
            errors_offline,
            slow,
            slow_percent,
            slow_ops_min,
            stalled,
            probe_every,
            probe_every_max,
            probes_bad,
            probes_good,
            relapse,
        } = HealthLimits::default();
        RawHealth {
            window: Time(window),
            errors_degraded,
            errors_offline,
            slow: Time(slow),
            slow_share: Size::Percent(u8::try_from(slow_percent).expect("the default is a share")),
            slow_ops_min,
            stalled: Time(stalled),
            probe_every: Time(probe_every),
            probe_every_max: Time(probe_every_max),
            probes_bad,
            probes_good,
            relapse: Time(relapse),
        }
    }
}

impl Default for RawLog {
    fn default() -> RawLog {
        RawLog { level: "info".to_owned(), json: false, access_one_in: 0 }
    }
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400))
}

fn shard_port_base() -> u16 {
    7410
}

fn memory() -> Size {
    Size::Percent(25)
}

fn dirty_max() -> Size {
    Size::Percent(25)
}

fn capacity() -> Size {
    Size::Percent(90)
}

fn region() -> Size {
    Size::Bytes(64 << 20)
}

fn mean_block() -> Size {
    Size::Bytes(64 << 10)
}

fn block_size() -> Size {
    Size::Bytes(4 << 20)
}

fn region_name() -> String {
    "us-east-1".to_owned()
}

fn yes() -> bool {
    true
}

fn seconds<const SECONDS: u64>() -> Time {
    Time(Duration::from_secs(SECONDS))
}
