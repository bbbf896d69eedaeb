//! Cores and CPU time: pinning this thread, what it has used, and what a server has used with all its children.
//!
//! Called by the load loop (its own share) and by `get` (the server's cost per request and per GiB).

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

/// User and system time of a process and all its living descendants, all threads included.
///
/// The kernel scales both to the exact run time, so their sum is right to one tick (10 ms) per process.
///
/// # Errors
/// There is no such process.
pub fn process_time(pid: u32) -> Result<Duration> {
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
    let mut total = 0;
    let mut todo = vec![pid];
    while let Some(process) = todo.pop() {
        total += ticks.get(&process).copied().unwrap_or(0);
        todo.extend(children.remove(&process).unwrap_or_default());
    }
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_micros(total * 1_000_000 / ticks_per_second))
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
        while process_time(child.id()).unwrap() < Duration::from_millis(50) {
            assert!(std::time::Instant::now() < limit, "a busy loop got no CPU in 20 s");
            std::thread::yield_now();
        }
        let all = process_time(std::process::id()).unwrap();
        let its = process_time(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all >= Duration::from_millis(50) && its >= Duration::from_millis(50));
        assert!(process_time(child.id()).is_err());
    }
}
