//! The listening socket: it takes connections until it is told to stop, whatever the system answers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::config::{Config, Limits, TlsChoice};
use super::http::{self, Handler, House, Phase, Protocol};
use super::{Connection, Counters, Tls, tls};
use crate::mistake::Mistake;

/// Connections that the system holds for us until they are taken.
const BACKLOG: i32 = 1024;
/// The first wait after an error that the next call would meet again, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long before the end of a stop's wait what has no answer is refused: a refusal is written in milliseconds, and read in less than this.
pub const LAST_CALL: Duration = Duration::from_secs(1);
/// How long who failed a handshake is read on, and how many bytes.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 64 << 10;
/// What begins every HTTP/2 connection (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A listener's limits and TLS, resolved and loaded.
#[derive(Clone, Debug)]
pub struct Accept {
    address: SocketAddr,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    counters: Arc<Counters>,
}

impl Accept {
    /// Resolves `config`; relative paths are relative to `folder`.
    ///
    /// # Errors
    /// Every mistake in the block and in the files it names.
    pub fn new(config: &Config, folder: &Path) -> Result<Self, Vec<Mistake>> {
        let limits = config.limits();
        let tls = match config.tls.get_ref() {
            TlsChoice::Off => Ok(None),
            TlsChoice::On(tls) => Tls::load(tls, folder).map(Some),
        };
        match (limits, tls) {
            (Ok(limits), Ok(tls)) => Ok(Self::from_parts(*config.listen.get_ref(), limits, tls)),
            (limits, tls) => Err([limits.err().unwrap_or_default(), tls.err().unwrap_or_default()].concat()),
        }
    }

    /// A listener from what was resolved before. Without `tls` it binds loopback alone.
    #[must_use]
    pub fn from_parts(address: SocketAddr, limits: Limits, tls: Option<Tls>) -> Self {
        Self { address, limits, tls: tls.map(Arc::new), counters: Arc::default() }
    }

    /// How many connections it holds at once.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        self.limits.max_connections
    }

    /// The same, with no more than `most` connections at once, and at least one.
    #[must_use]
    pub fn with_at_most(mut self, most: usize) -> Self {
        self.limits.max_connections = self.limits.max_connections.min(most.max(1));
        self
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Its TLS, to reload; none for plain HTTP.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// Opens the port.
    ///
    /// # Errors
    /// What the system says, and `InvalidInput` for plain HTTP on an address that is not loopback.
    pub fn bind(self) -> io::Result<Bound> {
        if self.tls.is_none() && !self.address.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "plain HTTP is served on loopback alone"));
        }
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, Some(SocketProtocol::TCP))?;
        // A restart must not wait for the last connections of the one before it.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&self.address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let address = listener.local_addr()?;
        Ok(Bound { accept: self, listener, address })
    }
}

/// An open port.
#[derive(Debug)]
pub struct Bound {
    accept: Accept,
    listener: TcpListener,
    address: SocketAddr,
}

/// How a listener ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Drained {
    /// Requests that were still in flight when the wait was over, and were cut.
    pub cut: usize,
}

impl Bound {
    /// Its TLS, to reload; none for plain HTTP.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.accept.tls()
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        self.accept.counters()
    }

    /// The address, with the port that was given for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` ends; then takes no more, lets what is in flight finish for `drain`, of which the last [`LAST_CALL`] is for
    /// refusals of what has no answer, and cuts the rest.
    pub async fn serve<H: Handler>(self, handler: H, stop: impl Future<Output = ()>) -> Drained {
        let Self { accept, listener, .. } = self;
        run(accept, listener, handler, stop).await
    }
}

/// Where connections come from: a socket, or a test that fails as sockets do.
pub(super) trait Source {
    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)>;
}

impl Source for TcpListener {
    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }
}

pub(super) async fn run<H: Handler>(accept: Accept, source: impl Source, handler: H, stop: impl Future<Output = ()>) -> Drained {
    let Accept { limits, tls, counters, .. } = accept;
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let neighbours = Arc::new(Neighbours::default());
    let (phase, watched) = watch::channel(Phase::Serving);
    let house = House { limits, counters: counters.clone(), handler, phase: watched };
    let mut stop = std::pin::pin!(stop);
    let mut errors = 0;
    loop {
        let taken = tokio::select! {
            biased;
            () = stop.as_mut() => break,
            taken = source.next() => taken,
        };
        let (stream, address) = match taken {
            Ok(taken) => taken,
            // RUSTSEC-2024-0376: no error of the accept call ends the loop.
            Err(error) => {
                Counters::add(&counters.accept_errors);
                if let Some(pause) = pause_after(&error, errors) {
                    errors += 1;
                    tokio::select! {
                        () = stop.as_mut() => break,
                        () = sleep(pause) => {}
                    }
                }
                continue;
            }
        };
        errors = 0;
        // Full: closed at once, which the other end sees, rather than left to wait in the backlog, which it does not.
        let place = places.clone().try_acquire_owned().ok();
        let place = place.zip(neighbours.clone().enter(address.ip(), limits.max_connections_per_address));
        let Some((permit, neighbour)) = place else {
            Counters::add(&counters.refused);
            continue;
        };
        Counters::add(&counters.accepted);
        let open = Open::new(permit, neighbour, counters.clone());
        let (tls, house) = (tls.clone(), house.clone());
        tokio::spawn(async move {
            connection(stream, address, tls.as_ref(), house).await;
            drop(open);
        });
    }
    drop(source);
    phase.send_replace(Phase::Finishing);
    let every = u32::try_from(limits.max_connections).unwrap_or(u32::MAX);
    let last_call = LAST_CALL.min(limits.drain / 2);
    if timeout(limits.drain - last_call, places.acquire_many(every)).await.is_ok() {
        return Drained { cut: 0 };
    }
    phase.send_replace(Phase::LastCall);
    if timeout(last_call, places.acquire_many(every)).await.is_ok() {
        return Drained { cut: 0 };
    }
    let cut = counters.in_flight.load(Ordering::Relaxed);
    phase.send_replace(Phase::Cut);
    // Cut connections end as soon as their tasks run; the bound is for a task that a handler blocks. HTTP/2 has a task for
    // each answer, which ends after its connection: until then it still has the end of its answer to tell to the log.
    let ended = async {
        let _ = places.acquire_many(every).await;
        while counters.in_flight.load(Ordering::Relaxed) > 0 {
            sleep(FIRST_PAUSE).await;
        }
    };
    let _ = timeout(LONGEST_PAUSE, ended).await;
    Drained { cut }
}

/// How long to wait after the accept call failed, `streak` times in a row before; none where the next connection may
/// be a better one.
fn pause_after(error: &io::Error, streak: u32) -> Option<Duration> {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    // The connection, not the socket, is at fault: it was gone before it was taken.
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        return None;
    }
    // EMFILE, ENFILE, ENOMEM, ENOBUFS: the connection is still there, and so is the want of a descriptor.
    Some((FIRST_PAUSE * 2u32.saturating_pow(streak.min(16))).min(LONGEST_PAUSE))
}

/// How many connections each address has. Bounded by `max_connections`: an address without one has no entry.
#[derive(Debug, Default)]
struct Neighbours(Mutex<HashMap<IpAddr, usize>>);

struct Neighbour {
    all: Arc<Neighbours>,
    address: IpAddr,
}

impl Neighbours {
    fn enter(self: Arc<Self>, address: IpAddr, most: usize) -> Option<Neighbour> {
        let address = neighbourhood(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Neighbour { all: self, address })
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// The address that a cap counts: of IPv6 the /64, which is one customer's.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// One open connection's place, given back when it closes.
struct Open {
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
    _neighbour: Neighbour,
}

impl Open {
    fn new(permit: OwnedSemaphorePermit, neighbour: Neighbour, counters: Arc<Counters>) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self { counters, _permit: permit, _neighbour: neighbour }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection<H: Handler>(mut stream: TcpStream, address: SocketAddr, tls: Option<&Arc<Tls>>, mut house: House<H>) {
    // Answers are written whole; waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let deadline = tokio::time::Instant::now() + house.limits.deadlines.handshake.0;
    let Some(tls) = tls else {
        let Some((protocol, before)) = (tokio::select! {
            spoken = timeout_at(deadline, spoken(&mut stream)) => spoken.unwrap_or_else(|_| {
                Counters::add(&house.counters.stalled);
                None
            }),
            _ = house.phase.wait_for(|phase| *phase != Phase::Serving) => None,
        }) else {
            return;
        };
        let connection = Connection { address, certificate: None };
        return http::serve(stream, &before, protocol, (connection, None), house).await;
    };
    let counters = &house.counters;
    let in_force = tls.current();
    // The state of a handshake is large and short-lived: it is not kept in the connection's task.
    let handshake = TlsAcceptor::from(in_force.server().clone()).accept(stream).into_fallible();
    let handshake = Box::pin(timeout_at(deadline, handshake));
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        _ = house.phase.wait_for(|phase| *phase != Phase::Serving) => return,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            Counters::add(failed(counters, &error));
            return farewell(stream).await;
        }
        Err(_) => return Counters::add(&counters.handshakes_slow),
    };
    let session = stream.get_ref().1;
    let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
    let certificate = match session.peer_certificates().and_then(<[_]>::first) {
        None => None,
        Some(der) => match tls::client_certificate(der, SystemTime::now()) {
            Some(certificate) => Some(Arc::new(certificate)),
            None => return Counters::add(&counters.handshakes_certificate),
        },
    };
    let shown = tls::Shown::new(tls, session.peer_certificates(), in_force);
    let connection = Connection { address, certificate };
    http::serve(stream, &[], protocol, (connection, shown), house).await;
}

/// Closes a connection whose handshake failed so that the alert, which says why, arrives: a socket that is closed with bytes unread resets the
/// connection, and then the other end reads nothing more. In TLS 1.3 a client has sent its first request before it hears of the failure.
async fn farewell(mut stream: TcpStream) {
    let last = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(FAREWELL, last).await;
}

/// Reads until it is clear whether HTTP/2 is spoken with prior knowledge; none if the other end closed first.
async fn spoken(stream: &mut TcpStream) -> Option<(Protocol, Vec<u8>)> {
    let mut before = Vec::with_capacity(PREFACE.len());
    while PREFACE.starts_with(&before) {
        if before.len() == PREFACE.len() {
            return Some((Protocol::Http2, before));
        }
        let left = (PREFACE.len() - before.len()) as u64;
        if stream.take(left).read_buf(&mut before).await.ok()? == 0 {
            return None;
        }
    }
    Some((Protocol::Http1, before))
}

/// Which counter a failed handshake belongs to.
fn failed<'a>(counters: &'a Counters, error: &io::Error) -> &'a std::sync::atomic::AtomicU64 {
    use rustls::Error as Tls;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented | Tls::InvalidCertRevocationList(_)) => {
            &counters.handshakes_certificate
        }
        Some(Tls::AlertReceived(_)) | None => &counters.handshakes_broken,
        Some(_) => &counters.handshakes_refused,
    }
}
