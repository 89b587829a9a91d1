"""Figures, and the tables they are printed in."""

import numpy as np
from scipy.stats import beta


def clopper_pearson(hits, of, confidence=0.95):
    """The exact interval of a proportion (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    least = beta.ppf(tail, hits, of - hits + 1) if hits else 0.0
    most = beta.ppf(1 - tail, hits + 1, of - hits) if hits < of else 1.0
    return float(least), float(most)


def share(hits, of):
    """So many of so many, with the interval."""
    if not of:
        return "none"
    least, most = clopper_pearson(hits, of)
    return f"{hits}/{of} = {percent(hits / of)} [{percent(least)}, {percent(most)}]"


def percent(part):
    return f"{100 * part:.3g} %"


def queries(detected, runs):
    """Median and 90th percentile over all runs: those without an alarm count as never, so that a few early alarms do not look like a rule."""
    ordered = sorted(detected) + [None] * (runs - len(detected))

    def at(quantile):
        found = ordered[min(runs - 1, int(np.ceil(quantile * runs)) - 1)]
        return "never" if found is None else str(found)
    return at(0.5), at(0.9)


def mean(values, digits=3):
    values = [value for value in values if value is not None]
    return f"{np.mean(values):.{digits}f}" if values else "–"


def markdown(heads, rows):
    """A table that reads in a terminal as well as in a README."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)
