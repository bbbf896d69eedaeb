//! nginx, three times: the origin of every cache, a caching peer for memory, a direct-I/O peer for disk.
//!
//! The peers are tuned as far as measuring showed a gain: large buffers, connections that never end, no access log, open
//! files remembered, and for disk a thread pool and buffers of up to 1 MiB. kTLS needs a kernel with
//! CONFIG_TLS; without it `sendfile` has no effect under TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Lab, Peer, Process, Running, find_program, free_port, version_line};
use crate::compare::{Case, Source};
use crate::content::Body;

fn program() -> Result<PathBuf> {
    find_program("FOREBAY_PEER_NGINX", &["nginx"]).context("nginx is missing: apt-get install nginx")
}

/// Its version.
pub fn version() -> Result<String> {
    version_line(Command::new(program()?).arg("-v")).map(|line| line.replace("nginx version: ", ""))
}

/// Starts the origin: plain HTTP, static files, on the generator's core.
pub fn start_origin(folder: &Path, port: u16, core: usize) -> Result<Process> {
    let root = folder.join("origin");
    let server = format!("server {{ listen 127.0.0.1:{port}; root {}; }}", root.display());
    let folder = folder.join("nginx-origin");
    fs::create_dir_all(&folder)?;
    let command = command(&folder, "", &server)?;
    let process = Process::start(command, &folder.join("log"), core)?;
    super::wait_for_port(port, &folder.join("log"))?;
    Ok(process)
}

/// Starts the peer of a case.
pub fn start(lab: &Lab, case: &Case) -> Result<Running> {
    let folder = lab.peer_folder(Peer::Nginx, case)?;
    let port = free_port()?;
    let (http, location) = match case.source {
        Source::Memory => (
            format!(
                "output_buffers 2 128k;\n\
                 proxy_cache_path {}/cache levels=1:2 use_temp_path=off keys_zone=bench:64m inactive=1d max_size=8g;",
                folder.display()
            ),
            format!(
                "location / {{ proxy_pass {}; proxy_cache bench; proxy_cache_valid 200 1d; proxy_cache_key $uri; }}",
                lab.origin()
            ),
        ),
        Source::Disk => (
            // Buffers larger than what is left of a file make nginx turn O_DIRECT off for it: seen by strace.
            format!("directio 512; directio_alignment 4k; aio threads; output_buffers 2 {};", case.size.min(1 << 20)),
            format!("root {};", lab.origin_folder().display()),
        ),
    };
    let server = format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; {location} }}",
        lab.certificate().display(),
        lab.certificate_key().display(),
    );
    let batch = if case.size < 64 << 10 { "16k" } else { "64k" };
    let tls = "ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;";
    let command = command(&folder, &format!("{tls} ssl_buffer_size {batch};\n{http}"), &server)?;
    let target = lab.target(case, port, format!("/{}/bench-{{key}}", case.bucket))?;
    lab.start(command, &folder.join("log"), target, Body::Seeded)
}

/// Writes a configuration and returns the command that runs it in the foreground.
fn command(folder: &Path, http: &str, server: &str) -> Result<Command> {
    // Only root may say so, and then its worker must be able to read this folder.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()))
        .join("\n");
    let text = format!(
        "{user}\nworker_processes 1; daemon off; pid {folder}/pid; error_log stderr warn;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\naccess_log off; sendfile on; tcp_nopush on; tcp_nodelay on;\n\
         keepalive_requests 1000000000; keepalive_timeout 1h;\n\
         open_file_cache max=10000 inactive=1h; open_file_cache_valid 1h;\n\
         {temporary}\n{http}\n{server}\n}}\n",
        folder = folder.display(),
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = Command::new(program()?);
    command.arg("-p").arg(folder).arg("-c").arg(file).args(["-e", "stderr"]);
    Ok(command)
}
