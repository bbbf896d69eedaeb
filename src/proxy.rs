//! The proxy: executors, listeners and the way from a request to the shard that owns its block.
//!
//! `boot` starts everything; `executor`, `heartbeat`, `listener`, `tls`, `stream`, `framing`, `deadline`, `connections` and
//! `exchange` are the network floor (one core each, nothing shared); `dispatch` is where a request crosses to another
//! core.

pub mod boot;
pub mod connections;
pub mod deadline;
pub mod dispatch;
pub mod drain;
pub mod exchange;
pub mod executor;
pub mod framing;
pub mod heartbeat;
pub mod listener;
pub mod node_core;
pub mod node_file;
pub mod null;
pub mod origins;
pub mod parent;
pub mod ports;
pub mod preflight;
pub mod stream;
pub mod tls;
