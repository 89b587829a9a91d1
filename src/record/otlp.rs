//! The way to an OpenTelemetry collector: a bounded queue, and behind it a runtime of its own.
//!
//! A request only puts its end in the queue. Spans are built, batched and sent on the other side, so that a slow or dead
//! collector costs requests nothing; what does not fit, or is not taken, is counted.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::metrics::Metrics;
use super::trace::{self, Remote};
use super::{Ended, OtlpProtocol, Served, names};

/// How many ended requests may wait to be sent.
pub(super) const MAX_WAITING: usize = 4_096;

/// How many requests' spans one message carries at the most.
const MAX_BATCH: usize = 256;

/// How long the first of a batch waits for others.
const LINGER: Duration = Duration::from_millis(500);

/// How long one attempt to send may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often metrics are sent.
const INTERVAL: Duration = Duration::from_secs(30);

/// How often a collector that did not take spans is asked whether it does again, where no request ends meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What is sent.
#[derive(Clone, Copy, Debug)]
enum Sort {
    Spans,
    Numbers,
}

/// Why the last of each sort was not taken; none where it was.
#[derive(Debug, Default)]
struct Untaken(Mutex<[Option<String>; 2]>);

impl Untaken {
    fn went(&self, sort: Sort, outcome: &OTelSdkResult) {
        let why = outcome.as_ref().err().map(|error| match error {
            OTelSdkError::InternalFailure(why) => why.clone(),
            error => error.to_string(),
        });
        self.held()[sort as usize] = why;
    }

    fn of(&self, sort: Sort) -> bool {
        self.held()[sort as usize].is_some()
    }

    fn held(&self) -> MutexGuard<'_, [Option<String>; 2]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Order {
    Ended(Box<(Ended, Option<Remote>, Served)>),
    Flush(oneshot::Sender<()>),
}

/// The queue's near end.
pub(super) struct Export {
    to: mpsc::Sender<Order>,
    meters: SdkMeterProvider,
    metrics: Arc<Metrics>,
    untaken: Arc<Untaken>,
    /// Where to.
    url: Box<str>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Export")
    }
}

impl Export {
    /// Starts to send to `url` from `runtime`, which must be driven by threads of its own.
    pub(super) fn start(url: &str, protocol: OtlpProtocol, metrics: &Arc<Metrics>, runtime: &Handle) -> Result<Self, ExporterBuildError> {
        let resource = Resource::builder()
            .with_service_name(names::SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::now_v7().to_string()))
            .build();
        // Channels are made inside the runtime that will drive them.
        let _inside = runtime.enter();
        let (mut spans, numbers) = match protocol {
            OtlpProtocol::Grpc => (
                SpanExporter::builder().with_tonic().with_endpoint(url).with_timeout(TIMEOUT).build()?,
                MetricExporter::builder().with_tonic().with_endpoint(url).with_timeout(TIMEOUT).build()?,
            ),
            OtlpProtocol::Http => {
                let at = |path| format!("{}{path}", url.trim_end_matches('/'));
                (
                    SpanExporter::builder()
                        .with_http()
                        .with_protocol(Protocol::HttpBinary)
                        .with_endpoint(at("/v1/traces"))
                        .with_timeout(TIMEOUT)
                        .build()?,
                    MetricExporter::builder()
                        .with_http()
                        .with_protocol(Protocol::HttpBinary)
                        .with_endpoint(at("/v1/metrics"))
                        .with_timeout(TIMEOUT)
                        .build()?,
                )
            }
        };
        spans.set_resource(&resource);
        let untaken = Arc::new(Untaken::default());
        let numbers = Numbers { inner: Arc::new(numbers), runtime: runtime.clone(), untaken: untaken.clone() };
        let reader = PeriodicReader::builder(numbers).with_interval(INTERVAL).build();
        let meters = SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build();
        metrics.export(&meters);
        let (to, from) = mpsc::channel(MAX_WAITING);
        runtime.spawn(send(from, spans, metrics.clone(), untaken.clone()));
        Ok(Self { to, meters, metrics: metrics.clone(), untaken, url: url.into() })
    }

    /// Why the collector did not take what it was sent last, if it did not.
    pub(super) fn untaken(&self) -> Option<String> {
        let why = self.untaken.held().iter().find_map(Clone::clone)?;
        Some(format!("{}: {why}", self.url))
    }

    /// Puts an ended request in the queue, or counts it as lost.
    pub(super) fn ended(&self, ended: Ended, remote: Option<Remote>, served: Served) {
        if self.to.try_send(Order::Ended(Box::new((ended, remote, served)))).is_err() {
            self.metrics.telemetry_lost("queue", 1);
        }
    }

    /// Sends the last numbers and stops. It may wait for the collector, so it has a thread of its own.
    pub(super) fn close(self) {
        let _ = self.meters.shutdown_with_timeout(TIMEOUT);
    }

    /// Resolves once everything so far was sent or given up.
    pub(super) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.to.send(Order::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
        let meters = self.meters.clone();
        let _ = tokio::task::spawn_blocking(move || meters.force_flush()).await;
    }
}

async fn send(mut from: mpsc::Receiver<Order>, exporter: SpanExporter, metrics: Arc<Metrics>, untaken: Arc<Untaken>) {
    let scope = InstrumentationScope::builder(names::SERVICE).with_version(env!("CARGO_PKG_VERSION")).build();
    let mut orders = Vec::with_capacity(MAX_BATCH);
    loop {
        let more = from.recv_many(&mut orders, MAX_BATCH);
        let patience = if untaken.of(Sort::Spans) { ASK_AGAIN } else { Duration::MAX };
        match tokio::time::timeout(patience, more).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(_) => {
                // No spans at all are a question that costs it nothing.
                untaken.went(Sort::Spans, &exporter.export(Vec::new()).await);
                continue;
            }
        }
        let until = Instant::now() + LINGER;
        while orders.len() < MAX_BATCH && !matches!(orders.last(), Some(Order::Flush(_))) {
            let room = MAX_BATCH - orders.len();
            if !matches!(tokio::time::timeout_at(until, from.recv_many(&mut orders, room)).await, Ok(1..)) {
                break;
            }
        }
        let (mut spans, mut requests, mut flushed) = (Vec::new(), 0, Vec::new());
        for order in orders.drain(..) {
            match order {
                Order::Ended(one) => {
                    let (ended, remote, served) = *one;
                    spans.extend(trace::spans(&ended, remote, served, &scope));
                    requests += 1;
                }
                Order::Flush(done) => flushed.push(done),
            }
        }
        if requests > 0 {
            let outcome = exporter.export(spans).await;
            if outcome.is_err() {
                metrics.telemetry_lost("collector", requests);
            }
            untaken.went(Sort::Spans, &outcome);
        }
        flushed.into_iter().for_each(|done| _ = done.send(()));
    }
}

/// The SDK calls a metric exporter from a plain thread, where neither of the two transports finds its runtime.
struct Numbers {
    inner: Arc<MetricExporter>,
    runtime: Handle,
    untaken: Arc<Untaken>,
}

impl PushMetricExporter for Numbers {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        // This thread is the reader's own, and waiting is all it does.
        let outcome = self.runtime.block_on(async {
            let bound = TIMEOUT * 4;
            tokio::time::timeout(bound, self.inner.export(metrics)).await.unwrap_or(Err(OTelSdkError::Timeout(bound)))
        });
        self.untaken.went(Sort::Numbers, &outcome);
        outcome
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.inner.temporality()
    }
}
