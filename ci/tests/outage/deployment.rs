//! What is struck: `forebay dev` with the groups near and far in front of a bucket that can be moved far away, so that acknowledged
//! blocks wait to be flushed at any time.
//!
//! Used by `outage`: it opens clients, asks what is dirty, kills and starts again.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use forebay::client::{Client, Settings};
use forebay::dev::relay::link::{Change, Condition, Link, Traffic};
use forebay::dev::relay::{Path, Relay};
use forebay::dev::s3_server::{S3Server, S3ServerOptions};
use forebay::follow::bearer::Bearer;
use forebay::origin::{CredentialSource, Keys};
use rustix::process::Signal;

use crate::running::{Directory, Running, alive, dev, dirty_blocks, read_summary, signal, stored_at, wait_until};

/// Up to its answer's head.
pub const DEADLINE: Duration = Duration::from_secs(8);
const NEAR: Duration = Duration::from_millis(10);
/// A flush takes as long at least, so that what was put within it is dirty.
const FAR: Duration = Duration::from_secs(1);

/// How far the store is from the proxies and the clients.
#[derive(Debug, Clone, Copy)]
pub enum Distance {
    Near,
    Far,
}

/// The bucket itself, not through the line.
#[derive(Debug, Clone)]
pub struct BucketView {
    endpoint: String,
    options: S3ServerOptions,
    prefix: String,
}

impl BucketView {
    pub async fn stored(&self, key: &str) -> Option<Vec<u8>> {
        let keys = (self.options.access_key.clone(), self.options.secret_key.clone());
        let name = format!("{}{key}", self.prefix);
        stored_at(&self.endpoint, &self.options.region, &self.options.bucket, &keys, &name).await
    }
}

/// In the order in which its parts have to end: the processes, the line, the bucket, the files.
pub struct Deployment {
    pub running: Running,
    line: Arc<Link>,
    _relay: Relay,
    _server: S3Server,
    options: S3ServerOptions,
    endpoint: String,
    directory: Directory,
}

impl Deployment {
    /// Near with two members, far with one.
    pub fn start() -> Deployment {
        let directory = Directory::new();
        let options = S3ServerOptions {
            root: directory.path.join("outside"),
            addr: "127.0.0.1:0".parse().unwrap(),
            access_key: "client".to_owned(),
            secret_key: "client-secret".to_owned(),
            bucket: "bucket".to_owned(),
            region: "us-east-1".to_owned(),
            access_log: None,
        };
        let server = S3Server::start_with(&options).unwrap();
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let line = Arc::new(Link::new(Condition { latency: NEAR, bytes_per_second: None, traffic: Traffic::Carried }));
        let path = Path { listen, to: server.addr(), link: Arc::clone(&line) };
        let relay = Relay::start(vec![path]).unwrap();
        let mut command = dev(&directory.path);
        command.args(["--endpoint", &format!("http://{listen}"), "--bucket", &options.bucket]);
        command.args(["--proxies", "2", "--far-proxies", "1", "--far-latency", "5ms"]);
        command.env("AWS_ACCESS_KEY_ID", &options.access_key).env("AWS_SECRET_ACCESS_KEY", &options.secret_key);
        command.env_remove("AWS_SESSION_TOKEN").env_remove("AWS_REGION");
        let running = Running::start_groups(&directory, command);
        let endpoint = server.endpoint();
        let deployment = Deployment { running, line, _relay: relay, _server: server, options, endpoint, directory };
        deployment.bypass("write-back", "reads");
        deployment.bypass("write-through", "always");
        deployment
    }

    /// How far the store is.
    pub fn move_the_store(&self, distance: Distance) {
        let latency = match distance {
            Distance::Near => NEAR,
            Distance::Far => FAR,
        };
        self.line.change(&[Change::Latency(latency)]);
    }

    fn bypass(&self, mode: &str, rule: &str) {
        let volume = &self.running.volume(mode).name;
        let admin = &self.running.summary.admin;
        let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["volume", "update", volume, "--bypass", rule])
            .env("HOME", &self.directory.path)
            .env("FOREBAY_ADMIN", &admin.url)
            .env("FOREBAY_TOKEN", &admin.operator_token)
            .env("FOREBAY_CA", &self.running.summary.ca)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn bucket(&self, mode: &str) -> BucketView {
        let prefix = self.running.volume(mode).prefix.clone();
        BucketView { endpoint: self.endpoint.clone(), options: self.options.clone(), prefix }
    }

    pub async fn open(&self, mode: &str) -> Client {
        let keys = Keys {
            access_key: self.options.access_key.clone(),
            secret_key: self.options.secret_key.clone(),
            session_token: None,
        };
        let settings = Settings {
            ca: Some(self.running.summary.ca.clone()),
            directory: Some(self.routing_directory()),
            credentials: CredentialSource::Keys(keys),
            deadline: DEADLINE,
            ..Settings::new(
                &self.running.summary.admin.url,
                Arc::new(Bearer::fixed(&self.running.summary.token).unwrap()),
            )
        };
        Client::open(settings, &self.running.volume(mode).name).await.unwrap()
    }

    fn routing_directory(&self) -> PathBuf {
        self.directory.path.join("routing")
    }

    /// The proxies of a group, and their names.
    pub fn members(&self, group: &str) -> Vec<(usize, String)> {
        let group = self.running.summary.groups.iter().find(|found| found.name == group).unwrap();
        group.members.iter().map(|member| (member.proxy, member.name.clone())).collect()
    }

    /// What these hold that the store does not have.
    pub async fn dirty(&self, proxies: &[usize]) -> u64 {
        let mut dirty = 0;
        for proxy in proxies {
            dirty += dirty_blocks(&self.running.status(*proxy).await);
        }
        dirty
    }

    /// All at once, as a power cut would.
    pub fn kill(&self, proxies: &[usize], admin: bool) {
        let mut pids: Vec<u32> = proxies.iter().map(|proxy| self.running.summary.proxies[*proxy].pid).collect();
        if admin {
            pids.push(self.running.summary.admin.pid);
        }
        for pid in &pids {
            signal(*pid, Signal::KILL);
        }
        wait_until("the killed to be gone", || pids.iter().all(|pid| !alive(*pid)));
    }

    pub fn restart(&mut self, proxies: &[usize], admin: bool) {
        if admin {
            let path = self.directory.path.join("dev.json");
            wait_until("the supervisor to miss the admin", || {
                read_summary(&path).is_some_and(|said| said.admin.pid == 0)
            });
            let output = dev(&self.directory.path).args(["--restart", "admin"]).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            self.running.summary = read_summary(&path).unwrap();
        }
        for proxy in proxies {
            self.running.restart(*proxy);
        }
    }
}
