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
use crate::config::units::Size;
use crate::proxy::executor::usable_cpus;
use crate::proxy::preflight;

/// Disk space of each proxy whose disk is not formatted yet.
const DISK_BYTES: u64 = 1 << 30;

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

/// The group that is near: behind a relay that adds nothing.
pub const NEAR: &str = "near";
/// The group that is far: behind a relay that adds latency.
pub const FAR: &str = "far";

/// What one proxy is given.
#[derive(Debug, Clone)]
pub struct ProxyPlan {
    /// 0-based.
    pub index: usize,
    /// Its group.
    pub group: &'static str,
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
    /// Its disk space.
    pub disk_bytes: u64,
}

/// What everything is given.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the built-in S3 server listens.
    pub s3: SocketAddr,
    /// Where the admin listens.
    pub admin: SocketAddr,
    /// The proxies, those of the near group first.
    pub proxies: Vec<ProxyPlan>,
}

impl ProxyPlan {
    /// Its name: as a node and as a member of its group.
    #[must_use]
    pub fn name(&self) -> String {
        format!("proxy-{}", self.index)
    }

    /// Where the relay of its group listens for `address`, one of its own: the same port on a loopback address of the group's, so that the
    /// ports that the proxy tells its clients lead through the relay too.
    #[must_use]
    pub fn relayed(&self, address: SocketAddr) -> SocketAddr {
        let host = if self.group == NEAR { 2 } else { 3 };
        SocketAddr::from(([127, 0, 0, host], address.port()))
    }

    /// Where clients of its group find it.
    #[must_use]
    pub fn member_address(&self) -> SocketAddr {
        self.relayed(self.listen)
    }

    /// All its addresses: the shared one, then each shard's.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        std::iter::once(self.listen).chain(self.shard_addresses())
    }

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
    /// Plans `near` and `far` proxies from `port_base` on (0: free ports), and checks that ports and disk space are there.
    ///
    /// # Errors
    /// If a port is in use or the file system is too small, with the fix.
    pub fn draw(layout: &Layout, near: usize, far: usize, port_base: u16) -> anyhow::Result<Plan> {
        let cpus = usable_cpus();
        let proxies = near + far;
        let disks: Vec<DiskPlan> =
            (0..proxies).map(|index| disk_plan(layout, index, cpus.len())).collect::<Result<_, _>>()?;
        let offsets = port_offsets(disks.iter().map(|disk| disk.shards));
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
        let proxies = disks.iter().enumerate().map(|(index, disk)| ProxyPlan {
            index,
            group: if index < near { NEAR } else { FAR },
            listen: loopback(at(offsets[index])),
            shard_port_base: at(offsets[index] + 1),
            shards: disk.shards,
            cores: deal(&cpus, executors, index),
            memory_bytes: memory_bytes(executors),
            disk_bytes: disk.bytes,
        });
        let plan = Plan { s3: loopback(port_base), admin: loopback(at(1)), proxies: proxies.collect() };
        plan.check_space(layout)?;
        Ok(plan)
    }

    /// Checks that nobody else listens on the planned ports.
    ///
    /// # Errors
    /// Names the first that is taken.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        let proxies = self
            .proxies
            .iter()
            .flat_map(|proxy| proxy.addresses().flat_map(|address| [address, proxy.relayed(address)]));
        for address in [self.s3, self.admin].into_iter().chain(proxies) {
            preflight::port(address)
                .context("a port is taken: `--port-base 0` picks free ones, `--port-base N` others")?;
        }
        Ok(())
    }

    /// The proxies of a group.
    pub fn members(&self, group: &str) -> impl Iterator<Item = &ProxyPlan> + use<'_> {
        let is_near = group == NEAR;
        self.proxies.iter().filter(move |proxy| (proxy.group == NEAR) == is_near)
    }

    fn check_space(&self, layout: &Layout) -> anyhow::Result<()> {
        preflight::direct_io(layout.root())?;
        let mut needed_bytes = SPARE_BYTES;
        for proxy in &self.proxies {
            if !formatted(&layout.proxy(proxy.index)?.disk) {
                needed_bytes += proxy.disk_bytes;
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

/// What of a proxy was fixed when its disk was formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DiskPlan {
    shards: u16,
    bytes: u64,
}

/// Proxy `index`: what its disk was formatted with, else a shard per core and [`DISK_BYTES`].
fn disk_plan(layout: &Layout, index: usize, cpus: usize) -> anyhow::Result<DiskPlan> {
    let files = layout.proxy(index)?;
    let shards = u16::try_from(cpus.min(CORES_MAX)).expect("few").max(SHARDS_MIN);
    let mut plan = DiskPlan { shards, bytes: DISK_BYTES };
    if formatted(&files.disk)
        && let Ok(text) = fs::read_to_string(&files.config)
    {
        let written: toml::Table = text.parse().with_context(|| format!("{} is damaged", files.config.display()))?;
        let shards = written.get("node").and_then(|node| node.get("shards")).and_then(toml::Value::as_integer);
        if let Some(shards) = shards.and_then(|shards| u16::try_from(shards).ok()) {
            plan.shards = shards;
        }
        let capacity = written.get("disk").and_then(|disks| disks.get(0)).and_then(|disk| disk.get("capacity"));
        if let Some(Ok(Size::Bytes(bytes))) = capacity.and_then(toml::Value::as_str).map(str::parse) {
            plan.bytes = bytes;
        }
    }
    Ok(plan)
}

/// Whether anything lies on a proxy's disk already.
fn formatted(disk: &Path) -> bool {
    fs::read_dir(disk).is_ok_and(|mut entries| entries.next().is_some())
}

/// Where each proxy's ports begin, counted from the port base, and where the last one's end: S3 and the admin have the first ten,
/// each proxy as many tens as it needs.
fn port_offsets(shards: impl Iterator<Item = u16>) -> Vec<usize> {
    let mut offsets = vec![10];
    for shards in shards {
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
        let plan = Plan::draw(&layout, 2, 1, 0).unwrap();
        plan.check_ports().unwrap();
        let mut all: Vec<_> = plan.proxies.iter().flat_map(ProxyPlan::addresses).collect();
        all.extend(plan.proxies.iter().flat_map(|proxy| proxy.addresses().map(|address| proxy.relayed(address))));
        all.extend([plan.s3, plan.admin]);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(count > 3 * 3 * 2, "each proxy has a shared port and two shards at least, all of them relayed");
    }

    #[test]
    fn a_taken_port_and_a_base_too_high_are_refused_with_the_fix() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let plan = Plan::draw(&layout, 1, 0, 0).unwrap();
        let _taken = std::net::TcpListener::bind(plan.proxies[0].listen).unwrap();
        let refused = format!("{:#}", plan.check_ports().unwrap_err());
        assert!(
            refused.contains("--port-base 0") && refused.contains(&plan.proxies[0].listen.to_string()),
            "{refused}"
        );
        assert!(Plan::draw(&layout, 1, 1, 65_530).unwrap_err().to_string().contains("lower"));
    }

    #[test]
    fn a_formatted_disk_keeps_its_number_of_shards_and_its_size() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let files = layout.proxy(0).unwrap();
        fs::write(&files.config, "[node]\nshards = 7\n\n[[disk]]\ncapacity = \"2048MiB\"\n").unwrap();
        assert_eq!(disk_plan(&layout, 0, 2).unwrap(), DiskPlan { shards: 2, bytes: DISK_BYTES }, "not formatted yet");
        fs::write(files.disk.join("shard-000.slab"), "x").unwrap();
        assert_eq!(disk_plan(&layout, 0, 2).unwrap(), DiskPlan { shards: 7, bytes: 2 << 30 });
    }

    #[test]
    fn cores_are_dealt_round() {
        assert_eq!(deal(&[0, 1], 2, 0), [0, 1]);
        assert_eq!(deal(&[0, 1], 2, 1), [0, 1], "two cores are shared by both");
        assert_eq!(deal(&[0, 1, 2, 3, 4, 5, 6, 7], 4, 1), [4, 5, 6, 7]);
        assert_eq!(deal(&[5], 1, 3), [5]);
    }
}
