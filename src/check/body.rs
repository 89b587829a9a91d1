//! Reading a body to its end, within a cap and a deadline.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;

use super::Error;
use crate::wire::Body;

/// The whole body, when it ends by `deadline` and has at most `cap` bytes. A body of one frame is not copied.
///
/// # Errors
/// `check.too_large` as soon as it is known, which is before the first byte where a length was declared;
/// `check.body_timeout` at the deadline; `check.body` when the connection broke.
pub async fn read_whole(body: Body, cap: usize, deadline: Instant) -> Result<Bytes, Error> {
    if body.size_hint().lower() > cap as u64 {
        return Err(Error::CallerSentTooMuch);
    }
    match body {
        Body::Empty => Ok(Bytes::new()),
        Body::Whole(bytes) => Ok(bytes),
        body => tokio::time::timeout_at(deadline.into(), collect(body, cap)).await.unwrap_or(Err(Error::CallerSentTooSlowly)),
    }
}

async fn collect(mut body: Body, cap: usize) -> Result<Bytes, Error> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Error::CallerBrokeOff)?.into_data() else { continue };
        let len = first.len() + rest.len();
        if data.len() > cap - len {
            return Err(Error::CallerSentTooMuch);
        }
        if len == 0 {
            first = data;
            continue;
        }
        if rest.is_empty() {
            // A declared length is a caller's word: memory grows with what came, never past the cap.
            rest.reserve(((len + data.len()) * 2).min(cap));
            rest.extend_from_slice(&std::mem::take(&mut first));
        } else if rest.capacity() - rest.len() < data.len() {
            rest.reserve((rest.len() * 2).clamp(rest.len() + data.len(), cap) - rest.len());
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use futures_util::stream::{self, StreamExt};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;
    use crate::wire::body::Broken;

    fn frames(sizes: &[usize]) -> Body {
        let frames: Vec<_> = sizes.iter().map(|size| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; *size])))).collect();
        Body::stream(StreamBody::new(stream::iter(frames)).map_err(|never| match never {}))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_body_at_the_cap_passes_and_one_byte_past_it_does_not() {
        for (sizes, cap) in [(vec![10], 10), (vec![4, 6], 10), (vec![1; 1_000], 1_000), (vec![0, 0, 3, 0], 3)] {
            assert_eq!(read_whole(frames(&sizes), cap, soon()).await.unwrap().len(), cap, "{sizes:?}");
            assert!(matches!(read_whole(frames(&sizes), cap - 1, soon()).await, Err(Error::CallerSentTooMuch)), "{sizes:?}");
        }
        assert!(matches!(read_whole(Body::Whole(Bytes::from_static(b"12345")), 4, soon()).await, Err(Error::CallerSentTooMuch)));
        assert_eq!(read_whole(Body::Whole(Bytes::from_static(b"12345")), 5, soon()).await.unwrap(), "12345");
        assert!(read_whole(Body::Empty, 0, soon()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_frame_is_not_copied() {
        let bytes = Bytes::from(vec![7; 4_096]);
        let frame = bytes.clone();
        let body = Body::stream(StreamBody::new(stream::iter([Ok::<_, Broken>(Frame::data(frame))])));
        assert_eq!(read_whole(body, 4_096, soon()).await.unwrap().as_ptr(), bytes.as_ptr());
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_refused_at_the_deadline() {
        let endless = stream::iter([Ok::<_, Broken>(Frame::data(Bytes::from_static(b"x")))]).chain(stream::pending());
        let body = Body::stream(StreamBody::new(endless));
        assert!(matches!(read_whole(body, 10, Instant::now() + Duration::from_millis(5)).await, Err(Error::CallerSentTooSlowly)));
    }

    #[tokio::test]
    async fn a_body_that_breaks_is_refused() {
        let body = Body::stream(StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from_static(b"x"))), Err(Broken::from("gone"))])));
        assert!(matches!(read_whole(body, 10, soon()).await, Err(Error::CallerBrokeOff)));
    }

    #[tokio::test]
    async fn memory_never_grows_past_the_cap() {
        let read = read_whole(frames(&[1; 777]), 1_000, soon()).await.unwrap();
        assert!(read.try_into_mut().unwrap().capacity() <= 1_000 + 64);
    }
}
