//! Sees to it that an executor begins: interrupts its thread until its heart beats.
//!
//! glommio can park with runnable tasks (ARCHITECTURE.md, trap 1), and one of the very first turns may be the one that is lost.
//! Then there is no timer yet, so `heartbeat` cannot help: on a busy machine one start in twenty hung for ever. A signal
//! makes the kernel's wait return, and the executor takes another turn. Called by `executor` for each thread it starts;
//! usually the first look finds the beat begun and no signal is sent.
//!
//! Invariant: the signal goes to that thread alone. While one waits for the process, the kernel makes no worker for any of
//! its rings, and after several attempts cancels what the worker was for: another core's first disk operation.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use signal_hook::consts::SIGURG;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `has_begun` is set by the first beat of the executor on `executor`, or that thread has ended; interrupts its
/// wait as often as it takes.
///
/// # Errors
/// No handler for the signal can be installed.
pub fn until_first_beat<T>(executor: &JoinHandle<T>, has_begun: &AtomicBool) -> anyhow::Result<()> {
    static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if CAUGHT.get().is_none() {
        // A signal that is ignored, as this one is by default, interrupts nothing.
        let caught = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGURG, Arc::clone(&caught)).context("installing a handler for SIGURG")?;
        let _ = CAUGHT.set(caught);
    }
    while !has_begun.load(Ordering::Acquire) && !executor.is_finished() {
        thread::sleep(LOOK_EVERY);
        if !has_begun.load(Ordering::Acquire) {
            interrupt(executor);
        }
    }
    Ok(())
}

/// Sends the signal to this thread. One that has just ended doesn't mind.
fn interrupt<T>(thread: &JoinHandle<T>) {
    let _ = pthread_kill(thread.as_pthread_t(), Signal::SIGURG);
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
        let sleeper = thread::spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let woken = socket.recv(&mut [0]).unwrap_err().kind();
            sets.store(true, Ordering::Release);
            woken
        });
        until_first_beat(&sleeper, &has_begun).unwrap();
        assert_eq!(sleeper.join().unwrap(), ErrorKind::Interrupted);
    }

    #[test]
    fn a_thread_that_ends_before_it_begins_is_not_waited_for() {
        let ends = thread::spawn(|| 7);
        until_first_beat(&ends, &AtomicBool::new(false)).unwrap();
        assert_eq!(ends.join().unwrap(), 7);
    }
}
