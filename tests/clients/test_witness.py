"""`portcullis witness` under clients that nobody here wrote, under kill -9, and under signatures of OpenSSL."""

import json
import random
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
import witness_log

import gate as gates
from peer_witness import PeerWitness
from tlog import InvalidSignature, Log, Vkey, times
from witness import Witness


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def witness(tmp_path, log):
    witness = Witness(tmp_path / "w", (log.origin, log.vkey))
    yield witness
    if witness.process.poll() is None:
        witness.stop()


def test_openssl_verifies_every_cosignature(witness, log):
    sizes = [0, 1, 2, 3, 7, 8, 9, 100, 128, 129, 255, 256, 256]
    for old, size in zip([0, *sizes], sizes):
        status, _, answer = witness.add(log.request(old, size))
        assert status == 200, answer
        found = times(witness.vkeys, log.text(size), answer)
        assert len(found) == 2 and all(abs(at - time.time()) < 60 for at in found)
        with pytest.raises(InvalidSignature):
            times(witness.vkeys, log.text(size).replace(f"\n{size}\n", f"\n{size + 1}\n"), answer)
    status, _, shown = witness.latest(log.origin)
    assert status == 200 and shown.startswith(log.text(256) + "\n")
    assert log.checkpoint(256).splitlines()[-1] in shown


def test_a_file_can_be_read_for_its_keys_and_is_not_overwritten(witness):
    file = witness.folder / "w.pem"
    assert file.stat().st_mode & 0o777 == 0o600
    shown = gates.run("witness", "key", "--name", "w.test/w1", "--key", file)
    assert [Vkey(line).id for line in shown.splitlines()] == [key.id for key in witness.vkeys]
    gates.run("witness", "key", "--name", "w.test/w1", "--out", file, code=1)
    gates.run("witness", "key", "--name", "w 1", "--out", file.with_name("other"), code=1)
    assert not file.with_name("other").exists()


def test_what_openssl_makes_is_a_key_too(tmp_path):
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", tmp_path / "k.pem"], capture_output=True)
    assert made.returncode == 0, made.stderr
    assert len(gates.run("witness", "key", "--name", "w", "--key", tmp_path / "k.pem").splitlines()) == 2


def test_killed_at_any_moment_it_neither_forgets_nor_forks(witness, log):
    """Each round: two threads submit two histories until the process is killed; then everything that was cosigned must be
    of one history and no larger than what the next process remembers."""
    fork, seed = Log(history="b"), random.Random(4)
    histories, cosigned, kills = {"a": log, "b": fork}, [], 0
    stop = threading.Event()

    def submit(name):
        history, old = histories[name], 0
        while not stop.is_set():
            size = min(old + 1, 256)
            try:
                status, _, answer = witness.add(history.request(old, size))
            except OSError:
                return
            if status == 200:
                assert len(times(witness.vkeys, history.text(size), answer)) == 2
                cosigned.append((name, size))
                old = size
            elif status == 409:
                old = int(answer)
            else:
                assert status == 422, answer
                old = max(0, old - 1)

    for _ in range(20):
        threads, before = [threading.Thread(target=submit, args=name) for name in "ab"], len(cosigned)
        [thread.start() for thread in threads]
        if kills % 2:
            # On a slow machine, too, something is to be lost.
            gates.eventually(lambda: len(cosigned) > before or len(cosigned) > 250, every=0.002)
        time.sleep(seed.uniform(0.02, 0.4))
        witness.kill()
        kills += 1
        stop.set()
        [thread.join() for thread in threads]
        stop.clear()
        witness.start()
        assert len({name for name, _ in cosigned}) <= 1, "both histories were cosigned"
        if cosigned:
            largest = max(size for _, size in cosigned)
            status, _, shown = witness.latest(log.origin)
            assert status == 200 and int(shown.splitlines()[1]) >= largest
            assert shown.startswith(histories[cosigned[0][0]].text(int(shown.splitlines()[1])))
    assert kills == 20 and len(cosigned) >= 10


def test_the_client_of_witness_log_is_cosigned(tmp_path):
    agent = witness_log.WitnessLog.generate()
    origin = agent.canonical_origin()
    witness = Witness(tmp_path / "w", (origin, agent.c2sp_vkey(origin)))
    [public] = [key.public.hex() for key in witness.vkeys if key.kind == 0x04]
    entry = json.loads(witness_log.witness_entry_independent("w.test/w1", "elsewhere", witness.url, public))
    for count in range(1, 6):
        agent.append_intent(f"thing {count}".encode())
        agent.append_result(b"done")
        done = witness_log.witnessing.submit_round(agent, [entry], str(tmp_path / "state.json"))
        assert (done.cosignatures, done.tree_size) == (1, 2 * count), done.outcomes
    # A client that has forgotten what this witness knows is told by 409.
    done = witness_log.witnessing.submit_round(agent, [entry], str(tmp_path / "other.json"))
    assert done.cosignatures == 1, done.outcomes
    witness.stop()


def test_the_witness_of_witness_log_and_this_one_say_the_same(tmp_path):
    log, fork = Log(), Log(history="b")
    witness, peer = Witness(tmp_path / "w", (log.origin, log.vkey)), PeerWitness([(log.origin, log.vkey)])
    proofless = log.request(8, 20).split("\n\n", 1)[1]
    bodies = [
        log.request(0, 5), log.request(0, 5), log.request(5, 5), log.request(5, 8), fork.request(8, 20), f"old 8\n\n{proofless}",
        log.request(7, 20), log.request(9, 9), f"old 21\n\n{proofless}", log.request(8, 20).replace("old 8", "old 08"),
        Log(seed=b"\1" * 32).request(8, 20), Log(origin="log.test/b").request(8, 20), fork.request(8, 8), log.request(8, 256),
    ]
    theirs = []
    for body in bodies:
        request = urllib.request.Request(peer.url + "/add-checkpoint", data=body.encode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                theirs.append(answer.status)
        except urllib.error.HTTPError as answer:
            theirs.append(answer.code)
    ours = [witness.add(body)[0] for body in bodies]
    assert ours == theirs == [200, 409, 200, 200, 422, 422, 409, 409, 400, 400, 403, 404, 422, 200]
    witness.stop()
    peer.close()
