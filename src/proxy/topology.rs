//! `/v1/topology`: what a shard-aware client must know to connect straight to the core that owns a block.
//!
//! Rendered once, when the ports are bound; it never changes while the node runs.

use bytes::Bytes;
use serde::Serialize;

use crate::placement::SHARD_SEED;

/// What the node is called and where it listens.
#[derive(Debug, Clone, Serialize)]
pub struct Topology {
    /// The node.
    pub node: TopologyNode,
    /// The name in its certificate.
    pub tls_name: String,
    /// The port that every core accepts on.
    pub port: u16,
    /// How many shards the key space is divided into.
    pub shard_count: u16,
    /// Each shard's own port.
    pub shards: Vec<TopologyShard>,
    /// How a key's shard is computed.
    pub hash: TopologyHash,
}

/// A node's names.
#[derive(Debug, Clone, Serialize)]
pub struct TopologyNode {
    /// Drawn when its disk was formatted; hexadecimal.
    pub id: String,
    /// As configured.
    pub name: String,
}

/// One shard's port.
#[derive(Debug, Clone, Serialize)]
pub struct TopologyShard {
    /// Its number.
    pub shard: u16,
    /// Its port on the node's address.
    pub port: u16,
}

/// The public hash from keys to shards.
#[derive(Debug, Clone, Serialize)]
pub struct TopologyHash {
    /// xxh3-64 of volume, a NUL byte and key; the shard is the high half of hash × `shard_count`.
    pub function: &'static str,
    /// Its seed, hexadecimal.
    pub seed: String,
}

impl Topology {
    /// The topology of a node whose shard *n* listens at `shard_ports[n]`.
    #[must_use]
    pub fn new(node_id: u128, name: &str, tls_name: &str, port: u16, shard_ports: &[u16]) -> Topology {
        let shards = (0..).zip(shard_ports).map(|(shard, port)| TopologyShard { shard, port: *port }).collect();
        Topology {
            node: TopologyNode { id: format!("{node_id:032x}"), name: name.to_owned() },
            tls_name: tls_name.to_owned(),
            port,
            shard_count: u16::try_from(shard_ports.len()).expect("a node has at most 1,024 shards"),
            shards,
            hash: TopologyHash { function: "xxh3-64", seed: format!("{SHARD_SEED:016x}") },
        }
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("it has only strings and numbers").into()
    }
}
