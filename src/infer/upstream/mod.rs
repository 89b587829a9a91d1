//! A model server behind the gate: its replicas, the connections to them, and one request to one of them.
//!
//! Not a proxy: it sends what it is given and adds where it goes and the upstream's credential. What may be sent, and what
//! of the answer may be passed on, is decided elsewhere.
//!
//! Of two replicas chosen at random the less busy one is asked. One that fails `EJECT_AFTER`
//! times in a row is left alone for a time that grows, then asked once. When all are left alone, a request is refused
//! at once with the time after which one is asked again; a failing health check alone never leads to that. A request is tried
//! again, twice at most, only while nothing of it was sent.
//!
//! The connections are hyper's own, kept here: the pooling client of hyper-util makes a boxed future and a channel for each
//! request and tries again on its own terms, which are not these.

mod check;
mod config;
mod pool;
mod replica;
mod standing;
mod tail;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tokio::task::AbortHandle;

use self::replica::{Failed, Replica, Then, Turn};
use self::standing::Way;
use super::reply::Unsaid;
use crate::mistake::Mistake;
use crate::outbound::Unreached;
use crate::wire::{Body, grpc};

pub use self::config::{
    CONNECT_TIMEOUT, Config, HEALTH_EVERY_MIN, Health, IDLE_TIMEOUT, KEEP_ALIVE, MAX_CA, MAX_CREDENTIAL, MAX_IN_FLIGHT, MAX_REPLICAS,
    Protocol, RESPONSE_TIMEOUT,
};

/// How often a request is tried again after the first time.
const FURTHER_TRIES: u32 = 2;
/// How often unused connections are looked through.
const TEND_EVERY: Duration = Duration::from_secs(1);

/// A request to send on. Its headers are the whole of what is sent, but for `host` and the credential.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Its method.
    pub method: Method,
    /// Where on the upstream's origin.
    pub path_and_query: PathAndQuery,
    /// Its headers. `host`, `content-length`, `transfer-encoding` and `connection` are the connection's own and replaced.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Outgoing {
    /// A call of a gRPC method: its message in its frame, and how long the call may take. Its answer ends with trailers.
    #[must_use]
    pub fn of_call(path_and_query: PathAndQuery, framed: Bytes, within: Duration) -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
        headers.insert("grpc-timeout", grpc::timeout_value(within));
        Self { method: Method::POST, path_and_query, headers, body: framed }
    }
}

/// The beginning of an answer, and its body as it comes.
#[derive(Debug)]
pub struct Incoming {
    /// Its status; never 1xx.
    pub status: StatusCode,
    /// Its headers as the upstream wrote them: at most 100 in 64 KiB.
    pub headers: HeaderMap,
    /// Its body. An error in it is an [`Error`] in a box. Dropping it before its end cancels the call at the upstream.
    pub body: Body,
    /// Whether the end of the body is marked. If not (HTTP/1.0, or neither length nor chunks) an upstream that dies may look like one that
    /// has said everything.
    pub framed: bool,
}

/// Why there is no answer, or no more of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No replica could be connected to; nothing was sent. `infer.unavailable`, 503.
    UpstreamUnreachable(Unreached),
    /// Every replica failed too often of late and is left alone for this long. `infer.unavailable`, 503 with `Retry-After`.
    UpstreamEjected(Duration),
    /// Every replica has as many requests as it may have, and as many wait. `infer.unavailable`, 503 with `Retry-After`.
    Full,
    /// The upstream did not begin its answer in time. `infer.deadline`, 504.
    UpstreamSilent,
    /// The upstream stopped in the middle of its answer. `infer.deadline`, 504 if nothing was passed on yet.
    UpstreamStalled,
    /// The request's own time is up. `infer.deadline`, 504.
    DeadlinePassed,
    /// The upstream closed the connection before its answer began; it may have worked on the request. `infer.upstream`, 502.
    UpstreamClosed,
    /// What came was not HTTP. `infer.upstream`, 502.
    UpstreamBrokeHttp,
    /// The length of the answer was given twice, in two ways, or in one that is unknown. `infer.upstream`, 502.
    UpstreamBrokeFraming,
    /// More than 100 headers, or more than 64 KiB of them. `infer.upstream`, 502.
    UpstreamSentHugeHead,
    /// The upstream answered 101, which nobody asked for. `infer.upstream`, 502.
    UpstreamSwitchedProtocol,
    /// The body ended before its time, or is not framed as it should be. `infer.upstream`, 502 if nothing was passed on yet.
    UpstreamBrokeBody,
    /// The credential is not a header's value. Found when it is read, so never here. `infer.unavailable`, 503.
    OperatorConfiguredCredential,
}

impl Error {
    fn of(error: &hyper::Error) -> Self {
        if error.is_parse_too_large() {
            Self::UpstreamSentHugeHead
        } else if error.is_parse() {
            Self::UpstreamBrokeHttp
        } else {
            Self::UpstreamClosed
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpstreamUnreachable(why) => write!(f, "the upstream cannot be reached: {why}"),
            Self::UpstreamEjected(_) => f.write_str("every replica of the upstream failed too often of late"),
            Self::Full => f.write_str("every replica of the upstream is full"),
            Self::UpstreamSilent => f.write_str("the upstream did not begin its answer in time"),
            Self::UpstreamStalled => f.write_str("the upstream stopped in the middle of its answer"),
            Self::DeadlinePassed => f.write_str("the request's time is up"),
            Self::UpstreamClosed => f.write_str("the upstream closed the connection before its answer began"),
            Self::UpstreamBrokeHttp => f.write_str("the upstream's answer is not HTTP"),
            Self::UpstreamBrokeFraming => f.write_str("the length of the upstream's answer is ambiguous"),
            Self::UpstreamSentHugeHead => f.write_str("the upstream's answer has too many or too large headers"),
            Self::UpstreamSwitchedProtocol => f.write_str("the upstream switched protocols unasked"),
            Self::UpstreamBrokeBody => f.write_str("the upstream's answer broke off"),
            Self::OperatorConfiguredCredential => f.write_str("the upstream's credential cannot be sent"),
        }
    }
}

impl std::error::Error for Error {}

/// How one replica does, for metrics and the console.
#[derive(Clone, Debug)]
pub struct ReplicaState {
    /// Its origin.
    pub origin: String,
    /// Requests that are on their way to it, wait for room there, or are being answered.
    pub in_flight: usize,
    /// Its unused HTTP/1.1 connections.
    pub idle: usize,
    /// Connections opened to it so far.
    pub opened: u64,
    /// Whether it is left alone because requests to it failed.
    pub ejected: bool,
    /// Whether its health checks fail.
    pub doubtful: bool,
}

/// A model server and its replicas.
pub struct Upstream {
    protocol: Protocol,
    model: Option<Arc<str>>,
    version: Option<Arc<str>>,
    replicas: Vec<Arc<Replica>>,
    health: Option<(PathAndQuery, Duration)>,
    random: AtomicU64,
    tending: OnceLock<AbortHandle>,
}

impl fmt::Debug for Upstream {
    /// Where it is; never the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.replicas.iter().map(|replica| replica.origin.to_string())).finish()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(tending) = self.tending.get() {
            tending.abort();
        }
    }
}

impl Upstream {
    /// The upstream of `config`, whose files are relative to `base`. Opens no connection and starts nothing.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn new(config: &Config, base: &Path) -> Result<Arc<Self>, Vec<Mistake>> {
        let (settings, origins) = config::resolve(config, base)?;
        let settings = Arc::new(settings);
        Ok(Arc::new(Self {
            protocol: config.protocol,
            model: config.model.as_deref().map(Arc::from),
            version: config.model_version.as_ref().map(|version| version.get_ref().as_str().into()),
            replicas: origins.into_iter().map(|origin| Arc::new(Replica::new(origin, settings.clone()))).collect(),
            health: settings.health.clone(),
            random: AtomicU64::new(0),
            tending: OnceLock::new(),
        }))
    }

    /// What it speaks.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What it calls the model, where that differs from what callers call it.
    #[must_use]
    pub fn model(&self) -> Option<&Arc<str>> {
        self.model.as_ref()
    }

    /// What its words may say and callers are not to read, beside its name of the model and what stands for it.
    pub(in crate::infer) fn unsaid<'a>(&'a self, name: Option<(&'a str, &'a str)>) -> Unsaid<'a> {
        let settings = self.replicas.first().map(|replica| &replica.settings);
        Unsaid { name, credential: settings.and_then(|settings| settings.credential.as_ref()?.token()) }
    }

    /// The version of the model that it is asked for, as it calls it; none where it chooses.
    #[must_use]
    pub fn version(&self) -> Option<&Arc<str>> {
        self.version.as_ref()
    }

    /// How its replicas do.
    #[must_use]
    pub fn replicas(&self) -> Vec<ReplicaState> {
        let now = Instant::now();
        let state = |replica: &Arc<Replica>| {
            let way = replica.way(now);
            ReplicaState {
                origin: replica.origin.to_string(),
                in_flight: replica.in_flight(),
                idle: replica.pool.idle(),
                opened: replica.pool.opened(),
                ejected: matches!(way, Way::Shut(_) | Way::Probe),
                doubtful: way == Way::Doubtful,
            }
        };
        self.replicas.iter().map(state).collect()
    }

    /// Sends `request` to a replica and waits for its answer to begin. Everything, the answer's body too, ends by `deadline`.
    /// Dropping the future cancels the call at the upstream.
    ///
    /// # Errors
    /// Why there is no answer. No replica was asked twice for what it may have done.
    pub async fn send(&self, mut request: Outgoing, deadline: Instant) -> Result<Incoming, Error> {
        // Bits of replicas: that came to nothing, and that did nothing of it.
        let (mut tried, mut undone, mut last) = (0_u64, 0_u64, None);
        for _ in 0..=FURTHER_TRIES {
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::DeadlinePassed);
            }
            let at = match self.choose(tried | undone, now).or_else(|_| self.choose(tried, now)) {
                Ok(at) => at,
                Err(wait) => return Err(last.unwrap_or(Error::UpstreamEjected(wait))),
            };
            let Some(replica) = self.replicas.get(at) else { break };
            match Turn::at(replica, now).send(request, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Sent(error)) => return Err(error),
                Err(Failed::Unsent { error, request: unsent, then }) => {
                    request = unsent;
                    last = Some(error);
                    match then {
                        // The others were opened to the same process, which has closed them too.
                        Then::Anew => replica.pool.prune(Instant::now(), Duration::ZERO),
                        Then::Elsewhere => tried |= 1 << at,
                        Then::RatherElsewhere => undone |= 1 << at,
                    }
                }
            }
        }
        Err(last.unwrap_or(Error::DeadlinePassed))
    }

    /// The replica to ask, of those whose bit is not in `tried`; else how long all of them are left alone.
    fn choose(&self, tried: u64, now: Instant) -> Result<usize, Duration> {
        let (mut good, mut doubtful, mut wait) = (0_u64, 0_u64, Duration::MAX);
        for (at, replica) in self.replicas.iter().enumerate().filter(|(at, _)| tried & (1 << at) == 0) {
            match replica.way(now) {
                Way::Open | Way::Probe => good |= 1 << at,
                Way::Doubtful => doubtful |= 1 << at,
                shut => wait = wait.min(replica::wait_of(shut, now).unwrap_or(wait)),
            }
        }
        let from = if good != 0 { good } else { doubtful };
        match from.count_ones() {
            0 => Err(if wait == Duration::MAX { Duration::ZERO } else { wait }),
            1 => Ok(nth(from, 0)),
            many => {
                let random = self.random();
                let first = (random as u32) % many;
                // Another than the first, each with the same chance.
                let second = (first + 1 + ((random >> 32) as u32) % (many - 1)) % many;
                let (first, second) = (nth(from, first), nth(from, second));
                let load = |at: usize| self.replicas.get(at).map_or(usize::MAX, |replica| replica.in_flight());
                Ok(if load(second) < load(first) { second } else { first })
            }
        }
    }

    /// SplitMix64 over a counter: well spread, and nobody's secret depends on it.
    fn random(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Starts what goes on in the background: closing unused connections, and the health checks if there are any. It ends when the
    /// upstream is dropped. A second call does nothing. Must be called inside a Tokio runtime.
    pub fn tend(self: &Arc<Self>) {
        self.tending.get_or_init(|| {
            let upstream = Arc::downgrade(self);
            tokio::spawn(tend(upstream, self.health.clone())).abort_handle()
        });
    }
}

/// The place of the `n`th bit that is set.
fn nth(mut bits: u64, n: u32) -> usize {
    (0..n).for_each(|_| bits &= bits.wrapping_sub(1));
    bits.trailing_zeros() as usize
}

async fn tend(upstream: Weak<Upstream>, health: Option<(PathAndQuery, Duration)>) {
    let every = health.as_ref().map_or(TEND_EVERY, |(_, every)| *every);
    let mut check_at = Instant::now();
    loop {
        let Some(replicas) = upstream.upgrade().map(|upstream| upstream.replicas.clone()) else { return };
        let now = Instant::now();
        for replica in &replicas {
            replica.pool.prune(now, replica.settings.keep_alive);
        }
        if let Some((path, every)) = &health
            && now >= check_at
        {
            join_all(replicas.iter().map(|replica| check::check(replica, path, *every))).await;
            check_at = now + *every;
        }
        drop(replicas);
        tokio::time::sleep(every.min(TEND_EVERY)).await;
    }
}

#[cfg(test)]
mod tests;
