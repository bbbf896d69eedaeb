//! Which proxy gets which ports, cores, memory and disk: decided once, before anything starts.
//!
//! Called by `dev.rs`. All ports are known beforehand (free ones are looked for here, consecutive ones at that), so a
//! proxy that is started again comes back at the same addresses. The number of shards is fixed when a disk is
//! formatted: a disk that is there keeps its number.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::layout::Layout;
use crate::proxy::executor::usable_cpus;
use crate::proxy::preflight;

/// Disk space of each proxy.
pub const DISK_BYTES: u64 = 2 << 30;

/// What the S3 server, keys and logs get beside the disks before we call a file system too small.
const SPARE_BYTES: u64 = 512 << 20;

/// Memory of a proxy: this much, and as much again for each executor.
const MEMORY_BYTES_STEP: u64 = 128 << 20;

/// More cores per proxy than this show nothing more on one's own machine.
const CORES_MAX: usize = 4;

/// At least two, so that there is another shard than one's own to ask for.
const SHARDS_MIN: u16 = 2;

/// Free ports are looked for below the range from which the kernel takes ports for outgoing connections.
const FREE_PORTS: std::ops::Range<u16> = 15_000..32_000;
const FREE_PORT_TRIES: usize = 200;

/// What one proxy is given.
#[derive(Debug, Clone)]
pub struct ProxyPlan {
    /// 0-based.
    pub index: usize,
    /// The shared port.
    pub listen: SocketAddr,
    /// Shard *n* is at this plus *n*.
    pub shard_port_base: u16,
    /// How many shards its disk has.
    pub shards: u16,
    /// The CPUs of its executors.
    pub cores: Vec<usize>,
    /// Its memory figure.
    pub memory_bytes: u64,
}

/// What everything is given.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the built-in S3 server listens.
    pub s3: SocketAddr,
    /// The proxies, in order.
    pub proxies: Vec<ProxyPlan>,
}

impl ProxyPlan {
    /// `https://` and the shared address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// The address of each shard.
    pub fn shard_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        (0..self.shards).map(|shard| SocketAddr::new(self.listen.ip(), self.shard_port_base + shard))
    }

    /// `https://` and the address of each shard.
    #[must_use]
    pub fn shard_urls(&self) -> Vec<String> {
        self.shard_addresses().map(|address| format!("https://{address}")).collect()
    }
}

impl Plan {
    /// Plans `proxies` proxies from `port_base` on (0: free ports), and checks that ports and disk space are there.
    ///
    /// # Errors
    /// If a port is in use or the file system is too small, with the fix.
    pub fn draw(layout: &Layout, proxies: usize, port_base: u16) -> anyhow::Result<Plan> {
        let cpus = usable_cpus();
        let shards: Vec<u16> = (0..proxies).map(|index| shards(layout, index, cpus.len())).collect::<Result<_, _>>()?;
        let offsets = port_offsets(&shards);
        let port_base = match port_base {
            0 => free_ports(*offsets.last().expect("the end comes last"))?,
            base => base,
        };
        ensure!(
            usize::from(port_base) + offsets[proxies] <= usize::from(u16::MAX),
            "--port-base {port_base} leaves no room for {proxies} proxies; choose a lower one"
        );
        let executors = executors(cpus.len(), proxies);
        let at = |offset: usize| port_base + u16::try_from(offset).expect("checked just now");
        let proxies = shards.iter().enumerate().map(|(index, &shards)| ProxyPlan {
            index,
            listen: loopback(at(offsets[index])),
            shard_port_base: at(offsets[index] + 1),
            shards,
            cores: deal(&cpus, executors, index),
            memory_bytes: memory_bytes(executors),
        });
        let plan = Plan { s3: loopback(port_base), proxies: proxies.collect() };
        plan.check_space(layout)?;
        Ok(plan)
    }

    /// Checks that nobody else listens on the planned ports.
    ///
    /// # Errors
    /// Names the first that is taken.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        let proxies =
            self.proxies.iter().flat_map(|proxy| std::iter::once(proxy.listen).chain(proxy.shard_addresses()));
        for address in std::iter::once(self.s3).chain(proxies) {
            preflight::port(address)
                .context("a port is taken: `--port-base 0` picks free ones, `--port-base N` others")?;
        }
        Ok(())
    }

    fn check_space(&self, layout: &Layout) -> anyhow::Result<()> {
        preflight::direct_io(layout.root())?;
        let mut needed_bytes = SPARE_BYTES;
        for proxy in &self.proxies {
            if !formatted(&layout.proxy(proxy.index)?.disk) {
                needed_bytes += DISK_BYTES;
            }
        }
        Ok(preflight::space(layout.root(), needed_bytes)?)
    }
}

/// The `count` cores of proxy `index`: others than its neighbour's where there are enough.
fn deal(cpus: &[usize], count: usize, index: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = (0..count).map(|n| cpus[(index * count + n) % cpus.len()]).collect();
    dealt.sort_unstable();
    dealt
}

/// How many shards proxy `index` has: what its disk was formatted with, else one per core.
fn shards(layout: &Layout, index: usize, cpus: usize) -> anyhow::Result<u16> {
    let files = layout.proxy(index)?;
    if formatted(&files.disk)
        && let Ok(text) = fs::read_to_string(&files.config)
    {
        let written: toml::Table = text.parse().with_context(|| format!("{} is damaged", files.config.display()))?;
        let shards = written.get("node").and_then(|node| node.get("shards")).and_then(toml::Value::as_integer);
        if let Some(shards) = shards.and_then(|shards| u16::try_from(shards).ok()) {
            return Ok(shards);
        }
    }
    Ok(u16::try_from(cpus.min(CORES_MAX)).expect("few").max(SHARDS_MIN))
}

/// Whether anything lies on a proxy's disk already.
fn formatted(disk: &Path) -> bool {
    fs::read_dir(disk).is_ok_and(|mut entries| entries.next().is_some())
}

/// Where each proxy's ports begin, counted from the port base, and where the last one's end: S3 has the first ten,
/// each proxy as many tens as it needs.
fn port_offsets(shards: &[u16]) -> Vec<usize> {
    let mut offsets = vec![10];
    for &shards in shards {
        let end = offsets.last().expect("begins with one") + (usize::from(shards) + 1).next_multiple_of(10);
        offsets.push(end);
    }
    offsets
}

/// The first of `count` consecutive ports on which nobody listens.
fn free_ports(count: usize) -> anyhow::Result<u16> {
    let mut rng = SmallRng::from_os_rng();
    for _ in 0..FREE_PORT_TRIES {
        let base = rng.random_range(FREE_PORTS) / 10 * 10;
        let all = (0..count).all(|n| preflight::port(loopback(base + u16::try_from(n).unwrap_or(u16::MAX))).is_ok());
        if all {
            return Ok(base);
        }
    }
    bail!("no {count} consecutive free ports were found; choose some with --port-base")
}

/// How many executors each proxy gets: at most half of what memory is available may go to the proxies, because `dev`
/// shares its machine with an editor and a compiler.
fn executors(cpus: usize, proxies: usize) -> usize {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_bytes = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).and_then(|rest| {
        let kibibytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    });
    let fits = |&count: &usize| memory_bytes(count) * proxies as u64 <= available_bytes.unwrap_or(0) / 2;
    (1..=cpus.min(CORES_MAX)).rev().find(fits).unwrap_or(1)
}

fn memory_bytes(executors: usize) -> u64 {
    MEMORY_BYTES_STEP * (executors as u64 + 1)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_two_addresses_of_a_plan_are_the_same() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let plan = Plan::draw(&layout, 3, 0).unwrap();
        plan.check_ports().unwrap();
        let mut all: Vec<_> = plan.proxies.iter().flat_map(ProxyPlan::shard_addresses).collect();
        all.extend(plan.proxies.iter().map(|proxy| proxy.listen));
        all.push(plan.s3);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(count > 3 * 3, "each proxy has a shared port and two shards at least");
    }

    #[test]
    fn a_taken_port_and_a_base_too_high_are_refused_with_the_fix() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let plan = Plan::draw(&layout, 1, 0).unwrap();
        let _taken = std::net::TcpListener::bind(plan.proxies[0].listen).unwrap();
        let refused = format!("{:#}", plan.check_ports().unwrap_err());
        assert!(
            refused.contains("--port-base 0") && refused.contains(&plan.proxies[0].listen.to_string()),
            "{refused}"
        );
        assert!(Plan::draw(&layout, 2, 65_530).unwrap_err().to_string().contains("lower"));
    }

    #[test]
    fn a_formatted_disk_keeps_its_number_of_shards() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let files = layout.proxy(0).unwrap();
        fs::write(&files.config, "[node]\nshards = 7\n").unwrap();
        assert_ne!(shards(&layout, 0, 2).unwrap(), 7, "nothing is formatted yet");
        fs::write(files.disk.join("shard-000.slab"), "x").unwrap();
        assert_eq!(shards(&layout, 0, 2).unwrap(), 7);
    }

    #[test]
    fn cores_are_dealt_round() {
        assert_eq!(deal(&[0, 1], 2, 0), [0, 1]);
        assert_eq!(deal(&[0, 1], 2, 1), [0, 1], "two cores are shared by both");
        assert_eq!(deal(&[0, 1, 2, 3, 4, 5, 6, 7], 4, 1), [4, 5, 6, 7]);
        assert_eq!(deal(&[5], 1, 3), [5]);
    }
}
