//! Asks the proxies how they are, over TLS, as any client would: ready or not, and the figures of the status line.
//!
//! Called by `dev.rs` while proxies start and once a second after that. It trusts the local authority and nothing
//! else, and never goes through a proxy of the environment.

use std::fs;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::Context;
use reqwest::{Certificate, Client, StatusCode};
use serde_json::Value;

use super::layout::Layout;

/// A proxy on the same machine that doesn't answer within this is not well.
const ANSWER_BOUND: Duration = Duration::from_millis(500);

/// What the status line shows of one proxy, or of all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// GETs answered from memory or disk.
    pub hits: u64,
    /// GETs that went to the origin.
    pub misses: u64,
    /// Acknowledged, not yet in the bucket.
    pub dirty_blocks: u64,
    /// The same in bytes.
    pub dirty_bytes: u64,
    /// Payload sent to clients and taken from them, since the start.
    pub payload_bytes: u64,
}

/// A client of the proxies.
#[derive(Debug)]
pub struct Probe {
    client: Client,
}

impl Probe {
    /// Trusts the authority of `layout`.
    ///
    /// # Errors
    /// If its certificate can't be read.
    pub fn new(layout: &Layout) -> anyhow::Result<Probe> {
        let path = layout.ca_certificate();
        let pem = fs::read(&path).with_context(|| format!("{} can't be read", path.display()))?;
        let client = Client::builder()
            .tls_certs_only([Certificate::from_pem(&pem)?])
            .no_proxy()
            .http1_only()
            .timeout(ANSWER_BOUND)
            .build()?;
        Ok(Probe { client })
    }

    /// Whether `url` answers 200.
    pub async fn is_ready(&self, url: &str) -> bool {
        let answer = self.client.get(url).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// The figures of the proxy at `url`; `None` if it doesn't tell.
    pub async fn figures(&self, url: &str) -> Option<Figures> {
        let answer = self.client.get(format!("{url}/v1/status")).send().await.ok()?.error_for_status().ok()?;
        let status: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        Some(Figures::read(&status))
    }
}

impl Figures {
    /// Reads `/v1/status`. What it doesn't tell counts as nothing.
    fn read(status: &Value) -> Figures {
        let number = |name: &str| status.get(name).and_then(Value::as_u64).unwrap_or(0);
        Figures {
            hits: number("hits"),
            misses: number("misses"),
            dirty_blocks: number("dirty_blocks"),
            dirty_bytes: number("dirty_bytes"),
            payload_bytes: number("payload_bytes"),
        }
    }
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.dirty_blocks += other.dirty_blocks;
        self.dirty_bytes += other.dirty_bytes;
        self.payload_bytes += other.payload_bytes;
    }
}
