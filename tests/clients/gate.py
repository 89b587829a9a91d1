"""A gateway of one's own: a policy folder, the program that is shipped, and what it says."""

import contextlib
import datetime
import hashlib
import ipaddress
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORIGIN = "gate.test/portcullis/node1"

# Who may do what; tests that need other rules write them over this file.
ACCESS = """
permit (principal in Role::"app", action, resource)
when { resource.public || resource.tenants.contains(principal.tenant) };
"""


def binary():
    """The program under test: $PORTCULLIS_BIN, or the release build."""
    path = pathlib.Path(os.environ.get("PORTCULLIS_BIN") or ROOT / "target/release/portcullis")
    assert path.is_file(), f"{path} is not there: run `make build`, or set PORTCULLIS_BIN to the program to test"
    return path.resolve()


# Below the ports that a kernel gives to connections, each at most once: one that is free stays free until it is used.
_ports = itertools.chain(range(first := 20_000 + os.getpid() * 31 % 12_000, 32_000), range(20_000, first))


def free_port():
    for port in _ports:
        with socket.socket() as taken:
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free from 20,000 to 32,000")


def eventually(what, seconds=10.0, every=0.05):
    """The first truthy answer of `what`; fails when there is none in time."""
    until = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < until, f"not within {seconds} s: {getattr(what, '__doc__', None) or what}"
        time.sleep(every)


def run(*arguments, code=0, timeout=60):
    """A command of the program, and what it printed; `code` is the exit code it must have."""
    done = subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, f"exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def pem(key):
    kind, whole, none = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(kind, whole, none)


def certificates(folder):
    """An authority, and a certificate for 127.0.0.1 and localhost."""
    now = datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def begun(public):
        builder = x509.CertificateBuilder().issuer_name(name).public_key(public).serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))

    usage = dict.fromkeys(
        ("digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign "
         "encipher_only decipher_only").split(), False)
    authority = (
        begun(authority_key.public_key())
        .subject_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.KeyUsage(**{**usage, "key_cert_sign": True, "crl_sign": True}), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), False)
        .sign(authority_key, hashes.SHA256())
    )
    loopback = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        begun(key.public_key())
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .add_extension(x509.SubjectAlternativeName(loopback), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.KeyUsage(**{**usage, "digital_signature": True}), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False)
        .sign(authority_key, hashes.SHA256())
    )
    text = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(authority.public_bytes(text))
    (folder / "server.pem").write_bytes(server.public_bytes(text) + authority.public_bytes(text))
    (folder / "server.key").write_bytes(pem(key))


class Gate:
    """A policy folder under `home`, and the gateway that serves it."""

    def __init__(self, home, record="", accept=""):
        self.home, self.policies, self.log = home, home / "policies", home / "log"
        for folder in ("models", "schemas", "tls", "keys"):
            (self.policies / folder).mkdir(parents=True)
        certificates(self.policies / "tls")
        key = self.policies / "tls/provenance.key"
        key.write_bytes(pem(ed25519.Ed25519PrivateKey.generate()))
        for secret in (key, self.policies / "tls/server.key"):
            secret.chmod(0o600)
        self.port, self.admin_port = free_port(), free_port()
        self.write("gateway.toml", f"""
            [accept]
            listen = "127.0.0.1:{self.port}"
            drain = "10s"
            {accept}
            [accept.tls]
            certificate = "tls/server.pem"
            key = "tls/server.key"
            [admin]
            listen = "127.0.0.1:{self.admin_port}"
            [prove]
            directory = "../log"
            origin = "{ORIGIN}"
            key = "tls/provenance.key"
            [record]
            security_log = "../security.log"
            {record}
        """)
        self.write("access.cedar", ACCESS)
        self.write("callers.toml", "")
        self.process, self.stderr, self.secrets = None, [], []

    url = property(lambda self: f"https://127.0.0.1:{self.port}")
    authority = property(lambda self: f"127.0.0.1:{self.port}")
    ca = property(lambda self: str(self.policies / "tls/ca.pem"))

    def write(self, path, text):
        """Writes a policy file whole or not at all, as an operator's tools do."""
        target = self.policies / path
        draft = target.with_name(target.name + ".draft")
        draft.write_text(text)
        draft.rename(target)

    def key(self, name, tenant="acme", role="app", tier=""):
        """A new API key."""
        arguments = ["--tenant", tenant, "--role", role, "--policies", self.policies, "--json"]
        made = json.loads(run("key", "new", name, *arguments, *(["--tier", tier] if tier else [])))
        assert hashlib.sha256(made["secret"].encode()).hexdigest() == made["sha256"]
        self.secrets.append(made["secret"])
        return made["secret"]

    def digits(self, more=""):
        """The bundled classifier, served in this machine."""
        model = ROOT / "policies/models/digits.onnx"
        shutil.copy(model, self.policies / "models/digits.onnx")
        self.write("models/digits.toml", f"""
            name = "digits"
            version = "1"
            public = true
            [backend.onnx]
            path = "digits.onnx"
            sha256 = "{hashlib.sha256(model.read_bytes()).hexdigest()}"
            [check]
            max_batch = 32
            range = {{ input = [0.0, 16.0] }}
            [budget.default]
            requests = {{ rate = "1000/s", burst = 1000 }}
            {more}
        """)

    def upstream(self, name, protocol, url, model=None, backend="", more="", budget=True, version=""):
        """A model behind an upstream."""
        wide = '[budget.default]\nrequests = { rate = "1000/s", burst = 1000 }\n'
        named = f'model = "{model}"' if model else ""
        self.write(f"models/{name}.toml", f"""
            name = "{name}"
            version = "{version}"
            tenants = ["acme"]
            {"[route]" + chr(10) + 'path = "/' + name + '"' + chr(10) + 'methods = ["POST"]' if protocol == "raw" else ""}
            [backend.upstream]
            protocol = "{protocol}"
            urls = ["{url}"]
            {named}
            {backend}
            {wide if budget else ""}
            {more}
        """)

    def start(self):
        """Starts the program and waits until it takes requests."""
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [binary(), "serve", "--policies", self.policies], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        ready = threading.Event()

        def listen():
            for line in self.process.stdout:
                self.stderr.append(line)
                if "ready on" in line:
                    self.took = time.monotonic() - begun
                    ready.set()
            ready.set()

        self.listening = threading.Thread(target=listen, daemon=True)
        self.listening.start()
        assert ready.wait(30) and self.process.poll() is None, f"the gateway did not start:\n{self.said()}"
        return self

    def said(self):
        return "".join(self.stderr)

    def stop(self):
        """SIGTERM, and the exit code."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.listening.join(5)
        return code

    def admin(self, path):
        """Status and body of a page of the operators' listener."""
        with contextlib.suppress(urllib.error.HTTPError):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=5) as page:
                return page.status, page.read().decode()
        return None, ""

    def metric(self, name):
        """The sum of a metric's samples, or none."""
        values = [line.rsplit(" ", 1)[1] for line in self.admin("/metrics")[1].splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(map(float, values)) if values else None

    def events(self, name=None):
        """The security log."""
        lines = (self.home / "security.log").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if name in (None, event["event"])]

    def told_of_receipt(self, receipt):
        """The event of the security log that names a receipt, which may come a moment after the answer."""
        return eventually(lambda: next((event for event in self.events() if event.get("receipt") == receipt), None))

    def entries(self):
        """The provenance log, as `log show` tells it."""
        return [json.loads(line) for line in run("log", "show", self.log).splitlines()]
