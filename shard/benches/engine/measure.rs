//! Clocks and figures of this process: CPU time, wall time, resident memory, and the median of several rounds.
//!
//! Used by every measurement. CPU is that of the executor's thread by the kernel's account (CLOCK_THREAD_CPUTIME_ID), user
//! and system: the reads of io_uring are issued on that thread. What the kernel's own workers do (fdatasync) is not in it.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// What this thread used of its processor, in seconds.
pub fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Wall and CPU time from here on.
pub struct Watch {
    began: Instant,
    cpu: f64,
}

impl Watch {
    pub fn start() -> Watch {
        Watch { began: Instant::now(), cpu: cpu_seconds() }
    }

    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds() - self.cpu
    }
}

/// The middle one; of an even number, the lower of the two.
pub fn median(rounds: impl IntoIterator<Item = f64>) -> f64 {
    let mut rounds: Vec<f64> = rounds.into_iter().collect();
    rounds.sort_by(f64::total_cmp);
    rounds[(rounds.len() - 1) / 2]
}

/// A line of /proc/self/status in MiB: `VmRSS` is what is resident, `VmHWM` the most that ever was.
pub fn status_mib(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("Linux has this line");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("the kernel writes a number of kB");
    kib / 1024.0
}
