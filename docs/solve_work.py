#!/usr/bin/env python3
"""Does the work that a Portcullis gateway asks for before it answers.

    pip install 'argon2-cffi>=21.2' requests
    python solve_work.py 'v1.6.6b4a1d80.….…'                       # prints the value of Portcullis-Work
    python solve_work.py --url https://gateway.example/v2/models/digits/infer --key KEY --body request.json [--ca ca.pem]

Whom a model's policy has pay is refused with 429, `Portcullis-Reason: budget.work`, and a challenge in `Portcullis-Work-Challenge`. The same
request is answered when it comes again with `Portcullis-Work: CHALLENGE.COUNTER`, where COUNTER is 8 bytes, as 16 lower-case hexadecimal
digits, for which

    Argon2id(password = COUNTER as 8 bytes, salt = first 16 bytes of SHA-256(CHALLENGE), m = 1024 KiB, t = 1, p = 1, 16 bytes, version 0x13)

begins with as many bits that are zero as the second part of the challenge says, in hexadecimal digits: D of them take 2 to the power of D
attempts on average, of a millisecond or two each. A challenge is good once, for a minute and the time that its work takes, for who got it, for
the model, and for a request about as many rows. As a part of a program of your own:

    session = requests.Session()
    session.mount("https://gateway.example/", Paying())
"""

import argparse
import hashlib
import sys

try:
    import requests
    from argon2.low_level import ARGON2_VERSION, Type, hash_secret_raw
    from requests.adapters import HTTPAdapter
except ImportError as missing:
    sys.exit(f"{missing}: pip install 'argon2-cffi>=21.2' requests")

# The most that a gateway asks for; whoever asks for more is none.
MOST_BITS = 16


def attempt(challenge: str, counter: int) -> int:
    """One attempt, as a number of 128 bits."""
    salt = hashlib.sha256(challenge.encode("ascii")).digest()[:16]
    made = hash_secret_raw(
        counter.to_bytes(8, "big"), salt, time_cost=1, memory_cost=1024, parallelism=1, hash_len=16, type=Type.ID, version=ARGON2_VERSION)
    return int.from_bytes(made, "big")


def bits(challenge: str) -> int:
    """How many bits of an attempt must be zero."""
    version, difficulty, *rest = challenge.split(".")
    if version != "v1" or len(rest) != 3:
        raise ValueError("a challenge of another version")
    if not 0 < int(difficulty, 16) <= MOST_BITS:
        raise ValueError(f"a challenge asks for 1 to {MOST_BITS} bits")
    return int(difficulty, 16)


def solve(challenge: str) -> str:
    """The value of `Portcullis-Work` for a challenge."""
    above, counter = 128 - bits(challenge), 0
    while attempt(challenge, counter) >> above:
        counter += 1
    return f"{challenge}.{counter:016x}"


class Paying(HTTPAdapter):
    """Sends what is refused for want of work once more, with the work. Mount it for the gateway's address alone: others could ask for work too."""

    def send(self, request, **options):
        answer = super().send(request, **options)
        challenge = answer.headers.get("portcullis-work-challenge")
        if answer.status_code != 429 or challenge is None:
            return answer
        answer.close()
        paid = request.copy()
        paid.headers["portcullis-work"] = solve(challenge)
        return super().send(paid, **options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("challenge", nargs="?", help="the value of Portcullis-Work-Challenge")
    parser.add_argument("--url", help="ask this instead, and pay for the answer where it costs something")
    parser.add_argument("--key", help="the API key to ask with")
    parser.add_argument("--body", help="the file to send, application/json")
    parser.add_argument("--ca", default=True, help="the authority that the gateway's certificate is from")
    arguments = parser.parse_args()
    if (arguments.challenge is None) == (arguments.url is None):
        parser.error("give a challenge or --url")
    if arguments.challenge:
        try:
            print(solve(arguments.challenge))
        except ValueError as wrong:
            sys.exit(str(wrong))
        return 0
    if not arguments.body:
        parser.error("--url goes with --body")
    session = requests.Session()
    session.mount(arguments.url, Paying())
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {arguments.key}"} if arguments.key else {})
    with open(arguments.body, "rb") as body:
        answer = session.post(arguments.url, data=body.read(), headers=headers, verify=arguments.ca, allow_redirects=False, timeout=60)
    print(answer.text)
    return 0 if answer.ok else 1


if __name__ == "__main__":
    sys.exit(main())
