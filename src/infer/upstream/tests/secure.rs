//! TLS to the upstream, and HTTP/2, which is spoken over it.

use std::convert::Infallible;

use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;

use super::*;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    pub(super) fn server(&self, alpn: &[&[u8]]) -> tokio_rustls::TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config).into()
    }
}

/// A hyper server, with TLS if there is an acceptor; each request adds one to the server's count and is answered by `answer`.
pub(super) async fn hyper_server<F>(
    tls: Option<tokio_rustls::TlsAcceptor>,
    answer: impl Fn(http::Request<hyper::body::Incoming>) -> F + Clone + Send + Sync + 'static,
) -> Server
where
    F: Future<Output = http::Response<Body>> + Send + 'static,
{
    server(move |speaker| {
        let (tls, answer) = (tls.clone(), answer.clone());
        async move {
            let requests = speaker.requests;
            let service = hyper::service::service_fn(move |request| {
                requests.fetch_add(1, SeqCst);
                let answering = answer(request);
                async move { Ok::<_, Infallible>(answering.await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = match tls {
                None => builder.serve_connection(TokioIo::new(speaker.tcp), service).await,
                Some(tls) => match tls.accept(speaker.tcp).await {
                    Ok(stream) => builder.serve_connection(TokioIo::new(stream), service).await,
                    Err(_) => Ok(()),
                },
            };
        }
    })
    .await
}

async fn hello(request: http::Request<hyper::body::Incoming>) -> http::Response<Body> {
    let told = format!("{:?} {}", request.version(), request.uri());
    // So that many are open at a time.
    sleep(Duration::from_millis(20)).await;
    http::Response::new(Body::from(Bytes::from(told)))
}

fn tls_upstream(server: &Server, authority: &Authority, more: &str) -> Arc<Upstream> {
    let config =
        config(&[format!("https://localhost:{}", server.address.port())], &format!("ca = \"ca.pem\"\nconnect_timeout = \"5s\"\n{more}"));
    Upstream::new(&config, authority.folder.path()).unwrap()
}

#[tokio::test]
async fn tls_with_its_own_authority_holds_and_with_another_does_not() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = hyper_server(Some(authority.server(&[b"http/1.1"])), hello).await;
    let upstream = tls_upstream(&server, &authority, "");
    for _ in 0..5 {
        assert_eq!(ask(&upstream).await.unwrap(), "HTTP/1.1 /v1/chat/completions?a=b");
        until("the connection comes back", || upstream.replicas()[0].idle == 1).await;
    }
    assert_eq!(server.connections.load(SeqCst), 1);
    assert_eq!(ask(&tls_upstream(&server, &other, "")).await, Err(Error::UpstreamUnreachable(Unreached::TlsFailed)));
    let by_address = config(&[format!("https://{}", server.address)], "ca = \"ca.pem\"");
    let by_address = Upstream::new(&by_address, authority.folder.path()).unwrap();
    assert_eq!(ask(&by_address).await, Err(Error::UpstreamUnreachable(Unreached::TlsFailed)), "the certificate names another");
    assert_eq!(server.requests.load(SeqCst), 5);
}

#[tokio::test]
async fn http2_carries_many_requests_on_one_connection() {
    let authority = Authority::new();
    let tls = hyper_server(Some(authority.server(&[b"h2", b"http/1.1"])), hello).await;
    let plain = hyper_server(None, hello).await;
    for (server, upstream) in [(&tls, tls_upstream(&tls, &authority, "")), (&plain, to(&[&plain], "http2 = true"))] {
        let calls: Vec<_> = (0..80)
            .map(|_| {
                tokio::spawn({
                    let upstream = upstream.clone();
                    async move { ask(&upstream).await }
                })
            })
            .collect();
        for call in calls {
            assert!(call.await.unwrap().unwrap().starts_with(b"HTTP/2.0 http"));
        }
        assert_eq!((server.connections.load(SeqCst), server.requests.load(SeqCst)), (1, 80));
        assert_eq!(upstream.replicas()[0].in_flight, 0);
    }
    let only1 = tls_upstream(&tls, &authority, "http2 = false");
    assert!(ask(&only1).await.unwrap().starts_with(b"HTTP/1.1 "));
}

#[tokio::test]
async fn past_a_connections_streams_another_is_opened() {
    let calls = pool::STREAMS_PER_CONNECTION + 1;
    // None is answered before all are asked.
    let all = Arc::new(tokio::sync::Barrier::new(calls));
    let server = hyper_server(None, move |_| {
        let all = all.clone();
        async move {
            all.wait().await;
            http::Response::new(Body::Empty)
        }
    })
    .await;
    let upstream = to(&[&server], "http2 = true");
    let calls: Vec<_> = (0..calls)
        .map(|_| {
            tokio::spawn({
                let upstream = upstream.clone();
                async move { ask(&upstream).await }
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(server.connections.load(SeqCst), 2);
}

/// A body that says one thing, then nothing for ever, and tells when it is dropped.
struct Endless(Option<Bytes>, mpsc::UnboundedSender<()>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = crate::wire::body::Broken;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.0.take().map_or(std::task::Poll::Pending, |said| std::task::Poll::Ready(Some(Ok(http_body::Frame::data(said)))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.1.send(());
    }
}

#[tokio::test]
async fn dropping_an_answer_over_http2_resets_its_stream_and_keeps_the_connection() {
    let (gone, mut goes) = mpsc::unbounded_channel();
    let server = hyper_server(None, move |_| {
        let gone = gone.clone();
        async move { http::Response::new(Body::stream(Endless(Some(Bytes::from_static(b"hi")), gone))) }
    })
    .await;
    let upstream = to(&[&server], "http2 = true\nidle_timeout = \"200ms\"");
    for _ in 0..10 {
        let mut answer = send(&upstream).await.unwrap();
        answer.body.frame().await.unwrap().unwrap();
        drop(answer);
        timeout(Duration::from_millis(500), goes.recv()).await.unwrap();
    }
    assert_eq!(ask(&upstream).await, Err(Error::UpstreamStalled));
    timeout(Duration::from_millis(500), goes.recv()).await.unwrap();
    assert_eq!((server.connections.load(SeqCst), upstream.replicas()[0].in_flight), (1, 0));
}

#[tokio::test]
async fn over_http2_a_body_of_the_wrong_length_breaks() {
    let server = hyper_server(None, |_| async {
        let mut answer = http::Response::new(Body::from(Bytes::from_static(b"hello")));
        answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("50"));
        answer
    })
    .await;
    // Depending on which of the frames was read first the answer has begun or not; it never ends well.
    assert!(matches!(ask(&to(&[&server], "http2 = true")).await, Err(Error::UpstreamBrokeBody | Error::UpstreamClosed)));
}
