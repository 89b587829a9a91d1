"""The gateway under witnesses: what an answer in the mode `witnessed` waits for, and what a log that was set back meets."""

import base64
import concurrent.futures
import json
import random
import shutil
import subprocess
import time
import urllib.request

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

import gate as gates
from gate import ORIGIN, Gate, binary, eventually, run
from peer_witness import NAME as PEER
from peer_witness import PeerWitness
from receipt import parts, verify
from tlog import COSIGNER, ML_DSA_44, NOTE, InvalidSignature, Vkey, digest, lines, root, root_by_path, vkey
from witness import Witness

# How long the gateway waits for what a policy demands.
PATIENCE = 10
# Once they were missing for so long, nobody who need not waits for them.
MISSING = 3


class Watched(Gate):
    """A gateway with models of all modes, and witnesses of which `quorum` are enough."""

    def __init__(self, home, scripted):
        super().__init__(home)
        self.app = self.key("app")
        key = load_pem_private_key((self.policies / "tls/provenance.key").read_bytes(), None)
        self.vkey = vkey(ORIGIN, NOTE, key.public_key().public_bytes_raw())
        for name, terms in [
            ("plain", ""), ("strict", 'mode = "witnessed"\non_failure = "refuse"'), ("lenient", 'mode = "witnessed"\non_failure = "serve"'),
        ]:
            self.upstream(name, "openai", scripted.url, more=f"[prove]\n{terms}\n")

    def under(self, quorum, *witnesses):
        """`witnesses` are URLs and verifier keys."""
        tables = "".join(f"\n[[prove.witness]]\nurl = {json.dumps(url)}\nkey = {json.dumps(keys)}\n" for url, keys in witnesses)
        settings = (self.policies / "gateway.toml").read_text()
        settings = settings.replace('key = "tls/provenance.key"', f'key = "tls/provenance.key"\nquorum = {quorum}')
        self.write("gateway.toml", settings + tables)
        return self.start()

    def ask(self, model, want=None):
        """An answer, and how long it took."""
        headers = {"authorization": f"Bearer {self.app}"} | ({"provenance-want": want} if want else {})
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        begun = time.monotonic()
        answer = requests.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, verify=self.ca, timeout=30)
        return answer, time.monotonic() - begun

    def state(self, model, want=None):
        answer, _ = self.ask(model, want)
        assert answer.status_code == 200, answer.text
        return parts(answer.headers["provenance-receipt"])["state"]

    def monitor(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/log/{path}", timeout=5) as page:
            return page.read()

    def refused(self):
        """What a start says that must fail."""
        done = subprocess.run([binary(), "serve", "--policies", self.policies], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr


class Checkpoint:
    """A signed checkpoint: `by` has the time of each cosigner's line by name and kind, and all lines were verified."""

    def __init__(self, note, log, *witnesses):
        self.text, signatures = note.split("\n\n")
        self.text += "\n"
        origin, size, hashed = self.text.splitlines()
        self.size, self.root, self.by = int(size), base64.b64decode(hashed, validate=True), {}
        known = {(key.name, key.id): key for key in map(Vkey, witnesses)}
        ours = Vkey(log)
        assert (origin, ours.kind) == (ours.name, NOTE)
        signed = False
        for name, identifier, signature in lines(signatures):
            if (name, identifier) == (ours.name, ours.id):
                Ed25519PublicKey.from_public_bytes(ours.public).verify(signature, self.text.encode())
                signed = True
            elif name != ours.name:
                key = known[name, identifier]
                self.by[name, key.kind] = key.time(self.text, signature)
                with pytest.raises(InvalidSignature):
                    key.time(self.text.replace(f"\n{size}\n", f"\n{self.size + 1}\n"), signature)
        assert signed, "the log itself has not signed it"

    names = property(lambda self: {name for name, _ in self.by})


def proved(proof, statement, log, *witnesses):
    """The index and the checkpoint of a tlog-proof that holds for this statement."""
    head, note = proof.split("\n\n", 1)
    first, index, *path = head.splitlines()
    assert first == "c2sp.org/tlog-proof@v1" and index.startswith("index ")
    index, checkpoint = int(index.removeprefix("index ")), Checkpoint(note, log, *witnesses)
    path = [base64.b64decode(node, validate=True) for node in path]
    assert root_by_path(digest(b"\0", statement), index, checkpoint.size, path) == checkpoint.root
    return index, checkpoint


@pytest.fixture(scope="module")
def watched(tmp_path_factory, scripted):
    """A gateway under two of three witnesses."""
    home = tmp_path_factory.mktemp("watched")
    gate = Watched(home, scripted)
    gate.witnesses = [Witness(home / f"w{n}", (ORIGIN, gate.vkey), name=f"w.test/w{n}") for n in (1, 2, 3)]
    gate.keys = [key for witness in gate.witnesses for key in witness.keys]
    gate.under(2, *[(witness.url, witness.keys) for witness in gate.witnesses])
    yield gate
    assert gate.stop() == 0, gate.said()
    [witness.stop() for witness in gate.witnesses]


def test_an_answer_leaves_when_enough_have_cosigned_and_openssl_verifies_who_did(watched):
    asked = time.time()
    answer, took = watched.ask("strict")
    receipt, _, statement = verify(answer.headers, answer.content, watched.log)
    assert answer.status_code == 200 and receipt["state"] == "witnessed"
    print(f"\na witnessed answer took {took * 1000:.0f} ms")
    remembered = [watched.witnesses[n].latest(ORIGIN) for n in range(3)]

    def get(form):
        return requests.get(watched.url + receipt["loc"] + form, headers={"authorization": f"Bearer {watched.app}"}, verify=watched.ca)

    assert get("").json()["state"] == "witnessed"
    index, checkpoint = proved(get(".tlog-proof").text, statement, watched.vkey, *watched.keys)
    assert len(checkpoint.names) >= 2 and {kind for _, kind in checkpoint.by} == {COSIGNER, ML_DSA_44}
    assert all(asked - 1 <= at <= time.time() for at in checkpoint.by.values())
    # And the witnesses had it on their disks when the answer was there.
    covering = [text for status, _, text in remembered if status == 200 and int(text.splitlines()[1]) > index]
    assert len(covering) >= 2
    for text in covering:
        assert Checkpoint(text, watched.vkey, *watched.keys).size > index


def test_a_caller_raises_an_answer_to_witnessed(watched):
    assert watched.state("plain") == "promised"
    assert watched.state("plain", "mode=witnessed") == "witnessed"
    assert watched.state("lenient", "mode=async, wait=0") == "witnessed"


def test_monitors_get_the_cosigned_checkpoint_and_every_tile_of_it(watched):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(answer.status_code == 200 for answer, _ in pool.map(watched.ask, ["plain"] * 270))
    assert watched.state("strict") == "witnessed"
    checkpoint = Checkpoint(watched.monitor("checkpoint").decode(), watched.vkey, *watched.keys)
    assert len(checkpoint.names) >= 2 and checkpoint.size > 270
    leaves, level = [], 0
    while checkpoint.size >> 8 * level:
        full, rest = divmod(checkpoint.size >> 8 * level, 256)
        tiles = [f"{n:03}" for n in range(full)] + ([f"{full:03}.p/{rest}"] if rest else [])
        hashes = []
        for tile in tiles:
            raw = watched.monitor(f"tile/{level}/{tile}")
            hashes += [raw[at : at + 32] for at in range(0, len(raw), 32)]
        assert len(hashes) == checkpoint.size >> 8 * level
        if level:
            assert hashes == [root(leaves[at : at + 256]) for at in range(0, 256 * len(hashes), 256)]
        else:
            leaves, entries = hashes, b"".join(watched.monitor(f"tile/entries/{tile}") for tile in tiles)
        level += 1
    assert level == 2 and root(leaves) == checkpoint.root
    at, found = 0, []
    while at < len(entries):
        end = at + 2 + int.from_bytes(entries[at : at + 2], "big")
        found.append(digest(b"\0", entries[at + 2 : end]))
        at = end
    assert found == leaves


def test_the_folder_verifies_and_one_with_another_byte_in_the_cosigned_checkpoint_does_not(watched, tmp_path):
    assert watched.state("strict") == "witnessed"
    copy = tmp_path / "log"

    def copied():
        # Of a log that goes on: files may come and go meanwhile.
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(watched.log, copy)
        except shutil.Error:
            return None
        return json.loads(subprocess.run([binary(), "log", "verify", copy, "--json"], capture_output=True, text=True).stdout)["ok"]

    eventually(copied)
    given = [argument for key in (watched.vkey, *watched.keys) for argument in ("--key", key)]
    size = int((copy / "checkpoint.witnessed").read_text().splitlines()[1])
    found = json.loads(run("log", "verify", copy, *given, "--json"))
    assert found["ok"] and not found["integrity_only"]
    covered, by = found["witnessed"]
    assert covered == size and len(by) >= 4 and all(name.startswith("w.test/") for name in by)
    assert json.loads(run("log", "verify", copy, "--key", watched.vkey, "--json"))["witnessed"] == [size, []]
    file = copy / "checkpoint.witnessed"
    whole = file.read_bytes()
    for at in sorted(random.Random(11).sample(range(len(whole)), 12)) + [0, len(whole) - 1]:
        changed = bytearray(whole)
        changed[at] ^= 1
        file.write_bytes(changed)
        for keys in ((), given):
            found = json.loads(run("log", "verify", copy, *keys, "--json", code=1))
            assert any("checkpoint.witnessed" in problem for problem in found["problems"]), (at, found)


def test_without_enough_of_them_it_refuses_or_serves_as_the_policy_says_and_others_are_not_slowed(watched):
    failures = watched.metric("portcullis_log_witness_failures_total") or 0
    # They fail while an answer waits: its model has run, and it is refused when its time is over, or served once it is known that they are away.
    [witness.kill() for witness in watched.witnesses[:2]]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = {model: pool.submit(watched.ask, model) for model in ("strict", "lenient")}
        others = []
        while not all(each.done() for each in waiting.values()):
            others.append(watched.ask("plain"))
            time.sleep(0.1)
        raised, took = watched.ask("plain", "mode=witnessed, wait=500")
    (late, late_after), (served, served_after) = waiting["strict"].result(), waiting["lenient"].result()
    assert late.status_code == 503 and late.headers["portcullis-reason"] == "prove.unavailable"
    assert PATIENCE - 0.5 <= late_after <= PATIENCE + 3 and MISSING - 0.5 <= served_after <= MISSING + 3
    assert served.status_code == 200 and served.json()["choices"]
    # It came as far as it could, and its entry stands: no gap. The refusal's receipt is its own and not that of the answer behind it.
    receipt, _, _ = verify(served.headers, served.content, watched.log)
    assert receipt["state"] == "included" and watched.metric("portcullis_log_gaps_total") == 0
    # By then it is known that there are not enough: what comes now is refused at once, and no model runs for it.
    forwarded = watched.metric("portcullis_log_forwarded_total")
    assert forwarded
    refused, after = watched.ask("strict")
    assert refused.status_code == 503 and refused.headers["portcullis-reason"] == "prove.unavailable" and after < 2
    assert watched.metric("portcullis_log_forwarded_total") == forwarded
    for each in (late, refused):
        receipt, payload, _ = verify(each.headers, each.content, watched.log)
        assert payload[8][7] == "prove.unavailable"
        found = requests.get(watched.url + receipt["loc"], headers={"authorization": f"Bearer {watched.app}"}, verify=watched.ca, timeout=10)
        assert found.json()["view"]["kind"] == "error"
    assert all(answer.status_code == 200 and parts(answer.headers["provenance-receipt"])["state"] == "promised" for answer, _ in others)
    slowest = sorted(each for _, each in others)
    assert len(slowest) > 20 and slowest[len(slowest) // 2] < 0.5
    assert raised.status_code == 200 and parts(raised.headers["provenance-receipt"])["state"] == "included" and took < 2
    assert watched.metric("portcullis_log_witness_failures_total") > failures

    # They return, and nobody does anything: the pause that had begun is at most as long as all before it.
    [witness.start() for witness in watched.witnesses[:2]]
    back = time.monotonic()
    eventually(lambda: watched.state("plain", "mode=witnessed") == "witnessed", 20)
    print(f"\nwitnessed again {time.monotonic() - back:.1f} s after they returned")
    answer, took = watched.ask("strict")
    assert answer.status_code == 200 and parts(answer.headers["provenance-receipt"])["state"] == "witnessed" and took < 2


def test_an_answer_that_no_other_follows_is_cosigned_when_a_witness_returns(tmp_path, scripted):
    """No entry comes after it, and so no checkpoint: the one that failed must be tried again."""
    gate = Watched(tmp_path, scripted)
    witness = Witness(tmp_path / "w", (ORIGIN, gate.vkey))
    gate.under(1, (witness.url, witness.keys))
    assert gate.state("strict") == "witnessed"
    witness.kill()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gate.ask, "strict")
        time.sleep(0.5)
        witness.start()
        answer, took = waiting.result()
    assert answer.status_code == 200 and parts(answer.headers["provenance-receipt"])["state"] == "witnessed"
    assert 0.5 < took < 5
    assert gate.stop() == 0
    witness.stop()


def test_a_log_that_was_set_back_does_not_start(tmp_path, scripted):
    gate = Watched(tmp_path, scripted)
    witnesses = [Witness(tmp_path / f"w{n}", (ORIGIN, gate.vkey), name=f"w.test/w{n}") for n in (1, 2)]
    gate.under(2, *[(witness.url, witness.keys) for witness in witnesses])
    assert gate.state("strict") == "witnessed" and gate.stop() == 0
    lock = gate.log.with_name("log.lock")
    there, old, new = (gate.log, lock), tmp_path / "old", tmp_path / "new"

    def keep(where):
        where.mkdir()
        shutil.copytree(gate.log, where / "log")
        shutil.copy(lock, where / "log.lock")

    def restore(where, *names):
        for name in names:
            shutil.rmtree(gate.log) if name == "log" else lock.unlink()
            (shutil.copytree if name == "log" else shutil.copy)(where / name, tmp_path / name)

    keep(old)
    gate.start()
    assert [gate.state("strict") for _ in range(3)] == ["witnessed"] * 3 and gate.stop() == 0
    keep(new)
    assert all(path.exists() for path in there)

    restore(old, "log")
    said = gate.refused()
    assert "log.lock" in said and "w.test" not in said and "older copy" in said
    restore(old, "log", "log.lock")
    entries = gate.entries()
    for _ in range(2):
        said = gate.refused()
        assert "w.test/w1" in said or "w.test/w2" in said, said
        assert "older copy" in said and "ready on" not in said
    # Nothing was signed that contradicts what the witnesses have seen.
    assert gate.entries() == entries and lock.read_bytes() == (old / "log.lock").read_bytes()
    restore(new, "log", "log.lock")
    gate.start()
    assert gate.state("strict") == "witnessed" and gate.stop() == 0
    assert json.loads(run("log", "verify", gate.log, "--json"))["ok"]
    [witness.stop() for witness in witnesses]


def test_a_witness_of_another_make_is_enough(tmp_path, scripted):
    gate = Watched(tmp_path, scripted)
    peer = PeerWitness([(ORIGIN, gate.vkey)])
    gate.under(1, (peer.url, peer.vkey))
    for _ in range(3):
        answer, _ = gate.ask("strict")
        receipt, _, statement = verify(answer.headers, answer.content, gate.log)
        assert receipt["state"] == "witnessed"
        loc = gate.url + receipt["loc"] + ".tlog-proof"
        proof = requests.get(loc, headers={"authorization": f"Bearer {gate.app}"}, verify=gate.ca, timeout=10).text
        _, checkpoint = proved(proof, statement, gate.vkey, peer.vkey)
        assert set(checkpoint.by) == {(PEER, COSIGNER)}
    assert set(peer.handled) == {200} and gates.eventually(lambda: Checkpoint(gate.monitor("checkpoint").decode(), gate.vkey, peer.vkey).by)
    assert gate.stop() == 0
    assert json.loads(run("log", "verify", gate.log, "--key", gate.vkey, "--key", peer.vkey, "--json"))["witnessed"][1]
    peer.close()
