"""MLServer with scikit-learn's runtime, as an upstream of protocol `oip`."""

import json
import pathlib
import subprocess
import sys

import joblib
import numpy as np
import pytest
import requests
import tritonclient.http
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from gate import eventually, free_port
from receipt import verify

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def model():
    return LogisticRegression(max_iter=500).fit(X, Y)


@pytest.fixture(scope="module", autouse=True)
def mlserver(tmp_path_factory, mlserver_port, model):
    home = tmp_path_factory.mktemp("mlserver")
    joblib.dump(model, home / "model.joblib")
    settings = {"http_port": mlserver_port, "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1",
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
