//! `forebay format`, `inspect` and `verify` as a person runs them, on a node that the real binary served and lost by kill -9.
//!
//! Run by `cargo test --test offline` as part of `ci/test`. The object store is not there, so every put stays dirty. What
//! each kind of damage is called is tested below the command line, in `shard/tests/store_inspect.rs`.

#![allow(clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Certificate, Client, Method};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(60);
const SHARDS: u16 = 2;
/// Nobody listens there.
const NO_STORE: &str = "http://127.0.0.1:9";

/// A node's files in a directory of their own.
struct Node {
    directory: tempfile::TempDir,
    child: Option<Child>,
}

impl Node {
    fn new() -> Node {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        fs::write(directory.path().join("cert.pem"), made.cert.pem()).unwrap();
        fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let node = Node { directory, child: None };
        fs::write(node.config(), node.configuration()).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("forebay.toml")
    }

    fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    fn slab(&self, shard: u64) -> PathBuf {
        self.disk().join(format!("shard-{shard:03}.slab"))
    }

    fn configuration(&self) -> String {
        let core = forebay::proxy::executor::usable_cpus()[0];
        format!(
            "[node]\nlisten = \"127.0.0.1:0\"\nshard_port_base = 0\nshards = {SHARDS}\ncores = [{core}]\nmemory = \"320MiB\"\n\
             tls_certificate = {:?}\ntls_key = {:?}\ntls_name = \"localhost\"\nports_file = {:?}\n\
             [[disk]]\npath = {:?}\ncapacity = \"768MiB\"\nregion = \"32MiB\"\n\
             [[store]]\nname = \"s3\"\nendpoint = \"{NO_STORE}\"\nbucket = \"blocks\"\n\
             credentials = {{ access_key = \"a\", secret_key = \"s\" }}\n\
             [auth]\nanonymous = true\n\
             [[volume]]\nname = \"back\"\nstore = \"s3\"\nwrite = \"back\"\n",
            self.path("cert.pem"),
            self.path("key.pem"),
            self.path("ports.json"),
            self.disk(),
        )
    }

    /// Starts the proxy and waits until it serves.
    fn start(&mut self) -> (String, Client) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.args(["proxy", "--config"]).arg(self.config()).env("FOREBAY_PARENT", std::process::id().to_string());
        let log = fs::File::create(self.path("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let (pid, began) = (u64::from(child.id()), Instant::now());
        self.child = Some(child);
        let ports = loop {
            let ports = fs::read(self.path("ports.json")).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
            if let Some(ports) = ports.filter(|ports| ports["pid"].as_u64() == Some(pid)) {
                break ports;
            }
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(ended.is_none() && began.elapsed() < BOUND, "{log}");
            std::thread::sleep(Duration::from_millis(5));
        };
        let certificate = Certificate::from_pem(&fs::read(self.path("cert.pem")).unwrap()).unwrap();
        let client = Client::builder().tls_certs_only([certificate]).no_proxy().timeout(BOUND).build().unwrap();
        (format!("https://{}", ports["listen"].as_str().unwrap()), client)
    }

    /// kill -9.
    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Runs a command on the node's directory.
    fn look(&self, verb: &str, more: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        said(command.arg(verb).arg(self.disk()).args(more))
    }

    fn format(&self, more: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        said(command.args(["format", "--config"]).arg(self.config()).args(more))
    }

    /// The lines of `inspect --json`.
    fn json(&self, part: &str) -> Vec<Value> {
        let said = self.look("inspect", &[part, "--json"]);
        assert_eq!(said.code, 0, "{}", said.err);
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn verify_good(&self) {
        let said = self.look("verify", &[]);
        assert!(said.code == 0 && said.out.contains("verdict: good"), "{}{}", said.out, said.err);
    }

    /// What verify says while these bytes of a slab are flipped.
    fn verify_with_damage(&self, shard: u64, offsets: &[u64]) -> Said {
        offsets.iter().for_each(|at| flip(&self.slab(shard), *at));
        let said = self.look("verify", &[]);
        offsets.iter().for_each(|at| flip(&self.slab(shard), *at));
        self.verify_good();
        said
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

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

fn said(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

/// Thirty small blocks, one of several pieces, one with a name that a terminal must not see, a delete.
fn fill(url: &str, client: &Client) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let send = |method: Method, key: String, body: Vec<u8>| {
            let request = client.request(method, format!("{url}/v1/volumes/back/blocks/{key}")).body(body);
            async move {
                let answer = request.send().await.unwrap();
                assert!(answer.status().is_success(), "{key}: {}", answer.status());
            }
        };
        for n in 0..30u8 {
            send(Method::PUT, format!("small/{n}"), vec![n; 5_000]).await;
        }
        let large: Vec<u8> = (0..2_500_000u32).map(|n| (n % 241) as u8).collect();
        send(Method::PUT, "large".into(), large).await;
        send(Method::PUT, "odd%1B%5B2J%25".into(), vec![7; 100]).await;
        send(Method::DELETE, "small/3".into(), Vec::new()).await;
    });
}

#[test]
fn a_node_is_formatted_served_lost_looked_into_and_given_up() {
    let mut node = Node::new();
    format_makes_a_store_and_leaves_one_alone(&node);
    let (url, client) = node.start();
    fill(&url, &client);
    for said in [node.look("verify", &[]), node.look("inspect", &[]), node.format(&["--force", "--discard-dirty"])] {
        assert_eq!(said.code, 2, "{}{}", said.out, said.err);
        assert!(said.err.contains("a proxy is running there"), "{}", said.err);
    }
    node.kill();
    node.verify_good();
    every_part_is_shown(&node);
    damage_is_named_and_costs_exit_1(&node);
    dirty_blocks_are_given_up_only_if_asked_twice(&node);
    node.start();
    node.kill();
    node.verify_good();
    assert_eq!(total(&node.json("index"), "entries"), 0, "it is a new store");
}

fn format_makes_a_store_and_leaves_one_alone(node: &Node) {
    assert_eq!(node.look("verify", &[]).code, 2, "there is no directory yet");
    let made = node.format(&["--shards", "3"]);
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(made.out.contains("3 shards") && made.out.contains("set node.shards = 3"), "{}", made.out);
    node.verify_good();
    let again = node.format(&[]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("holds a store of 3 shards with 0 blocks"), "{}", again.err);
    let id = |said: &Said| said.out.split("node ").nth(1).unwrap()[..32].to_owned();
    let forced = node.format(&["--force"]);
    assert_eq!(forced.code, 0, "{}", forced.err);
    assert_ne!(id(&made), id(&forced), "it is another node");
    assert!(!node.slab(2).exists(), "the third shard's files are gone");
    assert_eq!(node.format(&["--discard-dirty"]).code, 2);
}

fn total(lines: &[Value], figure: &str) -> u64 {
    lines.iter().map(|line| line["index"][figure].as_u64().unwrap()).sum()
}

fn every_part_is_shown(node: &Node) {
    let summary = node.look("inspect", &[]);
    assert_eq!(summary.code, 0, "{}", summary.err);
    for words in
        ["2 of 2 copies good", "shard 0: ", "shard 1: ", "checkpoints", "journal", "regions", "dirty", "since the"]
    {
        assert!(summary.out.contains(words), "{words:?} is not in\n{}", summary.out);
    }
    for part in ["superblock", "journal", "checkpoint", "regions", "index"] {
        assert_eq!(node.json(part).len(), usize::from(SHARDS), "{part}");
        let said = node.look("inspect", &[part, "--shard", "1"]);
        assert!(said.code == 0 && said.out.contains("shard 1") && !said.out.contains("shard 0"), "{}", said.out);
    }
    let index = node.json("index");
    assert_eq!((total(&index, "dirty"), total(&index, "tombstones"), total(&index, "clean")), (31, 1, 0));
    assert_eq!(total(&index, "dirty_bytes"), 29 * 5_000 + 2_500_000 + 100);
    let records = node.json("records");
    assert_eq!(records.len(), 32);
    assert_eq!(records.iter().filter(|record| record["state"] == "tombstone").count(), 1);
    assert!(records.iter().any(|record| record["key"] == "large" && record["pieces"] == 3));
    let text = node.look("inspect", &["records"]).out;
    assert!(text.contains("back/odd%1B[2J%25") && !text.contains('\x1b'), "{text}");
    let mut by_config = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let by_config = said(by_config.arg("inspect").arg("--config").arg(node.config()).arg("records"));
    assert_eq!(by_config.out, text, "{}", by_config.err);
    assert_eq!(node.look("inspect", &["records", "--shard", "7"]).code, 2);
    assert_eq!(node.look("inspect", &["nothing"]).code, 2);
}

fn damage_is_named_and_costs_exit_1(node: &Node) {
    let records = node.json("records");
    let large = records.iter().find(|record| record["key"] == "large").unwrap();
    let (shard, offset) = (large["shard"].as_u64().unwrap(), large["offset"].as_u64().unwrap());
    let said = node.verify_with_damage(shard, &[offset + (1 << 20) + 17]);
    assert_eq!(said.code, 1);
    assert!(said.out.contains("1 × acknowledged data lost") && said.out.contains("verdict: BROKEN"), "{}", said.out);
    let place =
        format!("shard {shard}: records: shard-{shard:03}.slab at {} back/large: piece 2 of 3", offset + (1 << 20));
    assert!(said.err.contains(&place), "{place:?} is not in {}", said.err);
    let said = node.verify_with_damage(1, &[4096 + 13]);
    assert!(said.code == 1 && said.out.contains("DAMAGED (nothing is lost) in superblock"), "{}", said.out);
    let said = node.verify_with_damage(1, &[13, 4096 + 13]);
    assert!(said.code == 1 && said.err.contains("both copies are damaged"), "{}", said.err);
    a_cut_slab_and_a_missing_identity_are_named(node);
}

fn a_cut_slab_and_a_missing_identity_are_named(node: &Node) {
    let slab = OpenOptions::new().write(true).open(node.slab(0)).unwrap();
    let len_bytes = slab.metadata().unwrap().len();
    slab.set_len(len_bytes - 1000).unwrap();
    let cut = node.look("verify", &[]);
    assert!(cut.code == 1 && cut.err.contains("the file was cut"), "{}", cut.err);
    assert_eq!(node.look("inspect", &["index"]).code, 0, "what is there is shown");
    slab.set_len(len_bytes).unwrap();
    node.verify_good();
    let (name, aside) = (node.disk().join("node.json"), node.path("aside.json"));
    fs::rename(&name, &aside).unwrap();
    let said = node.look("verify", &[]);
    assert!(said.code == 1 && said.err.contains("node.json is missing"), "{}", said.err);
    assert_eq!(node.json("index").len(), usize::from(SHARDS), "the slabs speak for themselves");
    fs::rename(&aside, &name).unwrap();
    node.verify_good();
}

fn dirty_blocks_are_given_up_only_if_asked_twice(node: &Node) {
    for flags in [&[][..], &["--force"]] {
        let refused = node.format(flags);
        assert_eq!(refused.code, 1, "{}", refused.out);
        assert!(refused.err.contains("31 blocks (2.5 MiB) and 1 delete that have not reached"), "{}", refused.err);
    }
    node.verify_good();
    // What can't be counted is not given up by one word either.
    [13, 4096 + 13].iter().for_each(|at| flip(&node.slab(0), *at));
    let refused = node.format(&["--force"]);
    assert!(refused.code == 1 && refused.err.contains("an unknown number more (shard 0"), "{}", refused.err);
    let done = node.format(&["--force", "--discard-dirty"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("gave up"), "{}", done.err);
}
