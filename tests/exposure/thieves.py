#!/usr/bin/env python3
"""Makes transcripts of thefts, trains thieves on them, and writes both for the meter's figures:

    python3 thieves.py FOLDER [WORLD…] [ROWS…]
    PORTCULLIS_TRANSCRIPTS=FOLDER cargo test --lib -- --ignored --nocapture exposure::figures::how_near

Needs numpy and scikit-learn; takes some twenty minutes a world on one core. A world is a model: `digits0` and `digits1` (8×8 pixels, a
network of 64 units), `regression` (the same pixels, a softmax regression), `bent` (20 numbers, four classes of three clusters each, 64
units: far from linear).

Its queries come from nobody's honest callers: the model learned from some rows, the owner's holdout are others, thieves are scored on
yet others, and query with the rest or with what they make up. `thieves.tsv` says of each transcript what the best thief came to, the best of those
that are not `apart`, and the best on the owner's holdout itself: by that figure a meter is not held to the chance that lies between two samples of rows.
A world's name may end with a number, which is its seed.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits, make_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import SVC

ROWS = [25, 50, 100, 200, 400, 800, 1600]
FEATURES = 64
# What is made up when a model is calibrated: the other attacks are new to it.
MADE_UP = {"natural", "gaussian", "uniform"}


class World:
    def __init__(self, name: str):
        self.name = name
        kind = name.rstrip("0123456789")
        seed = int(name[len(kind) :] or 0)
        self.random = np.random.default_rng(seed)
        if kind == "bent":
            rows, labels = make_classification(
                10_000, 20, n_informative=8, n_redundant=4, n_classes=4, n_clusters_per_class=3, class_sep=1.5, flip_y=0.01, random_state=seed
            )
            sizes = [1500, 512, 2000]
        else:
            rows, labels = load_digits(return_X_y=True)
            rows = rows / 16
            sizes = [500, 384, 413]
        order = self.random.permutation(len(rows))
        rows, labels = rows[order], labels[order]
        ends = np.cumsum(sizes)
        self.holdout, self.test, self.pool = rows[ends[0] : ends[1]], rows[ends[1] : ends[2]], rows[ends[2] :]
        model = LogisticRegression(max_iter=2000) if kind == "regression" else MLPClassifier((64,), max_iter=400, random_state=seed, alpha=1e-3)
        self.model = model.fit(rows[: ends[0]], labels[: ends[0]])
        self.low, self.high = rows.min(0), rows.max(0)
        self.mean, self.deviation = rows.mean(0), rows.std(0)
        self.pixels = kind != "bent"

    def answer(self, rows):
        return self.model.predict_proba(rows)

    def label(self, rows):
        return self.answer(rows).argmax(1)

    def natural(self, count):
        """Rows of the pool; when they are used up, rows moved by a pixel with a little noise."""
        rows = self.pool[self.random.permutation(len(self.pool))][:count]
        missing = count - len(rows)
        if missing > 0:
            more = self.pool[self.random.integers(0, len(self.pool), missing)]
            if self.pixels:
                image = more.reshape(-1, 8, 8)
                for at in range(missing):
                    if self.random.random() < 0.5:
                        image[at] = np.roll(image[at], self.random.integers(-1, 2, 2), (0, 1))
            rows = np.vstack([rows, np.clip(more + self.random.normal(0, 0.03, more.shape) * (self.high - self.low), self.low, self.high)])
        return rows


def augmented(world, count):
    """Jacobian augmentation (Papernot et al. 2017): a substitute is trained, and each row moved along its gradient, until there are enough."""
    step = 0.1 if world.pixels else 0.3 * world.deviation
    rows = world.natural(40)
    while len(rows) < count:
        labels = world.label(rows)
        substitute = MLPClassifier((32,), max_iter=150, random_state=0).fit(rows, labels)
        first, second = substitute.coefs_
        active = (rows @ first + substitute.intercepts_[0]) > 0
        column = np.searchsorted(substitute.classes_, labels)
        gradient = np.stack([(first * active[at]) @ second[:, column[at]] for at in range(len(rows))])
        moved = np.clip(rows + step * np.sign(gradient), world.low, world.high)
        rows = np.vstack([rows, moved[world.random.permutation(len(moved))]])
    return rows[:count]


def unsure(world, count):
    """Active learning: a small substitute asks for what it is least sure of."""
    pool = world.natural(max(2 * count, 200))
    rows, rest = pool[:20], pool[20:]
    while len(rows) < count:
        sure = np.sort(LogisticRegression(max_iter=200).fit(rows, world.label(rows)).predict_proba(rest), 1)
        order = np.argsort(sure[:, -1] - sure[:, -2])[: max(10, len(rows) // 2)]
        rows, rest = np.vstack([rows, rest[order]]), np.delete(rest, order, 0)
    return rows[:count]


def queries(world, attack, count):
    random, size = world.random, (count, len(world.mean))
    match attack:
        case "natural":
            return world.natural(count)
        case "gaussian":
            return np.clip(random.normal(world.mean, 1.2 * world.deviation.mean(), size), world.low, world.high)
        case "uniform":
            return random.uniform(world.low, world.high, size)
        case "jacobian":
            return augmented(world, count)
        case "burst":
            rows = world.natural(count)
            return rows[np.argsort(random.permutation(10)[world.label(rows)], kind="stable")]
        case "oneclass":
            rows = world.natural(4 * count)
            labels = world.label(rows)
            rows = rows[labels == labels[0]]
            return rows[np.arange(count) % len(rows)]
        case "blend":
            part = random.uniform(0.3, 0.7, (count, 1))
            return part * world.natural(count) + (1 - part) * world.natural(count)[random.permutation(count)]
        case "unsure":
            return unsure(world, count)


ATTACKS = ["natural", "gaussian", "uniform", "jacobian", "burst", "oneclass", "blend", "unsure"]


def kernels(world, rows, targets):
    """Gaussian kernels, as wide as the world's own rows ask for and half as wide, by ridge regression."""
    spread = (world.deviation**2).sum()
    middle = targets.mean(0)
    for part in (0.25, 0.5):
        for ridge in (1e-3, 1e-1):
            fitted = KernelRidge(alpha=ridge, kernel="rbf", gamma=part / spread).fit(rows, targets - middle)
            yield lambda asked, fitted=fitted: (fitted.predict(asked) + middle).argmax(1)


def thieves(world, rows, answers, probabilities):
    """Copies that are trained on the transcript, each a function from rows to labels. Apart: those of a thief who knows that honest inputs are
    of all classes alike, or makes use of the least probabilities, and kernels."""
    labels = answers.argmax(1)
    copies, apart = [], []
    if len(set(labels)) == 1:
        copies.append(lambda asked, only=labels[0]: np.full(len(asked), only))
    else:
        for copy in (
            LogisticRegression(max_iter=1000),
            KNeighborsClassifier(1),
            KNeighborsClassifier(3),
            SVC(C=10),
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
            MLPClassifier((64,), max_iter=300, random_state=1, alpha=1e-3),
        ):
            copies.append(copy.fit(rows, labels).predict)
        even = np.full(len(set(labels)), 1 / len(set(labels)))
        apart.append(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=even).fit(rows, labels).predict)
        apart.extend(kernels(world, rows, np.eye(answers.shape[1])[labels]))
    if probabilities:
        centred = lambda floor: (logarithms := np.log(np.clip(answers, floor, 1))) - logarithms.mean(1, keepdims=True)
        logarithms, whole = centred(1e-6), centred(1e-30)
        network = MLPRegressor(hidden_layer_sizes=(64,), max_iter=300, random_state=1, alpha=1e-3)
        for copy in (network, Ridge(1e-2)):
            fitted = copy.fit(rows, logarithms)
            copies.append(lambda asked, fitted=fitted: fitted.predict(asked).argmax(1))
        # The least probabilities tell of the scores as much as the greatest.
        linear = Ridge(1e-2).fit(rows, whole)
        apart.append(lambda asked: linear.predict(asked).argmax(1))
        for targets in (logarithms, whole):
            apart.extend(kernels(world, rows, targets))
    return copies, apart


def sketcher(world):
    """The features of `src/detect/exposure/holdout.rs`, as `src/detect/watch/space.rs` makes them of inputs of no more than 64 numbers."""
    length = len(world.mean)
    size = np.sqrt((world.holdout.std(0) ** 2).mean())
    turn = np.linalg.qr(np.random.default_rng(77).normal(size=(length, length)))[0]
    return lambda rows: np.pad((rows - world.holdout.mean(0)) / size @ turn, ((0, 0), (0, FEATURES - length)))


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    sizes = [int(asked) for asked in sys.argv[2:] if asked.isdigit()] or ROWS
    for name in [asked for asked in sys.argv[2:] if not asked.isdigit()] or ["digits0", "digits1", "regression", "bent"]:
        world = World(name)
        sketch = sketcher(world)
        write = lambda what, numbers: (folder / f"{name}.{what}").write_bytes(np.asarray(numbers, "<f4").tobytes())
        write("holdout", sketch(world.holdout))
        write("labels", world.label(world.holdout))
        for attack in ATTACKS:
            rows = queries(world, attack, sizes[-1])
            answers = world.answer(rows)
            write(f"{attack}.queries", sketch(rows))
            write(f"{attack}.answers", answers)
            for count in sizes:
                for told in ("label", "prob"):
                    copies, apart = thieves(world, rows[:count], answers[:count], told == "prob")
                    judged = lambda those, on: max(((copy(on) == world.label(on)).mean() for copy in those), default=0)
                    figures = judged(copies + apart, world.test), judged(copies, world.test), judged(copies + apart, world.holdout)
                    best, others, at_home = (f"{figure:.4f}" for figure in figures)
                    lines.append("\t".join([name, attack, told, str(count), best, str(int(attack in MADE_UP)), others, at_home]))
            print(name, attack, *lines[-1].split("\t")[4:], flush=True)
            (folder / "thieves.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
