//! `forebay-bench null`: the proxy's own TLS, hyper and socket code with a constant body and no lookup.
//!
//! The server itself is in the library, because it must be the product's code; this is its command line. `compare` starts
//! it in a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use forebay::proxy::null::{self, NullOptions};

/// What the null server's bodies consist of.
pub const BODY_BYTE: u8 = b'f';

/// `forebay-bench null`
#[derive(Args)]
pub struct Null {
    /// A loopback address and port; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The core to run on
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The size of each body, e.g. 4KiB
    #[arg(long, default_value = "4KiB", value_parser = crate::units::parse_size)]
    size: u64,
}

impl Null {
    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// The address, the certificate or the core cannot be used.
    pub fn run(self) -> Result<()> {
        let mut options = NullOptions::new(self.cert, self.key, self.cpu);
        options.listen = self.listen;
        options.body_bytes = usize::try_from(self.size)?;
        null::run(options)
    }
}
