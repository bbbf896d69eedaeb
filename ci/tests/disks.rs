//! A node with several disks as a person runs it: the real binary, kill -9, and a disk that is missing, damaged, empty, given up
//! or new at the next start. What was acknowledged on the others is there; the node starts; status tells.
//!
//! Run by `cargo test --test disks` as part of `ci/test`. The object store is not there, so every put stays dirty, and what
//! a disk has nobody else has. The same below the command line, with every order of events: `shard/tests/disks.rs`.

#![allow(clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client, Method};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(60);
const SHARDS: u16 = 2;
const BLOCKS: u64 = 60;

/// A node's files in a directory of their own; its disks are directories in it, called by one letter.
struct Node {
    directory: tempfile::TempDir,
    child: Option<Child>,
    base: String,
    client: Client,
    /// Of every disk, as it is configured.
    capacity: &'static str,
}

impl Node {
    fn new() -> Node {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        fs::write(directory.path().join("cert.pem"), made.cert.pem()).unwrap();
        fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let certificate = Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
        let client = Client::builder().tls_certs_only([certificate]).no_proxy().timeout(BOUND).build().unwrap();
        Node { directory, child: None, base: String::new(), client, capacity: "64MiB" }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, disks: &[&str], node_keys: &str) {
        let core = forebay::proxy::executor::usable_cpus()[0];
        let capacity = self.capacity;
        let disk = |name: &&str| {
            format!("[[disk]]\npath = {:?}\ncapacity = \"{capacity}\"\nregion = \"1MiB\"\n", self.path(name))
        };
        let text = format!(
            "[node]\nlisten = \"127.0.0.1:0\"\nshard_port_base = 0\nshards = {SHARDS}\ncores = [{core}]\nmemory = \"320MiB\"\n\
             tls_certificate = {:?}\ntls_key = {:?}\ntls_name = \"localhost\"\nports_file = {:?}\n{node_keys}\n{}\
             [[store]]\nname = \"s3\"\nendpoint = \"http://127.0.0.1:9\"\nbucket = \"blocks\"\n\
             credentials = {{ access_key = \"a\", secret_key = \"s\" }}\n\
             [limits]\norigin_deadline = \"1s\"\n[auth]\nanonymous = true\n\
             [[volume]]\nname = \"back\"\nstore = \"s3\"\nwrite = \"back\"\nblock_size = \"64KiB\"\n",
            self.path("cert.pem"),
            self.path("key.pem"),
            self.path("ports.json"),
            disks.iter().map(disk).collect::<String>(),
        );
        fs::write(self.path("forebay.toml"), text).unwrap();
    }

    fn spawn(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["proxy", "--config"]).arg(self.path("forebay.toml"));
        command.env("FOREBAY_PARENT", std::process::id().to_string());
        let log = fs::File::create(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts the proxy on these disks and waits until it serves.
    fn start(&mut self, disks: &[&str], node_keys: &str) {
        self.configure(disks, node_keys);
        let child = self.spawn();
        let (pid, began) = (u64::from(child.id()), Instant::now());
        self.child = Some(child);
        let ports = loop {
            let ports = fs::read(self.path("ports.json")).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
            if let Some(ports) = ports.filter(|ports| ports["pid"].as_u64() == Some(pid)) {
                break ports;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < BOUND, "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.base = format!("https://{}", ports["listen"].as_str().unwrap());
    }

    /// Starts the proxy, which refuses; its last words.
    fn refusal(&mut self, disks: &[&str], node_keys: &str) -> String {
        self.configure(disks, node_keys);
        self.child = Some(self.spawn());
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                assert!(!status.success(), "{}", self.log());
                self.child = None;
                return self.log();
            }
            assert!(began.elapsed() < BOUND, "it runs: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// kill -9.
    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn ask(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> (u16, Vec<u8>) {
        let request = self.client.request(method, self.base.clone() + path);
        let request = match body {
            Some(body) => request.body(body),
            None => request,
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
        })
    }

    /// Puts these blocks; which were acknowledged.
    fn put(&self, numbers: std::ops::Range<u64>) -> Vec<u64> {
        let is_put = |n: &u64| match self.ask(Method::PUT, &path(*n), Some(content(*n))).0 {
            201 => true,
            503 | 504 => false,
            other => panic!("{n}: {other}"),
        };
        numbers.filter(is_put).collect()
    }

    /// Which of these blocks are answered. The others are declined: never absent, never other bytes.
    fn get(&self, numbers: &[u64]) -> Vec<u64> {
        let is_there = |n: &u64| match self.ask(Method::GET, &path(*n), None) {
            (200, body) if body == content(*n) => true,
            (503, _) => false,
            (status, body) => panic!("{n}: {status}: {}", String::from_utf8_lossy(&body)),
        };
        numbers.iter().copied().filter(is_there).collect()
    }

    fn status(&self) -> Value {
        let (status, body) = self.ask(Method::GET, "/v1/status", None);
        assert_eq!(status, 200);
        serde_json::from_slice(&body).unwrap()
    }

    /// The states of the disks, and why each is away.
    fn disks(&self) -> Vec<(String, Option<String>)> {
        let status = self.status();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let disk = |disk: &Value| (text(&disk["state"]).unwrap(), text(&disk["away"]));
        status["disks"].as_array().unwrap().iter().map(disk).collect()
    }

    fn id(&self, disk: usize) -> String {
        self.status()["disks"][disk]["id"].as_str().unwrap().to_owned()
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

fn path(n: u64) -> String {
    format!("/v1/volumes/back/blocks/k{n}")
}

fn content(n: u64) -> Vec<u8> {
    (0..1_000 + n * 97).map(|at| (at * 31 + n * 7) as u8).collect()
}

/// Zeroes both superblocks of every slab, or puts them back.
fn swap_superblocks(disk: &Path, kept: &mut Vec<Vec<u8>>) {
    for shard in 0..SHARDS {
        let slab = OpenOptions::new().read(true).write(true).open(disk.join(format!("shard-{shard:03}.slab"))).unwrap();
        let mut there = vec![0; 8192];
        slab.read_exact_at(&mut there, 0).unwrap();
        let before = if kept.len() < usize::from(SHARDS) { vec![0; 8192] } else { kept[usize::from(shard)].clone() };
        slab.write_all_at(&before, 0).unwrap();
        kept.push(there);
    }
}

fn expect_away(node: &Node, disk: usize, why: &str) {
    let disks = node.disks();
    let (state, away) = &disks[disk];
    assert!(state == "offline" && away.as_deref().is_some_and(|text| text.contains(why)), "{disks:?}");
    let status = node.status();
    assert!(status["warnings"].to_string().contains("is away"), "{status}");
    let (_, metrics) = node.ask(Method::GET, "/metrics", None);
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("forebay_disk_away{") && line.ends_with(" 1.0")), "{metrics}");
}

#[test]
fn p7_with_one_disk_missing_or_damaged_the_node_starts_and_what_it_holds_elsewhere_is_there() {
    let mut node = Node::new();
    node.start(&["a", "b"], "");
    let all = node.put(0..BLOCKS);
    assert_eq!(all.len() as u64, BLOCKS);
    node.kill();
    node.start(&["a", "b"], "");
    assert_eq!(node.get(&all), all, "after kill -9 everything acknowledged is there");
    assert_eq!(node.disks(), [("ok".to_owned(), None), ("ok".to_owned(), None)]);
    node.kill();
    // A slab is gone.
    let (slab, aside) = (node.path("b/shard-000.slab"), node.path("aside"));
    fs::rename(&slab, &aside).unwrap();
    node.start(&["a", "b"], "");
    expect_away(&node, 1, "does not exist");
    let (other_shard, mut more) = (node.get(&all), node.put(BLOCKS..2 * BLOCKS));
    assert!(other_shard.len() as u64 > BLOCKS / 2 && (other_shard.len() as u64) < BLOCKS, "{other_shard:?}");
    assert!(more.len() as u64 > BLOCKS / 4 && (more.len() as u64) < BLOCKS, "{more:?}");
    node.kill();
    fs::rename(&aside, &slab).unwrap();
    // All of them are unreadable.
    let mut superblocks = Vec::new();
    swap_superblocks(&node.path("b"), &mut superblocks);
    node.start(&["a", "b"], "");
    expect_away(&node, 1, "shard-00");
    let on_a = node.get(&all);
    assert!(on_a.len() as u64 > BLOCKS / 5 && (on_a.len() as u64) < BLOCKS * 4 / 5, "{on_a:?}");
    node.kill();
    swap_superblocks(&node.path("b"), &mut superblocks);
    // The mount point is there, and nothing is mounted: it is not made up for.
    fs::rename(node.path("b"), &aside).unwrap();
    fs::create_dir(node.path("b")).unwrap();
    node.start(&["a", "b"], "");
    expect_away(&node, 1, "it is empty");
    assert_eq!(node.get(&all), on_a);
    assert_eq!(fs::read_dir(node.path("b")).unwrap().count(), 0, "nothing was made there");
    node.kill();
    fs::remove_dir(node.path("b")).unwrap();
    fs::rename(&aside, node.path("b")).unwrap();
    // It is back, with all that it had and all that came meanwhile.
    node.start(&["a", "b"], "");
    more.splice(0..0, all);
    assert_eq!(node.get(&more), more);
}

#[test]
fn a_disk_is_added_and_taken_out_or_given_up_only_if_the_configuration_says_so() {
    let mut node = Node::new();
    node.start(&["a"], "");
    let all = node.put(0..BLOCKS);
    node.kill();
    // A second disk: what is dirty on the first is found there.
    node.start(&["a", "b"], "");
    assert_eq!(node.get(&all), all);
    let mut acknowledged = node.put(BLOCKS..2 * BLOCKS);
    assert_eq!(acknowledged.len() as u64, BLOCKS);
    acknowledged.splice(0..0, all);
    let (a, b) = (node.id(0), node.id(1));
    assert_ne!(a, b);
    node.kill();
    node.start(&["b", "a"], "");
    assert_eq!(node.get(&acknowledged), acknowledged, "the order of disks means nothing");
    node.kill();
    let refused = node.refusal(&["a"], "");
    assert!(refused.contains(&b) && refused.contains("have not reached the object store"), "{refused}");
    // Given up, with what only it had.
    let given_up = format!("abandon_disks = [\"{b}\"]");
    node.start(&["a"], &given_up);
    assert_eq!(node.disks().len(), 1);
    let first: Vec<u64> = (0..BLOCKS).collect();
    assert_eq!(node.get(&first), first, "what the first disk had is there");
    node.kill();
    // What it held may be older than what happened since: it is not taken back as it is.
    let refused = node.refusal(&["a", "b"], "");
    assert!(refused.contains("was taken out of this node"), "{refused}");
    fs::remove_dir_all(node.path("b")).unwrap();
    node.start(&["a", "b"], "");
    assert_eq!(node.get(&first), first);
    assert_ne!(node.id(1), b, "an empty directory is a new disk");
}

#[test]
fn a_capacity_that_is_not_in_force_is_told_with_both_figures() {
    let mut node = Node::new();
    node.start(&["a"], "");
    assert!(!node.status()["warnings"].to_string().contains("capacity") && !node.log().contains("capacity"));
    let all = node.put(0..BLOCKS);
    node.kill();
    node.capacity = "96MiB";
    node.start(&["a"], "");
    let warnings = node.status()["warnings"].to_string();
    // Of 64 and 96 MiB journals and checkpoints take their part.
    let figures = ["with room for 54 MiB", "now makes 86 MiB", "set capacity back"];
    assert!(figures.iter().all(|figure| warnings.contains(figure) && node.log().contains(figure)), "{warnings}");
    assert_eq!(node.get(&all), all);
    node.kill();
    node.capacity = "64MiB";
    node.start(&["a"], "");
    assert!(!node.status()["warnings"].to_string().contains("capacity"));
}
