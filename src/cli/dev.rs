//! `forebay dev`: flags only; `crate::dev` does the work.
//!
//! What contradicts itself (`--restart` with anything that starts something, `--prefix` without a bucket) is refused
//! here, with exit code 2; everything else that may be wrong is found by `crate::dev`, one line with the fix each.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::units::Time;
use crate::dev::control::{LinkChange, Target, Wish};
use crate::dev::{self, ExistingBucket, Options, Writes};

/// What the proxies of one machine can be asked for; more teach nothing.
const PROXIES_MAX: i64 = 16;

/// What only a start takes.
const STARTING: [&str; 6] = ["port_base", "proxies", "far_proxies", "far_latency", "seconds", "endpoint"];

/// `forebay dev`
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where data, keys, configuration and logs are kept; a second run goes on with what is there.
    #[arg(long, default_value = "./forebay-dev", value_name = "DIR")]
    dir: PathBuf,
    /// The first port: S3 there, the admin at the next, the proxies from the next ten on. 0 picks free ports.
    #[arg(long, default_value_t = 7400, value_name = "N")]
    port_base: u16,
    /// How many proxies are in the group near.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=PROXIES_MAX))]
    proxies: u16,
    /// How many proxies are in the group far; 0 leaves it out.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=PROXIES_MAX))]
    far_proxies: u16,
    /// What a round trip to the group far takes longer.
    #[arg(long, default_value = "5ms", value_name = "DURATION")]
    far_latency: Time,
    /// Stop after so many seconds. Default: when asked (Ctrl-C, SIGTERM).
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Have the `forebay dev` that runs in DIR kill proxy I (or `admin`), if it is alive, and start it again.
    #[arg(long, value_name = "I", conflicts_with_all = STARTING)]
    restart: Option<Target>,
    /// Have the `forebay dev` that runs in DIR change the link in front of a group: `up`, `cut`, `refused`, `latency=20ms`,
    /// `bandwidth=10MiB`, `bandwidth=max`, with commas between them; such as near:cut.
    #[arg(long, value_name = "GROUP:CHANGES", conflicts_with_all = STARTING, conflicts_with = "restart")]
    link: Option<LinkChange>,
    /// Serve an existing bucket of this S3 service, with credentials from the environment or ~/.aws/credentials.
    #[arg(long, value_name = "URL", requires = "bucket")]
    endpoint: Option<String>,
    /// The existing bucket.
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    bucket: Option<String>,
    /// Serve only what lies under this prefix of the existing bucket.
    #[arg(long, default_value = "", value_name = "PREFIX", requires = "endpoint")]
    prefix: String,
    /// The existing bucket's region.
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1", value_name = "REGION")]
    region: String,
    /// Write nothing to the existing bucket.
    #[arg(long, requires = "endpoint")]
    read_only: bool,
}

/// Runs what the flags ask for.
///
/// # Errors
/// One line with the fix.
pub fn run(args: DevArgs) -> anyhow::Result<()> {
    if let Some(wish) = args.restart.map(Wish::Restart).or(args.link.map(Wish::Link)) {
        println!("{}", dev::ask(&args.dir, &wish)?);
        return Ok(());
    }
    let writes = if args.read_only { Writes::Refused } else { Writes::Allowed };
    let existing = args.endpoint.zip(args.bucket).map(|(endpoint, name)| ExistingBucket {
        endpoint,
        region: args.region,
        name,
        prefix: args.prefix,
        writes,
    });
    dev::run(&Options {
        directory: args.dir,
        port_base: args.port_base,
        near: usize::from(args.proxies),
        far: usize::from(args.far_proxies),
        far_latency: args.far_latency.0,
        run_for: args.seconds.map(Duration::from_secs),
        existing,
    })
}
