"""What one process of the harness does: a benign crowd, or one attack, over HTTPS. Takes and gives plain values, so that it can run in a process of its own."""

import functools
import json
import time
import warnings
import zlib

import numpy as np

import attacks
import benign
import evasion
import language
import logits
import thief
from gateway import Connection, Https, probabilities
from oracle import request


# The models under attack, by name: made once and handed to every process, as one of them takes a while to train.
VICTIMS = {}


def begin(made):
    warnings.filterwarnings("ignore")
    VICTIMS.update({victim.name: victim for victim in made})


def crowd(name, model, url, ca, seed, pool, count, rows, part, keys, until):
    """Benign callers `part` of so many, all awake at once and in turn; what became of each, beside what the model itself says."""
    model_itself, connection = VICTIMS[name], Connection(url, ca)
    everyone = list(benign.callers(model_itself, seed, pool, count, rows))[part.start : part.stop]
    told = {caller: {"kind": kind, "rows": 0, "refused": 0, "changed": 0, "error": 0.0, "worst": 0.0} for caller, kind, _ in everyone}
    random, active, took = np.random.default_rng([seed, 7, part.start]), list(everyone), []
    while active and time.time() < until:
        i = int(random.integers(len(active)))
        caller, _, requests = active[i]
        sent = next(requests, None)
        if sent is None:
            active.pop(i)
            continue
        body = request(sent)
        begun = time.perf_counter()
        status, _, answer = connection.post(f"/v2/models/{model}/infer", body, keys[caller])
        took.append(time.perf_counter() - begun)
        mine = told[caller]
        mine["rows"] += len(sent)
        if status != 200:
            mine["refused"] += len(sent)
            continue
        answered, labels = probabilities(answer)
        expected, right = model_itself.predict(model_itself.clip(sent))
        mine["changed"] += int((np.array(labels) != right).sum())
        error = np.abs(answered - expected).max(axis=1)
        mine["error"] += float(error.sum())
        mine["worst"] = max(mine["worst"], float(error.max()))
    for caller, _, _ in active:
        told.pop(caller)  # cut off by the clock: not a whole day
    return told, took


def attack(name, victim_name, model, url, ca, seed, queries, batch, remember, keys):
    """One attack to its end: what was asked and answered, by which key, and what it came to."""
    model_itself, begun = VICTIMS[victim_name], time.time()
    oracle = Https(model_itself, queries, batch, remember, url, ca, model, keys)
    found, ended = attacks.run(name, oracle, seed, rehearsed=seed % 2 == 0)  # half of them have practised at home
    succeeded = [evasion.successful(model_itself, row, made) for row, made in found]
    rows, answers = np.array(oracle.rows, np.float32), np.array(oracle.answers, np.float32)
    return {"rows": rows, "answers": answers, "owners": oracle.owners, "ended": ended, "bases": len(found), "successes": sum(succeeded),
            "refusals": oracle.refusals, "seconds": time.time() - begun}


def fidelity(victim_name, rows, answers, until=None, label_only=False, as_metered=False):
    """How good a copy these answers make, up to a row; of their labels alone; on rows like those that the meter has, rather than the holdout."""
    model_itself = VICTIMS[victim_name]
    rows, answers = rows[:until], answers[:until]
    if label_only and len(answers):
        answers = np.eye(model_itself.classes, dtype=np.float32)[answers.argmax(axis=1)]
    judged_on = like_the_owners(victim_name) if as_metered else None
    return thief.best(model_itself, rows, answers, zlib.crc32(victim_name.encode()), judged_on)


@functools.cache
def like_the_owners(victim_name):
    return benign.like_the_owners(VICTIMS[victim_name])


def talk(model, url, ca, seed, count, requests, part, keys, until):
    """Benign callers `part` of so many at the language model, in turn, each with so many requests."""
    connection, told = Connection(url, ca), {}
    everyone = [caller for i, caller in enumerate(language.callers(seed, count)) if i in part]
    for turn in range(requests):
        for caller, kind, bodies in everyone:
            if time.time() > until:
                return told
            mine = told.setdefault(caller, {"kind": kind, "rows": 0, "refused": 0})
            status, _, _ = connection.post("/v1/chat/completions", json.dumps({"model": model} | next(bodies)), keys[caller])
            mine["rows"] += 1
            mine["refused"] += status != 200
    return told


def campaign(name, model, url, ca, seed, requests, keys):
    """One campaign at the language model, its keys in turn; how many requests each key made."""
    connection, bodies, refused = Connection(url, ca), language.ATTACKS[name](np.random.default_rng(seed)), 0
    for turn in range(requests):
        status, _, _ = connection.post("/v1/chat/completions", json.dumps({"model": model} | next(bodies)), keys[turn % len(keys)])
        refused += status != 200
    return {"asked": requests, "refused": refused}


def chat(name, model, url, ca, key, budget, seed):
    """One attack on the language model."""
    talk = logits.Chat(url, ca, model, key, budget)
    matrix, ended = logits.run(name, talk, seed)
    return {"asked": talk.asked, "logits": int(matrix.size), "width": logits.width(matrix), "ended": ended, "refusals": talk.refusals}
