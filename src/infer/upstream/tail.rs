//! The body of an upstream's answer, on its way to whoever reads it: chunk by chunk, nothing held back.
//!
//! It holds the connection until its end. Read to the end, it gives the connection back; dropped before, it closes it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep_until};

use super::Error;
use super::pool::{Lease, Pool};
use super::replica::Turn;
use crate::wire::body::Broken;

pub(super) struct Tail {
    /// Gone once the body has ended, well or not: dropping it closes the connection or resets the stream.
    held: Option<Held>,
    deadline: Instant,
    idle: Duration,
    /// When it was last seen to move.
    moved: Instant,
    /// Made when the upstream is waited for the first time, which most whole answers never do.
    timer: Option<Pin<Box<Sleep>>>,
}

struct Held {
    incoming: hyper::body::Incoming,
    turn: Turn,
    lease: Lease,
}

impl Tail {
    pub(super) fn new(incoming: hyper::body::Incoming, turn: Turn, lease: Lease, deadline: Instant, idle: Duration) -> Self {
        Self { held: Some(Held { incoming, turn, lease }), deadline, idle, moved: Instant::now(), timer: None }
    }

    fn end_well(&mut self) {
        if let Some(Held { turn, lease, .. }) = self.held.take() {
            turn.ended_well();
            Pool::give_back(&turn.replica.pool, lease, self.moved);
        }
    }

    /// The replica is to blame unless time ran out for other reasons.
    fn end_badly(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(mut held) = self.held.take()
            && error != Error::DeadlinePassed
        {
            held.turn.failed();
        }
        Poll::Ready(Some(Err(error.into())))
    }

    /// Waits until the next moment at which waiting has to end.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        loop {
            let (due, error) = match self.moved + self.idle {
                idle if idle < self.deadline => (idle, Error::UpstreamStalled),
                _ => (self.deadline, Error::DeadlinePassed),
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
            ready!(timer.as_mut().poll(cx));
            // Set once and asked again when it rings, so that a chunk costs no work on the timer.
            if Instant::now() >= due {
                return Poll::Ready(error);
            }
            timer.as_mut().reset(due.into());
        }
    }
}

impl Body for Tail {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let Some(held) = &mut this.held else { return Poll::Ready(None) };
        match Pin::new(&mut held.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.moved = Instant::now();
                // Nothing comes after trailers, and over HTTP/1.1 only they say so.
                if frame.is_trailers() || held.incoming.is_end_stream() {
                    this.end_well();
                } else if this.moved >= this.deadline {
                    return this.end_badly(Error::DeadlinePassed);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.end_well();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => this.end_badly(Error::UpstreamBrokeBody),
            Poll::Pending => {
                let error = ready!(this.poll_late(cx));
                this.end_badly(error)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.held.as_ref().map_or(SizeHint::with_exact(0), |held| held.incoming.size_hint())
    }
}
