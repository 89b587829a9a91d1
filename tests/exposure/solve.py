#!/usr/bin/env python3
"""Does the work that `portcullis-work-challenge` asks for, and prints the value of `portcullis-work`.

    python3 solve.py 'v1.a.6b4a1d80.….…'

Needs argon2-cffi. One attempt takes a millisecond or two; difficulty D takes 2^D of them on average.
"""

import hashlib
import sys

from argon2.low_level import Type, hash_secret_raw


def attempt(challenge: str, counter: int) -> bytes:
    salt = hashlib.sha256(challenge.encode()).digest()[:16]
    return hash_secret_raw(counter.to_bytes(8, "big"), salt, time_cost=1, memory_cost=1024, parallelism=1, hash_len=16, type=Type.ID)


def solve(challenge: str) -> str:
    version, difficulty, *_ = challenge.split(".")
    if version != "v1":
        raise SystemExit("a challenge of another version")
    bits = int(difficulty, 16)
    counter = 0
    while int.from_bytes(attempt(challenge, counter), "big") >> (128 - bits):
        counter += 1
    return f"{challenge}.{counter:016x}"


if __name__ == "__main__":
    print(solve(sys.argv[1]))
