//! The proxy: executors, listeners and the way from a request to the shard that owns its block.
//!
//! `boot` starts everything; `executor`, `heartbeat`, `listener`, `tls`, `stream`, `framing`, `deadline`, `connections` and
//! `exchange` are the network floor (one core each, nothing shared); `dispatch` is where a request crosses to another
//! core.

pub mod auth;
pub mod blocks;
pub mod body;
pub mod boot;
pub mod conditions;
pub mod connections;
pub mod deadline;
pub mod dispatch;
pub mod drain;
pub mod exchange;
pub mod executor;
pub mod first_beat;
pub mod following;
pub mod framing;
pub mod handler;
pub mod heartbeat;
pub mod known;
pub mod listener;
pub mod metrics;
pub mod node_core;
pub mod node_file;
pub mod null;
pub mod openmetrics;
pub mod origins;
pub mod parent;
pub mod ports;
pub mod preflight;
pub mod promote;
pub mod put_body;
pub mod report;
pub mod request;
pub mod respond;
pub mod served;
mod standing;
pub mod status;
pub mod stream;
pub mod tls;
pub mod topology;
