//! Against real servers on loopback, some of which speak bytes that no server should.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use super::*;

mod calls;
mod ends;
mod http2;
mod replicas;
mod secure;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const SOON: Duration = Duration::from_secs(5);

/// A server that hands each connection to `on`, and counts them.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server_at<F: Future<Output = ()> + Send + 'static>(address: &str, on: impl Fn(Speaker) -> F + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, asked) = (connections.clone(), requests.clone());
    let task = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            counted.fetch_add(1, SeqCst);
            tokio::spawn(on(Speaker { tcp, requests: asked.clone() }));
        }
    });
    Server { address, connections, requests, task: task.abort_handle() }
}

async fn server<F: Future<Output = ()> + Send + 'static>(on: impl Fn(Speaker) -> F + Send + Sync + 'static) -> Server {
    server_at("127.0.0.1:0", on).await
}

/// A server that answers every request with the same bytes.
async fn always(answer: &'static [u8]) -> Server {
    server(move |mut speaker| async move {
        while speaker.hear().await.is_some() {
            speaker.say(answer).await;
        }
    })
    .await
}

struct Speaker {
    tcp: TcpStream,
    requests: Arc<AtomicUsize>,
}

impl Speaker {
    /// The next whole request, or `None` at the end.
    async fn hear(&mut self) -> Option<String> {
        let mut read = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&read).into_owned();
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text
                    .lines()
                    .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(|n| n.parse().unwrap()))
                    .unwrap_or(0);
                if read.len() >= end + 4 + length {
                    self.requests.fetch_add(1, SeqCst);
                    return Some(text);
                }
            }
            if self.tcp.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn say(&mut self, bytes: &[u8]) {
        let _ = self.tcp.write_all(bytes).await;
    }

    /// Until the other end has closed or reset.
    async fn gone(&mut self) {
        let mut rest = [0; 64];
        while !matches!(self.tcp.read(&mut rest).await, Ok(0) | Err(_)) {}
    }
}

fn config(urls: &[String], more: &str) -> Config {
    let urls = urls.iter().map(|url| format!("{url:?}")).collect::<Vec<_>>().join(", ");
    toml::from_str(&format!("protocol = \"openai\"\nurls = [{urls}]\n{more}")).unwrap()
}

fn upstream_of(urls: &[String], more: &str) -> Arc<Upstream> {
    Upstream::new(&config(urls, more), Path::new("/")).unwrap()
}

fn to(servers: &[&Server], more: &str) -> Arc<Upstream> {
    upstream_of(&servers.iter().map(|server| format!("http://{}", server.address)).collect::<Vec<_>>(), more)
}

fn request() -> Outgoing {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    Outgoing {
        method: Method::POST,
        path_and_query: PathAndQuery::from_static("/v1/chat/completions?a=b"),
        headers,
        body: Bytes::from_static(b"{}"),
    }
}

async fn send(upstream: &Upstream) -> Result<Incoming, Error> {
    upstream.send(request(), Instant::now() + SOON).await
}

async fn whole(answer: Incoming) -> Result<Bytes, Error> {
    let end = answer.body.collect().await.map_err(|broken| *broken.downcast_ref::<Error>().unwrap())?;
    Ok(end.to_bytes())
}

async fn ask(upstream: &Upstream) -> Result<Bytes, Error> {
    whole(send(upstream).await?).await
}

/// Waits for what another task is about to do.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(SOON, async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

/// Where every connection is refused: the port is taken, so nobody else is given it, and nothing listens there.
fn dead_origin() -> String {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_used_again_and_again() {
    let server = always(OK).await;
    let upstream = to(&[&server], "");
    for _ in 0..100 {
        assert_eq!(ask(&upstream).await.unwrap(), "hello");
        until("the connection comes back", || upstream.replicas()[0].idle == 1).await;
    }
    assert_eq!((server.connections.load(SeqCst), server.requests.load(SeqCst)), (1, 100));
    assert_eq!(upstream.replicas()[0].in_flight, 0);
}

#[tokio::test]
async fn what_is_sent_is_what_was_given_with_host_and_credential() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let server = server(move |mut speaker| {
        let heard = heard.clone();
        async move {
            while let Some(text) = speaker.hear().await {
                heard.send(text).unwrap();
                speaker.say(OK).await;
            }
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "s3cret-canary\n").unwrap();
    for (protocol, more, sent) in [
        ("openai", "", "authorization: Bearer s3cret-canary"),
        ("anthropic", "", "x-api-key: s3cret-canary"),
        ("raw", "credential_header = \"api-key\"", "api-key: s3cret-canary"),
    ] {
        let text = format!("protocol = {protocol:?}\nurls = [\"http://{}\"]\ncredential_file = \"token\"\n{more}", server.address);
        let upstream = Upstream::new(&toml::from_str(&text).unwrap(), folder.path()).unwrap();
        let mut asked = request();
        asked.headers.insert(header::HOST, HeaderValue::from_static("elsewhere.example"));
        asked.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("1"));
        assert!(upstream.send(asked, Instant::now() + SOON).await.is_ok());
        let heard = hears.recv().await.unwrap();
        let mut lines: Vec<&str> = heard.split("\r\n").filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.remove(0), "POST /v1/chat/completions?a=b HTTP/1.1");
        assert_eq!(lines.pop(), Some("{}"));
        lines.sort_unstable();
        let host = format!("host: {}", server.address);
        let mut expected = [sent, "content-length: 2", "content-type: application/json", &host];
        expected.sort_unstable();
        assert_eq!(lines, expected);
        assert!(!format!("{upstream:?}").contains("canary"));
    }
}

#[tokio::test]
async fn bytes_after_an_answer_are_never_the_next_answer() {
    let server = server(|mut speaker| async move {
        while speaker.hear().await.is_some() {
            speaker.say(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged").await;
        }
    })
    .await;
    let upstream = to(&[&server], "");
    for _ in 0..20 {
        assert_eq!(ask(&upstream).await.unwrap(), "hello");
    }
    assert_eq!(server.connections.load(SeqCst), 20);
}

/// Asks `times` times, and has `then` done to each connection once it is idle. What the server has sent is not yet what has
/// arrived, even on loopback: the next is asked when it has.
async fn ask_and_idle<F: Future<Output = ()> + Send + 'static>(
    times: usize,
    then: impl Fn(Speaker) -> F + Clone + Send + Sync + 'static,
) -> Server {
    let now = Arc::new(Notify::new());
    let when = now.clone();
    let server = server(move |mut speaker| {
        let (when, then) = (when.clone(), then.clone());
        async move {
            speaker.hear().await;
            speaker.say(OK).await;
            when.notified().await;
            then(speaker).await;
        }
    })
    .await;
    let upstream = to(&[&server], "");
    let pool = &upstream.replicas[0].pool;
    for _ in 0..times {
        assert_eq!(ask(&upstream).await.unwrap(), "hello");
        timeout(SOON, async {
            while pool.idle() == 0 {
                tokio::task::yield_now().await;
            }
            now.notify_one();
            while pool.quiet() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
    server
}

#[tokio::test]
async fn bytes_that_come_while_a_connection_is_idle_end_it() {
    let forge = |mut speaker: Speaker| async move {
        speaker.say(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged").await;
        speaker.hear().await;
    };
    let server = ask_and_idle(5, forge).await;
    assert_eq!((server.connections.load(SeqCst), server.requests.load(SeqCst)), (5, 5));
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_while_idle_costs_no_request() {
    let server = ask_and_idle(50, |speaker| async move { drop(speaker) }).await;
    assert_eq!((server.connections.load(SeqCst), server.requests.load(SeqCst)), (50, 50));
}

#[tokio::test]
async fn a_request_that_was_read_is_never_sent_again() {
    let vanish = |mut speaker: Speaker| async move {
        speaker.hear().await;
    };
    let (one, other) = (server(vanish).await, server(vanish).await);
    let upstream = to(&[&one, &other], "");
    for sent in 1..=4 {
        assert_eq!(ask(&upstream).await, Err(Error::UpstreamClosed));
        assert_eq!(one.requests.load(SeqCst) + other.requests.load(SeqCst), sent);
    }
}

#[tokio::test]
async fn a_replica_that_refuses_connections_costs_no_request() {
    let server = always(OK).await;
    let upstream = upstream_of(&[dead_origin(), dead_origin(), format!("http://{}", server.address)], "");
    for _ in 0..50 {
        assert_eq!(ask(&upstream).await.unwrap(), "hello");
    }
    assert!(upstream.replicas()[0].ejected && upstream.replicas()[1].ejected);
    assert_eq!(server.requests.load(SeqCst), 50);
}

#[tokio::test]
async fn a_request_is_tried_three_times_and_no_more() {
    let server = always(OK).await;
    let mut urls = vec![];
    for _ in 0..3 {
        urls.push(dead_origin());
    }
    let upstream = upstream_of(&urls, "");
    assert_eq!(ask(&upstream).await, Err(Error::UpstreamUnreachable(Unreached::Refused)));
    urls.push(format!("http://{}", server.address));
    let upstream = upstream_of(&urls, "");
    for _ in 0..40 {
        let _ = ask(&upstream).await;
    }
    assert!(ask(&upstream).await.is_ok(), "those that refuse were set aside");
}

#[tokio::test]
async fn dropping_an_answer_closes_the_connection() {
    let (gone, mut goes) = mpsc::unbounded_channel();
    let server = server(move |mut speaker| {
        let gone = gone.clone();
        async move {
            speaker.hear().await;
            speaker.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
            speaker.gone().await;
            gone.send(Instant::now()).unwrap();
        }
    })
    .await;
    let upstream = to(&[&server], "");
    for _ in 0..10 {
        let mut answer = send(&upstream).await.unwrap();
        answer.body.frame().await.unwrap().unwrap();
        let dropped = Instant::now();
        drop(answer);
        let seen = timeout(SOON, goes.recv()).await.unwrap().unwrap();
        assert!(seen - dropped < Duration::from_millis(100));
    }
    assert_eq!((upstream.replicas()[0].in_flight, upstream.replicas()[0].idle), (0, 0));
}

#[tokio::test]
async fn dropping_the_call_before_its_answer_closes_the_connection() {
    let (heard, gone) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (hears, goes) = (heard.clone(), gone.clone());
    let server = server(move |mut speaker| {
        let (hears, goes) = (hears.clone(), goes.clone());
        async move {
            speaker.hear().await;
            hears.notify_one();
            speaker.gone().await;
            goes.notify_one();
        }
    })
    .await;
    let upstream = to(&[&server], "");
    tokio::select! {
        _ = send(&upstream) => panic!("nothing answers"),
        () = heard.notified() => {}
    }
    timeout(Duration::from_millis(500), gone.notified()).await.unwrap();
    assert_eq!(upstream.replicas()[0].in_flight, 0);
}

#[tokio::test]
async fn garbage_is_a_502_and_its_connection_is_not_used_again() {
    fn huge() -> &'static [u8] {
        Box::leak(
            [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &vec![b'a'; 2 << 20], b"\r\ncontent-length: 0\r\n\r\n"].concat().into_boxed_slice(),
        )
    }
    fn headers(count: usize) -> &'static [u8] {
        let lines: String = (0..count - 1).map(|n| format!("x{n}: y\r\n")).collect();
        Box::leak(format!("HTTP/1.1 200 OK\r\n{lines}content-length: 5\r\n\r\nhello").into_bytes().into_boxed_slice())
    }
    let cases: &[(&str, &'static [u8], Result<&str, Error>)] = &[
        (
            "both lengths",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Err(Error::UpstreamBrokeFraming),
        ),
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", Err(Error::UpstreamBrokeHttp)),
        (
            "the same length twice",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
            Err(Error::UpstreamBrokeFraming),
        ),
        ("a list of lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", Err(Error::UpstreamBrokeFraming)),
        ("a signed length", b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello", Err(Error::UpstreamBrokeHttp)),
        ("a negative length", b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello", Err(Error::UpstreamBrokeHttp)),
        (
            "an unknown coding",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Err(Error::UpstreamBrokeFraming),
        ),
        ("identity", b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nhello", Err(Error::UpstreamBrokeFraming)),
        (
            "chunked in HTTP/1.0",
            b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Err(Error::UpstreamBrokeHttp),
        ),
        (
            "101",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
            Err(Error::UpstreamSwitchedProtocol),
        ),
        ("a head of 2 MiB", huge(), Err(Error::UpstreamSentHugeHead)),
        ("100 headers", headers(100), Ok("hello")),
        ("101 headers", headers(101), Err(Error::UpstreamSentHugeHead)),
        ("no HTTP", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", Err(Error::UpstreamBrokeHttp)),
        ("a fold", b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 5\r\n\r\nhello", Err(Error::UpstreamBrokeHttp)),
        ("a short body", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello", Err(Error::UpstreamBrokeBody)),
        ("no last chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", Err(Error::UpstreamBrokeBody)),
        ("a bad chunk", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", Err(Error::UpstreamBrokeBody)),
        (
            "a chunk past 64 bits",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello",
            Err(Error::UpstreamBrokeBody),
        ),
        ("100 first", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Ok("hello")),
        ("until the end", b"HTTP/1.1 200 OK\r\n\r\nhello", Ok("hello")),
    ];
    for (name, answer, expected) in cases {
        let answer = *answer;
        let server = server(move |mut speaker| async move {
            speaker.hear().await;
            speaker.say(answer).await;
            // The end of what is said, but not of the connection, so that reuse would show.
            let _ = speaker.tcp.shutdown().await;
            speaker.hear().await;
        })
        .await;
        let upstream = to(&[&server], "response_timeout = \"3s\"");
        assert_eq!(ask(&upstream).await, expected.map(|body| Bytes::from_static(body.as_bytes())), "{name}");
        let _ = ask(&upstream).await;
        assert_eq!((server.connections.load(SeqCst), server.requests.load(SeqCst)), (2, 2), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_calls_given_up_at_every_point_nobody_reads_the_answer_of_another() {
    let echo = |mut speaker: Speaker| async move {
        while let Some(text) = speaker.hear().await {
            let id = text.rsplit("\r\n").next().unwrap().to_owned();
            let (first, second) = id.split_at(4);
            speaker.say(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{first}", id.len()).as_bytes()).await;
            tokio::task::yield_now().await;
            speaker.say(second.as_bytes()).await;
        }
    };
    let (one, other) = (server(echo).await, server(echo).await);
    let upstream = to(&[&one, &other], "max_in_flight = 64");
    let call = |n: u64| {
        let upstream = upstream.clone();
        async move {
            let id = format!("{n:08}");
            let asked = Outgoing { body: Bytes::from(id.clone()), ..request() };
            let within = Duration::from_micros(if n.is_multiple_of(3) { n * 7 % 3_000 } else { 5_000_000 });
            let answered = timeout(within, async { whole(upstream.send(asked, Instant::now() + SOON).await?).await }).await;
            if let Ok(answer) = answered {
                assert_eq!(answer.unwrap(), id);
            } else {
                assert!(n.is_multiple_of(3));
            }
        }
    };
    for crowd in 0..20 {
        let calls: Vec<_> = (0..50).map(|n| tokio::spawn(call(crowd * 50 + n))).collect();
        for call in calls {
            call.await.unwrap();
        }
    }
    until("everything is given back", || upstream.replicas().iter().all(|replica| replica.in_flight == 0)).await;
}

#[test]
fn every_mistake_of_the_config_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("two"), "canary-one\ncanary-two\n").unwrap();
    std::fs::write(folder.path().join("empty"), "\n").unwrap();
    std::fs::write(folder.path().join("long"), "x".repeat(MAX_CREDENTIAL + 1)).unwrap();
    std::fs::write(folder.path().join("longest"), "x".repeat(MAX_CREDENTIAL)).unwrap();
    let mistakes = |text: &str| match toml::from_str::<Config>(text) {
        Ok(config) => Upstream::new(&config, folder.path()).err().unwrap_or_default(),
        Err(error) => panic!("{error}"),
    };
    let cases: &[(&str, usize)] = &[
        ("protocol = \"openai\"\nurls = [\"http://127.0.0.1:1\"]", 0),
        ("protocol = \"openai\"\nurls = []", 1),
        (
            "protocol = \"openai\"\nurls = [\"http://a/v1\", \"http://u:p@a\", \"ftp://a\", \"a\", \"http://a?b\", \"http://a#b\", \"http://a:0\", \"http://a:99999\"]",
            8,
        ),
        ("protocol = \"openai\"\nurls = [\"http://a:1\", \"http://a:1\"]", 1),
        ("protocol = \"oip-grpc\"\nurls = [\"http://a\"]\nhttp2 = false", 1),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\nca = \"none.pem\"", 0),
        ("protocol = \"raw\"\nurls = [\"https://a\"]\nca = \"none.pem\"", 1),
        ("protocol = \"raw\"\nurls = [\"https://a\"]\nca = \"two\"", 1),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\ncredential_file = \"two\"", 1),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\ncredential_file = \"empty\"", 1),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\ncredential_file = \"long\"", 1),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\ncredential_file = \"longest\"", 0),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\ncredential_file = \"none\"\ncredential_header = \"host\"", 2),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\ncredential_header = \"x\"", 1),
        (
            "protocol = \"raw\"\nurls = [\"http://a\"]\nconnect_timeout = \"0s\"\nresponse_timeout = \"0s\"\nmax_in_flight = 0\nmodel = \"\"",
            4,
        ),
        ("protocol = \"oip\"\nurls = [\"http://a\"]\nmodel_version = \"2024-a\"", 0),
        ("protocol = \"oip\"\nurls = [\"http://a\"]\nmodel_version = \"\"", 1),
        ("protocol = \"oip\"\nurls = [\"http://a\"]\nmodel_version = \"..\"", 1),
        ("protocol = \"oip\"\nurls = [\"http://a\"]\nmodel_version = \"1/infer\"", 1),
        ("protocol = \"openai\"\nurls = [\"http://a\"]\nmodel_version = \"1\"", 1),
        ("protocol = \"oip-grpc\"\nurls = [\"http://a\"]\nmodel_version = \"1\"\nhealth = { every = \"5s\" }", 0),
        ("protocol = \"oip-grpc\"\nurls = [\"http://a\"]\nhealth = { path = \"/\", every = \"5s\" }", 1),
        ("protocol = \"oip\"\nurls = [\"http://a\"]\nhealth = { every = \"5s\" }", 1),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\ncredential_file = \"longest\"\ncredential_header = \"grpc-timeout\"", 1),
        ("protocol = \"raw\"\nurls = [\"http://a\"]\nhealth = { path = \"health\", every = \"1ms\" }", 2),
    ];
    for (text, count) in cases {
        let found = mistakes(text);
        assert_eq!(found.len(), *count, "{text}\n{found:?}");
        assert!(!format!("{found:?}").contains("canary"));
    }
    assert!(toml::from_str::<Config>("protocol = \"openai\"\nurls = []\nurl = \"x\"").is_err());
    assert!(toml::from_str::<Config>("protocol = \"grpc\"\nurls = []").is_err());
}
