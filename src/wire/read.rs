//! Reads a body whole, within a cap and a deadline.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt;

use super::Body;

/// Why a body could not be read. "They" is whoever sent it: a caller, or an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is longer than the cap.
    TheySentTooMuch,
    /// It had not ended at the deadline.
    TheySentTooSlowly,
    /// The connection broke, or the framing did.
    TheyBrokeOff,
    /// There is no room for it here.
    NoRoom,
}

/// The whole body, if it is at most `cap` bytes long and ends before `deadline`.
///
/// A body that comes in one piece is not copied. What is already too long by its own word is not read at all.
///
/// # Errors
/// See [`Error`].
pub async fn whole(body: &mut Body, cap: usize, deadline: Instant) -> Result<Bytes, Error> {
    whole_with_room(body, cap, deadline, |_| true).await
}

/// The same, asking `room` before so many bytes in all are held.
///
/// # Errors
/// See [`Error`].
pub async fn whole_with_room(body: &mut Body, cap: usize, deadline: Instant, room: impl FnMut(usize) -> bool) -> Result<Bytes, Error> {
    whole_with_trailers(body, cap, deadline, room).await.map(|(bytes, _)| bytes)
}

/// The same, and what stands behind the body, where a protocol means something by that.
///
/// # Errors
/// See [`Error`].
pub async fn whole_with_trailers(
    body: &mut Body,
    cap: usize,
    deadline: Instant,
    room: impl FnMut(usize) -> bool,
) -> Result<(Bytes, Option<HeaderMap>), Error> {
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > cap {
        return Err(Error::TheySentTooMuch);
    }
    tokio::time::timeout_at(deadline.into(), collect(body, cap, room)).await.unwrap_or(Err(Error::TheySentTooSlowly))
}

async fn collect(body: &mut Body, cap: usize, mut room: impl FnMut(usize) -> bool) -> Result<(Bytes, Option<HeaderMap>), Error> {
    let (mut first, mut trailers) = (Bytes::new(), None);
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&*error))?;
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok().or(trailers);
                continue;
            }
        };
        let so_far = first.len() + rest.len();
        if data.len() > cap - so_far {
            return Err(Error::TheySentTooMuch);
        }
        if !room(so_far + data.len()) {
            return Err(Error::NoRoom);
        }
        if so_far == 0 {
            first = data;
            continue;
        }
        if rest.is_empty() {
            // A declared length is their word: memory grows with what came, never past the cap.
            rest.reserve(((so_far + data.len()) * 2).min(cap));
            rest.extend_from_slice(&std::mem::take(&mut first));
        } else if rest.capacity() - rest.len() < data.len() {
            rest.reserve((rest.len() * 2).clamp(rest.len() + data.len(), cap) - rest.len());
        }
        rest.extend_from_slice(&data);
    }
    Ok((if rest.is_empty() { first } else { rest.freeze() }, trailers))
}

/// A body's own deadline, set where the connection is accepted, reports itself as an I/O error of kind `TimedOut`.
fn broken(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut) {
            return Error::TheySentTooSlowly;
        }
        cause = error.source();
    }
    Error::TheyBrokeOff
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
            assert_eq!(whole(&mut pieces(&shape), 3, soon()).await, Err(Error::TheySentTooMuch));
        }
        assert_eq!(whole(&mut Body::Whole("abcd".into()), 3, soon()).await, Err(Error::TheySentTooMuch));
        assert_eq!(whole(&mut Body::Whole("abcd".into()), 4, soon()).await.unwrap(), "abcd");
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_is_not_held() {
        let asked = std::cell::RefCell::new(Vec::new());
        let room = |bytes| {
            asked.borrow_mut().push(bytes);
            bytes <= 4
        };
        assert_eq!(whole_with_room(&mut pieces(&[b"ab", b"cd", b"e"]), 10, soon(), room).await, Err(Error::NoRoom));
        assert_eq!(*asked.borrow(), [2, 4, 5]);
    }

    #[tokio::test]
    async fn a_body_that_never_ends_meets_its_deadline() {
        let mut endless = Body::stream(StreamBody::new(stream::pending()));
        let deadline = Instant::now() + Duration::from_millis(10);
        assert_eq!(whole(&mut endless, 4, deadline).await, Err(Error::TheySentTooSlowly));
    }
}
