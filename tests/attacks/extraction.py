"""Thieves. Each takes an oracle and randomness, and asks until its queries are used up; what was answered is what it stole."""

import numpy as np
from art.attacks.extraction import CopycatCNN, FunctionallyEquivalentExtraction, KnockoffNets
from art.estimators.classification import BlackBoxClassifierNeuralNetwork

import victims
from thief import Copy


def copycat(oracle, random):
    """CopycatCNN of the toolbox, asking with photographs that have nothing to do with the task."""
    pool = victims.foreign(oracle.victim, random, oracle.budget)
    toolbox(CopycatCNN, oracle, pool)


def copycat_natural(oracle, random):
    """CopycatCNN with data of the victim's own kind. Nothing in its queries tells it from a user: only how much it learns can be counted."""
    toolbox(CopycatCNN, oracle, oracle.victim.natural(random, "attack", oracle.budget))


def knockoff_random(oracle, random):
    """KnockoffNets of the toolbox; half of its pool is of the victim's kind."""
    half = oracle.budget
    pool = np.concatenate([victims.foreign(oracle.victim, random, half), oracle.victim.natural(random, "attack", half)])
    toolbox(KnockoffNets, oracle, pool, sampling_strategy="random")


def knockoff_adaptive(oracle, random):
    """KnockoffNets whose bandit learns which kinds of photograph pay off; kinds are told by brightness; its authors have classes."""
    pool = victims.foreign(oracle.victim, random, 3 * oracle.budget)
    brightness = pool.mean(axis=1)
    kinds = np.digitize(brightness, np.quantile(brightness, np.linspace(0, 1, 11)[1:-1]))
    # Not "all": the toolbox then divides by a variance that is zero when the first answers are alike.
    toolbox(KnockoffNets, oracle, pool, kinds, sampling_strategy="adaptive", reward=str(random.choice(["cert", "div", "loss"])))


def toolbox(attack, oracle, pool, labels=None, **more):
    victim = oracle.victim
    attack = attack(oracle.art(), batch_size_fit=32, batch_size_query=oracle.batch, nb_epochs=20, nb_stolen=oracle.budget, use_probability=True,
                    **({"verbose": False} if "sampling_strategy" in more else {}), **more)
    attack.extract(oracle.images(pool), labels, thieved_classifier=Copy(victim, int(np.random.randint(1 << 30))))


def gaussian(oracle, random):
    """Noise with each column's mean and width."""
    victim = oracle.victim
    if victim.shape:
        middle, width = (victim.low + victim.high) / 2, (victim.high - victim.low) / 4
        rows = random.normal(middle, width, (oracle.budget, victim.dim))
    else:
        rows = random.normal(victim.mean, victim.sd, (oracle.budget, victim.dim))
    in_batches(oracle, rows)


def uniform(oracle, random):
    """Noise over the whole of each column's range."""
    victim = oracle.victim
    least, most = (victim.low, victim.high) if victim.shape else (victim.least, victim.most)
    in_batches(oracle, random.uniform(least, most, (oracle.budget, victim.dim)))


def in_batches(oracle, rows):
    for start in range(0, len(rows), oracle.batch):
        oracle.ask(rows[start : start + oracle.batch])


def jacobian(oracle, random):
    """Jacobian augmentation (Papernot 2017, 1602.02697): a few rows of the attacker's own, and steps from them along the sign of the copy's gradient."""
    victim = oracle.victim
    rows = victim.natural(random, "attack", int(random.choice([10, 20, 50])))
    step = victim.unit() * random.choice([1.0, 1.6]) if victim.shape else victim.sd * random.choice([0.3, 0.6])
    copy, known, answers = Copy(victim, int(random.integers(1 << 30))), rows, oracle.ask(rows)
    while True:
        copy.fit(known, answers)
        labels = answers.argmax(axis=1)
        new = victim.clip(known + step * np.sign(copy.gradient(known, labels)))
        if len(new) > oracle.budget - oracle.asked:  # reservoir sampling, as in the paper's periodic variant
            new = new[random.choice(len(new), max(1, oracle.budget - oracle.asked), replace=False)]
        theirs = oracle.ask(new)
        known, answers = np.concatenate([known, new]), np.concatenate([answers, theirs])


def line_search(oracle, random):
    """Points on the boundary, by bisection between rows of different classes (Lowd and Meek 2005, Tramèr 2016, 1609.02943)."""
    victim = oracle.victim
    while True:
        left, right = victim.natural(random, "attack", 2)
        if random.random() < 0.3:  # Tramèr's starts from anywhere
            left = victim.clip(random.uniform(victim.least, victim.most))
        first, last = oracle.ask(np.stack([left, right])).argmax(axis=1)
        if first == last:
            continue
        low, high = 0.0, 1.0
        while high - low > 1e-4:
            middle = (low + high) / 2
            if oracle.ask((left + middle * (right - left))[None]).argmax() == first:
                low = middle
            else:
                high = middle


def equation_solving(oracle, random):
    """As many equations as unknowns, and as many again to be sure (Tramèr 2016): random rows, or a row moved along each of its coordinates."""
    victim = oracle.victim
    if random.random() < 0.5:
        return gaussian(oracle, random)
    while True:
        base = victim.natural(random, "attack", 1)[0]
        moved = base + np.diag(victim.sd * random.choice([0.5, 1.0]) + 1e-3)
        in_batches(oracle, np.concatenate([base[None], moved[random.permutation(victim.dim)]]))


def functionally_equivalent(oracle, _):
    """The weights themselves (Jagielski 2020, 1909.01838), from where ReLUs bend along a line through all of space: far out of any contract's range."""
    oracle.clipped = False
    classifier = BlackBoxClassifierNeuralNetwork(lambda x: np.log(oracle.ask(x) + 1e-30), (oracle.victim.dim,), oracle.victim.classes, channels_first=True)
    with np.errstate(all="ignore"):
        FunctionallyEquivalentExtraction(classifier, num_neurons=32).extract(oracle.victim.natural(np.random.default_rng(0), "attack", 100))


ATTACKS = {attack.__name__: attack for attack in (
    copycat, copycat_natural, knockoff_random, knockoff_adaptive, gaussian, uniform, jacobian, line_search, equation_solving, functionally_equivalent)}
