//! The middle one of the three adaptors around a streamed answer: it hashes what passes and signs at the end.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::config::OnFailure;
use super::events::Events;
use super::ledger::Slot;
use super::log::{Poisoned, Until};
use super::receipt::{content_digest, statement_header};
use super::statement::{Kind, Sent};
use crate::digest::Hasher;
use crate::trail::{Content, Late, Trail};
use crate::wire::Body;
use crate::wire::body::Broken;

type Waiting = Pin<Box<dyn Future<Output = Result<(), Poisoned>> + Send>>;

/// A stream that leaves exactly one entry: when it ends, when it breaks, or when it is dropped.
pub(super) struct Proving {
    /// Gone once the stream has ended; its going is what fills `late`.
    inner: Option<Body>,
    late: Late,
    trail: Arc<Trail>,
    status: u16,
    content: Content,
    hasher: Hasher,
    /// In a stream of events.
    events: Option<Events>,
    sent: u64,
    trailers: HeaderMap,
    /// Gone once the entry was appended.
    slot: Option<Slot>,
    wait: Option<Waiting>,
    /// The last bytes of a stream that said that it is done.
    last: Option<Bytes>,
}

impl Proving {
    pub(super) fn new(inner: Body, late: Late, trail: Arc<Trail>, status: u16, content: Content, trailers: HeaderMap, slot: Slot) -> Self {
        let (hasher, sent) = (Hasher::new(), 0);
        let events = content.media_type.as_deref().is_some_and(|media_type| media_type.eq_ignore_ascii_case("text/event-stream"));
        let events = events.then(Events::new);
        Self { inner: Some(inner), late, trail, status, content, hasher, events, sent, trailers, slot: Some(slot), wait: None, last: None }
    }

    /// Signs and appends, once.
    fn finish(&mut self, ended: bool) -> Result<(), Broken> {
        // First: the adaptor inside tells how the stream ended when it is dropped, if not before.
        drop(self.inner.take());
        let Some(slot) = self.slot.take() else { return Ok(()) };
        let end = self.late.end();
        // Where the meter knows, its word counts: who hangs up right after the last event has been handed all of it.
        let complete = end.map_or(ended, |end| end.complete);
        let digest = std::mem::take(&mut self.hasher).finish();
        let sent = Sent {
            status: self.status,
            media_type: self.content.media_type.as_deref(),
            length: self.sent,
            digest,
            complete,
            code: None,
            usage: end.and_then(|end| end.usage),
            events: self.events.take().map(Events::finish),
        };
        let kind = if complete { Kind::Inference } else { Kind::Aborted };
        let until = match ended {
            true if slot.terms().durable => Until::Synced,
            true => Until::Written,
            // Nobody is left to wait.
            false => Until::Ready,
        };
        match slot.append(kind, &self.trail, &sent, until) {
            Ok((entry, wait)) => {
                if complete {
                    content_digest(&mut self.trailers, &digest);
                    statement_header(&mut self.trailers, &entry, false);
                }
                // The slot stays taken while the entry is waited for.
                self.wait = (!wait.is_over()).then(|| {
                    let (kept, trail) = (slot, self.trail.clone());
                    Box::pin(async move {
                        let outcome = wait.done().await;
                        if outcome.is_err() {
                            kept.gap(&trail);
                        }
                        if kept.terms().on_failure == OnFailure::Serve { Ok(()) } else { outcome }
                    }) as Waiting
                });
                Ok(())
            }
            Err(Poisoned) => {
                slot.gap(&self.trail);
                if ended && slot.terms().on_failure == OnFailure::Refuse {
                    Err("the log cannot take the end of this stream".into())
                } else {
                    Ok(())
                }
            }
        }
    }
}

impl http_body::Body for Proving {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        while let Some(inner) = &mut this.inner {
            match ready!(Pin::new(inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        this.hasher.update(&data);
                        if let Some(events) = &mut this.events {
                            events.update(&data);
                        }
                        this.sent += data.len() as u64;
                        if this.late.end().is_some_and(|end| end.complete) {
                            // The stream has said that it is done: its last bytes leave once its entry is kept, not before.
                            this.last = Some(data);
                            if let Err(error) = this.finish(true) {
                                this.trailers.clear();
                                this.last = None;
                                return Poll::Ready(Some(Err(error)));
                            }
                            break;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => this.trailers.extend(frame.into_trailers().unwrap_or_default()),
                },
                Some(Err(error)) => {
                    let _ = this.finish(false);
                    this.trailers.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    if let Err(error) = this.finish(true) {
                        this.trailers.clear();
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
        if let Some(wait) = &mut this.wait {
            let outcome = ready!(wait.as_mut().poll(cx));
            this.wait = None;
            if outcome.is_err() {
                this.trailers.clear();
                this.last = None;
                return Poll::Ready(Some(Err("the log could not keep the end of this stream".into())));
            }
        }
        if let Some(last) = this.last.take() {
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        let trailers = std::mem::take(&mut this.trailers);
        Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))))
    }
}

impl Drop for Proving {
    fn drop(&mut self) {
        let _ = self.finish(false);
    }
}
