//! The attempts of one request: how many, how far apart, until when. One place decides whether a fault is worth
//! another attempt.
//! Called by `job`, `fetch`, `store` and `check`.

use std::future::Future;
use std::time::Duration;

use forebay_shard::origin::OriginErrorKind;
use tokio::time::Instant;

use super::fault::{Effect, Fault, silent};
use super::retry::pause;
use super::s3::S3Client;

/// The attempts of one request.
pub struct Attempts<'a> {
    client: &'a S3Client,
    retries: u32,
    reloads: u32,
    until: Instant,
}

impl<'a> Attempts<'a> {
    /// A request begins: its deadline runs.
    pub fn begin(client: &'a S3Client) -> Attempts<'a> {
        client.store.budget.earn();
        Attempts { client, retries: 0, reloads: 0, until: Instant::now() + client.settings().deadline }
    }

    /// One attempt, cut at the request's deadline.
    pub async fn limit<T>(&self, attempt: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        match tokio::time::timeout_at(self.until, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(silent(self.client.settings(), self.client.settings().deadline)),
        }
    }

    /// Runs `attempt` until it succeeds or is not worth another.
    pub async fn run<T, F>(&mut self, attempt: impl Fn() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        loop {
            match self.limit(attempt()).await {
                Err(fault) if self.again(&fault).await => {}
                outcome => return outcome,
            }
        }
    }

    /// Whether to try again after `fault`; pauses first if so.
    pub async fn again(&mut self, fault: &Fault) -> bool {
        use OriginErrorKind::{Timeout, Unavailable, Unreachable};
        if fault.effect == Effect::Expired && self.reloads == 0 {
            self.reloads = 1;
            return self.client.store.signer.reload();
        }
        let transient = matches!(fault.error.kind, Timeout | Unavailable | Unreachable);
        (transient || fault.effect == Effect::ConditionFailed) && self.rest(fault.error.retry_after).await
    }

    async fn rest(&mut self, retry_after: Option<Duration>) -> bool {
        let settings = &self.client.settings().retry;
        if self.retries + 1 >= settings.attempts_max {
            return false;
        }
        let pause = pause(settings, self.retries, retry_after);
        // A pause that is longer than the request may last is the asker's to take: it gets `retry_after`.
        if Instant::now() + pause >= self.until || !self.client.store.budget.spend() {
            return false;
        }
        self.retries += 1;
        self.client.store.counters.retried();
        tokio::time::sleep(pause).await;
        true
    }
}
