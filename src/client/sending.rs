//! A put's body that tells how much of it has gone out, for whoever shows progress.
//!
//! Made by `write` for each attempt; an attempt that is made again begins at nothing. What was handed to the connection counts as sent: at most the socket's
//! buffers are ahead of the member.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A connection takes the body in pieces of this size.
const PIECE_BYTES: usize = 64 << 10;

/// How much of a body has been sent.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<AtomicU64>);

impl Sent {
    /// In bytes, of the attempt that goes on.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body of one attempt.
pub(super) struct Sending {
    rest: Bytes,
    sent: Sent,
}

impl Sending {
    pub(super) fn new(body: Bytes, sent: &Sent) -> Sending {
        sent.0.store(0, Ordering::Relaxed);
        Sending { rest: body, sent: sent.clone() }
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(len);
        self.sent.0.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn what_is_taken_is_counted_and_an_attempt_begins_anew() {
        let (body, sent) = (Bytes::from(vec![7; PIECE_BYTES * 2 + 5]), Sent::default());
        for _ in 0..2 {
            let mut sending = Sending::new(body.clone(), &sent);
            assert_eq!((sent.bytes(), sending.size_hint().exact()), (0, Some(body.len() as u64)));
            let mut context = Context::from_waker(Waker::noop());
            let (mut taken, mut seen) = (Vec::new(), Vec::new());
            while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut sending).poll_frame(&mut context) {
                taken.extend(frame.into_data().unwrap_or_default());
                seen.push(sent.bytes() as usize);
            }
            assert_eq!((taken, seen), (body.to_vec(), vec![PIECE_BYTES, PIECE_BYTES * 2, PIECE_BYTES * 2 + 5]));
            assert!(sending.is_end_stream());
        }
    }
}
