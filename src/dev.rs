//! `forebay dev`: an S3 server with a bucket (or an existing bucket), and proxies in front of it, on this machine.
//!
//! Called by `cli/dev.rs`. Everything lives in one directory (`dev/layout.rs`), so that a second run goes on where the
//! first ended. The supervisor is one thread that polls; the proxies are processes of their own, so that each can be
//! killed and started again; the S3 server is a thread. Stopping goes the other way round: the proxies flush while the
//! S3 server still answers.

mod ca;
mod control;
mod existing;
mod keys;
mod layout;
mod node_config;
mod plan;
mod probe;
pub mod s3_server;
mod status_line;
mod stop;
mod summary;
mod supervise;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use tokio::sync::mpsc;

use self::control::{Control, Request};
use self::layout::{Layout, Lock};
use self::node_config::{Bucket, DRAIN_SECONDS, Mode, Volume};
use self::plan::Plan;
use self::probe::{Figures, Probe};
use self::s3_server::{REGION, S3Server, S3ServerOptions};
use self::status_line::StatusLine;
use self::stop::Stop;
use self::summary::Summary;
use self::supervise::{Proxy, TICK, describe};
use crate::proxy::preflight;

pub use self::existing::{ExistingBucket, Writes};

/// The bucket of the built-in S3 server.
const BUILT_IN_BUCKET: &str = "forebay-dev";

/// Between two drawings of the status line.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// A stopping proxy that flushes longer than it may is killed; what is dirty stays on its disk.
const STOP_BOUND: Duration = Duration::from_secs(DRAIN_SECONDS + 10);

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept.
    pub directory: PathBuf,
    /// The first port; 0 picks free ones.
    pub port_base: u16,
    /// How many proxies.
    pub proxies: usize,
    /// Stop by itself after so long; `None`: when asked.
    pub run_for: Option<Duration>,
    /// Serve this bucket; `None`: the built-in server's.
    pub existing: Option<ExistingBucket>,
}

/// Runs until it is asked to stop, or its time is over.
///
/// # Errors
/// One line with the fix, for whatever keeps it from starting.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut running = start(options, &stop).await?;
        running.announce(began.elapsed())?;
        let served = running.serve(&stop, options.run_for).await;
        running.shut_down(&stop).await;
        served
    })
}

/// Has the supervisor of `directory` start proxy `index` again. Returns what it says.
///
/// # Errors
/// If none runs there, or the proxy doesn't start.
pub fn restart(directory: &std::path::Path, index: usize) -> anyhow::Result<String> {
    control::ask(&Layout::existing(directory)?, index)
}

/// Everything that runs. Dropped in the order of its fields: the proxies go before the S3 server.
struct Running {
    proxies: Vec<Proxy>,
    requests: mpsc::Receiver<Request>,
    probe: Probe,
    status: StatusLine,
    bucket: Bucket,
    volumes: Vec<Volume>,
    token: String,
    layout: Layout,
    s3: Option<S3Server>,
    _lock: Lock,
}

/// Checks, makes and starts everything; ready when it returns.
async fn start(options: &Options, stop: &Stop) -> anyhow::Result<Running> {
    preflight::machine()?;
    let layout = Layout::create(&options.directory)?;
    let lock = layout.lock()?;
    summary::remove(&layout)?;
    let plan = Plan::draw(&layout, options.proxies, options.port_base)?;
    plan.check_ports()?;
    ca::prepare(&layout)?;
    let (s3, bucket, volumes) = match &options.existing {
        None => built_in(&layout, &plan)?,
        Some(existing) => {
            existing.check().await?;
            (None, existing.bucket(), existing.volumes())
        }
    };
    existing::remember_origin(&layout, &bucket, &volumes)?;
    let (public_key, token) = keys::issue_token(&layout, &volumes)?;
    let mut proxies = Vec::with_capacity(plan.proxies.len());
    for proxy in plan.proxies {
        let files = layout.proxy(proxy.index)?;
        node_config::write(&layout, &proxy, &files, &bucket, &volumes, &public_key)?;
        let mut proxy = Proxy::new(proxy, files);
        proxy.start()?;
        proxies.push(proxy);
    }
    let probe = Probe::new(&layout)?;
    for proxy in &mut proxies {
        proxy.wait_ready(&probe, stop).await?;
    }
    let requests = listen(&layout)?;
    let status = StatusLine::new();
    Ok(Running { proxies, requests, probe, status, bucket, volumes, token, layout, s3, _lock: lock })
}

/// Starts the built-in S3 server and says what it serves.
fn built_in(layout: &Layout, plan: &Plan) -> anyhow::Result<(Option<S3Server>, Bucket, Vec<Volume>)> {
    let (access_key, secret_key) = keys::s3_keys(layout)?;
    let server = S3Server::start_with(&S3ServerOptions {
        root: layout.s3_data(),
        addr: plan.s3,
        access_key: access_key.clone(),
        secret_key: secret_key.clone(),
        bucket: BUILT_IN_BUCKET.to_owned(),
        region: REGION.to_owned(),
        access_log: Some(layout.s3_log()),
    })
    .with_context(|| format!("the S3 server can't start at {}", plan.s3))?;
    let bucket = Bucket {
        endpoint: server.endpoint(),
        region: REGION.to_owned(),
        name: BUILT_IN_BUCKET.to_owned(),
        keys: Some((access_key, secret_key)),
    };
    Ok((Some(server), bucket, demo_volumes("")))
}

/// The two volumes to play with, below `prefix`.
fn demo_volumes(prefix: &str) -> Vec<Volume> {
    let volume = |name: &str, mode| Volume { name: name.to_owned(), prefix: format!("{prefix}{name}/"), mode };
    vec![volume("demo-back", Mode::WriteBack), volume("demo-through", Mode::WriteThrough)]
}

/// Takes requests from other shells. A task of its own, because reading a request must not be given up half-way.
fn listen(layout: &Layout) -> anyhow::Result<mpsc::Receiver<Request>> {
    let control = Control::listen(layout)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move { while sender.send(control.next().await).await.is_ok() {} });
    Ok(receiver)
}

impl Running {
    /// Writes `dev.json` and prints what runs where.
    fn announce(&self, took: Duration) -> anyhow::Result<()> {
        let summary = self.summary();
        summary.write(&self.layout)?;
        self.status.say(&format!("forebay dev is ready after {:.1} s; Ctrl-C flushes and stops\n", took.as_secs_f64()));
        self.status.say(&summary.table(&self.layout));
        self.status.say("Try, in another shell:\n");
        self.status.say(&summary.curl_lines(&self.layout));
        Ok(())
    }

    fn summary(&self) -> Summary {
        Summary::new(&self.layout, &self.proxies, &self.bucket, &self.volumes, &self.token)
    }

    /// Watches the proxies, answers restarts, draws the status line; returns when it is time to stop.
    async fn serve(&mut self, stop: &Stop, run_for: Option<Duration>) -> anyhow::Result<()> {
        let deadline = run_for.map(|run_for| Instant::now() + run_for);
        let mut next_status = Instant::now();
        while !stop.asked() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            self.report_deaths()?;
            if self.status.wanted() && Instant::now() >= next_status {
                self.draw_status().await;
                next_status = Instant::now() + STATUS_PERIOD;
            }
            match tokio::time::timeout(TICK, self.requests.recv()).await {
                Ok(Some(request)) => {
                    let outcome = self.restart(request.proxy, stop).await;
                    match &outcome {
                        Ok(said) => self.status.say(said),
                        Err(e) => self.status.say(&format!("proxy {} was not started again: {e:#}", request.proxy)),
                    }
                    request.answer(&outcome).await;
                }
                Ok(None) => bail!("the control socket's task ended"),
                Err(_) => (),
            }
        }
        Ok(())
    }

    /// Kills proxy `index` if it runs, and starts it with the same ports and disk.
    async fn restart(&mut self, index: usize, stop: &Stop) -> anyhow::Result<String> {
        let count = self.proxies.len();
        let proxy = self.proxies.get_mut(index).with_context(|| format!("there are proxies 0 to {}", count - 1))?;
        let began = Instant::now();
        proxy.kill()?;
        proxy.start()?;
        proxy.wait_ready(&self.probe, stop).await?;
        let pid = proxy.pid().ok_or_else(|| anyhow!("proxy {index} ended at once"))?;
        self.summary().write(&self.layout)?;
        Ok(format!("proxy {index} was started again, pid {pid}, ready after {:.1} s", began.elapsed().as_secs_f64()))
    }

    /// Says which proxies ended since the last look, and what they said last.
    fn report_deaths(&mut self) -> anyhow::Result<()> {
        for index in 0..self.proxies.len() {
            let proxy = &mut self.proxies[index];
            if let Some(status) = proxy.ended()? {
                let words = proxy.last_words();
                let again = format!(
                    "start it again with `forebay dev --dir {} --restart {index}`",
                    self.layout.root().display()
                );
                self.status.say(&format!("proxy {index} ended ({}); {again}; its log says: {words}", describe(status)));
                self.summary().write(&self.layout)?;
            }
        }
        Ok(())
    }

    async fn draw_status(&mut self) {
        let mut sum = Figures::default();
        let mut alive = 0;
        for proxy in self.proxies.iter().filter(|proxy| proxy.pid().is_some()) {
            if let Some(figures) = self.probe.figures(&proxy.plan.url()).await {
                sum += figures;
                alive += 1;
            }
        }
        self.status.draw(sum, alive, self.proxies.len());
    }

    /// Proxies first, flushing, then the S3 server. A second Ctrl-C doesn't wait for the flush.
    async fn shut_down(mut self, stop: &Stop) {
        if let Err(e) = summary::remove(&self.layout) {
            self.status.say(&format!("{e:#}"));
        }
        let running = self.proxies.iter().filter(|proxy| proxy.pid().is_some()).count();
        self.status.say(&format!("stopping: {running} proxies flush (Ctrl-C again: don't wait)"));
        self.proxies.iter().for_each(Proxy::terminate);
        let deadline = Instant::now() + STOP_BOUND;
        for proxy in &mut self.proxies {
            if let Err(e) = wait_end(proxy, stop, deadline).await {
                self.status.say(&format!("{e:#}; what was dirty is on its disk and is flushed after the next start"));
            }
        }
        drop(self.s3.take());
        self.status.say("stopped");
    }
}

/// Waits for a stopping proxy's end; kills it when the time is over or the user is in a hurry.
async fn wait_end(proxy: &mut Proxy, stop: &Stop, deadline: Instant) -> anyhow::Result<()> {
    let index = proxy.plan.index;
    while proxy.pid().is_some() {
        if let Some(status) = proxy.ended()? {
            ensure!(status.success(), "proxy {index} did not stop well ({}): {}", describe(status), proxy.last_words());
            return Ok(());
        }
        if stop.urgent() || Instant::now() > deadline {
            proxy.kill()?;
            bail!("proxy {index} was killed before it had flushed");
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}
