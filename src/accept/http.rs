//! One connection of HTTP/1.1 or HTTP/2, from its first byte to its close.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout, timeout_at};

use super::body::{Departing, by_deadline};
use super::config::Limits;
use super::guard::Guard;
use super::tls::Shown;
use super::{Connection, Counters, Error, Peer, admissible};
use crate::clock::Moment;
use crate::wire::Body;

/// How long past its deadline a request may live, so that its handler can answer 504 itself.
pub const GRACE: Duration = Duration::from_secs(2);
/// Requests given up on one connection, less those that ended well, before it is closed (CVE-2023-44487, paced).
pub const MAX_ABANDONED: u32 = 32;
/// Requests on one connection before it is asked to make a new one; fewer in tests, which ask for all of them.
pub const MAX_REQUESTS: u32 = if cfg!(test) { 200 } else { 100_000 };
/// HTTP/2: bytes in flight towards us on one stream.
const STREAM_WINDOW: u32 = 64 << 10;
/// HTTP/2: bytes in flight towards us on one connection.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// HTTP/2: bytes of one stream's answer that wait for the other end to take them.
const SEND_BUFFER: usize = 64 << 10;
/// HTTP/2: streams that were reset before we looked at them (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// HTTP/2: resets that the other end's errors made us send (CVE-2025-8671).
const MAX_LOCAL_RESETS: usize = 64;
/// HTTP/2: how often a quiet connection is asked whether it lives, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(10);
/// How long a connection that was asked to end may take before it is cut, if nothing is in flight on it.
const FAREWELL: Duration = Duration::from_secs(5);
/// HTTP/1.1: what is buffered of one connection's input.
const READ_BUFFER: usize = 64 << 10;

/// HTTP/1.1: the most headers that hyper takes when it is told nothing.
const HYPERS_HEADERS: usize = 100;

/// Who answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request. It is dropped [`GRACE`] past the request's deadline, and when the caller gives up.
    fn handle(&self, peer: Peer) -> impl Future<Output = Response<Body>> + Send;

    /// Answers a head that may not go on, in the caller's dialect where it tells one.
    fn refuse(&self, turned_away: TurnedAway<'_>) -> impl Future<Output = Response<Body>> + Send {
        std::future::ready(problem(turned_away.error))
    }
}

/// A head that may not go on, where it came from, and why it may not.
#[derive(Clone, Copy, Debug)]
pub struct TurnedAway<'a> {
    /// The connection it came on.
    pub connection: &'a Connection,
    /// When it had arrived.
    pub arrived: Moment,
    /// What was read of it. Nothing in it is known to be sound.
    pub head: &'a Parts,
    /// Why it may not go on.
    pub error: Error,
}

impl TurnedAway<'_> {
    /// `1.1` or `2`: what spans call the protocol's version.
    #[must_use]
    pub fn http_version(&self) -> &'static str {
        version_of(self.head)
    }
}

/// What spans call the version of a head's protocol.
pub(super) fn version_of(head: &Parts) -> &'static str {
    if head.version == Version::HTTP_2 { "2" } else { "1.1" }
}

/// The methods that are served anywhere, which is all that `Allow` says where no path was looked at.
pub const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");

/// A refusal in the words of RFC 9457.
#[must_use]
pub fn problem(error: Error) -> Response<Body> {
    let text = format!(
        "{{\"type\":\"about:blank\",\"status\":{},\"detail\":\"{}\",\"code\":\"{}\"}}",
        error.status().as_u16(),
        error.public(),
        error.code()
    );
    let mut response = Response::new(Body::from(Bytes::from(text)));
    *response.status_mut() = error.status();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.headers_mut().insert("portcullis-reason", HeaderValue::from_static(error.code()));
    if error == Error::CallerUsedRefusedMethod {
        response.headers_mut().insert(header::ALLOW, METHODS);
    }
    response
}

/// How far the end of the listener has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    Finishing,
    /// What has no answer yet is told that it will have none, while that can still be told.
    LastCall,
    Cut,
}

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What all requests of one connection share.
struct Seat<H> {
    handler: H,
    connection: Connection,
    shown: Option<Shown>,
    limits: Limits,
    live: Arc<Live>,
    phase: watch::Receiver<Phase>,
}

/// How a connection is doing.
pub(super) struct Live {
    born: Instant,
    active: AtomicU32,
    /// Milliseconds after `born` at which the last request began, and at which the last one ended.
    busy_since: AtomicU64,
    quiet_since: AtomicU64,
    served: AtomicU32,
    abandoned: AtomicU32,
    closing: AtomicBool,
    enough: Notify,
    /// Whether its bytes were counted as none of HTTP: the HTTP library refuses what the guard has refused already.
    misframed: AtomicBool,
    pub(super) counters: Arc<Counters>,
}

impl Live {
    /// Its bytes are not strict HTTP/1.1.
    pub(super) fn misframed(&self) {
        if !self.misframed.swap(true, Ordering::Relaxed) {
            Counters::add(&self.counters.misframed);
        }
    }

    /// The HTTP library ended it, and no handler hears of that.
    fn broke(&self, error: &hyper::Error) {
        let broke_http2 = || std::error::Error::source(error).and_then(|why| why.downcast_ref()).is_some_and(h2::Error::is_library);
        if error.is_parse_too_large() {
            Counters::add(&self.counters.oversized);
        } else if error.is_parse() {
            self.misframed();
        } else if broke_http2() {
            Counters::add(&self.counters.broke_http2);
        }
    }
}

/// One request's place in flight, from the end of its head to the end of its answer.
pub(super) struct Flight {
    live: Arc<Live>,
    whole: bool,
}

impl Flight {
    fn begin(live: &Arc<Live>) -> Self {
        live.busy_since.store(millis(live.born.elapsed()), Ordering::Relaxed);
        live.active.fetch_add(1, Ordering::Relaxed);
        live.counters.in_flight.fetch_add(1, Ordering::Relaxed);
        Counters::add(&live.counters.requests);
        if live.served.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_REQUESTS {
            live.enough.notify_one();
        }
        Self { live: live.clone(), whole: false }
    }

    /// The last byte of the answer was handed over.
    pub(super) fn whole(&mut self) {
        self.whole = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let live = &self.live;
        live.quiet_since.store(millis(live.born.elapsed()), Ordering::Relaxed);
        live.active.fetch_sub(1, Ordering::Relaxed);
        live.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.whole {
            // One that ended well makes up for one that did not: streams are given up honestly, too.
            let _ = live.abandoned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        } else {
            Counters::add(&live.counters.abandoned);
            if live.abandoned.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_ABANDONED {
                live.closing.store(true, Ordering::Relaxed);
                live.enough.notify_one();
            }
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What all connections of one listener share.
#[derive(Clone)]
pub(super) struct House<H> {
    pub(super) limits: Limits,
    pub(super) counters: Arc<Counters>,
    pub(super) handler: H,
    pub(super) phase: watch::Receiver<Phase>,
}

/// Serves one connection, of which `before` was already read, until it ends, is idle for too long, or the phase says so.
pub(super) async fn serve<I, H>(io: I, before: &[u8], protocol: Protocol, (connection, shown): (Connection, Option<Shown>), house: House<H>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let House { limits, counters, handler, phase } = house;
    let live = Arc::new(Live {
        born: Instant::now(),
        active: AtomicU32::new(0),
        busy_since: AtomicU64::new(0),
        quiet_since: AtomicU64::new(0),
        served: AtomicU32::new(0),
        abandoned: AtomicU32::new(0),
        closing: AtomicBool::new(false),
        enough: Notify::new(),
        misframed: AtomicBool::new(false),
        counters,
    });
    let idle = limits.deadlines.idle.0;
    let seat = Arc::new(Seat { handler, connection, shown, limits, live: live.clone(), phase: phase.clone() });
    let service = hyper::service::service_fn(move |request| answer(seat.clone(), request));
    // A stream whose window the other end keeps shut, or an answer that it takes a little of now and then, is polled by
    // no one else.
    let most = limits.deadlines.request.0 + GRACE + GRACE;
    let strict = protocol == Protocol::Http1;
    let io = TokioIo::new(Guard::new(io, before, strict, limits.deadlines.headers.0, idle, live.clone()));
    match protocol {
        Protocol::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .half_close(false)
                .timer(TokioTimer::new())
                // The guard times heads: this timer would also run between requests, where `idle` counts.
                .header_read_timeout(None)
                .max_buf_size(READ_BUFFER.max(limits.max_header_bytes))
                .max_header_size(limits.max_header_bytes);
            // Where the bound is hyper's own the room for them is on the stack; asking for it would move it to the heap.
            if limits.max_headers != HYPERS_HEADERS {
                builder.max_headers(limits.max_headers);
            }
            let late = overdue(&live, most);
            tokio::select! {
                () = tend(builder.serve_connection(io, service), &live, idle, phase) => {}
                () = late => Counters::add(&live.counters.stalled),
            }
        }
        Protocol::Http2 => {
            let mut builder = http2::Builder::new(Bounded(most));
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.max_streams)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
                .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                .max_local_error_reset_streams(MAX_LOCAL_RESETS)
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_ANSWER);
            tend(builder.serve_connection(io, service), &live, idle, phase).await;
        }
    }
}

/// Ends when the one request that HTTP/1.1 has in flight has taken `most`.
async fn overdue(live: &Live, most: Duration) {
    let mut wait = most;
    loop {
        sleep(wait).await;
        let since = live.born + Duration::from_millis(live.busy_since.load(Ordering::Relaxed));
        let took = since.elapsed();
        wait = match most.checked_sub(took) {
            Some(left) if !left.is_zero() => left,
            _ if live.active.load(Ordering::Relaxed) > 0 => return,
            _ => most,
        };
    }
}

/// Spawns HTTP/2 streams, none of which may outlive the bound.
#[derive(Clone, Copy)]
struct Bounded(Duration);

impl<F> hyper::rt::Executor<F> for Bounded
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        tokio::spawn(timeout(self.0, future));
    }
}

/// A connection that can be asked to end.
trait Ending: Future<Output = hyper::Result<()>> {
    fn end(self: Pin<&mut Self>);
}

impl<I, S, B> Ending for http1::Connection<I, S>
where
    Self: Future<Output = hyper::Result<()>>,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B, E> Ending for http2::Connection<I, S, E>
where
    Self: Future<Output = hyper::Result<()>>,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn end(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

async fn tend(connection: impl Ending, live: &Live, idle: Duration, mut phase: watch::Receiver<Phase>) {
    let mut connection = pin!(connection);
    let mut check = pin!(sleep(idle));
    let mut ending = false;
    loop {
        // A change that came before this receiver was first asked must not be missed.
        let now = *phase.borrow_and_update();
        if now == Phase::Cut {
            return;
        }
        if now >= Phase::Finishing && !ending {
            ending = true;
            connection.as_mut().end();
            check.as_mut().reset((Instant::now() + FAREWELL).into());
        }
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    live.broke(&error);
                }
                return;
            }
            changed = phase.changed() => if changed.is_err() { return },
            () = live.enough.notified() => if !ending {
                ending = true;
                connection.as_mut().end();
                check.as_mut().reset((Instant::now() + FAREWELL).into());
            },
            () = check.as_mut() => {
                let active = live.active.load(Ordering::Relaxed);
                let quiet_until = live.born + Duration::from_millis(live.quiet_since.load(Ordering::Relaxed)) + idle;
                let now = Instant::now();
                if active > 0 {
                    check.as_mut().reset((now + if ending { FAREWELL } else { idle }).into());
                } else if ending {
                    return;
                } else if now >= quiet_until {
                    ending = true;
                    connection.as_mut().end();
                    check.as_mut().reset((now + FAREWELL).into());
                } else {
                    check.as_mut().reset(quiet_until.into());
                }
            }
        }
    }
}

/// Why a request has no answer.
#[derive(Debug)]
enum Unanswered {
    /// It had none [`GRACE`] past its deadline.
    Late,
    /// Its connection is to end, and nothing was done of it: REFUSED_STREAM, after which it may be sent again (RFC 9113, 8.7).
    Refused(h2::Error),
}

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Late => "the request was not answered in time",
            Self::Refused(_) => "the connection is to end",
        })
    }
}

impl std::error::Error for Unanswered {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Late => None,
            Self::Refused(reset) => Some(reset),
        }
    }
}

/// What is told to HEAD: all but the body, and how long that would be (RFC 9110, 9.3.2). Over HTTP/2 nobody else leaves it out; over HTTP/1.1 it
/// would be left lying, as one is that its caller gave up.
fn without_body(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    if let Some(length) = http_body::Body::size_hint(&body).exact() {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    Response::from_parts(head, Body::Empty)
}

async fn answer<H: Handler>(seat: Arc<Seat<H>>, request: Request<Incoming>) -> Result<Response<Departing>, Unanswered> {
    let arrived = Moment::now();
    let flight = Flight::begin(&seat.live);
    let (head, incoming) = request.into_parts();
    let deadlines = seat.limits.deadlines;
    let hard_stop = arrived.mono + deadlines.request.0 + GRACE;
    let (version, wants_no_body) = (head.version, head.method == Method::HEAD);

    let admitted = if head.headers.len() > seat.limits.max_headers {
        Err(Error::CallerSentTooManyHeaders)
    } else if seat.live.closing.load(Ordering::Relaxed) {
        Err(Error::CallerAbandonedTooMany)
    } else if seat.shown.as_ref().is_some_and(|shown| !shown.holds(arrived.wall)) {
        // A new connection with it is refused in the handshake.
        seat.live.enough.notify_one();
        Err(Error::CallersCertificateEnded)
    } else {
        admissible(&head)
    };
    // Whoever expects anything else may send the body at once, and is refused.
    let expects = head.headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let (body, unread) = by_deadline(incoming, arrived.mono + deadlines.body.0);
    let (mut response, mut goes_on) = match admitted {
        Ok(()) => {
            let request = Request::from_parts(head, body);
            let peer = Peer::on_connection(seat.connection.clone(), arrived, deadlines.request.0, seat.phase.clone(), request);
            (timeout_at(hard_stop.into(), seat.handler.handle(peer)).await.map_err(|_| Unanswered::Late)?, true)
        }
        Err(error) => {
            Counters::add(&seat.live.counters.inadmissible);
            if error == Error::CallerAbandonedTooMany && version == Version::HTTP_2 {
                // Others may share the connection, as behind a proxy, who gave nothing up.
                return Err(Unanswered::Refused(h2::Reason::REFUSED_STREAM.into()));
            }
            let turned_away = TurnedAway { connection: &seat.connection, arrived, head: &head, error };
            let response = timeout_at(hard_stop.into(), seat.handler.refuse(turned_away)).await.map_err(|_| Unanswered::Late)?;
            drop(body);
            (response, false)
        }
    };
    goes_on &= unread.is_none_or(|unread| unread.read_on(seat.limits.max_unread, expects));
    if !goes_on && version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response.headers_mut().remove(header::SERVER);
    if wants_no_body {
        response = without_body(response);
    }
    if version < Version::HTTP_2 && seat.live.served.load(Ordering::Relaxed) >= MAX_REQUESTS {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Departing::new(body, flight, hard_stop)))
}
