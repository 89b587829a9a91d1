//! The operator's listener: `/livez`, `/readyz`, `/metrics`, `/v1/exposure`, the provenance log's files under `/log/`, and `POST /v1/erasures`.
//!
//! It is not the data plane: it has its own port, its own caps, and no say in any request. Without an `[admin]` block
//! it does not exist. Plain HTTP is served on loopback alone; elsewhere every operator shows a client certificate.

pub mod address;
pub mod erasures;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde::Deserialize;
use toml::Spanned;

use crate::accept::config::{ClientAuth, Deadlines, Limits, TlsConfig};
use crate::accept::{Accept, Bound, Drained, Handler, LEAST_UNREAD, Peer, Tls};
use crate::mistake::Mistake;
use crate::prove::served::{self, LogFile};
use crate::prove::{EraseError, Erased, Erasure};
use crate::unit::Span;
use crate::wire::Body;

/// Connections of operators open at once.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a stop waits for an operator's request.
pub const DRAIN: Duration = Duration::from_secs(1);

/// The `[admin]` block.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address to listen on.
    pub listen: Spanned<SocketAddr>,
    /// `[admin.tls]`, with client certificates; needed unless `listen` is loopback.
    pub tls: Option<Spanned<TlsConfig>>,
}

/// Whether the gateway takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// It does.
    Yes,
    /// It does, and something needs an operator; one line each, for instance that the last policies were refused.
    Degraded(Vec<String>),
    /// It does not; one line each.
    No(Vec<String>),
}

/// Where the listener's answers come from. The first two must answer at once.
pub trait Sources: Send + Sync + 'static {
    /// Whether the gateway takes requests.
    fn ready(&self) -> Ready;
    /// Every metric, in the text format of OpenMetrics 1.0.
    fn metrics(&self) -> String;
    /// A file of the provenance log.
    fn log(&self, path: &str) -> impl Future<Output = Option<LogFile>> + Send;
    /// What callers may have learned of models, as the JSON of `/v1/exposure`.
    fn exposure(&self) -> impl Future<Output = String> + Send;
    /// Destroys a key, and tells it in the log.
    fn erase(&self, erasure: Erasure) -> impl Future<Output = Result<Erased, EraseError>> + Send;
}

/// Opens the port of `accept`, which was resolved from `config`.
///
/// # Errors
/// A port that cannot be opened.
pub fn bind(config: &Config, accept: Accept) -> Result<Bound, Vec<Mistake>> {
    let told =
        |error: io::Error| vec![Mistake::at(config.listen.span(), format!("{} cannot be listened on: {error}", config.listen.get_ref()))];
    accept.bind().map_err(told)
}

/// What is wrong with `config`, as far as its own text says.
#[must_use]
pub fn mistake(config: &Config) -> Option<Mistake> {
    if config.listen.get_ref().ip().is_loopback() {
        return None;
    }
    let Some(tls) = &config.tls else {
        let what = "outside loopback the operator's listener needs [admin.tls] with client_auth = \"required\" and client_ca";
        return Some(Mistake::at(config.listen.span(), what));
    };
    let auth = tls.get_ref().client_auth.as_ref();
    let span = auth.map_or(tls.span(), Spanned::span);
    auth.is_none_or(|auth| *auth.get_ref() != ClientAuth::Required)
        .then(|| Mistake::at(span, "outside loopback operators show a client certificate: client_auth = \"required\""))
}

/// Resolves `config` without opening anything; relative paths are relative to `folder`.
///
/// # Errors
/// Every mistake in the block and in the files it names.
pub fn resolve(config: &Config, folder: &Path) -> Result<Accept, Vec<Mistake>> {
    let mut mistakes = Vec::from_iter(mistake(config));
    let tls = config.tls.as_ref().map(|tls| Tls::load(tls.get_ref(), folder)).transpose();
    match tls {
        Ok(tls) if mistakes.is_empty() => Ok(Accept::from_parts(*config.listen.get_ref(), limits(), tls)),
        tls => {
            mistakes.extend(tls.err().unwrap_or_default());
            Err(mistakes)
        }
    }
}

fn limits() -> Limits {
    let deadlines = Deadlines { request: Span(Duration::from_secs(30)), ..Deadlines::default() };
    Limits {
        max_connections: MAX_CONNECTIONS,
        max_connections_per_address: MAX_CONNECTIONS,
        max_header_bytes: 16 << 10,
        max_headers: 100,
        max_streams: 16,
        max_unread: LEAST_UNREAD,
        deadlines,
        drain: DRAIN,
    }
}

/// Serves operators until `stop` ends.
pub async fn serve_admin(bound: Bound, sources: Arc<impl Sources>, stop: impl Future<Output = ()>) -> Drained {
    let local = bound.address().ip().is_loopback();
    bound.serve(Operator { sources, local }, stop).await
}

struct Operator<S> {
    sources: Arc<S>,
    local: bool,
}

impl<S> Clone for Operator<S> {
    fn clone(&self) -> Self {
        Self { sources: self.sources.clone(), local: self.local }
    }
}

impl<S: Sources> Handler for Operator<S> {
    async fn handle(&self, peer: Peer) -> Response<Body> {
        // A page in a browser on this machine may name this port under a host of its own (DNS rebinding).
        if self.local && !names_this_machine(&peer) {
            return text(StatusCode::MISDIRECTED_REQUEST, "this listener answers to localhost and to addresses");
        }
        if peer.method() == Method::POST && peer.uri().path() == erasures::PATH {
            return erasures::answer(peer, |erasure| self.sources.erase(erasure)).await;
        }
        if peer.method() != Method::GET && peer.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET alone, but for POST /v1/erasures");
            let allowed = if peer.uri().path() == erasures::PATH { "POST" } else { "GET, HEAD" };
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            return response;
        }
        match peer.uri().path() {
            "/livez" => text(StatusCode::OK, "live\n"),
            "/readyz" => match self.sources.ready() {
                Ready::Yes => text(StatusCode::OK, "ready\n"),
                Ready::Degraded(why) => text(StatusCode::OK, format!("ready, but:\n{}\n", why.join("\n"))),
                Ready::No(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready:\n{}\n", why.join("\n"))),
            },
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.sources.metrics());
                let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            "/v1/exposure" => {
                let mut response = text(StatusCode::OK, self.sources.exposure().await);
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            path if path.starts_with(served::PREFIX) || path == served::WELL_KNOWN => match self.sources.log(path).await {
                Some(file) => of_log(file),
                None => text(StatusCode::NOT_FOUND, "the log has no such file\n"),
            },
            _ => text(
                StatusCode::NOT_FOUND,
                "/livez, /readyz, /metrics, /v1/exposure, /log/checkpoint, /log/tile/…, /.well-known/portcullis-log.json, and POST /v1/erasures\n",
            ),
        }
    }
}

fn of_log(file: LogFile) -> Response<Body> {
    let mut response = text(StatusCode::OK, file.bytes);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(file.media_type));
    if file.immutable {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
    }
    response
}

fn names_this_machine(peer: &Peer) -> bool {
    let host = peer.headers().get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| peer.uri().authority().map(|a| a.as_str()));
    let Some(host) = host else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::prove::salts::Whose;

    struct House;

    impl Sources for House {
        fn ready(&self) -> Ready {
            Ready::No(vec!["digits is not loaded".to_owned()])
        }

        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }

        async fn exposure(&self) -> String {
            "[]".to_owned()
        }

        async fn log(&self, path: &str) -> Option<LogFile> {
            let bytes = Bytes::from_static(b"a tile");
            (path == "/log/tile/0/000").then_some(LogFile { media_type: "application/octet-stream", immutable: true, bytes })
        }

        async fn erase(&self, erasure: Erasure) -> Result<Erased, EraseError> {
            match erasure {
                Erasure::Subject { caller, .. } if caller != "nobody" => {
                    Ok(Erased { keys: 1, whose: Whose::Subject, month: None, id: uuid::Uuid::nil(), seq: 7, passed_over: Vec::new() })
                }
                Erasure::Epoch(month) => Err(EraseError::OperatorNamedThisMonth(month)),
                Erasure::Strangers(_) => Err(EraseError::Unavailable),
                Erasure::Subject { .. } => Err(EraseError::OperatorNamedUnknown),
            }
        }
    }

    async fn post(address: SocketAddr, host: &str, more: &str, body: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("POST /v1/erasures HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        stream.write_all(format!("{head}{more}\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn an_erasure_is_asked_for_by_programs_alone_and_within_its_bound() {
        const OURS: &str = "content-type: application/json\r\nportcullis-admin: 1\r\n";
        let config: Config = toml::from_str("listen = \"127.0.0.1:0\"").unwrap();
        let bound = bind(&config, resolve(&config, Path::new(".")).unwrap()).unwrap();
        let address = bound.address();
        let serving = tokio::spawn(serve_admin(bound, Arc::new(House), std::future::pending()));
        let padded = |length: usize| {
            let body = r#"{"caller": "api_key:a", "tenant": ""}"#;
            format!("{body}{}", " ".repeat(length - body.len()))
        };
        let form = "content-type: text/plain\r\norigin: http://evil.example\r\n";
        for (host, more, body, status) in [
            ("localhost", OURS, padded(100), "200"),
            ("localhost", OURS, padded(erasures::MAX_BODY), "200"),
            ("localhost", OURS, padded(erasures::MAX_BODY + 1), "413"),
            ("localhost", OURS, "{}".into(), "400"),
            ("localhost", OURS, r#"{"caller": "nobody"}"#.into(), "404"),
            ("localhost", OURS, r#"{"epoch": 202611}"#.into(), "409"),
            ("localhost", OURS, r#"{"strangers": 202610}"#.into(), "503"),
            ("localhost", form, padded(100), "403"),
            ("localhost", "content-type: application/json\r\n", padded(100), "403"),
            ("localhost", "portcullis-admin: 1\r\n", padded(100), "415"),
            ("rebound.example", OURS, padded(100), "421"),
        ] {
            let answer = post(address, host, more, &body).await;
            assert_eq!(&answer[9..12], status, "{host} {more} {}", body.len());
            assert!(!answer.contains("access-control"), "{answer}");
        }
        let answer = post(address, "localhost", OURS, &padded(100)).await;
        let told: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!((&told["erased"], &told["keys"], &told["of"], &told["seq"]), (&true.into(), &1.into(), &"subject".into(), &7.into()));
        let refused = ask(address, "OPTIONS /v1/erasures", "localhost").await;
        assert!(refused[9..].starts_with("405") && refused.contains("\r\nallow: POST\r\n"), "{refused}");
        let refused = ask(address, "POST /livez", "localhost").await;
        assert!(refused[9..].starts_with("405") && refused.contains("\r\nallow: GET, HEAD\r\n"), "{refused}");
        assert_eq!(&ask(address, "GET /v1/erasures", "localhost").await[9..12], "404");
        serving.abort();
    }

    async fn ask(address: SocketAddr, line: &str, host: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn what_operators_read_and_nothing_else() {
        let config: Config = toml::from_str("listen = \"127.0.0.1:0\"").unwrap();
        let bound = bind(&config, resolve(&config, Path::new(".")).unwrap()).unwrap();
        let address = bound.address();
        let serving = tokio::spawn(serve_admin(bound, Arc::new(House), std::future::pending()));
        for (line, host, status) in [
            ("GET /livez", "localhost:9443", "200"),
            ("GET /readyz", "127.0.0.1", "503"),
            ("GET /metrics", "[::1]:9443", "200"),
            ("GET /", "localhost", "404"),
            ("GET /log/tile/0/000", "localhost", "200"),
            ("GET /log/tile/0/001", "localhost", "404"),
            ("GET /log/tile/0/000", "rebound.example", "421"),
            ("GET /.well-known/portcullis-log.json", "localhost", "404"),
            ("POST /livez", "localhost", "405"),
            ("GET /metrics", "rebound.example", "421"),
        ] {
            assert_eq!(&ask(address, line, host).await[9..12], status, "{line} {host}");
        }
        assert!(ask(address, "GET /metrics", "localhost").await.ends_with("# EOF\n"));
        serving.abort();
    }

    #[test]
    fn outside_loopback_operators_show_a_certificate() {
        let open: Config = toml::from_str("listen = \"0.0.0.0:9443\"").unwrap();
        assert_eq!(resolve(&open, Path::new(".")).unwrap_err().len(), 1);
        let half = "listen = \"0.0.0.0:9443\"\ntls = { certificate = \"a\", key = \"b\", client_ca = \"c\", client_auth = \"optional\" }";
        let half: Config = toml::from_str(half).unwrap();
        let mistakes = resolve(&half, Path::new(".")).unwrap_err();
        assert!(mistakes[0].what.contains("required"));
    }
}
