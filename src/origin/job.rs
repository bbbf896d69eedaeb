//! What crosses from an asker's thread to the pool's: one message per request, with the way back for its answer.
//!
//! A dropped answer channel cancels the job: while it waits, it is thrown away; while it runs, its connection is cut.

use std::future::Future;

use forebay_shard::origin::{Fetched, OriginError, OriginMeta, Store, Stored};
use futures::channel::oneshot;

use super::attempts::Attempts;
use super::check::{ConditionalPut, check, verify_conditional_put};
use super::fetch::{fetch, pump};
use super::s3::S3Client;
use super::store::store;

/// The way back.
pub type Answer<T> = oneshot::Sender<Result<T, OriginError>>;

/// One request about the object `name`.
pub struct Job {
    /// The object's name in the bucket; for [`Task::Check`] a prefix.
    pub name: String,
    /// What to do.
    pub task: Task,
}

/// What to do, and who wants to know.
pub enum Task {
    /// GET; objects longer than the volume's blocks are refused.
    Fetch(u32, Answer<Option<Fetched>>),
    /// Conditional PUT.
    Store(Store, Answer<Stored>),
    /// HEAD.
    Head(Answer<Option<OriginMeta>>),
    /// DELETE.
    Delete(Answer<()>),
    /// The check at start.
    Check(Answer<()>),
    /// The race of creates.
    VerifyConditionalPut(Answer<ConditionalPut>),
}

impl Job {
    /// Does it and answers.
    pub async fn run(self, client: &S3Client) {
        let name = &self.name;
        match self.task {
            Task::Fetch(block_bytes_max, answer) => run_fetch(client, name, block_bytes_max, answer).await,
            Task::Store(content, answer) => reply(client, answer, store(client, name, &content)).await,
            Task::Head(answer) => {
                let head =
                    async { Attempts::begin(client).run(|| client.head(name)).await.map_err(|fault| fault.error) };
                reply(client, answer, head).await;
            }
            Task::Delete(answer) => {
                let delete =
                    async { Attempts::begin(client).run(|| client.delete(name)).await.map_err(|fault| fault.error) };
                reply(client, answer, delete).await;
            }
            Task::Check(answer) => reply(client, answer, check(client, name)).await,
            Task::VerifyConditionalPut(answer) => reply(client, answer, verify_conditional_put(client, name)).await,
        }
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_unwanted(&self) -> bool {
        match &self.task {
            Task::Fetch(_, answer) => answer.is_canceled(),
            Task::Store(_, answer) => answer.is_canceled(),
            Task::Head(answer) => answer.is_canceled(),
            Task::Delete(answer) | Task::Check(answer) => answer.is_canceled(),
            Task::VerifyConditionalPut(answer) => answer.is_canceled(),
        }
    }
}

async fn run_fetch(client: &S3Client, name: &str, block_bytes_max: u32, mut answer: Answer<Option<Fetched>>) {
    let outcome = unless_canceled(&mut answer, fetch(client, name, block_bytes_max)).await;
    match outcome {
        None => {}
        Some(Ok(Some((fetched, got, sender)))) => {
            // An asker that left in between drops the receiver: the pump notices.
            let _ = answer.send(Ok(Some(fetched)));
            pump(client, got, sender).await;
        }
        Some(Ok(None)) => send(client, answer, Ok(None)),
        Some(Err(error)) => send(client, answer, Err(error)),
    }
}

async fn reply<T>(client: &S3Client, mut answer: Answer<T>, work: impl Future<Output = Result<T, OriginError>>) {
    if let Some(outcome) = unless_canceled(&mut answer, work).await {
        send(client, answer, outcome);
    }
}

fn send<T>(client: &S3Client, answer: Answer<T>, outcome: Result<T, OriginError>) {
    if let Err(error) = &outcome {
        client.store.counters.failed(error.kind);
    }
    // Nobody to tell: the asker left at the last moment.
    let _ = answer.send(outcome);
}

async fn unless_canceled<T, R>(answer: &mut oneshot::Sender<R>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = answer.cancellation() => None,
        outcome = work => Some(outcome),
    }
}
