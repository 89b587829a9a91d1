//! One GET in the background, for what a policy names: a key set.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use super::{MAX_HEAD, Origin, Reach, Unreached, UrlMistake, connect, split};

/// The most a background fetch reads unless its caller says otherwise.
pub const FETCH_MAX_BODY: usize = 1 << 20;
/// How long a background fetch may take in all unless its caller says otherwise.
pub const FETCH_WITHIN: Duration = Duration::from_secs(10);
/// What a background fetch may do and how much it may read.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most bytes of body; one more is an error.
    pub max_body: usize,
    /// How long it may take in all, from the name to the last byte.
    pub within: Duration,
    /// Whether private, local and reserved addresses may be fetched from.
    pub allow_private: bool,
    /// Whether `http` is allowed beyond this machine. On loopback it always is, where private addresses are.
    pub allow_http: bool,
}

impl Default for Limits {
    /// A public `https` URL, at most [`FETCH_MAX_BODY`] within [`FETCH_WITHIN`].
    fn default() -> Self {
        Self { max_body: FETCH_MAX_BODY, within: FETCH_WITHIN, allow_private: false, allow_http: false }
    }
}

/// What was fetched: a whole body that came with 200.
#[derive(Debug)]
pub struct Fetched {
    /// The response's headers, as the other end wrote them.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Why nothing was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The URL of the policy is not one that is fetched.
    OperatorConfiguredUrl(UrlMistake),
    /// No connection.
    Unreached(Unreached),
    /// It did not end in time.
    TimedOut,
    /// The other end answered with another status than 200; redirects are not followed.
    SourceAnswered(StatusCode),
    /// The body is larger than allowed.
    SourceSentTooMuch,
    /// The body is compressed, although that was not asked for.
    SourceSentCoded,
    /// The other end broke HTTP, or closed before the end.
    SourceBrokeProtocol,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatorConfiguredUrl(mistake) => write!(f, "the URL {mistake}"),
            Self::Unreached(why) => why.fmt(f),
            Self::TimedOut => f.write_str("it did not end in time"),
            Self::SourceAnswered(status) => write!(f, "it answered {}", status.as_u16()),
            Self::SourceSentTooMuch => f.write_str("the body is larger than allowed"),
            Self::SourceSentCoded => f.write_str("the body is compressed"),
            Self::SourceBrokeProtocol => f.write_str("the connection broke, or what came was not HTTP"),
        }
    }
}

impl std::error::Error for FetchError {}

/// Whether `url` is one that [`fetch`] would ask for under `limits`, as far as that shows without a name server.
///
/// # Errors
/// What is wrong with it.
pub fn fetchable(url: &str, limits: &Limits) -> Result<(), UrlMistake> {
    fetch_target(url, limits).map(|_| ())
}

pub(super) fn fetch_target(url: &str, limits: &Limits) -> Result<(Origin, PathAndQuery), UrlMistake> {
    let (origin, target) = split(url)?;
    let local = &*origin.host == "localhost" || origin.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let plain_is_fine = limits.allow_http || (local && limits.allow_private);
    if !origin.https && !plain_is_fine {
        return Err(UrlMistake("must begin with https://"));
    }
    Ok((origin, target))
}

/// Asks for `url` once, with GET, without credentials and without following redirects.
///
/// # Errors
/// Why there is nothing; a caller with an older copy goes on with that.
pub async fn fetch(url: &str, tls: &Arc<ClientConfig>, limits: &Limits) -> Result<Fetched, FetchError> {
    let (origin, target) = fetch_target(url, limits).map_err(FetchError::OperatorConfiguredUrl)?;
    let deadline = Instant::now() + limits.within;
    timeout_at(deadline, async {
        let reach = if limits.allow_private { Reach::Anywhere } else { Reach::Public };
        let stream = connect(&origin, Some(tls), reach, limits.within).await.map_err(FetchError::Unreached)?;
        let broke = |_| FetchError::SourceBrokeProtocol;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_header_size(MAX_HEAD)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(broke)?;
        // In this future and not in a task of its own: when the time is up, the connection goes with it.
        let mut connection = std::pin::pin!(connection);
        let asking = async {
            let mut request = http::Request::new(Empty::new());
            *request.uri_mut() = Uri::from(target);
            let headers = request.headers_mut();
            headers.insert(header::HOST, origin.host_header());
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            read_answer(sender.send_request(request).await.map_err(broke)?, limits.max_body).await
        };
        let mut asking = std::pin::pin!(asking);
        tokio::select! {
            biased;
            fetched = &mut asking => fetched,
            // The connection may end before its last bytes were read; they are in memory by then.
            _ = &mut connection => asking.await,
        }
    })
    .await
    .unwrap_or(Err(FetchError::TimedOut))
}

async fn read_answer(answer: http::Response<hyper::body::Incoming>, max_body: usize) -> Result<Fetched, FetchError> {
    if answer.status() != StatusCode::OK {
        return Err(FetchError::SourceAnswered(answer.status()));
    }
    read_whole(answer, max_body).await.map(|(_, fetched)| fetched)
}

/// Reads an answer of any status.
pub(super) async fn read_whole(
    answer: http::Response<hyper::body::Incoming>,
    max_body: usize,
) -> Result<(StatusCode, Fetched), FetchError> {
    let (head, mut body) = answer.into_parts();
    if head.headers.contains_key(header::CONTENT_ENCODING) {
        return Err(FetchError::SourceSentCoded);
    }
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| FetchError::SourceBrokeProtocol)?.into_data() else { continue };
        if data.len() > max_body - read.len() {
            return Err(FetchError::SourceSentTooMuch);
        }
        read.extend_from_slice(&data);
    }
    Ok((head.status, Fetched { headers: head.headers, body: read.freeze() }))
}
