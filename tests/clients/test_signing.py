"""Signatures over models: the reference of OpenSSF Model Signing (`model-signing`) and Portcullis sign and verify each other's bundles."""

import base64
import datetime
import json
import os
import shutil
import ssl
import subprocess
import sys

import httpx
import numpy
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import gate as gates

CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


def reference(*arguments, ok=True):
    """`model_signing …`, and whether it says yes."""
    done = subprocess.run([sys.executable, "-m", "model_signing", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == ok, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def ours(*arguments, code=0):
    return gates.run("model", *arguments, code=code)


def pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_pem(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate(name, key, issuer, issuer_key, *, authority=False, days=(-1, 30), purposes=(ExtendedKeyUsageOID.CODE_SIGNING,)):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(NOW + days[0] * DAY).not_valid_after(NOW + days[1] * DAY)
    builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
    usage = x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage)
    builder = builder.add_extension(usage, critical=True)
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(purposes)), critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256())


def write_certificate(path, *certificates):
    path.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates))
    return path


class Signer:
    """A key, a certificate for it below an intermediate authority, and what verifiers of either mode trust."""

    def __init__(self, home, curve, **leaf):
        home.mkdir()
        self.key = ec.generate_private_key(CURVES[curve]())
        self.key_file, self.public = home / "key.pem", home / "public.pem"
        self.key_file.write_bytes(pem(self.key))
        self.public.write_bytes(public_pem(self.key))
        root_key, middle_key = rsa.generate_private_key(65537, 2048), ec.generate_private_key(CURVES[curve]())
        self.root = certificate("root", root_key, None, None, authority=True)
        self.middle = certificate("middle", middle_key, self.root, root_key, authority=True)
        self.leaf = certificate("signer", self.key, self.middle, middle_key, **leaf)
        self.root_file = write_certificate(home / "root.pem", self.root)
        self.middle_file = write_certificate(home / "middle.pem", self.middle)
        self.leaf_file = write_certificate(home / "leaf.pem", self.leaf)

    def trust(self, mode):
        return self.public if mode == "key" else self.root_file

    def sign_ours(self, model, signature, mode, **kwargs):
        more = [] if mode == "key" else ["--certificate", self.leaf_file, "--chain", self.middle_file]
        return ours("sign", model, "--key", self.key_file, "--signature", signature, *more, **kwargs)

    def sign_reference(self, model, signature, mode, *more):
        given = [] if mode == "key" else ["--signing_certificate", self.leaf_file, "--certificate_chain", self.middle_file]
        reference("sign", mode, "--private_key", self.key_file, *given, "--signature", signature, *more, model)

    def verify_ours(self, model, signature, mode, code=0):
        return ours("verify", model, "--signature", signature, "--trust", self.trust(mode), "--json", code=code)

    def verify_reference(self, model, signature, mode, ok=True):
        given = ["--public_key", self.public] if mode == "key" else ["--certificate_chain", self.root_file]
        return reference("verify", mode, *given, "--signature", signature, model, ok=ok)


@pytest.fixture(params=[(mode, curve) for mode in ("key", "certificate") for curve in CURVES], ids=lambda value: "-".join(value))
def signing(request, tmp_path):
    mode, curve = request.param
    return mode, Signer(tmp_path / "signer", curve)


@pytest.fixture
def model(tmp_path):
    """A folder whose files the two orders of names sort differently, with what git leaves there."""
    home = tmp_path / "model"
    files = {
        "model.safetensors": b"\2\0\0\0\0\0\0\0{}", "config.json": b"{}", "1_Pooling/config.json": b"{}", "1_Pooling.txt": b"x",
        "1_Pooling-old": b"y", "Modèle 1.txt": b"z", "empty": b"", "big.bin": os.urandom(3_000_000), ".gitattributes": b"*",
    }
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    return home


def change(model):
    (model / "config.json").write_bytes(b"[]")


def add(model):
    (model / "1_Pooling/evil.py").write_bytes(b"import os")


def remove(model):
    (model / "empty").unlink()


def link(model):
    shutil.move(model / "config.json", model.parent / "config.json")
    (model / "config.json").symlink_to("../config.json")


def test_what_the_reference_signs_we_verify_and_what_we_sign_it_verifies(signing, model, tmp_path):
    mode, signer = signing
    theirs, own = tmp_path / "theirs.sig", tmp_path / "own.sig"
    signer.sign_reference(model, theirs, mode)
    signer.sign_ours(model, own, mode)
    for signature in (theirs, own):
        said = json.loads(signer.verify_ours(model, signature, mode))
        assert said["ok"] and said["signer"]["mode"] == mode and said["files"] == 8
    signer.verify_reference(model, own, mode)
    for tamper in (change, add, remove, link):
        touched = tmp_path / tamper.__name__ / "model"
        shutil.copytree(model, touched)
        tamper(touched)
        for signature in (theirs, own):
            assert not json.loads(signer.verify_ours(touched, signature, mode, code=1))["ok"]
        signer.verify_reference(touched, own, mode, ok=False)


def test_another_signer_is_not_the_one_that_is_trusted(signing, model, tmp_path):
    mode, signer = signing
    other = Signer(tmp_path / "other", "P-256")
    for sign in (signer.sign_ours, signer.sign_reference):
        sign(model, tmp_path / "s.sig", mode)
        other.verify_ours(model, tmp_path / "s.sig", mode, code=1)
        # Nor does the other mode's trust do.
        other_mode = "key" if mode == "certificate" else "certificate"
        signer.verify_ours(model, tmp_path / "s.sig", other_mode, code=1)


def test_a_changed_statement_or_signature_is_refused(signing, model, tmp_path):
    mode, signer = signing
    signature = tmp_path / "s.sig"
    signer.sign_reference(model, signature, mode)
    bundle = json.loads(signature.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    for old, new in [(b'"allow_symlinks": false', b'"allow_symlinks": true'), (b'"name": "model"', b'"name": "other"')]:
        assert old in payload
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(old, new)).decode()
        signature.write_text(json.dumps(bundle))
        assert "signature is wrong" in json.loads(signer.verify_ours(model, signature, mode, code=1))["why"]


@pytest.mark.parametrize("mode", ["key", "certificate"])
def test_a_signature_in_its_own_folder_and_paths_left_out(model, tmp_path, mode):
    signer = Signer(tmp_path / "signer", "P-256")
    signature = model / "model.sig"
    signer.sign_ours(model, signature, mode)
    signer.verify_reference(model, signature, mode)
    signer.verify_ours(model, signature, mode)
    signer.sign_reference(model, signature, mode, "--ignore-paths", model / "big.bin", "--ignore-paths", model / "1_Pooling")
    (model / "1_Pooling/new").write_bytes(b"new")
    signer.verify_reference(model, signature, mode)
    assert json.loads(signer.verify_ours(model, signature, mode))["files"] == 6
    signature.unlink()
    ours("sign", model, "--key", signer.key_file, "--signature", signature, "--ignore", "1_Pooling")
    signer.verify_reference(model, signature, "key")
    assert json.loads(signer.verify_ours(model, signature, "key"))["files"] == 7


def test_a_single_file(signing, tmp_path):
    mode, signer = signing
    file, signature = tmp_path / "weights.bin", tmp_path / "weights.sig"
    file.write_bytes(os.urandom(100_000))
    signer.sign_reference(file, signature, mode)
    signer.verify_ours(file, signature, mode)
    signer.sign_ours(file, signature, mode)
    signer.verify_reference(file, signature, mode)
    file.write_bytes(b"other")
    signer.verify_ours(file, signature, mode, code=1)


def test_files_signed_in_parts_are_verified(model, tmp_path):
    signer, signature = Signer(tmp_path / "signer", "P-384"), tmp_path / "parts.sig"
    code = f"""
import model_signing
hashing = model_signing.hashing.Config().use_shard_serialization(shard_size=700_001)
config = model_signing.signing.Config().use_elliptic_key_signer(private_key={str(signer.key_file)!r}).set_hashing_config(hashing)
config.sign({str(model)!r}, {str(signature)!r})
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    names = [resource["name"] for resource in statement(signature)["predicate"]["resources"]]
    assert "big.bin:2800004:3000000" in names
    assert json.loads(signer.verify_ours(model, signature, "key"))["ok"]
    with open(model / "big.bin", "r+b") as file:
        file.seek(2_900_000)
        file.write(b"!")
    signer.verify_ours(model, signature, "key", code=1)


def test_digests_that_are_not_sha256_are_refused_in_words(model, tmp_path):
    signer, signature = Signer(tmp_path / "signer", "P-256"), tmp_path / "blake.sig"
    code = f"""
import model_signing
hashing = model_signing.hashing.Config().use_file_serialization(hashing_algorithm="blake3")
config = model_signing.signing.Config().use_elliptic_key_signer(private_key={str(signer.key_file)!r}).set_hashing_config(hashing)
config.sign({str(model)!r}, {str(signature)!r})
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "sha256" in json.loads(signer.verify_ours(model, signature, "key", code=1))["why"]


def statement(signature):
    return json.loads(base64.b64decode(json.loads(signature.read_text())["dsseEnvelope"]["payload"]))


def test_a_certificate_that_has_expired_or_is_for_something_else_is_refused(model, tmp_path):
    signature = tmp_path / "s.sig"
    expired = Signer(tmp_path / "expired", "P-256", days=(-30, -1))
    expired.sign_reference(model, signature, "certificate")
    # The reference judges a certificate at the moment from which it is valid, whatever day it is.
    assert "expired" in json.loads(expired.verify_ours(model, signature, "certificate", code=1))["why"]
    server = Signer(tmp_path / "server", "P-256", purposes=(ExtendedKeyUsageOID.SERVER_AUTH,))
    server.sign_reference(model, signature, "certificate")
    assert "codeSigning" in json.loads(server.verify_ours(model, signature, "certificate", code=1))["why"]


def test_a_gateway_serves_a_signed_model_and_refuses_it_once_a_file_is_added(tmp_path):
    signer = Signer(tmp_path / "signer", "P-384")
    gate = gates.Gate(tmp_path / "gate")
    gate.key("app")
    models = gate.policies / "models"
    (models / "digits").mkdir()
    shutil.copy(gates.ROOT / "policies/models/digits.onnx", models / "digits/digits.onnx")
    gate.write("models/digits.toml", """
        name = "digits"
        public = true
        [backend.onnx]
        path = "digits/digits.onnx"
        signature = "digits.sig"
        trust = "../keys/models.pem"
    """)
    for mode in ("key", "certificate"):
        shutil.copy(signer.trust(mode), gate.policies / "keys/models.pem")
        signer.sign_reference(models / "digits", models / "digits.sig", mode)
        gate.start()
        root = statement(models / "digits.sig")["subject"][0]["digest"]["sha256"]
        assert gate.stop() == 0
        assert root in (gate.home / "security.log").read_text() + json.dumps(gate.entries())
        (models / "digits/extra.bin").write_bytes(b"x")
        refused = subprocess.run([gates.binary(), "serve", "--policies", gate.policies], capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1 and "extra.bin" in refused.stderr
        (models / "digits/extra.bin").unlink()


def test_a_signed_folder_brings_its_weights_its_card_and_its_golden_answers(tmp_path):
    table = json.loads((gates.ROOT / "tests/data/tabular.json").read_text())
    row, weights = table["rows"][0], [numpy.array(weights) for weights in table["weights"]]
    z = numpy.tanh(numpy.array(row) @ weights[0] + weights[1]) @ weights[2] + weights[3]
    risk = (numpy.exp(z - z.max()) / numpy.exp(z - z.max()).sum()).tolist()
    inputs = [{"name": "age", "datatype": "INT64", "shape": [1, 1], "data": row[:1]},
              {"name": "rest", "datatype": "FP32", "shape": [1, 5], "data": row[1:]}]
    expected = [{"name": "risk", "datatype": "FP32", "shape": [1, 3], "data": risk}]

    signer = Signer(tmp_path / "signer", "P-256")
    gate = gates.Gate(tmp_path / "gate")
    secret = gate.key("app")
    models = gate.policies / "models"
    folder = models / "table"
    folder.mkdir()
    shutil.copy(gates.ROOT / "tests/data/tabular-beside.onnx", folder / "model.onnx")
    shutil.copy(gates.ROOT / "tests/data/tabular.weights", folder)
    (folder / "README.md").write_text("# A table\n")
    (folder / "golden.json").write_text(json.dumps({"cases": [{"inputs": inputs, "outputs": expected}]}))
    shutil.copy(signer.trust("key"), gate.policies / "keys/models.pem")
    signer.sign_reference(folder, models / "table.sig", "key")
    gate.write("models/table.toml", """
        name = "table"
        public = true
        [backend.onnx]
        path = "table/model.onnx"
        signature = "table.sig"
        trust = "../keys/models.pem"
        card = "README.md"
        golden = "golden.json"
    """)
    gate.start()
    context = ssl.create_default_context(cafile=gate.ca)
    with httpx.Client(verify=context, headers={"authorization": f"Bearer {secret}"}) as http:
        answer = http.post(f"{gate.url}/v2/models/table/infer", json={"inputs": inputs, "outputs": [{"name": "risk"}]}).json()
        assert numpy.abs(numpy.array(answer["outputs"][0]["data"]) - risk).max() < 1e-6
        assert http.get(f"{gate.url}/v2/models/table/card").text == "# A table\n"
    assert gate.stop() == 0

    # Golden answers of another model, and weights that nobody signed.
    expected[0]["data"] = risk[::-1]
    (folder / "golden.json").write_text(json.dumps({"cases": [{"inputs": inputs, "outputs": expected}]}))
    signer.sign_reference(folder, models / "table.sig", "key")

    def refused():
        done = subprocess.run([gates.binary(), "serve", "--policies", gate.policies], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        return done.stderr

    assert "`golden`: the model's answer to case 0 is another" in refused()
    (folder / "tabular.weights").write_bytes(bytes((gates.ROOT / "tests/data/tabular.weights").stat().st_size))
    assert "tabular.weights" in refused()
