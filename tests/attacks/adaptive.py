"""Attackers who know that they are watched (OARS, 2303.06280), and those who hide among others."""

import numpy as np

from evasion import other_class
from oracle import Refused


class Suspicion:
    """What an attacker can feel of a defence: a refusal, or that answers are labels where they were probabilities. The latter is felt once, and lived with."""

    def __init__(self, oracle):
        self.oracle, self.soft, self.coarse = oracle, False, False

    def ask(self, rows):
        """The answers, or none where the defence was felt."""
        try:
            answers = self.oracle.ask(rows)
        except Refused:
            return None
        labels = bool((answers == np.rint(answers)).all())
        self.soft |= not labels
        if labels and self.soft and not self.coarse:
            self.coarse = True
            return None
        return answers


class Rehearsed:
    """The defence that an attacker has at home: it refuses what lies too close to anything it saw (Blacklight's idea, as a radius). Attackers practise on it,
    to learn how far apart their queries must lie; `radius` is a root mean square in the victim's units."""

    def __init__(self, oracle, radius):
        self.oracle, self.radius = oracle, radius
        self.victim, self.seen = oracle.victim, []

    def ask(self, rows):
        rows = self.victim.clip(np.asarray(rows).reshape(len(rows), -1))
        for row in rows:
            if self.seen and np.sqrt(np.square((np.array(self.seen) - row) / self.victim.unit()).mean(axis=1)).min() < self.radius:
                raise Refused(429, "rehearsed")
        self.seen += list(rows)
        return self.oracle.ask(rows)


def margin(answers, label):
    """How much the label leads; negative once it does not."""
    others = np.delete(answers, label, axis=1)
    return answers[:, label] - others.max(axis=1)


def oars_square(oracle, random, found, rehearsed=True):
    """Square with adapt-and-resample: squares are as large as they must be not to be felt, and a felt proposal is drawn again elsewhere."""
    victim = oracle.victim
    depth = 0.2 * (victim.high - victim.low)
    asked = Suspicion(Rehearsed(oracle, random.uniform(0.3, 0.8)) if rehearsed else oracle)
    while True:
        row = victim.natural(random, "attack", 1)
        label, now, share, lead = int(victim.predict(row)[1][0]), row, 0.1, None
        try:
            for _ in range(200):
                for _ in range(10):  # resample
                    proposal = victim.clip(row + squared(victim, random, now - row, share, depth))
                    answers = asked.ask(proposal)
                    if answers is not None:
                        break
                    share = min(0.8, share * 1.3)  # adapt: felt, so further away
                else:
                    break
                share = max(0.02, share * 0.97)
                new = float(margin(answers, label)[0])
                if lead is None or new < lead:
                    now, lead = proposal, new
                if lead < 0:
                    break
        finally:  # also where queries end
            found.append((row, now))


def squared(victim, random, delta, share, depth):
    """A change with one square of it drawn anew; in a table, some columns."""
    if not victim.shape:
        delta, chosen = delta.copy(), random.choice(victim.dim, max(1, round(share * victim.dim)), replace=False)
        delta[0, chosen] = random.choice([-0.8, 0.8], len(chosen)) * victim.sd[chosen]
        return delta
    side, _, channels = victim.shape
    tile, block = max(1, round(np.sqrt(share) * side)), delta.reshape(victim.shape).copy()
    top, left = random.integers(0, side - tile + 1, 2)
    block[top : top + tile, left : left + tile] = random.choice([-depth, depth], channels)
    return block.reshape(1, -1)


def oars_hop_skip_jump(oracle, random, found, rehearsed=True):
    """HopSkipJump with adapt-and-resample: noise, bisection and step are each as coarse as they must be not to be felt."""
    victim, unit = oracle.victim, oracle.victim.unit()
    asked = Suspicion(Rehearsed(oracle, random.uniform(0.3, 0.8)) if rehearsed else oracle)

    def flipped(rows):
        answers = asked.ask(rows)
        return None if answers is None else answers.argmax(axis=1) != label

    while True:
        row = victim.natural(random, "attack", 1)
        label = int(victim.predict(row)[1][0])
        now, noise, grain = other_class(oracle, random, row), 1.0, 1e-2
        try:
            for iteration in range(8):
                now, grain = nearer(victim, random, flipped, row, now, grain)
                gradient, noise = estimated(victim, random, flipped, now, noise, 12 + 2 * iteration)
                if gradient is None:
                    break
                step = np.linalg.norm((now - row) / unit) / np.sqrt(iteration + 1)
                while step > 0.05:
                    ahead = victim.clip(now + step * gradient * unit)
                    on = flipped(ahead)
                    if on is not None and on[0]:
                        now = ahead
                        break
                    step /= 2
        finally:
            found.append((row, now))


def nearer(victim, random, flipped, row, now, grain):
    """Towards the row until its own side is reached, by bisection; coarser each time it is felt."""
    low, high, felt = 0.0, 1.0, 0
    while high - low > grain and felt < 5:
        middle = (low + high) / 2 + (random.uniform(-0.1, 0.1) * (high - low) if felt else 0)
        on = flipped(row + middle * (now - row))
        if on is None:
            felt, grain = felt + 1, min(0.2, grain * 2)
        elif on[0]:
            high = middle
        else:
            low = middle
    return victim.clip(row + high * (now - row)), grain


def estimated(victim, random, flipped, now, noise, count):
    """Which way the boundary faces, from noise around a point on it; wider each time it is felt."""
    votes = []
    for _ in range(count):
        direction = random.normal(0, 1, (1, victim.dim))
        on = flipped(now + noise * direction * victim.unit())
        if on is None:
            noise = min(6.0, noise * 1.25)
        else:
            votes.append((direction, 1.0 if on[0] else -1.0))
    if not votes:
        return None, noise
    middle = np.mean([vote for _, vote in votes])
    gradient = sum((vote - middle) * direction for direction, vote in votes)
    return gradient / (np.linalg.norm(gradient) + 1e-9), noise


class Padded:
    """Each query of an attack stands among natural ones, as if an application asked."""

    def __init__(self, oracle, random, padding):
        self.oracle, self.random, self.padding = oracle, random, padding
        self.victim = oracle.victim

    budget = property(lambda self: max(1, self.oracle.budget // (1 + self.padding)))
    asked = property(lambda self: self.oracle.asked // (1 + self.padding))
    batch = property(lambda self: 1)
    rows = property(lambda self: self.oracle.rows)
    answers = property(lambda self: self.oracle.answers)
    art = property(lambda self: type(self.oracle).art.__get__(self))
    images = property(lambda self: type(self.oracle).images.__get__(self))

    def ask(self, rows):
        answers = []
        for row in np.asarray(rows).reshape(len(rows), -1):
            answers.append(self.oracle.ask(row[None])[0])
            for _ in range(self.padding):
                self.oracle.ask(self.victim.natural(self.random, "attack", 1))
        return np.stack(answers)


ATTACKS = {attack.__name__: attack for attack in (oars_square, oars_hop_skip_jump)}
