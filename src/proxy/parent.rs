//! A proxy that was started by `forebay dev` ends with it, however that one ends.
//!
//! Called first thing by `forebay proxy`. The supervisor says who it is in an environment variable; the kernel then
//! sends SIGTERM when it is gone, so that even after a kill -9 of the supervisor no proxy is left behind.

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Names the process id of the supervisor; absent for a proxy on its own.
pub const PARENT_VARIABLE: &str = "FOREBAY_PARENT";

/// Arranges for SIGTERM at the supervisor's end, if there is a supervisor.
///
/// # Errors
/// If the supervisor is gone already, or the kernel declines.
pub fn follow_parent() -> std::io::Result<()> {
    let Ok(parent) = std::env::var(PARENT_VARIABLE) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have ended before the line above: nobody would tell us any more.
    let alive = getppid().is_some_and(|now| now.as_raw_nonzero().to_string() == parent);
    if alive { Ok(()) } else { Err(std::io::Error::other(format!("the supervisor, process {parent}, is gone"))) }
}
