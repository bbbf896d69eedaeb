//! The server's side of TLS: the one file of the proxy that configures rustls, and the thin connection over it.
//!
//! TLS 1.3 only, aws-lc-rs (ARCHITECTURE.md, trap 5: *ring* halves bulk throughput), AES-128-GCM first, HTTP/1.1 before HTTP/2 by
//! ALPN (HTTP/2 costs twice the CPU), stateless session tickets. Built once by `boot` or `null`, shared by all cores;
//! `stream` drives one `Tls` per connection.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{CipherSuite, ServerConfig, ServerConnection};

const ALPN_HTTP_1: &[u8] = b"http/1.1";
const ALPN_HTTP_2: &[u8] = b"h2";

/// What every connection of the node's listeners is set up with. Cheap to clone; `Send`.
#[derive(Clone)]
pub struct TlsConfig {
    server: Arc<ServerConfig>,
}

/// The protocol agreed on by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, also where the client named nothing.
    Http1,
    /// HTTP/2.
    Http2,
}

impl TlsConfig {
    /// Reads a certificate chain and its key, both PEM.
    ///
    /// # Errors
    /// A file can't be read, holds no certificate or key, or the two don't belong together.
    pub fn from_pem_files(cert: &Path, key: &Path) -> anyhow::Result<TlsConfig> {
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("reading the certificate {}", cert.display()))?;
        anyhow::ensure!(!chain.is_empty(), "{} holds no certificate", cert.display());
        let key_der =
            PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading the key {}", key.display()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS 1.3 with aws-lc-rs")?
            .with_no_client_auth()
            .with_single_cert(chain, key_der)
            .with_context(|| format!("{} and {} don't belong together", cert.display(), key.display()))?;
        server.alpn_protocols = vec![ALPN_HTTP_1.to_vec(), ALPN_HTTP_2.to_vec()];
        server.ignore_client_order = true;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = aws_lc_rs::Ticketer::new().context("a key for session tickets")?;
        // One ticket is enough: a client that resumes gets a fresh one each time.
        server.send_tls13_tickets = 1;
        Ok(TlsConfig { server: Arc::new(server) })
    }

    /// For a server that is no proxy: the same protocol versions, ciphers and certificate on another runtime.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// aws-lc-rs with AES-128-GCM first: 1.2 times AES-256 on bulk, and no weaker in practice.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// One server connection's cipher state and buffers; knows no socket.
pub(super) struct Tls {
    connection: ServerConnection,
}

/// What a read of plaintext found.
pub(super) enum Plain<'a> {
    /// The next bytes; say how many were used.
    Bytes(&'a [u8]),
    /// The peer said goodbye.
    Closed,
    /// More records are needed.
    Empty,
}

impl Tls {
    pub(super) fn new(config: &TlsConfig) -> io::Result<Tls> {
        let connection = ServerConnection::new(Arc::clone(&config.server)).map_err(io::Error::other)?;
        Ok(Tls { connection })
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    pub(super) fn protocol(&self) -> Protocol {
        match self.connection.alpn_protocol() {
            Some(ALPN_HTTP_2) => Protocol::Http2,
            _ => Protocol::Http1,
        }
    }

    /// Bounds what may wait encrypted, in bytes of plaintext.
    pub(super) fn limit_unsent(&mut self, bytes: usize) {
        self.connection.set_buffer_limit(Some(bytes));
    }

    /// Whether records wait to be written.
    pub(super) fn has_unsent(&self) -> bool {
        self.connection.wants_write()
    }

    /// Reads records from `socket` once; `Ok(0)` is the end of the transport.
    pub(super) fn read_records(&mut self, socket: &mut dyn Read) -> io::Result<usize> {
        self.connection.read_tls(socket)
    }

    /// Opens what was read. An error is the peer's fault; the alert that tells it so is among the unsent records.
    pub(super) fn open_records(&mut self) -> io::Result<()> {
        self.connection
            .process_new_packets()
            .map(|_| ())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The next plaintext. A transport that ended without a goodbye is an error: the peer may have been cut off.
    pub(super) fn plaintext(&mut self) -> io::Result<Plain<'_>> {
        match self.connection.reader().into_first_chunk() {
            Ok([]) => Ok(Plain::Closed),
            Ok(bytes) => Ok(Plain::Bytes(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Plain::Empty),
            Err(error) => Err(error),
        }
    }

    pub(super) fn consume_plaintext(&mut self, bytes: usize) {
        self.connection.reader().consume(bytes);
    }

    /// Encrypts as much of `bufs` as the limit leaves room for; 0: write records first.
    pub(super) fn seal(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.connection.writer().write_vectored(bufs)
    }

    /// Writes waiting records to `socket` once.
    pub(super) fn write_records(&mut self, socket: &mut dyn Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Says goodbye: the peer learns that nothing was cut off.
    pub(super) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
