"""Makes a checkpoint that a log and a witness have signed, without any code of this repository.

    python3 -m venv /tmp/notes && /tmp/notes/bin/pip install dilithium-py==1.5.1 cryptography==50.0.2
    /tmp/notes/bin/python tests/data/make_cosigned.py

writes, always the same bytes:

    tests/data/cosigned.note     the checkpoint: the log's lines (Ed25519, ML-DSA-44), then the witness's
    tests/data/cosigned.vkeys    the four keys, in the order of the lines

Ed25519 is OpenSSL's, ML-DSA-44 is dilithium-py's, and the formats are written down here once more from C2SP signed-note,
tlog-checkpoint and tlog-cosignature.
"""

import base64
import hashlib
import pathlib
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dilithium_py.ml_dsa import ML_DSA_44

HERE = pathlib.Path(__file__).resolve().parent
LOG, WITNESS = "log.example/portcullis/n1", "witness.example/w1"
TIME = 1_764_115_200
SIZE, ROOT = 70_000, hashlib.sha256(b"a root").digest()
TEXT = f"{LOG}\n{SIZE}\n{base64.b64encode(ROOT).decode()}\n"


def key_id(name, kind, public):
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def vkey(name, kind, public):
    return f"{name}+{key_id(name, kind, public).hex()}+{base64.b64encode(bytes([kind]) + public).decode()}\n"


def line(name, kind, public, signature):
    return f"— {name} {base64.b64encode(key_id(name, kind, public) + signature).decode()}\n"


def subtree(name):
    vector = lambda text: bytes([len(text)]) + text.encode()
    return b"subtree/v1\n\0" + vector(name) + struct.pack(">Q", TIME) + vector(LOG) + struct.pack(">QQ", 0, SIZE) + ROOT


def main():
    stamp = struct.pack(">Q", TIME)
    lines, vkeys = [], []

    def add(name, kind, public, signature):
        lines.append(line(name, kind, public, signature))
        vkeys.append(vkey(name, kind, public))

    for seed, (name, kind, message) in enumerate(
        [(LOG, 0x01, TEXT), (LOG, 0x06, None), (WITNESS, 0x04, f"cosignature/v1\ntime {TIME}\n{TEXT}"), (WITNESS, 0x06, None)]
    ):
        seed = bytes([seed + 1]) * 32
        if kind == 0x06:
            public, secret = ML_DSA_44.key_derive(seed)
            add(name, kind, public, stamp + ML_DSA_44.sign(secret, subtree(name), deterministic=True))
        else:
            key = Ed25519PrivateKey.from_private_bytes(seed)
            add(name, kind, key.public_key().public_bytes_raw(), (stamp if kind == 0x04 else b"") + key.sign(message.encode()))
    (HERE / "cosigned.note").write_text(TEXT + "\n" + "".join(lines))
    (HERE / "cosigned.vkeys").write_text("".join(vkeys))


if __name__ == "__main__":
    main()
