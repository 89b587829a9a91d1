"""Calibration from traffic: a gateway in shadow records what its callers ask, the command learns from it, and a gateway that acts takes it."""

import datetime
import hashlib
import json
import re
import secrets
import ssl
import subprocess

import httpx
import numpy

import gate as gates
from test_detect import ROWS, Caller, body, honest

# Rows of each that are kept, of somewhat more that it asks.
CALLERS, ASKED, KEPT, RATE = 240, 40, 25, 0.01
KINDS = ("users", "retries", "video")
FILE = "digits.recording.jsonl"
RECORDING = f'[detect.recording]\nfile = "../../{FILE}"\nrows = {KEPT}\n'


class Callers:
    """Many, over one connection."""

    def __init__(self, gate, names):
        self.gate, self.secrets = gate, {name: "pcl_" + secrets.token_urlsafe(24) for name in names}
        gate.write("callers.toml", "".join(
            f'[[api_key]]\nid = "{name}"\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\ntenant = "acme"\nroles = ["app"]\n'
            for name, secret in self.secrets.items()))
        gate.secrets += self.secrets.values()

    def connect(self):
        self.client = httpx.Client(base_url=self.gate.url, verify=ssl.create_default_context(cafile=self.gate.ca), timeout=60)

    def ask(self, name, rows, binary=False):
        headers, content = {"authorization": f"Bearer {self.secrets[name]}"}, json.dumps(body(rows)).encode()
        if binary:
            data = numpy.atleast_2d(rows).astype("<f4")
            head = {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(data.shape), "parameters": {"binary_data_size": data.nbytes}}]}
            head = json.dumps(head).encode()
            headers["inference-header-content-length"], content = str(len(head)), head + data.tobytes()
        answer = self.client.post("/v2/models/digits/infer", content=content, headers=headers)
        assert answer.status_code == 200, answer.text

    def day(self, at, random):
        """What one of them asks in a day: row by row or in batches, in JSON or in bytes."""
        rows, name = honest(random, KINDS[at % 3])[:ASKED], f"caller{at}x"
        if at % 8:
            for start in range(0, ASKED, 20):
                self.ask(name, rows[start:start + 20], binary=at % 4 > 1)
        else:
            for row in rows:
                self.ask(name, row)


def calibrate(gate, *arguments, code=0):
    done = subprocess.run(
        [gates.binary(), "calibrate", "--policies", gate.policies, "--model", "digits", *map(str, arguments)],
        capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_callers_ask_is_recorded_learned_from_and_acted_upon(tmp_path):
    gate, random = gates.Gate(tmp_path), numpy.random.default_rng(1)
    recording, key = tmp_path / FILE, tmp_path / (FILE + ".pseudonyms")
    gate.digits(RECORDING)
    callers = Callers(gate, [f"caller{at}x" for at in range(CALLERS)] + ["poisonous"])
    assert FILE in calibrate(gate, code=1)
    gate.start()
    today = datetime.datetime.now(datetime.timezone.utc).date()
    assert f"recorded in {recording}, in the clear" in gate.said()
    assert recording.stat().st_mode & 0o777 == key.stat().st_mode & 0o777 == 0o600
    callers.connect()
    for at in range(40):
        callers.day(at, random)
    gates.eventually(lambda: gate.metric("portcullis_detect_recorded_callers") == 40)

    # The gateway runs, and there is not enough yet.
    told = calibrate(gate, "--fpr", RATE, code=1)
    assert "40 callers, each a caller-day" in told and "record 60 more" in told
    assert not (gate.policies / "models/digits.calibration.json").exists()
    assert "no version" in calibrate(gate, "--version", "9", "--fpr", RATE, code=1)

    # It stands as it was asked, row by row and in order, and nobody is named in it.
    text = recording.read_text()
    assert "caller" not in text.replace('"caller"', "") and "api_key" not in text
    days = {}
    for line in lines(recording)[1:]:
        days.setdefault(line["caller"], []).extend(line["body"]["inputs"][0]["data"])
    assert len(days) == 40 and {len(numbers) for numbers in days.values()} == {KEPT * 64}
    again = numpy.random.default_rng(1)
    assert list(days.values()) == [honest(again, KINDS[at % 3])[:KEPT].ravel().tolist() for at in range(40)]

    # A crash tears the last line, and the next start goes on with the same callers.
    assert gate.stop() == 0, gate.said()
    with open(recording, "a") as file:
        file.write(text.splitlines()[-1][:100])
    gate.start()
    callers.connect()
    for at in (0, *range(40, CALLERS)):
        callers.day(at, random)
    # Who asks more than others teaches no more than others.
    for _ in range(40):
        callers.ask("poisonous", numpy.clip(random.normal(8, 5, size=(25, 64)), 0, 16))
    whole = CALLERS + 1
    gates.eventually(lambda: gate.metric("portcullis_detect_recorded_callers") >= whole)
    gates.eventually(lambda: 'portcullis_detect_unrecorded_total{model="digits",version="1",why="rows"} ' in gate.admin("/metrics")[1])
    assert gate.metric("portcullis_detect_unrecorded_total") > 39 and gate.metric("portcullis_detect_recorded_rows_total") == (whole - 40) * KEPT
    assert gate.stop() == 0, gate.said()
    recorded = recording.read_text().splitlines()[1:]
    found = [json.loads(line) for line in recorded if line.endswith("}")]
    same_day = datetime.datetime.now(datetime.timezone.utc).date() == today
    assert len(recorded) == len(found) + 1 and (len({line["caller"] for line in found}) == whole or not same_day)

    # One that acts starts in shadow and says what there is to learn from.
    gate.digits('[detect]\nmode = "enforce"\n' + RECORDING)
    gate.start()
    assert "not watched" in gate.said() and (f"has {whole} caller-days by now" in gate.said() or not same_day)
    assert f"portcullis calibrate --policies {gate.policies} --model digits\n" in gate.said()
    told = calibrate(gate, "--fpr", RATE, "--delete-recording")
    assert re.search(rf"{whole} caller-days, {whole * KEPT} rows", told) or not same_day
    assert "1 lines of the recording were torn" in told and f"{recording}: deleted" in told
    assert not recording.exists() and not key.exists()
    gate.stop()

    gate.stderr.clear()
    gate.start()
    try:
        assert "not watched" not in gate.said() and recording.exists()
        gate.names = iter(["thief", "user"])
        thief, user = Caller(gate), Caller(gate)
        for _ in range(12):
            thief.ask(numpy.clip(random.normal(8, 5, size=64), 0, 16))
        assert thief.alarm()["query"] <= 10
        assert all(user.ask(row) is not None for row in ROWS[random.integers(len(ROWS), size=40)])
        assert {alarm["family"] for alarm in user.alarms()} <= {"exposure"}
        gates.eventually(lambda: gate.metric("portcullis_detect_recorded_callers") == 2)
    finally:
        gate.stop()


def test_a_file_that_others_may_read_stops_the_start(tmp_path):
    gate = gates.Gate(tmp_path)
    gate.digits(RECORDING)
    for spoil, said in ((lambda file: file.chmod(0o644), "others may read it"), (lambda file: file.rename(tmp_path / "elsewhere"), "symbolic link")):
        (tmp_path / FILE).touch(0o600)
        spoil(tmp_path / FILE)
        if not (tmp_path / FILE).exists():
            (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
        done = subprocess.run([gates.binary(), "serve", "--policies", gate.policies], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and said in done.stderr and "digits.toml:" in done.stderr, done.stderr
        (tmp_path / FILE).unlink()
    # Neither does any of it keep the policies from being checked elsewhere.
    gates.run("check", gate.policies)


def test_each_version_has_a_recording_and_a_calibration_of_its_own(tmp_path):
    gate, random = gates.Gate(tmp_path), numpy.random.default_rng(3)
    gate.digits(RECORDING)
    first = (gate.policies / "models/digits.toml").read_text()
    second = first.replace('version = "1"', 'version = "2"')
    gate.write("models/digits-2.toml", second)
    assert "give each its own" in gates.run("check", gate.policies, "--json", code=1)
    shadow = second.replace("[detect.recording]", "[traffic]\nshadow = true\n[detect.recording]").replace(FILE, "digits-2.recording.jsonl")
    gate.write("models/digits-2.toml", shadow)
    assert "nobody asks a version" in gates.run("check", gate.policies, "--json", code=1)
    gate.write("models/digits-2.toml", second.split("[detect.recording]")[0] + "[traffic]\nshare = 0\n")
    gate.write("models/digits.toml", first.split("[detect.recording]")[0] + "[traffic]\nshare = 100\n")
    assert "nothing is recorded of `digits`" in calibrate(gate, code=1)
    made = tmp_path / "made.jsonl"
    with open(made, "w") as file:
        for caller in range(12):
            for row in honest(random, "users")[:20]:
                file.write(json.dumps({"caller": f"day-{caller}", "body": body(row)}) + "\n")
        file.write('{"caller": "day-12", "bo')
    beside = [gate.policies / f"models/{name}.calibration.json" for name in ("digits", "digits-2")]
    told = json.loads(calibrate(gate, "--recording", made, "--fpr", 0.1, "--version", "2", "--json"))
    assert (told["version"], told["callers"], told["rows"], told["torn"], told["refused"]) == ("2", 12, 240, 1, 0)
    assert [path.exists() for path in beside] == [False, True]
    both = [json.loads(line) for line in calibrate(gate, "--recording", made, "--fpr", 0.1, "--json").splitlines()]
    assert [told["version"] for told in both] == ["1", "2"] and all(path.exists() for path in beside)
