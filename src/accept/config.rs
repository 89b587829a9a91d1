//! The `[accept]` block of `gateway.toml`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::body::{LEAST_UNREAD, MOST_UNREAD};
use crate::mistake::Mistake;
use crate::unit::{Rate, Size, Span};

/// Connections open at once.
pub const MAX_CONNECTIONS: usize = 10_000;
/// Bytes of a request's body, where the model sets no other cap.
pub const MAX_BODY: Size = Size(1 << 20);
/// How long a stop waits for what is in flight.
pub const DRAIN: Span = Span(Duration::from_secs(20));
/// Bytes of a request's head; also of its trailers.
pub const MAX_HEADER_BYTES: Size = Size(16 << 10);
/// The least that `max_header_bytes` may be: the HTTP library's first buffer.
pub const LEAST_HEADER_BYTES: usize = 8 << 10;
/// Header lines of a request.
pub const MAX_HEADERS: usize = 100;
/// HTTP/2 streams open at once on one connection.
pub const MAX_STREAMS: u32 = 100;
/// Failed authentications of one address that are answered with 401 before 429.
pub const AUTH_FAILURES: AuthFailures = AuthFailures { rate: Rate { count: 20, per: Duration::from_secs(1) }, burst: 200 };

/// The `[accept]` block.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address to listen on.
    pub listen: Spanned<SocketAddr>,
    /// `[accept.tls]`, or `tls = "off"`, which binds loopback alone.
    pub tls: Spanned<TlsChoice>,
    /// Connections open at once; past it a new one is closed at once. [`MAX_CONNECTIONS`].
    #[serde(default)]
    pub max_connections: Option<Spanned<usize>>,
    /// Connections open at once from one IPv4 address or IPv6 /64. No cap of its own unless set, because many callers
    /// may stand behind one balancer.
    #[serde(default)]
    pub max_connections_per_address: Option<Spanned<usize>>,
    /// Bytes of a request's body. [`MAX_BODY`].
    #[serde(default = "max_body")]
    pub max_body: Size,
    /// Bytes of a request's head. [`MAX_HEADER_BYTES`], at least [`LEAST_HEADER_BYTES`].
    #[serde(default)]
    pub max_header_bytes: Option<Spanned<Size>>,
    /// Header lines of a request. [`MAX_HEADERS`].
    #[serde(default)]
    pub max_headers: Option<Spanned<usize>>,
    /// HTTP/2 streams open at once on one connection. [`MAX_STREAMS`].
    #[serde(default)]
    pub max_streams: Option<Spanned<u32>>,
    /// Failed authentications of one address; for the stop that authenticates.
    #[serde(default = "auth_failures")]
    pub auth_failures: AuthFailures,
    /// How long each part of a request may take.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// How long a stop waits for what is in flight. [`DRAIN`].
    #[serde(default = "drain")]
    pub drain: Span,
}

fn max_body() -> Size {
    MAX_BODY
}

fn auth_failures() -> AuthFailures {
    AUTH_FAILURES
}

fn drain() -> Span {
    DRAIN
}

/// A rate of failures and how many may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthFailures {
    /// How many in how long.
    pub rate: Rate,
    /// How many at once.
    pub burst: u32,
}

/// How long each part of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// The TLS handshake.
    pub handshake: Span,
    /// A request's head, from its first byte; the first one from the connection's start.
    pub headers: Span,
    /// A request's body, from the end of its head.
    pub body: Span,
    /// A connection without a request, and a write that the other end does not take.
    pub idle: Span,
    /// The whole request, from the end of its head to the end of its answer.
    pub request: Span,
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = |n| Span(Duration::from_secs(n));
        Self { handshake: seconds(5), headers: seconds(5), body: seconds(30), idle: seconds(60), request: seconds(120) }
    }
}

/// TLS, or none.
#[derive(Debug)]
pub enum TlsChoice {
    /// `tls = "off"`: plain HTTP, on loopback alone.
    Off,
    /// `[accept.tls]`.
    On(Box<TlsConfig>),
}

/// The `[accept.tls]` block; `[admin.tls]` has the same keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate and its intermediates, PEM.
    pub certificate: Spanned<PathBuf>,
    /// Its key, PEM.
    pub key: Spanned<PathBuf>,
    /// The authorities of client certificates, PEM.
    pub client_ca: Option<Spanned<PathBuf>>,
    /// Whether client certificates are asked for; `"off"` unless set.
    pub client_auth: Option<Spanned<ClientAuth>>,
    /// Revocation lists of those authorities, PEM or one DER. With one, a certificate of whose state nothing is known is refused.
    pub client_crl: Option<Spanned<PathBuf>>,
    /// The protocols that are offered, in order of preference: `"h2"`, `"http/1.1"`. Both unless set.
    pub alpn: Option<Spanned<Vec<Alpn>>>,
}

impl TlsConfig {
    /// Every file that it names, as it is written.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref(), self.client_crl.as_ref()];
        files.into_iter().flatten().map(Spanned::get_ref)
    }
}

/// Whether client certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// Not asked for.
    Off,
    /// Asked for; one that is sent must hold.
    Optional,
    /// None, no connection.
    Required,
}

/// A protocol that TLS may agree on (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Alpn {
    /// HTTP/2.
    #[serde(rename = "h2")]
    H2,
    /// HTTP/1.1.
    #[serde(rename = "http/1.1")]
    Http1,
}

impl<'de> Deserialize<'de> for TlsChoice {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Choice;
        impl<'de> de::Visitor<'de> for Choice {
            type Value = TlsChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table [accept.tls] or \"off\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TlsChoice, E> {
                if text == "off" { Ok(TlsChoice::Off) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TlsChoice, A::Error> {
                TlsConfig::deserialize(MapAccessDeserializer::new(map)).map(|tls| TlsChoice::On(Box::new(tls)))
            }
        }
        from.deserialize_any(Choice)
    }
}

/// The limits of every connection, resolved.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`Config::max_connections`].
    pub max_connections: usize,
    /// See [`Config::max_connections_per_address`].
    pub max_connections_per_address: usize,
    /// See [`Config::max_header_bytes`].
    pub max_header_bytes: usize,
    /// See [`Config::max_headers`].
    pub max_headers: usize,
    /// See [`Config::max_streams`].
    pub max_streams: u32,
    /// Bytes that are read on of a body that nobody wants, so that its sender hears why.
    pub max_unread: usize,
    /// See [`Config::deadlines`].
    pub deadlines: Deadlines,
    /// See [`Config::drain`].
    pub drain: Duration,
}

impl Config {
    /// The limits, or every mistake in them.
    ///
    /// # Errors
    /// A limit of 0 or past what can be held, and plain HTTP on an address that is not loopback.
    pub fn limits(&self) -> Result<Limits, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let max_connections = bounded("max_connections", self.max_connections.as_ref(), MAX_CONNECTIONS, 1, 1_000_000, &mut mistakes);
        let max_connections_per_address =
            bounded("max_connections_per_address", self.max_connections_per_address.as_ref(), max_connections, 1, 1_000_000, &mut mistakes);
        let max_headers = bounded("max_headers", self.max_headers.as_ref(), MAX_HEADERS, 1, 1_000, &mut mistakes);
        let max_streams = bounded("max_streams", self.max_streams.as_ref(), MAX_STREAMS, 1, 10_000, &mut mistakes);
        let max_header_bytes = match &self.max_header_bytes {
            None => MAX_HEADER_BYTES.0,
            Some(size) if (LEAST_HEADER_BYTES..=1 << 20).contains(&size.get_ref().0) => size.get_ref().0,
            Some(size) => {
                mistakes.push(Mistake::at(size.span(), "max_header_bytes must be from \"8KiB\" to \"1MiB\""));
                LEAST_HEADER_BYTES
            }
        };
        if !(1..=MOST_BODY).contains(&self.max_body.0) {
            mistakes.push(Mistake::of_file("accept.max_body must be from \"1B\" to \"1GiB\""));
        }
        let d = &self.deadlines;
        for (name, span) in [("handshake", d.handshake), ("headers", d.headers), ("body", d.body), ("idle", d.idle), ("request", d.request)]
        {
            if span.0.is_zero() || span.0 > LONGEST {
                mistakes.push(Mistake::of_file(format!("accept.deadlines.{name} must be more than 0 and at most \"1d\"")));
            }
        }
        if self.drain.0 > LONGEST {
            mistakes.push(Mistake::of_file("accept.drain must be at most \"1d\""));
        }
        if self.auth_failures.burst == 0 {
            mistakes.push(Mistake::of_file("accept.auth_failures.burst must be at least 1"));
        }
        if matches!(self.tls.get_ref(), TlsChoice::Off) && !self.listen.get_ref().ip().is_loopback() {
            let what = "plain HTTP (tls = \"off\") is served on loopback alone: listen on 127.0.0.1 or [::1], or give [accept.tls]";
            mistakes.push(Mistake::at(self.listen.span(), what));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Limits {
            max_connections,
            max_connections_per_address,
            max_header_bytes,
            max_headers,
            max_streams,
            max_unread: self.max_body.0.clamp(LEAST_UNREAD, MOST_UNREAD),
            deadlines: self.deadlines,
            drain: self.drain.0,
        })
    }
}

/// The largest cap on bodies: they are held in memory whole.
const MOST_BODY: usize = 1 << 30;

/// No deadline is longer: instants so far ahead are still representable, and a day is past any honest request.
const LONGEST: Duration = Duration::from_secs(86_400);

fn bounded<T: Copy + PartialOrd + fmt::Display>(
    key: &str,
    value: Option<&Spanned<T>>,
    default: T,
    least: T,
    most: T,
    mistakes: &mut Vec<Mistake>,
) -> T {
    let Some(value) = value else { return default };
    let number = *value.get_ref();
    if number < least || number > most {
        mistakes.push(Mistake::at(value.span(), format!("{key} must be from {least} to {most}")));
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_block_of_the_documentation_reads_as_written() {
        let config = read(
            r#"
            listen = "127.0.0.1:8443"
            max_connections = 10000
            max_body = "1MiB"
            auth_failures = { rate = "20/s", burst = 200 }
            deadlines = { handshake = "5s", headers = "5s", body = "30s", idle = "60s", request = "120s" }
            drain = "20s"
            [tls]
            certificate = "tls/server.pem"
            key = "tls/server.key"
            client_ca = "tls/clients.pem"
            client_auth = "optional"
            client_crl = "tls/clients.crl"
        "#,
        );
        assert_eq!(config.auth_failures, AUTH_FAILURES);
        assert_eq!(config.deadlines, Deadlines::default());
        assert_eq!(config.limits().unwrap().max_connections, 10_000);
        let TlsChoice::On(tls) = config.tls.get_ref() else { panic!("tls is on") };
        assert_eq!(*tls.client_auth.as_ref().unwrap().get_ref(), ClientAuth::Optional);
    }

    #[test]
    fn tls_is_a_choice_that_must_be_made() {
        assert!(toml::from_str::<Config>("listen = \"127.0.0.1:0\"").is_err());
        assert!(toml::from_str::<Config>("listen = \"127.0.0.1:0\"\ntls = \"none\"").is_err());
        assert!(toml::from_str::<Config>("listen = \"127.0.0.1:0\"\ntls = \"off\"\nextra = 1").is_err());
        assert!(read("listen = \"[::1]:0\"\ntls = \"off\"").limits().is_ok());
    }

    #[test]
    fn plain_http_binds_loopback_alone() {
        let mistakes = read("listen = \"0.0.0.0:80\"\ntls = \"off\"").limits().unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert!(mistakes[0].span.is_some());
    }

    #[test]
    fn every_mistake_is_told_not_the_first_alone() {
        let text = "listen = \"0.0.0.0:80\"\ntls = \"off\"\nmax_connections = 0\nmax_headers = 1001\nmax_header_bytes = \"1KiB\"\n\
                    deadlines = { body = \"0s\" }\nauth_failures = { rate = \"1/s\", burst = 0 }";
        assert_eq!(read(text).limits().unwrap_err().len(), 6);
    }

    #[test]
    fn limits_hold_at_their_ends() {
        let limits = |more: &str| read(&format!("listen = \"127.0.0.1:0\"\ntls = \"off\"\n{more}")).limits();
        assert!(limits("max_headers = 1000").is_ok());
        assert!(limits("max_header_bytes = \"8KiB\"").is_ok());
        assert!(limits("max_header_bytes = \"8191B\"").is_err());
        assert!(limits("max_connections = 1").is_ok());
    }
}
