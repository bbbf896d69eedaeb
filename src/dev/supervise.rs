//! The admin and the proxies as child processes of this executable: started, watched, killed, stopped.
//!
//! Called by `dev.rs`, from one thread, which must be the main one: a child asks the kernel to be told when the thread
//! that started it ends (`proxy/parent.rs`). One that dies is reported with the last lines of its log and is not
//! started again by itself: whoever kills one wants to see what the rest does.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::process::{Pid, Signal};

use super::layout::ProxyFiles;
use super::plan::ProxyPlan;
use super::probe::Probe;
use super::stop::Stop;
use crate::proxy::parent::PARENT_VARIABLE;

/// How often a condition is looked at while one is waited for.
pub const TICK: Duration = Duration::from_millis(20);

/// What isn't ready by then won't be.
const READY_BOUND: Duration = Duration::from_secs(20);

/// How much of a log is read to find its last lines.
const LOG_TAIL_BYTES: u64 = 16 << 10;
const LOG_TAIL_LINES: usize = 8;

/// A log longer than this begins anew at the next start.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// What a service is.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The command of this executable.
    pub command: &'static str,
    /// The path that answers 200 when it serves.
    pub ready: &'static str,
}

/// One service, running or not.
#[derive(Debug)]
pub struct Service {
    /// `proxy 0`, `admin`.
    pub name: String,
    kind: Kind,
    config: PathBuf,
    log: PathBuf,
    /// `https://` and its address.
    url: String,
    child: Option<Child>,
    log_start_bytes: u64,
}

/// One proxy, running or not.
#[derive(Debug)]
pub struct Proxy {
    /// Its ports, cores and sizes.
    pub plan: ProxyPlan,
    /// Its process.
    pub service: Service,
}

impl Proxy {
    /// Not started yet.
    #[must_use]
    pub fn new(plan: ProxyPlan, files: &ProxyFiles) -> Proxy {
        let kind = Kind { command: "proxy", ready: "/readyz" };
        let service = Service::new(format!("proxy {}", plan.index), kind, &files.config, &files.log, plan.url());
        Proxy { plan, service }
    }
}

impl Service {
    /// Not started yet.
    #[must_use]
    pub fn new(name: String, kind: Kind, config: &Path, log: &Path, url: String) -> Service {
        let (config, log) = (config.to_owned(), log.to_owned());
        Service { name, kind, config, log, url, child: None, log_start_bytes: 0 }
    }

    /// Starts it, in a process group of its own: a Ctrl-C on the terminal reaches this process only, which then stops
    /// the services in order.
    ///
    /// # Errors
    /// If its log can't be opened or the process can't be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        assert!(self.child.is_none(), "a service is started once");
        let path = &self.log;
        let log = OpenOptions::new().create(true).append(true).open(path);
        let log = log.with_context(|| format!("{} can't be opened", path.display()))?;
        if log.metadata()?.len() > LOG_BYTES_MAX {
            log.set_len(0)?;
        }
        self.log_start_bytes = log.metadata()?.len();
        let executable = std::env::current_exe().context("the path of this executable is unknown")?;
        let mut command = Command::new(&executable);
        for (name, _) in std::env::vars_os() {
            // What overrides a configuration file was meant for another node.
            if name.to_string_lossy().starts_with("FOREBAY_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args([self.kind.command, "--config"])
            .arg(&self.config)
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} can't be started", executable.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it says it is ready. Gives up early when it ends or a stop is asked for.
    ///
    /// # Errors
    /// With the last lines of its log.
    pub async fn wait_ready(&mut self, probe: &Probe, stop: &Stop) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_BOUND;
        loop {
            if let Some(status) = self.ended()? {
                bail!("{} did not start ({}): {}", self.name, describe(status), self.last_words());
            }
            if probe.is_ready(&format!("{}{}", self.url, self.kind.ready)).await {
                return Ok(());
            }
            if stop.asked() {
                bail!("stopped while {} was starting", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {READY_BOUND:?}; its log says: {}", self.name, self.last_words());
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Kills it if it runs, starts it again and waits until it is ready. Returns its process id.
    ///
    /// # Errors
    /// As [`Service::start`] and [`Service::wait_ready`].
    pub async fn restart(&mut self, probe: &Probe, stop: &Stop) -> anyhow::Result<u32> {
        self.kill()?;
        self.start()?;
        self.wait_ready(probe, stop).await?;
        self.pid().ok_or_else(|| anyhow!("{} ended at once", self.name))
    }

    /// Waits for its end after [`Service::terminate`]; kills it at `deadline`, or when the user is in a hurry.
    ///
    /// # Errors
    /// If it did not end well by itself.
    pub async fn wait_end(&mut self, stop: &Stop, deadline: Instant) -> anyhow::Result<()> {
        while self.pid().is_some() {
            if let Some(status) = self.ended()? {
                let (name, how, words) = (&self.name, describe(status), self.last_words());
                ensure!(status.success(), "{name} did not stop well ({how}): {words}");
                return Ok(());
            }
            if stop.urgent() || Instant::now() > deadline {
                self.kill()?;
                bail!("{} was killed before it was done", self.name);
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// `https://` and its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended, told once; `None` while it runs or was never started.
    ///
    /// # Errors
    /// If the kernel can't say.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Asks it to finish what it does, to flush and to end.
    pub fn terminate(&self) {
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?)) {
            // It may have ended just now; it is not reaped before we do so, so the id is no other process's.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }

    /// Kills it, as a power cut would, and waits until it is gone.
    ///
    /// # Errors
    /// If the kernel can't say that it is.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).map_err(|e| anyhow!("{} can't be killed: {e}", self.name))?;
        }
        Ok(())
    }

    /// The last lines of its log since its last start, on one line.
    #[must_use]
    pub fn last_words(&self) -> String {
        let words = last_lines(&self.log, self.log_start_bytes).unwrap_or_default();
        if words.is_empty() { format!("nothing, {} is empty", self.log.display()) } else { words }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Whatever went wrong before: no service outlives its supervisor.
        if let Err(e) = self.kill() {
            eprintln!("forebay dev: {e:#}");
        }
    }
}

/// How a process ended, in words.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The last lines of `path` after its first `from_bytes` bytes, joined by ` | `.
fn last_lines(path: &Path, from_bytes: u64) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let end = file.metadata()?.len();
    let start = end.saturating_sub(LOG_TAIL_BYTES).max(from_bytes.min(end));
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join(" | "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_those_of_this_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "old\nold\n").unwrap();
        assert_eq!(last_lines(&path, 8).unwrap(), "");
        fs::write(&path, "old\nold\na port is taken\n\nbye\n").unwrap();
        assert_eq!(last_lines(&path, 8).unwrap(), "a port is taken | bye");
        let many: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        fs::write(&path, many).unwrap();
        let last = last_lines(&path, 8).unwrap();
        assert!(last.ends_with("line 9999") && last.split(" | ").count() == LOG_TAIL_LINES, "{last}");
        assert_eq!(last_lines(&path, u64::MAX).unwrap(), "", "truncated since");
    }

    #[test]
    fn an_end_is_put_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(2 << 8)), "exit code 2");
        assert_eq!(describe(ExitStatus::from_raw(9)), "killed by signal 9");
    }
}
