//! The first stop: sockets, TLS, HTTP/1.1 and HTTP/2, and what every request must be before anyone looks at it.
//!
//! Its value is the [`Peer`]: one well-framed request on one connection. It says nothing of who that is.
//!
//! The way through the folder: `listen` takes a connection, `tls` makes it private, `guard` watches its bytes and its
//! pace (`framing` reads HTTP/1.1 heads more strictly than the HTTP library does), `http` serves it, `head` says
//! whether a request's head is one that may go on, and `body` bounds what is read and written after it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::http::request::Parts;
use ::http::{HeaderMap, Method, StatusCode, Uri};

pub mod body;
pub mod config;
mod framing;
#[cfg(fuzzing)]
pub mod fuzz;
mod guard;
pub mod head;
pub mod http;
pub mod listen;
pub mod tls;

pub use body::{LEAST_UNREAD, why_broken};
pub use config::{AuthFailures, Config, Deadlines};
pub use head::admissible;
use http::Phase;
pub use http::{Handler, TurnedAway};
pub use listen::{Accept, Bound, Drained};
pub use tls::Tls;

use tokio::sync::watch;

use crate::clock::Moment;
use crate::digest::Digest;
use crate::wire::Body;

/// A client certificate that TLS verified against the configured authorities.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The URI and DNS names of its subject alternative name extension, URIs first.
    pub names: Vec<Arc<str>>,
    /// SHA-256 of its DER.
    pub fingerprint: Digest,
}

/// One accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The other end.
    pub address: SocketAddr,
    /// What the other end proved with TLS, if anything.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// One well-framed request on one connection. Nothing is known of who sent it.
#[derive(Debug)]
pub struct Peer {
    connection: Connection,
    arrived: Moment,
    deadline: Instant,
    phase: watch::Receiver<Phase>,
    head: Parts,
    body: Body,
}

impl Peer {
    /// The request as the connection delivered it, once `http::admissible` found nothing ambiguous in it.
    fn on_connection(
        connection: Connection,
        arrived: Moment,
        limit: Duration,
        phase: watch::Receiver<Phase>,
        request: ::http::Request<Body>,
    ) -> Self {
        let (head, body) = request.into_parts();
        Self { connection, arrived, deadline: arrived.mono + limit, phase, head, body }
    }

    /// The connection it came on.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// When its head had arrived.
    #[must_use]
    pub fn arrived(&self) -> Moment {
        self.arrived
    }

    /// When the whole request must have ended.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Resolves when the listener is about to cut what is in flight, and there is just time for a refusal; never where it is not.
    pub fn last_call(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.clone();
        async move {
            if phase.wait_for(|phase| *phase >= Phase::LastCall).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Its method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// `1.1` or `2`: what spans call the protocol's version.
    #[must_use]
    pub fn http_version(&self) -> &'static str {
        http::version_of(&self.head)
    }

    /// Its target.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.head.uri
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Its headers, for the stop that strips some of them.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.head.headers
    }

    /// Takes the body out, which leaves an empty one.
    pub fn take_body(&mut self) -> Body {
        std::mem::replace(&mut self.body, Body::Empty)
    }
}

/// Why a request, or its connection, was refused here. Codes begin with `accept.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Error {
    /// No host, two of them, or one that is not a plain `host[:port]` (RFC 9112 §3.2): `accept.host`, 400.
    CallerSentBadHost,
    /// Two ways to tell where the message ends, or one that is not understood (RFC 9112 §6.1): `accept.framing`, 400.
    CallerSentAmbiguousFraming,
    /// A target that is not a plain path: absolute, `*`, dot segments, empty segments, encoded separators: `accept.target`, 400.
    CallerSentBadTarget,
    /// A target longer than [`head::MAX_TARGET`]: `accept.target_length`, 414.
    CallerSentLongTarget,
    /// `CONNECT` or `Upgrade`: `accept.upgrade`, 400.
    CallerAskedForTunnel,
    /// `TRACE`: `accept.method`, 405.
    CallerUsedRefusedMethod,
    /// A header name with an underscore, which others read as a dash: `accept.header`, 400.
    CallerSentBadHeader,
    /// More headers than `max_headers`: `accept.headers`, 431.
    CallerSentTooManyHeaders,
    /// A body under a content coding (RFC 9110 §8.4): `accept.coded`, 415.
    CallerSentCodedBody,
    /// An expectation other than `100-continue`: `accept.expect`, 417.
    CallerExpectedUnknown,
    /// More requests given up on one connection than are forgiven (CVE-2023-44487): `accept.resets`, 429.
    CallerAbandonedTooMany,
    /// The client certificate of the connection has expired since, or does not hold by the files that are in force now: `accept.certificate`, 401.
    CallersCertificateEnded,
    /// A body that had not arrived by its deadline: `accept.slow_body`, 408.
    CallerSentBodyTooSlowly,
    /// A body that broke off, or whose framing is wrong: `accept.body`, 400.
    CallerBrokeBody,
}

impl Error {
    /// The static code, as outsiders know it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::CallerSentBadHost => "accept.host",
            Self::CallerSentAmbiguousFraming => "accept.framing",
            Self::CallerSentBadTarget => "accept.target",
            Self::CallerSentLongTarget => "accept.target_length",
            Self::CallerAskedForTunnel => "accept.upgrade",
            Self::CallerUsedRefusedMethod => "accept.method",
            Self::CallerSentBadHeader => "accept.header",
            Self::CallerSentTooManyHeaders => "accept.headers",
            Self::CallerSentCodedBody => "accept.coded",
            Self::CallerExpectedUnknown => "accept.expect",
            Self::CallerAbandonedTooMany => "accept.resets",
            Self::CallersCertificateEnded => "accept.certificate",
            Self::CallerSentBodyTooSlowly => "accept.slow_body",
            Self::CallerBrokeBody => "accept.body",
        }
    }

    /// The status it is answered with.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::CallerSentBadHost
            | Self::CallerSentAmbiguousFraming
            | Self::CallerSentBadTarget
            | Self::CallerAskedForTunnel
            | Self::CallerSentBadHeader
            | Self::CallerBrokeBody => StatusCode::BAD_REQUEST,
            Self::CallerSentLongTarget => StatusCode::URI_TOO_LONG,
            Self::CallerUsedRefusedMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::CallerSentTooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::CallerSentCodedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::CallerExpectedUnknown => StatusCode::EXPECTATION_FAILED,
            Self::CallerAbandonedTooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::CallersCertificateEnded => StatusCode::UNAUTHORIZED,
            Self::CallerSentBodyTooSlowly => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// What the caller may read. Never echoes what was sent.
    #[must_use]
    pub const fn public(self) -> &'static str {
        match self {
            Self::CallerSentBadHost => "exactly one valid host is needed",
            Self::CallerSentAmbiguousFraming => "the length of the message is ambiguous",
            Self::CallerSentBadTarget => "the target must be a plain, normalised path",
            Self::CallerSentLongTarget => "the target is too long",
            Self::CallerAskedForTunnel => "tunnels and upgrades are not served",
            Self::CallerUsedRefusedMethod => "this method is not served",
            Self::CallerSentBadHeader => "a header name is not acceptable",
            Self::CallerSentTooManyHeaders => "too many headers",
            Self::CallerSentCodedBody => "bodies must not be compressed",
            Self::CallerExpectedUnknown => "this expectation cannot be met",
            Self::CallerAbandonedTooMany => "too many requests were given up on this connection",
            Self::CallersCertificateEnded => "the client certificate of this connection does not hold any longer",
            Self::CallerSentBodyTooSlowly => "the body did not arrive in time",
            Self::CallerBrokeBody => "the body was malformed or incomplete",
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.public())
    }
}

impl std::error::Error for Error {}

/// What this stop counts. All are totals since the start but the two that say otherwise.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections taken.
    pub accepted: AtomicU64,
    /// Connections open now.
    pub open: AtomicUsize,
    /// Connections closed at once because a cap was reached.
    pub refused: AtomicU64,
    /// Errors of the accept call itself.
    pub accept_errors: AtomicU64,
    /// Handshakes that had not ended by their deadline.
    pub handshakes_slow: AtomicU64,
    /// Handshakes that the other end broke off.
    pub handshakes_broken: AtomicU64,
    /// Handshakes that failed for the client's certificate.
    pub handshakes_certificate: AtomicU64,
    /// Handshakes that failed for any other reason.
    pub handshakes_refused: AtomicU64,
    /// Requests that reached the handler or were refused by their head.
    pub requests: AtomicU64,
    /// Requests in flight now, until the last byte of the answer was handed over.
    pub in_flight: AtomicUsize,
    /// Requests refused by their head.
    pub inadmissible: AtomicU64,
    /// HTTP/1.1 connections that ended at bytes that are not strict HTTP.
    pub misframed: AtomicU64,
    /// HTTP/1.1 connections that ended at a head with more bytes or lines than the HTTP library was told to take.
    pub oversized: AtomicU64,
    /// HTTP/2 connections that the HTTP library ended for what the other end sent. Where it resets one stream it tells nobody.
    pub broke_http2: AtomicU64,
    /// Requests given up before their answer was whole: by the caller, or at a hard stop.
    pub abandoned: AtomicU64,
    /// Connections cut for reading or writing too slowly.
    pub stalled: AtomicU64,
}

impl Counters {
    /// What was turned away before it was a request, by why. Nothing else tells of it, but of those that were refused by their `head`.
    pub fn turned_away(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = [
            ("framing", &self.misframed),
            ("oversized", &self.oversized),
            ("http2", &self.broke_http2),
            ("head", &self.inadmissible),
            ("stalled", &self.stalled),
            ("connections", &self.refused),
            ("accept_error", &self.accept_errors),
        ];
        counts.into_iter().map(|(why, count)| (why, count.load(Ordering::Relaxed)))
    }

    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
