"""`portcullis demo`: nothing prepared, and everything works."""

import json
import signal
import subprocess
import time

import pytest
import requests

from gate import ROOT, binary, run

DIGIT = json.loads((ROOT / "tests/data/digits.json").read_text())["samples"][0]


@pytest.fixture
def demo(tmp_path):
    running = []

    def start(*arguments):
        command = [binary(), "demo", "--port", "0", "--directory", tmp_path / "demo", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def test_json_is_one_line_of_what_a_program_needs(demo, tmp_path):
    begun = time.monotonic()
    process = demo("--json")
    line = process.stdout.readline()
    print(f"\nthe demo was ready {(time.monotonic() - begun) * 1000:.0f} ms after its start")
    told = json.loads(line)
    assert list(told) == ["url", "admin_url", "ca", "api_key", "policies", "models"]
    assert told["url"].startswith("https://127.0.0.1:") and told["admin_url"].startswith("http://127.0.0.1:")
    assert told["models"] == ["digits"] and told["policies"] == str(tmp_path / "demo/policies")
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 64], "data": DIGIT["input"]}]}
    answer = requests.post(
        told["url"] + "/v2/models/digits/infer", json=body, headers={"authorization": f"Bearer {told['api_key']}"}, verify=told["ca"])
    assert answer.status_code == 200 and DIGIT["label"] in answer.json()["outputs"][1]["data"]
    assert requests.get(told["admin_url"] + "/readyz").status_code == 200
    run("check", told["policies"])
    run("health", told["admin_url"].removeprefix("http://"))
    process.send_signal(signal.SIGTERM)
    rest, said = process.communicate(timeout=20)
    assert process.returncode == 0 and rest == "", "one line and no more"
    assert told["api_key"] not in said
    assert json.loads(run("log", "verify", tmp_path / "demo/log", "--json"))["ok"]


def test_the_lines_that_it_prints_work_when_pasted(demo):
    process = demo()
    lines, shell = [], []
    while "curl" not in "".join(lines) or lines[-1].strip():
        line = process.stdout.readline()
        assert line, process.stderr.read()
        lines.append(line)
    text = "".join(lines)
    shell = text[text.index("curl") :]
    done = subprocess.run(["bash", "-euc", shell], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{shell}\n{done.stderr}"
    assert '"label"' in done.stdout and "rovenance-" in done.stdout + done.stderr or '"label"' in done.stdout
