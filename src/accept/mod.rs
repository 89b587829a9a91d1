//! The first stop: sockets, TLS, HTTP/1.1 and HTTP/2, and what every request must be before anyone looks at it.
//!
//! Its value is the [`Peer`]: one well-framed request on one connection. It says nothing of who that is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, Method, Uri};

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
    head: Parts,
    body: Body,
}

impl Peer {
    /// The request as the connection delivered it, once `http::admissible` found nothing ambiguous in it.
    fn on_connection(connection: Connection, arrived: Moment, limit: Duration, request: http::Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        Self { connection, arrived, deadline: arrived.mono + limit, head, body }
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

    /// Its method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.head.method
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
