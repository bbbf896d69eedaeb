//! A certificate authority for this machine alone, and the proxies' certificate, made on the spot.
//!
//! Called once at the start of `forebay dev`. The authority is made on the first run and kept, so that a client that
//! trusts it goes on doing so; the servers' certificate is issued anew at each start, so it never runs out. The
//! authority may sign for loopback names only (name constraints): a stolen key is good for nothing else.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints,
};

use super::layout::{Layout, Secrecy, write_whole};

/// The name that the certificate is for; it is valid for `::1` and the loopback addresses in use too.
pub const TLS_NAME: &str = "localhost";

const DAY: Duration = Duration::from_secs(86_400);
const CA_DAYS: u32 = 3_650;
const SERVER_DAYS: u32 = 90;

/// Makes sure that the authority is there and issues the proxies' certificate.
///
/// # Errors
/// If a file can't be read or written, or a kept key is damaged.
pub fn prepare(layout: &Layout) -> anyhow::Result<()> {
    let (certificate_path, key_path) = (layout.ca_certificate(), layout.ca_key());
    let key = if certificate_path.exists() && key_path.exists() {
        let pem = read(&key_path)?;
        KeyPair::from_pem(&pem)
            .with_context(|| format!("{} is damaged; remove {0} to have a new one", key_path.display()))?
    } else {
        let key = KeyPair::generate()?;
        let certificate = authority().self_signed(&key)?;
        write_whole(&key_path, key.serialize_pem().as_bytes(), Secrecy::Secret)?;
        write_whole(&certificate_path, certificate.pem().as_bytes(), Secrecy::Public)?;
        key
    };
    let server_key = KeyPair::generate()?;
    let server = server_parameters()?.signed_by(&server_key, &Issuer::new(authority(), key))?;
    write_whole(&layout.server_key(), server_key.serialize_pem().as_bytes(), Secrecy::Secret)?;
    write_whole(&layout.server_certificate(), server.pem().as_bytes(), Secrecy::Public)
}

/// The authority's parameters: always the same, so that its issuer can be rebuilt from its key alone.
fn authority() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "forebay dev, this machine only");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    parameters.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(TLS_NAME.to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
                128,
            )),
        ],
        excluded_subtrees: Vec::new(),
    });
    valid_for(&mut parameters, CA_DAYS);
    parameters
}

fn server_parameters() -> anyhow::Result<CertificateParams> {
    let mut parameters =
        CertificateParams::new([TLS_NAME, "127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"].map(str::to_owned))?;
    parameters.distinguished_name.push(DnType::CommonName, TLS_NAME);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.use_authority_key_identifier_extension = true;
    valid_for(&mut parameters, SERVER_DAYS);
    Ok(parameters)
}

/// Valid from yesterday on (clocks differ), for `days`.
fn valid_for(parameters: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    parameters.not_before = (now - DAY).into();
    parameters.not_after = (now + DAY * days).into();
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    fn verify(layout: &Layout, name: &str) -> Result<(), String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(layout.ca_certificate()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let server = CertificateDer::from_pem_file(layout.server_certificate()).unwrap();
        use rustls::client::danger::ServerCertVerifier;
        verifier
            .verify_server_cert(&server, &[], &ServerName::try_from(name.to_owned()).unwrap(), &[], UnixTime::now())
            .map(|_| ())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_kept_authority_signs_again_at_each_start() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        prepare(&layout).unwrap();
        let (authority, server) =
            (read(&layout.ca_certificate()).unwrap(), read(&layout.server_certificate()).unwrap());
        prepare(&layout).unwrap();
        assert_eq!(read(&layout.ca_certificate()).unwrap(), authority, "a client that trusts it goes on doing so");
        assert_ne!(read(&layout.server_certificate()).unwrap(), server);
        for name in ["localhost", "127.0.0.1", "127.0.0.3", "::1"] {
            assert_eq!(verify(&layout, name), Ok(()), "{name}");
        }
        assert!(verify(&layout, "example.com").is_err());
    }
}
