//! Where `forebay dev` keeps what: the one list of paths under its directory, and how a file gets there whole.
//!
//! Called by every other file of `dev`. A second run in the same directory finds everything again: S3 data, disks,
//! keys, ports. Secrets are readable by their owner only, and a reader never sees half a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use rustix::fs::FlockOperation;

/// The directory of one `forebay dev`.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// The files of one proxy.
#[derive(Debug, Clone)]
pub struct ProxyFiles {
    /// Its configuration.
    pub config: PathBuf,
    /// Its log: stdout and stderr.
    pub log: PathBuf,
    /// Its disk.
    pub disk: PathBuf,
    /// Where it writes which ports it bound, once it serves.
    pub ports: PathBuf,
    /// Where it keeps what the admin said last.
    pub known: PathBuf,
}

/// The files of the admin.
#[derive(Debug, Clone)]
pub struct AdminFiles {
    /// Where its database lies.
    pub directory: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Its log: stdout and stderr.
    pub log: PathBuf,
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Everybody.
    Public,
    /// Its owner alone (0600).
    Secret,
}

/// Held while a supervisor runs; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Layout {
    /// Creates the directory where it is absent, for its owner only: it holds keys.
    ///
    /// # Errors
    /// If it can't be created.
    pub fn create(directory: &Path) -> anyhow::Result<Layout> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).with_context(|| format!("{} can't be created", directory.display()))?;
        let layout = Layout::existing(directory)?;
        for inner in ["tls", "keys", "admin"] {
            let path = layout.root.join(inner);
            builder.create(&path).with_context(|| format!("{} can't be created", path.display()))?;
        }
        Ok(layout)
    }

    /// A directory that must be there.
    ///
    /// # Errors
    /// If it isn't.
    pub fn existing(directory: &Path) -> anyhow::Result<Layout> {
        let root =
            directory.canonicalize().with_context(|| format!("{} can't be opened (--dir)", directory.display()))?;
        Ok(Layout { root })
    }

    /// Makes sure that one supervisor at most works here.
    ///
    /// # Errors
    /// If another one does.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("{} can't be opened", path.display()))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            anyhow!("{} is in use by another `forebay dev`; stop that one or choose another --dir", self.root.display())
        })?;
        Ok(Lock { _file: file })
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The certificate of the local certificate authority.
    #[must_use]
    pub fn ca_certificate(&self) -> PathBuf {
        self.root.join("tls/ca.pem")
    }

    /// The key of the local certificate authority.
    #[must_use]
    pub fn ca_key(&self) -> PathBuf {
        self.root.join("tls/ca-key.pem")
    }

    /// The certificate of all proxies.
    #[must_use]
    pub fn server_certificate(&self) -> PathBuf {
        self.root.join("tls/server.pem")
    }

    /// The key of all proxies.
    #[must_use]
    pub fn server_key(&self) -> PathBuf {
        self.root.join("tls/server-key.pem")
    }

    /// A token for all volumes.
    #[must_use]
    pub fn token(&self) -> PathBuf {
        self.root.join("token")
    }

    /// A token that may change everything in the admin.
    #[must_use]
    pub fn operator_token(&self) -> PathBuf {
        self.root.join("operator-token")
    }

    /// The token by which the proxies of `group` ask the admin.
    #[must_use]
    pub fn proxy_token(&self, group: &str) -> PathBuf {
        self.root.join(format!("keys/token-{group}"))
    }

    /// The files of the admin.
    #[must_use]
    pub fn admin(&self) -> AdminFiles {
        let directory = self.root.join("admin");
        AdminFiles { config: directory.join("admin.toml"), log: directory.join("log"), directory }
    }

    /// The keys of the built-in S3 server in the form of `~/.aws/credentials`.
    #[must_use]
    pub fn s3_credentials(&self) -> PathBuf {
        self.root.join("keys/s3-credentials")
    }

    /// The keys of the built-in S3 server: access key and secret key, one a line.
    #[must_use]
    pub fn s3_keys(&self) -> PathBuf {
        self.root.join("keys/s3")
    }

    /// The data of the built-in S3 server.
    #[must_use]
    pub fn s3_data(&self) -> PathBuf {
        self.root.join("s3")
    }

    /// A line for each request to the built-in S3 server.
    #[must_use]
    pub fn s3_log(&self) -> PathBuf {
        self.root.join("s3.log")
    }

    /// Which bucket the disks here are a cache of.
    #[must_use]
    pub fn origin(&self) -> PathBuf {
        self.root.join("origin.json")
    }

    /// What runs where, for programs; there while it runs.
    #[must_use]
    pub fn summary(&self) -> PathBuf {
        self.root.join("dev.json")
    }

    /// The files of proxy `index`; its disk's directory is created.
    ///
    /// # Errors
    /// If a directory can't be created.
    pub fn proxy(&self, index: usize) -> anyhow::Result<ProxyFiles> {
        let home = self.root.join(format!("proxy-{index}"));
        let disk = home.join("disk");
        fs::create_dir_all(&disk).with_context(|| format!("{} can't be created", disk.display()))?;
        Ok(ProxyFiles {
            config: home.join("forebay.toml"),
            log: home.join("log"),
            disk,
            ports: home.join("ports.json"),
            known: home.join("known"),
        })
    }

    /// The control socket's address. A socket's path may have 107 bytes only, so it is named through the open
    /// directory, whose handle must live as long as the path is used.
    ///
    /// # Errors
    /// If the directory can't be opened.
    pub fn socket(&self) -> io::Result<(File, PathBuf)> {
        let directory = File::open(&self.root)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/dev.sock", directory.as_raw_fd()));
        Ok((directory, path))
    }
}

/// Writes a file beside its place, syncs it, and moves it there: a reader sees the old or the new one, never a part.
///
/// # Errors
/// With the path in it.
pub fn write_whole(path: &Path, contents: &[u8], secrecy: Secrecy) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    let mode = match secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    let write = || {
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => (),
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_for_their_owner_and_a_file_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_whole(&path, b"one, and long", Secrecy::Secret).unwrap();
        write_whole(&path, b"two", Secrecy::Secret).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_second_supervisor_is_told_to_go_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(&directory.path().join("a/b")).unwrap();
        let held = layout.lock().unwrap();
        assert!(layout.lock().unwrap_err().to_string().contains("--dir"));
        drop(held);
        layout.lock().unwrap();
    }

    #[test]
    fn a_socket_works_in_a_directory_with_a_long_path() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(&directory.path().join("x".repeat(200))).unwrap();
        let (_open, path) = layout.socket().unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }
}
