//! Trace contexts: W3C `traceparent` in and out, and the spans of a request, built once it has ended.
//!
//! A stranger's context is never continued: the request gets a trace of its own and a link to theirs. `tracestate` and
//! `baggage` are neither read nor sent.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::names::{self, attribute};
use super::{Ended, Served};
use crate::trail::{Stop, TRACEPARENT, Trace, Verdict};

/// A trace context that came with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Their trace.
    pub trace_id: [u8; 16],
    /// Their span.
    pub span_id: [u8; 8],
    /// Whether they export it.
    pub sampled: bool,
}

/// The share of ordinary requests whose spans are exported. Refusals, errors and broken streams always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample(u64);

/// The random part of a trace id on which sampling is decided: its last 7 bytes (W3C Trace Context level 2).
const RANDOM_PART: u64 = 1 << 56;

impl Sample {
    /// From a ratio between 0 and 1; none for anything else.
    #[must_use]
    pub fn ratio(ratio: f64) -> Option<Self> {
        (0.0..=1.0).contains(&ratio).then_some(Self((ratio * RANDOM_PART as f64) as u64))
    }

    /// Whether a trace is within the share. Every node with the same ratio decides alike.
    #[must_use]
    pub fn takes(self, trace_id: &[u8; 16]) -> bool {
        let mut last = [0; 8];
        last[1..].copy_from_slice(&trace_id[9..]);
        u64::from_be_bytes(last) < self.0
    }
}

/// The context of a request that begins now, and the one it came with, if that can be read.
///
/// Where the peer is `trusted`, theirs is continued: same trace, their decision to sample. Otherwise a new trace begins.
#[must_use]
pub fn start(headers: &HeaderMap, trusted: bool, sample: Sample) -> (Trace, Option<Remote>) {
    let remote = remote(headers);
    let span_id = random().to_be_bytes();
    if let (true, Some(theirs)) = (trusted, remote) {
        return (Trace { trace_id: theirs.trace_id, span_id, sampled: theirs.sampled }, remote);
    }
    let mut trace_id = [0; 16];
    trace_id[..8].copy_from_slice(&random().to_be_bytes());
    trace_id[8..].copy_from_slice(&random().to_be_bytes());
    (Trace { trace_id, span_id, sampled: sample.takes(&trace_id) }, remote)
}

/// The one well-formed `traceparent` of `headers`. Two of them, or anything malformed, count as none.
fn remote(headers: &HeaderMap) -> Option<Remote> {
    let mut all = headers.get_all(TRACEPARENT).iter();
    let text = all.next()?.as_bytes();
    if all.next().is_some() {
        return None;
    }
    parse(text)
}

/// Strict: lower-case hex, no zero ids; version 00 has nothing after the flags, a later one only what a `-` sets off.
fn parse(text: &[u8]) -> Option<Remote> {
    let (head, rest) = text.split_at_checked(55)?;
    let mut version = [0];
    let mut flags = [0];
    let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
    read_hex(&head[..2], &mut version)?;
    read_hex(&head[3..35], &mut trace_id)?;
    read_hex(&head[36..52], &mut span_id)?;
    read_hex(&head[53..], &mut flags)?;
    let dashes = [head[2], head[35], head[52]] == *b"---";
    let ends = rest.is_empty() || (version[0] != 0 && rest[0] == b'-');
    let known = dashes && ends && version[0] != 0xff && trace_id != [0; 16] && span_id != [0; 8];
    known.then_some(Remote { trace_id, span_id, sampled: flags[0] & 1 == 1 })
}

fn read_hex(text: &[u8], out: &mut [u8]) -> Option<()> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

/// 64 bits for an id, never 0. SipHash over a counter under a key of this thread's own, which the standard library seeds
/// from the system: no system call per request, and one id says nothing of the next.
fn random() -> u64 {
    thread_local!(static STATE: RefCell<(RandomState, u64)> = RefCell::new((RandomState::new(), 0)));
    STATE.with_borrow_mut(|(key, count)| {
        loop {
            *count = count.wrapping_add(1);
            let id = key.hash_one(*count);
            if id != 0 {
                return id;
            }
        }
    })
}

/// The spans of a request that has ended: one for the request, and below it one per stop.
pub(super) fn spans(ended: &Ended, remote: Option<Remote>, served: Served, scope: &InstrumentationScope) -> Vec<SpanData> {
    let trail = &ended.trail;
    let context = |span_id| {
        SpanContext::new(
            TraceId::from_bytes(trail.trace.trace_id),
            SpanId::from_bytes(span_id),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        )
    };
    let wall = |at: Instant| -> SystemTime { trail.arrived.wall + at.saturating_duration_since(trail.arrived.mono) };
    let (parent, links) = match remote {
        Some(theirs) if theirs.trace_id == trail.trace.trace_id => (SpanId::from_bytes(theirs.span_id), SpanLinks::default()),
        Some(theirs) => (SpanId::INVALID, linked(theirs)),
        None => (SpanId::INVALID, SpanLinks::default()),
    };
    let span = |span_id, parent, kind, name: String, start, end, attributes, status| SpanData {
        span_context: context(span_id),
        parent_span_id: parent,
        parent_span_is_remote: false,
        span_kind: kind,
        name: name.into(),
        start_time: start,
        end_time: end,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    };

    let method = names::method(&trail.method);
    let name = if trail.route.is_empty() { method.to_owned() } else { format!("{method} {}", trail.route) };
    // The conventions leave a server span unset for 4xx: the fault is the caller's.
    let status = if ended.status.is_server_error() { Status::error(ended.code.unwrap_or("")) } else { Status::Unset };
    let mut all = Vec::with_capacity(1 + trail.steps.len());
    let request =
        span(trail.trace.span_id, parent, SpanKind::Server, name, trail.arrived.wall, wall(ended.at), of_request(ended, served), status);
    all.push(SpanData { parent_span_is_remote: parent != SpanId::INVALID, links, ..request });
    for step in &trail.steps {
        let mut attributes =
            vec![KeyValue::new(attribute::STOP, step.stop.as_str()), KeyValue::new(attribute::VERDICT, step.verdict.as_str())];
        attributes.extend(step.rule.clone().map(|rule| KeyValue::new(attribute::RULE, Value::String(rule.into()))));
        let start = wall(step.from);
        let mut end = start + Duration::from_micros(step.micros.into());
        let mut kind = SpanKind::Internal;
        let mut name = step.stop.as_str().to_owned();
        let refused = step.verdict == Verdict::Refused;
        if let (Stop::Infer, Some((operation, which))) = (step.stop, ended.inference()) {
            attributes.extend(of_inference(ended));
            name = format!("{operation} {}", which.name);
            kind = SpanKind::Client;
            if ended.streamed {
                end = wall(ended.at).max(end);
            }
        }
        let status = if refused && ended.status.is_server_error() { Status::error(ended.code.unwrap_or("")) } else { Status::Unset };
        if refused {
            attributes.extend(ended.code.map(|code| KeyValue::new(attribute::ERROR_TYPE, code)));
        }
        // A model server was told who its parent is before there was a span.
        let id = if step.stop == Stop::Infer { trail.trace.call_id() } else { random().to_be_bytes() };
        all.push(span(id, SpanId::from_bytes(trail.trace.span_id), kind, name, start, end, attributes, status));
    }
    all
}

fn linked(theirs: Remote) -> SpanLinks {
    let flags = if theirs.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (TraceId::from_bytes(theirs.trace_id), SpanId::from_bytes(theirs.span_id));
    let mut links = SpanLinks::default();
    links.links.push(Link::with_context(SpanContext::new(trace, span, flags, true, TraceState::default())));
    links
}

fn of_request(ended: &Ended, served: Served) -> Vec<KeyValue> {
    let trail = &ended.trail;
    let count = |key, value: u64| KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX));
    let mut all = vec![
        KeyValue::new(attribute::HTTP_METHOD, names::method(&trail.method)),
        KeyValue::new(attribute::HTTP_STATUS, i64::from(ended.status.as_u16())),
        KeyValue::new(attribute::URL_SCHEME, served.scheme),
        KeyValue::new(attribute::PROTOCOL_VERSION, trail.http_version),
        count(attribute::HTTP_REQUEST_SIZE, trail.request.length),
        count(attribute::HTTP_RESPONSE_SIZE, ended.bytes),
        KeyValue::new(attribute::POLICY, trail.policy.to_string()),
        KeyValue::new(attribute::COMPLETE, ended.complete),
    ];
    all.extend(ended.receipt.map(|receipt| KeyValue::new(attribute::RECEIPT, receipt.to_string())));
    if !trail.route.is_empty() {
        all.push(KeyValue::new(attribute::HTTP_ROUTE, Value::String(trail.route.clone().into())));
    }
    if let Some(address) = served.address {
        all.push(KeyValue::new(attribute::SERVER_ADDRESS, address.ip().to_string()));
        all.push(KeyValue::new(attribute::SERVER_PORT, i64::from(address.port())));
    }
    if let Some(who) = trail.who.as_ref().filter(|who| !who.tenant.is_empty()) {
        all.push(KeyValue::new(attribute::TENANT, Value::String(who.tenant.clone().into())));
    }
    all.extend(ended.code.map(|code| KeyValue::new(attribute::ERROR_TYPE, code)));
    all.extend(of_inference(ended));
    all
}

fn of_inference(ended: &Ended) -> Vec<KeyValue> {
    let Some((operation, which)) = ended.inference() else { return Vec::new() };
    let count = |key, value: u64| KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX));
    let mut all = vec![
        KeyValue::new(attribute::GENAI_OPERATION, operation),
        KeyValue::new(attribute::GENAI_MODEL, Value::String(which.name.clone().into())),
        KeyValue::new(attribute::GENAI_PROVIDER, Value::String(names::provider(which))),
        KeyValue::new(attribute::GENAI_STREAM, ended.trail.streams),
        KeyValue::new(attribute::ASSURANCE, which.assurance.as_str()),
    ];
    if !which.version.is_empty() {
        all.push(KeyValue::new(attribute::MODEL_VERSION, Value::String(which.version.clone().into())));
    }
    all.extend(which.digest.map(|digest| KeyValue::new(attribute::MODEL_DIGEST, digest.to_string())));
    all.extend(ended.first_chunk.map(|after| KeyValue::new(attribute::GENAI_FIRST_CHUNK, after.as_secs_f64())));
    if let Some(usage) = ended.usage {
        all.push(count(attribute::GENAI_INPUT_TOKENS, usage.input));
        all.push(count(attribute::GENAI_OUTPUT_TOKENS, usage.output));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (TRACEPARENT, value.parse().unwrap())).collect()
    }

    fn never() -> Sample {
        Sample::ratio(0.0).unwrap()
    }

    #[test]
    fn what_is_not_strictly_a_traceparent_is_none() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        for bad in [
            "".to_owned(),
            THEIRS[..54].to_owned(),
            format!("{THEIRS}-"),
            format!("{THEIRS}-extra"),
            format!("{THEIRS}0"),
            THEIRS.to_uppercase(),
            THEIRS.replacen("00-", "ff-", 1),
            THEIRS.replacen("00-", "0g-", 1),
            THEIRS.replacen("00-", "01-", 1) + "x",
            THEIRS.replace(trace, &"0".repeat(32)),
            THEIRS.replace("00f067aa0ba902b7", &"0".repeat(16)),
            THEIRS.replace("-00f0", "_00f0"),
            THEIRS.replace("-01", "-0G"),
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(remote(&headers(&[THEIRS, THEIRS])), None, "two are none");
    }

    #[test]
    fn a_valid_traceparent_reads_and_a_later_version_may_say_more() {
        let theirs = remote(&headers(&[THEIRS])).unwrap();
        assert_eq!(theirs.span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        assert!(theirs.sampled);
        assert_eq!(parse((THEIRS.replacen("00-", "01-", 1) + "-more").as_bytes()), Some(theirs));
        assert!(!parse(THEIRS.replace("-01", "-02").as_bytes()).unwrap().sampled);
    }

    #[test]
    fn a_strangers_trace_is_linked_and_a_trusted_one_continued() {
        let (trace, remote) = start(&headers(&[THEIRS]), false, never());
        let theirs = remote.unwrap();
        assert_ne!(trace.trace_id, theirs.trace_id);
        assert!(!trace.sampled, "a stranger does not decide what is exported");
        let (trace, remote) = start(&headers(&[THEIRS]), true, never());
        assert_eq!(trace.trace_id, remote.unwrap().trace_id);
        assert_ne!(trace.span_id, theirs.span_id);
        assert!(trace.sampled);
    }

    #[test]
    fn what_goes_out_reads_back() {
        let (trace, _) = start(&HeaderMap::new(), true, Sample::ratio(1.0).unwrap());
        let out = trace.parent();
        let back = parse(out.as_bytes()).unwrap();
        assert_eq!((back.trace_id, back.span_id, back.sampled), (trace.trace_id, trace.span_id, true));
        let of_call = parse(trace.parent_of_call().unwrap().as_bytes()).unwrap();
        assert_eq!((of_call.trace_id, of_call.span_id), (trace.trace_id, trace.call_id()));
        assert_ne!(of_call.span_id, trace.span_id);
        assert_eq!(Trace { sampled: false, ..trace }.parent_of_call(), None);
        let nothing = Trace { span_id: [0x5a; 8], ..trace };
        assert_ne!(nothing.call_id(), [0; 8]);
    }

    #[test]
    fn the_ratio_holds_at_both_ends_and_in_between() {
        let mut highest = [0xff; 16];
        assert!(Sample::ratio(1.0).unwrap().takes(&highest));
        assert!(!never().takes(&[0; 16]));
        highest[9] = 0x7f;
        assert!(Sample::ratio(0.5).unwrap().takes(&highest));
        highest[9] = 0x80;
        assert!(!Sample::ratio(0.5).unwrap().takes(&highest));
        for bad in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            assert_eq!(Sample::ratio(bad), None);
        }
    }

    #[test]
    fn ids_do_not_repeat_across_threads() {
        let draw = || (0..2_000).map(|_| random()).collect::<Vec<_>>();
        let other = std::thread::spawn(draw).join().unwrap();
        let all: std::collections::HashSet<u64> = draw().into_iter().chain(other).collect();
        assert_eq!(all.len(), 4_000);
    }
}
