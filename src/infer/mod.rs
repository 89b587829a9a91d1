//! The seventh stop: the answer, from an upstream or from a model in this machine.
//!
//! Its value is the [`Answer`]. A whole answer is in memory; a stream meters itself and settles the permit when it ends.

pub mod upstream;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::trail::Late;
use crate::wire::Body;

/// The bytes of an answer.
#[derive(Debug)]
pub enum Payload {
    /// Whole.
    Whole(Bytes),
    /// As it comes; how it ended stands in [`Late`] before the stream reports its end.
    Stream(Body, Late),
}

/// An answer to a cleared input, shaped as grant and detectors require.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    payload: Payload,
    trailers: Option<HeaderMap>,
}

impl Answer {
    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its parts: status, headers, bytes, and trailers where the protocol has them (gRPC).
    #[must_use]
    pub fn into_parts(self) -> (StatusCode, HeaderMap, Payload, Option<HeaderMap>) {
        (self.status, self.headers, self.payload, self.trailers)
    }
}
