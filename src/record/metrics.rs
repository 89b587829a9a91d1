//! The numbers: counted once per request, scraped as OpenMetrics text, and sent over OTLP where a collector is named.
//!
//! No label holds what a stranger wrote: routes are templates, models are the policy's names, codes are static, and
//! callers and addresses are no labels at all. Every family is capped all the same; past its cap all is `other`.

use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use http::StatusCode;
use opentelemetry::metrics::{Histogram as OtlpHistogram, Meter, MeterProvider as _};
use opentelemetry::{KeyValue, StringValue, Value};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use uuid::Uuid;

use super::names::{self, OTHER, attribute, metric};
use super::{Ended, Served};
use crate::event;
use crate::trail::{Assurance, Stop, Verdict};

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many label sets one family holds before the rest is counted as `other`.
pub const MAX_SERIES: usize = 2_000;

/// All numbers of the gateway.
pub struct Metrics {
    registry: Mutex<Registry>,
    active: Gauge,
    http: Capped<HttpLabels, HistogramWithExemplars<Exemplar>>,
    passed: Vec<[Counter; 2]>,
    decisions: Capped<DecisionLabels, Counter>,
    refused: Capped<CodeLabels, Counter>,
    tokens: Capped<TokenLabels, Counter>,
    client: Capped<ModelLabels, Histogram>,
    server: Capped<ModelLabels, Histogram>,
    first_chunk: Capped<ModelLabels, Histogram>,
    events: Capped<EventLabels, Counter>,
    abandoned: Counter,
    incomplete: Counter,
    /// Events that found their channel full.
    pub(super) events_lost: Counter,
    /// Lines that the security log's sink did not take.
    pub(super) lines_lost: Counter,
    telemetry_lost: Capped<CauseLabels, Counter>,
    otlp: OnceLock<Otlp>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::with_cap(MAX_SERIES)
    }
}

impl Metrics {
    fn with_cap(cap: usize) -> Self {
        let decisions = Capped::new(cap, Counter::default as fn() -> Counter);
        let metrics = Self {
            passed: Stop::ALL
                .iter()
                .map(|stop| {
                    [Verdict::Passed, Verdict::Shadowed].map(|verdict| {
                        // It decides nothing, and comes after all that is counted.
                        if *stop == Stop::Record {
                            return Counter::default();
                        }
                        decisions.family.get_or_create_owned(&DecisionLabels { stop: stop.as_str(), verdict: verdict.as_str(), code: "" })
                    })
                })
                .collect(),
            registry: Mutex::default(),
            active: Gauge::default(),
            http: Capped::new(cap, || HistogramWithExemplars::new(names::HTTP_BUCKETS.into_iter())),
            decisions,
            refused: Capped::new(cap, Counter::default),
            tokens: Capped::new(cap, Counter::default),
            client: Capped::new(cap, || Histogram::new(names::OPERATION_BUCKETS)),
            server: Capped::new(cap, || Histogram::new(names::OPERATION_BUCKETS)),
            first_chunk: Capped::new(cap, || Histogram::new(names::FIRST_CHUNK_BUCKETS)),
            events: Capped::new(cap, Counter::default),
            abandoned: Counter::default(),
            incomplete: Counter::default(),
            events_lost: Counter::default(),
            lines_lost: Counter::default(),
            telemetry_lost: Capped::new(cap, Counter::default),
            otlp: OnceLock::new(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = || Unit::Seconds;
        let with_unit =
            |registry: &mut Registry, of: metric::Metric, family| registry.register_with_unit(of.prometheus, of.help, seconds(), family);
        registry.register_with_unit(metric::HTTP_DURATION.prometheus, metric::HTTP_DURATION.help, seconds(), self.http.family.clone());
        with_unit(&mut registry, metric::CLIENT_DURATION, self.client.family.clone());
        with_unit(&mut registry, metric::SERVER_DURATION, self.server.family.clone());
        with_unit(&mut registry, metric::FIRST_CHUNK, self.first_chunk.family.clone());
        let mut plain = |of: metric::Metric, counter: &Counter| registry.register(of.prometheus, of.help, counter.clone());
        plain(metric::ABANDONED, &self.abandoned);
        plain(metric::INCOMPLETE, &self.incomplete);
        plain(metric::EVENTS_LOST, &self.events_lost);
        plain(metric::LINES_LOST, &self.lines_lost);
        registry.register(metric::HTTP_ACTIVE.prometheus, metric::HTTP_ACTIVE.help, self.active.clone());
        registry.register(metric::DECISIONS.prometheus, metric::DECISIONS.help, self.decisions.family.clone());
        registry.register(metric::REFUSED.prometheus, metric::REFUSED.help, self.refused.family.clone());
        registry.register(metric::TOKENS.prometheus, metric::TOKENS.help, self.tokens.family.clone());
        registry.register(metric::EVENTS.prometheus, metric::EVENTS.help, self.events.family.clone());
        registry.register(metric::TELEMETRY_LOST.prometheus, metric::TELEMETRY_LOST.help, self.telemetry_lost.family.clone());
        registry.register(metric::BUILD.prometheus, metric::BUILD.help, Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    }

    /// The numbers as OpenMetrics 1.0 text, of type [`CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(16 * 1_024);
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        match text::encode(&mut out, &registry) {
            Ok(()) => out,
            // Writing to a string fails only if a watched closure's label does; what there is would be half a page.
            Err(fmt::Error) => "# EOF\n".to_owned(),
        }
    }

    /// Adds numbers that another part keeps, read by `read` at each scrape: it tells `observe` the labels and value of each series.
    ///
    /// `name` is the Prometheus name without `_total`. `read` must be quick and must not call back into these metrics;
    /// series past [`MAX_SERIES`] are left out.
    pub fn watch(&self, name: &'static str, help: &'static str, kind: Kind, read: impl Fn(&mut Observe<'_>) + Send + Sync + 'static) {
        let read: Arc<Read> = Arc::new(read);
        if let Some(otlp) = self.otlp.get() {
            otlp.watch(name, help, kind, read.clone());
        }
        let watched = Watched { name, help, kind, read };
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(watched));
    }

    /// Sends the same numbers through `provider` from now on. Before anything is watched; only the first call counts.
    pub(super) fn export(&self, provider: &SdkMeterProvider) {
        let _ = self.otlp.set(Otlp::new(&provider.meter(names::SERVICE), self));
    }

    /// One request begins.
    pub(super) fn begin(&self) {
        self.active.inc();
    }

    /// One request is over; `abandoned` if nobody ever recorded it.
    pub(super) fn leave(&self, abandoned: bool) {
        self.active.dec();
        if abandoned {
            self.abandoned.inc();
        }
    }

    /// Counts a request that has ended. `exemplar`: its spans are exported.
    pub(super) fn ended(&self, ended: &Ended, exemplar: bool, served: Served) {
        let trail = &ended.trail;
        let took = ended.at.saturating_duration_since(trail.arrived.mono).as_secs_f64();
        let labels = HttpLabels { method: names::method(&trail.method), route: trail.route.clone(), status: ended.status.as_u16() };
        let exemplar = exemplar.then_some(Exemplar { trace: trail.trace.trace_id, receipt: ended.receipt });
        self.http.with(labels, |histogram| histogram.observe(took, exemplar, None));
        for step in &trail.steps {
            match step.verdict {
                Verdict::Passed => _ = self.passed[names::place(step.stop)][0].inc(),
                Verdict::Shadowed => _ = self.passed[names::place(step.stop)][1].inc(),
                Verdict::Refused => {
                    let labels =
                        DecisionLabels { stop: step.stop.as_str(), verdict: step.verdict.as_str(), code: ended.code.unwrap_or("") };
                    self.decisions.with(labels, |counter| _ = counter.inc());
                }
            }
        }
        if let Some(code) = ended.code {
            self.refused.with(CodeLabels { code }, |counter| _ = counter.inc());
        }
        if !ended.complete {
            self.incomplete.inc();
        }
        if let Some((operation, which)) = ended.inference() {
            let labels = ModelLabels { operation, model: which.name.clone(), version: which.version.clone() };
            if let Some(took) = ended.model_took() {
                let durations = if which.assurance == Assurance::UpstreamAsserted { &self.client } else { &self.server };
                durations.with(labels.clone(), |histogram| histogram.observe(took.as_secs_f64()));
            }
            if let Some(after) = ended.first_chunk {
                self.first_chunk.with(labels, |histogram| histogram.observe(after.as_secs_f64()));
            }
            if let Some(usage) = ended.usage {
                for (direction, tokens) in [("input", usage.input), ("output", usage.output)] {
                    let labels = TokenLabels { direction, model: which.name.clone() };
                    self.tokens.with(labels, |counter| _ = counter.inc_by(tokens));
                }
            }
        }
        if let Some(otlp) = self.otlp.get() {
            otlp.ended(ended, took, served);
        }
    }

    /// Counts an event of the security log.
    pub(super) fn event(&self, name: event::Name) {
        self.events.with(EventLabels { event: name.as_str() }, |counter| _ = counter.inc());
        if let Some(otlp) = self.otlp.get() {
            otlp.events.add(1, &[KeyValue::new(attribute::EVENT, name.as_str())]);
        }
    }

    /// Counts requests whose spans were not delivered.
    pub(super) fn telemetry_lost(&self, cause: &'static str, requests: u64) {
        self.telemetry_lost.with(CauseLabels { cause }, |counter| _ = counter.inc_by(requests));
        if let Some(otlp) = self.otlp.get() {
            otlp.telemetry_lost.add(requests, &[KeyValue::new(attribute::CAUSE, cause)]);
        }
    }
}

/// What a watched number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only goes up; a whole number.
    Counter,
    /// It only goes up, and has parts of its unit.
    Sum,
}

/// Takes the labels and the value of one series.
pub type Observe<'a> = dyn FnMut(&[(&'static str, &str)], f64) + 'a;

type Read = dyn Fn(&mut Observe<'_>) + Send + Sync;

/// A family that stops growing at its cap.
struct Capped<S, M> {
    family: Family<S, M, fn() -> M>,
    room: AtomicUsize,
}

/// A label set that has a place for all that is past the cap.
trait Labels: Clone + Hash + Eq {
    /// That place. It must be the same for every label set that a stranger could vary.
    fn other(&self) -> Self;
}

impl<S: Labels, M> Capped<S, M>
where
    fn() -> M: MetricConstructor<M>,
{
    fn new(cap: usize, make: fn() -> M) -> Self {
        Self { family: Family::new_with_constructor(make), room: AtomicUsize::new(cap) }
    }

    /// Does `then` with the series of `labels`. The common case is one shared lock and no allocation.
    fn with(&self, labels: S, then: impl FnOnce(&M)) {
        if let Some(series) = self.family.get(&labels) {
            return then(&series);
        }
        let room = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1)).is_ok();
        let labels = if room { labels } else { labels.other() };
        then(&self.family.get_or_create(&labels));
    }
}

/// Label sets: each names its labels, and where the overflow goes.
macro_rules! labels {
    ($($name:ident { $($label:ident: $type:ty => $other:expr),+ })+) => { $(
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $($label: $type),+ }

        impl Labels for $name {
            fn other(&self) -> Self {
                Self { $($label: $other),+ }
            }
        }
    )+ };
}

labels! {
    HttpLabels { method: &'static str => OTHER, route: Arc<str> => OTHER.into(), status: u16 => 0 }
    DecisionLabels { stop: &'static str => OTHER, verdict: &'static str => OTHER, code: &'static str => OTHER }
    CodeLabels { code: &'static str => OTHER }
    TokenLabels { direction: &'static str => OTHER, model: Arc<str> => OTHER.into() }
    ModelLabels { operation: &'static str => OTHER, model: Arc<str> => OTHER.into(), version: Arc<str> => OTHER.into() }
    EventLabels { event: &'static str => OTHER }
    CauseLabels { cause: &'static str => OTHER }
}

/// Which request a bucket's latest observation was.
#[derive(Clone, Debug)]
struct Exemplar {
    trace: [u8; 16],
    receipt: Option<Uuid>,
}

impl EncodeLabelSet for Exemplar {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let trace = u128::from_be_bytes(self.trace);
        let receipt = self.receipt.map(|receipt| ("receipt", receipt.to_string()));
        [("trace_id", format!("{trace:032x}"))].into_iter().chain(receipt).collect::<Vec<_>>().encode(encoder)
    }
}

struct Watched {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: Arc<Read>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for Watched {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = match self.kind {
            Kind::Gauge => MetricType::Gauge,
            Kind::Counter | Kind::Sum => MetricType::Counter,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        let (mut result, mut series) = (Ok(()), 0);
        (self.read)(&mut |labels, value| {
            series += 1;
            if series > MAX_SERIES || result.is_err() {
                return;
            }
            let write = |one: &mut MetricEncoder<'_>| match self.kind {
                Kind::Gauge => one.encode_gauge(&value),
                Kind::Counter => one.encode_counter::<NoLabelSet, _, u64>(&(value as u64), None),
                Kind::Sum => one.encode_counter::<NoLabelSet, _, u64>(&value, None),
            };
            result = match labels {
                // A family without labels would print an empty pair of braces.
                [] => write(&mut metric),
                _ => metric.encode_family(&labels).and_then(|mut one| write(&mut one)),
            };
        });
        result
    }
}

/// The instruments behind the OTLP export.
struct Otlp {
    meter: Meter,
    http: OtlpHistogram<f64>,
    client: OtlpHistogram<f64>,
    server: OtlpHistogram<f64>,
    first_chunk: OtlpHistogram<f64>,
    tokens: OtlpHistogram<u64>,
    decisions: opentelemetry::metrics::Counter<u64>,
    refused: opentelemetry::metrics::Counter<u64>,
    events: opentelemetry::metrics::Counter<u64>,
    telemetry_lost: opentelemetry::metrics::Counter<u64>,
}

impl Otlp {
    fn new(meter: &Meter, metrics: &Metrics) -> Self {
        let histogram = |of: metric::Metric, buckets: &[f64]| {
            meter.f64_histogram(of.otlp).with_unit(of.unit).with_description(of.help).with_boundaries(buckets.to_vec()).build()
        };
        let counter = |of: metric::Metric| meter.u64_counter(of.otlp).with_unit(of.unit).with_description(of.help).build();
        let active = metrics.active.clone();
        let of = metric::HTTP_ACTIVE;
        let watch = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<i64>| observer.observe(active.get(), &[]);
        meter.i64_observable_up_down_counter(of.otlp).with_unit(of.unit).with_description(of.help).with_callback(watch).build();
        for (of, counter) in [
            (metric::ABANDONED, &metrics.abandoned),
            (metric::INCOMPLETE, &metrics.incomplete),
            (metric::EVENTS_LOST, &metrics.events_lost),
            (metric::LINES_LOST, &metrics.lines_lost),
        ] {
            let counter = counter.clone();
            let watch = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<u64>| observer.observe(counter.get(), &[]);
            meter.u64_observable_counter(of.otlp).with_unit(of.unit).with_description(of.help).with_callback(watch).build();
        }
        let of = metric::BUILD;
        let watch = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            observer.observe(1, &[KeyValue::new(attribute::BUILD_VERSION, env!("CARGO_PKG_VERSION"))]);
        };
        meter.u64_observable_gauge(of.otlp).with_unit(of.unit).with_description(of.help).with_callback(watch).build();
        let tokens = metric::TOKENS;
        Self {
            http: histogram(metric::HTTP_DURATION, &names::HTTP_BUCKETS),
            client: histogram(metric::CLIENT_DURATION, &names::OPERATION_BUCKETS),
            server: histogram(metric::SERVER_DURATION, &names::OPERATION_BUCKETS),
            first_chunk: histogram(metric::FIRST_CHUNK, &names::FIRST_CHUNK_BUCKETS),
            tokens: meter
                .u64_histogram(tokens.otlp)
                .with_unit(tokens.unit)
                .with_description(tokens.help)
                .with_boundaries(names::TOKEN_BUCKETS.to_vec())
                .build(),
            decisions: counter(metric::DECISIONS),
            refused: counter(metric::REFUSED),
            events: counter(metric::EVENTS),
            telemetry_lost: counter(metric::TELEMETRY_LOST),
            meter: meter.clone(),
        }
    }

    fn watch(&self, name: &'static str, help: &'static str, kind: Kind, read: Arc<Read>) {
        let each = move |observe: &mut dyn FnMut(f64, &[KeyValue])| {
            read(&mut |labels, value| {
                let labels: Vec<_> = labels.iter().map(|(key, text)| KeyValue::new(*key, (*text).to_owned())).collect();
                observe(value, &labels);
            });
        };
        match kind {
            Kind::Gauge => {
                let watch = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
                    each(&mut |value, labels| observer.observe(value, labels))
                };
                self.meter.f64_observable_gauge(name).with_description(help).with_callback(watch).build();
            }
            Kind::Counter => {
                let watch = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
                    each(&mut |value, labels| observer.observe(value as u64, labels))
                };
                self.meter.u64_observable_counter(name).with_description(help).with_callback(watch).build();
            }
            Kind::Sum => {
                let watch = move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
                    each(&mut |value, labels| observer.observe(value, labels))
                };
                self.meter.f64_observable_counter(name).with_description(help).with_callback(watch).build();
            }
        }
    }

    fn ended(&self, ended: &Ended, took: f64, served: Served) {
        let trail = &ended.trail;
        let text = |text: &Arc<str>| Value::String(StringValue::from(text.clone()));
        let status = i64::from(ended.status.as_u16());
        let mut request = vec![
            KeyValue::new(attribute::HTTP_METHOD, names::method(&trail.method)),
            KeyValue::new(attribute::HTTP_ROUTE, text(&trail.route)),
            KeyValue::new(attribute::HTTP_STATUS, status),
            KeyValue::new(attribute::URL_SCHEME, served.scheme),
        ];
        request.extend(error_type(ended).map(|code| KeyValue::new(attribute::ERROR_TYPE, code)));
        self.http.record(took, &request);
        for step in &trail.steps {
            let code = ended.code.filter(|_| step.verdict == Verdict::Refused).unwrap_or("");
            let labels = [
                KeyValue::new(attribute::STOP, step.stop.as_str()),
                KeyValue::new(attribute::VERDICT, step.verdict.as_str()),
                KeyValue::new(attribute::CODE, code),
            ];
            self.decisions.add(1, &labels);
        }
        if let Some(code) = ended.code {
            self.refused.add(1, &[KeyValue::new(attribute::CODE, code)]);
        }
        let Some((operation, which)) = ended.inference() else { return };
        let labels = [
            KeyValue::new(attribute::GENAI_OPERATION, operation),
            KeyValue::new(attribute::GENAI_MODEL, text(&which.name)),
            KeyValue::new(attribute::GENAI_PROVIDER, Value::String(names::provider(which))),
            KeyValue::new(attribute::MODEL_VERSION, text(&which.version)),
        ];
        if let Some(took) = ended.model_took() {
            let durations = if which.assurance == Assurance::UpstreamAsserted { &self.client } else { &self.server };
            durations.record(took.as_secs_f64(), &labels);
        }
        if let Some(after) = ended.first_chunk {
            self.first_chunk.record(after.as_secs_f64(), &labels);
        }
        if let Some(usage) = ended.usage {
            let [operation, model, provider, _] = labels;
            for (direction, tokens) in [("input", usage.input), ("output", usage.output)] {
                let direction = KeyValue::new(attribute::GENAI_TOKEN_TYPE, direction);
                self.tokens.record(tokens, &[operation.clone(), model.clone(), provider.clone(), direction]);
            }
        }
    }
}

/// `error.type`: the static code, or the status where an upstream's own error passed through.
fn error_type(ended: &Ended) -> Option<&'static str> {
    ended.code.or_else(|| match ended.status {
        StatusCode::INTERNAL_SERVER_ERROR => Some("500"),
        StatusCode::BAD_GATEWAY => Some("502"),
        StatusCode::SERVICE_UNAVAILABLE => Some("503"),
        StatusCode::GATEWAY_TIMEOUT => Some("504"),
        status if status.is_server_error() => Some("5xx"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{ended, refused};

    fn served() -> Served {
        Served::default()
    }

    #[test]
    fn an_answer_and_a_refusal_are_told_apart() {
        let metrics = Metrics::default();
        metrics.ended(&ended(), true, served());
        metrics.ended(&refused("budget.requests", StatusCode::TOO_MANY_REQUESTS), false, served());
        let text = metrics.render();
        for line in [
            "http_server_request_duration_seconds_count{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"} 1",
            "http_server_request_duration_seconds_count{method=\"POST\",route=\"/v1/chat/completions\",status=\"429\"} 1",
            "portcullis_refused_total{code=\"budget.requests\"} 1",
            "portcullis_decisions_total{stop=\"budget\",verdict=\"refused\",code=\"budget.requests\"} 1",
            "portcullis_decisions_total{stop=\"infer\",verdict=\"passed\",code=\"\"} 1",
            "portcullis_tokens_total{direction=\"output\",model=\"small\"} 7",
            "gen_ai_server_request_duration_seconds_count{operation=\"chat\",model=\"small\",version=\"1\"} 1",
            "portcullis_build_info{version=",
            "portcullis_decisions_total{stop=\"prove\",verdict=\"passed\",code=\"\"}",
            "# {trace_id=\"",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(!text.contains("alice"), "a caller is never a label");
        assert!(!text.contains("stop=\"record\""), "it decides nothing");
    }

    #[test]
    fn at_the_cap_a_series_has_its_name_and_past_it_is_other() {
        let capped: Capped<ModelLabels, Counter> = Capped::new(2, Counter::default);
        let labels = |model: &str| ModelLabels { operation: "chat", model: model.into(), version: "".into() };
        for model in ["a", "b", "c", "d", "a"] {
            capped.with(labels(model), |counter| _ = counter.inc());
        }
        assert_eq!(capped.family.get(&labels("a")).unwrap().get(), 2);
        assert_eq!(capped.family.get(&labels("b")).unwrap().get(), 1);
        assert!(capped.family.get(&labels("c")).is_none());
        assert_eq!(capped.family.get(&labels("c").other()).unwrap().get(), 2);
    }

    #[test]
    fn what_others_keep_is_read_at_the_scrape() {
        let metrics = Metrics::default();
        let size = Arc::new(AtomicUsize::new(1));
        let read = size.clone();
        metrics.watch("portcullis_log_entries", "Entries", Kind::Counter, move |observe| observe(&[], read.load(Ordering::Relaxed) as f64));
        metrics.watch("portcullis_ready", "Readiness", Kind::Gauge, |observe| observe(&[("what", "a\"b\n")], 0.5));
        metrics.watch("portcullis_log_sync_seconds", "Time", Kind::Sum, |observe| observe(&[], 0.25));
        size.store(41, Ordering::Relaxed);
        let text = metrics.render();
        assert!(text.contains("\nportcullis_log_entries_total 41\n"), "{text}");
        assert!(text.contains("\nportcullis_log_sync_seconds_total 0.25\n"), "{text}");
        assert!(text.contains("portcullis_ready{what=\"a\\\"b\\n\"} 0.5\n"), "{text}");
    }
}
