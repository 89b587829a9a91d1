"""The script that is given to clients: it verifies answers of a running gateway, and takes nothing that was changed."""

import base64
import json
import re
import ssl
import subprocess
import sys

import cbor2
import httpx
import openai
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import grown  # noqa: F401, it finds the script
import raw
import verify_receipt
from conftest import PROMPT
from gate import ROOT
from receipt import parts

SCRIPT = ROOT / "docs/verify_receipt.py"
ASK = [{"role": "user", "content": PROMPT}]


def script(home, code=0, **files):
    """Runs it on these files as a client would, away from everything here; gives what it prints."""
    arguments = []
    for name, content in files.items():
        if name == "included":
            arguments.append("--included")
            continue
        (home / name).write_bytes(content)
        arguments += [f"--{name}", str(home / name)]
    done = subprocess.run([sys.executable, "-I", SCRIPT, *arguments], capture_output=True, text=True, cwd=home, timeout=60)
    assert done.returncode == code and not done.stderr, done.stdout + done.stderr
    return done.stdout


def head(headers):
    """Headers as curl -D writes them."""
    return "".join(["HTTP/1.1 200 OK\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode()


def fetched(gate, id, form=""):
    answer = requests.get(f"{gate.url}/v1/receipts/{id}{form}", headers={"authorization": f"Bearer {gate.app}"}, verify=gate.ca)
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.fixture(scope="module")
def answer(gate):
    """An answer as the unmodified client hands it out, with the receipt in each form."""
    http = httpx.Client(verify=ssl.create_default_context(cafile=gate.ca))
    with openai.OpenAI(base_url=gate.url + "/v1", api_key=gate.app, http_client=http, max_retries=0) as client:
        got = client.chat.completions.with_raw_response.create(model="chat", messages=ASK, max_tokens=5)
    assert len(got.parse().choices[0].message.content) == 5
    id = parts(got.headers["provenance-receipt"])["id"]
    # The other forms wait for the checkpoint that the first may come before.
    forms = {form: fetched(gate, id, form) for form in (".scitt", ".cose", ".tlog-proof", "")}
    more = {"disclosure": fetched(gate, id, ".disclosure"), "forms": forms}
    return {"keys": (gate.log / "keys.vkey").read_bytes(), "headers": head(got.headers), "body": got.content, **more}


@pytest.mark.parametrize("form", ["", ".scitt", ".cose", ".tlog-proof"])
def test_an_answer_and_its_receipt_hold_in_each_form(answer, tmp_path, form):
    files = {name: answer[name] for name in ("keys", "headers", "body")}
    told = script(tmp_path, **files, receipt=answer["forms"][form], included=True)
    for part in ("statement", "body", "inclusion"):
        assert f"holds: {part}" in told
    assert "NOT SHOWN   that the statement commits to this very body" in told and told.count("NOT SHOWN") == 1


def test_with_its_salt_all_of_an_answer_holds_and_no_other_body_does(answer, tmp_path):
    files = {name: answer[name] for name in ("keys", "headers", "body", "disclosure")} | {"receipt": answer["forms"][""]}
    told = script(tmp_path, **files, included=True)
    assert "holds: commitment" in told and "NOT SHOWN" not in told
    # Content-Digest is signed by nobody: whoever changes the body changes it too, and without the salt nothing tells.
    other = answer["body"].replace(b'"object"', b'"objecT"')
    digest = b"content-digest: sha-256=:" + base64.b64encode(verify_receipt.sha256(other)) + b":"
    headers = re.sub(rb"content-digest: [^\r]+", lambda _: digest, answer["headers"], flags=re.I)
    assert headers != answer["headers"]
    changed = files | {"body": other, "headers": headers}
    assert "commits to another body" in script(tmp_path, code=1, **changed)
    del changed["disclosure"]
    assert "NOT SHOWN   that the statement commits to this very body" in script(tmp_path, **changed)


def test_less_shows_less(answer, tmp_path):
    told = script(tmp_path, keys=answer["keys"], headers=answer["headers"], body=answer["body"])
    assert "holds: body" in told and "NOT SHOWN   that the log has the statement (--receipt)" in told
    script(tmp_path, code=1, keys=answer["keys"], headers=answer["headers"], body=answer["body"], included=True)
    early = json.loads(answer["forms"][""])
    del early["inclusion"]
    told = script(tmp_path, keys=answer["keys"], headers=answer["headers"], body=answer["body"], receipt=json.dumps(early).encode())
    assert "a checkpoint covered it: ask for it again" in told and "(--receipt)" not in told
    told = script(tmp_path, keys=answer["keys"], receipt=answer["forms"][".scitt"], included=True)
    assert "NOT SHOWN   what the answer was" in told
    assert "there is none" in script(tmp_path, code=1, keys=answer["keys"], receipt=answer["forms"][".tlog-proof"])


@pytest.mark.parametrize("want", [None, "mode=included"])
def test_a_stream_holds_with_its_statement_inside_or_beside(gate, tmp_path, want):
    ask = {"model": "chat", "messages": ASK, "max_tokens": 4, "stream": True}
    got = raw.http1(gate, "/v1/chat/completions", ask, [("provenance-want", want)] if want else [])
    assert got.status == 200 and (b"provenance-statement" in got.body) == bool(want)
    keys, receipt = (gate.log / "keys.vkey").read_bytes(), parts(got.headers["provenance-receipt"])
    files = {"keys": keys, "headers": head(got.headers), "body": got.body}
    if want:
        assert "inference" in script(tmp_path, **files)
    more = {"receipt": fetched(gate, receipt["id"], ".scitt"), "disclosure": fetched(gate, receipt["id"], ".disclosure")}
    told = script(tmp_path, **files, **more, included=True)
    assert "holds: statement" in told and "holds: inclusion" in told and "holds: commitment" in told
    script(tmp_path, code=1, **(files | {"body": got.body + b"data: more\n\n"}), receipt=fetched(gate, receipt["id"], ".scitt"))


def test_what_was_changed_does_not_hold(gate, answer, tmp_path):
    files = {"keys": answer["keys"], "headers": answer["headers"], "body": answer["body"], "receipt": answer["forms"][""]}
    assert script(tmp_path, **files)

    def changed(name, old, new):
        assert old in files[name], name
        told = script(tmp_path, code=1, **(files | {name: files[name].replace(old, new, 1)}))
        assert "DOES NOT HOLD" in told
        return told

    assert "another than Content-Digest" in changed("body", b'"object"', b'"objecT"')
    assert "bytes, and the statement is about" in changed("body", b"{", b"{ ")
    changed("headers", b"provenance-statement: :0", b"provenance-statement: :1")
    changed("headers", b'provenance-receipt: id="0', b'provenance-receipt: id="1')
    for name in ("root", "checkpoint", "statement"):
        value = json.loads(files["receipt"])
        inside = value if name == "statement" else value["inclusion"]
        inside[name] = inside[name][:40] + ("A" if inside[name][40] != "A" else "B") + inside[name][41:]
        assert "DOES NOT HOLD" in script(tmp_path, code=1, **(files | {"receipt": json.dumps(value).encode()})), name
    value = json.loads(files["receipt"])
    value["inclusion"]["index"] ^= 1
    told = script(tmp_path, code=1, **(files | {"receipt": json.dumps(value).encode()}))
    # Of the last entry of an odd number there is no neighbour.
    assert "another root" in told or "no such index" in told
    # The log key alone, and a key under another name than its id is made of.
    log_key = files["keys"].split(b"\n")[0]
    assert "not given" in script(tmp_path, code=1, **(files | {"keys": log_key}))
    assert "differ" in script(tmp_path, code=1, **(files | {"keys": files["keys"].replace(b"gate", b"gatf", 1)}))
    missing = subprocess.run([sys.executable, SCRIPT, "--keys", tmp_path / "nowhere"], capture_output=True, text=True)
    assert missing.returncode == 2 and "nowhere" in missing.stderr


def vkey(name, kind, public):
    typed = kind + public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    kid = verify_receipt.sha256(name.encode(), b"\n", typed)[:4]
    return kid, f"{name}+{kid.hex()}+{base64.b64encode(typed).decode()}\n"


def made_up(body, salt):
    """A log's statement about this body, by a key of its own, as COSE and the design of commitments have it."""
    origin, id = "gate.test/made-up", "0192aaaa-bbbb-7ccc-8ddd-eeeeffff0000"
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    kid = verify_receipt.sha256(cbor2.dumps({1: 1, -1: 6, -2: public}, canonical=True))[:8]
    protected = cbor2.dumps({1: -8, 4: kid, 15: {1: origin, 2: f"urn:portcullis:r:{id}", 6: 1_800_000_000}}, canonical=True)
    commit = verify_receipt.sha256(b"portcullis/commit/v1", b"response", salt, verify_receipt.sha256(body))
    payload = cbor2.dumps({1: 1, 2: 1, 4: 7, 8: {1: 200, 3: len(body), 4: commit}}, canonical=True)
    signature = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]))
    statement = cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature]))
    disclosure = {"id": id, "commitments": [{"label": "response", "salt": base64.b64encode(salt).decode()}]}
    keys = vkey(origin, verify_receipt.STATEMENT, key.public_key())[1].encode()
    return {"keys": keys, "statement": statement, "body": body, "disclosure": json.dumps(disclosure).encode()}


def test_witnesses_whose_keys_are_given_are_told_and_must_hold(tmp_path):
    """A log of one entry, a checkpoint by both of its keys, and cosignatures of both kinds by a witness, from the specifications."""
    files = made_up(b"the answer", bytes(32))
    origin, witness, time = "gate.test/made-up", "witness.test/w", 1_800_000_001
    root, stamp = verify_receipt.leaf_of(files["statement"]), (1_800_000_001).to_bytes(8, "big")
    text = f"{origin}\n1\n{base64.b64encode(root).decode()}\n"

    def subtree(name):
        who, which = (bytes([len(text)]) + text.encode() for text in (name, origin))
        return b"subtree/v1\n\0" + who + stamp + which + bytes(8) + bytes(7) + b"\1" + root

    log, old = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    second, new = MLDSA44PrivateKey.generate(), MLDSA44PrivateKey.generate()
    note, keys = text + "\n", files["keys"].decode()
    for name, kind, key, before, message in [
        (origin, verify_receipt.LOG, log, b"", text.encode()),
        (origin, verify_receipt.ML_DSA_44, second, stamp, subtree(origin)),
        (witness, verify_receipt.COSIGNER, old, stamp, f"cosignature/v1\ntime {time}\n{text}".encode()),
        (witness, verify_receipt.ML_DSA_44, new, stamp, subtree(witness)),
    ]:
        kid, line = vkey(name, kind, key.public_key())
        keys += line
        note += f"— {name} {base64.b64encode(kid + before + key.sign(message)).decode()}\n"
    proof = f"c2sp.org/tlog-proof@v1\nindex 0\n\n{note}"
    files |= {"keys": keys.encode(), "receipt": proof.encode()}
    told = script(tmp_path, **files, included=True)
    assert f"entry 0 of 1, under a checkpoint that the log signed at {time}, and {witness} has seen" in told
    # Without its keys its lines are passed over; with them they must hold, each.
    unwitnessed = "".join(line + "\n" for line in keys.splitlines() if not line.startswith(witness))
    assert "has seen" not in script(tmp_path, **(files | {"keys": unwitnessed.encode()}), included=True)
    for line in note.split("\n")[-5:-1]:
        at = len(line) - 20
        bad = line[:at] + ("A" if line[at] != "A" else "B") + line[at + 1 :]
        assert "the signature does not hold" in script(tmp_path, code=1, **(files | {"receipt": proof.replace(line, bad).encode()}))
    # A witness does not stand for the log.
    bare = proof.replace(note.split("\n")[5] + "\n", "")
    assert "not signed by every key" in script(tmp_path, code=1, **(files | {"receipt": bare.encode()}))


def test_a_salt_opens_the_commitment_to_one_body_and_to_no_other(tmp_path):
    files = made_up(b"the answer", bytes(range(32)))
    assert "holds: commitment" in script(tmp_path, **files)
    assert "commits to another body" in script(tmp_path, code=1, **(files | {"body": b"the antwer"}))
    other = files["disclosure"].replace(b"AAEC", b"AQEC")
    assert other != files["disclosure"]
    assert "commits to another body" in script(tmp_path, code=1, **(files | {"disclosure": other}))
    # One that was made in the same way for another body, by other keys.
    theirs = made_up(b"the antwer", bytes(32))
    assert "not given" in script(tmp_path, code=1, **(theirs | {"keys": files["keys"]}))
