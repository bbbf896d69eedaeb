//! What runs where: `dev.json` for programs, a table and curl lines for people.
//!
//! Called by `dev.rs` when everything is ready and again after a restart. `dev.json` is there exactly while the
//! proxies of this run are (its absence means "not ready"), is moved into place whole, and is its owner's alone,
//! because it holds the token and the keys of the built-in S3 server.

use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use super::deployment::Deployment;
use super::layout::{Layout, Secrecy, write_whole};
use super::node_config::{Bucket, Volume};
use super::relay::link::GroupLink;
use super::supervise::{Proxy, Service};

/// The contents of `dev.json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    ca: PathBuf,
    proxies: Vec<ProxySummary>,
    s3: S3Summary,
    volumes: Vec<VolumeSummary>,
    token: String,
    pid: u32,
    admin: AdminSummary,
    groups: Vec<GroupSummary>,
}

#[derive(Debug, Serialize)]
struct AdminSummary {
    url: String,
    operator_token: String,
    pid: u32,
}

#[derive(Debug, Serialize)]
struct GroupSummary {
    name: &'static str,
    /// How its relay is, in words.
    link: String,
    members: Vec<MemberSummary>,
}

/// A member is a proxy, and has the address at which its group's relay stands in front of it.
#[derive(Debug, Serialize)]
struct MemberSummary {
    name: String,
    address: String,
    proxy: usize,
}

/// What a summary is of.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Where everything is kept.
    pub layout: &'a Layout,
    /// The admin.
    pub admin: &'a Service,
    /// What it knows.
    pub deployment: &'a Deployment,
    /// The proxies.
    pub proxies: &'a [Proxy],
    /// The links of the groups.
    pub links: &'a [GroupLink],
    /// The bucket.
    pub bucket: &'a Bucket,
    /// The volumes.
    pub volumes: &'a [Volume],
}

#[derive(Debug, Serialize)]
struct ProxySummary {
    url: String,
    shards: Vec<String>,
    pid: u32,
}

/// The keys are empty for an existing bucket: whoever runs this has them already, and they are not copied.
#[derive(Debug, Serialize)]
struct S3Summary {
    endpoint: String,
    region: String,
    access_key: String,
    secret_key: String,
    bucket: String,
}

#[derive(Debug, Serialize)]
struct VolumeSummary {
    name: String,
    prefix: String,
    mode: &'static str,
}

impl Summary {
    /// Of what runs now. A proxy that doesn't has pid 0.
    #[must_use]
    pub fn new(of: &Sources<'_>) -> Summary {
        let Sources { layout, admin, deployment, proxies, links, bucket, volumes } = *of;
        let (access_key, secret_key) = bucket.keys.clone().unwrap_or_default();
        let proxy = |proxy: &Proxy| ProxySummary {
            url: proxy.plan.url(),
            shards: proxy.plan.shard_urls(),
            pid: proxy.service.pid().unwrap_or(0),
        };
        let volume = |volume: &Volume| VolumeSummary {
            name: volume.name.clone(),
            prefix: volume.prefix.clone(),
            mode: volume.mode.name(),
        };
        let member = |proxy: &Proxy| MemberSummary {
            name: proxy.plan.name(),
            address: proxy.plan.member_address().to_string(),
            proxy: proxy.plan.index,
        };
        let group = |GroupLink { group, link }: &GroupLink| GroupSummary {
            name: group,
            link: link.condition().to_string(),
            members: proxies.iter().filter(|proxy| proxy.plan.group == *group).map(member).collect(),
        };
        Summary {
            ca: layout.ca_certificate(),
            proxies: proxies.iter().map(proxy).collect(),
            s3: S3Summary {
                endpoint: bucket.endpoint.clone(),
                region: bucket.region.clone(),
                access_key,
                secret_key,
                bucket: bucket.name.clone(),
            },
            volumes: volumes.iter().map(volume).collect(),
            token: deployment.token.clone(),
            pid: std::process::id(),
            admin: AdminSummary {
                url: admin.url().to_owned(),
                operator_token: deployment.operator_token.clone(),
                pid: admin.pid().unwrap_or(0),
            },
            groups: links.iter().map(group).collect(),
        }
    }

    /// Moves `dev.json` into place.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        write_whole(&layout.summary(), &serde_json::to_vec_pretty(self)?, Secrecy::Secret)
    }

    /// What is printed when all is ready.
    #[must_use]
    pub fn table(&self, layout: &Layout) -> String {
        let mut text = String::new();
        let mut line = |what: &str, place: &str, note: &str| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "  {what:<9} {place:<26} {note}");
        };
        line("S3", &self.s3.endpoint, &format!("bucket {}", self.s3.bucket));
        for (index, proxy) in self.proxies.iter().enumerate() {
            let ports: Vec<&str> = proxy.shards.iter().filter_map(|url| url.rsplit(':').next()).collect();
            let log = layout.root().join(format!("proxy-{index}/log"));
            let note = format!("shard ports {}, pid {}, log {}", ports.join(" "), proxy.pid, log.display());
            line(&format!("proxy {index}"), &proxy.url, &note);
        }
        line(
            "admin",
            &self.admin.url,
            &format!("pid {}, operator's token in {}", self.admin.pid, layout.operator_token().display()),
        );
        for group in &self.groups {
            let members: Vec<&str> = group.members.iter().map(|member| member.address.as_str()).collect();
            line("group", group.name, &format!("link {}; members at {}", group.link, members.join(" ")));
        }
        for volume in &self.volumes {
            line("volume", &volume.name, &format!("{}, keys under {:?} in the bucket", volume.mode, volume.prefix));
        }
        text
    }

    /// Lines to copy into another shell.
    #[must_use]
    pub fn curl_lines(&self, layout: &Layout) -> String {
        let ca = quoted(&self.ca);
        let token = quoted(&layout.token());
        let url = &self.proxies[0].url;
        let curl = format!("curl --cacert {ca} -H \"Authorization: Bearer $(cat {token})\"");
        let volume = &self.volumes[0];
        let mut text = String::new();
        let is_read_only = volume.mode == super::node_config::Mode::ReadOnly.name();
        if is_read_only {
            let _ = writeln!(text, "  {curl} -i -o block {url}/v1/volumes/{}/blocks/KEY", volume.name);
        } else {
            let block = format!("{url}/v1/volumes/{}/blocks/hello", volume.name);
            let _ = writeln!(text, "  head -c 1000000 /dev/urandom > /tmp/block");
            let _ = writeln!(text, "  {curl} -T /tmp/block {block}");
            let _ = writeln!(text, "  {curl} -D - -o /tmp/again {block} && cmp /tmp/block /tmp/again");
        }
        let _ = writeln!(text, "  {curl} {url}/v1/status");
        let _ = writeln!(text, "or, through the group that is near:\n");
        let admin = &self.admin.url;
        let _ = writeln!(text, "  export FOREBAY_ADMIN={admin} FOREBAY_CA={ca} FOREBAY_TOKEN_FILE={token}");
        if !self.s3.access_key.is_empty() {
            let credentials = quoted(&layout.s3_credentials());
            let _ = writeln!(text, "  export AWS_SHARED_CREDENTIALS_FILE={credentials}    # for when no proxy answers");
        }
        let forebay = std::env::current_exe().map_or_else(|_| "forebay".to_owned(), |path| quoted(&path));
        let _ = writeln!(text, "  {forebay} probe {}", volume.name);
        let _ = writeln!(
            text,
            "  {forebay} get {} {} -o /tmp/again",
            volume.name,
            if is_read_only { "KEY" } else { "hello" }
        );
        text
    }
}

/// Takes `dev.json` away: what it says is no longer, or not yet, true.
///
/// # Errors
/// If it is there and can't be removed.
pub fn remove(layout: &Layout) -> anyhow::Result<()> {
    match fs::remove_file(layout.summary()) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context("an old dev.json can't be removed"),
        _ => Ok(()),
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_the_shell() {
        assert_eq!(quoted(Path::new("/a/b-c_1.pem")), "/a/b-c_1.pem");
        assert_eq!(quoted(Path::new("/my dir/it's")), r"'/my dir/it'\''s'");
    }
}
