//! Bodies as the listener hands them out and takes them back: they tell the connection's deadlines whom is waited for.
//!
//! A [`RequestBody`] that somebody awaits is the client's to send; an answer's frame that hyper has not gone on from is the
//! client's to take; everything else is ours. An `AnswerBody` also marks its request as in flight until it is dropped,
//! for the heartbeat and for drains. Made by `listener` only.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::deadline::Activity;
use super::heartbeat::InFlight;

/// A request's body.
pub struct RequestBody {
    incoming: Incoming,
    activity: Rc<Activity>,
    is_awaited: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, activity: Rc<Activity>) -> RequestBody {
        RequestBody { incoming, activity, is_awaited: false }
    }

    fn set_awaited(&mut self, is_awaited: bool) {
        if self.is_awaited != is_awaited {
            let count = self.activity.bodies_awaited.get();
            self.activity.bodies_awaited.set(if is_awaited { count + 1 } else { count - 1 });
            self.is_awaited = is_awaited;
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.incoming).poll_frame(cx);
        this.set_awaited(polled.is_pending());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.set_awaited(false);
    }
}

/// One request from its head to the end of its answer.
pub(super) struct Exchange {
    activity: Rc<Activity>,
    _in_flight: InFlight,
}

impl Exchange {
    pub(super) fn begin(activity: Rc<Activity>, in_flight: InFlight) -> Exchange {
        activity.request_began();
        Exchange { activity, _in_flight: in_flight }
    }

    /// The answer's body, which ends the exchange when it is dropped.
    pub(super) fn answer<B>(self, body: B) -> AnswerBody<B> {
        AnswerBody { body, exchange: self, is_untaken: false }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.activity.request_ended();
    }
}

/// An answer's body.
pub(super) struct AnswerBody<B> {
    body: B,
    exchange: Exchange,
    is_untaken: bool,
}

impl<B> AnswerBody<B> {
    fn set_untaken(&mut self, is_untaken: bool) {
        if self.is_untaken != is_untaken {
            let count = &self.exchange.activity.frames_untaken;
            count.set(if is_untaken { count.get() + 1 } else { count.get() - 1 });
            self.is_untaken = is_untaken;
        }
    }
}

impl<B: Body + Unpin> Body for AnswerBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        this.set_untaken(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for AnswerBody<B> {
    fn drop(&mut self) {
        self.set_untaken(false);
    }
}
