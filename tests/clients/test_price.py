"""Answers that cost work: a caller who spent his budget is asked to pay, and pays with the client of docs/solve_work.py."""

import importlib.util
import json
import ssl
import subprocess
import sys

import grpc
import httpx
import numpy
import pytest
import requests
from sklearn.datasets import load_digits
from tritonclient.grpc import service_pb2, service_pb2_grpc

import gate as gates

ROWS = load_digits().data
# One false alarm in twenty caller-days is told from none by few callers: what is tried here is the price, not the bounds. With fewer than
# 384 rows the calibration keeps none to try copies on, and trains no thieves: bits are counted all the same.
CALLERS, ROWS_EACH, RATE, BATCH = 20, 18, 0.05, 32
CLIENT = gates.ROOT / "docs/solve_work.py"

spec = importlib.util.spec_from_file_location("solve_work", CLIENT)
solve_work = importlib.util.module_from_spec(spec)
spec.loader.exec_module(solve_work)


def body(rows):
    rows = numpy.atleast_2d(rows)
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]}


def policy(mode):
    # A row tells about 109 bits until a half is spent, and less by grades from there on; a number of the model has 23. It is spent with some hundred
    # rows, of which those until the step comes are no tenth.
    return f'[detect]\nmode = "{mode}"\n[detect.ladder]\nprice = true\n[detect.exposure]\nbits = 1.0\nparameters = 330\n'


def batches():
    """All rows once, in an order of no meaning."""
    rows = ROWS[numpy.random.default_rng(2).permutation(len(ROWS))]
    return [rows[at:at + BATCH] for at in range(0, len(rows), BATCH)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    random, path = numpy.random.default_rng(1), tmp_path_factory.mktemp("honest") / "honest.jsonl"
    with open(path, "w") as file:
        for caller in range(CALLERS):
            for row in ROWS[random.integers(len(ROWS), size=ROWS_EACH)]:
                file.write(json.dumps({"caller": f"day-{caller}", "body": body(row)}) + "\n")
    return path


@pytest.fixture(scope="module")
def priced(tmp_path_factory, recording):
    """A gateway whose model is calibrated, and has a price."""
    gate = gates.Gate(tmp_path_factory.mktemp("price"))
    gate.digits()
    arguments = ["--policies", gate.policies, "--model", "digits", "--recording", recording, "--fpr", RATE]
    gates.run("calibrate", *arguments, timeout=600)
    gate.digits(policy("enforce"))
    gate.start()
    yield gate
    gate.stop()


class Caller:
    def __init__(self, gate, name, model="digits"):
        self.gate, self.name, self.path = gate, name, f"/v2/models/{model}/infer"
        self.key = gate.key(name)
        self.session = requests.Session()
        self.session.verify, self.session.trust_env = gate.ca, False
        self.session.headers["authorization"] = f"Bearer {self.key}"
        gates.eventually(lambda: self.session.get(f"{gate.url}/v2/models/{model}").status_code == 200)

    def ask(self, rows, work=None):
        headers = {"portcullis-work": work} if work else {}
        return self.session.post(self.gate.url + self.path, json=body(rows), headers=headers)

    def challenge(self, rows):
        return refused(self.ask(rows))

    def spend(self):
        """Asks until a price is asked for, and tells how many rows were answered before."""
        for at, rows in enumerate(batches()):
            answer = self.ask(rows)
            if answer.status_code != 200:
                refused(answer)
                return at * BATCH
        raise AssertionError("nothing was ever asked for")


def refused(answer):
    """The challenge of a refusal that asks for work, and for nothing else."""
    assert answer.status_code == 429, answer.text
    assert answer.headers["portcullis-reason"] == "budget.work" and int(answer.headers["retry-after"]) >= 1
    for word in ("detect", "exposure", "ladder", "family", "step"):
        assert word not in answer.text
    return answer.headers["portcullis-work-challenge"]


def probabilities(answer):
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    return numpy.array(outputs["probabilities"]["data"]).reshape(outputs["probabilities"]["shape"])


def is_label(row):
    return sorted(row) == [0] * (len(row) - 1) + [1]


@pytest.fixture(scope="module")
def thief(priced):
    thief = Caller(priced, "thief")
    answered = thief.spend()
    # How many rows spend the budget hangs on how sure the model is of them; the step comes after 5 to 60 more.
    assert 200 <= answered <= 1_700, answered
    return thief


def outcome(gate, name):
    lines = gate.admin("/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f'portcullis_detect_work_total{{outcome="{name}"}}'))


def test_whoever_pays_is_answered_with_labels_and_no_more(priced, thief):
    whole = Caller(priced, "honest")
    row = ROWS[200]
    before, asked = outcome(priced, "taken"), priced.metric("portcullis_detect_challenges_total")
    challenge = thief.challenge(row)
    assert solve_work.bits(challenge) in (10, 11), "the budget is spent, and little more"
    answer = probabilities(thief.ask(row, solve_work.solve(challenge)))
    assert all(map(is_label, answer))
    told = probabilities(whole.ask(row))
    assert not is_label(told[0]) and told.argmax() == answer.argmax()
    assert outcome(priced, "taken") == before + 1
    assert priced.metric("portcullis_detect_challenges_total") == asked + 1


def test_work_is_good_once(thief):
    row = ROWS[201]
    work = solve_work.solve(thief.challenge(row))
    assert thief.ask(row, work).status_code == 200
    again = refused(thief.ask(row, work))
    assert not work.startswith(again), "a new challenge"


def test_another_counter_is_refused_and_spends_the_challenge(thief):
    row = ROWS[202]
    challenge = thief.challenge(row)
    work = solve_work.solve(challenge)
    wrong = next(counter for counter in range(1_000_000) if solve_work.attempt(challenge, counter) >> (128 - solve_work.bits(challenge)))
    refused(thief.ask(row, f"{challenge}.{wrong:016x}"))
    refused(thief.ask(row, work))


def test_work_for_anything_else_is_refused(priced, thief):
    row, other = ROWS[203], Caller(priced, "other")
    other.spend()
    work = solve_work.solve(thief.challenge(row))
    refused(other.ask(row, work))
    # The price of one row buys one.
    refused(thief.ask(ROWS[203:205], work))
    version, difficulty, rest = work.split(".", 2)
    refused(thief.ask(row, f"{version}.{int(difficulty, 16) - 1:x}.{rest}"))
    # None of that spent it.
    assert thief.ask(row, work).status_code == 200


def test_what_is_no_work_is_refused_and_never_answered(thief):
    row = ROWS[204]
    for wrong in ("v1", "x" * 160, "x" * 161, "x" * 4_000, thief.challenge(row), "v1.6.0.0.0.0"):
        refused(thief.ask(row, wrong))
    # Of two lines none is read, whether or not one is good.
    lines = [("portcullis-work", solve_work.solve(thief.challenge(row))), ("portcullis-work", "v1")]
    headers = [("authorization", f"Bearer {thief.key}"), *lines]
    refused(httpx.post(thief.gate.url + thief.path, json=body(row), headers=headers, verify=ssl.create_default_context(cafile=thief.gate.ca)))


def test_a_batch_costs_what_its_rows_would(thief):
    one, many = (solve_work.bits(thief.challenge(ROWS[300:300 + rows])) for rows in (1, 32))
    assert many == one + 5


def test_the_client_of_the_documentation_pays_by_itself(priced, thief):
    thief.session.mount(priced.url, solve_work.Paying())
    try:
        for row in ROWS[400:403]:
            assert all(map(is_label, probabilities(thief.ask(row))))
    finally:
        thief.session.mount(priced.url, requests.adapters.HTTPAdapter())
    file = priced.home / "request.json"
    file.write_text(json.dumps(body(ROWS[403])))
    arguments = ["--url", priced.url + thief.path, "--key", thief.key, "--body", file, "--ca", priced.ca]
    done = subprocess.run([sys.executable, CLIENT, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)["model_name"] == "digits", done.stderr
    challenge = thief.challenge(ROWS[404])
    printed = subprocess.run([sys.executable, CLIENT, challenge], capture_output=True, text=True, timeout=120)
    assert thief.ask(ROWS[404], printed.stdout.strip()).status_code == 200


def test_over_grpc_the_challenge_and_the_work_are_metadata(priced, thief):
    with open(priced.ca, "rb") as ca:
        channel = grpc.secure_channel(priced.authority, grpc.ssl_channel_credentials(ca.read()))
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    given = service_pb2.ModelInferRequest(model_name="digits", raw_input_contents=[ROWS[420].astype("<f4").tobytes()])
    given.inputs.add(name="input", datatype="FP32", shape=[1, 64])
    who = (("authorization", f"Bearer {thief.key}"),)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(given, metadata=who, timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    told = dict(caught.value.initial_metadata()) | dict(caught.value.trailing_metadata())
    assert told["portcullis-reason"] == "budget.work"
    paid = (*who, ("portcullis-work", solve_work.solve(told["portcullis-work-challenge"])))
    outputs = stub.ModelInfer(given, metadata=paid, timeout=60).raw_output_contents
    assert any(is_label(numpy.frombuffer(output, "<f4")) for output in outputs if len(output) == 40)


def test_people_are_told_once_and_each_refusal_has_its_receipt_that_reads_like_one_by_a_limit(priced, thief):
    moves = [event for event in priced.events("detect.moved") if event["caller"] == f"api_key:{thief.name}"]
    assert [move["step"] for move in moves] == ["price"]
    answer = thief.ask(ROWS[500])
    refused(answer)
    event = priced.told_of_receipt(answer.headers["provenance-receipt"].split('"')[1])
    assert event["event"] == "request.refused" and event["code"] == "budget.work"
    shown = json.loads(gates.run("exposure", f"127.0.0.1:{priced.admin_port}", "--json"))
    assert next(line for line in shown if line["caller"] == f"api_key:{thief.name}")["step"] == "price"
    entry = gates.eventually(lambda: next((entry for entry in priced.entries() if entry.get("id") == event["receipt"]), None))
    assert entry["kind"] == "deny" and entry["resp"]["code"] == "budget.work"
    assert entry["trail"][-1]["stop"] == "budget" and entry["trail"][-1]["verdict"] == "refused"


def test_in_shadow_nobody_pays(priced, tmp_path):
    gate = gates.Gate(tmp_path)
    gate.digits(policy("shadow"))
    calibration = (priced.policies / "models/digits.calibration.json").read_bytes()
    (gate.policies / "models/digits.calibration.json").write_bytes(calibration)
    gate.start()
    try:
        caller = Caller(gate, "shadowed")
        answers = [caller.ask(rows) for rows in batches()]
        assert all(answer.status_code == 200 and "portcullis-work-challenge" not in answer.headers for answer in answers)
        assert not any(is_label(probabilities(answer)[0]) for answer in answers)
        gates.eventually(lambda: any(alarm["family"] == "exposure" for alarm in gate.events("detect.alarm")))
        assert gate.metric("portcullis_detect_challenges_total") == 0
    finally:
        gate.stop()


def test_a_price_on_no_step_is_a_mistake_that_says_what_would_be_right(tmp_path):
    gate = gates.Gate(tmp_path)
    gate.digits('[detect.ladder]\nmost = "degrade"\nprice = true\n')
    said = gates.run("check", gate.policies, "--json", code=1)
    assert "before answers have a price" in said and "digits.toml" in said
