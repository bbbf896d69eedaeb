//! What a deployment consists of, as the admin stores it and everybody else is told: stores, volumes, groups, members,
//! attachments. The words of the REST interface, of the command line and of the routing document.
//!
//! Shapes and defaults only; what they must satisfy by themselves is `resource/check.rs`, what they must satisfy together is
//! `admin/rules.rs`. Nothing here is secret: a store names its credentials, it does not hold them.

pub mod check;

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

pub use check::Invalid;

/// A number that every change of the metadata raises by one.
pub type Revision = u64;

/// One bucket of one S3 service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// 1 to 63 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// The service's URL, `http://` or `https://`.
    pub endpoint: String,
    /// The region requests are signed for.
    #[serde(default = "us_east_1")]
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// `true`: `endpoint/bucket/key`; `false`: `bucket.endpoint/key`.
    #[serde(default = "yes")]
    pub path_style: bool,
    /// How keys are written as object names.
    #[serde(default)]
    pub names: KeyNames,
    /// Whether a PUT with `If-None-Match: *` or `If-Match` is atomic there. Write-back and mutable volumes need it.
    #[serde(default)]
    pub conditional_put: bool,
    /// Nobody but one proxy ever writes there, so that write-back does without conditional PUTs.
    #[serde(default)]
    pub single_writer: bool,
    /// Where a proxy finds the credentials: `usual`, `env`, `profile:NAME` or `file:PATH#PROFILE`. Taken, never returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "admin", schema(write_only))]
    pub credentials: Option<String>,
    /// The URL of the STS that gives clients session credentials for their volumes. The admin asks it, with the keys that `credentials` names on the admin's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sts_endpoint: Option<String>,
    /// The ARN of the role that is assumed, narrowed to the volume's prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sts_role: Option<String>,
    /// How long such credentials last, 1 to 43,200; most services want 900 at least. Default: an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sts_seconds: Option<u32>,
    /// Whether credentials are named. Returned, and left out of account when it is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "admin", schema(read_only))]
    pub credentials_set: Option<bool>,
}

/// How keys are written as object names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KeyNames {
    /// As they are.
    #[default]
    Plain,
    /// Escaped where a file tree would take two keys for one.
    Portable,
}

/// A named set of blocks in one store, under one prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// 1 to 63 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// The store's name; fixed once the volume is made.
    pub store: String,
    /// Put before each key in the bucket, as it is; fixed once the volume is made.
    #[serde(default)]
    pub prefix: String,
    /// Fixed once the volume is made.
    #[serde(default)]
    pub kind: VolumeKind,
    /// The largest block (kind `blocks`) or the size of a slice (kind `objects`) in bytes, 4,096 to 16,777,216; fixed once
    /// the volume is made.
    #[serde(default = "block_size")]
    pub block_size: u32,
    /// When a put is acknowledged.
    #[serde(default)]
    pub write: WriteMode,
    /// What a put is promised unless it asks for more. Default: `disk` with `write = back`, `origin` with `write = through`.
    #[serde(default)]
    pub durability: Option<Durability>,
    /// Puts and deletes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Absent: a key never gets other bytes. Else a hit older than so many seconds is compared with the store.
    #[serde(default)]
    pub revalidate_seconds: Option<u32>,
    /// The group that holds what is dirty; one of those attached. Write-back volumes need one before they take writes.
    #[serde(default)]
    pub home_group: Option<String>,
    /// When clients go straight to the store.
    #[serde(default)]
    pub bypass: Bypass,
    /// Kind `objects`: only so many slices of each S3 object, the first, go through proxies. Absent: all.
    #[serde(default)]
    pub max_proxied: Option<u32>,
}

/// What a volume's keys name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// Each S3 object is one block.
    #[default]
    Blocks,
    /// S3 objects of any size, in slices.
    Objects,
}

/// When a put is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WriteMode {
    /// When the store has it.
    #[default]
    Through,
    /// When a proxy's disk has it.
    Back,
}

/// Where an acknowledged put lies, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// On stable storage of one member.
    Disk,
    /// On a second member too.
    Peer,
    /// In the store.
    Origin,
}

/// When clients go straight to the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Bypass {
    /// Not at all.
    Never,
    /// Reads, when no group answers.
    #[default]
    Reads,
    /// Reads and writes, when no group answers.
    Always,
}

/// Proxies that serve volumes together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// 1 to 63 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// Who runs the machines, for people: at most 128 bytes.
    #[serde(default)]
    pub provider: String,
    /// Where they stand, for people: at most 128 bytes.
    #[serde(default)]
    pub region: String,
}

/// One proxy of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its group; the path says it too.
    #[serde(default)]
    pub group: String,
    /// Unique in its group: 1 to 63 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// What placement knows it by: 32 hexadecimal digits, kept for life. Drawn when the member is made, unless given.
    #[serde(default)]
    pub id: Option<String>,
    /// `host:port` of its shared listener.
    pub address: String,
    /// The name its certificate is verified against. Default: the host of `address`.
    #[serde(default)]
    pub tls_name: Option<String>,
    /// Its share of the keys, relative to the others': 1 to 1,000,000.
    #[serde(default = "weight")]
    #[cfg_attr(feature = "admin", schema(value_type = u32))]
    pub weight: NonZeroU32,
    /// What others may expect of it.
    #[serde(default)]
    pub state: MemberState,
}

/// What others may expect of a member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// Known, and given no keys yet.
    #[default]
    Joining,
    /// Serves.
    Up,
    /// Leaves: flushes what is dirty, takes no new keys.
    Draining,
    /// Away. Its keys are with the others.
    Absent,
}

/// A group serves a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "admin", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The volume's name.
    pub volume: String,
    /// The group's name.
    pub group: String,
}

fn us_east_1() -> String {
    "us-east-1".to_owned()
}

fn yes() -> bool {
    true
}

fn block_size() -> u32 {
    4 << 20
}

fn weight() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(99)
}
