//! The servers that `compare` drives, and the laboratory they run in: one folder, one certificate, one origin.
//!
//! Every peer is a process pinned, with all its threads, to the server's core; it is started with an empty cache and ends
//! with its `Running`. The origin is an nginx that serves the cases' files over plain HTTP from the generator's core; it
//! works only while caches are being filled.

mod cachey;
mod forebay;
mod nginx;
mod null;

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use url::Url;

use crate::compare::{Case, Source};
use crate::content::{Body, Contents};
use crate::cpu;
use crate::target::Target;
use crate::wire;

/// How long a server may take to answer its first handshake, and to stop.
const START_TIME: Duration = Duration::from_secs(60);
const STOP_TIME: Duration = Duration::from_secs(20);

/// A server to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// Forebay's TLS and HTTP code with a constant body: the ceiling
    Null,
    /// This repository's proxy, token check on
    Forebay,
    /// nginx: `proxy_cache` for memory, a static file with `directio` for disk
    Nginx,
    /// cachey, a read-through cache in Rust
    Cachey,
}

impl Peer {
    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null server",
            Self::Forebay => "forebay",
            Self::Nginx => "nginx",
            Self::Cachey => "cachey",
        }
    }

    /// Whether the case makes sense for it: the null server has no disk, cachey's disk tier is no rival of the slab's.
    pub fn joins(self, case: &Case) -> bool {
        case.source == Source::Memory || matches!(self, Self::Forebay | Self::Nginx)
    }

    /// Its version, in its own words.
    ///
    /// # Errors
    /// It is not installed; the error says how to get it.
    pub fn version(self, lab: &Lab) -> Result<String> {
        match self {
            Self::Null => Ok("of this build".into()),
            Self::Forebay => forebay::version(lab),
            Self::Nginx => nginx::version(),
            Self::Cachey => cachey::version(),
        }
    }

    /// Starts it for a case and waits until it shakes hands.
    ///
    /// # Errors
    /// It is not installed, or does not come up; the error holds the end of its log.
    pub fn start(self, lab: &Lab, case: &Case) -> Result<Running> {
        match self {
            Self::Null => null::start(lab, case),
            Self::Forebay => forebay::start(lab, case),
            Self::Nginx => nginx::start(lab, case),
            Self::Cachey => cachey::start(lab, case),
        }
        .with_context(|| format!("{} for {}", self.name(), case.name))
    }
}

/// The place of a comparison.
pub struct Lab {
    pub folder: PathBuf,
    pub server_core: usize,
    /// The binary of the proxy.
    pub forebay: PathBuf,
    origin_port: u16,
    _origin: Process,
}

impl Lab {
    /// Makes the folder and the certificate and starts the origin.
    ///
    /// # Errors
    /// The folder cannot be written, or nginx is missing.
    pub fn open(folder: PathBuf, server_core: usize, load_core: usize, forebay: PathBuf) -> Result<Self> {
        fs::create_dir_all(folder.join("origin")).with_context(|| format!("--work-dir {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        fs::write(folder.join("cert.pem"), own.cert.pem())?;
        fs::write(folder.join("key.pem"), own.signing_key.serialize_pem())?;
        let origin_port = free_port()?;
        let origin = nginx::start_origin(&folder, origin_port, load_core)?;
        Ok(Self { folder, server_core, forebay, origin_port, _origin: origin })
    }

    /// The certificate, which is its own authority.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    /// The certificate's key.
    pub fn certificate_key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }

    /// The origin's URL, without a slash at its end; a case's keys are at `/{bucket}/bench-{key}`.
    pub fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.origin_port)
    }

    /// Says how to get the proxy's binary if it is missing.
    fn need_forebay(&self) -> Result<()> {
        ensure!(self.forebay.is_file(), "{} is missing: cargo build --release", self.forebay.display());
        Ok(())
    }

    /// Where the origin's files lie.
    pub fn origin_folder(&self) -> PathBuf {
        self.folder.join("origin")
    }

    /// Writes a case's files for the origin.
    ///
    /// # Errors
    /// A full disk.
    pub fn fill_origin(&self, case: &Case) -> Result<()> {
        let bucket = self.origin_folder().join(&case.bucket);
        fs::create_dir_all(&bucket)?;
        let contents = Contents::new(Body::Seeded, case.keys as usize, usize::try_from(case.size)?);
        for key_index in 0..case.keys as usize {
            fs::write(bucket.join(format!("bench-{key_index}")), contents.block(key_index))?;
        }
        Ok(())
    }

    /// Removes what a case has on disk. Its servers must have ended.
    ///
    /// # Errors
    /// What the file system says.
    pub fn clear(&self, case: &Case) -> Result<()> {
        let folders = <Peer as clap::ValueEnum>::value_variants().iter().map(|peer| self.folder_of(*peer, case));
        for folder in folders.chain([self.origin_folder().join(&case.bucket)]).filter(|folder| folder.exists()) {
            fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        Ok(())
    }

    fn folder_of(&self, peer: Peer, case: &Case) -> PathBuf {
        self.folder.join(format!("{}-{}", peer.name().replace(' ', "-"), case.name))
    }

    /// A new empty folder for a peer.
    fn peer_folder(&self, peer: Peer, case: &Case) -> Result<PathBuf> {
        let folder = self.folder_of(peer, case);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// What the generator sends for a case: the certificate to trust, the keys and where to.
    fn target(&self, case: &Case, port: u16, path_template: String) -> Result<Target> {
        Ok(Target {
            target: Url::parse(&format!("https://127.0.0.1:{port}"))?,
            ca: self.certificate(),
            token_file: None,
            headers: Vec::new(),
            path_template,
            keys: case.keys,
            size: case.size,
        })
    }

    /// Starts a command on the server's core and waits for its TLS port; `log` gets what it says.
    fn start(&self, command: Command, log: &Path, target: Target, body: Body) -> Result<Running> {
        let process = Process::start(command, log, self.server_core)?;
        let mut running = Running { process, target, body };
        let config = wire::client_config(&running.target.ca)?;
        let deadline = Instant::now() + START_TIME;
        while let Err(error) = wire::establish(&running.target.target, &config) {
            if let Some(status) = running.process.child.try_wait()? {
                bail!("it ended at once ({status}): {}", end_of(log));
            }
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("not ready after 60 s: {}", end_of(log)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(running)
    }
}

/// A server that answers.
pub struct Running {
    process: Process,
    /// How to ask it.
    pub target: Target,
    /// What it answers.
    pub body: Body,
}

impl Running {
    /// Its process, the parent of any others it has.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

/// A child process that ends with this value.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command pinned to one core, its output in `log`.
    fn start(mut command: Command, log: &Path, core: usize) -> Result<Self> {
        let out = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // A child inherits the affinity of the thread that starts it.
        let started = std::thread::spawn(move || {
            cpu::pin_thread(core)?;
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
        });
        let child = started.join().ok().context("the starting thread panicked")??;
        Ok(Self { child })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let deadline = Instant::now() + STOP_TIME;
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended already: then there is nothing to stop.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The last lines of a log.
fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

/// Waits until something accepts on a port.
fn wait_for_port(port: u16, log: &Path) -> Result<()> {
    let deadline = Instant::now() + START_TIME;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            bail!("nothing listens on port {port} after 60 s: {}", end_of(log));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A port nobody listens on. Another process could take it before the server does: then the server says so.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The program that an environment variable names, or the first on PATH with one of these names.
fn find_program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(PathBuf::from(path));
    }
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")]);
    folders.flat_map(|folder| names.iter().map(move |name| folder.join(name))).find(|program| program.is_file())
}

/// The first line a program prints about its version.
fn version_line(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned())
}
