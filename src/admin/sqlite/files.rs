//! The admin's directory: who may read it, and that one server at most works in it.
//!
//! Called when a database is opened, claimed or restored. The database holds signing keys: its files are its owner's alone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::super::registry::RegistryError;

/// The database's name in the directory.
pub const DATABASE: &str = "admin.db";
const LOCK: &str = "admin.lock";
const USE_LOCK: &str = "admin.use";

/// Held while a server works in a directory, or a restore replaces what is there; the kernel lets go of it when the process ends.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

impl From<io::Error> for RegistryError {
    fn from(error: io::Error) -> RegistryError {
        RegistryError::Storage(Box::new(error))
    }
}

/// Claims `directory` for this process; makes it, for its owner alone, where it is absent.
///
/// # Errors
/// Another process holds it; it can't be made.
pub fn claim(directory: &Path) -> Result<Claim, RegistryError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // The directory's own name, should it be new.
    sync_directory(&directory.canonicalize()?.join(".."))?;
    let path = directory.join(LOCK);
    let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        RegistryError::Refused(format!(
            "an admin runs in {}: stop it first, or name another directory",
            directory.display()
        ))
    })?;
    Ok(Claim { _lock: lock })
}

/// Held while a process works with the database, a server or a command beside it; or, alone, while a restore replaces it: what a command
/// writes never goes into a file that was replaced under it.
#[derive(Debug)]
pub struct Use {
    _lock: File,
}

/// Notes that this process works with the database in `directory`.
///
/// # Errors
/// A restore replaces it just now.
pub fn use_of(directory: &Path) -> Result<Use, RegistryError> {
    let words = "a restore is replacing it: try again when that has ended";
    lock_use(directory, rustix::fs::FlockOperation::NonBlockingLockShared, words)
}

/// Notes that nobody else may work with the database in `directory`.
///
/// # Errors
/// Somebody does.
pub fn sole_use_of(directory: &Path) -> Result<Use, RegistryError> {
    let words = "the database is in use by a command: try again when that has ended";
    lock_use(directory, rustix::fs::FlockOperation::NonBlockingLockExclusive, words)
}

fn lock_use(directory: &Path, how: rustix::fs::FlockOperation, words: &str) -> Result<Use, RegistryError> {
    let path = directory.join(USE_LOCK);
    let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    let refused = |_| RegistryError::Refused(format!("{}: {words}", directory.display()));
    rustix::fs::flock(&lock, how).map_err(refused)?;
    Ok(Use { _lock: lock })
}

/// Makes sure that `path` exists and is its owner's alone; SQLite gives its companions the same rights.
pub fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let rights = fs::metadata(path)?.permissions();
    if rights.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Makes the names in `directory` durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
