"""Attackers who look for a row like a given one that the model takes for something else, and those who ask whether a row was trained on.

The toolbox's attacks as they are; each goes on with its next row until the queries are used up. What they found is told to `found`: (row, adversarial).
"""

import numpy as np
from art.attacks.evasion import BoundaryAttack, HopSkipJump, SimBA, SquareAttack, ZooAttack

# What counts as the same row to a person: the largest change of a pixel, and the mean square one, as a share of the range.
LINF, L2 = 0.2, 0.15


def bases(oracle, random):
    """Rows of the attacker's own, one after the other."""
    while True:
        yield oracle.victim.natural(random, "attack", 1)


def successful(victim, row, found):
    """Whether another answer was found for what a person takes for the same row. The model itself is asked: nothing is spent."""
    row, found = victim.clip(row.reshape(1, -1)), victim.clip(found.reshape(1, -1))
    change = (found - row) / ((victim.high - victim.low) if victim.shape else 4 * victim.sd)
    near = np.abs(change).max() <= LINF or np.sqrt((change**2).mean()) <= L2
    return bool(near and victim.predict(row)[1][0] != victim.predict(found)[1][0])


def generate(attack, oracle, row, found, flat=False, **more):
    """One run over one row; also where queries end in the middle, what was found till then is what the attacker has."""
    x = row if flat else oracle.images(row)
    begun = oracle.asked
    try:
        made = attack.generate(x, **more)
        if not flat and oracle.victim.shape:
            made = np.moveaxis(made, 1, 3)
        found.append((row, made.reshape(1, -1)))
    finally:
        if not found or found[-1][0] is not row:
            found.append((row, closest(oracle, row, begun)))


def closest(oracle, row, begun):
    """Of what was asked for a row and answered otherwise, the nearest."""
    rows, answers = np.array(oracle.rows[begun:]), np.array(oracle.answers[begun:])
    if len(rows) == 0:
        return row
    other = rows[answers.argmax(axis=1) != oracle.victim.predict(row)[1][0]]
    return other[[np.square((other - row) / oracle.victim.unit()).sum(axis=1).argmin()]] if len(other) else row


def hop_skip_jump(oracle, random, found):
    """HopSkipJump (1904.02144), from noise or from a row of another class."""
    natural = random.random() < 0.5
    iterations, evaluations = int(random.integers(3, 12)), int(random.choice([10, 20]))
    attack = HopSkipJump(oracle.art(), batch_size=oracle.batch, norm=2, max_iter=iterations, max_eval=60, init_eval=evaluations, init_size=50, verbose=False)
    for row in bases(oracle, random):
        start = {}
        if natural:
            start["x_adv_init"] = oracle.images(other_class(oracle, random, row))
        generate(attack, oracle, row, found, **start)


def other_class(oracle, random, row):
    mine = oracle.victim.predict(row)[1][0]
    while True:
        other = oracle.victim.natural(random, "attack", 1)
        if oracle.victim.predict(other)[1][0] != mine:
            return other


def square(oracle, random, found):
    """Square (1912.00049)."""
    attack = SquareAttack(oracle.art(), norm=np.inf, max_iter=250, eps=float(random.choice([0.1, 0.2])) * (oracle.victim.high - oracle.victim.low),
                          p_init=float(random.choice([0.3, 0.8])), nb_restarts=1, batch_size=oracle.batch, verbose=False)
    for row in bases(oracle, random):
        generate(attack, oracle, row, found)


def simba(oracle, random, found):
    """SimBA (1905.07121), by pixels or by cosines."""
    kind = str(random.choice(["px", "dct"]))
    attack = SimBA(oracle.art(), attack=kind, max_iter=150, order="random", epsilon=float(random.choice([0.1, 0.2])) * (oracle.victim.high - oracle.victim.low),
                   freq_dim=4, stride=1, batch_size=1, verbose=False)
    for row in bases(oracle, random):
        generate(attack, oracle, row, found)


def zoo(oracle, random, found):
    """ZOO (1708.03999): differences along single coordinates."""
    attack = ZooAttack(oracle.art(flat=True), learning_rate=float(oracle.victim.unit().mean()), max_iter=20, binary_search_steps=1, initial_const=10.0,
                       use_resize=False, use_importance=False, nb_parallel=min(16, oracle.victim.dim), batch_size=1,
                       variable_h=float(random.choice([1e-3, 0.05])) * float(oracle.victim.unit().mean()), verbose=False)
    for row in bases(oracle, random):
        generate(attack, oracle, row, found, flat=True)


def boundary(oracle, random, found):
    """The boundary attack (1712.04248)."""
    attack = BoundaryAttack(oracle.art(), batch_size=oracle.batch, targeted=False, delta=0.1, epsilon=0.1, max_iter=50, num_trial=10, sample_size=10,
                            init_size=50, verbose=False)
    for row in bases(oracle, random):
        generate(attack, oracle, row, found, x_adv_init=oracle.images(other_class(oracle, random, row)))


def membership_boundary(oracle, random, found):
    """Was this row trained on? By its distance from the boundary (Choquette-Choo 2021, 2007.14321): a short HopSkipJump for each of many rows."""
    attack = HopSkipJump(oracle.art(), batch_size=oracle.batch, norm=2, max_iter=2, max_eval=20, init_eval=10, init_size=20, verbose=False)
    for row in bases(oracle, random):
        generate(attack, oracle, row, found, x_adv_init=oracle.images(other_class(oracle, random, row)))


def membership_noise(oracle, random, found):
    """The same by how well the label stands against noise: a cloud of copies of each of many rows, at several widths."""
    victim = oracle.victim
    for row in bases(oracle, random):
        for width in (0.5, 1.0, 2.0, 4.0):
            cloud = row + random.normal(0, width, (8, victim.dim)) * victim.unit()
            for start in range(0, len(cloud), oracle.batch):
                oracle.ask(cloud[start : start + oracle.batch])
        found.append((row, row))


ATTACKS = {attack.__name__: attack for attack in (hop_skip_jump, square, simba, zoo, boundary, membership_boundary, membership_noise)}
