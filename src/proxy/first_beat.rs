//! Sees to it that an executor begins: interrupts its thread until its heart beats.
//!
//! glommio can park with runnable tasks (ARCHITECTURE.md, trap 1), and one of the very first turns may be the one that is lost.
//! Then there is no timer yet, so `heartbeat` cannot help: on a busy machine one start in twenty hung for ever. A signal
//! makes the kernel's wait return, and the executor takes another turn. Called by `executor` for each thread it starts;
//! usually the first look finds the beat begun and no signal is sent.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGURG;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A thread takes its name only when it begins to run; one that is not found for so many looks (2 s) is gone: its
/// executor could not be made, and whoever joins it learns why.
const LOOKS_IN_VAIN_MAX: u32 = 400;

/// The kernel cuts a thread's name to this.
const THREAD_NAME_BYTES_MAX: usize = 15;

/// Waits until `has_begun` is set by the first beat of the executor whose thread is called `thread_name`, or that thread is
/// gone; interrupts its wait as often as it takes.
///
/// # Errors
/// No handler for the signal can be installed.
pub fn until_first_beat(thread_name: &str, has_begun: &AtomicBool) -> anyhow::Result<()> {
    static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if CAUGHT.get().is_none() {
        // A signal that is ignored, as this one is by default, interrupts nothing.
        let caught = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGURG, Arc::clone(&caught)).context("installing a handler for SIGURG")?;
        let _ = CAUGHT.set(caught);
    }
    let mut looks_in_vain = 0;
    while !has_begun.load(Ordering::Acquire) && looks_in_vain < LOOKS_IN_VAIN_MAX {
        thread::sleep(LOOK_EVERY);
        if !has_begun.load(Ordering::Acquire) && interrupt(thread_name) == 0 {
            looks_in_vain += 1;
        }
    }
    Ok(())
}

/// Sends the signal to this process's threads of that name; returns how many there are. To interrupt another executor
/// of the same name does no harm.
fn interrupt(thread_name: &str) -> usize {
    let name = &thread_name.as_bytes()[..thread_name.len().min(THREAD_NAME_BYTES_MAX)];
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return 0 };
    let has_name = |path: &Path| fs::read(path.join("comm")).is_ok_and(|comm| comm.starts_with(name));
    let mut count = 0;
    for thread in threads.flatten().filter(|thread| has_name(&thread.path())) {
        let id = thread.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        // The kernel prefers the thread that the number names.
        count += usize::from(id.is_some_and(|id| kill_process(id, Signal::URG).is_ok()));
    }
    count
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::UdpSocket;

    #[test]
    fn a_thread_that_has_not_begun_is_interrupted_until_it_has() {
        let has_begun = Arc::new(AtomicBool::new(false));
        let sets = Arc::clone(&has_begun);
        // Its wait returns early only because of a signal.
        let sleeper = thread::Builder::new().name("first-a-sleeper".to_owned()).spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let woken = socket.recv(&mut [0]).unwrap_err().kind();
            sets.store(true, Ordering::Release);
            woken
        });
        until_first_beat("first-a-sleeper", &has_begun).unwrap();
        assert_eq!(sleeper.unwrap().join().unwrap(), ErrorKind::Interrupted);
        assert_eq!(interrupt("first-a-nobody"), 0);
    }
}
