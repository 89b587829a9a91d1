//! Connections that the gateway opens itself: to upstreams, and in the background for key sets.
//!
//! Not a client for what a caller names: every address here comes from a policy file. A connection is opened to an
//! [`Origin`], which has no path, no query and no user; a background [`fetch`] follows no redirect, and connects to the
//! very address that was judged.

mod fetch;
mod kept;

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use self::fetch::{FETCH_MAX_BODY, FETCH_WITHIN, FetchError, Fetched, Limits, fetch, fetchable};
pub use self::kept::{Answered, Kept};

/// The most bytes of response head that is read from anyone: with more, the answer is refused.
pub const MAX_HEAD: usize = 64 << 10;
/// The most response headers that are read from anyone.
pub const MAX_HEADERS: usize = 100;
/// How many addresses of one name are tried; what a resolver gives beyond is not.
const MAX_ADDRESSES: usize = 8;

/// Why TLS towards others could not be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsMistake {
    /// The file of authorities is not PEM, or holds no certificate.
    OperatorGaveNoCertificate,
    /// One of its certificates cannot be an authority; its place in the file, from 1.
    OperatorGaveBadCertificate(usize),
    /// No authorities were given, and the system has none either.
    SystemHasNoRoots,
    /// The TLS library refused its own defaults.
    LibraryRefused,
}

impl fmt::Display for TlsMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OperatorGaveNoCertificate => {
                f.write_str("holds no PEM certificate; it must hold at least one \"BEGIN CERTIFICATE\" block")
            }
            Self::OperatorGaveBadCertificate(place) => {
                write!(f, "certificate {place} cannot be an authority: it is not a well-formed X.509 certificate")
            }
            Self::SystemHasNoRoots => {
                f.write_str("the system has no root certificates; name a file of authorities, or install the system's")
            }
            Self::LibraryRefused => f.write_str("the TLS library does not offer TLS 1.2 and 1.3"),
        }
    }
}

impl std::error::Error for TlsMistake {}

/// Which versions of HTTP are offered in the TLS handshake (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone.
    Http2,
    /// HTTP/2 before HTTP/1.1: the other end chooses.
    Either,
}

/// Makes the TLS configuration of a client.
#[derive(Debug)]
pub struct ClientTls;

impl ClientTls {
    /// TLS 1.3 and 1.2 with the authorities in `ca` (PEM) and no others, or with the system's when there is no `ca`.
    ///
    /// # Errors
    /// Whose fault it is that there is nothing to trust.
    pub fn build(ca: Option<&[u8]>, alpn: Alpn) -> Result<Arc<ClientConfig>, TlsMistake> {
        let mut roots = RootCertStore::empty();
        match ca {
            Some(pem) => {
                for (at, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
                    let certificate = certificate.map_err(|_| TlsMistake::OperatorGaveNoCertificate)?;
                    roots.add(certificate).map_err(|_| TlsMistake::OperatorGaveBadCertificate(at + 1))?;
                }
                if roots.is_empty() {
                    return Err(TlsMistake::OperatorGaveNoCertificate);
                }
            }
            None => {
                // One odd certificate among the system's is no reason to trust none of the others.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(TlsMistake::SystemHasNoRoots);
                }
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|_| TlsMistake::LibraryRefused)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match alpn {
            Alpn::Http1 => vec![b"http/1.1".to_vec()],
            Alpn::Http2 => vec![b"h2".to_vec()],
            Alpn::Either => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(Arc::new(config))
    }
}

/// What is wrong with a URL of a policy file. The text says what would be right, and never holds the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrlMistake(&'static str);

impl fmt::Display for UrlMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for UrlMistake {}

/// Where to connect to: scheme, host and port, and nothing else.
#[derive(Clone, Debug)]
pub struct Origin {
    https: bool,
    /// Without the brackets of an IPv6 literal.
    host: Arc<str>,
    port: u16,
    authority: Authority,
    host_header: HeaderValue,
    name: ServerName<'static>,
}

impl Origin {
    /// The origin in `text`, which must be one and nothing more: `https://models.example:8443`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, UrlMistake> {
        let (origin, rest) = split(text)?;
        match rest.as_str() {
            "" | "/" => Ok(origin),
            _ => Err(UrlMistake("must be an origin: scheme, host and port, without a path or a query")),
        }
    }

    /// Whether it is spoken to with TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Its host, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port, the scheme's own if none was written.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `Host` of a request to it (RFC 9112 §3.2).
    #[must_use]
    pub fn host_header(&self) -> HeaderValue {
        self.host_header.clone()
    }

    /// The absolute URI of `target` on it, as HTTP/2 needs it.
    #[must_use]
    pub fn uri(&self, target: PathAndQuery) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.https { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(target);
        // All three parts are present, which is all that it asks for.
        Uri::from_parts(parts).unwrap_or_default()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }
}

/// The origin of `text`, and the target on it (`/` if none is written).
fn split(text: &str) -> Result<(Origin, PathAndQuery), UrlMistake> {
    if text.contains('#') {
        return Err(UrlMistake("must not have a fragment"));
    }
    let uri: Uri = text.parse().map_err(|_| UrlMistake("is not a URL such as \"https://models.example:8443\""))?;
    let parts = uri.into_parts();
    let https = match parts.scheme.as_ref().map(Scheme::as_str) {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(UrlMistake("must begin with https:// or http://")),
    };
    let authority = parts.authority.ok_or(UrlMistake("must name a host"))?;
    if authority.as_str().contains('@') {
        return Err(UrlMistake("must not hold a user or a password"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|_| UrlMistake("must name a host by its DNS name or its address"))?;
    let written = authority.as_str().get(authority.host().len()..).unwrap_or("");
    let port = match (written, authority.port_u16()) {
        ("", _) => {
            if https {
                443
            } else {
                80
            }
        }
        (_, Some(port)) if port > 0 => port,
        _ => return Err(UrlMistake("must have a port from 1 to 65535, or none")),
    };
    let host_header = HeaderValue::from_str(authority.as_str()).map_err(|_| UrlMistake("must name a host"))?;
    let host = Arc::from(host);
    let target = parts.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    Ok((Origin { https, host, port, authority, host_header, name }, target))
}

/// Which addresses may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Any: the operator wrote the origin as a backend.
    Anywhere,
    /// Addresses of the public Internet alone. A name with even one other address is refused as a whole.
    Public,
}

/// Why no connection came about. Nothing was sent over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// The name has no address.
    NameUnknown,
    /// The address is private, local or reserved, and such were not allowed.
    AddressForbidden,
    /// The other end refused, or the network did.
    Refused,
    /// It took too long.
    TimedOut,
    /// The other end's certificate does not hold, or it does not speak TLS as we do.
    TlsFailed,
    /// TLS is needed and no configuration for it was given.
    TlsMissing,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NameUnknown => "the name has no address",
            Self::AddressForbidden => "the address is not a public one",
            Self::Refused => "the connection was refused",
            Self::TimedOut => "connecting took too long",
            Self::TlsFailed => "the TLS handshake failed",
            Self::TlsMissing => "TLS is needed and not configured",
        })
    }
}

impl std::error::Error for Unreached {}

/// Connects to `origin` with Nagle's algorithm off; name, TCP and TLS together take at most `within`.
///
/// # Errors
/// Why there is no connection; nothing of a request was sent.
pub async fn connect(origin: &Origin, tls: Option<&Arc<ClientConfig>>, reach: Reach, within: Duration) -> Result<Stream, Unreached> {
    timeout(within, async {
        let tls = match (origin.https, tls) {
            (false, _) => None,
            (true, Some(config)) => Some(TlsConnector::from(config.clone())),
            (true, None) => return Err(Unreached::TlsMissing),
        };
        let tcp = dial(&addresses(origin, reach).await?, within).await?;
        // Without it small requests wait for an acknowledgement; a socket that refuses works all the same.
        let _ = tcp.set_nodelay(true);
        let socket = Socket(Arc::new(Mutex::new(tcp)));
        match tls {
            None => Ok(Stream::Plain(socket)),
            Some(connector) => {
                let stream = connector.connect(origin.name.clone(), socket).await.map_err(|_| Unreached::TlsFailed)?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    })
    .await
    .unwrap_or(Err(Unreached::TimedOut))
}

/// The addresses of `origin` that may be connected to.
async fn addresses(origin: &Origin, reach: Reach) -> Result<Vec<SocketAddr>, Unreached> {
    let found: Vec<SocketAddr> = match origin.host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, origin.port)],
        Err(_) => {
            tokio::net::lookup_host((&*origin.host, origin.port)).await.map_err(|_| Unreached::NameUnknown)?.take(MAX_ADDRESSES).collect()
        }
    };
    if found.is_empty() {
        return Err(Unreached::NameUnknown);
    }
    // All of them, not any: a name that mixes public and private addresses is how a resolver is turned against us.
    if reach == Reach::Public && !found.iter().all(|address| is_public(address.ip())) {
        return Err(Unreached::AddressForbidden);
    }
    Ok(found)
}

/// Connects to the first of `addresses` that answers; each has its share of the time, so that a dead one leaves some to the others.
async fn dial(addresses: &[SocketAddr], within: Duration) -> Result<TcpStream, Unreached> {
    let share = within / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    let mut last = Unreached::NameUnknown;
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(_)) => last = Unreached::Refused,
            Err(_) => last = Unreached::TimedOut,
        }
    }
    Err(last)
}

/// Whether `address` is one of the public Internet (IANA's special-purpose registries, RFC 6890).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && b & 0xfe == 18);
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Only 2000::/3 is given out; of the ways to write an IPv4 address inside IPv6, those in it are refused as a whole.
    let global = a & 0xe000 == 0x2000;
    let tunnelled = a == 0x2002 || (a == 0x2001 && b < 0x0200);
    let documentation = (a == 0x2001 && b == 0x0db8) || (a == 0x3fff && b < 0x1000);
    global && !tunnelled && !documentation
}

/// A connection to an origin.
#[derive(Debug)]
pub enum Stream {
    /// TCP alone.
    Plain(Socket),
    /// TLS over TCP.
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Whether the other end chose HTTP/2 in the TLS handshake.
    #[must_use]
    pub fn chose_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// A way to ask, from outside of the task that owns the stream, whether anything came in.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        };
        Watch(Arc::downgrade(&socket.0))
    }
}

/// Looks at a connection from outside.
#[derive(Debug)]
pub struct Watch(Weak<Mutex<TcpStream>>);

impl Watch {
    /// Whether the connection is open and nothing waits in its receive buffer: no end, no error, no bytes that nobody
    /// asked for. One system call that does not block.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let Some(socket) = self.0.upgrade() else { return false };
        let tcp = lock(&socket);
        let mut byte = [MaybeUninit::uninit(); 1];
        matches!(socket2::SockRef::from(&*tcp).peek(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// A TCP socket that one task owns and a [`Watch`] may look at. The lock is held for one system call.
#[derive(Debug)]
pub struct Socket(Arc<Mutex<TcpStream>>);

fn lock(socket: &Mutex<TcpStream>) -> MutexGuard<'_, TcpStream> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write(cx, buf)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests;
