//! End to end: the real binary, TLS, io_uring slabs, a real S3 server. What a client was told is what it finds again.
//!
//! Run by `cargo test --test e2e` as part of `ci/test`; under `ci/seaweedfs run` the same tests run against SeaweedFS.
//! Contents are random but seeded by a block's number, so nothing is kept to compare with. No test waits for luck.

#![allow(clippy::unwrap_used)]

mod running;

use std::cell::Cell;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use forebay::dev::s3_server::{S3Server, S3ServerOptions};
use forebay::origin::{NameStyle, object_name};
use forebay::placement::shard_of;
use futures::StreamExt;
use futures::stream;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use reqwest::{Method, Response};

use running::{
    Directory, Running, VolumeSummary, alive, block_on, dev, dirty_blocks, existing_bucket, read_summary, wait_until,
};

const SEED: u64 = 0x0f02_eba7;
const BLOCKS: u64 = 1_000;
const BLOCK_BYTES_MAX: usize = 4 << 20;
/// Requests at once.
const CLIENTS: usize = 8;

/// One block of the tests: everything follows from its number.
#[derive(Clone)]
struct Block {
    number: u64,
    proxy: usize,
    volume: VolumeSummary,
    key: String,
}

impl Block {
    fn new(running: &Running, number: u64, mode: &str) -> Block {
        // Keys of all kinds: plain, with spaces and signs, and "..", which is two bytes like any other.
        let key = match number % 4 {
            0 => format!("plain/{number}"),
            1 => format!("with space+plus%percent/{number}"),
            2 => format!("grüße/{number}"),
            _ => format!("a/../b/{number}"),
        };
        let volume = running.volume(mode).clone();
        let proxy = match mode {
            // Whoever is asked, it is the first in rank who has it.
            "write-back" => running.first_in_rank(&volume.name, &key),
            _ => usize::try_from(number).unwrap() % running.summary.proxies.len(),
        };
        Block { number, proxy, volume, key }
    }

    /// The first `count` blocks from `number` on of proxy 0.
    fn of_proxy_0(running: &Running, number: u64, count: usize) -> Vec<Block> {
        (number..)
            .map(|number| Block::new(running, number, "write-back"))
            .filter(|block| block.proxy == 0)
            .take(count)
            .collect()
    }

    /// Which shard owns it, as any client computes it.
    fn shard(&self, shards: usize) -> u16 {
        shard_of(&self.volume.name, &self.key, u16::try_from(shards).unwrap())
    }

    /// 1 B to 4 MiB, distributed evenly on a logarithmic scale; the extremes are among them.
    fn content(&self) -> Vec<u8> {
        let mut rng = SmallRng::seed_from_u64(SEED ^ self.number);
        let len = match self.number {
            0 => 1,
            1 => BLOCK_BYTES_MAX,
            _ => (BLOCK_BYTES_MAX as f64).powf(rng.random::<f64>()) as usize,
        };
        let mut content = vec![0; len.clamp(1, BLOCK_BYTES_MAX)];
        rng.fill_bytes(&mut content);
        content
    }

    /// Slashes are encoded only where a URL library would take the key for a path with dot segments.
    fn path(&self) -> String {
        let encoded = match self.key.contains("..") {
            true => encode(&self.key),
            false => self.key.split('/').map(encode).collect::<Vec<_>>().join("/"),
        };
        format!("/v1/volumes/{}/blocks/{encoded}", self.volume.name)
    }

    /// The object's name in the bucket.
    fn object_name(&self) -> String {
        object_name(NameStyle::Plain, &self.volume.prefix, &self.key).unwrap()
    }

    /// Any of its proxy's ports.
    fn some_url(&self, running: &Running) -> String {
        let urls = running.urls(self.proxy);
        let pick = SmallRng::seed_from_u64(SEED + self.number).random_range(0..urls.len());
        urls[pick].clone() + &self.path()
    }

    async fn put(&self, running: &Running) {
        let answer = send(running, Method::PUT, &self.some_url(running), Some(self.content())).await;
        let status = answer.status().as_u16();
        let durability = header(&answer, "forebay-durability");
        assert!(header(&answer, "etag").starts_with('"'), "{answer:?}");
        assert_eq!(status, 201, "{}: {}", self.key, answer.text().await.unwrap());
        let promised = if self.volume.mode == "write-back" { "disk" } else { "origin" };
        assert_eq!(durability, promised);
    }

    /// The block from `url`, which is compared; returns the answer's Cache-Status and how many cores it crossed.
    async fn get(&self, running: &Running, url: &str) -> (String, u64) {
        let answer = send(running, Method::GET, &(url.to_owned() + &self.path()), None).await;
        let status = answer.status().as_u16();
        let cache_status = header(&answer, "cache-status");
        let hops = header(&answer, "forebay-hops").parse().unwrap();
        let body = answer.bytes().await.unwrap();
        assert_eq!(status, 200, "{} at {url}: {}", self.key, String::from_utf8_lossy(&body));
        assert!(body == self.content(), "other bytes for {} at {url}", self.key);
        (cache_status, hops)
    }

    async fn check_stored(&self, running: &Running) {
        let stored = running.stored(&self.object_name()).await;
        assert!(stored.as_deref() == Some(&self.content()[..]), "the bucket holds other bytes for {}", self.key);
    }
}

/// Percent-encodes all but letters and digits.
fn encode(segment: &str) -> String {
    segment
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

async fn send(running: &Running, method: Method, url: &str, body: Option<Vec<u8>>) -> Response {
    let request = running.client.request(method, url).bearer_auth(&running.summary.token);
    let request = match body {
        Some(body) => request.body(body),
        None => request,
    };
    request.send().await.unwrap_or_else(|e| panic!("{url}: {e:?}"))
}

fn header(answer: &Response, name: &str) -> String {
    answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

/// Does `work` for every block, several at once.
async fn for_each<F: Future<Output = ()>>(blocks: &[Block], work: impl Fn(Block) -> F) {
    stream::iter(blocks.iter().cloned()).map(work).buffer_unordered(CLIENTS).for_each(|()| async {}).await;
}

#[test]
fn blocks_come_back_byte_exact_from_every_port_and_reach_the_bucket() {
    let directory = Directory::new();
    let running = Running::start(&directory);
    let mode = |number: u64| if (number / 2).is_multiple_of(2) { "write-back" } else { "write-through" };
    let blocks: Vec<Block> = (0..BLOCKS).map(|number| Block::new(&running, number, mode(number))).collect();
    block_on(async {
        for_each(&blocks, |block| {
            let running = &running;
            async move { block.put(running).await }
        })
        .await;
        let crossed = Cell::new(0);
        for_each(&blocks, |block| {
            let (running, crossed) = (&running, &crossed);
            async move {
                let ports = running.urls(block.proxy);
                let shards = ports.len() - 1;
                let owner = 1 + usize::from(block.shard(shards));
                for (index, url) in ports.iter().enumerate() {
                    let (cache_status, hops) = block.get(running, url).await;
                    assert!(index == 0 || cache_status.contains("hit"), "{}: {cache_status}", block.key);
                    assert!(index != owner || hops == 0, "{} at its owner's port: {hops} hops", block.key);
                    assert!(hops <= 1, "{}: {hops} hops", block.key);
                    crossed.set(crossed.get() + hops);
                }
            }
        })
        .await;
        // Each block was asked for at the ports of other shards too; with one core only, those are no other core's.
        let cores = forebay::proxy::executor::usable_cpus().len();
        assert!(cores == 1 || crossed.get() > 0, "no request crossed to another core");
        running.wait_flushed().await;
        for_each(&blocks, |block| {
            let running = &running;
            async move { block.check_stored(running).await }
        })
        .await;
    });
    assert!(running.stop().success());
}

#[test]
fn kill_9_between_acknowledgement_and_flush_loses_nothing() {
    let directory = Directory::new();
    let mut running = Running::start(&directory);
    block_on(async {
        for round in 0..3u64 {
            // Killed right after the last acknowledgement; that some are dirty then is up to chance, the outage makes sure.
            let blocks = Block::of_proxy_0(&running, 2 + round * 1_000, 60);
            for_each(&blocks, |block| {
                let running = &running;
                async move { block.put(running).await }
            })
            .await;
            running.kill(0);
            running.restart(0);
            for_each(&blocks, |block| {
                let running = &running;
                async move {
                    for url in running.urls(0) {
                        block.get(running, &url).await;
                    }
                }
            })
            .await;
            running.wait_flushed().await;
            for_each(&blocks, |block| {
                let running = &running;
                async move { block.check_stored(running).await }
            })
            .await;
        }
    });
    assert!(running.stop().success());
}

/// A bucket that goes away and comes back, under the test's control.
struct Outage {
    options: S3ServerOptions,
    server: Option<S3Server>,
}

impl Outage {
    fn new(directory: &Path) -> Outage {
        let options = S3ServerOptions {
            root: directory.join("outside"),
            addr: "127.0.0.1:0".parse().unwrap(),
            access_key: "outage".to_owned(),
            secret_key: "outage-secret".to_owned(),
            bucket: "outage".to_owned(),
            region: "us-east-1".to_owned(),
            access_log: None,
        };
        let server = S3Server::start_with(&options).unwrap();
        let options = S3ServerOptions { addr: server.addr(), ..options };
        Outage { options, server: Some(server) }
    }

    /// `forebay dev` in front of it.
    fn dev(&self, directory: &Path) -> Command {
        let S3ServerOptions { access_key, secret_key, bucket, addr, .. } = &self.options;
        let mut command = dev(directory);
        command.args(["--endpoint", &format!("http://{addr}"), "--bucket", bucket]);
        command.env("AWS_ACCESS_KEY_ID", access_key).env("AWS_SECRET_ACCESS_KEY", secret_key);
        command.env_remove("AWS_SESSION_TOKEN").env_remove("AWS_REGION");
        command
    }

    fn begin(&mut self) {
        self.server = None;
    }

    fn end(&mut self) {
        self.server = Some(S3Server::start_with(&self.options).unwrap());
    }
}

#[test]
fn what_was_acknowledged_while_the_store_was_away_survives_kill_9() {
    let directory = Directory::new();
    let mut outage = Outage::new(&directory.path);
    let mut running = Running::start_command(&directory, outage.dev(&directory.path));
    running.use_keys(&outage.options.access_key, &outage.options.secret_key);
    let blocks = Block::of_proxy_0(&running, 2, 40);
    let (deleted, kept) = blocks.split_at(10);
    block_on(async {
        // These reach the bucket, so that deleting them means something there.
        for_each(deleted, |block| {
            let running = &running;
            async move { block.put(running).await }
        })
        .await;
        running.wait_flushed().await;
        outage.begin();
        for_each(kept, |block| {
            let running = &running;
            async move { block.put(running).await }
        })
        .await;
        for_each(deleted, |block| {
            let running = &running;
            async move {
                let answer = send(running, Method::DELETE, &block.some_url(running), None).await;
                assert_eq!(answer.status().as_u16(), 204, "{}", block.key);
            }
        })
        .await;
        assert_eq!(dirty_blocks(&running.status(0).await), 40, "nothing can have been flushed");
    });
    running.kill(0);
    running.restart(0);
    let check = |running: &Running| {
        block_on(async {
            for_each(kept, |block| async move {
                for url in running.urls(0) {
                    let (cache_status, _) = block.get(running, &url).await;
                    assert!(cache_status.contains("hit"), "{}: {cache_status}", block.key);
                }
            })
            .await;
            for_each(deleted, |block| async move {
                let answer = send(running, Method::GET, &block.some_url(running), None).await;
                assert_eq!(answer.status().as_u16(), 404, "{} was deleted", block.key);
            })
            .await;
        });
    };
    // The other member answers from what it holds, and does not wait for the store.
    check(&running);
    outage.end();
    block_on(async {
        running.wait_flushed().await;
        for_each(kept, |block| {
            let running = &running;
            async move { block.check_stored(running).await }
        })
        .await;
        for_each(deleted, |block| {
            let running = &running;
            async move { assert_eq!(running.stored(&block.object_name()).await, None, "{}", block.key) }
        })
        .await;
    });
    check(&running);
    assert!(running.stop().success());
}

#[test]
fn stopping_flushes_first_and_the_next_run_goes_on() {
    let directory = Directory::new();
    let existing = existing_bucket();
    let start = || {
        let mut command = dev(&directory.path);
        command.args(&existing);
        Running::start_command(&directory, command)
    };
    let first = start();
    let blocks: Vec<Block> = (2..32).map(|number| Block::new(&first, number, "write-back")).collect();
    block_on(for_each(&blocks, |block| {
        let running = &first;
        async move { block.put(running).await }
    }));
    let (token, ca) = (first.summary.token.clone(), std::fs::read(&first.summary.ca).unwrap());
    let pids: Vec<u32> = first.summary.proxies.iter().map(|proxy| proxy.pid).collect();
    assert!(first.stop().success());
    assert!(!pids.into_iter().any(alive), "no proxy outlives it");
    assert!(read_summary(&directory.path.join("dev.json")).is_none(), "it says what runs");

    let mut second = start();
    assert_eq!(std::fs::read(&second.summary.ca).unwrap(), ca, "who trusted it goes on doing so");
    second.summary.token = token;
    block_on(async {
        for proxy in 0..second.summary.proxies.len() {
            assert_eq!(dirty_blocks(&second.status(proxy).await), 0, "all were flushed before the end");
        }
        for_each(&blocks, |block| {
            let running = &second;
            async move {
                block.check_stored(running).await;
                let (cache_status, _) = block.get(running, &running.urls(block.proxy)[0]).await;
                assert!(cache_status.contains("hit"), "a restart is warm: {cache_status}");
            }
        })
        .await;
    });
    assert!(second.stop().success());
}

#[test]
fn it_ends_by_itself_with_stdin_closed_and_its_proxies_end_with_it_in_any_case() {
    let directory = Directory::new();
    let mut command = dev(&directory.path);
    let output = command.args(["--port-base", "0", "--seconds", "1"]).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("curl --cacert") && said.contains("stopped"), "{said}");

    let running = Running::start_command(&directory, dev(&directory.path));
    let pids: Vec<u32> = running.summary.proxies.iter().map(|proxy| proxy.pid).collect();
    running.kill_supervisor();
    wait_until("the proxies to follow their supervisor", || !pids.iter().any(|&pid| alive(pid)));
}

#[test]
fn what_keeps_it_from_starting_is_said_in_one_line() {
    let directory = Directory::new();
    let refused = |command: &mut Command, fix: &str| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.trim().lines().count() == 1 && said.contains(fix), "{fix}: {said}");
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _listener = TcpListener::bind(taken).unwrap();
    let port = taken.port().to_string();
    if taken.port() < 65_000 {
        refused(dev(&directory.path).args(["--port-base", &port]), "--port-base 0");
    }
    refused(dev(&directory.path).args(["--restart", "0"]), "--dir");

    let outage = Outage::new(&directory.path);
    let with = |name: &str, value: &str| {
        let mut command = outage.dev(&directory.path);
        command.env(name, value).args(["--port-base", "0", "--seconds", "1"]);
        command
    };
    refused(&mut with("AWS_SECRET_ACCESS_KEY", "wrong"), "AWS_ACCESS_KEY_ID");
    refused(&mut with("AWS_ACCESS_KEY_ID", "unknown"), "AWS_ACCESS_KEY_ID");
    refused(&mut with("AWS_REGION", "eu-west-1"), "wrong region");
    let mut no_bucket = dev(&directory.path);
    no_bucket.env("AWS_ACCESS_KEY_ID", "outage").env("AWS_SECRET_ACCESS_KEY", "outage-secret");
    let endpoint = format!("http://{}", outage.options.addr);
    refused(no_bucket.args(["--endpoint", &endpoint, "--bucket", "nowhere", "--port-base", "0"]), "--bucket");
    let mut nobody = dev(&directory.path);
    nobody.env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x");
    refused(nobody.args(["--endpoint", "http://127.0.0.1:1", "--bucket", "nowhere", "--port-base", "0"]), "--endpoint");
}
