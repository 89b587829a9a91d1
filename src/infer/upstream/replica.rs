//! One replica: its connections, its load, how it stands, and one request to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, header};
use http_body::Body as _;
use http_body_util::Full;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use super::config::Settings;
use super::pool::{Lease, Pool, Sent, lock};
use super::standing::{Standing, Way};
use super::tail::Tail;
use super::{Error, Incoming, Outgoing};
use crate::outbound::{MAX_HEADERS, Origin};
use crate::wire::Body;

pub(super) struct Replica {
    pub(super) origin: Origin,
    pub(super) settings: Arc<Settings>,
    pub(super) pool: Arc<Pool>,
    standing: Mutex<Standing>,
    in_flight: AtomicUsize,
    room: Arc<Semaphore>,
}

impl Replica {
    pub(super) fn new(origin: Origin, settings: Arc<Settings>) -> Self {
        let room = Arc::new(Semaphore::new(settings.max_in_flight));
        Self { origin, settings, pool: Arc::new(Pool::new()), standing: Mutex::default(), in_flight: AtomicUsize::new(0), room }
    }

    pub(super) fn way(&self, now: Instant) -> Way {
        lock(&self.standing).way(now)
    }

    /// How many requests are on their way to it, wait for room there, or are being answered.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn checked(&self, well: bool) {
        lock(&self.standing).checked(well);
    }
}

/// One request's place at a replica, from the choice until its answer has ended.
pub(super) struct Turn {
    pub(super) replica: Arc<Replica>,
    permit: Option<OwnedSemaphorePermit>,
    probe: bool,
    /// Health checks are judged on their own.
    judged: bool,
}

impl Turn {
    pub(super) fn at(replica: &Arc<Replica>, now: Instant) -> Self {
        replica.in_flight.fetch_add(1, Ordering::Relaxed);
        let probe = lock(&replica.standing).begin(now);
        Self { replica: replica.clone(), permit: None, probe, judged: true }
    }

    /// A turn that says nothing of how the replica stands.
    pub(super) fn of_check(replica: &Arc<Replica>) -> Self {
        replica.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { replica: replica.clone(), permit: None, probe: false, judged: false }
    }

    fn answered(&mut self) {
        if self.probe && self.judged {
            lock(&self.replica.standing).answered(true);
            self.probe = false;
        }
    }

    pub(super) fn ended_well(&self) {
        if self.judged {
            lock(&self.replica.standing).ended_well();
        }
    }

    fn undone(&mut self) {
        if self.judged {
            lock(&self.replica.standing).undone(self.probe, Instant::now());
            self.probe = false;
        }
    }

    pub(super) fn failed(&mut self) {
        if self.judged {
            lock(&self.replica.standing).failed(self.probe, Instant::now());
            self.probe = false;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.replica.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.probe {
            lock(&self.replica.standing).probe_given_up();
        }
    }
}

/// Why a request to one replica came to nothing.
pub(super) enum Failed {
    /// Nothing of it was sent, or the replica says that it did nothing of it, so another try is as good as the first.
    Unsent { error: Error, request: Outgoing, then: Then },
    /// Some of it may have been done: it is not sent again.
    Sent(Error),
}

/// Where to try again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// At another replica.
    Elsewhere,
    /// At any, over a new connection: this one was no longer good, the replica may well be.
    Anew,
    /// At another replica if one is asked, for this one did nothing of it; else at this.
    RatherElsewhere,
}

impl Turn {
    /// Sends `request` to the replica, once.
    pub(super) async fn send(mut self, request: Outgoing, deadline: Instant) -> Result<Incoming, Failed> {
        if let Err(error) = self.make_room(deadline).await {
            return Err(Failed::Unsent { error, request, then: Then::Elsewhere });
        }
        let replica = self.replica.clone();
        let settings = &*replica.settings;
        let now = Instant::now();
        let leased = timeout_at(deadline.into(), replica.pool.lease(&replica.origin, settings, now)).await;
        let mut lease = match leased {
            Ok(Ok(lease)) => lease,
            Ok(Err(why)) => {
                self.failed();
                return Err(Failed::Unsent { error: Error::UpstreamUnreachable(why), request, then: Then::Elsewhere });
            }
            Err(_) => return Err(Failed::Sent(Error::DeadlinePassed)),
        };
        let body = request.body.clone();
        let is_http2 = matches!(lease, Lease::Many(_));
        let again = is_http2.then(|| request.clone());
        let Some(dressed) = dress(request, &replica, is_http2) else {
            return Err(Failed::Sent(Error::OperatorConfiguredCredential));
        };
        let silent_at = Instant::now() + settings.response_timeout;
        let until = silent_at.min(deadline).into();
        let answer = match &mut lease {
            Lease::One(line) => timeout_at(until, line.sender.try_send_request(dressed)).await,
            Lease::Many(strand) => timeout_at(until, strand.sender.try_send_request(dressed)).await,
        };
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(mut refused)) => {
                let error = Error::of(refused.error());
                return Err(match (refused.take_message(), undone(refused.error()), again) {
                    (Some(request), ..) => Failed::Unsent { error, request: undress(request, body), then: Then::Anew },
                    (None, Some(undone), Some(request)) => {
                        self.undone();
                        let error = match (undone, &lease) {
                            (Undone::Left, Lease::Many(strand)) => {
                                replica.pool.retire(strand);
                                error
                            }
                            _ => Error::Full,
                        };
                        Failed::Unsent { error, request, then: Then::RatherElsewhere }
                    }
                    (None, ..) => {
                        self.failed();
                        Failed::Sent(error)
                    }
                });
            }
            Err(_) if silent_at <= deadline => {
                self.failed();
                if let Lease::Many(strand) = &lease {
                    replica.pool.retire(strand);
                }
                return Err(Failed::Sent(Error::UpstreamSilent));
            }
            Err(_) => return Err(Failed::Sent(Error::DeadlinePassed)),
        };
        let framed = match framing(&answer) {
            Ok(framed) => framed,
            Err(error) => {
                self.failed();
                return Err(Failed::Sent(error));
            }
        };
        self.answered();
        let (head, incoming) = answer.into_parts();
        let body = if incoming.is_end_stream() {
            self.ended_well();
            Pool::give_back(&replica.pool, lease, Instant::now());
            Body::Empty
        } else {
            Body::stream(Tail::new(incoming, self, lease, deadline, settings.idle_timeout))
        };
        Ok(Incoming { status: head.status, headers: head.headers, body, framed })
    }

    /// Waits until the replica has room for one more, for as long as connecting may take.
    async fn make_room(&mut self, deadline: Instant) -> Result<(), Error> {
        let settings = &self.replica.settings;
        let room = &self.replica.room;
        if let Ok(permit) = room.clone().try_acquire_owned() {
            self.permit = Some(permit);
            return Ok(());
        }
        // As many may wait as may be served; who comes after that is told at once.
        if self.replica.in_flight() > settings.max_in_flight.saturating_mul(2) {
            return Err(Error::Full);
        }
        let until = deadline.min(Instant::now() + settings.connect_timeout);
        match timeout_at(until.into(), room.clone().acquire_owned()).await {
            Ok(Ok(permit)) => self.permit = Some(permit),
            _ => return Err(Error::Full),
        }
        Ok(())
    }
}

/// How an HTTP/2 server says that it did nothing of a request (RFC 9113, 8.7).
enum Undone {
    /// The connection goes away, and says so of a stream that is above the last one it attends to. Nothing of a request with a body was done then; one without
    /// may have been asked for as the connection went, and asks for what can be asked for twice.
    Left,
    /// REFUSED_STREAM.
    Refused,
}

/// Whether the other end says so; its HTTP library does not return the request then.
fn undone(error: &hyper::Error) -> Option<Undone> {
    let error = std::error::Error::source(error)?.downcast_ref::<h2::Error>().filter(|error| error.is_remote())?;
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) if error.is_reset() => Some(Undone::Refused),
        Some(h2::Reason::NO_ERROR) if error.is_go_away() => Some(Undone::Left),
        _ => None,
    }
}

/// The request as it goes to `replica`. Nothing is added but where it goes and the credential; framing is the connection's.
/// `None` when the credential is no header value, which was checked when it was read.
fn dress(request: Outgoing, replica: &Replica, http2: bool) -> Option<Request<Sent>> {
    let Outgoing { method, path_and_query, mut headers, body } = request;
    for framing in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION] {
        headers.remove(framing);
    }
    if let Some(credential) = &replica.settings.credential {
        headers.insert(credential.header.clone(), credential.value()?);
    }
    let mut dressed = Request::new(Full::new(body));
    *dressed.method_mut() = method;
    if http2 {
        headers.remove(header::HOST);
        *dressed.uri_mut() = replica.origin.uri(path_and_query);
        *dressed.version_mut() = Version::HTTP_2;
    } else {
        headers.insert(header::HOST, replica.origin.host_header());
        *dressed.uri_mut() = Uri::from(path_and_query);
    }
    *dressed.headers_mut() = headers;
    Some(dressed)
}

/// What [`dress`] was given.
fn undress(request: Request<Sent>, body: bytes::Bytes) -> Outgoing {
    let (head, _) = request.into_parts();
    let path_and_query = head.uri.into_parts().path_and_query.unwrap_or(http::uri::PathAndQuery::from_static("/"));
    Outgoing { method: head.method, path_and_query, headers: head.headers, body }
}

/// Whether the end of the answer's body is marked, after refusing what is ambiguous (RFC 9112 §6.3) and what is too much.
fn framing<T>(answer: &Response<T>) -> Result<bool, Error> {
    let headers = answer.headers();
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::UpstreamSwitchedProtocol);
    }
    if headers.len() > MAX_HEADERS {
        return Err(Error::UpstreamSentHugeHead);
    }
    if answer.version() == Version::HTTP_2 {
        return Ok(true);
    }
    let length = one(headers, &header::CONTENT_LENGTH)?;
    let coding = one(headers, &header::TRANSFER_ENCODING)?;
    match (length, coding) {
        (Some(_), Some(_)) => Err(Error::UpstreamBrokeFraming),
        (Some(length), None) if length.is_empty() || !length.iter().all(u8::is_ascii_digit) => Err(Error::UpstreamBrokeFraming),
        (None, Some(coding)) if !coding.eq_ignore_ascii_case(b"chunked") => Err(Error::UpstreamBrokeFraming),
        (None, None) => Ok(false),
        _ => Ok(true),
    }
}

/// The one value of a header that may be given once.
fn one<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<Option<&'a [u8]>, Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Error::UpstreamBrokeFraming),
        (value, None) => Ok(value.map(http::HeaderValue::as_bytes)),
    }
}

/// How long until a replica that is shut may be asked again.
pub(super) fn wait_of(way: Way, now: Instant) -> Option<Duration> {
    match way {
        Way::Shut(until) => Some(until.saturating_duration_since(now)),
        _ => None,
    }
}
