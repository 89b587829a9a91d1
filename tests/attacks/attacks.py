"""All attacks by name, and which victims each is for."""

import numpy as np

import adaptive
import evasion
import extraction
from oracle import Refused, Spent

# Square and SimBA move squares and cosines of an image; Copycat and KnockoffNets ask a table with foreign rows as well.
IMAGES_ONLY = {"square", "simba"}
# These only: a linear model, and a perceptron of one hidden layer.
ONLY = {"equation_solving": "table", "functionally_equivalent": "digits"}
# What the gateway's contract refuses before a detector sees it has no place in a recording.
OUT_OF_RANGE = {"functionally_equivalent"}
THEFT = set(extraction.ATTACKS)
HIDDEN = {"hop_skip_jump_padded_1": ("hop_skip_jump", 1), "hop_skip_jump_padded_4": ("hop_skip_jump", 4), "jacobian_padded_1": ("jacobian", 1)}
NAMES = [*extraction.ATTACKS, *evasion.ATTACKS, *adaptive.ATTACKS, *HIDDEN]


def applicable(victim):
    """The attacks that make sense against a victim."""
    return [name for name in NAMES if (victim.shape or name not in IMAGES_ONLY) and ONLY.get(name, victim.name) == victim.name]


def run(name, oracle, seed, rehearsed=False):
    """One attack until it ends or its queries do: what it found, as pairs of row and adversarial (none of thieves), and how it ended."""
    random, found = np.random.default_rng(seed), []
    np.random.seed(int(random.integers(1 << 31)))  # the toolbox draws from numpy's own
    if name in HIDDEN:
        name, padding = HIDDEN[name]
        oracle = adaptive.Padded(oracle, random, padding)
    try:
        if name in extraction.ATTACKS:
            extraction.ATTACKS[name](oracle, random)
        elif name in evasion.ATTACKS:
            evasion.ATTACKS[name](oracle, random, found)
        else:
            adaptive.ATTACKS[name](oracle, random, found, rehearsed)
    except Spent:
        return found, "spent"
    except Refused as refused:
        return found, refused.code
    except (ArithmeticError, ValueError, IndexError) as error:  # the toolbox gave up on numbers it did not expect; what was asked till then counts
        return found, f"failed: {error}"
    return found, "done"
