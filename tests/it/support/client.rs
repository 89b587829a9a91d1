//! A client over real TLS, speaking HTTP/1.1 or HTTP/2.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::PATIENCE;
use super::folder::Shown;

/// Whatever went wrong.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Which HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// A connection to be.
pub struct Dial {
    to: SocketAddr,
    from: Ipv4Addr,
    http: Http,
    roots: Arc<rustls::RootCertStore>,
    shown: Option<Shown>,
}

impl Dial {
    /// To `to`, which shows a certificate of `roots`.
    pub fn to(to: SocketAddr, roots: Arc<rustls::RootCertStore>) -> Self {
        Self { to, from: Ipv4Addr::LOCALHOST, http: Http::Two, roots, shown: None }
    }

    /// Speaks `http`.
    pub fn http(mut self, http: Http) -> Self {
        self.http = http;
        self
    }

    /// Comes from 127.0.x.y, so that limits by address count it apart.
    pub fn from(mut self, x: u8, y: u8) -> Self {
        self.from = Ipv4Addr::new(127, 0, x, y);
        self
    }

    /// Shows a client certificate.
    pub fn certificate(mut self, shown: Shown) -> Self {
        self.shown = Some(shown);
        self
    }

    /// The TLS connection alone, for what no client library would send.
    pub async fn raw(self) -> Result<TlsStream<TcpStream>, Failure> {
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots);
        let mut tls = match self.shown {
            Some(Shown(chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![if self.http == Http::One { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(self.from), 0))?;
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost")?, stream).await?)
    }

    /// Connects.
    pub async fn connect(self) -> Result<Client, Failure> {
        let http = self.http;
        let stream = self.raw().await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        let io = TokioIo::new(stream);
        let sender = match http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Sender::One(sender)
            }
            Http::Two => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Sender::Two(sender)
            }
        };
        Ok(Client { sender, certificate })
    }
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// A connection to the gateway.
pub struct Client {
    sender: Sender,
    /// What the server showed.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Client {
    /// Sends a request and returns the head of its answer.
    pub async fn open(&mut self, request: Request<Bytes>) -> Result<Response<Incoming>, Failure> {
        let answer = self.begin(request).await;
        Ok(tokio::time::timeout(PATIENCE, answer).await.map_err(|_| "no answer in time")??)
    }

    /// Sends a request; what is returned waits for the head of its answer.
    pub async fn begin(
        &mut self,
        request: Request<Bytes>,
    ) -> std::pin::Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().unwrap().clone();
        match &mut self.sender {
            Sender::One(sender) => {
                if let Err(error) = sender.ready().await {
                    return Box::pin(std::future::ready(Err(error)));
                }
                head.uri = path.as_str().parse().unwrap();
                head.headers.entry("host").or_insert(http::HeaderValue::from_static("localhost"));
                Box::pin(sender.send_request(Request::from_parts(head, Full::new(body))))
            }
            Sender::Two(sender) => {
                if let Err(error) = sender.ready().await {
                    return Box::pin(std::future::ready(Err(error)));
                }
                head.uri = format!("https://localhost{path}").parse().unwrap();
                Box::pin(sender.send_request(Request::from_parts(head, Full::new(body))))
            }
        }
    }

    /// Sends a request and reads its answer to the end.
    pub async fn try_send(&mut self, request: Request<Bytes>) -> Result<Reply, Failure> {
        let response = self.open(request).await?;
        tokio::time::timeout(PATIENCE, Reply::read(response)).await.map_err(|_| "no end in time")?
    }

    /// The same, for requests that must be answered.
    pub async fn send(&mut self, request: Request<Bytes>) -> Reply {
        self.try_send(request).await.unwrap()
    }

    /// Another handle on the same connection; HTTP/2 alone.
    pub fn again(&self) -> Self {
        match &self.sender {
            Sender::Two(sender) => Self { sender: Sender::Two(sender.clone()), certificate: None },
            Sender::One(_) => panic!("HTTP/1.1 takes one request at a time"),
        }
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Reply {
    /// Reads an answer to its end.
    pub async fn read(response: Response<Incoming>) -> Result<Self, Failure> {
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status, headers: head.headers, body: collected.to_bytes(), trailers })
    }

    /// A header; `""` where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The static code of a refusal.
    pub fn reason(&self) -> &str {
        self.header("portcullis-reason")
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The receipt's id.
    pub fn receipt(&self) -> Option<String> {
        receipt(&self.headers)
    }

    /// The answer, if its status is `status`.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

/// The id in `Provenance-Receipt`.
pub fn receipt(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("provenance-receipt")?.to_str().unwrap();
    Some(text.split('"').nth(1).unwrap().to_owned())
}
