"""The gateway under attack: its policies, its callers, and the oracle that asks it over HTTPS as any client would."""

import hashlib
import http.client
import json
import pathlib
import secrets
import shutil
import ssl
import subprocess
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "clients"))
import gate as gates  # noqa: E402

from oracle import Oracle, Refused, Spent, request  # noqa: E402

# As generous as budgets can be: what stops an attacker here is what detectors know of it.
GENEROUS = 'requests = { rate = "1000000/s", burst = 1000000 }\nin_flight = 1000'
# Each model is served twice, with and without the response, so that both can be compared on the same queries.
MODES = ("enforce", "shadow")
# What an attacker waits for in all when told to come again later, in seconds; then that key is given up.
PATIENCE = 10.0
# Refusals that a run takes before it ends, as a multiple of its queries.
STUBBORN = 2


def served(name, mode):
    return name if mode == "enforce" else f"{name}-{mode}"


def lay(home, models, detect="", chat=None, encoder=None):
    """A policy folder with each victim served in both modes, and an OpenAI upstream and a sentence encoder if there are any."""
    gate = gates.Gate(home, accept='max_connections = 1000')
    for victim in models:
        (gate.policies / f"models/{victim.name}.onnx").write_bytes(victim.onnx)
        for mode in MODES:
            gate.write(f"models/{served(victim.name, mode)}.toml", f"""
                name = "{served(victim.name, mode)}"
                version = "1"
                public = true
                [backend.onnx]
                path = "{victim.name}.onnx"
                sha256 = "{hashlib.sha256(victim.onnx).hexdigest()}"
                [check]
                max_body = "4MiB"
                max_batch = 32
                range = {{ input = [{victim.low}, {victim.high}] }}
                [budget.default]
                {GENEROUS}
                [detect]
                mode = "{mode}"
                {detect}
            """)
    for mode in MODES if chat else ():
        gate.write(f"models/{served('chat', mode)}.toml", f"""
            name = "{served('chat', mode)}"
            public = true
            [backend.upstream]
            protocol = "openai"
            urls = ["{chat}"]
            model = "tiny"
            [budget.default]
            {GENEROUS}
            tokens = {{ rate = "1000000000/min" }}
            [detect]
            mode = "{mode}"
        """)
    if encoder:
        files = [path for path in sorted(encoder.rglob("*")) if path.suffix in (".json", ".safetensors")]
        shutil.copytree(encoder, gate.policies / "models/encoder")
        digests = ", ".join(f'"{path.relative_to(encoder)}" = "{hashlib.sha256(path.read_bytes()).hexdigest()}"' for path in files)
    for mode in MODES if encoder else ():
        gate.write(f"models/{served('encoder', mode)}.toml", f"""
            name = "{served('encoder', mode)}"
            version = "1"
            public = true
            [backend.safetensors]
            path = "encoder"
            sha256 = {{ {digests} }}
            [budget.default]
            {GENEROUS}
            tokens = {{ rate = "1000000000/min" }}
            [detect]
            mode = "{mode}"
        """)
    return gate


class Keys:
    """Keys by the thousand: `key new` makes the first, so that it is held to what the program says, and the others are written beside it all at once."""

    def __init__(self, gate):
        self.gate, self.entries = gate, []
        self.first = gate.key("first", tenant="tenant-first")

    def new(self, name, tenant):
        secret = f"pcl_{secrets.token_urlsafe(24)}"
        assert len(secret) == len(self.first) and self.first.startswith("pcl_")
        digest = hashlib.sha256(secret.encode()).hexdigest()
        self.entries.append(f'[[api_key]]\nid = "{name}"\nsha256 = "{digest}"\ntenant = "{tenant}"\nroles = ["app"]\n')
        return secret

    def write(self):
        before = (self.gate.policies / "callers.toml").read_text()
        self.gate.write("callers.toml", "\n".join([before, *self.entries]))


def calibrate(gate, name, recording, fpr):
    """Learns a model's benign bounds; says what came of it, and whether it may be enforced."""
    told = []
    for mode in MODES:
        command = [gates.binary(), "calibrate", "--policies", gate.policies, "--model", served(name, mode), "--recording", recording, "--fpr", str(fpr)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=3600)
        if done.returncode == 2 and "unrecognized subcommand" in done.stderr:
            return False, "this build has no `calibrate`"
        told.append((done.returncode, (done.stdout + done.stderr).strip()))
    return all(code == 0 for code, _ in told), told[0][1]


class Connection:
    """One connection, and a key. `http.client` and nothing around it: a client that costs more than the gateway would be all that two cores have time for."""

    def __init__(self, url, ca):
        self.address, self.context = url.removeprefix("https://"), ssl.create_default_context(cafile=ca)
        self.connection = None

    def post(self, path, body, key):
        """Status, headers and body; a connection that was closed between two requests is made anew, once."""
        for again in (True, False):
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPSConnection(self.address, context=self.context, timeout=60)
                self.connection.request("POST", path, body, {"content-type": "application/json", "authorization": f"Bearer {key}"})
                answer = self.connection.getresponse()
                return answer.status, answer.headers, answer.read()
            except (http.client.HTTPException, OSError):
                self.connection = None
                if not again:
                    raise
        raise AssertionError


def probabilities(body):
    outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
    return np.array(outputs["probabilities"]["data"], np.float32).reshape(outputs["probabilities"]["shape"]), outputs["label"]["data"]


class Https(Oracle):
    """Asks a gateway, with one key or with several in turn, of which one that is refused is given up; remembers which key asked each row."""

    def __init__(self, victim, budget, batch, remember, url, ca, model, keys, patience=PATIENCE):
        super().__init__(victim, budget, batch, remember)
        self.connection, self.path, self.keys, self.turn = Connection(url, ca), f"/v2/models/{model}/infer", dict(enumerate(keys)), 0
        self.owners, self.refusals, self.patience = [], {}, patience

    def send(self, rows):
        while True:
            key = list(self.keys)[self.turn % len(self.keys)]
            self.turn += 1
            status, headers, body = self.connection.post(self.path, request(rows), self.keys[key])
            if status == 200:
                self.owners += [key] * len(rows)
                return probabilities(body)[0]
            code = headers.get("Portcullis-Reason", "?")
            self.refusals[code] = self.refusals.get(code, 0) + 1
            if sum(self.refusals.values()) > STUBBORN * self.budget:
                raise Spent
            wait = float(headers.get("Retry-After", 60))
            if status == 429 and wait <= self.patience:
                self.patience -= wait
                time.sleep(wait)
            elif len(self.keys) > 1:
                del self.keys[key]
            else:
                raise Refused(status, code)
