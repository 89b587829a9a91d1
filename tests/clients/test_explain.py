"""Explanations by the unmodified Triton clients, held against the ones of the `shap` package and against Shapley values by their definition, over the
model's weights in float64 numpy."""

import hashlib
import itertools
import json
import math
import shutil
import ssl

import httpx
import numpy
import pytest
import shap
import tritonclient.grpc
import tritonclient.http

import gate as gates

DATA = gates.ROOT / "tests/data"
TABLE = json.loads((DATA / "tabular.json").read_text())
WEIGHTS = [numpy.array(weights) for weights in TABLE["weights"]]
BACKGROUND, ROWS = numpy.array(TABLE["background"]), numpy.array(TABLE["rows"])
SAMPLES = 256
WALKED = {"explain": "permutation_shap", "explain_samples": SAMPLES, "explain_output": "risk"}


def risk(rows):
    """The model in float64."""
    w1, b1, w2, b2 = WEIGHTS
    z = numpy.tanh(rows @ w1 + b1) @ w2 + b2
    e = numpy.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def value(row, known):
    mixed = BACKGROUND.copy()
    mixed[:, list(known)] = row[list(known)]
    return risk(mixed).mean(axis=0)


def by_definition(row):
    n = len(row)
    shares = numpy.zeros((n, 3))
    for feature in range(n):
        others = [other for other in range(n) if other != feature]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for known in itertools.combinations(others, size):
                shares[feature] += weight * (value(row, (*known, feature)) - value(row, known))
    return shares


def tensors(rows):
    age = {"name": "age", "datatype": "INT64", "shape": [len(rows), 1], "data": [int(row[0]) for row in rows]}
    rest = {"name": "rest", "datatype": "FP32", "shape": [len(rows), 5], "data": [float(v) for row in rows for v in row[1:]]}
    return [age, rest]


def background(gate, name, inputs):
    text = json.dumps({"inputs": inputs})
    (gate.policies / f"models/{name}.background.json").write_text(text)
    return f'background = "{name}.background.json"\nsha256 = "{hashlib.sha256(text.encode()).hexdigest()}"'


def tabular(gate, name, explain, budget='{ rate = "100000/s", burst = 100000 }', more=""):
    shutil.copy(DATA / "tabular.onnx", gate.policies / "models/tabular.onnx")
    digest = hashlib.sha256((DATA / "tabular.onnx").read_bytes()).hexdigest()
    gate.write(f"models/{name}.toml", f"""
name = "{name}"
version = "1"
public = true
[backend.onnx]
path = "tabular.onnx"
sha256 = "{digest}"
[budget.default]
requests = {budget}
{explain}
{more}
""")


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    gate = gates.Gate(tmp_path_factory.mktemp("explain"))
    named = background(gate, "table", tensors(TABLE["background"]))
    tabular(gate, "table", f"[explain]\n{named}\nmax_samples = {SAMPLES}\nmax_rows = 4")
    tabular(gate, "silent", "")
    tabular(gate, "rounded", f"[explain]\n{named}", more="[answer]\ndecimals = 1")
    # One explanation of a row asks for 12 + 2 × 2 × 5 × 12 rows, which are 4 requests of 64, beside the request itself.
    tabular(gate, "metered", f"[explain]\n{named}\nmax_samples = 2", budget='{ rate = "1/day", burst = 11 }')
    digits = json.loads((DATA / "digits.json").read_text())["samples"]
    pixels = {"name": "input", "datatype": "FP32", "shape": [8, 64], "data": [v for sample in digits[:8] for v in sample["input"]]}
    gate.digits(more="[explain]\n" + background(gate, "digits", [pixels]))
    gate.secret, gate.other = gate.key("tester"), gate.key("other")
    gate.start()
    yield gate
    assert gate.stop() == 0


@pytest.fixture(scope="module")
def http(gate):
    client = httpx.Client(verify=ssl.create_default_context(cafile=gate.ca), headers={"authorization": f"Bearer {gate.secret}"}, timeout=60)
    yield client
    client.close()


def ask(http, gate, rows, parameters, model="table", **more):
    return http.post(f"{gate.url}/v2/models/{model}/infer", json={"inputs": tensors(rows), "parameters": parameters, **more})


def read(answer):
    assert answer.status_code == 200, answer.text
    return {tensor["name"]: numpy.array(tensor["data"]).reshape(tensor["shape"]) for tensor in answer.json()["outputs"]}


def joined(explained):
    return numpy.concatenate([explained["explain.values.age"], explained["explain.values.rest"]], axis=1)


def infer(gate, kind, parameters, outputs=None):
    """The same over each of the Triton clients."""
    headers = {"authorization": f"Bearer {gate.secret}"}
    if kind is tritonclient.grpc:
        client = kind.InferenceServerClient(gate.authority, ssl=True, root_certificates=gate.ca)
    else:
        options = {"ca_certs": gate.ca, "server_hostname": "127.0.0.1"}
        client = kind.InferenceServerClient(gate.authority, ssl=True, ssl_options=options)
    age, rest = kind.InferInput("age", [4, 1], "INT64"), kind.InferInput("rest", [4, 5], "FP32")
    age.set_data_from_numpy(ROWS[:, :1].astype(numpy.int64))
    rest.set_data_from_numpy(ROWS[:, 1:].astype(numpy.float32))
    wanted = [kind.InferRequestedOutput(name) for name in outputs] if outputs else None
    answer = client.infer("table", [rest, age], outputs=wanted, headers=headers, parameters=parameters)
    client.close()
    names = ("risk", "logits", "explain.base", "explain.values.age", "explain.values.rest")
    return {name: answer.as_numpy(name) for name in names if answer.as_numpy(name) is not None}


def test_attributions_are_shapley_values_by_definition_and_as_shap_has_them(gate, http):
    explained = read(ask(http, gate, ROWS, WALKED))
    assert explained["explain.base"].shape == (1, 3) and joined(explained).shape == (4, 6, 3)
    assert abs(explained["explain.base"][0] - risk(BACKGROUND).mean(axis=0)).max() < 1e-6
    mine = joined(explained)
    definition = numpy.stack([by_definition(row) for row in ROWS])
    masker = shap.maskers.Independent(BACKGROUND, max_samples=len(BACKGROUND))
    exact = shap.ExactExplainer(risk, masker)(ROWS)
    assert abs(exact.values - definition).max() < 1e-6, "the two references are the same"
    assert abs(exact.base_values[0] - explained["explain.base"][0]).max() < 1e-6
    sampled = shap.PermutationExplainer(risk, masker, seed=1)(ROWS, max_evals=SAMPLES * (2 * 6 + 1), silent=True).values
    # Both draw permutations; over as many of them ours may not be further from the definition than theirs, but for luck.
    error, theirs = abs(mine - definition).max(), abs(sampled - definition).max()
    assert error < max(0.01, 2 * theirs), (error, theirs)
    assert abs(definition).max() > 0.1, "there is something to explain"


def test_the_base_and_the_attributions_sum_to_the_answer(gate, http):
    for parameters in (WALKED, {"explain": "permutation_shap", "explain_output": "logits"}, {**WALKED, "explain_samples": 1}):
        explained = read(ask(http, gate, ROWS, parameters))
        sums = explained["explain.base"] + joined(explained).sum(axis=1)
        assert abs(sums - explained[parameters["explain_output"]]).max() < 1e-6


def test_digits_are_explained_pixel_by_pixel(gate, http):
    sample = json.loads((DATA / "digits.json").read_text())["samples"][20]
    pixels = {"name": "input", "datatype": "FP32", "shape": [1, 64], "data": sample["input"]}
    body = {"inputs": [pixels], "parameters": {"explain": "permutation_shap", "explain_samples": 2}}
    explained = read(http.post(f"{gate.url}/v2/models/digits/infer", json=body))
    values = explained["explain.values.input"]
    assert values.shape == (1, 64, 10)
    assert abs(explained["explain.base"] + values.sum(axis=1) - explained["probabilities"]).max() < 1e-6
    # Pixels that the row and all of the background have alike change nothing.
    digits = json.loads((DATA / "digits.json").read_text())["samples"]
    same = [at for at in range(64) if all(other["input"][at] == sample["input"][at] for other in digits[:8])]
    assert same and abs(values[0, same]).max() < 1e-6 < abs(values).max()


@pytest.mark.parametrize("kind", [tritonclient.http, tritonclient.grpc])
def test_equal_questions_have_equal_answers_in_every_encoding_alone_and_together(gate, http, kind):
    parameters = {**WALKED, "explain_samples": 3}
    plain = read(ask(http, gate, ROWS, parameters))
    other = infer(gate, kind, parameters)
    # A float of 32 bits is written with as many digits as tell it from its neighbours, and read back with more bits than it had.
    apart = {name: abs(plain[name] - other[name]).max() for name in plain}
    assert all(apart[name] < (1e-9 if name.startswith("explain.") else 1e-6) for name in plain), apart
    alone = joined(read(ask(http, gate, ROWS[1:2], parameters)))[0]
    assert abs(alone - joined(plain)[1]).max() < 1e-6
    # What is explained need not be asked for; the others are not told.
    assert set(infer(gate, kind, parameters, outputs=["logits"])) == {"logits", "explain.base", "explain.values.age", "explain.values.rest"}


def test_what_is_explained_is_the_answer_as_it_is_given(gate, http):
    explained = read(ask(http, gate, ROWS, {"explain": "permutation_shap", "explain_output": "risk"}, model="rounded"))
    assert abs(explained["risk"] * 10 - numpy.round(explained["risk"] * 10)).max() < 1e-6
    assert abs(explained["explain.base"] + joined(explained).sum(axis=1) - explained["risk"]).max() < 1e-6
    # Means of answers with one decimal over 12 rows: nothing finer is told.
    twelfths = explained["explain.base"] * 120
    assert abs(twelfths - numpy.round(twelfths)).max() < 1e-4


@pytest.mark.parametrize(("parameters", "model", "rows", "code"), [
    (WALKED, "silent", 1, "check.explain"),
    ({**WALKED, "explain_samples": SAMPLES + 1}, "table", 1, "check.explain"),
    (WALKED, "table", 5, "check.explain"),
    ({"explain": "permutation_shap"}, "table", 1, "check.explain"),
    ({**WALKED, "explain_output": "none"}, "table", 1, "check.explain"),
    ({"explain": "kernel_shap"}, "table", 1, "check.shape"),
    ({**WALKED, "explain_smaples": 1}, "table", 1, "check.shape"),
])
def test_what_the_policy_does_not_offer_is_refused(gate, http, parameters, model, rows, code):
    answer = ask(http, gate, numpy.repeat(ROWS[:1], rows, axis=0), parameters, model=model)
    assert (answer.status_code, answer.headers["portcullis-reason"]) == (400, code)


def test_an_explanation_costs_the_requests_that_would_ask_the_same_and_is_paid_before_it_runs(gate, http):
    parameters = {**WALKED, "explain_samples": 2}
    left = lambda answer: int(answer.headers["ratelimit"].split("r=")[1].split(";")[0])
    first = ask(http, gate, ROWS[:1], parameters, model="metered")
    assert first.status_code == 200 and left(first) == 11 - 1 - 4
    # A refusal costs nothing beyond its own request.
    refused = ask(http, gate, ROWS[:2], {**parameters, "explain_samples": 3}, model="metered")
    assert (refused.status_code, refused.headers["portcullis-reason"]) == (400, "check.explain")
    second = ask(http, gate, ROWS[:1], parameters, model="metered")
    assert second.status_code == 200 and left(second) == 0
    other = http.post(f"{gate.url}/v2/models/metered/infer", headers={"authorization": f"Bearer {gate.other}"},
                      json={"inputs": tensors(ROWS[:3]), "parameters": parameters})
    # 12 + 3 × 2 × 2 × 5 × 12 rows are 12 requests.
    assert (other.status_code, other.headers["portcullis-reason"]) == (429, "budget.requests")
    assert "retry-after" in other.headers
