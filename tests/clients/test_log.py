"""The log, read by verifiers that nobody here wrote: they agree on every root and every proof, and reject what was tampered with."""

import base64
import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import cbor2
import pymerkle
import pytest
import requests
import scitt_cose
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import grown
import verify_receipt
from gate import Gate, binary, eventually, run

SEED = 4711
# In each file its first byte and its last, and so many more.
FLIPPED = 12


@pytest.fixture(scope="module")
def compiling():
    return grown.Sumdb()


@pytest.fixture(scope="module")
def logs(compiling, tmp_path_factory):
    # While the compiler runs.
    return grown.Grown(tmp_path_factory.mktemp("grown"))


@pytest.fixture(scope="module")
def sumdb(compiling):
    return compiling.compiled()


@pytest.fixture(scope="module")
def tree(logs):
    """The tree of all entries as pymerkle makes it."""
    return pymerkle.InmemoryTree.init_from_entries(logs.entries)


@pytest.fixture(scope="module")
def keys(logs):
    return verify_receipt.Keys("\n".join(logs.vkeys))


def holds(log, vkey):
    """Whether `log verify` says that the log holds, under the log key alone."""
    done = subprocess.run([binary(), "log", "verify", log, "--key", vkey], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1) and "panicked" not in done.stderr, done.stderr
    assert done.returncode == 0 or done.stdout or done.stderr, "it says why"
    return done.returncode == 0


def numbers(size, count):
    """The first entry, the last, and some between."""
    chance = random.Random(SEED + size)
    return sorted({0, size - 1, *(chance.randrange(size) for _ in range(count))})


# --- They agree.


def test_every_log_has_its_size_and_holds(logs):
    for size, log in logs.at.items():
        assert len(grown.entries(log)) == size and grown.entries(log) == logs.entries[:size]
    with ThreadPoolExecutor(os.cpu_count()) as several:
        held = several.map(lambda log: holds(log, logs.vkeys[0]), logs.at.values())
        assert dict(zip(logs.at, held)) == dict.fromkeys(logs.at, True)
    # Of the longest, entries lie in bundles alone, on tiles of all three levels.
    longest = logs.at[70_000]
    assert not (longest / "wal-00000000").exists() and (longest / "wal-00000001").exists()
    assert (longest / "tile/1/000").is_file() and (longest / "tile/2/000.p/1").is_file()
    assert holds(logs.fork, logs.vkeys[0])


def test_all_verifiers_agree_on_every_root(logs, sumdb, tree):
    roots = {size: grown.checkpoint(log) for size, log in logs.at.items()}
    assert [(size, base64.b64encode(root).decode()) for size, root in roots.values()] == [
        (int(size), root) for size, root in sumdb("log", logs.vkeys[0], SEED, *logs.at.values())]
    for size, log in logs.at.items():
        root = tree.get_root(size)
        assert roots[size] == (size, root) and grown.signed_root(log) == root
        # It hashes anew what it hashed before, and takes long for many.
        if size < 1_000:
            assert scitt_cose.merkle_root([entry.hex() for entry in logs.entries[:size]]) == root.hex()


def test_all_verifiers_agree_that_each_log_goes_on_from_each_before(logs, sumdb, tree):
    for old in grown.SIZES:
        for size in (size for size in grown.SIZES if size >= old):
            before, after = (grown.checkpoint(logs.at[each])[1] for each in (old, size))
            proof = tree.prove_consistency(old, size)
            pymerkle.verify_consistency(before, after, proof, prior_size=old, later_size=size, algorithm="sha256")
            sumdb("consistent", logs.vkeys[0], logs.at[old], logs.at[size])


def pem_of(keys, kind):
    (public,) = (public for of, public in keys.cose.values() if of == kind)
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def proof_of(log, index, form):
    done = subprocess.run([binary(), "log", "proof", log, "--index", str(index), "--form", form], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_pymerkle(index, size, leaf, path):
    """A path as a proof of pymerkle's, which derives from index and size alone how the hashes are joined, and counts from one."""
    rule, _ = pymerkle.core._inclusion_path_layout(index + 1, size)
    return pymerkle.InclusionProof("sha256", True, size, index + 1, rule, [leaf, *path])


@pytest.mark.parametrize("size", grown.SIZES)
def test_every_verifier_takes_the_proof_of_an_entry_in_each_form(logs, sumdb, tree, keys, tmp_path, size):
    log, root = logs.at[size], tree.get_root(size)
    for index in numbers(size, 4):
        entry = logs.entries[index]
        leaf = verify_receipt.leaf_of(entry)

        text = proof_of(log, index, "tlog-proof")
        (tmp_path / "proof").write_bytes(text)
        (tmp_path / "entry").write_bytes(entry)
        assert sumdb("proof", logs.vkeys[0], tmp_path / "proof", tmp_path / "entry") == [[str(size), base64.b64encode(root).decode()]]
        head, named, *path = text.decode().split("\n\n")[0].split("\n")
        assert (head, named) == ("c2sp.org/tlog-proof@v1", f"index {index}")
        path = [base64.b64decode(hash) for hash in path]
        proof = in_pymerkle(index, size, leaf, path)
        pymerkle.verify_inclusion(leaf, root, proof, index=index + 1, size=size, algorithm="sha256")
        assert proof.path == tree.prove_inclusion(index + 1, size).path

        receipt = proof_of(log, index, "cose")
        result = scitt_cose.verify_receipt(receipt, leaf_entry_hex=entry.hex(), log_public_key_pem=pem_of(keys, verify_receipt.LOG))
        assert result.ok and not result.errors, result
        assert (result.root, result.tree_size, result.leaf_index, result.issuer) == (root.hex(), size, index, keys.origin)
        assert scitt_cose.verify_inclusion(entry.hex(), index, size, [hash.hex() for hash in path], root.hex())

        transparent = proof_of(log, index, "scitt")
        assert scitt_cose.extract_receipts(transparent) == [receipt]
        # The first entry is the log key's own word on the statement key.
        signer = verify_receipt.LOG if index == 0 else verify_receipt.STATEMENT
        for statement in (transparent, entry):
            told = scitt_cose.parse_signed_statement(statement, public_key_pem=pem_of(keys, signer))
            assert told["signature_verified"] is True and told["issuer"] == keys.origin and told["unverified"] is None
            other = pem_of(keys, verify_receipt.STATEMENT if index == 0 else verify_receipt.LOG)
            assert scitt_cose.parse_signed_statement(statement, public_key_pem=other)["signature_verified"] is False

        for form in (proof_of(log, index, "json"), transparent):
            held = list(verify_receipt.verify(keys, receipt=form))
            assert any(line.startswith(f"inclusion   entry {index} of {size}") for line in held), held


def test_a_monitor_reads_the_log_of_a_running_gateway(gate, sumdb, tmp_path):
    """From the operators' listener, as C2SP tlog-tiles asks; what it read is checked by Go's own verifier."""
    served = f"http://127.0.0.1:{gate.admin_port}"
    with requests.Session() as web:
        web.trust_env = False

        def fetch(path):
            # The first checkpoint is made a tenth of a second after the start.
            answer = eventually(lambda: (got := web.get(served + "/log/" + path)).status_code == 200 and got)
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(answer.content)

        described = web.get(served + "/.well-known/portcullis-log.json").json()
        (tmp_path / "keys.vkey").write_text("\n".join(described["vkeys"]) + "\n")
        fetch("checkpoint")
        size, _ = grown.checkpoint(tmp_path)
        level, count = 0, size
        while count:
            for number in range(-(-count // grown.WIDTH)):
                width = min(grown.WIDTH, count - number * grown.WIDTH)
                name = f"{number:03}" if width == grown.WIDTH else f"{number:03}.p/{width}"
                for path in [f"tile/{level}/{name}", *([f"tile/entries/{name}"] if level == 0 else [])]:
                    fetch(path)
            level, count = level + 1, count // grown.WIDTH
    ((told, _),) = sumdb("log", described["vkeys"][0], SEED, tmp_path)
    assert int(told) == size > 0


# --- They reject.

# Of which log, and whether Go's verifier reads it. Of the longest, entry 300 is in its bundle alone.
FILES = [
    (513, "checkpoint", True),
    (513, "checkpoint.cose", False),
    (513, "keys.vkey", False),
    (513, "ids", False),
    (513, "wal-00000000", False),
    (513, "tile/0/000", True),
    (513, "tile/0/002.p/1", True),
    (513, "tile/1/000.p/2", True),
    (513, "tile/entries/001", True),
    (513, "tile/entries/002.p/1", True),
    (65_537, "tile/1/000", True),
    (65_537, "tile/2/000.p/1", True),
    (70_000, "tile/entries/001", True),
    (70_000, "tile/0/001", True),
    (70_000, "wal-00000001", False),
    (70_000, "ids", False),
]


def same_tree(log, of, keys):
    made = pymerkle.InmemoryTree.init_from_entries(grown.entries(log))
    assert (made.get_size(), made.get_root()) == grown.checkpoint(log)


def same_ids(log, of, keys):
    assert (log / "ids").read_bytes() == grown.ids(of)


def same_keys(log, of, keys):
    told = verify_receipt.Keys((log / "keys.vkey").read_text())
    assert (told.origin, told.cose.keys(), told.notes.keys()) == (keys.origin, keys.cose.keys(), keys.notes.keys())


def signed_checkpoint(log, of, keys):
    verify_receipt.open_checkpoint((log / "checkpoint").read_text(), keys)


def sign1_of_the_root(log, of, keys):
    told = (log / "checkpoint.cose").read_bytes()
    scitt_cose.verify_sign1(told, public_key_pem=pem_of(keys, verify_receipt.LOG), understood_labels=frozenset({1, 4, 15, 395}))


# What the libraries of Python see of a file, beside what Go sees of it.
SEEN_OUTSIDE = {
    "checkpoint": signed_checkpoint,
    "checkpoint.cose": sign1_of_the_root,
    "keys.vkey": same_keys,
    "ids": same_ids,
    "tile/entries/001": same_tree,
    "tile/entries/002.p/1": same_tree,
}


def flipped(log, file, to, count):
    """Copies of a log, each with one byte of this file flipped: the first, the last, and `count` others; or, where it is 1, only that."""
    good, chance = (log / file).read_bytes(), random.Random(f"{SEED} {log.name} {file}")
    others = [chance.randrange(len(good)) for _ in range(count)]
    for at in sorted({0, len(good) - 1, *others}) if count > 1 else others:
        copy = grown.linked(log, to / f"{file.replace('/', '-')} {at}")
        (copy / file).unlink()
        (copy / file).write_bytes(good[:at] + bytes([good[at] ^ chance.randrange(1, 256)]) + good[at + 1 :])
        # Go knows nothing of ML-DSA, and lets pass what it does not know.
        yield copy, at, file == "checkpoint" and at > good.index(b"\n", good.index("—".encode()))


def test_a_byte_flipped_anywhere_is_rejected(logs, sumdb, keys, tmp_path):
    def rejected(spoiled):
        size, file, by_go, (log, at, ml_dsa) = spoiled
        assert not holds(log, logs.vkeys[0]), f"{size} {file} byte {at}"
        if by_go and not ml_dsa:
            sumdb("log", logs.vkeys[0], SEED, log, code=1)
        if size < 1_000 and file in SEEN_OUTSIDE:
            # Each library has errors of its own.
            with pytest.raises(Exception):
                SEEN_OUTSIDE[file](log, logs.entries[:size], keys)
        return size, file

    with ThreadPoolExecutor(os.cpu_count()) as several:
        # To verify the longest takes seconds, nearly all of them for the signatures of their entries.
        spoiled = [(size, file, by_go, one) for size, file, by_go in FILES
                   for one in flipped(logs.at[size], file, tmp_path, FLIPPED if size < 1_000 else 1)]
        assert set(several.map(rejected, spoiled)) == {(size, file) for size, file, _ in FILES}
    for size, file, _ in FILES:
        if size < 1_000 and file in SEEN_OUTSIDE:
            SEEN_OUTSIDE[file](logs.at[size], logs.entries[:size], keys)


def dropped(of):
    return [*of[:100], *of[101:]]


def first_dropped(of):
    return of[1:]


def last_dropped(of):
    return of[:-1]


def swapped(of):
    return [*of[:100], of[101], of[100], *of[102:]]


def told_twice(of):
    return [*of[:101], *of[100:]]


def replaced(of):
    """One byte of the middle of one entry is another."""
    entry = bytearray(of[100])
    entry[len(entry) // 2] ^= 1
    return [*of[:100], bytes(entry), *of[101:]]


def test_a_log_that_is_rebuilt_from_its_entries_is_the_log(logs, sumdb, tmp_path):
    """What the next tests use makes logs that hold: it is not the rebuilding that is rejected."""
    for size in (1, 257, 513):
        log = grown.rebuilt(logs.at[size], tmp_path / str(size), logs.entries[:size])
        assert holds(log, logs.vkeys[0])
        sumdb("log", logs.vkeys[0], SEED, log)


@pytest.mark.parametrize("spoil", [dropped, first_dropped, last_dropped, swapped, told_twice, replaced])
def test_a_log_in_which_all_agrees_but_the_entries_are_others_is_rejected(logs, sumdb, tmp_path, spoil):
    told = spoil(logs.entries[:513])
    log = grown.rebuilt(logs.at[513], tmp_path / "log", told)
    assert not holds(log, logs.vkeys[0])
    sumdb("log", logs.vkeys[0], SEED, log, code=1)
    made = pymerkle.InmemoryTree.init_from_entries(told)
    size, root = grown.checkpoint(log)
    assert (made.get_size(), made.get_root()) != (size, root)
    if made.get_size() >= size:
        assert made.get_root(size) != root
    # Nor under the signature of whoever has no key of the log.
    forge(log, len(told), made.get_root())
    assert not holds(log, logs.vkeys[0])
    sumdb("log", logs.vkeys[0], SEED, log, code=1)


def forge(log, size, root):
    """A checkpoint under the log's name, by another key."""
    key = Ed25519PrivateKey.generate()
    origin = (log / "checkpoint").read_text().split("\n")[0]
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    typed = b"\x01" + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    kid = verify_receipt.sha256(origin.encode(), b"\n", typed)[:4]
    (log / "checkpoint").write_text(f"{text}\n— {origin} {base64.b64encode(kid + key.sign(text.encode())).decode()}\n")
    vkeys = (log / "keys.vkey").read_text().split("\n")
    vkeys[0] = f"{origin}+{kid.hex()}+{base64.b64encode(typed).decode()}"
    (log / "keys.vkey").write_text("\n".join(vkeys))


def test_entries_that_are_missing_under_a_checkpoint_are_missed(logs, sumdb, tmp_path):
    """A log that was cut, with the checkpoint that it had."""
    log = grown.rebuilt(logs.at[513], tmp_path / "log", logs.entries[:512])
    assert not holds(log, logs.vkeys[0])
    sumdb("log", logs.vkeys[0], SEED, log, code=1)
    for part in ("tile/entries/001", "tile/0/000", "tile/1/000.p/2", "checkpoint", "checkpoint.cose", "wal-00000000"):
        log = grown.linked(logs.at[513], tmp_path / part.replace("/", "-"))
        (log / part).unlink()
        assert not holds(log, logs.vkeys[0]), part
        if part.startswith("tile") or part == "checkpoint":
            sumdb("log", logs.vkeys[0], SEED, log, code=1)


def refused(log, lock, key, home):
    """What the gateway says that does not start on this log under this lock file."""
    gate = Gate(home)
    shutil.copytree(log, gate.log)
    shutil.copy(lock, gate.home / "log.lock")
    shutil.copy(key, gate.policies / "tls/provenance.key")
    gate.upstream("chat", "openai", "http://127.0.0.1:9")
    done = subprocess.run([binary(), "serve", "--policies", gate.policies], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def test_a_log_that_was_cut_to_an_older_checkpoint_is_shorter_and_no_gateway_starts_on_it(logs, tmp_path):
    told = run("log", "verify", logs.at[512], "--key", logs.vkeys[0], "--json")
    assert '"entries":512' in told.replace(" ", "")
    assert "a checkpoint over 70000 entries was signed, and the log has 512" in refused(logs.at[512], logs.lock, logs.key, tmp_path / "cut")
    # Without its lock file the log's own checkpoint is what it may not fall behind.
    (tmp_path / "none").touch()
    cut = grown.rebuilt(logs.at[513], tmp_path / "log", logs.entries[:512])
    assert "a checkpoint over 513 entries was signed, and the log has 512" in refused(cut, tmp_path / "none", logs.key, tmp_path / "own")


def test_two_histories_under_the_same_keys_do_not_go_on_from_each_other(logs, sumdb, tree, tmp_path):
    """Each holds by itself: only who has seen a checkpoint of the one can tell the other."""
    ours, forked = logs.entries[:256], grown.entries(logs.fork)
    assert forked[:255] == ours[:255] and forked[255] != ours[255]
    (size, root), (other, their_root) = grown.checkpoint(logs.at[256]), grown.checkpoint(logs.fork)
    assert size == other == 256 and root != their_root
    # From what both have, both go on.
    sumdb("consistent", logs.vkeys[0], logs.at[255], logs.fork)
    sumdb("consistent", logs.vkeys[0], logs.fork, logs.at[256], code=1)
    sumdb("consistent", logs.vkeys[0], logs.fork, logs.at[257], code=1)
    theirs = pymerkle.InmemoryTree.init_from_entries([*forked, logs.entries[256]])
    after = grown.checkpoint(logs.at[257])[1]
    for made in (tree, theirs):
        proof = made.prove_consistency(256, 257)
        with pytest.raises(pymerkle.InvalidProof):
            pymerkle.verify_consistency(their_root, after, proof, prior_size=256, later_size=257, algorithm="sha256")
    told = refused(logs.fork, logs.at[256] / "checkpoint", logs.key, tmp_path / "fork")
    assert "a checkpoint over 256 entries was signed, and the log has others in their place" in told


@pytest.mark.parametrize("form", ["tlog-proof", "cose", "scitt"])
def test_a_proof_with_a_byte_flipped_and_one_of_another_entry_are_rejected(logs, sumdb, keys, tmp_path, form):
    index, size = 300, 513
    entry, good = logs.entries[index], proof_of(logs.at[size], index, form)
    log_pem, statement_pem = pem_of(keys, verify_receipt.LOG), pem_of(keys, verify_receipt.STATEMENT)
    (tmp_path / "entry").write_bytes(entry)

    def taken(proof, entry):
        """Whether the verifiers take it: all of them, or none."""
        try:
            list(verify_receipt.verify(keys, receipt=proof, statement=entry))
            ours = True
        except Exception:
            ours = False
        if form == "tlog-proof":
            (tmp_path / "proof").write_bytes(proof)
            (tmp_path / "entry").write_bytes(entry)
            done = subprocess.run([sumdb.program, "proof", logs.vkeys[0], tmp_path / "proof", tmp_path / "entry"], capture_output=True)
            return ours, done.returncode == 0
        if form == "cose":
            return ours, scitt_cose.verify_receipt(proof, leaf_entry_hex=entry.hex(), log_public_key_pem=log_pem).ok
        signed = scitt_cose.parse_signed_statement(proof, public_key_pem=statement_pem)["signature_verified"]
        try:
            (receipt,) = scitt_cose.extract_receipts(proof)
        except (scitt_cose.CoseError, ValueError):
            return ours, False
        return ours, signed and scitt_cose.verify_receipt(receipt, leaf_entry_hex=entry.hex(), log_public_key_pem=log_pem).ok

    assert taken(good, entry) == (True, True)
    assert taken(good, logs.entries[index + 1])[0] is False
    assert form == "scitt" or taken(good, logs.entries[index + 1]) == (False, False)
    chance = random.Random(f"{SEED} {form}")
    # Past the line of Ed25519 is that of ML-DSA, of which Go knows nothing.
    end = good.index(b"\n", good.index("—".encode())) if form == "tlog-proof" else len(good)
    for at in sorted({0, end - 1, *(chance.randrange(end) for _ in range(60))}):
        bad = bytearray(good)
        bad[at] ^= chance.randrange(1, 256)
        # RFC 9942 signs the root alone, and the path may lead there in a tree of another size too: which size it is stands in the claims.
        expected = (False, True) if form != "tlog-proof" and all_but_the_size(good, bytes(bad)) else (False, False)
        assert taken(bytes(bad), entry) == expected, f"byte {at}"
    for at in (chance.randrange(end, len(good)) for _ in range(20 if form == "tlog-proof" else 0)):
        bad = bytearray(good)
        bad[at] ^= chance.randrange(1, 256)
        assert taken(bytes(bad), entry)[0] is False, f"byte {at}"


def all_but_the_size(good, bad):
    """Whether two receipts, or two statements with one each, differ in nothing but the size that a path is of."""
    def parts(raw):
        if (receipts := scitt_cose.extract_receipts(raw)):
            (raw,) = receipts
        protected, unprotected, payload, signature = cbor2.loads(raw).value
        (proof,) = unprotected[396][-1]
        size, index, path = cbor2.loads(proof)
        return size, (protected, unprotected.keys(), payload, signature, index, path)

    try:
        (size, rest), (other, more) = parts(good), parts(bad)
    except Exception:
        return False
    return size != other and rest == more
