"""`tritonclient`, unmodified, over HTTP and gRPC with TLS, against the classifier in the gateway's own process."""

import json
import pathlib
import queue
import ssl

import grpc
import httpx
import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from gate import ROOT, eventually
from receipt import keys, open_statement, parts

SAMPLES = json.loads((ROOT / "tests/data/digits.json").read_text())["samples"]
DIGITS = np.array([sample["input"] for sample in SAMPLES], dtype=np.float32)
LABELS = [sample["label"] for sample in SAMPLES]
PROBABILITIES = np.array([sample["probabilities"] for sample in SAMPLES])


class Http:
    """`tritonclient.http`."""

    def __init__(self, gate, key, binary):
        self.kind, self.binary = tritonclient.http, binary
        self.client = tritonclient.http.InferenceServerClient(
            gate.authority, ssl=True, ssl_options={"ca_certs": gate.ca, "server_hostname": "127.0.0.1"})
        self.headers = {"authorization": f"Bearer {key}"}

    def input(self, data, name="input", datatype="FP32", shape=None):
        given = self.kind.InferInput(name, shape or list(data.shape), datatype)
        given.set_data_from_numpy(data, binary_data=self.binary)
        return given

    def outputs(self, *names):
        return [self.kind.InferRequestedOutput(name, binary_data=self.binary) for name in names] or None

    refused = staticmethod(lambda error, http, _grpc: error.status() == str(http))


class Grpc:
    """`tritonclient.grpc`."""

    def __init__(self, gate, key):
        self.kind = tritonclient.grpc
        self.client = tritonclient.grpc.InferenceServerClient(gate.authority, ssl=True, root_certificates=gate.ca)
        self.headers = {"authorization": f"Bearer {key}"}

    def input(self, data, name="input", datatype="FP32", shape=None):
        given = self.kind.InferInput(name, shape or list(data.shape), datatype)
        given.set_data_from_numpy(data)
        return given

    def outputs(self, *names):
        return [self.kind.InferRequestedOutput(name) for name in names] or None

    refused = staticmethod(lambda error, _http, code: error.status() == f"StatusCode.{code}")


@pytest.fixture(scope="module", params=["http-json", "http-binary", "grpc"])
def triton(request, gate):
    made = Grpc(gate, gate.app) if request.param == "grpc" else Http(gate, gate.app, request.param == "http-binary")
    yield made
    made.client.close()


def infer(triton, *inputs, model="digits", outputs=(), headers=None, **how):
    return triton.client.infer(model, list(inputs), outputs=triton.outputs(*outputs), headers=headers or triton.headers, **how)


def test_the_server_and_the_model_are_live_and_ready(triton):
    client, headers = triton.client, triton.headers
    assert client.is_server_live(headers=headers) and client.is_server_ready(headers=headers)
    assert client.is_model_ready("digits", headers=headers) and client.is_model_ready("digits", "1", headers=headers)


def test_metadata_of_server_and_model(triton):
    server = triton.client.get_server_metadata(headers=triton.headers)
    model = triton.client.get_model_metadata("digits", headers=triton.headers)
    if isinstance(triton, Grpc):
        assert server.name and server.version
        ports = lambda ports: [(port.name, port.datatype, list(port.shape)) for port in ports]
        found = model.name, list(model.versions), ports(model.inputs), ports(model.outputs)
    else:
        assert server["name"] and server["version"]
        ports = lambda ports: [(port["name"], port["datatype"], port["shape"]) for port in ports]
        found = model["name"], model["versions"], ports(model["inputs"]), ports(model["outputs"])
    outputs = [("probabilities", "FP32", [-1, 10]), ("label", "INT64", [-1])]
    assert found == ("digits", ["1"], [("input", "FP32", [-1, 64])], outputs)


@pytest.mark.parametrize("rows", [1, 2, len(SAMPLES[:32])])
def test_a_batch_is_classified(triton, rows):
    answer = infer(triton, triton.input(DIGITS[:rows]), outputs=("probabilities", "label"), request_id="canary-id")
    assert answer.as_numpy("label").tolist() == LABELS[:rows]
    np.testing.assert_allclose(answer.as_numpy("probabilities"), PROBABILITIES[:rows], atol=1e-5)
    told = answer.get_response()
    name, version, request = (told.model_name, told.model_version, told.id) if isinstance(triton, Grpc) else (
        told["model_name"], told["model_version"], told["id"])
    assert (name, version, request) == ("digits", "1", "canary-id")


def test_only_the_outputs_that_are_asked_for_come(triton):
    answer = infer(triton, triton.input(DIGITS[:1]), outputs=("label",))
    assert answer.as_numpy("label").tolist() == LABELS[:1] and answer.as_numpy("probabilities") is None


def test_without_outputs_named_all_come(triton):
    answer = infer(triton, triton.input(DIGITS[:2]), model_version="1")
    assert answer.as_numpy("label").tolist() == LABELS[:2] and answer.as_numpy("probabilities").shape == (2, 10)


BAD = {
    "another shape": lambda t: [t.input(DIGITS[:1, :63].copy())],
    "another rank": lambda t: [t.input(DIGITS[0])],
    "another datatype": lambda t: [t.input(DIGITS[:1].astype(np.float64), datatype="FP64")],
    "an unknown name": lambda t: [t.input(DIGITS[:1], name="inputs")],
    "a tensor twice": lambda t: [t.input(DIGITS[:1]), t.input(DIGITS[:1])],
    "a tensor too many": lambda t: [t.input(DIGITS[:1]), t.input(DIGITS[:1], name="more")],
    "a number out of range": lambda t: [t.input(np.full((1, 64), 16.5, np.float32))],
    "a batch too long": lambda t: [t.input(np.zeros((33, 64), np.float32))],
    "no batch": lambda t: [t.input(np.zeros((0, 64), np.float32))],
    "NaN": lambda t: [t.input(np.full((1, 64), np.nan, np.float32))],
    "infinity": lambda t: [t.input(np.full((1, 64), np.inf, np.float32))],
}


@pytest.mark.parametrize("what", BAD)
def test_input_that_does_not_fit_is_refused(triton, what):
    try:
        inputs = BAD[what](triton)
    except InferenceServerException:
        pytest.fail("the client itself refuses this, so it shows nothing")
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, *inputs)
    assert triton.refused(caught.value, 400, "INVALID_ARGUMENT"), caught.value
    told = caught.value.message()
    # JSON has no NaN: the place is a byte then.
    assert "16.5" not in told and ("/inputs" in told or "at byte" in told)


def test_an_output_that_the_model_does_not_have_is_refused(triton):
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, triton.input(DIGITS[:1]), outputs=("logits",))
    assert triton.refused(caught.value, 400, "INVALID_ARGUMENT"), caught.value


@pytest.mark.parametrize(("model", "version"), [("no-such", ""), ("digits", "2"), ("iris-theirs", "")])
def test_models_and_versions_that_are_not_there(triton, model, version):
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, triton.input(DIGITS[:1]), model=model, model_version=version)
    assert triton.refused(caught.value, 404, "NOT_FOUND"), caught.value
    if isinstance(triton, Http):
        assert not triton.client.is_model_ready(model, version, headers=triton.headers)
    else:
        with pytest.raises(InferenceServerException):
            triton.client.is_model_ready(model, version, headers=triton.headers)


def test_without_a_credential_nothing_is_told(triton):
    for key in (None, "Bearer nonsense"):
        headers = {"authorization": key} if key else {"x-nothing": "here"}
        with pytest.raises(InferenceServerException) as caught:
            infer(triton, triton.input(DIGITS[:1]), headers=headers)
        assert triton.refused(caught.value, 401, "UNAUTHENTICATED"), caught.value
        with pytest.raises(InferenceServerException):
            triton.client.get_model_metadata("digits", headers=headers)


def test_grpc_metadata_carries_the_receipt_and_the_statement(gate):
    with open(gate.ca, "rb") as ca:
        channel = grpc.secure_channel(gate.authority, grpc.ssl_channel_credentials(ca.read()))
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    given = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[DIGITS[:1].tobytes()])
    given.inputs.add(name="input", datatype="FP32", shape=[1, 64])
    who = (("authorization", f"Bearer {gate.app}"),)
    answer, call = stub.ModelInfer.with_call(given, metadata=who, timeout=10)
    assert np.frombuffer(answer.raw_output_contents[1], np.int64).tolist() == LABELS[:1]
    receipt = parts(dict(call.initial_metadata())["provenance-receipt"])
    trailers = dict(call.trailing_metadata())
    claims, payload = open_statement(trailers["provenance-statement-bin"], keys(gate.log))
    assert claims[2] == f"urn:portcullis:r:{receipt['id']}" and payload[9][1] == "digits"
    assert receipt["state"] == "promised"
    _, call = stub.ModelInfer.with_call(given, metadata=(*who, ("provenance-want", "mode=durable")), timeout=10)
    assert parts(dict(call.initial_metadata())["provenance-receipt"])["state"] == "durable"

    given.model_name = "no-such"

    def refused_with_a_receipt():
        """Refusals of what nobody may ask for leave at most 20 receipts a second and address; other tests took some."""
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(given, metadata=who, timeout=10)
        told = dict(caught.value.initial_metadata()) | dict(caught.value.trailing_metadata())
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND and told["portcullis-reason"] == "authorize.denied"
        return told.get("provenance-statement-bin")

    _, payload = open_statement(eventually(refused_with_a_receipt, every=0.3), keys(gate.log))
    assert payload[2] == 2 and payload[8][7] == "authorize.denied"

    # Any other method of the service.
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="digits"), metadata=who, timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    channel.close()


def test_a_refusal_is_heard_by_who_sends_a_picture(gate):
    """602,112 bytes, one picture of 224 times 224 points in FP32, of which nothing is read: every client hears why, and none sees a reset."""
    picture, headers = b"\0" * 602_112, {"authorization": f"Bearer {gate.app}", "content-type": "application/json"}
    url = f"{gate.url}/v2/models/no-such/infer"
    with requests.Session() as session, httpx.Client(http2=True, verify=ssl.create_default_context(cafile=gate.ca), timeout=20) as over_http2:
        for _ in range(10):
            assert requests.post(url, data=picture, headers=headers, verify=gate.ca, timeout=20).status_code == 404
            assert session.post(url, data=picture, headers=headers, verify=gate.ca, timeout=20).status_code == 404
            assert over_http2.post(url, content=picture, headers=headers).status_code == 404


def test_a_grpc_channel_stays_open_over_many_calls(gate):
    """None of them is taken for one that its caller gave up, of which a connection is forgiven 32."""
    connected = []

    def connections():
        """The client's ends, of those that are open."""
        there = f":{int(gate.authority.rpartition(':')[2]):04X}"
        tables = (pathlib.Path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6"))
        lines = [line.split() for table in tables for line in table.splitlines()[1:]]
        return {line[1] for line in lines if line[2].endswith(there) and line[3] == "01"}

    before = connections()
    triton = Grpc(gate, gate.app)
    for _ in range(100):
        infer(triton, triton.input(DIGITS[:1]))
        connected.append(connections() - before)
    triton.client.close()
    assert len(set().union(*connected)) == 1, connected


def test_a_want_that_is_none_is_refused(triton):
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, triton.input(DIGITS[:1]), headers=triton.headers | {"provenance-want": "mode=never"})
    assert triton.refused(caught.value, 400, "INVALID_ARGUMENT"), caught.value
    assert "Provenance-Want" in caught.value.message()


def test_grpc_asynchronously_many_at_once(gate):
    triton = Grpc(gate, gate.app)
    answers = queue.Queue()
    for row in range(24):
        inputs = [triton.input(DIGITS[row % 8 : row % 8 + 1])]
        triton.client.async_infer("digits", inputs, lambda result, error, row=row: answers.put((row, result, error)),
                                  headers=triton.headers)
    for _ in range(24):
        row, result, error = answers.get(timeout=20)
        assert error is None and result.as_numpy("label").tolist() == [LABELS[row % 8]]
    triton.client.close()


@pytest.mark.parametrize("model", ["behind", "behind-called"])
@pytest.mark.parametrize("binary", [False, True])
def test_a_gateway_behind_the_gateway_over_tls(gate, binary, model):
    """An upstream of protocol `oip` that takes binary tensors, and one of `oip-grpc`, over TLS: the same gateway once more."""
    triton = Http(gate, gate.app, binary)
    answer = infer(triton, triton.input(DIGITS[:4]), model=model, outputs=("label", "probabilities"), request_id="7")
    assert answer.as_numpy("label").tolist() == LABELS[:4] and answer.get_response()["model_name"] == model
    np.testing.assert_allclose(answer.as_numpy("probabilities"), PROBABILITIES[:4], atol=1e-5)
    with pytest.raises(InferenceServerException) as caught:
        infer(triton, triton.input(DIGITS[:1, :63].copy()), model=model)
    assert caught.value.status() == "400"
    triton.client.close()
