//! `forebay proxy-null` (hidden): the null server that `forebay-bench` measures the proxy against.
//!
//! Prints one line of JSON with its URL when it listens, and serves until SIGTERM or SIGINT. Loopback only.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::proxy::null::{self, NullOptions};

/// Flags only: it is a tool of the benchmarks.
#[derive(Debug, Args)]
pub struct NullArgs {
    /// A loopback address; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The certificate chain, PEM.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The processor it runs on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    core: usize,
    /// The body's size in bytes, for paths that are not a number.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    bytes: usize,
}

/// Serves until a signal stops it.
///
/// # Errors
/// The address, the certificate or the executor is unusable.
pub fn run(args: NullArgs) -> anyhow::Result<()> {
    let mut options = NullOptions::new(args.cert, args.key, args.core);
    options.listen = args.listen;
    options.body_bytes = args.bytes;
    null::run(options)
}
