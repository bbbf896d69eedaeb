//! TLS 1.3 as the load generator needs it: a real handshake by rustls, after which the records are ours.
//!
//! A generator that decrypts every byte spends more than the server under test and measures itself. So rustls shakes
//! hands (certificate checked, AES-128-GCM only), hands over the traffic keys, and from then on a request is sealed here
//! and a response record is either opened (the first of a response, and all of a sampled one) or merely counted.
//! Called by `load` (through `response`).

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore};
use url::Url;

/// A record's header: type, version, length.
pub const HEADER_BYTES: usize = 5;
/// What a record carries beside its plaintext: the content type and the tag.
pub const OVERHEAD_BYTES: usize = 1 + 16;
/// The largest body a record may have (RFC 8446, 5.2).
const RECORD_BODY_BYTES_MAX: usize = (1 << 14) + 256;
/// How long a connect and each read of a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What an opened record held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Application data.
    Data,
    /// A new session ticket: nothing to do.
    Ticket,
    /// The peer ends the connection.
    Close,
}

/// A connection after its handshake: the socket (blocking) and both directions' keys.
pub struct Link {
    pub socket: TcpStream,
    pub sealer: Sealer,
    pub opener: Opener,
}

/// A client configuration that trusts `ca` only and offers TLS 1.3 with AES-128-GCM only.
///
/// # Errors
/// The CA file cannot be read or holds no certificate.
pub fn client_config(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ca).with_context(|| format!("--ca {}", ca.display()))?;
    for certificate in certificates {
        roots.add(certificate.with_context(|| format!("--ca {}", ca.display()))?)?;
    }
    ensure!(!roots.is_empty(), "--ca {}: no certificate in it", ca.display());
    let cipher_suites = vec![provider::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = CryptoProvider { cipher_suites, ..provider::default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// Opens a TCP connection to the URL's host and port, with TCP_NODELAY.
///
/// # Errors
/// No such host, nobody listens, or it takes longer than ten seconds.
pub fn connect(target: &Url) -> Result<(TcpStream, ServerName<'static>)> {
    ensure!(target.scheme() == "https", "--target {target}: must be https://…");
    let host = target.host_str().with_context(|| format!("--target {target}: no host"))?;
    let port = target.port_or_known_default().unwrap_or(443);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = (bare, port).to_socket_addrs()?.next().with_context(|| format!("{host}: no address"))?;
    let socket = TcpStream::connect_timeout(&address, HANDSHAKE_TIMEOUT)
        .with_context(|| format!("cannot connect to {address}: is the server running?"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    Ok((socket, ServerName::try_from(bare.to_owned())?))
}

/// Connects and shakes hands, and takes the traffic keys.
///
/// rustls is fed exactly one record at a time, so that no byte of a later record is left inside it.
///
/// # Errors
/// Anything that fails the handshake, or another suite than AES-128-GCM.
pub fn establish(target: &Url, config: &Arc<ClientConfig>) -> Result<Link> {
    let (mut socket, name) = connect(target)?;
    let mut tls = ClientConnection::new(Arc::clone(config), name)?;
    let mut record = Vec::with_capacity(HEADER_BYTES + RECORD_BODY_BYTES_MAX);
    while tls.is_handshaking() {
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
        read_record(&mut socket, &mut record).context("TLS handshake")?;
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            tls.read_tls(&mut rest)?;
            if let Err(error) = tls.process_new_packets() {
                // The alert tells the server why; that it arrives is not needed to report the error.
                let _ = tls.write_tls(&mut socket);
                return Err(error).context("TLS handshake");
            }
        }
    }
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    let secrets = tls.dangerous_extract_secrets().context("taking the traffic keys")?;
    let sealer = Sealer(Direction::new(secrets.tx.1, secrets.tx.0)?);
    let opener = Opener(Direction::new(secrets.rx.1, secrets.rx.0)?);
    Ok(Link { socket, sealer, opener })
}

/// Reads one record, header and body, into `record`.
fn read_record(socket: &mut TcpStream, record: &mut Vec<u8>) -> Result<()> {
    record.resize(HEADER_BYTES, 0);
    socket.read_exact(record)?;
    let body_bytes = body_bytes([record[0], record[1], record[2], record[3], record[4]])?;
    record.resize(HEADER_BYTES + body_bytes, 0);
    socket.read_exact(&mut record[HEADER_BYTES..])?;
    Ok(())
}

/// The length of a record's body, from its header.
///
/// # Errors
/// Not a TLS record, or longer than the protocol allows.
pub fn body_bytes(header: [u8; HEADER_BYTES]) -> Result<usize> {
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    ensure!(
        (20..=23).contains(&header[0]) && header[1] == 3 && length <= RECORD_BODY_BYTES_MAX,
        "not a TLS record: {header:02x?}"
    );
    Ok(length)
}

/// One direction's key, static nonce part and record count.
struct Direction {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Direction {
    fn new(secrets: ConnectionTrafficSecrets, sequence: u64) -> Result<Self> {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            bail!("the server chose another cipher than AES-128-GCM");
        };
        let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).ok().context("the traffic key has a wrong length")?;
        let iv = iv.as_ref().try_into().context("the nonce has a wrong length")?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// The nonce of the next record: the sequence number xored into the static part (RFC 8446, 5.3).
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, sequence_byte) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence_byte;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals our records.
pub struct Sealer(Direction);

impl Sealer {
    /// Replaces `record` by one record that holds `plaintext` (at most 16 KiB).
    ///
    /// # Errors
    /// The plaintext does not fit in a record.
    pub fn seal(&mut self, plaintext: &[u8], record: &mut Vec<u8>) -> Result<()> {
        ensure!(plaintext.len() <= 1 << 14, "a request of {} bytes does not fit in one record", plaintext.len());
        let body_bytes = u16::try_from(plaintext.len() + OVERHEAD_BYTES)?;
        let [high, low] = body_bytes.to_be_bytes();
        let header = [23, 3, 3, high, low];
        record.clear();
        record.extend_from_slice(&header);
        record.extend_from_slice(plaintext);
        record.push(23);
        let nonce = self.0.next_nonce();
        let (_, body) = record.split_at_mut(HEADER_BYTES);
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(header), body);
        record.extend_from_slice(tag.ok().context("sealing a record failed")?.as_ref());
        Ok(())
    }
}

/// Opens the peer's records, or counts them.
pub struct Opener(Direction);

impl Opener {
    /// Counts a record that is not opened.
    pub fn skip(&mut self) {
        self.0.sequence += 1;
    }

    /// Decrypts one whole record in place; returns what it is and its plaintext.
    ///
    /// # Errors
    /// A tag that does not match, an alert, or a message this generator has no answer to (a key update).
    pub fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<(Kind, &'a [u8])> {
        let (header, body) = record.split_at_mut(HEADER_BYTES);
        let header: [u8; HEADER_BYTES] = (&*header).try_into()?;
        ensure!(header[0] == 23, "a record of type {} after the handshake", header[0]);
        let nonce = self.0.next_nonce();
        let opened = self.0.key.open_in_place(nonce, Aad::from(header), body);
        let plain: &[u8] = opened.ok().context("a record's tag does not match")?;
        let end = plain.iter().rposition(|&byte| byte != 0).context("a record without content type")?;
        let (plain, kind) = (&plain[..end], plain[end]);
        match (kind, plain) {
            (23, _) => Ok((Kind::Data, plain)),
            (22, [4, ..]) => Ok((Kind::Ticket, plain)),
            (22, [24, ..]) => bail!("the server updates its keys; use shorter runs, this generator cannot follow"),
            (21, [_, 0]) => Ok((Kind::Close, plain)),
            (21, [_, code]) => bail!("the server sent TLS alert {code}"),
            _ => bail!("an unexpected TLS message of type {kind}"),
        }
    }
}

/// Sends `bytes` from `sent` on without waiting; returns how many have been sent in all.
///
/// # Errors
/// The connection is broken.
pub fn send_some(socket: &mut TcpStream, bytes: &[u8], mut sent: usize) -> std::io::Result<usize> {
    while sent < bytes.len() {
        match socket.write(&bytes[sent..]) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
