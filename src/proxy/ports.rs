//! The node's addresses: found or checked before anything starts, held until every core listens, told in `ports_file`.
//!
//! Called by `boot`. Cores share a port by SO_REUSEPORT, which would also let a second node of the same user take half of
//! the connections: so each port is first bound alone (`preflight::port`), then held by a socket that does not listen.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use super::boot::Node;
use super::preflight;
use crate::config::checked::Config;

/// How long a port that is in use may take to become free.
const WIND_UP: Duration = Duration::from_secs(3);

/// The node's ports, held from the moment they are known until every core listens, so that nobody else gets them.
pub(super) struct Ports {
    pub(super) listen: SocketAddr,
    pub(super) shards: Vec<SocketAddr>,
    _held: Vec<Socket>,
}

impl Ports {
    pub(super) fn reserve(config: &Config) -> anyhow::Result<Ports> {
        let mut held = Vec::new();
        let mut reserve = |address: SocketAddr| -> anyhow::Result<SocketAddr> {
            if address.port() != 0 {
                wait_until_free(address)?;
            }
            let socket = hold(address).with_context(|| format!("binding {address}"))?;
            let bound = socket.local_addr()?.as_socket().context("a TCP socket has an address")?;
            held.push(socket);
            Ok(bound)
        };
        let listen = reserve(config.listen)?;
        let shards = (0..config.shards).map(|shard| {
            let port = if config.shard_port_base == 0 { 0 } else { config.shard_port_base + shard };
            reserve(SocketAddr::new(config.listen.ip(), port))
        });
        let shards = shards.collect::<anyhow::Result<_>>()?;
        Ok(Ports { listen, shards, _held: held })
    }
}

/// A node that was killed keeps its sockets until the kernel has wound up its rings, some moments after its end.
fn wait_until_free(address: SocketAddr) -> anyhow::Result<()> {
    let until = Instant::now() + WIND_UP;
    while let Err(refusal) = preflight::port(address) {
        if Instant::now() >= until {
            return Err(refusal.into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A socket that has the address but does not listen: the kernel sends it no connections.
fn hold(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Tells whoever started the node where it listens; moved into place whole.
pub(super) fn write_ports_file(node: &Node) -> anyhow::Result<()> {
    let Some(path) = &node.config.ports_file else { return Ok(()) };
    let ports = serde_json::json!({
        "pid": std::process::id(),
        "node": format!("{:032x}", node.id),
        "listen": node.listen.to_string(),
        "shards": node.shards.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    let write = |path: &Path| {
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{ports:#}\n"))?;
        std::fs::rename(&new, path)
    };
    write(path).with_context(|| format!("writing {}", path.display()))
}
