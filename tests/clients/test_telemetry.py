"""rotel, a real OpenTelemetry collector, between the gateway and what reads its spans."""

import gzip
import http.server
import json
import pathlib
import socket
import subprocess
import threading

import pytest
import requests
import rotel
from cryptography import x509
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from conftest import PROMPT, TOKEN
from gate import Gate, eventually, free_port
from receipt import parts

STOPS = ["accept", "authenticate", "authorize", "budget", "check", "detect", "infer", "prove"]


class Backend(http.server.ThreadingHTTPServer):
    """Where rotel sends what it collected."""

    def __init__(self):
        self.spans, self.metrics, self.raw = [], set(), b""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(handler):
                body = handler.rfile.read(int(handler.headers["content-length"]))
                if handler.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                self.raw += body
                if handler.path.endswith("/traces"):
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        self.spans += [span for scope in resource.scope_spans for span in scope.spans]
                elif handler.path.endswith("/metrics"):
                    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                        self.metrics |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
                handler.send_response(200)
                handler.send_header("content-type", "application/x-protobuf")
                handler.send_header("content-length", "0")
                handler.end_headers()

            def log_message(handler, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def backend():
    backend = Backend()
    yield backend
    backend.shutdown()
    backend.server_close()


@pytest.fixture(scope="module")
def collector(tmp_path_factory, backend):
    """rotel's two receivers: gRPC, and HTTP with protobuf."""
    home = tmp_path_factory.mktemp("rotel")
    ports = {"grpc": free_port(), "http": free_port()}
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            [pathlib.Path(rotel.__file__).with_name("rotel-agent"), "start", "--otlp-grpc-endpoint", f"127.0.0.1:{ports['grpc']}",
             "--otlp-http-endpoint", f"127.0.0.1:{ports['http']}", "--exporter", "otlp", "--otlp-exporter-protocol", "http",
             "--otlp-exporter-endpoint", "http://127.0.0.1:%d" % backend.server_address[1], "--batch-timeout", "200ms"],
            stdout=log, stderr=log, cwd=home)

    def listens():
        assert process.poll() is None, f"rotel did not start:\n{(home / 'log').read_text()}"
        try:
            requests.get(f"http://127.0.0.1:{ports['http']}/", timeout=1)
            return True
        except requests.RequestException:
            return False

    eventually(listens, 20)
    yield ports
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module", params=["grpc", "http"])
def traced(request, tmp_path_factory, collector, scripted):
    record = f'otlp = "http://127.0.0.1:{collector[request.param]}"\notlp_protocol = "{request.param}"\nsample = 1.0'
    gate = Gate(tmp_path_factory.mktemp("traced"), record=record)
    gate.app = gate.key("app")
    gate.digits()
    gate.upstream("scripted", "openai", scripted.url, model="theirs")
    gate.upstream("nobody", "openai", f"http://127.0.0.1:{free_port()}")
    gate.start()
    yield gate
    assert gate.stop() == 0, gate.said()


def ask(gate, body, **headers):
    headers["authorization"] = f"Bearer {gate.app}"
    return requests.post(gate.url + "/v1/chat/completions", json=body, headers=headers, verify=gate.ca, timeout=10)


def attributes(span):
    return {pair.key: pair.value.string_value or pair.value.int_value or pair.value.double_value or pair.value.bool_value
            for pair in span.attributes}


def stops(spans):
    """The stops that spans tell of, in the order in which they began."""
    return [attributes(span)["portcullis.stop"] for span in sorted(spans, key=lambda span: span.start_time_unix_nano)]


def trace_of(backend, trace_id):
    """The server span and its children, once all are there."""
    spans = [span for span in backend.spans if span.trace_id.hex() == trace_id]
    roots = [span for span in spans if span.kind == 2]
    return (roots[0], [span for span in spans if span.parent_span_id == roots[0].span_id]) if roots else None


def test_a_request_is_one_server_span_with_a_child_per_stop(traced, backend, scripted):
    strange = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    body = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]}
    answer = ask(traced, body, traceparent=strange)
    assert answer.status_code == 200
    version, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
    assert (version, flags) == ("00", "01") and trace_id != strange.split("-")[1], "a stranger's trace is not continued"
    root, children = eventually(lambda: trace_of(backend, trace_id), 15)
    assert root.span_id.hex() == span_id and root.parent_span_id == b""
    assert stops(children) == STOPS and "chat scripted" in [span.name for span in children]
    [call] = [span for span in children if span.name == "chat scripted"]
    assert scripted.requests[-1]["headers"]["traceparent"] == f"00-{trace_id}-{call.span_id.hex()}-01", "a model server goes on from its call"
    told = attributes(root)
    assert told["http.request.method"] == "POST" and told["http.route"] == "/v1/chat/completions"
    assert told["http.response.status_code"] == 200 and told["gen_ai.request.model"] == "scripted"
    assert told["gen_ai.usage.input_tokens"] == 7 and told["gen_ai.usage.output_tokens"] == 3
    assert told["portcullis.receipt.id"] == parts(answer.headers["provenance-receipt"])["id"]
    assert [link.trace_id.hex() for link in root.links] in ([], [strange.split("-")[1]])


def test_a_stream_is_told_when_it_has_ended(traced, backend):
    body = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    answer = ask(traced, body)
    assert answer.content.endswith(b"data: [DONE]\n\n")
    root, _ = eventually(lambda: trace_of(backend, answer.headers["traceparent"].split("-")[1]), 15)
    assert attributes(root)["gen_ai.usage.output_tokens"] == 3


def test_a_refusal_is_told_with_its_code(traced, backend):
    answer = ask(traced, {"model": "no-such", "messages": [{"role": "user", "content": PROMPT}]})
    root, children = eventually(lambda: trace_of(backend, answer.headers["traceparent"].split("-")[1]), 15)
    assert attributes(root)["error.type"] == "authorize.denied"
    assert "authorize" in stops(children) and "infer" not in stops(children)


def test_what_the_gateway_needs_of_others_is_measured(traced, scripted):
    def told():
        families = text_string_to_metric_families(traced.admin("/metrics")[1])
        return {(sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples}

    assert ask(traced, {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]}).status_code == 200
    server = x509.load_pem_x509_certificate((traced.policies / "tls/server.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((traced.policies / "tls/ca.pem").read_bytes())
    ends = min(server.not_valid_after_utc, authority.not_valid_after_utc).timestamp()
    at, before = sorted(["", "scripted", scripted.url]), told()
    assert before["portcullis_certificate_expiry_timestamp_seconds", "accept"] == ends
    assert before["portcullis_upstream_up", *at] == 1 and before["portcullis_upstream_requests_in_flight", *at] == 0
    assert before["portcullis_upstream_connections_total", *at] >= before["portcullis_upstream_idle_connections", *at] >= 1
    assert [value for key, value in before.items() if key[0] == "portcullis_model_queue_depth" and "digits" in key] == [0]
    [nobody] = [key for key in before if key[0] == "portcullis_upstream_up" and "nobody" in key]
    assert before[nobody] == 1, "nobody has asked it yet"

    def ejected():
        assert ask(traced, {"model": "nobody", "messages": [{"role": "user", "content": PROMPT}]}).status_code == 503
        return told()[nobody] == 0

    eventually(ejected)
    failed = sorted(key[1:] for key in before if key[0] == "portcullis_handshakes_failed_total")
    assert failed == [("accept", why) for why in ("broken", "certificate", "refused", "slow")], "the operators' listener has no TLS here"
    with socket.create_connection(("127.0.0.1", traced.port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        while plain.recv(4096):
            pass
    refused = ("portcullis_handshakes_failed_total", "accept", "refused")
    eventually(lambda: told()[refused] == before[refused] + 1)
    assert told()["portcullis_upstream_up", *at] == 1


def test_metrics_are_pushed_when_the_gateway_stops_at_the_latest_and_hold_no_secret(traced, backend):
    ask(traced, {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]})
    scraped = traced.admin("/metrics")[1]
    assert list(text_string_to_metric_families(scraped)), "what Prometheus itself would read"
    assert traced.stop() == 0
    eventually(lambda: "http.server.request.duration" in backend.metrics, 15)
    for secret in (PROMPT, TOKEN, *traced.secrets):
        assert secret.encode() not in backend.raw and secret not in scraped
