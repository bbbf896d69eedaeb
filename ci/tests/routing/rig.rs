//! A deployment of real processes: an S3 server that can go away, an admin, proxies that follow it; and a client that asks them.
//!
//! Used by the tests of `routing` and `membership`. Everything lies in one directory below `target/` and ends with its value.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use forebay::admin::registry::looked;
use forebay::admin::{keys, sqlite::Sqlite};
use forebay::dev::s3_server::S3Server;
use forebay::origin::{CredentialSource, Keys, OriginPool, StoreSettings, VolumeSettings};
use forebay::token::SigningKey;
use forebay_shard::key::BlockKey;
use forebay_shard::origin::Origin as _;
use futures::StreamExt as _;
use reqwest::{Certificate, Client, Method};
use serde_json::Value;

pub const BOUND: Duration = Duration::from_secs(60);
pub const BUCKET: &str = "blocks";
pub const ACCESS_KEY: &str = "AKROUTING";
pub const SECRET_KEY: &str = "routing-secret";

/// The deployment.
pub struct Deployment {
    root: PathBuf,
    s3: Option<S3Server>,
    s3_address: SocketAddr,
    admin: Option<Child>,
    pub admin_url: String,
    runtime: tokio::runtime::Runtime,
    /// Another one for each run of a proxy: no connection outlives the process at its other end.
    client: RefCell<Client>,
}

/// A proxy of it.
pub struct Proxy {
    root: PathBuf,
    pub name: String,
    child: Option<Child>,
    pub base: String,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// The end of the problem's type, and its detail.
    pub fn problem(&self) -> (String, String) {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let kind = body["type"].as_str().unwrap_or_default().trim_start_matches("urn:forebay:problem:").to_owned();
        (kind, body["detail"].as_str().unwrap_or_default().to_owned())
    }
}

/// Polls until `condition` gives something; how long it took.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> (T, Duration) {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return (value, began.elapsed());
        }
        assert!(began.elapsed() < BOUND, "{what}: not within {BOUND:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Deployment {
    /// S3, an admin with a store `main`, an operator's token. No group yet.
    pub fn start() -> Deployment {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("routing-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("s3")).unwrap();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        fs::write(root.join("tls.pem"), made.cert.pem()).unwrap();
        fs::write(root.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
        fs::write(
            root.join("credentials"),
            format!("[s3]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"),
        )
        .unwrap();
        let s3 = s3_at(&root, "127.0.0.1:0".parse().unwrap());
        let certificate = certificate(&root);
        let client = RefCell::new(fresh_client(&certificate));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (s3_address, admin_url) = (s3.endpoint().trim_start_matches("http://").parse().unwrap(), String::new());
        let mut deployment = Deployment { root, s3: Some(s3), s3_address, admin: None, admin_url, runtime, client };
        deployment.configure_admin("127.0.0.1:0");
        deployment.start_admin();
        // From now on on the same port, so that everybody finds it again.
        deployment.configure_admin(deployment.admin_url.trim_start_matches("https://"));
        let out = deployment.path("operator.token");
        let token = ["admin", "token", "--config", &deployment.path("admin.toml"), "--out", &out];
        assert!(deployment.command(&token).status().unwrap().success());
        let (endpoint, credentials) =
            (format!("http://{s3_address}"), format!("file:{}#s3", deployment.path("credentials")));
        let store = ["store", "create", "main", "--endpoint", &endpoint, "--bucket", BUCKET, "--conditional-put"];
        deployment.control(&[&store[..], &["--credentials", &credentials]].concat());
        deployment
    }

    pub fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn configure_admin(&self, listen: &str) {
        let text = format!(
            "[admin]\nlisten = \"{listen}\"\ndirectory = \"{}\"\ntls_certificate = \"{}\"\ntls_key = \"{}\"\nports_file = \"{}\"\n",
            self.path("admin"),
            self.path("tls.pem"),
            self.path("tls.key"),
            self.path("admin.json"),
        );
        fs::write(self.root.join("admin.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(arguments).env("HOME", &self.root).env_remove("FOREBAY_TOKEN");
        command.env("FOREBAY_ADMIN", &self.admin_url).env("FOREBAY_CA", self.path("tls.pem"));
        command.env("FOREBAY_TOKEN_FILE", self.path("operator.token"));
        command.env("FOREBAY_PARENT", std::process::id().to_string());
        command
    }

    fn spawn(&self, name: &str, arguments: &[&str]) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join(format!("{name}.log"))).unwrap();
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Waits for the ports file that `child` writes.
    fn ports(&self, name: &str, child: &mut Child) -> Value {
        let (file, id) = (self.root.join(format!("{name}.json")), child.id());
        let ports = until(name, || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{name} ended: {}", self.log(name));
            let ports: Value = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
            (ports["pid"] == id).then_some(ports)
        });
        ports.0
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.root.join(format!("{name}.log"))).unwrap_or_default()
    }

    pub fn start_admin(&mut self) {
        let mut child = self.spawn("admin", &["admin", "--config", &self.path("admin.toml")]);
        let ports = self.ports("admin", &mut child);
        self.admin_url = format!("https://{}", ports["listen"].as_str().unwrap());
        self.admin = Some(child);
    }

    /// kill -9.
    pub fn kill_admin(&mut self) {
        end(&mut self.admin);
    }

    pub fn stop_s3(&mut self) {
        self.s3 = None;
    }

    pub fn start_s3(&mut self) {
        let (root, address) = (&self.root, self.s3_address);
        self.s3 = Some(until("the port of S3", || std::panic::catch_unwind(|| s3_at(root, address)).ok()).0);
    }

    /// What the bucket holds.
    pub fn stored(&self, name: &str) -> Option<Vec<u8>> {
        let keys = Keys { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), session_token: None };
        let endpoint = format!("http://{}", self.s3_address);
        let store = StoreSettings::new("s", &endpoint, "us-east-1", BUCKET, CredentialSource::Keys(keys));
        let volume =
            VolumeSettings { name: "v".into(), store: "s".into(), prefix: String::new(), block_bytes_max: 1 << 20 };
        let pool = OriginPool::start(vec![store], &[volume], 1).unwrap();
        let handle = pool.handle();
        futures::executor::block_on(async {
            let fetched = handle.fetch(&BlockKey::new("v".into(), name)).await.unwrap()?;
            Some(fetched.body.map(|bytes| bytes.unwrap()).collect::<Vec<_>>().await.concat())
        })
    }

    /// A controlling command that must succeed; what it printed.
    pub fn control(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// One that must not; what it said.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.control(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// A token and its id.
    pub fn token(&self, arguments: &[&str]) -> (String, String) {
        let issued = self.json(&[&["token", "create"], arguments].concat());
        (issued["token"].as_str().unwrap().to_owned(), issued["record"]["id"].as_str().unwrap().to_owned())
    }

    pub fn operator(&self) -> String {
        fs::read_to_string(self.root.join("operator.token")).unwrap().trim().to_owned()
    }

    /// The key that the admin signs with, taken from its database.
    pub fn signing_key(&self) -> SigningKey {
        let registry = Sqlite::open(&self.root.join("admin")).unwrap();
        looked(&registry, |view| keys::current(view)).unwrap()
    }

    /// A group, with a token file for its proxies.
    pub fn group(&self, name: &str) {
        self.control(&["group", "create", name]);
        let file = self.path(&format!("{name}.token"));
        self.control(&["token", "create", "--group", name, "--ttl", "1d", "--out", &file]);
    }

    /// A proxy of a group, which becomes a member of it, in state `up`.
    pub fn proxy(&self, group: &str, name: &str, more: &str) -> Proxy {
        self.proxy_in("up", group, name, more)
    }

    /// The same in another state.
    pub fn proxy_in(&self, state: &str, group: &str, name: &str, more: &str) -> Proxy {
        // Its port is known before it runs, and kept.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        self.control(&["member", "create", name, "--group", group, "--address", &address, "--state", state]);
        let full = format!("{group}-{name}");
        let core = forebay::proxy::executor::usable_cpus()[0];
        let text = format!(
            "[node]\nname = \"{full}\"\nlisten = \"{address}\"\nshard_port_base = 0\nshards = 1\ncores = [{core}]\nmemory = \"256MiB\"\n\
             tls_certificate = {:?}\ntls_key = {:?}\nports_file = {:?}\n\
             [[disk]]\npath = {:?}\ncapacity = \"64MiB\"\nregion = \"1MiB\"\n\
             [limits]\norigin_deadline = \"1s\"\n\
             [admin]\nurl = {:?}\nca = {:?}\ngroup = \"{group}\"\nmember = \"{name}\"\ntoken_file = {:?}\ndirectory = {:?}\n\
             block_size_max = \"64KiB\"\n{more}\n",
            self.root.join("tls.pem"),
            self.root.join("tls.key"),
            self.root.join(format!("{full}.json")),
            self.root.join(format!("{full}-disk")),
            self.admin_url,
            self.root.join("tls.pem"),
            self.root.join(format!("{group}.token")),
            self.root.join(format!("{full}-state")),
        );
        fs::write(self.root.join(format!("{full}.toml")), text).unwrap();
        let mut proxy = Proxy { root: self.root.clone(), name: full, child: None, base: format!("https://{address}") };
        self.start_proxy(&mut proxy);
        proxy
    }

    pub fn start_proxy(&self, proxy: &mut Proxy) {
        let mut child = self.spawn(&proxy.name, &["proxy", "--config", &self.path(&format!("{}.toml", proxy.name))]);
        self.ports(&proxy.name, &mut child);
        self.client.replace(fresh_client(&certificate(&self.root)));
        proxy.child = Some(child);
    }

    /// Asks whoever is at `base`. An empty token is none.
    pub fn ask(&self, base: &str, method: Method, path: &str, token: &str, body: Option<Vec<u8>>) -> Answer {
        self.ask_with(base, method, path, token, body, &[])
    }

    /// The same with more headers.
    pub fn ask_with(
        &self,
        base: &str,
        method: Method,
        path: &str,
        token: &str,
        body: Option<Vec<u8>>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = self.client.borrow().request(method, format!("{base}{path}"));
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.runtime.block_on(async {
            let answer = request.send().await.unwrap_or_else(|error| panic!("{base}{path}: {error:?}"));
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            Answer { status, headers, body: answer.bytes().await.unwrap().to_vec() }
        })
    }

    pub fn get(&self, proxy: &Proxy, path: &str, token: &str) -> Answer {
        self.ask(&proxy.base, Method::GET, path, token, None)
    }

    pub fn put(&self, proxy: &Proxy, path: &str, token: &str, body: &[u8]) -> Answer {
        self.ask(&proxy.base, Method::PUT, path, token, Some(body.to_vec()))
    }

    pub fn status(&self, proxy: &Proxy) -> Value {
        serde_json::from_slice(&self.get(proxy, "/v1/status", "").body).unwrap()
    }

    /// The newest revision of the metadata.
    pub fn revision(&self) -> u64 {
        let answer = self.ask(&self.admin_url, Method::GET, "/v1/status", &self.operator(), None);
        serde_json::from_slice::<Value>(&answer.body).unwrap()["revision"].as_u64().unwrap()
    }
}

impl Proxy {
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        end(&mut self.child);
    }
}

fn certificate(root: &Path) -> Certificate {
    Certificate::from_pem(&fs::read(root.join("tls.pem")).unwrap()).unwrap()
}

fn fresh_client(certificate: &Certificate) -> Client {
    Client::builder().tls_certs_only([certificate.clone()]).no_proxy().timeout(BOUND).build().unwrap()
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn s3_at(root: &Path, address: SocketAddr) -> S3Server {
    S3Server::start(&root.join("s3"), address, ACCESS_KEY, SECRET_KEY, BUCKET).unwrap()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        end(&mut self.child);
        if std::thread::panicking() {
            let log = fs::read_to_string(self.root.join(format!("{}.log", self.name))).unwrap_or_default();
            eprintln!("--- {}\n{log}", self.name);
        }
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        end(&mut self.admin);
        if std::thread::panicking() {
            eprintln!("left for a look: {}\n--- admin\n{}", self.root.display(), self.log("admin"));
        } else {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}
