//! One core's part of the block keyspace: the cache engine of Forebay.
//!
//! A [`Shard`](shard::Shard) runs on one thread and is generic over its ports (disk, origin, runtime), so that the
//! real thing runs in the simulator. It names no socket, lock, wall clock or executor. The verbs have a file each:
//! `get`, `put`, `remove`, `fill`, `flush`; what they stand on is [`store`], the durable log of one disk.

pub mod config;
pub mod error;
pub mod key;
pub mod origin;
pub mod outcome;
pub mod read;
pub mod store;
