//! The proxy of a campaign: its configuration, its process, its end.
//!
//! Used by `campaign`. Each start takes free ports and tells them in `ports.json`, so that a dead node's sockets are in
//! nobody's way. A node that doesn't come up again is a fault like a lost write. It ends with this process
//! (`FOREBAY_PARENT`), however that one ends.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::bucket::{ACCESS_KEY, BUCKET, SECRET_KEY};
use super::oracle::Volume;

/// A start takes less, on a machine that is busy with something else too.
const READY_BOUND: Duration = Duration::from_secs(60);
/// No request of a campaign takes longer: the origin's deadline is much shorter.
pub const REQUEST_BOUND: Duration = Duration::from_secs(30);

/// The size of everything in one directory's life.
#[derive(Debug, Clone)]
pub struct Shape {
    pub block_bytes_max: usize,
    pub region_bytes: u64,
    pub capacity_bytes: u64,
    pub shards: u16,
    pub cores: usize,
    pub keys_per_volume: usize,
}

/// The node, running or not.
pub struct Node {
    directory: PathBuf,
    /// Where its disk is.
    pub disk: PathBuf,
    child: Option<Child>,
    environment: Vec<(String, String)>,
    log_start_bytes: u64,
}

/// A way to a node that runs.
#[derive(Clone)]
pub struct Access {
    pub urls: Vec<String>,
    pub client: Client,
    pid: u64,
}

impl Node {
    /// Writes the configuration.
    pub fn new(
        directory: &Path,
        disk: &Path,
        shape: &Shape,
        store: SocketAddr,
        environment: &[(String, String)],
    ) -> Node {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
        fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        fs::write(directory.join("forebay.toml"), configuration(directory, disk, shape, store)).unwrap();
        Node {
            directory: directory.to_owned(),
            disk: disk.to_owned(),
            child: None,
            environment: environment.to_vec(),
            log_start_bytes: 0,
        }
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("proxy.log")
    }

    /// Starts the process; it is not ready yet.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "one at a time");
        let log = OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        self.log_start_bytes = log.metadata().unwrap().len();
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command
            .args(["proxy", "--config"])
            .arg(self.directory.join("forebay.toml"))
            .env("FOREBAY_PARENT", std::process::id().to_string())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// It ended, or takes too long, with its last words.
    pub async fn ready(&mut self) -> Result<Access, String> {
        let began = Instant::now();
        let path = self.directory.join("ports.json");
        let child = self.child.as_mut().unwrap();
        let pid = u64::from(child.id());
        let ports = loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return Err(format!("the node did not start ({status}): {}", self.last_words()));
            }
            let ports = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            if let Some(ports) = ports.filter(|ports| ports["pid"].as_u64() == Some(pid)) {
                break ports;
            }
            if began.elapsed() > READY_BOUND {
                return Err(format!("the node is not ready after {READY_BOUND:?}: {}", self.last_words()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let shards = ports["shards"].as_array().unwrap().iter();
        let addresses = std::iter::once(&ports["listen"]).chain(shards);
        let urls = addresses.map(|address| format!("https://{}", address.as_str().unwrap())).collect();
        let certificate = Certificate::from_pem(&fs::read(self.directory.join("cert.pem")).unwrap()).unwrap();
        let builder = Client::builder().tls_certs_only([certificate]).no_proxy().timeout(REQUEST_BOUND);
        Ok(Access { urls, client: builder.build().unwrap(), pid })
    }

    /// SIGKILL, without waiting for the end.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Waits until a node that was killed is gone. Its sockets may live some moments longer, until the kernel has wound up
    /// its rings.
    ///
    /// # Errors
    /// It lives on, with what its threads do.
    pub async fn gone(&self) -> Result<(), String> {
        let pid = self.child.as_ref().unwrap().id();
        let began = Instant::now();
        let is_gone = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
        };
        while !is_gone() {
            if began.elapsed() > READY_BOUND {
                return Err(format!("SIGKILL was sent {READY_BOUND:?} ago:\n{}", threads(u64::from(pid))));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Reaps a node that was killed.
    ///
    /// # Errors
    /// It had ended by itself.
    pub fn wait_killed(&mut self) -> Result<(), String> {
        let status = self.child.take().unwrap().wait().unwrap();
        match std::os::unix::process::ExitStatusExt::signal(&status) {
            Some(9) => Ok(()),
            _ => Err(format!("the node ended by itself ({status}): {}", self.last_words())),
        }
    }

    /// What `forebay verify` says of the stopped node's disk.
    ///
    /// # Errors
    /// It found a broken promise.
    pub fn verify(&self) -> Result<(), String> {
        assert!(self.child.is_none(), "the node is stopped");
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let output = command.arg("verify").arg(&self.disk).output().unwrap();
        match output.status.code() {
            Some(0) => Ok(()),
            // Struck before it had made its directory.
            Some(2) if !self.disk.join("node.json").exists() => Ok(()),
            code => {
                let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                Err(format!("forebay verify ({code:?}): {out}\n{err}"))
            }
        }
    }

    /// SIGTERM, and the orderly end that follows.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub async fn stop(&mut self) -> Result<(), String> {
        self.signal(Signal::TERM);
        let began = Instant::now();
        let child = self.child.as_mut().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                let well = status.success();
                return if well { Ok(()) } else { Err(format!("a bad end ({status}): {}", self.last_words())) };
            }
            if began.elapsed() > READY_BOUND {
                return Err(format!("the node does not stop: {}", self.last_words()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The end of its log since its last start.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let start = usize::try_from(self.log_start_bytes).unwrap().min(log.len());
        let text = String::from_utf8_lossy(&log[start..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n    ")
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        // Not reaped yet, so the id is no other process's.
        let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Access {
    /// `/v1/status`.
    ///
    /// # Errors
    /// It can't be had.
    pub async fn status(&self) -> Result<Value, String> {
        let asked = self.client.get(format!("{}/v1/status", self.urls[0])).send().await;
        let answer = asked.and_then(reqwest::Response::error_for_status).map_err(|e| format!("status: {e:?}"))?;
        let body = answer.bytes().await.map_err(|e| format!("status: {e:?}"))?;
        serde_json::from_slice(&body).map_err(|e| format!("status: {e}"))
    }
}

impl Access {
    /// What each of the node's threads does: for a node that does not answer.
    pub fn threads(&self) -> String {
        threads(self.pid)
    }

    /// What the store has done since it was opened (commits, reclaims, …), as `/metrics` tells it; nothing if it can't.
    pub async fn events(&self) -> Vec<(String, u64)> {
        let Ok(answer) = self.client.get(format!("{}/metrics", self.urls[0])).send().await else { return Vec::new() };
        let text = answer.text().await.unwrap_or_default();
        let event = |line: &str| {
            let (_, rest) = line.strip_prefix("forebay_store_events_total{")?.split_once("event=\"")?;
            let (name, rest) = rest.split_once('"')?;
            Some((name.to_owned(), rest.rsplit_once(' ')?.1.parse().ok()?))
        };
        text.lines().filter_map(event).collect()
    }
}

fn threads(pid: u64) -> String {
    let mut text = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let file = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stat = file("stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or_default();
        let (state, ticks) = (field(0), (field(11), field(12)));
        let stack = file("stack").replace('\n', " ");
        text +=
            &format!("  {} state {state}, ticks {ticks:?}, waits in {} {stack}\n", file("comm").trim(), file("wchan"));
    }
    text
}

/// Small in everything, so that regions are reclaimed and the journal wraps within seconds.
fn configuration(directory: &Path, disk: &Path, shape: &Shape, store: SocketAddr) -> String {
    let cores: Vec<usize> = forebay::proxy::executor::usable_cpus().into_iter().take(shape.cores).collect();
    let place = |name: &str| directory.join(name).display().to_string();
    let mut text = format!(
        "[node]\nname = \"ordeal\"\nlisten = \"127.0.0.1:0\"\nshard_port_base = 0\nshards = {}\ncores = {cores:?}\n\
         memory = \"320MiB\"\ndirty_max = \"45%\"\ntls_certificate = {:?}\ntls_key = {:?}\ntls_name = \"localhost\"\n\
         ports_file = {:?}\n\n[[disk]]\npath = {:?}\ncapacity = {}\nregion = {}\nmean_block = \"4KiB\"\n\n",
        shape.shards,
        place("cert.pem"),
        place("key.pem"),
        place("ports.json"),
        disk.display().to_string(),
        shape.capacity_bytes,
        shape.region_bytes,
    );
    write!(
        text,
        "[[store]]\nname = \"s3\"\nendpoint = \"http://{store}\"\nbucket = \"{BUCKET}\"\n\
         credentials = {{ access_key = \"{ACCESS_KEY}\", secret_key = \"{SECRET_KEY}\" }}\n\n\
         [auth]\nanonymous = true\n\n[limits]\norigin_connect_timeout = \"2s\"\norigin_read_timeout = \"10s\"\n\
         origin_deadline = \"12s\"\n\n"
    )
    .unwrap();
    for volume in Volume::ALL {
        let name = volume.name();
        write!(
            text,
            "[[volume]]\nname = \"{name}\"\nstore = \"s3\"\nprefix = \"{name}/\"\nwrite = \"{name}\"\nblock_size = {}\n\n",
            shape.block_bytes_max
        )
        .unwrap();
    }
    text
}
