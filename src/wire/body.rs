//! One body type for requests and answers, on both sides of the gateway.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

/// Whatever broke a body while it was passing.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;

/// The most of whole bytes that is handed over at once. Handed over in one piece, they would give back all that is held
/// for them, and pass every bound on slow readers, while they still wait in the HTTP library's buffers.
const PIECE: usize = 64 << 10;

/// A body: nothing, whole bytes, what a socket delivers, or a stream made here.
pub enum Body {
    /// Nothing.
    Empty,
    /// Whole.
    Whole(Bytes),
    /// As it comes from a connection.
    Incoming(hyper::body::Incoming),
    /// A body, and what it holds until its last byte has left.
    Guarded(Box<Guarded>),
    /// Any other stream of frames.
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = Broken> + Send>>),
}

/// A body, and what it holds until its last byte has left.
pub struct Guarded {
    body: Body,
    held: Option<Box<dyn Any + Send>>,
}

impl Body {
    /// This body, which drops `held` when its last byte has left, or when it is dropped itself.
    #[must_use]
    pub fn holding(self, held: impl Any + Send) -> Self {
        Self::Guarded(Box::new(Guarded { body: self, held: Some(Box::new(held)) }))
    }

    /// Wraps a stream of frames.
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = Broken> + Send + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }
}

impl std::fmt::Debug for Body {
    /// Never the bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Body::Empty",
            Self::Whole(_) => "Body::Whole(…)",
            Self::Incoming(_) => "Body::Incoming(…)",
            Self::Guarded(_) => "Body::Guarded(…)",
            Self::Stream(_) => "Body::Stream(…)",
        })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Whole(bytes) }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let polled = this.poll(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.is_trailers()
        {
            // Nothing comes after them, and an HTTP library does not ask whether.
            *this = Self::Empty;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Guarded(guarded) => guarded.body.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Guarded(guarded) => guarded.body.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

impl Body {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) if bytes.len() > PIECE => Poll::Ready(Some(Ok(Frame::data(bytes.split_to(PIECE))))),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Guarded(guarded) => {
                let polled = Pin::new(&mut guarded.body).poll_frame(cx);
                if matches!(polled, Poll::Ready(None | Some(Err(_)))) || guarded.body.is_end_stream() {
                    guarded.held = None;
                }
                polled
            }
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_whole_bytes_hold_is_held_until_their_last_piece_is_asked_for() {
        let held = Arc::new(());
        let mut body = Body::from(Bytes::from(vec![7; 3 * PIECE])).holding(held.clone());
        for still_held in [true, true, false] {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
            assert_eq!(Arc::strong_count(&held) > 1, still_held);
        }
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn trailers_are_the_end() {
        let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Ok(Frame::trailers(http::HeaderMap::new()))];
        let (inner, outer) = (Arc::new(()), Arc::new(()));
        let stream = Body::stream(http_body_util::StreamBody::new(futures_util::stream::iter(frames)));
        let mut body = Body::stream(stream.holding(inner.clone())).holding(outer.clone());
        assert!(body.frame().await.unwrap().unwrap().is_data());
        assert!(!body.is_end_stream() && Arc::strong_count(&inner) > 1 && Arc::strong_count(&outer) > 1);
        assert!(body.frame().await.unwrap().unwrap().is_trailers());
        assert!(body.is_end_stream() && Arc::strong_count(&inner) == 1 && Arc::strong_count(&outer) == 1);
    }
}
