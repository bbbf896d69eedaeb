//! cachey as a peer: a read-through cache in Rust (foyer, rustls), the closest cousin.
//!
//! It asks its origin by S3's GET with a path-style bucket; a `Range` header on every request is part of its protocol.
//! Its logs are off: each request would be one line.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Lab, Peer, Running, find_program, free_port, version_line};
use crate::compare::Case;
use crate::content::Body;

/// More than any case's keys take.
const MEMORY: &str = "2GiB";

fn program() -> Result<PathBuf> {
    let how = "cachey is missing: `cargo install cachey --locked --features jemalloc --root DIR`, then set \
               FOREBAY_PEER_CACHEY=DIR/bin/server";
    find_program("FOREBAY_PEER_CACHEY", &["cachey"]).context(how)
}

/// Its version.
pub fn version() -> Result<String> {
    version_line(Command::new(program()?).arg("--version")).map(|line| line.replace("server", "cachey"))
}

/// Starts it with its memory tier only.
pub fn start(lab: &Lab, case: &Case) -> Result<Running> {
    let folder = lab.peer_folder(Peer::Cachey, case)?;
    let port = free_port()?;
    let mut command = Command::new(program()?);
    command.args(["--memory", MEMORY, "--port", &port.to_string()]);
    command.arg("--tls-cert").arg(lab.certificate()).arg("--tls-key").arg(lab.certificate_key());
    command.env("AWS_ENDPOINT_URL", lab.origin()).env("AWS_REGION", "us-east-1").env("RUST_LOG", "off");
    command.env("AWS_ACCESS_KEY_ID", "bench").env("AWS_SECRET_ACCESS_KEY", "bench").current_dir(&folder);
    let mut target = lab.target(case, port, format!("/fetch/{}/bench-{{key}}", case.bucket))?;
    target.headers.push(format!("Range: bytes=0-{}", case.size - 1));
    lab.start(command, &folder.join("log"), target, Body::Seeded)
}
