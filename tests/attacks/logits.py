"""Part of a language model, by its own API (Carlini et al. 2024, 2403.06634; Finlayson et al. 2024, 2403.09539).

Logits are a linear map of a hidden state, so a matrix of logits over more prompts than the state has numbers has the state's width as its rank. A logit is had
by forcing its token with a bias and reading the log-probability that is answered, or, where none are, by looking for the bias at which the token takes the
lead.
"""

import json

import numpy as np

from gateway import Connection
from oracle import Refused, Spent

PROMPTS, TOKENS = 48, 48  # more than the hidden state of the model under attack, which has 32 numbers
FORCE = 100.0
FIRST = 259  # the first printable character of the vocabulary
BITS = 20  # steps of the search for a bias
# How far singular values must fall, as a factor, for an attacker to believe it.
FALL = 10.0


class Chat:
    """One key at the OpenAI dialect; `budget` requests and not one more."""

    def __init__(self, url, ca, model, key, budget):
        self.connection, self.model, self.key, self.budget, self.asked = Connection(url, ca), model, key, budget, 0
        self.refusals = 0

    def complete(self, prompt, bias, logprobs):
        """The first token answered, and its log-probability if it was told."""
        if self.asked >= self.budget:
            raise Spent
        self.asked += 1
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 1, "temperature": 0, "logit_bias": bias}
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": 1}
        status, headers, answer = self.connection.post("/v1/chat/completions", json.dumps(body), self.key)
        if status != 200:
            self.refusals += 1
            raise Refused(status, headers.get("Portcullis-Reason", "?"))
        choice = json.loads(answer)["choices"][0]
        told = (choice.get("logprobs") or {}).get("content") or []
        return choice["message"]["content"], told[0]["logprob"] if told else None


def prompts(random):
    return ["".join(map(chr, random.integers(97, 123, 12))) for _ in range(PROMPTS)]


def with_logprobs(chat, random, matrix):
    """Rows of log-probabilities, one a query; ends where they are not told."""
    for prompt in prompts(random):
        row = []
        for token in range(FIRST, FIRST + TOKENS):
            _, logprob = chat.complete(prompt, {str(token): FORCE}, True)
            if logprob is None:
                return "no log-probabilities"
            row.append(logprob)
        matrix.append(row)
    return "done"


def without_logprobs(chat, random, matrix):
    """Rows of differences to the leading token, by bisection of the bias at which a token takes its place; `BITS` queries each."""
    for prompt in prompts(random):
        lead, _ = chat.complete(prompt, {}, False)
        row = []
        for token in range(FIRST, FIRST + TOKENS):
            mine = chr(token - FIRST + 32)
            low, high = 0.0, 16.0
            for _ in range(BITS if mine != lead else 0):
                middle = (low + high) / 2
                took, _ = chat.complete(prompt, {str(token): middle}, False)
                low, high = (low, middle) if took != lead else (middle, high)
            row.append(-high if mine != lead else 0.0)
        matrix.append(row)
    return "done"


def width(matrix):
    """The hidden state's width as the attacker reads it off: where singular values fall furthest; none where they fall nowhere.

    The state is normalised before the last matrix, which takes one from what is read.
    """
    if len(matrix) < 3:
        return None
    values = np.linalg.svd(matrix - matrix.mean(axis=1, keepdims=True), compute_uv=False)
    falls = np.log(values[:-2] + 1e-12) - np.log(values[1:-1] + 1e-12)
    return int(falls.argmax()) + 1 if falls.max() > np.log(FALL) else None


ATTACKS = {"logit_bias": with_logprobs, "logit_bias_without_logprobs": without_logprobs}


def run(name, chat, seed):
    """What was read of the logits, in whole rows, and how it ended."""
    matrix = []
    try:
        ended = ATTACKS[name](chat, np.random.default_rng(seed), matrix)
    except Spent:
        ended = "spent"
    except Refused as refused:
        ended = refused.code
    return np.array(matrix), ended
