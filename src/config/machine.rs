//! What the configuration must know of the machine: cores, memory, the host's name, free space of a disk.
//!
//! Read once at start, from the kernel's own files. A value here, so that tests of the configuration name a machine
//! instead of running on one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A machine as far as the defaults depend on it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The CPUs this process may run on, ascending.
    pub cores: Vec<usize>,
    /// The cgroup's memory limit or the machine's memory, the smaller, in bytes.
    pub memory_bytes: u64,
    /// The host's name.
    pub host_name: String,
    /// Free bytes of the file system that holds (or will hold) a directory, Forebay's own slabs counted as free.
    pub disk_free: fn(&Path) -> io::Result<u64>,
}

impl Machine {
    /// This machine.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn this() -> io::Result<Machine> {
        let status = fs::read_to_string("/proc/self/status")?;
        let cores = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .map(|list| cpu_list(list.trim()))
            .unwrap_or_default();
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
        Ok(Machine {
            cores: if cores.is_empty() { vec![0] } else { cores },
            memory_bytes: memory_bytes()?,
            host_name,
            disk_free,
        })
    }
}

/// `0-3,7` → 0, 1, 2, 3, 7.
fn cpu_list(list: &str) -> Vec<usize> {
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?)
        })
        .flatten()
        .collect()
}

/// The machine's memory, or the tightest `memory.max` on the way up from this process's cgroup.
fn memory_bytes() -> io::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut tightest = kib * 1024;
    for directory in root.join(own).ancestors().take_while(|directory| directory.starts_with(&root)) {
        let limit = fs::read_to_string(directory.join("memory.max")).ok().and_then(|text| text.trim().parse().ok());
        tightest = tightest.min(limit.unwrap_or(u64::MAX));
    }
    Ok(tightest)
}

fn disk_free(path: &Path) -> io::Result<u64> {
    let existing = path.ancestors().find(|directory| directory.is_dir()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(existing)?;
    let own: u64 = match fs::read_dir(path) {
        Ok(entries) => entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("shard-"))
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum(),
        Err(_) => 0,
    };
    Ok(stat.f_bavail * stat.f_frsize + own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_ranges_and_single_numbers() {
        assert_eq!(cpu_list("0-3,7"), [0, 1, 2, 3, 7]);
        assert_eq!(cpu_list("5"), [5]);
        assert!(cpu_list("").is_empty());
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        let machine = Machine::this().expect("Linux has /proc");
        assert!(!machine.cores.is_empty() && machine.memory_bytes > 1 << 20);
    }
}
