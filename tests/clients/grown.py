"""Logs of exact sizes, and what reads, rebuilds and spoils them: nothing here is Portcullis' own code but the command that grows them."""

import os
import pathlib
import shutil
import struct
import subprocess
import sys
import uuid

import cbor2
from cryptography.hazmat.primitives.asymmetric import ed25519

from gate import ROOT, binary, pem

sys.path.insert(0, str(ROOT / "docs"))
import verify_receipt  # noqa: E402

# One; two; and what lies around a bundle, two bundles, and a tile of level 1.
SIZES = [1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 70_000]
WIDTH = 256


class Grown:
    """The folder of all logs: `at[size]` is the log as it was when it had so many entries."""

    def __init__(self, home):
        self.home, self.key = home, home / "log.key"
        self.key.write_bytes(pem(ed25519.Ed25519PrivateKey.generate()))
        self.key.chmod(0o600)
        # The profile of the program under test: `make test` has built both.
        profile = [] if "debug" in binary().parts else ["--release"]
        cargo = os.environ.get("CARGO", "cargo")
        command = [cargo, "test", *profile, "--locked", "--quiet", "--test", "it", "--", "--ignored", "--exact", "logs::grow"]
        told = {"PORTCULLIS_GROW_LOGS": str(home), "PORTCULLIS_GROW_SIZES": ",".join(map(str, SIZES))}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | told, capture_output=True, text=True)
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
        self.at = {size: home / "at" / str(size) for size in SIZES}
        # Begun with the first 255 entries of the others, and then another log of as many as `at[256]`.
        self.fork = home / "at/fork"
        # What must not be rolled back: the last checkpoint that was signed.
        self.lock = home / "log.lock"
        self.vkeys = (self.at[SIZES[-1]] / "keys.vkey").read_text().split()
        self.entries = entries(self.at[SIZES[-1]])


def bundles(log):
    """The bundles of a log, in order."""
    folder, number = log / "tile/entries", 0
    while True:
        # No log here has a million entries.
        full = folder / f"{number // 1000:03}/{number % 1000:03}".removeprefix("000/")
        if full.is_file():
            yield full
        else:
            partial = folder / f"{full.name}.p"
            yield from sorted(partial.iterdir(), key=lambda file: int(file.name))[-1:] if partial.is_dir() else []
            return
        number += 1


def entries(log):
    """The entries of a log, from its bundles alone."""
    found = []
    for bundle in bundles(log):
        rest = bundle.read_bytes()
        while rest:
            (length,) = struct.unpack_from(">H", rest)
            assert len(rest) >= 2 + length, "a bundle that is cut short"
            found.append(rest[2 : 2 + length])
            rest = rest[2 + length :]
    return found


def checkpoint(log):
    """Size and root, as all keys of the log have signed them: Ed25519, and ML-DSA-44 by OpenSSL's own."""
    keys = verify_receipt.Keys((log / "keys.vkey").read_text())
    size, root, time, _ = verify_receipt.open_checkpoint((log / "checkpoint").read_text(), keys)
    assert keys.own() == {verify_receipt.LOG, verify_receipt.ML_DSA_44} and time > 1_700_000_000
    return size, root


def signed_root(log):
    """The root in `checkpoint.cose`, as the log key has signed it."""
    keys = verify_receipt.Keys((log / "keys.vkey").read_text())
    protected, header, unprotected, root, signature = verify_receipt.sign1((log / "checkpoint.cose").read_bytes(), "root")
    assert not unprotected and header[395] == 1 and header[15][1] == keys.origin
    keys.signed(verify_receipt.LOG, header[4], verify_receipt.signed_bytes(protected, root), signature, "root")
    return root


def ids(of):
    """The 16 bytes of each entry's id, as `ids` holds them."""
    subjects = [cbor2.loads(cbor2.loads(entry).value[0])[15][2] for entry in of]
    return b"".join(uuid.UUID(subject.removeprefix("urn:portcullis:r:")).bytes for subject in subjects)


def linked(log, to):
    """A copy that has its files in common with the log: what is to be changed in it is to be replaced."""
    shutil.copytree(log, to, copy_function=os.link)
    return to


def rebuilt(log, to, told):
    """A log of these entries, in which all agrees but the checkpoint, which is that of `log`: without its keys nobody makes another."""
    to.mkdir()
    for name in ("checkpoint", "checkpoint.cose", "keys.vkey"):
        shutil.copy(log / name, to / name)
    (to / "ids").write_bytes(ids(told))
    (to / "wal-00000000").write_bytes(write_ahead(told))
    for number in range(0, len(told), WIDTH):
        bundle = told[number : number + WIDTH]
        put(to / "tile/entries", number // WIDTH, len(bundle), b"".join(struct.pack(">H", len(entry)) + entry for entry in bundle))
    level, hashes = 0, [verify_receipt.leaf_of(entry) for entry in told]
    while hashes:
        tiles = [hashes[at : at + WIDTH] for at in range(0, len(hashes), WIDTH)]
        for number, tile in enumerate(tiles):
            put(to / f"tile/{level}", number, len(tile), b"".join(tile))
        level, hashes = level + 1, [joined(tile) for tile in tiles if len(tile) == WIDTH]
    return to


def put(folder, number, width, data):
    assert number < 1000
    path = folder / f"{number:03}" if width == WIDTH else folder / f"{number:03}.p" / str(width)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def joined(hashes):
    while len(hashes) > 1:
        hashes = [verify_receipt.sha256(b"\1", *hashes[at : at + 2]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def write_ahead(told):
    """The write-ahead file of these entries, each with the number that it says itself."""
    numbers = [cbor2.loads(cbor2.loads(entry).value[2])[4] for entry in told]
    header = b"pclswal\n" + struct.pack("<IQQ", 2, numbers[0] if numbers else 0, 0)
    records = [header + struct.pack("<I", crc32c(header))]
    for number, entry in zip(numbers, told):
        length, seq = struct.pack("<I", len(entry)), struct.pack("<Q", number)
        records.append(length + struct.pack("<I", crc32c(length + seq + entry)) + seq + entry)
    return b"".join(records)


def table():
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        yield byte


CRC32C = list(table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Sumdb:
    """Go's `golang.org/x/mod/sumdb`, as its compiler vendors it; compiled once, and kept where it is found again."""

    def __init__(self):
        import go

        root = pathlib.Path(go.__file__).parent
        sources, build = ROOT / "tests/clients/sumdb", ROOT / "target/sumdb"
        vendored = root / "src/cmd/vendor/golang.org/x/mod/sumdb"
        for package in ("note", "tlog"):
            shutil.copytree(vendored / package, build / "mod/sumdb" / package, dirs_exist_ok=True)
        (build / "mod/go.mod").write_text("module golang.org/x/mod\n\ngo 1.25\n")
        shutil.copy(sources / "main.go", build / "main.go")
        # No module is downloaded: the only one is in the compiler's own folder.
        (build / "go.mod").write_text("module sumdb\n\ngo 1.25\n\nrequire golang.org/x/mod v0.0.0\n\nreplace golang.org/x/mod => ./mod\n")
        environment = {"PATH": os.environ["PATH"], "HOME": build, "GOROOT": root, "GOCACHE": build / "cache", "GOPATH": build / "path"}
        environment |= {"GOENV": "off", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
        self.program = build / "sumdb"
        command = [root / "bin/go", "build", "-trimpath", "-o", self.program, "."]
        self.compiling = subprocess.Popen(command, cwd=build, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def compiled(self):
        said, _ = self.compiling.communicate(timeout=300)
        assert self.compiling.returncode == 0, said
        return self

    def __call__(self, verb, *arguments, code=0):
        """What it printed: a list of size and root."""
        done = subprocess.run([self.program, verb, *map(str, arguments)], capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        assert code == 0 or "panic" not in done.stderr, done.stderr
        return [line.split() for line in done.stdout.splitlines()]
