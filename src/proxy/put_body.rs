//! Takes the body of a PUT: all of it, or nothing happens.
//!
//! Called by `handler` once everything that the head can tell is in order. Frames are kept as they come (no copy);
//! length and digests are checked as they arrive, so that a half-closed, padded or falsified body never becomes a block.
//! What bodies may hold on a core is bounded: a body is admitted by its Content-Length before a byte of it is read.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use forebay_io::checksum::{Digest, Digester};
use http_body::Body;

use crate::problem::Problem;
use crate::proxy::conditions::ContentDigest;
use crate::proxy::metrics::CoreMetrics;
use crate::proxy::respond::Failure;

/// A fast sender never makes a read wait: after so many bytes others get their turn.
const TURN_BYTES: usize = 256 << 10;

/// What bodies of puts may hold on one core.
pub struct PutBudget {
    bytes_max: u64,
    bytes_held: Cell<u64>,
    metrics: Rc<CoreMetrics>,
}

impl PutBudget {
    /// A budget of `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: u64, metrics: Rc<CoreMetrics>) -> Rc<PutBudget> {
        Rc::new(PutBudget { bytes_max, bytes_held: Cell::new(0), metrics })
    }

    /// Room for a body of `bytes`, or nothing if there is none now.
    #[must_use]
    pub fn admit(self: &Rc<Self>, bytes: u64) -> Option<Admitted> {
        let held = self.bytes_held.get().checked_add(bytes).filter(|held| *held <= self.bytes_max)?;
        self.set(held);
        Some(Admitted { budget: Rc::clone(self), bytes })
    }

    fn set(&self, held: u64) {
        self.bytes_held.set(held);
        self.metrics.set_put_bytes_held(held);
    }
}

/// A body's room, given back when dropped.
pub struct Admitted {
    budget: Rc<PutBudget>,
    bytes: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.budget.set(self.budget.bytes_held.get() - self.bytes);
    }
}

/// A whole body.
#[derive(Debug)]
pub struct Received {
    /// In order.
    pub frames: Vec<Bytes>,
    /// Of what was received: the ETag.
    pub digest: Digest,
}

/// Receives exactly `len_bytes` and checks `expected`.
///
/// # Errors
/// The body broke off, was shorter or longer than announced, or does not match its digest. Nothing is kept of it.
pub async fn receive<T>(
    mut body: T,
    len_bytes: u32,
    mut expected: ContentDigest,
    metrics: &CoreMetrics,
) -> Result<Received, Failure>
where
    T: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let (mut frames, mut digester) = (Vec::new(), Digester::default());
    let (mut received, mut turn) = (0usize, 0usize);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| incomplete(received, len_bytes, &error.to_string()))?;
        // Trailers say nothing that a put asks for.
        let Ok(bytes) = frame.into_data() else { continue };
        received += bytes.len();
        metrics.received(bytes.len() as u64);
        if received > len_bytes as usize {
            return Err(incomplete(received, len_bytes, "more came than was announced"));
        }
        digester.update(&bytes);
        expected.update(&bytes);
        turn += bytes.len();
        if !bytes.is_empty() {
            frames.push(bytes);
        }
        if turn >= TURN_BYTES {
            turn = 0;
            give_way().await;
        }
    }
    if received != len_bytes as usize {
        return Err(incomplete(received, len_bytes, "the client stopped"));
    }
    if !expected.is_matched() {
        return Err(Failure::new(Problem::DigestMismatch, "the body's hash is not the one in Content-Digest"));
    }
    Ok(Received { frames, digest: digester.finish() })
}

/// Reads the rest of a refused body, at most `bytes_max`, and keeps nothing of it.
pub async fn discard<T>(mut body: T, bytes_max: usize)
where
    T: Body<Data = Bytes> + Unpin,
{
    let (mut discarded, mut turn) = (0usize, 0usize);
    while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        (discarded, turn) = (discarded + bytes, turn + bytes);
        if discarded > bytes_max {
            return;
        }
        if turn >= TURN_BYTES {
            turn = 0;
            give_way().await;
        }
    }
}

fn incomplete(received: usize, len_bytes: u32, why: &str) -> Failure {
    Failure::new(Problem::BodyIncomplete, format!("{received} of {len_bytes} bytes arrived: {why}"))
}

/// Lets other tasks of this core run.
async fn give_way() {
    let mut is_second = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::executor::block_on;
    use http::HeaderMap;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn body(frames: Vec<Result<Bytes, String>>) -> impl Body<Data = Bytes, Error = String> + Unpin {
        StreamBody::new(futures::stream::iter(frames.into_iter().map(|frame| frame.map(Frame::data))))
    }

    fn receive_now(frames: Vec<Result<Bytes, String>>, len_bytes: u32) -> Result<Received, Problem> {
        let nothing = ContentDigest::of(&HeaderMap::new()).unwrap();
        block_on(receive(body(frames), len_bytes, nothing, &CoreMetrics::default())).map_err(|failure| failure.problem)
    }

    #[test]
    fn a_body_is_received_whole_or_not_at_all() {
        let part = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        let received = receive_now(vec![part("fore"), part(""), part("bay")], 7).unwrap();
        assert_eq!((received.frames.concat().as_slice(), received.digest), (&b"forebay"[..], Digest::of(b"forebay")));
        assert_eq!(receive_now(vec![], 0).unwrap().digest, Digest::of(b""));
        for (frames, len_bytes) in [
            (vec![part("fore")], 7),
            (vec![part("fore"), Err("reset".to_owned())], 4),
            (vec![part("forebay!")], 7),
            (vec![], 1),
        ] {
            assert_eq!(receive_now(frames, len_bytes).unwrap_err(), Problem::BodyIncomplete);
        }
    }

    #[test]
    fn a_long_body_gives_others_their_turn() {
        let frames = vec![Ok(Bytes::from(vec![7; TURN_BYTES])); 4];
        let (metrics, nothing) = (CoreMetrics::default(), ContentDigest::of(&HeaderMap::new()).unwrap());
        let mut receiving = Box::pin(receive(body(frames), 4 * TURN_BYTES as u32, nothing, &metrics));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let turns = (1..100).find(|_| receiving.as_mut().poll(&mut cx).is_ready());
        assert_eq!(turns, Some(5));
    }

    #[test]
    fn the_budget_is_given_back() {
        let budget = PutBudget::new(10, Rc::default());
        let one = budget.admit(6).unwrap();
        assert!(budget.admit(5).is_none() && budget.admit(u64::MAX).is_none());
        let other = budget.admit(4).unwrap();
        assert!(budget.admit(1).is_none());
        drop((one, other));
        assert!(budget.admit(10).is_some());
    }
}
