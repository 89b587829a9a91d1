"""Recordings: what benign callers and attackers ask a model, and what it answers, as JSON lines.

    record.py benign --victim digits --pool calibrate --callers 1000 --out calibrate.jsonl
    record.py attacks --victim digits --runs 20 --queries 300 500 --out attacks.jsonl

Each line is `{"caller", "kind", "body", "answer"}`; `portcullis calibrate --recording` reads caller and body. The model is asked directly. The same arguments
give the same file.
"""

import argparse
import sys
import time
import warnings

import numpy as np

import attacks
import benign
import victims
from oracle import Direct, Recording, response

# Requests never hold more rows than this; the gateway's policies allow as many.
BATCH = 32
# So many keys take turns in runs whose kind ends in `_keys_N`.
ROTATIONS = (4, 16, 64)
ROTATED = ("hop_skip_jump", "jacobian", "gaussian", "copycat_natural", "oars_hop_skip_jump")


def record_benign(victim, recording, pool, callers, rows, seed):
    """Callers take turns, request by request, a few dozen at a time: as they would at a gateway."""
    random, waiting = np.random.default_rng([seed, 99]), benign.callers(victim, seed, pool, callers, rows)
    active = []
    while True:
        while len(active) < 40 and (caller := next(waiting, None)):
            active.append(caller)
        if not active:
            return
        i = int(random.integers(len(active)))
        name, kind, requests = active[i]
        request = next(requests, None)
        if request is None:
            active.pop(i)
            continue
        recording.add(name, kind, request, response(victim.name, *victim.predict(request)))


def record_attacks(victim, recording, names, runs, queries, seed):
    plans = [(name, name, 1) for name in names]
    plans += [(name, f"{name}_keys_{keys}", keys) for name in ROTATED if name in names for keys in ROTATIONS]
    for name, kind, keys in plans:
        begun = time.monotonic()
        ended = []
        for run in range(runs if keys == 1 else max(1, runs // 4)):
            random = np.random.default_rng([seed, attacks.NAMES.index(name), keys, run])
            callers = [f"attack-{kind}-{run:02}" + (f"-{key:02}" if keys > 1 else "") for key in range(keys)]
            # Every other run sends batches, and every third remembers what it has asked.
            oracle = Direct(victim, int(random.integers(*queries)) * (1 if keys == 1 else 2), BATCH if run % 2 else 1, run % 3 == 2, recording, callers, kind)
            found, how = attacks.run(name, oracle, int(random.integers(1 << 31)), rehearsed=True)
            ended.append((oracle.asked, how, len(found)))
        print(f"{kind}: {len(ended)} runs, {sum(asked for asked, _, _ in ended)} rows, ended {sorted({how for _, how, _ in ended})}, "
              f"{time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["benign", "attacks"])
    parser.add_argument("--victim", choices=victims.ALL, default="digits")
    parser.add_argument("--pool", choices=list(benign.POOL_SEEDS), default="calibrate")
    parser.add_argument("--callers", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs=2, default=(100, 300), metavar=("LEAST", "MOST"), help="rows of a benign caller's day")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--queries", type=int, nargs=2, default=(300, 500), metavar=("LEAST", "MOST"), help="rows of an attack")
    parser.add_argument("--attack", action="append", help="only these attacks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-answers", action="store_true")
    parser.add_argument("--out", required=True)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    victim = victims.ALL[asked.victim]()
    recording = Recording(asked.out, not asked.no_answers)
    if asked.what == "benign":
        record_benign(victim, recording, asked.pool, asked.callers, asked.rows, asked.seed)
    else:
        names = asked.attack or [name for name in attacks.applicable(victim) if name not in attacks.OUT_OF_RANGE]
        record_attacks(victim, recording, names, asked.runs, asked.queries, asked.seed)
    recording.close()
    print(f"{asked.out}: {recording.lines} requests, {recording.count} rows", file=sys.stderr)


if __name__ == "__main__":
    main()
