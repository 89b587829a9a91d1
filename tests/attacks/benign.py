"""Callers that mean no harm, of every kind that looks like something else.

Each kind is an endless generator of requests, arrays of one row or more; who takes from it decides how long the caller's day is. Rows come from the pool of
that caller alone, so callers that calibrate and callers that test share no source row.
"""

import itertools

import numpy as np
from scipy import ndimage


def single(rows):
    yield from (row[None] for row in rows)


def batched(rows, size):
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def users(victim, random, pool):
    """Rows as they come, one a request or a few."""
    size = int(random.choice([1, 1, 1, 4, 16, 32]))
    while True:
        yield victim.natural(random, pool, size)


def retries(victim, random, pool):
    """Every tenth request or so is sent again, sometimes more than once, sometimes a while later."""
    rate, late = random.uniform(0.05, 0.3), []
    for request in users(victim, random, pool):
        yield request
        while random.random() < rate:
            yield request
        if random.random() < rate / 4:
            late.append(request)
        if late and random.random() < rate / 4:
            yield late.pop(0)


def bursts(victim, random, pool):
    """One class for a long stretch, then another."""
    labels = np.unique(victim.pools[pool][1])
    while True:
        yield from single(victim.natural(random, pool, int(random.integers(15, 80)), random.choice(labels)))


def frames(victim, random, pool, wild):
    """A camera, or a sensor that reads the same object on and on: the scene moves smoothly, brightness drifts, the sensor has noise of its own."""
    unit, whole = victim.unit(), random.random() < 0.7
    noise = random.uniform(0.1, 0.5) * unit
    while True:
        scene = victim.natural(random, pool, 1)[0].astype(np.float64)
        length = int(random.integers(20, 150))
        phase, speed = random.uniform(0, 2 * np.pi, 3), random.uniform(0.01, 0.08, 3)
        reach, swing = (1.5, 0.3) if wild else (0.5, 0.08)
        still = random.random() < 0.3
        for t in range(length):
            wave = np.zeros(3) if still else np.sin(phase + speed * t) - np.sin(phase)
            gain = 1 + swing * wave[2] / 2
            if victim.shape:
                view = ndimage.shift(scene.reshape(victim.shape), (*(reach * wave[:2] / 2 * victim.shape[0] / 8), 0), order=1, mode="nearest")
                made = view.ravel() * gain
            else:
                made = scene * gain
            made = made + random.normal(0, 1, victim.dim) * noise
            made = np.rint(made / victim.step) * victim.step if whole else np.round(made, 3)
            yield victim.clip(made)[None]


def video(victim, random, pool):
    return frames(victim, random, pool, wild=False)


def drifting(victim, random, pool):
    """Video whose light and frame wander far: covariate drift."""
    return frames(victim, random, pool, wild=True)


def what_if(victim, random, pool):
    """Somebody at a slider: one coordinate of one row is swept, sometimes two on a grid."""
    while True:
        row = victim.natural(random, pool, 1)[0]
        yield row[None]
        for _ in range(int(random.integers(1, 5))):
            if random.random() < 0.75:
                axis = int(random.integers(victim.dim))
                swept = np.repeat(row[None], int(random.integers(5, 21)), 0)
                swept[:, axis] = stops(victim, random, axis, len(swept))
            else:
                first, second = random.choice(victim.dim, 2, replace=False)
                side = int(random.integers(3, 6))
                grid = itertools.product(stops(victim, random, first, side), stops(victim, random, second, side))
                swept = np.repeat(row[None], side * side, 0)
                for i, (a, b) in enumerate(grid):
                    swept[i, first], swept[i, second] = a, b
            yield from single(swept) if random.random() < 0.6 else batched(swept, 32)


def stops(victim, random, axis, count):
    """The stops of a slider over a column's range, or around its middle."""
    least, most = (victim.low, victim.high) if victim.shape else (victim.least[axis], victim.most[axis])
    if random.random() < 0.4:
        middle, half = random.uniform(least, most), (most - least) * random.uniform(0.05, 0.3)
        least, most = max(least, middle - half), min(most, middle + half)
    made = np.linspace(least, most, count)
    return np.rint(made / victim.step[axis]) * victim.step[axis] if random.random() < 0.6 else made


def explainers(victim, random, pool):
    """Somebody asks why: LIME, kernel SHAP, permutation SHAP, occlusion. Each perturbs one row some hundred times."""
    kinds = [lime, kernel_shap, permutation_shap] + ([occlusion, patches] if victim.shape else [])
    explain = kinds[int(random.integers(len(kinds)))]
    size = int(random.choice([1, 32]))
    background = victim.natural(random, pool, int(random.integers(4, 20)))
    while True:
        row = victim.natural(random, pool, 1)[0]
        yield row[None]
        yield from batched(victim.clip(explain(victim, random, row, background)), size)


def lime(victim, random, row, _):
    """Tabular LIME: Gaussian noise of each column's own width around the row (half of it, as its kernel keeps only those)."""
    return row + random.normal(0, 1, (int(random.integers(40, 120)), victim.dim)) * victim.sd * random.uniform(0.2, 1)


def kernel_shap(victim, random, row, background):
    """Coalitions: each column is the row's own or the background's."""
    count = int(random.integers(40, 120))
    kept = random.random((count, victim.dim)) < random.random((count, 1))
    return np.where(kept, row, background[random.integers(len(background), size=count)])


def permutation_shap(victim, random, row, background):
    """Columns are taken over from the background one after the other, in a random order, and given back in the same."""
    order, other = random.permutation(victim.dim), background[random.integers(len(background))]
    block = max(1, victim.dim // 30)  # SHAP groups pixels, or nobody could pay for it
    made, now = [], row.copy()
    for source in (other, row):
        for start in range(0, victim.dim, block):
            part = order[start : start + block]
            now[part] = source[part]
            made.append(now.copy())
    return np.stack(made)


def occlusion(victim, random, row, _):
    """A grey window slides over the image."""
    height, width, _ = victim.shape
    window, made = max(1, int(height * random.choice([0.15, 0.25]))), []
    grey = random.choice([victim.low, (victim.low + victim.high) / 2])
    for top in range(0, height - window + 1, window):
        for left in range(0, width - window + 1, window):
            view = row.reshape(victim.shape).copy()
            view[top : top + window, left : left + window] = grey
            made.append(view.ravel())
    return np.stack(made)


def patches(victim, random, row, _):
    """Image LIME: superpixels are switched off at random."""
    height, width, _ = victim.shape
    cell = height // 4
    made = []
    for _ in range(int(random.integers(40, 120))):
        kept = np.kron(random.random((4, 4)) < 0.5, np.ones((cell, cell)))[..., None]
        made.append((row.reshape(victim.shape) * kept + row.mean() * (1 - kept)).ravel())
    return np.stack(made)


def nightly(victim, random, pool):
    """A table that is scored every night: the same rows in the same order, a few of them new."""
    rows, size = victim.natural(random, pool, int(random.integers(30, 120))), int(random.choice([1, 16, 32]))
    while True:
        yield from batched(rows, size)
        new = random.random(len(rows)) < 0.05
        rows[new] = victim.natural(random, pool, int(new.sum())) if new.any() else rows[new]


def canaries(victim, random, pool):
    """A monitor that asks the same thing all day; one in three asks a handful in turn."""
    rows = victim.natural(random, pool, 1 if random.random() < 0.67 else int(random.integers(2, 6)))
    while True:
        yield from single(rows)


def augmented(victim, random, pool):
    """Test-time augmentation: each row a few times over, moved or with noise, for a mean of the answers."""
    unit, copies = victim.unit(), int(random.integers(3, 9))
    while True:
        row = victim.natural(random, pool, 1)[0].astype(np.float64)
        made = [row]
        for _ in range(copies):
            if victim.shape and random.random() < 0.5:
                view = row.reshape(victim.shape)
                made.append(ndimage.shift(view, (*random.uniform(-0.5, 0.5, 2), 0), order=1, mode="nearest").ravel())
            else:
                made.append(row + random.normal(0, 0.5, victim.dim) * unit)
        yield victim.clip(np.round(np.stack(made), 4))


def mixed(victim, random, pool):
    """An application with several of these in it."""
    parts = [users, retries, bursts, what_if, nightly, explainers]
    running = [parts[i](victim, random, pool) for i in random.choice(len(parts), 3, replace=False)]
    while True:
        yield from itertools.islice(running[int(random.integers(3))], int(random.integers(1, 30)))


KINDS = {kind.__name__: kind for kind in
         (users, retries, bursts, video, drifting, what_if, explainers, nightly, canaries, augmented, mixed)}
# The kinds whose rows lie close together without being the same; a bar of their own is set for them.
NEAR = {"retries", "video", "drifting", "what_if", "explainers", "augmented"}


def callers(victim, seed, pool, count, rows=(100, 300)):
    """Callers of all kinds in turn: name, kind, and the requests of one day, of so many rows."""
    names = list(KINDS)
    for i in range(count):
        random = np.random.default_rng([seed, POOL_SEEDS[pool], i])
        kind = names[i % len(names)]
        yield f"{pool}-{i:05}-{kind}", kind, day(KINDS[kind](victim, random, pool), int(random.integers(*rows)))


POOL_SEEDS = {"calibrate": 1, "test": 2}


def like_the_owners(victim, count=512, seed=0):
    """Rows of the same origin as those on which an exposure meter tries its copies: two of each benign caller's day, of every kind in turn.

    The meter has rows of the callers that calibrated; these are of others, and of other source rows. Rows that are moved, noisy or half replaced, as
    those of explainers are, are harder to agree on than clean ones."""
    days = (list(requests) for _, _, requests in callers(victim, seed, "test", count // 2, (30, 60)))
    return np.stack([rows[at] for rows in map(np.concatenate, days) for at in (0, len(rows) // 2)])


def day(requests, rows):
    for request in requests:
        if rows <= 0:
            return
        yield np.asarray(request[:rows], np.float32)
        rows -= len(request)
