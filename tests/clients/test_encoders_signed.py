"""Encoders from ONNX in signed folders, their weights in one file or in many, served whole way by the program: what was signed answers, and nothing
that is another, lies elsewhere or was added is loaded, by `serve` and by `check` alike."""

import json
import os
import pathlib
import shutil
import ssl
import subprocess

import httpx
import numpy
import openai
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import gate as gates
import onnx_file
from onnx_file import CAT, SMALL

HOME = pathlib.Path(os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local/share") / "portcullis"


class Encoder:
    """A gate with one encoder, in the folder `models/e` of its policies, signed by a key of its own."""

    def __init__(self, home, source=SMALL, model=None, beside=None):
        self.gate = gates.Gate(home)
        self.folder, self.signature = self.gate.policies / "models/e", self.gate.policies / "models/e.sig"
        shutil.copytree(source, self.folder, ignore=shutil.ignore_patterns("model.safetensors", "*.py", "*.md"))
        (self.folder / "model.onnx").write_bytes(onnx_file.table() if model is None else model)
        for name, content in (beside or {}).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        self.private = home / "signer.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        self.private.write_bytes(gates.pem(key))
        spki = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        (self.gate.policies / "models/signer.pem").write_bytes(spki)
        self.sign()
        self.gate.write("models/e.toml", """
            name = "e"
            version = "1"
            tenants = ["acme"]
            [backend.onnx]
            path = "e"
            signature = "e.sig"
            trust = "signer.pem"
            [budget.default]
            requests = { rate = "1000/s", burst = 1000 }
            tokens = { rate = "1000000/s" }
        """)

    def sign(self):
        gates.run("model", "sign", self.folder, "--key", self.private, "--signature", self.signature)

    def client(self):
        self.gate.secret = self.gate.key("tester")
        self.gate.start()
        transport = httpx.Client(verify=ssl.create_default_context(cafile=self.gate.ca))
        return openai.OpenAI(base_url=self.gate.url + "/v1", api_key=self.gate.secret, http_client=transport, max_retries=0)

    def refused(self):
        """Why neither `check` nor `serve` takes it."""
        checked = subprocess.run([gates.binary(), "check", self.gate.policies], capture_output=True, text=True, timeout=60)
        served = subprocess.run([gates.binary(), "serve", "--policies", self.gate.policies], capture_output=True, text=True, timeout=60)
        for done in (checked, served):
            assert done.returncode == 1 and "e.toml" in done.stdout + done.stderr, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        return [checked.stdout + checked.stderr, served.stdout + served.stderr]


def vectors(client, texts):
    return [part.embedding for part in client.embeddings.create(model="e", input=texts).data]


def swapped(encoder, name):
    """The same file with one bit of another value."""
    content = bytearray((encoder.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (encoder.folder / name).write_bytes(content)


def test_a_signed_folder_answers_and_is_known_by_its_signature(tmp_path):
    encoder = Encoder(tmp_path / "gate")
    digest = json.loads(gates.run("model", "verify", encoder.folder, "--signature", encoder.signature, "--trust",
                                  encoder.gate.policies / "models/signer.pem", "--json"))["digest"]
    client = encoder.client()
    [found] = vectors(client, [CAT[0]])
    numpy.testing.assert_allclose(found, onnx_file.mean(CAT[1]), atol=1e-6)
    [loaded] = encoder.gate.events("model.loaded")
    assert digest in json.dumps(loaded)
    assert encoder.gate.stop() == 0


def test_a_file_that_changes_under_a_running_model_is_told_and_changes_nothing(tmp_path):
    model, beside = in_files(2)
    encoder = Encoder(tmp_path / "gate", model=model, beside=beside)
    client = encoder.client()
    before = vectors(client, [CAT[0]])

    def told():
        return {event["file"]: event["found"] for event in encoder.gate.events("model.changed")}

    for name in ("weights/rows1.bin", "tokenizer.json"):
        swapped(encoder, name)
        gates.eventually(lambda: told().get(name) == "another file", 20)
    assert encoder.gate.metric("portcullis_model_changed") == 1 and len(told()) == 2
    assert vectors(client, [CAT[0]]) == before
    for name in ("weights/rows1.bin", "tokenizer.json"):
        swapped(encoder, name)
    gates.eventually(lambda: encoder.gate.metric("portcullis_model_changed") == 0, 20)
    assert encoder.gate.stop() == 0


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_one_bit_of_any_file_keeps_it_from_being_loaded(tmp_path, name):
    encoder = Encoder(tmp_path / "gate")
    swapped(encoder, name)
    for told in encoder.refused():
        assert f'"{name}" is not the file that was signed or named: its digest differs' in told, told


def test_a_file_that_nobody_signed_keeps_it_from_being_loaded(tmp_path):
    encoder = Encoder(tmp_path / "gate")
    (encoder.folder / "modeling_evil.py").write_text("import os\n")
    for told in encoder.refused():
        assert 'not listed by the signature: "modeling_evil.py"' in told, told


def in_files(pieces):
    """A table in so many pieces, each in a file of its own behind eight other bytes; and the files."""
    beside = {}

    def place(name, content):
        beside[f"weights/{name}.bin"] = bytes(8) + content
        return f"weights/{name}.bin", 8

    return onnx_file.moved(onnx_file.table(pieces), place), beside


@pytest.mark.parametrize("pieces", [1, onnx_file.ROWS])
def test_weights_in_signed_files_answer_and_one_bit_of_them_does_not(tmp_path, pieces):
    model, beside = in_files(pieces)
    assert len(beside) == pieces
    encoder = Encoder(tmp_path / "gate", model=model, beside=beside)
    gates.run("check", encoder.gate.policies)
    client = encoder.client()
    [found] = vectors(client, [CAT[0]])
    numpy.testing.assert_allclose(found, onnx_file.mean(CAT[1]), atol=1e-6)
    assert encoder.gate.stop() == 0
    name = list(beside)[-1]
    swapped(encoder, name)
    for told in encoder.refused():
        assert f'"{name}" is not the file that was signed or named' in told, told


LENGTH = onnx_file.ROWS * onnx_file.WIDTH * 4
ELSEWHERE = {
    "above": ("../weights.bin", 0, "is no plain path below the model's folder"),
    "round-about": ("weights/../weights/rows0.bin", 8, "is no plain path below the model's folder"),
    "absolute": ("/etc/passwd", 0, "is no plain path below the model's folder"),
    "absent": ("weights/rows1.bin", 8, '"weights/rows1.bin", which is not among the files that were verified with the model'),
    "past-the-end": ("weights/rows0.bin", 9, f"up to byte {LENGTH + 9}, and that file has {LENGTH + 8}"),
    "past-any-end": ("weights/rows0.bin", 2**64 - 1, "lie past the end of any file"),
    "no-number": ("weights/rows0.bin", -1, "an offset or a length that is no number"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_weights_that_are_said_to_lie_anywhere_else_are_refused_though_it_is_signed(tmp_path, case):
    location, offset, why = ELSEWHERE[case]
    model = onnx_file.moved(onnx_file.table(), lambda name, content: (location, offset))
    # What an honest one would have, and one above that a climbing path would find.
    encoder = Encoder(tmp_path / "gate", model=model, beside=in_files(1)[1])
    (encoder.folder.parent / "weights.bin").write_bytes(bytes(LENGTH))
    for told in encoder.refused():
        assert why in told, told


def test_weights_that_are_there_and_were_not_signed_are_refused(tmp_path):
    model, beside = in_files(2)
    [one, other] = beside
    encoder = Encoder(tmp_path / "gate", model=model, beside={one: beside[one]})
    (encoder.folder / other).write_bytes(beside[other])
    for told in encoder.refused():
        assert f'not listed by the signature: "{other}"' in told, told
    # And those that were signed and are not there any more.
    encoder.sign()
    (encoder.folder / other).unlink()
    for told in encoder.refused():
        assert f'listed and not there: "{other}"' in told, told


def test_minilm_whose_every_tensor_is_a_file_says_what_the_reference_says(tmp_path):
    """As `onnx.save_model(…, save_as_external_data=True, all_tensors_to_one_file=False)` writes it: more files than a message takes descriptors."""
    source, graph = HOME / "all-minilm-l6-v2", HOME / "all-minilm-l6-v2-onnx/model.onnx"
    assert graph.is_file(), f"{graph} is not there: run `make minilm-onnx`"
    beside = {}

    def place(name, content):
        # ONNX leaves smaller ones in the model by itself, and ONNX Runtime wants shapes there.
        if len(content) < 1024:
            return None
        beside[name] = content
        return name, 0

    model = onnx_file.moved(graph.read_bytes(), place)
    assert len(beside) >= 100 and len(model) < 1 << 20
    encoder = Encoder(tmp_path / "gate", source=source, model=model, beside=beside)
    gates.run("check", encoder.gate.policies)
    client = encoder.client()
    expected = json.loads((gates.ROOT / "tests/data/minilm.json").read_text())["sentences"]
    for sentence, found in zip(expected, vectors(client, [sentence["text"] for sentence in expected])):
        cosine = numpy.dot(sentence["embedding"], found) / numpy.linalg.norm(sentence["embedding"]) / numpy.linalg.norm(found)
        assert cosine >= 0.99999
    assert encoder.gate.stop() == 0
