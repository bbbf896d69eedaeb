//! One core's part of the block keyspace: the cache engine of Forebay.
//!
//! A [`Shard`](shard::Shard) runs on one thread and is generic over its ports (disk, origin, runtime), so that the
//! real thing runs in the simulator. It names no socket, lock, wall clock or executor. The verbs have a file each:
//! `get`, `put`, `remove`, `fill`, `flush`; what they stand on is [`store`], the durable log of one disk.

mod budget;
pub mod canary;
mod check;
pub mod config;
pub mod dirty;
pub mod disks;
pub mod error;
pub mod fill;
pub mod flush;
mod get;
pub mod health;
mod here;
pub mod key;
mod keylock;
mod memory;
pub mod origin;
pub mod outcome;
mod pin;
pub mod policy;
mod put;
pub mod read;
mod remove;
pub mod rendezvous;
pub mod shard;
pub mod sim_origin;
pub mod stats;
pub mod store;
