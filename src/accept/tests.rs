//! The whole stop over real sockets and real TLS.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use ::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, NamedGroup, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::listen::Source;
use super::*;

mod secure;

/// Answers `/wait` never, `/trailers` with some, `/who` with the names of the certificate, and the rest with the length of the body.
#[derive(Clone, Default)]
struct Echo(Arc<Notify>);

impl Handler for Echo {
    async fn handle(&self, mut peer: Peer) -> Response<Body> {
        if peer.uri().path() == "/wait" {
            self.0.notify_one();
            std::future::pending::<()>().await;
        }
        if peer.uri().path() == "/big" {
            return Response::new(Body::from(Bytes::from(vec![0; 64 << 20])));
        }
        if peer.uri().path() == "/trailers" {
            let frames =
                [Frame::data(Bytes::from_static(b"a")), Frame::trailers([(header::AGE, HeaderValue::from(1))].into_iter().collect())];
            return Response::new(Body::stream(StreamBody::new(futures_util::stream::iter(frames.map(Ok)))));
        }
        if peer.uri().path() == "/close" {
            let mut answer = Response::new(Body::Empty);
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return answer;
        }
        if peer.uri().path() == "/who" {
            let names = peer.connection().certificate.as_ref().map(|certificate| certificate.names.join(" "));
            return Response::new(Body::from(Bytes::from(names.unwrap_or_default())));
        }
        match peer.take_body().collect().await {
            Ok(whole) => Response::new(Body::from(Bytes::from(whole.to_bytes().len().to_string()))),
            Err(broken) => super::http::problem(why_broken(&broken)),
        }
    }
}

struct Running {
    address: SocketAddr,
    counters: Arc<Counters>,
    tls: Option<Arc<Tls>>,
    waiting: Arc<Notify>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

fn start(text: &str, folder: &Path) -> Running {
    let config: Config = toml::from_str(&format!("listen = \"127.0.0.1:0\"\n{text}")).unwrap();
    let accept = Accept::new(&config, folder).unwrap();
    let (counters, tls) = (accept.counters().clone(), accept.tls().cloned());
    let bound = accept.bind().unwrap();
    let address = bound.address();
    let (stop, stopped) = oneshot::channel::<()>();
    let echo = Echo::default();
    let waiting = echo.0.clone();
    let task = tokio::spawn(bound.serve(echo, async move { drop(stopped.await) }));
    Running { address, counters, tls, waiting, stop, task }
}

fn plain(more: &str) -> Running {
    start(&format!("tls = \"off\"\n{more}"), Path::new("."))
}

/// Sends `bytes` and reads until the other end closes.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    to_close(&mut stream).await
}

/// As `raw`, cut inside the first line, so that the head comes in pieces.
async fn in_pieces(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (first, rest) = bytes.split_at(4);
    stream.write_all(first).await.unwrap();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    stream.write_all(rest).await.unwrap();
    to_close(&mut stream).await
}

async fn to_close(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = async { while let Ok(1..) = stream.read_buf(&mut answer).await {} };
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("the connection closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bytes_that_are_not_strict_http_get_400_and_a_close() {
    let running = plain("");
    let payloads: [&[u8]; 30] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET //a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx_user: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\x01\r\na\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
    ];
    for payload in payloads {
        for answer in [raw(running.address, payload).await, in_pieces(running.address, payload).await] {
            assert!(answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"), "{}: {answer}", payload.escape_ascii());
            assert_eq!(answer.matches("HTTP/1.").count(), 1, "{}", payload.escape_ascii());
        }
    }
    for (payload, status) in [
        (&b"POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"[..], "415"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 0\r\n\r\n", "417"),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
    ] {
        assert_eq!(&raw(running.address, payload).await[9..12], status);
    }
}

#[tokio::test]
async fn honest_requests_share_a_connection_and_nothing_names_the_server() {
    let running = plain("");
    let twice = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab";
    let answer = raw(running.address, twice).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert!(answer.contains("\r\n\r\n3") && answer.ends_with("\r\n\r\n2"));
    assert!(answer.contains("x-content-type-options: nosniff") && answer.contains("date: ") && !answer.contains("server:"));
    assert_eq!(running.counters.requests.load(Ordering::Relaxed), 2);
    assert_eq!(running.counters.in_flight.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn as_many_headers_as_allowed_pass_and_one_more_does_not() {
    let running = plain("max_headers = 5");
    let message = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{}\r\n", "X: y\r\n".repeat(count - 2));
    assert!(raw(running.address, message(5).as_bytes()).await.starts_with("HTTP/1.1 200"));
    assert!(raw(running.address, message(6).as_bytes()).await.starts_with("HTTP/1.1 431"));
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(17 << 10));
    assert!(raw(running.address, long.as_bytes()).await.starts_with("HTTP/1.1 431"));
}

/// Waits until so many were turned away for `why`.
async fn turned_away(counters: &Counters, why: &str, count: u64) {
    let there = async {
        while counters.turned_away().find(|(of, _)| *of == why).unwrap().1 != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), there).await.unwrap_or_else(|_| panic!("{why}: {counters:?}"));
}

#[tokio::test]
async fn what_is_no_request_is_counted_once_whoever_found_it() {
    let running = plain("deadlines = { handshake = \"100ms\" }");
    let framing: [&[u8]; 4] = [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        // In a body, and what the HTTP library alone refuses.
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\ng\r\n",
        b"GET / HTTP/9.0\r\nHost: a\r\n\r\n",
    ];
    for (before, payload) in framing.into_iter().enumerate() {
        raw(running.address, payload).await;
        turned_away(&running.counters, "framing", before as u64 + 1).await;
    }
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(17 << 10));
    raw(running.address, long.as_bytes()).await;
    turned_away(&running.counters, "oversized", 1).await;
    // HTTP/2 that is none, a frame of SETTINGS on a stream (RFC 9113, 6.5); and an honest one that ends.
    raw(running.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\x01").await;
    turned_away(&running.counters, "http2", 1).await;
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    drop(sender);
    drop(connection.await);
    // Too slow to say so much as which protocol it speaks.
    raw(running.address, b"P").await;
    turned_away(&running.counters, "stalled", 1).await;
    raw(running.address, b"GET //a HTTP/1.1\r\nHost: a\r\n\r\n").await;
    turned_away(&running.counters, "head", 1).await;
    let counts: Vec<_> = running.counters.turned_away().map(|(_, count)| count).collect();
    assert_eq!(counts, [4, 1, 1, 1, 1, 0, 0], "{:?}", running.counters);
}

#[tokio::test]
async fn slow_heads_and_bodies_end_at_their_deadlines() {
    let running = plain("deadlines = { headers = \"100ms\", body = \"100ms\" }");
    assert_eq!(raw(running.address, b"GET / HT").await, "");
    let answer = raw(running.address, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("accept.slow_body"), "{answer}");
    assert_eq!(running.counters.stalled.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_connection_without_requests_ends_when_it_was_idle_for_too_long() {
    let running = plain("deadlines = { idle = \"150ms\" }");
    let answer = raw(running.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"));
    let silent = plain("deadlines = { handshake = \"100ms\" }");
    assert_eq!(raw(silent.address, b"").await, "");
}

#[tokio::test]
async fn a_request_that_is_never_answered_is_dropped_after_its_deadline() {
    let running = plain("deadlines = { request = \"50ms\" }");
    assert_eq!(raw(running.address, b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await, "");
    assert_eq!(running.counters.abandoned.load(Ordering::Relaxed), 1);
}

/// Reads one whole answer with a body of no bytes.
async fn an_answer(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        read.push(byte[0]);
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn a_body_that_nobody_wants_may_still_be_sent_and_the_connection_goes_on() {
    let running = plain("");
    for length in [1, config::MAX_BODY.0] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(format!("POST /who HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await.unwrap();
        let answer = an_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("connection: close"), "{answer}");
        stream.write_all(&vec![b'x'; length]).await.unwrap();
        stream.write_all(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(an_answer(&mut stream).await.starts_with("HTTP/1.1 200"), "{length}");
    }
}

#[tokio::test]
async fn a_refusal_is_heard_by_who_sends_all_of_the_body_first() {
    let running = plain("");
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let body = vec![b'x'; 602_112];
    for _ in 0..20 {
        stream.write_all(format!("POST /who HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        assert!(an_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
    for (refused, status) in
        [("//a HTTP/1.1", "400"), ("/ HTTP/1.1\r\nContent-Encoding: gzip", "415"), ("/ HTTP/1.1\r\nExpect: tea", "417")]
    {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(format!("POST {refused}\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        let answer = to_close(&mut stream).await;
        assert!(&answer[9..12] == status && answer.contains("connection: close"), "{refused}: {answer}");
    }
    // What was read to its end is not read on, trailers and all.
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    for _ in 0..2 {
        let chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\r\n\r\n";
        stream.write_all(chunked).await.unwrap();
        let answer = an_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("connection: close"), "{answer}");
        stream.read_exact(&mut [0; 1]).await.unwrap();
    }
    // Who does not tell how long it is, or of more than is read, is told that the connection ends.
    for framing in ["Transfer-Encoding: chunked".to_owned(), format!("Content-Length: {}", config::MAX_BODY.0 + 1)] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(format!("POST /who HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").as_bytes()).await.unwrap();
        let answer = an_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn over_http2_who_is_refused_may_send_the_body_all_the_same() {
    let running = plain("");
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let ended = tokio::spawn(connection);
    // By the handler, or by their head before it.
    for (path, coding, status) in [("/who", "identity", 200), ("/close", "identity", 200), ("/", "gzip", 415), ("//a", "identity", 400)] {
        let request = Request::post(format!("http://a{path}")).header(header::CONTENT_ENCODING, coding).body(()).unwrap();
        sender = sender.ready().await.unwrap();
        let (answer, mut body) = sender.send_request(request, false).unwrap();
        assert_eq!(answer.await.unwrap().status(), status);
        let mut left = 602_112;
        while left > 0 {
            body.reserve_capacity(left.min(16 << 10));
            let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.expect("the stream stands").unwrap();
            body.send_data(vec![b'x'; room.min(left)].into(), room >= left).unwrap();
            left -= room.min(left);
        }
    }
    drop(sender);
    drop(ended.await);
}

#[tokio::test]
async fn of_a_longer_one_no_more_is_read_and_the_connection_ends() {
    let running = plain("");
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(format!("POST /who HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 8 << 20).as_bytes()).await.unwrap();
    assert!(an_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    assert!(stream.write_all(&vec![b'x'; 8 << 20]).await.is_err(), "somebody read all of it");
}

#[tokio::test]
async fn who_waits_to_be_asked_for_the_body_is_not_taken_at_their_next_word() {
    let running = plain("");
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let head = b"POST /who HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 40\r\n\r\n";
    stream.write_all(head).await.unwrap();
    assert!(an_answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    let _ = stream.write_all(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(to_close(&mut stream).await, "");
}

#[tokio::test]
async fn the_last_place_is_given_and_one_more_connection_is_closed_at_once() {
    for cap in ["max_connections = 2", "max_connections_per_address = 2"] {
        let running = plain(cap);
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert!(stream.read(&mut [0; 512]).await.unwrap() > 0);
            held.push(stream);
        }
        assert_eq!(raw(running.address, b"").await, "");
        assert_eq!(running.counters.refused.load(Ordering::Relaxed), 1);
        assert_eq!(running.counters.open.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn a_stop_counts_the_requests_it_cuts() {
    let running = plain("drain = \"100ms\"");
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut idle = TcpStream::connect(running.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 512]).await.unwrap() > 0);
    running.waiting.notified().await;
    running.stop.send(()).unwrap();
    assert_eq!(running.task.await.unwrap(), Drained { cut: 1 });
    assert_eq!(to_close(&mut stream).await + &to_close(&mut idle).await, "");
    assert_eq!(running.counters.open.load(Ordering::Relaxed), 0);
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_and_paced_resets_end_it() {
    let running = plain("");
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(connection);
    let mut refused = None;
    for _ in 0..http::MAX_ABANDONED + 1 {
        let ask = |path: &str| {
            let uri = format!("http://a{path}");
            sender.clone().send_request(Request::builder().uri(uri).body(Empty::<Bytes>::new()).unwrap())
        };
        // Accepted, then given up: the way that paced resets go.
        tokio::select! {
            answer = ask("/wait") => { refused = Some(answer); break; }
            () = running.waiting.notified() => {}
        }
    }
    let begun = running.counters.requests.load(Ordering::Relaxed);
    assert!(begun <= u64::from(http::MAX_ABANDONED) + 2, "{begun}");
    let told = |error: &hyper::Error| std::error::Error::source(error).and_then(|why| why.downcast_ref::<h2::Error>()?.reason());
    // Or it was not sent any more.
    assert!(refused.is_none_or(|answer| answer.is_err_and(|error| told(&error).is_none_or(|why| why == h2::Reason::REFUSED_STREAM))));
    drop(sender);
    drop(ended.await);
}

#[tokio::test]
async fn the_last_answer_of_a_connection_says_so() {
    let running = plain("");
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    for number in 1..=http::MAX_REQUESTS {
        stream.write_all(b"GET /close-not HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
        let answer = an_answer(&mut stream).await;
        assert_eq!(answer.contains("connection: close"), number == http::MAX_REQUESTS, "{number}: {answer}");
        stream.read_exact(&mut [0; 1]).await.unwrap();
    }
    assert_eq!(to_close(&mut stream).await, "");
}

#[tokio::test]
async fn answers_to_head_have_a_length_and_no_body_and_are_whole() {
    let running = plain("");
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut h1, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut ended = vec![tokio::spawn(connection)];
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut h2, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    ended.push(tokio::spawn(connection));
    for _ in 0..2 * http::MAX_ABANDONED {
        let ask = |uri: &str| Request::head(uri).header(header::HOST, "a").body(Empty::<Bytes>::new()).unwrap();
        h1.ready().await.unwrap();
        let over_h1 = h1.send_request(ask("/big")).await.unwrap();
        h2.ready().await.unwrap();
        let over_h2 = h2.send_request(ask("http://a/big")).await.unwrap();
        for answer in [over_h1, over_h2] {
            assert_eq!((answer.status(), answer.headers()[header::CONTENT_LENGTH].to_str().unwrap()), (StatusCode::OK, "67108864"));
            assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
        }
    }
    nothing_in_flight(&running.counters).await;
    assert_eq!(running.counters.abandoned.load(Ordering::Relaxed), 0);
    drop((h1, h2));
    for connection in ended {
        drop(connection.await);
    }
}

#[tokio::test]
async fn answers_that_end_in_trailers_are_whole() {
    let running = plain("");
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let ended = tokio::spawn(connection);
    for _ in 0..2 * http::MAX_ABANDONED {
        sender.ready().await.unwrap();
        let asked = sender.send_request(Request::get("http://a/trailers").body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(asked.status(), StatusCode::OK);
        assert!(asked.into_body().collect().await.unwrap().trailers().is_some());
    }
    nothing_in_flight(&running.counters).await;
    assert_eq!(running.counters.abandoned.load(Ordering::Relaxed), 0);
    drop(sender);
    drop(ended.await);
}

/// Waits until nothing is in flight any more.
async fn nothing_in_flight(counters: &Counters) {
    let gone = async {
        while counters.in_flight.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("what is in flight ends");
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_cut() {
    let running = plain("deadlines = { idle = \"100ms\" }");
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    stream.readable().await.unwrap();
    nothing_in_flight(&running.counters).await;
    assert_eq!(running.counters.stalled.load(Ordering::Relaxed), 1);
    assert_eq!(running.counters.abandoned.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_answer_that_is_read_a_little_at_a_time_ends_with_its_request() {
    let running = plain("deadlines = { idle = \"3s\", request = \"50ms\" }");
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    // Each time enough that the write is not a stalled one; all of it would take minutes.
    let reading = async {
        let mut some = vec![0; 512 << 10];
        loop {
            if stream.read_exact(&mut some).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(http::GRACE * 4, reading).await.expect("it is cut before all was read");
    nothing_in_flight(&running.counters).await;
    assert_eq!(running.counters.abandoned.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_http2_window_that_stays_shut_is_cut() {
    let running = plain("deadlines = { request = \"50ms\" }");
    let stream = TcpStream::connect(running.address).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.initial_stream_window_size(1).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = sender.send_request(Request::get("http://a/big").body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    nothing_in_flight(&running.counters).await;
    assert!(answer.into_body().collect().await.is_err());
}

/// A socket that fails as sockets do, and then works.
struct Failing(Mutex<Vec<io::Error>>, tokio::net::TcpListener);

impl Source for Failing {
    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let error = self.0.lock().unwrap().pop();
        match error {
            Some(error) => Err(error),
            None => self.1.accept().await,
        }
    }
}

#[tokio::test]
async fn no_error_of_the_accept_call_ends_the_loop() {
    let errors = [24, 23, 103, 12, 105, 9999].map(io::Error::from_raw_os_error).into();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config: Config = toml::from_str("listen = \"127.0.0.1:0\"\ntls = \"off\"").unwrap();
    let accept = Accept::new(&config, Path::new(".")).unwrap();
    let counters = accept.counters().clone();
    let task = tokio::spawn(listen::run(accept, Failing(Mutex::new(errors), listener), Echo::default(), std::future::pending()));
    let answer = raw(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"));
    assert_eq!(counters.accept_errors.load(Ordering::Relaxed), 6);
    task.abort();
}
