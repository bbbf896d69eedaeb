//! Runs the real `forebay dev` for the end-to-end tests: starts it, waits until it is ready, speaks to it, stops it.
//!
//! Used by `e2e.rs` and `bad_input.rs`. Each has a directory below `target/`, free ports, and goes away with its value,
//! however the test ends. One runs at a time per test binary: two proxies with two executors each are enough for the
//! small machines that tests run on. With `FOREBAY_S3_ENDPOINT` and `FOREBAY_S3_BUCKET` set (`ci/seaweedfs run …`) the
//! bucket is an existing one of that service, under a prefix of this run's own.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)] // Each test binary uses a part of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay::admin::keys::current;
use forebay::admin::registry::{Listing, Record, looked};
use forebay::admin::sqlite::Sqlite;
use forebay::placement::{KeyHash, Member};
use forebay::resource::MemberState;
use forebay::token::SigningKey;
use reqwest::{Certificate, Client};
use rustix::process::{Pid, Signal, kill_process};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use serde::Deserialize;
use serde_json::Value;

/// Everything that is waited for happens within this, on a machine that is busy with something else too.
pub const BOUND: Duration = Duration::from_secs(90);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// `dev.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    pub ca: PathBuf,
    pub proxies: Vec<ProxySummary>,
    pub s3: S3Summary,
    pub volumes: Vec<VolumeSummary>,
    pub token: String,
    pub pid: u32,
    pub admin: AdminSummary,
    pub groups: Vec<GroupSummary>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminSummary {
    pub url: String,
    pub operator_token: String,
    pub pid: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupSummary {
    pub name: String,
    pub link: String,
    pub members: Vec<MemberSummary>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberSummary {
    pub name: String,
    pub address: String,
    pub proxy: usize,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySummary {
    pub url: String,
    pub shards: Vec<String>,
    pub pid: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Summary {
    pub endpoint: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSummary {
    pub name: String,
    pub prefix: String,
    pub mode: String,
}

/// A directory below `target/` that goes away with its value.
pub struct Directory {
    pub path: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Directory {
    /// Waits for this test's turn.
    pub fn new() -> Directory {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dev-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Directory { path, _turn: turn }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // All but the disks: they take gigabytes.
            for proxy in 0..8 {
                let _ = fs::remove_dir_all(self.path.join(format!("proxy-{proxy}/disk")));
            }
            eprintln!("left for a look: {}", self.path.display());
        } else {
            fs::remove_dir_all(&self.path).unwrap();
        }
    }
}

/// A running `forebay dev`.
pub struct Running {
    child: Child,
    pub directory: PathBuf,
    pub summary: Summary,
    pub client: Client,
    /// What the group near is ranked by, in the order of its proxies.
    near: Vec<Member>,
    keys: (String, String),
}

/// How `forebay dev` is called; `--dir` is added.
pub fn dev(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("dev").arg("--dir").arg(directory).stdin(Stdio::null());
    command
}

/// The flags of the existing bucket named by the environment, if one is.
pub fn existing_bucket() -> Vec<String> {
    let (Ok(endpoint), Ok(bucket)) = (std::env::var("FOREBAY_S3_ENDPOINT"), std::env::var("FOREBAY_S3_BUCKET")) else {
        return Vec::new();
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let prefix = format!("e2e-{}-{now}/", std::process::id());
    ["--endpoint", &endpoint, "--bucket", &bucket, "--prefix", &prefix].map(str::to_owned).to_vec()
}

impl Running {
    /// Two proxies and their bucket.
    pub fn start(directory: &Directory) -> Running {
        let mut command = dev(&directory.path);
        command.args(existing_bucket());
        Running::start_command(directory, command)
    }

    /// As `command` says, without the group far.
    pub fn start_command(directory: &Directory, mut command: Command) -> Running {
        command.args(["--far-proxies", "0"]);
        Running::start_groups(directory, command)
    }

    /// As `command` says; ports are picked free and it ends by itself, should the test not end it.
    pub fn start_groups(directory: &Directory, mut command: Command) -> Running {
        let out = fs::File::create(directory.path.with_extension("out")).unwrap();
        command.args(["--port-base", "0", "--seconds", "400"]).stdout(out.try_clone().unwrap()).stderr(out);
        let mut child = command.spawn().unwrap();
        let summary_path = directory.path.join("dev.json");
        let said = || fs::read_to_string(directory.path.with_extension("out")).unwrap_or_default();
        let deadline = Instant::now() + BOUND;
        let summary = loop {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("forebay dev ended ({status}): {}", said());
            }
            // Of this run: an earlier one's is removed at start, but perhaps not yet.
            match read_summary(&summary_path) {
                Some(summary) if summary.pid == child.id() => break summary,
                _ => assert!(Instant::now() < deadline, "not ready within {BOUND:?}: {}", said()),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let client = new_client(&summary);
        let from_environment = |name: &str| std::env::var(name).unwrap_or_default();
        let keys = match summary.s3.access_key.as_str() {
            "" => (from_environment("AWS_ACCESS_KEY_ID"), from_environment("AWS_SECRET_ACCESS_KEY")),
            access_key => (access_key.to_owned(), summary.s3.secret_key.clone()),
        };
        let near = near_members(&directory.path.join("admin"));
        Running { child, directory: directory.path.clone(), summary, client, near, keys }
    }

    /// The keys of a bucket that the test brought along.
    pub fn use_keys(&mut self, access_key: &str, secret_key: &str) {
        self.keys = (access_key.to_owned(), secret_key.to_owned());
    }

    /// All ports of a proxy: the shared one first.
    pub fn urls(&self, proxy: usize) -> Vec<String> {
        let proxy = &self.summary.proxies[proxy];
        std::iter::once(proxy.url.clone()).chain(proxy.shards.iter().cloned()).collect()
    }

    /// The volume whose name ends so.
    pub fn volume(&self, mode: &str) -> &VolumeSummary {
        self.summary.volumes.iter().find(|volume| volume.mode == mode).unwrap()
    }

    /// The proxy of the group near that is the first in rank for a key.
    pub fn first_in_rank(&self, volume: &str, key: &str) -> usize {
        KeyHash::of(volume, key).first(&self.near).unwrap()
    }

    /// The key of this run's admin.
    pub fn signing_key(&self) -> SigningKey {
        let registry = Sqlite::open(&self.directory.join("admin")).unwrap();
        looked(&registry, |view| current(view)).unwrap()
    }

    /// Has the supervisor change the link of a group, through the command line.
    pub fn link(&self, change: &str) {
        let output = dev(&self.directory).args(["--link", change]).output().unwrap();
        assert!(output.status.success(), "--link {change}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Kills a proxy as a power cut would, and waits until the kernel has forgotten it.
    pub fn kill(&self, proxy: usize) {
        let pid = self.summary.proxies[proxy].pid;
        signal(pid, Signal::KILL);
        wait_until("the proxy to be gone", || !alive(pid));
    }

    /// Starts a proxy again through the command line.
    pub fn restart(&mut self, proxy: usize) {
        let output = dev(&self.directory).arg("--restart").arg(proxy.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "--restart {proxy}: {said}");
        let old = self.summary.proxies[proxy].clone();
        self.summary = read_summary(&self.directory.join("dev.json")).unwrap();
        let new = &self.summary.proxies[proxy];
        assert_ne!(new.pid, old.pid);
        assert_eq!((&new.url, &new.shards), (&old.url, &old.shards), "it is found where it was");
        // Connections that were kept alive are the dead process's.
        self.client = new_client(&self.summary);
    }

    /// `/v1/status` of a proxy.
    pub async fn status(&self, proxy: usize) -> Value {
        let url = format!("{}/v1/status", self.summary.proxies[proxy].url);
        let answer = self.client.get(url).bearer_auth(&self.summary.token).send().await.unwrap();
        let answer = answer.error_for_status().unwrap();
        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
    }

    /// Waits until nothing is dirty at any proxy.
    pub async fn wait_flushed(&self) {
        let deadline = Instant::now() + BOUND;
        for proxy in 0..self.summary.proxies.len() {
            loop {
                let status = self.status(proxy).await;
                if dirty_blocks(&status) == 0 {
                    break;
                }
                assert!(Instant::now() < deadline, "proxy {proxy} does not flush: {status}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// What the bucket holds under `name`.
    pub async fn stored(&self, name: &str) -> Option<Vec<u8>> {
        let S3Summary { endpoint, region, bucket, .. } = self.summary.s3.clone();
        stored_at(&endpoint, &region, &bucket, &self.keys, name).await
    }

    /// Asks for an orderly end and waits for it.
    pub fn stop(mut self) -> ExitStatus {
        signal(self.child.id(), Signal::TERM);
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "forebay dev does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The supervisor itself, as a power cut would.
    pub fn kill_supervisor(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // In an orderly way where it can be had; its proxies end with it in any case.
            signal(self.child.id(), Signal::TERM);
            let deadline = Instant::now() + BOUND;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = fs::remove_file(self.directory.with_extension("out"));
    }
}

/// The members of the group near that are up, as the admin in `directory` ranks them.
fn near_members(directory: &Path) -> Vec<Member> {
    let registry = Sqlite::open(directory).unwrap();
    let listed = looked(&registry, |view| view.list(&Listing::Members("near".to_owned()))).unwrap();
    let mut members: Vec<_> = listed
        .into_iter()
        .filter_map(|listed| match listed.record {
            Record::Member(member) if member.state == MemberState::Up => Some(member),
            _ => None,
        })
        .collect();
    members.sort_by_key(|member| member.name.strip_prefix("proxy-").unwrap().parse::<usize>().unwrap());
    members
        .iter()
        .map(|member| Member { id: member.id.as_ref().unwrap().parse().unwrap(), weight: member.weight })
        .collect()
}

fn new_client(summary: &Summary) -> Client {
    let certificate = Certificate::from_pem(&fs::read(&summary.ca).unwrap()).unwrap();
    Client::builder().tls_certs_only([certificate]).no_proxy().timeout(BOUND).build().unwrap()
}

/// What a bucket holds under `name`.
pub async fn stored_at(
    endpoint: &str,
    region: &str,
    bucket: &str,
    keys: &(String, String),
    name: &str,
) -> Option<Vec<u8>> {
    let bucket = Bucket::new(endpoint.parse().unwrap(), UrlStyle::Path, bucket.to_owned(), region.to_owned()).unwrap();
    let credentials = Credentials::new(keys.0.clone(), keys.1.clone());
    let url = bucket.get_object(Some(&credentials), name).sign(Duration::from_secs(300));
    let client = Client::builder().no_proxy().timeout(BOUND).build().unwrap();
    let answer = client.get(url).send().await.unwrap();
    match answer.status().as_u16() {
        200 => Some(answer.bytes().await.unwrap().to_vec()),
        404 => None,
        status => panic!("S3 answered {status} for {name}: {}", answer.text().await.unwrap()),
    }
}

/// Blocks that a proxy acknowledged and has not flushed yet, tombstones among them.
pub fn dirty_blocks(status: &Value) -> u64 {
    status["dirty_blocks"].as_u64().unwrap_or_else(|| panic!("no dirty_blocks in {status}"))
}

pub fn read_summary(path: &Path) -> Option<Summary> {
    let bytes = fs::read(path).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap())
}

pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
}

/// Whether a process runs (a zombie does not).
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with(['Z', 'X'])))
}

/// Looks again and again, within the bound.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a test's async part.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
