//! An answer or a refusal with its receipt, ready to leave.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use uuid::Uuid;

use crate::digest::Digest;
use crate::infer::Held;
use crate::trail::{Content, Late, Trail};
use crate::wire::Body;

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const RECEIPT: HeaderName = HeaderName::from_static("provenance-receipt");
pub(super) const STATEMENT: HeaderName = HeaderName::from_static(crate::wire::sse::STATEMENT);
pub(super) const STATEMENT_BIN: HeaderName = HeaderName::from_static("provenance-statement-bin");
/// A statement longer than this is not sent along; the receipt says where it is.
const MAX_SENT: usize = 4_096;

/// How far a statement has come when the answer's head leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In the write-ahead file.
    Promised,
    /// Synced.
    Durable,
    /// A checkpoint covers it.
    Included,
    /// A quorum of witnesses has cosigned it.
    Witnessed,
    /// The answer streams; it is signed when it ends.
    Open,
    /// There is none: the log could not take it and the policy says to serve, or it is a refusal past its allowance.
    None,
}

impl State {
    /// The word in the header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promised => "promised",
            Self::Durable => "durable",
            Self::Included => "included",
            Self::Witnessed => "witnessed",
            Self::Open => "open",
            Self::None => "none",
        }
    }
}

/// An answer or a refusal, proved as far as its terms ask, ready to leave.
#[derive(Debug)]
pub struct Receipt {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    pub(super) trail: Arc<Trail>,
    pub(super) late: Option<Late>,
    pub(super) state: State,
    pub(super) content: Content,
}

impl Receipt {
    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The headers, for what `record` adds.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// What was known of the request when it left this stop.
    #[must_use]
    pub fn trail(&self) -> &Arc<Trail> {
        &self.trail
    }

    /// How the stream ends, where it is one.
    #[must_use]
    pub fn late(&self) -> Option<&Late> {
        self.late.as_ref()
    }

    /// The receipt's id, where there is one.
    #[must_use]
    pub fn id(&self) -> Option<Uuid> {
        (self.state != State::None).then_some(self.trail.id)
    }

    /// How far its statement has come.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The body's media type, and where it is whole its length and digest.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Makes the body hold what the answer holds, until its last byte has left.
    pub(super) fn hold(&mut self, held: Held) {
        let body = std::mem::replace(&mut self.body, Body::Empty);
        self.body = body.holding(held);
    }

    /// Its parts: status, headers, body, trail, and how the stream ends where it is one.
    #[must_use]
    pub fn into_parts(self) -> (StatusCode, HeaderMap, Body, Arc<Trail>, Option<Late>) {
        (self.status, self.headers, self.body, self.trail, self.late)
    }
}

/// The media type of a head, without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<Arc<str>> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or(text).trim().into())
}

/// `Provenance-Receipt`, a dictionary (RFC 9651).
pub(super) fn receipt_header(headers: &mut HeaderMap, id: Uuid, origin: &str, state: State) {
    let id = id.hyphenated();
    set(headers, RECEIPT, format!("id=\"{id}\", log=\"{origin}\", state={}, loc=\"/v1/receipts/{id}\"", state.as_str()));
}

/// `Content-Digest` (RFC 9530).
pub(super) fn content_digest(headers: &mut HeaderMap, digest: &Digest) {
    set(headers, CONTENT_DIGEST, bytes("sha-256=:", digest.as_bytes()));
}

/// `Provenance-Statement`, a byte sequence (RFC 9651), or for gRPC `provenance-statement-bin`.
pub(super) fn statement_header(headers: &mut HeaderMap, entry: &[u8], grpc: bool) {
    if entry.len() > MAX_SENT {
        return;
    }
    if grpc {
        set(headers, STATEMENT_BIN, STANDARD_NO_PAD.encode(entry));
    } else {
        set(headers, STATEMENT, bytes(":", entry));
    }
}

/// The same, for a comment inside the last event of a stream: the statement in base64, with its padding.
pub(super) fn statement_comment(entry: &[u8]) -> Option<String> {
    (entry.len() <= MAX_SENT).then(|| format!("{STATEMENT}={}", STANDARD.encode(entry)))
}

/// A byte sequence of structured fields (RFC 9651 §3.3.5), of whose beginning `before` ends with the colon.
fn bytes(before: &str, content: &[u8]) -> String {
    let mut text = String::with_capacity(before.len() + content.len().div_ceil(3) * 4 + 1);
    text.push_str(before);
    STANDARD.encode_string(content, &mut text);
    text.push(':');
    text
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // Origins are printable ASCII, the rest is base64 and hex: there is no value that is refused here.
    if let Ok(mut value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        // It is another one in each answer: kept out of HTTP/2's table, which it would only push the others out of (RFC 7541 §6.2.3).
        value.set_sensitive(true);
        headers.insert(name, value);
    }
}
