//! The last stop: how every request ended, counted once, in one place.
//!
//! Its value is the [`Outcome`], the answer that goes to the socket. Metrics, traces and the security log all begin here
//! and nowhere else. A whole answer is counted as it leaves; a stream when it ends, breaks or is dropped.
//!
//! Nothing here refuses or delays a request: what a sink does not take is counted and told.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use serde::Deserialize;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use toml::Spanned;
use uuid::Uuid;

use crate::accept;
use crate::event::{self, Event, Events, Name};
use crate::mistake::Mistake;
use crate::trail::{Late, Stop, TRACEPARENT, Trace, Trail, Usage, Verdict, Which};
use crate::wire::Body;
use crate::wire::body::Broken;

pub mod audit;
pub mod metrics;
pub mod names;
mod otlp;
pub mod trace;

use audit::{SecurityLog, Target};
use metrics::Metrics;
use trace::{Remote, Sample};

/// `[record]` of `gateway.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The collector: `http://host:4317` for gRPC, `http://host:4318` for http/protobuf. None: nothing is sent.
    pub otlp: Option<Spanned<String>>,
    /// `grpc` or `http`, where the port does not say it.
    pub otlp_protocol: Option<Spanned<OtlpProtocol>>,
    /// `stderr`, or a file, relative to the policy folder.
    pub security_log: Spanned<String>,
    /// The share of ordinary requests whose spans are sent, 0 to 1. Refusals, errors and broken streams always are.
    pub sample: Spanned<f64>,
}

/// All of them, as an OpenTelemetry SDK does that was told nothing: what is left out is left out by the owner.
pub const DEFAULT_SAMPLE: f64 = 1.0;

/// Standard error, which every supervisor keeps.
pub const DEFAULT_SECURITY_LOG: &str = "stderr";

/// How many events may wait for the security log before more are counted as lost.
pub const MAX_WAITING_EVENTS: usize = 8_192;

impl Default for Config {
    fn default() -> Self {
        Self {
            otlp: None,
            otlp_protocol: None,
            security_log: Spanned::new(0..0, DEFAULT_SECURITY_LOG.to_owned()),
            sample: Spanned::new(0..0, DEFAULT_SAMPLE),
        }
    }
}

impl Config {
    /// What is meant by it, as far as its own text tells: no file is looked at.
    fn resolve(&self, base_dir: &Path) -> Result<Resolved<'_>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let sample = Sample::ratio(*self.sample.get_ref());
        if sample.is_none() {
            mistakes.push(Mistake::at(self.sample.span(), "`sample` is a share between 0.0 and 1.0"));
        }
        let protocol = self.otlp_protocol.as_ref();
        let collector = self.otlp.as_ref().and_then(|url| match collector(url.get_ref(), protocol.map(|protocol| *protocol.get_ref())) {
            Ok(protocol) => Some((url, protocol)),
            Err(what) => {
                mistakes.push(Mistake::at(url.span(), what));
                None
            }
        });
        if let (None, Some(protocol)) = (&self.otlp, protocol) {
            mistakes.push(Mistake::at(protocol.span(), "`otlp_protocol` says how to send, but there is no `otlp` that says where"));
        }
        let target = match self.security_log.get_ref().as_str() {
            DEFAULT_SECURITY_LOG => Target::Stderr,
            path => Target::File(base_dir.join(path)),
        };
        if self.security_log.get_ref().is_empty() {
            mistakes.push(Mistake::at(self.security_log.span(), "`security_log` is \"stderr\" or the path of a file"));
        }
        match sample {
            Some(sample) if mistakes.is_empty() => Ok(Resolved { sample, collector, target }),
            _ => Err(mistakes),
        }
    }

    /// What is wrong with it, as far as its own text tells.
    #[must_use]
    pub fn mistakes(&self) -> Vec<Mistake> {
        self.resolve(Path::new("")).err().unwrap_or_default()
    }
}

/// What a [`Config`] means.
struct Resolved<'a> {
    sample: Sample,
    /// Where to send, and how.
    collector: Option<(&'a Spanned<String>, OtlpProtocol)>,
    target: Target,
}

/// How the collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpProtocol {
    /// OTLP/gRPC.
    Grpc,
    /// OTLP/HTTP with protobuf bodies.
    Http,
}

/// The port that the specification gives to OTLP/HTTP.
const OTLP_HTTP_PORT: u16 = 4318;

/// What this gateway is, as spans name it.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// `https`, or `http` where TLS is off.
    pub scheme: &'static str,
    /// Where it listens, once that is known.
    pub address: Option<SocketAddr>,
}

impl Default for Served {
    fn default() -> Self {
        Self { scheme: "https", address: None }
    }
}

/// Counts, traces and tells.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    log: SecurityLog,
    asks: mpsc::Sender<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    events: Events,
    export: Option<otlp::Export>,
    sample: Sample,
    served: OnceLock<Served>,
    /// Drives the security log and the export, so that requests' own threads never do.
    runtime: Option<Runtime>,
}

impl Recorder {
    /// Opens the security log and starts the export. Relative paths are relative to `base_dir`.
    ///
    /// # Errors
    /// Every mistake of the configuration, a file that cannot be opened among them.
    pub fn new(config: &Config, base_dir: &Path) -> Result<Self, Vec<Mistake>> {
        let Resolved { sample, collector, target } = config.resolve(base_dir)?;
        let metrics = Arc::new(Metrics::default());
        let at = config.security_log.span();
        let path = target.to_string();
        let log = SecurityLog::open(target, metrics.clone())
            .map_err(|error| vec![Mistake::at(at, format!("the security log {path} cannot be opened: {error}"))])?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).max_blocking_threads(1).thread_name("record").enable_all().build();
        let runtime = runtime.map_err(|error| vec![Mistake::of_file(format!("the recorder's thread cannot start: {error}"))])?;
        let export = match collector.map(|(url, protocol)| otlp::Export::start(url.get_ref(), protocol, &metrics, runtime.handle())) {
            None => None,
            Some(Ok(export)) => Some(export),
            Some(Err(error)) => {
                // A runtime that is dropped waits for its threads, and whoever starts a recorder may be a task of another one.
                runtime.shutdown_background();
                let at = config.otlp.as_ref().map(Spanned::span).unwrap_or_default();
                return Err(vec![Mistake::at(at, format!("the collector cannot be used: {error}"))]);
            }
        };
        let (events, reader) = event::channel(MAX_WAITING_EVENTS);
        let (asks, asked) = mpsc::channel(1);
        runtime.spawn(log.clone().drain(reader, asked));
        let shared = Shared { metrics, events, export, sample, served: OnceLock::new(), runtime: Some(runtime) };
        Ok(Self { shared: Arc::new(shared), log, asks })
    }

    /// Where stops tell of events.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.events.clone()
    }

    /// The numbers, for `/metrics` and for the parts that add their own.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Says what this gateway is, once its listener is open; the first word stands.
    pub fn serves(&self, served: Served) {
        let _ = self.shared.served.set(served);
    }

    /// Opens the security log's file anew, on SIGHUP.
    pub fn reopen(&self) {
        self.log.reopen();
    }

    /// What is wrong with the security log: why its lines are lost, and why it could not be opened anew.
    #[must_use]
    pub fn troubles(&self) -> [Option<String>; 2] {
        [self.log.unwritten(), self.log.unopened()]
    }

    /// Why the collector does not take what it is sent, where there is one and it does not.
    #[must_use]
    pub fn unexported(&self) -> Option<String> {
        self.shared.export.as_ref().and_then(otlp::Export::untaken)
    }

    /// A request begins: its trace, and the guard that holds its place among the active ones until [`Recorder::record`].
    /// `trusted`: the peer may have its own trace continued.
    #[must_use]
    pub fn begin(&self, headers: &HeaderMap, trusted: bool) -> (Trace, Active) {
        let (mut trace, remote) = trace::start(headers, trusted, self.shared.sample);
        // Nobody shall wait for spans that are not sent.
        trace.sampled &= self.shared.export.is_some();
        self.shared.metrics.begin();
        (trace, Active { shared: self.shared.clone(), remote, recorded: false })
    }

    /// The last stop. A refusal is told and a whole answer counted now; a stream is counted once, when it is over.
    pub fn record(&self, active: Active, answer: Answered, now: Instant) -> Outcome {
        let Answered { status, mut headers, body, trail, receipt, late, code } = answer;
        headers.insert(TRACEPARENT, trail.trace.parent());
        if let Some(code) = code {
            self.shared.events.tell(refusal(&trail, receipt, code, status, now));
        }
        let pending = Pending { active, trail, receipt, status, code };
        let body = match late {
            None => {
                let usage = pending.trail.usage;
                let bytes = body.size_hint().exact().unwrap_or(0);
                pending.end(Ending { bytes, usage, complete: true, first_chunk: None, streamed: false, at: now });
                body
            }
            Some(late) => Body::stream(Counted { inner: body, late, pending: Some(pending), bytes: 0, first_chunk: None, ended: false }),
        };
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Outcome { response }
    }

    /// Sends and writes what is still waiting, for `within` at the most. At the end of the process, once nothing is served any more.
    pub async fn finish(&self, within: Duration) {
        let all = async {
            if let Some(export) = &self.shared.export {
                export.flush().await;
            }
        };
        let log = async {
            let (done, wait) = oneshot::channel();
            if self.asks.send(done).await.is_ok() {
                let _ = wait.await;
            }
        };
        let _ = tokio::time::timeout(within, async { tokio::join!(all, log) }).await;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Both may wait for a collector, and the last stream may be dropped on a request's thread.
        let (export, runtime) = (self.export.take(), self.runtime.take());
        let _ = std::thread::Builder::new().name("record-close".to_owned()).spawn(move || {
            if let Some(export) = export {
                export.close();
            }
            if let Some(runtime) = runtime {
                runtime.shutdown_background();
            }
        });
    }
}

/// What the stop before hands over.
#[derive(Debug)]
pub struct Answered {
    /// The answer's status.
    pub status: StatusCode,
    /// The answer's headers.
    pub headers: HeaderMap,
    /// The answer's body.
    pub body: Body,
    /// What is known of the request.
    pub trail: Arc<Trail>,
    /// The receipt's id, where there is one: past an allowance, and where the log cannot take it, a refusal has none.
    pub receipt: Option<Uuid>,
    /// Where a stream tells how it ended; none for a whole answer.
    pub late: Option<Late>,
    /// The static code, where this is a refusal.
    pub code: Option<&'static str>,
}

/// An answer that was recorded, or will be when it ends.
#[derive(Debug)]
#[must_use]
pub struct Outcome {
    response: http::Response<Body>,
}

impl Outcome {
    /// The answer for the socket.
    #[must_use]
    pub fn into_response(self) -> http::Response<Body> {
        self.response
    }
}

/// One request among the active ones. Dropped before it was recorded, by a panic or because the caller is gone, it still
/// gives its place back, and is counted as abandoned.
#[derive(Debug)]
pub struct Active {
    shared: Arc<Shared>,
    remote: Option<Remote>,
    recorded: bool,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.shared.metrics.leave(!self.recorded);
    }
}

/// How one request ended.
#[derive(Clone, Debug)]
struct Ended {
    trail: Arc<Trail>,
    receipt: Option<Uuid>,
    status: StatusCode,
    code: Option<&'static str>,
    bytes: u64,
    usage: Option<Usage>,
    complete: bool,
    streamed: bool,
    /// From the call of the model to the first chunk of a stream.
    first_chunk: Option<Duration>,
    at: Instant,
}

impl Ended {
    /// The operation and the model, where one was asked for.
    fn inference(&self) -> Option<(&'static str, &Which)> {
        Some((names::operation(self.trail.action?)?, self.trail.which.as_deref()?))
    }

    /// How long the model was at work, where it was called at all. A stream is the model at work to its end.
    fn model_took(&self) -> Option<Duration> {
        let step = self.trail.steps.iter().find(|step| step.stop == Stop::Infer)?;
        let whole = Duration::from_micros(step.micros.into());
        Some(if self.streamed { self.at.saturating_duration_since(step.from).max(whole) } else { whole })
    }
}

/// What is still to be counted.
#[derive(Debug)]
struct Pending {
    active: Active,
    trail: Arc<Trail>,
    receipt: Option<Uuid>,
    status: StatusCode,
    code: Option<&'static str>,
}

struct Ending {
    bytes: u64,
    usage: Option<Usage>,
    complete: bool,
    first_chunk: Option<Instant>,
    streamed: bool,
    at: Instant,
}

impl Pending {
    /// The one place where a request is counted; it takes itself, so there is no second time.
    fn end(mut self, how: Ending) {
        self.active.recorded = true;
        let shared = &self.active.shared;
        let Ending { bytes, usage, complete, first_chunk, streamed, at } = how;
        let called = self.trail.steps.iter().find(|step| step.stop == Stop::Infer).map_or(self.trail.arrived.mono, |step| step.from);
        let first_chunk = first_chunk.map(|at| at.saturating_duration_since(called));
        let (receipt, status, code) = (self.receipt, self.status, self.code);
        let ended = Ended { trail: self.trail.clone(), receipt, status, code, bytes, usage, complete, streamed, first_chunk, at };
        // The tail decision: whatever went wrong is always sent.
        let wanted = ended.trail.trace.sampled || code.is_some() || status.is_server_error() || !complete;
        let served = shared.served.get().copied().unwrap_or_default();
        shared.metrics.ended(&ended, wanted && shared.export.is_some(), served);
        if let (Some(export), true) = (&shared.export, wanted) {
            export.ended(ended, self.active.remote, served);
        }
    }
}

/// The event of a refusal. The caller's address is in it, the caller's words are not.
fn refusal(trail: &Trail, receipt: Option<Uuid>, code: &'static str, status: StatusCode, now: Instant) -> Event {
    // A certificate is a credential that the first stop knows of.
    let failed = code.starts_with("authenticate.") || code == accept::Error::CallersCertificateEnded.code();
    let name = if failed { Name::AuthenticateFailed } else { Name::RequestRefused };
    let time = trail.arrived.wall + now.saturating_duration_since(trail.arrived.mono);
    let refused = trail.steps.iter().rev().find(|step| step.verdict == Verdict::Refused);
    let mut event = Event::new(name, time)
        .with("address", trail.address.to_string())
        .with("status", status.as_u16())
        .with("trace", format!("{:032x}", u128::from_be_bytes(trail.trace.trace_id)));
    if let Some(route) = trail.aside.route.as_ref().or(Some(&trail.route)).filter(|route| !route.is_empty()) {
        event = event.with("route", &**route);
    }
    let who = trail.who.as_ref().or(trail.aside.whose.as_ref());
    event.caller = who.map(|who| who.caller.clone());
    event.tenant = who.map(|who| who.tenant.clone());
    event.model = trail.model();
    event.code = Some(code);
    event.rule = refused.and_then(|step| step.rule.clone());
    event.receipt = receipt;
    event
}

/// A stream on its way out, the outermost of the three adaptors around it.
struct Counted {
    inner: Body,
    late: Late,
    pending: Option<Pending>,
    bytes: u64,
    first_chunk: Option<Instant>,
    ended: bool,
}

impl Counted {
    fn end(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        let late = self.late.end();
        let ending = Ending {
            bytes: self.bytes,
            usage: late.and_then(|end| end.usage).or(pending.trail.usage),
            // Where the meter said nothing, the stream's own end is all there is to go by.
            complete: late.map_or(self.ended, |end| end.complete),
            first_chunk: self.first_chunk,
            streamed: true,
            at: Instant::now(),
        };
        pending.end(ending);
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes += data.len() as u64;
                    if self.first_chunk.is_none() && !data.is_empty() {
                        self.first_chunk = Some(Instant::now());
                    }
                }
            }
            Some(Err(_)) => self.end(),
            None => {
                self.ended = true;
                self.end();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.ended |= self.inner.is_end_stream();
        // The adaptors inside tell how it ended when they are dropped, so they go first.
        drop(std::mem::replace(&mut self.inner, Body::Empty));
        self.end();
    }
}

/// How to speak to the collector at `url`.
fn collector(url: &str, protocol: Option<OtlpProtocol>) -> Result<OtlpProtocol, &'static str> {
    let uri: http::Uri = url.parse().map_err(|_| "`otlp` is a URL such as \"http://127.0.0.1:4317\"")?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err("`otlp` over https is not supported: send to a collector on this machine with http"),
        _ => return Err("`otlp` begins with http://"),
    }
    let authority = uri.authority().ok_or("`otlp` names no host")?;
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err("`otlp` holds no credentials and no query");
    }
    let by_port = if uri.port_u16() == Some(OTLP_HTTP_PORT) { OtlpProtocol::Http } else { OtlpProtocol::Grpc };
    let protocol = protocol.unwrap_or(by_port);
    if protocol == OtlpProtocol::Grpc && !matches!(uri.path(), "" | "/") {
        return Err("`otlp` has no path where it speaks gRPC; did you mean `otlp_protocol = \"http\"`?");
    }
    Ok(protocol)
}

#[cfg(test)]
mod tests;
