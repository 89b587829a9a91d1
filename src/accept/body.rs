//! Bodies with an end in time: what is read from the caller, what is written to it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::Error;
use super::http::Flight;
use crate::wire::Body;
use crate::wire::body::Broken;

/// How much of a body that nobody wants is read on for at the least, and at the most, in bytes; in between, as much as one that is wanted may have.
pub const LEAST_UNREAD: usize = 1 << 20;
pub(super) const MOST_UNREAD: usize = 16 << 20;

/// How long a body that nobody wants is read on for: half a megabyte over a megabit a second.
const LINGER: Duration = Duration::from_secs(5);

/// Reads up to `limit` more bytes and forgets them. What does not end by then has its connection closed (HTTP/1.1) or its stream reset (HTTP/2), which
/// the HTTP library does.
async fn drain(mut incoming: Incoming, limit: usize) {
    let mut left = limit;
    while let Some(Ok(frame)) = incoming.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Why the reading of a request's body ended early.
#[must_use]
pub fn why_broken(broken: &Broken) -> Error {
    broken.downcast_ref::<Error>().copied().unwrap_or(Error::CallerBrokeBody)
}

/// A caller's body, which must have arrived by its deadline; and what nobody read of it, once it was dropped.
pub(super) fn by_deadline(incoming: Incoming, deadline: Instant) -> (Body, Option<Unread>) {
    if incoming.is_end_stream() {
        return (Body::Empty, None);
    }
    let (left, unread) = oneshot::channel();
    let body = Arriving { incoming: Some(incoming), deadline, sleep: None, begun: false, left: Some(left) };
    (Body::stream(body), Some(Unread(unread)))
}

/// A body that its request's handler may leave unread, or half read.
pub(super) struct Unread(oneshot::Receiver<Left>);

/// What it left.
struct Left {
    incoming: Incoming,
    begun: bool,
}

impl Unread {
    /// Reads on beside the answer and forgets it, up to `most` bytes and for [`LINGER`]. Most clients send all of a body before they look for an answer. They
    /// would else see a reset and never the answer: TCP throws away what it has not read when unread bytes meet a closed socket, curl before 8.0 takes the
    /// reset of an HTTP/2 stream for a failure, although RFC 9113 §8.1 asks for it, and httpx waits for a window that nobody opens.
    ///
    /// Who waits to be asked for the body (`expects`) sends none after an answer, but perhaps the next request. Returns whether the connection can serve
    /// others after this, as far as the caller told how long the body is.
    pub(super) fn read_on(mut self, most: usize, expects: bool) -> bool {
        let Ok(Left { incoming, begun }) = self.0.try_recv() else { return true };
        // That the body was asked for does not say that they were.
        let ends = !expects && incoming.size_hint().upper().is_some_and(|left| left <= most as u64);
        if begun || !expects {
            tokio::spawn(tokio::time::timeout(LINGER, drain(incoming, most)));
        }
        ends
    }
}

struct Arriving {
    /// Gone only while it is dropped.
    incoming: Option<Incoming>,
    deadline: Instant,
    /// Made at the first wait: most bodies are there already.
    sleep: Option<Pin<Box<Sleep>>>,
    /// Whether anybody asked for it.
    begun: bool,
    left: Option<oneshot::Sender<Left>>,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if let (Some(incoming), Some(left)) = (self.incoming.take(), self.left.take())
            && !incoming.is_end_stream()
        {
            let _ = left.send(Left { incoming, begun: self.begun });
        }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        this.begun = true;
        if let Poll::Ready(frame) = Pin::new(incoming).poll_frame(cx) {
            if frame.as_ref().is_none_or(|frame| frame.as_ref().map_or(true, Frame::is_trailers)) {
                this.left = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let deadline = this.deadline;
        let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::CallerSentBodyTooSlowly.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

pin_project_lite::pin_project! {
    /// An answer on its way out: it holds the request's place in flight until its last byte was handed over.
    pub(super) struct Departing {
        body: Body,
        flight: Flight,
        hard_stop: Instant,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Departing {
    pub(super) fn new(body: Body, mut flight: Flight, hard_stop: Instant) -> Self {
        if body.is_end_stream() {
            flight.whole();
        }
        Self { body, flight, hard_stop, sleep: None }
    }
}

/// The answer had not ended when the request had to.
#[derive(Debug)]
struct PastHardStop;

impl std::fmt::Display for PastHardStop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the request outlived its deadline")
    }
}

impl std::error::Error for PastHardStop {}

impl http_body::Body for Departing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut this = self.project();
        if let Poll::Ready(frame) = Pin::new(&mut *this.body).poll_frame(cx) {
            if frame.is_none() || this.body.is_end_stream() {
                this.flight.whole();
            }
            return Poll::Ready(frame);
        }
        if this.sleep.is_none() {
            this.sleep.set(Some(tokio::time::sleep_until((*this.hard_stop).into())));
        }
        if let Some(sleep) = this.sleep.as_pin_mut() {
            ready!(sleep.poll(cx));
        }
        Poll::Ready(Some(Err(PastHardStop.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_body_says_whose_fault_it_was() {
        assert_eq!(why_broken(&Error::CallerSentBodyTooSlowly.into()), Error::CallerSentBodyTooSlowly);
        assert_eq!(why_broken(&"anything else".into()), Error::CallerBrokeBody);
    }
}
