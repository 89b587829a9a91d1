"""MLServer with scikit-learn's runtime, as an upstream of the protocols `oip` and `oip-grpc`."""

import concurrent.futures
import json
import pathlib
import subprocess
import sys

import joblib
import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from tritonclient.utils import InferenceServerException

from gate import eventually, free_port
from receipt import verify

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def model():
    return LogisticRegression(max_iter=500).fit(X, Y)


@pytest.fixture(scope="module", autouse=True)
def mlserver(tmp_path_factory, mlserver_port, mlserver_grpc_port, model):
    home = tmp_path_factory.mktemp("mlserver")
    joblib.dump(model, home / "model.joblib")
    settings = {"http_port": mlserver_port, "grpc_port": mlserver_grpc_port, "metrics_port": free_port(), "host": "127.0.0.1",
                "parallel_workers": 0, "metrics_dir": str(home)}
    (home / "settings.json").write_text(json.dumps(settings))
    named = {"name": "iris-theirs", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "./model.joblib", "version": "v1"}}
    (home / "model-settings.json").write_text(json.dumps(named))
    with open(home / "log", "w") as log:
        command = [pathlib.Path(sys.executable).with_name("mlserver"), "start", home]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)

    def ready():
        assert process.poll() is None, f"MLServer did not start:\n{(home / 'log').read_text()}"
        try:
            return requests.get(f"http://127.0.0.1:{mlserver_port}/v2/models/iris-theirs/ready", timeout=1).ok
        except requests.RequestException:
            return False

    eventually(ready, 60)
    yield
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def triton(gate):
    client = tritonclient.http.InferenceServerClient(
        gate.authority, ssl=True, ssl_options={"ca_certs": gate.ca, "server_hostname": "127.0.0.1"})
    yield client
    client.close()


@pytest.fixture
def web(gate):
    with requests.Session() as session:
        session.verify, session.headers["authorization"], session.trust_env = gate.ca, f"Bearer {gate.app}", False
        yield session


def test_json_through_the_gate(gate, web, model):
    body = {"inputs": [{"name": "predict", "shape": [3, 4], "datatype": "FP32", "data": X[:3].ravel().tolist()}]}
    answer = web.post(gate.url + "/v2/models/iris/infer", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["model_name"] == "iris"
    assert np.ravel(told["outputs"][0]["data"]).tolist() == model.predict(X[:3]).tolist()
    _, payload, _ = verify(answer.headers, answer.content, gate.log)
    assert payload[9][1] == "iris" and payload[9][5] == "upstream-asserted"


def test_tritonclient_through_the_gate(gate, triton, model):
    """JSON alone: with the FastAPI that its own pins allow, MLServer 1.7.1 answers 422 to binary tensors over HTTP, gate or no gate."""
    binary = False
    headers = {"authorization": f"Bearer {gate.app}"}
    given = tritonclient.http.InferInput("predict", [5, 4], "FP64")
    given.set_data_from_numpy(X[60:65], binary_data=binary)
    outputs = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in ("predict", "predict_proba")]
    answer = triton.infer("iris", [given], outputs=outputs, headers=headers)
    assert answer.as_numpy("predict").ravel().tolist() == model.predict(X[60:65]).tolist()
    np.testing.assert_allclose(answer.as_numpy("predict_proba"), model.predict_proba(X[60:65]))


def test_metadata_and_ready_through_the_gate(gate, triton):
    headers = {"authorization": f"Bearer {gate.app}"}
    assert triton.is_model_ready("iris", headers=headers)
    assert triton.get_model_metadata("iris", headers=headers)["name"] == "iris"
    theirs = {"authorization": f"Bearer {gate.other}"}
    assert not triton.is_model_ready("iris", headers=theirs)


def test_what_the_server_refuses_is_the_callers_to_mend(gate, web):
    body = {"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": X[0].tolist()}], "outputs": [{"name": "no-such"}]}
    answer = web.post(gate.url + "/v2/models/iris/infer", json=body)
    assert answer.status_code in (400, 502) and "error" in answer.json()
    wrong = {"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": X[0][:3].tolist()}]}
    assert web.post(gate.url + "/v2/models/iris/infer", json=wrong).status_code == 400


def test_a_server_that_reads_by_place_is_asked_for_no_tensor_by_another_name(gate, web):
    """Scikit-learn's runtime takes one tensor, whatever it is called."""
    fitting, far, fine = X[:2], numbers(1e6), numbers(1 / 3)
    for rows, names, reason in [
        (fitting, ["predict"], None), (far, ["predict"], "check.range"), (fine, ["predict"], "check.step"),
        (far, ["anything"], "check.tensor_name"), (fine, ["anything"], "check.tensor_name"),
        (fitting, ["predict", "more"], "check.tensor_name"), (fitting, ["predict", "predict"], "check.shape"),
    ]:
        inputs = [{"name": name, "shape": [2, 4], "datatype": "FP64", "data": rows.ravel().tolist()} for name in names]
        answer = web.post(gate.url + "/v2/models/iris-held/infer", json={"inputs": inputs})
        told = (answer.status_code, answer.headers.get("portcullis-reason"))
        assert told == ((400, reason) if reason else (200, None)), (names, answer.text)
        # Where the policy says nothing of names, any one passes.
        bare = web.post(gate.url + "/v2/models/iris/infer", json={"inputs": inputs})
        assert bare.status_code == (200 if len(names) == 1 else 400), (names, bare.text)


def numbers(value):
    return np.full((2, 4), value)


CLIENTS = ["http-json", "http-binary", "grpc"]


class Client:
    """`tritonclient` of one kind, with a credential."""

    def __init__(self, gate, kind):
        self.over_grpc, self.headers = kind == "grpc", {"authorization": f"Bearer {gate.app}"}
        self.kind = tritonclient.grpc if self.over_grpc else tritonclient.http
        self.how = {} if self.over_grpc else {"binary_data": kind == "http-binary"}
        tls = {"root_certificates": gate.ca} if self.over_grpc else {
            "ssl_options": {"ca_certs": gate.ca, "server_hostname": "127.0.0.1"}, "concurrency": 8}
        self.client = self.kind.InferenceServerClient(gate.authority, ssl=True, **tls)

    def infer(self, model, rows, datatype="FP64", version="", name="predict", outputs=("predict", "predict_proba"), **how):
        given = self.kind.InferInput(name, list(rows.shape), datatype)
        given.set_data_from_numpy(rows, **self.how)
        outputs = [self.kind.InferRequestedOutput(output, **self.how) for output in outputs]
        return self.client.infer(model, [given], version, outputs=outputs, headers=self.headers, **how)

    def metadata(self, model, version=""):
        told = self.client.get_model_metadata(model, version, headers=self.headers, **({"as_json": True} if self.over_grpc else {}))
        return told["name"], told["versions"]

    def ready(self, model, version=""):
        return self.client.is_model_ready(model, version, headers=self.headers)

    def told(self, answer):
        told = answer.get_response()
        return (told.model_name, told.model_version, told.id) if self.over_grpc else (told["model_name"], told["model_version"], told.get("id"))


@pytest.fixture(scope="module", params=CLIENTS)
def client(request, gate):
    made = Client(gate, request.param)
    yield made
    made.client.close()


@pytest.mark.parametrize("rows", [1, 5, 150])
def test_tritonclient_through_the_gate_to_grpc(client, model, rows):
    answer = client.infer("iris-called", X[:rows], request_id="canary-id")
    assert client.told(answer) == ("iris-called", "2024", "canary-id")
    assert answer.as_numpy("predict").ravel().tolist() == model.predict(X[:rows]).tolist()
    np.testing.assert_allclose(answer.as_numpy("predict_proba"), model.predict_proba(X[:rows]))


def named(call):
    """The status of a refusal."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status()


@pytest.mark.parametrize(("name", "kinds"), [("iris-called", CLIENTS), ("iris-2024", CLIENTS[:1])])
def test_what_a_client_is_told_of_versions_may_be_named(gate, model, name, kinds):
    """The server's own version is `v1`: over both protocols nobody hears of it, and nobody can name it."""
    for kind in kinds:
        client = Client(gate, kind)
        assert client.metadata(name) == client.metadata(name, "2024") == (name, ["2024"])
        assert client.ready(name) and client.ready(name, "2024")
        for version in ("", "2024"):
            answer = client.infer(name, X[:2], version=version)
            assert client.told(answer)[:2] == (name, "2024")
            assert answer.as_numpy("predict").ravel().tolist() == model.predict(X[:2]).tolist()
        missing = "StatusCode.NOT_FOUND" if client.over_grpc else "404"
        assert named(lambda: client.infer(name, X[:2], version="v1")) == missing
        client.client.close()


def test_what_the_grpc_server_refuses_is_the_callers_to_mend(client):
    with pytest.raises(InferenceServerException) as caught:
        client.infer("iris-called", X[:1], outputs=("no-such",))
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT"), caught.value
    assert "no-such" in caught.value.message() and "iris-theirs" not in caught.value.message()
    # Of rows that are too short scikit-learn's words come as INTERNAL, where they are 400 over HTTP: as if the server had failed.
    assert named(lambda: client.infer("iris-called", X[:1, :3].copy())) in ("502", "StatusCode.UNAVAILABLE")


def test_the_statement_of_a_call_says_who_answered(gate, web):
    body = {"inputs": [{"name": "predict", "shape": [3, 4], "datatype": "FP32", "data": X[:3].ravel().tolist()}]}
    answer = web.post(gate.url + "/v2/models/iris-called/infer", json=body)
    assert answer.status_code == 200, answer.text
    _, payload, _ = verify(answer.headers, answer.content, gate.log)
    assert payload[9][1] == "iris-called" and payload[9][5] == "upstream-asserted"


def test_many_calls_at_once_share_a_connection_to_the_server(gate, client, model):
    """And the server's health is asked over it."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda at: client.infer("iris-called", X[at : at + 1]).as_numpy("predict").item(), range(64)):
            assert answer in (0, 1, 2)


def test_a_message_that_is_too_long_for_the_server_is_the_callers(gate, client):
    """The gateway lets 8 MiB pass; gRPC servers take 4 unless they are told otherwise, and say RESOURCE_EXHAUSTED, as if they had too much to do."""
    if client.how.get("binary_data", True):
        rows = np.zeros((150_000, 4))
        assert named(lambda: client.infer("iris-called", rows)) in ("413", "StatusCode.INVALID_ARGUMENT")
    assert client.ready("iris-called")
