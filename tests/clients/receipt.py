"""Receipts, verified with public keys alone: nothing here is Portcullis' own code."""

import base64
import hashlib
import re

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

STATEMENT_KIND = b"\xffportcullis/cose-statement/ed25519:"


def keys(folder):
    """The statement keys of `keys.vkey` by key id."""
    found = {}
    for line in (folder / "keys.vkey").read_text().split():
        name, fingerprint, encoded = line.split("+", 2)
        typed = base64.b64decode(encoded, validate=True)
        assert hashlib.sha256(name.encode() + b"\n" + typed).hexdigest()[:8] == fingerprint
        if typed.startswith(STATEMENT_KIND):
            public = typed[len(STATEMENT_KIND) :]
            # RFC 9679: the thumbprint of {kty: OKP, crv: Ed25519, x: public}.
            thumbprint = hashlib.sha256(cbor2.dumps({1: 1, -1: 6, -2: public}, canonical=True)).digest()
            found[thumbprint[:8]] = (name, Ed25519PublicKey.from_public_bytes(public))
    assert found, "keys.vkey holds no statement key"
    return found


def open_statement(statement, trusted):
    """Verifies a COSE_Sign1 statement by RFC 9052 §4.4, and gives its claims and payload."""
    tagged = cbor2.loads(statement)
    assert tagged.tag == 18
    protected, unprotected, payload, signature = tagged.value
    header = cbor2.loads(protected)
    assert unprotected == {} and header[1] == -8
    origin, key = trusted[header[4]]
    key.verify(signature, cbor2.dumps(["Signature1", protected, b"", payload]))
    claims = header[15]
    assert claims[1] == origin
    return claims, cbor2.loads(payload)


def parts(header):
    """`Provenance-Receipt` as a dictionary."""
    found = {key: value.strip('"') for key, value in re.findall(r'([a-z]+)=("[^"]*"|[a-z]+)', header)}
    assert set(found) == {"id", "log", "state", "loc"}, header
    return found


def verify(headers, body, folder):
    """Verifies a whole answer and the receipt in its headers; gives the receipt's parts and the payload."""
    digest = re.fullmatch(r"sha-256=:(.+):", headers["content-digest"]).group(1)
    assert base64.b64decode(digest) == hashlib.sha256(body).digest()
    receipt = parts(headers["provenance-receipt"])
    statement = base64.b64decode(re.fullmatch(r":(.+):", headers["provenance-statement"]).group(1), validate=True)
    claims, payload = open_statement(statement, keys(folder))
    assert claims[1] == receipt["log"]
    assert claims[2] == f"urn:portcullis:r:{receipt['id']}"
    assert payload[8][3] == len(body)
    return receipt, payload, statement


COMMENT = b": provenance-statement="


def blocks(stream):
    """The blocks of a stream of events, each with its blank line; what no blank line ends is the last."""
    end = rb"(?:\r\n|\n|\r)"
    found = re.findall(rb"(?:[^\r\n]+" + end + rb")*" + end + rb"|[\s\S]+", stream)
    assert b"".join(found) == stream
    return found


def root(leaves):
    """The Merkle tree hash of RFC 6962 §2.1."""
    if len(leaves) < 2:
        return hashlib.sha256(b"\0" + leaves[0] if leaves else b"").digest()
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:k]) + root(leaves[k:])).digest()


def taken_out(stream):
    """The statement that is the first line of a stream's last event, and the stream without that line."""
    *before, last = blocks(stream)
    assert all(COMMENT not in block for block in before) and last.startswith(COMMENT), last
    line, rest = re.fullmatch(rb"([^\r\n]+)(?:\r\n|\n|\r)([\s\S]+)", last).groups()
    assert COMMENT not in rest and re.match(rb"(data|event)", rest), "clients break on a block of nothing but comments"
    return base64.b64decode(line.removeprefix(COMMENT), validate=True), b"".join(before) + rest


def commitment(label, salt, content_digest):
    """A commitment, opened with nothing but SHA-256."""
    return hashlib.sha256(b"portcullis/commit/v1" + label.encode() + base64.b64decode(salt, validate=True) + content_digest).digest()


def verify_stream(statement, stream, folder, disclosed):
    """Verifies the statement of a stream of events, of which `stream` is all that came but the line of the statement, with its salts."""
    claims, payload = open_statement(statement, keys(folder))
    salts = {each["label"]: each["salt"] for each in disclosed["commitments"]}
    told, leaves = payload[8], blocks(stream)
    assert (told[3], told[6]) == (len(stream), len(stream))
    assert told[4] == commitment("response", salts["response"], hashlib.sha256(stream).digest())
    assert (told[8], told[9]) == (len(leaves), commitment("events", salts["events"], root(leaves)))
    return claims, payload
