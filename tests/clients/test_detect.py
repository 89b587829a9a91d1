"""Detection whole: honest callers are recorded, the model is calibrated by the command, and thieves meet what came of it over HTTPS."""

import json
import re
import shutil
import ssl

import httpx
import numpy
import pytest
from sklearn.datasets import load_digits

import gate as gates

ROWS = load_digits().data
# One false alarm in a hundred caller-days needs a hundred callers to be told from none.
CALLERS, RATE = 120, 0.01


def honest(random, kind):
    """What an honest caller asks in a day."""
    rows = ROWS[random.integers(len(ROWS), size=60)]
    if kind == "retries":
        return numpy.repeat(rows[:20], 3, axis=0)
    if kind == "video":
        base = numpy.repeat(rows[:4], 15, axis=0)
        return numpy.clip(base + random.integers(-1, 2, size=base.shape), 0, 16)
    return rows


def body(rows):
    rows = numpy.atleast_2d(rows)
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]}


def recorded(path, random, callers=CALLERS):
    with open(path, "w") as file:
        for caller in range(callers):
            for row in honest(random, ("users", "retries", "video")[caller % 3]):
                file.write(json.dumps({"caller": f"day-{caller}", "body": body(row)}) + "\n")
    return path


def calibrated(gate, recording, rate=RATE, code=0):
    arguments = ["--policies", gate.policies, "--model", "digits", "--recording", recording, "--fpr", rate]
    # A build that is not optimised trains its thieves for minutes.
    return gates.run("calibrate", *arguments, "--json", code=code, timeout=600)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A gateway whose model is calibrated, and acts."""
    home = tmp_path_factory.mktemp("detect")
    gate = gates.Gate(home)
    gate.digits()
    told = json.loads(calibrated(gate, recorded(home / "honest.jsonl", numpy.random.default_rng(1))))
    assert told["callers"] == CALLERS and told["rows"] == CALLERS * 60
    assert told["alarms"] <= 3 and told["at_most"] < 0.07
    calibration = gate.policies / "models/digits.calibration.json"
    assert calibration.stat().st_mode & 0o77 == 0, "a secret"
    gate.digits('[detect]\nmode = "enforce"\n[detect.exposure]\nfidelity = 0.8\n')
    # Names that are no family: keys of one are a cohort, whose budget is one.
    gate.names = iter(f"caller{number}x" for number in range(1_000))
    gate.start()
    yield gate
    gate.stop()


class Caller:
    def __init__(self, gate):
        self.gate, self.name = gate, next(gate.names)
        secret = gate.key(self.name)
        context = ssl.create_default_context(cafile=gate.ca)
        self.client = httpx.Client(base_url=gate.url, verify=context, headers={"authorization": f"Bearer {secret}"})
        gates.eventually(lambda: self.client.get("/v2/models/digits").status_code == 200)

    def ask(self, rows):
        """The probabilities, or nothing where the gateway would not answer now."""
        answer = self.client.post("/v2/models/digits/infer", json=body(rows))
        if answer.status_code == 429:
            assert answer.headers["portcullis-reason"] == "budget.requests" and "retry-after" in answer.headers
            return None
        assert answer.status_code == 200, answer.text
        self.receipt = answer.headers["provenance-receipt"]
        outputs = {output["name"]: output for output in answer.json()["outputs"]}
        return numpy.array(outputs["probabilities"]["data"]).reshape(outputs["probabilities"]["shape"])

    def alarms(self):
        lines = (self.gate.home / "security.log").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if event["event"] == "detect.alarm" and event["caller"] == f"api_key:{self.name}"]

    def alarm(self):
        return gates.eventually(self.alarms)[0]


def test_noise_is_told_within_ten_rows_with_all_that_a_person_needs(watched):
    thief, random = Caller(watched), numpy.random.default_rng(2)
    for _ in range(12):
        thief.ask(numpy.clip(random.normal(8, 5, size=64), 0, 16))
    gates.eventually(lambda: len(thief.alarms()) >= 2)
    alarms = {alarm["family"]: alarm for alarm in thief.alarms()}
    # Far from all that is honest, and finer than it.
    assert alarms.keys() >= {"outlier", "precision"} and all(alarm["query"] <= 10 for alarm in alarms.values())
    assert thief.alarm()["step"] == "alert"
    alarm = alarms["outlier"]
    assert "AML.T0024.002" in alarm["atlas"] and alarm["owasp"] and alarm["advice"] and alarm["receipt"]
    assert alarm["evidence"]["rows"] == alarm["query"] and alarm["evidence"]["rate"] == pytest.approx(RATE)


def test_a_line_search_is_told_within_fifteen_rows(watched):
    thief, random = Caller(watched), numpy.random.default_rng(3)
    asked = 0
    while asked < 40:
        left, right = ROWS[random.integers(len(ROWS), size=2)]
        low, high = 0.0, 1.0
        # Who was told of is slowed down after some rows and some time: on a busy machine while this still runs.
        label = told.argmax() if (told := thief.ask(left)) is not None else None
        for _ in range(12):
            middle = (low + high) / 2
            same = (answer := thief.ask(left + middle * (right - left))) is not None and answer.argmax() == label
            low, high = (middle, high) if same else (low, middle)
        asked += 13
    gates.eventually(lambda: any(alarm["family"] == "collinear" for alarm in thief.alarms()))
    assert min(alarm["query"] for alarm in thief.alarms()) <= 15


def test_batches_are_unrolled(watched):
    thief, random = Caller(watched), numpy.random.default_rng(4)
    thief.ask(numpy.clip(random.normal(8, 5, size=(20, 64)), 0, 16))
    assert thief.alarm()["query"] <= 10


def test_a_watched_upstream_is_asked_about_so_many_rows_at_once(watched, tmp_path):
    gate = gates.Gate(tmp_path)
    # Nobody listens there: what is refused is refused before.
    gate.upstream("digits", "oip", "http://127.0.0.1:1")
    shutil.copy(watched.policies / "models/digits.calibration.json", gate.policies / "models")
    secret = gate.key("caller")
    gate.start()
    with httpx.Client(base_url=gate.url, verify=ssl.create_default_context(cafile=gate.ca)) as client:
        ask = lambda rows: client.post(
            "/v2/models/digits/infer", json=body(numpy.zeros((rows, 1))), headers={"authorization": f"Bearer {secret}"})
        assert ask(1_024).headers["portcullis-reason"] == "infer.unavailable"
        assert ask(1_025).headers["portcullis-reason"] == "check.batch"
    assert gate.stop() == 0


def test_honest_callers_are_left_alone(watched):
    random, callers = numpy.random.default_rng(5), [Caller(watched) for _ in range(6)]
    for caller, kind in zip(callers, ("users", "retries", "video") * 2):
        assert all(caller.ask(row) is not None for row in honest(random, kind))
    # What they learn they learn, and it is metered as anybody's.
    assert {alarm["family"] for caller in callers for alarm in caller.alarms()} <= {"exposure"}


def test_a_thief_who_looks_honest_is_metered_and_held_to_labels_past_his_budget(watched):
    thief, random = Caller(watched), numpy.random.default_rng(6)
    rows = ROWS[random.permutation(len(ROWS))[:500]]
    told = [thief.ask(row) for row in rows]
    alarm = thief.alarm()
    assert alarm["family"] == "exposure" and 0.8 <= alarm["evidence"]["fidelity"] <= 1
    labels = [sorted(set(probabilities.ravel())) == [0, 1] for probabilities in told]
    first = alarm["query"] + 60
    assert all(labels[first:]), "at most 60 rows after the budget was spent there are labels, and it stays"
    # Until a half of it was spent nothing was withheld; from there on sure answers are labels before the others are.
    digits = [len({float(value) for value in probabilities.ravel()}) for probabilities in told]
    assert min(digits[:15]) == 10, digits
    assert any(labels[:alarm["query"]]) and not all(labels[:alarm["query"]])
    # Top-1 answers are what they were: classes of honest callers agree with the thief's, before and after.
    for these in (slice(0, 20), slice(alarm["query"] - 10, alarm["query"] + 10), slice(first, first + 20)):
        other = Caller(watched)
        assert [other.ask(row).argmax() for row in rows[these]] == [probabilities.argmax() for probabilities in told[these]]
    # Equal inputs, equal answers.
    assert (thief.ask(rows[0]) == thief.ask(rows[0])).all()
    shown = json.loads(gates.run("exposure", f"127.0.0.1:{watched.admin_port}", "--json"))
    mine = next(line for line in shown if line["caller"] == f"api_key:{thief.name}")
    assert mine["step"] == "degrade" and mine["fidelity"] >= 0.8 and mine["bits"] > 0 and mine["rows"] >= 500
    assert thief.name in gates.run("exposure", f"127.0.0.1:{watched.admin_port}")


def test_what_a_caller_has_learned_outlives_a_restart(watched, tmp_path):
    gate = gates.Gate(tmp_path)
    gate.digits('[detect]\nmode = "enforce"\n[detect.exposure]\nfidelity = 0.8\n')
    shutil.copy(watched.policies / "models/digits.calibration.json", gate.policies / "models")
    with open(gate.policies / "gateway.toml", "a") as file:
        file.write('[state]\ndirectory = "../state"\n')
    gate.names = iter(["thief"])
    random = numpy.random.default_rng(9)
    rows = ROWS[random.permutation(len(ROWS))[:260]]

    def exposed():
        shown = json.loads(gates.run("exposure", f"127.0.0.1:{gate.admin_port}", "--json"))
        return next(line for line in shown if line["caller"] == "api_key:thief")

    gate.start()
    thief = Caller(gate)
    for row in rows[:250]:
        thief.ask(row)
    before = exposed()
    assert before["step"] == "degrade" and before["fidelity"] >= 0.8
    assert gate.stop() == 0
    gate.start()
    try:
        assert exposed() == before, "ahead of the first request"
        told = [thief.ask(row) for row in rows[250:]]
        assert all(sorted(set(probabilities.ravel())) == [0, 1] for probabilities in told)
        after = exposed()
        assert after["rows"] == before["rows"] + 10 and after["fidelity"] >= before["fidelity"] and after["step"] == "degrade"
        assert thief.alarms()[0]["query"] < 250 and len([alarm for alarm in thief.alarms() if alarm["family"] == "exposure"]) == 1, "told once"
    finally:
        gate.stop()


def test_too_little_evidence_enforces_nothing_and_says_how_much_is_missing(tmp_path):
    gate = gates.Gate(tmp_path)
    gate.digits('[detect]\nmode = "enforce"\n')
    few = recorded(tmp_path / "few.jsonl", numpy.random.default_rng(7), callers=20)
    done = gates.subprocess.run(
        [gates.binary(), "calibrate", "--policies", gate.policies, "--model", "digits", "--recording", few, "--fpr", "0.01"],
        capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "20 callers" in done.stderr and "80 more" in done.stderr
    assert not (gate.policies / "models/digits.calibration.json").exists()
    gate.start()
    try:
        assert "not watched" in gate.said() and "portcullis calibrate" in gate.said()
        code, page = gate.admin("/readyz")
        assert code == 200 and "callers of digits are not watched" in page
        thief, random = None, numpy.random.default_rng(8)
        gate.names = iter(["thief"])
        thief = Caller(gate)
        answers = [thief.ask(numpy.clip(random.normal(8, 5, size=64), 0, 16)) for _ in range(30)]
        assert all(answer is not None and len(set(answer.ravel())) > 2 for answer in answers)
    finally:
        gate.stop()


def test_a_calibration_of_another_model_or_a_broken_one_stops_the_start(watched, tmp_path):
    gate = gates.Gate(tmp_path)
    gate.digits('[detect]\nmode = "enforce"\n')
    whole = (watched.policies / "models/digits.calibration.json").read_text()
    beside = gate.policies / "models/digits.calibration.json"
    of_format = lambda number: re.sub(r'"format":\d+', f'"format":{number}', whole, count=1)
    others = ((of_format(1), "the format 1, and this program reads 2: calibrate anew"), (of_format(9), "format 9"))
    for broken, said in ((whole[:-40], "no calibration"), *others, ("{}", "no calibration")):
        beside.write_text(broken)
        assert said in gates.run("check", gate.policies, "--json", code=1)
    beside.write_text(whole)
    gates.run("check", gate.policies)
