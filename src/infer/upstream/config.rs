//! `[backend.upstream]` of a model's file, and what is made of it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::HeaderValue;
use http::uri::PathAndQuery;
use rustls::ClientConfig;
use serde::Deserialize;
use toml::Spanned;
use zeroize::Zeroizing;

use crate::mistake::Mistake;
use crate::outbound::{Alpn, ClientTls, Origin};
use crate::secret::Secret;
use crate::unit::Span;

/// How long connecting may take: name, TCP and TLS together. Also how long a request waits for room.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the upstream may take to begin its answer.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the upstream may be silent between two pieces of an answer.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an unused connection is kept: less than the 5 s after which Uvicorn, under most model servers, closes it.
pub const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// How many requests one replica is given at a time; over HTTP/1.1 this is also its cap on connections.
pub const MAX_IN_FLIGHT: usize = 512;
/// How many replicas one upstream may have.
pub const MAX_REPLICAS: usize = 64;
/// The shortest time between two health checks of a replica.
pub const HEALTH_EVERY_MIN: Duration = Duration::from_millis(50);
/// The largest credential.
pub const MAX_CREDENTIAL: usize = 8 << 10;
/// The largest file of authorities.
pub const MAX_CA: usize = 1 << 20;
/// What says over gRPC whether a replica is well.
const READY: &str = "/inference.GRPCInferenceService/ServerReady";

/// What the upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// OpenAI's chat, completions, responses and embeddings.
    #[serde(rename = "openai")]
    OpenAi,
    /// Anthropic's messages.
    #[serde(rename = "anthropic")]
    Anthropic,
    /// Open Inference Protocol v2 over HTTP.
    #[serde(rename = "oip")]
    Oip,
    /// Open Inference Protocol v2 over gRPC; always HTTP/2.
    #[serde(rename = "oip-grpc")]
    OipGrpc,
    /// JSON over HTTP on a path that the operator declares.
    #[serde(rename = "raw")]
    Raw,
}

/// `[backend.upstream]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What it speaks.
    pub protocol: Protocol,
    /// The origins of its replicas, 1 to [`MAX_REPLICAS`].
    pub urls: Spanned<Vec<Spanned<String>>>,
    /// What it calls the model; by default what callers call it.
    pub model: Option<String>,
    /// What it calls the version that is asked, for the Open Inference Protocol; by default none is named, and the server chooses.
    pub model_version: Option<Spanned<String>>,
    /// The file that holds its credential; one line end at the end is taken off.
    pub credential_file: Option<Spanned<PathBuf>>,
    /// The header for the credential; by default `authorization` with `Bearer`, for Anthropic `x-api-key`.
    pub credential_header: Option<Spanned<String>>,
    /// The file of the authorities that its certificates are checked against, instead of the system's.
    pub ca: Option<Spanned<PathBuf>>,
    /// [`CONNECT_TIMEOUT`].
    pub connect_timeout: Option<Spanned<Span>>,
    /// [`RESPONSE_TIMEOUT`].
    pub response_timeout: Option<Spanned<Span>>,
    /// [`IDLE_TIMEOUT`].
    pub idle_timeout: Option<Spanned<Span>>,
    /// [`KEEP_ALIVE`].
    pub keep_alive: Option<Spanned<Span>>,
    /// [`MAX_IN_FLIGHT`].
    pub max_in_flight: Option<Spanned<usize>>,
    /// `true`: HTTP/2 only, also without TLS. `false`: HTTP/1.1 only. By default HTTP/1.1 without TLS, and with TLS what the upstream
    /// prefers; `oip-grpc` is always HTTP/2.
    pub http2: Option<Spanned<bool>>,
    /// Active health checks; without this block there are none.
    pub health: Option<Health>,
}

impl Config {
    fn any_https(&self) -> bool {
        self.urls.get_ref().iter().any(|url| url.get_ref().starts_with("https:"))
    }

    /// What is allowed and has no effect.
    pub fn warnings(&self) -> impl Iterator<Item = Mistake> {
        let unused = self.ca.as_ref().filter(|_| !self.any_https());
        unused.map(|ca| Mistake::at(ca.span(), "ca is not used: no URL begins with https://")).into_iter()
    }
}

/// `health = { path = "/health", every = "5s" }`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// The path that answers with 2xx while the replica is well. Over gRPC there is none: `ServerReady` says it.
    pub path: Option<Spanned<String>>,
    /// The time between two checks, at least [`HEALTH_EVERY_MIN`].
    pub every: Spanned<Span>,
}

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
    /// What the upstream chooses in the TLS handshake.
    Chosen,
}

/// The scheme of a credential in `authorization`.
const BEARER: &str = "Bearer ";

/// The header that carries the credential, and its whole value.
pub(super) struct Credential {
    pub(super) header: HeaderName,
    value: Secret,
}

impl Credential {
    /// The header's value. A copy that lives as long as the request, and that HTTP/2 keeps out of its compression table.
    pub(super) fn value(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_bytes(self.value.expose()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// What of it is secret, without the scheme; nothing of one so short that it may be part of any word.
    pub(super) fn token(&self) -> Option<&str> {
        let value = std::str::from_utf8(self.value.expose()).ok()?;
        Some(value.strip_prefix(BEARER).unwrap_or(value)).filter(|token| token.len() >= 8)
    }
}

/// What every replica of an upstream goes by.
pub(super) struct Settings {
    pub(super) version: Version,
    /// Whether gRPC is spoken over HTTP/2.
    pub(super) grpc: bool,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) credential: Option<Credential>,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) keep_alive: Duration,
    pub(super) max_in_flight: usize,
    pub(super) health: Option<(PathAndQuery, Duration)>,
}

/// Reads `config`, and the files it names relative to `base`, into settings and origins.
pub(super) fn resolve(config: &Config, base: &Path) -> Result<(Settings, Vec<Origin>), Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let origins = origins(config, &mut mistakes);
    let any_https = config.any_https();
    let version = match (config.protocol, &config.http2) {
        (Protocol::OipGrpc, Some(http2)) if !*http2.get_ref() => {
            mistakes.push(Mistake::at(http2.span(), "http2 = false cannot be: \"oip-grpc\" is spoken over HTTP/2"));
            Version::Http2
        }
        (Protocol::OipGrpc, _) => Version::Http2,
        (_, Some(http2)) => {
            if *http2.get_ref() {
                Version::Http2
            } else {
                Version::Http1
            }
        }
        (_, None) => Version::Chosen,
    };
    let tls = tls(config, base, version, any_https, &mut mistakes);
    let credential = credential(config, base, &mut mistakes);
    let mut span = |key: &str, given: &Option<Spanned<Span>>, default: Duration| match given {
        Some(given) if given.get_ref().0.is_zero() => {
            mistakes.push(Mistake::at(given.span(), format!("{key} must be more than 0")));
            default
        }
        Some(given) => given.get_ref().0,
        None => default,
    };
    let connect_timeout = span("connect_timeout", &config.connect_timeout, CONNECT_TIMEOUT);
    let response_timeout = span("response_timeout", &config.response_timeout, RESPONSE_TIMEOUT);
    let idle_timeout = span("idle_timeout", &config.idle_timeout, IDLE_TIMEOUT);
    let keep_alive = span("keep_alive", &config.keep_alive, KEEP_ALIVE);
    let max_in_flight = match &config.max_in_flight {
        Some(given) if *given.get_ref() == 0 || *given.get_ref() > 1 << 16 => {
            mistakes.push(Mistake::at(given.span(), "max_in_flight must be from 1 to 65536"));
            MAX_IN_FLIGHT
        }
        Some(given) => *given.get_ref(),
        None => MAX_IN_FLIGHT,
    };
    if config.model.as_ref().is_some_and(String::is_empty) {
        mistakes.push(Mistake::of_file("backend.upstream.model must not be empty; leave it out to send the caller's name for it"));
    }
    if let Some(version) = &config.model_version {
        if !matches!(config.protocol, Protocol::Oip | Protocol::OipGrpc) {
            mistakes.push(Mistake::at(version.span(), "model_version is for \"oip\" and \"oip-grpc\": no other protocol has versions"));
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'%' | b'?' | b'#');
        if matches!(&**version.get_ref(), "" | "." | "..") || !version.get_ref().bytes().all(plain) {
            let what =
                "model_version must be visible ASCII characters without `/`, `%`, `?` or `#`; leave it out to have the server choose";
            mistakes.push(Mistake::at(version.span(), what));
        }
    }
    let health = config.health.as_ref().and_then(|health| checked(config, health, &mut mistakes));
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let grpc = config.protocol == Protocol::OipGrpc;
    let settings =
        Settings { version, grpc, tls, credential, connect_timeout, response_timeout, idle_timeout, keep_alive, max_in_flight, health };
    Ok((settings, origins))
}

fn origins(config: &Config, mistakes: &mut Vec<Mistake>) -> Vec<Origin> {
    let urls = config.urls.get_ref();
    if urls.is_empty() || urls.len() > MAX_REPLICAS {
        mistakes.push(Mistake::at(config.urls.span(), format!("urls must name from 1 to {MAX_REPLICAS} origins")));
    }
    let mut origins: Vec<Origin> = Vec::with_capacity(urls.len());
    for url in urls {
        match Origin::parse(url.get_ref()) {
            Ok(origin) if origins.iter().any(|seen| seen.to_string() == origin.to_string()) => {
                mistakes.push(Mistake::at(url.span(), "this URL is in the list twice; each replica is named once"));
            }
            Ok(origin) => origins.push(origin),
            Err(mistake) => mistakes.push(Mistake::at(url.span(), format!("this URL {mistake}"))),
        }
    }
    origins
}

fn tls(config: &Config, base: &Path, version: Version, any_https: bool, mistakes: &mut Vec<Mistake>) -> Option<Arc<ClientConfig>> {
    // Authorities are for https alone; a file that names them beforehand is not looked for.
    if !any_https {
        return None;
    }
    let mut pem = None;
    if let Some(ca) = &config.ca {
        match read(&base.join(ca.get_ref()), MAX_CA) {
            Ok(bytes) => pem = Some(bytes),
            Err(unread) => {
                mistakes.push(unread.told(ca.span(), "the file of authorities"));
                return None;
            }
        }
    }
    let alpn = match version {
        Version::Http1 => Alpn::Http1,
        Version::Http2 => Alpn::Http2,
        Version::Chosen => Alpn::Either,
    };
    match (ClientTls::build(pem.as_ref().map(|pem| pem.as_slice()), alpn), &config.ca) {
        (Ok(tls), _) => return Some(tls),
        (Err(mistake), Some(ca)) => mistakes.push(Mistake::at(ca.span(), format!("the file of authorities: {mistake}"))),
        (Err(mistake), None) => mistakes.push(Mistake::at(config.urls.span(), mistake.to_string())),
    }
    None
}

fn credential(config: &Config, base: &Path, mistakes: &mut Vec<Mistake>) -> Option<Credential> {
    let header = match &config.credential_header {
        Some(name) => match name.get_ref().parse::<HeaderName>() {
            Ok(header) if !is_ours(&header) => header,
            Ok(_) => {
                mistakes.push(Mistake::at(name.span(), "credential_header cannot be a header that HTTP itself or the gateway sets"));
                http::header::AUTHORIZATION
            }
            Err(_) => {
                mistakes.push(Mistake::at(name.span(), "credential_header must be a header's name, such as \"x-api-key\""));
                http::header::AUTHORIZATION
            }
        },
        None if config.protocol == Protocol::Anthropic => HeaderName::from_static("x-api-key"),
        None => http::header::AUTHORIZATION,
    };
    let Some(file) = &config.credential_file else {
        if let Some(name) = &config.credential_header {
            mistakes.push(Mistake::at(name.span(), "credential_header is given without a credential_file"));
        }
        return None;
    };
    let bytes = match read(&base.join(file.get_ref()), MAX_CREDENTIAL) {
        Ok(bytes) => bytes,
        Err(unread) => {
            mistakes.push(unread.told(file.span(), "the credential's file"));
            return None;
        }
    };
    let token = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let token = token.strip_suffix(b"\r").unwrap_or(token);
    // Narrower than what a header may hold: no credential has spaces or control characters in it, and a file with two lines is a mistake.
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        mistakes.push(Mistake::at(file.span(), "the credential's file must hold one line of visible ASCII characters without spaces"));
        return None;
    }
    let prefix = if header == http::header::AUTHORIZATION { BEARER } else { "" };
    Some(Credential { header, value: Secret::new([prefix.as_bytes(), token].concat()) })
}

/// Whether `header` is one that HTTP or the gateway sets, so that a credential in it would break requests.
fn is_ours(header: &HeaderName) -> bool {
    matches!(
        header.as_str(),
        "host"
            | "connection"
            | "content-length"
            | "content-type"
            | "accept"
            | "accept-encoding"
            | "transfer-encoding"
            | "te"
            | "trailer"
            | "upgrade"
            | "expect"
            | "keep-alive"
    ) || header.as_str().starts_with("grpc-")
}

fn checked(config: &Config, health: &Health, mistakes: &mut Vec<Mistake>) -> Option<(PathAndQuery, Duration)> {
    let path = match (config.protocol, &health.path) {
        (Protocol::OipGrpc, None) => Some(PathAndQuery::from_static(READY)),
        (Protocol::OipGrpc, Some(path)) => {
            mistakes.push(Mistake::at(path.span(), "leave health.path out: an upstream of \"oip-grpc\" is asked for its ServerReady"));
            None
        }
        (_, None) => {
            mistakes.push(Mistake::at(health.every.span(), "health needs a path, such as `path = \"/health\"`"));
            None
        }
        (_, Some(path)) => {
            let plain = Some(path.get_ref()).filter(|path| path.starts_with('/') && !path.contains('#'));
            let parsed = plain.and_then(|path| path.parse::<PathAndQuery>().ok());
            if parsed.is_none() {
                mistakes.push(Mistake::at(path.span(), "health.path must be a path such as \"/health\""));
            }
            parsed
        }
    };
    let every = health.every.get_ref().0;
    if every < HEALTH_EVERY_MIN {
        mistakes.push(Mistake::at(health.every.span(), "health.every must be at least 50ms"));
    }
    path.map(|path| (path, every))
}

/// Why a file was not read.
enum Unread {
    Unopened(io::Error),
    TooLarge(usize),
}

impl Unread {
    fn told(&self, at: Range<usize>, which: &str) -> Mistake {
        match self {
            Self::Unopened(error) => Mistake::at(at, format!("{which} cannot be read: {}", error.kind())).unopened(error),
            Self::TooLarge(max) => Mistake::at(at, format!("{which} is larger than {max} bytes")),
        }
    }
}

/// The whole of a file of at most `max` bytes, wiped when dropped.
fn read(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, Unread> {
    let file = File::open(path).map_err(Unread::Unopened)?;
    // With its full room at once, so that no copy of a secret is left behind by a vector that grew.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max + 1));
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(Unread::Unopened)?;
    if bytes.len() > max { Err(Unread::TooLarge(max)) } else { Ok(bytes) }
}
