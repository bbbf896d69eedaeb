//! What must hold before a node may start: io_uring allowed, enough lockable memory, a file system with direct I/O,
//! room for the slabs, free ports.
//!
//! Called by the boot of `forebay proxy`, and by `forebay dev` before it starts anything. Each check stands alone and
//! answers with one line that names the fix, so that nobody has to read a panic of the runtime to learn it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit};

/// The runtime declines to start an executor below this.
const MEMLOCK_MIN_BYTES: u64 = 512 * 1024;

/// Direct I/O is tried with one write of this size and alignment.
const SECTOR_BYTES: usize = 4096;

/// Why a node can't start here: one line, with the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {fix}")]
pub struct Refusal {
    /// What is wrong, with the figure or path.
    pub problem: String,
    /// What to do about it.
    pub fix: String,
}

impl Refusal {
    fn new(problem: impl Into<String>, fix: impl Into<String>) -> Refusal {
        Refusal { problem: problem.into(), fix: fix.into() }
    }
}

/// All checks that need no configuration: memory to lock, then io_uring.
///
/// # Errors
/// [`Refusal`] of the first check that fails.
pub fn machine() -> Result<(), Refusal> {
    memlock()?;
    io_uring()
}

/// Raises the soft limit on lockable memory to the hard one and checks that the runtime's minimum is there. The usual
/// 8 MiB of an ordinary user are plenty: rings need little, and buffers that can't be registered work unregistered.
///
/// # Errors
/// [`Refusal`] if even the hard limit is too small.
pub fn memlock() -> Result<(), Refusal> {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let soft = match limit.maximum {
        hard if hard == limit.current => limit.current,
        hard => {
            let raised = Rlimit { current: hard, maximum: hard };
            // Raising the soft limit up to the hard one is everybody's right; should it fail, the old one counts.
            if rustix::process::setrlimit(Resource::Memlock, raised).is_ok() { hard } else { limit.current }
        }
    };
    judge_memlock(soft)
}

/// Tries to start an executor on a thread of its own.
///
/// # Errors
/// [`Refusal`] if the kernel, its settings or a container's seccomp profile forbid io_uring.
pub fn io_uring() -> Result<(), Refusal> {
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if setting.trim() == "2" {
        return Err(judge_ring(&setting, "the kernel refuses it").expect_err("2 means disabled for all"));
    }
    // The runtime panics where io_uring is refused: keep its message from the user, ours follows.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let tried = std::thread::spawn(|| {
        let builder = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound).io_memory(0).ring_depth(8);
        builder.make().map(|executor| executor.run(async {})).map_err(|e| e.to_string())
    })
    .join();
    std::panic::set_hook(hook);
    match tried {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => judge_ring(&setting, &reason),
        Err(_) => judge_ring(&setting, "io_uring_setup was refused"),
    }
}

/// Writes one sector with O_DIRECT in `directory` (which must exist) and removes the file again.
///
/// # Errors
/// [`Refusal`] if the file system does no direct I/O, or the directory can't be written.
pub fn direct_io(directory: &Path) -> Result<(), Refusal> {
    let probe = Probe(directory.join(format!(".forebay-probe-{}", std::process::id())));
    let direct = i32::try_from(OFlags::DIRECT.bits()).expect("a flag of open(2) fits an int");
    let opened = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(direct).open(&probe.0);
    match opened.and_then(|file| write_sector(&file)) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::InvalidInput => Err(Refusal::new(
            format!("the file system of {} has no direct I/O (O_DIRECT)", directory.display()),
            "use a directory on ext4, xfs or btrfs",
        )),
        Err(e) if e.kind() == ErrorKind::StorageFull => Err(Refusal::new(
            format!("no space is left in {}", directory.display()),
            "free some, or use a directory on a larger disk",
        )),
        Err(e) => Err(Refusal::new(
            format!("{} can't be written: {e}", directory.display()),
            "choose a directory that this user may write",
        )),
    }
}

/// Checks that `needed_bytes` are free for this user on the file system of `directory` (which must exist).
///
/// # Errors
/// [`Refusal`] with both figures.
pub fn space(directory: &Path, needed_bytes: u64) -> Result<(), Refusal> {
    let free_bytes = free_bytes(directory)?;
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Refusal::new(
        format!("{} has {} free, {} are needed", directory.display(), mebibytes(free_bytes), mebibytes(needed_bytes)),
        "free some, use a directory on a larger disk, or lower the capacity",
    ))
}

/// What this user may still allocate on the file system of `directory`.
///
/// # Errors
/// [`Refusal`] if it can't be asked.
pub fn free_bytes(directory: &Path) -> Result<u64, Refusal> {
    let stat = rustix::fs::statvfs(directory)
        .map_err(|e| Refusal::new(format!("{} can't be examined: {e}", directory.display()), "check the path"))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Checks that nothing listens on `address`. Port 0 is always free.
///
/// # Errors
/// [`Refusal`] if it is taken, or this user may not bind it.
pub fn port(address: SocketAddr) -> Result<(), Refusal> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AddrInUse => Err(Refusal::new(
            format!("{address} is in use"),
            format!(
                "stop what listens there (`ss -ltnp 'sport = :{}'` shows it) or choose other ports",
                address.port()
            ),
        )),
        Err(e) => Err(Refusal::new(format!("{address} can't be bound: {e}"), "choose another address or port")),
    }
}

/// Removes its file whatever happens.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A whole, aligned sector: anything else would fail on every file system.
fn write_sector(mut file: &File) -> std::io::Result<()> {
    let room = vec![0u8; 2 * SECTOR_BYTES];
    let start = room.as_ptr().align_offset(SECTOR_BYTES);
    file.write_all(&room[start..start + SECTOR_BYTES])
}

fn judge_memlock(soft: Option<u64>) -> Result<(), Refusal> {
    match soft {
        Some(bytes) if bytes < MEMLOCK_MIN_BYTES => Err(Refusal::new(
            format!(
                "only {} KiB of memory may be locked (ulimit -l), {} are needed",
                bytes / 1024,
                MEMLOCK_MIN_BYTES / 1024
            ),
            "raise it: `ulimit -l 8192`, LimitMEMLOCK=8M in a systemd unit, or `docker run --ulimit memlock=8388608`",
        )),
        _ => Ok(()),
    }
}

/// Says why a ring was refused, by the kernel's setting if that explains it.
fn judge_ring(setting: &str, reason: &str) -> Result<(), Refusal> {
    Err(match setting.trim() {
        "2" => Refusal::new(
            "io_uring is disabled (kernel.io_uring_disabled = 2)",
            "enable it: `sudo sysctl kernel.io_uring_disabled=0`",
        ),
        "1" => Refusal::new(
            "io_uring is restricted (kernel.io_uring_disabled = 1)",
            "enable it: `sudo sysctl kernel.io_uring_disabled=0`, or join the group of kernel.io_uring_group",
        ),
        _ => Refusal::new(
            format!("io_uring can't be used ({reason})"),
            "Linux 5.8 or newer is needed, and a container must allow it: `docker run --security-opt seccomp=unconfined`",
        ),
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_good_enough_for_the_other_tests() {
        machine().unwrap();
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        direct_io(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the probe file is gone");
        space(directory.path(), 1).unwrap();
    }

    #[test]
    fn a_refusal_is_one_line_with_figures_and_the_fix() {
        let low = judge_memlock(Some(64 * 1024)).unwrap_err().to_string();
        assert!(low.contains("64 KiB") && low.contains("ulimit -l 8192") && !low.contains('\n'), "{low}");
        assert_eq!(judge_memlock(Some(8 << 20)), Ok(()));
        assert_eq!(judge_memlock(None), Ok(()), "unlimited");
        for (setting, word) in [("2\n", "sysctl"), ("1\n", "io_uring_group"), ("0\n", "seccomp"), ("", "5.8")] {
            let refusal = judge_ring(setting, "ENOSYS").unwrap_err().to_string();
            assert!(refusal.contains(word) && !refusal.contains('\n'), "{refusal}");
        }
        let full = space(Path::new("/"), u64::MAX).unwrap_err().to_string();
        assert!(full.contains("MiB are needed"), "{full}");
    }

    #[test]
    fn no_direct_io_and_no_right_to_write_are_told_apart() {
        let proc = direct_io(Path::new("/proc/self")).unwrap_err();
        assert!(proc.problem.contains("can't be written") || proc.problem.contains("O_DIRECT"), "{proc}");
        let absent = direct_io(Path::new("/nonexistent")).unwrap_err();
        assert!(absent.problem.contains("can't be written"), "{absent}");
    }

    #[test]
    fn a_taken_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = listener.local_addr().unwrap();
        let refusal = port(taken).unwrap_err().to_string();
        assert!(refusal.contains(&taken.to_string()) && refusal.contains("in use"), "{refusal}");
        drop(listener);
        port(taken).unwrap();
    }
}
