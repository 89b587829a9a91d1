"""A transparency log in memory, written down once more from the specifications: RFC 6962 trees, C2SP signed notes,
checkpoints and cosignatures. The signatures are OpenSSL's, through pyca/cryptography."""

import base64
import hashlib
import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

NOTE, COSIGNER, ML_DSA_44 = 0x01, 0x04, 0x06


def digest(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def b64(raw):
    return base64.b64encode(raw).decode()


def root(leaves):
    if len(leaves) < 2:
        return leaves[0] if leaves else digest()
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    return digest(b"\1", root(leaves[:middle]), root(leaves[middle:]))


def consistency(old, leaves, whole=True):
    """PROOF(m, D[n]) of RFC 6962 §2.1.2; empty from the empty tree."""
    if old == 0:
        return []
    if old == len(leaves):
        return [] if whole else [root(leaves)]
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    if old <= middle:
        return consistency(old, leaves[:middle], whole) + [root(leaves[middle:])]
    return consistency(old - middle, leaves[middle:], False) + [root(leaves[:middle])]


def key_id(name, kind, public):
    return digest(name.encode(), b"\n", bytes([kind]), public)[:4]


def vkey(name, kind, public):
    return f"{name}+{key_id(name, kind, public).hex()}+{b64(bytes([kind]) + public)}"


def lines(text):
    """(name, key ID, signature) of each signature line."""
    for line in text.splitlines():
        dash, name, encoded = line.split(" ")
        raw = base64.b64decode(encoded, validate=True)
        assert dash == "—" and b64(raw) == encoded
        yield name, raw[:4], raw[4:]


def root_by_path(leaf, index, size, path):
    """The root that an inclusion proof leads to (RFC 9162 §2.1.3.2)."""
    at, last, found = index, size - 1, leaf
    for node in path:
        assert last > 0, "the path is too long"
        if at % 2 or at == last:
            found = digest(b"\1", node, found)
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            found = digest(b"\1", found, node)
        at, last = at >> 1, last >> 1
    assert last == 0, "the path is too short"
    return found


class Vkey:
    """A verifier key."""

    def __init__(self, text):
        self.name, shown, encoded = text.split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
        self.kind, self.public = raw[0], raw[1:]
        self.id = key_id(self.name, self.kind, self.public)
        assert self.id.hex() == shown

    def time(self, text, signature):
        """When this key cosigned the checkpoint `text`; raises where it did not."""
        (time,), signature = struct.unpack(">Q", signature[:8]), signature[8:]
        if self.kind == COSIGNER:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, f"cosignature/v1\ntime {time}\n{text}".encode())
        else:
            assert self.kind == ML_DSA_44
            origin, size, hashed = text.splitlines()[:3]
            message = b"subtree/v1\n\0" + bytes([len(self.name)]) + self.name.encode() + struct.pack(">Q", time)
            message += bytes([len(origin)]) + origin.encode() + struct.pack(">QQ", 0, int(size)) + base64.b64decode(hashed)
            MLDSA44PublicKey.from_public_bytes(self.public).verify(signature, message)
        return time


def times(vkeys, text, answer):
    """The times of all lines of `answer`, each of which must be by one of the keys and hold."""
    found = []
    for name, identifier, signature in lines(answer):
        [vkey] = [vkey for vkey in vkeys if (vkey.name, vkey.id) == (name, identifier)]
        found.append(vkey.time(text, signature))
    return found


class Log:
    """A log of `size` leaves; another `history` is another tree under the same key."""

    def __init__(self, origin="log.test/a", size=256, history="a", seed=bytes(32)):
        self.origin, self.key = origin, Ed25519PrivateKey.from_private_bytes(seed)
        self.leaves = [digest(b"\0", f"{history} {number}".encode()) for number in range(size)]

    @property
    def vkey(self):
        return vkey(self.origin, NOTE, self.key.public_key().public_bytes_raw())

    def text(self, size):
        return f"{self.origin}\n{size}\n{b64(root(self.leaves[:size]))}\n"

    def checkpoint(self, size):
        public = self.key.public_key().public_bytes_raw()
        signature = key_id(self.origin, NOTE, public) + self.key.sign(self.text(size).encode())
        return f"{self.text(size)}\n— {self.origin} {b64(signature)}\n"

    def request(self, old, size):
        proof = "".join(f"{b64(node)}\n" for node in consistency(old, self.leaves[:size]))
        return f"old {old}\n{proof}\n{self.checkpoint(size)}"


__all__ = ["InvalidSignature", "Log", "Vkey", "digest", "lines", "root", "root_by_path", "times", "vkey"]
