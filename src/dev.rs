//! `forebay dev`: an S3 server with a bucket (or an existing bucket), an admin, and two groups of proxies, one near and one
//! far away, on this machine.
//!
//! Called by `cli/dev.rs`. Everything lives in one directory (`dev/layout.rs`), so that a second run goes on where the
//! first ended. The supervisor is one thread that polls; admin and proxies are processes of their own, so that each can be
//! killed and started again; the S3 server is a thread, and so is the relay that stands in front of the groups. Stopping goes the
//! other way round: the proxies flush while the S3 server still answers.

mod ca;
pub mod control;
mod deployment;
mod existing;
mod keys;
mod layout;
mod node_config;
mod plan;
mod probe;
pub mod relay;
pub mod s3_server;
mod status_line;
mod stop;
mod summary;
mod supervise;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use self::control::{Control, LinkChange, Request, Target, Wish};
use self::deployment::Deployment;
use self::layout::{Layout, Lock, Secrecy};
use self::node_config::{Bucket, DRAIN_SECONDS, Mode, Volume};
use self::plan::{FAR, NEAR, Plan};
use self::probe::{Figures, Probe};
use self::relay::link::{Condition, GroupLink, Link, parse_changes};
use self::relay::{Path, Relay};
use self::s3_server::{REGION, S3Server, S3ServerOptions};
use self::status_line::StatusLine;
use self::stop::Stop;
use self::summary::{Sources, Summary};
use self::supervise::{Kind, Proxy, Service, TICK, describe};
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
    /// How many proxies are near.
    pub near: usize,
    /// How many proxies are far.
    pub far: usize,
    /// What the relay adds to a round trip to them.
    pub far_latency: Duration,
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

/// Has the supervisor of `directory` do as `wish` says. Returns what it says.
///
/// # Errors
/// If none runs there, or it can't.
pub fn ask(directory: &std::path::Path, wish: &Wish) -> anyhow::Result<String> {
    control::ask(&Layout::existing(directory)?, wish)
}

/// Everything that runs. Dropped in the order of its fields: the proxies go before the S3 server.
struct Running {
    proxies: Vec<Proxy>,
    admin: Service,
    deployment: Deployment,
    links: Vec<GroupLink>,
    requests: mpsc::Receiver<Request>,
    probe: Probe,
    status: StatusLine,
    bucket: Bucket,
    volumes: Vec<Volume>,
    layout: Layout,
    _relay: Relay,
    s3: Option<S3Server>,
    _lock: Lock,
}

/// Checks, makes and starts everything; ready when it returns.
async fn start(options: &Options, stop: &Stop) -> anyhow::Result<Running> {
    preflight::machine()?;
    let layout = Layout::create(&options.directory)?;
    let lock = layout.lock()?;
    summary::remove(&layout)?;
    let plan = Plan::draw(&layout, options.near, options.far, options.port_base)?;
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
    let deployment = deployment::prepare(&layout, &plan, &bucket, &volumes)?;
    let (links, relay) = relay(&plan, options.far_latency)?;
    let probe = Probe::new(&layout)?;
    let mut admin = admin(&layout, &plan)?;
    admin.wait_ready(&probe, stop).await?;
    let mut proxies = Vec::with_capacity(plan.proxies.len());
    for proxy in plan.proxies {
        let files = layout.proxy(proxy.index)?;
        node_config::write(&layout, &proxy, &files, admin.url())?;
        let mut proxy = Proxy::new(proxy, &files);
        proxy.service.start()?;
        proxies.push(proxy);
    }
    for proxy in &mut proxies {
        proxy.service.wait_ready(&probe, stop).await?;
    }
    let requests = listen(&layout)?;
    let status = StatusLine::new();
    Ok(Running {
        proxies,
        admin,
        deployment,
        links,
        requests,
        probe,
        status,
        bucket,
        volumes,
        layout,
        _relay: relay,
        s3,
        _lock: lock,
    })
}

/// Writes the admin's configuration and starts it.
fn admin(layout: &Layout, plan: &Plan) -> anyhow::Result<Service> {
    let files = layout.admin();
    let text = toml::to_string(&serde_json::json!({"admin": {
        "listen": plan.admin.to_string(),
        "directory": files.directory,
        "tls_certificate": layout.server_certificate(),
        "tls_key": layout.server_key(),
    }}))?;
    let text = format!("# Written by `forebay dev` at each start: changes made here are lost.\n\n{text}");
    layout::write_whole(&files.config, text.as_bytes(), Secrecy::Public)?;
    let url = format!("https://{}", plan.admin);
    let kind = Kind { command: "admin", ready: "/healthz" };
    let mut service = Service::new("the admin".to_owned(), kind, &files.config, &files.log, url);
    service.start()?;
    Ok(service)
}

/// Starts the relay of both groups.
fn relay(plan: &Plan, far_latency: Duration) -> anyhow::Result<(Vec<GroupLink>, Relay)> {
    let (mut links, mut paths) = (Vec::new(), Vec::new());
    for (group, latency) in [(NEAR, Duration::ZERO), (FAR, far_latency)] {
        let link = Arc::new(Link::new(Condition { latency, ..Condition::default() }));
        for proxy in plan.members(group) {
            let path = |to| Path { listen: proxy.relayed(to), to, link: Arc::clone(&link) };
            paths.extend(proxy.addresses().map(path));
        }
        if plan.members(group).next().is_some() {
            links.push(GroupLink { group, link });
        }
    }
    let relay = Relay::start(paths).context("the relay can't start")?;
    Ok((links, relay))
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
        Summary::new(&Sources {
            layout: &self.layout,
            admin: &self.admin,
            deployment: &self.deployment,
            proxies: &self.proxies,
            links: &self.links,
            bucket: &self.bucket,
            volumes: &self.volumes,
        })
    }

    /// Watches the services, answers requests, draws the status line; returns when it is time to stop.
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
                    let outcome = self.fulfil(&request.wish, stop).await;
                    match &outcome {
                        Ok(said) => self.status.say(said),
                        Err(e) => self.status.say(&format!("{}: {e:#}", request.wish)),
                    }
                    request.answer(&outcome).await;
                }
                Ok(None) => bail!("the control socket's task ended"),
                Err(_) => (),
            }
        }
        Ok(())
    }

    async fn fulfil(&mut self, wish: &Wish, stop: &Stop) -> anyhow::Result<String> {
        let said = match wish {
            Wish::Restart(target) => self.restart(*target, stop).await?,
            Wish::Link(change) => self.change_link(change)?,
        };
        self.summary().write(&self.layout)?;
        Ok(said)
    }

    /// Kills a service if it runs, and starts it with the same ports and disk.
    async fn restart(&mut self, target: Target, stop: &Stop) -> anyhow::Result<String> {
        let count = self.proxies.len();
        let service = match target {
            Target::Admin => &mut self.admin,
            Target::Proxy(index) => {
                let proxy = self.proxies.get_mut(index);
                &mut proxy.with_context(|| format!("there are proxies 0 to {}", count - 1))?.service
            }
        };
        let began = Instant::now();
        let pid = service.restart(&self.probe, stop).await?;
        let took = began.elapsed().as_secs_f64();
        Ok(format!("{} was started again, pid {pid}, ready after {took:.1} s", service.name))
    }

    fn change_link(&self, change: &LinkChange) -> anyhow::Result<String> {
        let names: Vec<&str> = self.links.iter().map(|link| link.group).collect();
        let GroupLink { group, link } = self
            .links
            .iter()
            .find(|link| link.group == change.group)
            .with_context(|| format!("there is no group {}; there are: {}", change.group, names.join(", ")))?;
        link.change(&parse_changes(&change.changes)?);
        Ok(format!("the link of group {group} is {}", link.condition()))
    }

    /// Says which services ended since the last look, and what they said last.
    fn report_deaths(&mut self) -> anyhow::Result<()> {
        let root = self.layout.root().display().to_string();
        let mut said = Vec::new();
        let proxies = self.proxies.iter_mut().map(|proxy| (proxy.plan.index.to_string(), &mut proxy.service));
        for (target, service) in proxies.chain([("admin".to_owned(), &mut self.admin)]) {
            if let Some(status) = service.ended()? {
                let again = format!("start it again with `forebay dev --dir {root} --restart {target}`");
                let (name, how, words) = (&service.name, describe(status), service.last_words());
                said.push(format!("{name} ended ({how}); {again}; its log says: {words}"));
            }
        }
        if !said.is_empty() {
            said.iter().for_each(|line| self.status.say(line));
            self.summary().write(&self.layout)?;
        }
        Ok(())
    }

    async fn draw_status(&mut self) {
        let mut sum = Figures::default();
        let mut alive = 0;
        for proxy in self.proxies.iter().filter(|proxy| proxy.service.pid().is_some()) {
            if let Some(figures) = self.probe.figures(&proxy.plan.url()).await {
                sum += figures;
                alive += 1;
            }
        }
        self.status.draw(sum, alive, self.proxies.len());
    }

    /// Proxies first, flushing, then the admin and the S3 server. A second Ctrl-C doesn't wait for the flush.
    async fn shut_down(mut self, stop: &Stop) {
        if let Err(e) = summary::remove(&self.layout) {
            self.status.say(&format!("{e:#}"));
        }
        let running = self.proxies.iter().filter(|proxy| proxy.service.pid().is_some()).count();
        self.status.say(&format!("stopping: {running} proxies flush (Ctrl-C again: don't wait)"));
        self.proxies.iter().for_each(|proxy| proxy.service.terminate());
        let deadline = Instant::now() + STOP_BOUND;
        for proxy in &mut self.proxies {
            if let Err(e) = proxy.service.wait_end(stop, deadline).await {
                self.status.say(&format!("{e:#}; what was dirty is on its disk and is flushed after the next start"));
            }
        }
        self.admin.terminate();
        if let Err(e) = self.admin.wait_end(stop, deadline).await {
            self.status.say(&format!("{e:#}"));
        }
        drop(self.s3.take());
        self.status.say("stopped");
    }
}
