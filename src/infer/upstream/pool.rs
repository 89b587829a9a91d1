//! The open connections to one replica.
//!
//! An HTTP/1.1 connection carries one request at a time. It is here only while it is idle, last in first out, and comes
//! back only when the answer before was read to its end; in every other case it is closed, which is also how the
//! upstream learns that nobody waits any more. An HTTP/2 connection stays here and is shared.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::config::{Settings, Version};
use crate::outbound::{MAX_HEAD, MAX_HEADERS, Origin, Reach, Stream, Unreached, Watch, connect};

/// How many unused HTTP/1.1 connections are kept for a replica.
pub(super) const MAX_IDLE: usize = 128;
/// How many requests share one HTTP/2 connection before another is opened.
pub(super) const STREAMS_PER_CONNECTION: usize = 100;
/// How many HTTP/2 connections a replica has at most; past it they are shared further.
pub(super) const MAX_SHARED: usize = 8;
/// How long a connection may take to become ready again after an answer has ended.
const READY_WITHIN: Duration = Duration::from_secs(1);
/// HTTP/2 flow control: what an upstream may send ahead of us, of one answer and in all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// With requests open and nothing heard for the first, a PING is sent; without an answer within the second, the connection is dead.
const PING_AFTER: Duration = Duration::from_secs(5);
const PING_WITHIN: Duration = Duration::from_secs(5);

/// The body of a request that is sent on.
pub(super) type Sent = Full<Bytes>;

/// An HTTP/1.1 connection. Dropped, it is closed at once, whatever it was doing.
pub(super) struct Line {
    pub(super) sender: http1::SendRequest<Sent>,
    watch: Watch,
    task: AbortHandle,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A place on an HTTP/2 connection.
pub(super) struct Strand {
    pub(super) sender: http2::SendRequest<Sent>,
    load: Arc<AtomicUsize>,
}

impl Drop for Strand {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection for one request.
pub(super) enum Lease {
    One(Line),
    Many(Strand),
}

struct Idle {
    line: Line,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<Sent>,
    load: Arc<AtomicUsize>,
    used: Instant,
}

/// The open connections to one replica.
pub(super) struct Pool {
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Shared>>,
    /// One at a time opens an HTTP/2 connection, so that a crowd of first requests does not open one each.
    opening: Semaphore,
    /// The replica chose HTTP/1.1 in a handshake, so nobody needs to wait for another's.
    chose_http1: AtomicBool,
    opened: AtomicU64,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            idle: Mutex::default(),
            shared: Mutex::default(),
            opening: Semaphore::new(1),
            chose_http1: AtomicBool::new(false),
            opened: AtomicU64::new(0),
        }
    }

    /// A connection that was used before and still stands, or a new one within the settings' time.
    pub(super) async fn lease(&self, origin: &Origin, settings: &Settings, now: Instant) -> Result<Lease, Unreached> {
        if let Some(lease) = self.pooled(settings, now) {
            return Ok(lease);
        }
        let may_share = match settings.version {
            Version::Http1 => false,
            Version::Http2 => true,
            Version::Chosen => origin.is_https() && !self.chose_http1.load(Ordering::Relaxed),
        };
        if !may_share {
            // Opening is seldom and its state is large: in a box of its own, it is no part of every request's.
            return Box::pin(self.open(origin, settings, now)).await;
        }
        timeout(settings.connect_timeout, async {
            let _one_at_a_time = self.opening.acquire().await;
            match self.pooled(settings, now) {
                Some(lease) => Ok(lease),
                None => Box::pin(self.open(origin, settings, now)).await,
            }
        })
        .await
        .unwrap_or(Err(Unreached::TimedOut))
    }

    fn pooled(&self, settings: &Settings, now: Instant) -> Option<Lease> {
        if settings.version != Version::Http1
            && let Some(strand) = self.strand(now)
        {
            return Some(Lease::Many(strand));
        }
        loop {
            let Idle { line, since } = lock(&self.idle).pop()?;
            if now.saturating_duration_since(since) > settings.keep_alive {
                // What lies under it is older.
                let old = std::mem::take(&mut *lock(&self.idle));
                drop(old);
                return None;
            }
            // Bytes that nobody asked for would be taken for the next answer.
            if line.sender.is_ready() && line.watch.is_quiet() {
                return Some(Lease::One(line));
            }
        }
    }

    fn strand(&self, now: Instant) -> Option<Strand> {
        let mut shared = lock(&self.shared);
        shared.retain(|connection| !connection.sender.is_closed());
        let full = shared.len() >= MAX_SHARED;
        let best = shared.iter_mut().min_by_key(|connection| connection.load.load(Ordering::Relaxed))?;
        if best.load.load(Ordering::Relaxed) >= STREAMS_PER_CONNECTION && !full {
            return None;
        }
        best.used = now;
        best.load.fetch_add(1, Ordering::Relaxed);
        Some(Strand { sender: best.sender.clone(), load: best.load.clone() })
    }

    async fn open(&self, origin: &Origin, settings: &Settings, now: Instant) -> Result<Lease, Unreached> {
        let stream = connect(origin, settings.tls.as_ref(), Reach::Anywhere, settings.connect_timeout).await?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        let http2 = match settings.version {
            Version::Http1 => false,
            // Whoever cannot speak it without TLS breaks the first request; with TLS the handshake would have failed.
            Version::Http2 => true,
            Version::Chosen => stream.chose_http2(),
        };
        if http2 {
            return self.share(stream, settings, now).await.map(Lease::Many);
        }
        self.chose_http1.store(true, Ordering::Relaxed);
        let watch = stream.watch();
        // The number of headers is held to its bound by hyper's own default, which is on the stack; asking for it would move it to the heap.
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_header_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Unreached::Refused)?;
        let task = tokio::spawn(async move {
            // How it ended is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Lease::One(Line { sender, watch, task: task.abort_handle() }))
    }

    async fn share(&self, stream: Stream, settings: &Settings, now: Instant) -> Result<Strand, Unreached> {
        // A gRPC server takes more than two PINGs within five minutes of one slow call for an attack, and ends the connection (gRFC A8):
        // there, that nothing comes is told by `response_timeout` alone.
        let ping_after = (!settings.grpc).then_some(PING_AFTER);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(ping_after)
            .keep_alive_timeout(PING_WITHIN)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Unreached::Refused)?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let load = Arc::new(AtomicUsize::new(1));
        lock(&self.shared).push(Shared { sender: sender.clone(), load: load.clone(), used: now });
        Ok(Strand { sender, load })
    }

    /// Takes back a connection whose answer was read to its end.
    pub(super) fn give_back(pool: &Arc<Self>, lease: Lease, now: Instant) {
        let Lease::One(mut line) = lease else { return };
        if line.sender.is_closed() {
            return;
        }
        if line.sender.is_ready() {
            return pool.keep(line, now);
        }
        // The connection's own task has yet to see that the answer has ended, or is still sending a request that was answered early.
        let pool = pool.clone();
        tokio::spawn(async move {
            if matches!(timeout(READY_WITHIN, line.sender.ready()).await, Ok(Ok(()))) {
                pool.keep(line, now);
            }
        });
    }

    fn keep(&self, line: Line, now: Instant) {
        let mut idle = lock(&self.idle);
        if idle.len() < MAX_IDLE {
            idle.push(Idle { line, since: now });
        }
    }

    /// Takes a shared connection out of use: it did not answer, and the next request should not wait behind that.
    pub(super) fn retire(&self, strand: &Strand) {
        lock(&self.shared).retain(|connection| !Arc::ptr_eq(&connection.load, &strand.load));
    }

    /// Closes what was not used for `keep_alive`; with zero, everything that is idle.
    pub(super) fn prune(&self, now: Instant, keep_alive: Duration) {
        let old = |since: Instant| now.saturating_duration_since(since) >= keep_alive;
        // Taken out under the lock, closed after it.
        let closing: Vec<Idle> = {
            let mut idle = lock(&self.idle);
            let fresh = idle.iter().position(|idle| !old(idle.since)).unwrap_or(idle.len());
            idle.drain(..fresh).collect()
        };
        drop(closing);
        lock(&self.shared).retain(|connection| connection.load.load(Ordering::Relaxed) > 0 || !old(connection.used));
    }

    /// How many connections were opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// How many unused HTTP/1.1 connections there are.
    pub(super) fn idle(&self) -> usize {
        lock(&self.idle).len()
    }

    /// How many of them look as if nothing had come since their last answer.
    #[cfg(test)]
    pub(super) fn quiet(&self) -> usize {
        lock(&self.idle).iter().filter(|idle| idle.line.watch.is_quiet()).count()
    }
}

const _: () = assert!(MAX_HEADERS == 100, "hyper's default bound on the number of response headers is relied on");

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
