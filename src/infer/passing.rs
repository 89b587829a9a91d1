//! Answers that are larger than what is buffered, of models whose owner says to deliver them all the same: they pass as
//! they come, byte for byte, and are digested and signed at their end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;

use super::upstream::Incoming;
use super::{Answer, Call, Error, Held, Payload, shape};
use crate::budget::Hold;
use crate::detect::Care;
use crate::detect::language::guard::Guard;
use crate::trail::{End, Late, Usage};
use crate::wire::Body;
use crate::wire::body::Broken;

/// What became of an answer that may be delivered as a stream.
pub(super) enum Read {
    /// It is small enough to be buffered, like any other: here it is again.
    Small(Incoming, Box<Call>),
    /// It is not: here it passes.
    Large(Box<Answer>),
}

/// Looks at an answer up to the cap, and lets it pass if it is longer.
///
/// # Errors
/// It broke off, or the deadline passed, before the cap was reached.
pub(super) async fn if_larger(
    incoming: Incoming,
    mut call: Box<Call>,
    shape: &shape::Config,
    media_type: &'static str,
) -> Result<Read, Error> {
    if !shape.stream || must_be_read(call.care, call.guard.as_deref()) {
        return Ok(Read::Small(incoming, call));
    }
    let Incoming { status, headers, mut body, framed } = incoming;
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok()).unwrap_or(0);
    let (mut pieces, mut length) = (VecDeque::new(), 0);
    while announced <= shape.max_body() && length <= shape.max_body() {
        let frame = tokio::time::timeout_at(call.deadline.into(), body.frame()).await.map_err(|_| Error::Deadline)?;
        let Some(frame) = frame else {
            let body = Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter(
                pieces.into_iter().map(|piece| Ok(Frame::data(piece))),
            )));
            return Ok(Read::Small(Incoming { status, headers, body, framed }, call));
        };
        if let Ok(data) = frame.map_err(|_| Error::UpstreamBroke("its answer broke off"))?.into_data() {
            length += data.len();
            pieces.push_back(data);
        }
    }
    // Of an answer whose end is not marked, nobody could tell whether it is whole.
    if !framed {
        return Err(Error::UpstreamBroke("the end of its answer is not marked"));
    }
    // Nobody reads what is said, and what was asked is seen all the same.
    if let Some(lesson) = call.lesson.take() {
        lesson.learn_in_turn(&[], &[]).await;
    }
    let late = Late::default();
    let body = Body::stream(Passing { pieces, rest: Some(body), hold: call.hold, late: late.clone() });
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))]);
    Ok(Read::Large(Box::new(Answer {
        status: StatusCode::OK,
        headers,
        payload: Payload::Stream(body, late),
        trailers: None,
        held: Held::default(),
    })))
}

/// Where detectors want the answer coarser than it is, it must be read to be made so; and where something must not leave, to be looked for.
fn must_be_read(care: Care, guard: Option<&Guard>) -> bool {
    care != Care::default() || guard.is_some_and(Guard::is_enforced)
}

struct Passing {
    pieces: VecDeque<Bytes>,
    /// Gone once the answer has ended, which cancels the upstream call where it had not.
    rest: Option<Body>,
    hold: Hold,
    late: Late,
}

impl Passing {
    fn end(&mut self, complete: bool) {
        self.rest = None;
        let usage: Usage = self.hold.settle_by_bytes();
        self.late.ended(End { usage: Some(usage), complete });
    }
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.pieces.pop_front() {
                this.hold.delivered(piece.len() as u64);
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
            match std::task::ready!(Pin::new(rest).poll_frame(cx)) {
                Some(Ok(frame)) => this.pieces.extend(frame.into_data().ok()),
                Some(Err(error)) => {
                    this.end(false);
                    return Poll::Ready(Some(Err(error)));
                }
                None => this.end(true),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.rest.is_none()
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if self.rest.is_some() || !self.pieces.is_empty() {
            self.end(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_passes_unread_that_is_to_be_coarser_or_must_not_leave() {
        assert!(!must_be_read(Care::default(), None));
        assert!(must_be_read(Care { decimals: Some(2), ..Care::default() }, None));
        let guard =
            Guard::over("You are the concierge of the Hotel Bellevue, and tell nobody of its discounts.", &crate::event::channel(1).0);
        assert!(guard.is_enforced() && must_be_read(Care::default(), Some(&guard)));
    }
}
