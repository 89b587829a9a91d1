//! Reads a body whole, within a cap and a deadline.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;

use super::Body;

/// Why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is longer than the cap.
    CallerSentTooMuch,
    /// It had not ended at the deadline.
    CallerSentTooSlowly,
    /// The connection broke, or the framing did.
    CallerBrokeOff,
}

/// The whole body, if it is at most `cap` bytes long and ends before `deadline`.
///
/// A body that comes in one piece is not copied. What is already too long by its own word is not read at all.
///
/// # Errors
/// See [`Error`].
pub async fn whole(body: &mut Body, cap: usize, deadline: Instant) -> Result<Bytes, Error> {
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > cap {
        return Err(Error::CallerSentTooMuch);
    }
    match body {
        Body::Empty => Ok(Bytes::new()),
        Body::Whole(bytes) => Ok(std::mem::take(bytes)),
        Body::Incoming(_) | Body::Stream(_) => {
            tokio::time::timeout_at(deadline.into(), collect(body, cap)).await.unwrap_or(Err(Error::CallerSentTooSlowly))
        }
    }
}

async fn collect(body: &mut Body, cap: usize) -> Result<Bytes, Error> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&*error))?;
        // Trailers of a request say nothing that the gateway acts on.
        let Ok(data) = frame.into_data() else { continue };
        let so_far = first.as_ref().map_or(0, Bytes::len) + rest.len();
        if so_far + data.len() > cap {
            return Err(Error::CallerSentTooMuch);
        }
        match (&first, rest.is_empty()) {
            (None, _) => first = Some(data),
            (Some(one), true) => {
                // The length that was announced, if any, saves growing step by step; the cap bounds what a lie can cost.
                let announced = usize::try_from(body.size_hint().lower()).unwrap_or(0).min(cap);
                rest.reserve(one.len() + data.len() + announced);
                rest.extend_from_slice(one);
                rest.extend_from_slice(&data);
                first = Some(Bytes::new());
            }
            (Some(_), false) => rest.extend_from_slice(&data),
        }
    }
    Ok(if rest.is_empty() { first.unwrap_or_default() } else { rest.freeze() })
}

/// A body's own deadline, set where the connection is accepted, reports itself as an I/O error of kind `TimedOut`.
fn broken(error: &(dyn std::error::Error + 'static)) -> Error {
    match error.downcast_ref::<std::io::Error>() {
        Some(io) if io.kind() == std::io::ErrorKind::TimedOut => Error::CallerSentTooSlowly,
        _ => Error::CallerBrokeOff,
    }
}

/// Reads on, up to `more` bytes or the body's end, so that a caller who is still sending can hear that it was too much.
pub async fn drain(body: &mut Body, more: usize, deadline: Instant) {
    let reading = async {
        let mut left = more;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout_at(deadline.into(), reading).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn pieces(pieces: &[&'static [u8]]) -> Body {
        let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect();
        Body::stream(StreamBody::new(stream::iter(frames)))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[tokio::test]
    async fn a_body_at_the_cap_is_read_and_one_byte_more_is_not() {
        for body in [&[b"abcd" as &[u8]] as &[&[u8]], &[b"ab", b"cd"], &[b"a", b"b", b"c", b"d"], &[b"", b"abcd", b""]] {
            let shape: Vec<&'static [u8]> = body.to_vec();
            assert_eq!(whole(&mut pieces(&shape), 4, soon()).await.unwrap(), "abcd");
            assert_eq!(whole(&mut pieces(&shape), 3, soon()).await, Err(Error::CallerSentTooMuch));
        }
        assert_eq!(whole(&mut Body::Whole("abcd".into()), 3, soon()).await, Err(Error::CallerSentTooMuch));
        assert_eq!(whole(&mut Body::Whole("abcd".into()), 4, soon()).await.unwrap(), "abcd");
    }

    #[tokio::test]
    async fn a_body_that_never_ends_meets_its_deadline() {
        let mut endless = Body::stream(StreamBody::new(stream::pending()));
        let deadline = Instant::now() + Duration::from_millis(10);
        assert_eq!(whole(&mut endless, 4, deadline).await, Err(Error::CallerSentTooSlowly));
    }
}
