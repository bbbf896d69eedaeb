//! `[limits]` checked: every bound is in a range that makes sense.
//!
//! Part of `Config::check`. What runs takes its bounds from [`Limits`] and has no figures of its own.

use std::time::Duration;

use crate::config::checked::ConfigError;
use crate::config::raw::RawLimits;
use crate::config::units::Size;

/// Bounds, each described at its key in `raw.rs`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// `header_bytes`.
    pub header_bytes: usize,
    /// `header_count`.
    pub header_count: usize,
    /// `http2_streams`.
    pub http2_streams: u32,
    /// `handshake_timeout`.
    pub handshake_timeout: Duration,
    /// `header_timeout`.
    pub header_timeout: Duration,
    /// `body_timeout`.
    pub body_timeout: Duration,
    /// `body_deadline`.
    pub body_deadline: Duration,
    /// `write_timeout`.
    pub write_timeout: Duration,
    /// `idle_timeout`.
    pub idle_timeout: Duration,
    /// `queue_depth`.
    pub queue_depth: usize,
    /// `fills`.
    pub fills: usize,
    /// `flushes`.
    pub flushes: usize,
    /// `commit_delay`.
    pub commit_delay: Duration,
    /// `tokens`.
    pub tokens: usize,
    /// `origin_threads`.
    pub origin_threads: usize,
    /// `origin_concurrency`.
    pub origin_concurrency: usize,
    /// `origin_queue`.
    pub origin_queue: usize,
    /// `origin_connect_timeout`.
    pub origin_connect_timeout: Duration,
    /// `origin_read_timeout`.
    pub origin_read_timeout: Duration,
    /// `origin_deadline`.
    pub origin_deadline: Duration,
}

/// Checks `[limits]`.
///
/// # Errors
/// The first mistake found.
pub fn check_limits(limits: &RawLimits) -> Result<Limits, ConfigError> {
    let header_bytes = match limits.header_bytes {
        Size::Bytes(bytes @ 8192..=1_048_576) => usize::try_from(bytes).expect("at most 1 MiB"),
        _ => return Err(ConfigError::new("limits.header_bytes", "set 8KiB to 1MiB")),
    };
    for (key, count, most) in [
        ("header_count", limits.header_count, 1024),
        ("connections_per_core", limits.connections_per_core.unwrap_or(1), 1 << 20),
        ("http2_streams", limits.http2_streams as usize, 1024),
        ("queue_depth", limits.queue_depth, 1 << 20),
        ("fills", limits.fills, 1 << 16),
        ("flushes", limits.flushes, 1024),
        ("tokens", limits.tokens, 1 << 20),
        ("origin_threads", limits.origin_threads, 256),
        ("origin_concurrency", limits.origin_concurrency, 1 << 16),
        ("origin_queue", limits.origin_queue, 1 << 20),
    ] {
        if count == 0 || count > most {
            return Err(ConfigError::new(format!("limits.{key}"), format!("{count} is out of range: set 1 to {most}")));
        }
    }
    for (key, time) in [
        ("handshake_timeout", limits.handshake_timeout),
        ("header_timeout", limits.header_timeout),
        ("body_timeout", limits.body_timeout),
        ("body_deadline", limits.body_deadline),
        ("write_timeout", limits.write_timeout),
        ("idle_timeout", limits.idle_timeout),
        ("origin_connect_timeout", limits.origin_connect_timeout),
        ("origin_read_timeout", limits.origin_read_timeout),
        ("origin_deadline", limits.origin_deadline),
    ] {
        if time.0 < Duration::from_millis(10) {
            return Err(ConfigError::new(format!("limits.{key}"), format!("{time} is too short: set at least 10ms")));
        }
    }
    Ok(Limits {
        header_bytes,
        header_count: limits.header_count,
        http2_streams: limits.http2_streams,
        handshake_timeout: limits.handshake_timeout.0,
        header_timeout: limits.header_timeout.0,
        body_timeout: limits.body_timeout.0,
        body_deadline: limits.body_deadline.0,
        write_timeout: limits.write_timeout.0,
        idle_timeout: limits.idle_timeout.0,
        queue_depth: limits.queue_depth,
        fills: limits.fills,
        flushes: limits.flushes,
        commit_delay: limits.commit_delay.0,
        tokens: limits.tokens,
        origin_threads: limits.origin_threads,
        origin_concurrency: limits.origin_concurrency,
        origin_queue: limits.origin_queue,
        origin_connect_timeout: limits.origin_connect_timeout.0,
        origin_read_timeout: limits.origin_read_timeout.0,
        origin_deadline: limits.origin_deadline.0,
    })
}
