//! The null server as a peer: this binary's own `null` subcommand in a process of its own.
//!
//! It gives the ceiling of the table: what TLS, HTTP and the kernel leave over when nothing is looked up.

use std::process::Command;

use anyhow::Result;

use super::{Lab, Peer, Running, free_port};
use crate::compare::Case;
use crate::content::Body;
use crate::null::BODY_BYTE;

/// Starts it with bodies of the case's size.
pub fn start(lab: &Lab, case: &Case) -> Result<Running> {
    let folder = lab.peer_folder(Peer::Null, case)?;
    let port = free_port()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["null", "--listen", &format!("127.0.0.1:{port}"), "--cpu", &lab.server_core.to_string()]);
    command.args(["--size", &case.size.to_string()]);
    command.arg("--cert").arg(lab.certificate()).arg("--key").arg(lab.certificate_key());
    let target = lab.target(case, port, "/bench-{key}".into())?;
    lab.start(command, &folder.join("log"), target, Body::Constant(BODY_BYTE))
}
