//! `forebay dev --restart I` and `--link GROUP:CHANGES` from another shell: one line to the running supervisor, one line back.
//!
//! The supervisor listens on a Unix socket in its directory, which only its owner may enter; `ask` is the other end.
//! A request is a [`Wish`] in words; the answer begins with `ok ` or `error `.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::layout::Layout;
use super::relay::link::parse_changes;

/// Longer than a proxy may take to become ready.
const ANSWER_BOUND: Duration = Duration::from_secs(40);

/// A request is far shorter, and whoever connects has it ready.
const REQUEST_BYTES_MAX: u64 = 256;
const REQUEST_BOUND: Duration = Duration::from_secs(1);

/// The supervisor's end.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// The path leads through this handle.
    _directory: File,
}

/// What a running supervisor can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Kill a service, if it is alive, and start it again.
    Restart(Target),
    /// Change the link of a group.
    Link(LinkChange),
}

/// What can be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A proxy, by its index.
    Proxy(usize),
    /// The admin.
    Admin,
}

/// A change of the link of a group: `near:cut`, `far:up,latency=20ms`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// The group.
    pub group: String,
    /// What it is to be.
    pub changes: String,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub wish: Wish,
    stream: UnixStream,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Target> {
        match text {
            "admin" => Ok(Target::Admin),
            index => Ok(Target::Proxy(index.parse().context("write the index of a proxy, or admin")?)),
        }
    }
}

impl FromStr for LinkChange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<LinkChange> {
        let (group, changes) =
            text.split_once(':').context("write GROUP:CHANGES, such as near:cut or far:latency=20ms")?;
        // For whoever typed it: the supervisor reads them again.
        parse_changes(changes)?;
        Ok(LinkChange { group: group.to_owned(), changes: changes.to_owned() })
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wish::Restart(Target::Proxy(index)) => write!(f, "restart {index}"),
            Wish::Restart(Target::Admin) => f.write_str("restart admin"),
            Wish::Link(LinkChange { group, changes }) => write!(f, "link {group}:{changes}"),
        }
    }
}

impl FromStr for Wish {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Wish> {
        match text.split_once(' ') {
            Some(("restart", target)) => Ok(Wish::Restart(target.parse()?)),
            Some(("link", change)) => Ok(Wish::Link(change.parse()?)),
            _ => bail!("{text:?} is no request; `restart I` and `link GROUP:CHANGES` are"),
        }
    }
}

impl Control {
    /// Listens in `layout`'s directory. The caller holds its lock, so a socket found there is a dead one's.
    ///
    /// # Errors
    /// If it can't.
    pub fn listen(layout: &Layout) -> anyhow::Result<Control> {
        let (directory, path) = layout.socket()?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).context("an old dev.sock can't be removed"),
            _ => (),
        }
        let listener = UnixListener::bind(&path).context("dev.sock can't be made")?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Control { listener, path, _directory: directory })
    }

    /// The next well-formed request; a malformed one is answered here. Safe to drop while waiting for a connection.
    pub async fn next(&self) -> Request {
        loop {
            let Ok((mut stream, _)) = self.listener.accept().await else {
                // Out of file handles, say: no reason to spin.
                tokio::time::sleep(REQUEST_BOUND).await;
                continue;
            };
            match tokio::time::timeout(REQUEST_BOUND, read_request(&mut stream)).await {
                Ok(Ok(wish)) => return Request { wish, stream },
                Ok(Err(e)) => answer(stream, &format!("error {e:#}")).await,
                Err(_) => answer(stream, "error no request came").await,
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Request {
    /// Tells whoever asked how it went. That they may have left is theirs to know.
    pub async fn answer(self, outcome: &anyhow::Result<String>) {
        let line = match outcome {
            Ok(said) => format!("ok {said}"),
            Err(e) => format!("error {e:#}"),
        };
        answer(self.stream, &line).await;
    }
}

/// Asks the supervisor of `layout` and returns what it says when it is done.
///
/// # Errors
/// If no supervisor runs there, or it could not.
pub fn ask(layout: &Layout, wish: &Wish) -> anyhow::Result<String> {
    let (_directory, path) = layout.socket()?;
    let mut stream = BlockingStream::connect(&path).with_context(|| {
        format!("no `forebay dev` runs in {}; start one, or name its --dir", layout.root().display())
    })?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    writeln!(stream, "{wish}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the supervisor did not answer")?;
    match line.trim_end().split_once(' ') {
        Some(("ok", said)) => Ok(said.to_owned()),
        Some(("error", said)) => bail!("{said}"),
        _ => bail!("the supervisor stopped before it answered"),
    }
}

async fn read_request(stream: &mut UnixStream) -> anyhow::Result<Wish> {
    let mut line = String::new();
    tokio::io::BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line).await?;
    line.trim_end().parse()
}

async fn answer(mut stream: UnixStream, line: &str) {
    let line = format!("{}\n", line.replace('\n', " "));
    let _ = tokio::time::timeout(REQUEST_BOUND, stream.write_all(line.as_bytes())).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_and_nonsense_declined() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let wish = |text: &str| text.parse::<Wish>().unwrap();
        assert!(ask(&layout, &wish("restart 0")).unwrap_err().to_string().contains("no `forebay dev` runs"));
        let asking = {
            let layout = layout.clone();
            let (ready, is_ready) = std::sync::mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                is_ready.recv().unwrap();
                let (_directory, path) = layout.socket().unwrap();
                let mut nonsense = BlockingStream::connect(path).unwrap();
                nonsense.write_all(b"dance\n").unwrap();
                let mut declined = String::new();
                BufReader::new(nonsense).read_line(&mut declined).unwrap();
                let restarted = ask(&layout, &Wish::Restart(Target::Proxy(7))).unwrap();
                let change = "near:cut,latency=3ms".parse().unwrap();
                (declined, restarted, ask(&layout, &Wish::Link(change)).unwrap_err().to_string())
            });
            (ready, thread)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let control = Control::listen(&layout).unwrap();
            asking.0.send(()).unwrap();
            let request = control.next().await;
            assert_eq!(request.wish, wish("restart 7"));
            request.answer(&Ok("done".to_owned())).await;
            let request = control.next().await;
            assert_eq!(request.wish, wish("link near:cut,latency=3ms"));
            request.answer(&Err(anyhow::anyhow!("there is no group near"))).await;
        });
        let (declined, done, failed) = asking.1.join().unwrap();
        assert!(declined.starts_with("error \"dance\""), "{declined}");
        assert_eq!((done.as_str(), failed.as_str()), ("done", "there is no group near"));
        assert!(ask(&layout, &wish("restart admin")).is_err(), "the socket is gone");
    }
}
