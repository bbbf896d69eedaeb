//! Cores, CPU time and device reads: pinning this thread, what it has used, and what a server has used with all its
//! children.
//!
//! Called by the load loop (its own share) and by `get` (the server's costs, and whether a disk case reads the disk).

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::CpuSet;
use rustix::time::ClockId;

/// Pins the calling thread to one core.
///
/// # Errors
/// There is no such core, or the cpuset does not allow it.
pub fn pin_thread(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores).with_context(|| format!("--core {core}: cannot run there"))
}

/// CPU time of the calling thread so far.
pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What a process and all its living descendants have used so far, all threads included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time. The kernel scales both to the exact run time, so their sum is right to one tick (10 ms) per
    /// process.
    pub time: Duration,
    /// Bytes that devices were made to read; the page cache's are not among them.
    pub device_read_bytes: u64,
}

impl Usage {
    /// Asks the kernel.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut ticks: HashMap<u32, u64> = HashMap::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process may end between the listing and the reading: then it counts for nothing.
            let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some((parent, used)) = parse_stat(&text) else { continue };
            children.entry(parent).or_default().push(process);
            ticks.insert(process, used);
        }
        ticks.get(&pid).with_context(|| format!("--server-pid {pid}: no such process"))?;
        let (mut total_ticks, mut device_read_bytes) = (0, 0);
        let mut todo = vec![pid];
        while let Some(process) = todo.pop() {
            total_ticks += ticks.get(&process).copied().unwrap_or(0);
            device_read_bytes += read_bytes(process).unwrap_or(0);
            todo.extend(children.remove(&process).unwrap_or_default());
        }
        let time = Duration::from_micros(total_ticks * 1_000_000 / rustix::param::clock_ticks_per_second());
        Ok(Self { time, device_read_bytes })
    }

    /// What was used since an earlier moment.
    pub fn since(self, before: Self) -> Self {
        Self {
            time: self.time.saturating_sub(before.time),
            device_read_bytes: self.device_read_bytes.saturating_sub(before.device_read_bytes),
        }
    }
}

/// The bytes one process has had read from devices; none where the kernel keeps no account or it is not ours to see.
fn read_bytes(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/io")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("read_bytes: "))?.trim().parse().ok()
}

/// Parent and `utime + stime` of a line of `/proc/PID/stat`; the name in brackets may hold anything.
fn parse_stat(text: &str) -> Option<(u32, u64)> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let user: u64 = fields.nth(9)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((parent, user + system))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_odd_names_are_read() {
        let line = "42 (a) b) R 7 1 1 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(parse_stat(line), Some((7, 200)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn a_busy_process_uses_time_and_its_parent_is_charged() {
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let limit = std::time::Instant::now() + Duration::from_secs(20);
        while Usage::of(child.id()).unwrap().time < Duration::from_millis(50) {
            assert!(std::time::Instant::now() < limit, "a busy loop got no CPU in 20 s");
            std::thread::yield_now();
        }
        let all = Usage::of(std::process::id()).unwrap().time;
        let its = Usage::of(child.id()).unwrap().time;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all >= Duration::from_millis(50) && its >= Duration::from_millis(50));
        assert!(Usage::of(child.id()).is_err());
    }
}
