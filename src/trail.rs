//! What is known of a request so far.
//!
//! The values that pass from stop to stop prove that a check was made. The trail is not that: it is what the stops
//! write down on the way, so that a request which ends early still has a receipt, a span and a line in the log.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, HeaderValue};
use uuid::Uuid;

use crate::clock::{Moment, micros_between};
use crate::digest::Digest;

/// The stops, in the order of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are the stops'")]
pub enum Stop {
    Accept,
    Authenticate,
    Authorize,
    Budget,
    Check,
    Detect,
    Infer,
    Prove,
    Record,
}

impl Stop {
    /// Every stop, in order.
    pub const ALL: [Self; 9] = [
        Self::Accept,
        Self::Authenticate,
        Self::Authorize,
        Self::Budget,
        Self::Check,
        Self::Detect,
        Self::Infer,
        Self::Prove,
        Self::Record,
    ];

    /// The stop's name: its folder.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Authenticate => "authenticate",
            Self::Authorize => "authorize",
            Self::Budget => "budget",
            Self::Check => "check",
            Self::Detect => "detect",
            Self::Infer => "infer",
            Self::Prove => "prove",
            Self::Record => "record",
        }
    }
}

/// How a stop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The request went on.
    Passed,
    /// A rule in shadow mode would have refused it.
    Shadowed,
    /// The request ended here.
    Refused,
}

impl Verdict {
    /// The word for it in spans, metrics and statements.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Shadowed => "shadowed",
            Self::Refused => "refused",
        }
    }
}

/// One stop, passed or not.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which stop.
    pub stop: Stop,
    /// How it ended.
    pub verdict: Verdict,
    /// The rule that decided, where one did.
    pub rule: Option<Arc<str>>,
    /// When it began.
    pub from: Instant,
    /// How long it took, in microseconds.
    pub micros: u32,
}

/// Who calls, as the logs name them. Shared by all requests of the same credential.
#[derive(Debug, PartialEq, Eq)]
pub struct Who {
    /// `api_key:ID`, `jwt:ISSUER#SUB` or `cert:SAN`.
    pub caller: Arc<str>,
    /// The tenant; `""` if none.
    pub tenant: Arc<str>,
    /// The tier; `""` if none.
    pub tier: Arc<str>,
    /// `api_key`, `jwt` or `certificate`.
    pub method: &'static str,
}

/// How sure the gateway is of which model answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assurance {
    /// It ran here, and its bytes were verified before.
    VerifiedInProcess,
    /// It ran here, from a folder whose signature was verified.
    SignedBundle,
    /// An upstream says so.
    UpstreamAsserted,
}

impl Assurance {
    /// The word for it in statements.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VerifiedInProcess => "verified-inprocess",
            Self::SignedBundle => "signed-bundle",
            Self::UpstreamAsserted => "upstream-asserted",
        }
    }
}

/// Which model, as the logs name it. Shared by all requests for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Which {
    /// The name that callers write.
    pub name: Arc<str>,
    /// Its version; `""` if none.
    pub version: Arc<str>,
    /// The digest of its bytes; none behind an upstream.
    pub digest: Option<Digest>,
    /// `onnx`, `safetensors`, or the protocol of the upstream.
    pub format: Arc<str>,
    /// How sure that is.
    pub assurance: Assurance,
}

/// A W3C trace context that this gateway made or was allowed to continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace_id: [u8; 16],
    /// This request's span in it.
    pub span_id: [u8; 8],
    /// Whether the spans are exported.
    pub sampled: bool,
}

/// The header of a trace context (W3C Trace Context 1, 3.2).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

impl Trace {
    /// The `traceparent` of the answer.
    #[must_use]
    pub fn parent(&self) -> HeaderValue {
        self.with(self.span_id)
    }

    /// The `traceparent` of the call of a model server, where its span is sent: who is told of a parent that is not would have no trace of his own.
    #[must_use]
    pub fn parent_of_call(&self) -> Option<HeaderValue> {
        self.sampled.then(|| self.with(self.call_id()))
    }

    /// The span of that call.
    #[must_use]
    pub fn call_id(&self) -> [u8; 8] {
        let mut id = self.span_id.map(|byte| byte ^ 0x5a);
        // No id is nothing but zeros.
        id[7] |= u8::from(id == [0; 8]);
        id
    }

    fn with(&self, span_id: [u8; 8]) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&self.trace_id, &mut text[3..35]);
        write_hex(&span_id, &mut text[36..52]);
        text[54] = b'0' + u8::from(self.sampled);
        let mut value = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
        // It is another one each time: HTTP/2 need not keep it in its table.
        value.set_sensitive(true);
        value
    }
}

fn write_hex(bytes: &[u8], out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Tokens, as the answer's `usage` tells them, or as estimated where it tells none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
}

/// A body, as far as receipts speak of it.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Its media type, without parameters.
    pub media_type: Option<Arc<str>>,
    /// Its length in bytes.
    pub length: u64,
    /// The digest of its bytes.
    pub digest: Option<Digest>,
}

/// What the security log alone may know of a request that is refused: no answer, receipt, span or label of a metric tells it.
#[derive(Clone, Debug, Default)]
pub struct Aside {
    /// Whose the credential is that does not hold any more.
    pub whose: Option<Arc<Who>>,
    /// The model of that name, where there is one, whether or not the caller may use it. What a caller made up is never in it.
    pub model: Option<Arc<str>>,
    /// The path that an operator declared, whether or not it is there for the caller.
    pub route: Option<Arc<str>>,
}

/// What is known of one request so far.
#[derive(Debug)]
pub struct Trail {
    /// The receipt's id, a UUIDv7, made when the request arrived.
    pub id: Uuid,
    /// When it arrived.
    pub arrived: Moment,
    /// The peer's address.
    pub address: IpAddr,
    /// The request's method.
    pub method: http::Method,
    /// The template of the matched route, never the raw path; `""` until one matched.
    pub route: Arc<str>,
    /// `1.1` or `2`.
    pub http_version: &'static str,
    /// Who calls, once authenticated.
    pub who: Option<Arc<Who>>,
    /// Which model, once authorized.
    pub which: Option<Arc<Which>>,
    /// The action, once named.
    pub action: Option<&'static str>,
    /// Whether the answer is asked for as a stream.
    pub streams: bool,
    /// The digest of the compiled policy that judged it.
    pub policy: Digest,
    /// The request's body, once read.
    pub request: Content,
    /// Tokens, once known.
    pub usage: Option<Usage>,
    /// The part of the model that the caller may have learned by now, from 0 to 1, where it is metered.
    pub exposure: Option<f32>,
    /// The trace it belongs to.
    pub trace: Trace,
    /// The rules of the access policy that permitted it.
    pub rules: Option<Arc<str>>,
    /// The rules in shadow mode that would have decided otherwise at the stop that it is at.
    pub shadowed: Option<Arc<str>>,
    /// What is for the security log alone.
    pub aside: Aside,
    /// The stops so far.
    pub steps: Vec<Step>,
}

impl Trail {
    /// The beginning of a way.
    #[must_use]
    pub fn new(arrived: Moment, address: IpAddr, method: http::Method, http_version: &'static str, policy: Digest, trace: Trace) -> Self {
        let since = arrived.unix_nanos();
        let (seconds, nanos) = (since / 1_000_000_000, (since % 1_000_000_000) as u32);
        Self {
            id: Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos)),
            arrived,
            address,
            method,
            route: "".into(),
            http_version,
            who: None,
            which: None,
            action: None,
            streams: false,
            policy,
            request: Content::default(),
            usage: None,
            exposure: None,
            trace,
            rules: None,
            shadowed: None,
            aside: Aside::default(),
            steps: Vec::with_capacity(Stop::ALL.len()),
        }
    }

    /// The model's name for the security log, also where the caller may not use it.
    #[must_use]
    pub fn model(&self) -> Option<Arc<str>> {
        self.which.as_ref().map(|which| &which.name).or(self.aside.model.as_ref()).cloned()
    }

    /// Writes down that `stop`, begun at `from`, ended with `verdict` at `now`.
    pub fn step(&mut self, stop: Stop, verdict: Verdict, rule: Option<Arc<str>>, from: Instant, now: Instant) {
        self.steps.push(Step { stop, verdict, rule, from, micros: micros_between(from, now) });
    }
}

/// What is known only once a streamed answer has ended. The adaptor that meters the stream fills it before it ends;
/// the ones around it read it then.
#[derive(Clone, Debug, Default)]
pub struct Late(Arc<std::sync::OnceLock<End>>);

/// How a streamed answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Tokens, where the stream told them or they could be estimated.
    pub usage: Option<Usage>,
    /// Whether it came to its own end: neither the caller nor the upstream broke it off.
    pub complete: bool,
}

impl Late {
    /// Writes down how the stream ended; the first word stands.
    pub fn ended(&self, end: End) {
        let _ = self.0.set(end);
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.0.get().copied()
    }
}
