//! `forebay dev --restart I` from another shell: one line to the running supervisor, one line back.
//!
//! The supervisor listens on a Unix socket in its directory, which only its owner may enter; `ask` is the other end.
//! A request is `restart I`; the answer begins with `ok ` or `error `.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::layout::Layout;

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

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Request {
    /// Which proxy to start again.
    pub proxy: usize,
    stream: UnixStream,
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
                Ok(Ok(proxy)) => return Request { proxy, stream },
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

/// Asks the supervisor of `layout` to start `proxy` again and returns what it says when that one is ready.
///
/// # Errors
/// If no supervisor runs there, or it could not.
pub fn ask(layout: &Layout, proxy: usize) -> anyhow::Result<String> {
    let (_directory, path) = layout.socket()?;
    let mut stream = BlockingStream::connect(&path).with_context(|| {
        format!("no `forebay dev` runs in {}; start one, or name its --dir", layout.root().display())
    })?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    writeln!(stream, "restart {proxy}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the supervisor did not answer")?;
    match line.trim_end().split_once(' ') {
        Some(("ok", said)) => Ok(said.to_owned()),
        Some(("error", said)) => bail!("{said}"),
        _ => bail!("the supervisor stopped before it answered"),
    }
}

async fn read_request(stream: &mut UnixStream) -> anyhow::Result<usize> {
    let mut line = String::new();
    tokio::io::BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line).await?;
    let index = line.trim_end().strip_prefix("restart ").and_then(|index| index.parse().ok());
    index.with_context(|| format!("{:?} is no request; `restart I` is", line.trim_end()))
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
        assert!(ask(&layout, 0).unwrap_err().to_string().contains("no `forebay dev` runs"));
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
                (declined, ask(&layout, 7).unwrap(), ask(&layout, 8).unwrap_err().to_string())
            });
            (ready, thread)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let control = Control::listen(&layout).unwrap();
            asking.0.send(()).unwrap();
            let request = control.next().await;
            assert_eq!(request.proxy, 7);
            request.answer(&Ok("done".to_owned())).await;
            control.next().await.answer(&Err(anyhow::anyhow!("there is no proxy 8"))).await;
        });
        let (declined, done, failed) = asking.1.join().unwrap();
        assert!(declined.starts_with("error \"dance\""), "{declined}");
        assert_eq!((done.as_str(), failed.as_str()), ("done", "there is no proxy 8"));
        assert!(ask(&layout, 7).is_err(), "the socket is gone");
    }
}
