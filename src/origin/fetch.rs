//! Fetching: a GET with retries up to its headers, then its body into a bounded channel.
//!
//! After the headers there is no retry: bytes may be on their way to clients. The stream ends after the last byte,
//! with length and (where the store sent one) CRC-32C right, or with one error. Who drops the receiver ends the GET.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use forebay_shard::origin::{Fetched, OriginError, OriginErrorKind};
use futures::channel::mpsc;
use tokio::time::Instant;

use super::attempts::Attempts;
use super::fault::{broken, silent, transport};
use super::s3::{Got, S3Client};

/// The largest frame in the channel.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// How many frames it holds: 64 KiB × 8 = 512 KiB in flight, beside the socket's buffer.
const FRAMES_MAX: usize = 8;
/// How soon a GET that hangs notices that nobody wants it.
const CLOSED_CHECK: Duration = Duration::from_millis(100);

/// The way of a body to its asker.
pub type BodySender = mpsc::Sender<Result<Bytes, OriginError>>;

/// Begins a GET; what comes back beside `Fetched` is to be given to [`pump`].
pub async fn fetch(
    client: &S3Client,
    name: &str,
    block_bytes_max: u32,
) -> Result<Option<(Fetched, Got, BodySender)>, OriginError> {
    let got = Attempts::begin(client).run(|| client.get(name)).await.map_err(|fault| fault.error)?;
    let Some(got) = got else { return Ok(None) };
    let len_bytes = got.meta.len_bytes;
    if len_bytes > u64::from(block_bytes_max) {
        let words = format!("the object has {len_bytes} bytes, the volume's `block_size` is {block_bytes_max}");
        return Err(broken(OriginErrorKind::TooLarge, client.settings(), &words));
    }
    // A channel holds its capacity and one frame per sender.
    let (sender, body) = mpsc::channel(FRAMES_MAX - 1);
    Ok(Some((Fetched { len_bytes, etag: got.meta.etag.clone(), body }, got, sender)))
}

/// Moves the body, to its end, its failure, or the asker's leaving.
pub async fn pump(client: &S3Client, got: Got, mut sender: BodySender) {
    if let Err(Stop::Failed(error)) = copy(client, got, &mut sender).await {
        client.store.counters.failed(error.kind);
        // A clone has a place of its own in the channel, so the error arrives even where the channel is full.
        let _ = sender.clone().try_send(Err(error));
    }
}

/// Why a body ended early.
enum Stop {
    /// The asker left.
    Unwanted,
    /// The store, or an asker that took nothing for the whole deadline.
    Failed(OriginError),
}

async fn copy(client: &S3Client, mut got: Got, sender: &mut BodySender) -> Result<(), Stop> {
    let settings = client.settings();
    let mut crc = got.crc32c.map(|_| Crc::new(CrcAlgorithm::Crc32Iscsi));
    let mut waiting_left = settings.deadline;
    let mut copied_bytes = 0u64;
    loop {
        let began = Instant::now();
        let bytes = next(client, &mut got, sender, waiting_left.min(settings.read_timeout)).await?;
        waiting_left = waiting_left.saturating_sub(began.elapsed());
        let Some(mut bytes) = bytes else { break };
        copied_bytes += bytes.len() as u64;
        client.store.counters.fetched(bytes.len());
        if let Some(crc) = &mut crc {
            crc.update(&bytes);
        }
        while !bytes.is_empty() {
            let frame = bytes.split_to(bytes.len().min(FRAME_BYTES_MAX));
            give(client, sender, frame).await?;
        }
    }
    let corrupt = |words: &str| Stop::Failed(broken(OriginErrorKind::Corrupt, settings, words));
    if copied_bytes != got.meta.len_bytes {
        return Err(corrupt("a body of another length than announced"));
    }
    if crc.is_some_and(|crc| Some(crc.finalize()) != got.crc32c.map(u64::from)) {
        return Err(corrupt("a body that does not match the store's CRC-32C"));
    }
    Ok(())
}

/// The next bytes from the store; `None` at the end.
async fn next(client: &S3Client, got: &mut Got, sender: &BodySender, limit: Duration) -> Result<Option<Bytes>, Stop> {
    let until = Instant::now() + limit;
    loop {
        if sender.is_closed() {
            return Err(Stop::Unwanted);
        }
        let check = until.min(Instant::now() + CLOSED_CHECK);
        match tokio::time::timeout_at(check, got.response.chunk()).await {
            Ok(bytes) => return bytes.map_err(|error| Stop::Failed(transport(error, client.settings()).error)),
            Err(_) if Instant::now() >= until => return Err(Stop::Failed(silent(client.settings(), limit).error)),
            Err(_) => {}
        }
    }
}

/// Puts one frame into the channel; waits for room at most the deadline, so that a stuck asker frees its place.
async fn give(client: &S3Client, sender: &mut BodySender, frame: Bytes) -> Result<(), Stop> {
    let deadline = client.settings().deadline;
    match tokio::time::timeout(deadline, poll_fn(|cx| sender.poll_ready(cx))).await {
        Ok(Ok(())) => sender.start_send(Ok(frame)).map_err(|_| Stop::Unwanted),
        Ok(Err(_)) => Err(Stop::Unwanted),
        Err(_) => {
            let words = format!("the asker took nothing for {deadline:?}");
            Err(Stop::Failed(broken(OriginErrorKind::Timeout, client.settings(), &words)))
        }
    }
}
