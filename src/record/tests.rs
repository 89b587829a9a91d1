//! The recorder against real sockets and files.

use std::net::{IpAddr, Ipv4Addr};

use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;

use super::*;
use crate::clock::Moment;
use crate::digest::Digest;
use crate::trail::{Assurance, End, TRACEPARENT, Who};

/// A way through all stops, as the stops would have written it down.
fn trail(trace: Trace, refused: Option<Stop>) -> Trail {
    let arrived = Moment::now();
    let mut trail = Trail::new(arrived, IpAddr::V4(Ipv4Addr::LOCALHOST), http::Method::POST, "1.1", Digest::of(b"policy"), trace);
    trail.route = "/v1/chat/completions".into();
    trail.action = Some("chat");
    trail.who = Some(Arc::new(Who { caller: "api_key:alice".into(), tenant: "acme".into(), tier: "".into(), method: "api_key" }));
    trail.which = Some(Arc::new(Which {
        name: "small".into(),
        version: "1".into(),
        digest: Some(Digest::of(b"model")),
        format: "onnx".into(),
        assurance: Assurance::VerifiedInProcess,
    }));
    for stop in Stop::ALL {
        let from = arrived.mono + Duration::from_micros(100 * stop as u64);
        let ends = refused == Some(stop);
        let (verdict, rule) = if ends { (Verdict::Refused, Some("rule-7".into())) } else { (Verdict::Passed, None) };
        trail.step(stop, verdict, rule, from, from + Duration::from_micros(100));
        if ends {
            break;
        }
    }
    trail
}

const TRACE: Trace = Trace { trace_id: [7; 16], span_id: [9; 8], sampled: false };

pub(super) fn ended() -> Ended {
    let trail = Arc::new(trail(TRACE, None));
    Ended {
        status: StatusCode::OK,
        code: None,
        bytes: 12,
        usage: Some(Usage { input: 3, output: 7 }),
        complete: true,
        streamed: false,
        first_chunk: None,
        at: trail.arrived.mono + Duration::from_millis(2),
        receipt: Some(trail.id),
        trail,
    }
}

pub(super) fn refused(code: &'static str, status: StatusCode) -> Ended {
    Ended { trail: Arc::new(trail(TRACE, Some(Stop::Budget))), status, code: Some(code), usage: None, ..ended() }
}

fn answered(trail: Trail, body: Body, late: Option<Late>) -> Answered {
    let receipt = Some(trail.id);
    Answered { status: StatusCode::OK, headers: HeaderMap::new(), body, trail: Arc::new(trail), receipt, late, code: None }
}

fn recorder(folder: &Path) -> Recorder {
    recorder_with(folder, "")
}

fn recorder_with(folder: &Path, more: &str) -> Recorder {
    let config: Config = toml::from_str(&format!("security_log = \"security.log\"\n{more}")).unwrap();
    Recorder::new(&config, folder).unwrap()
}

const A_WHILE: Duration = Duration::from_secs(20);

fn has(recorder: &Recorder, line: &str) {
    let text = recorder.metrics().render();
    assert!(text.lines().any(|one| one.starts_with(line)), "{line} is not in\n{text}");
}

/// A stream of two chunks; `broken` ends it with an error, and dropping it writes down what the meter would.
fn stream(late: Late, broken: bool) -> Body {
    struct Meter(Late);
    impl Drop for Meter {
        fn drop(&mut self) {
            self.0.ended(End { usage: Some(Usage { input: 1, output: 1 }), complete: false });
        }
    }
    let meter = Meter(late);
    let frames = vec![Ok(Frame::data(Bytes::from_static(b"one"))), Ok(Frame::data(Bytes::from_static(b"two")))];
    let end: Option<Result<Frame<Bytes>, Broken>> = broken.then(|| Err("the upstream is gone".into()));
    let all = futures_util::stream::iter(frames.into_iter().chain(end));
    let all = futures_util::StreamExt::map(all, move |frame| {
        let _ = &meter;
        if frame.is_err() {
            meter.0.ended(End { usage: None, complete: false });
        }
        frame
    });
    Body::stream(StreamBody::new(all))
}

const COUNT: &str = "http_server_request_duration_seconds_count{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"}";

#[tokio::test]
async fn a_stream_is_counted_once_whether_it_ends_breaks_or_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = recorder(folder.path());
    let record = |broken, late: Late| {
        let (trace, active) = recorder.begin(&HeaderMap::new(), false);
        recorder
            .record(active, answered(trail(trace, None), stream(late.clone(), broken), Some(late)), Instant::now())
            .into_response()
            .into_body()
    };

    let late = Late::default();
    late.ended(End { usage: Some(Usage { input: 1, output: 4 }), complete: true });
    let body = record(false, late);
    has(&recorder, "http_server_active_requests 1");
    assert_eq!(body.collect().await.unwrap().to_bytes(), "onetwo");
    has(&recorder, &format!("{COUNT} 1"));
    has(&recorder, "portcullis_incomplete_total 0");

    assert!(record(true, Late::default()).collect().await.is_err());
    has(&recorder, &format!("{COUNT} 2"));
    has(&recorder, "portcullis_incomplete_total 1");

    let mut body = record(false, Late::default());
    assert!(body.frame().await.unwrap().is_ok());
    has(&recorder, &format!("{COUNT} 2"));
    drop(body);
    has(&recorder, &format!("{COUNT} 3"));
    has(&recorder, "portcullis_incomplete_total 2");
    // 4 from the stream that ended, none from the broken one, 1 that the meter wrote down while it was dropped.
    has(&recorder, "portcullis_tokens_total{direction=\"output\",model=\"small\"} 5");
    has(&recorder, "gen_ai_client_operation_time_to_first_chunk_seconds_count{operation=\"chat\",model=\"small\",version=\"1\"} 3");
    has(&recorder, "http_server_active_requests 0");
    has(&recorder, "portcullis_abandoned_total 0");
}

#[tokio::test]
async fn a_whole_answer_is_counted_as_it_leaves_and_carries_its_trace() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = recorder(folder.path());
    let (trace, active) = recorder.begin(&HeaderMap::new(), false);
    let answer = answered(trail(trace, None), Body::Whole(Bytes::from_static(b"{}")), None);
    let response = recorder.record(active, answer, Instant::now()).into_response();
    assert_eq!(response.headers()[TRACEPARENT], trace.parent());
    assert!(!trace.sampled, "without a collector nothing is exported");
    has(&recorder, &format!("{COUNT} 1"));
    has(&recorder, "http_server_active_requests 0");
    drop(response);
    has(&recorder, &format!("{COUNT} 1"));
}

#[test]
fn whoever_panics_gives_the_place_back_and_is_counted_as_abandoned() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = recorder(folder.path());
    let (_, active) = recorder.begin(&HeaderMap::new(), false);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _active = active;
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
    has(&recorder, "http_server_active_requests 0");
    has(&recorder, "portcullis_abandoned_total 1");
}

#[tokio::test]
async fn a_refusal_is_an_event_and_an_answer_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = recorder(folder.path());
    let codes =
        [(None, StatusCode::OK), (Some("authenticate.expired"), StatusCode::UNAUTHORIZED), (Some("check.schema"), StatusCode::BAD_REQUEST)];
    for (code, status) in codes {
        let (trace, active) = recorder.begin(&HeaderMap::new(), false);
        let trail = trail(trace, code.map(|_| Stop::Check));
        let answer = Answered { code, status, ..answered(trail, Body::Empty, None) };
        let _ = recorder.record(active, answer, Instant::now());
    }
    // Past its allowance a refusal has no receipt, and its event names none.
    let (trace, active) = recorder.begin(&HeaderMap::new(), false);
    let answer = answered(trail(trace, Some(Stop::Authorize)), Body::Empty, None);
    let _ = recorder.record(active, Answered { code: Some("authorize.denied"), receipt: None, ..answer }, Instant::now());
    recorder.finish(A_WHILE).await;
    let log = std::fs::read_to_string(folder.path().join("security.log")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[2].get("receipt").is_none() && lines[2]["trace"].is_string(), "{}", lines[2]);
    assert_eq!((&lines[0]["event"], &lines[0]["code"]), (&"authenticate.failed".into(), &"authenticate.expired".into()));
    assert_eq!((&lines[1]["event"], &lines[1]["rule"]), (&"request.refused".into(), &"rule-7".into()));
    for field in ["time", "caller", "tenant", "model", "receipt", "address", "route", "trace"] {
        assert!(lines[1][field].is_string(), "{field}");
    }
    has(&recorder, "portcullis_events_total{event=\"request.refused\"} 2");
    has(&recorder, "portcullis_refused_total{code=\"check.schema\"} 1");
}

/// A collector that takes OTLP over HTTP/1.1 or gRPC, whichever the client speaks, and hands on what it was sent.
async fn collector_on_loopback() -> (SocketAddr, mpsc::UnboundedReceiver<(String, Bytes)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), collector_on(listener))
}

fn collector_on(listener: TcpListener) -> mpsc::UnboundedReceiver<(String, Bytes)> {
    let (to, from) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let to = to.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let to = to.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let grpc = request.version() == http::Version::HTTP_2;
                    let body = request.into_body().collect().await?.to_bytes();
                    let _ = to.send((path, if grpc { body.slice(5..) } else { body }));
                    let (kind, body) = if grpc {
                        let trailers: HeaderMap = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
                        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
                        ("application/grpc", UnsyncBoxBody::new(StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Broken>)))))
                    } else {
                        ("application/x-protobuf", UnsyncBoxBody::new(http_body_util::Empty::new().map_err(|never| match never {})))
                    };
                    Ok::<_, hyper::Error>(http::Response::builder().header("content-type", kind).body(body).unwrap())
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { server.serve_connection(TokioIo::new(socket), service).await.map_err(drop) });
        }
    });
    from
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    span.attributes.iter().find(|one| one.key == key)?.value.clone()?.value
}

async fn spans_and_metrics_arrive(protocol: &str) {
    let (address, mut got) = collector_on_loopback().await;
    let folder = tempfile::tempdir().unwrap();
    let recorder = recorder_with(folder.path(), &format!("otlp = \"http://{address}\"\notlp_protocol = \"{protocol}\"\nsample = 0.0"));
    recorder.metrics().watch("portcullis_ready", "Readiness", metrics::Kind::Gauge, |observe| observe(&[], 1.0));
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers: HeaderMap = [(TRACEPARENT, theirs.parse().unwrap())].into_iter().collect();

    // Not sampled, and nothing is wrong with it: it is not sent.
    let (quiet, active) = recorder.begin(&HeaderMap::new(), false);
    let _ = recorder.record(active, answered(trail(quiet, None), Body::Empty, None), Instant::now());
    // Not sampled, but it failed.
    let (trace, active) = recorder.begin(&headers, false);
    let failed = trail(trace, Some(Stop::Infer));
    let (receipt, steps) = (failed.id, failed.steps.len());
    let answer = Answered {
        code: Some("infer.unavailable"),
        status: StatusCode::SERVICE_UNAVAILABLE,
        ..answered(failed, Body::Whole("{}".into()), None)
    };
    let _ = recorder.record(active, answer, Instant::now());
    recorder.metrics().event(crate::event::Name::LogGap);
    recorder.metrics().telemetry_lost("queue", 1);
    recorder.finish(A_WHILE).await;

    let (mut spans, mut metrics) = (Vec::new(), Vec::new());
    while let Ok((path, body)) = got.try_recv() {
        if path.contains("race") {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            let resource = request.resource_spans[0].resource.as_ref().unwrap();
            assert!(resource.attributes.iter().any(|one| one.key == "service.name"));
            spans.extend(request.resource_spans.into_iter().flat_map(|one| one.scope_spans).flat_map(|one| one.spans));
        } else {
            let request = ExportMetricsServiceRequest::decode(body).unwrap();
            metrics.extend(request.resource_metrics.into_iter().flat_map(|one| one.scope_metrics).flat_map(|one| one.metrics));
        }
    }
    assert_eq!(spans.len(), 1 + steps);
    let root = &spans[0];
    assert_eq!((&root.trace_id[..], &root.span_id[..]), (&trace.trace_id[..], &trace.span_id[..]));
    assert_eq!(root.name, "POST /v1/chat/completions");
    assert!(root.parent_span_id.is_empty());
    assert_eq!(root.links[0].span_id, [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7], "the stranger's context is a link");
    assert_eq!(attribute(root, "error.type"), Some(Value::StringValue("infer.unavailable".into())));
    assert_eq!(attribute(root, "http.response.body.size"), Some(Value::IntValue(2)));
    assert_eq!(attribute(root, "http.response.status_code"), Some(Value::IntValue(503)));
    assert_eq!(attribute(root, "portcullis.receipt.id"), Some(Value::StringValue(receipt.to_string())));
    let last = spans.last().unwrap();
    assert_eq!((last.name.as_str(), &last.parent_span_id), ("chat small", &root.span_id));
    assert_eq!(last.end_time_unix_nano - last.start_time_unix_nano, 100_000);
    assert_eq!(attribute(last, "gen_ai.request.model"), Some(Value::StringValue("small".into())));
    assert_eq!(attribute(last, "portcullis.model.version"), Some(Value::StringValue("1".into())));
    assert!(spans.iter().all(|span| !format!("{span:?}").contains("alice")), "no caller in a span");
    for name in [
        "http.server.request.duration",
        "http.server.active_requests",
        "portcullis.refused",
        "portcullis.events",
        "portcullis.telemetry.lost",
        "portcullis.build",
        "portcullis_ready",
    ] {
        assert!(metrics.iter().any(|metric| metric.name == name), "{name}");
    }
}

#[tokio::test]
async fn a_grpc_collector_gets_what_failed_and_the_metrics() {
    spans_and_metrics_arrive("grpc").await;
}

#[tokio::test]
async fn an_http_collector_gets_what_failed_and_the_metrics() {
    spans_and_metrics_arrive("http").await;
}

#[tokio::test]
async fn a_collector_that_never_answers_blocks_no_request_and_its_losses_are_counted() {
    // It accepts and then says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let recorder = recorder_with(folder.path(), &format!("otlp = \"http://{address}\"\nsample = 1.0"));
    // The queue, one batch at work and one being gathered is all that can be on the way. `record` is no future: it
    // returns or the test hangs, whatever the collector does.
    let more_than_fits = otlp::MAX_WAITING + 3 * 256;
    for _ in 0..more_than_fits {
        let (trace, active) = recorder.begin(&HeaderMap::new(), false);
        let _ = recorder.record(active, answered(trail(trace, None), Body::Empty, None), Instant::now());
    }
    has(&recorder, &format!("{COUNT} {more_than_fits}"));
    has(&recorder, "portcullis_telemetry_lost_total{cause=\"queue\"}");
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_with_its_address_until_it_is_back() {
    for protocol in ["http", "grpc"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder_with(folder.path(), &format!("otlp = \"http://{address}\"\notlp_protocol = \"{protocol}\"\nsample = 1.0"));
        assert_eq!(recorder.unexported(), None);
        let (trace, active) = recorder.begin(&HeaderMap::new(), false);
        let _ = recorder.record(active, answered(trail(trace, None), Body::Empty, None), Instant::now());
        let told = async {
            loop {
                if let Some(why) = recorder.unexported() {
                    return why;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let why = tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
        assert!(why.starts_with(&format!("http://{address}: ")), "{why}");
        has(&recorder, "portcullis_telemetry_lost_total{cause=\"collector\"} 1");
        // It is back, and no request ends from here on.
        let _got = collector_on(TcpListener::bind(address).await.unwrap());
        let over = async {
            while recorder.unexported().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), over).await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_opened_is_told_with_its_place_and_path_where_nothing_may_block() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["no/such/security.log", "."] {
        let config: Config = toml::from_str(&format!("security_log = \"{path}\"")).unwrap();
        let mistakes = Recorder::new(&config, folder.path()).map(drop).unwrap_err();
        assert!(mistakes[0].span.is_some() && mistakes[0].what.contains(&folder.path().join(path).display().to_string()), "{mistakes:?}");
    }
}

#[test]
fn mistakes_are_told_together_and_unknown_keys_refused() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| Recorder::new(&toml::from_str(text).unwrap(), folder.path()).map(drop);
    let mistakes = read("otlp = \"ftp://a\"\nsample = 1.5\nsecurity_log = \"\"").unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    assert!(mistakes.iter().all(|mistake| mistake.span.is_some()));
    for bad in [
        "https://collector:4317",
        "http://user:pw@collector:4317",
        "http://collector:4317/v1/traces",
        "collector:4317",
        "http://c:4318/?k=v",
        "",
    ] {
        assert!(read(&format!("otlp = \"{bad}\"")).is_err(), "{bad}");
    }
    assert!(read("otlp_protocol = \"http\"").unwrap_err()[0].span.is_some());
    assert!(toml::from_str::<Config>("otpl = \"http://127.0.0.1:4317\"").is_err());
    assert_eq!(collector("http://c:4318", None), Ok(OtlpProtocol::Http));
    assert_eq!(collector("http://c:4317", None), Ok(OtlpProtocol::Grpc));
    assert_eq!(collector("http://c:4318", Some(OtlpProtocol::Grpc)), Ok(OtlpProtocol::Grpc));
    assert_eq!(read(""), Ok(()));
}

/// A collector written by others: `pip install rotel==0.0.1a15` brings the binary `rotel/rotel-agent`.
#[tokio::test]
#[ignore = "PORTCULLIS_TEST_ROTEL names the rotel-agent binary"]
async fn rotel_understands_what_is_sent() {
    use std::io::BufRead;
    use std::process::{Child, Command, Stdio};
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill().and_then(|()| self.0.wait());
        }
    }
    let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
    for protocol in ["grpc", "http"] {
        let (grpc, http) = (free(), free());
        let child = Command::new(std::env::var_os("PORTCULLIS_TEST_ROTEL").unwrap())
            .args(["start", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed"])
            .args(["--otlp-grpc-endpoint", &grpc.to_string(), "--otlp-http-endpoint", &http.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut rotel = Killed(child.unwrap());
        let out = std::io::BufReader::new(rotel.0.stdout.take().unwrap());
        let address = if protocol == "grpc" { grpc } else { http };
        let open = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(A_WHILE, open).await.unwrap();

        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder_with(folder.path(), &format!("otlp = \"http://{address}\"\notlp_protocol = \"{protocol}\"\nsample = 1.0"));
        let (trace, active) = recorder.begin(&HeaderMap::new(), false);
        let _ = recorder.record(active, answered(trail(trace, None), Body::Empty, None), Instant::now());
        recorder.finish(A_WHILE).await;
        assert!(!recorder.metrics().render().contains("portcullis_telemetry_lost_total{"), "the collector took it");

        let last = "portcullis.stop: Str(record)";
        let said = tokio::task::spawn_blocking(move || {
            let mut said = String::new();
            for line in out.lines() {
                said.push_str(&line.unwrap());
                said.push('\n');
                if said.contains(last) {
                    break;
                }
            }
            said
        });
        let said = tokio::time::timeout(A_WHILE, said).await.unwrap().unwrap();
        for line in [
            "Name           : POST /v1/chat/completions",
            "Name           : chat small",
            "gen_ai.provider.name: Str(portcullis)",
            "http.route: Str(/v1/chat/completions)",
            &format!("{:032x}", u128::from_be_bytes(trace.trace_id)),
        ] {
            assert!(said.contains(line), "{line} is not in\n{said}");
        }
    }
}
