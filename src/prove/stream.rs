//! The middle one of the three adaptors around a streamed answer: it hashes what passes and signs at the end.
//!
//! **How a stream's statement comes to its caller.** From `GET /v1/receipts/{id}`, always. In the trailers, with `Content-Digest`, where the
//! request said `TE: trailers`; gRPC has its own whatever it said. And where the request had a `Provenance-Want`, in a stream of events, as a
//! comment line `: provenance-statement=<base64>` that is the first line of the last event's block: directly before `data: [DONE]` (chat,
//! completions) or before `event:` of `message_stop`, `response.completed`, `response.incomplete` or `response.failed`. It is never a block of
//! its own, on which clients break, and it is in no digest, length or tree: a caller takes that one line out and hashes the rest. Where nothing
//! says that it is the last event, as in a stream that was cut, and in streams that are no events there is no such line.
//!
//! Only the bytes that end the stream wait for its entry; everything before them passes as it comes. What `wait` of `Provenance-Want` gives up
//! on is not told in the stream, whose head has long left: the receipt's address tells how far the entry has come, and while the stream is
//! open that it is (`underway`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::runtime::Handle;

use super::config::OnFailure;
use super::events::Events;
use super::ledger::Slot;
use super::log::{Poisoned, Until};
use super::receipt::{STATEMENT, STATEMENT_BIN, content_digest, statement_comment, statement_header};
use super::release::{Appended, Unkept};
use super::statement::Sent;
use super::underway::Place;
use crate::digest::{Digest, Hasher};
use crate::trail::{Content, Late, Trail};
use crate::verify::statement::Kind;
use crate::wire::Body;
use crate::wire::body::Broken;
use crate::wire::sse::Splitter;

/// Tells whether the entry was kept, where the stream may end without.
type Waiting = Pin<Box<dyn Future<Output = Result<bool, Unkept>> + Send>>;

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
    /// Whether the protocol is gRPC.
    grpc: bool,
    /// Stays empty where the caller takes none.
    trailers: HeaderMap,
    /// Gone once the entry was appended.
    slot: Option<Slot>,
    /// Gone once the entry is written, from when on it is found in the log.
    place: Option<Place>,
    wait: Option<Waiting>,
    /// The last bytes of a stream that said that it is done.
    last: Option<Bytes>,
    /// The same without the statement that was put into them.
    plain: Option<Bytes>,
    /// Whether they begin where an event does.
    last_is_a_block: bool,
}

impl Proving {
    #[expect(clippy::too_many_arguments, reason = "they are the parts of the answer, and what it holds of the log")]
    pub(super) fn new(
        inner: Body,
        late: Late,
        trail: Arc<Trail>,
        status: u16,
        content: Content,
        trailers: Option<HeaderMap>,
        slot: Slot,
        place: Option<Place>,
    ) -> Self {
        let events = content.media_type.as_deref().is_some_and(|media_type| media_type.eq_ignore_ascii_case("text/event-stream"));
        Self {
            inner: Some(inner),
            late,
            trail,
            status,
            content,
            hasher: Hasher::new(),
            events: events.then(Events::new),
            sent: 0,
            grpc: trailers.is_some(),
            trailers: trailers.unwrap_or_default(),
            slot: Some(slot),
            place,
            wait: None,
            last: None,
            plain: None,
            last_is_a_block: false,
        }
    }

    /// Signs and appends, once.
    fn finish(&mut self, ended: bool) -> Result<(), Broken> {
        // First: the adaptor inside tells how the stream ended when it is dropped, if not before.
        drop(self.inner.take());
        let (Some(slot), place) = (self.slot.take(), self.place.take()) else { return Ok(()) };
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
        // Where it broke off nobody is left to wait.
        match slot.append(kind, &self.trail, &sent, if ended { Until::Written } else { Until::Ready }) {
            Ok(Appended { seq, entry, wait }) => {
                if complete {
                    self.deliver(&slot, &entry, &digest);
                }
                let over = wait.is_over() && slot.takes_what_is_written();
                if !ended {
                    leave_once_written(place, slot, seq);
                    return Ok(());
                }
                // The slot stays taken while the entry is waited for.
                self.wait = (!over).then(|| {
                    let trail = self.trail.clone();
                    Box::pin(async move {
                        let _place = place;
                        let outcome = slot.kept(seq, wait).await.map(|_| true);
                        if outcome == Err(Unkept::Unwritten) {
                            slot.gap(&trail);
                        }
                        if slot.terms.on_failure == OnFailure::Serve { Ok(outcome.is_ok()) } else { outcome }
                    }) as Waiting
                });
                Ok(())
            }
            Err(Poisoned) => {
                slot.gap(&self.trail);
                if ended && slot.terms.on_failure == OnFailure::Refuse {
                    Err("the log cannot take the end of this stream".into())
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Puts the statement where this caller finds it.
    fn deliver(&mut self, slot: &Slot, entry: &[u8], digest: &Digest) {
        if self.grpc {
            statement_header(&mut self.trailers, entry, true);
        } else if slot.want.trailers() {
            content_digest(&mut self.trailers, digest);
            statement_header(&mut self.trailers, entry, false);
        }
        if slot.want.in_stream()
            && self.last_is_a_block
            && let Some(last) = &mut self.last
            && let Some(with_line) = statement_comment(entry).and_then(|comment| with_comment(last, &comment))
        {
            self.plain = Some(std::mem::replace(last, with_line));
        }
    }

    /// The log could not keep the entry, and the stream is to end without: nobody may hold a statement that the log does not have.
    fn take_back(&mut self) {
        for name in [&STATEMENT, &STATEMENT_BIN] {
            self.trailers.remove(name);
        }
        if let Some(plain) = self.plain.take() {
            self.last = Some(plain);
        }
    }
}

/// Keeps the place of a stream that broke off until its entry `seq` is written, for which nobody waits.
fn leave_once_written(place: Option<Place>, slot: Slot, seq: u64) {
    let wait = slot.inner.wal.wait(seq, Until::Written);
    drop(slot);
    // Without a runtime the process ends, and nobody asks any more.
    if let (Some(place), Ok(wait), Ok(runtime)) = (place, wait, Handle::try_current()) {
        runtime.spawn(async move {
            let _ = wait.done().await;
            drop(place);
        });
    }
}

/// `bytes` with a comment before their first line, if they are one block that has data.
fn with_comment(bytes: &Bytes, comment: &str) -> Option<Bytes> {
    let mut splitter = Splitter::new(bytes.len());
    splitter.push(bytes);
    let block = splitter.next_block().ok()?.or_else(|| splitter.finish())?;
    (block.raw() == bytes).then(|| block.with_comment(comment)).flatten()
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
                        this.last_is_a_block = this.events.as_ref().is_some_and(Events::between_blocks);
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
            match outcome {
                Ok(true) => {}
                Ok(false) => this.take_back(),
                Err(_) => {
                    this.trailers.clear();
                    this.last = None;
                    return Poll::Ready(Some(Err("the log could not keep the end of this stream".into())));
                }
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

#[cfg(test)]
#[path = "stream/tests.rs"]
mod tests;
