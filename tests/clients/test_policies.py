"""The life of policies and of the program: keys, reloads, tokens, stopping."""

import base64
import hashlib
import hmac
import http.server
import json
import signal
import threading
import time

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from conftest import PROMPT, TOKEN
from gate import Gate, eventually, run

# What `key revoke` and `key new` promise is one second; the machine may be busy.
NOTICED = 2.0


@pytest.fixture
def house(tmp_path, scripted):
    gate = Gate(tmp_path)
    gate.app = gate.key("app")
    gate.digits()
    gate.upstream("scripted", "openai", scripted.url, model="theirs")
    yield gate
    if gate.process and gate.process.poll() is None:
        gate.stop()


def status(gate, key, path="/v1/models"):
    return requests.get(gate.url + path, headers={"authorization": f"Bearer {key}"}, verify=gate.ca, timeout=5).status_code


def stream(gate, script):
    body = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}], "stream": True, "user": script}
    headers = {"authorization": f"Bearer {gate.app}"}
    return requests.post(gate.url + "/v1/chat/completions", json=body, headers=headers, verify=gate.ca, stream=True, timeout=20)


def test_keys_begin_and_end_while_the_gateway_runs(house):
    house.start()
    assert status(house, house.app) == 200
    new = house.key("another")
    eventually(lambda: status(house, new) == 200, NOTICED)
    listed = run("key", "list", "--policies", house.policies, "--json").splitlines()
    assert [json.loads(line)["id"] for line in listed] == ["app", "another"] and new not in "".join(listed)
    run("key", "revoke", "another", "--policies", house.policies)
    eventually(lambda: status(house, new) == 401, NOTICED)
    assert status(house, house.app) == 200
    eventually(lambda: len(house.events("policy.reloaded")) >= 2)


def test_broken_policies_are_refused_and_the_last_good_ones_stay(house):
    house.start()
    assert house.admin("/readyz")[0] == 200 and house.metric("portcullis_policy_stale") == 0
    good = (house.policies / "models/scripted.toml").read_text()
    house.write("models/scripted.toml", good + "\n[bugdet]\nx = 1\n")
    eventually(lambda: house.events("policy.refused"), NOTICED)
    assert status(house, house.app) == 200 and status(house, house.app, "/v1/models/scripted") == 200
    assert house.metric("portcullis_policy_stale") == 1
    code, page = house.admin("/readyz")
    assert code == 200 and "refused" in page
    assert "scripted.toml" in json.dumps(house.events("policy.refused")[-1]) and "budget" in json.dumps(house.events("policy.refused")[-1])
    assert "scripted.toml" in run("check", house.policies, "--json", code=1)

    house.write("models/scripted.toml", good)
    eventually(lambda: house.metric("portcullis_policy_stale") == 0, NOTICED)
    assert "refused" not in house.admin("/readyz")[1]
    run("check", house.policies)


def test_new_rules_hold_for_the_next_request(house):
    house.start()
    assert status(house, house.app, "/v1/models/digits") == 200
    house.write("access.cedar", 'permit (principal in Role::"nobody", action, resource);')
    eventually(lambda: status(house, house.app, "/v1/models/digits") == 404, NOTICED)
    before = len(house.events("policy.reloaded"))
    house.process.send_signal(signal.SIGHUP)
    eventually(lambda: len(house.events("policy.reloaded")) > before, NOTICED)


def test_a_reload_leaves_a_stream_in_flight_alone(house, scripted):
    scripted.go_on.clear()
    house.start()
    answer = stream(house, "held")
    lines = answer.iter_lines()
    assert b"one" in next(lines)
    house.key("another")
    eventually(lambda: house.events("policy.reloaded"), NOTICED)
    scripted.go_on.set()
    assert [line for line in lines if line][-1] == b"data: [DONE]"


def test_a_stop_waits_for_the_stream_in_flight_and_takes_no_more(house, scripted):
    scripted.go_on.clear()
    house.start()
    answer = stream(house, "held")
    lines = answer.iter_lines()
    assert b"one" in next(lines)
    house.process.send_signal(signal.SIGTERM)

    def closed():
        try:
            return status(house, house.app) and False
        except requests.ConnectionError:
            return True

    eventually(closed, 5)
    assert house.process.poll() is None
    threading.Timer(0.3, scripted.go_on.set).start()
    assert [line for line in lines if line][-1] == b"data: [DONE]"
    assert house.process.wait(10) == 0
    house.listening.join(5)
    assert "stopped; 0 request(s) cut" in house.said()
    found = json.loads(run("log", "verify", house.log, "--json"))
    assert found["ok"] and found["kinds"]["inference"] == 1


def test_after_kill_9_everything_that_was_acknowledged_is_there(house):
    house.start()
    receipts = []
    for _ in range(20):
        body = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]}
        headers = {"authorization": f"Bearer {house.app}"}
        answer = requests.post(house.url + "/v1/chat/completions", json=body, headers=headers, verify=house.ca, timeout=10)
        receipts.append(answer.headers["provenance-receipt"].split('"')[1])
    house.process.kill()
    house.process.wait()
    house.start()
    found = {entry["id"] for entry in house.entries()}
    assert set(receipts) <= found
    assert json.loads(run("log", "verify", house.log, "--json"))["ok"]
    assert status(house, house.app, f"/v1/receipts/{receipts[-1]}") == 200


def test_tokens_of_a_pinned_issuer(house):
    signer = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(ECAlgorithm.to_jwk(signer.public_key())) | {"kid": "k1", "use": "sig", "alg": "ES256"}
    house.write("keys/login.jwks.json", json.dumps({"keys": [public]}))
    callers = (house.policies / "callers.toml").read_text()
    house.write("callers.toml", callers + """
[[issuer]]
issuer = "https://login.test/"
audience = ["inference"]
algorithms = ["ES256"]
jwks_file = "keys/login.jwks.json"
leeway = "0s"
claims = { caller = "sub", tenant = "org", roles = "roles", tier = "tier" }
""")
    house.start()

    def token(key=signer, algorithm="ES256", kid="k1", **claims):
        whole = {"iss": "https://login.test/", "aud": "inference", "sub": "ann", "org": "acme", "roles": ["app"], "exp": time.time() + 60}
        whole = {name: value for name, value in (whole | claims).items() if value is not None}
        return jwt.encode(whole, key, algorithm, headers={"kid": kid})

    assert status(house, token()) == 200
    assert (house.metric("portcullis_issuer_keys_ready"), house.metric("portcullis_issuer_keys_failures_total")) == (1, 0)
    spki = signer.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    # PyJWT refuses to take a public key for an HMAC secret, which is right; so this is done by hand.
    def packed(part):
        return base64.urlsafe_b64encode(json.dumps(part).encode() if isinstance(part, dict) else part).rstrip(b"=")

    claims = {"iss": "https://login.test/", "aud": "inference", "sub": "ann", "org": "acme", "roles": ["app"], "exp": int(time.time()) + 60}
    head = packed({"alg": "HS256", "kid": "k1"}) + b"." + packed(claims)
    hs256 = (head + b"." + packed(hmac.new(spki, head, hashlib.sha256).digest())).decode()
    bad = {
        "expired": token(exp=time.time() - 5),
        "no expiry": token(exp=None),
        "another audience": token(aud="elsewhere"),
        "another issuer": token(iss="https://evil.test/"),
        "another key": token(key=ec.generate_private_key(ec.SECP256R1())),
        "an unknown key id": token(kid="k2"),
        "not yet": token(nbf=time.time() + 60),
        "no signature": token(key=None, algorithm="none"),
        "HS256 with the public key": hs256,
        "a cut signature": token()[:-8],
    }
    for why, wrong in bad.items():
        assert status(house, wrong) == 401, why
    assert status(house, token(org="other", roles=[]), "/v1/models/scripted") == 404
    told = eventually(lambda: [event for event in house.events("authenticate.failed")][len(bad) - 1 :] and house.events("authenticate.failed"))
    assert all(wrong not in json.dumps(told) for wrong in bad.values())


def test_keys_are_fetched_from_this_machine(house):
    """Over http, and followed when they change; nothing is served by an issuer that is gone."""
    served = {}

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"keys": served["keys"]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    def signer(kid):
        key = ec.generate_private_key(ec.SECP256R1())
        served["keys"] = [json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig", "alg": "ES256"}]
        return lambda: jwt.encode({"iss": "https://login.test/", "aud": "inference", "sub": "ann", "org": "acme", "roles": ["app"],
                                   "exp": time.time() + 60}, key, "ES256", headers={"kid": kid})

    issuer = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    threading.Thread(target=issuer.serve_forever, daemon=True).start()
    token = signer("k1")
    house.write("callers.toml", (house.policies / "callers.toml").read_text() + f"""
[[issuer]]
issuer = "https://login.test/"
audience = ["inference"]
algorithms = ["ES256"]
jwks = "http://127.0.0.1:{issuer.server_address[1]}/keys"
claims = {{ caller = "sub", tenant = "org", roles = "roles" }}
""")
    house.start()
    assert "no keys" not in house.said()
    assert status(house, token()) == 200
    # A key id that the set does not have asks for it once more.
    other = signer("k2")
    eventually(lambda: status(house, other()) == 200, 10)
    assert status(house, token()) == 401
    issuer.shutdown()
    issuer.server_close()
    assert status(house, other()) == 200


def test_nothing_of_a_prompt_or_a_secret_is_told_anywhere(gate):
    """The gateway that all tests asked, with canaries in every prompt, key and upstream."""
    body = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}], PROMPT: PROMPT}
    for key, path, more in [
        (gate.app, "/v1/chat/completions", {}), (PROMPT, "/v1/chat/completions", {}), (gate.app, "/v1/" + PROMPT, {}),
        (gate.app, "/v1/chat/completions", {"model": PROMPT}), (gate.app, "/raw", {}), (gate.app, "/v1/chat/completions", {"messages": PROMPT}),
    ]:
        requests.post(gate.url + path, json=body | more, headers={"authorization": f"Bearer {key}", "x-canary": PROMPT}, verify=gate.ca)
    time.sleep(0.3)
    told = {
        "standard error": gate.said(),
        "the security log": (gate.home / "security.log").read_text(),
        "metrics": gate.admin("/metrics")[1],
        "the provenance log": "".join(file.read_bytes().decode("latin-1") for file in gate.log.glob("*") if file.is_file()),
    }
    for where, text in told.items():
        assert text or where == "standard error"
        for secret in (PROMPT, TOKEN, "canary-", *gate.secrets):
            assert secret not in text, f"{where} tells of {secret}"
    assert json.loads(run("log", "verify", gate.log, "--json"))["ok"]


def test_what_a_caller_asks_of_the_gateway_itself_has_limits_of_its_own(house):
    house.write("gateway.toml", (house.policies / "gateway.toml").read_text() + '\n[budget.default]\nrequests = { rate = "1/h", burst = 3 }\n')
    house.start()
    assert [status(house, house.app, "/v1/models") for _ in range(4)] == [200, 200, 200, 429]
