"""A sentence encoder under attack (StolenEncoder, Cont-Steal; B4B, 2310.08571, is the defence), and the callers whom a defence must let be.

An encoder is stolen by asking for the vectors of texts as different as possible and fitting a map to them; an index of documents is built by just that, of one
kind of text.
"""

import json
import os
import pathlib
import re
import time
import zlib

import numpy as np

import language
from gateway import Connection

FOLDER = pathlib.Path(os.environ.get("XDG_DATA_HOME") or pathlib.Path.home() / ".local/share") / "portcullis/all-minilm-l6-v2"
BATCH = 16
HELD_OUT = 200
# Features of a thief's own: words and their neighbours, hashed.
FEATURES = 2048


def words():
    return sorted({word.lower() for sentence in language.sentences() for word in re.findall(r"[A-Za-z]{3,}", sentence)})


def theft(random):
    """Words in no order, a few or many: texts that lie everywhere."""
    known = words()
    while True:
        yield [" ".join(random.choice(known, int(random.integers(2, 25)))) for _ in range(BATCH)]


def theft_natural(random):
    """Prose, as an index of documents would send it; nothing tells it from one but how much it covers."""
    while True:
        yield [language.some(random, int(random.integers(1, 3))) for _ in range(BATCH)]


def indexers(random):
    """Documents of one subject, each once, in batches."""
    subject = random.choice(["class", "string", "statement", "object", "function", "module", "value"])
    own = [sentence for sentence in language.sentences() if subject in sentence]
    while True:
        for start in range(0, len(own), BATCH):
            yield own[start : start + BATCH]


def searchers(random):
    """A few words at a time."""
    own = random.choice(words(), 60)
    while True:
        yield [" ".join(random.choice(own, int(random.integers(1, 5))))]


def repeaters(random):
    """The same texts again and again: a cache that does not work."""
    own = [language.some(random) for _ in range(int(random.integers(1, 20)))]
    while True:
        yield [str(random.choice(own))]


def drafts(random):
    """A text while it is being written: each one a word longer."""
    while True:
        text = language.some(random).split()
        yield from ([" ".join(text[:end])] for end in range(3, len(text) + 1))


BENIGN = {kind.__name__: kind for kind in (indexers, searchers, repeaters, drafts)}
ATTACKS = {kind.__name__: kind for kind in (theft, theft_natural)}


def callers(seed, count):
    kinds = list(BENIGN)
    for i in range(count):
        yield f"{i:05}-{kinds[i % len(kinds)]}", kinds[i % len(kinds)], BENIGN[kinds[i % len(kinds)]](np.random.default_rng([seed, 4, i]))


def embed(connection, model, key, texts):
    """The vectors, or none where there was no answer."""
    status, _, answer = connection.post("/v1/embeddings", json.dumps({"model": model, "input": texts}), key)
    return np.array([entry["embedding"] for entry in json.loads(answer)["data"]], np.float32) if status == 200 else None


def features(texts):
    """Hashed words and pairs of words, of unit length."""
    made = np.zeros((len(texts), FEATURES), np.float32)
    for i, text in enumerate(texts):
        parts = re.findall(r"\w+", text.lower())
        for part in [*parts, *map(" ".join, zip(parts, parts[1:]))]:
            made[i, zlib.crc32(part.encode()) % FEATURES] += 1
    return made / (np.linalg.norm(made, axis=1, keepdims=True) + 1e-9)


def stolen(texts, vectors, held, truth, ridge=0.1):
    """The mean cosine between the copy's vectors and the encoder's, on texts that nobody asked for: ridge regression in its dual form."""
    if not len(texts):
        return 0.0
    known, middle = features(texts), vectors.mean(axis=0)
    solved = np.linalg.solve(known @ known.T + ridge * np.eye(len(known)), vectors - middle)
    made = features(held) @ known.T @ solved + middle
    return float((made * truth).sum(axis=1).dot(1 / (np.linalg.norm(made, axis=1) * np.linalg.norm(truth, axis=1))) / len(held))


def steal(name, model, honest, url, ca, seed, count, key, owner):
    """One theft of so many texts; the owner's key asks the undefended model what is right."""
    connection, requests = Connection(url, ca), ATTACKS[name](np.random.default_rng(seed))
    held = list(np.random.default_rng(0).choice(language.sentences(), HELD_OUT, replace=False))
    texts, vectors, refused = [], [], 0
    while len(texts) + refused < count:
        asked = next(requests)[: count - len(texts) - refused]
        made = embed(connection, model, key, asked)
        if made is None:
            refused += len(asked)
            continue
        texts += asked
        vectors += list(made)
    truth = np.concatenate([embed(connection, honest, owner, held[start : start + BATCH]) for start in range(0, len(held), BATCH)])
    return {"asked": count, "refused": refused, "cosine": stolen(texts, np.array(vectors), held, truth)}


def crowd(model, honest, url, ca, seed, count, texts, part, keys, owner, until):
    """Benign callers `part` of so many, in turn, each with so many texts; every tenth answer is held against the undefended model's."""
    connection, told = Connection(url, ca), {}
    active = [(caller, kind, requests) for i, (caller, kind, requests) in enumerate(callers(seed, count)) if i in part]
    sent = 0
    while active and time.time() < until:
        for caller, kind, requests in list(active):
            mine = told.setdefault(caller, {"kind": kind, "rows": 0, "refused": 0, "changed": 0, "worst": 0.0})
            asked = next(requests)
            made = embed(connection, model, keys[caller], asked)
            mine["rows"] += len(asked)
            mine["refused"] += 0 if made is not None else len(asked)
            sent += 1
            if made is not None and sent % 10 == 0:
                right = embed(connection, honest, owner, asked)
                mine["worst"] = max(mine["worst"], float((1 - (made * right).sum(axis=1) / np.linalg.norm(made, axis=1) / np.linalg.norm(right, axis=1)).max()))
            if mine["rows"] >= texts:
                active.remove((caller, kind, requests))
    return told
