//! The real `forebay admin` and the commands that control it, over TLS on loopback: records by the command line, a long poll that sees a
//! change, kill -9 in between, backup and restore.
//!
//! Each test has a server of its own on a free port, in a directory below `target/`; both go away with the value.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use forebay::resource::MemberState;
use forebay::routing::Routing;
use forebay::token::{PublicKey, PublicKeys};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(60);

/// A directory, a configuration, and the server that runs from it.
struct Admin {
    root: PathBuf,
    server: Option<Child>,
    url: String,
}

impl Admin {
    fn start() -> Admin {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("admin-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::write(root.join("tls.pem"), certified.cert.pem()).unwrap();
        fs::write(root.join("tls.key"), certified.signing_key.serialize_pem()).unwrap();
        let mut admin = Admin { root, server: None, url: String::new() };
        admin.configure("127.0.0.1:0");
        admin.run();
        // From now on on the same port, so that clients find it again.
        let listen = admin.url.trim_start_matches("https://").to_owned();
        admin.configure(&listen);
        assert!(admin.local(&["token", "--subject", "e2e", "--out", &admin.path("operator.token")]).status.success());
        admin
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn configure(&self, listen: &str) {
        let text = format!(
            "[admin]\nlisten = \"{listen}\"\ndirectory = \"{}\"\ntls_certificate = \"{}\"\ntls_key = \"{}\"\nports_file = \"{}\"\n\
             [log]\nlevel = \"info,forebay=debug\"\n",
            self.path("data"),
            self.path("tls.pem"),
            self.path("tls.key"),
            self.path("ports.json"),
        );
        fs::write(self.root.join("admin.toml"), text).unwrap();
    }

    /// Starts the server and waits until it answers.
    fn run(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("log")).unwrap();
        let _ = fs::remove_file(self.root.join("ports.json"));
        let mut server = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["admin", "--config", &self.path("admin.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + BOUND;
        let ports: Value = loop {
            if let Ok(text) = fs::read_to_string(self.root.join("ports.json")) {
                break serde_json::from_str(&text).unwrap();
            }
            if let Some(status) = server.try_wait().unwrap() {
                panic!("the admin ended ({status}): {}", self.log());
            }
            assert!(Instant::now() < deadline, "not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(ports["pid"], server.id());
        self.url = format!("https://{}", ports["listen"].as_str().unwrap());
        self.server = Some(server);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut server = self.server.take().unwrap();
        kill_process(Pid::from_child(&server), signal).unwrap();
        server.wait().unwrap()
    }

    /// `forebay admin …` on the server's own machine.
    fn local(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.arg("admin").args(arguments).args(["--config", &self.path("admin.toml")]).output().unwrap()
    }

    /// A controlling command, however it ends.
    fn try_control(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(arguments)
            .env("HOME", &self.root)
            .env("FOREBAY_ADMIN", &self.url)
            .env("FOREBAY_TOKEN_FILE", self.path("operator.token"))
            .env("FOREBAY_CA", self.path("tls.pem"))
            .env_remove("FOREBAY_TOKEN")
            .output()
            .unwrap()
    }

    /// A controlling command that must succeed; what it printed.
    fn control(&self, arguments: &[&str]) -> String {
        let output = self.try_control(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.control(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// A controlling command that must fail; its one line.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.try_control(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(words.lines().count(), 1, "{words}");
        words
    }

    /// A store, a write-back volume, its home group with two members.
    fn populate(&self) {
        let store = ["store", "create", "main", "--endpoint", "https://s3.example.net", "--bucket", "pictures"];
        self.control(&[&store[..], &["--conditional-put", "--credentials", "profile:render"]].concat());
        self.control(&["volume", "create", "pictures", "--store", "main", "--write", "back", "--block-size", "1MiB"]);
        self.control(&["group", "create", "near", "--provider", "own", "--region", "eu"]);
        for (name, address) in [("a", "10.0.0.1:7400"), ("b", "10.0.0.2:7400")] {
            self.control(&["member", "create", name, "--group", "near", "--address", address, "--state", "up"]);
        }
        self.control(&["attach", "pictures", "near", "--home"]);
    }

    fn client(&self) -> Asker {
        let ca = fs::read(self.path("tls.pem")).unwrap();
        let builder = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
            .no_proxy()
            // Each question has a runtime of its own, which no connection outlives.
            .pool_max_idle_per_host(0);
        let token = fs::read_to_string(self.root.join("operator.token")).unwrap();
        Asker { http: builder.build().unwrap(), url: self.url.clone(), token: token.trim().to_owned() }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        if std::thread::panicking() {
            eprintln!("left for a look: {}\n{}", self.root.display(), self.log());
        } else {
            fs::remove_dir_all(&self.root).unwrap();
        }
    }
}

/// The interface, asked directly.
#[derive(Clone)]
struct Asker {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Asker {
    async fn fetch(&self, path: &str) -> reqwest::Response {
        self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token).timeout(BOUND).send().await.unwrap()
    }

    /// The routing document behind revision `since`, and its entity tag.
    async fn routing(&self, since: u64) -> (Routing, String) {
        let listed: Value = serde_json::from_slice(&self.fetch("/v1/keys").await.bytes().await.unwrap()).unwrap();
        let mut keys = PublicKeys::default();
        for key in listed["items"].as_array().unwrap() {
            let public = PublicKey::parse(key["public"].as_str().unwrap()).unwrap();
            assert!(keys.add(key["id"].as_str().unwrap(), public));
        }
        let response = self.fetch(&format!("/v1/volumes/pictures/routing?since={since}&wait=50s")).await;
        assert_eq!(response.status(), 200);
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        (Routing::open(&response.text().await.unwrap(), &keys).unwrap(), tag)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn records_are_made_shown_changed_and_ended_from_a_shell() {
    let mut admin = Admin::start();
    admin.populate();
    assert_eq!(
        admin.json(&[
            "store",
            "create",
            "main",
            "--endpoint",
            "https://s3.example.net",
            "--bucket",
            "pictures",
            "--conditional-put",
            "--credentials",
            "profile:render"
        ])["credentials_set"],
        true,
        "the same again succeeds"
    );
    let table = admin.control(&["member", "list", "--group", "near"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "STATE", "ADDRESS", "TLS", "NAME", "WEIGHT", "MOVED", "ID"]);
    assert_eq!(lines[1][..5], ["a", "up", "10.0.0.1:7400", "10.0.0.1", "100"]);
    let id = lines[1].last().copied().unwrap().to_owned();
    let member = admin.json(&["member", "update", "a", "--group", "near", "--weight", "200"]);
    assert_eq!((&member["weight"], &member["id"]), (&json!(200), &json!(id)), "the id is kept for life");
    let volume = admin.json(&["volume", "show", "pictures"]);
    assert_eq!(
        (&volume["block_size"], &volume["durability"], &volume["home_group"]),
        (&json!(1 << 20), &json!("disk"), &json!("near"))
    );
    let mutable = admin.json(&["volume", "update", "pictures", "--revalidate", "30s", "--bypass", "always"]);
    assert_eq!((&mutable["revalidate_seconds"], &mutable["bypass"]), (&json!(30), &json!("always")));
    assert_eq!(
        admin.json(&["volume", "update", "pictures", "--revalidate", "none"])["revalidate_seconds"],
        Value::Null
    );

    assert!(admin.refused(&["group", "delete", "near"]).contains("delete member near/a, member near/b first"));
    assert!(admin.refused(&["member", "delete", "a", "--group", "near"]).contains("draining"));
    assert!(admin.refused(&["detach", "pictures", "near"]).contains("home group"));
    assert!(
        admin
            .refused(&["store", "create", "main", "--endpoint", "https://other.example.net", "--bucket", "pictures"])
            .contains("there is another store main")
    );
    assert!(admin.refused(&["volume", "update", "pictures", "--prefix", "p/"]).contains("fixed"));
    assert!(admin.refused(&["group", "show", "far"]).contains("no group far"));
    assert!(admin.end(Signal::TERM).success(), "it stops in order");
}

#[test]
fn tokens_are_issued_and_revoked_and_nothing_secret_is_logged() {
    let admin = Admin::start();
    admin.populate();
    let issued =
        admin.json(&["token", "create", "--volume", "pictures", "--write", "--ttl", "15m", "--subject", "render"]);
    assert_eq!(issued["record"]["volumes"], json!({"pictures": "rw"}));
    let file = admin.path("viewer.token");
    let viewer = admin.json(&["token", "create", "--role", "viewer", "--out", &file]);
    let as_viewer = |arguments: &[&str]| admin.try_control(&[arguments, &["--token-file", &file]].concat());
    assert!(as_viewer(&["store", "list"]).status.success());
    let refused = as_viewer(&["store", "delete", "main"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("changes take an operator's"));
    admin.control(&["token", "delete", viewer["id"].as_str().unwrap()]);
    assert!(String::from_utf8_lossy(&as_viewer(&["store", "list"]).stderr).contains("revoked"));

    // Nothing secret in the log, which is at its most talkative.
    let log = admin.log();
    assert!(log.contains("/v1/tokens"));
    for secret in [issued["token"].as_str().unwrap(), "PRIVATE", "profile:render"] {
        assert!(!log.contains(secret));
    }
}

#[test]
fn a_waiting_client_hears_of_a_change_and_nothing_acknowledged_is_lost_by_a_kill() {
    let mut admin = Admin::start();
    admin.populate();
    let asker = admin.client();
    let (seen, _) = block_on(asker.routing(0));
    let waiting = std::thread::spawn({
        let asker = asker.clone();
        move || block_on(asker.routing(seen.revision))
    });
    let began = Instant::now();
    admin.control(&["member", "update", "a", "--group", "near", "--state", "draining"]);
    let (news, tag) = waiting.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "long before the wait's end");
    assert!(news.revision > seen.revision && tag == format!("\"{}\"", news.revision));
    assert_eq!(serde_json::to_value(news.groups[0].members[0].state).unwrap(), "draining");

    // kill -9, again and again, under a client that makes groups one after the other.
    let is_over = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("g-{number}");
                let request = asker.http.post(format!("{}/v1/groups", asker.url)).bearer_auth(&asker.token);
                let request = request.body(json!({"name": name}).to_string()).timeout(BOUND);
                let response = block_on(async { request.send().await });
                if response.is_ok_and(|response| response.status() == 201) {
                    acknowledged.push(name);
                }
            }
            acknowledged
        });
        for strike in 0..4 {
            let before = audit_rows(&asker);
            let deadline = Instant::now() + BOUND;
            while audit_rows(&asker) < before + 3 {
                assert!(Instant::now() < deadline && !writer.is_finished(), "strike {strike}: nothing is written");
                std::thread::sleep(Duration::from_millis(5));
            }
            admin.end(Signal::KILL);
            admin.run();
        }
        is_over.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let listed = admin.json(&["group", "list"]);
    let names: Vec<&str> =
        listed["items"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    for name in &acknowledged {
        assert!(names.contains(&name.as_str()), "{name} was acknowledged");
    }
    assert!(acknowledged.len() >= 8, "{acknowledged:?}");
    // Each revision has its row, none is missing or doubled, and the newest is the server's.
    let revisions = audit(&asker);
    assert_eq!(revisions, (1..=revisions.len() as u64).collect::<Vec<_>>());
    assert_eq!(listed["revision"].as_u64(), revisions.last().copied());
    let (after, _) = block_on(asker.routing(0));
    assert_eq!(after.revision, news.revision, "what did not concern the volume did not touch its routing");
}

fn audit_rows(asker: &Asker) -> u64 {
    let status: Value =
        serde_json::from_slice(&block_on(async { asker.fetch("/v1/status").await.bytes().await.unwrap() })).unwrap();
    status["revision"].as_u64().unwrap()
}

/// The revisions of the whole audit log.
fn audit(asker: &Asker) -> Vec<u64> {
    let (mut revisions, mut after) = (Vec::new(), 0);
    loop {
        let path = format!("/v1/audit?limit=1000&after={after}");
        let part: Value =
            serde_json::from_slice(&block_on(async { asker.fetch(&path).await.bytes().await.unwrap() })).unwrap();
        revisions.extend(part["items"].as_array().unwrap().iter().map(|row| row["revision"].as_u64().unwrap()));
        match part["next"].as_u64() {
            Some(next) => after = next,
            None => return revisions,
        }
    }
}

/// Who the members are, and where.
fn members(routing: &Routing) -> Vec<(String, String, MemberState)> {
    let members = routing.groups.iter().flat_map(|group| &group.members);
    members.map(|member| (member.id.clone(), member.address.clone(), member.state)).collect()
}

#[test]
fn a_backup_is_made_while_the_server_runs_and_restored_while_it_does_not() {
    let mut admin = Admin::start();
    admin.populate();
    let asker = admin.client();
    let backup = admin.path("backup.db");
    assert!(admin.local(&["backup", "--out", &backup]).status.success());
    admin.control(&["group", "create", "far"]);
    let (before, _) = block_on(asker.routing(0));
    let running = admin.local(&["restore", "--from", &backup]);
    assert!(String::from_utf8_lossy(&running.stderr).contains("stop it first"), "{running:?}");
    assert!(admin.end(Signal::TERM).success());
    let restored = admin.local(&["restore", "--from", &backup]);
    assert!(restored.status.success(), "{restored:?}");
    admin.run();
    // The operator's token is older than the backup, so it is known; the group is younger, so it is not.
    let groups = admin.json(&["group", "list"]);
    assert_eq!(groups["items"].as_array().unwrap().len(), 1);
    let (after, _) = block_on(asker.routing(before.revision));
    assert!(after.revision > before.revision, "whoever waits for news gets it");
    assert_eq!((members(&after), after.keys), (members(&before), before.keys));
    let mut restored = after.groups.iter().flat_map(|group| &group.members);
    assert!(restored.all(|member| member.settled == 0), "who held what since the backup is not known any more");
}

#[test]
fn mistakes_are_one_line_with_the_fix() {
    let mut admin = Admin::start();
    let says = |output: &Output, code: i32, words: &str| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(words), "{words}: {output:?}");
    };
    let control = |arguments: &[&str]| admin.try_control(arguments);
    says(&control(&["store", "list", "--admin", "http://127.0.0.1:1"]), 2, "--admin");
    says(&control(&["store", "list", "--token-file", "/nowhere"]), 2, "--token-file");
    says(&control(&["store", "list", "--ca", "/nowhere"]), 2, "--ca");
    says(&control(&["store", "list", "--admin", "https://127.0.0.1:1"]), 1, "can't be asked");
    says(&control(&["member", "list"]), 1, "--group");
    says(&control(&["volume", "update", "x"]), 1, "name a setting");
    says(&control(&["group", "show", "../keys"]), 1, "is no name");
    says(&control(&["store", "create", "s", "--endpoint", "x", "--bucket", "pictures"]), 1, "endpoint:");
    says(&control(&["token", "create"]), 2, "--volume");
    says(&admin.local(&["backup", "--out", &admin.path("admin.toml")]), 1, "exists");
    let second = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["admin", "--config", &admin.path("admin.toml")])
        .output()
        .unwrap();
    says(&second, 1, "an admin runs in");
    fs::write(admin.root.join("bad.toml"), "[admin]\nport = 1\n").unwrap();
    let bad = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["admin", "--config", &admin.path("bad.toml")])
        .output()
        .unwrap();
    says(&bad, 2, "port");
    assert!(admin.end(Signal::TERM).success());
}

#[test]
fn a_stranger_is_refused_before_its_body_comes_and_leaves_nothing_behind() {
    let admin = Admin::start();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(admin.path("tls.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let trust = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let trust = Arc::new(trust);
    for token in ["", "authorization: Bearer nonsense\r\n"] {
        let socket = TcpStream::connect(admin.url.trim_start_matches("https://")).unwrap();
        // Half of what a body may take to come.
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut tls =
            rustls::StreamOwned::new(rustls::ClientConnection::new(Arc::clone(&trust), name).unwrap(), socket);
        write!(tls, "POST /v1/stores HTTP/1.1\r\nhost: a\r\n{token}content-length: 60000\r\n\r\n{{").unwrap();
        let mut head = [0; 12];
        tls.read_exact(&mut head).unwrap();
        assert_eq!(&head, b"HTTP/1.1 401");
    }
    assert_eq!(admin.json(&["store", "list"])["items"], json!([]));
}
