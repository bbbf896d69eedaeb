//! The null server as a peer: `forebay proxy-null`, the proxy's own TLS, hyper and socket code with a constant body.
//!
//! It gives the ceiling of the table: what TLS, HTTP and the kernel leave over when nothing is looked up.

use std::process::Command;

use anyhow::Result;

use super::{Lab, Peer, Running, free_port};
use crate::compare::Case;
use crate::content::Body;

/// What its bodies consist of.
const BODY_BYTE: u8 = b'f';

/// Starts it with bodies of the case's size.
pub fn start(lab: &Lab, case: &Case) -> Result<Running> {
    let folder = lab.peer_folder(Peer::Null, case)?;
    let port = free_port()?;
    lab.need_forebay()?;
    let mut command = Command::new(&lab.forebay);
    command.args(["proxy-null", "--listen", &format!("127.0.0.1:{port}"), "--core", &lab.server_core.to_string()]);
    command.args(["--bytes", &case.size.to_string()]);
    command.arg("--cert").arg(lab.certificate()).arg("--key").arg(lab.certificate_key());
    let target = lab.target(case, port, "/bench-{key}".into())?;
    lab.start(command, &folder.join("log"), target, Body::Constant(BODY_BYTE))
}
