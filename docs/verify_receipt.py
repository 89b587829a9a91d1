#!/usr/bin/env python3
"""Verifies an answer of a Portcullis gateway with nothing but the public keys of its log.

    pip install cbor2 cryptography
    curl -s -D headers -o body … https://gateway.example/v1/chat/completions …
    curl -s -o receipt https://gateway.example/v1/receipts/ID.scitt      # or ID.tlog-proof; or ID, which waits for no checkpoint
    python verify_receipt.py --keys keys.vkey --headers headers --body body --receipt receipt

It needs no more than this file, and shares no code with the gateway. What it checks, as far as what it was given goes:

  body        the body is the one that the header Content-Digest names (RFC 9530)
  statement   the gateway signed this statement (COSE_Sign1, RFC 9052), and it is about an answer of this length and this id
  commitment  the statement commits to this very body; that needs the salt, which only the caller gets: ID.disclosure
  inclusion   the statement is in the log (RFC 6962): with the root that the log signed, as a checkpoint (C2SP tlog-checkpoint)
              or as a COSE receipt (RFC 9942)

What was not given is not shown, and said to be so. Without the salt in particular nothing that is signed tells this body from another
of its length: Content-Digest is a header like any other. Get the keys from the operator by another way than the answer.

The exit code is 0 where all that was given holds, 1 where something does not, 2 where a file cannot be read.
"""

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys

try:
    import cbor2
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
except ImportError as missing:
    sys.exit(f"{missing}: pip install 'cbor2>=5.6' 'cryptography>=48'")

LOG, COSIGNER, ML_DSA_44, STATEMENT = b"\x01", b"\x04", b"\x06", b"\xffportcullis/cose-statement/ed25519:"
COMMENT = re.compile(rb"(?<![^\r\n]): provenance-statement=([A-Za-z0-9+/=]+)(?:\r\n|\n|\r)")
KINDS = ["inference", "deny", "error", "aborted", "model-load", "policy-change", "config-change", "key-rotation", "erasure", "heartbeat"]


class Wrong(Exception):
    """Something does not hold, or is not of the form that it should be."""


def check(holds, otherwise):
    if not holds:
        raise Wrong(otherwise)


def unbase64(text, what):
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = None
    check(raw is not None and base64.b64encode(raw).decode() == text, f"{what}: not base64 in its one form")
    return raw


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


class Keys:
    """The public keys of one log and of its witnesses, as keys.vkey has them: a line NAME+ID+BASE64(KIND || KEY) each (C2SP signed-note).

    `notes` has those that sign checkpoints by name and id, `cose` the log's own that sign COSE by kid.
    """

    def __init__(self, text):
        self.notes, self.cose, origins = {}, {}, set()
        for line in text.removesuffix("\n").split("\n"):
            check(line.count("+") >= 2, "keys: not a line NAME+ID+KEY")
            name, shown, encoded = line.split("+", 2)
            typed = unbase64(encoded, "keys")
            check(shown == sha256(name.encode(), b"\n", typed)[:4].hex(), "keys: a key and its id differ")
            kind = next((kind for kind in (LOG, COSIGNER, ML_DSA_44, STATEMENT) if typed.startswith(kind)), None)
            check(kind is not None, "keys: a key of a kind that this script does not know")
            raw = typed[len(kind):]
            public = (MLDSA44PublicKey if kind == ML_DSA_44 else Ed25519PublicKey).from_public_bytes(raw)
            if kind in (LOG, STATEMENT):
                origins.add(name)
                # RFC 9679: the thumbprint of the COSE key {1: OKP, -1: Ed25519, -2: raw}; its first eight bytes are the kid.
                kid = sha256(cbor2.dumps({1: 1, -1: 6, -2: raw}, canonical=True))[:8]
                self.cose[kid] = (kind, public)
            if kind != STATEMENT:
                self.notes[name, bytes.fromhex(shown)] = (kind, public)
        check(len(origins) == 1, "keys: of no log, or of more than one")
        (self.origin,) = origins

    def own(self):
        """The kinds of the log's own keys that sign checkpoints."""
        return {kind for (name, _), (kind, _) in self.notes.items() if name == self.origin and kind != COSIGNER}

    def signed(self, kind, kid, message, signature, what):
        """Holds that the key of this kind and kid signed `message`."""
        found, public = self.cose.get(kid, (None, None))
        check(found == kind, f"{what}: signed by a key that is not given")
        verified(public, signature, message, what)


def verified(public, signature, message, what):
    try:
        public.verify(signature, message)
    except InvalidSignature:
        raise Wrong(f"{what}: the signature does not hold") from None


def sign1(raw, what):
    """The parts of a COSE_Sign1: protected header as bytes and as a map, unprotected header, payload, signature."""
    try:
        tagged = cbor2.loads(raw)
        protected, unprotected, payload, signature = tagged.value
        # One message, one encoding: what follows is compared with what was signed.
        once = cbor2.dumps(tagged, canonical=True) == raw and tagged.tag == 18
        header = cbor2.loads(protected)
        once = once and cbor2.dumps(header, canonical=True) == protected
    except Exception as error:
        raise Wrong(f"{what}: not a COSE_Sign1: {error}") from None
    check(once, f"{what}: not in its one encoding")
    check(header.get(1) == -8, f"{what}: not EdDSA")
    return protected, header, unprotected, payload, signature


def signed_bytes(protected, payload):
    return cbor2.dumps(["Signature1", protected, b"", payload])


def open_statement(entry, keys):
    """Verifies a statement; gives its claims and its payload."""
    protected, header, unprotected, payload, signature = sign1(entry, "statement")
    check(not unprotected, "statement: an unprotected header, which no statement has")
    fields = cbor2.loads(payload)
    # The endorsement of the statement key is signed by the log key itself, everything else by the statement key.
    keys.signed(LOG if fields.get(2) == 8 else STATEMENT, header.get(4), signed_bytes(protected, payload), signature, "statement")
    claims = header.get(15, {})
    check(claims.get(1) == keys.origin, "statement: of another log")
    return claims, fields


def root_of(index, size, leaf, path):
    """The root to which a path leads (RFC 9162 §2.1.3.2)."""
    check(type(index) is type(size) is int and 0 <= index < size, "inclusion: no such index in a tree of this size")
    at, last, root = index, size - 1, leaf
    for hash in path:
        check(last > 0 and len(hash) == 32, "inclusion: the path is too long, or holds what is no hash")
        if at & 1 or at == last:
            root = sha256(b"\1", hash, root)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            root = sha256(b"\1", root, hash)
        at, last = at >> 1, last >> 1
    check(last == 0, "inclusion: the path is too short")
    return root


def leaf_of(entry):
    return sha256(b"\0", entry)


def open_checkpoint(note, keys):
    """Verifies a checkpoint by every key of its log and of witnesses that signed it and is given; gives its size, its root, and when the
    log signed it, in seconds since 1970 (none without an ML-DSA-44 key), and which witnesses did."""
    text, blank, lines = note.partition("\n\n")
    check(blank and lines.endswith("\n"), "checkpoint: not a signed note")
    text += "\n"
    origin, size, root, *more = text[:-1].split("\n")
    check(not more and origin == keys.origin, "checkpoint: of another log, or with lines that nobody knows")
    check(re.fullmatch("0|[1-9][0-9]*", size, re.ASCII), "checkpoint: no size")
    size, root, time, own, witnesses = int(size), unbase64(root, "checkpoint"), None, set(), set()
    for line in lines[:-1].split("\n"):
        check(re.fullmatch("— [^ ]+ [^ ]+", line), "checkpoint: a line that is no signature")
        _, name, encoded = line.split(" ")
        raw = unbase64(encoded, "checkpoint")
        kind, public = keys.notes.get((name, raw[:4]), (None, None))
        at = int.from_bytes(raw[4:12], "big")
        if kind is None:
            # Of use to whoever has its key.
            continue
        if kind == LOG:
            verified(public, raw[4:], text.encode(), "checkpoint")
        elif kind == COSIGNER:
            verified(public, raw[12:], f"cosignature/v1\ntime {at}\n{text}".encode(), "checkpoint (a witness)")
        else:
            # C2SP tlog-cosignature, ML-DSA-44: who, when, which log, from where, to where, root.
            message = b"subtree/v1\n\0" + counted(name) + raw[4:12] + counted(origin) + bytes(8) + size.to_bytes(8, "big") + root
            verified(public, raw[12:], message, "checkpoint (ML-DSA-44)")
        if name == origin:
            own.add(kind)
            time = at if kind == ML_DSA_44 else time
        else:
            witnesses.add(name)
    check(own == keys.own(), "checkpoint: not signed by every key of the log")
    return size, root, time, sorted(witnesses)


def counted(name):
    return bytes([len(name.encode())]) + name.encode()


def open_receipt(receipt, entry, keys):
    """Verifies a COSE receipt (RFC 9942) of an entry; gives index and size."""
    protected, header, unprotected, payload, signature = sign1(receipt, "receipt")
    check(header.get(395) == 1 and payload is None, "receipt: of another kind of tree, or with a payload")
    check(header.get(15, {}).get(1) == keys.origin, "receipt: of another log")
    proofs = unprotected.get(396, {}).get(-1, [])
    check(len(proofs) == 1, "receipt: not one proof")
    size, index, path = cbor2.loads(proofs[0])
    # What RFC 9942 signs is the root alone, and a path may fit several sizes: the log names the size in the signed claims.
    check(header[15].get(2) == f"urn:portcullis:tree:{size}", "receipt: of a tree of another size")
    root = root_of(index, size, leaf_of(entry), path)
    keys.signed(LOG, header.get(4), signed_bytes(protected, root), signature, "receipt")
    return index, size


def open_tlog_proof(text, entry, keys):
    """Verifies a tlog-proof (C2SP tlog-proof@v1) of an entry; gives what `under_checkpoint` does."""
    head, blank, checkpoint = text.partition("\n\n")
    lines = head.split("\n")
    check(blank and lines[0] == "c2sp.org/tlog-proof@v1", "proof: not a tlog-proof")
    # One line of what the log adds, which nobody signs.
    lines = [line for line in lines[1:] if not line.startswith("extra ")]
    check(lines and re.fullmatch("index (0|[1-9][0-9]*)", lines[0], re.ASCII), "proof: no index")
    return under_checkpoint(int(lines[0][6:]), [unbase64(line, "proof") for line in lines[1:]], checkpoint, entry, keys)


def under_checkpoint(index, path, checkpoint, entry, keys):
    """Verifies that an entry is in the tree of a checkpoint; gives, in words, where, and who signed that."""
    size, root, time, witnesses = open_checkpoint(checkpoint, keys)
    check(root_of(index, size, leaf_of(entry), path) == root, "inclusion: the path leads to another root than the checkpoint's")
    by = "".join(f", and {name} has seen" for name in witnesses)
    return f"entry {index} of {size}, under a checkpoint that the log signed" + (f" at {time}" if time else "") + by


def headers_of(text):
    """The last header block that curl wrote, by lower-case name."""
    block = [block for block in re.split(r"\r?\n\r?\n", text) if block.strip()][-1]
    pairs = [line.split(":", 1) for line in block.splitlines() if ":" in line and not line.startswith("HTTP/")]
    return {name.strip().lower(): value.strip() for name, value in pairs}


def binary(field, what):
    """A byte sequence of RFC 9651, here also where its padding was left out."""
    found = re.search(r":([A-Za-z0-9+/]+)(=*):", field or "")
    check(found, f"{what}: no byte sequence")
    encoded = found.group(1)
    return unbase64(encoded + "=" * (-len(encoded) % 4), what)


def verify(keys, body=None, headers=None, receipt=None, statement=None, disclosure=None):
    """Verifies all that is given; yields what holds, a line each, and at last `NOT SHOWN` and what was not.

    `headers` are by lower-case name, the others are bytes.
    """
    headers, unshown = headers or {}, []
    if body is not None and "text/event-stream" in headers.get("content-type", "") and (last := list(COMMENT.finditer(body))[-1:]):
        # A stream that carries its statement, of which the statement cannot speak.
        statement = unbase64(last[0].group(1).decode(), "statement")
        body = body[: last[0].start()] + body[last[0].end() :]
    if headers.get("provenance-statement"):
        sent = binary(headers["provenance-statement"], "statement")
        check(statement in (None, sent), "statement: another than the one in the headers")
        statement = sent
    # What the receipt's four forms bring: the statement, a COSE receipt, a path under a checkpoint.
    cose = under = proof = None
    if receipt is not None:
        if receipt.startswith(b"{"):
            view = json.loads(receipt)
            theirs, under = unbase64(view["statement"], "receipt"), view.get("inclusion")
            check(statement in (None, theirs), "receipt: of another statement")
            statement = theirs
        elif receipt.startswith(b"c2sp.org/"):
            proof = receipt.decode()
        else:
            parts = cbor2.loads(receipt).value
            cose = receipt
            if 394 in parts[1]:
                # A transparent statement: the entry is what it was before the log added the receipt.
                protected, header, payload, signature = parts
                cose = header[394][0]
                check(len(header) == 1 and len(header[394]) == 1, "receipt: more than one, or beside something else")
                theirs = cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature]))
                check(statement in (None, theirs), "receipt: of another statement")
                statement = theirs
    check(statement is not None, "statement: there is none; give the answer's headers, or a receipt that holds it")

    claims, fields = open_statement(statement, keys)
    answer, id = fields.get(8, {}), str(claims.get(2)).removeprefix("urn:portcullis:r:")
    kind = fields.get(2)
    kind = KINDS[kind - 1] if isinstance(kind, int) and 0 < kind <= len(KINDS) else kind
    yield f"statement   signed by {keys.origin}: {kind} {id}, entry {fields.get(4)}, at {claims.get(6)} s since 1970"
    if "provenance-receipt" in headers:
        check(f'id="{id}"' in headers["provenance-receipt"], "statement: the headers name another receipt")
    if body is not None:
        digest, told = sha256(body), headers.get("content-digest")
        check(answer.get(3) == len(body), f"body: {len(body)} bytes, and the statement is about {answer.get(3)}")
        if told:
            named = re.search(r"sha-256=(:[^:]*:)", told)
            check(named and binary(named.group(1), "content-digest") == digest, "body: another than Content-Digest names")
            yield f"body        {len(body)} bytes, and SHA-256 as Content-Digest names it"
        if disclosure is not None:
            told = {each["label"]: each for each in json.loads(disclosure)["commitments"]}
            check("response" in told, "commitment: no salt of the answer")
            salt = unbase64(told["response"]["salt"], "commitment")
            commit = sha256(b"portcullis/commit/v1", b"response", salt, digest)
            check(len(salt) == 32 and commit == answer.get(4), "commitment: the statement commits to another body")
            yield "commitment  the statement commits to this very body"
        else:
            unshown.append("that the statement commits to this very body (--disclosure)")
    if cose is not None:
        index, size = open_receipt(cose, statement, keys)
        yield f"inclusion   entry {index} of {size}, as a COSE receipt says whose root the log signed"
    if under is not None:
        path = [unbase64(hash, "receipt") for hash in under["path"]]
        told = (under["size"], unbase64(under["root"], "receipt"))
        check(told == open_checkpoint(under["checkpoint"], keys)[:2], "receipt: size or root are not the checkpoint's")
        yield "inclusion   " + under_checkpoint(under["index"], path, under["checkpoint"], statement, keys)
    if proof is not None:
        yield "inclusion   " + open_tlog_proof(proof, statement, keys)
    if body is None:
        unshown.append("what the answer was (--body)")
    if cose is under is proof is None:
        early = "the receipt is from before a checkpoint covered it: ask for it again"
        unshown.append(f"that the log has the statement ({'--receipt' if receipt is None else early})")
    yield from (f"NOT SHOWN   {what}" for what in unshown)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", required=True, metavar="FILE", help="keys.vkey of the log")
    parser.add_argument("--headers", metavar="FILE", help="the answer's headers, as curl -D writes them")
    parser.add_argument("--body", metavar="FILE", help="the answer's body, byte for byte")
    parser.add_argument("--receipt", metavar="FILE", help="the receipt: JSON, .scitt, .cose or .tlog-proof")
    parser.add_argument("--statement", metavar="FILE", help="the statement, where headers and receipt do not hold it")
    parser.add_argument("--disclosure", metavar="FILE", help="the salts, as .disclosure gives them")
    parser.add_argument("--included", action="store_true", help="fail where nothing shows that the log has it")
    arguments = parser.parse_args()

    def read(path):
        if path is None:
            return None
        with open(path, "rb") as file:
            return file.read()

    try:
        if arguments.disclosure and not arguments.body:
            parser.error("--disclosure needs --body")
        headers = read(arguments.headers)
        headers = headers and headers_of(headers.decode("latin-1"))
        keys = Keys(read(arguments.keys).decode())
        rest = (read(arguments.receipt), read(arguments.statement), read(arguments.disclosure))
        held = []
        for line in verify(keys, read(arguments.body), headers, *rest):
            print(line if line.startswith("NOT") else f"holds: {line}", flush=True)
            held.append(line)
        check(not arguments.included or any(line.startswith("inclusion") for line in held), "inclusion: not shown by what was given")
    except Wrong as wrong:
        print("DOES NOT HOLD:", wrong)
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        # Whatever was given, it is not of the form that it should be.
        print("DOES NOT HOLD: not of the form that it should be:", repr(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
