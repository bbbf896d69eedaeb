//! Forebay as a peer: one proxy with one executor and one shard on the server's core, the token check on.
//!
//! For memory the tier holds every key; for disk `node.memory` is the least the proxy accepts, so that nearly every
//! request reads the slab.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Lab, Peer, Running, free_port, version_line};
use crate::compare::{Case, Source};
use crate::content::Body;

/// What the slab takes: more than any case's keys.
const CAPACITY: &str = "3GiB";

/// `node.memory`: room for every key, or the least that is accepted, of which the memory tier gets some 20 MiB (base 48,
/// arenas 48, connections 4, index of 3 GiB of 4 KiB blocks 36, two eighths for fills and puts).
fn memory(case: &Case) -> &'static str {
    match case.source {
        Source::Memory => "2GiB",
        Source::Disk if case.size < 64 << 10 => "210MiB",
        Source::Disk => "165MiB",
    }
}

/// Its version.
pub fn version(lab: &Lab) -> Result<String> {
    lab.need_forebay()?;
    version_line(Command::new(&lab.forebay).arg("--version"))
}

/// Makes keys, a token and a configuration, and starts the proxy.
pub fn start(lab: &Lab, case: &Case) -> Result<Running> {
    lab.need_forebay()?;
    let folder = lab.peer_folder(Peer::Forebay, case)?;
    let (public_key, token) = token(lab, &folder)?;
    fs::write(folder.join("token"), token)?;
    let port = free_port()?;
    let config = format!(
        "[node]\nlisten = \"127.0.0.1:{port}\"\nshard_port_base = 0\nshards = 1\ncores = [{core}]\nmemory = \"{memory}\"\n\
         tls_certificate = {certificate:?}\ntls_key = {key:?}\ntls_name = \"localhost\"\n\n\
         [[disk]]\npath = {disk:?}\ncapacity = \"{CAPACITY}\"\nmean_block = \"{mean_block}KiB\"\n\n\
         [[store]]\nname = \"origin\"\nendpoint = \"{origin}\"\nbucket = \"{bucket}\"\n\
         credentials = {{ access_key = \"bench\", secret_key = \"bench\" }}\n\n\
         [[volume]]\nname = \"bench\"\nstore = \"origin\"\nblock_size = \"{block}KiB\"\n\
         read_only = true\n\n\
         [limits]\nconnections_per_core = 64\n\n\
         [log]\nlevel = \"warn\"\n\n{public_key}",
        memory = memory(case),
        block = case.size >> 10,
        mean_block = (case.size.min(64 << 10)) >> 10,
        core = lab.server_core,
        certificate = lab.certificate(),
        key = lab.certificate_key(),
        disk = folder.join("disk"),
        origin = lab.origin(),
        bucket = case.bucket,
    );
    let file = folder.join("forebay.toml");
    fs::write(&file, config)?;
    let mut command = Command::new(&lab.forebay);
    command.args(["proxy", "--config"]).arg(&file);
    let mut target = lab.target(case, port, "/v1/volumes/bench/blocks/bench-{key}".into())?;
    target.token_file = Some(folder.join("token"));
    lab.start(command, &folder.join("log"), target, Body::Seeded)
}

/// A new signing key's public half, as the configuration wants it, and a token for reading.
fn token(lab: &Lab, folder: &Path) -> Result<(String, String)> {
    let key = folder.join("token.key");
    let public_key = run(Command::new(&lab.forebay).args(["token", "keygen", "--out"]).arg(&key))?;
    let issue = run(Command::new(&lab.forebay)
        .args(["token", "issue", "--volume", "bench", "--read", "--ttl", "7d", "--key"])
        .arg(&key))?;
    Ok((public_key, issue.trim().to_owned()))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}
