//! A TLS client that writes what it is told, for tests of what a polite client can't send; and a certificate to trust.
//!
//! Used by the tests of the network floor. Blocking, one connection, with a timeout instead of a hang.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A connection that has not begun its handshake; the first write does.
pub type Client = StreamOwned<ClientConnection, TcpStream>;

/// Connects to `address`.
pub fn connect(trust: &Arc<ClientConfig>, address: SocketAddr) -> Client {
    let name = ServerName::IpAddress(address.ip().into());
    let tls = ClientConnection::new(Arc::clone(trust), name).expect("a client");
    let socket = TcpStream::connect(address).expect("it connects");
    socket.set_nodelay(true).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    StreamOwned::new(tls, socket)
}

/// A certificate for loopback in `directory`, and a client that trusts it.
pub fn certificate(directory: &Path) -> Arc<ClientConfig> {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).expect("it is written");
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).expect("it is written");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("cert.pem")).expect("it is PEM")).expect("it is trusted");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
