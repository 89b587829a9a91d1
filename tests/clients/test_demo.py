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
    text = ""
    while "Stop with" not in text:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        text += line
    shell = text[text.index("curl ") : text.index("Stop with")]
    # What stands between the commands is for people: a paragraph that begins with a capital letter.
    commands = [part for part in shell.split("\n\n") if part and not part.strip()[0].isupper()]
    assert len(commands) >= 4
    said = []
    for command in commands:
        paths = f"PATH={binary().parent}:$PATH"
        done = subprocess.run(["bash", "-euc", f"{paths}\n{command}"], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said.append(done.stdout)
    assert '"label"' in said[0] and "provenance-receipt:" in said[0].lower() and " 200" in said[0].splitlines()[0]
    assert '"inputs"' in said[1]
    assert " 401" in said[2].splitlines()[0]
    assert "http_server_request_duration" in said[3]
